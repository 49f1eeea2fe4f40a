#!/usr/bin/env python3
"""Compare a nested run of greenback with one of nest_asyncio2.

What is timed is ``loop.run_until_complete(coroutine())`` and ``asyncio.run(...)`` in a
running loop of asyncio; nest_asyncio2 can't patch uvloop. Each has a process of its own,
for nest_asyncio2 changes asyncio. The clock is the thread's CPU time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from time import thread_time
from typing import Any

import compare
from compare import Row, Times

PEERS = ("greenback", "nest_asyncio2")
LIMIT = 0.5
COUNT = 200  # runs in one measurement
MEASUREMENTS = 25  # the smallest counts


async def no_wait() -> None:
    """Does not suspend."""


async def one_wait() -> None:
    """Suspends once."""
    await asyncio.sleep(0)


async def nested(run: Callable[[Any], Any]) -> None:
    """Run another one inside."""
    run(one_wait())


WAYS = ("run_until_complete()", "asyncio.run()")
PROGRAMS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "of what does not suspend": lambda run: no_wait(),
    "of what suspends once": lambda run: one_wait(),
    "of a nested run": nested,
}
CASES = [f"{way} {program}" for way in WAYS for program in PROGRAMS]


def seconds(case: str, count: int = COUNT) -> float:
    """Return the time of one nested run. To be called in a running loop."""
    way, _, what = case.partition(" ")
    run: Callable[[Any], Any] = asyncio.run
    if way == "run_until_complete()":
        run = asyncio.get_running_loop().run_until_complete
    program = PROGRAMS[what]
    start = thread_time()
    for _ in range(count):
        run(program(run))
    return (thread_time() - start) / count


def work(peer: str) -> Times:
    """Return the best time of each case."""
    if peer == "greenback":
        import greenback

        greenback.allow_nested_run()
    else:
        import nest_asyncio2  # type: ignore[import-not-found]

        nest_asyncio2.apply()

    async def main() -> Times:
        if peer == "greenback":
            await greenback.ensure_portal()
        return {
            f"{peer} {case}": min(seconds(case) for _ in range(MEASUREMENTS))
            for case in CASES
        }

    return asyncio.run(main())


def rows() -> list[Row]:
    """Return a line for each case."""
    peer = PEERS[1]
    return [
        Row(case, "asyncio", f"greenback {case}", peer, f"{peer} {case}", LIMIT)
        for case in CASES
    ]


if __name__ == "__main__":
    sys.exit(compare.main(__file__, PEERS, work, rows, "nest-asyncio2"))
