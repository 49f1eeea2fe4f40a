"""``asyncio.run()`` and its relatives where a loop is running already.

They run a coroutine until it is done, which asyncio refuses to do inside a
running loop: nothing else could go on meanwhile. In a task with a portal it
can: the coroutine becomes a task of the running loop and the caller awaits it.

All knowledge of how asyncio and uvloop run coroutines is in this file.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import sys
import threading
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from . import _core
from ._impl import await_

if TYPE_CHECKING:
    import asyncio

HINT = (
    "greenback can do it in a task that has a portal (say 'await "
    "greenback.ensure_portal()' in that task first)"
)


class NestedRuns:
    """What :func:`allow_nested_run` gives: undoes it, once.

    As a context manager it does so when the block ends.
    """

    def __init__(self) -> None:
        self._undone = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' undone' if self._undone else ''}>"

    def __enter__(self) -> None:
        """Do nothing: nested runs are allowed already."""

    def __exit__(self, *exc: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Withdraw the permission; a second call does nothing.

        Nested runs that are under way come to their end. asyncio gets its own
        functions back when every permission has been withdrawn.
        """
        global _permissions
        with _lock:
            if self._undone:
                return
            self._undone = True
            _permissions -= 1
            if _permissions == 0:
                _remove_patches()


def allow_nested_run() -> NestedRuns:
    """Let ``asyncio.run()`` work inside a running loop, in tasks with a portal.

    It is the same for ``asyncio.Runner``, ``loop.run_until_complete()`` and
    ``uvloop.run()``, on every loop. Called by sync code in a task with a portal,
    they run the coroutine in a new task of the running loop, which has a portal
    too, and the caller awaits that task; other tasks go on meanwhile. Elsewhere
    they do what they always do.

    - If the caller is cancelled, the new task is cancelled and awaited.
    - ``debug`` is in force on the running loop while the coroutine runs;
      ``loop_factory`` is not used.
    - When ``asyncio.run()`` ends or a Runner is closed, tasks that were started
      by what they ran are cancelled and awaited. No other task is, and the
      loop is not closed; nor are its executor and asynchronous generators.
    - ``run_until_complete()`` of a loop that is not running runs a coroutine on
      the running loop. A future of another loop than the running one is refused.

    The functions of asyncio are replaced for the whole process. A name that
    some module got by ``from asyncio import run`` before stays what it is.

    Returns
    -------
    context manager
        Undoes the call when its block ends, or when its method ``undo()`` is
        called. If neither is used, the effect lasts.
    """
    global _permissions
    _import_asyncio()
    with _lock:
        _permissions += 1
        if _permissions == 1:
            _put_patches()
    return NestedRuns()


def _import_asyncio() -> None:
    """Not at the top: greenback is also used without asyncio."""
    global asyncio
    import asyncio
    import asyncio.runners


# ------------------------------------------------------------------ nested runs


class _Escaped:
    """What must not leave a task as an exception, as it would end the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


# What the current task has been started by, directly or indirectly: what stands
# for one asyncio.run(), or the side of a Runner.
_owner: contextvars.ContextVar[object] = contextvars.ContextVar("greenback_nested_run")


async def _contain(coroutine: Coroutine[Any, Any, Any], owner: object) -> Any:
    """What the new task runs."""
    token = None if owner is None else _owner.set(owner)
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        return _Escaped(error)
    finally:
        if token is not None:
            # A task that is thrown away ends in another context.
            with contextlib.suppress(ValueError):
                _owner.reset(token)


# With a portal from the first step on.
_contained: Any = _core.make_with_portal(_contain)


@types.coroutine
def _let_others_run() -> Iterator[None]:
    yield


# Tasks that have been cancelled but not waited for. Once is enough: a second time
# would disturb their clean-up.
_abandoned: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def _run_in_task(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    owner: object = None,
    context: contextvars.Context | None = None,
) -> Any:
    """Run the coroutine in a new task and await that."""
    contained = _contained(coroutine, owner)
    named: Any = coroutine
    try:
        contained.__name__ = named.__name__
        contained.__qualname__ = named.__qualname__
    except AttributeError:  # a coroutine of a type that has none
        contained.__name__ = contained.__qualname__ = ""
    try:
        task = _start_task(loop, contained, context)
    except BaseException:
        contained.close()
        coroutine.close()
        raise
    try:
        if not task.done():
            # A task that is done by then need not wake us, which would take one
            # more turn of the loop.
            try:
                await_(_let_others_run())
            except asyncio.CancelledError as error:
                if not task.cancel(*error.args[:1]):  # done
                    raise
        result = task.result() if task.done() else await_(task)
        if type(result) is _Escaped:
            raise result.error
        return result
    finally:
        if task.done():
            coroutine.close()  # it may have been cancelled before it started
        else:
            # The wait was refused, or the caller is being thrown away.
            task.add_done_callback(lambda task: coroutine.close())
            if not loop.is_closed():
                task.cancel()
                _abandoned.add(task)
        # The exception knows this frame.
        del task, contained
        result = None


# How many tasks of a loop are doing their first step inside one another.
_first_steps: dict[asyncio.AbstractEventLoop, int] = {}
_MAX_FIRST_STEPS = 10  # each takes some of the stack


def _start_task(
    loop: Any, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None
) -> asyncio.Task[Any]:
    """Make the task, and let it do its first step at once where that can be done.

    So does a call outside of a loop, and it saves a turn of the loop.
    """
    if context is not None and not _is_free(context):
        # A task that starts at once could not enter it.
        return asyncio.Task(coroutine, loop=loop, context=context)
    first_steps = _first_steps.get(loop, 0)
    if (
        not _HAS_EAGER_TASKS
        or first_steps == _MAX_FIRST_STEPS
        or loop.get_task_factory() is not None
        # Another class's, or one that was put in its place.
        or type(loop).create_task is not asyncio.BaseEventLoop.create_task
        or "create_task" in loop.__dict__
    ):
        kwds: Any = {} if context is None else {"context": context}
        task: asyncio.Task[Any] = loop.create_task(coroutine, **kwds)
        return task
    _first_steps[loop] = first_steps + 1
    make_task: Any = asyncio.Task
    try:
        task = make_task(coroutine, loop=loop, context=context, eager_start=True)
    finally:
        if first_steps:
            _first_steps[loop] = first_steps
        else:
            del _first_steps[loop]
    return task


# 3.12.0 and 3.12.1 crash if the coroutine of one that has ended is asked for.
_HAS_EAGER_TASKS = sys.version_info >= (3, 12, 2)


def _is_free(context: contextvars.Context) -> bool:
    """Whether the context can be entered. It may be that of the current step."""
    try:
        context.run(_do_nothing)
    except RuntimeError:
        return False
    return True


def _do_nothing() -> None:
    pass


def _as_coroutine(
    awaitable: Awaitable[Any], *, any_awaitable: bool
) -> Coroutine[Any, Any, Any]:
    if type(awaitable) is types.CoroutineType or asyncio.iscoroutine(awaitable):
        return awaitable
    if not any_awaitable:
        raise ValueError(f"this must be a coroutine: {awaitable!r}")
    import inspect  # asyncio has done so; greenback needs it for nothing else

    if not inspect.isawaitable(awaitable):
        raise TypeError(f"this must be a coroutine or an awaitable: {awaitable!r}")

    async def wrap() -> Any:
        return await awaitable

    return wrap()


def _context_of(task: Any) -> contextvars.Context | None:
    get_context = getattr(task, "get_context", None)
    if get_context is not None:
        context: contextvars.Context = get_context()
        return context
    # Tasks of 3.11 don't tell, but show it to the garbage collector.
    candidates = [getattr(task, "_context", None), *gc.get_referents(task)]
    return next((c for c in candidates if isinstance(c, contextvars.Context)), None)


def _leftovers(loop: asyncio.AbstractEventLoop, owner: object) -> list[Any]:
    """The tasks not done yet that were started by what the owner has run."""
    current = asyncio.current_task() if _running_loop() is loop else None
    found = []
    for task in asyncio.all_tasks(loop):
        context = _context_of(task)
        if context is not None and context.get(_owner) is owner and task is not current:
            found.append(task)
    return found


def _end_leftovers(loop: asyncio.AbstractEventLoop, owner: object) -> None:
    """Cancel them; wait for them and report what went wrong, if that can be done."""
    tasks = [] if loop.is_closed() else _leftovers(loop, owner)
    if not tasks:
        return
    for task in tasks:
        if task not in _abandoned:
            loop.call_soon_threadsafe(task.cancel)
    thrown_away = isinstance(sys.exception(), GeneratorExit)
    if loop is not _running_loop() or thrown_away or not _can_wait():
        return
    await_(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception in a task that was left over "
                    "by a nested asyncio.run()",
                    "exception": task.exception(),
                    "task": task,
                }
            )


# For each loop its own setting, and after that those of the runs under way.
_debug_settings: dict[asyncio.AbstractEventLoop, list[list[bool]]] = {}


@contextlib.contextmanager
def _debug_mode(loop: asyncio.AbstractEventLoop, debug: bool | None) -> Iterator[None]:
    """Set the loop's debug mode for a while. The last of several wins."""
    if debug is None:
        yield
        return
    settings = _debug_settings.setdefault(loop, [[loop.get_debug()]])
    mine = [debug]  # known by its identity
    settings.append(mine)
    loop.set_debug(debug)
    try:
        yield
    finally:
        settings[:] = [setting for setting in settings if setting is not mine]
        loop.set_debug(settings[-1][0])
        if len(settings) == 1:
            del _debug_settings[loop]


# ----------------------------------------------- what asyncio's functions become
#
# Each has the original, the running loop, and what the original was called with.

_ANY_AWAITABLE = sys.version_info >= (3, 14)  # what run() takes


class _Owner:
    """Stands for one asyncio.run(). Lives as long as a context knows it."""


def _run(
    original: Callable[..., Any],
    loop: asyncio.AbstractEventLoop,
    main: Awaitable[Any],
    *,
    debug: bool | None = None,
    loop_factory: object = None,
) -> Any:
    coroutine = _as_coroutine(main, any_awaitable=_ANY_AWAITABLE)
    owner = _Owner()
    owner_ref = weakref.ref(owner)
    with _debug_mode(loop, debug):
        try:
            return _run_in_task(loop, coroutine, owner)
        finally:
            # To look at all tasks of the loop is worth avoiding.
            del owner
            if (alive := owner_ref()) is not None:
                _end_leftovers(loop, alive)


def _run_until_complete(
    original: Callable[..., Any],
    running: asyncio.AbstractEventLoop,
    loop: asyncio.AbstractEventLoop,
    future: Awaitable[Any],
) -> Any:
    if loop is not running and (loop.is_closed() or loop.is_running()):
        return original(loop, future)
    if type(future) is types.CoroutineType:  # what follows would do it, too
        return _run_in_task(running, future)
    if not asyncio.isfuture(future):
        return _run_in_task(running, _as_coroutine(future, any_awaitable=True))
    if future.get_loop() is running:
        return await_(future)
    return _refused(
        "its future belongs to a loop that can't go on meanwhile; let the running "
        "loop make it",
        original,
        loop,
        future,
    )


class _NestedSide:
    """What a Runner does inside running loops."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> None:
        self.loop = loop
        self.context = context
        self.runs = 0  # under way


_nested_sides: weakref.WeakKeyDictionary[asyncio.Runner, _NestedSide] = (
    weakref.WeakKeyDictionary()
)


def _nested_side(runner: Any, loop: asyncio.AbstractEventLoop) -> _NestedSide:
    side = _nested_sides.get(runner)
    if side is not None and side.loop is loop:
        return side
    if runner._state is asyncio.runners._State.CLOSED:  # type: ignore[attr-defined]
        raise RuntimeError("Runner is closed")
    context = side.context if side is not None else runner._context
    if context is None:
        context = contextvars.copy_context()
    side = _nested_sides[runner] = _NestedSide(loop, context)
    return side


def _has_own_loop(runner: Any) -> bool:
    return runner._loop is not None


def _runner_enter(
    original: Callable[..., Any], loop: asyncio.AbstractEventLoop, runner: Any
) -> Any:
    if _has_own_loop(runner):
        return original(runner)
    _nested_side(runner, loop)
    return runner


def _runner_get_loop(
    original: Callable[..., Any], loop: asyncio.AbstractEventLoop, runner: Any
) -> Any:
    if _has_own_loop(runner):
        return original(runner)
    return _nested_side(runner, loop).loop


def _runner_run(
    original: Callable[..., Any],
    loop: asyncio.AbstractEventLoop,
    runner: Any,
    coro: Awaitable[Any],
    *,
    context: contextvars.Context | None = None,
) -> Any:
    coroutine = _as_coroutine(coro, any_awaitable=_ANY_AWAITABLE)
    side = _nested_side(runner, loop)
    if context is None:
        context = side.context
    side.runs += 1
    try:
        with _debug_mode(loop, runner._debug):
            return _run_in_task(loop, coroutine, side, context)
    finally:
        side.runs -= 1


def _runner_close(original: Callable[..., Any], runner: Any) -> None:
    """Needs no portal if no tasks are left."""
    side = _nested_sides.get(runner)
    if side is None:
        original(runner)
        return
    if side.runs:
        raise RuntimeError("a Runner can't be closed while it runs something")
    del _nested_sides[runner]
    try:
        _end_leftovers(side.loop, side)
    finally:
        original(runner)
        runner._state = asyncio.runners._State.CLOSED  # type: ignore[attr-defined]


# ------------------------------------------------------------------- which one?


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()


def _can_wait() -> bool:
    """Whether a task of the running loop can be awaited here."""
    return _core.has_portal() and ("trio" not in sys.modules or _is_in_asyncio())


def _is_in_asyncio() -> bool:
    try:
        library, _ = _core.current_task()
    except Exception:  # a portal of something that is no task
        return False
    return library == "asyncio"  # not Trio inside of it


def _natively(
    original: Callable[..., Any],
    loop: asyncio.AbstractEventLoop | None,
    *args: Any,
    **kwds: Any,
) -> Any:
    if _permissions and not _uvloop_is_patched:
        _patch_uvloop()
    if loop is None:
        return original(*args, **kwds)
    return _refused(HINT, original, *args, **kwds)


def _refused(reason: str, original: Callable[..., Any], *args: Any, **kwds: Any) -> Any:
    """Let asyncio itself refuse, and add the reason to what it says."""
    try:
        return original(*args, **kwds)
    except RuntimeError as error:
        message = str(error)
        if "running" in message and reason not in message:
            error.args = (f"{message.rstrip('.')}; {reason}",)
        raise


def _replacement_of_run(
    original: Callable[..., Any], nested: Callable[..., Any]
) -> Callable[..., Any]:
    """Make the function that calls one or the other."""

    @functools.wraps(original)
    def run(*args: Any, **kwds: Any) -> Any:
        loop = asyncio._get_running_loop() if _permissions else None
        if loop is not None and _can_wait():
            return nested(original, loop, *args, **kwds)
        return _natively(original, loop, *args, **kwds)

    _originals[run] = original
    return run


def _replacement_of_run_until_complete(
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """The same, but faster."""

    @functools.wraps(original)
    def run_until_complete(self: Any, future: Any) -> Any:
        loop = asyncio._get_running_loop() if _permissions else None
        if loop is not None and _can_wait():
            return _run_until_complete(original, loop, self, future)
        return _natively(original, loop, self, future)

    _originals[run_until_complete] = original
    return run_until_complete


def _replacement_of_get_loop(
    original: Callable[..., Any], nested: Callable[..., Any]
) -> Callable[..., Any]:
    """For what asyncio never refuses: Runner.get_loop() and Runner.__enter__()."""

    @functools.wraps(original)
    def get_loop(self: Any) -> Any:
        loop = asyncio._get_running_loop() if _permissions else None
        if loop is not None and _can_wait():
            return nested(original, loop, self)
        return original(self)

    _originals[get_loop] = original
    return get_loop


def _replacement_of_close(
    original: Callable[..., Any], nested: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: Any) -> None:
        nested(original, self)

    _originals[close] = original
    return close


# ---------------------------------------------------------------------- patches

_lock = threading.RLock()
_permissions = 0

# Of all replacements that are alive.
_originals: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = (
    weakref.WeakKeyDictionary()
)


def _value(owner: Any, name: str) -> Any:
    """What the name stands for. Replacements that others have put back don't count."""
    value = vars(owner).get(name)
    while isinstance(value, types.FunctionType) and value in _originals:
        value = _originals[value]
    return value


class _Patch:
    """A name in a module or a class that stands for something else for a while."""

    def __init__(self, owner: Any, name: str, replacement: Any) -> None:
        self.owner = owner
        self.name = name
        self.is_own = name in vars(owner)
        self.original = _value(owner, name)
        self.replacement = replacement
        setattr(owner, name, replacement)

    def undo(self) -> None:
        """Put the original back, unless someone else has replaced ours."""
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self.is_own:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)


_patches: list[_Patch] = []
_uvloop_is_patched = False


def _patch(owner: Any, name: str, replacement: Any) -> None:
    _patches.append(_Patch(owner, name, replacement))


def _put_patches() -> None:
    replacements: dict[Any, Any] = {}  # the same function stays the same
    for module in (asyncio, asyncio.runners):
        run = _value(module, "run")
        if run not in replacements:
            replacements[run] = _replacement_of_run(run, _run)
        _patch(module, "run", replacements[run])
    for name, nested, replace in (
        ("run", _runner_run, _replacement_of_run),
        ("__enter__", _runner_enter, _replacement_of_get_loop),
        ("get_loop", _runner_get_loop, _replacement_of_get_loop),
        ("close", _runner_close, _replacement_of_close),
    ):
        replacement = replace(_value(asyncio.Runner, name), nested)
        _patch(asyncio.Runner, name, replacement)
    _patch_loop_classes(asyncio.AbstractEventLoop)
    _patch_uvloop()


def _remove_patches() -> None:
    global _uvloop_is_patched
    while _patches:
        _patches.pop().undo()
    _uvloop_is_patched = False


def _patch_loop_classes(base: type[Any]) -> None:
    """Patch all loop classes that there are, and see to those to come."""
    original = vars(base).get("__init_subclass__")

    def __init_subclass__(cls: type[Any], /, **kwds: Any) -> None:
        if original is not None:
            original.__get__(None, cls)(**kwds)
        else:
            super(base, cls).__init_subclass__(**kwds)
        with _lock:
            if _permissions:
                _patch_loop_class(cls, base)

    _patch(base, "__init_subclass__", classmethod(__init_subclass__))
    seen = set()
    classes = base.__subclasses__()
    while classes:
        cls = classes.pop()
        if cls not in seen:
            seen.add(cls)
            classes += cls.__subclasses__()
            _patch_loop_class(cls, base)


def _patch_loop_class(cls: type[Any], base: type[Any]) -> None:
    """Patch run_until_complete() where it is defined.

    If that is in a class that is no event loop itself, it is overridden:
    uvloop's is written in C, in the base of a class in Python.
    """
    name = "run_until_complete"
    definer = next(c for c in cls.__mro__ if name in vars(c))
    if definer is cls or not issubclass(definer, base):
        replacement = _replacement_of_run_until_complete(_value(definer, name))
        with contextlib.suppress(TypeError):  # an immutable type
            _patch(cls, name, replacement)


def _patch_uvloop() -> None:
    """uvloop.run() looks for a running loop, or at its kind, by itself."""
    global _uvloop_is_patched
    module = sys.modules.get("uvloop")
    if module is None or "run" not in vars(module):  # the latter while it is imported
        return
    with _lock:
        if _permissions and not _uvloop_is_patched:
            replacement = _replacement_of_run(_value(module, "run"), _run)
            _patch(module, "run", replacement)
            _uvloop_is_patched = True
