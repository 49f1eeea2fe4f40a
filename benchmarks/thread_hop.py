"""What it costs to await from a worker thread, beside other ways to do it.

    python benchmarks/thread_hop.py [--loop uvloop] [--rounds N]

A thread of asyncio.to_thread() awaits asyncio.sleep(0) in the loop, again and
again. The ways take turns, round by round; the table shows the median of the
rounds and the fastest one, for one call. asgiref is left out where it is not
installed. Its async_to_sync() runs a loop of its own unless its sync_to_async()
has started the thread, so there is a line for that, too.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import greenback

try:
    from asgiref.sync import async_to_sync, sync_to_async
except ImportError:
    async_to_sync = None

OURS = "greenback.await_"
CALLS = 500

# What is called in the thread, and what starts the thread.
Way = tuple[Callable[[], Any], Callable[..., Any]]


def ways(loop: asyncio.AbstractEventLoop) -> dict[str, Way]:
    """Name the ways to await asyncio.sleep(0) from a thread."""

    def by_greenback() -> None:
        greenback.await_(asyncio.sleep(0))

    def by_asyncio() -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()

    found: dict[str, Way] = {
        OURS: (by_greenback, asyncio.to_thread),
        "asyncio.run_coroutine_threadsafe": (by_asyncio, asyncio.to_thread),
    }
    if async_to_sync is not None:
        sleep = async_to_sync(asyncio.sleep)

        def by_asgiref() -> None:
            sleep(0)

        async def in_its_own_thread(fn: Callable[..., Any], *args: Any) -> Any:
            return await sync_to_async(fn)(*args)

        found["asgiref.async_to_sync"] = (by_asgiref, asyncio.to_thread)
        found["the same below sync_to_async"] = (by_asgiref, in_its_own_thread)
    return found


def seconds_per_call(fn: Callable[[], Any]) -> float:
    """Call it many times in this thread."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        fn()
    return (time.perf_counter() - begin) / CALLS


async def measure(rounds: int) -> dict[str, list[float]]:
    """Let the ways take turns; give the seconds of each of their rounds."""
    by_name = ways(asyncio.get_running_loop())
    times: dict[str, list[float]] = {name: [] for name in by_name}
    for round_number in range(-1, rounds):
        for name, (fn, start) in by_name.items():
            seconds = await start(seconds_per_call, fn)
            if round_number >= 0:  # the first one warms up
                times[name].append(seconds)
    return times


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="see the head of the file")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    loop_factory = None
    if options.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        times = runner.run(measure(options.rounds))
    ours = statistics.median(times[OURS])
    print(f"| one call, on {options.loop} | median | fastest round | of greenback's |")
    print("| --- | --- | --- | --- |")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"| {name} | {median * 1e6:.1f} µs | {min(seconds) * 1e6:.1f} µs "
            f"| {median / ours:.2f} |"
        )


if __name__ == "__main__":
    main()
