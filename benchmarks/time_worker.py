"""Time rungs for one peer on one loop, beside native, with pyperf.

Started by run.py. pyperf's own options apply; it writes its results to
``--output``. Right before each value of the peer one of the native peer is
taken, in the same process: how the memory of a process happens to lie can
make half the difference between two of them. Those are printed on standard
output as a line ``NATIVE RUNG [seconds, ...]``. A rung that raises is reported
as ``FAILED RUNG: error`` and the others go on.

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
from ladder import DEPTHS, TASK_COUNTS, TASKS_RUNGS, TIME_RUNGS
from loops import Loop, open_loop
from peers import Native, Peer, is_native, open_peer

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
    await_ = peer.await_

    def timed(loops: int) -> Coroutine[Any, Any, float]:
        return peer.enter_sync(loop, lambda: time_sync_awaits(loops, await_, async_fn))

    return timed


def below_c_rung(loop: Loop, peer: Peer, async_fn: Any) -> Timed:
    if is_native(peer):
        return await_rung(loop, peer, async_fn)
    await_ = peer.await_

    def timed(loops: int) -> Coroutine[Any, Any, float]:
        def time_it(loops: int) -> float:
            return time_sync_awaits(loops, await_, async_fn)

        return peer.enter_sync(loop, lambda: max(map(time_it, [loops])))

    return timed


def foreign_rung(loop: Loop, peer: Peer, async_fn: Any) -> Timed | None:
    if is_native(peer):
        return await_rung(loop, peer, async_fn)
    if peer.enter_async is None:  # is in a greenlet of its own anyway
        return None

    def time_in_greenlet(loops: int) -> float:
        from greenlet import greenlet

        elapsed: float = greenlet(time_sync_awaits).switch(loops, peer.await_, async_fn)
        return elapsed

    return lambda loops: peer.enter_sync(loop, lambda: time_in_greenlet(loops))


def run_rung(run: Any, fn: Any) -> Timed | None:
    return None if run is None else lambda loops: time_calls(loops, run, fn)


def greenlet_rung(loop: Loop, peer: Peer) -> Timed | None:
    if is_native(peer):
        return None

    async def timed(loops: int) -> float:
        from greenlet import getcurrent, greenlet

        def answer() -> None:
            back = getcurrent().parent.switch
            while True:
                back()

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

    return lambda loops: peer.enter_sync(loop, lambda: time_descents(loops))


class Stopwatch:
    """What one of many tasks that take turns takes the time with.

    While it makes a number of steps, each of the others makes as many. The turn
    before, in which the others come to their loops, does not count.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.taken = False

    def take(self) -> bool:
        """Whether the caller is the first."""
        first, self.taken = not self.taken, True
        return first


def many_steps_rung(loop: Loop, peer: Peer, tasks: int) -> Timed | None:
    enter = peer.enter_async
    if enter is None:
        return None
    checkpoint = loop.checkpoint

    async def timed(loops: int) -> float:
        watch = Stopwatch()

        async def steps() -> None:
            await checkpoint()  # now all have their portals
            if watch.take():
                await checkpoint()
                watch.elapsed = await time_checkpoints(loops, checkpoint)
            else:
                await time_checkpoints(loops + 1, checkpoint)
            await checkpoint()  # nobody ends as long as time is taken

        async with loop.tasks() as group:
            for _ in range(tasks):
                group.start(enter, loop, steps)
        return watch.elapsed

    return timed


def many_awaits_rung(loop: Loop, peer: Peer, tasks: int) -> Timed | None:
    if is_native(peer):
        return many_steps_rung(loop, peer, tasks)
    checkpoint, await_ = loop.checkpoint, peer.await_
    assert await_ is not None

    async def timed(loops: int) -> float:
        watch = Stopwatch()

        def awaits() -> None:
            await_(checkpoint())
            if watch.take():
                await_(checkpoint())
                watch.elapsed = time_sync_awaits(loops, await_, checkpoint)
            else:
                time_sync_awaits(loops + 1, await_, checkpoint)
            await_(checkpoint())

        async with loop.tasks() as group:
            for _ in range(tasks):
                group.start(peer.enter_sync, loop, awaits)
        return watch.elapsed

    return timed


def timed_rungs(loop: Loop, peer: Peer) -> dict[str, Timed | None]:
    """Return, by rung key, what takes a number of loops and gives seconds."""
    rungs = {
        "greenlet": greenlet_rung(loop, peer),
        "step": step_rung(loop, peer),
        "await": await_rung(loop, peer, loop.checkpoint),
        "below-c": below_c_rung(loop, peer, loop.checkpoint),
        "foreign": foreign_rung(loop, peer, loop.checkpoint),
        "await-no-suspend": await_rung(loop, peer, nop),
        "run": run_rung(peer.run, nop),
        "run-sync": run_rung(peer.run_sync, sync_nop),
        "bestow": bestow_rung(loop, peer),
        "ensure": ensure_rung(loop, peer),
    }
    for depth in DEPTHS:
        rungs[f"depth-{depth}"] = depth_rung(loop, peer, depth)
    for count in TASK_COUNTS:
        rungs[f"step-of-{count}"] = many_steps_rung(loop, peer, count)
        rungs[f"await-of-{count}"] = many_awaits_rung(loop, peer, count)
    return rungs


def handicapped(await_: Any, turns: int) -> Any:
    """Return a slower ``await_``, by which check.py shows that it sees that."""

    def slower(awaitable: Any) -> Any:
        for _ in range(turns):
            pass
        return await_(awaitable)

    return slower


class Pair:
    """A rung of the peer and, if there is one, the native counterpart.

    Called with a number of loops it returns the seconds that the peer takes
    for them; ``native`` collects those of the counterpart, for one loop.
    """

    def __init__(self, loop: Loop, timed: Timed, native: Timed | None) -> None:
        self._loop, self._timed, self._native = loop, timed, native
        self.native: list[float] = []

    def __call__(self, loops: int) -> float:
        if self._native is not None:
            self.native.append(self._loop.run(self._native, loops) / loops)
        return self._loop.run(self._timed, loops)


def main() -> None:
    runner = pyperf.Runner()
    runner.argparser.add_argument("--peer", required=True)
    runner.argparser.add_argument("--engine")
    runner.argparser.add_argument("--loop", required=True)
    runner.argparser.add_argument("--rungs", type=json.loads, required=True)
    runner.argparser.add_argument("--handicap", type=int)
    runner.argparser.add_argument("--known-loops", type=json.loads, default={})
    args = runner.parse_args()

    loop = open_loop(args.loop)
    peer = open_peer(args.peer, args.engine)
    if args.handicap is not None:
        peer.await_ = handicapped(peer.await_, args.handicap)
    rungs = timed_rungs(loop, peer)
    native_rungs = {} if is_native(peer) else timed_rungs(loop, Native())
    for rung in (*TIME_RUNGS, *TASKS_RUNGS):
        timed = rungs[rung.key]
        if timed is None or args.loop not in rung.loops or rung.key not in args.rungs:
            continue
        # Counts from an earlier round spare the calibration; 0 asks for it.
        args.loops = args.known_loops.get(rung.key, 0)
        inner = TASKS_PER_BATCH if rung.key in ("bestow", "ensure") else 1
        if rung in TASKS_RUNGS:
            inner = int(rung.key.rpartition("-")[2])
        pair = Pair(loop, timed, native_rungs.get(rung.key))
        try:
            runner.bench_time_func(rung.key, pair, inner_loops=inner)
            if pair.native:  # the last are those that pyperf has kept the values of
                native = [value / inner for value in pair.native[-args.values :]]
                print(f"NATIVE {rung.key} {json.dumps(native)}", flush=True)
        except Exception as exc:
            print(f"FAILED {rung.key}: {exc!r}", flush=True)


if __name__ == "__main__":
    main()
