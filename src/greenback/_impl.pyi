from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar, TypeVarTuple, overload

_P = ParamSpec("_P")
_Ts = TypeVarTuple("_Ts")
T = TypeVar("T")

def await_(aw: Awaitable[T]) -> T: ...

# The first overload is for those that call the function with arguments of any
# number by position, like trio.run(): not all type checkers see that the
# second one fits there.
@overload
async def with_portal_run(
    async_fn: Callable[[*_Ts], Awaitable[T]], *args: *_Ts
) -> T: ...
@overload
async def with_portal_run(
    async_fn: Callable[_P, Awaitable[T]], *args: _P.args, **kwds: _P.kwargs
) -> T: ...
@overload
async def with_portal_run_sync(sync_fn: Callable[[*_Ts], T], *args: *_Ts) -> T: ...
@overload
async def with_portal_run_sync(
    sync_fn: Callable[_P, T], *args: _P.args, **kwds: _P.kwargs
) -> T: ...
async def ensure_portal() -> None: ...
def _greenback_shim() -> None: ...
