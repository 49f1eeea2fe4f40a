"""Event loops written by hand: they drive coroutines with send, throw and close.

What the tasks see is drawn from ``world.scheduling``. Each step is made from another stack
depth, through Python and C frames, so that a task is resumed at another depth than it was
suspended at.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import checks
import noise
from frames import add_pair, fold
from native import thread_state
from world import Blast, Boom, Mismatch, NoiseTrap, Raise, Task, World, here

STEPS_AT_MOST = 4000

# ----------------------------------------------------------------- other stack depths

Thunk = Callable[[], Any]


def through_python(levels: int, thunk: Thunk) -> Any:
    return through_python(levels - 1, thunk) if levels else thunk()


def through_map(levels: int, thunk: Thunk) -> Any:
    if not levels:
        return thunk()
    return next(map(lambda _: through_map(levels - 1, thunk), (1,)))  # noqa: C417


def through_sort(levels: int, thunk: Thunk) -> Any:
    if not levels:
        return thunk()
    results: list[Any] = []
    sorted([1], key=lambda _: results.append(through_sort(levels - 1, thunk)) or 0)
    return results[0]


def through_reduce(levels: int, thunk: Thunk) -> Any:
    if not levels:
        return thunk()
    return functools.reduce(lambda a, b: through_reduce(levels - 1, thunk), (1, 2))


def through_generator(levels: int, thunk: Thunk) -> Any:
    if not levels:
        return thunk()
    return next(through_generator(levels - 1, thunk) for _ in (1,))


def through_big_frame(levels: int, thunk: Thunk) -> Any:
    if thread_state is None:
        return through_sort(levels, thunk)
    return thread_state.call_with_big_frame(thunk, levels)


WAYS: list[tuple[Callable[[int, Thunk], Any], int]] = [
    (through_python, 60),
    (through_map, 10),
    (through_sort, 6),
    (through_reduce, 10),
    (through_generator, 12),
    (through_big_frame, 24),
]


def at_random_depth(world: World, thunk: Thunk) -> Any:
    """Call `thunk` from deeper in the stack."""
    choices = world.noise
    for _ in range(choices.choice((0, 0, 1, 1, 2, 3))):
        way, most = choices.choice(WAYS)
        levels = choices.randint(1, max(2, most // 8) if world.small_stack else most)
        thunk = functools.partial(way, levels, thunk)
    return thunk()


# --------------------------------------------------------------------- one trampoline


class Cancelled(asyncio.CancelledError):
    pass


class Disguise:
    """Stands for an asyncio loop, and for a task of it, while a step runs.

    Only so can one trampoline in a step of another be told from the outer one: for a runner
    that nobody knows, nobody can tell which of its tasks is current.
    """

    def __init__(self, task: Task | None = None) -> None:
        self.task = task

    def get_coro(self) -> Any:
        return self.task.coro if self.task else None

    def get_context(self) -> Any:
        return self.task.context if self.task else None

    def done(self) -> bool:
        return False


class IgnoredExit(RuntimeError):
    pass


class Trampoline:
    def __init__(self, world: World, tasks: list[Task]) -> None:
        self.world = world
        self.ready = list(tasks)
        self.steps = 0
        self.outer = world.current
        self.loop: Any = Disguise()

    def run(self) -> None:
        world = self.world
        world.trampolines += 1
        while self.ready:
            self.steps += 1
            index = world.scheduling.randrange(len(self.ready))
            task = self.ready[index]
            operation = "Blast" if self.steps > STEPS_AT_MOST else self.choose(task)
            if operation == "drop" and not task.started:
                operation = "send"
            if operation == "drop" and not world.compares_callers:
                operation = "close"  # a foreign greenlet may hold references to itself
            if not self.step(task, operation):
                self.ready.remove(task)
            if world.noise.random() < world.noise_level:
                noise.from_loop(world)
                self.suspend_outer()

    def suspend_outer(self) -> None:
        """A nested trampoline waits in the step in which it runs."""
        outer = self.outer
        if outer is not None and self.world.portal and not self.world.calm:
            self.world.suspend_unnoticed()

    def choose(self, task: Task) -> str:
        roll = self.world.scheduling.random()
        if roll < 0.04:
            return "Boom"
        if roll < 0.06:
            return "Cancelled"
        if roll < 0.065:
            return "KeyboardInterrupt"
        if roll < 0.072:
            return "close"
        if roll < 0.08:
            return "drop"
        if not self.world.loop_handles:
            return "send"
        if roll < 0.14:
            return "send while handling"
        if roll < 0.15:
            return "throw while handling"
        return "send"

    def step(self, task: Task, operation: str) -> bool:
        """Whether the task goes on after that."""
        world = self.world
        value = world.scheduling.randrange(1000)
        world.event("step", task.name, operation)
        world.counts["steps"] += 1
        calm, world.calm = world.calm, world.calm or operation in ("close", "drop")
        try:
            outcome = self.dispatch(task, operation, value)
        except Mismatch:
            raise
        except StopIteration as stop:
            world.event("returned", task.name, stop.value)
            outcome = None
        except BaseException as exc:
            world.note_error(exc)
            summary = checks.exception_summary(exc, world.chain)
            world.event("raised", task.name, summary)
            # A coroutine that ignored GeneratorExit goes on.
            if is_alive(task.coro):
                # Somewhere in the task it may be kept, and with it who has called close().
                while exc is not None:
                    exc.__traceback__ = None
                    exc = exc.__context__
                self.suspended(task)
                return True
            outcome = None
        finally:
            world.calm = calm
        if outcome is None:
            task.coro = None
            return False
        self.suspended(task)
        world.event("waits", task.name, outcome.key)
        return True

    def suspended(self, task: Task) -> None:
        task.suspended_kinds = tuple(task.kinds)
        world = self.world
        world.counts["suspensions"] += 1
        if world.portal:
            for kind in set(task.kinds):
                world.counts[f"through {kind}"] += 1
        task.depth_at_suspension = world.step_address
        task.suspended = True

    def dispatch(self, task: Task, operation: str, value: int) -> Any:
        counts = self.world.counts
        if operation == "send":
            return self.perform_deep(task, "send", value)
        if operation == "send while handling":
            try:
                raise Boom("handled by the loop")
            except Boom:
                return self.perform_deep(task, "send", value)
        if operation == "throw while handling":
            try:
                raise LookupError("handled by the loop")
            except LookupError:
                return self.perform_deep(task, "throw", Boom(value))
        if operation == "close":
            counts["closes"] += 1
            return self.perform_deep(task, "close", None)
        if operation == "drop":
            counts["drops"] += 1
            return self.perform_deep(task, "drop", None)
        counts["cancels" if operation == "Cancelled" else "throws"] += 1
        exc = {
            "Boom": Boom,
            "Cancelled": Cancelled,
            "KeyboardInterrupt": KeyboardInterrupt,
            "Blast": Blast,
        }[operation](value)
        return self.perform_deep(task, "throw", exc)

    def perform_deep(self, task: Task, kind: str, value: Any) -> Any:
        world = self.world
        while True:
            step = functools.partial(self.perform, task, kind, value)
            if kind == "drop" and not world.greenlet_engine:
                # From deeper in the stack, a finalizer may have to be put off.
                result, raised = step()
            else:
                result, raised = at_random_depth(world, step)
            if raised is not None:
                try:
                    raise raised
                finally:
                    raised = None
            if not isinstance(result, NoiseTrap):
                return result
            self.suspended(task)
            if world.noise.random() < world.noise_level / 3:
                noise.from_loop(world)
            kind, value = "send", None

    def perform(
        self, task: Task, kind: str, value: Any
    ) -> tuple[Any, BaseException | None]:
        """One step, right here: what it gave or raised."""
        world = self.world
        counts = world.counts
        previous = world.loop_side()
        if thread_state is not None:
            address = thread_state.stack_address()
            if task.suspended and address != task.depth_at_suspension:
                counts["resumptions at another depth"] += 1
            world.step_address = address
        task.suspended = False
        first, task.started = not task.started, True
        world.loop_room = (
            checks.depth_left() if world.portal and world.noise.random() < 0.3 else 0
        )
        coro, context = task.coro, task.context
        if kind == "drop":
            task.coro = None
        raised: BaseException | None = None
        result: Any = None
        outer = self.enter(task)
        world.current = task
        world.loop_kind = kind
        before: tuple[int, ...] = ()
        if thread_state is not None:
            world.loop_handled = thread_state.handled_exceptions()
            world.loop_state = before = thread_state.snapshot()
        try:
            if kind == "send":
                result = context.run(coro.send, None if first else value)
            elif kind == "throw":
                result = context.run(throw, coro, value, first or world.portal)
            elif kind == "close":
                result = context.run(close, coro, first or world.portal)
            else:
                holder = [coro]
                del coro
                context.run(drop, holder, world)
        except BaseException as exc:
            raised = exc
        after: tuple[int, ...] = thread_state.snapshot() if thread_state else ()
        world.set_loop_side(previous)
        self.leave(outer)
        if world.checks_thread_state:
            checks.compare_across_step(before, after)
        # A StopIteration must not be raised through generators.
        return result, raised

    def enter(self, task: Task) -> tuple[Any, Any]:
        if not self.world.disguised:
            return None, None
        loop = asyncio._get_running_loop()
        current = asyncio.current_task(loop) if loop is not None else None
        if current is not None:
            asyncio._leave_task(loop, current)  # type: ignore[attr-defined]
        asyncio._set_running_loop(self.loop)
        if task.disguise is None:
            task.disguise = Disguise(task)
        asyncio._enter_task(self.loop, task.disguise)  # type: ignore[attr-defined]
        return loop, current

    def leave(self, outer: tuple[Any, Any]) -> None:
        if not self.world.disguised:
            return
        loop, task = outer
        now = asyncio.current_task(self.loop)
        asyncio._leave_task(self.loop, now)  # type: ignore[attr-defined]
        asyncio._set_running_loop(loop)
        if task is not None:
            asyncio._enter_task(loop, task)  # type: ignore[attr-defined]


def throw(coro: Any, exc: BaseException, really: bool) -> Any:
    # Not one expression: sys.setprofile() binds the method again after such a call, and by
    # then the coroutine may have another type.
    method = coro.throw if really else coro.send
    return method(exc if really else Raise(exc))


def close(coro: Any, really: bool) -> Any:
    if really:
        method = coro.close
        return method()
    try:
        outcome = coro.send(Raise(GeneratorExit()))
    except (GeneratorExit, StopIteration):
        return None
    raise IgnoredExit(outcome)


def drop(holder: list[Any], world: World) -> None:
    """Drop the last reference to a coroutine."""
    if not world.portal:
        try:
            holder[0].send(Raise(GeneratorExit()))
        except (GeneratorExit, StopIteration):
            pass
        except BaseException as exc:
            world.unraisable(exc)
    holder.clear()


def is_alive(coro: Any) -> bool:
    return coro is not None and coro.cr_frame is not None


# --------------------------------------------------------- making tasks for trampolines


def make_coroutine(world: World, task: Task, body: Any, greenback: Any) -> Any:
    """The coroutine of a task that runs `body`; with some frames around it, or none."""
    layers = world.scheduling.choice((0, 0, 1, 3))
    task.direct = layers == 0
    if world.portal:

        def task_root() -> Any:
            return body(task)

        coro = greenback.with_portal_run_sync(task_root)
    else:

        async def task_root() -> Any:  # type: ignore[misc]
            return await body(task)

        coro = task_root()
    for _ in range(layers):
        coro = layer(coro)
    return coro


async def layer(coro: Coroutine[Any, Any, Any]) -> Any:
    return await coro


def new_task(world: World, name: str, body: Any, greenback: Any) -> Task:
    task = Task(world, name, greenback)
    task.coro = make_coroutine(world, task, body, greenback)
    world.tasks.append(task)
    return task


def run_nested(t: Task, body: Any, times: int) -> int:
    """A trampoline that runs to its end within a step."""
    import greenback

    world = t.world
    world.counts["nested trampolines"] += 1
    results: list[int] = []
    names = [f"{t.name}.{world.trampolines}.{i}" for i in range(min(times, 3))]
    tasks = [new_task(world, name, body, greenback) for name in names]
    t.kinds.append("nested trampoline")
    library = world.library
    world.library = "trampoline"
    try:
        Trampoline(world, tasks).run()
    finally:
        world.library = library
        t.kinds.pop()
        for task in tasks:
            world.tasks.remove(task)
    return fold(results)


async def run_nested_natively(t: Task, body: Any, times: int) -> int:
    return run_nested(t, body, times)


add_pair("nested trampoline", run_nested, run_nested_natively, needs="disguise")


def run_trampoline(world: World, roots: list[str], greenback: Any) -> None:
    here.world = world
    before = thread_state.snapshot() if thread_state else ()
    try:
        tasks = [
            new_task(world, f"T{number}", world.functions[root], greenback)
            for number, root in enumerate(roots)
        ]
        Trampoline(world, tasks).run()
        if thread_state is not None:
            checks.compare_counts(before, thread_state.snapshot())
    finally:
        here.world = None
