"""Tasks that nobody refers to any more while they wait in await_."""

import asyncio
import contextlib
import contextvars
import dis
import gc
import sys
import threading
import types
import weakref

import pytest

import greenback
from greenback import (
    async_context,
    async_iter,
    autoawait,
    await_,
    with_portal_run,
    with_portal_run_sync,
)

collects = pytest.mark.skipif(
    greenback.engine != "direct",
    reason="greenlet keeps the C stack; nothing tells what it refers to",
)


@types.coroutine
def trap():
    return (yield)


def descend(depth, fn):
    """Call *fn* below *depth* Python frames."""
    return descend(depth - 1, fn) if depth else fn()


# --- shapes of sync code that waits: each is called with something to await, which in turn
# refers to the task, and a log


def await_it(future, log):
    try:
        await_(future)
    finally:
        log.append("finally")


def await_coroutine(future, log):
    async def inner():
        try:
            await future
        finally:
            log.append("inner")

    try:
        await_(inner())
    finally:
        log.append("finally")


def await_deeply(future, log):
    descend(60, lambda: await_it(future, log))


def await_by_keyword(future, log):
    try:
        await_(aw=future)
    finally:
        log.append("finally")


def await_with_much_on_the_value_stack(future, log):
    class Manager:
        def __enter__(self):
            return future

        def __exit__(self, *exc):
            log.append("exit")

    with Manager() as held:
        for item in [held, "never reached"]:
            log.append([future, (1, await_(item))])


def await_in_await(future, log):
    async def middle():
        await_it(future, log)

    try:
        await_(middle())
    finally:
        log.append("outer")


def await_in_generator(future, log):
    def generator():
        try:
            yield await_(future)
        finally:
            log.append("finally")

    for _ in generator():
        pass


class Lazy:
    """Waits when it is asked for something."""

    def __init__(self, future, log):
        self.future = future
        self.log = log

    @property
    def value(self):
        return await_it(self.future, self.log)

    def __iter__(self):
        return self

    def __next__(self):
        return await_it(self.future, self.log)

    def __neg__(self):
        return await_it(self.future, self.log)


def await_in_property(future, log):
    Lazy(future, log).value  # noqa: B018


def await_in_iterator(future, log):
    for _ in Lazy(future, log):
        pass


def await_in_handler(future, log):
    try:
        raise ValueError(future)
    except ValueError:
        await_it(future, log)


def await_in_property_after_an_exception(future, log):
    with contextlib.suppress(LookupError):
        raise LookupError
    Lazy(future, log).value  # noqa: B018


def await_below_values_after_an_exception(future, log):
    with contextlib.suppress(LookupError):
        raise LookupError
    for _ in [future]:
        -Lazy(future, log)


def await_in_comprehension(future, log):
    [await_it(item, log) for item in (future,)]


def await_in_own_context(future, log):
    variable = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, future)
    try:
        context.run(await_it, future, log)
    finally:
        log.append("outer")


def await_by_autoawait(future, log):
    @autoawait
    def get():
        return future

    try:
        get()
    finally:
        log.append("finally")


def await_by_async_context(future, log):
    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield await future
        finally:
            log.append("inner")

    try:
        with async_context(manager()):
            pass
    finally:
        log.append("finally")


def await_by_async_iter(future, log):
    async def items():
        try:
            yield await future
        finally:
            log.append("inner")

    try:
        for _ in async_iter(items()):
            pass
    finally:
        log.append("finally")


SHAPES = {
    await_it: ["finally"],
    await_coroutine: ["inner", "finally"],
    await_deeply: ["finally"],
    await_by_keyword: ["finally"],
    await_with_much_on_the_value_stack: ["exit"],
    await_in_await: ["finally", "outer"],
    await_in_generator: ["finally"],
    await_in_property: ["finally"],
    await_in_iterator: ["finally"],
    await_in_handler: ["finally"],
    await_in_property_after_an_exception: ["finally"],
    await_below_values_after_an_exception: ["finally"],
    await_in_comprehension: ["finally"],
    await_in_own_context: ["finally", "outer"],
    await_by_autoawait: ["finally"],
    await_by_async_context: ["inner", "finally"],
    await_by_async_iter: ["inner", "finally"],
}
# Up to 3.13 frames don't tell what they have handed to C functions, nor whether an
# exception that they have seen is still taking values from them.
HIDDEN_BEFORE_3_14 = {
    await_below_values_after_an_exception,
    await_in_own_context,
    await_by_async_context,
    await_by_async_iter,
}


async def natively(_shape, future, log):
    try:
        await future
    finally:
        log.append("finally")


async def in_the_task(shape, future, log):
    await greenback.ensure_portal()
    shape(future, log)


async def below_coroutines(shape, future, log):
    await greenback.ensure_portal()

    async def outer():
        async def inner():
            shape(future, log)

        for _ in "x":
            await inner()

    await outer()


async def in_nested_portals(shape, future, log):
    await greenback.ensure_portal()

    async def inner():
        shape(future, log)

    await with_portal_run(inner)


async def in_async_generator(shape, future, log):
    await greenback.ensure_portal()

    async def generator():
        yield shape(future, log)

    async for _ in generator():
        pass


def drop_suspended_task(asyncio_runner, main, shape, log):
    """Drop a loop and a task of it that waits; tell whether the loop is gone."""
    patched_asyncio = getattr(asyncio_runner, "patched_asyncio", contextlib.nullcontext)
    with patched_asyncio():
        loop = asyncio_runner.loop_factory()
        loop.set_exception_handler(lambda loop, context: None)
        loop.set_task_factory(asyncio_runner.task_factory)

        async def started():
            future = asyncio.get_running_loop().create_future()
            await main(shape, future, log)

        task = loop.create_task(started())
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        assert not task.done()
        loop.close()
        gone = weakref.ref(loop)
        del loop, task, started
        gc.collect()
    return gone() is None


def test_as_natively(asyncio_runner):
    """What follows holds for native tasks."""
    log = []
    assert drop_suspended_task(asyncio_runner, natively, None, log)
    assert log == ["finally"]


MAINS = [in_the_task, below_coroutines, in_nested_portals, in_async_generator]
# In 3.11 what is awaited might have been given up, unless it is a coroutine.
HIDDEN_BEFORE_3_12 = {in_async_generator}


@collects
@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_task_whose_loop_is_gone(asyncio_runner, main, shape):
    """It is unwound with GeneratorExit, so that `finally` blocks run, and freed."""
    log = []
    gone = drop_suspended_task(asyncio_runner, main, shape, log)
    if (sys.version_info < (3, 14) and shape in HIDDEN_BEFORE_3_14) or (
        sys.version_info < (3, 12) and main in HIDDEN_BEFORE_3_12
    ):
        assert not gone
        assert log == []
        return
    assert gone
    assert log == SHAPES[shape]


@pytest.mark.parametrize("kind", ["map", "class"])
def test_held_by_c_code(kind, asyncio_runner):
    """What C functions hold can't be seen: such a task is kept, and can go on."""
    log = []

    def sync(future):
        if kind == "map":
            log.extend(map(await_, [future]))
        else:

            class Body:
                held = future
                log.append(await_(future))

    async def main():
        await greenback.ensure_portal()
        sync(kept[0])

    async def finish():
        kept[0] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(main())
        tasks = [weakref.ref(task)]
        await asyncio.sleep(0)
        del task
        gc.collect()
        kept[0].set_result("result")
        await tasks[0]()

    kept = [None]
    asyncio_runner.run(finish)
    assert log == ["result"]


# --- coroutines driven by hand


class Cycle:
    """Refers to itself and to what it was given."""

    def __init__(self, held):
        self.held = held
        self.itself = self


async def call(sync_fn, args):
    # In 3.11 sync_fn(*args) would hand the arguments to C code.
    match args:
        case ():
            return sync_fn()
        case (first,):
            return sync_fn(first)
        case (first, second):
            return sync_fn(first, second)


def suspended(sync_fn, *args):
    """Make a coroutine whose step waits in *sync_fn*."""
    coroutine = with_portal_run(call, sync_fn, args)
    coroutine.send(None)
    return coroutine


def await_trap(log, held=None):
    try:
        await_(trap())
    finally:
        log.append("finally")


@collects
@pytest.mark.parametrize("wrap", [Cycle, lambda coroutine: (Cycle(coroutine),)])
def test_cycle_through_a_local(wrap):
    """The frames that wait are part of the cycle."""
    log = []
    box = []
    box.append(suspended(await_trap, log, box))
    wrap(box)
    gone = weakref.ref(box[0])
    del box
    gc.collect()
    assert log == ["finally"]
    assert gone() is None


def test_last_reference_given_up():
    """No collection is needed where there is no cycle."""
    log = []
    coroutine = suspended(await_trap, log)
    gc.disable()
    try:
        del coroutine
        assert log == ["finally"]
    finally:
        gc.enable()


@collects
def test_generator_that_is_being_executed():
    """It is left to the unwinding, and not finalized by the collector as well."""
    log = []
    box = []

    def generator():
        try:
            yield await_trap(log)
        finally:
            log.append("generator")

    def sync(held):
        gen = generator()
        return list(gen), held

    box.append(suspended(sync, box))
    del box
    gc.collect()  # the `strays` fixture would hear of "generator already executing"
    assert log == ["finally", "generator"]


def test_generators_can_be_finalized_afterwards():
    """Having been looked at while it was executed does a generator no harm."""
    log = []

    def generator():
        try:
            yield await_(trap())
        finally:
            log.append("generator")

    def sync():
        gen = generator()
        log.append(next(gen))
        return Cycle(gen)

    coroutine = suspended(sync)
    gc.collect()
    with pytest.raises(StopIteration):
        coroutine.send("sent")
    assert log == ["sent"]
    del coroutine
    gc.collect()
    assert log == ["sent", "generator"]


@collects
def test_finalizers_that_run_before():
    """Other objects of the same garbage are finalized once, in whatever order."""
    log = []

    class Loud(Cycle):
        def __del__(self):
            log.append("del")

    def sync(box):
        held = Loud(box)
        try:
            await_(trap())
        finally:
            log.append(type(held).__name__)

    box = []
    box.append(suspended(sync, box))
    del box
    gc.collect()
    gc.collect()
    assert sorted(log) == ["Loud", "del"]


@collects
def test_finally_that_refers_to_the_dead():
    """What is unwound may bring objects back to life."""
    saved = []

    def sync(held):
        try:
            await_(trap())
        finally:
            saved.append(held)

    box = []
    box.append(suspended(sync, box))
    del box
    gc.collect()
    (box,) = saved
    with pytest.raises(RuntimeError, match="already awaited"):
        box[0].send(None)


@collects
def test_await_in_a_finally_block_of_the_collector():
    """It can't wait while the garbage collector runs."""
    log = []

    def sync(held):
        try:
            await_(trap())
        finally:
            try:
                await_(trap())
            except RuntimeError as exc:
                log.append(str(exc))

    box = []
    box.append(suspended(sync, box))
    del box
    gc.collect()
    (message,) = log
    assert "garbage collector" in message


@collects
def test_no_collection_of_the_living():
    """Whatever refers to a task from outside keeps all of it."""
    log = []

    def sync():
        held = [object(), log]
        await_trap(log, held)
        return held

    coroutine = suspended(sync)
    for _ in range(3):
        gc.collect()
    assert log == []
    with pytest.raises(StopIteration) as caught:
        coroutine.send(None)
    assert caught.value.value[1] is log


@pytest.mark.parametrize("where", ["suspended", "resumed"])
def test_collection_at_each_step(runner, where):
    """Collections at any time find all references in order."""
    seen = []

    def sync(depth):
        held = [depth, Cycle(seen)]
        for item in (1, 2):
            with contextlib.suppress(KeyError):
                if where == "resumed":
                    gc.collect()
                await_(runner.checkpoint())
                if where == "resumed":
                    gc.collect()
                if item == 2 and depth:
                    sync(depth - 1)
                raise KeyError(held)
        seen.append(held[0])

    async def collector():
        for _ in range(12):
            gc.collect()
            await runner.checkpoint()

    async def main():
        await greenback.ensure_portal()
        child = runner.spawn(collector)
        sync(4)
        await child.join()

    runner.run(main)
    assert seen == [0, 1, 2, 3, 4]


@collects
@pytest.mark.overlaps
def test_below_the_collectors_own_frames():
    """Where the collector's frames would be moved, it is unwound when that has finished."""
    log = []
    in_collection = []

    class Finalized(Cycle):
        def __del__(self):
            in_collection.append(list(log))

    def deeper(depth):
        """Have C frames on the stack: two for each call."""
        if depth:
            return max([depth], key=lambda _: deeper(depth - 1))
        Finalized(Cycle(box.pop()))
        gc.collect()
        return depth

    box = []
    box.append(suspended(await_trap, log, box))
    gc.disable()
    try:
        deeper(100)
    finally:
        gc.enable()
    assert in_collection == [[]]
    assert log == ["finally"]


# --- threads


class Thread:
    """A thread that suspends a step, then does as it is told."""

    def __init__(self, sync_fn, *args):
        self.box = []
        self.orders = []
        self.ready = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.main, args=(sync_fn, args))
        self.thread.start()
        assert self.ready.acquire(timeout=30)

    def main(self, sync_fn, args):
        self.box.append(suspended(sync_fn, *args))
        while True:
            self.ready.release()
            assert self.go_on.acquire(timeout=30)
            if not self.orders:
                return
            self.orders.pop()()

    def call(self, fn):
        """Call *fn* in the thread."""
        self.orders.append(fn)
        self.go_on.release()
        assert self.ready.acquire(timeout=30)

    def end(self):
        self.go_on.release()
        self.thread.join()


def step_of_another():
    with pytest.raises(StopIteration):
        with_portal_run_sync(int).send(None)


@pytest.mark.parametrize("until", ["step", "collection", "end"])
def test_dropped_in_another_thread(until):
    """It is unwound by its own thread, as soon as that comes by."""
    log = []
    idents = []

    def sync():
        try:
            await_(trap())
        finally:
            log.append("finally")
            idents.append(threading.get_ident())

    thread = Thread(sync)
    ident = thread.thread.ident
    thread.box.clear()
    gc.collect()
    assert log == []
    if until == "step":
        thread.call(step_of_another)
    elif until == "collection":
        thread.call(gc.collect)
    if until != "end":
        assert log == ["finally"]
    thread.end()
    assert log == ["finally"]
    assert idents == [ident]


def test_cycle_beside_frames():
    """No engine has to look into frames for that one."""
    log = []
    box = [suspended(await_trap, log)]
    box.append(box)
    del box
    gc.collect()
    assert log == ["finally"]


def test_main_threads_dropped_in_another_thread():
    """The main thread is interrupted for it."""
    log = []
    box = [suspended(await_trap, log)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    for _ in range(1000):
        if log:
            break
    assert log == ["finally"]


def test_thread_that_has_ended():
    """Its stack is gone: all that can be done is to tell."""
    log = []
    thread = Thread(await_trap, log)
    thread.end()
    with pytest.warns(ResourceWarning, match="finally blocks will not run"):
        thread.box.clear()
    assert log == []


def test_many_dropped_in_another_thread():
    """None of them is forgotten, and none is unwound twice."""
    log = []
    threads = [Thread(await_trap, log) for _ in range(3)]
    for thread in threads:
        for _ in range(20):
            thread.call(lambda box=thread.box: box.append(suspended(await_trap, log)))
    for thread in threads:
        thread.box.clear()
    assert log == []
    for count, thread in enumerate(threads, 1):
        thread.end()
        assert log == ["finally"] * 21 * count


# --- frames that are giving values up


class Waits:
    """Its finalizer waits."""

    def __init__(self, future, log):
        self.future = future
        self.log = log

    def __del__(self):
        self.log.append(await_(self.future))


class Fails:
    """Cannot be awaited, called, asked."""

    def __await__(self):
        return self

    def __next__(self):
        raise LookupError

    def __call__(self):
        raise LookupError

    @property
    def value(self):
        raise LookupError

    @value.setter
    def value(self, _):
        pass


class WaitsAndFails(Waits, Fails):
    """Is given up by its own failure."""


def list_of(*args):
    return list(args)


async def fail_in_call(future, log):
    list_of(Waits(future, log), [[]], {"": []}, Fails()())


async def fail_in_await(future, log):
    list_of(Waits(future, log), [[]], {"": []}, await Fails())


async def fail_in_property(future, log):
    list_of(Waits(future, log), [[]], {"": []}, Fails().value)


async def fail_in_attribute_of_what_waits(future, log):
    WaitsAndFails(future, log).value += 1


async def fail_in_loop(future, log):
    for _ in [[]]:
        list_of(Waits(future, log), [[]], {"": []}, Fails()())


async def fail_in_with(future, log):
    with contextlib.ExitStack(), contextlib.ExitStack():
        list_of(Waits(future, log), [[]], {"": []}, Fails()())


async def fail_once_more(future, log):
    try:
        Fails()()
    except LookupError:
        list_of(Waits(future, log), [[]], {"": []}, Fails()())


ignore = "".format  # a C function that takes anything


async def call_builtin(future, log):
    ignore([[]], Waits(future, log), [[]], {"": []})


async def call_with_keywords(future, log):
    ignore([[]], a=Waits(future, log), b=[[]], c={"": []})


async def call_with_unpacking(future, log):
    ignore(*[[[]], Waits(future, log), [[]], {"": []}])


async def get_attribute(future, log):
    list_of([[]], Waits(future, log).log, [[]])


async def compare(future, log):
    list_of([[]], Waits(future, log) == [[]], [[]])


async def overwrite(future, log):
    waits = Waits(future, log)
    list_of([[]], waits := [[]], [[]])  # noqa: F841


async def iterate(future, log):
    for _ in (waits for waits in [Waits(future, log)]):
        pass


async def unpack(future, log):
    (_,) = [Waits(future, log)]
    _ = [[]]


GIVE_UP = [
    fail_in_call,
    fail_in_await,
    fail_in_property,
    fail_in_attribute_of_what_waits,
    fail_in_loop,
    fail_in_with,
    fail_once_more,
    call_builtin,
    call_with_keywords,
    call_with_unpacking,
    get_attribute,
    compare,
    overwrite,
    iterate,
    unpack,
]


@pytest.mark.parametrize("give_up", GIVE_UP)
def test_values_that_are_given_up(give_up, asyncio_runner):
    """One of them waits, and the collector runs: it must not look at those gone before."""
    log = []

    async def with_portal(future):
        await greenback.ensure_portal()
        with contextlib.suppress(LookupError):
            await give_up(future, log)

    async def main():
        for _ in range(3):  # specialized code as well
            future = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(with_portal(future))
            for _ in range(3):
                await asyncio.sleep(0)
                gc.collect()
                # Take the place of what has gone.
                held = [[{"": [number]}] for number in range(100)]
                gc.collect()
                assert len(held) == 100
            assert not task.done()
            future.set_result("waited")
            await task

    asyncio_runner.run(main)
    assert log == ["waited"] * 3


# --- what Python 3.11 to 3.13 leave to us


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="frames tell it themselves")
def test_values_on_the_stack():
    """The bytecode tells how deep the value stack is; so does a suspended generator."""
    from greenback._core import values_below

    def generator():
        for _ in [1]:
            with contextlib.nullcontext():
                for _ in [2]:
                    try:
                        yield [3, (4, (yield))]
                    finally:
                        yield

    yields = [
        ins.offset // 2
        for ins in dis.get_instructions(generator)
        if ins.opname == "YIELD_VALUE"
    ]
    # iterator, exit function, iterator; then the unfinished list and tuple
    depths = [values_below(generator.__code__, offset) for offset in yields]
    assert depths[:3] == [5, 3, 3]
    assert values_below(generator.__code__, -1) == 0
    assert values_below(generator.__code__, 10**6) == 0
