"""Portals for a task and those that it starts; this file knows what that means on Trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, TypeVarTuple, overload

from . import _core, _tree_asyncio
from ._impl import with_portal_run

if TYPE_CHECKING:
    import trio
    from trio.abc import Instrument
else:
    Instrument = object

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Made when Trio has been imported.
_run_instrument: trio.lowlevel.RunVar[AutoPortalInstrument | None] | None = None


def _instrument_of_run() -> trio.lowlevel.RunVar[AutoPortalInstrument | None]:
    """The instrument that gives portals to tasks in the current Trio run."""
    global _run_instrument
    import trio

    if _run_instrument is None:
        _run_instrument = trio.lowlevel.RunVar("greenback_instrument", default=None)
    return _run_instrument


class AutoPortalInstrument(Instrument):
    """A Trio instrument that gives each new task a portal where it should have one.

    Passed to ``trio.run(..., instruments=[AutoPortalInstrument()])`` it gives
    one to every task of the run, system tasks included. It is also what
    :func:`portals_for_children` and its relatives work with.

    Attributes
    ----------
    tasks : dict[trio.lowlevel.Task, int]
        The tasks whose children get portals; for each how many of its
        outermost nurseries are exempt.
    refs : int
        How many users there are; the instrument is removed with the last.
    """

    tasks: dict[trio.lowlevel.Task, int]
    refs: int

    def __init__(self) -> None:
        self.tasks = {}
        self.refs = 0

    def before_run(self) -> None:
        # Called only if passed to trio.run(): then it serves the whole run.
        self.refs = 1
        _instrument_of_run().set(self)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if nursery is not None:
            parent = nursery.parent_task
            exempt = self.tasks.get(parent)
            if exempt is None or parent.child_nurseries.index(nursery) < exempt:
                return
        # Without a nursery it is the init task, which is seen only by the
        # instrument of the whole run: all others descend from it.
        _core.bestow_portal(task)
        self.tasks[task] = 0

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.tasks.pop(task, None)


def _current_task() -> tuple[str, Any]:
    """The name of the library that runs the current task, and the task."""
    try:
        return _core.current_task()
    except RuntimeError:  # no library runs, or another one, or no task
        raise RuntimeError(
            "This function is only supported when running under asyncio or Trio, "
            "in a task"
        ) from None


@contextmanager
def portals_for_children() -> Iterator[None]:
    """Give a portal to each task that is started in this context.

    On Trio these are the tasks in nurseries that are opened in the context, and
    in theirs in turn. On asyncio they are the tasks that the current loop makes
    for code whose :mod:`contextvars` context is this one, or was copied from it
    while this was active, and for tasks made so in turn. A task that is made
    by calling :class:`asyncio.Task`, past ``loop.create_task()``, gets none.

    The task that enters the context gets no portal, which is why this need not
    be asynchronous. The tasks keep theirs when the context ends; what they
    start afterwards gets none.

    Raises
    ------
    RuntimeError
        If this is not a task of asyncio or Trio, or if ``create_task()`` of the
        asyncio loop can't be replaced.
    """
    library, task = _current_task()
    if library == "asyncio":
        with _tree_asyncio.portals_for_children(task):
            yield
    else:
        with _portals_for_children_trio(task):
            yield


@contextmanager
def _portals_for_children_trio(task: trio.lowlevel.Task) -> Iterator[None]:
    holder = _instrument_of_run()
    instrument = holder.get()
    if instrument is not None and task in instrument.tasks:
        yield  # an enclosing context does it already
        return
    import trio

    if instrument is None:
        instrument = AutoPortalInstrument()
        trio.lowlevel.add_instrument(instrument)
        holder.set(instrument)
    # Nurseries that are open now enclose this context: not for their children.
    instrument.tasks[task] = len(task.child_nurseries)
    instrument.refs += 1
    try:
        yield
    finally:
        del instrument.tasks[task]
        instrument.refs -= 1
        if instrument.refs == 0:
            holder.set(None)
            trio.lowlevel.remove_instrument(instrument)


@asynccontextmanager
async def portals_for_tree() -> AsyncIterator[None]:
    """Give a portal to this task and to each that is started in this context.

    Which tasks these are, :func:`portals_for_children` tells. Entering and
    leaving are points where other tasks run, but not where this task can be
    cancelled.

    Raises
    ------
    RuntimeError
        If this is not a task of asyncio or Trio, or if ``create_task()`` of the
        asyncio loop can't be replaced.
    """
    library, task = _current_task()
    if library == "asyncio":
        async with _tree_asyncio.portals_for_tree(task):
            yield
    else:
        async with _portals_for_tree_trio(task):
            yield


@asynccontextmanager
async def _portals_for_tree_trio(task: trio.lowlevel.Task) -> AsyncIterator[None]:
    with _portals_for_children_trio(task):
        import trio

        had_portal = _core.has_portal()
        if not had_portal:
            _core.bestow_portal(task)
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
            yield
        finally:
            if not had_portal:
                _core.remove_portal(task)
            await trio.lowlevel.cancel_shielded_checkpoint()


# Overloaded as with_portal_run is.
@overload
async def with_portal_run_tree(
    async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts
) -> T: ...
@overload
async def with_portal_run_tree(
    async_fn: Callable[P, Awaitable[T]], *args: P.args, **kwds: P.kwargs
) -> T: ...
async def with_portal_run_tree(
    async_fn: Callable[..., Awaitable[T]], *args: object, **kwds: object
) -> T:
    """Await ``async_fn(*args, **kwds)`` with portals for it and for the tasks that it starts.

    Which tasks these are, :func:`portals_for_children` tells. There is no
    schedule point but those in ``async_fn``. To give every task of a run a
    portal, say ``asyncio.run(with_portal_run_tree(main))`` or
    ``trio.run(with_portal_run_tree, main)``; Trio's system tasks get none.

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
    RuntimeError
        If this is not a task of asyncio or Trio, or if ``create_task()`` of the
        asyncio loop can't be replaced.
    """
    with portals_for_children():
        return await with_portal_run(async_fn, *args, **kwds)
