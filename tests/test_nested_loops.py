"""Loops inside loops, eager child tasks, and has_portal() in odd places."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading

import pytest

import greenback

ASYNCIO_IDS = [
    "asyncio",
    "asyncio-pytask",
    "asyncio-subclass",
    "asyncio-eager",
    "uvloop",
]
on_asyncio = pytest.mark.parametrize("runner", ASYNCIO_IDS, indirect=True)
on_trio = pytest.mark.parametrize("runner", ["trio"], indirect=True)
needs_eager = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks came with 3.12"
)


async def ready(value=None):
    """Give a result without suspending."""
    return value


def in_thread(fn, *args):
    """Call *fn* in a new thread; return its result or raise its exception."""
    outcome = []

    def body():
        try:
            outcome.append((True, fn(*args)))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    ((fine, value),) = outcome
    if not fine:
        raise value
    return value


def refused(awaitable_fn=ready, match="must create a greenback portal"):
    """Check that await_ does not work here, and says so."""
    with pytest.raises(RuntimeError, match=match):
        greenback.await_(awaitable_fn())
    return True


# --- trio.run() in an asyncio task --------------------------------------------------


# uvloop and Trio both want the wakeup descriptor for signals.
@pytest.mark.filterwarnings(
    "ignore:It looks like Trio's signal handling:RuntimeWarning"
)
@on_asyncio
@pytest.mark.parametrize("suspended_first", [False, True])
def test_trio_run_inside_asyncio(runner, suspended_first):
    """The inner Trio does not see the outer portal, which works afterwards."""
    trio = pytest.importorskip("trio")

    async def inner():
        assert not greenback.has_portal()
        refused()
        await trio.lowlevel.checkpoint()
        await greenback.ensure_portal()
        assert greenback.has_portal()
        assert greenback.await_(ready(1)) == 1
        greenback.await_(trio.sleep(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner_without_portal)
            nursery.start_soon(inner_with_portal)
        return "inner"

    async def inner_without_portal():
        assert not greenback.has_portal()
        await trio.sleep(0)
        refused()

    async def inner_with_portal():
        await greenback.ensure_portal()
        greenback.await_(trio.sleep(0))

    async def raising():
        await greenback.ensure_portal()
        greenback.await_(trio.sleep(0))
        raise KeyError("inner")

    def sync_code():
        if suspended_first:
            greenback.await_(runner.checkpoint())
        assert trio.run(inner) == "inner"
        assert greenback.has_portal()
        assert greenback.await_(ready("outer")) == "outer"
        greenback.await_(runner.checkpoint())
        with pytest.raises(KeyError, match="inner"):
            trio.run(raising)
        greenback.await_(runner.checkpoint())

    async def main():
        await greenback.ensure_portal()
        sync_code()
        await runner.checkpoint()
        sync_code()

    runner.run(main)


@pytest.mark.filterwarnings(
    "ignore:It looks like Trio's signal handling:RuntimeWarning"
)
@on_asyncio
def test_trio_run_inside_awaited_coroutine(runner):
    """So it is in a coroutine that await_ drives."""
    trio = pytest.importorskip("trio")

    async def inner():
        refused()
        await greenback.with_portal_run_sync(
            lambda: greenback.await_(trio.lowlevel.checkpoint())
        )
        refused()
        return "inner"

    async def driven():
        await runner.checkpoint()
        assert trio.run(inner) == "inner"
        await runner.checkpoint()
        greenback.await_(runner.checkpoint())
        return "outer"

    assert runner.run_sync(lambda: greenback.await_(driven())) == "outer"


# --- an asyncio loop in a Trio task, and in threads ---------------------------------


def test_new_loop_in_a_thread(runner):
    """asyncio.run() in a thread, called from sync code, is on its own."""

    async def inner():
        assert not greenback.has_portal()
        refused()
        await greenback.ensure_portal()
        greenback.await_(asyncio.sleep(0))
        return "inner"

    def sync_code():
        greenback.await_(runner.checkpoint())
        assert in_thread(asyncio.run, inner()) == "inner"
        assert greenback.has_portal()
        greenback.await_(runner.checkpoint())

    runner.run_sync(sync_code)


@on_trio
def test_asyncio_run_inside_trio(runner):
    """An asyncio task inside a Trio task does not see the outer portal."""

    async def inner():
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            greenback.await_(asyncio.sleep(0))
        await asyncio.sleep(0)
        return "inner"

    def sync_code():
        greenback.await_(runner.checkpoint())
        assert asyncio.run(inner()) == "inner"
        assert greenback.has_portal()
        greenback.await_(runner.checkpoint())
        return "outer"

    assert runner.run_sync(sync_code) == "outer"


@on_trio
def test_portal_of_asyncio_run_inside_trio(runner):
    """An asyncio task inside a Trio task can have a portal of its own."""
    import sniffio

    async def inner():
        token = sniffio.current_async_library_cvar.set("asyncio")
        name, sniffio.thread_local.name = sniffio.thread_local.name, "asyncio"
        try:
            await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
        finally:
            sniffio.thread_local.name = name
            sniffio.current_async_library_cvar.reset(token)
        return "inner"

    def sync_code():
        greenback.await_(runner.checkpoint())
        assert asyncio.run(inner()) == "inner"
        greenback.await_(runner.checkpoint())
        return "outer"

    assert runner.run_sync(sync_code) == "outer"


# --- Trio's guest mode --------------------------------------------------------------


@pytest.mark.parametrize("host_portal", [False, True])
def test_trio_guest_on_asyncio(host_portal):
    """Trio tasks with portals run as guests of an asyncio loop, beside its own."""
    trio = pytest.importorskip("trio")

    async def guest_task(name, log):
        await greenback.ensure_portal()
        for _ in range(3):
            greenback.await_(trio.sleep(0))
            log.append(name)

    async def guest_main(log):
        assert not greenback.has_portal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest_task, "guest", log)
            nursery.start_soon(guest_task, "guest", log)
        return "guest result"

    async def host():
        if host_portal:
            await greenback.ensure_portal()
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        log = []
        trio.lowlevel.start_guest_run(
            guest_main,
            log,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=finished.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        if host_portal:
            for _ in range(5):
                greenback.await_(asyncio.sleep(0))
                log.append("host")
            outcome = greenback.await_(finished)
        else:
            refused()
            outcome = await finished
        assert outcome.unwrap() == "guest result"
        assert log.count("guest") == 6
        assert greenback.has_portal() is host_portal

    asyncio.run(host())


def test_trio_guest_without_a_host():
    """The guest's steps may come from plain synchronous code."""
    trio = pytest.importorskip("trio")
    calls = queue.Queue()
    outcomes = []

    async def guest_main():
        await greenback.ensure_portal()
        for _ in range(5):
            greenback.await_(trio.sleep(0))
        return "guest result"

    trio.lowlevel.start_guest_run(
        guest_main,
        run_sync_soon_threadsafe=calls.put,
        run_sync_soon_not_threadsafe=calls.put,
        done_callback=outcomes.append,
    )
    while not outcomes:
        calls.get(timeout=30)()
        assert not greenback.has_portal()
    assert outcomes[0].unwrap() == "guest result"


# --- eager tasks --------------------------------------------------------------------


def eager_task(coro):
    """Start a task that runs its first step now."""
    return asyncio.Task(coro, loop=asyncio.get_running_loop(), eager_start=True)


@needs_eager
@on_asyncio
def test_eager_child_without_portal(runner):
    """An eager child must not suspend its parent's portal."""
    results = []

    async def child():
        results.append(greenback.has_portal())
        results.append(refused(runner.checkpoint))
        await asyncio.sleep(0)
        results.append(refused(runner.checkpoint))

    def sync_code():
        greenback.await_(runner.checkpoint())
        task = eager_task(child())
        assert results == [False, True]
        assert greenback.has_portal()
        greenback.await_(runner.checkpoint())
        greenback.await_(task)
        assert greenback.has_portal()

    runner.run_sync(sync_code)
    assert results == [False, True, True]


@needs_eager
@on_asyncio
def test_eager_child_with_portal(runner):
    """An eager child with its own portal suspends itself alone."""
    log = []

    async def child():
        log.append("first step")
        await greenback.ensure_portal()
        assert greenback.has_portal()
        for _ in range(3):
            greenback.await_(asyncio.sleep(0))
        log.append("child")
        return "child"

    async def scoped_child():
        def sync():
            assert greenback.has_portal()
            log.append("scoped")
            greenback.await_(asyncio.sleep(0))
            return "scoped child"

        result = await greenback.with_portal_run_sync(sync)
        assert not greenback.has_portal()
        return result

    def sync_code():
        task = eager_task(child())
        assert log == ["first step"]
        log.append("parent")
        scoped = eager_task(scoped_child())
        assert log[-1] == "scoped"
        assert greenback.await_(task) == "child"
        assert greenback.await_(scoped) == "scoped child"
        assert greenback.has_portal()
        return log

    assert runner.run_sync(sync_code) == ["first step", "parent", "scoped", "child"]


@needs_eager
@on_asyncio
def test_eager_grandchildren(runner):
    """Portals of eager tasks nest, each belongs to its own task."""
    order = []

    async def descend(depth):
        has_one = depth % 2 == 0
        if has_one:
            await greenback.ensure_portal()
        assert greenback.has_portal() is has_one
        task = eager_task(descend(depth - 1)) if depth else None
        assert greenback.has_portal() is has_one
        for _ in range(2):
            if has_one:
                greenback.await_(asyncio.sleep(0))
            else:
                refused(runner.checkpoint)
                await asyncio.sleep(0)
        if task is not None:
            greenback.await_(task) if has_one else await task
        order.append(depth)

    async def main():
        await descend(5)

    runner.run(main)
    assert order == [0, 1, 2, 3, 4, 5]


# --- has_portal() ------------------------------------------------------------------


def test_has_portal_without_loop():
    """Outside of any loop there is no portal, and no error."""
    import sniffio

    assert greenback.has_portal() is False
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        greenback.await_(ready())


def test_has_portal_in_each_kind(runner, portal_kind):
    """In sync code of each kind of portal: True; not after a scoped one."""

    async def main():
        before = greenback.has_portal()
        inside = await portal_kind(greenback.has_portal)
        return before, inside

    before, inside = runner.run(main)
    assert (before, inside) == (False, True)


def test_has_portal_for_tasks(runner):
    """For other tasks: before, while and after they have one."""

    async def main():
        gate = runner.Event()

        async def idle():
            await gate.wait()
            assert greenback.has_portal()

        async def plain():
            await gate.wait()

        async def in_await():
            await greenback.ensure_portal()
            greenback.await_(gate.wait())

        async def scoped():
            await greenback.with_portal_run_sync(lambda: greenback.await_(gate.wait()))
            assert not greenback.has_portal()

        async def scoped_async():
            await greenback.with_portal_run(gate.wait)
            assert not greenback.has_portal()

        children = {
            fn: runner.spawn(fn) for fn in (idle, plain, in_await, scoped, scoped_async)
        }
        greenback.bestow_portal(children[idle].task)
        assert greenback.has_portal(children[idle].task) is True
        await runner.settle()
        seen = {fn: greenback.has_portal(child.task) for fn, child in children.items()}
        assert seen[idle] is True
        assert seen[plain] is False
        assert seen[in_await] is True
        assert seen[scoped] is True
        assert seen[scoped_async] is True
        assert greenback.has_portal() is False
        assert greenback.has_portal(runner.current_task()) is False
        assert greenback.has_portal(None) is False
        gate.set()
        for child in children.values():
            await child.join()
        await runner.settle()
        for fn, child in children.items():
            assert greenback.has_portal(child.task) is False, fn

    runner.run(main)


def test_has_portal_for_itself(runner):
    """A bestowed portal of the current task works from the next step on."""

    async def main():
        task = runner.current_task()
        greenback.bestow_portal(task)
        assert greenback.has_portal() is False
        refused(match="must yield to the event loop")
        await runner.checkpoint()
        assert greenback.has_portal() is True
        assert greenback.has_portal(task) is True
        greenback.await_(runner.checkpoint())
        return task

    assert greenback.has_portal(runner.run(main)) is False


@on_asyncio
def test_has_portal_in_callbacks(runner):
    """In callbacks that belong to no task: False, and await_ says why."""

    async def main():
        loop = asyncio.get_running_loop()
        await greenback.ensure_portal()
        seen = loop.create_future()

        def callback(*_):
            try:
                has_one = greenback.has_portal()
                with pytest.raises(RuntimeError):
                    greenback.await_(ready())
                seen.set_result(has_one)
            except BaseException as error:
                seen.set_exception(error)

        for schedule in (
            loop.call_soon,
            loop.call_soon_threadsafe,
            lambda fn: loop.call_later(0, fn),
        ):
            seen = loop.create_future()
            schedule(callback)
            assert await seen is False
            seen = loop.create_future()
            schedule(callback)
            assert greenback.await_(seen) is False

        future = loop.create_future()
        future.add_done_callback(callback)
        seen = loop.create_future()
        future.set_result(None)
        assert greenback.await_(seen) is False

        reading, writing = os.pipe()
        try:
            seen = loop.create_future()
            loop.add_reader(reading, lambda: (loop.remove_reader(reading), callback()))
            os.write(writing, b"x")
            assert greenback.await_(seen) is False
        finally:
            os.close(reading)
            os.close(writing)

    runner.run(main)


@on_trio
def test_has_portal_in_trio_callbacks(runner):
    """In Trio's callbacks and instruments: False, and no error."""
    import trio

    seen = []

    class Instrument(trio.abc.Instrument):
        def before_io_wait(self, timeout):
            seen.append(("io", greenback.has_portal()))

        def before_task_step(self, task):
            seen.append(("step", greenback.has_portal()))

    async def main():
        await greenback.ensure_portal()
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        token.run_sync_soon(lambda: seen.append(("soon", greenback.has_portal())))
        token.run_sync_soon(done.set)
        greenback.await_(done.wait())
        # In the worker thread await_() works, by way of this task.
        assert greenback.await_(trio.to_thread.run_sync(greenback.has_portal)) is True

        def in_waiting_task():
            # Trio calls this in the task that waits for the thread, if it can.
            return greenback.has_portal() and greenback.await_(ready("with portal"))

        def from_thread():
            return trio.from_thread.run_sync(in_waiting_task)

        seen_there = greenback.await_(trio.to_thread.run_sync(from_thread))
        assert seen_there in (False, "with portal")

    trio.run(main, instruments=[Instrument()])
    assert ("soon", False) in seen
    assert ("io", False) in seen
    assert ("step", False) in seen


def test_has_portal_in_other_threads(runner):
    """Another thread has no portal; it may ask about tasks of this one."""

    async def main():
        gate = runner.Event()

        async def in_await():
            await greenback.ensure_portal()
            greenback.await_(gate.wait())

        child = runner.spawn(in_await)
        await runner.settle()
        await greenback.ensure_portal()
        assert in_thread(greenback.has_portal) is False
        assert in_thread(greenback.has_portal, child.task) is True
        assert in_thread(greenback.has_portal, runner.current_task()) is True
        gate.set()
        await child.join()
        assert in_thread(greenback.has_portal, child.task) is False

    runner.run(main)


@pytest.mark.parametrize("thing", [3, "task", object(), [], ready])
def test_has_portal_for_what_is_no_task(runner, thing):
    """Anything that is no task has no portal."""

    async def main():
        await greenback.ensure_portal()
        return greenback.has_portal(thing)

    try:
        assert greenback.has_portal(thing) is False
        assert runner.run(main) is False
    except TypeError:
        # The pure-Python version cannot hash or weakly refer to some of them.
        assert not hasattr(greenback, "engine")


@pytest.mark.parametrize("thing", [3, None, object()])
def test_bestow_on_what_is_no_task(runner, thing):
    """Bestowing a portal on something else is an error, and harmless."""

    async def main():
        with pytest.raises((TypeError, AttributeError, RuntimeError)):
            greenback.bestow_portal(thing)
        await greenback.ensure_portal()
        return greenback.await_(ready("fine"))

    assert runner.run(main) == "fine"


def test_bestow_on_a_finished_task(runner):
    """A finished task gets no portal and does no harm."""

    async def main():
        child = runner.spawn(ready)
        await child.join()
        await runner.settle()
        try:
            greenback.bestow_portal(child.task)
        except RuntimeError:
            pass
        assert greenback.has_portal(child.task) is False
        await greenback.ensure_portal()
        assert greenback.await_(ready("fine")) == "fine"

    runner.run(main)


def test_unknown_library():
    """A library that is not supported is named in the error."""
    import sniffio

    token = sniffio.current_async_library_cvar.set("tokio")
    try:
        with pytest.raises(RuntimeError, match="greenback does not support tokio"):
            greenback.await_(ready())
        assert greenback.has_portal() is False
        coro = greenback.ensure_portal()
        with pytest.raises(RuntimeError, match="greenback does not support tokio"):
            coro.send(None)
    finally:
        sniffio.current_async_library_cvar.reset(token)
