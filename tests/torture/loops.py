"""Rounds on real loops, loops nested in a step."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import trampolines
from frames import add_pair, fold
from world import Blast, Task, World, here

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]
try:
    import trio
except ImportError:
    trio = None  # type: ignore[assignment]


def names() -> list[str]:
    found = ["asyncio", "asyncio at other depths"]
    if uvloop is not None:
        found.append("uvloop")
    if trio is not None:
        found += ["trio", "trio as a guest"]
    return found


class DeepLoop(asyncio.SelectorEventLoop):
    """Steps tasks from another stack depth each time."""

    world: World | None = None

    def _run_once(self) -> None:
        once: Callable[[], Any] = super()._run_once  # type: ignore[misc]
        if self.world is None or not self.world.portal:
            once()
        else:
            trampolines.at_random_depth(self.world, once)


async def in_step(task: Task, body: Any, greenback: Any) -> Any:
    """The body of one task; with a portal or without, the same trips to the loop."""
    world = task.world
    if world.portal:
        await greenback.ensure_portal()
        return body(task)
    await checkpoint(world)
    return await body(task)


async def checkpoint(world: World) -> None:
    if world.library == "trio":
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


class LoopTask(Task):
    """Real loops don't tell us whose step begins: each mark does."""

    def mark(self, label: str, *values: Any) -> None:
        self.world.current = self
        super().mark(label, *values)


def make_tasks(world: World, roots: list[str], greenback: Any) -> list[LoopTask]:
    tasks = [LoopTask(world, f"T{i}", greenback) for i in range(len(roots))]
    for task in tasks:
        task.await_ = task.raw_await
    world.tasks.extend(tasks)
    return tasks


async def report(task: Task, root: str, greenback: Any) -> None:
    world = task.world

    async def task_root() -> Any:
        return await in_step(task, world.functions[root], greenback)

    try:
        result = await task_root()
    except (Exception, Blast) as exc:
        world.event("raised", task.name, type(exc).__name__)
    except asyncio.CancelledError:
        world.event("cancelled", task.name)
    else:
        world.event("returned", task.name, result)


async def run_asyncio_tasks(world: World, roots: list[str], greenback: Any) -> None:
    loop = asyncio.get_running_loop()
    tasks = make_tasks(world, roots, greenback)
    running = [
        loop.create_task(report(task, root, greenback))
        for task, root in zip(tasks, roots, strict=True)
    ]
    for _ in range(3000):
        await asyncio.sleep(0)
        if all(one.done() for one in running):
            break
        if world.scheduling.random() < 0.02:
            victim = world.scheduling.choice(running)
            if not victim.done():
                world.event("cancel")
                world.counts["cancels"] += world.portal
                victim.cancel()
    for one in running:
        while not one.done():
            one.cancel()
            await asyncio.sleep(0)
    await asyncio.wait(running)
    for one in running:
        if one.exception() is not None:
            raise one.exception() or AssertionError


def run_asyncio(name: str, world: World, roots: list[str], greenback: Any) -> None:
    loop: asyncio.AbstractEventLoop
    if name == "uvloop":
        loop = uvloop.new_event_loop()
    elif name == "asyncio at other depths":
        loop = DeepLoop()
        loop.world = world
    else:
        loop = asyncio.new_event_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run_asyncio_tasks(world, roots, greenback))


class NoShuffling(random.Random):
    """For Trio, which shuffles the tasks of each batch otherwise."""

    def shuffle(self, x: Any) -> None:
        pass


def make_trio_deterministic() -> None:
    from trio._core import _run

    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r = NoShuffling()


async def run_trio_tasks(world: World, roots: list[str], greenback: Any) -> None:
    tasks = make_tasks(world, roots, greenback)
    scopes = [trio.CancelScope() for _ in tasks]
    left = len(tasks)

    async def child(task: Task, root: str, scope: Any) -> None:
        nonlocal left
        try:
            with scope:
                await report(task, root, greenback)
        finally:
            left -= 1

    async with trio.open_nursery() as nursery:
        for task, root, scope in zip(tasks, roots, scopes, strict=True):
            nursery.start_soon(child, task, root, scope)
        for _ in range(3000):
            await trio.lowlevel.checkpoint()
            if not left:
                break
            if world.scheduling.random() < 0.02:
                world.event("cancel")
                world.counts["cancels"] += world.portal
                world.scheduling.choice(scopes).cancel()
        nursery.cancel_scope.cancel()


def run_trio(name: str, world: World, roots: list[str], greenback: Any) -> None:
    make_trio_deterministic()
    if name == "trio":
        trio.run(run_trio_tasks, world, roots, greenback)
    else:
        run_trio_as_guest(world, run_trio_tasks, world, roots, greenback)


def run_trio_as_guest(world: World, fn: Any, *args: Any) -> None:
    """Trio driven by callbacks, which are called at other stack depths."""
    import queue

    callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    outcome: list[Any] = []
    trio.lowlevel.start_guest_run(
        fn,
        *args,
        run_sync_soon_threadsafe=callbacks.put,
        done_callback=outcome.append,
    )
    while not outcome:
        trampolines.at_random_depth(world, callbacks.get(timeout=60))
    outcome[0].unwrap()


def run(name: str, world: World, roots: list[str], greenback: Any) -> None:
    world.library = "trio" if name.startswith("trio") else "asyncio"
    here.world = world
    try:
        if world.library == "trio":
            run_trio(name, world, roots, greenback)
        else:
            run_asyncio(name, world, roots, greenback)
    finally:
        here.world = None


# ------------------------------------------------------------------- loops in a step


def run_in_loop(t: Task, body: Any, times: int, library: str, start: Any) -> int:
    """Run `body` in tasks of a new loop, from sync code within a step."""
    import greenback

    world = t.world
    outer = world.library, world.current, world.calm
    results: list[int] = []
    errors: list[BaseException] = []

    async def one(task: LoopTask) -> None:
        async def task_root() -> int:
            return int(await in_step(task, body, greenback))

        try:
            results.append(await task_root())
        except (Exception, Blast) as exc:
            errors.append(exc)
        except asyncio.CancelledError:
            results.append(-1)

    async def main() -> None:
        for task in make_tasks(world, ["inner"] * min(times, 2), greenback):
            await one(task)
            world.tasks.remove(task)

    world.library, world.calm = library, True
    try:
        start(main)
    finally:
        world.library, world.current, world.calm = outer
        world.counts[f"nested {library}"] += 1
    if errors:
        world.event("inner loop", t.name, [type(error).__name__ for error in errors])
    return fold(results)


def start_in_thread(main: Any) -> None:
    errors: list[BaseException] = []
    world = here.world

    def target() -> None:
        here.world = world
        try:
            asyncio.run(main())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def asyncio_in_thread(t: Task, body: Any, times: int) -> int:
    return run_in_loop(t, body, times, "asyncio", start_in_thread)


def asyncio_in_step(t: Task, body: Any, times: int) -> int:
    if t.world.library != "trampoline":
        return asyncio_in_thread(t, body, times)
    return run_in_loop(t, body, times, "asyncio", lambda main: asyncio.run(main()))


def trio_in_step(t: Task, body: Any, times: int) -> int:
    if trio is None or t.world.library == "trio":
        return asyncio_in_thread(t, body, times)
    return run_in_loop(t, body, times, "trio", trio.run)


def as_coroutine(frame: Any) -> Any:
    async def run_natively(t: Task, body: Any, times: int) -> int:
        return int(frame(t, body, times))

    return run_natively


for kind, frame, needs in (
    # In 3.11 greenback can't tell whose step it is: a C Task doesn't give its Context.
    (
        "asyncio.run in a step",
        asyncio_in_step,
        "no loop" if sys.version_info >= (3, 12) else "never",
    ),
    ("asyncio.run in a thread", asyncio_in_thread, "main thread"),
    ("trio.run in a step", trio_in_step, "main thread"),
):
    add_pair(kind, frame, as_coroutine(frame), needs=needs)
