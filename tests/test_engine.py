"""Which engine is chosen, and what only the direct one does."""

import functools
import os
import pickle
import subprocess
import sys

import pytest

import greenback

direct = pytest.mark.skipif(
    greenback.engine != "direct", reason="about the direct engine"
)

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
    for before in ("", "sys.modules['greenlet'] = None"):
        run = run_program(before)
        assert run.stderr == ""
        assert run.stdout.splitlines()[0] == "direct False"


def test_engine_by_hand():
    """GREENBACK_ENGINE picks an engine, and the reason says so."""
    run = run_program(GREENBACK_ENGINE="greenlet")
    assert run.stdout.splitlines() == [
        "greenlet True",
        "GREENBACK_ENGINE=greenlet asks for it",
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
        deeper(number * 7 % 31, coro.send, number)
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

    levels = 150
    assert isinstance(deeper(levels, coro.send, "a"), Trap)
    assert deeper(levels, names_outside).count("deeper") == levels + 1
    assert isinstance(deeper(levels, coro.send, "b"), Trap)
    with pytest.raises(StopIteration) as stop:
        coro.send("c")
    assert stop.value.value == ["a", "b", "c"]
    assert greenback._core.engine_counters()["overlaps"] > before
