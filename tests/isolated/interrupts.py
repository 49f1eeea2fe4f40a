"""Ctrl-C at each instruction of code that uses await_.

usage: interrupts.py LOOP
"""

import gc
import signal
import sys

from support import pause, run

import greenback

ENTERED = []
LEFT = []


class Section:
    """Notes that it was entered and left."""

    def __enter__(self):
        ENTERED.append(1)

    def __exit__(self, *exc):
        LEFT.append(1)


class AsyncSection(Section):
    async def __aenter__(self):
        self.__enter__()

    async def __aexit__(self, *exc):
        self.__exit__()


SECTION = Section()
ASYNC_SECTION = AsyncSection()


async def inner(loop):
    async with ASYNC_SECTION:
        return await pause(loop)


def generator(loop):
    with SECTION:
        yield greenback.await_(inner(loop))
        yield greenback.await_(pause(loop))


def sync(loop, depth):
    with SECTION:
        results = [greenback.await_(inner(loop))]
        try:
            results += generator(loop)
            if depth:
                results += sync(loop, depth - 1)
        finally:
            results.append(len(results))
    return results


async def main(loop):
    await greenback.ensure_portal()
    return sync(loop, 1)


INTERRUPTED = {fn.__code__ for fn in (inner, generator, sync, main)}
# Between the calls of __enter__() or __exit__() and their neighbours.
with open(__file__) as file:
    ENTERING = {number for number, line in enumerate(file, 1) if " with " in line}


class Interrupter:
    """A trace function that sends SIGINT at the given instruction.

    asyncio's handler cancels the task. (Trio's would raise KeyboardInterrupt in
    the trace function, where CPython doesn't expect it.)
    """

    def __init__(self, at):
        self.at = at
        self.count = 0

    def __call__(self, frame, event, arg):
        if frame.f_code not in INTERRUPTED:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lineno not in ENTERING:
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
            self.count += 1
        return self


def attempt(loop, at):
    """Run the program, interrupted at one instruction; tell how it ended."""
    del ENTERED[:], LEFT[:]
    interrupter = Interrupter(at)
    sys._getframe().f_trace_opcodes = True  # 3.12.1 wants to know in advance
    sys.settrace(interrupter)
    try:
        ended = run(loop, main, loop)
    except KeyboardInterrupt:
        ended = "interrupted"
    finally:
        sys.settrace(None)
    assert len(ENTERED) == len(LEFT), (at, ended, ENTERED, LEFT)
    return ended, interrupter.count


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    sys.unraisablehook = lambda unraisable: sys.exit(f"unraisable: {unraisable}")
    expected, instructions = attempt(loop_arg, -1)
    assert expected[-1] == len(expected) - 1, expected
    assert instructions > 100, instructions
    interrupted = 0
    for number in range(instructions):
        outcome, _ = attempt(loop_arg, number)
        assert outcome in ("interrupted", expected), (number, outcome)
        interrupted += outcome == "interrupted"
    assert interrupted > instructions // 2, (interrupted, instructions)
    gc.collect()
    assert attempt(loop_arg, -1)[0] == expected
    print(f"{interrupted} of {instructions} instructions interrupted")
    print("OK")
