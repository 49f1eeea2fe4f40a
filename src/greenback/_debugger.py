"""``set_trace``; the debugger itself is in ``_pdb``, which imports a lot."""

from __future__ import annotations

import sys


def set_trace(*, header: str | None = None) -> None:
    """Enter a debugger, at the calling frame, in which expressions can await.

    It is :mod:`pdb`, and at its prompt ``await`` works as in async code:
    ``await expr``, ``name = await expr``, ``p await expr``. So do functions
    that call :func:`await_`. Other tasks run while the prompt waits for an
    awaited result, and stand still while it waits for input. Ctrl-C cancels
    what is being awaited. ``step``, ``next`` and ``return`` stay in the task
    that is debugged.

    The task needs a portal. Without one this is plain ``pdb``; the task is
    given a portal, which serves from the next time on that it is suspended.

    To have ``breakpoint()`` call this, set the environment variable
    ``PYTHONBREAKPOINT=greenback.set_trace``.

    Parameters
    ----------
    header : str, optional
        Printed before debugging begins.
    """
    from ._pdb import enter

    enter(sys._getframe(1), header)
