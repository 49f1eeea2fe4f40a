"""Event loops, seen alike by every benchmark."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

AsyncFn = Callable[..., Coroutine[Any, Any, T]]


class Waitable(Protocol):
    """A one-shot event."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


class TaskGroup(Protocol):
    """Tasks that are waited for together."""

    def start(self, async_fn: AsyncFn[Any], *args: Any) -> None:
        """Start a task that runs ``async_fn(*args)``."""

    def pending(self) -> list[Any]:
        """Return the task objects that have not finished."""


class Loop:
    """What the benchmarks need of a loop.

    ``checkpoint`` yields once and is as light as the loop allows;
    ``full_checkpoint`` is the one that ``ensure_portal`` passes through.
    ``has_tasks`` is false where only coroutines exist.
    """

    has_tasks = True
    checkpoint: Callable[[], Coroutine[Any, Any, Any]]
    full_checkpoint: Callable[[], Coroutine[Any, Any, Any]]

    def run(self, async_fn: AsyncFn[T], *args: Any) -> T:
        """Run ``async_fn(*args)`` in a new loop and return its result."""
        raise NotImplementedError

    def event(self) -> Waitable:
        """Return a new one-shot event."""
        raise NotImplementedError

    def tasks(self) -> AbstractAsyncContextManager[TaskGroup]:
        """Return a context manager that waits for its tasks on leaving."""
        raise NotImplementedError


class _AsyncioTasks:
    def __init__(self, create_task: Callable[..., Any]) -> None:
        self._create_task = create_task
        self._started: list[Any] = []

    def start(self, async_fn: AsyncFn[Any], *args: Any) -> None:
        self._started.append(self._create_task(async_fn(*args)))

    def pending(self) -> list[Any]:
        return [task for task in self._started if not task.done()]

    async def wait(self) -> None:
        for task in self._started:
            await task


class _TrioTasks:
    def __init__(self, nursery: Any) -> None:
        self._nursery = nursery
        self.start = nursery.start_soon

    def pending(self) -> list[Any]:
        return list(self._nursery.child_tasks)


class Asyncio(Loop):
    """The standard library's loop."""

    def __init__(self) -> None:
        import asyncio

        self._asyncio = asyncio

        def checkpoint() -> Coroutine[Any, Any, None]:
            return asyncio.sleep(0)

        self.checkpoint = self.full_checkpoint = checkpoint

    def run(self, async_fn: AsyncFn[T], *args: Any) -> T:
        result: T = self._asyncio.run(async_fn(*args))
        return result

    def event(self) -> Waitable:
        return self._asyncio.Event()

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[TaskGroup]:
        tasks = _AsyncioTasks(self._asyncio.get_running_loop().create_task)
        yield tasks
        await tasks.wait()


class Uvloop(Asyncio):
    """uvloop, with asyncio's tasks."""

    def __init__(self) -> None:
        import uvloop

        super().__init__()
        self._new_loop = uvloop.new_event_loop

    def run(self, async_fn: AsyncFn[T], *args: Any) -> T:
        with self._asyncio.Runner(loop_factory=self._new_loop) as runner:
            result: T = runner.run(async_fn(*args))
        return result


class Trio(Loop):
    """Trio."""

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self.checkpoint = trio.lowlevel.cancel_shielded_checkpoint
        self.full_checkpoint = trio.lowlevel.checkpoint

    def run(self, async_fn: AsyncFn[T], *args: Any) -> T:
        result: T = self._trio.run(async_fn, *args)
        return result

    def event(self) -> Waitable:
        event: Waitable = self._trio.Event()
        return event

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[TaskGroup]:
        async with self._trio.open_nursery() as nursery:
            yield _TrioTasks(nursery)


class Bare(Asyncio):
    """No loop: the coroutine is stepped by hand, so raw costs show.

    It happens inside an asyncio task, because greenback 1.3.0 refuses to work
    where there is no current task.
    """

    has_tasks = False

    def __init__(self) -> None:
        super().__init__()

        @types.coroutine
        def pause() -> Generator[None, None, None]:
            yield

        async def checkpoint() -> None:
            await pause()

        self.checkpoint = self.full_checkpoint = checkpoint

    def run(self, async_fn: AsyncFn[T], *args: Any) -> T:
        async def step_by_hand() -> T:
            coro = async_fn(*args)
            send = coro.send
            try:
                while True:
                    send(None)
            except StopIteration as stop:
                value: T = stop.value
                return value

        result: T = self._asyncio.run(step_by_hand())
        return result


_LOOPS: dict[str, type[Loop]] = {
    "bare": Bare,
    "asyncio": Asyncio,
    "uvloop": Uvloop,
    "trio": Trio,
}


def open_loop(name: str) -> Loop:
    """Return the loop called ``name``; ImportError if it is not installed."""
    return _LOOPS[name]()
