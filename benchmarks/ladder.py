"""The rungs of the ladder: what is measured, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

LOOPS = ("bare", "asyncio", "uvloop", "trio")
TASK_LOOPS = ("asyncio", "uvloop", "trio")

NATIVE = "native"
PREVIOUS = "1.3.0"
SQLALCHEMY = "sqlalchemy"
AWAITLET = "awaitlet"
GREENLETIO = "greenletio"
OURS = "greenback"
PEERS = (NATIVE, OURS, PREVIOUS, SQLALCHEMY, AWAITLET, GREENLETIO)

DEPTHS = (1, 10, 30, 100)
TASK_COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)


class Rung(NamedTuple):
    """One line of the ladder.

    ``unit`` is ``"second"``, ``"byte"`` or ``"times"``. ``judged`` says which
    figure a target applies to and which one peers are compared by:
    ``"extra"`` is the difference from the native peer, ``"ratio"`` the
    quotient, ``"value"`` the figure itself, ``"none"`` neither.
    """

    key: str
    title: str
    loops: tuple[str, ...] = LOOPS
    unit: str = "second"
    judged: str = "extra"


class Target(NamedTuple):
    """What one of our engines has to reach on one rung.

    ``limit`` is for the judged figure. ``times`` says, by peer, how many times
    our judged figure that of the peer must at least be.
    """

    limit: float | None = None
    times: Mapping[str, float] = MappingProxyType({})


TIME_RUNGS = (
    Rung("step", "1 ordinary step"),
    Rung("await", "2 await_ that suspends"),
    Rung("below-c", "2 same, below max(map(...))"),
    Rung("await-no-suspend", "3 await_ that does not suspend", judged="ratio"),
    Rung("run", "4 with_portal_run"),
    Rung("run-sync", "4 with_portal_run_sync"),
    Rung("bestow", "5 bestow_portal on a new task", TASK_LOOPS, judged="value"),
    Rung("ensure", "5 task that calls ensure_portal", TASK_LOOPS),
    *(Rung(f"depth-{depth}", f"6 await_ below {depth} calls") for depth in DEPTHS),
    # Those that import greenlet come last, as steps take longer after that.
    Rung("foreign", "8 await_ in another greenlet"),
    # Nobody's: shows how fast this machine is at greenlet's own work.
    Rung("greenlet", "0 greenlet.switch(), both ways", ("bare",), judged="none"),
)

# What asyncio does with its tasks is what uvloop and Trio do; one loop is enough.
TASKS_RUNGS = tuple(
    Rung(f"{what}-of-{count}", f"9 {title} in each of {count:,} tasks", ("asyncio",))
    for what, title in (("step", "step"), ("await", "await_"))
    for count in TASK_COUNTS
)

MEMORY_RUNGS = (
    Rung("idle-rss", "7 idle portal, RSS", TASK_LOOPS, "byte"),
    Rung("idle-traced", "7 idle portal, tracemalloc", TASK_LOOPS, "byte"),
    Rung(
        "suspended-rss",
        "7 suspended await_, depth 5, RSS",
        TASK_LOOPS,
        "byte",
        judged="value",
    ),
    Rung("suspended-traced", "7 same, tracemalloc", TASK_LOOPS, "byte"),
    Rung(
        "burst-rss",
        "7 RSS after a burst of them / before",
        TASK_LOOPS,
        "times",
        judged="value",
    ),
)

RETURN_RUNG = Rung(
    "return", "7 tasks at depths 0-30 come back", TASK_LOOPS, judged="none"
)

# By engine, rung and, where it differs, loop.
_TARGETS = {
    ("greenlet", "step"): Target(600e-9),
    ("greenlet", "await"): Target(700e-9),
    ("greenlet", "await-no-suspend"): Target(1.3),
    ("greenlet", "run"): Target(1.2e-6),
    ("greenlet", "run-sync"): Target(1.2e-6),
    ("greenlet", "depth-100"): Target(0),
    ("greenlet", "idle-rss"): Target(2048),
    ("direct", "step"): Target(50e-9, {PREVIOUS: 20}),
    ("direct", "step", "trio"): Target(100e-9, {PREVIOUS: 10}),
    ("direct", "await"): Target(180e-9, {PREVIOUS: 12, SQLALCHEMY: 4}),
    ("direct", "await", "trio"): Target(220e-9, {PREVIOUS: 12, SQLALCHEMY: 4}),
    ("direct", "foreign"): Target(None, {PREVIOUS: 1 / 0.6}),
    ("direct", "await-no-suspend"): Target(1.15),
    ("direct", "run"): Target(None, {PREVIOUS: 40}),
    ("direct", "depth-100"): Target(0),
    ("direct", "idle-rss"): Target(600),
    ("direct", "suspended-rss", "asyncio"): Target(5120),
    ("direct", "burst-rss"): Target(1.1),
}


def target(engine: str | None, rung: Rung, loop: str) -> Target:
    """Return what ``engine`` has to reach; an empty target if nothing."""
    for key in ((engine, rung.key, loop), (engine, rung.key)):
        if key in _TARGETS:
            return _TARGETS[key]
    return Target()
