#!/usr/bin/env python3
"""Compare await_() in a worker thread with asgiref's async_to_sync() and with asyncio.

What is timed is to await ``asyncio.sleep(0)`` in the loop, in a thread that the loop has
started. The ways take turns in one process; the fastest measurement of each counts. The
clock is the wall's, for the time passes in two threads. async_to_sync() runs a loop of
its own, unless its sync_to_async() has started the thread: there is a line for each. An
empty hop has the loop do nothing but to wake the thread: what no way can go below.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import compare
from compare import Row, Times

import greenback

OURS = "greenback.await_"
# How often a peer's time we may take.
LIMITS = {
    "asgiref.async_to_sync": 0.5,
    "the same below sync_to_async": None,
    "run_coroutine_threadsafe().result()": None,
    "an empty hop": None,
}
CALLS = 200
MEASUREMENTS = 12

# What is called in the thread, and what starts the thread.
Way = tuple[Callable[[], Any], Callable[..., Awaitable[float]]]


def ways(loop: asyncio.AbstractEventLoop) -> dict[str, Way]:
    """Name the ways to await asyncio.sleep(0) from a thread."""
    from asgiref.sync import async_to_sync, sync_to_async

    sleep = async_to_sync(asyncio.sleep)
    woken = threading.Lock()
    woken.acquire()

    def by_nothing() -> None:
        loop.call_soon_threadsafe(woken.release)
        woken.acquire()

    def by_greenback() -> None:
        greenback.await_(asyncio.sleep(0))

    def by_asyncio() -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()

    def by_asgiref() -> None:
        sleep(0)

    async def in_its_own_thread(fn: Callable[..., float], *args: Any) -> float:
        return await sync_to_async(fn)(*args)

    return {
        OURS: (by_greenback, asyncio.to_thread),
        "asgiref.async_to_sync": (by_asgiref, asyncio.to_thread),
        "the same below sync_to_async": (by_asgiref, in_its_own_thread),
        "run_coroutine_threadsafe().result()": (by_asyncio, asyncio.to_thread),
        "an empty hop": (by_nothing, asyncio.to_thread),
    }


def seconds(fn: Callable[[], Any]) -> float:
    """Return the time of a call in this thread."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        fn()
    return (time.perf_counter() - begin) / CALLS


def work(name: str) -> Times:
    """Return the smallest time of each way."""
    times: Times = {}

    async def main() -> None:
        by_name = ways(asyncio.get_running_loop())
        for _ in range(MEASUREMENTS):
            for way, (fn, start) in by_name.items():
                key = f"{name} {way}"
                times[key] = min(await start(seconds, fn), times.get(key, 1))

    module = importlib.import_module(name)
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        runner.run(main())
    return times


LOOPS = [name for name in ("asyncio", "uvloop") if importlib.util.find_spec(name)]


def rows() -> list[Row]:
    """Return a line for each peer on each loop."""
    what = "an await in a thread"
    return [
        Row(what, loop, f"{loop} {OURS}", peer, f"{loop} {peer}", limit)
        for loop in LOOPS
        for peer, limit in LIMITS.items()
    ]


if __name__ == "__main__":
    sys.exit(compare.main(__file__, LOOPS, work, rows, "asgiref"))
