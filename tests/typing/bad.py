"""Misuse that a type checker must find; an unneeded `ignore` is an error as well."""

import functools
from collections.abc import AsyncGenerator, AsyncIterator

import greenback


async def number(text: str) -> int:
    """Be an async function."""
    return int(text)


class Swallowing:
    """An async context manager that may swallow exceptions."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc: object) -> bool:
        return True


def await_() -> None:
    """What cannot be awaited."""
    greenback.await_(3)  # type: ignore[arg-type]
    greenback.await_(number)  # type: ignore[arg-type]
    greenback.await_()  # type: ignore[call-arg]
    greenback.await_(number("1"), 2)  # type: ignore[call-arg]
    result: str = greenback.await_(number("1"))  # type: ignore[assignment]
    print(result)


async def portals() -> None:
    """Wrong arguments."""
    greenback.ensure_portal(1)  # type: ignore[call-arg, unused-coroutine]
    greenback.has_portal("task")  # type: ignore[arg-type]
    greenback.bestow_portal(None)  # type: ignore[arg-type]
    await greenback.with_portal_run(int)  # type: ignore[arg-type, call-arg]
    await greenback.with_portal_run(number, 1)  # type: ignore[arg-type]
    await greenback.with_portal_run(number, txt="1")  # type: ignore[call-overload]
    await greenback.with_portal_run_sync(len, 1)  # type: ignore[arg-type]
    await greenback.with_portal_run_tree(number, 1)  # type: ignore[arg-type]
    with greenback.portals_for_tree():  # type: ignore[attr-defined]
        pass


def wrappers() -> None:
    """Wrong things to wrap."""
    greenback.async_iter([1, 2])  # type: ignore[call-overload]
    greenback.async_context(3)  # type: ignore[arg-type]
    greenback.autoawait(len)  # type: ignore[arg-type]
    greenback.autoawait(number)(1)  # type: ignore[arg-type]
    greenback.decorate_as_sync(3)  # type: ignore[arg-type]
    greenback.decorate_as_sync(functools.cache)(len)  # type: ignore[arg-type]
    greenback.portal_task_factory(len)  # type: ignore[type-var]


def generators(agen: AsyncGenerator[int, str], items: AsyncIterator[int]) -> None:
    """Wrong things to send, and to a thing that takes none."""
    greenback.async_iter(agen).send(1)  # type: ignore[arg-type]
    greenback.async_iter(items).send("1")  # type: ignore[attr-defined]


def returns() -> int:  # type: ignore[return]
    """A statement is missing after one that may swallow exceptions."""
    with greenback.async_context(Swallowing()):
        return 1


def names() -> None:
    """Names that do not exist."""
    print(greenback.no_such_name)  # type: ignore[attr-defined]
