"""``python -m greenback`` without a program: an interactive prompt.

The console is a program like any other: it runs in a task with a portal, and
awaits the next line there, so that other tasks go on. A thread reads the
lines. Statements are executed by the main thread, where they can be
interrupted.

No signal can interrupt a read in another thread. Therefore Ctrl-C is no
signal while a line is read: readline gets it as a character, and ends the
line with it.
"""

from __future__ import annotations

import ast
import code
import contextlib
import importlib.machinery
import inspect
import linecache
import os
import queue
import signal
import sys
import threading
import tokenize
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

from greenback import __version__, _runner, await_, with_portal_run_sync

BANNER = """\
greenback {version} on {loop}, Python {python} on {platform}
Use "await" directly, and await_() in functions.
Type "help", "copyright", "credits" or "license" for more information.
{prompt}import {library}, greenback
{prompt}from greenback import await_"""


class Interpreter(_runner.Program):
    """The program that the loop runs: asks for statements and executes them."""

    # Calls what a statement does.
    execute: Callable[..., Any] = staticmethod(lambda function, *args: function(*args))

    def run(self) -> None:
        """Run the console to its end and keep what ends it."""
        try:
            self._run()
        except BaseException as error:
            self.error = error
            self.traceback = error.__traceback__

    def _run(self) -> None:
        sys.audit("cpython.run_stdin")
        self._set_arguments("", path_entry="")
        library = "trio" if self.command.loop == "trio" else "asyncio"
        names = _runner._new_main_module(importlib.machinery.BuiltinImporter)
        names[library] = sys.modules[library]
        names["greenback"] = sys.modules["greenback"]
        names["await_"] = await_
        reader = LineReader(_EVENTS[library])
        console = Console(names, reader, self.execute)
        history = History()
        try:
            console.run_startup()
            history = console.set_readline_up()
            console.interact(self._banner(library), exitmsg="")
        finally:
            reader.close()
            history.save()

    def _banner(self, library: str) -> str:
        if sys.flags.quiet:
            return ""
        return BANNER.format(
            version=__version__,
            loop=self.command.loop,
            python=sys.version,
            platform=sys.platform,
            prompt=getattr(sys, "ps1", ">>> "),
            library=library,
        )


class Console(code.InteractiveConsole):
    """Reads and executes statements, all in the task that called it."""

    def __init__(
        self, names: dict[str, Any], reader: LineReader, execute: Callable[..., Any]
    ) -> None:
        super().__init__(names, filename="<stdin>")
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.names = names
        self.reader = reader
        self.execute = execute
        self.statements = 0
        self.at_end = False
        self.failed = False

    def run_startup(self) -> None:
        """Run the file that PYTHONSTARTUP names."""
        path = "" if sys.flags.ignore_environment else os.getenv("PYTHONSTARTUP")
        if not path:
            return
        sys.audit("cpython.run_startup", path)
        try:
            with tokenize.open(path) as file:
                source = file.read()
            compiled = compile(source, path, "exec", dont_inherit=True)
        except OSError as error:
            self.write(f"Could not open PYTHONSTARTUP\n{error}\n")
        except Exception as error:
            self.show(error)
        else:
            self.runcode(compiled)

    def set_readline_up(self) -> History:
        """Have lines edited and completed; load the history."""
        hook = getattr(sys, "__interactivehook__", None)
        if hook is None or not _reads_terminal():
            return History()
        if getattr(hook, "__module__", None) != "site":
            sys.audit("cpython.run_interactivehook", hook)
            try:
                hook()
            except Exception as error:
                self.show(error)
            return History()
        try:
            import readline
            import rlcompleter
        except ImportError:
            return History()
        readline.set_completer(rlcompleter.Completer(self.names).complete)
        if _is_libedit(readline):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
        with contextlib.suppress(OSError):
            readline.read_init_file()
        return History(readline)

    # Reading

    def raw_input(self, prompt: str = "") -> str:
        """Wait for a line, while other tasks run."""
        line: str | None
        try:
            line = self.reader.read(prompt)
        except InterruptedLine:
            self.resetbuffer()
            self.write("KeyboardInterrupt\n")
            return ""
        except EOFError:
            line = None
        except Exception as error:
            if self.failed:
                raise
            # Not what was typed, or raised by a handler of signals.
            self.failed = True
            self.resetbuffer()
            self.show(error)
            return ""
        if line is None:
            return self._end_statement()
        self.at_end = self.failed = False
        return line

    def _end_statement(self) -> str:
        """Give an empty line after an unfinished statement, at the end of input."""
        if not self.buffer:
            raise EOFError
        if self.at_end:
            source = "\n".join(self.buffer)
            try:
                compile(source, self._remember(source), "exec", dont_inherit=True)
            except SyntaxError as error:
                self.show(error.with_traceback(None))
            raise EOFError
        self.at_end = True
        self.write("\n")
        return ""

    # Executing

    def runsource(
        self, source: str, filename: str = "<stdin>", symbol: str = "single"
    ) -> bool:
        """Execute a statement; True if it is not complete yet."""
        filename = self._remember(source)
        try:
            compiled = self.compile(source, filename, symbol)
        except Exception as error:
            self.show(error.with_traceback(None))
        else:
            if compiled is None:
                return True
            self.runcode(compiled)
        self.statements += 1
        return False

    def _remember(self, source: str) -> str:
        """Have tracebacks show the lines of a statement; return its filename."""
        filename = f"<python-input-{self.statements}>"
        lines = [line + "\n" for line in source.split("\n")]
        linecache.cache[filename] = (len(source), None, lines, filename)
        return filename

    def runcode(self, code: types.CodeType) -> None:
        """Execute compiled code and show what it raises."""
        try:
            self.execute(run_code, code, self.names)
        except SystemExit:
            raise
        except BaseException as error:
            self.show(error)
        finally:
            _forget_cancellation()
            _leave_debugger()

    def show(self, error: BaseException) -> None:
        """Show an error as the interpreter does, without frames of ours."""
        error = _runner._as_plain_interrupt(error)
        shown = _runner._without_leading_loop_frames(error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            _runner._cut_trailing_loop_frames(shown)
        error.__traceback__ = shown
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, shown
        if sys.version_info >= (3, 12):
            sys.last_exc = error
        if sys.excepthook is sys.__excepthook__ and sys.version_info < (3, 13):
            # That one does not show the lines of statements.
            traceback.print_exception(error)
            return
        try:
            sys.excepthook(type(error), error, shown)
        except SystemExit:
            raise
        except BaseException as second:
            second.__context__ = None
            second.__traceback__ = _runner._without_leading_loop_frames(
                second.__traceback__
            )
            self.write("Error in sys.excepthook:\n")
            traceback.print_exception(second)
            self.write("\nOriginal exception was:\n")
            traceback.print_exception(error)


def run_code(compiled: types.CodeType, names: dict[str, Any]) -> None:
    """Execute code, and await it if it awaits."""
    result = eval(compiled, names)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await_(result)


def _forget_cancellation() -> None:
    """Take back what a statement left over: it was the only one to be cancelled."""
    asyncio = sys.modules.get("asyncio")
    with contextlib.suppress(RuntimeError):
        task = None if asyncio is None else asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()


def _leave_debugger() -> None:
    """Take the handler of SIGINT away that pdb leaves behind after `continue`."""
    pdb = sys.modules.get("pdb")
    handler = signal.getsignal(signal.SIGINT)
    if pdb is not None and isinstance(getattr(handler, "__self__", None), pdb.Pdb):
        signal.signal(signal.SIGINT, pdb.Pdb._previous_sigint_handler)
        pdb.Pdb._previous_sigint_handler = None


# The console itself must not be interrupted between two lines.
Interpreter.interruptible = run_code.__code__


class History:
    """The lines of this session in readline's history, if that is used."""

    def __init__(self, readline: Any = None) -> None:
        self.readline = readline
        self.length = 0
        if readline is None:
            return
        if readline.get_current_history_length():
            # PYTHONSTARTUP does it.
            self.readline = None
            return
        # What reads it may raise UnicodeDecodeError, too.
        with contextlib.suppress(OSError, ValueError):
            readline.read_history_file(self.path)
        self.length = readline.get_current_history_length()

    @property
    def path(self) -> str:
        """The file, as Python itself chooses it from 3.13 on."""
        if not sys.flags.ignore_environment and os.getenv("PYTHON_HISTORY"):
            return os.environ["PYTHON_HISTORY"]
        return os.path.join(os.path.expanduser("~"), ".python_history")

    def save(self) -> None:
        """Add the new lines to the file."""
        if self.readline is None:
            return
        new = self.readline.get_current_history_length() - self.length
        with contextlib.suppress(OSError):
            if os.path.exists(self.path) and hasattr(
                self.readline, "append_history_file"
            ):
                self.readline.append_history_file(max(new, 0), self.path)
            else:
                self.readline.write_history_file(self.path)


# Waiting for a line


class InterruptedLine(Exception):
    """Ctrl-C was typed."""


class LineReader:
    """Reads lines in a thread of its own, one at a time and when asked to."""

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self.make_event = make_event
        self.requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.reading = self.answered = False
        self.line = ""
        self.error: BaseException | None = None

    def read(self, prompt: str) -> str:
        """Read a line, or go on with the one that is being read."""
        self.event = self.make_event()
        if not self.reading:
            self.reading = True
            self.answered = False
            self._start_thread()
            self.requests.put(str(prompt))
        elif self.answered:
            self.event.set()
        else:
            # A signal has interrupted the wait for it.
            sys.stdout.write(str(prompt))
            sys.stdout.flush()
        await_(self.event.wait())
        self.reading = False
        error, self.error = self.error, None
        if error is not None:
            raise error.with_traceback(None)
        return self.line

    def _start_thread(self) -> None:
        if self.thread is None:
            self.terminal = Terminal()
            self.thread = threading.Thread(
                target=self._run, name="greenback prompt", daemon=True
            )
            self.thread.start()

    def _run(self) -> None:
        while (prompt := self.requests.get()) is not None:
            try:
                self.line = self.terminal.read(prompt)
            except BaseException as error:
                self.error = error
            self.answered = True
            self.event.set()

    def close(self) -> None:
        """Break off a read that is going on.

        At exit it would hold the lock of stdin, which ends the process.
        """
        if self.thread is None or not self.reading or self.answered:
            return
        with contextlib.suppress(OSError):
            terminal = os.dup(0)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            # The system call fails with EINTR, and is repeated at the new file.
            before = signal.signal(signal.SIGURG, lambda *details: None)
            signal.pthread_kill(self.thread.ident or 0, signal.SIGURG)
            self.requests.put(None)
            self.thread.join(timeout=5)
            signal.signal(signal.SIGURG, before)
            self.terminal.restore(terminal)


class Event:
    """Set by another thread, awaited here."""

    def __init__(
        self, event: Any, schedule: Callable[[Callable[[], object]], object]
    ) -> None:
        self.event = event
        self.schedule = schedule

    def set(self) -> None:
        """Set it, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.schedule(self.event.set)

    async def wait(self) -> None:
        """Wait until it is set; a cancellation does not end that."""
        raise NotImplementedError


class AsyncioEvent(Event):
    """An event of asyncio."""

    def __init__(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        super().__init__(asyncio.Event(), loop.call_soon_threadsafe)

    async def wait(self) -> None:
        """Wait until it is set; a cancellation does not end that."""
        from asyncio import CancelledError

        while not self.event.is_set():
            try:
                await self.event.wait()
            except CancelledError as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                _forget_cancellation()


class TrioEvent(Event):
    """An event of Trio."""

    def __init__(self) -> None:
        trio = sys.modules["trio"]
        token = trio.lowlevel.current_trio_token()
        super().__init__(trio.Event(), token.run_sync_soon)

    async def wait(self) -> None:
        """Wait until it is set; a cancellation does not end that."""
        with sys.modules["trio"].CancelScope(shield=True):
            await self.event.wait()


_EVENTS: dict[str, Callable[[], Event]] = {"asyncio": AsyncioEvent, "trio": TrioEvent}


class Terminal:
    """Reads lines where Ctrl-C is a character, if it is readline that reads."""

    def __init__(self) -> None:
        self.interrupt = ""
        self.attributes: list[Any] = []
        readline = sys.modules.get("readline")
        if readline is None or not _reads_terminal():
            return
        import termios

        self.termios: types.ModuleType = termios
        self.readline = readline
        self.attributes = termios.tcgetattr(0)
        character = self.attributes[6][termios.VINTR]
        if _is_libedit(readline) or character == b"\0":
            return
        self.interrupt = character.decode("latin-1")
        key = f"\\{ord(character):03o}"
        # Ctrl-V puts the next character into the line, whatever it is.
        readline.parse_and_bind(f'"{key}": "\\C-v{key}\\C-m"')

    def read(self, prompt: str) -> str:
        """Read a line; InterruptedLine if it was broken off."""
        if sys.stdin is None or sys.stdin.closed:
            raise EOFError
        with self._interrupt_as_character():
            line = input(prompt)
        if self.interrupt and self.interrupt in line:
            with contextlib.suppress(ValueError):
                last = self.readline.get_current_history_length() - 1
                self.readline.remove_history_item(last)
            raise InterruptedLine
        return line

    @contextlib.contextmanager
    def _interrupt_as_character(self) -> Iterator[None]:
        if not self.interrupt:
            yield
            return
        self._set_interrupt(b"\0")
        try:
            yield
        finally:
            self._set_interrupt(self.interrupt.encode("latin-1"))

    def _set_interrupt(self, character: bytes) -> None:
        with contextlib.suppress(self.termios.error):
            attributes = self.termios.tcgetattr(0)
            attributes[6][self.termios.VINTR] = character
            self.termios.tcsetattr(0, self.termios.TCSANOW, attributes)

    def restore(self, file: int) -> None:
        """Give the terminal the attributes that it had before."""
        if self.attributes:
            with contextlib.suppress(self.termios.error):
                self.termios.tcsetattr(file, self.termios.TCSADRAIN, self.attributes)


def _reads_terminal() -> bool:
    """Tell whether input() uses readline."""
    try:
        files = sys.stdin.fileno(), sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return files == (0, 1) and os.isatty(0) and os.isatty(1)


def _is_libedit(readline: Any) -> bool:
    return "libedit" in (readline.__doc__ or "")


# The loops


class AsyncioMain(_runner.AsyncioMain):
    """Runs the interpreter on asyncio; Ctrl-C never ends it."""

    def _run_loop(self) -> None:
        try:
            self.loop.run_until_complete(self.task)
        except KeyboardInterrupt:
            # It was raised in another task: see below.
            if self.task.done():
                raise
        except BaseException as escaped:
            if self.task.done():
                raise
            self._pass_on(escaped)

    def _on_sigint(self, number: int, frame: types.FrameType | None) -> None:
        if self.pending is None or self.task.done():
            super()._on_sigint(number, frame)
        elif frame is not None and not _runner._is_loop_frame(frame):
            # The first was in vain: another task keeps the loop busy.
            raise KeyboardInterrupt
        else:
            # What was cancelled has gone on: once more.
            self.task.cancel()
            self.loop.call_soon_threadsafe(_runner._do_nothing)


def _run_on_asyncio(program: _runner.Program) -> None:
    AsyncioMain(program).run(None)


def _run_on_uvloop(program: _runner.Program) -> None:
    import uvloop

    AsyncioMain(program).run(uvloop.new_event_loop)


def _run_on_trio(program: _runner.Program) -> None:
    import trio

    # Trio's signal handler looks at the frames on the stack: a statement may
    # be interrupted anywhere, the console only where it waits.
    @trio.lowlevel.disable_ki_protection
    def execute(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    @trio.lowlevel.enable_ki_protection
    def run_protected() -> None:
        program.run()

    assert isinstance(program, Interpreter)
    program.execute = execute
    trio.run(with_portal_run_sync, run_protected)


RUNNERS: dict[str, Callable[[_runner.Program], None]] = {
    "asyncio": _run_on_asyncio,
    "uvloop": _run_on_uvloop,
    "trio": _run_on_trio,
}
