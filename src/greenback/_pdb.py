"""A :mod:`pdb` that can await.

The prompt of pdb runs inside a trace function, at any depth of the code that
is debugged. ``await_`` suspends all of that together.

Whatever is evaluated at the prompt runs with the trace function taken out:
other tasks run meanwhile, and must not be traced.
"""

from __future__ import annotations

import ast
import codeop
import contextlib
import dis
import inspect
import pdb
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import sniffio

from ._core import bestow_portal, has_portal
from ._impl import await_

T = TypeVar("T")

NO_PORTAL = (
    "greenback: no 'await' at this prompt until the task has been suspended once "
    "('await greenback.ensure_portal()' before it, or 'python -m greenback SCRIPT', "
    "makes it work at once)"
)
NO_TASK = "there is nothing to await with: no task of an event loop is running here"

COROUTINE_FLAGS = (
    inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
)

_compile_command = codeop.CommandCompiler()
_compile_command.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def enter(frame: types.FrameType, header: str | None) -> None:
    """Start to debug ``frame``."""
    task = current_task()
    thread = threading.get_ident()
    if any(prompt.place == (thread, task) for prompt in Debugger.prompts):
        # Called by what is evaluated at a prompt: not debugged, as in pdb.
        return
    debugger = Debugger.get()
    if header is not None:
        debugger.message(header)
    if task is not None and not has_portal():
        with contextlib.suppress(TypeError, RuntimeError):
            bestow_portal(task)
        debugger.message(NO_PORTAL)
    # Nothing may follow: it would be traced.
    debugger.set_trace(frame)


def current_task() -> Any:
    """Return the running task of asyncio or Trio, None if there is none."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return None
    try:
        if library == "trio":
            return sys.modules["trio"].lowlevel.current_task()
        if library == "asyncio":
            return sys.modules["asyncio"].current_task()
    except RuntimeError:
        pass
    return None


def _is_at_yield(frame: types.FrameType) -> bool:
    # 3.13 is at the next instruction then.
    opcode = frame.f_code.co_code[frame.f_lasti]
    return dis.opname[opcode] in ("YIELD_VALUE", "RESUME")


class Debugger(pdb.Pdb):
    """What :func:`greenback.set_trace` enters."""

    # All that are in their prompt, those included that await something there.
    prompts: ClassVar[list[Debugger]] = []
    # The handler of SIGINT that was in place before the first prompt.
    outer_sigint: ClassVar[Any] = None
    # From Python 3.14 on, pdb uses one debugger again and again.
    last: ClassVar[Debugger | None] = None

    @classmethod
    def get(cls) -> Debugger:
        """Return the debugger to be used next."""
        if sys.version_info < (3, 14):
            return cls()
        if cls.last is None or cls.last in cls.prompts:
            cls.last = cls(mode="inline", backend="monitoring", colorize=True)
        return cls.last

    def __init__(self, *args: Any, **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        # The thread and the task that are debugged.
        self.place: tuple[int, Any] = (0, None)
        self.interrupts: Interrupts = Interrupts()
        self.closing: GeneratorExit | None = None

    # Which frames are stopped in

    def set_trace(self, frame: types.FrameType | None = None, **kwds: Any) -> None:
        """Start to debug ``frame``, or the caller's."""
        if frame is None:
            frame = sys._getframe(1)
        self.place = (threading.get_ident(), current_task())
        # pdb.set_trace() shall go on to make a debugger of its own.
        last = getattr(pdb.Pdb, "_last_pdb_instance", None)
        try:
            super().set_trace(frame, **kwds)
        finally:
            if sys.version_info >= (3, 14):
                pdb.Pdb._last_pdb_instance = last  # type: ignore[attr-defined]

    def _is_elsewhere(self) -> bool:
        """Tell whether another task runs than the one that is debugged."""
        task = self.place[1]
        return task is not None and task is not current_task()

    def stop_here(self, frame: types.FrameType) -> bool:
        """Tell whether to stop in ``frame``, breakpoints apart."""
        return (
            super().stop_here(frame)
            and not self._is_elsewhere()
            # A way that pdb has for this, `skip`, fails at exit.
            and not str(frame.f_globals.get("__name__")).startswith("greenback.")
        )

    def disable_current_event(self) -> None:
        """Skip an event from now on; not if it may count in our task."""
        if sys.version_info >= (3, 14) and not self._is_elsewhere():
            super().disable_current_event()  # type: ignore[misc]

    def dispatch_return(self, frame: types.FrameType, arg: Any) -> Any:
        """Handle the end of a frame, or a yield."""
        result = super().dispatch_return(frame, arg)
        caller = frame.f_back
        if (
            frame is self.stopframe
            and caller is not None
            and frame.f_code.co_flags & COROUTINE_FLAGS
            and not caller.f_code.co_flags & COROUTINE_FLAGS
            and not _is_at_yield(frame)
        ):
            # Where a coroutine awaits this one, pdb stops at the StopIteration
            # there. await_ raises none.
            self.set_next(caller)
            caller.f_trace = self.trace_dispatch
        return result

    def dispatch_exception(self, frame: types.FrameType, arg: Any) -> Any:
        """Handle an exception, or the end of a coroutine that is awaited."""
        # Once stopframe is a coroutine, pdb stops at the end of any other. With
        # the greenlet engine it may be one after `continue`.
        continuing = self.stopframe is self.botframe and self.stoplineno == -1
        if continuing or self._is_elsewhere():
            return self.trace_dispatch
        return super().dispatch_exception(frame, arg)

    def sigint_handler(self, number: Any, frame: Any) -> None:
        """Stop where the program is; pdb's handler after ``continue``."""
        asyncio = sys.modules.get("asyncio")
        loop = None if asyncio is None else asyncio._get_running_loop()
        if loop is not None and not self.allow_kbdint:  # type: ignore[attr-defined]
            # There is nothing to stop at while it waits for events.
            loop.call_soon_threadsafe(int)
        super().sigint_handler(number, frame)

    # The prompt

    def bp_commands(self, frame: types.FrameType) -> Any:
        """Run the commands of a breakpoint; before 3.14 also the prompt."""
        with self._stopped():
            return super().bp_commands(frame)

    def interaction(self, frame: Any, *args: Any, **kwds: Any) -> None:
        """Show where we are and run the prompt."""
        with self._stopped():
            super().interaction(frame, *args, **kwds)

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        self.place = (threading.get_ident(), current_task())
        self.interrupts = make_interrupts(self.place[1])
        try:
            yield
        finally:
            self.interrupts.close()
        if self.closing is not None:
            closing, self.closing = self.closing, None
            raise closing

    def _cmdloop(self) -> None:
        self.prompts.append(self)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            take_sigint()
        try:
            super()._cmdloop()
        finally:
            self.prompts.remove(self)
            if in_main_thread:
                give_sigint_back()

    def onecmd(self, line: str) -> bool:
        """Execute a command, or a statement of Python.

        A statement that awaits is one, even if it begins like a command.
        """
        if not self.commands_defining and compile_async(line, "single") is not None:
            self.lastcmd = line
            self.default(line)
            return False
        return super().onecmd(line)

    def postcmd(self, stop: bool, line: str) -> bool:
        """End the prompt if its task is being closed."""
        return stop or self.closing is not None

    def default(self, line: str) -> None:
        """Execute a statement; it may await, and have several lines."""
        if line[:1] == "!":
            line = line[1:].strip()
        source = self._read_statement(line)
        if source is None:
            return
        code = compile_async(source, "single")
        if code is None:
            self._evaluate(super().default, source)
            return
        try:
            with self._as_displayhook():
                self._evaluate_async(code, self.curframe)
        except BaseException:
            self._error_exc()

    def _read_statement(self, line: str) -> str | None:
        """Read the rest of a statement; None if it is broken off."""
        source = line
        try:
            if _compile_command(source + "\n", "<stdin>", "single") is not None:
                return source
            with getattr(self, "_enable_multiline_input", contextlib.nullcontext)():
                while _compile_command(source, "<stdin>", "single") is None:
                    more = self._read_line("...   ")
                    source += "\n" if more.isspace() else "\n" + more
        except (EOFError, KeyboardInterrupt):
            self.lastcmd = ""
            self.message("")
            return None
        except (OverflowError, SyntaxError, ValueError):
            return source  # pdb tells
        self.lastcmd = source
        return source

    def _read_line(self, prompt: str) -> str:
        if self.use_rawinput:
            return input(prompt)
        self.stdout.write(prompt)
        self.stdout.flush()
        line = self.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    @contextlib.contextmanager
    def _as_displayhook(self) -> Iterator[None]:
        """Show values of expressions as pdb does, in our task only."""
        outer = sys.displayhook

        def displayhook(value: object) -> None:
            (outer if self._is_elsewhere() else self.displayhook)(value)

        sys.displayhook = displayhook
        try:
            yield
        finally:
            if sys.displayhook is displayhook:
                sys.displayhook = outer

    # Evaluation

    def _getval(self, arg: str) -> Any:
        code = compile_async(arg, "eval")
        if code is None:
            return self._evaluate(super()._getval, arg)
        try:
            return self._evaluate_async(code, self.curframe)
        except BaseException:
            self._error_exc()
            raise

    def _getval_except(self, arg: str, frame: Any = None) -> Any:
        code = compile_async(arg, "eval")
        if code is None:
            return self._evaluate(super()._getval_except, arg, frame)
        try:
            return self._evaluate_async(code, frame or self.curframe)
        except BaseException as error:
            lines = traceback.format_exception_only(error)
            return Shown(f"** raised {lines[-1].strip()} **")

    def do_display(self, arg: str) -> Any:
        """Show the value of an expression each time it has changed."""
        if compile_async(arg, "eval") is None:
            return super().do_display(arg)
        value = self._getval_except(arg)
        displaying: dict[Any, dict[str, Any]] = self.displaying  # type: ignore[attr-defined]
        displaying.setdefault(self.curframe, {})[arg] = value
        self.message(f"display {arg}: {value!r}")
        return None

    do_display.__doc__ = pdb.Pdb.do_display.__doc__

    def do_interact(self, arg: str) -> Any:
        """Start an interactive interpreter with the names of the frame."""
        return self._evaluate(super().do_interact, arg)

    do_interact.__doc__ = pdb.Pdb.do_interact.__doc__

    def _evaluate_async(self, code: types.CodeType, frame: Any) -> Any:
        if not has_portal():
            raise RuntimeError(NO_TASK if current_task() is None else NO_PORTAL)
        with names_for(code, frame, self._locals_of(frame)) as (global_names, names):
            return self._evaluate(await_, eval(code, global_names, names))

    def _locals_of(self, frame: Any) -> Any:
        if sys.version_info < (3, 13) and frame is self.curframe:
            # f_locals would read the frame anew, and drop what was assigned.
            return self.curframe_locals
        return frame.f_locals

    def _evaluate(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function`` as if no trace function were running."""
        resume = self._suspend_tracing()
        try:
            with self.interrupts.allowed():
                return sys.call_tracing(function, args)
        finally:
            resume()

    def _error_exc(self) -> None:
        """Show the error that was just caught."""
        error = sys.exception()
        if isinstance(error, GeneratorExit):
            self.closing = error
        elif error is not None and self.interrupts.have_caused(error):
            self.error("KeyboardInterrupt")
            return
        super()._error_exc()  # type: ignore[misc]

    def _suspend_tracing(self) -> Callable[[], object]:
        monitor = getattr(self, "monitoring_tracer", None)
        if monitor is None:
            trace = sys.gettrace()
            sys.settrace(None)
            return lambda: sys.settrace(trace)
        if not monitor._enabled:
            return lambda: None
        self.stop_trace()  # type: ignore[attr-defined]
        return self.start_trace  # type: ignore[attr-defined,no-any-return]


class Shown(str):
    """A string that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


# Code and names


def compile_async(source: str, mode: str) -> types.CodeType | None:
    """Compile ``source`` if it awaits at its top level; None if not."""
    if "await" not in source and "async" not in source:
        return None
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        code = compile(source.strip() + "\n", "<stdin>", mode, flags, True)
    except (OverflowError, SyntaxError, ValueError):
        return None
    assert isinstance(code, types.CodeType)
    return code if code.co_flags & inspect.CO_COROUTINE else None


class Globals(dict[str, Any]):
    """What code sees as globals: the local names of a frame, then the global."""

    def __init__(self, frame: types.FrameType, names: Any) -> None:
        super().__init__(__builtins__=frame.f_builtins)
        self.frame_names = names
        self.frame_globals = frame.f_globals

    def __missing__(self, name: str) -> Any:
        try:
            return self.frame_names[name]
        except KeyError:
            return self.frame_globals[name]


class Locals:
    """The local names to go with ``Globals``."""

    def __init__(self, global_names: Globals) -> None:
        self.global_names = global_names

    def __getitem__(self, name: str) -> Any:
        return self.global_names[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.global_names.frame_names[name] = value

    def __delitem__(self, name: str) -> None:
        del self.global_names.frame_names[name]


@contextlib.contextmanager
def names_for(
    code: types.CodeType, frame: types.FrameType, names: Any
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Give the globals and the locals with which to run ``code`` in ``frame``.

    Code inside of it (a lambda, a generator expression) looks names up as
    globals: the frame's local names must be among them.
    """
    if not any(isinstance(value, types.CodeType) for value in code.co_consts):
        yield frame.f_globals, names
        return
    global_names = Globals(frame, names)
    try:
        yield global_names, Locals(global_names)
    finally:
        # What a `global` statement made global.
        del global_names["__builtins__"]
        frame.f_globals.update(global_names)
        global_names["__builtins__"] = frame.f_builtins


# Ctrl-C


def take_sigint() -> None:
    """Have Ctrl-C interrupt prompts and what they evaluate."""
    handler = signal.getsignal(signal.SIGINT)
    # Left alone if it is ignored, or not Python's.
    if callable(handler) and handler is not on_sigint:
        Debugger.outer_sigint = handler
        signal.signal(signal.SIGINT, on_sigint)


def give_sigint_back() -> None:
    """Undo ``take_sigint`` after the last prompt."""
    if Debugger.outer_sigint is None:
        return
    if Debugger.prompts:
        signal.signal(signal.SIGINT, on_sigint)
        return
    outer, Debugger.outer_sigint = Debugger.outer_sigint, None
    if signal.getsignal(signal.SIGINT) is on_sigint:
        signal.signal(signal.SIGINT, outer)
    elif pdb.Pdb._previous_sigint_handler is on_sigint:  # type: ignore[attr-defined]
        # The command `continue` put pdb's own handler in place.
        pdb.Pdb._previous_sigint_handler = outer  # type: ignore[attr-defined]


def on_sigint(number: int, frame: types.FrameType | None) -> None:
    """Interrupt the prompt, what it runs, or what it awaits."""
    caller = frame
    while caller is not None:
        if caller.f_code is Debugger._cmdloop.__code__:
            raise KeyboardInterrupt
        caller = caller.f_back
    for prompt in reversed(Debugger.prompts):
        if prompt.interrupts.interrupt():
            return
    raise KeyboardInterrupt


class Interrupts:
    """How to interrupt an ``await_`` that waits; this one can't."""

    def interrupt(self) -> bool:
        """Have the running evaluation end; False if that can't be done."""
        return False

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow ``interrupt`` in the block."""
        yield

    def have_caused(self, error: BaseException) -> bool:
        """Tell whether the error is what ``interrupt`` raised."""
        return False

    def close(self) -> None:
        """Tidy up at the end of a prompt."""


class AsyncioInterrupts(Interrupts):
    """Interrupts an asyncio task, by a cancellation that is taken back."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.active = False
        self.count = 0
        self.cancelled_before = 0
        self.cancelled_by_others = False

    def interrupt(self) -> bool:
        """Cancel what the task awaits."""
        if not self.active:
            return False
        self.count += 1
        self.task.cancel()
        # Wakes a loop that waits for events.
        self.task.get_loop().call_soon_threadsafe(int)
        return True

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow ``interrupt`` in the block."""
        self.active, self.count = True, 0
        self.cancelled_before = self.task.cancelling()
        try:
            yield
        finally:
            self.active = False
            for _ in range(self.count):
                self.task.uncancel()

    def have_caused(self, error: BaseException) -> bool:
        """Tell whether the error is our cancellation; remember another's."""
        if not isinstance(error, sys.modules["asyncio"].CancelledError):
            return False
        if self.count:
            return True
        # The prompt ends this error: it has to come again.
        self.cancelled_by_others |= self.task.cancelling() > self.cancelled_before
        return False

    def close(self) -> None:
        """Pass on a cancellation that an evaluation has used up."""
        if self.cancelled_by_others:
            self.cancelled_by_others = False
            self.task.uncancel()
            self.task.cancel()


class TrioInterrupts(Interrupts):
    """Interrupts a Trio task, by a cancel scope around the whole prompt."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.trio = sys.modules["trio"]
        self.token = self.trio.lowlevel.current_trio_token()
        self.scope: Any = None
        self.status: Any = None
        self.active = False

    def interrupt(self) -> bool:
        """Cancel what the task awaits."""
        if not self.active:
            return False
        self.token.run_sync_soon(self.scope.cancel)
        return True

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow ``interrupt`` in the block."""
        if self.scope is None:
            self.scope = self.trio.CancelScope()
            self.scope.__enter__()
            self.status = self._current_status()
        self.active = True
        try:
            yield
        except BaseException as error:
            if self.scope.cancel_called and self._exit_scope(error):
                raise KeyboardInterrupt from None
            raise
        finally:
            self.active = False
            if self.scope is not None and self.scope.cancel_called:
                self._exit_scope(None)

    def have_caused(self, error: BaseException) -> bool:
        """Tell whether the error is our cancellation."""
        return (
            isinstance(error, self.trio.Cancelled)
            and self.active
            and self.scope.cancel_called
        )

    def close(self) -> None:
        """Leave the scope."""
        if self.scope is not None:
            self._exit_scope(None)

    def _current_status(self) -> Any:
        return getattr(self.task, "_cancel_status", None)

    def _exit_scope(self, error: BaseException | None) -> bool:
        """Leave the scope if that is possible; tell whether to drop the error."""
        # A scope that was opened at the prompt and not closed is inside of it.
        if self._current_status() is not self.status:
            return False
        scope, self.scope = self.scope, None
        traceback = None if error is None else error.__traceback__
        return bool(scope.__exit__(type(error), error, traceback))


def make_interrupts(task: Any) -> Interrupts:
    """Return what can interrupt the task."""
    if task is None:
        return Interrupts()
    if type(task).__module__.partition(".")[0] == "trio":
        return TrioInterrupts(task)
    return AsyncioInterrupts(task)
