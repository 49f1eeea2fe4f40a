"""Time every rung for one peer on one loop, in this process, with pyperf.

Started by run.py. pyperf's own options apply; it writes its results to
``--output``. A rung that raises is reported on standard output as a line
``FAILED RUNG: error`` and the others go on.

The clock is the thread's CPU time: no rung ever waits, and other processes on
the machine then disturb the figures less.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine
from time import thread_time
from typing import Any

import pyperf
from ladder import DEPTHS, TIME_RUNGS
from loops import Loop, open_loop
from peers import Peer, is_native, open_peer

TASKS_PER_BATCH = 100

Timed = Callable[[int], Coroutine[Any, Any, float]]


async def nop() -> None:
    """Finish without yielding."""


def sync_nop() -> None:
    """Do nothing."""


async def time_checkpoints(loops: int, checkpoint: Any) -> float:
    start = thread_time()
    for _ in range(loops):
        await checkpoint()
    return thread_time() - start


def time_sync_awaits(loops: int, await_: Any, async_fn: Any) -> float:
    start = thread_time()
    for _ in range(loops):
        await_(async_fn())
    return thread_time() - start


async def time_calls(loops: int, run: Any, fn: Any) -> float:
    start = thread_time()
    for _ in range(loops):
        await run(fn)
    return thread_time() - start


def step_rung(loop: Loop, peer: Peer) -> Timed | None:
    enter = peer.enter_async
    if enter is None:
        return None
    return lambda loops: enter(loop, time_checkpoints, loops, loop.checkpoint)


def await_rung(loop: Loop, peer: Peer, async_fn: Any) -> Timed:
    if is_native(peer):
        return lambda loops: time_checkpoints(loops, async_fn)
    return lambda loops: peer.enter_sync(
        loop, time_sync_awaits, loops, peer.await_, async_fn
    )


def run_rung(run: Any, fn: Any) -> Timed | None:
    return None if run is None else lambda loops: time_calls(loops, run, fn)


def greenlet_rung(loop: Loop, peer: Peer) -> Timed | None:
    if is_native(peer):
        return None
    from greenlet import getcurrent, greenlet

    def answer() -> None:
        back = getcurrent().parent.switch
        while True:
            back()

    async def timed(loops: int) -> float:
        switch = greenlet(answer).switch
        start = thread_time()
        for _ in range(loops):
            switch()
        return thread_time() - start

    return timed


def bestow_rung(loop: Loop, peer: Peer) -> Timed | None:
    bestow_portal = peer.bestow_portal
    if bestow_portal is None:
        return None

    async def timed(loops: int) -> float:
        elapsed = 0.0
        for _ in range(loops):
            async with loop.tasks() as group:
                for _ in range(TASKS_PER_BATCH):
                    group.start(nop)
                tasks = group.pending()
                start = thread_time()
                for task in tasks:
                    bestow_portal(task)
                elapsed += thread_time() - start
        return elapsed

    return timed


def ensure_rung(loop: Loop, peer: Peer) -> Timed | None:
    wait = loop.full_checkpoint if is_native(peer) else peer.ensure_portal
    if wait is None:
        return None

    async def task() -> None:
        await wait()

    async def timed(loops: int) -> float:
        start = thread_time()
        for _ in range(loops):
            async with loop.tasks() as group:
                for _ in range(TASKS_PER_BATCH):
                    group.start(task)
        return thread_time() - start

    return timed


def depth_rung(loop: Loop, peer: Peer, depth: int) -> Timed:
    checkpoint = loop.checkpoint

    if is_native(peer):

        async def descend_async(calls: int) -> None:
            if calls > 1:
                await descend_async(calls - 1)
            else:
                await checkpoint()

        return lambda loops: time_checkpoints(
            loops, functools.partial(descend_async, depth)
        )

    await_ = peer.await_
    assert await_ is not None

    def descend(calls: int) -> None:
        if calls > 1:
            descend(calls - 1)
        else:
            await_(checkpoint())

    def time_descents(loops: int) -> float:
        start = thread_time()
        for _ in range(loops):
            descend(depth)
        return thread_time() - start

    return lambda loops: peer.enter_sync(loop, time_descents, loops)


def timed_rungs(loop: Loop, peer: Peer) -> dict[str, Timed | None]:
    """Return, by rung key, what takes a number of loops and gives seconds."""
    rungs = {
        "greenlet": greenlet_rung(loop, peer),
        "step": step_rung(loop, peer),
        "await": await_rung(loop, peer, loop.checkpoint),
        "await-no-suspend": await_rung(loop, peer, nop),
        "run": run_rung(peer.run, nop),
        "run-sync": run_rung(peer.run_sync, sync_nop),
        "bestow": bestow_rung(loop, peer),
        "ensure": ensure_rung(loop, peer),
    }
    for depth in DEPTHS:
        rungs[f"depth-{depth}"] = depth_rung(loop, peer, depth)
    return rungs


def run_timed(loops: int, loop: Loop, timed: Timed) -> float:
    """Return the seconds that ``timed(loops)`` measured on a fresh loop."""
    return loop.run(timed, loops)


def main() -> None:
    runner = pyperf.Runner()
    runner.argparser.add_argument("--peer", required=True)
    runner.argparser.add_argument("--engine")
    runner.argparser.add_argument("--loop", required=True)
    runner.argparser.add_argument("--known-loops", type=json.loads, default={})
    args = runner.parse_args()

    loop = open_loop(args.loop)
    peer = open_peer(args.peer, args.engine)
    rungs = timed_rungs(loop, peer)
    for rung in TIME_RUNGS:
        timed = rungs[rung.key]
        if timed is None or args.loop not in rung.loops:
            continue
        # Counts from an earlier round spare the calibration; 0 asks for it.
        args.loops = args.known_loops.get(rung.key, 0)
        inner = TASKS_PER_BATCH if rung.key in ("bestow", "ensure") else 1
        try:
            runner.bench_time_func(rung.key, run_timed, loop, timed, inner_loops=inner)
        except Exception as exc:
            print(f"FAILED {rung.key}: {exc!r}", flush=True)


if __name__ == "__main__":
    main()
