#!/usr/bin/env python3
"""Compare the tasks of a task tree, and of a task factory, with tasks without portals.

What is timed is to create a trivial task and to await it, on asyncio and uvloop. Both
kinds are timed in one process, in turns; the smallest time of each counts. The clock is
the thread's CPU time.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import thread_time
from typing import Any

import compare
from compare import Row, Times

import greenback

TASKS = 500  # in one measurement
MEASUREMENTS = 60
LIMIT = 1.3

Way = Callable[[asyncio.AbstractEventLoop], AbstractContextManager[Any]]


async def trivial() -> None:
    """Be the body of a task."""


async def seconds() -> float:
    """Return the time that a task takes."""
    create_task = asyncio.create_task
    start = thread_time()
    tasks = [create_task(trivial()) for _ in range(TASKS)]
    for task in tasks:
        await task
    return (thread_time() - start) / TASKS


def factory(make: Any) -> Way:
    """Have ``make`` as the task factory for a while."""

    @contextmanager
    def way(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        loop.set_task_factory(make)
        try:
            yield
        finally:
            loop.set_task_factory(None)

    return way


def tree(inner: Way) -> Way:
    """Do the same in a tree."""

    @contextmanager
    def way(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        with inner(loop), greenback.portals_for_children():
            yield

    return way


def plain(loop: asyncio.AbstractEventLoop) -> AbstractContextManager[Any]:
    """Change nothing."""
    return nullcontext()


def ways(loop: str) -> dict[str, tuple[Way, Way]]:
    """Return what is compared, each with the same without portals."""
    result: dict[str, tuple[Way, Way]] = {
        "a task of a tree": (tree(plain), plain),
        "portal_task_factory()": (factory(greenback.portal_task_factory()), plain),
    }
    if sys.version_info >= (3, 12) and loop == "asyncio":
        # uvloop gives the factory arguments that the eager one does not take.
        eager = asyncio.eager_task_factory
        result["an eager task of a tree"] = (tree(factory(eager)), factory(eager))
        result["portal_task_factory(eager_task_factory)"] = (
            factory(greenback.portal_task_factory(eager)),
            factory(eager),
        )
    return result


def work(name: str) -> Times:
    """Return the smallest times with and without portals."""
    times: Times = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for what, pair in ways(name).items():
            for _ in range(MEASUREMENTS):
                for kind, way in zip(("portal", "plain"), pair, strict=True):
                    with way(loop):
                        key = f"{name} {what} {kind}"
                        times[key] = min(await seconds(), times.get(key, 1))

    gc.disable()
    module = importlib.import_module(name)
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        runner.run(main())
    return times


LOOPS = [name for name in ("asyncio", "uvloop") if importlib.util.find_spec(name)]


def rows() -> list[Row]:
    """Return a line for each way on each loop."""
    result = []
    for loop in LOOPS:
        for what in ways(loop):
            key = f"{loop} {what}"
            limit = LIMIT if "tree" in what else None
            result.append(
                Row(what, loop, f"{key} portal", "no portals", f"{key} plain", limit)
            )
    return result


if __name__ == "__main__":
    sys.exit(compare.main(__file__, LOOPS, work, rows))
