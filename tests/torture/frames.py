"""The registry of C frame kinds: ways for C code to call a generated function.

A kind is a function ``kind(call, times)`` which has C code call ``call`` so many times.
Natively the same is a plain loop (``each``), or whatever its twin says; both must give the
same results, and raise the same. ``SYNC`` and ``NATIVE`` hold what generated programs call:
``frames['name'](t, body, times)``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

Call = Callable[..., int]
Kind = Callable[[Call, int], Any]
AsyncCall = Callable[..., Awaitable[int]]
Twin = Callable[[AsyncCall, int], Awaitable[None]]
Frame = Callable[[Any, Any, int], Any]

SYNC: dict[str, Frame] = {}
NATIVE: dict[str, Frame] = {}
# Kinds that are called while something is deallocated.
FINALIZING: set[str] = set()
# Kinds that are chosen only where something is given.
NEEDS: dict[str, str] = {}


def fold(results: list[int]) -> int:
    total = len(results)
    for result in results:
        total = (total * 13 + result) % 1_000_003
    return total


async def each(call: AsyncCall, times: int) -> None:
    for _ in range(times):
        await call()


async def each_swallowed(call: AsyncCall, times: int) -> None:
    """What is raised goes to sys.unraisablehook."""
    for _ in range(times):
        try:
            await call()
        except BaseException as exc:
            call.t.unraisable(exc)  # type: ignore[attr-defined]


class Caller:
    """What C code calls; ``call.t`` is the task."""

    def __init__(self, t: Any, body: Any) -> None:
        self.t, self.body, self.results = t, body, list[int]()

    def __call__(self, *args: Any, **named: Any) -> int:
        result: int = self.body(self.t)
        self.results.append(result)
        return result


class AsyncCaller(Caller):
    async def __call__(self, *args: Any, **named: Any) -> int:  # type: ignore[override]
        result: int = await self.body(self.t)
        self.results.append(result)
        return result


def add(name: str, kind: Kind, twin: Twin = each, needs: str = "") -> None:
    def run_sync(t: Any, body: Any, times: int) -> int:
        caller = Caller(t, body)

        def call(*args: Any, **named: Any) -> int:
            return caller()

        call.t = t  # type: ignore[attr-defined]
        t.kinds.append(name)
        try:
            kind(call, times)
        finally:
            t.kinds.pop()
        return fold(caller.results)

    async def run_native(t: Any, body: Any, times: int) -> int:
        caller = AsyncCaller(t, body)
        await twin(caller, times)
        return fold(caller.results)

    add_pair(name, run_sync, run_native, needs)
    if twin is each_swallowed and "ctypes" not in name:
        FINALIZING.add(name)


def add_pair(name: str, sync: Frame, native: Frame, needs: str = "") -> None:
    assert name not in SYNC, name
    SYNC[name], NATIVE[name] = sync, native
    if needs:
        NEEDS[name] = needs


def frame_kind(name: str, twin: Twin = each, needs: str = "") -> Callable[[Kind], Kind]:
    def decorator(kind: Kind) -> Kind:
        add(name, kind, twin, needs)
        return kind

    return decorator


def available(*given: str) -> list[str]:
    return [name for name in SYNC if NEEDS.get(name, "") in ("", *given)]


def compatible(kinds: list[str]) -> list[str]:
    """`kinds` without those that can't be compared if they come together.

    Up to 3.12 nothing is finalized in the depth of a deallocation, but a little later.
    """
    deep = [kind for kind in kinds if "deallocation" in kind]
    if sys.version_info >= (3, 13) or not deep:
        return kinds
    return [kind for kind in kinds if kind == deep[0] or kind not in FINALIZING]
