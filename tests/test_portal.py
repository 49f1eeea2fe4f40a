"""How a task gets a portal, how long it lasts, and what happens without one."""

import asyncio
import asyncio.tasks
import collections.abc
import contextvars
import functools
import inspect
import sys
import types

import pytest
import sniffio

from greenback import (
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


def ask(runner, value="value"):
    return await_(echo(runner, value))


@types.coroutine
def count_traps(coro, traps):
    """Await `coro`, put what it yields to the loop into the list `traps`."""
    answer = None
    while True:
        try:
            traps.append(coro.send(answer))
        except StopIteration as stop:
            return stop.value
        answer = yield traps[-1]


class RecordingCoroutine(collections.abc.Coroutine):
    def __init__(self):
        self.calls = []

    def send(self, value):
        self.calls.append("send")
        raise StopIteration

    def throw(self, *args):
        self.calls.append("throw")

    def close(self):
        self.calls.append("close")

    def __await__(self):
        raise AssertionError


# --- await_ where it can't work


def refuse(error_type, *parts):
    """Check that await_ raises, and that it closes what it was given."""

    async def body():
        raise AssertionError("must not start")

    coro = body()
    with pytest.raises(error_type) as caught:
        await_(coro)
    for part in parts:
        assert part in str(caught.value)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED

    recording = RecordingCoroutine()
    with pytest.raises(error_type):
        await_(recording)
    assert recording.calls == ["close"]

    class Awaitable:
        def __await__(self):
            raise AssertionError("must not start")

    with pytest.raises(error_type):
        await_(Awaitable())
    # What can't be awaited at all is refused too, the reason does not matter.
    with pytest.raises((error_type, TypeError)):
        await_(None)


NO_PORTAL = (
    RuntimeError,
    "must create a greenback portal",
    "greenback.ensure_portal()",
    "greenback.with_portal_run(",
)


def test_await_without_portal(runner):
    async def main():
        refuse(*NO_PORTAL)
        await runner.checkpoint()
        refuse(*NO_PORTAL)

    runner.run(main)


def test_await_in_a_child_without_portal(runner):
    async def child():
        refuse(*NO_PORTAL)
        await runner.checkpoint()
        refuse(*NO_PORTAL)

    async def main():
        await ensure_portal()
        await runner.run_concurrently(child, child)
        assert ask(runner) == "value"

    runner.run(main)


def test_await_before_the_next_step(runner):
    async def main():
        bestow_portal(runner.current_task())
        refuse(
            RuntimeError,
            "must yield to the event loop "
            f"(try 'await {runner.library}.sleep(0)') after calling",
            "greenback.bestow_portal()",
        )
        await runner.checkpoint()
        assert ask(runner) == "value"

    runner.run(main)


def test_await_without_a_loop():
    refuse(sniffio.AsyncLibraryNotFoundError)
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        ensure_portal().send(None)


def test_await_in_an_unknown_library():
    def in_library():
        sniffio.current_async_library_cvar.set("curio")
        refuse(RuntimeError, "greenback does not support curio")
        with pytest.raises(RuntimeError, match="greenback does not support curio"):
            ensure_portal().send(None)

    contextvars.Context().run(in_library)


def test_await_in_a_callback(asyncio_runner):
    async def main():
        await ensure_portal()
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def callback():
            try:
                refuse(RuntimeError)
                assert not has_portal()
            except BaseException as exc:
                done.set_exception(exc)
            else:
                done.set_result("refused")

        loop.call_soon(callback)
        assert await_(done) == "refused"

    asyncio_runner.run(main)


# --- ensure_portal


def test_ensure_portal(runner):
    async def main():
        assert not has_portal()
        assert await ensure_portal() is None
        assert has_portal()
        assert ask(runner) == "value"
        await runner.checkpoint()
        assert ask(runner) == "value"
        for _ in range(3):
            await ensure_portal()
            assert ask(runner) == "value"

    runner.run(main)


def test_ensure_portal_is_a_schedule_point_each_time(runner):
    async def main():
        for _ in range(3):
            traps = []
            await count_traps(ensure_portal(), traps)
            assert traps
            await_(ensure_portal())

    runner.run(main)


@pytest.mark.parametrize("before", [False, True])
def test_ensure_portal_is_a_cancellation_point_each_time(runner, before):
    async def main():
        reached = []
        start = runner.Event()

        async def body():
            if before:
                await ensure_portal()
            await start.wait()
            child.cancel()
            await ensure_portal()
            reached.append("after")

        child = runner.spawn(body)
        await runner.settle()
        start.set()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert reached == []

    runner.run(main)


def test_ensure_portal_after_a_cancelled_one(asyncio_runner):
    async def main():
        asyncio.current_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await ensure_portal()
        await ensure_portal()
        assert ask(asyncio_runner) == "value"

    asyncio_runner.run(main)


def test_ensure_portal_in_nested_coroutines(runner):
    """The portal is the task's, not that of the coroutine which asked for it."""

    async def deep(n):
        if n:
            await deep(n - 1)
        else:
            await ensure_portal()

    async def main():
        await deep(10)
        assert ask(runner) == "value"

    runner.run(main)


# --- bestow_portal


def test_bestow_on_self(runner):
    async def main():
        task = runner.current_task()
        assert bestow_portal(task) is None
        bestow_portal(task)
        assert not has_portal()
        await runner.checkpoint()
        assert has_portal()
        assert ask(runner) == "value"
        bestow_portal(task)
        assert ask(runner) == "value"
        await ensure_portal()
        assert ask(runner) == "value"

    runner.run(main)


def test_bestow_on_a_task_not_started(runner):
    async def body():
        if runner.eager:  # spawn() has started it already
            await runner.checkpoint()
        return ask(runner, 1), await echo(runner, 2), ask(runner, 3)

    async def main():
        children = [runner.spawn(body) for _ in range(3)]
        for child in children:
            bestow_portal(child.task)
        bestow_portal(child.task)
        assert [await child.join() for child in children] == [(1, 2, 3)] * 3
        assert not has_portal()

    runner.run(main)


@pytest.mark.parametrize("depth", [0, 5])
def test_bestow_on_a_suspended_task(runner, depth):
    async def main():
        proceed = runner.Event()

        async def body(n):
            if n:
                await body(n - 1)
            else:
                await proceed.wait()
            return ask(runner, n)

        child = runner.spawn(body, depth)
        await runner.settle()
        bestow_portal(child.task)
        bestow_portal(child.task)
        proceed.set()
        assert await child.join() == depth

    runner.run(main)


def test_bestow_on_each_other(runner):
    """Also by tasks which have a portal, from code below await_."""

    async def main():
        proceed = runner.Event()

        async def body():
            await proceed.wait()
            return ask(runner)

        async def bestow_on(task):
            await runner.checkpoint()
            bestow_portal(task)

        await ensure_portal()
        child = runner.spawn(body)
        await runner.settle()
        await_(bestow_on(child.task))
        proceed.set()
        assert await_(child.join()) == "value"

    runner.run(main)


def test_bestow_from_a_callback(asyncio_runner):
    async def main():
        asyncio.get_running_loop().call_soon(bestow_portal, asyncio.current_task())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ask(asyncio_runner) == "value"

    asyncio_runner.run(main)


@pytest.mark.parametrize("order", ["bestow, cancel", "cancel, bestow"])
def test_bestow_and_cancel_before_the_first_step(runner, order):
    """As without a portal: asyncio never starts the task, Trio runs it up to
    the first checkpoint."""

    async def main():
        log = []

        async def body():
            if runner.eager:
                await runner.checkpoint()
            log.append("started")
            ask(runner)
            log.append("not reached")

        child = runner.spawn(body)
        for action in order.split(", "):
            if action == "bestow":
                bestow_portal(child.task)
            else:
                child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == (["started"] if runner.library == "trio" else [])

    runner.run(main)


def test_bestow_on_a_suspended_task_then_cancel(runner):
    async def main():
        log = []

        async def body():
            try:
                await runner.sleep_forever()
            except runner.cancelled_exc:
                with runner.cleanup_shield():
                    log.append(ask(runner, "cleaned up"))
                raise

        child = runner.spawn(body)
        await runner.settle()
        bestow_portal(child.task)
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == ["cleaned up"]

    runner.run(main)


def test_bestow_on_a_finished_task(runner):
    async def body():
        return "result"

    async def main():
        child = runner.spawn(body)
        await child.join()
        await runner.checkpoint()
        bestow_portal(child.task)
        assert await child.join() == "result"

    runner.run(main)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio no longer mixes them")
def test_python_task_in_a_program_that_uses_c_tasks():
    async def body():
        await ensure_portal()
        return await_(asyncio.sleep(0, "value"))

    async def main():
        return await asyncio.tasks._PyTask(body())

    assert asyncio.run(main()) == "value"


@pytest.mark.parametrize(
    "thing", [None, 1, object(), "task"], ids=["None", "int", "object", "str"]
)
def test_bestow_on_what_is_no_task(thing):
    with pytest.raises((TypeError, AssertionError)):
        bestow_portal(thing)


def test_portal_bestowed_while_others_wait(runner):
    """Portals come and go in any order while other tasks are suspended."""

    async def main():
        events = [runner.Event() for _ in range(6)]

        async def body(n):
            await events[n].wait()
            first = ask(runner, n)
            if n:
                events[n - 1].set()
            return first, ask(runner, -n)

        children = [runner.spawn(body, n) for n in range(6)]
        await runner.settle()
        for child in children[::-1]:
            bestow_portal(child.task)
        events[-1].set()
        assert [await child.join() for child in children] == [(n, -n) for n in range(6)]

    runner.run(main)


# --- with_portal_run, with_portal_run_sync


async def call_async(*args, **kwds):
    return args, kwds


def call_sync(*args, **kwds):
    return args, kwds


BOTH = pytest.mark.parametrize(
    "run, call",
    [(with_portal_run, call_async), (with_portal_run_sync, call_sync)],
    ids=["run", "run_sync"],
)


def as_fn(run, sync_fn):
    """`sync_fn`, in the form that `run` calls."""
    if run is with_portal_run_sync:
        return sync_fn

    async def async_fn(*args, **kwds):
        return sync_fn(*args, **kwds)

    return async_fn


@BOTH
def test_run_passes_arguments(runner, run, call):
    kwds = {"self": 1, "fn": 2, "args": 3, "kwds": 4, "task": 5}

    async def main():
        assert await run(call) == ((), {})
        assert await run(call, 1, 2, x=3) == ((1, 2), {"x": 3})
        assert await run(call, **kwds) == ((), kwds)
        await ensure_portal()
        assert await run(call, 1, **kwds) == ((1,), kwds)

    runner.run(main)


@BOTH
def test_run_with_the_function_as_a_keyword(runner, run, call):
    name = "async_fn" if run is with_portal_run else "sync_fn"

    async def main():
        assert await run(**{name: call}) == ((), {})
        assert await run(**{name: call, "x": 1}) == ((), {"x": 1})
        with pytest.raises(TypeError):
            await run(call, **{name: call})
        with pytest.raises(TypeError):
            await run()

    runner.run(main)


@BOTH
def test_run_lasts_for_the_call_only(runner, run, call):
    def sync(fail):
        assert has_portal()
        assert ask(runner) == "value"
        if fail:
            raise KeyError
        return "result"

    async def main():
        for _ in range(3):
            assert await run(as_fn(run, sync), False) == "result"
            assert not has_portal()
            with pytest.raises(KeyError):
                await run(as_fn(run, sync), True)
            refuse(*NO_PORTAL)
        await ensure_portal()
        assert await run(as_fn(run, sync), False) == "result"
        assert has_portal()
        assert ask(runner) == "value"

    runner.run(main)


@BOTH
def test_run_ends_when_cancelled(runner, run, call):
    async def main():
        with pytest.raises(runner.timeout_exc):
            async with runner.timeout(0):
                await run(as_fn(run, lambda: await_(runner.sleep_forever())))
        refuse(*NO_PORTAL)

    runner.run(main)


@BOTH
def test_run_is_no_schedule_point(runner, run, call):
    async def main():
        traps = []
        await count_traps(run(call, 1), traps)
        assert traps == []
        await ensure_portal()
        await count_traps(run(call, 1), traps)
        assert traps == []

    runner.run(main)


@BOTH
def test_run_nested(runner, run, call):
    def level(n):
        before = ask(runner, n)
        rest = await_(run(as_fn(run, level), n - 1)) if n else []
        assert has_portal()
        assert ask(runner) == "value"
        return [before, *rest]

    async def main():
        assert await run(as_fn(run, level), 4) == [4, 3, 2, 1, 0]
        assert not has_portal()

    runner.run(main)


def test_run_nested_natively(runner):
    async def level(n):
        if n:
            assert await with_portal_run(level, n - 1) == "deep"
            assert await with_portal_run_sync(ask, runner) == "value"
        assert ask(runner) == "value"
        return "deep"

    async def main():
        assert await with_portal_run(level, 5) == "deep"
        assert not has_portal()

    runner.run(main)


def test_ensure_portal_inside_run_makes_no_other_portal(runner):
    async def body():
        await ensure_portal()
        return ask(runner)

    async def main():
        assert await with_portal_run(body) == "value"
        refuse(*NO_PORTAL)
        await ensure_portal()
        assert ask(runner) == "value"

    runner.run(main)


def test_run_gives_children_no_portal(runner):
    async def body():
        async def child():
            refuse(*NO_PORTAL)

        await runner.run_concurrently(child)
        return ask(runner)

    async def main():
        assert await with_portal_run(body) == "value"

    runner.run(main)


@BOTH
def test_run_calls_late(runner, run, call):
    calls = []

    async def main():
        coro = run(as_fn(run, calls.append), 1)
        await runner.checkpoint()
        assert calls == []
        await coro
        assert calls == [1]

        # An unstarted coroutine can be closed, or failed, without a trace.
        run(as_fn(run, calls.append), 2).close()
        coro = run(as_fn(run, calls.append), 3)
        with pytest.raises(KeyError):
            coro.throw(KeyError)
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            await coro
        assert calls == [1]

    runner.run(main)


def test_unstarted_ensure_portal_can_be_closed():
    ensure_portal().close()


@BOTH
def test_run_is_a_coroutine_function(run, call):
    assert inspect.iscoroutinefunction(run)
    assert inspect.iscoroutinefunction(ensure_portal)
    coro = run(call)
    assert inspect.iscoroutine(coro)
    assert inspect.isawaitable(coro)
    assert asyncio.iscoroutine(coro)
    coro.close()


def test_run_accepts_any_awaitable(runner):
    class Awaitable:
        def __await__(self):
            return echo(runner, "object").__await__()

    @types.coroutine
    def generator_based():
        yield from echo(runner, None).__await__()
        return "generator"

    async def main():
        for portal_before in False, True:
            if portal_before:
                await ensure_portal()
            assert await with_portal_run(Awaitable) == "object"
            assert await with_portal_run(generator_based) == "generator"
            assert await with_portal_run(lambda: echo(runner, 1)) == 1
            assert await with_portal_run(with_portal_run_sync, ask, runner) == "value"
            for wrong in (lambda: None), list, object:
                with pytest.raises(TypeError, match="await"):
                    await with_portal_run(wrong)

    runner.run(main)


def test_run_accepts_futures(asyncio_runner):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "result")
        assert await with_portal_run(lambda: future) == "result"
        task = loop.create_task(asyncio.sleep(0, "task"))
        assert await with_portal_run(lambda: task) == "task"

    asyncio_runner.run(main)


def test_run_with_a_function_that_fails_before_it_gives_an_awaitable(runner):
    def fails():
        raise KeyError("early")

    async def main():
        with pytest.raises(KeyError, match="early"):
            await with_portal_run(fails)
        with pytest.raises(TypeError):
            await with_portal_run(echo)  # arguments are missing
        with pytest.raises(TypeError):
            await with_portal_run_sync(None)
        refuse(*NO_PORTAL)

    runner.run(main)


@BOTH
def test_run_as_a_whole_task(runner, run, call):
    fn = as_fn(run, ask)
    assert runner.run(run, fn, runner) == "value"

    async def main():
        child = runner.spawn(run, fn, runner)
        assert await child.join() == "value"
        assert await runner.run_concurrently(
            *[functools.partial(run, fn, runner, n) for n in range(5)]
        ) == [0, 1, 2, 3, 4]

    runner.run(main)


def test_run_with_asyncio_functions():
    def sync(value):
        return await_(asyncio.sleep(0, value))

    async def main():
        gathered = await asyncio.gather(
            *[with_portal_run_sync(sync, n) for n in range(3)]
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(with_portal_run_sync(sync, "in a group"))
        waited = await asyncio.wait_for(with_portal_run_sync(sync, "waited"), 60)
        return gathered, task.result(), waited

    assert asyncio.run(with_portal_run(main)) == ([0, 1, 2], "in a group", "waited")
    assert asyncio.run(with_portal_run_sync(sync, "alone")) == "alone"


def test_run_with_trio_functions():
    trio = pytest.importorskip("trio")

    def sync(results, value):
        await_(trio.sleep(0))
        results.append(value)

    async def main():
        results = []
        async with trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(with_portal_run_sync, sync, results, n)
        return sorted(results)

    async def starting(*, task_status):
        await_(trio.sleep(0))
        task_status.started("started")

    async def start():
        async with trio.open_nursery() as nursery:
            return await nursery.start(with_portal_run, starting)

    assert trio.run(with_portal_run, main) == [0, 1, 2]
    assert trio.run(start) == "started"


# --- a loop of which greenback knows nothing


@types.coroutine
def trap(value):
    return (yield value)


def drive(coro, answer):
    """The smallest coroutine runner: answers each trap by answer(trap)."""
    traps = []
    send = functools.partial(coro.send, None)
    while True:
        try:
            traps.append(send())
        except StopIteration as stop:
            return stop.value, traps
        try:
            send = functools.partial(coro.send, answer(traps[-1]))
        except Exception as exc:
            send = functools.partial(coro.throw, exc)


def answer_or_fail(trap):
    if trap < 0:
        raise ValueError(trap)
    return trap * 10


async def double(n):
    return await trap(n) + await trap(n + 1)


@BOTH
def test_unknown_loop(run, call):
    def sync():
        total = await_(trap(1)) + await_(double(2))
        with pytest.raises(ValueError, match="-1"):
            await_(trap(-1))
        return total + sum(map(await_, [trap(3), trap(4)]))

    assert drive(run(as_fn(run, sync)), answer_or_fail) == (
        10 + 50 + 70,
        [1, 2, 3, -1, 3, 4],
    )
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        await_(trap(0))


def test_unknown_loop_natively_awaiting():
    async def main():
        first = await with_portal_run_sync(lambda: await_(double(1)))
        second = await trap(5)
        return first, second, await with_portal_run(double, 2)

    assert drive(main(), answer_or_fail) == ((30, 50, 50), [1, 2, 5, 2, 3])


def test_unknown_library_name():
    def in_library():
        sniffio.current_async_library_cvar.set("curio")
        return drive(with_portal_run_sync(lambda: await_(double(1))), answer_or_fail)

    assert contextvars.Context().run(in_library) == (30, [1, 2])


def test_unknown_loop_with_interleaved_tasks():
    def sync(n):
        return [await_(trap(n + step)) for step in range(4)]

    coros = {n: with_portal_run_sync(sync, n) for n in (10, 20, 30)}
    answers = dict.fromkeys(coros)
    results = {}
    while coros:
        for n, coro in list(coros.items()):
            try:
                answers[n] = coro.send(answers[n]) + 0.5
            except StopIteration as stop:
                results[n] = stop.value
                del coros[n]
    assert results == {n: [n + step + 0.5 for step in range(4)] for n in (10, 20, 30)}


def test_unknown_loop_inside_a_known_one(runner):
    """A coroutine runner which is itself called in a task."""

    def sync():
        return drive(with_portal_run_sync(lambda: await_(double(1))), answer_or_fail)

    async def main():
        return sync()

    assert runner.run(main) == (30, [1, 2])


# --- tasks and loops that are started inside a step


def test_child_without_portal_started_in_sync_code(runner):
    """An eager one runs inside its parent's step and must not use its portal."""

    async def child():
        assert not has_portal()
        refuse(*NO_PORTAL)
        await runner.checkpoint()
        assert not has_portal()
        refuse(*NO_PORTAL)
        return "child"

    def sync():
        spawned = runner.spawn(child)
        assert has_portal()
        assert ask(runner) == "value"
        assert await_(spawned.join()) == "child"
        assert ask(runner) == "value"

    runner.run_sync(sync)
    runner.run(with_portal_run_sync, sync)


def test_child_with_portal_started_in_sync_code(runner):
    def work(n):
        first = ask(runner, n)
        if n:
            child = runner.spawn(with_portal_run_sync, work, n - 1)
            ask(runner)
            rest = await_(child.join())
        else:
            rest = []
        return [first, *rest]

    async def ensured(n):
        await ensure_portal()
        return work(n)

    def sync():
        children = [runner.spawn(ensured, n) for n in range(4)]
        children += [runner.spawn(with_portal_run_sync, work, n) for n in range(4)]
        assert ask(runner) == "value"
        return [len(await_(child.join())) for child in children]

    assert runner.run_sync(sync) == [1, 2, 3, 4] * 2


def test_child_that_ends_in_its_parents_step(runner):
    async def child(n):
        if n:
            grandchild = runner.spawn(child, n - 1)
            return await grandchild.join() + 1
        return await with_portal_run_sync(lambda: await_(nothing()))

    async def nothing():
        return 0

    def sync():
        children = [runner.spawn(child, n) for n in range(5)]
        return [await_(child.join()) for child in children]

    assert runner.run_sync(sync) == [0, 1, 2, 3, 4]


def run_inner_loop(inner):
    """Run a loop of another library inside a step, with and without a portal."""

    async def without_portal():
        assert not has_portal()
        await inner.checkpoint()
        refuse(*NO_PORTAL)
        await ensure_portal()
        return ask(inner, "inner")

    assert inner.run(without_portal) == "inner"
    assert inner.run(with_portal_run_sync, ask, inner, "inner") == "inner"
    return inner.run(
        with_portal_run_sync, functools.partial(sum, map(len, ["ab", "c"]))
    )


# Trio notes that uvloop wants to learn of signals, too.
@pytest.mark.filterwarnings(
    "ignore:It looks like Trio's signal handling:RuntimeWarning"
)
def test_trio_inside_a_step_of_asyncio(asyncio_runner, trio_runner):
    def sync():
        for _ in range(3):
            assert ask(asyncio_runner) == "value"
            assert run_inner_loop(trio_runner) == 3
            assert has_portal()
        return ask(asyncio_runner, "outer")

    assert asyncio_runner.run_sync(sync) == "outer"


# --- limits


def test_recursion_error_in_a_portal(runner, portal_kind):
    def endless(n):
        return endless(n + 1) + 1

    def sync():
        for _ in range(3):
            with pytest.raises(RecursionError):
                endless(0)
            assert ask(runner) == "value"

    async def main():
        await portal_kind(sync)

    runner.run(main)


def test_recursion_budget_is_the_loops(runner):
    """A step inside a portal has about as much room as one outside."""

    def depth():
        try:
            return 1 + depth()
        except RecursionError:
            return 0

    async def main():
        outside = depth()
        inside = await with_portal_run_sync(depth)
        assert abs(outside - inside) < 60

    runner.run(main)


def test_frame_locals_are_released(runner):
    class Resource:
        alive = 0

        def __init__(self):
            Resource.alive += 1

        def __del__(self):
            Resource.alive -= 1

    async def main():
        def sync():
            resource = Resource()
            ask(runner)
            return Resource.alive, resource

        async def body():
            return (await with_portal_run_sync(sync))[0]

        for _ in range(3):
            assert await body() == 1
            assert Resource.alive == 0

        async def child():
            resource = Resource()
            await ensure_portal()
            ask(runner)
            return resource is None

        for _ in range(3):
            spawned = runner.spawn(child)
            await spawned.join()
            del spawned
            await runner.settle()

    runner.run(main)
    assert Resource.alive == 0


# --- __await__() of a coroutine that has a portal


def test_iterator_of_await():
    """What __await__() gives drives the portal by send(), throw() and close()."""

    @types.coroutine
    def trap(value):
        return (yield value)

    def sync():
        log = [await_(trap("first"))]
        try:
            await_(trap("second"))
        except LookupError as error:
            log.append(str(error))
        await_(trap("third"))
        return log

    def started():
        iterator = with_portal_run_sync(sync).__await__()
        assert iter(iterator) is iterator
        assert next(iterator) == "first"
        assert iterator.send("answer") == "second"
        assert iterator.throw(LookupError("thrown")) == "third"
        return iterator

    with pytest.raises(StopIteration) as stop:
        started().send(None)
    assert stop.value.value == ["answer", "thrown"]
    iterator = started()
    iterator.close()
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        iterator.send(None)
    with pytest.raises(AttributeError):
        iterator.no_such_name  # noqa: B018
