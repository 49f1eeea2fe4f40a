"""Equal runs of each feature leave no objects, memory or references behind.

usage: leaks.py LOOP
"""

import asyncio
import contextlib
import contextvars
import cProfile
import functools
import gc
import logging
import sys
import threading
import tracemalloc

import greenlet
from support import descend, gather, pause, run

import greenback

REPEAT = 120
ROUNDS = 15
FEATURES = {}
VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


class Oops(Exception):
    """Raised on purpose."""


class Plain:
    """An awaitable that is no coroutine."""

    def __init__(self, loop):
        self.loop = loop

    def __await__(self):
        return pause(self.loop).__await__()


def feature(fn):
    """Register an async function that exercises one feature once."""
    FEATURES[fn.__name__] = fn
    return fn


def in_portal(fn):
    """Register a sync function that exercises one feature once, in a portal."""

    @functools.wraps(fn)
    async def wrapper(loop):
        await greenback.with_portal_run_sync(fn, loop)

    FEATURES[fn.__name__] = wrapper
    return fn


async def ready(value=None):
    """Give a result without suspending."""
    return value


async def fail(loop):
    """Suspend once, then raise."""
    await pause(loop)
    raise Oops


def in_new_task(loop, async_fn):
    """Await *async_fn* in a task of its own."""
    return gather(loop, async_fn)


@in_portal
def await_ready(loop):
    greenback.await_(ready(object()))


@in_portal
def await_suspending(loop):
    for depth in (0, 1, 10, 40):
        descend(depth, lambda: greenback.await_(pause(loop)))


@in_portal
def await_plain_awaitable(loop):
    greenback.await_(Plain(loop))


@in_portal
def await_nested(loop):
    async def outer(depth):
        if depth:
            greenback.await_(outer(depth - 1))
        await pause(loop)

    greenback.await_(outer(4))


@in_portal
def await_raising(loop):
    try:
        greenback.await_(fail(loop))
    except Oops:
        pass


@in_portal
def await_nonsense(loop):
    for thing in (None, 3, object(), [], iter(())):
        try:
            greenback.await_(thing)
        except TypeError:
            pass


@feature
async def await_without_portal(loop):
    try:
        greenback.await_(ready())
    except RuntimeError:
        pass
    greenback.has_portal()


@feature
async def ensure_portal(loop):
    async def one():
        await greenback.ensure_portal()
        greenback.await_(pause(loop))
        greenback.has_portal()

    await in_new_task(loop, one)


@feature
async def ensure_portal_unused(loop):
    await in_new_task(loop, greenback.ensure_portal)


@feature
async def bestow_portal(loop):
    async def one():
        await pause(loop)
        await pause(loop)
        greenback.await_(pause(loop))

    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            (task,) = nursery.child_tasks
            greenback.bestow_portal(task)
            greenback.bestow_portal(task)
    else:
        task = asyncio.ensure_future(one())
        await asyncio.sleep(0)
        greenback.bestow_portal(task)
        greenback.bestow_portal(task)
        greenback.has_portal(task)
        await task


@feature
async def bestow_portal_before_first_step(loop):
    async def one():
        greenback.await_(pause(loop))

    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            for task in nursery.child_tasks:
                greenback.bestow_portal(task)
    else:
        task = asyncio.ensure_future(one())
        greenback.bestow_portal(task)
        await task


@feature
async def cancel_before_first_step(loop):
    async def one():
        raise AssertionError("must not run")

    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause, loop)
            for task in nursery.child_tasks:
                greenback.bestow_portal(task)
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.ensure_future(one())
        greenback.bestow_portal(task)
        task.cancel()
        await asyncio.wait([task])


@feature
async def cancel_suspended(loop):
    async def one():
        await greenback.ensure_portal()
        try:
            while True:
                descend(3, lambda: greenback.await_(pause(loop)))
        finally:
            greenback.await_(ready())

    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            for _ in range(4):
                await pause(loop)
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.ensure_future(one())
        for _ in range(4):
            await pause(loop)
        task.cancel()
        await asyncio.wait([task])
        del task


@feature
async def task_raising(loop):
    async def one():
        await greenback.ensure_portal()
        greenback.await_(fail(loop))

    try:
        await in_new_task(loop, one)
    except Oops:
        pass
    except BaseExceptionGroup:
        pass


@feature
async def with_portal_run(loop):
    async def one(argument, *, keyword):
        greenback.await_(pause(loop))
        await pause(loop)
        return argument + keyword

    assert await greenback.with_portal_run(one, 1, keyword=2) == 3


@feature
async def with_portal_run_unstarted(loop):
    greenback.with_portal_run(ready).close()
    greenback.with_portal_run_sync(int).close()


@feature
async def with_portal_run_raising(loop):
    try:
        await greenback.with_portal_run(fail, loop)
    except Oops:
        pass


@feature
async def with_portal_run_sync(loop):
    def one(argument, *, keyword):
        greenback.await_(pause(loop))
        return argument + keyword

    assert await greenback.with_portal_run_sync(one, 1, keyword=2) == 3


@in_portal
def autoawait(loop):
    @greenback.autoawait
    async def fn(argument):
        await pause(loop)
        return argument

    assert fn(3) == 3


@feature
async def decorate_as_sync(loop):
    @greenback.decorate_as_sync(functools.lru_cache)
    async def fn(argument):
        await pause(loop)
        return argument

    assert await fn(3) == await fn(3) == 3


@in_portal
def async_context(loop):
    @contextlib.asynccontextmanager
    async def manager():
        await pause(loop)
        yield 5
        await pause(loop)

    with greenback.async_context(manager()) as value:
        assert value == 5
    try:
        with greenback.async_context(manager()):
            raise Oops
    except Oops:
        pass
    try:
        with greenback.async_context(3):
            pass
    except TypeError:
        pass


@in_portal
def async_iter(loop):
    async def generator():
        try:
            while True:
                await pause(loop)
                yield 5
        except Oops:
            yield 6

    iterator = greenback.async_iter(generator())
    assert next(iterator) == 5
    assert iterator.send(7) == 5
    assert iterator.throw(Oops()) == 6
    iterator.close()
    try:
        greenback.async_iter(3)
    except TypeError:
        pass


@in_portal
def private_context(loop):
    context = contextvars.copy_context()
    context.run(VARIABLE.set, [])
    context.run(lambda: greenback.await_(pause(loop)))


@in_portal
def foreign_greenlet(loop):
    def outer():
        greenlet.greenlet(lambda: greenback.await_(pause(loop))).switch()
        greenback.await_(pause(loop))

    greenlet.greenlet(outer).switch()


@in_portal
def suspended_generator(loop):
    def generator():
        yield greenback.await_(pause(loop))
        yield greenback.await_(pause(loop))

    assert list(generator()) == ["paused"] * 2
    next(generator())


@in_portal
def profiled(loop):
    """Wait below C functions under a profiler."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        sorted([2, 1], key=lambda number: (greenback.await_(pause(loop)), number))
    finally:
        profile.disable()


@in_portal
def introspection(loop):
    task = greenback_task(loop)
    coroutine = task.coro if loop == "trio" else task.get_coro()
    for name in ("cr_await", "cr_frame", "cr_code", "cr_running", "cr_suspended"):
        getattr(coroutine, name)
    repr(coroutine)
    repr(task)
    coroutine.__name__ += ""
    coroutine.__qualname__ += ""


@feature
async def trees(loop):
    async def one():
        greenback.await_(pause(loop))

    async def main():
        await gather(loop, one, one)

    await greenback.with_portal_run_tree(main)
    async with greenback.portals_for_tree():
        await gather(loop, one, one)
    with greenback.portals_for_children():
        await gather(loop, one, one)
        with greenback.portals_for_children():
            await gather(loop, one)


@feature
async def trees_and_other_contexts(loop):
    if loop == "trio":
        return

    async def one():
        greenback.await_(pause(loop))

    with greenback.portals_for_children():
        inside = contextvars.copy_context()
        await asyncio.get_running_loop().create_task(
            one(), context=contextvars.Context()
        )
        await asyncio.get_running_loop().create_task(one(), name="named")
        for nonsense in (None, 3):
            try:
                asyncio.get_running_loop().create_task(nonsense)
            except TypeError:
                pass
    await asyncio.get_running_loop().create_task(pause(loop), context=inside)


@feature
async def task_factories(loop):
    if loop == "trio":
        return

    def factory(loop, coroutine, **kwds):
        return asyncio.Task(coroutine, loop=loop, **kwds)

    async def one():
        greenback.await_(pause(loop))

    def failing(loop, coroutine, **kwds):
        raise Oops

    running = asyncio.get_running_loop()
    factories = [None, factory]
    if sys.version_info >= (3, 12) and loop == "asyncio":
        factories.append(asyncio.eager_task_factory)
    for inner in factories:
        running.set_task_factory(greenback.portal_task_factory(inner))
        await running.create_task(one(), name="named")
        running.set_task_factory(inner)
        with greenback.portals_for_children():
            await running.create_task(one(), name="named")
    running.set_task_factory(greenback.portal_task_factory(failing))
    coroutine = one()
    try:
        await running.create_task(coroutine)
    except Oops:
        coroutine.close()
    running.set_task_factory(None)


@in_portal
def nested_runs(loop):
    if loop == "trio":
        return

    async def leave_a_task():
        tasks.append(asyncio.create_task(asyncio.sleep(3600)))
        await pause(loop)

    tasks = []
    with greenback.allow_nested_run():
        run = asyncio.get_running_loop().run_until_complete
        assert run(ready(3)) == 3
        run(pause(loop))
        for way in (asyncio.run, run):
            try:
                way(fail(loop))
            except Oops:
                pass
        asyncio.run(leave_a_task(), debug=True)
        with asyncio.Runner() as runner:
            runner.run(pause(loop))
    assert tasks.pop().cancelled()


@feature
async def nested_run_without_portal(loop):
    if loop == "trio":
        return
    with greenback.allow_nested_run():
        coroutine = ready()
        try:
            asyncio.run(coroutine)
        except RuntimeError:
            coroutine.close()


@feature
async def thread_hop(loop):
    def in_thread():
        assert greenback.await_(ready(3)) == 3
        greenback.await_(pause(loop))
        greenback.has_portal()
        try:
            greenback.await_(fail(loop))
        except Oops:
            pass

    if loop == "trio":
        import trio

        await trio.to_thread.run_sync(in_thread)
    else:
        await asyncio.to_thread(in_thread)


@feature
async def thread_without_loop(loop):
    def in_thread():
        coroutine = ready()
        try:
            greenback.await_(coroutine)
        except RuntimeError:
            coroutine.close()

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()


def suspend_by_hand(sync_fn):
    """Make a coroutine that waits in *sync_fn*; nobody will resume it."""
    coroutine = greenback.with_portal_run_sync(sync_fn)
    coroutine.send(None)
    return coroutine


class Endless:
    """Yields to its loop for ever; can't be closed."""

    def __await__(self):
        while True:
            yield


@feature
async def dropped_suspended(loop):
    kept = []

    def sync():
        try:
            greenback.await_(Endless())
        finally:
            kept.append(1)

    suspend_by_hand(sync)
    assert kept == [1]


async def collected_suspended(loop):
    box = [0]

    def sync():
        try:
            greenback.await_(Endless())
        finally:
            box.append(1)

    box[0] = suspend_by_hand(sync)


if greenback.engine == "direct":  # the other one can't let the collector see them
    feature(collected_suspended)


@feature
async def dropped_in_another_thread(loop):
    ended = []

    def sync():
        try:
            greenback.await_(Endless())
        finally:
            ended.append(1)

    def thread_main():
        box.append(suspend_by_hand(sync))
        suspended.set()
        go_on.wait()

    box = []
    suspended, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=thread_main)
    thread.start()
    suspended.wait()
    box.clear()
    go_on.set()
    thread.join()
    assert ended == [1]


@in_portal
def forbidden(loop):
    for reason in (None, "because"):
        try:
            with greenback.forbid_await(reason):
                greenback.await_(pause(loop))
        except RuntimeError:
            pass


def greenback_task(loop):
    """Return the running task."""
    if loop == "trio":
        import trio

        return trio.lowlevel.current_task()
    return asyncio.current_task()


def reference_counts():
    """Count the references of what every call touches."""
    counts = {
        name: sys.getrefcount(getattr(greenback, name))
        for name in dir(greenback)
        if not name.startswith("__")
    }
    for kind in (type(ready), type, contextvars.Context, asyncio.Future, Oops):
        counts[kind.__name__] = sys.getrefcount(kind)
    for instance in (greenback.async_context(None), greenback.async_iter(agen())):
        counts[type(instance).__name__] = sys.getrefcount(type(instance))
    for singleton in (None, True, False, ()):
        counts[repr(singleton)] = sys.getrefcount(singleton)
    return counts


async def agen():
    """Be an async generator."""
    yield


async def measure(loop, one):
    """Run a feature REPEAT times; return what exists, for comparison."""
    for _ in range(REPEAT):
        await one(loop)
    await pause(loop)
    gc.collect()
    gc.collect()
    objects = len(gc.get_objects())
    memory = tracemalloc.get_traced_memory()[0]
    return {"objects": objects, "memory": memory} | reference_counts()


async def check(loop, one):
    """Tell what grows in every one of many equal runs.

    What is kept for reuse by the interpreter grows only until it is full.
    """
    allowed = {"memory": REPEAT * 16}
    before = await measure(loop, one)
    growing = dict.fromkeys(before)
    for _ in range(ROUNDS):
        after = await measure(loop, one)
        for name in list(growing):
            growing[name] = after[name] - before[name]
            if growing[name] < allowed.get(name, REPEAT // 2):
                del growing[name]
        if not growing:
            return []
        before = after
    return [f"{one.__name__}: {name} grew by {by}" for name, by in growing.items()]


async def main(loop):
    """Check every feature."""
    failures = []
    for one in FEATURES.values():
        failures += await check(loop, one)
    assert not failures, "\n".join(failures)


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # slow tasks are none
    tracemalloc.start()
    run(loop_arg, main, loop_arg)
    print("OK")
