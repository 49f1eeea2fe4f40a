"""What must make no difference: collections, frame walks, tracing, timer signals."""

from __future__ import annotations

import faulthandler
import gc
import inspect
import os
import signal
import sys
import time
import traceback
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import checks
from world import Mismatch, Task, World, hooks, world_here

NULL_FILE = open(os.devnull, "w")


# ----------------------------------------------------------- noise within a step


def collect(task: Task) -> None:
    world = task.world
    world.counts["gcs"] += 1
    gc.collect(world.noise.choice((0, 0, 1, 1, 2)))


def change_threshold(task: Task) -> None:
    gc.set_threshold(task.world.noise.choice((1, 5, 50, 700, 10_000)))


def dump_traceback(task: Task) -> None:
    task.world.counts["frame walks"] += 1
    faulthandler.dump_traceback(NULL_FILE, all_threads=False)


def walk_from_here(task: Task) -> None:
    task.world.counts["frame walks"] += 1
    frame = inspect.currentframe()
    for walked, line in traceback.walk_stack(frame):
        assert walked.f_code.co_name and line
    traceback.extract_stack(frame, limit=20)
    if task.world.main_thread:  # or another thread's frame would end in this one
        for other in sys._current_frames().values():
            assert other.f_code


def push_datastack(task: Task) -> None:
    """Fill chunks of the interpreter's data stack and empty them."""

    def deeper(depth: int, *values: int) -> int:
        return deeper(depth - 1, *values) if depth else len(values)

    most = 20 if task.world.small_stack else 200
    deeper(task.world.noise.randint(1, most), *range(task.world.noise.randint(0, 30)))


def reach_the_limit(task: Task) -> None:
    task.world.counts["recursion limits"] += 1
    checks.depth_left()


def build_cycle(task: Task) -> None:
    cycle: list[Any] = [object() for _ in range(10)]
    cycle.append(cycle)


def drop_nest(task: Task) -> None:
    nest: Any = None
    for _ in range(task.world.noise.choice((10, 60, 600))):
        nest = (nest,)


def raise_and_catch(task: Task) -> None:
    try:
        try:
            raise KeyError
        finally:
            raise ValueError
    except ValueError as error:
        assert isinstance(error.__context__, KeyError)


def release_gil(task: Task) -> None:
    time.sleep(0)


def suspend(task: Task) -> None:
    if task.world.may_suspend_here():
        task.world.suspend_unnoticed()


IN_STEP: list[tuple[Callable[[Task], None], int]] = [
    (collect, 3),
    (change_threshold, 1),
    (dump_traceback, 2),
    (walk_from_here, 3),
    (push_datastack, 4),
    (reach_the_limit, 1),
    (build_cycle, 3),
    (drop_nest, 2),
    (raise_and_catch, 2),
    (release_gil, 1),
    (suspend, 6),
]


def act(task: Task) -> None:
    actions = [action for action, _ in IN_STEP]
    task.world.noise.choices(actions, [weight for _, weight in IN_STEP])[0](task)


# -------------------------------------------------------- noise of the loop's side


def check_captured(world: World) -> None:
    """Walk frames of tasks that are suspended (or have ended)."""
    for frame, names in world.captured:
        world.counts["frame walks"] += 1
        walked = checks.generated_names(frame)
        if walked and walked != tuple(names[: len(walked)]):
            raise Mismatch(f"f_back of a suspended frame: {walked}, not {names}")
        current: types.FrameType | None = frame
        while current is not None:
            assert current.f_code.co_name is not None
            assert current.f_lineno is None or current.f_lineno >= 0
            if "t" in current.f_code.co_varnames:
                assert current.f_locals.get("t") is None or current.f_locals
            current = current.f_back


def look_at_task(task: Task) -> None:
    coro = task.coro
    if coro is None:
        return
    inspect.getcoroutinestate(coro)
    while coro is not None:
        frame = getattr(coro, "cr_frame", None)
        if frame is not None:
            repr(frame)
            assert frame.f_lineno is None or frame.f_lineno >= 0
            traceback.extract_stack(frame)
        coro = getattr(coro, "cr_await", None)


def look_at_all_frames(world: World) -> None:
    for candidate in gc.get_objects():
        if type(candidate) is types.FrameType:
            assert candidate.f_code
            repr(candidate)
            _ = candidate.f_back, candidate.f_lineno
    gc.get_referrers(world)


def from_loop(world: World) -> None:
    roll = world.noise.random()
    if roll < 0.25:
        world.counts["gcs"] += 1
        gc.collect(world.noise.choice((0, 1, 1, 2)))
    elif roll < 0.5:
        check_captured(world)
    elif roll < 0.7:
        for task in world.tasks:
            look_at_task(task)
    elif (
        roll < 0.73 and world.main_thread
    ):  # or tasks of other threads couldn't be dropped
        world.counts["frame walks"] += 1
        look_at_all_frames(world)
    elif roll < 0.8:
        world.counts["frame walks"] += 1
        faulthandler.dump_traceback(NULL_FILE, all_threads=world.main_thread)
    elif roll < 0.85:
        checks.depth_left()
    elif roll < 0.9:
        nest: Any = None
        for _ in range(200):
            nest = [nest]


# -------------------------------------------------------------------------- tracing


def trace(frame: types.FrameType, event: str, arg: object) -> Any:
    world = world_here()
    if world is None:
        return None
    world.counts["trace events"] += 1
    if checks.GENERATED.match(frame.f_code.co_name):
        interrupt(world, 0.05)
        return trace
    # Other lines would take most of the time.
    return trace if world.noise.random() < 0.05 else None


def profile(frame: types.FrameType, event: str, arg: object) -> None:
    world = world_here()
    if world is not None:
        world.counts["trace events"] += 1
        if checks.GENERATED.match(frame.f_code.co_name):
            interrupt(world, 0.03)


def monitor(code: types.CodeType, *args: object) -> None:
    world = world_here()
    if world is not None and checks.GENERATED.match(code.co_name):
        world.counts["monitoring events"] += 1
        interrupt(world, 0.05)


def interrupt(world: World, probability: float) -> None:
    if world.noise.random() < probability and world.may_suspend_here():
        # The greenlet engine leaves tracing switched off for the loop meanwhile.
        if not (world.greenlet_engine and is_in_trace_function()):
            world.counts["interrupting suspensions"] += 1
            world.suspend_unnoticed()


def is_in_trace_function() -> bool:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in TRACE_FUNCTIONS:
            return True
        frame = frame.f_back
    return False


TRACE_FUNCTIONS = (trace.__code__, profile.__code__, monitor.__code__)
MONITOR_TOOL = 4


def monitoring_on() -> None:
    monitoring = sys.monitoring
    if monitoring.get_tool(MONITOR_TOOL) is None:
        monitoring.use_tool_id(MONITOR_TOOL, "torture")
        events = monitoring.events
        for event in (events.LINE, events.PY_START, events.PY_RETURN, events.CALL):
            monitoring.register_callback(MONITOR_TOOL, event, monitor)
        monitoring.set_events(
            MONITOR_TOOL, events.LINE | events.PY_START | events.PY_RETURN | events.CALL
        )


def monitoring_off() -> None:
    monitoring = sys.monitoring
    if monitoring.get_tool(MONITOR_TOOL) is not None:
        monitoring.set_events(MONITOR_TOOL, 0)
        monitoring.free_tool_id(MONITOR_TOOL)


def tracing_on(task: Task, kind: str) -> Any:
    if kind == "trace":
        before: Any = sys.gettrace()
        sys.settrace(trace)
        return before
    if kind == "profile":
        before = sys.getprofile()
        sys.setprofile(profile)
        return before
    if task.world.main_thread:
        if kind == "allocation":
            # More frames would make each allocation in long functions take a millisecond.
            tracemalloc.start(task.world.noise.choice((1, 4, 16)))
        elif sys.version_info >= (3, 12):
            monitoring_on()
    return None


def tracing_off(task: Task, kind: str, before: Any) -> None:
    if kind == "trace":
        sys.settrace(before)
    elif kind == "profile":
        sys.setprofile(before)
    elif task.world.main_thread:
        if kind == "allocation":
            tracemalloc.stop()
        elif sys.version_info >= (3, 12):
            monitoring_off()


hooks.noise = act
hooks.tracing_on = tracing_on
hooks.tracing_off = tracing_off

# --------------------------------------------------------------------- timer signals


MOST_ALARMS = 4  # interrupting each other, or slow machines get nothing else done


def interrupts_too_many(frame: types.FrameType | None) -> bool:
    count = 0
    while frame is not None and count < MOST_ALARMS:
        count += frame.f_code is on_alarm.__code__
        frame = frame.f_back
    return count >= MOST_ALARMS


def on_alarm(number: int, frame: types.FrameType | None) -> None:
    world = world_here()
    if world is None:
        return
    world.counts["timer signals"] += 1
    if interrupts_too_many(frame):
        next_alarm(world)
        return
    suspends = world.noise.random() < 0.5 and world.may_suspend_here()
    suspends = suspends and not (world.greenlet_engine and is_in_trace_function())
    # One at a time, or on slow builds they come faster than they are dealt with.
    next_alarm(world)
    if suspends:
        world.counts["interrupting suspensions"] += 1
        world.suspend_unnoticed()


def next_alarm(world: World) -> None:
    # By processor time: a busy machine would do nothing but answer alarms.
    signal.setitimer(signal.ITIMER_PROF, world.noise.uniform(0.0005, 0.005))


def alarms_on(world: World) -> None:
    signal.signal(signal.SIGPROF, on_alarm)
    next_alarm(world)


def alarms_off() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)


def all_off() -> None:
    """Put everything back that a program may have left behind."""
    sys.settrace(None)
    sys.setprofile(None)
    gc.set_threshold(700, 10, 10)
    tracemalloc.stop()
    if sys.version_info >= (3, 12):
        monitoring_off()
