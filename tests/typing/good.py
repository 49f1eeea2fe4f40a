"""Uses of the public names, and the types that must come out of them."""

import asyncio
import functools
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, assert_type

import trio

import greenback

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


async def number(text: str, *, base: int = 10) -> int:
    """Be an async function."""
    return int(text, base)


def text(value: int) -> str:
    """Be a sync function."""
    return str(value)


class Custom:
    """An awaitable of its own."""

    def __await__(self) -> Generator[Any, Any, bytes]:
        yield
        return b""


class Numbers:
    """An async iterable that is no generator."""

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 1


async def echo() -> AsyncGenerator[int, str]:
    """Be an async generator that is sent something else than it yields."""
    text = "0"
    while True:
        text = yield int(text)


class Swallowing:
    """An async context manager that may swallow exceptions."""

    async def __aenter__(self) -> int:
        return 1

    async def __aexit__(self, *exc: object) -> bool:
        return True


@asynccontextmanager
async def manager() -> AsyncGenerator[bytes, None]:
    """Be an async context manager."""
    yield b""


def await_() -> None:
    """await_ gives the result's type, whatever is awaited."""
    assert_type(greenback.await_(number("1")), int)
    assert_type(greenback.await_(Custom()), bytes)
    future: asyncio.Future[str] = asyncio.Future()
    assert_type(greenback.await_(future), str)
    task: asyncio.Task[float] = asyncio.Task(some_float())
    assert_type(greenback.await_(task), float)
    assert_type(greenback.await_(aw=number("1")), int)


async def some_float() -> float:
    """Give a float."""
    return 1.0


async def portals() -> None:
    """The ways to get a portal."""
    assert_type(await greenback.ensure_portal(), None)
    assert_type(greenback.has_portal(), bool)
    assert_type(greenback.has_portal(None), bool)
    assert_type(greenback.has_portal(trio.lowlevel.current_task()), bool)
    assert_type(greenback.has_portal(asyncio.current_task()), bool)
    greenback.bestow_portal(trio.lowlevel.current_task())
    task: asyncio.Task[float] = asyncio.Task(some_float())
    greenback.bestow_portal(task)
    assert_type(await greenback.with_portal_run(number, "1", base=8), int)
    assert_type(await greenback.with_portal_run(Custom), bytes)
    assert_type(await greenback.with_portal_run_sync(text, 1), str)
    assert_type(await greenback.with_portal_run_tree(number, "1", base=8), int)
    assert_type(await greenback.with_portal_run_tree(Custom), bytes)
    asyncio.run(greenback.with_portal_run_tree(some_float))
    trio.run(greenback.with_portal_run_tree, number, "1")
    async with greenback.portals_for_tree() as nothing:
        assert_type(nothing, None)
    with greenback.portals_for_children() as nothing:
        assert_type(nothing, None)
    coroutine: Coroutine[Any, Any, int] = greenback.with_portal_run(number, "1")
    assert_type(await coroutine, int)
    assert_type(trio.run(greenback.with_portal_run_sync, text, 1), str)
    instrument: trio.abc.Instrument = greenback.AutoPortalInstrument()
    trio.run(some_float, instruments=[instrument])


def wrappers() -> None:
    """The helpers keep the types of what they wrap."""
    assert_type(greenback.autoawait(number)("1", base=8), int)
    typed: Callable[..., int] = greenback.autoawait(number)
    typed("1")
    with greenback.async_context(manager()) as value:
        assert_type(value, bytes)
    context: greenback.async_context[bytes] = greenback.async_context(manager())
    wrapped: AbstractAsyncContextManager[bytes] = manager()
    with greenback.async_context(wrapped) as value:
        assert_type(value, bytes)
    with context as value:
        assert_type(value, bytes)
    for item in greenback.async_iter(Numbers()):
        assert_type(item, int)
    iterator: Iterator[int] = iter(greenback.async_iter(Numbers()))
    assert_type(next(iterator), int)
    generator = greenback.async_iter(echo())
    assert_type(next(generator), int)
    assert_type(generator.send("1"), int)
    assert_type(generator.throw(ValueError()), int)
    generator.close()
    items: Iterable[int] = generator
    assert_type(list(items), list[int])
    assert_type(list(greenback.async_iter(Numbers())), list[int])


def returns_or_not(may_swallow: Swallowing) -> int:
    """A type checker knows that only some managers swallow exceptions."""
    with greenback.async_context(may_swallow):
        raise ValueError
    return 1


def returns() -> int:
    """No statement is needed after this one."""
    with greenback.async_context(manager()):
        return 1


def sections() -> None:
    """Sections and settings."""
    with greenback.forbid_await("a lock is held") as nothing:
        assert_type(nothing, None)
    with greenback.allow_nested_run():
        pass
    greenback.allow_nested_run().undo()
    greenback.set_trace(header="here")


class Service:
    """autoawait in a class body."""

    @greenback.autoawait
    async def fetch(self, name: str) -> bytes:
        """Be callable without await."""
        return name.encode()

    @property
    @greenback.autoawait
    async def size(self) -> int:
        """Be an async property."""
        return 1


def methods(service: Service) -> None:
    """Methods and properties made by autoawait."""
    assert_type(service.fetch("x"), bytes)
    assert_type(service.size, int)


def keeps_signature(fn: Callable[P, T]) -> Callable[P, T]:
    """Be a sync decorator that changes nothing."""
    return fn


def keeps_function(fn: T) -> T:
    """Be a sync decorator that gives back what it takes."""
    return fn


def keeps_callable(fn: F) -> F:
    """Be the same for functions alone; mypy knows only that the result is async."""
    return fn


def adds_parameter(fn: Callable[P, T]) -> Callable[Concatenate[bytes, P], list[T]]:
    """Be a sync decorator that changes parameters and result."""

    def wrapper(first: bytes, /, *args: P.args, **kwds: P.kwargs) -> list[T]:
        return [fn(*args, **kwds)] * len(first)

    return wrapper


def untyped(fn: Any) -> Any:
    """Be a sync decorator without types."""
    return fn


@greenback.decorate_as_sync(keeps_signature)
async def decorated(text: str, *, base: int = 10) -> int:
    """Be decorated with a decorator for sync functions."""
    return int(text, base)


@greenback.decorate_as_sync(keeps_function)
async def kept(text: str) -> int:
    """Be decorated with a decorator that gives back what it takes."""
    return int(text)


@greenback.decorate_as_sync(keeps_callable)
async def kept_callable(text: str) -> int:
    """Be decorated with a decorator of functions."""
    return int(text)


@greenback.decorate_as_sync(functools.lru_cache(maxsize=8))
async def cached(text: str) -> int:
    """Be cached."""
    return int(text)


@greenback.decorate_as_sync(adds_parameter)
async def changed(text: str) -> int:
    """Be changed by the decorator."""
    return int(text)


async def call_decorated() -> None:
    """What comes out is still async, with the parameters that the decorator leaves."""
    assert_type(await decorated("1", base=8), int)
    assert_type(await kept("1"), int)
    assert_type(await cached("1"), int)
    assert_type(await changed(b"", "1"), list[int])
    result: Coroutine[Any, Any, int] = decorated("1")
    await result
    await kept_callable("1")
    await greenback.decorate_as_sync(untyped)(number)("1")
    await asyncio.create_task(decorated("1"))


class Worker(asyncio.Task[T]):
    """A task of its own kind."""


def make_worker(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T]
) -> Worker[T]:
    """Be a task factory."""
    return Worker(coro, loop=loop)


def factories(loop: asyncio.AbstractEventLoop) -> None:
    """Task factories make what they made before."""
    loop.set_task_factory(greenback.portal_task_factory())
    loop.set_task_factory(greenback.portal_task_factory(None))
    factory = greenback.portal_task_factory()
    assert_type(factory(loop, number("1"), name="n"), asyncio.Task[int])
    workers = greenback.portal_task_factory(make_worker)
    assert_type(workers(loop, number("1")), Worker[int])
    if sys.version_info >= (3, 12):
        eager = greenback.portal_task_factory(asyncio.eager_task_factory)
        assert_type(eager(loop, number("1"), name="n"), asyncio.Task[int])
        loop.set_task_factory(eager)
        loop.set_task_factory(workers)


def engine() -> None:
    """The name of the engine, and the version."""
    name: str = greenback.engine
    print(name)
    assert_type(greenback.engine.reason, str)
    assert_type(greenback.__version__, str)
