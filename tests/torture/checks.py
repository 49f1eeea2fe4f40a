"""What is compared: names of frames, exceptions, thread states."""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from types import FrameType, TracebackType
from typing import Any

from native import thread_state

GENERATED = re.compile(r"f\d+\Z")
ENTRY = re.compile(r"f\d+:\d+\Z")
ROOT = "task_root"


def generated_names(frame: FrameType | None) -> tuple[str, ...]:
    """The generated functions from `frame` up to where its task began."""
    names = []
    while frame is not None:
        name = frame.f_code.co_name
        if name == ROOT:
            break
        if GENERATED.match(name):
            names.append(name)
        frame = frame.f_back
    return tuple(names)


def is_in_generated_function(frame: FrameType | None) -> bool:
    """Whether `frame` belongs to a task's own code, and not to the loop's."""
    while frame is not None:
        name = frame.f_code.co_name
        if name in (ROOT, "perform"):
            return False
        if GENERATED.match(name):
            return True
        frame = frame.f_back
    return False


def traceback_names(traceback: TracebackType | None) -> tuple[str, ...]:
    names = []
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_name
        if GENERATED.match(name):
            names.append(f"{name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return tuple(names)


def is_traceback_entry(value: object) -> bool:
    """Whether it is one of traceback_names()."""
    return isinstance(value, str) and ENTRY.match(value) is not None


def exception_types(exc: BaseException | None, most: int = 6) -> tuple[str, ...]:
    """The type of `exc`, and of what it came from."""
    types: list[str] = []
    while exc is not None and len(types) < most:
        name = type(exc).__name__.replace("IgnoredExit", "RuntimeError")
        types.append(name + ("!" if exc.__cause__ is not None else ""))
        exc = exc.__context__
    return tuple(types)


def exception_summary(exc: BaseException | None, most: int = 6) -> tuple[Any, ...]:
    if exc is None:
        return ()
    return exception_types(exc, most), traceback_names(exc.__traceback__)


def monitored() -> bool:
    return sys.version_info >= (3, 12) and any(
        sys.monitoring.get_tool(tool) for tool in range(6)
    )


def depth_left() -> int:
    """How many plain Python calls are left; 0 if that is not to be found out."""
    if threading.current_thread() is not threading.main_thread():
        return 0  # CPython needs more than a small stack to free the traceback
    if sys.gettrace() or sys.getprofile() or monitored():
        return 0  # a trace function that fails is switched off

    def deeper(depth: int) -> None:
        nonlocal reached
        reached = depth
        deeper(depth + 1)

    reached = 0
    # The handler of a timer signal would need calls of its own.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        deeper(1)
    except RecursionError:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return reached


def handled_here(loop: list[BaseException]) -> list[int]:
    """The exceptions that are being handled, but for those that the loop handles."""
    theirs = [id(exc) for exc in loop]
    handled = [id(exc) for exc in thread_state.handled_exceptions()]
    return [number for number in handled if number not in theirs]


# ------------------------------------------------------------------ thread state

POSITION: dict[str, int] = (
    {name: i for i, name in enumerate(thread_state.FIELDS)} if thread_state else {}
)
BUDGETS = ("py_recursion", "c_recursion")
# The same before and after a suspension, seen by the code that was suspended.
KEPT_BY_SUSPENSION = (
    "tracing",
    "exc_info",
    "exc_value",
    "origin_depth",
    "datastack_chunk",
    "datastack_top",
    "datastack_limit",
    "recursion_limit",
    "recursion_headroom",
    "what_event",
    "trash_nesting",
    "cframe",
    "current_frame",
    "context",
)
# Of these, what depends on where a suspended task is resumed from.
MOVED = ("context", "recursion_headroom", "tracing", "trash_nesting")
# How much a budget may differ where ordinary frames that are entered in one of two ways
# stand between the trampoline and the portal.
SLACK = 8


# What is suspended in a callback of ctypes holds a count; all are back in the end.
COUNTED_PER_THREAD = ("gilstate_counter",)


# What went wrong, wherever the exception may end: programs catch all kinds.
mismatches: list[str] = []


class Mismatch(BaseException):
    """A check within one run failed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        mismatches.append("".join([*traceback.format_stack()[-12:-1], text]))


class StateMismatch(Mismatch):
    pass


def limit_grew(name: str, before: int, after: int) -> bool:
    """CPython takes a chunk that it re-uses for smaller than it is, until it comes back."""
    return name == "datastack_limit" and after > before and (after - before) % 4096 == 0


def put_off_by_loop(name: str, before: int) -> bool:
    """Where the stack is nearly full, the loop itself puts deallocations off."""
    return name == "trash_later" and before != 0


def compare_across_step(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Both were taken by the loop, in the same frame, around a step."""
    if before == after:
        return
    wrong = {
        name: (before[i], after[i])
        for name, i in POSITION.items()
        if before[i] != after[i]
        and name not in COUNTED_PER_THREAD
        and not limit_grew(name, before[i], after[i])
        and not put_off_by_loop(name, before[i])
    }
    if wrong:
        raise StateMismatch(f"the loop's thread state after a step: {wrong}")


def compare_counts(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Before a program and after it."""
    for name in COUNTED_PER_THREAD:
        i = POSITION[name]
        if before[i] != after[i]:
            raise StateMismatch(f"{name} after a program: {before[i]}, {after[i]}")


def compare_across_suspension(
    before: tuple[int, ...],
    after: tuple[int, ...],
    loop_before: tuple[int, ...] | None,
    loop_after: tuple[int, ...] | None,
    exact: bool,
    budgets: bool,
) -> None:
    """Both were taken in the same frame around an await_."""
    wrong: dict[str, Any] = {}
    raised = sys.exception() is not None
    # By its finalizer, that is in whatever Context, and below whatever deallocations, a
    # collection happens to run.
    closed = isinstance(sys.exception(), GeneratorExit)
    for name in KEPT_BY_SUSPENSION:
        i = POSITION[name]
        if before[i] == after[i] or limit_grew(name, before[i], after[i]):
            continue
        if not ((raised and name == "exc_value") or (closed and name in MOVED)):
            wrong[name] = (before[i], after[i])
    if budgets and loop_before is not None and loop_after is not None:
        for name in BUDGETS:
            i = POSITION[name]
            used_before = loop_before[i] - before[i]
            used_after = loop_after[i] - after[i]
            # 3.11 counts calls of C code there, too.
            counts_python = name == "py_recursion" and sys.version_info >= (3, 12)
            slack = 0 if exact and counts_python else SLACK
            if abs(used_before - used_after) > slack:
                wrong[name] = (used_before, used_after)
    if wrong:
        raise StateMismatch(f"the thread state after an await_: {wrong}")
