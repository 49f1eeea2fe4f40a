"""The IPython extension: ``%load_ext greenback``.

Each cell becomes a task of its own with a portal, so that synchronous code in
it can call :func:`await_`. In a kernel that is a task of the kernel's loop; in
the terminal, of the loop on which IPython runs cells that contain ``await``.

What is replaced, on the shell and the kernel objects alone:

``shell.run_cell``
    In the terminal: starts the cell's task and runs the loop until it ends.
``kernel.do_execute``
    In ipykernel: starts the cell's task and waits for it.
``shell.should_run_async``, ``shell.run_cell_async``
    Inside a portal, a cell needs no loop runner, even if it contains
    ``await``: IPython drives it as it drives plain code, and the waiting is
    done by ``await_``. A cell that another loop runner runs, or another front
    end, gets its portal here.
``kernel.shell_handlers["comm_msg"]`` and the like
    Callbacks of widgets get a portal, too.

IPython need not be installed where types are checked, so its objects are ``Any``
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import importlib
import inspect
import signal
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import sniffio

from ._core import has_portal
from ._engine import engine
from ._impl import await_, with_portal_run, with_portal_run_sync

USAGE = "use %greenback nested, %greenback nested off or %greenback status"

# Used in each step of a cell, so without what they do for enums.
SIGINT = int(signal.SIGINT)
get_handler = inspect.unwrap(signal.getsignal)
set_handler = inspect.unwrap(signal.signal)

KEY = "_greenback_extension"  # where a shell keeps what is done to it


def load(ipython: Any) -> None:
    """Do what ``%load_ext greenback`` asks for."""
    check_shell(ipython)
    if KEY not in vars(ipython):
        vars(ipython)[KEY] = Extension(ipython)


def unload(ipython: Any) -> None:
    """Undo what :func:`load` did."""
    check_shell(ipython)
    extension = vars(ipython).pop(KEY, None)
    if extension is not None:
        extension.unload()


def check_shell(ipython: Any) -> None:
    # Who has a shell has imported this.
    shell_module = sys.modules.get("IPython.core.interactiveshell")
    if shell_module is None or not isinstance(ipython, shell_module.InteractiveShell):
        raise TypeError(
            "greenback's IPython extension needs an IPython shell, not "
            f"{type(ipython).__name__!r}: use %load_ext greenback in IPython or Jupyter"
        )


def ipython_module(name: str) -> Any:
    # The statement would be an error for mypy where IPython is not installed.
    return importlib.import_module(f"IPython.core.{name}")


class Extension:
    """What is done to one shell, and how to undo it."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.active = True
        self.thread = threading.current_thread()
        self.nested: Any = None  # what allow_nested_run() gave
        self.contexts = CellContext()
        self.undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.replace_all(shell, undo)
            self.undo = undo.pop_all()

    def replace_all(self, shell: Any, undo: contextlib.ExitStack) -> None:
        undo.callback(setattr, self, "active", False)
        undo.enter_context(replaced(shell, "run_cell", self.make_run_cell))
        undo.enter_context(replaced(shell, "run_cell_async", self.make_run_cell_async))
        undo.enter_context(
            replaced(shell, "should_run_async", self.make_should_run_async)
        )
        kernel = getattr(shell, "kernel", None)
        if hasattr(kernel, "do_execute"):
            undo.enter_context(replaced(kernel, "do_execute", self.make_do_execute))
        handlers = getattr(kernel, "shell_handlers", {})
        for name in ("comm_open", "comm_msg", "comm_close"):
            if name in handlers:
                undo.enter_context(replaced_item(handlers, name, self.make_handler))
        shell.register_magic_function(self.magic, "line", "greenback")
        undo.callback(shell.magics_manager.magics["line"].pop, "greenback", None)

    def unload(self) -> None:
        with self.undo:
            self.set_nested(False)

    def uses_asyncio(self) -> bool:
        """Tell whether cells are to run on asyncio."""
        runners = self.shell.loop_runner_map
        return self.shell.trio_runner is None and self.shell.loop_runner in (
            runners["asyncio"][0],
            runners["sync"][0],
        )

    def in_own_thread(self) -> bool:
        """Tell whether the terminal's loop may be run here."""
        return threading.current_thread() is self.thread

    def make_run_cell(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run_cell(*args: Any, **kwds: Any) -> Any:
            if self.active and not self.uses_asyncio():
                return self.contexts.brought_back(original, *args, **kwds)
            if not self.active or loop_is_running() or not self.in_own_thread():
                return original(*args, **kwds)
            # The loop that IPython itself uses for a cell that contains `await`.
            loop = ipython_module("async_helpers").get_asyncio_loop()
            with self.contexts.shared() as context:
                return loop.run_until_complete(
                    run_in_task(context, with_portal_run_sync(original, *args, **kwds))
                )

        return run_cell

    def make_do_execute(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwds: Any) -> Any:
            reply = original(*args, **kwds)
            return await reply if inspect.isawaitable(reply) else reply

        @functools.wraps(original)
        async def do_execute(*args: Any, **kwds: Any) -> Any:
            if not self.active or has_portal() or not self.uses_asyncio():
                return await call(*args, **kwds)
            with self.contexts.shared() as context:
                return await run_in_task(context, with_portal_run(call, *args, **kwds))

        return do_execute

    def make_should_run_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def should_run_async(*args: Any, **kwds: Any) -> Any:
            if self.active and has_portal():
                return False
            if self.active and not self.uses_asyncio():
                return True  # the runner is needed to wait, with `await` or without
            return original(*args, **kwds)

        return should_run_async

    def make_run_cell_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def run_cell_async(*args: Any, **kwds: Any) -> Any:
            if not self.active:
                return await original(*args, **kwds)
            if has_portal():  # nobody may be there to drive this: see above
                return await_(original(*args, **kwds))
            try:
                return await with_portal_run(original, *args, **kwds)
            finally:
                self.contexts.left = contextvars.copy_context()

        return run_cell_async

    def make_handler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def handler(*args: Any, **kwds: Any) -> Any:
            if self.active:
                interrupts = Interrupts()
                with interrupts.taken():
                    reply = await interrupts.drive(
                        with_portal_run_sync(original, *args, **kwds)
                    )
            else:
                reply = original(*args, **kwds)
            return await reply if inspect.isawaitable(reply) else reply

        return handler

    def magic(self, line: str) -> None:
        """Show or change what greenback does in this IPython.

        %greenback nested
            Let asyncio.run() and the like work in cells.
        %greenback nested off
            Undo that.
        %greenback status
            Tell what is on.
        """
        match line.split():
            case ["nested"] | ["nested", "on"]:
                self.set_nested(True)
            case ["nested", "off"]:
                self.set_nested(False)
            case ["status"] | []:
                self.print_status()
            case _:
                raise ipython_module("error").UsageError(
                    f"%greenback: can't {line.strip()!r}; {USAGE}"
                )

    def set_nested(self, wanted: bool) -> None:
        import greenback

        if wanted and self.nested is None:
            self.nested = greenback.allow_nested_run()
        elif not wanted and self.nested is not None:
            nested, self.nested = self.nested, None
            nested.__exit__(None, None, None)

    def print_status(self) -> None:
        import greenback

        if has_portal():
            cells = f"works, on {name_of_running_loop()}"
        else:
            cells = "works from the next cell on"
        nested = "works" if self.nested is not None else "off; %greenback nested"
        print(f"greenback {greenback.__version__}, {engine} engine")
        print(f"await_() in cells: {cells}")
        print(f"asyncio.run() in cells: {nested}")


def name_of_running_loop() -> str:
    library = sniffio.current_async_library()
    if library != "asyncio":
        return library
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def loop_is_running() -> bool:
    """Tell whether a loop is running in this thread already."""
    with contextlib.suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    with contextlib.suppress(sniffio.AsyncLibraryNotFoundError):
        return bool(sniffio.current_async_library())
    return False


@contextlib.contextmanager
def replaced(
    owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace a method of ``owner`` alone, by what ``make`` makes of it."""
    with replaced_item(vars(owner), name, make, getattr(owner, name)):
        yield


@contextlib.contextmanager
def replaced_item(
    table: dict[str, Any],
    name: str,
    make: Callable[[Callable[..., Any]], Callable[..., Any]],
    original: Callable[..., Any] | None = None,
) -> Iterator[None]:
    missing = object()
    previous = table.get(name, missing)
    replacement = make(previous if original is None else original)
    table[name] = replacement
    try:
        yield
    finally:
        # If someone has put theirs on top, ours stays below and does nothing.
        if table.get(name) is replacement:
            if previous is missing:
                del table[name]
            else:
                table[name] = previous


class CellContext(threading.local):
    """The Context in which the cells of this thread run.

    A variable that a cell sets must still be set in the next cell, and outside,
    as it is natively, where no task is made; NumPy keeps its print options in
    one, for example. It is the same Context for all cells, since a Token can
    only be given back in the one that it is from.
    """

    context: contextvars.Context | None = None
    outside: contextvars.Context  # as we left it
    busy = False
    left: contextvars.Context | None = None  # of a cell in a task that isn't ours

    def brought_back(self, run: Callable[..., Any], *args: Any, **kwds: Any) -> Any:
        """Let a loop runner run a cell, set here what that sets."""
        try:
            return run(*args, **kwds)
        finally:
            if self.left is not None:
                adopt(self.left, contextvars.copy_context())
                self.left = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[contextvars.Context]:
        if self.busy:  # the loop is run in a cell by other means
            yield contextvars.copy_context()
            return
        outside = contextvars.copy_context()
        if self.context is None:
            self.context = outside.copy()
        else:
            self.context.run(adopt, outside, self.outside)
        self.busy = True
        try:
            yield self.context
        finally:
            self.busy = False
            adopt(self.context, contextvars.copy_context())
            self.outside = contextvars.copy_context()


def adopt(source: contextvars.Context, known: contextvars.Context) -> None:
    """Set what differs from ``known`` in ``source``."""
    missing = object()
    for variable, value in source.items():
        if known.get(variable, missing) is not value:
            variable.set(value)


async def run_in_task(
    context: contextvars.Context, coro: Coroutine[Any, Any, Any]
) -> Any:
    """Run ``coro`` in a task of its own, as one that can be interrupted.

    What the cell does to its task (``cancel()``) must not reach the kernel's.
    """
    interrupts = Interrupts()
    value: Any = None
    error: BaseException | None = RuntimeError("the cell's task was cancelled")

    async def body() -> None:
        # No exception leaves the task: KeyboardInterrupt would end the loop.
        nonlocal value, error
        try:
            value = await interrupts.drive(coro)
            error = None
        except BaseException as exc:
            error = exc

    with interrupts.taken():
        task = asyncio.get_running_loop().create_task(body(), context=context)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # if we are
    try:
        if error is not None:
            raise error
        return value
    finally:
        error = None


class CellInterrupt(asyncio.CancelledError, KeyboardInterrupt):
    """Raised where a cell waits.

    To async code on the way it is a cancellation, so that task groups and the
    like end their tasks; to the cell a KeyboardInterrupt.
    """


# What front ends show, and what they look for.
CellInterrupt.__name__ = CellInterrupt.__qualname__ = "KeyboardInterrupt"
CellInterrupt.__module__ = "builtins"


class Interrupts:
    """SIGINT (Ctrl-C, "interrupt kernel") while a cell's code waits.

    While the code runs, Python's own handler raises KeyboardInterrupt in it.
    While it waits, that would be raised in the loop and end it. So there is
    another handler then, which cancels what the code waits for and lets it be
    resumed with the exception.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waits_for: asyncio.Future[Any] | None = None
        self.pending = False
        self.handler = self.on_signal  # one object, to be known again
        # Others get no signals, and may not set handlers.
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Handle SIGINT from here on, except where the code runs."""
        self.take()
        try:
            yield
        finally:
            self.give_back()

    def take(self) -> None:
        if self.in_main_thread and get_handler(SIGINT) is signal.default_int_handler:
            set_handler(SIGINT, self.handler)

    def give_back(self) -> None:
        if self.in_main_thread and get_handler(SIGINT) is self.handler:
            set_handler(SIGINT, signal.default_int_handler)

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        self.pending = True
        with contextlib.suppress(RuntimeError):  # closed
            self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        if self.pending and self.waits_for is not None:
            self.waits_for.cancel()

    @types.coroutine
    def drive(self, coro: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await ``coro``."""
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            if self.pending:
                self.pending = False
                thrown = CellInterrupt()
            try:
                self.give_back()
                if thrown is None:
                    trap = coro.send(sent)
                else:
                    trap = coro.throw(thrown)
                self.take()
            except StopIteration as stop:
                self.take()
                return stop.value
            except BaseException as exc:
                self.take()
                if (
                    not isinstance(exc, KeyboardInterrupt)
                    or inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
                ):
                    thrown = None  # or it refers to itself
                    raise
                thrown = without_our_frame(exc)  # raised in this very function
                continue
            finally:
                sent = None
            thrown = None
            self.waits_for = trap if asyncio.isfuture(trap) else None
            try:
                sent = yield trap
            except BaseException as exc:
                thrown = without_our_frame(exc)
            finally:
                self.waits_for = None


def without_our_frame(exc: BaseException) -> BaseException:
    """Take the frame that has just caught ``exc`` out of its traceback."""
    traceback = exc.__traceback__
    return exc.with_traceback(traceback and traceback.tb_next)
