"""Exceptions: the same as with a native await, both ways, tracebacks included."""

import asyncio
import collections.abc
import functools
import sys
import traceback
import types

import pytest

from greenback import (
    async_context,
    autoawait,
    await_,
    ensure_portal,
    has_portal,
    with_portal_run,
    with_portal_run_sync,
)


class Custom(Exception):
    pass


class CustomBase(BaseException):
    pass


def describe(exc, depth=4):
    """What can be compared of an exception and the exceptions behind it."""
    if exc is None or depth == 0:
        return None
    return (
        type(exc),
        exc.args,
        describe(exc.__cause__, depth - 1),
        describe(exc.__context__, depth - 1),
        exc.__suppress_context__,
    )


def frames(exc):
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


# --- whatever awaited code raises comes out as with a native await

ERRORS = [
    Custom("text", 1),
    CustomBase("base"),
    StopIteration("value"),
    StopAsyncIteration("value"),
    GeneratorExit("exit"),
    KeyboardInterrupt("interrupt"),
    SystemExit(3),
    asyncio.CancelledError("cancelled"),
    RuntimeError("generator ignored GeneratorExit"),
    ExceptionGroup("group", [Custom(1), Custom(2)]),
]


class IteratorObject:
    def __init__(self, error):
        self.error = error

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise self.error


class RaisingAwait:
    def __init__(self, error):
        self.error = error

    def __await__(self):
        raise self.error


def by_coroutine(error, checkpoint):
    async def body():
        if checkpoint is not None:
            await checkpoint()
        raise error

    return body()


def by_generator_based(error, checkpoint):
    @types.coroutine
    def body():
        if checkpoint is not None:
            yield from checkpoint().__await__()
        raise error

    return body()


def by_iterator(error, checkpoint):
    return IteratorObject(error)


def by_await_method(error, checkpoint):
    return RaisingAwait(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "make, suspends",
    [
        (by_coroutine, False),
        (by_coroutine, True),
        (by_generator_based, False),
        (by_generator_based, True),
        (by_iterator, False),
        (by_await_method, False),
    ],
)
def test_raised_as_natively(runner, make, error, suspends):
    def fresh():
        copy = type(error)(*error.args)
        return make(copy, runner.checkpoint if suspends else None)

    async def natively():
        try:
            return await fresh()
        except BaseException as exc:
            return describe(exc)

    def in_sync_code():
        try:
            return await_(fresh())
        except BaseException as exc:
            return describe(exc)

    async def main():
        expected = await natively()
        assert await with_portal_run_sync(in_sync_code) == expected
        await ensure_portal()
        assert in_sync_code() == expected
        assert await natively() == expected

    runner.run(main)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_raised_by_a_python_coroutine_object(runner, error):
    """Its send() may raise anything; StopIteration is its return value."""

    class Failing(collections.abc.Coroutine):
        def send(self, value):
            raise error

        def throw(self, *args):
            raise AssertionError

        def close(self):
            pass

        def __await__(self):
            return self

    async def main():
        if isinstance(error, StopIteration):
            assert await with_portal_run_sync(await_, Failing()) == "value"
            return
        with pytest.raises(type(error)) as caught:
            await with_portal_run_sync(await_, Failing())
        if isinstance(error, StopIteration):
            assert caught.value.__cause__ is error
        else:
            assert caught.value is error

    runner.run(main)
    error.__traceback__ = None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("run", [with_portal_run, with_portal_run_sync])
@pytest.mark.parametrize("portal_before", [False, True])
def test_raised_through_a_run(runner, error, run, portal_before):
    """with_portal_run and with_portal_run_sync raise as an async def would."""

    def fails():
        await_(runner.checkpoint())
        raise type(error)(*error.args)

    async def fails_natively():
        raise type(error)(*error.args)

    async def fails_below():
        fails()

    async def main():
        if portal_before:
            await ensure_portal()
        with pytest.raises(BaseException) as native:
            await fails_natively()
        with pytest.raises(BaseException) as ours:
            await run(fails if run is with_portal_run_sync else fails_below)
        assert type(ours.value) is type(native.value)
        assert type(ours.value.__cause__) is type(native.value.__cause__)
        if isinstance(error, StopIteration):
            assert type(ours.value) is RuntimeError
            assert ours.value.__cause__.args == error.args
        else:
            assert describe(ours.value) == describe(native.value)
        assert has_portal() is portal_before

    runner.run(main)


def test_the_very_exception_object(runner, portal_kind):
    error = Custom()

    async def fails():
        await runner.checkpoint()
        raise error

    def sync():
        try:
            await_(fails())
        except Custom as exc:
            assert exc is error
            raise

    async def main():
        with pytest.raises(Custom) as caught:
            await portal_kind(sync)
        assert caught.value is error

    runner.run(main)
    error.__traceback__ = None


def test_exception_with_which_the_task_ends(runner):
    def sync():
        await_(runner.checkpoint())
        raise Custom("end")

    async def main():
        await ensure_portal()
        sync()

    with pytest.raises(Custom, match="end") as caught:
        runner.run(main)
    names = frames(caught.value)
    assert names[-2:] == ["main", "sync"]
    with pytest.raises(Custom, match="end"):
        runner.run(with_portal_run_sync, sync)


def test_return_values_that_look_like_exceptions(runner):
    """StopIteration and exceptions as values, tuples as values of StopIteration."""
    values = [
        StopIteration(1),
        StopIteration,
        (1, 2),
        (),
        None,
        Custom(),
        [StopIteration()],
    ]

    async def give(value):
        await runner.checkpoint()
        return value

    async def main():
        for value in values:
            assert await with_portal_run(give, value) is value
            assert await with_portal_run_sync(lambda value=value: value) is value
            assert (
                await with_portal_run_sync(lambda value=value: await_(give(value)))
                is value
            )

    runner.run(main)


# --- exceptions that the loop throws in


def test_exception_from_a_future(asyncio_runner):
    async def main():
        await ensure_portal()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        error = Custom("from the future")
        loop.call_soon(future.set_exception, error)

        def sync():
            try:
                await_(future)
            except Custom as exc:
                assert exc is error
                return await_(asyncio.sleep(0, "went on"))

        assert sync() == "went on"
        task = loop.create_task(
            by_coroutine(Custom("task"), functools.partial(asyncio.sleep, 0))
        )
        with pytest.raises(Custom, match="task"):
            await_(task)
        with pytest.raises(Custom, match="gathered"):
            await_(asyncio.gather(by_coroutine(Custom("gathered"), None)))
        error.__traceback__ = None

    asyncio_runner.run(main)


def test_exception_from_trio(trio_runner):
    outcome = pytest.importorskip("outcome")
    trio = trio_runner.trio

    async def main():
        await ensure_portal()
        task = trio.lowlevel.current_task()
        trio.lowlevel.current_trio_token().run_sync_soon(
            trio.lowlevel.reschedule, task, outcome.Error(Custom("rescheduled"))
        )
        with pytest.raises(Custom, match="rescheduled"):
            await_(
                trio.lowlevel.wait_task_rescheduled(
                    lambda _: trio.lowlevel.Abort.FAILED
                )
            )
        assert await_(trio.to_thread.run_sync(lambda: 1)) == 1

    trio_runner.run(main)


def test_bad_yield(asyncio_runner):
    """The loop complains about what awaited code yields, into that code."""

    @types.coroutine
    def bad():
        try:
            yield "not a future"
        except RuntimeError as exc:
            return str(exc)

    async def main():
        native = await bad()
        await ensure_portal()
        assert await_(bad()) == native
        with pytest.raises(RuntimeError, match="got bad yield"):
            await_(trap("other"))

    asyncio_runner.run(main)


@types.coroutine
def trap(value):
    return (yield value)


THROWN = [
    Custom("thrown"),
    StopIteration("thrown"),
    StopAsyncIteration("thrown"),
    CustomBase("thrown"),
    GeneratorExit("thrown"),
]


@pytest.mark.parametrize("error", THROWN, ids=lambda error: type(error).__name__)
def test_thrown_into_a_suspended_await(error):
    """Directly by send() and throw(), with a loop written by hand."""

    async def swallow():
        for n in range(2):
            try:
                await trap(n)
            except BaseException as exc:
                if type(exc) is RuntimeError:  # what a generator makes of StopIteration
                    exc = exc.__cause__
                assert exc is error or type(exc) is GeneratorExit
        return "survived"

    def below():
        return await_(swallow()), await_(trap(2))

    async def native():
        return await swallow(), await trap(2)

    def drive(coro):
        steps = [coro.send(None), coro.throw(error), coro.throw(error)]
        with pytest.raises(StopIteration) as stop:
            coro.send("sent")
        return [*steps, stop.value.value]

    expected = [0, 1, 2, ("survived", "sent")]
    if isinstance(error, GeneratorExit):
        # Closes what a native await delegates to, so it may not go on.
        for coro in native(), with_portal_run_sync(below):
            assert coro.send(None) == 0
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                coro.throw(error)
            coro.close()
    else:
        assert drive(native()) == expected
        assert drive(with_portal_run_sync(below)) == expected
    error.__traceback__ = None


def test_throw_of_classes_and_of_nonsense():
    def below():
        try:
            await_(trap(1))
        except Custom as exc:
            return exc.args

    for args in [(Custom("a"),), (Custom,)]:
        coro = with_portal_run_sync(below)
        coro.send(None)
        with pytest.raises(StopIteration) as stop:
            coro.throw(*args)
        assert stop.value.value == (("a",) if isinstance(args[0], Exception) else ())
    coro = with_portal_run_sync(below)
    coro.send(None)
    for wrong in (1, "text", object, int):
        with pytest.raises(TypeError, match="must be classes or instances"):
            coro.throw(wrong)
    coro.close()


def test_unusual_calls_of_the_coroutine():
    """send() and friends at the wrong moment fail as on any coroutine."""
    coro = with_portal_run_sync(await_, trap(1))
    with pytest.raises(TypeError, match="can't send non-None value"):
        coro.send("too early")
    assert coro.send(None) == 1
    with pytest.raises(StopIteration) as stop:
        coro.send("answer")
    assert stop.value.value == "answer"
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        coro.send(None)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        coro.throw(Custom)
    coro.close()

    def itself():
        with pytest.raises(ValueError, match="already executing"):
            coro.send(None)
        with pytest.raises(ValueError, match="already executing"):
            coro.throw(Custom)
        with pytest.raises(ValueError, match="already executing"):
            coro.close()
        return "unharmed"

    coro = with_portal_run_sync(itself)
    with pytest.raises(StopIteration) as stop:
        coro.send(None)
    assert stop.value.value == "unharmed"


# --- tracebacks


def test_traceback_shows_the_users_frames(runner, portal_kind):
    async def innermost():
        await runner.checkpoint()
        raise Custom

    async def awaited():
        await innermost()

    def sync_inner():
        await_(awaited())

    def sync_outer():
        sync_inner()

    async def main():
        await portal_kind(sync_outer)

    with pytest.raises(Custom) as caught:
        runner.run(main)
    names = frames(caught.value)
    assert names.count("main") == 1
    # Nothing between the sync function and the coroutine it awaits.
    assert names[names.index("sync_outer") :] == [
        "sync_outer",
        "sync_inner",
        "awaited",
        "innermost",
    ]


@pytest.mark.parametrize("suspends", [False, True])
def test_traceback_of_nested_await(runner, suspends):
    async def level(n):
        if suspends:
            await runner.checkpoint()
        if n:
            sync(n)
        raise Custom

    def sync(n):
        await_(level(n - 1))

    async def main():
        await ensure_portal()
        with pytest.raises(Custom) as caught:
            sync(3)
        return caught.value

    names = frames(runner.run(main))
    assert names[names.index("sync") :] == ["sync", "level"] * 3


def test_traceback_of_other_awaitables(runner):
    class Awaitable:
        def __await__(self):
            yield from runner.checkpoint().__await__()
            raise Custom

    def sync(make):
        await_(make())

    async def wrapper():
        await Awaitable()

    async def main():
        await ensure_portal()
        for make, inner in [
            (Awaitable, ["__await__"]),
            (wrapper, ["wrapper", "__await__"]),
            (autoawait(wrapper), ["wrapper", "__await__"]),
        ]:
            with pytest.raises(Custom) as caught:
                if make in (Awaitable, wrapper):
                    sync(make)
                else:
                    make()
            names = [name for name in frames(caught.value) if name != "main"]
            assert [name for name in names if name not in ("sync", "__call__")] == inner

    runner.run(main)


def test_traceback_through_c_frames(runner):
    async def awaited(n):
        await runner.checkpoint()
        raise Custom

    def key(n):
        return await_(awaited(n))

    def sync():
        sorted([1], key=key)

    async def main():
        await ensure_portal()
        with pytest.raises(Custom) as caught:
            sync()
        return caught.value

    assert frames(runner.run(main))[-3:] == ["sync", "key", "awaited"]


def test_traceback_of_a_thrown_exception(runner):
    """The path is the one at which the task was suspended."""
    seen = []

    async def awaited():
        await runner.sleep_forever()

    def sync():
        try:
            await_(awaited())
        except BaseException as exc:
            seen.extend(frames(exc))
            raise

    async def main():
        child = runner.spawn(with_portal_run_sync, sync)
        await runner.settle()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()

    runner.run(main)
    assert seen[:3] == ["sync", "awaited", "sleep_forever"]


def test_traceback_is_not_kept_alive(runner):
    class Resource:
        alive = 0

        def __init__(self):
            Resource.alive += 1

        def __del__(self):
            Resource.alive -= 1

    async def awaited():
        resource = Resource()
        await runner.checkpoint()
        raise Custom(resource is None)

    def sync():
        resource = Resource()
        try:
            await_(awaited())
        except Custom:
            pass
        return resource is None

    async def main():
        await ensure_portal()
        for _ in range(3):
            sync()
            assert Resource.alive == 0

    runner.run(main)


# --- __context__, __cause__, sys.exc_info()


def test_context_and_cause(runner):
    async def fails():
        await runner.checkpoint()
        raise Custom("inner") from LookupError("cause")

    async def with_own_context():
        try:
            await runner.checkpoint()
            raise KeyError("own")
        except KeyError:
            await runner.checkpoint()
            raise Custom("inner")  # noqa: B904

    async def context_is_passed_on():
        await runner.checkpoint()
        return sys.exc_info()[1]

    async def natively(make):
        try:
            try:
                raise ValueError("handled")
            except ValueError:
                value = await make()
                return describe(value), describe(sys.exc_info()[1])
        except Custom as exc:
            return describe(exc)

    def in_sync_code(make):
        try:
            try:
                raise ValueError("handled")
            except ValueError:
                value = await_(make())
                return describe(value), describe(sys.exc_info()[1])
        except Custom as exc:
            return describe(exc)

    async def main():
        await ensure_portal()
        for make in fails, with_own_context, context_is_passed_on:
            native = await natively(make)
            assert "handled" in repr(native)
            assert in_sync_code(make) == native
            assert await with_portal_run_sync(in_sync_code, make) == native

    runner.run(main)
    # A portal made for the call only.
    runner.run(with_portal_run_sync, in_sync_code, fails)


def test_handled_exception_is_visible_inside_a_run(runner):
    """As in a plain call: sys.exc_info(), bare raise, __context__."""

    def sync():
        first = sys.exc_info()[1]
        await_(runner.checkpoint())
        assert sys.exc_info()[1] is first
        try:
            raise KeyError
        except KeyError as exc:
            assert exc.__context__ is first
            await_(runner.checkpoint())
            assert sys.exc_info()[1] is exc
        assert sys.exc_info()[1] is first
        return first

    def reraise():
        await_(runner.checkpoint())
        raise

    async def in_portal(fn):
        return fn()

    async def main():
        error = Custom("handled")
        for run in [
            functools.partial(with_portal_run_sync, sync),
            functools.partial(with_portal_run, in_portal, sync),
        ]:
            assert await run() is None
            try:
                raise error
            except Custom:
                assert await run() is error
                assert sys.exc_info()[1] is error
                await runner.checkpoint()
                assert sys.exc_info()[1] is error
            assert sys.exc_info()[1] is None
        with pytest.raises(Custom) as caught:
            try:
                raise error
            except Custom:
                await with_portal_run_sync(reraise)
        assert caught.value is error
        error.__traceback__ = None

    runner.run(main)


@pytest.mark.parametrize("active", [False, True])
def test_handled_exception_in_a_task_with_a_portal(runner, active):
    """The portal may also come while the exception is being handled."""

    async def main():
        if active:
            await ensure_portal()
        error = Custom()
        try:
            raise error
        except Custom:
            await ensure_portal()
            assert sys.exc_info()[1] is error
            await_(runner.checkpoint())
            assert sys.exc_info()[1] is error
            await runner.checkpoint()
            assert sys.exc_info()[1] is error
            with pytest.raises(Custom):
                raise
        assert sys.exc_info() == (None, None, None)
        await runner.checkpoint()
        assert sys.exc_info() == (None, None, None)
        error.__traceback__ = None

    runner.run(main)


def test_exc_info_does_not_mix_between_tasks(runner):
    def sync(n):
        try:
            raise Custom(n)
        except Custom as error:
            for step in range(5):
                await_(runner.checkpoint())
                assert sys.exc_info()[1] is error
                try:
                    raise KeyError(n, step)
                except KeyError as exc:
                    assert exc.__context__ is error
                    await_(runner.checkpoint())
                    assert sys.exc_info()[1] is exc
                assert sys.exc_info()[1] is error
        assert sys.exc_info()[1] is None

    async def plain():
        for _ in range(10):
            assert sys.exc_info()[1] is None
            await runner.checkpoint()

    async def native(n):
        try:
            raise Custom(n)
        except Custom as error:
            for _ in range(10):
                await runner.checkpoint()
                assert sys.exc_info()[1] is error

    async def main():
        await runner.run_concurrently(
            *[functools.partial(with_portal_run_sync, sync, n) for n in range(5)],
            plain,
            functools.partial(native, 1),
            functools.partial(native, 2),
        )
        assert sys.exc_info()[1] is None

    runner.run(main)


def test_exc_info_in_a_generator(runner):
    def generator():
        try:
            raise Custom("generator")
        except Custom as error:
            await_(runner.checkpoint())
            yield sys.exc_info()[1] is error
            await_(runner.checkpoint())
            yield sys.exc_info()[1] is error

    def sync():
        try:
            raise KeyError("caller")
        except KeyError as error:
            for visible in generator():
                assert visible
                assert sys.exc_info()[1] is error

    runner.run_sync(sync)


def test_exc_info_of_sync_code_is_seen_by_awaited_code(runner):
    async def awaited():
        before = sys.exc_info()[1]
        await runner.checkpoint()
        return before, sys.exc_info()[1]

    def sync():
        try:
            raise Custom
        except Custom as error:
            assert await_(awaited()) == (error, error)
        assert await_(awaited()) == (None, None)

    runner.run_sync(sync)


def test_exception_in_finally_and_with(runner):
    async def fails(error):
        await runner.checkpoint()
        raise error

    class Manager:
        async def __aenter__(self):
            await runner.checkpoint()

        async def __aexit__(self, *exc):
            await runner.checkpoint()
            raise Custom("exit")

    def in_finally():
        try:
            await_(fails(KeyError("first")))
        finally:
            await_(fails(Custom("second")))

    def in_with():
        with async_context(Manager()):
            await_(fails(KeyError("first")))

    def sync():
        for fn in in_finally, in_with:
            with pytest.raises(Custom) as caught:
                fn()
            assert type(caught.value.__context__) is KeyError

    runner.run_sync(sync)


def test_except_star(runner):
    async def fails():
        await runner.checkpoint()
        raise ExceptionGroup("group", [Custom(), KeyError()])

    def sync():
        seen = []
        try:
            await_(fails())
        except* Custom as group:
            await_(runner.checkpoint())
            seen += group.exceptions
        except* KeyError as group:
            await_(runner.checkpoint())
            seen += group.exceptions
        return list(map(type, seen))

    assert runner.run_sync(sync) == [Custom, KeyError]
