"""Give every task a portal as soon as it exists.

Called with the name of a suite's loop before any of its tests is imported.
"""

from __future__ import annotations

import sys
from typing import Any

import greenback


def in_asyncio() -> None:
    """Have asyncio's task classes, the C one and the Python one, bestow a portal on each task."""
    import asyncio
    from asyncio import tasks

    def with_portals(base: Any) -> Any:
        class Task(base):
            def __init__(self, coro: Any, **options: Any) -> None:
                super().__init__(coro, **options)
                if self._source_traceback:
                    del self._source_traceback[-1]  # this very call
                if not self.done():  # an eager one may be
                    greenback.bestow_portal(self)

        Task.__qualname__ = base.__qualname__
        Task.__module__ = base.__module__
        return Task

    c_task: Any = getattr(tasks, "_CTask", None)
    same = tasks.Task is c_task
    python_task = with_portals(tasks._PyTask)  # type: ignore[attr-defined]
    tasks._PyTask = python_task  # type: ignore[attr-defined]
    if c_task is not None:
        tasks._CTask = with_portals(c_task)  # type: ignore[attr-defined]
    chosen = tasks._CTask if same else python_task  # type: ignore[attr-defined]
    tasks.Task = asyncio.Task = chosen  # type: ignore[misc]
    if sys.version_info >= (3, 12):  # it has been made of the original class
        factory = asyncio.create_eager_task_factory(chosen)
        tasks.eager_task_factory = asyncio.eager_task_factory = factory


def in_trio() -> None:
    """Have Trio bestow a portal on each task that it spawns, system tasks, too."""
    from trio._core import _run

    spawn = _run.Runner.spawn_impl

    def spawn_with_portal(self: Any, *args: Any, **options: Any) -> Any:
        task = spawn(self, *args, **options)
        greenback.bestow_portal(task)
        return task

    _run.Runner.spawn_impl = spawn_with_portal  # type: ignore[method-assign]
