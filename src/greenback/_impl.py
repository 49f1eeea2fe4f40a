"""The Python functions that the C functions stand for.

They carry name, signature and documentation, and are what tools find that ask
for the code of a function.  ``stackscope`` reaches for ``await_`` and
``_greenback_shim`` here by name.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from . import _core

T = TypeVar("T")


@_core.make_await
def await_(aw: Awaitable[T]) -> T:
    """Await ``aw`` from a synchronous function.

    ``await_(aw)`` gives what ``await aw`` would give in an async function. If
    ``aw`` has to wait, the synchronous code that called ``await_`` is
    suspended, at whatever depth, and the event loop goes on with other tasks.

    In a worker thread of ``asyncio.to_thread()``, ``loop.run_in_executor()``,
    ``trio.to_thread.run_sync()`` or AnyIO it has the loop that the thread works
    for run ``aw`` in a task, and blocks the thread only.

    Parameters
    ----------
    aw : awaitable
        A coroutine, a future, a task, or anything else that ``await`` takes.

    Returns
    -------
    object
        The result of ``aw``.

    Raises
    ------
    RuntimeError
        If the current task has no portal, or has one that is not active yet,
        or if the wait can't be done here (in a finalizer that the garbage
        collector runs). A coroutine that was passed in is closed.
    sniffio.AsyncLibraryNotFoundError
        If no async library is running, and this is no such thread.
    TypeError
        If ``aw`` is not awaitable.
    BaseException
        Whatever ``aw`` raises.
    """
    raise NotImplementedError("the work is done in C")


@_core.make_with_portal
async def with_portal_run(
    async_fn: Callable[..., Awaitable[T]], *args: Any, **kwds: Any
) -> T:
    """Await ``async_fn(*args, **kwds)`` with a portal for the time it takes.

    If the current task has a portal already, that one is used. There is no
    schedule point but those in ``async_fn``. Needs nothing from what runs the
    task but that it drives coroutines.

    Parameters
    ----------
    async_fn : callable
        An async function, or any function that returns an awaitable.
    *args, **kwds
        Passed to ``async_fn``.

    Returns
    -------
    object
        What ``async_fn`` gives.

    Raises
    ------
    BaseException
        Whatever ``async_fn`` raises.
    """
    return await async_fn(*args, **kwds)


@_core.make_with_portal
async def with_portal_run_sync(sync_fn: Callable[..., T], *args: Any, **kwds: Any) -> T:
    """Call ``sync_fn(*args, **kwds)`` with a portal for the time it takes.

    If the current task has a portal already, that one is used. There is no
    schedule point but the calls of :func:`await_` in ``sync_fn``. Needs
    nothing from what runs the task but that it drives coroutines.

    Parameters
    ----------
    sync_fn : callable
        A synchronous function; it may call :func:`await_`.
    *args, **kwds
        Passed to ``sync_fn``.

    Returns
    -------
    object
        What ``sync_fn`` returns.

    Raises
    ------
    BaseException
        Whatever ``sync_fn`` raises.
    """
    if not args and not kwds:
        # In 3.11 the garbage collector can't see what the other call holds.
        return sync_fn()
    return sync_fn(*args, **kwds)


async def ensure_portal() -> None:
    """Give the current task a portal for the rest of its life.

    If it has one already, that one stays. In each case this is a point where
    other tasks run and where the task can be cancelled.

    Raises
    ------
    RuntimeError
        If no task is running, or one of a library that is not supported.
    sniffio.AsyncLibraryNotFoundError
        If no async library is running.
    """
    # The portal becomes active when the task has yielded once.
    await sys.modules[_core.bestow_current()].sleep(0)


def _greenback_shim() -> None:
    """Never called; see the head of this file."""
