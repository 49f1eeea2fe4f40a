"""Portals for a task and those it starts, on asyncio; the task factory."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Coroutine

import pytest

import greenback
from greenback import (
    await_,
    bestow_portal,
    ensure_portal,
    has_portal,
    portal_task_factory,
    portals_for_children,
    portals_for_tree,
    with_portal_run,
    with_portal_run_tree,
)

HAVE_EAGER = sys.version_info >= (3, 12)
needs_eager = pytest.mark.skipif(
    not HAVE_EAGER, reason="eager tasks came with Python 3.12"
)
needs_eager_start = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="create_task(eager_start=) came with Python 3.14"
)


async def echo(value):
    await asyncio.sleep(0)
    return value


def make_task(*args, **kwds):
    return asyncio.get_running_loop().create_task(*args, **kwds)


def check_portal():
    """Tell whether this task has a portal, by all means at once."""
    here = has_portal()
    assert has_portal(asyncio.tasks.current_task()) == here
    if here:
        assert await_(echo(1)) == 1
    else:
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            await_(echo(1))
    return here


class Family:
    """Starts tasks and notes whether they have a portal in their first step."""

    def __init__(self):
        self.portals = {}

    async def member(self, name="member", depth=0):
        self.portals[name] = check_portal()
        await asyncio.sleep(0)
        assert has_portal() == self.portals[name]
        if depth:
            await asyncio.gather(
                *(self.member(f"{name}.{n}", depth - 1) for n in range(2))
            )
        return name

    async def start(self, name="child", depth=0, **kwds):
        loop = asyncio.get_running_loop()
        return await loop.create_task(self.member(name, depth), **kwds)

    async def start_after(self, event):
        await event.wait()
        return await self.start("late")

    def take(self):
        """Return the one answer of all members since the last time."""
        portals, self.portals = self.portals, {}
        (answer,) = set(portals.values())
        return answer


@pytest.fixture
def family():
    return Family()


@pytest.fixture
def tree_left_open():
    """The test leaves a tree open on purpose."""


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, request):
    """Each event loop that is closed in the test is as it was made."""
    loops = []
    close = asyncio.Runner.close

    def close_and_note(runner):
        loop = runner._loop
        if loop is not None:
            loops.append((type(loop).__name__, sorted(getattr(loop, "__dict__", ()))))
        close(runner)

    monkeypatch.setattr(asyncio.Runner, "close", close_and_note)
    yield
    for name, attributes in loops:
        if "tree_left_open" in request.fixturenames:
            break
        assert "create_task" not in attributes, name


def tree_variables():
    return [var for var in contextvars.copy_context() if "greenback" in var.name]


# --- ways to start a task


async def by_create_task(coro):
    return await asyncio.create_task(coro)


async def by_loop_create_task(coro):
    return await asyncio.get_running_loop().create_task(coro)


async def by_ensure_future(coro):
    return await asyncio.ensure_future(coro)


async def by_gather(coro):
    return (await asyncio.gather(coro, echo(1)))[0]


async def by_wait(coro):
    done, _ = await asyncio.wait([asyncio.create_task(coro)])
    return done.pop().result()


async def by_shield(coro):
    return await asyncio.shield(coro)


async def by_as_completed(coro):
    for first in asyncio.as_completed([coro]):
        return await first


async def by_task_group(coro):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(coro)
    return task.result()


async def by_wait_for_a_task(coro):
    return await asyncio.wait_for(asyncio.ensure_future(coro), 30)


async def by_callback(coro):
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def callback():
        task = loop.create_task(coro)
        task.add_done_callback(lambda task: future.set_result(task.result()))

    loop.call_soon(callback)
    return await future


async def by_timer(coro):
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def callback():
        task = loop.create_task(coro)
        task.add_done_callback(lambda task: future.set_result(task.result()))

    loop.call_later(0, callback)
    return await future


async def by_thread(coro):
    """asyncio.to_thread() takes the context along."""
    loop = asyncio.get_running_loop()

    def work():
        return asyncio.run_coroutine_threadsafe(coro, loop).result(30)

    return await asyncio.to_thread(work)


async def by_context_run(coro):
    context = contextvars.copy_context()
    return await context.run(asyncio.get_running_loop().create_task, coro)


async def by_keyword(coro):
    return await asyncio.get_running_loop().create_task(coro=coro, name="name")


async def by_sync_code(coro):
    """Start it from code that itself awaits."""

    def sync():
        return await_(asyncio.ensure_future(coro))

    return await with_portal_run(in_coroutine, sync)


async def in_coroutine(fn):
    return fn()


async def by_anyio(coro):
    anyio = pytest.importorskip("anyio")
    results = []

    async def task():
        results.append(await coro)

    async with anyio.create_task_group() as group:
        group.start_soon(task)
    return results[0]


async def by_anyio_start(coro):
    anyio = pytest.importorskip("anyio")
    results = []

    async def task(*, task_status):
        results.append(await coro)
        task_status.started()

    async with anyio.create_task_group() as group:
        await group.start(task)
    return results[0]


WAYS = [
    by_create_task,
    by_loop_create_task,
    by_ensure_future,
    by_gather,
    by_wait,
    by_shield,
    by_as_completed,
    by_task_group,
    by_wait_for_a_task,
    by_callback,
    by_timer,
    by_thread,
    by_context_run,
    by_keyword,
    by_sync_code,
    by_anyio,
    by_anyio_start,
]


def ways_of(runner):
    """Leave out what can't be used there."""
    if runner.id == "asyncio-pytask" and sys.version_info >= (3, 14):
        # AnyIO has the C tasks' current_task(), which knows no others any more.
        return [way for way in WAYS if way not in (by_anyio, by_anyio_start)]
    return WAYS


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_start_a_task(asyncio_runner, family, way):
    if asyncio_runner.eager and way in (by_anyio, by_anyio_start):
        pytest.skip("AnyIO makes tasks past the loop then")
    if way not in ways_of(asyncio_runner):
        pytest.skip("AnyIO does not know these tasks")

    async def main():
        assert await way(family.member("before", 1)) == "before"
        assert not family.take()
        with portals_for_children():
            assert await way(family.member("inside", 2)) == "inside"
            assert len(family.portals) == 7
            assert family.take()
            assert not has_portal()
        assert await way(family.member("after", 1)) == "after"
        assert not family.take()

    asyncio_runner.run(main)


def test_what_is_no_task_is_not_concerned(asyncio_runner, family):
    async def main():
        with portals_for_children():
            await family.member()
            assert not family.take()
            async with asyncio.timeout(30):
                await family.member()
            assert not family.take()
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            loop.call_soon(lambda: future.set_result(has_portal()))
            assert await future is False

    asyncio_runner.run(main)


def test_a_callback_from_outside_stays_outside(asyncio_runner, family):
    """What decides is the context of the callback, not when it runs."""

    async def main():
        loop = asyncio.get_running_loop()
        tasks = []

        def callback():
            tasks.append(loop.create_task(family.member()))

        loop.call_soon(callback)
        with portals_for_children():
            await asyncio.sleep(0)
            await tasks.pop()
            assert not family.take()
            outside = contextvars.Context()
            loop.call_soon(callback, context=outside)
            await asyncio.sleep(0)
            await tasks.pop()
            assert not family.take()
            loop.call_soon(callback)
            await asyncio.sleep(0)
            await tasks.pop()
            assert family.take()

    asyncio_runner.run(main)


def test_a_plain_thread_is_outside(asyncio_runner, family):
    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            future = loop.create_future()

            def work():
                context = contextvars.Context()  # threads may inherit one
                done = context.run(
                    asyncio.run_coroutine_threadsafe, family.member(), loop
                )
                done.add_done_callback(
                    lambda done: loop.call_soon_threadsafe(future.set_result, 1)
                )

            thread = threading.Thread(target=work)
            thread.start()
            await future
            thread.join()
            assert not family.take()

    asyncio_runner.run(main)


# --- with_portal_run_tree


def test_run_tree(asyncio_runner, family):
    async def tree(a, *, b):
        assert await_(echo(a)) == a
        await family.start("child", depth=2)
        assert await_(echo(b)) == b
        return a + b

    async def main():
        assert await with_portal_run_tree(tree, 1, b=2) == 3
        assert not has_portal()
        assert len(family.portals) == 7
        assert family.take()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_run_tree_as_a_whole_run(asyncio_runner, family):
    async def main():
        await family.member("main", depth=2)
        return "result"

    assert asyncio_runner.run(with_portal_run_tree, main) == "result"
    assert len(family.portals) == 7
    assert family.take()


def test_run_tree_is_no_schedule_point(asyncio_runner):
    async def at_once():
        return "value"

    async def main():
        with pytest.raises(StopIteration) as stop:
            with_portal_run_tree(at_once).send(None)
        assert stop.value.value == "value"

    asyncio_runner.run(main)


@pytest.mark.parametrize("cause", ["error", "cancel", "close"])
def test_run_tree_that_ends_abnormally(asyncio_runner, family, cause):
    async def tree():
        await family.start("inside")
        assert family.take()
        if cause == "error":
            raise KeyError
        await asyncio.sleep(3600)

    async def main():
        if cause == "error":
            with pytest.raises(KeyError):
                await with_portal_run_tree(tree)
        elif cause == "cancel":
            task = asyncio.create_task(with_portal_run_tree(tree))
            while family.portals or not has_tree():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:

            async def awaits_nothing():
                await asyncio.sleep(0)

            coro = with_portal_run_tree(awaits_nothing)
            coro.send(None)
            assert has_tree()
            coro.close()
        assert not has_tree()
        assert not tree_variables()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def has_tree():
    return "create_task" in vars(asyncio.get_running_loop())


def test_run_tree_in_a_task_with_a_portal(asyncio_runner, family):
    async def main():
        await ensure_portal()
        await family.start("before")
        assert not family.take()
        await with_portal_run_tree(family.start, "inside")
        assert family.take()
        assert check_portal()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_two_trees_in_one_run(asyncio_runner, family):
    """The one that ends first does not disturb the other."""

    async def tree(name, proceed):
        await family.start(f"{name} early")
        await proceed.wait()
        await family.start(f"{name} late")

    async def main():
        events = {name: asyncio.Event() for name in "ab"}
        tasks = {
            name: asyncio.create_task(with_portal_run_tree(tree, name, event))
            for name, event in events.items()
        }
        await asyncio_runner.settle()
        assert family.take()
        for name in "ab":
            await family.start("unrelated")
            assert not family.take()
            events[name].set()
            await tasks[name]
            assert family.take()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_a_tree_in_a_task_of_a_tree(asyncio_runner, family):
    async def inner():
        await family.start("inner")
        raise KeyError

    async def outer():
        with pytest.raises(KeyError):
            await asyncio.create_task(with_portal_run_tree(inner))
        assert family.take()
        await family.start("outer", depth=1)
        assert family.take()

    async def main():
        await with_portal_run_tree(outer)
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


# --- portals_for_children


def test_nested(asyncio_runner, family):
    async def main():
        with portals_for_children():
            with portals_for_children():
                await family.start("inner")
                assert family.take()
            await family.start("between", depth=1)
            assert family.take()
        await family.start("after")
        assert not family.take()
        assert not tree_variables()

    asyncio_runner.run(main)


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_ended_in_any_order(asyncio_runner, family, order):
    async def main():
        trees = {}
        for name in "abc":
            trees[name] = portals_for_children()
            trees[name].__enter__()
        for name in order:
            await family.start("inside")
            assert family.take()
            trees.pop(name).__exit__(None, None, None)
        assert not tree_variables()
        assert not has_tree()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_children_outlive_the_context(asyncio_runner, family):
    """They keep their portals, what they start afterwards has none."""

    async def long_lived(proceed):
        await family.start_after(proceed)
        assert check_portal()
        assert not family.take()

    async def main():
        proceed = asyncio.Event()
        with portals_for_children():
            task = asyncio.create_task(long_lived(proceed))
            await asyncio_runner.settle()
        proceed.set()
        await task

    asyncio_runner.run(main)


def test_another_tree_does_not_revive_one(asyncio_runner, family):
    async def main():
        proceed = asyncio.Event()
        with portals_for_children():
            task = asyncio.create_task(family.start_after(proceed))
            await asyncio_runner.settle()
        with portals_for_children():
            proceed.set()
            await task
            assert not family.take()

    asyncio_runner.run(main)


def test_children_of_an_inner_tree_belong_to_the_outer(asyncio_runner, family):
    async def main():
        proceed = asyncio.Event()
        with portals_for_children():
            with portals_for_children():
                task = asyncio.create_task(family.start_after(proceed))
                await asyncio_runner.settle()
            proceed.set()
            await task
            assert family.take()

    asyncio_runner.run(main)


def test_left_in_another_task(asyncio_runner, family):
    """As fixtures do that are set up and torn down in tasks of their own."""

    async def enter(stack):
        stack.enter_context(portals_for_children())
        await family.start("of the one that entered")
        assert family.take()

    async def leave(stack):
        stack.close()

    async def main():
        stack = contextlib.ExitStack()
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        await loop.create_task(enter(stack), context=context)
        await family.start("of another")
        assert not family.take()
        await family.start("in the context", context=context)
        assert family.take()
        await loop.create_task(leave(stack))
        assert not has_tree()
        await family.start("in the context", context=context)
        assert not family.take()

    asyncio_runner.run(main)


def test_left_in_a_copy_of_the_context(asyncio_runner, family):
    async def leave(tree):
        tree.__exit__(None, None, None)
        await family.start("after")
        assert not family.take()

    async def main():
        tree = portals_for_children()
        tree.__enter__()
        await asyncio.create_task(leave(tree))
        assert not has_tree()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_dropped_without_an_end(asyncio_runner, family):
    async def main():
        tree = portals_for_children()
        tree.__enter__()
        await family.start("inside")
        assert family.take()
        del tree
        assert not has_tree()
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_refused_outside_of_a_task(asyncio_runner):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def callback():
            try:
                with portals_for_children():
                    future.set_result(None)
            except RuntimeError as error:
                future.set_exception(error)

        loop.call_soon(callback)
        with pytest.raises(RuntimeError, match="only supported when running under"):
            await future

    asyncio_runner.run(main)


def test_a_loop_that_takes_no_attributes():
    uvloop = pytest.importorskip("uvloop")

    async def main():
        with pytest.raises(RuntimeError, match="can't be given to the tasks of this"):
            with portals_for_children():
                raise AssertionError
        assert await asyncio.create_task(echo(1)) == 1

    with asyncio.Runner(loop_factory=uvloop.loop.Loop) as runner:
        assert not hasattr(runner.get_loop(), "__dict__")
        runner.run(main())


# --- portals_for_tree


def test_portals_for_tree(asyncio_runner, family):
    async def main():
        for _ in range(2):
            assert not has_portal()
            async with portals_for_tree() as value:
                assert value is None
                await family.member("self", depth=2)
                assert len(family.portals) == 7
                assert family.take()
            assert not check_portal()
            await family.start("after")
            assert not family.take()
        assert not tree_variables()

    asyncio_runner.run(main)


def test_portals_for_tree_nested(asyncio_runner, family):
    async def main():
        async with portals_for_tree():
            async with portals_for_tree():
                await family.member("inner", depth=1)
            assert check_portal()
            await family.member("outer", depth=1)
            assert family.take()
        assert not check_portal()

    asyncio_runner.run(main)


def test_portals_for_tree_in_a_task_with_a_portal(asyncio_runner, family):
    async def main():
        await ensure_portal()
        async with portals_for_tree():
            await family.member("self", depth=1)
            assert family.take()
        assert check_portal()
        with greenback.async_context(portals_for_tree()):
            await_(family.start("child"))
            assert family.take()
        assert check_portal()

    asyncio_runner.run(main)


def test_portals_for_tree_with_an_error(asyncio_runner, family):
    async def main():
        with pytest.raises(KeyError):
            async with portals_for_tree():
                assert check_portal()
                raise KeyError
        assert not check_portal()
        await family.start("after")
        assert not family.take()
        await ensure_portal()
        assert check_portal()

    asyncio_runner.run(main)


def test_portals_for_tree_is_a_schedule_point(asyncio_runner):
    async def main():
        loop = asyncio.get_running_loop()
        events = []
        loop.call_soon(events.append, "other")
        async with portals_for_tree():
            events.append("inside")
            loop.call_soon(events.append, "other")
        events.append("after")
        assert events == ["other", "inside", "other", "after"]

    asyncio_runner.run(main)


def test_portals_for_tree_is_no_cancellation_point(asyncio_runner):
    """A cancellation waits for the next await, and is counted once."""
    reached = []

    async def entering():
        task = asyncio.current_task()
        task.cancel("why")
        async with portals_for_tree():
            reached.append("inside")
            assert task.cancelling() == 1
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as exc:
                reached.append(exc.args)
                task.uncancel()
        reached.append("after")

    async def leaving():
        async with portals_for_tree():
            asyncio.current_task().cancel("why not")
        reached.append("after")
        assert asyncio.current_task().cancelling() == 1
        with pytest.raises(asyncio.CancelledError) as info:
            await asyncio.sleep(0)
        reached.append(info.value.args)

    async def main():
        await asyncio.create_task(entering())
        assert reached == ["inside", ("why",), "after"]
        reached.clear()
        task = asyncio.create_task(leaving())
        await asyncio.wait([task])
        assert reached == ["after", ("why not",)]

    asyncio_runner.run(main)


def test_portals_for_tree_and_timeouts(asyncio_runner, family):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                async with portals_for_tree():
                    await asyncio.sleep(3600)
        assert not check_portal()
        assert asyncio.current_task().cancelling() == 0
        with pytest.raises(ExceptionGroup):
            async with portals_for_tree(), asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(3600)
        assert not check_portal()

    async def fail():
        raise KeyError

    asyncio_runner.run(main)


def test_portals_for_tree_in_a_coroutine_that_is_closed(asyncio_runner):
    events = []

    async def tree():
        async with portals_for_tree():
            try:
                await asyncio.sleep(3600)
            finally:
                events.append("closed")

    async def main():
        task = asyncio.create_task(tree())
        await asyncio_runner.settle()
        coro = task.get_coro()
        task.cancel()  # or asyncio complains of a destroyed pending task
        coro.close()
        assert events == ["closed"]
        with pytest.raises(RuntimeError, match="already awaited"):
            await task
        assert not has_tree()

    asyncio_runner.run(main)


def test_portals_for_tree_in_an_async_generator(asyncio_runner, family):
    async def numbers():
        async with portals_for_tree():
            yield 1
            yield 2

    async def main():
        generator = numbers()
        assert await anext(generator) == 1
        await family.start("inside")
        assert family.take()
        await generator.aclose()
        await asyncio.sleep(0)  # no schedule point where a generator is closed
        assert not check_portal()
        assert not has_tree()
        # and one that is dropped: the loop closes it
        async for _ in numbers():
            break
        gc.collect()
        await asyncio_runner.settle()
        assert not has_tree()
        assert not check_portal()

    asyncio_runner.run(main)


# --- task factories


class Factory:
    """Notes what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, loop, coro, **kwds):
        self.calls.append((coro, kwds))
        return asyncio.tasks.Task(coro, loop=loop, **kwds)


@pytest.fixture(params=["asyncio", "uvloop"])
def any_loop(request):
    """The `run` of a plain runner."""

    def run(fn, *args):
        if request.param == "uvloop":
            loop_factory = pytest.importorskip("uvloop").new_event_loop
        else:
            loop_factory = None
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(fn(*args))

    return run


def test_factories_that_are_there_before(any_loop, family):
    async def main():
        loop = asyncio.get_running_loop()
        factory = Factory()
        loop.set_task_factory(factory)
        with portals_for_children():
            assert loop.get_task_factory() is factory
            await family.start("inside", depth=1)
            assert family.take()
            assert len(factory.calls) == 3
        assert loop.get_task_factory() is factory
        await family.start("after")
        assert not family.take()

    any_loop(main)


def test_factories_that_come_and_go(any_loop, family):
    async def main():
        loop = asyncio.get_running_loop()
        first, second = Factory(), Factory()
        with portals_for_children():
            for factory in (first, None, second, first, None):
                loop.set_task_factory(factory)
                assert loop.get_task_factory() is factory
                await family.start("inside")
                assert family.take()
            loop.set_task_factory(second)
            with portals_for_children():
                loop.set_task_factory(first)
            assert loop.get_task_factory() is first
        assert loop.get_task_factory() is first
        assert (len(first.calls), len(second.calls)) == (2, 1)
        loop.set_task_factory(None)

    any_loop(main)


def test_factories_get_what_they_get_without_a_tree(any_loop):
    async def main():
        loop = asyncio.get_running_loop()
        factory = Factory()
        loop.set_task_factory(factory)
        context = contextvars.copy_context()
        for kwds in ({}, {"name": "name"}, {"context": context}):
            outside = await loop.create_task(echo(1), **kwds)
            with portals_for_children():
                coro = echo(1)
                inside = await loop.create_task(coro, **kwds)
            assert inside == outside
            (_, expected), (got_coro, got) = factory.calls[-2:]
            assert got == expected
            assert got_coro is coro or got_coro.__wrapped__ is coro

    any_loop(main)


def test_a_factory_that_wraps_the_coroutine(any_loop):
    """The portal is in force in the wrapper, too."""
    seen = []

    async def wrapper(coro):
        await asyncio.sleep(0)
        seen.append(("before", check_portal()))
        try:
            return await coro
        finally:
            seen.append(("after", check_portal()))

    def factory(loop, coro, **kwds):
        return asyncio.Task(wrapper(coro), loop=loop, **kwds)

    async def task():
        seen.append(("inside", check_portal()))
        return "result"

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        with portals_for_children():
            assert await loop.create_task(task()) == "result"
        expected = [("before", True), ("inside", True), ("after", True)]
        assert seen == expected
        seen.clear()
        loop.set_task_factory(portal_task_factory(factory))
        assert await loop.create_task(task()) == "result"
        assert seen == expected

    any_loop(main)


@needs_eager
def test_an_eager_factory_that_wraps_the_coroutine():
    seen = []

    async def wrapper(coro):
        try:
            return await coro
        finally:
            seen.append(check_portal())

    def factory(loop, coro, **kwds):
        return asyncio.Task(wrapper(coro), loop=loop, eager_start=True, **kwds)

    async def task():
        seen.append(has_portal())
        await asyncio.sleep(0)
        seen.append(check_portal())

    async def task_that_waits_in_its_first_step():
        seen.append(check_portal())

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        with portals_for_children():
            await loop.create_task(task())
            assert seen == [True, True, True]
            seen.clear()
            # It has been suspended without the wrapper, and stays so.
            await loop.create_task(task_that_waits_in_its_first_step())
            assert seen == [True, False]

    asyncio.run(main())


def test_a_factory_whose_result_is_no_task(any_loop):
    async def main():
        loop = asyncio.get_running_loop()
        coros = []

        def factory(loop, coro, **kwds):
            coros.append(coro)
            return future

        class Future(asyncio.Future):
            def set_name(self, name):
                pass

        future = Future()
        loop.set_task_factory(factory)
        with portals_for_children():
            assert loop.create_task(echo(1)) is future
        coros.pop().close()
        loop.set_task_factory(None)

    any_loop(main)


def test_a_factory_that_fails(any_loop, family):
    """The coroutine is as it was, and can be used in another way."""

    async def task():
        return check_portal()

    def factory(loop, coro, **kwds):
        raise KeyError("factory")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        with portals_for_children():
            coro = task()
            with pytest.raises(KeyError, match="factory"):
                make_task(coro)
            assert await coro is False
            loop.set_task_factory(None)
            await family.start("inside")
            assert family.take()

    any_loop(main)


def test_names(any_loop):
    """Tasks have the names that they would have without the tree."""

    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            number = int(loop.create_task(echo(1)).get_name().removeprefix("Task-"))
            task = loop.create_task(echo(1))
            assert task.get_name() == f"Task-{number + 1}"
            assert loop.create_task(echo(1), name="name").get_name() == "name"
            assert asyncio.create_task(echo(1), name="name").get_name() == "name"

    any_loop(main)


def test_debug_mode_shows_where_a_task_was_created():
    async def main():
        loop = asyncio.get_running_loop()
        outside = loop.create_task(echo(1))
        with portals_for_children():
            inside = loop.create_task(echo(1))
        assert (
            outside._source_traceback[-1].name
            == inside._source_traceback[-1].name
            == "main"
        )

    asyncio.run(main(), debug=True)


def test_create_task_looks_like_the_method():
    async def main():
        loop = asyncio.get_running_loop()
        method = loop.create_task
        with portals_for_children():
            assert loop.create_task.__name__ == "create_task"
            assert loop.create_task.__self__ is loop
            assert loop.create_task.__wrapped__ == method
            assert "create_task" in repr(loop.create_task)
            with pytest.raises(AttributeError, match="no_such_attribute"):
                loop.create_task.no_such_attribute  # noqa: B018

    asyncio.run(main())


def test_create_task_that_was_replaced_before(family):
    async def main():
        loop = asyncio.get_running_loop()
        method = loop.create_task
        calls = []

        def create_task(coro, **kwds):
            calls.append(coro)
            return method(coro, **kwds)

        loop.create_task = create_task
        with portals_for_children():
            await family.start("inside")
            assert family.take()
            assert len(calls) == 1
        assert loop.create_task is create_task
        await family.start("after")
        assert not family.take()
        del loop.create_task

    asyncio.run(main())


def test_create_task_that_is_replaced_meanwhile(family):
    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            ours = loop.create_task
            loop.create_task = lambda coro, **kwds: ours(coro, **kwds)
            theirs = loop.create_task
            await family.start("inside")
            assert family.take()
            with portals_for_children():
                await family.start("inner")
                assert family.take()
            assert loop.create_task is theirs
            await family.start("inside")
            assert family.take()
        assert loop.create_task is theirs
        await family.start("after")
        assert not family.take()
        del loop.create_task

    asyncio.run(main())


# --- coroutines and contexts of all kinds


class CustomCoroutine(Coroutine):
    def __init__(self, coro):
        self.coro = coro

    def send(self, value):
        return self.coro.send(value)

    def throw(self, *exc):
        return self.coro.throw(*exc)

    def close(self):
        self.coro.close()

    def __await__(self):
        return self


@types.coroutine
def generator_based(family):
    yield from family.member().__await__()


@pytest.mark.parametrize("source", ["tree", "factory"])
def test_other_coroutines(asyncio_runner, family, source):
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.create_task(CustomCoroutine(family.member()))
        assert not family.take()
        with contextlib.ExitStack() as stack:
            if source == "tree":
                stack.enter_context(portals_for_children())
            else:
                previous = loop.get_task_factory()
                loop.set_task_factory(portal_task_factory(previous))
                stack.callback(loop.set_task_factory, previous)
            coro = CustomCoroutine(family.member())
            task = asyncio.create_task(coro)
            assert has_portal(task) or task.done()
            await task
            assert family.take()
            # asyncio takes generators for coroutines up to 3.11
            if sys.version_info < (3, 12):
                await asyncio.create_task(generator_based(family))
                assert family.take()
            else:
                generator = generator_based(family)
                with pytest.raises(TypeError, match="a coroutine was expected"):
                    make_task(generator)
            # in a portal of its own already
            await asyncio.create_task(with_portal_run(family.member))
            assert family.take()

    asyncio_runner.run(main)


def test_what_can_be_no_task(any_loop, family):
    async def main():
        loop = asyncio.get_running_loop()
        finished = echo(1)
        finished.close()

        def errors():
            found = []
            for bad in (3, None, echo, loop.create_future(), [echo]):
                with pytest.raises(TypeError) as info:
                    make_task(bad)
                found.append(str(info.value).split(" at 0x")[0])
            for args in [(), (1, 2, 3)]:
                with pytest.raises(TypeError):
                    make_task(*args)
            return found

        expected = errors()
        with portals_for_children():
            assert errors() == expected
            with pytest.raises(RuntimeError, match="already awaited"):
                await loop.create_task(finished)
            await family.start()
            assert family.take()

    any_loop(main)


def test_the_task_is_made_of_the_very_coroutine():
    async def main():
        async def task():
            pass

        coro = task()
        with portals_for_children():
            made = asyncio.create_task(coro)
        got = made.get_coro()
        assert got is coro or got.__wrapped__ is coro
        assert got.cr_code is task.__code__
        assert has_portal(made)
        bestow_portal(made)  # changes nothing
        await made

    asyncio.run(main())


def test_a_closed_loop(family):
    async def enter(stack):
        stack.enter_context(portals_for_children())

    loop = asyncio.new_event_loop()
    stack = contextlib.ExitStack()
    loop.run_until_complete(enter(stack))
    loop.close()
    coro = family.member()
    with pytest.raises(RuntimeError, match="closed"):
        loop.create_task(coro)  # noqa: RUF006
    stack.close()
    assert "create_task" not in vars(loop)
    assert asyncio.run(coro) == "member"
    assert not family.take()


def test_a_context_from_inside_used_outside(asyncio_runner, family):
    async def main():
        with portals_for_children():
            inside = contextvars.copy_context()
            proceed = asyncio.Event()
            task = asyncio.create_task(proceed.wait())
        # The tree has ended, its context tells nothing any more.
        await family.start("after", context=inside)
        assert not family.take()
        proceed.set()
        await task

        async def other(context):
            await family.start("own context", depth=1)
            assert not family.take()
            await family.start("context of the tree", depth=1, context=context)
            assert family.take()

        async def prepare():
            return contextvars.copy_context()

        waiting = asyncio.Event()
        context = contextvars.Context()

        async def outside():
            await waiting.wait()
            await other(inside_tree)

        outsider = asyncio.get_running_loop().create_task(outside(), context=context)
        with portals_for_children():
            inside_tree = await prepare()
            waiting.set()
            await outsider

    asyncio_runner.run(main)


def test_a_foreign_context_used_inside(asyncio_runner, family):
    """The task belongs to the tree all the same, and so does what it makes."""

    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            context = contextvars.Context()
            await family.start("in an empty context", depth=2, context=context)
            assert len(family.portals) == 7
            assert family.take()
            assert not list(context)  # it was not touched
            # not for others in that context
            future = loop.create_future()
            context.run(
                loop.call_soon,
                lambda: future.set_result(loop.create_task(family.member())),
            )
            await (await future)
            assert not family.take()
        await family.start("after", context=context)
        assert not family.take()

    asyncio_runner.run(main)


def test_a_task_in_a_foreign_context_outlives_the_tree(asyncio_runner, family):
    async def long_lived(proceed):
        await family.start("early")
        assert family.take()
        await proceed.wait()
        assert check_portal()
        await family.start("late")
        assert not family.take()

    async def main():
        loop = asyncio.get_running_loop()
        proceed = asyncio.Event()
        with portals_for_children():
            task = loop.create_task(long_lived(proceed), context=contextvars.Context())
            await asyncio_runner.settle()
        with portals_for_children():
            proceed.set()
            await task

    asyncio_runner.run(main)


def test_a_task_of_the_tree_that_has_left_its_context(asyncio_runner, family):
    async def task():
        loop = asyncio.get_running_loop()
        made = contextvars.Context().run(loop.create_task, family.member())
        await made
        assert family.take()

    async def main():
        with portals_for_children():
            await asyncio.create_task(task())

    asyncio_runner.run(main)


def test_the_context_of_a_task_is_the_one_that_was_given(any_loop):
    variable = contextvars.ContextVar("variable", default="outside")

    async def task():
        was = variable.get()
        variable.set("changed")
        return was

    async def main():
        loop = asyncio.get_running_loop()
        variable.set("main")
        with portals_for_children():
            assert await loop.create_task(task()) == "main"
            assert variable.get() == "main"
            context = contextvars.copy_context()
            assert await loop.create_task(task(), context=context) == "main"
            assert context[variable] == "changed"

    any_loop(main)


# --- eager tasks


@needs_eager
@pytest.mark.parametrize("source", ["tree", "factory"])
def test_eager_tasks(family, source):
    """Each has a portal of its own at once, which suspends no other task."""
    events = []

    async def child(name):
        events.append(f"{name} starts")
        assert check_portal()
        events.append(f"{name} goes on")
        return name

    async def at_once():
        assert has_portal()
        return await_(returns())

    async def returns():
        return "done at once"

    def sync():
        tasks = [asyncio.create_task(child(name)) for name in "ab"]
        events.append("parent goes on")
        task = asyncio.create_task(at_once())
        assert task.done()
        assert task.result() == "done at once"
        return [await_(task) for task in tasks]

    async def parent():
        return sync()

    async def main():
        loop = asyncio.get_running_loop()
        if source == "tree":
            loop.set_task_factory(asyncio.eager_task_factory)
            with portals_for_children():
                result = await asyncio.create_task(parent())
        else:
            loop.set_task_factory(portal_task_factory(asyncio.eager_task_factory))
            result = await asyncio.create_task(parent())
        assert result == ["a", "b"]
        assert events[:3] == ["a starts", "b starts", "parent goes on"]

    asyncio.run(main())


@needs_eager
def test_eager_child_outside_of_the_tree():
    async def child():
        return check_portal()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        await ensure_portal()
        assert await asyncio.create_task(child()) is False
        with portals_for_children():
            assert await asyncio.create_task(child()) is True
        assert await asyncio.create_task(child()) is False

    asyncio.run(main())


@needs_eager
def test_a_tree_that_ends_in_the_first_step_of_an_eager_task():
    async def child(tree):
        tree.__exit__(None, None, None)
        gc.collect()
        return check_portal()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        tree = portals_for_children()
        tree.__enter__()
        assert await loop.create_task(child(tree)) is True
        assert not has_tree()

    asyncio.run(main())


@needs_eager_start
def test_eager_start(any_loop, family):
    steps = []

    async def child():
        steps.append(check_portal())

    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            task = loop.create_task(child(), eager_start=True)
            assert steps == []  # it waits in await_
            await task
        assert steps == [True]
        loop.set_task_factory(portal_task_factory())
        task = loop.create_task(child(), eager_start=True)
        await task
        assert steps == [True, True]
        task = loop.create_task(child(), eager_start=False)
        await task
        assert steps == [True, True, True]

    any_loop(main)


# --- several loops


def test_loops_in_threads(family):
    """A tree concerns the tasks of its own loop only."""
    barrier = threading.Barrier(2, timeout=30)
    loops = {}
    portals = {}

    async def note(key):
        portals[key] = check_portal()

    async def main(name, other):
        loops[name] = loop = asyncio.get_running_loop()
        await asyncio.to_thread(barrier.wait)
        with portals_for_children():
            await asyncio.to_thread(barrier.wait)
            await loop.create_task(note(f"{name} inside"))
            # in the other loop, where a tree is open as well
            future = asyncio.run_coroutine_threadsafe(
                note(f"{name} elsewhere"), loops[other]
            )
            await asyncio.wrap_future(future)
            await asyncio.to_thread(barrier.wait)
        assert not has_tree()
        await loop.create_task(note(f"{name} after"))
        await asyncio.to_thread(barrier.wait)

    threads = [
        threading.Thread(target=lambda names=names: asyncio.run(main(*names)))
        for names in ("ab", "ba")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert portals == {
        "a inside": True,
        "b inside": True,
        "a elsewhere": False,
        "b elsewhere": False,
        "a after": False,
        "b after": False,
    }


def test_a_run_in_a_thread_of_the_tree(asyncio_runner, family):
    async def inner():
        await family.start("inner run")

    async def main():
        with portals_for_children():
            await asyncio.to_thread(lambda: asyncio.run(inner()))
            assert not family.take()
            await family.start("outer run")
            assert family.take()

    asyncio_runner.run(main)


def test_runs_of_one_runner(family):
    """They share a context, and so the tree that one has left open."""
    stack = contextlib.ExitStack()

    async def enter():
        stack.enter_context(portals_for_children())

    async def leave():
        stack.close()

    with asyncio.Runner() as runner:
        runner.run(family.start("before"))
        assert not family.take()
        runner.run(enter())
        runner.run(family.member("main", depth=1))
        assert family.take()
        runner.run(leave())
        runner.run(family.start("after"))
        assert not family.take()


# --- nothing is kept


class Canary:
    """What can be told to be dead."""


def test_the_loop_is_not_kept():
    kept = []

    async def main():
        loop = asyncio.get_running_loop()
        async with portals_for_tree():
            with portals_for_children():
                kept.append(contextvars.copy_context())
                await asyncio.create_task(echo(1))
                foreign = contextvars.Context()
                await loop.create_task(echo(1), context=foreign)
                kept.append(foreign)
        return weakref.ref(loop)

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None
    assert kept


def test_a_loop_with_an_open_tree_is_collected(any_loop, tree_left_open):
    async def main():
        loop = asyncio.get_running_loop()
        loop.stack = contextlib.ExitStack()
        loop.stack.enter_context(portals_for_children())
        await asyncio.create_task(echo(1))
        return weakref.ref(loop)

    loop = any_loop(main)
    gc.collect()
    assert loop() is None


def test_tasks_are_not_kept(asyncio_runner):
    async def task(canary):
        await asyncio.sleep(0)

    async def main():
        loop = asyncio.get_running_loop()
        with portals_for_children():
            for kwds in ({}, {"context": contextvars.Context()}):
                canary = Canary()
                made = loop.create_task(task(canary), **kwds)
                await made
                references = [weakref.ref(canary), weakref.ref(made)]
                del canary, made
                await asyncio.sleep(0)
                gc.collect()
                assert [ref() for ref in references] == [None, None]

    asyncio_runner.run(main)


def test_context_variables_are_not_kept(any_loop):
    """By what tasks that outlive the tree have in their contexts."""
    variable = contextvars.ContextVar("variable")

    async def tree():
        canary = Canary()
        variable.set(canary)
        with portals_for_children():
            kept = await asyncio.create_task(copy_without_variable())
        return weakref.ref(canary), kept

    async def copy_without_variable():
        variable.set(None)
        return contextvars.copy_context()

    async def main():
        canary, kept = await asyncio.create_task(tree())
        await asyncio.sleep(0)  # what woke this task refers to the other
        gc.collect()
        assert canary() is None
        assert kept

    any_loop(main)


def test_a_coroutine_that_could_be_no_task_is_not_kept(any_loop):
    def factory(loop, coro, **kwds):
        raise KeyError

    async def task(canary):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        with portals_for_children():
            for kwds in ({}, {"context": contextvars.Context()}):
                canary = Canary()
                coro = task(canary)
                with contextlib.suppress(KeyError):
                    make_task(coro, **kwds)
                coro.close()
                reference = weakref.ref(canary)
                del canary, coro
                gc.collect()
                assert reference() is None
        loop.set_task_factory(None)

    any_loop(main)


def test_marks_do_not_pile_up():
    def count():
        gc.collect()
        return sum(type(obj) is greenback._core.TreeMark for obj in gc.get_objects())

    async def main():
        gc.unfreeze()
        before = count()
        for _ in range(50):
            with portals_for_children():
                await asyncio.create_task(echo(1))
        await asyncio.sleep(0)  # what woke this task refers to the last one
        assert count() == before
        with portals_for_children():
            contexts = []
            for _ in range(50):
                with portals_for_children():
                    contexts.append(contextvars.copy_context())
            assert count() == before + 51
        contexts.clear()
        assert count() == before

        last = asyncio.get_running_loop().create_future()
        tasks = []

        async def link(n):
            await asyncio.sleep(0)  # until the tree has ended in which this began
            if n == 0:
                last.set_result(count())
                return
            with portals_for_children():
                tasks[:] = [asyncio.create_task(link(n - 1))]

        tasks.append(asyncio.create_task(link(50)))
        assert await last < before + 5

    asyncio.run(main())


def test_many_nested_trees():
    """What Contexts keep of them is let go without a deep recursion in C."""
    mark = None
    for _ in range(500_000):
        mark = greenback._core.TreeMark(None, mark)
    del mark


# --- portal_task_factory


def test_factory(asyncio_runner, family):
    async def main():
        loop = asyncio.get_running_loop()
        previous = loop.get_task_factory()
        await family.start("before")
        assert not family.take()
        factory = portal_task_factory(previous)
        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        for way in ways_of(asyncio_runner):
            await way(family.member(way.__name__, 1))
            assert family.take(), way
        await family.start("in a context", context=contextvars.Context())
        assert family.take()
        with portals_for_children():
            await family.start("in a tree", 1)
            assert family.take()
        loop.set_task_factory(previous)
        await family.start("after")
        assert not family.take()

    asyncio_runner.run(main)


def test_factory_for_a_whole_run(any_loop, family):
    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(portal_task_factory())
        runner.run(family.member("main", 1))
    assert family.take()


def test_factory_and_its_tasks(any_loop):
    class Task(asyncio.Task):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        for inner, kind in [
            (None, asyncio.Task),
            (lambda loop, coro, **kwds: Task(coro, loop=loop, **kwds), Task),
        ]:
            factory = portal_task_factory(inner)
            context = contextvars.copy_context()
            task = factory(loop, echo("result"), name="name", context=context)
            assert type(task) is kind
            assert has_portal(task)
            assert task.get_name() == "name"
            assert task.get_loop() is loop
            if HAVE_EAGER:
                assert task.get_context() is context
            assert await task == "result"
            # many keyword arguments, in any order
            task = factory(loop, echo(1), context=context, name="name")
            assert task.get_name() == "name"
            await task

    any_loop(main)


def test_factory_refuses_what_is_no_factory():
    for bad in (3, "factory", [asyncio.Task]):
        with pytest.raises(TypeError, match="expected a task factory or None"):
            portal_task_factory(bad)


def test_factory_that_is_called_wrongly(any_loop, family):
    async def main():
        loop = asyncio.get_running_loop()
        factory = portal_task_factory()
        loop.set_task_factory(factory)
        coro = family.member()
        for bad_loop in (3, object(), coro):
            with pytest.raises(TypeError, match="is no event loop"):
                factory(bad_loop, coro)
        for args in [(), (loop,), (loop, coro, 3)]:
            with pytest.raises(TypeError, match="an event loop and a coroutine"):
                factory(*args)
        with pytest.raises(TypeError):
            factory(loop, coro, no_such_argument=1)
        with pytest.raises(TypeError):
            factory(loop, coro, loop=loop)
        for bad in (3, None, echo):
            with pytest.raises(TypeError, match="a coroutine was expected"):
                make_task(bad)
        # The coroutine has no portal from that.
        loop.set_task_factory(None)
        await coro
        assert not family.take()
        loop.set_task_factory(factory)
        await family.start()
        assert family.take()

    any_loop(main)


def test_factory_with_an_inner_one_that_fails(any_loop, family):
    def inner(loop, coro, **kwds):
        raise KeyError("inner")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(portal_task_factory(inner))
        coro = family.member()
        with pytest.raises(KeyError, match="inner"):
            make_task(coro)
        loop.set_task_factory(None)
        await coro
        assert not family.take()

    any_loop(main)


def test_factory_around_a_factory(any_loop, family):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(portal_task_factory(portal_task_factory()))
        await family.start(depth=1)
        assert family.take()

    any_loop(main)


def test_factory_is_readable():
    assert list(inspect.signature(portal_task_factory).parameters) == ["inner"]
    assert "inner : callable" in inspect.getdoc(portal_task_factory)
    assert "task factory" in repr(portal_task_factory())
    assert "Factory" in repr(portal_task_factory(Factory()))


@needs_eager
@pytest.mark.parametrize("way", [by_anyio, by_anyio_start])
def test_eager_factory_and_anyio(family, way):
    """AnyIO starts its tasks later, and keeps its books on them."""
    anyio = pytest.importorskip("anyio")

    async def task():
        with anyio.CancelScope() as scope:
            await family.member("task", 1)
            scope.cancel()
            await anyio.sleep(3600)
        assert anyio.get_current_task().id
        return "result"

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(portal_task_factory(asyncio.eager_task_factory))
        assert await way(task()) == "result"
        assert family.take()

    asyncio.run(main())


def test_factory_of_a_loop_that_is_collected():
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(portal_task_factory(Factory()))
        await asyncio.create_task(echo(1))
        return weakref.ref(loop)

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None
