"""What it costs to create and run a task in a task tree, beside one outside.

Usage: ``python benchmarks/task_creation.py [--rounds N]``. Prints for each loop
and each way to get portals the CPU time of a trivial task (it returns at once),
and its ratio to that of the same task without portals. Both are measured in
one process, in turns; the smallest of many values counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import greenback

TASKS = 500  # in one measurement


async def trivial() -> None:
    """Be the body of a task."""


async def measure() -> float:
    """Return the CPU time of a task in ns."""
    create_task = asyncio.create_task
    start = time.thread_time_ns()
    tasks = [create_task(trivial()) for _ in range(TASKS)]
    for task in tasks:
        await task
    return (time.thread_time_ns() - start) / TASKS


@contextmanager
def factory(loop: asyncio.AbstractEventLoop, make: Any) -> Any:
    """Have ``make`` as the task factory for a while."""
    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(None)


@contextmanager
def tree_and_factory(loop: asyncio.AbstractEventLoop, make: Any) -> Any:
    """Do the same in a tree."""
    with factory(loop, make), greenback.portals_for_children():
        yield


Way = Callable[[asyncio.AbstractEventLoop], AbstractContextManager[Any]]


def ways() -> dict[str, tuple[Way, Way]]:
    """Return what is compared, each with the same without portals."""
    plain: Way = lambda loop: nullcontext()  # noqa: E731
    result: dict[str, tuple[Way, Way]] = {
        "tree": (lambda loop: greenback.portals_for_children(), plain),
        "portal_task_factory()": (
            lambda loop: factory(loop, greenback.portal_task_factory()),
            plain,
        ),
    }
    if sys.version_info >= (3, 12):
        eager = asyncio.eager_task_factory
        result["tree, eager_task_factory"] = (
            lambda loop: tree_and_factory(loop, eager),
            lambda loop: factory(loop, eager),
        )
        result["portal_task_factory(eager_task_factory)"] = (
            lambda loop: factory(loop, greenback.portal_task_factory(eager)),
            lambda loop: factory(loop, eager),
        )
    return result


async def compare(with_portals: Way, without: Way, rounds: int) -> tuple[float, float]:
    """Return the smallest times with and without portals."""
    loop = asyncio.get_running_loop()
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, way in enumerate((with_portals, without)):
            with way(loop):
                best[i] = min(best[i], await measure())
    return best[0], best[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    gc.disable()
    print(f"Python {sys.version.split()[0]}, engine {greenback.engine}")
    for name in ("asyncio", "uvloop"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            print(f"{name:8} is not installed")
            continue
        for way, (with_portals, without) in ways().items():
            if name == "uvloop" and "eager" in way:
                continue  # uvloop passes arguments that the factory has not
            with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
                ours, plain = runner.run(compare(with_portals, without, rounds))
            print(
                f"{name:8} {way:40} {ours:6.0f} ns, "
                f"without {plain:6.0f} ns, ratio {ours / plain:.2f}"
            )


if __name__ == "__main__":
    main()
