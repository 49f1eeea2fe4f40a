"""await_ in worker threads: the loop awaits, the thread waits for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import traceback
import types
import weakref

import pytest
import sniffio
from conftest import ASYNCIO_IDS, checked_runner

import greenback
from greenback import _threads, await_, ensure_portal, has_portal

try:
    import anyio
    import anyio.from_thread
    import anyio.to_thread
except ImportError:
    anyio = None

var = contextvars.ContextVar("var", default="default")


class Worker:
    """One way to have a thread call a function while the task awaits."""

    def __init__(self, way, runner):
        self.way = way
        self.runner = runner
        self.library = runner.library
        # Threads start with the context of who starts them, or with an empty one.
        inherits = getattr(sys.flags, "thread_inherit_context", False)
        self.with_context = way != "own executor" or inherits
        # Whether cancelling the task that waits for the thread reaches what
        # the thread waits for.
        self.passes_cancellation_on = way in ("trio", "anyio")

    async def call(self, fn, *args):
        if self.way == "to_thread":
            return await asyncio.to_thread(fn, *args)
        if self.way == "trio":
            import trio

            return await trio.to_thread.run_sync(functools.partial(fn, *args))
        if self.way == "anyio":
            return await anyio.to_thread.run_sync(functools.partial(fn, *args))
        loop = asyncio.get_running_loop()
        if self.way == "executor":
            run = contextvars.copy_context().run
            return await loop.run_in_executor(None, run, fn, *args)
        assert self.way == "own executor"
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return await loop.run_in_executor(executor, fn, *args)

    def run(self, fn, *args):
        """Call fn in a thread that a task with a portal has started."""

        async def main():
            await ensure_portal()
            return await self.call(fn, *args)

        return self.runner.run(main)


ASYNCIO_WAYS = ["to_thread", "executor", "own executor"]
WORKERS = [
    *[(way, id) for way in ASYNCIO_WAYS for id in ASYNCIO_IDS],
    ("trio", "trio"),
    *[("anyio", id) for id in ("asyncio", "uvloop", "trio")],
]


def checked_worker(param):
    way, id = param
    if way == "anyio" and anyio is None:
        pytest.skip("AnyIO is not installed")
    for runner in checked_runner(id):
        yield Worker(way, runner)


@pytest.fixture(params=WORKERS, ids="-".join)
def worker(request, strays):
    yield from checked_worker(request.param)


@pytest.fixture(params=[param for param in WORKERS if param[1] != "trio"], ids="-".join)
def asyncio_worker(request, strays):
    yield from checked_worker(request.param)


async def value_of(runner, value):
    await runner.checkpoint()
    return value


async def signal(event):
    event.set()


def report(outcome, fn, *args):
    """Call the function; set a concurrent.futures.Future to its outcome."""
    try:
        outcome.set_result(fn(*args))
    except BaseException as error:
        outcome.set_exception(error)


async def never():
    raise AssertionError("must not run")


def assert_no_cycle(make):
    """Call ``make()``; what it returns a weak reference to must be gone."""
    gc.collect()
    gc.disable()
    try:
        watch = make()
        assert watch() is None
    finally:
        gc.enable()


# --- what it gives ----------------------------------------------------------------------


def test_result(worker):
    """The result comes back, from the loop's thread."""
    runner = worker.runner

    async def awaited():
        await runner.checkpoint()
        return threading.get_ident(), runner.current_task() is not None

    def in_thread():
        return threading.get_ident(), await_(awaited()), await_(awaited())

    thread, first, second = worker.run(in_thread)
    assert first == second == (threading.get_ident(), True)
    assert thread != threading.get_ident()


def test_nothing_to_wait_for(worker):
    """An awaitable that does not wait works as well."""

    async def at_once():
        return threading.get_ident()

    assert worker.run(lambda: await_(at_once())) == threading.get_ident()


def test_only_the_thread_is_blocked(worker):
    """The loop runs other tasks while the thread waits."""
    runner = worker.runner
    log = []

    async def main():
        event = runner.Event()

        async def other():
            await thread_waits.wait()
            log.append("other")
            event.set()

        async def awaited():
            thread_waits.set()
            await event.wait()
            log.append("awaited")

        def in_thread():
            await_(awaited())
            log.append("thread")

        thread_waits = runner.Event()
        child = runner.spawn(other)
        await worker.call(in_thread)
        await child.join()

    runner.run(main)
    assert log == ["other", "awaited", "thread"]


def test_exception(worker):
    """The exception itself comes back, and tells of both sides."""
    error = LookupError("from the loop")

    async def raising():
        await worker.runner.checkpoint()
        raise error

    def in_thread():
        with pytest.raises(LookupError) as caught:
            await_(raising())
        return caught.value

    assert worker.run(in_thread) is error
    names = [entry.name for entry in traceback.extract_tb(error.__traceback__)]
    assert names[0] == "in_thread"
    assert names[-1] == "raising"


def test_exception_can_be_thrown_through(worker):
    """What the thread does not catch reaches the task that waits for it."""

    async def raising():
        await worker.runner.checkpoint()
        raise LookupError("from the loop")

    with pytest.raises(LookupError, match="from the loop"):
        worker.run(lambda: await_(raising()))


class Awaitable:
    def __init__(self, runner):
        self.runner = runner

    def __await__(self):
        return (yield from value_of(self.runner, "by __await__").__await__())


@types.coroutine
def generator_based(runner):
    return (yield from value_of(runner, "by a generator").__await__())


def test_any_awaitable(worker):
    """What await takes, a thread may pass."""
    runner = worker.runner

    def in_thread():
        return [await_(Awaitable(runner)), await_(generator_based(runner))]

    assert worker.run(in_thread) == ["by __await__", "by a generator"]


def test_not_awaitable(worker):
    def in_thread():
        with pytest.raises(TypeError, match="int"):
            await_(5)
        with pytest.raises(TypeError, match="NoneType"):
            await_(None)

    worker.run(in_thread)


def test_future_and_task_of_the_loop(asyncio_worker):
    """A thread may wait for what belongs to the loop."""
    runner = asyncio_worker.runner

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        task = loop.create_task(value_of(runner, "task"))
        loop.call_soon(future.set_result, "future")
        return await asyncio_worker.call(lambda: [await_(future), await_(task)])

    assert runner.run(main) == ["future", "task"]


def test_used_coroutine(worker):
    """A coroutine that has ended is refused as by await."""

    def in_thread():
        coro = value_of(worker.runner, "value")
        assert await_(coro) == "value"
        with pytest.raises(RuntimeError, match="already awaited"):
            await_(coro)

    worker.run(in_thread)


def test_wrappers(worker):
    """autoawait, async_iter and async_context work in threads, too."""
    runner = worker.runner
    log = []

    @greenback.autoawait
    async def double(number):
        await runner.checkpoint()
        return 2 * number

    async def numbers():
        for number in range(3):
            await runner.checkpoint()
            yield number

    @contextlib.asynccontextmanager
    async def logged():
        await runner.checkpoint()
        log.append("enter")
        try:
            yield "value"
        except KeyError:
            log.append("error")
        await runner.checkpoint()

    def in_thread():
        with greenback.async_context(logged()) as value:
            assert value == "value"
            raise KeyError
        return [double(number) for number in greenback.async_iter(numbers())]

    assert worker.run(in_thread) == [0, 2, 4]
    assert log == ["enter", "error"]


def test_awaited_code_may_use_await(worker):
    """The task that awaits for the thread has a portal."""
    runner = worker.runner

    def sync(depth):
        if depth:
            return await_(go(depth - 1))
        return await_(value_of(runner, "bottom"))

    async def go(depth):
        await runner.checkpoint()
        assert has_portal()
        return sync(depth)

    assert worker.run(lambda: await_(go(3))) == "bottom"


def test_thread_below_a_thread(worker):
    """What is awaited for a thread may start another, which awaits in turn."""
    runner = worker.runner

    async def start(depth):
        return await worker.call(in_thread, depth)

    def in_thread(depth):
        if depth:
            return [threading.get_ident(), *await_(start(depth - 1))]
        return [threading.get_ident(), await_(value_of(runner, "bottom"))]

    *threads, value = worker.run(in_thread, 3)
    assert value == "bottom"
    assert len(set(threads)) == 4


def test_started_in_sync_code(worker):
    """The task may itself wait for the thread in await_."""
    runner = worker.runner

    def in_thread():
        return await_(value_of(runner, "value"))

    def sync():
        return [await_(worker.call(in_thread)) for _ in range(3)]

    assert runner.run_sync(sync) == ["value"] * 3


@pytest.mark.parametrize("kind", ["bestow", "run", "run-sync", "none"])
def test_task_that_starts_the_thread(worker, kind):
    """It does not matter how it got its portal, nor whether it has one."""
    runner = worker.runner

    def in_thread():
        return await_(value_of(runner, "value"))

    async def main():
        if kind == "run":
            return await greenback.with_portal_run(worker.call, in_thread)
        if kind == "run-sync":
            return await greenback.with_portal_run_sync(
                lambda: await_(worker.call(in_thread))
            )
        if kind == "bestow":
            greenback.bestow_portal(runner.current_task())
        return await worker.call(in_thread)

    assert runner.run(main) == "value"


def test_many_threads(worker):
    """Each of many threads at once gets its own results."""
    runner = worker.runner

    def in_thread(number):
        return [await_(value_of(runner, (number, i))) for i in range(20)]

    async def main():
        return await runner.run_concurrently(
            *[functools.partial(worker.call, in_thread, number) for number in range(8)]
        )

    assert runner.run(main) == [[(n, i) for i in range(20)] for n in range(8)]


def test_loops_in_several_threads(asyncio_worker):
    """Where more loops than one run, a thread's await_ goes to its own."""
    runner = asyncio_worker.runner
    if runner.id == "asyncio-pytask":
        pytest.skip("asyncio is patched for all threads, and undone by one")

    async def awaited():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def main():
        loop = asyncio.get_running_loop()
        assert await asyncio_worker.call(lambda: await_(awaited())) is loop
        return True

    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        futures = [executor.submit(asyncio.run, main()) for _ in range(3)]
        assert runner.run(main)
        assert all(future.result() for future in futures)


def test_deep_in_the_thread(worker):
    """However deep the thread's stack is."""
    runner = worker.runner

    def descend(depth):
        if depth:
            return descend(depth - 1)
        return await_(value_of(runner, "value"))

    assert worker.run(descend, 200) == "value"


def test_in_a_greenlet(worker):
    """The thread may be in a greenlet, and that in another."""
    greenlet = pytest.importorskip("greenlet")
    runner = worker.runner

    def innermost():
        return await_(value_of(runner, "value"))

    def outer():
        return greenlet.greenlet(innermost).switch()

    assert worker.run(lambda: greenlet.greenlet(outer).switch()) == "value"


def test_in_a_coroutine_that_the_thread_drives(worker):
    """There is a portal then, which comes first."""
    runner = worker.runner

    @types.coroutine
    def trap():
        return (yield "trap")

    def sync():
        return await_(trap())

    def in_thread():
        coro = greenback.with_portal_run_sync(sync)
        assert coro.send(None) == "trap"
        assert await_(value_of(runner, "value")) == "value"
        with pytest.raises(StopIteration) as caught:
            coro.send("answer")
        return caught.value.value

    assert worker.run(in_thread) == "answer"


def test_forbid_await(worker):
    """It is about the task being suspended, which a thread does not do."""

    def in_thread():
        with greenback.forbid_await():
            return await_(value_of(worker.runner, "value"))

    assert worker.run(in_thread) == "value"


# --- context variables ------------------------------------------------------------------


def test_context_of_the_thread(worker):
    """What is awaited sees the variables of the thread, in a copy of its context."""
    runner = worker.runner

    async def awaited():
        seen = [var.get()]
        await runner.checkpoint()
        seen.append(var.get())
        var.set("by what is awaited")
        await runner.checkpoint()
        return [*seen, var.get()]

    def in_thread():
        before = var.get()
        var.set("by the thread")
        assert await_(awaited()) == ["by the thread"] * 2 + ["by what is awaited"]
        assert var.get() == "by the thread"
        return before

    async def main():
        await ensure_portal()
        var.set("by the task")
        seen = await worker.call(in_thread)
        assert seen == ("by the task" if worker.with_context else "default")
        assert var.get() == "by the task"

    runner.run(main)


def test_no_variable_of_ours(worker):
    """The contexts hold what they hold without a portal."""
    runner = worker.runner

    async def hop():
        return await worker.call(lambda: await_(value_of(runner, 1)))

    async def main():
        async def native():
            return await worker.call(list)

        await native()
        before = set(contextvars.copy_context())
        await hop()
        await greenback.with_portal_run(hop)
        await ensure_portal()
        await hop()
        assert set(contextvars.copy_context()) == before
        there = await worker.call(contextvars.copy_context)
        assert not [v for v in there if "greenback" in v.name]

    runner.run(main)


# --- has_portal -------------------------------------------------------------------------


def test_has_portal(worker):
    """True where await_ works; the thread is in no task."""
    runner = worker.runner

    async def main():
        task = runner.current_task()

        def in_thread():
            return has_portal(), has_portal(None), has_portal(task)

        assert await worker.call(in_thread) == (True, True, False)
        await ensure_portal()
        assert await worker.call(in_thread) == (True, True, True)

    runner.run(main)
    assert not has_portal()


# --- cancellation -----------------------------------------------------------------------


def test_task_is_cancelled(worker):
    """Trio and AnyIO pass it on to what the thread waits for; asyncio abandons the
    thread, whose await_ goes on."""
    runner = worker.runner
    if worker.way == "own executor":
        pytest.skip("it is left when the thread has ended")
    log = []
    scopes = []

    async def awaited(waits, event):
        waits.set()
        try:
            await event.wait()
        except runner.cancelled_exc:
            log.append("awaited: cancelled")
            raise
        return "result"

    def in_thread(waits, event, done):
        try:
            log.append(f"thread: {await_(awaited(waits, event))}")
        except runner.cancelled_exc:
            log.append("thread: cancelled")
            raise
        await_(signal(done))

    async def child(*events):
        await ensure_portal()
        if worker.way == "anyio":  # whose cancellation is one of scopes
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await worker.call(in_thread, *events)
            assert scope.cancelled_caught
            raise runner.ChildCancelled
        await worker.call(in_thread, *events)

    async def main():
        waits, event, done = runner.Event(), runner.Event(), runner.Event()
        spawned = runner.spawn(functools.partial(child, waits, event, done))
        await waits.wait()
        if worker.way == "anyio":
            scopes[0].cancel()
        else:
            spawned.cancel()
        with pytest.raises(runner.ChildCancelled):
            await spawned.join()
        if not worker.passes_cancellation_on:
            assert log == []
            event.set()
            await done.wait()

    runner.run(main)
    if worker.passes_cancellation_on:
        assert log == ["awaited: cancelled", "thread: cancelled"]
    else:
        assert log == ["thread: result"]


def test_awaited_code_is_cancelled(asyncio_worker):
    """The task that awaits for the thread can be cancelled; the thread sees it."""
    runner = asyncio_worker.runner

    async def awaited():
        asyncio.current_task().cancel()
        await runner.sleep_forever()

    def in_thread():
        with pytest.raises(asyncio.CancelledError):
            await_(awaited())
        return await_(value_of(runner, "goes on"))

    assert asyncio_worker.run(in_thread) == "goes on"


def test_cancelled_before_it_begins(asyncio_worker):
    """The task is cancelled before its first step: the coroutine is closed."""
    runner = asyncio_worker.runner
    if runner.eager:
        pytest.skip("it begins at once")

    def task_factory(loop, coro, **kwds):
        task = asyncio.Task(coro, loop=loop, **kwds)
        if threaded:
            task.cancel()
        return task

    threaded = []

    def in_thread():
        threaded.append(True)
        with pytest.raises(asyncio.CancelledError):
            await_(never())
        threaded.clear()

    async def main():
        asyncio.get_running_loop().set_task_factory(task_factory)
        await asyncio_worker.call(in_thread)

    runner.run(main)


@pytest.fixture(params=["trio-trio", "anyio-trio", "anyio-asyncio", "anyio-uvloop"])
def abandoning_worker(request, strays):
    yield from checked_worker(request.param.split("-"))


def test_abandoned_thread(abandoning_worker):
    """Its await_ goes on without the task that was cancelled, until the run is over."""
    runner = abandoning_worker.runner
    if abandoning_worker.way == "trio":
        import trio

        run_sync = trio.to_thread.run_sync
    else:
        run_sync = anyio.to_thread.run_sync
    run_is_over = threading.Event()
    outcome = concurrent.futures.Future()

    async def awaited(waits, event):
        with contextlib.suppress(runner.cancelled_exc):  # AnyIO passes it on
            waits.set()
            await event.wait()
        return "result"

    def in_thread(waits, event, goes_on):
        assert await_(awaited(waits, event)) == "result"
        with contextlib.suppress(runner.cancelled_exc):
            await_(signal(goes_on))
        assert run_is_over.wait(30)
        with pytest.raises(RuntimeError, match=r"(Trio|AnyIO) run that this worker"):
            await_(never())

    async def child(*events):
        await run_sync(
            functools.partial(report, outcome, in_thread, *events),
            abandon_on_cancel=True,
        )

    async def main():
        events = [runner.Event() for _ in range(3)]
        waits, event, goes_on = events
        spawned = runner.spawn(functools.partial(child, *events))
        await waits.wait()
        spawned.cancel()
        with pytest.raises(runner.ChildCancelled):
            await spawned.join()
        event.set()
        await goes_on.wait()

    runner.run(main)
    run_is_over.set()
    assert outcome.result(30) is None


# --- the end of the loop ----------------------------------------------------------------


@pytest.fixture
def brief_loop(asyncio_runner, monkeypatch):
    """A loop that is run for short times, while threads of its executor go on."""
    monkeypatch.setattr(_threads, "SECONDS_BETWEEN_LOOKS", 0.01)
    loop = asyncio_runner.loop_factory()
    messages = []
    loop.set_exception_handler(lambda loop, info: messages.append(info["message"]))
    yield loop
    loop.close()
    gc.collect()
    assert set(messages) <= {"Task was destroyed but it is pending!"}


def start_thread(fn, *args):
    """Start one that nobody awaits; give its outcome as a Future of a thread."""
    outcome = concurrent.futures.Future()
    asyncio.get_running_loop().run_in_executor(None, report, outcome, fn, *args)
    return outcome


def test_loop_is_not_running(brief_loop):
    """await_ while the loop stands still: an error, and the coroutine is closed.
    When the loop is run again, it works again."""
    proceed, has_given_up, runs_again = (threading.Event() for _ in range(3))

    def in_thread(here, asked_again):
        await_(signal(here))
        assert proceed.wait(30)
        with pytest.raises(RuntimeError, match="is not running"):
            await_(never())
        has_given_up.set()
        assert runs_again.wait(30)
        assert has_portal()
        await_(signal(asked_again))

    async def main():
        here, asked_again = asyncio.Event(), asyncio.Event()
        outcome = start_thread(in_thread, here, asked_again)
        await here.wait()
        return outcome, asked_again

    async def again():
        runs_again.set()
        await asked_again.wait()

    outcome, asked_again = brief_loop.run_until_complete(main())
    proceed.set()
    assert has_given_up.wait(30)
    brief_loop.run_until_complete(again())
    assert outcome.result(30) is None


def test_loop_is_closed(brief_loop):
    """await_ after the loop has been closed."""
    proceed = threading.Event()

    def in_thread(here):
        assert has_portal()
        await_(signal(here))
        assert proceed.wait(30)
        assert not has_portal()
        with pytest.raises(RuntimeError, match="is closed"):
            await_(never())

    async def main():
        here = asyncio.Event()
        outcome = start_thread(in_thread, here)
        await here.wait()
        return outcome

    outcome = brief_loop.run_until_complete(main())
    brief_loop.close()
    proceed.set()
    assert outcome.result(30) is None


def test_loop_is_closed_meanwhile(brief_loop):
    """The loop is closed while a thread waits for it: the thread is told."""

    async def awaited(waits):
        waits.set()
        await asyncio.get_running_loop().create_future()

    def in_thread(waits):
        with pytest.raises(RuntimeError, match="closed while this thread waited"):
            await_(awaited(waits))

    async def main():
        waits = asyncio.Event()
        outcome = start_thread(in_thread, waits)
        await waits.wait()
        return outcome

    outcome = brief_loop.run_until_complete(main())
    brief_loop.close()
    assert outcome.result(30) is None


def test_loop_is_closed_before_it_begins(brief_loop, monkeypatch):
    """The same when the loop has not come to it yet; the coroutine is closed."""
    has_asked = threading.Event()

    class Watched(_threads.Request):
        def wait(self):
            has_asked.set()
            return super().wait()

    monkeypatch.setattr(_threads, "Request", Watched)

    async def for_ever():
        await asyncio.get_running_loop().create_future()

    def in_thread():
        with pytest.raises(RuntimeError, match=r"closed while|is not running"):
            await_(for_ever())

    async def main():
        outcomes.append(start_thread(in_thread))
        brief_loop.stop()  # with what is to be done now, not with what comes
        assert has_asked.wait(30)
        await for_ever()

    outcomes = []
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        brief_loop.run_until_complete(main())
    brief_loop.close()
    assert outcomes[0].result(30) is None


def test_main_task_is_done(worker):
    """When the main task ends, asyncio cancels what is awaited for a thread."""
    runner = worker.runner
    if worker.library == "trio" or worker.way == "anyio":
        pytest.skip("their runs don't end before their threads")
    outcomes = []

    async def awaited(waits):
        waits.set()
        await runner.sleep_forever()

    def in_thread(waits):
        try:
            await_(awaited(waits))
        except asyncio.CancelledError:
            outcomes.append("cancelled")
        outcomes.append(await_(value_of(runner, "the loop still runs")))

    async def main():
        waits = asyncio.Event()
        asyncio.get_running_loop().run_in_executor(None, in_thread, waits)
        await waits.wait()

    runner.run(main)
    assert outcomes == ["cancelled", "the loop still runs"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exception_that_stops_asyncio(asyncio_worker, error):
    """One that leaves the loop reaches the thread as well."""
    runner = asyncio_worker.runner
    if asyncio_worker.way in ("anyio", "own executor"):
        pytest.skip("they wait for their threads in the task that is cancelled")
    seen = []

    async def raising():
        await runner.checkpoint()
        raise error

    def in_thread():
        try:
            await_(raising())
        except BaseException as caught:
            seen.append(type(caught))

    async def main():
        await asyncio_worker.call(in_thread)

    with pytest.raises(error):
        runner.run(main)
    assert seen == [error]


def test_interrupted_loop(asyncio_worker):
    """Ctrl-C in the loop cancels what is awaited for a thread."""
    runner = asyncio_worker.runner
    if asyncio_worker.way in ("anyio", "own executor"):
        pytest.skip("they wait for their threads in the task that is cancelled")
    seen = []

    def interrupt():
        raise KeyboardInterrupt

    async def awaited():
        asyncio.get_running_loop().call_soon(interrupt)
        await runner.sleep_forever()

    def in_thread():
        try:
            await_(awaited())
        except asyncio.CancelledError:
            seen.append("cancelled")

    async def main():
        await asyncio_worker.call(in_thread)

    with pytest.raises(KeyboardInterrupt):
        runner.run(main)
    assert seen == ["cancelled"]


def test_task_factory_that_fails(asyncio_worker):
    """Its exception arrives, and the coroutine is closed."""
    runner = asyncio_worker.runner
    if asyncio_worker.way == "anyio":
        pytest.skip("AnyIO makes the task, and reports to the loop")

    def task_factory(loop, coro, **kwds):
        if getattr(coro, "__qualname__", "") == "with_portal_run":
            coro.close()
            raise LookupError("no more tasks")
        return asyncio.Task(coro, loop=loop, **kwds)

    def in_thread():
        with pytest.raises(LookupError, match="no more tasks"):
            await_(never())

    async def main():
        asyncio.get_running_loop().set_task_factory(task_factory)
        await asyncio_worker.call(in_thread)

    runner.run(main)


# --- threads that work for no loop ------------------------------------------------------


def refused():
    """Check that await_ says what is missing here, and closes its coroutine."""
    assert not has_portal()
    with pytest.raises(sniffio.AsyncLibraryNotFoundError) as caught:
        await_(never())
    text = str(caught.value)
    assert "asyncio.to_thread()" in text
    assert "loop.run_in_executor()" in text
    assert "trio.to_thread.run_sync()" in text
    assert "anyio.to_thread.run_sync()" in text
    assert "with_portal_run" in text
    return "refused"


def in_plain_thread(fn, **kwds):
    outcome = concurrent.futures.Future()
    thread = threading.Thread(target=report, args=(outcome, fn), **kwds)
    thread.start()
    thread.join()
    return outcome.result()


def test_plain_thread(runner):
    """Nobody awaits it: it is refused, whatever its context."""

    async def main():
        await ensure_portal()
        assert in_plain_thread(refused) == "refused"
        context = contextvars.copy_context()
        assert in_plain_thread(lambda: context.run(refused)) == "refused"
        if sys.version_info >= (3, 14):
            # What threads do by default with -X thread_inherit_context=1.
            context = contextvars.copy_context()
            assert in_plain_thread(refused, context=context) == "refused"

    runner.run(main)
    assert in_plain_thread(refused) == "refused"
    assert refused() == "refused"


def test_plain_executor(runner):
    """A thread of an executor, but nobody awaits its Future."""

    async def main():
        await ensure_portal()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            assert executor.submit(refused).result() == "refused"
            assert list(executor.map(lambda _: refused(), range(2))) == ["refused"] * 2

    runner.run(main)


def test_plain_thread_below_a_worker(worker):
    """A thread that a worker thread starts is none."""

    def in_thread():
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            assert executor.submit(refused).result() == "refused"
        return in_plain_thread(refused)

    assert worker.run(in_thread) == "refused"


def test_submit_of_something_else(runner):
    """A submit() that waits for the executor's thread is no reason to wait for it."""

    class Pool:
        def __init__(self, executor):
            self.executor = executor

        def submit(self, fn):
            future = self.executor.submit(fn)
            return future.result()

    async def main():
        await ensure_portal()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            assert Pool(executor).submit(refused) == "refused"

    runner.run(main)


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_inherited_name(name):
    """A library's name that came with a context does not make it run here."""

    def in_context():
        sniffio.current_async_library_cvar.set(name)
        return refused()

    assert contextvars.copy_context().run(in_context) == "refused"


def test_another_library(worker):
    """A library that we don't know runs in the worker thread: not our loop's."""

    def in_thread():
        before = sniffio.thread_local.name
        sniffio.thread_local.name = "tokio"
        try:
            assert not has_portal()
            with pytest.raises(RuntimeError, match="does not support tokio") as caught:
                await_(never())
            assert "with_portal_run" in str(caught.value)
        finally:
            sniffio.thread_local.name = before
        return await_(value_of(worker.runner, "value"))

    assert worker.run(in_thread) == "value"


def test_loop_in_the_worker_thread(worker):
    """Code of a loop that runs in the thread itself does not reach the outer one."""
    runner = worker.runner

    def callback(seen):
        seen.append(has_portal())
        with pytest.raises(RuntimeError):
            await_(never())

    async def inner():
        assert not has_portal()
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            await_(never())
        seen = []
        asyncio.get_running_loop().call_soon(callback, seen)
        await asyncio.sleep(0)
        assert seen == [False]
        await ensure_portal()
        return await_(value_of_asyncio(asyncio.get_running_loop()))

    async def value_of_asyncio(loop):
        await asyncio.sleep(0)
        return asyncio.get_running_loop() is loop

    def in_thread():
        assert asyncio.run(inner())
        return await_(value_of(runner, "value"))

    assert worker.run(in_thread) == "value"


ANYIO_ONLY = """
import anyio, anyio.to_thread
import greenback

async def value():
    await anyio.sleep(0)
    return "value"

def in_thread():
    return greenback.has_portal(), greenback.await_(value())

print(anyio.run(anyio.to_thread.run_sync, in_thread))
"""


@pytest.mark.skipif(anyio is None, reason="AnyIO is not installed")
def test_only_anyio_threads_are_imported():
    """Nobody has imported anyio.from_thread, as in FastAPI."""
    run = subprocess.run(
        [sys.executable, "-c", ANYIO_ONLY], capture_output=True, text=True
    )
    assert run.stdout == "(True, 'value')\n", run.stderr


AT_EXIT = """
import os
import greenback

async def never():
    raise AssertionError("must not run")

class Late:
    def __del__(self, greenback=greenback, never=never, write=os.write):
        try:
            greenback.await_(never())
        except RuntimeError as error:
            write(1, type(error).__name__.encode())
        write(1, str(greenback.has_portal()).encode())

late = Late()
"""


def test_at_exit():
    """The same when the interpreter is about to end: no import is tried."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "AsyncLibraryNotFoundErrorFalse"
    assert run.stderr == ""


def test_no_room_on_the_stack(worker):
    """A RecursionError on the way leaves no coroutine behind."""

    def descend():
        try:
            descend()
        except RecursionError:
            try:
                await_(value_of(worker.runner, "value"))
            except RecursionError:
                raise
            outcomes.append("value")

    outcomes = []
    worker.run(descend)
    assert outcomes


# --- the moment at which the thread begins ----------------------------------------------


class HurriedExecutor(concurrent.futures.ThreadPoolExecutor):
    """Its thread is in await_ before submit() has returned."""

    def __init__(self, monkeypatch):
        super().__init__(1)
        self.thread_waits = threading.Event()
        self.looks = 0
        monkeypatch.setattr(
            _threads, "time", types.SimpleNamespace(sleep=self.note_wait)
        )

    def note_wait(self, seconds):
        self.looks += 1
        self.thread_waits.set()

    def submit(self, fn, /, *args, **kwds):
        def hurried():
            try:
                return fn(*args, **kwds)
            finally:
                self.thread_waits.set()

        promise = super().submit(hurried)
        assert self.thread_waits.wait(30)
        return promise


def test_thread_that_is_faster_than_the_loop(asyncio_runner, monkeypatch):
    """It waits until it can be known which loop awaits it."""

    async def main():
        await ensure_portal()
        executor = HurriedExecutor(monkeypatch)
        loop = asyncio.get_running_loop()
        with executor:
            value = await loop.run_in_executor(
                executor, lambda: await_(value_of(asyncio_runner, "value"))
            )
        assert executor.looks
        return value

    assert asyncio_runner.run(main) == "value"


def test_new_threads(asyncio_runner):
    """Often enough that threads overtake the loop by themselves."""

    def in_thread():
        return await_(value_of(asyncio_runner, "value"))

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(15):
            with concurrent.futures.ThreadPoolExecutor(2) as executor:
                futures = [loop.run_in_executor(executor, in_thread) for _ in range(2)]
                assert await asyncio.gather(*futures) == ["value"] * 2

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        asyncio_runner.run(main)
    finally:
        sys.setswitchinterval(before)


# --- nothing is left --------------------------------------------------------------------


class Marker:
    pass


def test_result_is_not_kept(worker):
    """Nothing of the call stays, without the garbage collector."""
    runner = worker.runner

    def in_thread():
        def make():
            marker = Marker()
            assert await_(value_of(runner, marker)) is marker
            await_(value_of(runner, None))
            return weakref.ref(marker)

        assert_no_cycle(make)

    worker.run(in_thread)


def test_exception_is_not_kept(asyncio_worker):
    """An exception that came back makes no cycle, on our side."""
    runner = asyncio_worker.runner
    if asyncio_worker.way == "anyio" or runner.id == "asyncio-pytask":
        pytest.skip("their own tasks make one")
    if runner.eager and sys.version_info < (3, 14):
        pytest.skip("eager tasks keep their exceptions there")

    class Error(Exception):
        pass

    async def raising():
        raise Error

    def in_thread():
        def make():
            try:
                await_(raising())
            except Error as error:
                watch = weakref.ref(error)
            await_(value_of(runner, None))
            return watch

        assert_no_cycle(make)

    asyncio_worker.run(in_thread)
