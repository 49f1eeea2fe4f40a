"""await_(): what it accepts, where it may be called, what it gives."""

import asyncio
import collections
import collections.abc
import contextlib
import copy
import ctypes
import functools
import gc
import heapq
import io
import itertools
import json
import pickle
import re
import sqlite3
import types
import weakref
import xml.parsers.expat

import pytest

from greenback import await_, ensure_portal, has_portal, with_portal_run_sync


def asker(runner):
    """A sync function that gives back its argument, by way of the event loop."""

    async def answer(value):
        await runner.checkpoint()
        return value

    def ask(value):
        return await_(answer(value))

    return ask


def dive(depth, fn):
    return fn() if depth == 0 else dive(depth - 1, fn)


# --- plain use


def test_gives_the_result(runner, portal_kind):
    def sync():
        assert has_portal()
        ask = asker(runner)
        return [ask(n) for n in range(5)]

    async def main():
        return await portal_kind(sync)

    assert runner.run(main) == [0, 1, 2, 3, 4]


def test_other_tasks_run_while_sync_code_waits(runner, portal_kind):
    async def main():
        asked, answered = runner.Event(), runner.Event()

        def sync():
            asked.set()
            await_(answered.wait())
            return "answered"

        async def other():
            await asked.wait()
            answered.set()

        child = runner.spawn(other)
        assert await portal_kind(sync) == "answered"
        await child.join()

    runner.run(main)


@pytest.mark.parametrize("depth", [0, 1, 30, 500])
def test_depth(runner, portal_kind, depth):
    async def main():
        ask = asker(runner)
        first = await portal_kind(dive, depth, lambda: ask("first"))
        return first, await portal_kind(dive, depth, lambda: (ask(1), ask(2)))

    assert runner.run(main) == ("first", (1, 2))


def test_no_trip_to_the_loop_if_nothing_yields(runner, portal_kind):
    async def at_once():
        return "value"

    async def main():
        log = []
        start = runner.Event()

        async def other():
            await start.wait()
            log.append("other task")

        def sync():
            start.set()
            for _ in range(50):
                assert await_(at_once()) == "value"
            log.append("sync code")

        child = runner.spawn(other)
        await runner.settle()
        await portal_kind(sync)
        await child.join()
        return log

    assert runner.run(main) == ["sync code", "other task"]


def test_one_trip_for_each_checkpoint(runner):
    async def main():
        await ensure_portal()
        log = []

        async def other():
            for n in range(4):
                log.append(f"other {n}")
                await runner.checkpoint()

        def sync():
            for n in range(4):
                log.append(f"sync {n}")
                await_(runner.checkpoint())

        async def sync_in_child():
            await ensure_portal()
            await start.wait()
            sync()

        async def other_in_child():
            await start.wait()
            await other()

        start = runner.Event()
        children = [runner.spawn(sync_in_child), runner.spawn(other_in_child)]
        await runner.settle()
        start.set()
        for child in children:
            await child.join()
        return log

    log = runner.run(main)
    # Each round has both, whichever the loop runs first.
    for n in range(4):
        assert sorted(log[2 * n : 2 * n + 2]) == [f"other {n}", f"sync {n}"]


def test_async_code_in_between(runner, portal_kind):
    """A task with a portal goes on awaiting natively as before."""

    async def main():
        ask = asker(runner)
        await ensure_portal()
        total = 0
        for n in range(10):
            await runner.checkpoint()
            total += await portal_kind(ask, n)
        return total

    assert runner.run(main) == 45


# --- C frames between await_ and the portal


class Lazy:
    """All its special methods ask."""

    def __init__(self, ask):
        self.ask = ask

    def __getattr__(self, name):
        return self.ask(name.upper())

    def __getitem__(self, key):
        if key >= 3:
            raise IndexError
        return self.ask(key)

    def __len__(self):
        return self.ask(7)

    def __bool__(self):
        return self.ask(False)

    def __contains__(self, item):
        return self.ask(item == 1)

    def __repr__(self):
        return self.ask("repr")

    def __str__(self):
        return self.ask("str")

    def __format__(self, spec):
        return self.ask(spec)

    def __index__(self):
        return self.ask(3)

    def __add__(self, other):
        return self.ask(other + 1)

    def __radd__(self, other):
        return self.ask(other + 2)

    def __call__(self, *args, **kwds):
        return self.ask((args, kwds))

    def __enter__(self):
        return self.ask("entered")

    def __exit__(self, *exc):
        return self.ask(True)

    def __deepcopy__(self, memo):
        return self.ask("copy")


class Key:
    def __init__(self, ask, value):
        self.ask, self.value = ask, value

    def __hash__(self):
        return self.ask(hash(self.value) % 2)  # with collisions, so __eq__ runs

    def __eq__(self, other):
        return self.ask(self.value == other.value)

    def __lt__(self, other):
        return self.ask(self.value < other.value)


def via_dict_key(ask):
    table = {Key(ask, n): n for n in range(6)}
    table[Key(ask, 4)] = "four"
    return table[Key(ask, 4)], table[Key(ask, 3)], len(table), Key(ask, 9) in table


def via_missing(ask):
    class Table(dict):
        def __missing__(self, key):
            return ask(key)

    return Table()["absent"], "{absent}".format_map(Table())


def via_del(ask):
    seen = []

    class Resource:
        def __del__(self):
            seen.append(ask("closed"))

    resource = Resource()
    del resource
    return seen


def via_weakref(ask):
    seen = []

    class Target:
        pass

    target = Target()
    ref = weakref.ref(target, lambda ref: seen.append(ask("gone")))
    del target
    return seen, ref()


def via_property(ask):
    class Owner:
        @property
        def value(self):
            return ask(1)

        @value.setter
        def value(self, new):
            self.kept = ask(new)

        @functools.cached_property
        def cached(self):
            return ask(2)

    owner = Owner()
    owner.value = 5
    return owner.value, owner.kept, owner.cached, owner.cached


def via_descriptor(ask):
    class Descriptor:
        def __set_name__(self, owner, name):
            self.name = ask(name)

        def __get__(self, instance, owner):
            return ask(self.name)

        def __set__(self, instance, value):
            instance.kept = ask(value)

        def __delete__(self, instance):
            instance.kept = ask("deleted")

    class Owner:
        field = Descriptor()

    owner = Owner()
    owner.field = 1
    before = owner.kept
    del owner.field
    return owner.field, before, owner.kept


def via_lru_cache(ask):
    calls = []

    @functools.lru_cache
    def cached(n):
        calls.append(n)
        return ask(n)

    return [cached(n) for n in (1, 2, 1, 2)], calls


def via_contextlib(ask):
    seen = []

    @contextlib.contextmanager
    def manager():
        seen.append(ask("in"))
        try:
            yield ask("value")
        finally:
            seen.append(ask("out"))

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: seen.append(ask("callback")))
        seen.append(stack.enter_context(manager()))
    return seen


def via_class_creation(ask):
    class Meta(type):
        @classmethod
        def __prepare__(cls, name, bases, **kwds):
            return {"prepared": ask(1)}

        def __new__(cls, name, bases, namespace):
            namespace["made"] = ask(2)
            return super().__new__(cls, name, bases, dict(namespace))

        def __call__(cls, *args):
            return ask((cls.prepared, cls.made, *args))

    class Made(metaclass=Meta):
        pass

    return Made(3)


def via_ctypes(ask):
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(ask)
    return callback(5), callback(6)


def via_sqlite(ask):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.create_function("ask", 1, ask)
        rows = connection.execute("select ask(column1) from (values (1), (2))")
        return [value for (value,) in rows]


def via_expat(ask):
    seen = []
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = lambda name, attrs: seen.append(ask(name))
    parser.Parse("<a><b/></a>", True)
    return seen


def via_print(ask):
    class File(io.StringIO):
        def write(self, text):
            return super().write(ask(text))

    file = File()
    print("x", 1, file=file)
    return file.getvalue()


def via_pickle(ask):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ask(None)

    file = io.BytesIO()
    Pickler(file).dump([1, 2])
    return pickle.loads(file.getvalue())


def via_heap(ask):
    heap = []
    for n in (3, 1, 2):
        heapq.heappush(heap, Key(ask, n))
    return [heapq.heappop(heap).value for _ in range(3)]


def via_sort_methods(ask):
    keys = [Key(ask, n) for n in (3, 1, 2)]
    keys.sort()
    numbers = [3, 1, 2]
    numbers.sort(key=ask, reverse=True)
    return [key.value for key in keys], numbers


def via_with(ask):
    with Lazy(ask) as value:
        raise ValueError(value)
    return value


C_FRAMES = {
    "map": (lambda ask: list(map(ask, [1, 2, 3])), [1, 2, 3]),
    "filter": (lambda ask: list(filter(ask, [0, 1, 2])), [1, 2]),
    "sorted": (lambda ask: sorted([3, 1, 2], key=ask), [1, 2, 3]),
    "min, max": (lambda ask: (min([3, 1], key=ask), max([3, 1], key=ask)), (1, 3)),
    "sum": (lambda ask: sum(ask(n) for n in [1, 2]), 3),
    "reduce": (lambda ask: functools.reduce(lambda a, b: ask(a + b), [1, 2, 3]), 6),
    "partial": (lambda ask: functools.partial(ask, 1)(), 1),
    "accumulate": (
        lambda ask: list(itertools.accumulate([1, 2], lambda a, b: ask(a + b))),
        [1, 3],
    ),
    "starmap": (lambda ask: list(itertools.starmap(ask, [(1,), (2,)])), [1, 2]),
    "takewhile": (
        lambda ask: list(itertools.takewhile(lambda n: ask(n) < 2, itertools.count())),
        [0, 1],
    ),
    "iter(callable, sentinel)": (
        lambda ask: list(iter(map(ask, [1, 2, 0]).__next__, 0)),
        [1, 2],
    ),
    "json object_hook": (
        lambda ask: json.loads(
            '[{"a": {"b": 1}}, {}]', object_hook=lambda d: ask(len(d))
        ),
        [1, 0],
    ),
    "json default": (
        lambda ask: json.dumps([{1}], default=lambda s: ask(list(s))),
        "[[1]]",
    ),
    "re.sub": (lambda ask: re.sub("[ab]", lambda m: ask(m[0] * 2), "abc"), "aabbc"),
    "__getattr__": (
        lambda ask: (Lazy(ask).name, hasattr(Lazy(ask), "x")),
        ("NAME", True),
    ),
    "__getitem__": (lambda ask: list(Lazy(ask)), [0, 1, 2]),
    "__len__": (lambda ask: len(Lazy(ask)), 7),
    "__bool__": (lambda ask: not Lazy(ask), True),
    "__contains__": (lambda ask: (1 in Lazy(ask), 2 in Lazy(ask)), (True, False)),
    "__repr__": (lambda ask: f"{[Lazy(ask)]!r} %r" % Lazy(ask), "[repr] repr"),
    "__str__": (lambda ask: f"{Lazy(ask)!s} %s" % Lazy(ask), "str str"),
    "__format__": (lambda ask: f"{Lazy(ask):spec}", "spec"),
    "__index__": (
        lambda ask: ("abcde"[Lazy(ask)], list(range(Lazy(ask)))),
        ("d", [0, 1, 2]),
    ),
    "__add__": (lambda ask: (Lazy(ask) + 1, 1 + Lazy(ask)), (2, 3)),
    "__call__": (lambda ask: Lazy(ask)(1, k=2), ((1,), {"k": 2})),
    "__deepcopy__": (lambda ask: copy.deepcopy([Lazy(ask)]), ["copy"]),
    "with": (via_with, "entered"),
    "dict keys": (via_dict_key, ("four", 3, 6, False)),
    "__missing__": (via_missing, ("absent", "absent")),
    "defaultdict": (lambda ask: collections.defaultdict(lambda: ask(1))["x"], 1),
    "__del__": (via_del, ["closed"]),
    "weakref callback": (via_weakref, (["gone"], None)),
    "property": (via_property, (1, 5, 2, 2)),
    "descriptor": (via_descriptor, ("field", 1, "deleted")),
    "lru_cache": (via_lru_cache, ([1, 2, 1, 2], [1, 2])),
    "contextlib": (via_contextlib, ["in", "value", "out", "callback"]),
    "metaclass": (via_class_creation, (1, 2, 3)),
    "eval, exec": (lambda ask: eval("[ask(n) for n in (1, 2)]", {"ask": ask}), [1, 2]),
    "ctypes callback": (via_ctypes, (5, 6)),
    "sqlite3 function": (via_sqlite, [1, 2]),
    "expat handler": (via_expat, ["a", "b"]),
    "print": (via_print, "x 1\n"),
    "pickle": (via_pickle, [1, 2]),
    "heapq": (via_heap, [1, 2, 3]),
    "list.sort": (via_sort_methods, ([1, 2, 3], [3, 2, 1])),
}


@pytest.mark.parametrize("name", C_FRAMES)
def test_through_c_frames(runner, name):
    fn, expected = C_FRAMES[name]
    assert runner.run_sync(fn, asker(runner)) == expected


def test_tasks_interleaved_in_c_frames(runner):
    """Every task is suspended in another C frame, and they take turns."""

    async def main():
        async def child(fn):
            return await with_portal_run_sync(fn, asker(runner))

        cases = [case for case in C_FRAMES.values() for _ in range(3)]
        results = await runner.run_concurrently(
            *[functools.partial(child, fn) for fn, _ in cases]
        )
        assert results == [expected for _, expected in cases]

    runner.run(main)


def test_finalizer_in_a_collector_run_is_refused(runner, strays):
    """Its C frames cannot be left waiting; what it wanted to await is closed."""
    outcome = []

    async def clean_up():
        try:
            await runner.checkpoint()
            outcome.append("resumed")
        finally:
            outcome.append("closed")

    class Cyclic:
        def __init__(self):
            self.me = self

        def __del__(self):
            try:
                await_(clean_up())
            except RuntimeError:
                outcome.append("refused")

    def sync():
        Cyclic()
        gc.collect()
        await_(runner.checkpoint())

    gc.disable()
    try:
        runner.run_sync(sync)
    finally:
        gc.enable()
    assert outcome in (["closed", "refused"], ["refused"])


# --- nested await_, generators, async generators


@pytest.mark.parametrize("levels", [2, 3, 25])
def test_nested(runner, portal_kind, levels):
    async def level(n):
        await runner.checkpoint()
        if n:
            inner = dive(n % 4, lambda: await_(level(n - 1)))
            await runner.checkpoint()
            return [n, *inner]
        return [0]

    async def main():
        return await portal_kind(lambda: await_(level(levels)))

    assert runner.run(main) == list(range(levels, -1, -1))


def test_generator(runner):
    def numbers(ask, log):
        try:
            for n in range(3):
                got = yield ask(n)
                if got is not None:
                    log.append(ask(got))
        except KeyError as exc:
            log.append(ask(exc.args))
            yield "caught"
        finally:
            log.append(ask("finally"))

    def delegating(ask, log):
        return (yield from numbers(ask, log))

    def sync():
        ask = asker(runner)
        for make in numbers, delegating:
            log = []
            assert list(make(ask, log)) == [0, 1, 2]
            assert log == ["finally"]

            log.clear()
            generator = make(ask, log)
            assert next(generator) == 0
            assert generator.send("sent") == 1
            assert generator.throw(KeyError("thrown")) == "caught"
            assert next(generator, "end") == "end"
            assert log == ["sent", ("thrown",), "finally"]

            log.clear()
            generator = make(ask, log)
            next(generator)
            generator.close()
            assert log == ["finally"]

            log.clear()
            generator = make(ask, log)
            next(generator)
            del generator
            assert log == ["finally"]

    runner.run_sync(sync)


def test_generator_suspended_in_await_is_executing(runner):
    async def main():
        await ensure_portal()
        proceed = runner.Event()

        def numbers():
            await_(proceed.wait())
            yield 1

        generator = numbers()
        child = runner.spawn(with_portal_run_sync, next, generator)
        await runner.settle()
        assert generator.gi_running
        with pytest.raises(ValueError, match="generator already executing"):
            next(generator)
        proceed.set()
        assert await child.join() == 1
        assert list(generator) == []

    runner.run(main)


def test_generator_shared_by_tasks(runner):
    """A generator may be resumed by another task than the one before."""

    def numbers():
        for n in range(6):
            yield asker(runner)(n)

    async def main():
        generator = numbers()
        results = []
        for _ in range(6):
            results += await runner.run_concurrently(
                functools.partial(with_portal_run_sync, next, generator)
            )
        return results

    assert runner.run(main) == list(range(6))


def test_async_generator(runner):
    async def numbers(log):
        ask = asker(runner)
        try:
            for n in range(3):
                await runner.checkpoint()
                got = yield ask(n)
                if got is not None:
                    log.append(ask(got))
        except KeyError:
            yield await_(echo(runner, "caught"))
        finally:
            log.append(ask("finally"))

    async def main():
        await ensure_portal()
        log = []
        assert [n async for n in numbers(log)] == [0, 1, 2]

        def sync():
            agen = numbers(log)
            assert await_(agen.__anext__()) == 0
            assert await_(agen.asend("sent")) == 1
            assert await_(agen.athrow(KeyError())) == "caught"
            with pytest.raises(StopAsyncIteration):
                await_(agen.__anext__())
            agen = numbers(log)
            assert await_(agen.__anext__()) == 0
            await_(agen.aclose())

        sync()
        assert log == ["finally", "sent", "finally", "finally"]

    runner.run(main)


async def echo(runner, value):
    await runner.checkpoint()
    return value


# --- many tasks


def test_tasks_interleaved_at_different_depths(runner):
    async def worker(seed):
        await ensure_portal()
        ask = asker(runner)
        total = 0
        for n in range(20):
            depth = (seed * 7 + n * 5) % 40
            total += dive(depth, lambda n=n: ask(n))
            if (seed + n) % 3 == 0:
                await runner.checkpoint()
        return seed, total

    async def main():
        return await runner.run_concurrently(
            *[functools.partial(worker, seed) for seed in range(40)]
        )

    assert runner.run(main) == [(seed, 190) for seed in range(40)]


def test_ten_thousand_tasks(runner):
    count = 10_000

    async def main():
        proceed = runner.Event()
        waiting = 0

        def sync(n):
            nonlocal waiting
            waiting += 1
            await_(proceed.wait())
            return n

        async def worker(n):
            return await with_portal_run_sync(dive, n % 31, lambda: sync(n))

        async def release():
            while waiting < count:
                await runner.checkpoint()
            proceed.set()

        *results, _ = await runner.run_concurrently(
            *[functools.partial(worker, n) for n in range(count)], release
        )
        assert results == list(range(count))

    runner.run(main)


# --- what it accepts: each thing must behave as with a native await


def coroutine(runner):
    return echo(runner, "value")


def generator_based(runner):
    @types.coroutine
    def body():
        yield from echo(runner, None).__await__()
        return "value"

    return body()


class WithAwait:
    def __init__(self, fn):
        self.fn = fn

    def __await__(self):
        return self.fn()


def awaits_by_generator(runner):
    def generator():
        yield from echo(runner, None).__await__()
        return "value"

    return WithAwait(generator)


class Driver(collections.abc.Coroutine):
    """A coroutine written as a Python class."""

    def __init__(self, coro):
        self.coro = coro
        self.calls = []

    def send(self, value):
        self.calls.append("send")
        return self.coro.send(value)

    def throw(self, *args):
        self.calls.append("throw")
        return self.coro.throw(*args)

    def close(self):
        self.calls.append("close")
        return self.coro.close()

    def __await__(self):
        return self.coro.__await__()


class ForwardingIterator:
    def __init__(self, coro):
        self.coro = coro

    def __iter__(self):
        return self

    def __next__(self):
        return self.coro.send(None)

    def send(self, value):
        return self.coro.send(value)

    def throw(self, *args):
        return self.coro.throw(*args)


class NextOnly:
    """An iterator with nothing but __next__."""

    def __init__(self, coro):
        self.coro = coro

    def __iter__(self):
        return self

    def __next__(self):
        return self.coro.send(None)


AWAITABLES = {
    "coroutine": coroutine,
    "generator-based coroutine": generator_based,
    "__await__ is a generator": awaits_by_generator,
    "__await__ gives coroutine_wrapper": (
        lambda runner: WithAwait(coroutine(runner).__await__)
    ),
    "__await__ gives a Python iterator": (
        lambda runner: WithAwait(lambda: ForwardingIterator(coroutine(runner)))
    ),
    "Coroutine in Python": lambda runner: Driver(coroutine(runner)),
}


@pytest.mark.parametrize("name", AWAITABLES)
def test_awaitables(runner, portal_kind, name):
    async def main():
        make = AWAITABLES[name]
        assert await make(runner) == "value"
        return await portal_kind(lambda: await_(make(runner)))

    assert runner.run(main) == "value"


def test_python_coroutine_is_driven_by_its_own_methods(runner):
    async def main():
        await ensure_portal()
        driver = Driver(coroutine(runner))
        assert await_(driver) == "value"
        assert driver.calls == ["send", "send"]

        failing = Driver(runner.sleep_forever())

        async def child():
            await with_portal_run_sync(await_, failing)

        task = runner.spawn(child)
        await runner.settle()
        task.cancel()
        with pytest.raises(runner.ChildCancelled):
            await task.join()
        # Trio sends errors as values, to be raised by its own code.
        expected = "throw" if runner.library == "asyncio" else "send"
        assert failing.calls == ["send", expected]

    runner.run(main)


def test_coroutine_registered_with_the_abc(runner):
    class Registered:
        def __init__(self, coro):
            self.send, self.throw, self.close = coro.send, coro.throw, coro.close

    collections.abc.Coroutine.register(Registered)
    assert runner.run_sync(lambda: await_(Registered(coroutine(runner)))) == "value"


@pytest.mark.parametrize(
    "make",
    [
        lambda: WithAwait(lambda: iter(())),
        lambda: WithAwait(lambda: iter([None, None])),
        lambda: WithAwait(lambda: map([].extend, ["ab", "c"])),
        lambda: WithAwait(lambda: NextOnly(asyncio.sleep(0, "value"))),
    ],
    ids=["empty tuple iterator", "list iterator", "map", "only __next__"],
)
def test_iterators_without_send(asyncio_runner, make):
    async def main():
        await ensure_portal()
        return await_(make()), await make()

    ours, native = asyncio_runner.run(main)
    assert ours == native


ASYNCIO_AWAITABLES = {
    "future": lambda loop: soon(loop, loop.create_future()),
    "finished future": lambda loop: finished(loop.create_future()),
    "Python future": lambda loop: soon(loop, asyncio.futures._PyFuture(loop=loop)),
    "task": lambda loop: loop.create_task(asyncio.sleep(0, "value")),
    "gather": lambda loop: asyncio.gather(asyncio.sleep(0), asyncio.sleep(0, "b")),
    "shield": lambda loop: asyncio.shield(asyncio.sleep(0, "value")),
    "wait_for": lambda loop: asyncio.wait_for(asyncio.sleep(0, "value"), 60),
    "wait_for a future": lambda loop: asyncio.wait_for(
        soon(loop, loop.create_future()), 60
    ),
    "to_thread": lambda loop: asyncio.to_thread(lambda: "value"),
    "executor": lambda loop: loop.run_in_executor(None, lambda: "value"),
}


def soon(loop, future):
    loop.call_soon(future.set_result, "value")
    return future


def finished(future):
    future.set_result("value")
    return future


@pytest.mark.parametrize("name", ASYNCIO_AWAITABLES)
def test_asyncio_awaitables(asyncio_runner, name):
    make = ASYNCIO_AWAITABLES[name]

    async def main():
        await ensure_portal()
        loop = asyncio.get_running_loop()
        native = await make(loop)
        assert native in ("value", [None, "b"])
        assert await_(make(loop)) == native

    asyncio_runner.run(main)


def test_asyncio_primitives(asyncio_runner):
    async def main():
        await ensure_portal()
        queue, lock = asyncio.Queue(maxsize=1), asyncio.Lock()

        async def consume():
            return [await queue.get() for _ in range(5)]

        def produce():
            for n in range(5):
                await_(queue.put(n))

        child = asyncio_runner.spawn(consume)
        produce()
        assert await child.join() == [0, 1, 2, 3, 4]
        assert await_(lock.acquire())
        assert lock.locked()

        def hold_while(fn):
            with pytest.raises(TimeoutError):
                await_(asyncio.wait_for(fn(), 0))

        hold_while(lock.acquire)

    asyncio_runner.run(main)


def test_trio_primitives(trio_runner):
    trio = trio_runner.trio

    async def main():
        await ensure_portal()
        send, receive = trio.open_memory_channel(0)

        async def consume():
            return [await receive.receive() for _ in range(5)]

        child = trio_runner.spawn(consume)
        for n in range(5):
            await_(send.send(n))
        assert await child.join() == [0, 1, 2, 3, 4]

        assert await_(trio.to_thread.run_sync(lambda: "value")) == "value"
        lock = trio.Lock()
        await_(lock.acquire())
        assert lock.locked()
        task = trio.lowlevel.current_task()
        trio.lowlevel.current_trio_token().run_sync_soon(
            trio.lowlevel.reschedule, task, trio_outcome("sent")
        )
        assert (
            await_(
                trio.lowlevel.wait_task_rescheduled(
                    lambda _: trio.lowlevel.Abort.FAILED
                )
            )
            == "sent"
        )

    def trio_outcome(value):
        import outcome

        return outcome.Value(value)

    trio_runner.run(main)


# --- what it refuses: the same error as a native await


def plain_generator():
    yield


async def async_generator():
    yield


class InstanceAwait:
    def __init__(self):
        self.__await__ = lambda: iter(())


class AwaitIsNone:
    __await__ = None


async def unstarted():
    pass


def await_raises():
    raise LookupError("from __await__")


def closed_coroutine():
    coro = unstarted()
    coro.close()
    return coro


REFUSED = {
    "None": lambda: None,
    "int": lambda: 1,
    "str": lambda: "text",
    "type": lambda: WithAwait,
    "function": lambda: plain_generator,
    "async function": lambda: unstarted,
    "generator": plain_generator,
    "async generator": async_generator,
    "iterator": lambda: iter([]),
    "__await__ on the instance": InstanceAwait,
    "__await__ is None": AwaitIsNone,
    "__await__ raises": lambda: WithAwait(await_raises),
    "__await__ gives None": lambda: WithAwait(lambda: None),
    "__await__ gives an int": lambda: WithAwait(lambda: 1),
    "__await__ gives an iterable": lambda: WithAwait(lambda: [1]),
    "__await__ gives a coroutine": lambda: WithAwait(closed_coroutine),
    "__await__ gives an awaitable": lambda: WithAwait(lambda: WithAwait(list)),
    "closed coroutine": closed_coroutine,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_by_native_await(runner, name):
    async def main():
        await ensure_portal()
        make = REFUSED[name]
        with pytest.raises(Exception) as native:
            await make()
        with pytest.raises(Exception) as ours:
            await_(make())
        assert type(ours.value) is type(native.value)
        assert str(ours.value) == str(native.value)
        assert ours.value.__context__ is None

    runner.run(main)


def test_finished_coroutine(runner):
    def sync():
        coro = coroutine(runner)
        assert await_(coro) == "value"
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            await_(coro)

    runner.run_sync(sync)


def test_coroutine_that_is_running(runner):
    async def main():
        await ensure_portal()

        async def itself():
            with pytest.raises(ValueError, match="coroutine already executing"):
                await_(me)
            return "unharmed"

        me = itself()
        assert await_(me) == "unharmed"

    runner.run(main)


@pytest.mark.parametrize(
    "args, kwds", [((), {}), ((1, 2), {}), ((), {"aw": 1, "x": 2})]
)
def test_wrong_arguments(args, kwds):
    with pytest.raises(TypeError):
        await_(*args, **kwds)


# --- a loop written by hand sees the very traps


@types.coroutine
def trap(value):
    return (yield value)


def test_traps_and_answers_pass_unchanged():
    marker = object()

    def sync():
        first = await_(trap(marker))
        second = await_(trap(None))
        with pytest.raises(KeyError) as caught:
            await_(trap("error"))
        return first, second, caught.value

    error = KeyError("from the loop")
    coro = with_portal_run_sync(sync)
    assert coro.send(None) is marker
    answer = object()
    assert coro.send(answer) is None
    assert coro.send(StopIteration) == "error"
    with pytest.raises(StopIteration) as stop:
        coro.throw(error)
    assert stop.value.value == (answer, StopIteration, error)
    assert stop.value.value[0] is answer
