"""Awaitables, traps and loops that misbehave, at each step number."""

from __future__ import annotations

import asyncio
import gc
import types

import pytest

import greenback

STEPS = range(4)
on_asyncio_and_trio = pytest.mark.parametrize(
    "runner", ["asyncio", "trio"], indirect=True
)


class Oops(Exception):
    """Raised on purpose."""


class Trap:
    """Yields one value; its result is what comes back."""

    def __init__(self, value=None):
        self.value = value

    def __await__(self):
        return (yield self.value)


class Faulty:
    """A coroutine object that does something wrong at one of its steps.

    It goes through *count* suspensions, made with real traps of the loop, and
    does ``fault(self)`` in place of step number *at*.
    """

    def __init__(self, runner, at, fault, count=4):
        self.steps = self.run_steps(runner, count)
        self.at = at
        self.fault = fault
        self.number = 0
        self.log = []

    async def run_steps(self, runner, count):
        for _ in range(count):
            await runner.checkpoint()
        return "finished"

    def step(self, fn, *args):
        number, self.number = self.number, self.number + 1
        self.arguments = args
        if number == self.at:
            return self.fault(self)
        return fn(*args)

    def send(self, value):
        self.log.append("send")
        return self.step(self.steps.send, value)

    def throw(self, *args):
        self.log.append("throw")
        return self.step(self.steps.throw, *args)

    def close(self):
        self.log.append("close")
        self.steps.close()

    def __await__(self):
        raise AssertionError("coroutines are driven by send")


class FaultyIteration:
    """An iterator that goes through the steps of a Faulty."""

    def __init__(self, owner):
        self.owner = owner

    def __iter__(self):
        return self

    def __next__(self):
        return self.owner.step(self.owner.steps.send, None)

    def send(self, value):
        return self.owner.step(self.owner.steps.send, value)

    def throw(self, *args):
        return self.owner.step(self.owner.steps.throw, *args)

    def close(self):
        self.owner.log.append("close")
        self.owner.steps.close()


class AwaitableOnly:
    """Hides the coroutine methods of what it wraps."""

    def __init__(self, faulty):
        self.faulty = faulty

    def __await__(self):
        return FaultyIteration(self.faulty)


@pytest.fixture(params=["coroutine", "awaitable"])
def make(request):
    """Give a function that makes a faulty thing to await, and its log."""

    def make_faulty(runner, at, fault):
        faulty = Faulty(runner, at, fault)
        awaitable = faulty if request.param == "coroutine" else AwaitableOnly(faulty)
        return awaitable, faulty

    return make_faulty


def check_alive(runner):
    """See that await_ works as before."""

    async def fine():
        await runner.checkpoint()
        return "fine"

    assert greenback.await_(fine()) == "fine"


def raise_oops(faulty):
    """Raise in place of the step."""
    faulty.steps.close()
    raise Oops(faulty.number)


def raise_base(faulty):
    """Raise what is no Exception."""
    faulty.steps.close()
    raise BaseException("base")


@pytest.mark.parametrize("at", STEPS)
def test_raises(runner, make, at):
    """An exception at any step comes out of await_, as it is."""

    def sync():
        awaitable, _ = make(runner, at, raise_oops)
        with pytest.raises(Oops) as caught:
            greenback.await_(awaitable)
        assert caught.value.args == (at + 1,)
        check_alive(runner)
        awaitable, _ = make(runner, at, raise_base)
        with pytest.raises(BaseException, match="base"):
            greenback.await_(awaitable)
        check_alive(runner)

    runner.run_sync(sync)


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize(
    "value", [None, 7, (1, 2), (), StopIteration(3), StopIteration, OSError()], ids=repr
)
def test_stops_early(runner, make, at, value):
    """StopIteration at any step ends the wait with its value, whatever that is."""

    def stop(faulty):
        faulty.steps.close()
        raise StopIteration(value) if value != () else StopIteration

    def sync():
        awaitable, _ = make(runner, at, stop)
        result = greenback.await_(awaitable)
        assert result is (None if value == () else value)
        check_alive(runner)

    runner.run_sync(sync)


def test_runs_to_its_end(runner, make):
    """Without a fault, the faulty things work."""

    def sync():
        awaitable, faulty = make(runner, None, None)
        assert greenback.await_(awaitable) == "finished"
        assert faulty.number == 5

    runner.run_sync(sync)


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("nonsense", [3, "text", object], ids=str)
def test_yields_nonsense(runner, make, at, nonsense):
    """A trap that the loop does not know gives the loop's own complaint."""

    def fault(faulty):
        return nonsense

    async def task():
        await greenback.ensure_portal()
        awaitable, faulty = make(runner, at, fault)
        try:
            with pytest.raises((RuntimeError, TypeError)) as caught:
                greenback.await_(awaitable)
        finally:
            faulty.steps.close()
        message = str(caught.value)
        check_alive(runner)
        return message

    async def native():
        await runner.checkpoint()
        _, faulty = make(runner, at, fault)

        @types.coroutine
        def drive():
            answer = None
            while True:
                try:
                    trap = faulty.step(faulty.steps.send, answer)
                except StopIteration as stop:
                    return stop.value
                try:
                    answer = yield trap
                except BaseException:
                    faulty.steps.close()
                    raise

        with pytest.raises((RuntimeError, TypeError)) as caught:
            await drive()
        return str(caught.value)

    if runner.library == "trio":
        # Trio stops the whole run over that.
        import trio

        async def in_trio():
            await greenback.ensure_portal()
            awaitable, faulty = make(runner, at, fault)
            try:
                greenback.await_(awaitable)
            finally:
                faulty.steps.close()

        with pytest.raises((trio.TrioInternalError, TypeError)):
            runner.run(in_trio)
        return
    portal = runner.run(lambda: runner_task(task))
    assert (
        portal.split(">")[-1] == runner.run(lambda: runner_task(native)).split(">")[-1]
    )


async def runner_task(fn):
    """Run *fn* in a task of its own."""
    return await asyncio.get_running_loop().create_task(fn())


@pytest.mark.parametrize(
    "result",
    [None, 3, [], "text", (x for x in ()), object()],
    ids=["none", "int", "list", "str", "generator", "object"],
)
def test_await_method_returns_nonsense(runner, result):
    """What __await__ returns has to be an iterator, and no coroutine."""

    class Nonsense:
        def __await__(self):
            return result

    async def native():
        return await Nonsense()

    async def main():
        await greenback.ensure_portal()
        outcomes = []
        for attempt in (lambda: drive(native()), lambda: greenback.await_(Nonsense())):
            try:
                outcomes.append(attempt())
            except TypeError as error:
                outcomes.append(str(error))
        check_alive(runner)
        return outcomes

    def drive(coro):
        try:
            coro.send(None)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("suspended")

    native_outcome, portal_outcome = runner.run(main)
    assert portal_outcome == native_outcome


def test_await_method_returns_coroutine(runner):
    """A coroutine is not what __await__ may return."""
    made = []

    class Nonsense:
        def __await__(self):
            made.append(runner.checkpoint())
            return made[-1]

    def sync():
        with pytest.raises(TypeError, match="__await__"):
            greenback.await_(Nonsense())
        check_alive(runner)

    try:
        runner.run_sync(sync)
    finally:
        for coro in made:
            coro.close()


@pytest.mark.parametrize("attribute", ["__await__", "send", "throw", "close"])
def test_attribute_lookup_raises(runner, attribute):
    """Errors while looking a method up come out; later ones do not corrupt."""

    class Hostile(Faulty):
        def __getattribute__(self, name):
            if name == attribute and armed:
                raise Oops(name)
            return object.__getattribute__(self, name)

    armed = []

    def sync():
        hostile = Hostile(runner, None, None)
        armed.append(True)
        try:
            result = greenback.await_(hostile)
        except Oops as error:
            result = error.args
        armed.clear()
        hostile.steps.close()
        assert result in ("finished", (attribute,))
        check_alive(runner)

    runner.run_sync(sync)


def test_await_property_raises(runner):
    """An __await__ that can't be called or raises: that very error."""

    class Raises:
        def __await__(self):
            raise Oops("in __await__")

    class NotCallable:
        __await__ = 3

    class IsNone:
        __await__ = None

    def sync():
        with pytest.raises(Oops, match="in __await__"):
            greenback.await_(Raises())
        for kind in (NotCallable, IsNone):
            with pytest.raises(TypeError):
                greenback.await_(kind())
        instance = Raises()
        del Raises.__await__
        instance.__await__ = lambda: iter(())
        with pytest.raises(TypeError):
            greenback.await_(instance)
        check_alive(runner)

    runner.run_sync(sync)


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("how", ["send", "throw", "close"])
def test_resumes_its_own_task(runner, make, at, how):
    """Stepping the running task from inside is refused, and harmless."""
    errors = []

    def fault(faulty):
        task = runner.current_task()
        coro = task.coro if runner.library == "trio" else task.get_coro()
        try:
            if how == "send":
                coro.send(None)
            elif how == "throw":
                coro.throw(Oops())
            else:
                coro.close()
        except ValueError as error:
            errors.append(str(error))
        return faulty.steps.send(*faulty.arguments)

    def sync():
        awaitable, _ = make(runner, at, fault)
        assert greenback.await_(awaitable) == "finished"
        check_alive(runner)

    runner.run_sync(sync)
    assert errors == ["coroutine already executing"]


@pytest.mark.parametrize("at", STEPS)
def test_resumes_what_is_awaited(runner, at):
    """Stepping a coroutine that await_ drives, from inside of it, is refused."""

    async def driven():
        for number in range(4):
            if number == at:
                with pytest.raises(ValueError, match="coroutine already executing"):
                    coro.send(None)
                with pytest.raises(RuntimeError):
                    greenback.await_(coro)
            await runner.checkpoint()
        return "finished"

    coro = driven()

    def sync():
        try:
            return greenback.await_(coro)
        finally:
            check_alive(runner)

    try:
        assert runner.run_sync(sync) == "finished"
    except (ValueError, RuntimeError) as error:
        # As with a native `await`: the second one may close the coroutine.
        assert "coroutine" in str(error)


@on_asyncio_and_trio
@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("how", ["throw", "close"])
def test_stepped_by_hand(runner, at, how):
    """A portal driven by hand is thrown into, or closed, at each step number."""
    log = []

    async def driven():
        try:
            for number in range(4):
                log.append(await Trap(number))
        finally:
            log.append("unwound")

    def sync():
        try:
            greenback.await_(driven())
        finally:
            log.append("sync")

    async def main():
        coro = greenback.with_portal_run_sync(sync)
        for number in range(at):
            assert coro.send(None) == number
        if how == "throw":
            with pytest.raises(Oops):
                coro.throw(Oops())
        else:
            coro.close()
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            coro.send(None)
        await greenback.ensure_portal()
        check_alive(runner)

    runner.run(main)
    expected = [None] * (at - 1) + ["unwound", "sync"] if at else []
    assert log == expected


@on_asyncio_and_trio
def test_exception_swallowed(runner):
    """An await_ that swallows what is thrown goes on with its next trap."""

    async def driven():
        caught = []
        for number in range(4):
            try:
                await Trap(number)
            except Oops as error:
                caught.append(error.args[0])
        return caught

    async def main():
        coro = greenback.with_portal_run_sync(lambda: greenback.await_(driven()))
        assert coro.send(None) == 0
        for number in range(3):
            assert coro.throw(Oops(number)) == number + 1
        with pytest.raises(StopIteration) as stop:
            coro.throw(Oops(3))
        return stop.value.value

    assert runner.run(main) == [0, 1, 2, 3]


@on_asyncio_and_trio
@pytest.mark.parametrize(
    "kind", ["StopIteration", "StopAsyncIteration", "GeneratorExit"]
)
def test_special_exceptions(runner, kind):
    """Exceptions that mean something to generators pass or turn as natively."""
    error = {
        "StopIteration": StopIteration,
        "StopAsyncIteration": StopAsyncIteration,
        "GeneratorExit": GeneratorExit,
    }[kind]

    async def raising():
        raise error("raised")

    async def native():
        await raising()

    def sync():
        greenback.await_(raising())

    def sync_directly():
        raise error("raised")

    def outcome(coro):
        try:
            coro.send(None)
        except BaseException as caught:
            # CPython 3.11 says "generator" for anything but an exact coroutine.
            return type(caught), str(caught).replace("generator ", "coroutine ")
        raise AssertionError("suspended")

    async def main():
        expected = outcome(native())
        assert outcome(greenback.with_portal_run_sync(sync)) == expected
        assert outcome(greenback.with_portal_run(native)) == expected

        async def native_directly():
            sync_directly()

        expected = outcome(native_directly())
        assert outcome(greenback.with_portal_run_sync(sync_directly)) == expected
        assert outcome(greenback.with_portal_run(native_directly)) == expected

    runner.run(main)


@pytest.mark.parametrize(
    "result",
    [None, (), (1,), StopIteration(1), ValueError("a value"), "text"],
    ids=repr,
)
def test_odd_results(runner, portal_kind, result):
    """Results that look like exceptions or argument tuples are just results."""

    async def give():
        await runner.checkpoint()
        return result

    def sync():
        assert greenback.await_(give()) is result
        return result

    async def main():
        return await portal_kind(sync)

    assert runner.run(main) is result


def test_coroutine_awaited_twice(runner):
    """A finished coroutine is refused as natively."""

    async def once():
        await runner.checkpoint()

    def sync():
        coro = once()
        greenback.await_(coro)
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            greenback.await_(coro)
        check_alive(runner)

    runner.run_sync(sync)


def test_coroutine_awaited_by_two_tasks(runner):
    """The second task to await a suspended coroutine gets an error."""

    async def main():
        gate = runner.Event()
        coro = gate.wait()

        async def task():
            await greenback.ensure_portal()
            try:
                greenback.await_(coro)
            except RuntimeError as error:
                return str(error)
            return "result"

        first = runner.spawn(task)
        await runner.settle()
        second = runner.spawn(task)
        refused = await second.join()
        gate.set()
        await runner.settle()
        first.cancel()
        try:
            await first.join()
        except (runner.ChildCancelled, RuntimeError):
            pass
        return refused

    assert runner.run(main) == "coroutine is being awaited already"


def test_thrown_into_while_suspended(runner):
    """Someone who throws into the driven coroutine from outside ends its wait."""

    async def main():
        coros = []

        async def driven():
            await runner.sleep_forever()

        async def task():
            await greenback.ensure_portal()
            coros.append(driven())
            try:
                greenback.await_(coros[0])
            except RuntimeError as error:
                return str(error)
            return "result"

        child = runner.spawn(task)
        await runner.settle()
        with pytest.raises(Oops):
            coros[0].throw(Oops())
        child.cancel()
        try:
            result = await child.join()
        except runner.ChildCancelled:
            result = "cancelled"
        return result

    if runner.library == "trio":
        pytest.skip("Trio's own bookkeeping does not survive this")
    assert runner.run(main) in ("cannot reuse already awaited coroutine", "cancelled")


def test_garbage_collected_in_a_step(runner):
    """Collections while await_ is under way find nothing wrong."""

    class Cycle:
        def __init__(self):
            self.itself = self

    async def driven():
        for _ in range(5):
            Cycle()
            gc.collect()
            await runner.checkpoint()
        return "finished"

    def sync():
        Cycle()
        result = greenback.await_(driven())
        gc.collect()
        return result

    async def task():
        await greenback.ensure_portal()
        return sync()

    async def main():
        return await runner.run_concurrently(task, task, task)

    assert runner.run(main) == ["finished"] * 3
