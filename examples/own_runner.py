"""A coroutine runner of one's own: a simulator whose models are plain functions.

Run it with:  python examples/own_runner.py

The simulator below knows coroutines and a clock that does not pass by itself. It
is no event loop that greenback has ever heard of; with_portal_run_sync() needs
nothing from it but that it sends to its coroutines and throws into them. The
customers of the bank are synchronous functions: they call wait(), as deep in
their own calls as they like, and other customers go on until the time has come.

The exit code is 1 if anything came out wrong.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import greenback

# What a coroutine yields: called with what will resume it.
Trigger = Callable[[Callable[[], None]], None]


class Simulator:
    """Runs coroutines that yield triggers."""

    def __init__(self) -> None:
        self.now = 0
        self.order = itertools.count()
        self.agenda: list[tuple[int, int, Callable[[], None]]] = []

    def after(self, delay: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + delay, next(self.order), callback))

    def start(self, coro: Coroutine[Trigger, None, None], delay: int = 0) -> None:
        def resume() -> None:
            try:
                trigger = coro.send(None)
            except StopIteration:
                return
            trigger(resume)

        self.after(delay, resume)

    def run(self) -> None:
        while self.agenda:
            self.now, _, callback = heapq.heappop(self.agenda)
            callback()


@types.coroutine
def until(trigger: Trigger) -> Generator[Trigger, None, None]:
    yield trigger


class Counter:
    """Serves one customer after the other."""

    def __init__(self) -> None:
        self.free = True
        self.queue: deque[Callable[[], None]] = deque()

    async def __aenter__(self) -> None:
        if self.free:
            self.free = False
        else:
            await until(self.queue.append)

    async def __aexit__(self, *exc: object) -> None:
        if self.queue:
            simulator.after(0, self.queue.popleft())
        else:
            self.free = True


simulator = Simulator()
counter = Counter()
log: list[tuple[int, str]] = []


# From here on there is no async code.


def wait(delay: int) -> None:
    """Let time pass."""
    greenback.await_(until(lambda resume: simulator.after(delay, resume)))


def note(text: str) -> None:
    log.append((simulator.now, text))
    print(f"{simulator.now:3}  {text}")


def customer(name: str, errands: dict[str, int]) -> None:
    note(f"{name} comes")
    with greenback.async_context(counter):
        for errand in sorted(errands, key=lambda e: (wait(1), errands[e])[1]):
            note(f"{name} {errand}")
            wait(errands[errand])
    note(f"{name} goes")


def start(delay: int, name: str, **errands: int) -> None:
    run: Any = greenback.with_portal_run_sync(customer, name, errands)
    simulator.start(run, delay)


def main() -> int:
    start(0, "Ann", pays=5, asks=2)
    start(3, "Bob", asks=4)
    start(30, "Cy", pays=1)
    simulator.run()
    expected = [
        (0, "Ann comes"),
        (2, "Ann asks"),
        (3, "Bob comes"),
        (4, "Ann pays"),
        (9, "Ann goes"),
        (10, "Bob asks"),
        (14, "Bob goes"),
        (30, "Cy comes"),
        (31, "Cy pays"),
        (32, "Cy goes"),
    ]
    return 0 if log == expected else 1


if __name__ == "__main__":
    sys.exit(main())
