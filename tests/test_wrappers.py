"""autoawait, decorate_as_sync, async_context and async_iter."""

import collections.abc
import contextlib
import functools
import inspect

import pytest

from greenback import (
    async_context,
    async_iter,
    autoawait,
    await_,
    decorate_as_sync,
    ensure_portal,
    has_portal,
    with_portal_run_sync,
)


async def echo(runner, value):
    await runner.checkpoint()
    return value


# --- autoawait


def test_autoawait(runner):
    @autoawait
    async def add(a, b=1, *more, c=0):
        """Adds."""
        await runner.checkpoint()
        return a + b + sum(more) + c

    def sync():
        assert add(1) == 2
        assert add(1, 2, 3, c=4) == 10
        assert add(b=5, a=1) == 6
        assert list(map(add, [1, 2])) == [2, 3]
        with pytest.raises(TypeError, match="argument"):
            add()

    runner.run_sync(sync)


def test_autoawait_keeps_metadata():
    async def fn(a, *, b: int = 1) -> str:
        """Docstring."""

    fn.attribute = "attribute"
    wrapped = autoawait(fn)
    assert wrapped.__name__ == "fn"
    assert wrapped.__qualname__ == fn.__qualname__
    assert wrapped.__module__ == fn.__module__
    assert wrapped.__doc__ == "Docstring."
    assert wrapped.__wrapped__ is fn
    assert wrapped.__annotations__ == fn.__annotations__
    assert wrapped.attribute == "attribute"
    assert inspect.signature(wrapped) == inspect.signature(fn)
    assert callable(wrapped)
    assert not inspect.iscoroutinefunction(wrapped)


def test_autoawait_in_classes(runner):
    class Account:
        def __init__(self, balance):
            self.balance = balance

        @autoawait
        async def pay(self, amount, *, fee=0):
            self.balance -= await echo(runner, amount + fee)
            return self

        @property
        @autoawait
        async def rounded(self):
            return await echo(runner, round(self.balance))

        @rounded.setter
        @autoawait
        async def rounded(self, value):
            self.balance = await echo(runner, value)

        @classmethod
        @autoawait
        async def empty(cls):
            return cls(await echo(runner, 0))

        @staticmethod
        @autoawait
        async def currency(name="EUR"):
            return await echo(runner, name)

        @autoawait
        async def __len__(self):
            return await echo(runner, 3)

        @autoawait
        async def __getattr__(self, name):
            return await echo(runner, name)

        @autoawait
        async def __eq__(self, other):
            return await echo(runner, self.balance) == other

        __hash__ = None

    def sync():
        account = Account(10.4)
        assert account.pay(1, fee=2) is account
        assert account.rounded == 7
        account.rounded = 20
        assert account.balance == 20
        assert Account.pay(account, 5).balance == 15
        assert Account.empty().balance == 0
        assert (Account.currency(), account.currency("USD")) == ("EUR", "USD")
        assert len(account) == 3
        assert account.anything == "anything"
        assert account == 15
        bound = account.pay
        assert bound(5).balance == 10

    runner.run_sync(sync)


def test_autoawait_of_other_functions(runner):
    class Awaitable:
        def __init__(self, value="object"):
            self.value = value

        def __await__(self):
            yield from runner.checkpoint().__await__()
            return self.value

    def sync():
        assert autoawait(Awaitable)() == "object"
        assert autoawait(lambda value: echo(runner, value))(1) == 1
        assert autoawait(functools.partial(echo, runner))("partial") == "partial"
        assert autoawait(autoawait(lambda: echo(runner, echo(runner, 2))))() == 2
        with pytest.raises(TypeError, match="await"):
            autoawait(lambda: None)()
        with pytest.raises(KeyError):
            autoawait({}.__getitem__)("absent")

    runner.run_sync(sync)


def test_autoawait_without_portal(runner):
    async def main():
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            autoawait(echo)(runner, 1)

    runner.run(main)


# --- decorate_as_sync


def test_decorate_as_sync_with_lru_cache(runner):
    calls = []

    @decorate_as_sync(functools.lru_cache(maxsize=None))
    async def square(n):
        """Squares."""
        await runner.checkpoint()
        calls.append(n)
        return n * n

    assert inspect.iscoroutinefunction(square)
    assert (square.__name__, square.__doc__) == ("square", "Squares.")

    async def main():
        assert [await square(n) for n in (2, 3, 2)] == [4, 9, 4]
        assert not has_portal()
        await ensure_portal()
        assert [await square(n) for n in (2, 4)] == [4, 16]
        assert await_(square(3)) == 9
        assert calls == [2, 3, 4]
        assert square.__wrapped__.cache_info().hits == 3

    runner.run(main)


def test_decorate_as_sync_with_a_decorator_that_calls_twice(runner):
    def retry(fn):
        @functools.wraps(fn)
        def wrapper(*args, **kwds):
            assert not inspect.iscoroutinefunction(fn)
            try:
                return fn(*args, **kwds)
            except KeyError:
                return fn(*args, **kwds)

        return wrapper

    attempts = []

    @decorate_as_sync(retry)
    async def flaky(name, *, fail):
        await runner.checkpoint()
        attempts.append(name)
        if fail and len(attempts) < 2:
            raise KeyError
        return name

    async def main():
        assert await flaky("first", fail=True) == "first"
        assert attempts == ["first", "first"]
        attempts.clear()
        assert await flaky(name="second", fail=False) == "second"
        assert attempts == ["second"]

    runner.run(main)


def test_decorate_as_sync_on_methods(runner):
    log = []

    def logged(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            log.append("before")
            result = fn(*args)
            log.append("after")
            return result

        return wrapper

    class Service:
        @decorate_as_sync(logged)
        async def call(self, value):
            log.append(await echo(runner, value))
            return self

    async def main():
        service = Service()
        assert await service.call("during") is service
        with pytest.raises(TypeError):
            await service.call()

    runner.run(main)
    assert log == ["before", "during", "after", "before"]


# --- async_context


class Manager:
    """Logs what happens; __aexit__ returns `swallow`."""

    def __init__(self, runner, log, swallow=None):
        self.runner, self.log, self.swallow = runner, log, swallow

    async def __aenter__(self):
        await self.runner.checkpoint()
        self.log.append("enter")
        return "value"

    async def __aexit__(self, *exc):
        await self.runner.checkpoint()
        self.log.append(exc)
        return self.swallow


def test_async_context(runner, portal_kind):
    log = []

    def sync():
        with async_context(Manager(runner, log)) as value:
            assert value == "value"
            log.append(await_(echo(runner, "body")))
        assert log == ["enter", "body", (None, None, None)]

    async def main():
        await portal_kind(sync)

    runner.run(main)


@pytest.mark.parametrize("swallow", [None, False, True, 0, 1, "yes", []], ids=repr)
def test_async_context_with_an_exception(runner, swallow):
    log = []
    error = KeyError("error")

    def sync():
        with async_context(Manager(runner, log, swallow)):
            raise error
        return "swallowed"

    if swallow:
        assert runner.run_sync(sync) == "swallowed"
    else:
        with pytest.raises(KeyError) as caught:
            runner.run_sync(sync)
        assert caught.value is error
    (kind, value, tb) = log[1]
    assert (kind, value) == (KeyError, error)
    assert tb.tb_frame.f_code is sync.__code__
    del tb
    log.clear()
    error.__traceback__ = None


def test_async_context_around_control_flow(runner):
    log = []

    def returns():
        with async_context(Manager(runner, log)):
            return "returned"

    def sync():
        assert returns() == "returned"
        for _ in range(2):
            with async_context(Manager(runner, log)):
                continue
        while True:
            with async_context(Manager(runner, log)):
                break

        def generator():
            with async_context(Manager(runner, log)) as value:
                yield value

        generating = generator()
        assert next(generating) == "value"
        generating.close()

    runner.run_sync(sync)
    assert log.count("enter") == 5
    assert [exc[0] for exc in log if exc != "enter"] == [None] * 4 + [GeneratorExit]


def test_async_context_from_contextlib(runner):
    log = []

    @contextlib.asynccontextmanager
    async def manager():
        log.append(await echo(runner, "enter"))
        try:
            yield "value"
        except KeyError:
            log.append(await echo(runner, "caught"))
        finally:
            log.append(await echo(runner, "exit"))

    def sync():
        with contextlib.ExitStack() as stack:
            assert stack.enter_context(async_context(manager())) == "value"
            assert stack.enter_context(async_context(manager())) == "value"
            raise KeyError
        with async_context(contextlib.AsyncExitStack()) as async_stack:
            assert await_(async_stack.enter_async_context(manager())) == "value"

    runner.run_sync(sync)
    assert log == ["enter", "enter", "caught", "exit", "exit", "enter", "exit"]


class EnterOnly:
    async def __aenter__(self):
        raise AssertionError


class ExitOnly:
    async def __aexit__(self, *exc):
        raise AssertionError


class OnTheInstance:
    def __init__(self):
        self.__aenter__ = self.__aexit__ = None


@pytest.mark.parametrize("make", [object, list, EnterOnly, ExitOnly, OnTheInstance])
def test_async_context_of_wrong_things(runner, make):
    """The same errors as from a native `async with`."""

    async def main():
        await ensure_portal()
        with pytest.raises(TypeError) as native:
            async with make():
                pass
        wrapper = async_context(make())  # complains on entry only
        with pytest.raises(TypeError) as ours:
            with wrapper:
                pass
        assert make.__name__ in str(ours.value)
        # Which of two missing methods it names depends on Python's version.
        for message in str(native.value), str(ours.value):
            assert "asynchronous context manager protocol" in message
            if make is EnterOnly:
                assert "missed __aexit__ method" in message

    runner.run(main)


class NotAwaitable:
    def __init__(self, enter_result, exit_result):
        self.results = enter_result, exit_result

    def __aenter__(self):
        return self.results[0]

    def __aexit__(self, *exc):
        return self.results[1]


def test_async_context_whose_methods_give_no_awaitable(runner):
    async def nothing():
        pass

    def sync():
        with pytest.raises(TypeError, match="await"):
            with async_context(NotAwaitable(None, None)):
                raise AssertionError
        with pytest.raises(TypeError, match="await"):
            with async_context(NotAwaitable(nothing(), 1)):
                pass

    runner.run_sync(sync)


def test_async_context_errors_in_the_manager(runner):
    class Failing(Manager):
        async def __aenter__(self):
            await super().__aenter__()
            raise KeyError("enter")

    class FailingExit(Manager):
        async def __aexit__(self, *exc):
            await super().__aexit__(*exc)
            raise LookupError("exit")

    def sync():
        log = []
        with pytest.raises(KeyError, match="enter"):
            with async_context(Failing(runner, log)):
                raise AssertionError
        assert log == ["enter"]
        with pytest.raises(LookupError, match="exit") as caught:
            with async_context(FailingExit(runner, log)):
                raise ValueError("body")
        assert str(caught.value.__context__) == "body"

    runner.run_sync(sync)


def test_async_context_without_portal(runner):
    log = []

    async def main():
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            with async_context(Manager(runner, log)):
                raise AssertionError
        assert log == []

    runner.run(main)


def test_async_context_methods_are_found_on_the_type_at_entry(runner):
    log = []

    class Changing(Manager):
        pass

    def sync():
        manager = Changing(runner, log)
        manager.__aexit__ = None
        with async_context(manager):
            Changing.__aexit__ = None
        assert log == ["enter", (None, None, None)]

    runner.run_sync(sync)


def test_async_context_used_twice_and_subclassed(runner):
    log = []

    class Named(async_context):
        def __init__(self, name, runner):
            self.name = name
            super().__init__(Manager(runner, log))

    def sync():
        wrapper = Named("name", runner)
        assert wrapper.name == "name"
        for _ in range(2):
            with wrapper as value:
                assert value == "value"
        assert log == ["enter", (None, None, None)] * 2
        assert async_context[int]  # usable in annotations

    runner.run_sync(sync)


# --- async_iter


class Numbers:
    """An async iterator that is no generator."""

    def __init__(self, runner, stop, value=()):
        self.runner, self.stop, self.value, self.n = runner, stop, value, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.runner.checkpoint()
        if self.n >= self.stop:
            raise StopAsyncIteration(*self.value)
        self.n += 1
        return self.n - 1


class Iterable:
    def __init__(self, make):
        self.make = make

    def __aiter__(self):
        return self.make()


async def generate(runner, log, stop=3):
    """An async generator that logs what is done to it."""
    try:
        for n in range(stop):
            await runner.checkpoint()
            try:
                got = yield n
            except KeyError as exc:
                log.append(await echo(runner, exc.args))
                yield "caught"
            else:
                log.append(await echo(runner, got))
    finally:
        await runner.checkpoint()
        log.append("finally")


def test_async_iter(runner, portal_kind):
    log = []
    makers = [
        lambda: Numbers(runner, 3),
        lambda: Iterable(lambda: Numbers(runner, 3)),
        lambda: generate(runner, log),
        lambda: Iterable(lambda: generate(runner, log)),
    ]

    def sync():
        for make in makers:
            seen = []
            for n in async_iter(make()):
                seen.append(await_(echo(runner, n)))
            assert seen == [0, 1, 2]
            assert list(async_iter(make())) == [0, 1, 2]
            assert sum(async_iter(make())) == 3
            first, *rest = async_iter(make())
            assert (first, rest) == (0, [1, 2])
            assert list(zip(async_iter(make()), async_iter(make()), strict=True)) == [
                (0, 0),
                (1, 1),
                (2, 2),
            ]
            iterator = async_iter(make())
            assert iter(iterator) is iterator
            assert [next(iterator) for _ in range(3)] == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(StopIteration):
                    next(iterator)
            assert next(iterator, "default") == "default"

    async def main():
        await portal_kind(sync)

    runner.run(main)


def test_async_iter_stop_value(runner):
    """The arguments of StopAsyncIteration become those of StopIteration."""

    def delegate(value):
        result = yield from async_iter(Numbers(runner, 2, value))
        yield ("result", result)

    def sync():
        for value, expected in [((), None), (("value",), "value"), ((1, 2), 1)]:
            assert list(delegate(value)) == [0, 1, ("result", expected)]
            iterator = async_iter(Numbers(runner, 0, value))
            with pytest.raises(StopIteration) as stop:
                next(iterator)
            assert stop.value.args == value

    runner.run_sync(sync)


def test_async_iter_generator_methods(runner):
    def sync():
        log = []
        generator = async_iter(generate(runner, log))
        assert generator.send(None) == 0
        assert generator.send("sent") == 1
        assert generator.throw(KeyError("thrown")) == "caught"
        assert next(generator) == 2
        with pytest.raises(StopIteration):
            generator.send("last")
        assert log == ["sent", ("thrown",), "last", "finally"]
        with pytest.raises(StopIteration):
            generator.send(None)
        assert generator.close() is None

        log.clear()
        generator = async_iter(generate(runner, log))
        next(generator)
        assert generator.throw(KeyError) == "caught"
        assert generator.close() is None
        assert log == [(), "finally"]
        assert list(generator) == []

        log.clear()
        generator = async_iter(generate(runner, log))
        next(generator)
        with pytest.raises(ValueError, match="not caught"):
            generator.throw(ValueError("not caught"))
        assert log == ["finally"]

        log.clear()
        generator = async_iter(generate(runner, log))
        with pytest.raises(TypeError, match="can't send non-None"):
            generator.send("too early")
        generator.close()
        assert log == []

    runner.run_sync(sync)


def test_async_iter_is_delegated_to(runner):
    log = []

    def delegate():
        yield from async_iter(generate(runner, log))

    def sync():
        generator = delegate()
        assert next(generator) == 0
        assert generator.send("sent") == 1
        assert generator.throw(KeyError("thrown")) == "caught"
        generator.close()
        assert log == ["sent", ("thrown",), "finally"]
        log.clear()
        assert list(delegate()) == [0, 1, 2]
        with contextlib.closing(async_iter(generate(runner, log))) as generator:
            next(generator)
        assert log == [None, None, None, "finally", "finally"]

    runner.run_sync(sync)


def test_async_iter_types(runner):
    async def main():
        plain = async_iter(Numbers(runner, 1))
        generating = async_iter(generate(runner, []))
        assert type(plain) is async_iter
        assert type(generating) is not async_iter
        assert type(generating).__name__ == "async_generator"
        for iterator in plain, generating:
            assert isinstance(iterator, async_iter)
            assert isinstance(iterator, collections.abc.Iterator)
            assert not hasattr(iterator, "__anext__")
        for name in "send", "throw", "close":
            assert not hasattr(plain, name)
            assert callable(getattr(generating, name))
        assert isinstance(generating, collections.abc.Generator)
        assert async_iter[int]

        # What is taken for a generator is told by its methods.
        class Lookalike(Numbers):
            asend = athrow = aclose = None

        class Partial(Numbers):
            asend = athrow = None

        assert isinstance(async_iter(Lookalike(runner, 1)), type(generating))
        assert type(async_iter(Partial(runner, 1))) is async_iter

    runner.run(main)


def test_async_iter_subclass(runner):
    class Counting(async_iter):
        def __init__(self, runner, stop):
            super().__init__(Numbers(runner, stop))
            self.count = 0

        def __next__(self):
            item = super().__next__()
            self.count += 1
            return item

    def sync():
        counting = Counting(runner, 4)
        assert list(counting) == [0, 1, 2, 3]
        assert counting.count == 4
        assert type(counting) is Counting

    runner.run_sync(sync)


class NextOnTheInstance:
    def __init__(self):
        self.__aiter__ = lambda: self


@pytest.mark.parametrize(
    "make, message",
    [
        (list, "'async_iter' requires an object with __aiter__ method, got list"),
        (lambda: iter("abc"), "requires an object with __aiter__ method, got str"),
        (NextOnTheInstance, "__aiter__ method, got NextOnTheInstance"),
        (
            lambda: Iterable(list),
            "'async_iter' received an object from __aiter__ that does not "
            "implement __anext__: list",
        ),
        (lambda: Iterable(lambda: None), "does not implement __anext__: NoneType"),
    ],
    ids=[
        "list",
        "iterator",
        "on the instance",
        "aiter gives a list",
        "aiter gives None",
    ],
)
def test_async_iter_of_wrong_things(make, message):
    with pytest.raises(TypeError) as caught:
        async_iter(make())
    assert message in str(caught.value)


def test_async_iter_takes_one_argument(runner):
    for args in [(), (Numbers(runner, 1), 2)]:
        with pytest.raises(TypeError):
            async_iter(*args)
    assert async_iter(iterable=Numbers(runner, 1))


def test_async_iter_errors(runner):
    class Failing(Numbers):
        async def __anext__(self):
            if self.n:
                raise self.error
            return await super().__anext__()

    class NoAwaitable(Numbers):
        def __anext__(self):
            return 1

    def aiter_fails():
        raise LookupError("from __aiter__")

    def sync():
        with pytest.raises(LookupError, match="from __aiter__"):
            async_iter(Iterable(aiter_fails))
        with pytest.raises(TypeError, match="await"):
            next(async_iter(NoAwaitable(runner, 1)))
        for error, expected in [
            (KeyError("error"), KeyError),
            (StopIteration("not mine"), RuntimeError),
            (GeneratorExit(), GeneratorExit),
        ]:
            failing = Failing(runner, 3)
            failing.error = error
            iterator = async_iter(failing)
            assert next(iterator) == 0
            with pytest.raises(expected) as caught:
                next(iterator)
            if expected is RuntimeError:
                assert caught.value.__cause__ is error
            else:
                assert caught.value is error

    runner.run_sync(sync)


def test_async_iter_without_portal(runner):
    async def main():
        iterator = async_iter(Numbers(runner, 1))
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            next(iterator)
        await ensure_portal()
        assert list(iterator) == [0]

    runner.run(main)


def test_async_iter_cancelled(runner):
    log = []

    async def waits():
        try:
            yield 1
            await runner.sleep_forever()
        finally:
            with runner.cleanup_shield():
                await runner.checkpoint()
                log.append("closed")

    async def main():
        child = runner.spawn(with_portal_run_sync, list, async_iter(waits()))
        await runner.settle()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()
        assert log == ["closed"]

    runner.run(main)


def test_wrappers_are_released(runner):
    class Resource:
        alive = 0

        def __init__(self):
            Resource.alive += 1

        def __del__(self):
            Resource.alive -= 1

    async def numbers(resource):
        for n in range(3):
            await runner.checkpoint()
            yield n, resource is None

    class Holder(Manager):
        def __init__(self):
            super().__init__(runner, [])
            self.resource = Resource()

    def sync():
        for _ in range(3):
            assert len(list(async_iter(numbers(Resource())))) == 3
            with async_context(Holder()) as value:
                assert value == "value"
            assert autoawait(functools.partial(echo, runner))(Resource())
            assert Resource.alive == 0

    runner.run_sync(sync)
