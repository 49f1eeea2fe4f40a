"""Threads: a loop in each, portals that move between them, small stacks."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading

import pytest
from conftest import make_runner

import greenback

# No Python tasks: those need asyncio patched, for all threads.
LOOPS = ["asyncio", "asyncio-subclass", "uvloop", "trio"]


def in_thread(fn, *args):
    """Call *fn* in a new thread; return its result or raise its exception."""
    return in_threads([(fn, *args)])[0]


def in_threads(jobs):
    """Call ``fn(*args)`` for each job in a thread of its own, all at once."""
    outcomes = [None] * len(jobs)

    def body(number, fn, args):
        try:
            outcomes[number] = (True, fn(*args))
        except BaseException as error:
            outcomes[number] = (False, error)

    threads = [
        threading.Thread(target=body, args=(number, fn, args))
        for number, (fn, *args) in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fine, value in outcomes:
        if not fine:
            raise value
    return [value for _, value in outcomes]


def descend(depth, fn):
    """Call *fn* with *depth* plain frames in between."""
    return descend(depth - 1, fn) if depth else fn()


class Trap:
    """Yields its argument once; its result is what comes back."""

    def __init__(self, value=None):
        self.value = value

    def __await__(self):
        return (yield self.value)


async def trap(value=None):
    """Await a Trap."""
    return await Trap(value)


def work(runner):
    """Run some tasks with portals on a loop; return their results."""

    async def one(number):
        await greenback.ensure_portal()
        for round_number in range(10):
            descend(round_number * 3, lambda: greenback.await_(runner.checkpoint()))
        return number

    async def main():
        return await runner.run_concurrently(
            *[lambda number=number: one(number) for number in range(5)]
        )

    return runner.run(main)


def test_a_loop_in_each_thread(runner):
    """The same kind of loop runs in several threads at the same time."""
    results = in_threads([(work, make_runner(runner.id)) for _ in range(4)])
    assert results == [[0, 1, 2, 3, 4]] * 4


def test_different_loops_at_once():
    """asyncio, uvloop and Trio run side by side in one process."""
    runners = []
    for name in LOOPS:
        try:
            runners.append(make_runner(name))
        except pytest.skip.Exception:
            continue
    results = in_threads([(work, runner) for runner in runners * 2])
    assert results == [[0, 1, 2, 3, 4]] * len(runners) * 2


def test_threads_take_turns(runner):
    """Tasks of two threads, suspended in await_, wake each other in turn."""
    log = []
    turn = threading.Condition()
    finished = 4

    def wait_for(number):
        with turn:
            return turn.wait_for(lambda: len(log) >= number, timeout=30)

    def thread_main(first):
        own = make_runner(runner.id)

        def sync():
            for number in range(first, 2 * finished, 2):
                greenback.await_(own.checkpoint())
                assert wait_for(number)
                with turn:
                    log.append(number)
                    turn.notify_all()
                greenback.await_(own.checkpoint())

        own.run_sync(sync)

    in_threads([(thread_main, 0), (thread_main, 1)])
    assert log == list(range(2 * finished))


def test_portal_is_of_its_thread(runner):
    """await_ in a helper thread does not use the portal of the task."""
    import sniffio

    def in_helper():
        assert not greenback.has_portal()
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            greenback.await_(runner.checkpoint())
        return "helper"

    def sync():
        greenback.await_(runner.checkpoint())
        assert in_thread(in_helper) == "helper"
        greenback.await_(runner.checkpoint())

    runner.run_sync(sync)


def in_asyncio_task(fn, *args):
    """Call *fn* in a task, which it takes to make a portal."""

    async def main():
        return fn(*args)

    return asyncio.run(main())


def make_portal(*values):
    """Make a coroutine with a portal that suspends once for each value."""

    def sync():
        return [greenback.await_(trap(value)) for value in values]

    return greenback.with_portal_run_sync(sync)


def make_idle_portal(*values):
    """Make one that suspends natively first."""

    async def body():
        await trap("idle")
        return [greenback.await_(trap(value)) for value in values]

    return greenback.with_portal_run(body)


def test_unstarted_portal_moves_to_another_thread():
    """Made in one thread, driven in another."""

    def drive(coro):
        assert coro.send(None) == 1
        assert coro.send("a") == 2
        with pytest.raises(StopIteration) as caught:
            coro.send("b")
        return caught.value.value

    coro = in_asyncio_task(make_portal, 1, 2)
    assert in_thread(in_asyncio_task, drive, coro) == ["a", "b"]


def test_idle_portal_moves_to_another_thread():
    """Between steps without await_, another thread may go on, or be refused."""

    def start():
        coro = make_idle_portal(1)
        assert coro.send(None) == "idle"
        return coro

    def go_on(coro):
        try:
            assert coro.send(None) == 1
        except RuntimeError as error:
            assert "thread" in str(error)
            return None
        with pytest.raises(StopIteration) as caught:
            coro.send("a")
        return caught.value.value

    coro = in_asyncio_task(start)
    result = in_thread(in_asyncio_task, go_on, coro)
    assert result in (["a"], None)
    coro.close()


def test_suspended_portal_stays_in_its_thread():
    """Suspended in await_, it is refused elsewhere, and unharmed by that."""
    box = []
    errors = []

    def elsewhere():
        for attempt in (
            lambda: box[0].send("wrong"),
            lambda: box[0].throw(KeyError()),
        ):
            with pytest.raises(RuntimeError, match="thread") as caught:
                attempt()
            errors.append(caught.value)

    def start():
        coro = make_portal(1, 2)
        box.append(coro)
        assert coro.send(None) == 1
        in_thread(in_asyncio_task, elsewhere)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        assert coro.send("a") == 2
        in_thread(in_asyncio_task, elsewhere)
        with pytest.raises(StopIteration) as caught:
            coro.send("b")
        return caught.value.value

    assert in_asyncio_task(start) == ["a", "b"]
    assert len(errors) == 4


def test_suspended_portal_closed_elsewhere():
    """close() from another thread is refused as well."""

    def elsewhere(coro):
        with pytest.raises(RuntimeError, match="thread"):
            coro.close()

    def start():
        coro = make_portal(1)
        assert coro.send(None) == 1
        in_thread(in_asyncio_task, elsewhere, coro)
        with pytest.raises(StopIteration):
            coro.send(None)

    in_asyncio_task(start)


def test_suspended_portal_of_a_dead_thread():
    """Its thread has ended: a clear error, no crash."""

    def start():
        coro = make_portal(1)
        assert coro.send(None) == 1
        return coro

    def go_on(coro):
        with pytest.raises(RuntimeError):
            coro.send(None)
        with pytest.raises(RuntimeError):
            coro.throw(KeyError())

    KEPT_FOR_EVER.append(in_thread(in_asyncio_task, start))
    in_asyncio_task(go_on, KEPT_FOR_EVER[-1])
    in_thread(in_asyncio_task, go_on, KEPT_FOR_EVER[-1])


# What is suspended in a thread that has ended can't be unwound any more.
KEPT_FOR_EVER = []


def test_bestow_on_a_task_of_another_thread(runner):
    """A task of another thread's loop gets its portal from here, or an error."""
    ready = threading.Event()
    proceed = threading.Event()
    box = []

    def thread_main():
        own = make_runner(runner.id)

        async def main():
            box.append(own.current_task())
            await own.checkpoint()
            ready.set()
            assert proceed.wait(30)
            await own.checkpoint()
            if greenback.has_portal():
                greenback.await_(own.checkpoint())
                return "with portal"
            return "without"

        return own.run(main)

    def other_thread():
        assert ready.wait(30)
        try:
            greenback.bestow_portal(box[0])
            return "with portal"
        except RuntimeError:
            return "without"
        finally:
            proceed.set()

    results = in_threads([(thread_main,), (other_thread,)])
    assert results[0] == results[1]


# Debug builds take so much of it that they have hardly any room in 128 KB.
@pytest.mark.parametrize(
    "size", [256 if hasattr(sys, "gettotalrefcount") else 128, 512, 1024]
)
def test_small_stacks(runner, size):
    """Portals work in threads with little stack."""
    before = threading.stack_size()
    try:
        threading.stack_size(size * 1024)
        results = in_threads([(work, make_runner(runner.id)) for _ in range(3)])
    finally:
        threading.stack_size(before)
    assert results == [[0, 1, 2, 3, 4]] * 3


def test_many_short_threads(runner):
    """Threads come and go; what they pooled does not get in the way."""
    for _ in range(15):
        results = in_threads([(work, make_runner(runner.id)) for _ in range(4)])
        assert results == [[0, 1, 2, 3, 4]] * 4
    assert work(runner) == [0, 1, 2, 3, 4]


def test_worker_threads_of_the_loop(runner):
    """The loop's own helper threads work under await_."""

    def sync():
        if runner.library == "trio":
            import trio

            run_in_thread = trio.to_thread.run_sync
        else:
            run_in_thread = asyncio.to_thread
        numbers = [
            greenback.await_(run_in_thread(lambda n=n: n * n)) for n in range(20)
        ]
        assert numbers == [n * n for n in range(20)]
        with pytest.raises(ZeroDivisionError):
            greenback.await_(run_in_thread(lambda: 1 / 0))

    runner.run_sync(sync)
