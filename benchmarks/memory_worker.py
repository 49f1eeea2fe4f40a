"""Park many tasks for one peer on one loop, and print what that took as JSON.

Started by run.py. Scenarios:

idle       tasks with a portal that wait in async code
suspended  tasks that wait in ``await_`` at sync depth 5
burst      what is left when suspended tasks have gone on and ended
return     tasks suspended twice, at sync depths 0 to 30, woken in random
           order; every one has to come back with its own result
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import sys
import tracemalloc
from collections.abc import Callable
from time import thread_time
from typing import Any

from loops import AsyncFn, Loop, Waitable, open_loop
from peers import Native, Peer, is_native, open_peer

SUSPENDED_DEPTH = 5
RETURN_DEPTHS = 31


def resident_bytes() -> int:
    """Return this process's resident memory; its peak where unknown."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def traced_bytes() -> int:
    """Return what tracemalloc has seen allocated."""
    return tracemalloc.get_traced_memory()[0]


class Parking:
    """Counts the tasks that are about to wait."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.count = 0

    def arrive(self) -> None:
        self.count += 1

    async def full(self, tasks: int) -> None:
        """Return once ``tasks`` tasks wait."""
        while self.count < tasks:
            await self.loop.checkpoint()
        # The last to arrive has yet to reach its wait.
        for _ in range(3):
            await self.loop.checkpoint()
        self.count = 0


def idle_task(peer: Peer, parking: Parking, gate: Waitable) -> AsyncFn[None]:
    ready = parking.loop.checkpoint if is_native(peer) else peer.ensure_portal
    assert ready is not None

    async def task() -> None:
        await ready()
        parking.arrive()
        await gate.wait()

    return task


def suspended_task(peer: Peer, parking: Parking, gate: Waitable) -> AsyncFn[None]:
    if is_native(peer):

        async def descend_async(calls: int) -> None:
            if calls:
                await descend_async(calls - 1)
            else:
                parking.arrive()
                await gate.wait()

        async def task() -> None:
            await descend_async(SUSPENDED_DEPTH)

        return task

    await_ = peer.await_
    assert await_ is not None

    def descend(calls: int) -> None:
        if calls:
            descend(calls - 1)
        else:
            parking.arrive()
            await_(gate.wait())

    def sync_code() -> None:
        descend(SUSPENDED_DEPTH)

    async def sync_task() -> None:
        await peer.enter_sync(parking.loop, sync_code)

    return sync_task


MakeTask = Callable[[Peer, Parking, Waitable], AsyncFn[None]]


async def park(
    loop: Loop,
    make_task: MakeTask,
    peer: Peer,
    tasks: int,
    measure: Callable[[], int],
) -> int:
    """Return ``measure()`` while so many tasks wait; they end after that."""
    parking = Parking(loop)
    gate = loop.event()
    task = make_task(peer, parking, gate)
    async with loop.tasks() as group:
        for _ in range(tasks):
            group.start(task)
        await parking.full(tasks)
        gc.collect()
        parked = measure()
        gate.set()
    return parked


async def bytes_per_task(
    loop: Loop,
    make_task: MakeTask,
    peer: Peer,
    tasks: int,
    measure: Callable[[], int],
) -> float:
    """Return the growth of ``measure()`` per parked task."""
    # Imports, caches and free lists are no part of the cost of a task.
    await park(loop, make_task, peer, 10, measure)
    gc.collect()
    before = measure()
    parked = await park(loop, make_task, peer, tasks, measure)
    return (parked - before) / tasks


async def burst(loop: Loop, peer: Peer, tasks: int) -> float:
    """Return how many times the memory at first is that after so many tasks."""
    # What native tasks leave behind, as the tables of the loop, is no part.
    await park(loop, suspended_task, Native(), tasks, resident_bytes)
    await park(loop, suspended_task, peer, 10, resident_bytes)
    gc.collect()
    before = resident_bytes()
    await park(loop, suspended_task, peer, tasks, resident_bytes)
    gc.collect()
    return resident_bytes() / before


async def come_back(loop: Loop, peer: Peer, tasks: int) -> dict[str, float]:
    """Suspend every task twice and count those that return their result."""
    parking = Parking(loop)
    gates = [(loop.event(), loop.event()) for _ in range(tasks)]
    results: list[int | None] = [None] * tasks
    await_ = peer.await_

    async def descend_async(index: int, calls: int) -> int:
        if calls:
            return await descend_async(index, calls - 1) + calls
        for gate in gates[index]:
            parking.arrive()
            await gate.wait()
        return index

    def descend(index: int, calls: int) -> int:
        if calls:
            return descend(index, calls - 1) + calls
        assert await_ is not None
        for gate in gates[index]:
            parking.arrive()
            await_(gate.wait())
        return index

    async def task(index: int) -> None:
        depth = index % RETURN_DEPTHS
        if is_native(peer):
            results[index] = await descend_async(index, depth)
        else:
            results[index] = await peer.enter_sync(loop, lambda: descend(index, depth))

    order = list(range(tasks))
    shuffle = random.Random(0).shuffle
    start = thread_time()
    async with loop.tasks() as group:
        for index in range(tasks):
            group.start(task, index)
        for turn in range(2):
            await parking.full(tasks)
            shuffle(order)
            for index in order:
                gates[index][turn].set()
    elapsed = thread_time() - start
    returned = 0
    for index, result in enumerate(results):
        depth = index % RETURN_DEPTHS
        returned += result == index + depth * (depth + 1) // 2
    return {"seconds": elapsed, "returned": returned, "tasks": tasks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--engine")
    parser.add_argument("--loop", required=True)
    parser.add_argument(
        "--scenario",
        required=True,
        choices=["idle", "suspended", "burst", "return"],
    )
    parser.add_argument("--measure", choices=["rss", "traced"], default="rss")
    parser.add_argument("--tasks", type=int, required=True)
    args = parser.parse_args()

    loop = open_loop(args.loop)
    peer = open_peer(args.peer, args.engine)
    if args.scenario == "return":
        print(json.dumps(loop.run(come_back, loop, peer, args.tasks)))
        return
    if args.scenario == "burst":
        print(json.dumps({"figure": loop.run(burst, loop, peer, args.tasks)}))
        return
    make_task = idle_task if args.scenario == "idle" else suspended_task
    measure = resident_bytes
    if args.measure == "traced":
        tracemalloc.start()
        measure = traced_bytes
    grown: Any = loop.run(bytes_per_task, loop, make_task, peer, args.tasks, measure)
    print(json.dumps({"figure": grown}))


if __name__ == "__main__":
    main()
