"""Decorators."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from . import _core
from ._core import async_generator as async_generator  # where greenback 1.x had it
from ._impl import with_portal_run_sync

P = ParamSpec("P")
T = TypeVar("T")


def autoawait(fn: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Make a function that awaits by itself what ``fn`` returns.

    To be used as a decorator on an async function that must be called from
    synchronous code: a special method, a property, a callback.

    Parameters
    ----------
    fn : callable
        An async function, or any function that returns an awaitable.

    Returns
    -------
    callable
        A synchronous function; calling it is ``await_(fn(...))``.
    """
    return _core.make_autoawait(fn)


def decorate_as_sync(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a decorator for synchronous functions to an async one.

    ``decorator`` gets a synchronous function which awaits the async one by
    itself; the result is an async function which calls what ``decorator``
    made of that, with a portal::

        @greenback.decorate_as_sync(functools.lru_cache(maxsize=128))
        async def fetch(url): ...

    Parameters
    ----------
    decorator : callable
        Takes a function and returns one.

    Returns
    -------
    callable
        A decorator for async functions.
    """

    def decorate(async_fn: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        inner = decorator(autoawait(async_fn))

        @functools.wraps(inner)
        async def outer(*args: Any, **kwds: Any) -> Any:
            return await with_portal_run_sync(inner, *args, **kwds)

        return outer

    return decorate
