"""A breakpoint in synchronous code, at whose prompt one can await.

usage: debugger.py

An inventory is kept by a task; a synchronous function asks it for the stock by
``await_``. The breakpoint is in that function. At the prompt try

    await stock.get("apples")
    count("pears")
    p await asyncio.gather(*map(stock.get, ["apples", "pears"]))
    continue

The ticks that are printed meanwhile come from another task: it goes on while
the prompt waits for a result, and stands still while it waits for input.
"""

from __future__ import annotations

import asyncio

import greenback


class Stock:
    """What a slow warehouse has."""

    def __init__(self) -> None:
        self.pieces = {"apples": 3, "pears": 4}

    async def get(self, name: str) -> int:
        """Ask for the number of pieces."""
        await asyncio.sleep(0.1)
        return self.pieces[name]


stock = Stock()


def count(name: str) -> int:
    """Tell a caller that knows nothing of async how many there are."""
    return greenback.await_(stock.get(name))


def total() -> int:
    """Add up all of it, with a look at what is going on."""
    apples = count("apples")
    greenback.set_trace(header="try: await stock.get('pears')")
    return apples + count("pears")


async def tick() -> None:
    """Show that the loop runs."""
    while True:
        await asyncio.sleep(0.05)
        print("tick")


async def main() -> None:
    """Debug a task beside another one."""
    ticking = asyncio.create_task(tick())
    await greenback.ensure_portal()
    print("total:", total())
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main())
