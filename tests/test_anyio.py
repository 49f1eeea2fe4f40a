"""AnyIO on both of its back ends, with portals in its tasks."""

from __future__ import annotations

import sys

import pytest

import greenback

anyio = pytest.importorskip("anyio")

BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=BACKENDS)
def run(request):
    """Give a function that runs an async function on one of the back ends."""
    backend, options = request.param
    pytest.importorskip("uvloop" if options else backend)
    return lambda fn, *args: anyio.run(
        fn, *args, backend=backend, backend_options=options
    )


def wait(seconds=0):
    """Suspend from sync code."""
    greenback.await_(anyio.sleep(seconds))


def test_ensure_portal(run):
    """await_ works in a task that AnyIO started."""

    async def main():
        await greenback.ensure_portal()
        wait()
        return greenback.await_(anyio.to_thread.run_sync(lambda: 7))

    assert run(main) == 7


def test_task_group(run):
    """Tasks of a task group have portals of their own; with_portal_run fits."""
    results = []

    async def ensured(number):
        await greenback.ensure_portal()
        wait()
        results.append(number)

    async def scoped(number):
        wait()
        results.append(number)

    def sync(number):
        wait()
        results.append(number)

    async def plain():
        await anyio.sleep(0)
        assert not greenback.has_portal()
        results.append("plain")

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(ensured, 1)
            group.start_soon(greenback.with_portal_run, scoped, 2)
            group.start_soon(greenback.with_portal_run_sync, sync, 3)
            group.start_soon(plain)

    run(main)
    assert sorted(results, key=str) == [1, 2, 3, "plain"]


def test_start(run):
    """TaskGroup.start() works with a task that gets a portal."""

    async def service(*, task_status):
        await greenback.ensure_portal()
        wait()
        task_status.started("value")
        wait()

    async def main():
        async with anyio.create_task_group() as group:
            return await group.start(service)

    assert run(main) == "value"


def test_task_group_in_sync_code(run):
    """A task group is entered, used and left from sync code."""
    results = []

    async def child(number):
        await anyio.sleep(0)
        results.append(number)

    def sync():
        with greenback.async_context(anyio.create_task_group()) as group:
            for number in range(3):
                group.start_soon(child, number)
            wait()
        return sorted(results)

    async def main():
        return await greenback.with_portal_run_sync(sync)

    assert run(main) == [0, 1, 2]


@pytest.mark.parametrize("place", ["in the portal", "around it"])
def test_cancel_scopes(run, place):
    """Cancel scopes work across await_, inside and outside of the sync code."""
    log = []

    def sync():
        try:
            greenback.await_(anyio.sleep_forever())
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                wait()
                log.append("clean-up")
            raise

    async def main():
        await greenback.ensure_portal()
        if place == "in the portal":

            def scoped():
                with anyio.move_on_after(0.01) as scope:
                    sync()
                return scope

            scope = scoped()
        else:
            with anyio.move_on_after(0.01) as scope:
                await greenback.with_portal_run_sync(sync)
        assert scope.cancelled_caught
        wait()
        log.append("after")

    run(main)
    assert log == ["clean-up", "after"]


def test_fail_after(run):
    """fail_after() in sync code raises TimeoutError."""

    def sync():
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            greenback.await_(anyio.sleep_forever())
        return "fine"

    async def main():
        return await greenback.with_portal_run_sync(sync)

    assert run(main) == "fine"


def test_group_cancelled(run):
    """Cancelling a group reaches its tasks in await_, before and in their first step."""
    log = []

    async def waiting():
        await greenback.ensure_portal()
        try:
            greenback.await_(anyio.sleep_forever())
        finally:
            log.append("unwound")

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(waiting)
            group.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(waiting)
            group.cancel_scope.cancel()

    run(main)
    assert log == ["unwound"] * 2


def test_task_info(run):
    """get_current_task() and get_running_tasks() give the user's names."""

    async def observed(gate, set_up):
        await set_up()
        here = anyio.get_current_task()
        seen.append((here.name, here.id, here.parent_id))
        await gate.wait()

    async def in_await(gate, set_up):
        await set_up()
        here = anyio.get_current_task()
        seen.append((here.name, here.id, here.parent_id))
        greenback.await_(gate.wait())

    async def main(set_up):
        gate = anyio.Event()
        own = anyio.get_current_task()
        async with anyio.create_task_group() as group:
            group.start_soon(observed, gate, set_up, name="first")
            group.start_soon(observed, gate, set_up)
            if set_up is greenback.ensure_portal:
                group.start_soon(in_await, gate, set_up, name="third")
            await anyio.wait_all_tasks_blocked()
            tasks = {task.id: task for task in anyio.get_running_tasks()}
            assert own.id in tasks
            for name, identity, parent in seen:
                assert parent == own.id
                task = tasks[identity]
                assert task.name == name
                assert task.parent_id == parent
                if hasattr(task, "has_pending_cancellation"):
                    assert not task.has_pending_cancellation()
            gate.set()
        names = sorted(entry[0] for entry in seen)
        seen.clear()
        return names

    seen = []
    native = run(main, anyio.lowlevel.checkpoint)
    assert run(main, greenback.ensure_portal) == sorted([*native, "third"])


def test_wait_all_tasks_blocked(run):
    """Tasks suspended in await_ count as blocked, running ones do not."""
    log = []

    async def busy():
        await greenback.ensure_portal()
        for _ in range(10):
            wait()
        log.append("busy")
        greenback.await_(anyio.sleep_forever())

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(busy)
            await anyio.wait_all_tasks_blocked()
            log.append("blocked")
            group.cancel_scope.cancel()

    run(main)
    assert log == ["busy", "blocked"]


def test_pending_cancellation(run):
    """TaskInfo.has_pending_cancellation() is right in and out of await_."""

    async def main(set_up):
        await set_up()
        task = anyio.get_current_task()
        if not hasattr(task, "has_pending_cancellation"):
            pytest.skip("this AnyIO has no TaskInfo.has_pending_cancellation()")
        seen = [task.has_pending_cancellation()]
        with anyio.CancelScope() as scope:
            scope.cancel()
            seen.append(task.has_pending_cancellation())
        return seen

    native = run(main, anyio.lowlevel.checkpoint)
    assert run(main, greenback.ensure_portal) == native == [False, True]


def test_streams_and_locks(run):
    """Memory streams, locks and conditions are used from sync code."""

    def producer(stream, lock):
        with greenback.async_context(stream):
            for number in range(5):
                with greenback.async_context(lock):
                    square = number**2
                greenback.await_(stream.send(square))

    def consumer(stream, lock):
        received = []
        with greenback.async_context(stream):
            for number in greenback.async_iter(stream):
                with greenback.async_context(lock):
                    received.append(number)
        return received

    async def main():
        lock = anyio.Lock()
        send, receive = anyio.create_memory_object_stream(0)
        async with anyio.create_task_group() as group:
            group.start_soon(greenback.with_portal_run_sync, producer, send, lock)
            return await greenback.with_portal_run_sync(consumer, receive, lock)

    assert run(main) == [0, 1, 4, 9, 16]


def test_from_thread(run):
    """A thread calls back into the loop, where await_ finds a portal or says no.

    In the thread itself await_ works, by way of the task that waits for it.
    """

    def in_loop():
        return greenback.has_portal()

    async def in_loop_async():
        return await greenback.with_portal_run_sync(wait)

    def in_thread():
        assert greenback.has_portal()
        anyio.from_thread.run(in_loop_async)
        return anyio.from_thread.run_sync(in_loop)

    async def main():
        await greenback.ensure_portal()
        return greenback.await_(anyio.to_thread.run_sync(in_thread))

    assert run(main) in (True, False)


def test_blocking_portal(run):
    """AnyIO's own portal for threads runs functions with our portals."""

    async def use():
        await greenback.ensure_portal()
        wait()
        return "used"

    def in_thread(portal):
        return portal.call(use), portal.call(greenback.with_portal_run_sync, int, "5")

    async def main():
        async with anyio.from_thread.BlockingPortal() as portal:
            return await anyio.to_thread.run_sync(in_thread, portal)

    assert run(main) == ("used", 5)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_factory():
    """AnyIO works on asyncio's eager tasks with portals."""
    import asyncio

    results = []

    async def child(number):
        await greenback.ensure_portal()
        with anyio.move_on_after(60):
            wait()
        results.append(number)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await greenback.ensure_portal()
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(child, number)
            wait()

    asyncio.run(main())
    assert sorted(results) == [0, 1, 2]
