from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload, type_check_only

from ._core import async_generator as async_generator

P = ParamSpec("P")
T = TypeVar("T")
_P = ParamSpec("_P")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

def autoawait(fn: Callable[P, Awaitable[T]]) -> Callable[P, T]: ...

@type_check_only
class _Keeping(Protocol):
    """A decorator that gives back what it takes."""

    def __call__(self, fn: _F, /) -> _F: ...

@type_check_only
class _KeepingAsync(Protocol):
    """The same for async functions."""

    def __call__(
        self, async_fn: Callable[P, Awaitable[T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...

MYPY: bool  # true for mypy, which can't tell the overloads apart by a decorator of Callable[..., Any]
if MYPY:
    def decorate_as_sync(
        decorator: Callable[[Callable[P, T]], Callable[_P, _T]],
    ) -> Callable[
        [Callable[P, Awaitable[T]]], Callable[_P, Coroutine[Any, Any, _T]]
    ]: ...

else:
    @overload
    def decorate_as_sync(decorator: _Keeping) -> _KeepingAsync: ...
    @overload
    def decorate_as_sync(
        decorator: Callable[[Callable[P, T]], Callable[_P, _T]],
    ) -> Callable[
        [Callable[P, Awaitable[T]]], Callable[_P, Coroutine[Any, Any, _T]]
    ]: ...
