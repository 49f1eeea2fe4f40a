"""What task trees are on asyncio, and the task factory.

A task has no parent there, but the Context it runs in is a copy of its
creator's: a mark in that tells that a task belongs to a tree. While a tree is
open, ``create_task`` of its loop is a :class:`_core.TaskMaker`, which puts a
portal on the coroutine of each task that belongs to one, before the task
exists. The loop's task factory is left alone: it stays the user's, and on
Python 3.13 a task that is made by any factory loses its default name.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from . import _core

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
T = TypeVar("T")
FutureT = TypeVar("FutureT", bound="asyncio.Future[Any]")

_tree: ContextVar[_core.TreeMark | None] = ContextVar("greenback_tree")


def _install(loop: asyncio.AbstractEventLoop) -> _core.TaskMaker:
    """What makes the loop's tasks and gives portals; put in place if need be."""
    attributes = getattr(loop, "__dict__", None)
    if attributes is None:
        raise RuntimeError(
            f"portals can't be given to the tasks of this event loop, since "
            f"create_task() of {type(loop).__qualname__} can't be replaced"
        )
    replaced = attributes.get("create_task")
    if type(replaced) is _core.TaskMaker:
        return replaced
    maker = _core.TaskMaker(loop.create_task, 0, _tree, weakref.WeakKeyDictionary())
    maker.replaced = replaced
    attributes["create_task"] = maker
    return maker


def _uninstall(loop: asyncio.AbstractEventLoop, maker: _core.TaskMaker) -> None:
    attributes = loop.__dict__
    if attributes.get("create_task") is not maker:
        return  # whoever has replaced it calls it: it does nothing more
    if maker.replaced is None:
        del attributes["create_task"]
    else:
        attributes["create_task"] = maker.replaced


def _begin(loop: asyncio.AbstractEventLoop) -> _core.TreeMark:
    maker = _install(loop)
    outer = _tree.get(None)
    while outer is not None and outer.maker is None:
        outer = outer.outer  # has ended: not to be kept
    mark = _core.TreeMark(maker, outer)
    mark.token = _tree.set(mark)
    maker.trees += 1
    return mark


def _end(loop: asyncio.AbstractEventLoop, mark: _core.TreeMark) -> None:
    maker, token = mark.maker, mark.token
    assert maker is not None and token is not None
    mark.maker = mark.token = None  # Contexts keep the mark: it must keep nothing
    innermost = _tree.get(None)
    if innermost is mark:
        try:
            _tree.reset(token)
        except ValueError:  # a copy of the Context in which the tree began
            _tree.set(mark.outer)
    else:
        # Not ended in reverse order: the tree inside of this one will put back
        # what was there before both.
        inner = innermost
        while inner is not None and inner.outer is not mark:
            inner = inner.outer
        if inner is not None:
            inner.outer = mark.outer
            if inner.token is not None:
                inner.token = token
    maker.trees -= 1
    if maker.trees == 0:
        _uninstall(loop, maker)


@contextmanager
def portals_for_children(task: asyncio.Task[Any]) -> Iterator[None]:
    """Begin a tree in the current Context, on the loop of ``task``."""
    loop = task.get_loop()
    mark = _begin(loop)
    try:
        yield
    finally:
        _end(loop, mark)


@types.coroutine
def _yield_to_loop() -> Generator[None, None, None]:
    yield


async def _shielded_checkpoint() -> None:
    """Let other tasks run; a cancellation is put off to the next await."""
    import asyncio

    try:
        await _yield_to_loop()
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None:
            raise
        # Counted already: the number of requests has to stay what it is.
        task.uncancel()
        task.cancel(*exc.args)


@asynccontextmanager
async def portals_for_tree(task: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Begin a tree in the current Context, with a portal for ``task``."""
    with portals_for_children(task):
        had_portal = _core.has_portal()
        if not had_portal:
            _core.bestow_portal(task)
        closed = False
        try:
            await _shielded_checkpoint()
            yield
        except GeneratorExit:
            closed = True  # nothing may wait any more
            raise
        finally:
            if not had_portal:
                _core.remove_portal(task)
            if not closed:
                await _shielded_checkpoint()


class TaskFactory(Protocol):
    """A task factory that makes an :class:`asyncio.Task`; for type checkers."""

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        /,
        **kwds: Any,
    ) -> asyncio.Task[T]: ...


@overload
def portal_task_factory(inner: None = None) -> TaskFactory: ...
@overload
def portal_task_factory(inner: Callable[P, FutureT]) -> Callable[P, FutureT]: ...
def portal_task_factory(
    inner: Callable[..., asyncio.Future[Any]] | None = None,
) -> Callable[..., Any]:
    """Make a task factory that gives each task of a loop a portal.

    Pass it to ``loop.set_task_factory()``, or make it the ``task_factory`` of
    whatever takes one. The portals are there from the first step of a task on,
    that of an eager task included. Tasks that exist already get none::

        loop.set_task_factory(greenback.portal_task_factory())
        loop.set_task_factory(greenback.portal_task_factory(asyncio.eager_task_factory))

    Parameters
    ----------
    inner : callable, optional
        Another task factory, which makes the tasks; None stands for
        :class:`asyncio.Task`.

    Returns
    -------
    callable
        The task factory. It passes keyword arguments on.

    Raises
    ------
    TypeError
        If ``inner`` is not callable.
    """
    import asyncio

    if inner is None:
        return _core.TaskMaker(None, 1)
    if not callable(inner):
        raise TypeError(
            f"expected a task factory or None, not {type(inner).__qualname__}"
        )
    if sys.version_info >= (3, 12):
        function: Any = inner
        eager_code = asyncio.eager_task_factory.__code__
        if getattr(function, "__code__", None) is eager_code:
            # AnyIO knows asyncio's eager factories by their code, and makes its
            # tasks with the constructor inside: that is what has to be wrapped.
            constructor = function.__closure__[0].cell_contents
            return asyncio.create_eager_task_factory(_core.TaskMaker(constructor, 0))
    return _core.TaskMaker(inner, 1)
