"""What a random program and its surroundings share while it runs once.

A ``World`` is one run of one program: its log, its two random sources and the task that
runs. ``scheduling`` decides what the program can see (which task goes on, what an await
gives); both runs of a program draw the same numbers from it. ``noise`` decides what must
make no difference (stack depths, collections, frame walks), and may differ.

A ``Task`` is what each generated function gets as ``t``.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator
from types import FrameType
from typing import Any

import checks
from checks import Mismatch
from native import thread_state

VARIABLES = [contextvars.ContextVar[int](f"torture_{i}", default=-1) for i in range(3)]

EXCEPTIONS: dict[str, type[BaseException]] = {}


def in_a_greenlet() -> bool:
    """Whether this is not a thread's main greenlet: greenlet counts depths in each alone."""
    greenlet = sys.modules.get("greenlet")
    getcurrent = getattr(greenlet, "getcurrent", None)  # may be half imported
    return getcurrent is not None and getcurrent().parent is not None


def thrown(cls: type[BaseException]) -> type[BaseException]:
    EXCEPTIONS[cls.__name__] = cls
    return cls


@thrown
class Boom(Exception):
    pass


@thrown
class Bang(LookupError):
    pass


@thrown
class Blast(BaseException):
    pass


class Raise:
    """Natively sent instead of a throw().

    A native throw() goes straight to the innermost coroutine: in that step the others are
    missing from f_back and from what is being handled. What a sync call stack does is
    what this does.
    """

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


def unpack(value: Any) -> Any:
    if isinstance(value, Raise):
        try:
            raise value.exc
        finally:
            value.exc.__context__ = None  # as after throw()
    return value


class Trap:
    """Suspends once; what the trampoline sends is the result."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __await__(self) -> Generator[Any, Any, Any]:
        return unpack((yield self))


class Ready(Trap):
    """Doesn't suspend: what is being finalized can't wait."""

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from ()
        return self.key


class BareIterator:
    """An iterator without throw and close."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __iter__(self) -> BareIterator:
        return self

    def __next__(self) -> Trap:
        return self.trap

    def send(self, value: Any) -> Trap:
        raise StopIteration(unpack(value))


class BareTrap(Trap):
    def __await__(self) -> Any:
        return BareIterator(self)


class NoiseTrap(Trap):
    """A suspension that the compared program does not know of."""


async def trap_in_coroutine(trap: Trap) -> Any:
    try:
        return await trap
    except Bang:
        return -2


def trap_in_generator(trap: Trap) -> Generator[Any, Any, Any]:
    yield from range(0)
    return unpack((yield trap))


class GeneratorTrap(Trap):
    def __await__(self) -> Any:
        return trap_in_generator(self)


class World:
    def __init__(self, seed: int, portal: bool, counts: Counter[str], **options: Any):
        self.seed = seed
        self.portal = portal
        self.counts = counts
        self.scheduling = random.Random(seed * 7 + 1)
        self.noise = random.Random(seed * 7 + 2 + portal)
        self.log: list[tuple[Any, ...]] = []
        self.errors: list[str] = []  # what tasks raised last, to be read
        self.strays: list[str] = []  # RuntimeErrors that went to sys.unraisablehook
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.functions: dict[str, Any] = {}
        self.calm = False  # while true, no noise that suspends
        self.library = "trampoline"
        # Depths of C frames are kept small in threads with small stacks.
        self.small_stack: bool = options.get("small_stack", False)
        self.main_thread = threading.current_thread() is threading.main_thread()
        # Whether trampolines pass for asyncio.
        self.disguised: bool = options.get("disguised", False)
        # What can be compared: in a foreign greenlet neither the callers of its parent show
        # nor what that handles. asyncio and Trio throw natively: see Raise.
        self.compares_callers: bool = options.get("compares_callers", True)
        self.compares_handled: bool = options.get("compares_handled", True)
        self.chain = 6 if self.compares_handled else 1
        # Cython's except blocks put into the step's own state what the loop handles.
        self.loop_handles: bool = options.get("loop_handles", True)
        self.greenlet_engine: bool = options.get("greenlet_engine", False)
        self.checks_thread_state: bool = options.get("checks_thread_state", True)
        self.noise_level: float = options.get("noise_level", 0.3)
        self.loop_state: tuple[int, ...] = ()
        self.loop_kind = ""
        self.loop_handled: list[BaseException] = []
        self.loop_room = 0
        self.names = 0
        self.captured: list[tuple[FrameType, list[str]]] = []
        self.trampolines = 0
        self.step_address = 0

    def loop_side(self) -> tuple[Any, ...]:
        """What a trampoline notes about itself for the time of a step."""
        return (
            self.current,
            self.loop_state,
            self.loop_kind,
            self.loop_room,
            self.loop_handled,
        )

    def set_loop_side(self, side: tuple[Any, ...]) -> None:
        (
            self.current,
            self.loop_state,
            self.loop_kind,
            self.loop_room,
            self.loop_handled,
        ) = side

    def event(self, *event: Any) -> None:
        self.log.append(event)

    def note_error(self, exc: BaseException) -> None:
        self.errors.append("".join(traceback.format_exception(exc)[-25:]))
        del self.errors[:-2]

    def unraisable(self, exc: BaseException | None) -> None:
        if isinstance(exc, RuntimeError):
            self.strays.append("".join(traceback.format_exception(exc)[-25:]))
        self.log.append(("unraisable", checks.exception_types(exc, self.chain)))

    def unique(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}_{self.seed}_{self.portal:d}_{self.names}"

    def may_suspend_here(self) -> bool:
        """Whether code that interrupts a generated function may await now."""
        return (
            self.portal
            and not self.calm
            and self.current is not None
            and self.library == "trampoline"
            and checks.is_in_generated_function(sys._getframe(1))
        )

    def suspend_unnoticed(self) -> None:
        task = self.current
        assert task is not None
        self.counts["noise suspensions"] += 1
        try:
            task.await_(NoiseTrap(0))
        except RuntimeError as error:
            if "garbage collector" not in str(error):
                raise
            self.counts["refused in the garbage collector"] += 1
        if self.current is not task:
            raise Mismatch("resumed in the step of another task")


class Task:
    """One task of a program, and what its functions can do."""

    def __init__(self, world: World, name: str, greenback: Any) -> None:
        self.world = world
        self.name = name
        self.kinds: list[str] = []
        self.suspended_kinds: tuple[str, ...] = ()
        self.context = contextvars.copy_context()
        self.coro: Any = None
        self.raw_await: Callable[[Any], Any] = greenback.await_
        self.await_: Callable[[Any], Any] = self.raw_await
        if world.portal and world.checks_thread_state and thread_state is not None:
            self.await_ = self.checked_await
        self.depth_at_suspension = 0
        self.deallocates = False  # see frames_objects.py
        self.disguise: Any = None
        self.suspended = False
        self.started = False
        # Whether the trampoline drives the portal with nothing in between.
        self.direct = False

    def __repr__(self) -> str:
        return f"<{self.name}>"

    # ------------------------------------------------ called by generated functions

    def mark(self, label: str, *values: Any) -> None:
        world = self.world
        if world.current is not self:
            raise Mismatch(f"{self} runs in the step of {world.current}")
        names = checks.generated_names(sys._getframe(1))
        world.event(
            self.name,
            label,
            values,
            tuple(variable.get() for variable in VARIABLES),
            checks.exception_types(sys.exception(), world.chain)
            if world.compares_handled
            else (),
            (sys.gettrace() is not None, sys.getprofile() is not None),
            names if world.compares_callers else (),
        )
        if world.portal and world.noise.random() < 0.1:
            world.captured.append((sys._getframe(1), list(names)))
            del world.captured[:-20]

    def trap(self, key: int) -> Awaitable[Any]:
        kind = self.world.loop_kind
        # Where coroutines are between us and the loop, they end if we wait in close().
        if kind == "drop" or (kind == "close" and not self.direct):
            return Ready(key)
        if self.world.library != "trampoline":
            return loop_trap(self.world, key)
        form = key % 5
        if form == 0:
            return trap_in_coroutine(Trap(key))
        if form == 1:
            return BareTrap(key)
        if form == 2:
            return GeneratorTrap(key)
        return Trap(key)

    def set(self, index: int, value: int) -> None:
        VARIABLES[index].set(value)

    def add(self, *values: Any, **named: Any) -> int:
        total = 0
        for value in values:
            total = (total * 7 + int(value)) % 1_000_003
        for name in sorted(named):
            total = (total * 5 + int(named[name])) % 1_000_003
        return total

    def raised(self, exc: BaseException) -> None:
        self.mark("caught", checks.exception_summary(exc, self.world.chain))

    def noisy(self) -> None:
        hooks.noise(self)

    def tracing_on(self, kind: str) -> Any:
        return hooks.tracing_on(self, kind)

    def tracing_off(self, kind: str, before: Any) -> None:
        hooks.tracing_off(self, kind, before)

    def unraisable(self, exc: BaseException) -> None:
        self.world.unraisable(exc)

    def room(self) -> tuple[int, int] | None:
        """How much deeper this task can call, and the loop could when it began the step."""
        world = self.world
        if not world.portal or world.greenlet_engine or world.loop_kind != "send":
            return None
        if in_a_greenlet():
            return None
        world.counts["depth probes"] += 1
        interruptions = world.counts["interrupting suspensions"]
        room = checks.depth_left(), world.loop_room
        if interruptions != world.counts["interrupting suspensions"]:
            return None  # the two may be of different steps
        return room

    def same_room(self, before: tuple[int, int] | None) -> None:
        after = self.room()
        if before is None or after is None or not before[1] or not after[1]:
            return
        used = [loop - here for here, loop in (before, after)]
        if abs(used[0] - used[1]) > checks.SLACK:
            raise Mismatch(f"calls that the step takes before, after an await_: {used}")

    # ------------------------------------------------------------------ suspension

    def checked_await(self, awaitable: Any) -> Any:
        world = self.world
        # Taken in this very frame. Again if a signal handler that awaits has led to another
        # step between the two.
        while True:
            loop_before, kind_before = world.loop_state, world.loop_kind
            before = thread_state.snapshot()
            if loop_before is world.loop_state:
                break
        handled = checks.handled_here(world.loop_handled)
        try:
            return self.raw_await(awaitable)
        finally:
            while True:
                loop_after, kind_after = world.loop_state, world.loop_kind
                after = thread_state.snapshot()
                if loop_after is world.loop_state:
                    break
            sends = kind_before == kind_after == "send"
            checks.compare_across_suspension(
                before,
                after,
                loop_before if sends else None,
                loop_after if sends else None,
                exact=self.direct,
                budgets=not world.greenlet_engine and not in_a_greenlet(),
            )
            handled_after = checks.handled_here(world.loop_handled)
            raised = sys.exception()
            if raised is not None and handled_after[:1] == [id(raised)]:
                # It stands in the place of what this frame's generator handles, if anything.
                del handled_after[0]
                handled = handled[len(handled) > len(handled_after) :]
            if handled != handled_after and world.compares_handled:
                raise Mismatch(
                    f"handled: {handled} before await_, then {handled_after}"
                )
            # A finalizer may do that at any time.
            if world.current is not self and not isinstance(raised, GeneratorExit):
                raise Mismatch(f"{self} resumed in the step of {world.current}")


def loop_trap(world: World, key: int) -> Awaitable[Any]:
    if world.library == "asyncio":
        return asyncio_trap(key)
    return trio_trap(key)


async def asyncio_trap(key: int) -> int:
    if key % 3:
        await asyncio.sleep(0)
    else:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        loop.call_soon(lambda: future.done() or future.set_result(key))
        await future
    return key


async def trio_trap(key: int) -> int:
    import trio

    await trio.lowlevel.checkpoint()
    return key


class Hooks:
    """Set by noise.py, which builds on this file."""

    noise: Callable[[Task], None]
    tracing_on: Callable[[Task, str], Any]
    tracing_off: Callable[[Task, str, Any], None]


hooks = Hooks()

# The world that runs in this thread, for hooks that get no task.
here = threading.local()


def world_here() -> World | None:
    world: World | None = getattr(here, "world", None)
    return world


def unraisable_hook(info: Any) -> None:
    world = world_here()
    if isinstance(info.exc_value, OSError) and info.object is None:
        # A timer signal where trio.run() ends: Trio gives back the wakeup descriptor only
        # after it has closed the sockets.
        return
    if world is None:
        sys.__unraisablehook__(info)
    elif info.exc_type is not RecursionError:  # programs raise none; probes do
        world.unraisable(info.exc_value)


class Iterate:
    """Awaits in ``__next__``, or natively in ``__anext__``."""

    def __init__(self, t: Task, body: Any, times: int) -> None:
        self.t, self.body, self.left = t, body, times

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return int(self.body(self.t))

    def __aiter__(self) -> Iterate:
        return self

    async def __anext__(self) -> int:
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return int(await self.body(self.t))


class Manager:
    """Awaits on entry, on exit or both; may swallow what is raised."""

    def __init__(self, t: Task, body: Any, when: int, swallows: bool) -> None:
        self.t, self.body, self.when, self.swallows = t, body, when, swallows

    def leave(self, exc: BaseException | None) -> bool:
        self.t.mark("exit", checks.exception_types(exc, self.t.world.chain))
        return self.swallows and isinstance(exc, Exception)

    def __enter__(self) -> int:
        return int(self.body(self.t)) if self.when & 1 else 0

    def __exit__(self, cls: Any, exc: BaseException | None, traceback: Any) -> bool:
        if self.when & 2:
            self.body(self.t)
        return self.leave(exc)

    async def __aenter__(self) -> int:
        return int(await self.body(self.t)) if self.when & 1 else 0

    async def __aexit__(
        self, cls: Any, exc: BaseException | None, traceback: Any
    ) -> bool:
        if self.when & 2:
            await self.body(self.t)
        return self.leave(exc)
