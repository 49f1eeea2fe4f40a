"""Which engine is chosen, and what only the direct one does."""

import ctypes
import functools
import gc
import os
import pickle
import random
import subprocess
import sys
import sysconfig
import threading

import greenlet
import pytest

import greenback

direct = pytest.mark.skipif(
    greenback.engine != "direct", reason="about the direct engine"
)

# Calls of deeper() that lead far below where steps begin; frames of debug builds are larger.
FAR = 60 if hasattr(sys, "gettotalrefcount") else 150

PROGRAM = """
import asyncio, sys
{before}
import greenback

async def main():
    await greenback.ensure_portal()
    greenback.await_(asyncio.sleep(0))

asyncio.run(main())
print(greenback.engine, sys.modules.get("greenlet") is not None)
print(greenback.engine.reason)
"""


def run_program(before="", **environment):
    """Run PROGRAM in a process of its own; return its result."""
    environment = {**os.environ, "GREENBACK_ENGINE": "", **environment}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_reason():
    """The engine tells in words why it is in force, also after pickling."""
    assert isinstance(greenback.engine.reason, str)
    assert greenback.engine.reason in repr(greenback.engine)
    copy = pickle.loads(pickle.dumps(greenback.engine))
    assert copy == greenback.engine
    assert copy.reason == greenback.engine.reason


@direct
def test_direct_needs_no_greenlet():
    """The default engine neither imports greenlet nor needs it."""
    for before in (
        "",
        "sys.modules['greenlet'] = None",
        "import types; sys.modules['greenlet'] = types.SimpleNamespace()",
    ):
        run = run_program(before)
        assert run.stderr == ""
        assert run.stdout.splitlines()[0] == f"direct {'types' in before}"


def test_engine_by_hand():
    """GREENBACK_ENGINE picks an engine, and the reason says so."""
    run = run_program(GREENBACK_ENGINE="greenlet")
    assert run.stdout.splitlines() == [
        "greenlet True",
        "GREENBACK_ENGINE=greenlet asks for it",
    ]


def test_engine_that_lacks_greenlet():
    """Without the package greenlet, its engine says what to install."""
    run = run_program("sys.modules['greenlet'] = None", GREENBACK_ENGINE="greenlet")
    assert "ImportError: greenback needs the package greenlet here" in run.stderr
    assert "install greenback[greenlet]" in run.stderr


OLD = "import greenlet; greenlet.__version__ = '2.0.2'"


def test_engine_with_old_greenlet():
    """A greenlet that the engine can't work with is not used."""
    run = run_program(OLD, GREENBACK_ENGINE="greenlet")
    assert "ImportError: greenlet is older than 3.0; upgrade it" in run.stderr


@direct
def test_direct_beside_old_greenlet():
    """The direct engine does without: only in greenlets await_ can't wait."""
    program = PROGRAM.format(before=OLD).replace(
        "    greenback.await_(asyncio.sleep(0))\n",
        """
    def wait():
        try:
            greenback.await_(asyncio.sleep(0))
        except RuntimeError as exc:
            return exc
    print(repr(wait()))
    print(greenlet.greenlet(wait).switch())
    print(repr(wait()))
""",
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, inside, then, *_ = run.stdout.splitlines()
    assert first == then == "None"
    assert inside.endswith("(greenlet 3.0 or newer is needed)")


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="about free-threaded builds",
)
def test_free_threaded(monkeypatch):
    """The import turns the GIL on, of which Python warns; the engine is greenlet's and says why."""
    monkeypatch.delenv("PYTHON_GIL")
    off = "import greenlet; assert not sys._is_gil_enabled()"
    run = run_program(f"{off}; import greenback; assert sys._is_gil_enabled()")
    assert "RuntimeWarning: The global interpreter lock (GIL) has been enabled" in (
        run.stderr
    )
    assert "greenback._core" in run.stderr
    assert run.stdout.splitlines() == [
        "greenlet True",
        "the direct engine can't be used, since this CPython is free-threaded",
    ]


def test_unknown_engine():
    """A wrong name is an ImportError that lists the right ones."""
    run = run_program(GREENBACK_ENGINE="no such engine")
    assert "ImportError: GREENBACK_ENGINE=no such engine" in run.stderr
    assert "'direct' or 'greenlet'" in run.stderr


class Trap:
    def __await__(self):
        return (yield self)


def sync(times):
    return [greenback.await_(Trap()) for _ in range(times)]


def deeper(levels, function, *args):
    """Call ``function`` from a C stack that is deeper by some C calls."""
    if levels == 0:
        return function(*args)
    call = functools.partial(deeper, levels - 1, function, *args)
    return functools.reduce(lambda _, caller: caller(), [call], None)


@direct
def test_resumed_from_any_depth():
    """The loop's stack may be deeper or less deep at each step."""
    coro = greenback.with_portal_run_sync(sync, 40)
    coro.send(None)
    for number in range(39):
        deeper(number * 7 % 20, coro.send, number)
    with pytest.raises(StopIteration) as stop:
        coro.send(39)
    assert stop.value.value == list(range(40))


@direct
@pytest.mark.overlaps
def test_resumed_over_live_stack():
    """Much deeper than where the step began, live stack is moved aside meanwhile."""
    before = greenback._core.engine_counters()["overlaps"]
    coro = greenback.with_portal_run_sync(sync, 3)
    coro.send(None)

    def names_outside():
        frame, names = sys._getframe(), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names

    levels = FAR
    assert isinstance(deeper(levels, coro.send, "a"), Trap)
    assert deeper(levels, names_outside).count("deeper") == levels + 1
    assert isinstance(deeper(levels, coro.send, "b"), Trap)
    with pytest.raises(StopIteration) as stop:
        coro.send("c")
    assert stop.value.value == ["a", "b", "c"]
    assert greenback._core.engine_counters()["overlaps"] > before


@direct
def test_many_suspended_at_once():
    """Each suspended stack is its own; memory for hundreds comes and goes."""
    coros = [greenback.with_portal_run_sync(sync, 2) for _ in range(500)]
    for coro in coros:
        coro.send(None)
    for number, coro in enumerate(coros):
        coro.send(number)
    for number, coro in enumerate(coros):
        with pytest.raises(StopIteration) as stop:
            coro.send(-number)
        assert stop.value.value == [number, -number]


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@direct
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.skipif(
    "ASAN_OPTIONS" in os.environ, reason="the sanitizer holds back what is freed"
)
@pytest.mark.parametrize("calls", [0, 30])
def test_memory_of_a_burst(calls):
    """What thousands of suspended stacks take is given back when they have gone on."""

    def descend(calls):
        return descend(calls - 1) if calls else sync(1)

    def burst(count):
        coros = [greenback.with_portal_run_sync(descend, calls) for _ in range(count)]
        for coro in coros:
            coro.send(None)
        parked = resident_bytes()
        random.Random(calls).shuffle(coros)
        for coro in coros:
            with pytest.raises(StopIteration):
                coro.send(None)
        return parked

    burst(10)
    gc.collect()
    before = resident_bytes()
    parked = burst(5000)
    gc.collect()
    assert parked - before > 5000 * 1000
    assert resident_bytes() - before < (parked - before) / 4


@direct
def test_calls_beyond_a_chunk():
    """Where calls need one more chunk for their frames, they don't map one each time."""
    resource = pytest.importorskip("resource")

    # Its frame is larger than that of descend(), so there is a depth where it does not fit.
    large = eval("lambda " + ", ".join(f"a{n}=0" for n in range(60)) + ": None")

    def page_faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def descend(calls):
        before = page_faults()
        for _ in range(1000):
            large()
        here = page_faults() - before
        return max(here, descend(calls - 1)) if calls else here

    with pytest.raises(StopIteration) as stop:
        greenback.with_portal_run_sync(descend, 60).send(None)
    assert stop.value.value < 500


@direct
def test_unwinders_find_their_way():
    """Debuggers, profilers and C++ exceptions get from a step to the frames below it."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "backtrace"):
        pytest.skip("this libc has no backtrace()")

    def outermost():
        """Return addresses of the outermost C frames."""
        addresses = (ctypes.c_void_p * 1000)()
        return addresses[: libc.backtrace(addresses, 1000)][-5:]

    def look_twice():
        first = outermost()
        greenback.await_(Trap())
        return first, outermost()

    coro = greenback.with_portal_run_sync(look_twice)
    coro.send(None)
    with pytest.raises(StopIteration) as stop:
        coro.send(None)
    assert stop.value.value == (outermost(), outermost())


@direct
def test_many_entries_from_c():
    """The frames of a stack with many C calls between are cut and joined again."""

    def names():
        frame, found = sys._getframe(1), []
        while frame is not None:
            found.append(frame.f_code.co_name)
            frame = frame.f_back
        return found

    def program():
        before = names()
        sync(3)
        return before, names()

    coro = greenback.with_portal_run_sync(deeper, 30, program)
    for _ in range(4):
        try:
            coro.send(None)
        except StopIteration as stop:
            before, after = stop.value
    assert before == after
    assert before.count("deeper") == 31


@direct
def test_wrong_thread():
    """Only the thread that suspended a task can resume it."""
    coro = greenback.with_portal_run_sync(sync, 1)
    coro.send(None)
    errors = []

    def resume():
        try:
            coro.send(None)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=resume)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "in the thread that suspended it" in errors[0]
    with pytest.raises(StopIteration):
        coro.send(None)


@direct
@pytest.mark.overlaps
def test_not_resumed_over_a_collection(strays):
    """A finalizer that the collector runs can't resume a stack over its frames."""
    coro = greenback.with_portal_run_sync(sync, 1)
    coro.send(None)
    errors = []

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            try:
                coro.send(None)
            except RuntimeError as error:
                errors.append(str(error))

    Cycle()
    deeper(FAR, gc.collect)
    assert len(errors) == 1
    assert "finalizer that the garbage collector runs" in errors[0]
    with pytest.raises(StopIteration):
        coro.send(None)


# --- await_ in greenlets started in the step


@pytest.fixture
def traced():
    """greenlet.settrace() with a function that notes the events in a list."""
    events = []

    def tracer(event, switch):
        events.append(event)

    greenlet.settrace(tracer)
    yield events, tracer
    greenlet.settrace(None)


def drive(coro):
    """Send to ``coro`` what it yields until it ends; return its result."""
    value = None
    while True:
        try:
            value = coro.send(value)
        except StopIteration as stop:
            return stop.value


def test_tracer_is_kept(traced):
    """The user's trace function sees the switches and stays in place."""
    events, tracer = traced

    def program():
        inner = greenlet.greenlet(sync)
        return len(inner.switch(3)), greenlet.gettrace() is tracer

    assert drive(greenback.with_portal_run_sync(program)) == (3, True)
    assert "switch" in events


def test_exception_with_tracer(traced):
    """An exception that leaves the greenlet arrives, the trace function stays."""
    _, tracer = traced

    def fail():
        sync(1)
        raise LookupError("from the greenlet")

    def program():
        with pytest.raises(LookupError, match="from the greenlet"):
            greenlet.greenlet(fail).switch()
        return True

    assert drive(greenback.with_portal_run_sync(program))
    assert greenlet.gettrace() is tracer


@direct
def test_tracer_that_raises(strays):
    """A trace function that raises is taken away, as greenlet does, and reported."""

    def tracer(event, switch):
        raise LookupError("from the tracer")

    def program():
        def inner():
            greenlet.settrace(tracer)
            return sync(2)

        return greenlet.greenlet(inner).switch()

    assert len(drive(greenback.with_portal_run_sync(program))) == 2
    assert greenlet.gettrace() is None
    assert len(strays) == 1
    assert "from the tracer" in strays.pop()


@direct
def test_woken_by_somebody_else():
    """Whoever wakes a greenlet that waits for the loop fails both sides clearly."""
    inner_errors, inners = [], []

    def inner():
        try:
            sync(1)
        except RuntimeError as error:
            inner_errors.append(str(error))

    def program():
        inners.append(greenlet.greenlet(inner))
        return inners[0].switch()

    coro = greenback.with_portal_run_sync(program)
    coro.send(None)
    inners[0].parent = greenlet.getcurrent()
    inners[0].switch()
    assert len(inner_errors) == 1
    with pytest.raises(RuntimeError, match="switched to by something else"):
        coro.send(None)


@direct
def test_home_moves_with_the_loop():
    """A stack that goes on in the main greenlet serves greenlets from there."""

    def program():
        first = sync(1)
        return [*first, *greenlet.greenlet(sync).switch(2)]

    coro = greenback.with_portal_run_sync(program)
    greenlet.greenlet(coro.send).switch(None)  # a greenlet that ends with that step
    assert isinstance(coro.send("a"), Trap)
    assert isinstance(coro.send("b"), Trap)
    with pytest.raises(StopIteration) as stop:
        coro.send("c")
    assert stop.value.value == ["a", "b", "c"]
