"""The rungs of the ladder: what is measured, and what it may cost."""

from __future__ import annotations

from typing import NamedTuple

LOOPS = ("bare", "asyncio", "uvloop", "trio")
TASK_LOOPS = ("asyncio", "uvloop", "trio")

NATIVE = "native"
PREVIOUS = "1.3.0"
SQLALCHEMY = "sqlalchemy"
OURS = "greenback"

DEPTHS = (1, 10, 30, 100)


class Rung(NamedTuple):
    """One line of the ladder.

    ``unit`` is ``"second"`` or ``"byte"``. ``judged`` says which figure a
    target applies to and which one peers are compared by: ``"extra"`` is the
    difference from the native peer, ``"ratio"`` the quotient, ``"value"`` the
    figure itself, ``"none"`` neither.
    """

    key: str
    title: str
    loops: tuple[str, ...] = LOOPS
    unit: str = "second"
    judged: str = "extra"
    target: float | None = None


TIME_RUNGS = (
    # Nobody's: shows how fast this machine is at greenlet's own work.
    Rung("greenlet", "0 greenlet.switch(), both ways", ("bare",), judged="none"),
    Rung("step", "1 ordinary step", target=600e-9),
    Rung("await", "2 await_ that suspends", target=700e-9),
    Rung(
        "await-no-suspend",
        "3 await_ that does not suspend",
        judged="ratio",
        target=1.3,
    ),
    Rung("run", "4 with_portal_run", target=1.2e-6),
    Rung("run-sync", "4 with_portal_run_sync", target=1.2e-6),
    Rung("bestow", "5 bestow_portal on a new task", TASK_LOOPS, judged="value"),
    Rung("ensure", "5 task that calls ensure_portal", TASK_LOOPS),
    *(Rung(f"depth-{depth}", f"6 await_ below {depth} calls") for depth in DEPTHS),
)

MEMORY_RUNGS = (
    Rung(
        "idle-rss",
        "7 idle portal, RSS",
        TASK_LOOPS,
        unit="byte",
        target=2048,
    ),
    Rung("idle-traced", "7 idle portal, tracemalloc", TASK_LOOPS, unit="byte"),
    Rung(
        "suspended-rss",
        "7 suspended await_, depth 5, RSS",
        TASK_LOOPS,
        unit="byte",
    ),
    Rung(
        "suspended-traced",
        "7 same, tracemalloc",
        TASK_LOOPS,
        unit="byte",
    ),
)

RETURN_RUNG = Rung(
    "return", "7 tasks at depths 0-30 come back", TASK_LOOPS, judged="none"
)
