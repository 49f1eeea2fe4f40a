"""Run a Python program inside an event loop, in a task with a portal.

The program sees what it would see under plain ``python``: its own
``__main__``, ``sys.argv`` and ``sys.path[0]``. What it raises leaves
:func:`main` as it is, so that the interpreter itself prints the traceback
and chooses the exit code; only frames that are not the program's are
taken out of the traceback first. Without a program there is a prompt: that
is done in ``_repl``.

Exit codes of its own: 2 for a wrong command line or a script that cannot be
opened; 1 for a module or a loop that is not installed.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import importlib.machinery
import io
import linecache
import os
import pkgutil
import runpy
import signal
import socket
import sys
import textwrap
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from greenback import __version__, with_portal_run_sync

if TYPE_CHECKING:
    import asyncio

LOOPS = ("asyncio", "uvloop", "trio")

USAGE = """\
%(prog)s [--loop {asyncio,uvloop,trio}] [SCRIPT [ARG ...]]
       %(prog)s [--loop {asyncio,uvloop,trio}] -m MODULE [ARG ...]
       %(prog)s [--loop {asyncio,uvloop,trio}] -c CODE [ARG ...]"""

DESCRIPTION = """\
Run a Python program inside an event loop, so that its plain synchronous code,
from the top level down, can call greenback.await_(). SCRIPT is a file, a
directory or zip file with a __main__.py, or - for standard input. Without a
program there is an interactive prompt, where await works as well."""

EPILOG = """\
The exit code is the one that python would give for the program. It is 2 for a
wrong command line or a SCRIPT that cannot be opened, and 1 for a MODULE or a
loop that is not installed."""

# Packages whose frames say how the loop came to interrupt the program,
# not what the program was doing.
LOOP_PACKAGES = frozenset(
    ("asyncio", "greenback", "outcome", "selectors", "trio", "uvloop")
)


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    loop: str
    kind: Literal["script", "module", "code", "prompt"]
    target: str
    arguments: list[str]


def parse_command_line(arguments: list[str]) -> Command:
    """Read the command line without the program name.

    Everything after the script, ``-m MODULE`` or ``-c CODE`` belongs to the
    program. Raises SystemExit for ``--help``, ``--version`` and errors.
    """
    parser = _make_parser()
    options, rest = _split_at_program(arguments)
    loop = parser.parse_args(options).loop
    if not rest:
        return Command(loop, "prompt", "", [])
    first = rest[0]
    if first == "--":
        rest = rest[1:]
        if not rest:
            parser.error("a SCRIPT is required after --")
        return Command(loop, "script", rest[0], rest[1:])
    if first[:2] not in ("-c", "-m"):
        return Command(loop, "script", first, rest[1:])
    kind: Literal["module", "code"] = "module" if first[1] == "m" else "code"
    if len(first) > 2:
        return Command(loop, kind, first[2:], rest[1:])
    if len(rest) < 2:
        parser.error(f"argument expected for the {first} option")
    return Command(loop, kind, rest[1], rest[2:])


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m greenback",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-l",
        "--loop",
        choices=LOOPS,
        default="asyncio",
        help="the event loop to run the program in (default: asyncio)",
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"greenback {__version__}"
    )
    return parser


def _split_at_program(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate our own options from the program and its arguments."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        starts_program = (
            argument in ("-", "--")
            or argument[:2] in ("-c", "-m")
            or not argument.startswith("-")
        )
        if starts_program:
            break
        position += 2 if argument in ("-l", "--loop") else 1
    return arguments[:position], arguments[position:]


class Program:
    """The user's program: finds its code and runs it as ``__main__``.

    ``error`` is what it raised, or None; ``traceback`` the part of the
    error's traceback that starts in the program's own code.
    """

    # While this runs, KeyboardInterrupt may be raised anywhere.
    interruptible: ClassVar[types.CodeType]

    def __init__(self, command: Command) -> None:
        self.command = command
        self.error: BaseException | None = None
        self.traceback: types.TracebackType | None = None

    def run(self) -> None:
        """Run the program to its end and keep what it raises."""
        try:
            code, namespace = self._load()
            exec(code, namespace)
        except BaseException as error:
            self.error = error
            self.traceback = _without_leading_frames_of(
                error.__traceback__, globals(), vars(runpy)
            )

    def _load(self) -> tuple[types.CodeType, dict[str, Any]]:
        if self.command.kind == "code":
            return self._load_code()
        if self.command.kind == "module":
            return self._load_module()
        return self._load_script()

    def _load_code(self) -> tuple[types.CodeType, dict[str, Any]]:
        source = self.command.target
        if sys.version_info >= (3, 14):
            source = textwrap.dedent(source)
        self._set_arguments("-c", path_entry="")
        namespace = _new_main_module(importlib.machinery.BuiltinImporter)
        return _compile(source, "<string>"), namespace

    def _load_module(self) -> tuple[types.CodeType, dict[str, Any]]:
        self._set_arguments("-m", path_entry=os.getcwd())
        # Importing the parent packages runs code of the program.
        namespace = _new_main_module(importlib.machinery.BuiltinImporter)
        try:
            _name, spec, code = runpy._get_module_details(  # type: ignore[attr-defined]
                self.command.target, _NotRunnableError
            )
        except _NotRunnableError as error:
            _refuse(str(error), exit_code=1)
        sys.argv[0] = spec.origin
        _describe_by_spec(namespace, spec)
        return code, namespace

    def _load_script(self) -> tuple[types.CodeType, dict[str, Any]]:
        path = self.command.target
        if path == "-":
            self._set_arguments(path, path_entry="")
            source = sys.stdin.buffer.read()
            namespace = _new_main_module(importlib.machinery.BuiltinImporter)
            _describe_by_file(namespace, "<stdin>")
            return _compile(source, "<stdin>"), namespace
        absolute = _absolute(path)
        if pkgutil.get_importer(absolute) is not None:
            return self._load_main_in(absolute)
        try:
            with io.open_code(absolute) as file:
                content = file.read()
        except OSError as error:
            _refuse(
                f"can't open file {absolute!r}: [Errno {error.errno}] {error.strerror}",
                exit_code=2,
            )
        directory = os.path.dirname(os.path.realpath(absolute))
        self._set_arguments(path, path_entry=directory)
        code = pkgutil.read_code(io.BytesIO(content))
        loader_type = (
            importlib.machinery.SourceFileLoader
            if code is None
            else importlib.machinery.SourcelessFileLoader
        )
        namespace = _new_main_module(loader_type("__main__", absolute))
        _describe_by_file(namespace, absolute)
        if code is None:
            code = _compile(content, absolute)
        return code, namespace

    def _load_main_in(self, container: str) -> tuple[types.CodeType, dict[str, Any]]:
        """Load the ``__main__`` module of a directory or zip file."""
        self._set_arguments(self.command.target, path_entry=None)
        if sys.flags.safe_path:
            sys.path.insert(0, container)
        else:
            sys.path[0] = container
        try:
            _name, spec, code = runpy._get_main_module_details(  # type: ignore[attr-defined]
                _NotRunnableError
            )
        except _NotRunnableError as error:
            _refuse(str(error), exit_code=1)
        namespace = _new_main_module(spec.loader)
        _describe_by_spec(namespace, spec)
        return code, namespace

    def _set_arguments(self, name: str, *, path_entry: str | None) -> None:
        sys.argv[:] = [name, *self.command.arguments]
        # Without safe_path the first entry is the one python -m put there.
        if path_entry is not None and not sys.flags.safe_path:
            sys.path[0] = path_entry


Program.interruptible = Program.run.__code__


class _NotRunnableError(Exception):
    """A module was not found, or cannot be run."""


def _refuse(message: str, *, exit_code: int) -> NoReturn:
    """Print an error as the interpreter does and end the program."""
    print(f"{sys.executable}: {message}", file=sys.stderr)
    raise SystemExit(exit_code) from None


def _absolute(path: str) -> str:
    """Return the path as python shows it: absolute, but not normalised."""
    return os.path.join(os.getcwd(), path)


def _compile(source: str | bytes, filename: str) -> types.CodeType:
    try:
        code = compile(source, filename, "exec", dont_inherit=True)
    except SyntaxError as error:
        if error.filename is None:
            error.filename = filename
        raise
    if filename == "<string>" and sys.version_info >= (3, 13):
        # From 3.13 on tracebacks show the lines of code given by -c.
        assert isinstance(source, str)
        lines = source.splitlines(keepends=True)
        linecache.cache[filename] = (len(source), None, lines, filename)
    return code


def _new_main_module(loader: Any) -> dict[str, Any]:
    """Make a new ``__main__`` module the current one, return its namespace."""
    module = types.ModuleType("__main__")
    namespace = vars(module)
    namespace["__loader__"] = loader
    namespace["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        namespace["__annotations__"] = {}
    sys.modules["__main__"] = module
    return namespace


def _describe_by_file(namespace: dict[str, Any], filename: str) -> None:
    namespace["__file__"] = filename
    if sys.version_info < (3, 15):
        namespace["__cached__"] = None


def _describe_by_spec(
    namespace: dict[str, Any], spec: importlib.machinery.ModuleSpec
) -> None:
    namespace["__spec__"] = spec
    namespace["__loader__"] = spec.loader
    namespace["__package__"] = spec.parent
    namespace["__file__"] = spec.origin
    if sys.version_info < (3, 15):
        namespace["__cached__"] = spec.cached


def _without_leading_frames_of(
    traceback: types.TracebackType | None, *namespaces: dict[str, Any]
) -> types.TracebackType | None:
    """Skip the outermost entries whose frames have one of these globals."""
    while traceback is not None and any(
        traceback.tb_frame.f_globals is namespace for namespace in namespaces
    ):
        traceback = traceback.tb_next
    return traceback


def _is_loop_frame(frame: types.FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] in LOOP_PACKAGES


def _without_leading_loop_frames(
    traceback: types.TracebackType | None,
) -> types.TracebackType | None:
    while traceback is not None and _is_loop_frame(traceback.tb_frame):
        traceback = traceback.tb_next
    return traceback


def _cut_trailing_loop_frames(traceback: types.TracebackType | None) -> None:
    """Let an interruption's traceback end where the program was waiting."""
    last_of_program = None
    entry = traceback
    while entry is not None:
        if not _is_loop_frame(entry.tb_frame):
            last_of_program = entry
        entry = entry.tb_next
    if last_of_program is not None:
        last_of_program.tb_next = None


class AsyncioMain:
    """Runs a program in the main task of an asyncio loop.

    Ctrl-C reaches the program as KeyboardInterrupt wherever it is: at once
    while its own code runs, otherwise out of the ``await_`` in which it waits.
    The loop goes on, so that the program's clean-up can await too. Everything
    else that escapes from the loop (SystemExit raised in another task, an
    exception raised by a signal handler) reaches it in the same way.

    Coroutines that the program awaits see an interruption as a cancellation,
    which is what asyncio's own (TaskGroup, wait_for) can deal with.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        # On its way to the program: it will replace the CancelledError of
        # the cancellation that wakes the main task.
        self.pending: BaseException | None = None
        self.task: asyncio.Task[None]
        self.loop: asyncio.AbstractEventLoop

    def run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        """Run the program; leftover tasks are cancelled as in asyncio.run."""
        import asyncio

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            self.loop = runner.get_loop()
            self.task = self.loop.create_task(self._main())
            on_sigint = self._on_sigint
            takes_sigint = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if takes_sigint:
                signal.signal(signal.SIGINT, on_sigint)
            try:
                with _signals_wake(self.loop):
                    while not self.task.done():
                        self._run_loop()
            finally:
                if signal.getsignal(signal.SIGINT) is on_sigint:
                    signal.signal(signal.SIGINT, signal.default_int_handler)

    def _run_loop(self) -> None:
        """Run the loop until the program ends or something escapes."""
        try:
            self.loop.run_until_complete(self.task)
        except BaseException as escaped:
            # A program that does not react to the first is given up.
            if self.task.done() or self.pending is not None:
                raise
            self._pass_on(escaped)

    def _pass_on(self, escaped: BaseException) -> None:
        """Have the program see what has escaped from the loop."""
        escaped.__traceback__ = _without_leading_loop_frames(escaped.__traceback__)
        self.pending = _as_cancellation(escaped)
        self.task.cancel()

    async def _main(self) -> None:
        await self._deliver(with_portal_run_sync(self.program.run))

    @types.coroutine
    def _deliver(self, main: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Drive the program, and throw what is pending into it."""
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    trap = main.send(None)
                else:
                    trap = main.throw(error)
            except StopIteration:
                return
            error = None
            try:
                yield trap
            except GeneratorExit:
                main.close()
                raise
            except BaseException as thrown:
                _drop_outermost_frame(thrown)
                error = self._replace_cancellation(thrown)

    def _replace_cancellation(self, thrown: BaseException) -> BaseException:
        from asyncio import CancelledError

        if self.pending is None or not isinstance(thrown, CancelledError):
            return thrown
        pending, self.pending = self.pending, None
        self.task.uncancel()
        return pending

    def _on_sigint(self, signal_number: int, frame: types.FrameType | None) -> None:
        if (
            self.task.done()
            or self.pending is not None
            or _is_called_by(frame, self.program.interruptible)
        ):
            raise KeyboardInterrupt
        self.pending = _as_cancellation(KeyboardInterrupt())
        self.task.cancel()
        # Wakes a loop that waits for events.
        self.loop.call_soon_threadsafe(_do_nothing)


@contextlib.contextmanager
def _signals_wake(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have a signal wake the loop even if it comes just before the loop waits.

    asyncio itself does so only once it has been given a handler of its own.
    """
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        loop.add_reader(receiver, receiver.recv, 4096)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            current = signal.set_wakeup_fd(before)
            if current != sender.fileno():
                signal.set_wakeup_fd(current)  # the program's
            loop.remove_reader(receiver)


# Exception types made by _as_cancellation.
_combined_types: set[type[BaseException]] = set()


def _as_cancellation(error: BaseException) -> BaseException:
    """Make an exception that is a CancelledError too, if it asks to end.

    Returns the error itself if it is neither KeyboardInterrupt nor SystemExit.
    """
    from asyncio import CancelledError

    kind = type(error)
    if kind is not KeyboardInterrupt and kind is not SystemExit:
        return error
    both = type(kind.__name__, (CancelledError, kind), {"__module__": "builtins"})
    combined = both(*error.args)
    assert isinstance(combined, BaseException)
    _combined_types.add(type(combined))
    return combined.with_traceback(error.__traceback__)


def _as_plain_interrupt(error: BaseException) -> BaseException:
    """Undo _as_cancellation for KeyboardInterrupt.

    Python before 3.14 ends by SIGINT only for the exact type.
    """
    if type(error) not in _combined_types or not isinstance(error, KeyboardInterrupt):
        return error
    plain = KeyboardInterrupt(*error.args)
    vars(plain).update(vars(error))
    plain.__cause__ = error.__cause__
    plain.__context__ = error.__context__
    plain.__suppress_context__ = error.__suppress_context__
    return plain.with_traceback(error.__traceback__)


def _drop_outermost_frame(error: BaseException) -> None:
    """Take the entry of the frame that just caught the error away."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _do_nothing() -> None:
    pass


def _is_called_by(frame: types.FrameType | None, caller: types.CodeType) -> bool:
    while frame is not None:
        if frame.f_code is caller:
            return True
        frame = frame.f_back
    return False


def _run_on_asyncio(program: Program) -> None:
    AsyncioMain(program).run(None)


def _run_on_uvloop(program: Program) -> None:
    import uvloop

    AsyncioMain(program).run(uvloop.new_event_loop)


def _run_on_trio(program: Program) -> None:
    import trio

    # Trio's signal handler looks at the frames on the stack: this one says
    # that the program may be interrupted anywhere.
    @trio.lowlevel.disable_ki_protection
    def run_unprotected() -> None:
        program.run()

    trio.run(with_portal_run_sync, run_unprotected)


_RUNNERS: dict[str, Callable[[Program], None]] = {
    "asyncio": _run_on_asyncio,
    "uvloop": _run_on_uvloop,
    "trio": _run_on_trio,
}


def _check_installed(loop: str) -> None:
    """Import the loop's package, or say how to get it and exit."""
    try:
        __import__(loop)
    except ModuleNotFoundError as error:
        if error.name != loop:
            raise
        _refuse(
            f"the loop {loop!r} is not installed; get it with: "
            f"python -m pip install {loop}",
            exit_code=1,
        )


def _prepare(command: Command) -> tuple[Program, Callable[[Program], None]]:
    if command.kind == "prompt":
        from greenback import _repl

        return _repl.Interpreter(command), _repl.RUNNERS[command.loop]
    return Program(command), _RUNNERS[command.loop]


def _run_in_loop(command: Command) -> tuple[Any, types.TracebackType | None]:
    """Run the program; return what is to be raised, and its traceback."""
    program, run = _prepare(command)
    try:
        run(program)
    except BaseException as error:
        # An interrupted program that was given up may still have told
        # where it was while its task was cancelled.
        if not isinstance(program.error, KeyboardInterrupt):
            program.error = error
            program.traceback = error.__traceback__
            if isinstance(error, KeyboardInterrupt):
                program.traceback = _without_leading_loop_frames(error.__traceback__)
    if program.error is not None:
        program.error = _as_plain_interrupt(program.error)
    if isinstance(program.error, KeyboardInterrupt):
        _cut_trailing_loop_frames(program.traceback)
    return program.error, program.traceback


def _show_only(error: BaseException, traceback: types.TracebackType | None) -> None:
    """Have the interpreter show this traceback for an error about to leave.

    Frames are added to it on the way out, hence at the last moment.
    """
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException],
        value: BaseException,
        shown: types.TracebackType | None,
    ) -> None:
        sys.excepthook = hook
        if value is error:
            value.__traceback__ = shown = traceback
            sys.last_traceback = traceback
        hook(kind, value, shown)

    sys.excepthook = excepthook


def main() -> None:
    """Run the program that the command line names.

    Raises whatever the program raises, SystemExit included.
    """
    command = parse_command_line(sys.argv[1:])
    _check_installed(command.loop)
    error, traceback = _run_in_loop(command)
    if error is None:
        return
    if not isinstance(error, SystemExit):
        _show_only(error, traceback)
    raise error
