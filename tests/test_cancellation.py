"""Cancellation and timeouts in sync code, and tasks that are dropped."""

import asyncio
import functools
import gc
import sys
import types

import pytest

import greenback
from greenback import (
    async_context,
    await_,
    bestow_portal,
    ensure_portal,
    has_portal,
    with_portal_run,
    with_portal_run_sync,
)


async def echo(runner, value):
    await runner.checkpoint()
    return value


def dive(depth, fn):
    return fn() if depth == 0 else dive(depth - 1, fn)


async def cancelled_child(runner, fn, *args):
    """Start `fn` in a child task, let it wait, cancel it, wait for its end."""
    child = runner.spawn(fn, *args)
    await runner.settle()
    child.cancel()
    with pytest.raises(runner.ChildCancelled):
        await child.join()


@pytest.mark.parametrize("depth", [0, 20])
def test_cancelled_in_sync_code(runner, portal_kind, depth):
    log = []

    def sync():
        try:
            await_(runner.sleep_forever())
        except runner.cancelled_exc:
            log.append("sync code")
            raise

    async def body():
        try:
            await portal_kind(dive, depth, sync)
        except runner.cancelled_exc:
            log.append("task")
            raise

    async def main():
        await cancelled_child(runner, body)

    runner.run(main)
    assert log == ["sync code", "task"]


def test_clean_up_that_awaits(runner, portal_kind):
    log = []

    def sync():
        try:
            try:
                await_(runner.sleep_forever())
            except runner.cancelled_exc:
                with runner.cleanup_shield():
                    log.append(await_(echo(runner, "except")))
                raise
        finally:
            with runner.cleanup_shield():
                log.append(await_(echo(runner, "finally")))

    async def main():
        await cancelled_child(runner, portal_kind, sync)

    runner.run(main)
    assert log == ["except", "finally"]


def test_clean_up_in_each_frame(runner):
    """Frames on both sides of nested await_ calls unwind in order."""
    log = []

    async def level(n):
        try:
            if n:
                sync(n - 1)
            await runner.sleep_forever()
        finally:
            with runner.cleanup_shield():
                await runner.checkpoint()
                log.append(f"async {n}")

    def sync(n):
        try:
            await_(level(n))
        finally:
            with runner.cleanup_shield():
                await_(runner.checkpoint())
                log.append(f"sync {n}")

    async def main():
        await cancelled_child(runner, with_portal_run_sync, sync, 2)

    runner.run(main)
    assert log == [f"{kind} {n}" for n in range(3) for kind in ("async", "sync")]


def test_cancelled_through_c_frames(runner):
    log = []

    def key(n):
        try:
            await_(runner.sleep_forever())
        finally:
            log.append(n)

    def generator():
        try:
            yield sorted([1], key=key)
        finally:
            log.append("generator")

    async def main():
        await cancelled_child(runner, with_portal_run_sync, list, generator())
        await cancelled_child(runner, with_portal_run_sync, lambda: list(map(key, [2])))

    runner.run(main)
    assert log == [1, "generator", 2]


def test_timeout_around_sync_code(runner, portal_kind):
    async def main():
        for _ in range(3):
            with pytest.raises(runner.timeout_exc):
                async with runner.timeout(0):
                    await portal_kind(lambda: await_(runner.sleep_forever()))
            assert (
                await portal_kind(lambda: await_(echo(runner, "went on"))) == "went on"
            )

    runner.run(main)


def test_timeout_in_sync_code(runner, portal_kind):
    def sync():
        results = []
        for secs in 0, None:
            try:
                with async_context(runner.timeout(secs)):
                    if secs is None:
                        results.append(await_(echo(runner, "in time")))
                    else:
                        await_(runner.sleep_forever())
            except runner.timeout_exc:
                results.append(await_(echo(runner, "timed out")))
        return results

    async def main():
        return await portal_kind(sync)

    assert runner.run(main) == ["timed out", "in time"]


def test_nested_timeouts(runner):
    def sync():
        with async_context(runner.timeout(None)):
            with pytest.raises(runner.timeout_exc):
                with async_context(runner.timeout(0)):
                    with async_context(runner.timeout(None)):
                        await_(runner.sleep_forever())
            assert await_(echo(runner, "outer goes on")) == "outer goes on"

    runner.run_sync(sync)


def test_timeout_in_awaited_code(runner):
    async def awaited():
        with pytest.raises(runner.timeout_exc):
            async with runner.timeout(0):
                await runner.sleep_forever()
        return await echo(runner, "went on")

    assert runner.run_sync(lambda: await_(awaited())) == "went on"


def test_one_cancelled_others_not(runner):
    async def main():
        proceed = runner.Event()

        def sync(n):
            await_(proceed.wait())
            return await_(echo(runner, n))

        children = [
            runner.spawn(with_portal_run_sync, dive, n, functools.partial(sync, n))
            for n in range(10)
        ]
        await runner.settle()
        for child in children[::2]:
            child.cancel()
        await runner.settle()
        proceed.set()
        for n, child in enumerate(children):
            if n % 2 == 0:
                with pytest.raises(runner.ChildCancelled):
                    await child.join()
            else:
                assert await child.join() == n

    runner.run(main)


def test_cancelled_before_it_suspends(runner):
    """A cancellation that comes while sync code runs counts at its next await_."""

    async def main():
        log = []

        def sync():
            child.cancel()
            log.append(await_(nothing()))
            await_(runner.checkpoint())
            log.append("not reached")

        async def nothing():
            return "does not suspend"

        async def body():
            await ensure_portal()
            await start.wait()
            sync()

        start = runner.Event()
        child = runner.spawn(body)
        await runner.settle()
        start.set()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == ["does not suspend"]

    runner.run(main)


def test_cancelled_by_awaited_code(runner):
    """A task that cancels itself from code which await_ drives."""

    async def main():
        async def cancel():
            child.cancel()
            await runner.checkpoint()

        async def body():
            await ensure_portal()
            await start.wait()
            await_(cancel())

        start = runner.Event()
        child = runner.spawn(body)
        await runner.settle()
        start.set()
        with pytest.raises(runner.ChildCancelled):
            await child.join()

    runner.run(main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_portal_bestowed_around_the_cancellation(runner, when):
    async def main():
        log = []

        async def body():
            try:
                await runner.sleep_forever()
            finally:
                log.append(has_portal())
                with runner.cleanup_shield():
                    log.append(await_(echo(runner, "clean-up")))

        child = runner.spawn(body)
        await runner.settle()
        if when == "before":
            bestow_portal(child.task)
        child.cancel()
        if when == "after":
            bestow_portal(child.task)
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == [True, "clean-up"]

    runner.run(main)


# --- asyncio only


def test_suppressed_cancellation(asyncio_runner):
    async def main():
        log = []

        def sync():
            for n in range(3):
                try:
                    await_(asyncio_runner.sleep_forever())
                except asyncio.CancelledError as exc:
                    log.append((n, exc.args))
                    asyncio.current_task().uncancel()
            return await_(asyncio.sleep(0, "result"))

        child = asyncio_runner.spawn(with_portal_run_sync, sync)
        for n in range(3):
            await asyncio_runner.settle()
            child.task.cancel(f"message {n}")
        assert await child.join() == "result"
        assert log == [(n, (f"message {n}",)) for n in range(3)]
        assert child.task.cancelling() == 0

    asyncio_runner.run(main)


def test_cancel_reaches_what_is_awaited(asyncio_runner):
    """The future or task that a cancelled await_ waits for is cancelled too."""

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        task = loop.create_task(asyncio_runner.sleep_forever())
        gathered = [loop.create_task(asyncio_runner.sleep_forever()) for _ in range(2)]
        for waited in future, task, asyncio.gather(*gathered):
            await cancelled_child(asyncio_runner, with_portal_run_sync, await_, waited)
            assert waited.done()
        assert future.cancelled()
        assert task.cancelled()
        assert all(task.cancelled() for task in gathered)

    asyncio_runner.run(main)


def test_asyncio_shield(asyncio_runner):
    async def main():
        loop = asyncio.get_running_loop()
        inner = loop.create_future()

        def sync():
            try:
                await_(asyncio.shield(inner))
            except asyncio.CancelledError:
                return await_(inner)

        child = asyncio_runner.spawn(with_portal_run_sync, sync)
        await asyncio_runner.settle()
        child.cancel()
        await asyncio_runner.settle()
        assert not inner.cancelled()
        inner.set_result("survived")
        assert await child.join() == "survived"

    asyncio_runner.run(main)


def test_wait_for_and_timeout_at(asyncio_runner):
    def sync():
        with pytest.raises(TimeoutError):
            await_(asyncio.wait_for(asyncio_runner.sleep_forever(), 0))
        with pytest.raises(TimeoutError):
            await_(asyncio.wait_for(sync_below(), 0.001))
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            with async_context(asyncio.timeout_at(loop.time())):
                await_(asyncio_runner.sleep_forever())
        assert asyncio.current_task().cancelling() == 0
        return await_(asyncio.wait_for(asyncio.sleep(0, "in time"), 60))

    async def sync_below():
        return await with_portal_run_sync(
            lambda: await_(asyncio_runner.sleep_forever())
        )

    assert asyncio_runner.run_sync(sync) == "in time"


def test_task_group(asyncio_runner):
    """A failing task cancels its siblings and the parent, both in sync code."""
    log = []

    def waits(name):
        try:
            await_(asyncio_runner.sleep_forever())
        finally:
            log.append(await_(asyncio.sleep(0, name)))

    def fails():
        await_(asyncio.sleep(0))
        raise KeyError("failed")

    def sync():
        with async_context(asyncio.TaskGroup()) as group:
            group.create_task(with_portal_run_sync(waits, "sibling"))
            group.create_task(with_portal_run_sync(fails))
            waits("parent")

    with pytest.raises(ExceptionGroup) as caught:
        asyncio_runner.run_sync(sync)
    assert [repr(exc) for exc in caught.value.exceptions] == ["KeyError('failed')"]
    assert sorted(log) == ["parent", "sibling"]


def test_loop_shutdown_cancels_what_is_left(asyncio_runner):
    """asyncio.run cancels remaining tasks: they clean up with await_."""
    log = []

    def sync(n):
        try:
            await_(asyncio_runner.sleep_forever())
        finally:
            log.append(await_(asyncio.sleep(0, n)))

    async def main():
        children = [
            asyncio_runner.spawn(with_portal_run_sync, sync, n) for n in range(3)
        ]
        await asyncio_runner.settle()
        return children

    asyncio_runner.run(main)
    assert sorted(log) == [0, 1, 2]


# --- Trio only


def test_trio_scopes_in_sync_code(trio_runner):
    trio = trio_runner.trio

    def sync():
        with trio.move_on_after(0) as scope:
            await_(trio.sleep_forever())
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0):
                await_(trio.sleep_forever())
        with trio.CancelScope() as outer:
            outer.cancel()
            with trio.CancelScope(shield=True):
                assert await_(echo(trio_runner, "shielded")) == "shielded"
            for _ in range(3):  # cancelled again each time
                with pytest.raises(trio.Cancelled):
                    await_(trio.sleep(0))
            await_(trio.lowlevel.cancel_shielded_checkpoint())
            await_(trio.sleep_forever())
            raise AssertionError
        assert outer.cancelled_caught
        return await_(echo(trio_runner, "went on"))

    assert trio_runner.run_sync(sync) == "went on"


def test_trio_nursery_in_sync_code(trio_runner):
    trio = trio_runner.trio
    log = []

    def waits(name):
        try:
            await_(trio.sleep_forever())
        finally:
            with trio.CancelScope(shield=True):
                log.append(await_(echo(trio_runner, name)))

    def sync():
        with async_context(trio.open_nursery()) as nursery:
            nursery.start_soon(with_portal_run_sync, waits, "child")
            await_(trio.testing.wait_all_tasks_blocked())
            nursery.cancel_scope.cancel()
            waits("parent")

    trio_runner.run_sync(sync)
    assert sorted(log) == ["child", "parent"]


# --- tasks that are closed or dropped


@types.coroutine
def trap(value):
    return (yield value)


def suspended(log, *, catch=(), then=None):
    """A coroutine suspended in await_, which puts into `log` what happens to it."""

    async def awaited():
        try:
            await trap("first")
        except BaseException as exc:
            log.append(f"awaited code: {type(exc).__name__}")
            raise
        finally:
            log.append("awaited code: finally")

    def sync():
        try:
            await_(awaited())
        except catch:
            log.append("swallowed")
        except BaseException as exc:
            log.append(f"sync code: {type(exc).__name__}")
            raise
        finally:
            log.append("sync code: finally")
            if then is not None:
                then()
        return "result"

    coro = with_portal_run_sync(sync)
    assert coro.send(None) == "first"
    return coro


ORDERLY_END = [
    "awaited code: GeneratorExit",
    "awaited code: finally",
    "sync code: GeneratorExit",
    "sync code: finally",
]


def test_closed_while_suspended():
    log = []
    coro = suspended(log)
    coro.close()
    assert log == ORDERLY_END
    coro.close()
    assert log == ORDERLY_END
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        coro.send(None)


def test_dropped_while_suspended():
    log = []
    coro = suspended(log)
    gc.disable()
    try:
        del coro
        assert log == ORDERLY_END
    finally:
        gc.enable()


def test_dropped_at_various_depths():
    def waits(log):
        try:
            await_(trap(1))
        finally:
            log.append(1)

    async def natively(fn, *args):
        return await fn(*args)

    async def in_portal(log):
        dive(7, lambda: waits(log))

    async def nested(log):
        await_(in_portal(log))

    makers = [
        lambda log: with_portal_run_sync(waits, log),
        lambda log: with_portal_run(in_portal, log),
        lambda log: with_portal_run(nested, log),
        lambda log: natively(with_portal_run_sync, dive, 30, lambda: waits(log)),
        lambda log: with_portal_run_sync(list, map(waits, [log])),
    ]
    gc.disable()
    try:
        for _ in range(3):
            for make in makers:
                log = []
                coro = make(log)
                coro.send(None)
                assert log == []
                del coro
                assert log == [1]
    finally:
        gc.enable()


def test_many_dropped_in_any_order():
    log = []
    coros = {}

    def waits(n):
        try:
            await_(trap(n))
        finally:
            log.append(n)

    for n in range(30):
        coros[n] = with_portal_run_sync(dive, n, functools.partial(waits, n))
        coros[n].send(None)
    order = [n * 7 % 30 for n in range(30)]
    for n in order:
        del coros[n]
    assert log == order


def test_dropped_by_a_task(runner):
    """The task which drops it has a portal of its own and uses it afterwards."""
    log = []

    async def main():
        coro = suspended(log)
        await runner.checkpoint()
        del coro
        assert log == ORDERLY_END
        await ensure_portal()
        assert await_(echo(runner, "unharmed")) == "unharmed"

    runner.run(main)


def test_dropped_while_an_exception_is_handled():
    log = []
    coro = suspended(log)
    try:
        raise KeyError("handled")
    except KeyError as exc:
        error = exc
        del coro
        assert log == ORDERLY_END
        assert error.__context__ is None
        with pytest.raises(KeyError):
            raise


def test_clean_up_without_suspension_while_closing():
    """await_ goes on working in a coroutine that is being closed."""
    log = []

    async def at_once():
        return "awaited in clean-up"

    coro = suspended(log, then=lambda: log.append(await_(at_once())))
    coro.close()
    assert log == [*ORDERLY_END, "awaited in clean-up"]

    log.clear()
    coro = suspended(log, then=lambda: log.append(await_(at_once())))
    del coro
    assert log == [*ORDERLY_END, "awaited in clean-up"]


def test_clean_up_that_suspends_while_closing(strays):
    """As natively, a coroutine must not yield when it is closed."""
    log = []
    coro = suspended(log, then=lambda: await_(trap("second")))
    with pytest.raises(RuntimeError, match="coroutine ignored GeneratorExit"):
        coro.close()
    with pytest.raises(GeneratorExit):
        coro.send("answer")

    coro = suspended(log, then=lambda: await_(trap("second")))
    assert strays == []
    del coro
    gc.collect()
    assert len(strays) == 1
    assert "coroutine ignored GeneratorExit" in strays[0]
    strays.clear()


def test_portal_outlives_a_close_that_is_ignored():
    """A task that goes on after close() of its coroutine goes on with its portal."""

    async def stubborn():
        try:
            await asyncio.sleep(0)
        except GeneratorExit:
            pass
        await asyncio.sleep(0)
        return await_(asyncio.sleep(0, "result"))

    async def main():
        task = asyncio.create_task(stubborn())
        bestow_portal(task)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            task.get_coro().close()
        assert has_portal(task)
        return await task

    assert asyncio.run(main()) == "result"


def test_swallowed_while_closing():
    """Sync code may swallow GeneratorExit and return, like a coroutine."""
    log = []
    coro = suspended(log, catch=GeneratorExit)
    coro.close()
    assert log == [
        "awaited code: GeneratorExit",
        "awaited code: finally",
        "swallowed",
        "sync code: finally",
    ]


def test_error_while_closing(strays):
    def fails():
        raise KeyError("clean-up failed")

    coro = suspended([], then=fails)
    with pytest.raises(KeyError, match="clean-up failed"):
        coro.close()

    coro = suspended([], then=fails)
    del coro
    assert len(strays) == 1
    assert "KeyError('clean-up failed')" in strays[0]
    strays.clear()


def test_error_instead_of_generator_exit():
    """throw() of anything ends the task in an orderly way."""
    log = []
    coro = suspended(log)
    with pytest.raises(KeyError):
        coro.throw(KeyError("thrown"))
    assert log == [line.replace("GeneratorExit", "KeyError") for line in ORDERLY_END]


@pytest.mark.parametrize("resumed_at", [0, 3, 100])
@pytest.mark.parametrize("cancelled_at", [0, 50])
def test_await_while_handling_a_throw(cancelled_at, resumed_at):
    """What was thrown passes coroutines that wait; they go on below another loop's frames."""
    seen = []

    async def inner():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await_(future)

    async def main():
        await greenback.ensure_portal()
        await inner()
        frame = sys._getframe()
        while frame is not None:
            seen.append(frame.f_code.co_name)
            frame = frame.f_back
        await_(asyncio.sleep(0))

    def deeper(depth, fn):
        return deeper(depth - 1, fn) if depth else fn()

    def spin():
        loop.run_until_complete(asyncio.sleep(0))

    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        task = loop.create_task(main())
        for _ in range(3):
            spin()
        task.cancel()
        deeper(cancelled_at, spin)
        future.set_result(None)
        for _ in range(3):
            deeper(resumed_at, spin)
        assert task.result() is None
    finally:
        loop.close()
    if greenback.engine == "direct":  # the frames of the other one end at its worker
        assert seen.count("deeper") == resumed_at + 1
