"""Misuse that a type checker must find; an unneeded `ignore` is an error as well."""

import greenback


async def number(text: str) -> int:
    """Be an async function."""
    return int(text)


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
    await greenback.with_portal_run(int)  # type: ignore[arg-type]
    with greenback.portals_for_tree():  # type: ignore[attr-defined]
        pass


def wrappers() -> None:
    """Wrong things to wrap."""
    greenback.async_iter([1, 2])  # type: ignore[arg-type]
    greenback.async_context(3)  # type: ignore[arg-type]
    greenback.autoawait(len)  # type: ignore[arg-type]


def names() -> None:
    """Names that do not exist."""
    print(greenback.no_such_name)  # type: ignore[attr-defined]
