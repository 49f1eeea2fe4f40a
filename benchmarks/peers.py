"""The libraries that are compared, seen alike by every benchmark."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

from ladder import AWAITLET, GREENLETIO, NATIVE, OURS, PREVIOUS, SQLALCHEMY
from loops import AsyncFn, Loop

T = TypeVar("T")


class Peer:
    """One way to await from sync code.

    Attributes that a peer has no counterpart for are None, and the rungs that
    need them leave it out.
    """

    await_: Callable[[Any], Any] | None = None
    run: Callable[..., Any] | None = None
    run_sync: Callable[..., Any] | None = None
    ensure_portal: Callable[[], Any] | None = None
    bestow_portal: Callable[[Any], None] | None = None
    enter_async: Callable[..., Any] | None = None

    async def enter_sync(self, loop: Loop, fn: Callable[[], T]) -> T:
        """Call ``fn()`` where ``await_`` works.

        Without C frames in between, which ``fn(*args)`` has on CPython 3.11.
        """
        raise NotImplementedError


class Native(Peer):
    """Async code that awaits: what every other peer is measured against."""

    def __init__(self) -> None:
        async def run(async_fn: AsyncFn[T], *args: Any) -> T:
            return await async_fn(*args)

        async def run_sync(fn: Callable[..., T], *args: Any) -> T:
            return fn(*args)

        async def enter_async(loop: Loop, async_fn: AsyncFn[T], *args: Any) -> T:
            return await async_fn(*args)

        self.run, self.run_sync, self.enter_async = run, run_sync, enter_async


class Greenback(Peer):
    """greenback, whichever one this environment holds."""

    def __init__(self) -> None:
        import greenback

        self.await_ = greenback.await_
        self.run = greenback.with_portal_run
        self.run_sync = greenback.with_portal_run_sync
        self.ensure_portal = greenback.ensure_portal
        self.bestow_portal = greenback.bestow_portal

        async def enter_async(loop: Loop, async_fn: AsyncFn[T], *args: Any) -> T:
            if not loop.has_tasks:
                result: T = await greenback.with_portal_run(async_fn, *args)
                return result
            await greenback.ensure_portal()
            return await async_fn(*args)

        self.enter_async = enter_async

    async def enter_sync(self, loop: Loop, fn: Callable[[], T]) -> T:
        import greenback

        if not loop.has_tasks:
            result: T = await greenback.with_portal_run_sync(fn)
            return result
        await greenback.ensure_portal()
        return fn()


class Spawning(Peer):
    """A library that starts a greenlet for each call of sync code."""

    def __init__(self, run_sync: Callable[..., Any], await_: Callable[[Any], Any]):
        self.run_sync, self.await_ = run_sync, await_

    async def enter_sync(self, loop: Loop, fn: Callable[[], T]) -> T:
        assert self.run_sync is not None
        result: T = await self.run_sync(fn)
        return result


def sqlalchemy() -> Peer:
    """Return SQLAlchemy's pair, public in sqlalchemy.util."""
    from sqlalchemy.util import await_only, greenlet_spawn

    return Spawning(greenlet_spawn, await_only)


def awaitlet() -> Peer:
    """Return awaitlet's pair."""
    from awaitlet import async_def, awaitlet

    return Spawning(async_def, awaitlet)


def greenletio() -> Peer:
    """Return greenletio's pair, whose first is a decorator."""
    from greenletio import async_, await_

    # As it would be once, where fn is defined; a few, for callers with a lambda a call.
    decorated = functools.lru_cache(8)(async_)
    return Spawning(lambda fn: decorated(fn)(), await_)


OTHERS = {SQLALCHEMY: sqlalchemy, AWAITLET: awaitlet, GREENLETIO: greenletio}


def open_peer(name: str, engine: str | None) -> Peer:
    """Return the peer called ``name``.

    :param engine: the engine that greenback must be running on.
    :raises RuntimeError: this environment holds something else.
    """
    if name == NATIVE:
        return Native()
    if name in OTHERS:
        return OTHERS[name]()
    version = importlib.metadata.version("greenback")
    if (version == PREVIOUS) != (name == PREVIOUS):
        raise RuntimeError(f"peer {name} found greenback {version}")
    if name == OURS:
        import greenback

        if greenback.engine != engine:
            raise RuntimeError(f"asked for the {engine} engine, got {greenback.engine}")
    return Greenback()


def is_native(peer: Peer) -> bool:
    """Whether ``peer`` awaits from async code."""
    return isinstance(peer, Native)
