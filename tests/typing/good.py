"""Uses of the public names, and the types that must come out of them."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, assert_type

import trio

import greenback


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

    def __aiter__(self) -> AsyncIterator[int]:
        return self.generate()

    async def generate(self) -> AsyncGenerator[int, None]:
        """Yield one number."""
        yield 1


@asynccontextmanager
async def manager() -> AsyncIterator[bytes]:
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
    assert_type(await greenback.with_portal_run_tree(number, "1"), int)
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
    assert_type(greenback.autoawait(number)("1"), int)
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
    assert_type(next(greenback.async_iter(Numbers().generate())), int)


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


def keeps_signature(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Be a sync decorator."""
    return fn


@greenback.decorate_as_sync(keeps_signature)
async def decorated(text: str) -> int:
    """Be decorated with a decorator for sync functions."""
    return int(text)


async def call_decorated() -> None:
    """What comes out is still async."""
    result: Awaitable[int] = decorated("1")
    await result


def engine() -> None:
    """The name of the engine, and the version."""
    engine_name: str = greenback.engine
    assert_type(engine_name, str)
    assert_type(greenback.engine.reason, str)
    assert_type(greenback.__version__, str)
