"""Tracers and profilers see sync code before and after it was suspended.

usage: tracing.py LOOP trace|profile|monitoring
"""

import sys

from support import gather, pause, run

import greenback

SEEN = []


def before():
    """Be seen ahead of the suspension."""


def after():
    """Be seen after the suspension."""


def in_loop():
    """Be seen in between, in a task without a portal."""


def sync_code(loop):
    """Suspend between two calls that a tracer must report."""
    before()
    greenback.await_(pause(loop))
    after()


async def main(loop):
    """Two tasks with portals, one without."""

    async def one():
        await greenback.ensure_portal()
        for _ in range(3):
            sync_code(loop)

    async def other():
        for _ in range(6):
            in_loop()
            await pause(loop)

    await gather(loop, one, other, one)


def note(code):
    """Remember a call of one of the functions above."""
    if code in CODES:
        SEEN.append(code.co_name)


def tracer(frame, event, arg):
    """Record calls, and the lines of sync_code."""
    if event == "call":
        note(frame.f_code)
    elif event == "line" and frame.f_code is sync_code.__code__:
        LINES.append(frame.f_lineno - sync_code.__code__.co_firstlineno)
    return tracer


def profiler(frame, event, arg):
    """Record calls and returns."""
    if event == "call":
        note(frame.f_code)
    elif event == "return" and frame.f_code is sync_code.__code__:
        LINES.append("return")


def run_monitored(loop):
    """Record calls through sys.monitoring."""
    monitoring = sys.monitoring
    tool = monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "test")
    monitoring.register_callback(
        tool, monitoring.events.PY_START, lambda code, offset: note(code)
    )
    monitoring.set_events(tool, monitoring.events.PY_START)
    run(loop, main, loop)
    monitoring.set_events(tool, 0)
    monitoring.free_tool_id(tool)


CODES = {fn.__code__ for fn in (before, after, in_loop, sync_code)}
LINES = []

if __name__ == "__main__":
    loop_arg, kind = sys.argv[1:]
    if kind == "trace":
        sys.settrace(tracer)
        run(loop_arg, main, loop_arg)
        assert sys.gettrace() is tracer
        sys.settrace(None)
        assert LINES.count(2) == LINES.count(3) == LINES.count(4) == 6, LINES
    elif kind == "profile":
        sys.setprofile(profiler)
        run(loop_arg, main, loop_arg)
        assert sys.getprofile() is profiler
        sys.setprofile(None)
        # As of a coroutine: once where it waits, once at its end.
        assert LINES == ["return"] * 12, LINES
        assert SEEN.count("sync_code") == 12, SEEN
        CODES.discard(sync_code.__code__)
    elif sys.version_info < (3, 12):
        from support import skip

        skip("sys.monitoring came with 3.12")
    else:
        run_monitored(loop_arg)
    for code in CODES:
        assert SEEN.count(code.co_name) == 6, (code.co_name, SEEN)
    # One is suspended while the others run.
    assert SEEN.index("in_loop") < SEEN.index("after"), SEEN
    print("OK")
