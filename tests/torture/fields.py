"""Fields of the thread state that seldom have a value, each by itself.

The interpreter counts some of them up while it calls trace functions, frees nested objects or
makes exceptions. Here they are counted up by hand, by the code that is suspended and by the
loop that resumes it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import checks
from native import thread_state

import greenback

# "moves": what the loop has more when it resumes a step, the step has more, too
COUNTERS = {
    "tracing": "moves",
    "recursion_headroom": "moves",
    "trash_nesting": "moves",
    "what_event": "stays",
}
STEP, LOOP = 3, 2


class Trap:
    def __await__(self) -> Generator[Trap, None, None]:
        yield self


def value(name: str) -> int:
    return thread_state.snapshot()[checks.POSITION[name]]


def check_counter(name: str, behaviour: str) -> None:
    seen = {}

    def step() -> None:
        thread_state.add(name, STEP)
        seen["step, set"] = value(name)
        greenback.await_(Trap())
        seen["step, resumed by a loop that has more"] = value(name)
        greenback.await_(Trap())
        seen["step, resumed"] = value(name)
        thread_state.add(name, -STEP)

    before = value(name)
    coro = greenback.with_portal_run_sync(step)
    coro.send(None)
    seen["loop"] = value(name)
    thread_state.add(name, LOOP)
    coro.send(None)
    seen["loop that has more"] = value(name)
    thread_state.add(name, -LOOP)
    try:
        coro.send(None)
    except StopIteration:
        pass
    seen["loop, at the end"] = value(name)

    moved = LOOP if behaviour == "moves" else 0
    expected = {
        "step, set": before + STEP,
        "step, resumed by a loop that has more": before + STEP + moved,
        "step, resumed": before + STEP,
        "loop": before,
        "loop that has more": before + LOOP,
        "loop, at the end": before,
    }
    wrong = {
        who: (number, expected[who])
        for who, number in seen.items()
        if number != expected[who]
    }
    if wrong:
        raise checks.StateMismatch(f"{name}, (is, should be): {wrong}")


def check_executor() -> None:
    """The step's own after it was resumed, the loop's own after a step."""

    def step() -> None:
        thread_state.call_in_executor(greenback.await_, Trap())
        greenback.await_(Trap())

    coro = greenback.with_portal_run_sync(step)
    coro.send(None)
    coro.send(None)
    try:
        thread_state.call_in_executor(coro.send, None)
    except StopIteration:
        pass


def check_put_off() -> None:
    """An object whose deallocation was put off in a step dies in that step."""
    runs, died_while = "the step", []

    class Dying:
        def __del__(self) -> None:
            died_while.append(runs)

    def step() -> None:
        thread_state.call_with_put_off(Dying, greenback.await_, Trap())

    def deallocate() -> None:
        """End an outermost deallocation, after which comes what was put off."""
        [[]].pop()

    coro = greenback.with_portal_run_sync(step)
    coro.send(None)
    runs = "the loop"
    deallocate()
    runs = "the step again"
    try:
        coro.send(None)
    except StopIteration:
        pass
    runs = "the loop again"
    deallocate()
    if died_while != ["the step again"]:
        raise checks.StateMismatch(f"put off in a step, deallocated in {died_while}")


def check_left_behind() -> None:
    """What a step leaves put off dies after it, where await_ is refused.

    Up to 3.12, where a counter says for how long deallocations are put off.
    """
    ends: list[str] = []

    class Dying:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            try:
                greenback.await_(Trap())
            except RuntimeError:
                ends.append(self.name)

    def nothing(_: object) -> None:
        pass

    def step() -> None:
        thread_state.call_with_put_off(lambda: Dying("step's"), nothing, None)

    def loop(coro: Any) -> None:
        try:
            coro.send(None)
        except StopIteration:
            ends.append("step")

    # The loop has put nothing off, and has.
    for make in (object, lambda: Dying("loop's")):
        coro = greenback.with_portal_run_sync(step)
        thread_state.add("trash_nesting", 1)
        if make is object:
            loop(coro)
        else:
            thread_state.call_with_put_off(make, loop, coro)
        ends.append("outermost deallocation")
        thread_state.add("trash_nesting", -1)
        [[]].pop()
    expected = ["step", "outermost deallocation", "step's"]
    expected += ["step's", "step", "outermost deallocation", "loop's"]
    if ends != expected:
        raise checks.StateMismatch(f"put off, (is, should be): {ends}, {expected}")


def check_all() -> None:
    if thread_state is None or greenback.engine != "direct":
        return
    for name, behaviour in COUNTERS.items():
        if thread_state.add(name, 0):
            check_counter(name, behaviour)
    check_put_off()
    if thread_state.add("trash_nesting", 0):
        check_left_behind()
    jit: Any = getattr(sys, "_jit", None)
    if jit is None or not jit.is_enabled():
        check_executor()
