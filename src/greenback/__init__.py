"""Await from synchronous code, on asyncio, uvloop and Trio.

A *portal* on a task makes :func:`await_` work in all synchronous code that the
task calls: it gives what ``await`` would give in async code, while the event
loop goes on running the other tasks.
"""

from ._core import (
    async_context,
    async_iter,
    bestow_portal,
    forbid_await,
    has_portal,
)
from ._engine import engine
from ._impl import await_, ensure_portal, with_portal_run, with_portal_run_sync
from ._stackscope import install_glue as _stackscope_install_glue_  # noqa: F401  stackscope calls it by this name
from ._tree import (
    AutoPortalInstrument,
    portals_for_children,
    portals_for_tree,
    with_portal_run_tree,
)
from ._util import autoawait, decorate_as_sync

__version__ = "2.0.0.dev0"

__all__ = [
    "AutoPortalInstrument",
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
    "portals_for_children",
    "portals_for_tree",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]
