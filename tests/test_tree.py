"""Portals for a task and those it starts, on Trio."""

import asyncio
import inspect

import pytest
import sniffio

import greenback
from greenback import (
    AutoPortalInstrument,
    await_,
    ensure_portal,
    has_portal,
    portals_for_children,
    portals_for_tree,
    with_portal_run_tree,
)

trio = pytest.importorskip("trio")
pytest.importorskip("trio.testing")


class Family:
    """Starts tasks in nurseries and notes whether they have a portal."""

    def __init__(self):
        self.portals = {}

    async def member(self, name, depth=0):
        assert has_portal() == has_portal(trio.lowlevel.current_task())
        if has_portal():
            assert await_(self.echo(name)) == name
        else:
            with pytest.raises(RuntimeError, match="must create a greenback portal"):
                await_(self.echo(name))
        await trio.sleep(0)
        self.portals[name] = has_portal()
        if depth:
            async with trio.open_nursery() as nursery:
                for n in range(2):
                    nursery.start_soon(self.member, f"{name}.{n}", depth - 1)

    async def echo(self, value):
        await trio.sleep(0)
        return value

    async def start(self, *names, depth=0):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self.member, name, depth)

    def take(self):
        portals, self.portals = self.portals, {}
        return portals


@pytest.fixture
def family():
    return Family()


def everybody(portals):
    """The one answer that all gave."""
    (answer,) = set(portals.values())
    return answer


# --- with_portal_run_tree


def test_run_tree(family):
    async def tree(a, *, b):
        assert await_(family.echo(a)) == a
        await family.start("child", "other child", depth=2)
        assert await_(family.echo(b)) == b
        return a + b

    async def main():
        await family.start("before")
        assert await with_portal_run_tree(tree, 1, b=2) == 3
        assert not has_portal()
        inside = {name: has for name, has in family.portals.items() if name != "before"}
        assert len(inside) == 14
        assert everybody(inside)
        assert not family.take()["before"]
        await family.start("after", depth=1)
        assert not everybody(family.take())

    trio.run(main)


def test_run_tree_as_a_whole_run(family):
    async def main():
        await family.member("main", depth=2)
        return "result"

    assert trio.run(with_portal_run_tree, main) == "result"
    assert len(family.portals) == 7
    assert everybody(family.take())


def test_run_tree_leaves_enclosing_nurseries_alone(family):
    """Children started into a nursery from outside the tree get no portal,
    whoever starts them."""

    async def tree(outer):
        outer.start_soon(family.member, "outside", 1)
        async with trio.open_nursery() as inner:
            inner.start_soon(family.member, "inside", 1)
            outer.start_soon(family.member, "outside too")

    async def main():
        async with trio.open_nursery() as outer:
            await with_portal_run_tree(tree, outer)

    trio.run(main)
    assert family.portals == {
        "outside": False,
        "outside.0": False,
        "outside.1": False,
        "outside too": False,
        "inside": True,
        "inside.0": True,
        "inside.1": True,
    }


def test_run_tree_in_a_task_with_a_portal(family):
    async def main():
        await ensure_portal()
        await family.start("before")
        await with_portal_run_tree(family.start, "inside")
        assert has_portal()
        assert await_(family.echo(1)) == 1
        await family.start("after")

    trio.run(main)
    assert family.portals == {"before": False, "inside": True, "after": False}


def test_run_tree_nested_and_failing(family):
    async def inner():
        await family.start("inner")
        raise KeyError("inner")

    async def outer():
        with pytest.raises(KeyError, match="inner"):
            await with_portal_run_tree(inner)
        assert has_portal()
        await family.start("outer", depth=1)
        raise KeyError("outer")

    async def main():
        with pytest.raises(KeyError, match="outer"):
            await with_portal_run_tree(outer)
        assert not has_portal()
        assert everybody(family.take())
        await family.start("after")
        assert not everybody(family.take())

    trio.run(main)


def test_run_tree_is_no_schedule_point():
    async def at_once():
        return "value"

    async def main():
        coro = with_portal_run_tree(at_once)
        with pytest.raises(StopIteration) as stop:
            coro.send(None)
        assert stop.value.value == "value"

    trio.run(main)
    assert inspect.iscoroutinefunction(with_portal_run_tree)


def test_run_tree_accepts_any_awaitable():
    class Awaitable:
        def __await__(self):
            assert has_portal()
            yield from trio.sleep(0).__await__()
            return "value"

    assert trio.run(with_portal_run_tree, Awaitable) == "value"


def test_two_trees_in_one_run(family):
    """The one that ends first does not disturb the other."""

    async def tree(name, proceed):
        await family.start(f"{name} early")
        await proceed.wait()
        await family.start(f"{name} late")

    async def main():
        events = {name: trio.Event() for name in "ab"}
        async with trio.open_nursery() as nursery:
            for name, event in events.items():
                nursery.start_soon(with_portal_run_tree, tree, name, event)
            await trio.testing.wait_all_tasks_blocked()
            events["a"].set()
            await trio.testing.wait_all_tasks_blocked()
            await family.start("unrelated")
            events["b"].set()

    trio.run(main)
    assert family.portals.pop("unrelated") is False
    assert len(family.portals) == 4
    assert everybody(family.portals)


# --- portals_for_children


def test_portals_for_children(family):
    async def main():
        with portals_for_children():
            assert not has_portal()
            await family.start("child", depth=2)
            assert not has_portal()
        assert everybody(family.take())
        await family.start("after")
        assert not everybody(family.take())

    trio.run(main)


def test_portals_for_children_nested(family):
    async def main():
        with portals_for_children():
            with portals_for_children():
                await family.start("inner")
            await family.start("between", depth=1)
        assert everybody(family.take())
        await family.start("after")
        assert not everybody(family.take())

    trio.run(main)


def test_portals_for_children_follows_the_nursery(family):
    """What counts is where the nursery was opened, not when a task starts."""

    async def main():
        async with trio.open_nursery() as outer:
            with portals_for_children():
                async with trio.open_nursery() as inner:
                    inner.start_soon(family.member, "inner")
                    outer.start_soon(family.member, "outer")
            await trio.sleep(0)

    trio.run(main)
    assert family.portals == {"inner": True, "outer": False}


def test_portals_for_children_and_nursery_start(family):
    async def starts(*, task_status):
        assert await_(family.echo(1)) == 1
        task_status.started(has_portal())
        await family.member("started")

    async def main():
        with portals_for_children():
            async with trio.open_nursery() as nursery:
                assert await nursery.start(starts)

    trio.run(main)
    assert family.portals == {"started": True}


def test_children_keep_their_portals(family):
    """A task that outlives the context in which it was started."""

    async def main():
        proceed = trio.Event()

        async def long_lived():
            await proceed.wait()
            await family.member("long-lived", depth=1)

        context = portals_for_children()
        context.__enter__()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(long_lived)
            await trio.testing.wait_all_tasks_blocked()
            context.__exit__(None, None, None)
            proceed.set()

    trio.run(main)
    assert family.portals["long-lived"]


def test_portals_for_children_with_an_error(family):
    async def main():
        with pytest.raises(KeyError):
            with portals_for_children():
                raise KeyError
        await family.start("after")

    trio.run(main)
    assert family.portals == {"after": False}


# --- portals_for_tree


def test_portals_for_tree(family):
    async def main():
        for _ in range(2):
            assert not has_portal()
            async with portals_for_tree() as value:
                assert value is None
                await family.member("self", depth=2)
            assert not has_portal()
            assert len(family.portals) == 7
            assert everybody(family.take())
            await family.start("after")
            assert not everybody(family.take())
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            await_(family.echo(1))

    trio.run(main)


def test_portals_for_tree_nested(family):
    async def main():
        async with portals_for_tree():
            async with portals_for_tree():
                await family.member("inner", depth=1)
            assert has_portal()
            assert await_(family.echo(1)) == 1
            await family.member("outer", depth=1)
        assert not has_portal()

    trio.run(main)
    assert everybody(family.take())


def test_portals_for_tree_in_a_task_with_a_portal(family):
    async def main():
        await ensure_portal()
        async with portals_for_tree():
            await family.member("self", depth=1)
        assert has_portal()
        assert await_(family.echo(1)) == 1
        await family.start("after")

    trio.run(main)
    assert not family.portals.pop("after")
    assert everybody(family.take())


def test_portals_for_tree_in_sync_code(family):
    async def main():
        await ensure_portal()
        with greenback.async_context(portals_for_tree()):
            await_(family.start("child"))
        assert await_(family.echo(1)) == 1

    trio.run(main)
    assert family.portals == {"child": True}


def test_portals_for_tree_with_an_error(family):
    async def main():
        with pytest.raises(KeyError):
            async with portals_for_tree():
                assert await_(family.echo(1)) == 1
                raise KeyError
        assert not has_portal()
        await family.start("after")
        # And the task can get a lasting portal afterwards.
        await ensure_portal()
        assert await_(family.echo(2)) == 2

    trio.run(main)
    assert family.portals == {"after": False}


def test_portals_for_tree_is_no_cancellation_point():
    async def main():
        reached = []
        with trio.CancelScope() as scope:
            scope.cancel()
            async with portals_for_tree():
                reached.append("inside")
            reached.append("after")
            await trio.sleep(0)
            reached.append("not reached")
        assert reached == ["inside", "after"]

    trio.run(main)


def test_portals_for_tree_is_a_schedule_point():
    class CountSteps(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task):
            if task.name == "main":
                self.steps += 1

    counter = CountSteps()

    async def main():
        trio.lowlevel.current_task().name = "main"
        await trio.sleep(0)
        before = counter.steps
        async with portals_for_tree():
            inside = counter.steps
        after = counter.steps
        return inside - before, after - inside

    assert trio.run(main, instruments=[counter]) == (1, 1)


# --- AutoPortalInstrument


def test_instrument_for_a_whole_run(family):
    async def main():
        assert has_portal()
        await family.member("main", depth=2)
        system = trio.lowlevel.spawn_system_task(family.member, "system")
        assert has_portal(system)
        await trio.testing.wait_all_tasks_blocked()
        async with portals_for_tree():
            await family.start("in a tree")
        with portals_for_children():
            await family.start("in a context")
        assert has_portal()
        await with_portal_run_tree(family.start, "in a run")
        await family.start("at the end")

    for _ in range(2):
        trio.run(main, instruments=[AutoPortalInstrument()])
        portals = family.take()
        assert len(portals) == 12
        assert everybody(portals)
    # Another run is not concerned.
    trio.run(family.member, "without", 1)
    assert not everybody(family.take())


def test_instrument_is_removed_after_the_last_tree():
    async def tree(proceed=None):
        if proceed is not None:
            await proceed.wait()

    def instruments():
        # Trio keeps them as the keys of one dict for each event.
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        return [
            instrument
            for handlers in runner.instruments.values()
            for instrument in handlers
            if isinstance(instrument, AutoPortalInstrument)
        ]

    async def main():
        assert instruments() == []
        await with_portal_run_tree(tree)
        assert instruments() == []
        proceed = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(with_portal_run_tree, tree, proceed)
            await trio.testing.wait_all_tasks_blocked()
            assert len(set(map(id, instruments()))) == 1
            proceed.set()
        assert instruments() == []

    trio.run(main)


def test_nested_run_has_instruments_of_its_own(family):
    async def inner():
        await family.start("inner run")

    async def main():
        with portals_for_children():
            await trio.to_thread.run_sync(trio.run, inner)
            await family.start("outer run")

    trio.run(main)
    assert family.portals == {"inner run": False, "outer run": True}


# --- elsewhere


async def must_not_run():
    raise AssertionError


async def check_refusal():
    match = "only supported when running under asyncio or Trio"
    with pytest.raises(RuntimeError, match=match):
        with portals_for_children():
            raise AssertionError
    with pytest.raises(RuntimeError, match=match):
        async with portals_for_tree():
            raise AssertionError
    with pytest.raises(RuntimeError, match=match):
        await with_portal_run_tree(must_not_run)


def test_refused_without_a_loop():
    with pytest.raises(StopIteration):
        check_refusal().send(None)


def test_refused_by_other_libraries():
    async def main():
        token = sniffio.current_async_library_cvar.set("other")
        try:
            await check_refusal()
        finally:
            sniffio.current_async_library_cvar.reset(token)

    with pytest.raises(StopIteration):
        main().send(None)


def test_the_innermost_loop_counts(family):
    """Trio in a task of asyncio, and the other way round."""

    async def trio_main():
        with portals_for_children():
            await family.start("trio")
        assert everybody(family.take())

    async def asyncio_main():
        async def task():
            return has_portal()

        with portals_for_children():
            assert await asyncio.create_task(task())
            trio.run(trio_main)
            assert await asyncio.create_task(task())

    async def outer():
        with portals_for_children():
            await trio.to_thread.run_sync(asyncio.run, asyncio_main())

    asyncio.run(asyncio_main())
    trio.run(outer)
