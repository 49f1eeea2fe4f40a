#!/usr/bin/env python3
"""Compare a nested run of greenback with one of nest_asyncio2.

What is timed is ``loop.run_until_complete(coroutine())`` inside the running loop of
asyncio. Each peer has a process of its own, and they take turns; the figure of a
process is its best round, and the ratios are between medians of these.

nest_asyncio2 has to be installed beside greenback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from time import thread_time
from typing import Any

PEERS = ("greenback", "nest_asyncio2")


async def no_wait() -> None:
    """Does not suspend."""


async def one_wait() -> None:
    """Suspends once."""
    await asyncio.sleep(0)


PROGRAMS: dict[str, Callable[[], Awaitable[Any]]] = {
    "does not suspend": no_wait,
    "suspends once": one_wait,
    "asyncio.run(), suspends once": one_wait,
}


def time_runs(name: str, count: int) -> float:
    """Return the seconds that one nested run takes. To be called in a running loop."""
    run: Callable[[Any], Any] = asyncio.get_running_loop().run_until_complete
    if name.startswith("asyncio.run()"):
        run = asyncio.run
    program = PROGRAMS[name]
    start = thread_time()
    for _ in range(count):
        run(program())
    return (thread_time() - start) / count


def measure(peer: str, rounds: int, count: int) -> dict[str, float]:
    """Return the best time of each program, in this process."""
    if peer == "greenback":
        import greenback

        greenback.allow_nested_run()
    else:
        import nest_asyncio2  # type: ignore[import-not-found]

        nest_asyncio2.apply()

    async def main() -> dict[str, float]:
        if peer == "greenback":
            await greenback.ensure_portal()
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name in PROGRAMS:
                seconds = time_runs(name, count)
                best[name] = min(seconds, best.get(name, seconds))
        return best

    return asyncio.run(main())


def measure_in_turns(processes: int, options: list[str]) -> dict[str, dict[str, float]]:
    """Return for each peer the median time of each program."""
    results: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for _ in range(processes):
        for peer in PEERS:
            command = [sys.executable, __file__, "--peer", peer, *options]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            results[peer].append(json.loads(output))
    return {
        peer: {
            name: statistics.median(result[name] for result in results[peer])
            for name in PROGRAMS
        }
        for peer in PEERS
    }


def main() -> None:
    """Print a table, or in a peer's own process its times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--count", type=int, default=200, help="runs in a round")
    options = parser.parse_args()
    if options.peer is not None:
        print(json.dumps(measure(options.peer, options.rounds, options.count)))
        return
    passed_on = ["--rounds", str(options.rounds), "--count", str(options.count)]
    ours, theirs = measure_in_turns(options.processes, passed_on).values()
    print(f"{'a nested run that':30}{PEERS[0]:>14}{PEERS[1]:>16}{'ratio':>8}")
    for name in PROGRAMS:
        times = f"{ours[name] * 1e6:11.2f} µs{theirs[name] * 1e6:13.2f} µs"
        print(f"{name:30}{times}{ours[name] / theirs[name]:8.2f}")


if __name__ == "__main__":
    main()
