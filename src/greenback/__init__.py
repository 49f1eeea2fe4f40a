"""Await from synchronous code, on asyncio, uvloop and Trio.

A *portal* on a task makes :func:`await_` work in all synchronous code that the
task calls: it gives what ``await`` would give in async code, while the event
loop goes on running the other tasks.
"""

from . import _threads  # noqa: F401  _core calls it; an import may come too late there
from ._core import (
    async_context,
    async_iter,
    bestow_portal,
    forbid_await,
    has_portal,
)
from ._debugger import set_trace
from ._engine import engine
from ._impl import await_, ensure_portal, with_portal_run, with_portal_run_sync
from ._nested import allow_nested_run
from ._stackscope import install_glue as _stackscope_install_glue_  # noqa: F401  stackscope calls it by this name
from ._tree import (
    AutoPortalInstrument,
    portals_for_children,
    portals_for_tree,
    with_portal_run_tree,
)
from ._tree_asyncio import portal_task_factory
from ._util import autoawait, decorate_as_sync

__version__ = "2.0.0.dev0"

__all__ = [
    "AutoPortalInstrument",
    "allow_nested_run",
    "async_context",
    "async_iter",
    "autoawait",
    "await_",
    "bestow_portal",
    "decorate_as_sync",
    "engine",
    "ensure_portal",
    "forbid_await",
    "has_portal",
    "portal_task_factory",
    "portals_for_children",
    "portals_for_tree",
    "set_trace",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]


def load_ipython_extension(ipython: object) -> None:
    """Let synchronous code in cells await: IPython's ``%load_ext greenback``.

    From the next cell on, cells and what they call may use :func:`await_`.

    Parameters
    ----------
    ipython : IPython.core.interactiveshell.InteractiveShell
        The shell; IPython passes it.

    Raises
    ------
    TypeError
        If ``ipython`` is not an IPython shell.
    """
    from . import _ipython

    _ipython.load(ipython)


def unload_ipython_extension(ipython: object) -> None:
    """Undo :func:`load_ipython_extension`: IPython's ``%unload_ext greenback``.

    The cell that is running keeps its portal to its end.

    Parameters
    ----------
    ipython : IPython.core.interactiveshell.InteractiveShell
        The shell; IPython passes it.

    Raises
    ------
    TypeError
        If ``ipython`` is not an IPython shell.
    """
    from . import _ipython

    _ipython.unload(ipython)
