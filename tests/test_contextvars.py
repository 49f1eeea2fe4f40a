"""Context variables: sync code in a portal runs in its task's context."""

import asyncio
import contextvars
import functools
import sys

import pytest

from greenback import (
    await_,
    bestow_portal,
    ensure_portal,
    with_portal_run,
    with_portal_run_sync,
)

var = contextvars.ContextVar("var", default="default")


async def get_var(runner):
    before = var.get()
    await runner.checkpoint()
    assert var.get() == before
    return before


async def set_var(runner, value):
    await runner.checkpoint()
    var.set(value)
    await runner.checkpoint()


def test_shared_with_the_task(runner, portal_kind):
    """Values set on either side of the portal are seen on the other, across
    suspensions."""

    async def main():
        def sync():
            seen = [var.get()]
            var.set("by sync code")
            seen.append(await_(get_var(runner)))
            await_(runner.checkpoint())
            seen.append(var.get())
            await_(set_var(runner, "by awaited code"))
            seen.append(var.get())
            return seen

        var.set("by the task")
        assert await portal_kind(sync) == [
            "by the task",
            "by sync code",
            "by sync code",
            "by awaited code",
        ]
        assert var.get() == "by awaited code"
        await runner.checkpoint()
        assert var.get() == "by awaited code"
        var.set("again by the task")
        assert (await portal_kind(sync))[0] == "again by the task"

    runner.run(main)
    assert var.get() == "default"


def test_tokens_stay_valid(runner):
    """A token can only be used in the context that made it."""

    def sync():
        token = var.set("inner")
        await_(runner.checkpoint())
        var.reset(token)
        return var.get()

    async def main():
        token = var.set("outer")
        assert await with_portal_run_sync(sync) == "outer"
        await ensure_portal()
        assert sync() == "outer"
        await runner.checkpoint()
        var.reset(token)
        assert var.get() == "default"
        token = var.set("in the task")
        await_(reset(token))
        assert var.get() == "default"

    async def reset(token):
        await runner.checkpoint()
        var.reset(token)

    runner.run(main)


def test_no_mixing_between_tasks(runner):
    async def body(n):
        await ensure_portal()
        var.set(n)
        seen = set()
        for step in range(10):
            if step % 3 == n % 3:
                await runner.checkpoint()
            await_(runner.checkpoint())
            seen.add(var.get())
            seen.add(await_(get_var(runner)))
        return seen

    async def main():
        var.set("main")
        results = await runner.run_concurrently(
            *[functools.partial(body, n) for n in range(20)]
        )
        assert results == [{n} for n in range(20)]
        assert var.get() == "main"

    runner.run(main)


def test_child_started_in_sync_code_inherits(runner):
    async def child():
        inherited = var.get()
        var.set("child")
        await runner.checkpoint()
        return inherited

    async def main():
        def sync():
            var.set("set in sync code")
            spawned = runner.spawn(child)
            assert await_(spawned.join()) == "set in sync code"
            return var.get()

        assert await with_portal_run_sync(sync) == "set in sync code"

    runner.run(main)


def test_private_context_across_a_suspension(runner, portal_kind):
    """Sync code inside a Context.run of its own keeps that context."""

    async def main():
        context = contextvars.copy_context()

        def private():
            var.set("private")
            seen = [var.get()]
            await_(runner.checkpoint())
            seen.append(var.get())
            seen.append(await_(get_var(runner)))
            await_(set_var(runner, "private 2"))
            seen.append(var.get())
            return seen

        def sync():
            var.set("task")
            seen = context.run(private)
            assert var.get() == "task"
            await_(runner.checkpoint())
            assert var.get() == "task"
            assert await_(get_var(runner)) == "task"
            return seen

        assert await portal_kind(sync) == ["private"] * 3 + ["private 2"]
        assert context[var] == "private 2"
        assert var.get() == "task"
        await runner.checkpoint()
        assert var.get() == "task"

    runner.run(main)


def test_nested_private_contexts(runner):
    def level(n):
        var.set(n)
        await_(runner.checkpoint())
        if n:
            contextvars.copy_context().run(level, n - 1)
            await_(runner.checkpoint())
        assert var.get() == n
        assert await_(get_var(runner)) == n

    async def main():
        await with_portal_run_sync(level, 5)
        assert var.get() == 5
        await ensure_portal()
        level(3)

    runner.run(main)


def test_private_contexts_of_concurrent_tasks(runner):
    """Each is busy while its task is suspended, and only then."""

    async def main():
        contexts = [contextvars.Context() for _ in range(5)]

        def private(n):
            for step in range(5):
                var.set((n, step))
                await_(runner.checkpoint())
                assert var.get() == (n, step)

        await runner.run_concurrently(
            *[
                functools.partial(with_portal_run_sync, contexts[n].run, private, n)
                for n in range(5)
            ]
        )
        assert [context[var] for context in contexts] == [(n, 4) for n in range(5)]

        proceed = runner.Event()

        def wait():
            await_(proceed.wait())

        child = runner.spawn(with_portal_run_sync, contexts[0].run, wait)
        await runner.settle()
        with pytest.raises(RuntimeError, match="is already entered"):
            contexts[0].run(lambda: None)
        proceed.set()
        await child.join()
        assert contexts[0].run(var.get) == (0, 4)

    runner.run(main)


def test_error_leaves_a_private_context(runner):
    async def fails():
        await runner.checkpoint()
        raise KeyError

    async def main():
        await ensure_portal()
        var.set("task")
        context = contextvars.copy_context()
        for _ in range(2):
            with pytest.raises(KeyError):
                context.run(lambda: var.set("private") and await_(fails()))
            assert var.get() == "task"
            await runner.checkpoint()
            assert var.get() == "task"
        assert context.run(var.get) == "private"

    runner.run(main)


def test_cancelled_in_a_private_context(runner):
    log = []

    def private():
        var.set("private")
        try:
            await_(runner.sleep_forever())
        finally:
            with runner.cleanup_shield():
                log.append(await_(get_var(runner)))

    async def body():
        var.set("task")
        await ensure_portal()
        try:
            contextvars.copy_context().run(private)
        finally:
            log.append(var.get())

    async def main():
        child = runner.spawn(body)
        await runner.settle()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == ["private", "task"]

    runner.run(main)


def test_native_await_inside_awaited_code_in_a_private_context(runner):
    """A task with a private context goes on as before, and its own portal is
    usable when it comes back."""

    async def main():
        await ensure_portal()
        context = contextvars.Context()

        async def inner():
            var.set("private")
            await runner.checkpoint()
            assert await_(get_var(runner)) == "private"
            await runner.checkpoint()
            return var.get()

        assert context.run(await_, inner()) == "private"
        assert var.get() == "default"
        assert await get_var(runner) == "default"
        assert await_(get_var(runner)) == "default"

    runner.run(main)


@pytest.mark.parametrize("started", [False, True])
def test_nothing_leaks_from_the_bestowing_task(runner, started):
    async def main():
        proceed = runner.Event()

        async def body():
            if started or runner.eager:
                await proceed.wait()
            seen = [var.get(), await_(get_var(runner))]
            await_(set_var(runner, "child"))
            return [*seen, var.get()]

        await ensure_portal()
        var.set("at the spawn")
        child = runner.spawn(body)
        if started:
            await runner.settle()
            await_(set_var(runner, "bestowing"))
        var.set("bestowing")
        bestow_portal(child.task)
        proceed.set()
        assert await child.join() == ["at the spawn", "at the spawn", "child"]
        assert var.get() == "bestowing"

    runner.run(main)


def test_nothing_leaks_between_uses_of_a_thread(runner):
    """Nothing of a finished task is seen by later ones, whatever is reused."""

    async def body(n):
        def sync():
            seen = var.get()
            var.set(n)
            await_(runner.checkpoint())
            contextvars.Context().run(lambda: var.set("private"))
            return seen

        return await with_portal_run_sync(sync)

    async def main():
        for n in range(5):
            assert await runner.run_concurrently(
                functools.partial(body, n), functools.partial(body, n)
            ) == ["default", "default"]

    for _ in range(3):
        runner.run(main)


def test_context_objects_are_released(runner):
    class Value:
        alive = 0

        def __init__(self):
            Value.alive += 1

        def __del__(self):
            Value.alive -= 1

    def sync():
        var.set(Value())
        await_(runner.checkpoint())
        contextvars.copy_context().run(lambda: var.set(Value()) and ask())
        assert Value.alive == 1

    def ask():
        await_(runner.checkpoint())

    async def main():
        child = runner.spawn(with_portal_run_sync, sync)
        await child.join()
        del child
        await runner.settle()
        assert Value.alive == 0

    runner.run(main)


def test_asyncio_task_with_a_context(asyncio_runner):
    """create_task(context=...) names the context that the steps run in."""

    async def body():
        var.set("first")
        await ensure_portal()
        var.set("second")
        await_(set_var(asyncio_runner, "third"))
        return var.get()

    async def main():
        context = contextvars.Context()
        task = asyncio.get_running_loop().create_task(body(), context=context)
        assert await task == "third"
        assert context[var] == "third"
        assert var.get() == "default"

    asyncio_runner.run(main)


def test_asyncio_tasks_that_share_a_context(asyncio_runner):
    if asyncio_runner.eager:
        pytest.skip("a context can't be entered twice, so an eager start fails")

    async def body(run, n):
        def sync():
            var.set(n)
            await_(asyncio.sleep(0))
            await_(asyncio.sleep(0))
            return var.get()

        async def in_portal():
            return sync()

        return await (run(sync) if run is with_portal_run_sync else run(in_portal))

    async def main():
        context = contextvars.Context()
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(body(run, n), context=context)
            for n, run in enumerate([with_portal_run, with_portal_run_sync] * 3)
        ]
        # They overwrite each other's value, as native tasks would.
        assert [await task for task in tasks] == [5] * 6

    asyncio_runner.run(main)


def test_asyncio_runner_keeps_its_context(asyncio_runner):
    async def main():
        await with_portal_run_sync(lambda: var.set("kept"))

    async def later():
        return var.get(), await with_portal_run_sync(var.get)

    with asyncio.Runner(loop_factory=asyncio_runner.loop_factory) as runner:
        runner.run(main())
        assert runner.run(later()) == ("kept", "kept")


def test_trio_context_can_be_replaced(trio_runner):
    """Trio lets a program assign Task.context; it counts from the next step."""
    trio = trio_runner.trio

    async def main():
        task = trio.lowlevel.current_task()
        await ensure_portal()
        var.set("old")

        def sync():
            context = task.context.copy()
            context.run(var.set, "new")
            task.context = context
            assert var.get() == "old"
            await_(trio.sleep(0))
            seen = [var.get()]
            var.set("newer")
            await_(trio.sleep(0))
            return [*seen, var.get(), context[var], await_(get_var(trio_runner))]

        assert sync() == ["new", "newer", "newer", "newer"]
        assert var.get() == "newer"
        assert await get_var(trio_runner) == "newer"

    trio_runner.run(main)


def test_decimal_context(runner):
    """A user of context variables written in C."""
    import decimal

    def sync(precision):
        with decimal.localcontext() as context:
            context.prec = precision
            await_(runner.checkpoint())
            first = decimal.Decimal(1) / 3
            await_(runner.checkpoint())
        return str(first), decimal.getcontext().prec

    async def body(precision):
        return await with_portal_run_sync(sync, precision)

    async def main():
        usual = decimal.getcontext().prec
        results = await runner.run_concurrently(
            *[functools.partial(body, n) for n in range(1, 10)]
        )
        assert results == [("0." + "3" * n, usual) for n in range(1, 10)]

    runner.run(main)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Token as context manager")
def test_token_as_context_manager(runner):
    def sync():
        with var.set("inner"):
            await_(runner.checkpoint())
            inner = var.get()
        return inner, var.get()

    assert runner.run_sync(sync) == ("inner", "default")
