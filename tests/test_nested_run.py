"""allow_nested_run(): asyncio.run() and its relatives inside a running loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref

import pytest

import greenback

with contextlib.suppress(ImportError):
    import uvloop  # noqa: F401  uvloop.run() must be there before a loop runs

VAR = contextvars.ContextVar("VAR", default="outer")

# They came with 3.12, and crash 3.12.0 and 3.12.1 where their coroutine is asked for.
BEGINS_AT_ONCE = sys.version_info >= (3, 12, 2)


@pytest.fixture
def allowed():
    with greenback.allow_nested_run():
        yield


# --- ways to run a coroutine --------------------------------------------------------


def by_run(coro):
    return asyncio.run(coro)


def by_runner(coro):
    with asyncio.Runner() as runner:
        return runner.run(coro)


def by_loop(coro):
    return asyncio.get_running_loop().run_until_complete(coro)


def by_other_loop(coro):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coro)
    finally:
        loop.close()


def by_uvloop(coro):
    uvloop = pytest.importorskip("uvloop")
    return uvloop.run(coro)


ALL_WAYS = [by_run, by_runner, by_loop, by_other_loop, by_uvloop]
each_way = pytest.mark.parametrize("run", ALL_WAYS, ids=lambda run: run.__name__)
# What makes a loop of its own where that can be done.
OWN_LOOP = [by_run, by_runner, by_other_loop]
each_own_loop = pytest.mark.parametrize("run", OWN_LOOP, ids=lambda run: run.__name__)


async def add(a, b, suspend=True):
    if suspend:
        await asyncio.sleep(0)
    return a + b


# --- results ------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("suspend", [False, True])
def test_result(asyncio_runner, portal_kind, run, suspend, allowed):
    """The caller gets the result, whatever its portal and the loop are."""

    def sync_code():
        return [run(add(n, 1, suspend)) for n in range(3)]

    async def main():
        return await portal_kind(sync_code)

    assert asyncio_runner.run(main) == [1, 2, 3]


@each_way
def test_runs_on_the_running_loop_as_a_task(asyncio_runner, run, allowed):
    """The coroutine is a new task of the running loop, of the loop's task type."""

    async def inner():
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), asyncio.current_task()

    def sync_code():
        loop, task = run(inner())
        assert loop is asyncio.get_running_loop()
        assert task is not asyncio.current_task()
        assert type(task) is type(asyncio.current_task())
        assert task.done()
        assert "inner" in repr(task)
        assert loop.is_running()

    asyncio_runner.run_sync(sync_code)


@each_way
def test_any_depth(asyncio_runner, run, allowed):
    """What runs inside can do the same again."""

    def sync_code(depth):
        return 1 + (run(inner(depth - 1)) if depth else 0)

    async def inner(depth):
        await asyncio.sleep(0)
        return sync_code(depth)

    assert asyncio_runner.run_sync(sync_code, 40) == 41


@each_way
def test_exception_as_is(asyncio_runner, run, allowed):
    """The very exception arrives, and its traceback tells where it was raised."""
    error = LookupError("inside")

    async def where_it_is_raised():
        await asyncio.sleep(0)
        raise error

    def sync_code():
        with pytest.raises(LookupError) as info:
            run(where_it_is_raised())
        assert info.value is error
        assert error.__cause__ is None and error.__context__ is None
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert frames[0] == "sync_code"
        assert frames[-1] == "where_it_is_raised"

    asyncio_runner.run_sync(sync_code)


@each_way
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("suspend", [False, True])
def test_exit_reaches_the_caller_only(asyncio_runner, run, kind, suspend, allowed):
    """SystemExit and KeyboardInterrupt don't end the running loop."""
    error = kind(7)

    async def leave():
        if suspend:
            await asyncio.sleep(0)
        raise error

    def sync_code():
        with pytest.raises(kind) as info:
            run(leave())
        assert info.value is error
        return run(add(1, 2))

    assert asyncio_runner.run_sync(sync_code) == 3


@each_way
def test_other_tasks_go_on(asyncio_runner, run, allowed):
    """Other tasks run meanwhile, and finish in any order."""

    async def main():
        await greenback.ensure_portal()
        log = []
        gate, reached = asyncio.Event(), asyncio.Event()

        async def other():
            await reached.wait()
            log.append("other")
            gate.set()

        async def inner():
            log.append("inner")
            reached.set()
            await gate.wait()
            log.append("inner again")

        task = asyncio.create_task(other())
        run(inner())
        await task
        return log

    assert asyncio_runner.run(main) == ["inner", "other", "inner again"]


def test_order_of_tasks(asyncio_runner, allowed):
    """Tasks take turns as they do beside one that awaits the same natively.

    On asyncio's own loops the coroutine begins at once, where there are eager tasks.
    """

    def run_program(wait_for):
        log = []

        async def other(name):
            for n in range(6):
                log.append((name, n))
                await asyncio.sleep(0)

        async def inner():
            for n in range(2):
                log.append(("inner", n))
                await asyncio.sleep(0)

        async def main():
            await greenback.ensure_portal()
            tasks = [asyncio.create_task(other(name)) for name in "ab"]
            await wait_for(inner())
            assert len(log) < 12
            await asyncio.gather(*tasks)

        asyncio_runner.run(main)
        return log

    async def natively(coro):
        at_once = BEGINS_AT_ONCE and asyncio_runner.id == "asyncio"
        await (coro if at_once else asyncio.create_task(coro))

    async def nested(coro):
        by_run(coro)

    assert run_program(nested) == run_program(natively)


def test_nested_runs_end_in_any_order(asyncio_runner, allowed):
    """The first to begin need not be the last to end: runs are not a stack."""

    async def main():
        gates = {name: asyncio.Event() for name in "ab"}
        log = []

        def sync_code(name):
            asyncio.run(inner(name))
            log.append(name)

        async def inner(name):
            await gates[name].wait()

        tasks = [
            asyncio.create_task(greenback.with_portal_run_sync(sync_code, name))
            for name in "ab"
        ]
        await asyncio_runner.settle()
        gates["a"].set()
        await tasks[0]
        assert log == ["a"]
        gates["b"].set()
        await tasks[1]
        assert log == ["a", "b"]

    asyncio_runner.run(main)


@pytest.mark.skipif(not BEGINS_AT_ONCE, reason="this Python has no eager tasks")
@pytest.mark.parametrize("runner", ["asyncio", "asyncio-eager"], indirect=True)
def test_done_at_once(runner, allowed):
    """What doesn't wait is done without a turn of the loop."""
    log = []

    async def inner():
        log.append(asyncio.current_task() is not outer)
        return 3

    def sync_code():
        nonlocal outer
        outer = asyncio.current_task()
        asyncio.get_running_loop().call_soon(log.append, "loop")
        assert by_loop(inner()) == 3
        assert by_run(inner()) == 3
        assert asyncio.current_task() is outer
        assert log == [True, True]
        assert by_loop(add(1, 2)) == 3
        assert log == [True, True, "loop"]

    outer = None
    runner.run_sync(sync_code)


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"], indirect=True)
def test_very_deep(runner, allowed):
    """Runs inside runs don't use up the stack, even if none waits by itself."""
    depth = sys.getrecursionlimit() + 100

    def sync_code(depth):
        return 1 + (by_loop(inner(depth - 1)) if depth else 0)

    async def inner(depth):
        return sync_code(depth)

    assert runner.run_sync(sync_code, depth) == depth + 1


def test_portal_inside(asyncio_runner, allowed):
    """What runs inside has a portal from its first step on."""

    async def inner():
        assert greenback.has_portal()
        greenback.await_(asyncio.sleep(0))
        with pytest.raises(ZeroDivisionError):
            greenback.await_(fail())
        return "fine"

    async def fail():
        await asyncio.sleep(0)
        return 1 / 0

    def sync_code():
        assert by_run(inner()) == "fine"
        assert greenback.has_portal()
        greenback.await_(asyncio.sleep(0))

    asyncio_runner.run_sync(sync_code)


def test_below_c_code_and_in_generators(asyncio_runner, allowed):
    """The call may stand anywhere in sync code."""

    def numbers():
        for n in range(3):
            yield by_run(add(n, 10))

    class Lazy:
        def __getattr__(self, name):
            return by_run(add(name, "!"))

    def sync_code():
        assert sorted(range(4), key=lambda n: by_run(add(-n, 0))) == [3, 2, 1, 0]
        assert list(numbers()) == [10, 11, 12]
        assert Lazy().attribute == "attribute!"

    asyncio_runner.run_sync(sync_code)


# --- cancellation -------------------------------------------------------------------


@each_way
def test_cancelled_caller(asyncio_runner, run, allowed):
    """The coroutine is cancelled too, and the caller goes on when it has ended."""
    log = []

    async def inner():
        try:
            await asyncio_runner.sleep_forever()
        except asyncio.CancelledError as error:
            log.append(error.args)
            await asyncio.sleep(0)
            log.append("inner cleaned up")
            raise

    def sync_code():
        try:
            run(inner())
        except asyncio.CancelledError:
            log.append("caller")
            raise

    async def main():
        task = asyncio.create_task(greenback.with_portal_run_sync(sync_code))
        await asyncio_runner.settle()
        task.cancel("reason")
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio_runner.run(main)
    assert log == [("reason",), "inner cleaned up", "caller"]


def test_cancelled_caller_whose_coroutine_goes_on(asyncio_runner, allowed):
    """A coroutine that catches the cancellation gives its result all the same."""

    async def inner():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio_runner.sleep_forever()
        return await add(1, 2)

    async def main():
        task = asyncio.create_task(
            greenback.with_portal_run_sync(lambda: by_run(inner()))
        )
        await asyncio_runner.settle()
        task.cancel()
        assert await task == 3

    asyncio_runner.run(main)


@each_way
@pytest.mark.parametrize("waits", [1, 2])
def test_cancelled_by_what_it_runs(asyncio_runner, run, waits, allowed):
    """A cancellation that comes just before the result is not lost."""

    async def inner():
        for _ in range(waits):
            await asyncio.sleep(0)
        outer.cancel()
        return "result"

    def sync_code():
        nonlocal outer
        outer = asyncio.current_task()
        with pytest.raises(asyncio.CancelledError):
            run(inner())
        assert outer.uncancel() == 0
        return run(add(1, 2))

    outer = None
    assert asyncio_runner.run_sync(sync_code) == 3


@each_way
def test_coroutine_that_is_cancelled(asyncio_runner, run, allowed):
    """The caller sees CancelledError and has not been cancelled itself."""

    async def inner():
        asyncio.current_task().cancel("by itself")
        await asyncio.sleep(0)

    def sync_code():
        with pytest.raises(asyncio.CancelledError):
            run(inner())
        assert asyncio.current_task().cancelling() == 0
        return run(add(1, 2))

    assert asyncio_runner.run_sync(sync_code) == 3


@each_way
def test_cancelled_before_it_begins(asyncio_runner, run, allowed):
    """A caller with a pending cancellation leaves no coroutine that never ran."""

    def sync_code():
        asyncio.current_task().cancel()
        coro = asyncio_runner.sleep_forever()
        with pytest.raises(asyncio.CancelledError):
            run(coro)
        asyncio.current_task().uncancel()
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        return run(add(1, 2))

    assert asyncio_runner.run_sync(sync_code) == 3


def test_timeout(asyncio_runner, allowed):
    """A timeout around the sync code ends what it runs."""
    log = []

    async def inner(timeout):
        timeout.reschedule(0)
        try:
            await asyncio_runner.sleep_forever()
        finally:
            log.append("ended")

    async def main():
        await greenback.ensure_portal()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                by_run(inner(timeout))
        assert log == ["ended"]
        return by_run(add(1, 2))

    assert asyncio_runner.run(main) == 3


def test_timeout_inside(asyncio_runner, allowed):
    """wait_for() and timeout() work in what is run, and so does run(wait_for())."""

    async def inner():
        async with asyncio.timeout(0.001):
            await asyncio_runner.sleep_forever()

    def sync_code():
        with pytest.raises(TimeoutError):
            by_run(inner())
        with pytest.raises(TimeoutError):
            by_run(asyncio.wait_for(asyncio_runner.sleep_forever(), 0.001))
        assert by_run(asyncio.wait_for(add(1, 2), 60)) == 3

    asyncio_runner.run_sync(sync_code)


def test_interrupted(allowed):
    """Ctrl-C, which asyncio.run() makes a cancellation, ends what runs inside, too."""
    log = []

    async def inner():
        loop = asyncio.get_running_loop()
        loop.call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await loop.create_future()
        finally:
            await asyncio.sleep(0)
            log.append("inner")

    async def main():
        await greenback.ensure_portal()
        try:
            asyncio.run(inner())
        finally:
            log.append("main")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert log == ["inner", "main"]


# --- context variables --------------------------------------------------------------


@each_way
def test_context_is_a_copy(asyncio_runner, run, allowed):
    """The coroutine sees the caller's context and changes a copy of it."""

    async def inner():
        seen = VAR.get()
        VAR.set("inner")
        await asyncio.sleep(0)
        assert VAR.get() == "inner"
        return seen

    def sync_code():
        VAR.set("caller")
        assert run(inner()) == "caller"
        assert VAR.get() == "caller"
        context = contextvars.copy_context()
        context.run(VAR.set, "own")
        assert context.run(run, inner()) == "own"
        assert context[VAR] == "own"

    asyncio_runner.run_sync(sync_code)


async def append_to_var(value):
    before = VAR.get()
    await asyncio.sleep(0)
    VAR.set(f"{before} {value}")
    return before


def test_context_of_runner(asyncio_runner, allowed):
    """A Runner has a context of its own, a copy, and keeps it between runs."""

    def sync_code():
        VAR.set("caller")
        with asyncio.Runner() as runner:
            VAR.set("changed")
            assert runner.run(append_to_var(1)) == "caller"
            assert runner.run(append_to_var(2)) == "caller 1"
            given = contextvars.copy_context()
            assert runner.run(append_to_var(3), context=given) == "changed"
            assert given[VAR] == "changed 3"
            assert runner.run(append_to_var(4)) == "caller 1 2"
            empty = contextvars.Context()
            assert runner.run(append_to_var(5), context=empty) == "outer"
            assert empty[VAR] == "outer 5"
            assert len(empty) == 1
        assert VAR.get() == "changed"

    asyncio_runner.run_sync(sync_code)


def test_runner_inside_its_own_run(asyncio_runner, allowed):
    """A Runner can run what uses the same Runner, whose context is in use."""

    def sync_code():
        with asyncio.Runner() as runner:

            async def outermost():
                VAR.set("first")
                await asyncio.sleep(0)
                assert runner.run(append_to_var(2)) == "first"
                assert runner.run(add(1, 2, suspend=False)) == 3
                return VAR.get()

            assert runner.run(outermost()) == "first 2"

    asyncio_runner.run_sync(sync_code)


# --- run_until_complete() with other things than coroutines --------------------------


class Plain:
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return "plain"


def test_futures_and_awaitables(asyncio_runner, allowed):
    """Tasks, futures, gather() and objects with __await__ can be waited for."""

    async def main():
        await greenback.ensure_portal()
        loop = asyncio.get_running_loop()
        run = loop.run_until_complete
        task = asyncio.create_task(add(1, 2))
        assert run(task) == 3
        assert run(task) == 3  # done already
        future = loop.create_future()
        loop.call_soon(future.set_result, "from a callback")
        assert run(future) == "from a callback"
        future = loop.create_future()
        loop.call_soon(future.set_exception, KeyError("x"))
        with pytest.raises(KeyError):
            run(future)
        assert run(asyncio.gather(add(1, 2), add(3, 4))) == [3, 7]
        assert run(Plain()) == "plain"
        cancelled = asyncio.create_task(asyncio_runner.sleep_forever())
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            run(cancelled)
        done, pending = run(asyncio.wait([task]))
        assert done == {task} and not pending

    asyncio_runner.run(main)


def test_future_of_another_task(asyncio_runner, allowed):
    """Two tasks may wait for one future, which a third one makes ready."""

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def sync_code():
            return loop.run_until_complete(future)

        tasks = [
            asyncio.create_task(greenback.with_portal_run_sync(sync_code))
            for _ in range(2)
        ]
        await asyncio_runner.settle()
        future.set_result("ready")
        assert await asyncio.gather(*tasks) == ["ready", "ready"]

    asyncio_runner.run(main)


def test_no_awaitable(asyncio_runner, allowed):
    """Anything else is a TypeError, or what asyncio raises for it."""

    def sync_code():
        with pytest.raises(TypeError):
            by_loop(42)
        with pytest.raises((TypeError, ValueError)):
            by_run(42)
        with pytest.raises((TypeError, ValueError)):
            by_runner(42)
        with pytest.raises(TypeError):
            asyncio.run()
        with pytest.raises(TypeError):
            asyncio.run(no_such_argument=1)

    asyncio_runner.run_sync(sync_code)


@pytest.mark.parametrize("run", [by_run, by_runner])
def test_awaitable_that_is_no_coroutine(run, allowed):
    """run() takes it since 3.14, inside as outside."""

    async def main():
        await greenback.ensure_portal()
        if sys.version_info >= (3, 14):
            assert run(Plain()) == "plain"
        else:
            with pytest.raises(ValueError):
                run(Plain())

    asyncio.run(main())


def test_wait_for_itself(asyncio_runner, allowed):
    """A task can't wait for its own end."""

    def sync_code():
        with pytest.raises(RuntimeError):
            by_loop(asyncio.current_task())
        return by_loop(add(1, 2))

    assert asyncio_runner.run_sync(sync_code) == 3


# --- other loops --------------------------------------------------------------------


def test_future_of_another_loop(asyncio_runner, allowed):
    """It is refused: its loop would have to run."""

    def sync_code():
        loop = asyncio.new_event_loop()
        try:
            future = loop.create_future()
            with pytest.raises(
                RuntimeError, match=r"(?i)^cannot run the event loop while .*its future"
            ):
                loop.run_until_complete(future)
            future.cancel()
            with pytest.raises((RuntimeError, ValueError)):
                by_loop(future)
            # Made by the running loop, though asked for from the other one.
            gathered = asyncio.gather(add(1, 2))
            assert loop.run_until_complete(gathered) == [3]
        finally:
            loop.close()

    asyncio_runner.run_sync(sync_code)


def test_loop_that_runs_elsewhere(asyncio_runner, allowed):
    """A loop that runs in another thread refuses, as it always does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def sync_code():
        coro = add(1, 2)
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_until_complete(coro)
        assert asyncio.run_coroutine_threadsafe(coro, loop).result() == 3

    asyncio_runner.run_sync(sync_code)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_closed_loop(asyncio_runner, allowed):
    """A closed loop runs nothing."""

    def sync_code():
        loop = asyncio.new_event_loop()
        loop.close()
        coro = add(1, 2)
        with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
            loop.run_until_complete(coro)
        return by_run(coro)

    assert asyncio_runner.run_sync(sync_code) == 3


@each_own_loop
def test_current_loop_is_kept(run, allowed):
    """The thread's current loop is still the same afterwards."""
    outer = asyncio.new_event_loop()
    asyncio.set_event_loop(outer)

    async def main():
        await greenback.ensure_portal()
        run(add(1, 2))
        assert asyncio.get_event_loop() is outer

    try:
        outer.run_until_complete(main())
        assert asyncio.get_event_loop() is outer
        assert not outer.is_closed()
    finally:
        asyncio.set_event_loop(None)
        outer.close()


def test_loop_factory_is_not_used(asyncio_runner, allowed):
    """The coroutine runs on the running loop."""

    def no_factory():
        raise AssertionError

    def sync_code():
        with asyncio.Runner(loop_factory=no_factory) as runner:
            assert runner.run(add(1, 2)) == 3
        if sys.version_info >= (3, 12):
            assert asyncio.run(add(1, 2), loop_factory=no_factory) == 3

    asyncio_runner.run_sync(sync_code)


# --- debug --------------------------------------------------------------------------


async def get_debug():
    await asyncio.sleep(0)
    return asyncio.get_running_loop().get_debug()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("debug", [None, False, True])
def test_debug(asyncio_runner, before, debug, allowed):
    """debug is in force for as long as the coroutine runs."""
    expected = before if debug is None else debug

    def sync_code():
        loop = asyncio.get_running_loop()
        loop.set_debug(before)
        assert asyncio.run(get_debug(), debug=debug) == expected
        assert loop.get_debug() == before
        with asyncio.Runner(debug=debug) as runner:
            assert runner.run(get_debug()) == expected
            assert loop.get_debug() == before
            with pytest.raises(ZeroDivisionError):
                runner.run(fail())
        assert loop.get_debug() == before
        loop.set_debug(False)

    async def fail():
        return 1 / 0

    asyncio_runner.run_sync(sync_code)


def test_debug_of_runs_that_overlap(asyncio_runner, allowed):
    """However they end, the loop's own setting comes back."""

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(False)
        gates = [asyncio.Event() for _ in range(3)]
        tasks = []
        for gate, debug in zip(gates, [True, False, True], strict=True):
            tasks.append(
                asyncio.create_task(
                    greenback.with_portal_run_sync(
                        asyncio.run, gate.wait(), debug=debug
                    )
                )
            )
            await asyncio_runner.settle()
            assert loop.get_debug() == debug
        seen = []
        for index in (0, 2, 1):
            gates[index].set()
            await tasks[index]
            seen.append(loop.get_debug())
        assert seen == [True, False, False]

    asyncio_runner.run(main)


# --- tasks that are left over -------------------------------------------------------


class Background:
    """Starts tasks that wait for ever, and tells how they ended."""

    def __init__(self, runner):
        self.runner = runner
        self.log = []

    async def wait(self, name):
        try:
            await self.runner.sleep_forever()
        finally:
            await asyncio.sleep(0)
            self.log.append(name)

    async def start(self, name):
        task = asyncio.create_task(self.wait(name))
        await asyncio_settle()
        return task


async def asyncio_settle():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("run", [by_run, by_runner])
def test_leftover_tasks_are_ended(asyncio_runner, run, allowed):
    """Those that it started, also indirectly; they have ended when it returns."""
    background = Background(asyncio_runner)

    async def inner():
        await background.start("mine")
        await asyncio.create_task(background.start("of my task"))
        by_loop(background.start("of my nested run"))
        context = contextvars.copy_context()
        task = asyncio.create_task(background.wait("with a context"), context=context)
        await asyncio_settle()
        return "result", task

    async def main():
        await greenback.ensure_portal()
        before = await background.start("before")
        concurrent = asyncio.create_task(start_concurrently())
        result, task = run(inner())
        assert result == "result" and task.cancelled()
        assert sorted(background.log) == [
            "mine",
            "of my nested run",
            "of my task",
            "with a context",
        ]
        # Nobody else's: neither from before nor from other tasks meanwhile.
        started = await concurrent
        assert not before.done() and not started.done()
        for task in before, started:
            task.cancel()
            await asyncio.wait([task])

    async def start_concurrently():
        return await background.start("concurrent")

    asyncio_runner.run(main)


@pytest.mark.parametrize("run", [by_run, by_runner])
@pytest.mark.parametrize("kind", [LookupError, SystemExit, asyncio.CancelledError])
def test_leftover_tasks_after_an_error(asyncio_runner, run, kind, allowed):
    """They are ended after an error, too."""
    background = Background(asyncio_runner)

    async def inner():
        await background.start("mine")
        raise kind

    def sync_code():
        with pytest.raises(kind):
            run(inner())
        assert background.log == ["mine"]

    asyncio_runner.run_sync(sync_code)


@pytest.mark.parametrize("run", [by_loop, by_other_loop])
def test_leftover_tasks_of_run_until_complete(asyncio_runner, run, allowed):
    """They go on, as they do when the same loop runs again."""
    background = Background(asyncio_runner)

    def sync_code():
        task = run(background.start("left"))
        assert not task.done()
        task.cancel()
        by_loop(asyncio.wait([task]))
        assert background.log == ["left"]

    asyncio_runner.run_sync(sync_code)


def test_leftover_tasks_of_runner(asyncio_runner, allowed):
    """A Runner's tasks go on between its runs, until it is closed."""
    background = Background(asyncio_runner)

    def sync_code():
        with asyncio.Runner() as runner, asyncio.Runner() as other:
            task = runner.run(background.start("runner's"))
            other_task = other.run(background.start("other's"))
            given = contextvars.copy_context()
            runner.run(background.start("runner's, in a context"), context=given)
            assert runner.run(add(1, 2)) == 3
            other.close()
            assert background.log == ["other's"]
            assert other_task.cancelled() and not task.done()
        assert sorted(background.log) == [
            "other's",
            "runner's",
            "runner's, in a context",
        ]

    asyncio_runner.run_sync(sync_code)


def test_leftover_task_that_fails(asyncio_runner, allowed):
    """What goes wrong in one is told to the loop's exception handler."""

    async def stubborn():
        try:
            await asyncio_runner.sleep_forever()
        except asyncio.CancelledError:
            raise LookupError("stubborn") from None

    async def inner():
        task = asyncio.create_task(stubborn())
        await asyncio_settle()
        return task

    def sync_code():
        task = by_run(inner())
        (info,) = asyncio_runner.loop_errors
        assert info["task"] is task
        assert info["exception"] is task.exception()
        asyncio_runner.loop_errors.clear()

    asyncio_runner.run_sync(sync_code)


def test_leftover_task_that_closes_its_runner(asyncio_runner, allowed):
    """It is spared itself."""
    background = Background(asyncio_runner)

    async def main():
        runner = asyncio.Runner()

        async def inner():
            other = await background.start("other")
            return other, asyncio.create_task(closing())

        async def closing():
            await asyncio_runner.settle()
            await greenback.with_portal_run_sync(runner.close)
            await asyncio.sleep(0)
            return "closed"

        other, task = await greenback.with_portal_run_sync(runner.run, inner())
        assert await task == "closed"
        assert other.cancelled()

    asyncio_runner.run(main)


class Duck:
    """Takes part in asyncio as a task, and has less than one."""

    def get_loop(self):
        return asyncio.get_running_loop()

    def done(self):
        return False


def test_tasks_of_another_kind(asyncio_runner, allowed):
    """Those that don't tell their context are somebody else's."""
    background = Background(asyncio_runner)

    def sync_code():
        duck = Duck()
        asyncio._register_task(duck)
        try:
            by_run(background.start("mine"))
        finally:
            asyncio._unregister_task(duck)
        assert background.log == ["mine"]

    asyncio_runner.run_sync(sync_code)


def test_no_look_at_all_tasks_without_need(monkeypatch, allowed):
    """A run that starts no tasks doesn't depend on how many tasks there are."""
    from greenback import _nested

    looked = []
    leftovers = _nested._leftovers
    monkeypatch.setattr(
        _nested, "_leftovers", lambda *args: looked.append(args) or leftovers(*args)
    )

    async def main():
        await greenback.ensure_portal()
        asyncio.run(add(1, 2))
        asyncio.run(add(1, 2, suspend=False))
        assert not looked
        asyncio.run(start())
        assert looked

    async def start():
        return asyncio.create_task(asyncio.sleep(3600))

    asyncio.run(main())


# --- Runner -------------------------------------------------------------------------


def test_runner_has_the_running_loop(asyncio_runner, allowed):
    """get_loop() gives it, and closing the Runner doesn't close it."""

    def sync_code():
        loop = asyncio.get_running_loop()
        with asyncio.Runner() as runner:
            assert runner.get_loop() is loop
            assert runner.run(add(1, 2)) == 3
        assert loop.is_running() and not loop.is_closed()
        coro = add(1, 2)
        for use in runner.get_loop, runner.__enter__, lambda: runner.run(coro):
            with pytest.raises(RuntimeError, match="closed"):
                use()
        runner.close()  # once more does nothing
        runner = asyncio.Runner()
        assert runner.get_loop() is loop
        runner.close()
        assert asyncio.Runner().run(coro) == 3

    asyncio_runner.run_sync(sync_code)


def test_runner_closed_while_it_runs(asyncio_runner, allowed):
    """That is refused: its coroutine would have to be cancelled by itself."""

    def sync_code():
        with asyncio.Runner() as runner:

            async def inner():
                with pytest.raises(RuntimeError, match="closed"):
                    runner.close()
                return await add(1, 2)

            assert runner.run(inner()) == 3

    asyncio_runner.run_sync(sync_code)


def test_runner_with_a_loop_of_its_own(allowed):
    """A Runner whose loop is the running one, or has been used before, runs things
    in its own context on the running loop."""

    async def main(runner):
        await greenback.ensure_portal()
        VAR.set("main")
        assert runner.run(append_to_var(1)) == "main"
        assert VAR.get() == "main 1"  # the context of both
        return asyncio.get_running_loop()

    with asyncio.Runner() as runner, asyncio.Runner() as other:
        assert runner.run(main(runner)) is runner.get_loop()
        assert runner.run(add(1, 2)) == 3

        other_loop = other.get_loop()

        async def uses_other():
            await greenback.ensure_portal()
            assert other.run(add(1, 2)) == 3
            assert other.get_loop() is other_loop

        runner.run(uses_other())
        assert other.run(add(3, 4)) == 7
    assert other_loop.is_closed()


def test_runner_used_outside_afterwards(allowed):
    """One that was used inside a loop makes its own where none runs."""
    runner = asyncio.Runner()

    async def main():
        await greenback.ensure_portal()
        return runner.run(get_loop())

    async def get_loop():
        return asyncio.get_running_loop()

    first = asyncio.run(main())
    second = asyncio.run(main())
    own = runner.run(get_loop())
    assert len({first, second, own}) == 3
    assert first.is_closed() and not own.is_closed()
    runner.close()
    assert own.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        runner.get_loop()


def test_runner_closed_without_a_portal(asyncio_runner, allowed):
    """Its tasks are cancelled, though nobody can wait for them."""
    background = Background(asyncio_runner)

    async def main():
        runner = asyncio.Runner()
        task = await greenback.with_portal_run_sync(
            runner.run, background.start("left")
        )
        runner.close()
        await asyncio.wait([task])
        assert background.log == ["left"]

    asyncio_runner.run(main)


# --- where it is refused, or not ours ------------------------------------------------


REFUSALS = [
    (by_run, r"^asyncio\.run\(\) cannot be called from a running event loop; "),
    (by_loop, r"(?i)^this event loop is already running; "),
    (by_other_loop, r"^Cannot run the event loop while another loop is running; "),
]


@pytest.mark.parametrize(("run", "message"), REFUSALS)
@pytest.mark.parametrize("in_callback", [False, True])
def test_refused_without_a_portal(asyncio_runner, run, message, in_callback, allowed):
    """asyncio's own error, and what to do; the coroutine is left alone."""

    def attempt():
        coro = add(1, 2)
        with pytest.raises(RuntimeError, match=message + ".*ensure_portal") as info:
            run(coro)
        assert str(info.value).count("ensure_portal") == 1
        assert type(info.value) is RuntimeError
        return coro

    async def main():
        if in_callback:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: future.set_result(attempt()))
            coro = await future
        else:
            coro = attempt()
        if asyncio_runner.id == "uvloop" and run is by_loop:
            # It makes a task of the coroutine before it looks whether it can run.
            await asyncio_runner.settle()
            assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        else:
            assert await coro == 3

    asyncio_runner.run(main)


def test_runner_refused_without_a_portal(asyncio_runner, allowed):
    """Runner.run() says what to do, too."""

    async def main():
        runner = asyncio.Runner()
        coro = add(1, 2)
        with pytest.raises(
            RuntimeError, match=r"^Runner\.run\(\) cannot be called .*ensure_portal"
        ):
            runner.run(coro)
        return await coro

    assert asyncio_runner.run(main) == 3


def test_refused_in_eager_child(asyncio_runner, allowed):
    """The portal of a parent doesn't serve a child without one."""

    async def child():
        coro = add(1, 2)
        with pytest.raises(RuntimeError, match="ensure_portal"):
            by_run(coro)
        return await coro

    async def main():
        await greenback.ensure_portal()
        return await asyncio.create_task(child())

    assert asyncio_runner.run(main) == 3


def test_forbidden(asyncio_runner, allowed):
    """In a forbid_await() section it is refused, and nothing is left behind."""

    def sync_code():
        coro = asyncio_runner.sleep_forever()
        with greenback.forbid_await("holds a lock"):
            with pytest.raises(RuntimeError, match="holds a lock"):
                by_run(coro)
        by_loop(asyncio_settle())
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        return by_run(add(3, 4))

    assert asyncio_runner.run_sync(sync_code) == 7


def test_in_a_finalizer(asyncio_runner, strays, allowed):
    """It works in __del__ by reference count; the collector can't wait."""

    class Closing:
        result = coro = None

        def __del__(self):
            Closing.coro = add(1, 2)
            Closing.result = by_run(Closing.coro)

    def sync_code():
        Closing()
        assert Closing.result == 3
        Closing.result = None
        cycle = Closing()
        cycle.itself = cycle
        del cycle
        gc.collect()
        by_loop(asyncio_settle())
        assert inspect.getcoroutinestate(Closing.coro) == inspect.CORO_CLOSED

    asyncio_runner.run_sync(sync_code)
    assert Closing.result is None
    assert len(strays) == 1 and "RuntimeError" in strays[0]
    strays.clear()


@pytest.mark.parametrize("run", [by_run, by_runner, by_loop])
def test_thrown_away(asyncio_runner, run, allowed):
    """A caller that is closed waits for nothing; what it has started is cancelled."""
    background = Background(asyncio_runner)
    log = []

    async def inner():
        tasks.append(await background.start("background"))
        await background.wait("inner")

    def sync_code():
        try:
            run(inner())
        finally:
            log.append("caller")

    async def main():
        coro = greenback.with_portal_run_sync(sync_code)
        coro.send(None)  # we are what runs it
        await asyncio_runner.settle()
        coro.close()
        assert log == ["caller"] and background.log == []
        await asyncio_runner.settle()
        ended = ["inner"] if run is by_loop else ["background", "inner"]
        assert sorted(background.log) == ended
        tasks[0].cancel()
        await asyncio.wait(tasks)

    tasks = []
    asyncio_runner.run(main)


def test_loop_is_gone(asyncio_runner, strays, allowed):
    """A task whose loop was closed meanwhile is collected without a complaint."""

    def sync_code():
        by_run(asyncio_runner.sleep_forever())

    async def main():
        tasks.append(asyncio.create_task(greenback.with_portal_run_sync(sync_code)))
        await asyncio_runner.settle()

    patched = getattr(asyncio_runner, "patched_asyncio", contextlib.nullcontext)
    tasks = []
    with patched():
        loop = asyncio_runner.loop_factory()
        loop.set_task_factory(asyncio_runner.task_factory)
        loop.set_exception_handler(lambda loop, info: None)  # that they are pending
        loop.run_until_complete(main())
        loop.close()
        del tasks[:]
        gc.collect()
    assert strays == []


def test_outside_of_a_loop(allowed):
    """Where no loop runs everything is as ever."""

    async def get_loop():
        await asyncio.sleep(0)
        assert not greenback.has_portal()
        return asyncio.get_running_loop()

    loop = asyncio.run(get_loop())
    assert loop.is_closed()
    with asyncio.Runner() as runner:
        assert runner.run(get_loop()) is runner.get_loop()
    assert runner._state.name == "CLOSED"
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(get_loop()) is loop
    loop.close()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.run_until_complete(None)


def test_in_another_thread(asyncio_runner, allowed):
    """A thread has loops of its own, and can't run this one."""

    async def get_loop():
        return asyncio.get_running_loop()

    def in_thread(loop, future):
        assert asyncio.run(get_loop()) is not loop
        with pytest.raises(RuntimeError) as info:
            loop.run_until_complete(future)
        assert "greenback" not in str(info.value)

    async def main():
        await greenback.ensure_portal()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        await asyncio.to_thread(in_thread, loop, future)
        by_run(asyncio.to_thread(in_thread, loop, future))

    asyncio_runner.run(main)


@pytest.mark.filterwarnings(
    "ignore:It looks like Trio's signal handling:RuntimeWarning"
)
def test_trio_inside(asyncio_runner, allowed):
    """trio.run() blocks as ever; its tasks can't wait on the loop outside."""
    trio = pytest.importorskip("trio")

    async def trio_main():
        await greenback.ensure_portal()
        await trio.lowlevel.checkpoint()
        coro = add(1, 2)
        with pytest.raises(RuntimeError, match="running event loop"):
            by_run(coro)
        coro.close()
        with pytest.raises(RuntimeError, match="already running"):
            by_loop(future)
        return "trio"

    def sync_code():
        nonlocal future
        future = asyncio.get_running_loop().create_future()
        assert trio.run(trio_main) == "trio"
        return by_run(add(1, 2))

    future = None

    assert asyncio_runner.run_sync(sync_code) == 3


def test_inside_trio(trio_runner, allowed):
    """asyncio.run() in a Trio task blocks as ever, and can be nested in turn."""

    async def asyncio_main():
        await greenback.with_portal_run_sync(sync_code)
        return await add(1, 2)

    def sync_code():
        return by_run(add(1, 2))

    assert trio_runner.run_sync(lambda: asyncio.run(asyncio_main())) == 3


# --- the permission -----------------------------------------------------------------


def all_names():
    """Everything that allow_nested_run() may replace."""
    owners = [asyncio, asyncio.runners, asyncio.Runner, asyncio.AbstractEventLoop]
    classes = [asyncio.AbstractEventLoop]
    while classes:
        found = classes.pop().__subclasses__()
        owners += found
        classes += found
    if "uvloop" in sys.modules:
        owners.append(sys.modules["uvloop"])
    return {
        (owner, name): value
        for owner in dict.fromkeys(owners)
        for name, value in list(vars(owner).items())
    }


def test_undone():
    """Every function is the original again, and refuses as before."""
    pytest.importorskip("uvloop")
    before = all_names()
    with greenback.allow_nested_run():
        changed = {
            name for name, value in all_names().items() if value is not before.get(name)
        }
        assert (asyncio, "run") in changed
    assert all_names() == before

    async def main():
        await greenback.ensure_portal()
        coro = add(1, 2)
        with pytest.raises(RuntimeError) as info:
            asyncio.run(coro)
        assert "greenback" not in str(info.value)
        await coro

    asyncio.run(main())


def nested_run_works():
    async def main():
        await greenback.ensure_portal()
        coro = add(1, 2)
        try:
            return by_run(coro) == 3 and by_loop(add(1, 2)) == 3
        except RuntimeError:
            coro.close()
            return False

    return asyncio.run(main())


def test_lasts_until_undone():
    """A plain call has an effect until undo() or the end of a with block."""
    before = all_names()
    permission = greenback.allow_nested_run()
    assert nested_run_works()
    assert "NestedRuns" in repr(permission)
    permission.undo()
    assert not nested_run_works()
    assert all_names() == before
    permission.undo()

    permission = greenback.allow_nested_run()
    with permission:
        assert nested_run_works()
    assert not nested_run_works()
    with permission:  # has been used up
        assert not nested_run_works()


def test_several_permissions():
    """The effect lasts as long as one of them, whichever is undone first."""
    before = all_names()
    first = greenback.allow_nested_run()
    during = all_names()
    second = greenback.allow_nested_run()
    assert all_names() == during
    first.undo()
    first.undo()
    assert nested_run_works()
    second.undo()
    assert not nested_run_works()
    assert all_names() == before


def test_undone_inside():
    """A run under way comes to its end, while new ones are refused."""

    async def main():
        await greenback.ensure_portal()
        with greenback.allow_nested_run() as nothing:
            assert nothing is None
            gate = asyncio.Event()
            asyncio.get_running_loop().call_soon(gate.set)

            async def inner():
                permission.undo()
                await gate.wait()
                return "ended"

            permission = greenback.allow_nested_run()
            assert by_run(inner()) == "ended"
        coro = add(1, 2)
        with pytest.raises(RuntimeError):
            by_run(coro)
        coro.close()

    asyncio.run(main())


def test_others_replace_it_too(monkeypatch):
    """What someone else has put on top stays there, and ours does nothing below."""
    original = asyncio.run
    calls = []
    permission = greenback.allow_nested_run()
    ours = asyncio.run

    def theirs(*args, **kwds):
        calls.append(args)
        return ours(*args, **kwds)

    monkeypatch.setattr(asyncio, "run", theirs)
    assert nested_run_works()
    permission.undo()
    assert asyncio.run is theirs
    assert asyncio.runners.run is original
    del calls[:]
    assert not nested_run_works()
    assert len(calls) == 2
    assert ours is not original
    assert ours(add(1, 2)) == 3
    # Allowed again, on top of theirs.
    with greenback.allow_nested_run():
        assert nested_run_works()
    assert asyncio.run is theirs
    # They put back what they had found.
    monkeypatch.undo()
    assert asyncio.run is ours
    assert not nested_run_works()
    with greenback.allow_nested_run():
        assert nested_run_works()
        assert asyncio.run is asyncio.runners.run
    assert asyncio.run is original


class Loop(asyncio.SelectorEventLoop):
    """Has the method from its base."""


class LoopWithMethod(asyncio.SelectorEventLoop):
    runs = 0

    def run_until_complete(self, future):
        type(self).runs += 1
        return super().run_until_complete(future)


@pytest.mark.parametrize("loop_class", [Loop, LoopWithMethod])
def test_subclasses_of_loops(loop_class):
    """Loops that exist already, of a class of the user's."""
    loop = loop_class()
    method = vars(loop_class).get("run_until_complete")

    async def main():
        with greenback.allow_nested_run():
            await greenback.ensure_portal()
            return by_loop(add(1, 2))

    try:
        assert loop.run_until_complete(main()) == 3
    finally:
        loop.close()
    assert vars(loop_class).get("run_until_complete") is method
    assert LoopWithMethod.runs == (loop_class is LoopWithMethod)
    LoopWithMethod.runs = 0


def test_loop_class_made_afterwards(allowed):
    """A class that defines the method later is served, and cleaned up, too."""

    class Mixin:
        def run_until_complete(self, future):
            return asyncio.SelectorEventLoop.run_until_complete(self, future)

    class Own(asyncio.SelectorEventLoop):
        def run_until_complete(self, future):
            return super().run_until_complete(future)

    class Mixed(Mixin, asyncio.AbstractEventLoop):
        def __init__(self):
            pass

    methods = []
    for cls in Own, Mixed:
        methods.append(vars(cls)["run_until_complete"])

    async def main():
        await greenback.ensure_portal()
        return by_loop(add(1, 2))

    loop = Own()
    try:
        assert loop.run_until_complete(main()) == 3
    finally:
        loop.close()
    greenback.allow_nested_run().undo()
    assert [vars(cls)["run_until_complete"] for cls in (Own, Mixed)] == methods


class Sealed(type):
    def __setattr__(self, name, value):
        raise TypeError("immutable")


def test_loop_class_that_cannot_be_changed():
    """It stays what it is, and is no obstacle."""

    class SealedLoop(asyncio.SelectorEventLoop, metaclass=Sealed):
        def run_until_complete(self, future):
            return super().run_until_complete(future)

    method = vars(SealedLoop)["run_until_complete"]
    with greenback.allow_nested_run():
        assert nested_run_works()
        assert vars(SealedLoop)["run_until_complete"] is method


def test_threads():
    """Permissions may be given and withdrawn in many threads at once."""
    before = all_names()
    failures = []
    start = threading.Barrier(6)

    def body():
        try:
            start.wait()
            for _ in range(10):
                with greenback.allow_nested_run():
                    assert nested_run_works()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all_names() == before


def test_looks_like_the_original():
    """Signature, name, documentation and pickling stay."""
    functions = {
        "run": asyncio.run,
        "Runner.run": asyncio.Runner.run,
        "BaseEventLoop.run_until_complete": asyncio.BaseEventLoop.run_until_complete,
    }
    signatures = {name: inspect.signature(f) for name, f in functions.items()}
    with greenback.allow_nested_run():
        assert asyncio.run is asyncio.runners.run
        assert asyncio.run is not functions["run"]
        for name, function in {
            "run": asyncio.run,
            "Runner.run": asyncio.Runner.run,
            "BaseEventLoop.run_until_complete": (
                asyncio.BaseEventLoop.run_until_complete
            ),
        }.items():
            assert inspect.signature(function) == signatures[name]
            assert function.__qualname__ == name
            assert function.__doc__ == functions[name].__doc__
        assert pickle.loads(pickle.dumps(asyncio.run)) is asyncio.run


# --- in processes of their own ------------------------------------------------------


def run_script(script, *options):
    command = [sys.executable, "-X", "dev", "-W", "error", *options, "-c"]
    result = subprocess.run(
        [*command, textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("done\n", "")
    assert result.returncode == 0


def test_uvloop_imported_later():
    """uvloop may be imported when nested runs have been allowed already."""
    pytest.importorskip("uvloop")
    run_script(
        """
        import greenback
        greenback.allow_nested_run()
        import asyncio, uvloop

        async def inner():
            await asyncio.sleep(0)
            return 3

        async def main():
            await greenback.ensure_portal()
            assert asyncio.run(inner()) == 3
            assert asyncio.get_running_loop().run_until_complete(inner()) == 3
            assert uvloop.run(inner()) == 3
            return type(asyncio.get_running_loop())

        assert asyncio.run(main()) is not uvloop.Loop
        assert uvloop.run(main()) is uvloop.Loop
        loop = uvloop.new_event_loop()
        assert loop.run_until_complete(main()) is uvloop.Loop
        loop.close()
        print("done")
        """
    )


def test_nothing_is_left_over():
    """No warnings, not even of what the process leaves behind at its end."""
    run_script(
        """
        import asyncio, greenback
        greenback.allow_nested_run()

        async def inner(depth):
            await asyncio.sleep(0)
            if depth:
                asyncio.get_running_loop().create_task(asyncio.sleep(3600))
                return asyncio.run(inner(depth - 1))
            return "innermost"

        async def main():
            await greenback.ensure_portal()
            with asyncio.Runner() as runner:
                assert runner.run(inner(3)) == "innermost"
            assert len(asyncio.all_tasks()) == 1
            try:
                await asyncio.gather(*[
                    greenback.with_portal_run_sync(asyncio.run, inner(n % 3))
                    for n in range(10)
                ])
            finally:
                pass

        asyncio.run(main())
        print("done")
        """
    )


# --- references ---------------------------------------------------------------------


class Payload(Exception):
    pass


@pytest.mark.parametrize("run", [by_run, by_runner, by_loop])
@pytest.mark.parametrize("kind", ["result", "exception", "exit"])
def test_no_reference_cycles(asyncio_runner, run, kind, allowed):
    """What comes out dies with its last reference, without the collector."""

    if asyncio_runner.id == "asyncio-pytask" and kind == "exception":
        pytest.skip("frames of the traceback hold the task, which holds the exception")

    class Exit(SystemExit):
        pass

    async def inner():
        await asyncio.sleep(0)
        if kind == "result":
            return Payload()
        raise Payload if kind == "exception" else Exit

    def get():
        try:
            return weakref.ref(run(inner()))
        except (Payload, Exit) as error:
            return weakref.ref(error)

    def sync_code():
        gc.collect()
        gc.disable()
        try:
            ref = get()
            by_loop(asyncio_settle())
            assert ref() is None
        finally:
            gc.enable()

    asyncio_runner.run_sync(sync_code)


# --- what people did with nested loops ----------------------------------------------


def test_library_with_a_sync_interface(asyncio_runner, allowed):
    """A class whose sync methods run its async ones works in tasks, too."""

    class Client:
        async def fetch_async(self, n):
            await asyncio.sleep(0)
            return n * n

        def fetch(self, n):
            return asyncio.run(self.fetch_async(n))

        def fetch_all(self, numbers):
            async def gather():
                return await asyncio.gather(*map(self.fetch_async, numbers))

            try:
                loop = asyncio.get_event_loop()
            except RuntimeError:
                loop = asyncio.new_event_loop()
            return loop.run_until_complete(gather())

    def sync_code():
        client = Client()
        assert client.fetch(3) == 9
        return client.fetch_all(range(4))

    assert asyncio_runner.run_sync(sync_code) == [0, 1, 4, 9]
    assert Client().fetch(4) == 16


def test_run_until_complete_in_a_callback(asyncio_runner, allowed):
    """A loop's callback is no task; what it calls can be run in one."""

    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def callback():
            done.set_result(loop.run_until_complete(add(1, 2)))

        def in_a_task(fn):
            tasks.append(loop.create_task(greenback.with_portal_run_sync(fn)))

        tasks = []
        loop.call_soon(in_a_task, callback)
        assert await done == 3
        await tasks[0]

    asyncio_runner.run(main)


def test_create_task_that_was_replaced(allowed):
    """Whoever replaces create_task() of a loop is told of all tasks."""
    names = []

    async def main():
        await greenback.ensure_portal()
        loop = asyncio.get_running_loop()
        original = loop.create_task

        def create_task(coro, **kwds):
            names.append(coro.__name__)
            return original(coro, **kwds)

        loop.create_task = create_task
        assert by_run(add(1, 2)) + by_loop(add(3, 4)) == 10
        return list(names)

    assert asyncio.run(main()) == ["add", "add"]


def test_in_a_tree(asyncio_runner, allowed):
    """A nested run belongs to a tree or not as any code; it may have one of its own."""

    async def child():
        return greenback.has_portal()

    async def start_child():
        return await asyncio.create_task(child())

    async def main():
        with greenback.portals_for_children():
            inside = by_run(start_child())
        outside = by_run(start_child())
        return inside, outside, by_run(greenback.with_portal_run_tree(start_child))

    expected = (True, False, True)
    assert asyncio_runner.run(greenback.with_portal_run, main) == expected


def test_allowed_while_the_loop_runs(asyncio_runner):
    """It need not be done before there is a loop."""

    def sync_code():
        with pytest.raises(RuntimeError, match="running event loop"):
            by_run(coro := add(1, 2))
        coro.close()
        with greenback.allow_nested_run():
            return [by_run(add(1, 2)), by_loop(add(3, 4)), by_runner(add(5, 6))]

    assert asyncio_runner.run_sync(sync_code) == [3, 7, 11]


def test_run_forever_is_refused(asyncio_runner, allowed):
    """It would have to know when to end: asyncio's own error."""

    def sync_code():
        with pytest.raises(RuntimeError, match="running"):
            asyncio.get_running_loop().run_forever()

    asyncio_runner.run_sync(sync_code)


def test_session_within_one_run(asyncio_runner, allowed):
    """A client that lives in one nested run, called by a sync function of a task."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()
        served.set_result(None)

    class Session:
        async def __aenter__(self):
            self.loop = asyncio.get_running_loop()
            return self

        async def __aexit__(self, *exc):
            await served

        async def get(self, port):
            assert asyncio.get_running_loop() is self.loop
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            return int(head.split()[1]), body

    async def fetch(port):
        async with Session() as session:
            return await session.get(port)

    def sync_code(port):
        return asyncio.run(fetch(port))

    async def main():
        nonlocal served
        await greenback.ensure_portal()
        served = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        answer = sync_code(server.sockets[0].getsockname()[1])
        server.close()
        await server.wait_closed()
        return answer

    served = None
    assert asyncio_runner.run(main) == (200, b"hello")


def test_every_task_of_a_program(asyncio_runner, allowed):
    """What is said once for a whole program serves handlers in tasks of their own."""

    def handler(n):
        return asyncio.run(add(n, n))

    async def main():
        async def task(n):
            return handler(n)

        return await asyncio.gather(*map(task, range(4)))

    async def whole_program():
        return await greenback.with_portal_run_tree(main)

    assert asyncio_runner.run(whole_program) == [0, 2, 4, 6]


def test_nested_loops_of_many_tasks(asyncio_runner, allowed):
    """Many tasks at once, each some runs deep."""

    async def level(name, depth):
        await asyncio.sleep(0)
        if depth == 0:
            return [name]
        ways = (by_run, by_loop, by_runner)
        return [*ways[depth % 3](level(name, depth - 1)), depth]

    async def main():
        return await asyncio.gather(
            *[
                greenback.with_portal_run(level, name, depth)
                for name in range(10)
                for depth in range(4)
            ]
        )

    expected = [
        [name, *range(1, depth + 1)] for name in range(10) for depth in range(4)
    ]
    assert asyncio_runner.run(main) == expected


def test_streams(allowed):
    """Connections made in one nested run are used in another."""

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main():
        await greenback.ensure_portal()
        run = asyncio.get_running_loop().run_until_complete
        server = run(asyncio.start_server(echo, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        reader, writer = run(asyncio.open_connection("127.0.0.1", port))
        writer.write(b"hello\n")
        assert run(reader.readline()) == b"hello\n"
        writer.close()
        run(writer.wait_closed())
        server.close()
        run(server.wait_closed())

    asyncio.run(main())


def test_asynchronous_generators(asyncio_runner, allowed):
    """A generator begun in one run can be finished in another."""
    log = []

    async def numbers():
        try:
            yield 1
            await asyncio.sleep(0)
            yield 2
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def take(generator):
        return await anext(generator)

    def sync_code():
        generator = numbers()
        assert [by_run(take(generator)), by_run(take(generator))] == [1, 2]
        by_run(generator.aclose())
        assert log == ["closed"]

    asyncio_runner.run_sync(sync_code)
