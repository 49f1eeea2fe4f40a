"""with_portal_run() under coroutine runners that greenback knows nothing of.

All that it needs of them is that they send to, throw into and close coroutines.
Each kind of runner is an adapter class here. Some are real ones, from PyPI, and
left out where they are not installed; the others show what may come along.

What is tested are comparisons: the same program with native coroutines and with
sync code in portals has to do the same in the same order.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import importlib
import inspect
import itertools
import threading
import types
import weakref

import pytest
import sniffio

import greenback
from greenback import await_, has_portal, with_portal_run, with_portal_run_sync

# --- the runners ------------------------------------------------------------------------


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed ({error})")
    except AttributeError as error:
        # curio 1.6 asks for what Python 3.12 has no more.
        pytest.skip(f"{name} can't be imported on this Python ({error})")


@types.coroutine
def trap(value):
    """Yield to whatever runs us; give its answer."""
    return (yield value)


class Curio:
    """curio: a kernel with traps, tasks and sockets of its own."""

    name = "curio"

    def __init__(self):
        self.curio = load("curio")
        self.cancelled = self.curio.TaskCancelled

    def run(self, *fns):
        """Run the async functions as tasks, at once; give their results."""

        async def main():
            tasks = [await self.curio.spawn(fn) for fn in fns]
            # join() hides the exception of a task in one of its own.
            for task in tasks:
                await task.wait()
            for task in tasks:
                if task.exception is not None:
                    raise task.exception
            return [task.result for task in tasks]

        return self.curio.run(main)

    def run_and_cancel(self, fn):
        """Run it as a task, and cancel that where it first waits."""

        async def main():
            task = await self.curio.spawn(fn)
            await self.pause()
            await task.cancel()

        self.curio.run(main)

    async def pause(self):
        """Let other tasks run."""
        await self.curio.sleep(0)

    def Queue(self):
        """Make something with ``await put(value)`` and ``await get()``."""
        return self.curio.Queue()


class Usim:
    """usim: discrete event simulation, with a time that does not pass by itself."""

    name = None

    def __init__(self):
        self.usim = load("usim")
        self.cancelled = self.usim.CancelTask

    def run(self, *fns):
        results = []

        async def main():
            async with self.usim.Scope() as scope:
                tasks = [scope.do(fn()) for fn in fns]
            for task in tasks:
                results.append(await task)

        try:
            self.usim.run(main())
        except self.usim.Concurrent as group:
            (error,) = group.children
            raise error from None
        return results

    def run_and_cancel(self, fn):
        async def main():
            async with self.usim.Scope() as scope:
                task = scope.do(fn())
                await self.pause()
                task.cancel()

        self.usim.run(main())

    async def pause(self):
        await self.usim.instant

    def Queue(self):
        queue = self.usim.Queue()
        queue.get = functools.partial(self.get, queue)
        return queue

    async def get(self, queue):
        return await queue


class Asyncgui:
    """asyncgui: tasks that callbacks of a GUI resume; here we are the GUI."""

    name = None

    def __init__(self):
        self.asyncgui = load("asyncgui")
        self.cancelled = self.asyncgui.Cancelled
        self.ready = collections.deque()

    def run(self, *fns):
        tasks = [self.asyncgui.start(fn()) for fn in fns]
        while self.ready:
            self.ready.popleft().fire()
        assert all(task.finished for task in tasks)
        return [task.result for task in tasks]

    def run_and_cancel(self, fn):
        task = self.asyncgui.start(fn())
        task.cancel()
        assert task.cancelled

    async def pause(self):
        event = self.asyncgui.ExclusiveEvent()
        self.ready.append(event)
        await event.wait()

    def Queue(self):
        return EventQueue(self.asyncgui.Event, lambda event: event.fire())


class EventQueue:
    """A queue made of events that tasks wait for."""

    def __init__(self, make_event, set_event):
        self.make_event, self.set_event = make_event, set_event
        self.values = collections.deque()
        self.events = collections.deque()

    async def put(self, value):
        self.values.append(value)
        if self.events:
            self.set_event(self.events.popleft())

    async def get(self):
        while not self.values:
            event = self.make_event()
            self.events.append(event)
            await event.wait()
        return self.values.popleft()


class Tinyio:
    """tinyio: whose coroutines are generators that yield what they wait for."""

    name = None

    def __init__(self):
        self.tinyio = load("tinyio")
        self.cancelled = self.tinyio.CancelledError

    def as_generator(self, fn):
        return (yield from fn().__await__())

    def run(self, *fns):
        def main():
            return (yield [self.as_generator(fn) for fn in fns])

        return self.tinyio.Loop().run(main(), exception_group=False)

    def run_and_cancel(self, fn):
        class Reason(Exception):
            pass

        def cancels():
            yield
            yield
            raise Reason

        def main():
            yield [self.as_generator(fn), cancels()]

        with pytest.raises(Reason):
            self.tinyio.Loop().run(main(), exception_group=False)

    async def pause(self):
        await trap(None)

    def Queue(self):
        return EventQueue(
            lambda: TinyioEvent(self.tinyio.Event()), lambda event: event.event.set()
        )


class TinyioEvent:
    def __init__(self, event):
        self.event = event

    async def wait(self):
        await trap(self.event.wait())


class Cancelled(BaseException):
    """What our own runners throw."""


class RoundRobin:
    """The simplest scheduler of all: a queue of coroutines, no task objects."""

    name = None
    cancelled = Cancelled

    def __init__(self):
        self.queue = collections.deque()

    def run(self, *fns):
        results = [None] * len(fns)
        self.queue.extend((i, fn()) for i, fn in enumerate(fns))
        while self.queue:
            number, coro = self.queue.popleft()
            try:
                assert coro.send(None) == "pause"
            except StopIteration as stop:
                results[number] = stop.value
            except BaseException:
                for _, other in self.queue:
                    other.close()
                raise
            else:
                self.queue.append((number, coro))
        return results

    def run_and_cancel(self, fn):
        coro = fn()
        coro.send(None)
        with pytest.raises((Cancelled, StopIteration)):
            coro.throw(Cancelled())
            while True:
                coro.send(None)

    async def pause(self):
        await trap("pause")

    def Queue(self):
        return PolledQueue(self.pause)


class PolledQueue(collections.deque):
    def __init__(self, pause):
        self.pause = pause

    async def put(self, value):
        self.append(value)

    async def get(self):
        while not self:
            await self.pause()
        return self.popleft()


class Simulator(RoundRobin):
    """One with a clock, like a hardware simulator's: coroutines yield triggers."""

    def __init__(self):
        self.now = 0
        self.count = itertools.count()
        self.heap = []
        self.results = {}

    def resume(self, coro, value=None):
        """Do a step; what it yields says by whom it will be resumed."""
        try:
            trigger = coro.send(value)
        except StopIteration as stop:
            self.results[coro] = stop.value
            return
        trigger.prime(functools.partial(self.resume, coro))

    def schedule(self, delay, callback):
        heapq.heappush(self.heap, (self.now + delay, next(self.count), callback))

    def run(self, *fns):
        coros = [fn() for fn in fns]
        for coro in coros:
            self.schedule(0, functools.partial(self.resume, coro))
        try:
            while self.heap:
                self.now, _, callback = heapq.heappop(self.heap)
                callback()
        finally:
            for coro in coros:
                coro.close()
        return [self.results[coro] for coro in coros]

    async def pause(self):
        await trap(Timer(self, 1))

    def Queue(self):
        return EventQueue(functools.partial(Edge, self), lambda edge: edge.fire("edge"))


class Timer:
    def __init__(self, simulator, delay):
        self.simulator, self.delay = simulator, delay

    def prime(self, callback):
        self.simulator.schedule(self.delay, callback)


class Edge:
    def __init__(self, simulator):
        self.simulator = simulator

    def prime(self, callback):
        self.callback = callback

    def fire(self, value):
        self.simulator.schedule(0, functools.partial(self.callback, value))

    async def wait(self):
        assert await trap(self) == "edge"


class Stepper(RoundRobin):
    """One that drives what ``__await__`` gives, by next() where it can."""

    def run(self, *fns):
        return super().run(*[functools.partial(self.iterator, fn) for fn in fns])

    def run_and_cancel(self, fn):
        super().run_and_cancel(functools.partial(self.iterator, fn))

    def iterator(self, fn):
        iterator = fn().__await__()

        def drive():
            while True:
                try:
                    value = next(iterator)
                except StopIteration as stop:
                    return stop.value
                try:
                    yield value
                except BaseException as error:
                    iterator.throw(error)
                    raise AssertionError("went on after it was cancelled") from None

        return drive()


RUNNERS = [
    Curio,
    Usim,
    # It resumes a task within the step of another, which may be resumed in there
    # again, and so on: the stacks come to lie over each other.
    pytest.param(Asyncgui, marks=pytest.mark.overlaps),
    Tinyio,
    RoundRobin,
    Simulator,
    Stepper,
]


@pytest.fixture(params=RUNNERS, ids=lambda cls: cls.__name__.lower())
def any_runner(request):
    return request.param()


# --- the two ways to write a task -------------------------------------------------------


class Native:
    """A program of coroutines: ``@way.function``s are async functions that use
    ``await``, written as generators of what is to be awaited."""

    @staticmethod
    def function(generator_function):
        async def function(*args):
            generator = generator_function(*args)
            return await drive_natively(generator)

        return function

    task = staticmethod(lambda function: function)


async def drive_natively(generator):
    given, error = None, None
    try:
        while True:
            if error is None:
                awaitable = generator.send(given)
            else:
                awaitable = generator.throw(error)
            given, error = None, None
            try:
                given = await awaitable
            except BaseException as raised:
                error = raised
    except StopIteration as stop:
        return stop.value


class InPortal:
    """The same with sync functions that use ``await_``."""

    def __init__(self, sync):
        self.sync = sync

    @staticmethod
    def function(generator_function):
        def function(*args):
            generator = generator_function(*args)
            return drive_in_portal(generator)

        return function

    def task(self, function):
        if self.sync:
            return functools.partial(with_portal_run_sync, function)

        async def task():
            return function()

        return functools.partial(with_portal_run, task)


def drive_in_portal(generator):
    given, error = None, None
    try:
        while True:
            if error is None:
                awaitable = generator.send(given)
            else:
                awaitable = generator.throw(error)
            given, error = None, None
            try:
                given = await_(awaitable)
            except BaseException as raised:
                error = raised
    except StopIteration as stop:
        return stop.value


def assert_same(program):
    """Run ``program(way)`` natively and in portals of both kinds; compare."""
    native = program(Native)
    assert program(InPortal(sync=True)) == native
    assert program(InPortal(sync=False)) == native
    return native


# --- tests ------------------------------------------------------------------------------


def test_order(any_runner):
    """Tasks in portals take turns as native ones do."""

    def program(way):
        log = []

        @way.function
        def body(name, pauses):
            for step in range(pauses):
                log.append((name, step))
                yield any_runner.pause()
            return name

        results = any_runner.run(
            *[
                way.task(functools.partial(body, name, pauses))
                for name, pauses in [("a", 3), ("b", 1), ("c", 5), ("d", 0)]
            ]
        )
        return results, log

    results, log = assert_same(program)
    assert results == ["a", "b", "c", "d"]
    assert len(log) == 9


def test_values_of_the_runner(any_runner):
    """What the runner hands over arrives, between tasks with and without portals."""

    def program(way):
        there, back = any_runner.Queue(), any_runner.Queue()

        @way.function
        def asks():
            answers = []
            for number in range(5):
                yield there.put(number)
                answers.append((yield back.get()))
            yield there.put(None)
            return answers

        async def doubles():
            while (number := await there.get()) is not None:
                await back.put(2 * number)
            return "done"

        return any_runner.run(way.task(asks), doubles)

    assert assert_same(program) == [[0, 2, 4, 6, 8], "done"]


def test_two_portals_talk(any_runner):
    """Both sides wait in sync code."""

    def program(way):
        there, back = any_runner.Queue(), any_runner.Queue()

        @way.function
        def asks():
            answers = []
            for number in range(5):
                yield there.put(number)
                answers.append((yield back.get()))
            return answers

        @way.function
        def doubles():
            for _ in range(5):
                yield back.put(2 * (yield there.get()))

        return any_runner.run(way.task(asks), way.task(doubles))

    assert assert_same(program) == [[0, 2, 4, 6, 8], None]


def test_exception(any_runner):
    """What awaited code raises goes through the sync code to the runner."""

    def program(way):
        log = []

        async def raising():
            await any_runner.pause()
            raise LookupError("from below")

        @way.function
        def body():
            try:
                yield raising()
            except LookupError as error:
                log.append(str(error))
            yield any_runner.pause()
            try:
                yield raising()
            finally:
                log.append("finally")

        with pytest.raises(LookupError, match="from below"):
            any_runner.run(way.task(body))
        return log

    assert assert_same(program) == ["from below", "finally"]


def test_cancelled(any_runner):
    """What the runner throws, or the close() that it does, reaches the sync code."""

    def program(way):
        log = []

        @way.function
        def body():
            try:
                while True:
                    yield any_runner.pause()
            except BaseException as error:
                cancelled = (any_runner.cancelled, GeneratorExit)
                log.append(isinstance(error, flatten(cancelled)))
                raise
            finally:
                log.append("finally")

        any_runner.run_and_cancel(way.task(body))
        return log

    assert assert_same(program) == [True, "finally"]


def flatten(classes):
    if isinstance(classes, tuple):
        return tuple(itertools.chain.from_iterable(map(flatten, classes)))
    return (classes,)


def test_has_portal(any_runner):
    """It is there during the call, in each step, and not before or after."""

    def sync():
        seen = [has_portal()]
        await_(any_runner.pause())
        seen.append(has_portal())
        seen.append(await_(ask()))
        return seen

    async def ask():
        await any_runner.pause()
        return has_portal()

    async def task():
        seen = [has_portal()]
        await any_runner.pause()
        seen += await with_portal_run_sync(sync)
        seen.append(has_portal())
        await any_runner.pause()
        seen.append(has_portal())
        return seen

    async def without():
        for _ in range(3):
            await any_runner.pause()
            assert not has_portal()

    results = any_runner.run(task, without)
    assert results[0] == [False, True, True, True, False, False]
    assert not has_portal()


def test_nested(any_runner):
    """Sync and async code call each other; an inner portal is the outer one."""

    def sync(depth):
        if depth == 0:
            await_(any_runner.pause())
            return ["bottom"]
        return [depth, *await_(go(depth - 1))]

    async def go(depth):
        await any_runner.pause()
        if depth % 2:
            return await with_portal_run_sync(sync, depth)
        return sync(depth)

    async def task():
        return await with_portal_run(go, 6)

    expected = [6, 5, 4, 3, 2, 1, "bottom"]
    assert any_runner.run(task, task) == [expected] * 2


def test_wrappers(any_runner):
    """autoawait, async_iter, async_context and forbid_await."""

    async def numbers():
        for number in range(3):
            await any_runner.pause()
            yield number

    @contextlib.asynccontextmanager
    async def context():
        await any_runner.pause()
        yield 10
        await any_runner.pause()

    @greenback.autoawait
    async def double(number):
        await any_runner.pause()
        return 2 * number

    def sync():
        with greenback.async_context(context()) as base:
            result = [base + double(n) for n in greenback.async_iter(numbers())]
        with greenback.forbid_await("no"), pytest.raises(RuntimeError, match="no"):
            await_(any_runner.pause())
        await_(any_runner.pause())
        return result

    async def task():
        return await with_portal_run_sync(sync)

    assert any_runner.run(task, task) == [[10, 12, 14]] * 2


def refusal(any_runner):
    """What is raised where no portal can be had: (type, text that it has)."""
    if any_runner.name is None:
        return sniffio.AsyncLibraryNotFoundError, "with_portal_run"
    return RuntimeError, f"greenback does not support {any_runner.name}"


def test_await_without_portal(any_runner):
    """It says what would help, and closes the coroutine."""
    error, text = refusal(any_runner)

    async def task():
        coro = any_runner.pause()
        with pytest.raises(error, match=text) as caught:
            await_(coro)
        assert "with_portal_run" in str(caught.value)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        await any_runner.pause()
        return "goes on"

    assert any_runner.run(task) == ["goes on"]


def test_ensure_portal(any_runner):
    """It needs a library that it knows, and says so."""
    error, text = refusal(any_runner)

    async def task():
        with pytest.raises(error, match=text) as caught:
            await greenback.ensure_portal()
        assert "ensure_portal() " in str(caught.value)
        assert "with_portal_run() or" in str(caught.value)
        assert not has_portal()
        return "goes on"

    assert any_runner.run(task) == ["goes on"]


def test_ensure_portal_where_there_is_one(any_runner):
    """Nor can it be made to last longer than the call."""
    error, text = refusal(any_runner)

    def sync():
        with pytest.raises(error, match=text):
            await_(greenback.ensure_portal())
        await_(any_runner.pause())
        return "goes on"

    async def task():
        return await with_portal_run_sync(sync)

    assert any_runner.run(task) == ["goes on"]


def test_bestow_portal(any_runner):
    """Whatever the runner has for tasks is refused."""

    async def task():
        with pytest.raises(TypeError, match="expected an asyncio or Trio task"):
            greenback.bestow_portal(any_runner)
        return has_portal(any_runner)

    assert any_runner.run(task) == [False]


def test_curio_task():
    """A task of curio is none of ours."""
    runner = Curio()

    async def task():
        current = await runner.curio.current_task()
        with pytest.raises(TypeError, match="expected an asyncio or Trio task"):
            greenback.bestow_portal(current)
        assert not has_portal(current)
        return "goes on"

    assert runner.run(task) == ["goes on"]


def test_curio_worker_thread():
    """Its worker threads are none in which await_ works."""
    runner = Curio()

    def in_thread():
        assert not has_portal()
        with pytest.raises(sniffio.AsyncLibraryNotFoundError, match="to_thread"):
            await_(runner.pause())
        return "refused"

    async def task():
        return await runner.curio.run_in_thread(in_thread)

    assert runner.run(task) == ["refused"]


def test_in_a_thread(any_runner):
    """The runner may run in any thread."""

    def sync():
        await_(any_runner.pause())
        return threading.get_ident()

    async def task():
        return await with_portal_run_sync(sync)

    seen = []
    thread = threading.Thread(target=lambda: seen.extend(any_runner.run(task)))
    thread.start()
    thread.join()
    assert len(seen) == 1
    assert seen != [threading.get_ident()]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_left_by_its_runner(end):
    """A coroutine that its runner closes, or forgets, is unwound."""
    log = []

    class Marker:
        pass

    def sync():
        marker = Marker()
        watches.append(weakref.ref(marker))
        try:
            await_(trap("pause"))
        finally:
            log.append("finally")

    watches = []
    coro = with_portal_run_sync(sync)
    assert coro.send(None) == "pause"
    if end == "close":
        coro.close()
    del coro
    assert log == ["finally"]
    assert watches[0]() is None


def test_effects():
    """An interpreter of requests: it answers by values and by exceptions."""

    def interpret(coro, handlers):
        operation = coro.send
        answer = None
        while True:
            try:
                name, *args = operation(answer)
            except StopIteration as stop:
                return stop.value
            try:
                answer = handlers[name](*args)
                operation = coro.send
            except Exception as error:
                answer = error
                operation = coro.throw

    async def ask(*request):
        return await trap(request)

    def sync():
        total = sum(map(int, await_(ask("read", "numbers"))))
        try:
            await_(ask("read", "nothing"))
        except KeyError as error:
            await_(ask("write", f"no {error.args[0]}"))
        await_(ask("write", total))
        with pytest.raises(ZeroDivisionError):
            await_(ask("divide", 1, 0))
        return await_(ask("divide", 6, 3))

    files = {"numbers": "12345"}
    written = []
    handlers = {
        "read": files.__getitem__,
        "write": written.append,
        "divide": lambda a, b: a // b,
    }
    assert interpret(with_portal_run_sync(sync), handlers) == 2
    assert written == ["no nothing", 15]


def test_runner_in_a_runner(any_runner):
    """A step without a portal runs another runner to its end."""
    inner = RoundRobin()

    def sync(runner):
        assert has_portal()
        await_(runner.pause())
        return "in a portal"

    async def native():
        assert not has_portal()
        await inner.pause()
        assert not has_portal()
        return "native"

    async def task():
        results = inner.run(
            functools.partial(with_portal_run_sync, sync, inner), native
        )
        assert not has_portal()
        results.append(await with_portal_run_sync(sync, any_runner))
        return results

    expected = ["in a portal", "native", "in a portal"]
    assert any_runner.run(task, task) == [expected] * 2
