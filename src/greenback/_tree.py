"""Portals for a task and those that it starts. Trio only."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from . import _core
from ._impl import with_portal_run

if TYPE_CHECKING:
    import trio
    from trio.abc import Instrument
else:
    Instrument = object

T = TypeVar("T")

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


def _current_trio_task() -> trio.lowlevel.Task:
    trio_module = sys.modules.get("trio")
    try:
        if trio_module is None:
            raise RuntimeError("Trio has not been imported")
        task: trio.lowlevel.Task = trio_module.lowlevel.current_task()
        return task
    except RuntimeError:
        raise RuntimeError(
            "This function is only supported when running under Trio"
        ) from None


@contextmanager
def portals_for_children() -> Iterator[None]:
    """Give a portal to each task that is started in a nursery opened in this context.

    The children's children get one, too. The task that enters the context
    gets none, which is why this need not be asynchronous.

    Raises
    ------
    RuntimeError
        If this is not a Trio task.
    """
    task = _current_trio_task()
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
    """Give a portal to this task and to each that is started in a nursery opened in this context.

    Entering and leaving are points where other tasks run, but not where this
    task can be cancelled.

    Raises
    ------
    RuntimeError
        If this is not a Trio task.
    """
    with portals_for_children():
        import trio

        task = trio.lowlevel.current_task()
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


async def with_portal_run_tree(
    async_fn: Callable[..., Awaitable[T]], *args: Any, **kwds: Any
) -> T:
    """Await ``async_fn(*args, **kwds)`` with portals for it and for the tasks that it starts.

    These are the tasks in nurseries that ``async_fn`` opens, and in theirs in
    turn. There is no schedule point but those in ``async_fn``. To give every
    task of a run a portal but the system tasks, say
    ``trio.run(with_portal_run_tree, main)``.

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
        If this is not a Trio task.
    """
    with portals_for_children():
        return await with_portal_run(async_fn, *args, **kwds)
