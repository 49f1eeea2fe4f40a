"""What the scripts in this folder share: one small face for each event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

LOOPS = ("asyncio", "uvloop", "trio")


def skip(reason: str) -> None:
    """Tell the parent process why this script has nothing to check here."""
    print("SKIP " + reason)
    sys.exit(0)


def run(loop: str, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run ``async_fn(*args)`` to its end on the loop with this name."""
    if loop == "trio":
        import trio

        return trio.run(async_fn, *args)
    if loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            skip("uvloop is not installed")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(async_fn(*args))
    with asyncio.Runner() as runner:
        return runner.run(async_fn(*args))


def new_asyncio_loop(loop: str) -> asyncio.AbstractEventLoop:
    """Make an asyncio loop that stays silent about tasks dropped while pending."""
    if loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            skip("uvloop is not installed")
        made = uvloop.new_event_loop()
    else:
        made = asyncio.new_event_loop()
    made.set_exception_handler(lambda loop, context: None)
    return made


async def pause(loop: str) -> str:
    """Suspend the current task once."""
    if loop == "trio":
        import trio

        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
    return "paused"


async def forever(loop: str) -> None:
    """Suspend the current task until it is cancelled."""
    if loop == "trio":
        import trio

        await trio.sleep_forever()
    else:
        await asyncio.get_running_loop().create_future()


def descend(depth: int, fn: Callable[[], Any]) -> Any:
    """Call *fn* with *depth* plain Python frames in between."""
    if depth:
        return descend(depth - 1, fn)
    return fn()


async def gather(loop: str, *async_fns: Callable[[], Awaitable[Any]]) -> None:
    """Run the functions at the same time, each in a task of its own."""
    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for async_fn in async_fns:
                nursery.start_soon(async_fn)
    else:
        await asyncio.gather(*(async_fn() for async_fn in async_fns))
