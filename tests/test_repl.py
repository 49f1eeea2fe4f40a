"""``python -m greenback`` without a program: the prompt, in a terminal and a pipe."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import termios

import pytest

pytest.importorskip("readline")

from terminal import ASYNCIO_LOOPS, CTRL_C, CTRL_D, LOOPS, Terminal

PROMPT = ">>> "
MORE = "... "
TIMEOUT = 60

# Run by PYTHONSTARTUP, so that what is typed is the same for all loops.
HELPERS = """\
import sys
import greenback
if "trio" in sys.modules:
    import trio as library
    spawn, Event = library.lowlevel.spawn_system_task, library.Event
    sleep_forever = library.sleep_forever
else:
    import asyncio as library
    from asyncio import Event
    def spawn(fn):
        return library.create_task(fn())
    async def sleep_forever():
        await library.get_running_loop().create_future()
sleep = library.sleep
async def forever():
    async def say():
        print("waiting", flush=True)
    spawn(say)
    await sleep_forever()
async def get(value):
    await sleep(0)
    return value
async def settle():
    for _ in range(10):
        await sleep(0)
async def fail():
    await sleep(0)
    raise ValueError("from fail")
def sync_get(value):
    return greenback.await_(get(value))
def sync_forever():
    greenback.await_(forever())
"""


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory):
    """Where compiled modules are kept: starting would take long without."""
    return str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture
def environment(tmp_path, bytecode):
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONINSPECT", "INPUTRC")
    }
    (tmp_path / "helpers.py").write_text(HELPERS)
    return variables | {
        "PYTHONPYCACHEPREFIX": bytecode,
        "PYTHONSTARTUP": str(tmp_path / "helpers.py"),
        "PYTHON_HISTORY": str(tmp_path / "history"),
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def start(tmp_path, environment):
    """Start the prompt in a terminal."""
    terminals = []

    def start_prompt(loop="asyncio", *options, prompt=PROMPT, **variables):
        arguments = [*options, "-m", "greenback", "--loop", loop]
        terminal = Terminal(*arguments, cwd=tmp_path, env=environment | variables)
        terminals.append(terminal)
        if "-q" not in options:
            terminal.introduction = terminal.expect("import await_\n")
        terminal.expect(prompt)
        return terminal

    yield start_prompt
    for terminal in terminals:
        terminal.__exit__()


@pytest.fixture
def pipe(tmp_path, environment):
    """Give the prompt its input through a pipe; without a banner."""

    def run_pipe(text, loop="asyncio", *options):
        return subprocess.run(
            [sys.executable, "-q", *options, "-m", "greenback", "-l", loop],
            cwd=tmp_path,
            env=environment,
            input=text if isinstance(text, bytes) else text.encode(),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    return run_pipe


def play(terminal, *dialogue):
    """Enter each line of the dialogue, compare what is printed."""
    for line, expected in dialogue:
        printed = terminal.enter(line, PROMPT)
        assert printed.rstrip() == expected, terminal.transcript


def define(terminal, text):
    """Enter a statement of several lines."""
    first, *rest = text.strip().splitlines()
    terminal.enter(first, MORE)
    for line in rest:
        terminal.enter(line, MORE)
    assert terminal.enter("", PROMPT) == ""


def names_of_frames(traceback):
    """Return the names of the functions, without those of libraries."""
    found = re.findall(r'File "(.*?)", line \d+, in (\S+)', traceback)
    return [name for file, name in found if "site-packages" not in file]


def answers(result):
    """Return what was printed through a pipe, without the prompts."""
    return result.stdout.decode().replace(PROMPT, "").replace(MORE, "")


def assert_ends(terminal):
    terminal.type(CTRL_D)
    assert terminal.end() == ("\n", 0)


# Statements


@pytest.mark.parametrize("loop", LOOPS)
def test_statements(start, loop):
    terminal = start(loop)
    play(
        terminal,
        ("1 + 1", "2"),
        ("_", "2"),
        ("await get('result')", "'result'"),
        ("_", "'result'"),
        ("await get(None)", ""),
        ("x = await get(5)", ""),
        ("x", "5"),
        ("[await get(i) for i in range(3)]", "[0, 1, 2]"),
        ("await_(get(x))", "5"),
        ("sync_get(x)", "5"),
        ("list(map(sync_get, [1, 2]))", "[1, 2]"),
        ("sorted([1, 2], key=lambda i: -sync_get(i))", "[2, 1]"),
        ("await get(1); sync_get(2); await get(3)", "1\n2\n3"),
        ("import __main__; __main__.x", "5"),
        ("__name__, sys.argv, sys.path[0]", "('__main__', [''], '')"),
        ("greenback.has_portal()", "True"),
    )
    define(terminal, "def function(i):\n    return sync_get(i) + x")
    play(terminal, ("function(1)", "6"))
    define(terminal, "async def coroutine(i):\n    return await get(i) + sync_get(x)")
    play(terminal, ("await coroutine(1)", "6"))
    terminal.enter("for i in range(2):", MORE)
    terminal.enter("    await get(i)", MORE)
    assert terminal.enter("", PROMPT) == "0\n1\n"
    terminal.enter("(1 +", MORE)
    assert terminal.enter("2)", PROMPT) == "3\n"
    assert_ends(terminal)


@pytest.mark.parametrize("loop", LOOPS)
def test_all_in_one_context_and_task(start, loop):
    terminal = start(loop)
    current = "asyncio.current_task" if loop != "trio" else "trio.lowlevel.current_task"
    play(
        terminal,
        ("import contextvars; v = contextvars.ContextVar('v')", ""),
        ("t = v.set(await get(1))", ""),
        ("v.get()", "1"),
        ("t2 = v.set(2)", ""),
        ("await get(v.get())", "2"),
        ("v.reset(t2); v.get()", "1"),
        (f"task = {current}()", ""),
        (f"await get(task is {current}())", "True"),
    )
    assert_ends(terminal)


@pytest.mark.parametrize("loop", LOOPS)
def test_other_tasks_run_while_the_prompt_waits(start, loop):
    terminal = start(loop)
    define(
        terminal,
        """
async def other():
    for i in range(3):
        print(i, flush=True)
        await event.wait()
        await get(i)
    print("other is done", flush=True)
""",
    )
    define(
        terminal,
        """
def on_signal(*details):
    if "trio" in sys.modules:
        token.run_sync_soon(event.set)
    else:
        running.call_soon_threadsafe(event.set)
""",
    )
    play(
        terminal,
        ("event = Event()", ""),
        ("import signal; _ = signal.signal(signal.SIGUSR1, on_signal)", ""),
        ("token = trio.lowlevel.current_trio_token()", "")
        if loop == "trio"
        else ("running = asyncio.get_running_loop()", ""),
    )
    terminal.enter("task = spawn(other); await settle()", "0\n")
    terminal.expect(PROMPT)
    # In the middle of a line
    terminal.type("'half")
    terminal.expect("'half")
    terminal.send_signal(signal.SIGUSR1)
    terminal.expect("other is done\n")
    terminal.type(" a line'\n")
    terminal.expect("'half a line'\n")
    terminal.expect(PROMPT)
    assert_ends(terminal)


@pytest.mark.parametrize("loop", LOOPS)
def test_tracebacks(start, loop):
    terminal = start(loop)
    define(terminal, "def function(value):\n    return 1 / value")
    printed = terminal.enter("function(0)", PROMPT)
    assert printed.startswith("Traceback (most recent call last):\n")
    assert names_of_frames(printed) == ["<module>", "function"]
    # With the lines, although there is no file
    assert "\n    function(0)\n" in printed
    assert "\n    return 1 / value\n" in printed
    assert printed.endswith("ZeroDivisionError: division by zero\n")
    for line in ("await fail()", "await_(fail())", "(lambda: await_(fail()))()"):
        printed = terminal.enter(line, PROMPT)
        names = [name for name in names_of_frames(printed) if name != "<lambda>"]
        assert names == ["<module>", "fail"]
        assert printed.endswith("ValueError: from fail\n")
    play(
        terminal,
        ("sys.last_value", "ValueError('from fail')"),
        ("sys.last_type", "<class 'ValueError'>"),
        ("sys.last_traceback is sys.last_value.__traceback__", "True"),
    )
    printed = terminal.enter("await 3", PROMPT)
    assert names_of_frames(printed) == ["<module>"]
    assert "\nTypeError: " in printed
    printed = terminal.enter("def", PROMPT)
    assert "\n    def\n" in printed
    assert printed.endswith("SyntaxError: invalid syntax\n")
    printed = terminal.enter("yield 1", PROMPT)
    assert printed.endswith("SyntaxError: 'yield' outside function\n")
    # A hook of the user's
    terminal.enter("sys.excepthook = lambda *error: print('hook', error[1])", PROMPT)
    play(terminal, ("await fail()", "hook from fail"))
    terminal.enter("sys.excepthook = lambda *error: missing", PROMPT)
    printed = terminal.enter("await fail()", PROMPT)
    assert printed.startswith("Error in sys.excepthook:\n")
    assert printed.endswith("ValueError: from fail\n")
    assert_ends(terminal)
    assert "_repl" not in terminal.transcript
    assert "_runner" not in terminal.transcript


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("option", ["-l {}", "--loop {}", "--loop={}"])
def test_loop_option(tmp_path, environment, loop, option):
    result = subprocess.run(
        [sys.executable, "-m", "greenback", *option.format(loop).split()],
        cwd=tmp_path,
        env=environment,
        input="library.__name__\n"
        "type(library.get_running_loop()).__module__ if 'asyncio' in sys.modules else 0",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert f"on {loop}, Python {sys.version.split()[0]}" in result.stderr
    assert loop in result.stdout
    assert result.returncode == 0


# Ctrl-C


@pytest.mark.parametrize("loop", LOOPS)
def test_interrupted_statements(start, loop):
    terminal = start(loop)
    play(terminal, ("kept = 'kept'", ""))
    for line, names in [
        ("await forever()", ["<module>", "forever", "sleep_forever"]),
        ("x = [await forever() for i in range(2)]", None),
        ("await_(forever())", ["<module>", "forever", "sleep_forever"]),
        ("sync_forever()", ["<module>", "sync_forever", "forever", "sleep_forever"]),
    ]:
        terminal.enter(line, "waiting\n")
        terminal.interrupt()
        printed = terminal.expect(PROMPT)
        assert printed.endswith("\nKeyboardInterrupt\n"), terminal.transcript
        if names is not None and loop != "trio":
            assert names_of_frames(printed) == names
        elif names is not None:
            assert names_of_frames(printed) == names[:-1]
        play(terminal, ("kept", "'kept'"), ("await get(1)", "1"))
    # What does not wait in the loop
    for line in (
        "threading.Event().wait() if print('wait' 'ing', flush=True) is None else 0",
        "input('wait' 'ing\\n')",
    ):
        terminal.enter("import threading", PROMPT)
        terminal.enter(line, "waiting\n")
        terminal.interrupt()
        assert terminal.expect(PROMPT).endswith("\nKeyboardInterrupt\n")
        play(terminal, ("kept", "'kept'"), ("sync_get(1)", "1"))
    terminal.enter("while True:", MORE)
    terminal.enter("    print('.', end='', flush=True)", MORE)
    terminal.enter("", "...")
    terminal.type(CTRL_C)
    assert terminal.expect(PROMPT).endswith("KeyboardInterrupt\n")
    if loop != "trio":
        play(terminal, ("asyncio.current_task().cancelling()", "0"))
    assert_ends(terminal)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("editing_mode", ["emacs", "vi"])
def test_interrupts_at_the_prompt(start, tmp_path, loop, editing_mode):
    inputrc = tmp_path / "inputrc"
    inputrc.write_text(f"set editing-mode {editing_mode}\n")
    terminal = start(loop, INPUTRC=str(inputrc))
    play(terminal, ("kept = 'kept'", ""))
    terminal.type(CTRL_C)
    assert terminal.expect(PROMPT) == "\nKeyboardInterrupt\n"
    terminal.type("1 / 0" + CTRL_C)
    assert terminal.expect(PROMPT) == "1 / 0\nKeyboardInterrupt\n"
    terminal.enter("if kept:", MORE)
    terminal.enter("    1 / 1", MORE)
    terminal.type(CTRL_C)
    assert terminal.expect(PROMPT) == "\nKeyboardInterrupt\n"
    play(terminal, ("kept", "'kept'"), ("await get(1)", "1"))
    # Not by the terminal
    terminal.send_signal(signal.SIGINT)
    assert terminal.expect(PROMPT) == "\nKeyboardInterrupt\n"
    play(terminal, ("kept", "'kept'"))
    terminal.enter("if kept:", MORE)
    terminal.send_signal(signal.SIGINT)
    assert terminal.expect(PROMPT) == "\nKeyboardInterrupt\n"
    play(terminal, ("kept", "'kept'"), ("await get(1)", "1"))
    # Other tasks go on.
    terminal.enter("task = spawn(forever); await settle()", "waiting\n")
    terminal.expect(PROMPT)
    terminal.type(CTRL_C)
    terminal.expect("KeyboardInterrupt\n" + PROMPT)
    if loop != "trio":
        play(terminal, ("task.done()", "False"))
    assert_ends(terminal)
    assert "1 / 0" not in (tmp_path / "history").read_text()


def run_with(setting):
    """Return a program that runs the prompt after something else."""
    return (
        f"import runpy, sys; {setting}; sys.argv[1:] = []; "
        "runpy.run_module('greenback', run_name='__main__', alter_sys=True)"
    )


def test_interrupts_without_readline(tmp_path, environment):
    arguments = ["-c", run_with("sys.modules['readline'] = None")]
    with Terminal(*arguments, cwd=tmp_path, env=environment) as terminal:
        terminal.expect("import await_\n" + PROMPT)
        terminal.type("1 / 0")
        terminal.expect("1 / 0")
        terminal.type(CTRL_C)
        assert terminal.expect(PROMPT).endswith("\nKeyboardInterrupt\n")
        play(terminal, ("await get(1)", "1"))
        terminal.enter("if 1:", MORE)
        terminal.type(CTRL_C)
        assert terminal.expect(PROMPT).endswith("\nKeyboardInterrupt\n")
        play(terminal, ("await get(2)", "2"))
        assert_ends(terminal)


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_interrupts_of_what_resists(start, loop):
    terminal = start(loop)
    define(
        terminal,
        """
async def resist():
    try:
        print("waits", flush=True)
        await sleep_forever()
    except asyncio.CancelledError:
        print("resists", flush=True)
    await forever()
""",
    )
    define(
        terminal,
        """
async def hog():
    print("hogs", flush=True)
    while not main.cancelling():
        pass
    try:
        print("goes on", flush=True)
        while True:
            pass
    finally:
        print("is stopped", flush=True)
""",
    )
    # A task that catches the first cancellation
    terminal.type("await asyncio.create_task(resist())\n")
    terminal.expect("resist())\nwaits\n")
    terminal.interrupt()
    terminal.expect("resists\nwaiting\n")
    terminal.interrupt()
    assert terminal.expect(PROMPT).endswith("\nKeyboardInterrupt\n")
    # A task that does not let others run, this one included
    terminal.enter("main = asyncio.current_task()", PROMPT)
    terminal.enter("task = spawn(hog); await sleep_forever()", "hogs\n")
    terminal.type(CTRL_C)
    terminal.expect("goes on\n")
    terminal.type(CTRL_C)
    terminal.expect("is stopped\n")
    terminal.expect("\nKeyboardInterrupt\n" + PROMPT)
    play(terminal, ("await get(1)", "1"), ("task.exception()", "KeyboardInterrupt()"))
    assert_ends(terminal)


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_cancelled_by_itself_or_others(start, loop):
    terminal = start(loop)
    play(
        terminal,
        ("task = asyncio.current_task()", ""),
        ("task.cancel()", "True"),
        ("await get(1)", "1"),
        ("handle = asyncio.get_running_loop().call_soon(task.cancel)", ""),
        ("await get(2)", "2"),
        ("task.cancelling()", "0"),
    )
    printed = terminal.enter("task.cancel() and await get(3)", PROMPT)
    assert "\nasyncio.exceptions.CancelledError" in printed
    play(terminal, ("await get(4)", "4"), ("task.cancelling()", "0"))
    assert_ends(terminal)


def test_nursery_that_is_cancelled(start):
    pytest.importorskip("trio")
    terminal = start("trio")
    play(
        terminal,
        ("manager = trio.open_nursery(); nursery = await manager.__aenter__()", ""),
        ("nursery.start_soon(fail)", ""),
        ("1 + 1", "2"),
    )
    assert "trio.Cancelled: " in terminal.enter("await sleep_forever()", PROMPT)
    play(terminal, ("1 + 1", "2"))
    printed = terminal.enter("await manager.__aexit__(None, None, None)", PROMPT)
    assert "ValueError: from fail\n" in printed
    play(terminal, ("await get(1)", "1"))
    assert_ends(terminal)


def test_error_of_a_signal_handler(start):
    terminal = start("asyncio")
    define(
        terminal,
        "def handler(number, frame):\n    raise ValueError('from the handler')",
    )
    terminal.enter("import signal; _ = signal.signal(signal.SIGUSR1, handler)", PROMPT)
    terminal.send_signal(signal.SIGUSR1)
    assert terminal.expect(PROMPT).endswith("ValueError: from the handler\n")
    play(terminal, ("await get(1)", "1"))
    assert_ends(terminal)


# The end


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("line", "code", "printed"),
    [
        ("exit()", 0, ""),
        ("sys.exit('the reason')", 1, "the reason\n"),
        ("await greenback.with_portal_run_sync(sys.exit, 3)", 3, ""),
        ("await_(greenback.with_portal_run_sync(sys.exit, 3))", 3, ""),
    ],
)
def test_exit(start, loop, line, code, printed):
    terminal = start(loop)
    terminal.type(line + "\n")
    assert terminal.end() == (f"{line}\n{printed}", code)


def test_end_of_file_ends_a_statement_first(start):
    terminal = start("asyncio")
    terminal.enter("if 1:", MORE)
    terminal.enter("    await get('done')", MORE)
    terminal.type(CTRL_D)
    assert terminal.expect(PROMPT) == "\n'done'\n"
    terminal.enter("(1", MORE)
    terminal.type(CTRL_D)
    assert terminal.expect(MORE) == "\n"
    assert terminal.enter("+ 1)", PROMPT) == "2\n"
    assert_ends(terminal)


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_exit_of_another_task_while_the_prompt_waits(
    start, tmp_path, environment, loop, kind
):
    lines = [
        "def leave(): print('leaving', flush=True); sys.exit(5)",
        "",
        "def on_signal(*details): running.call_soon_threadsafe(leave)",
        "",
        "import signal; running = asyncio.get_running_loop()",
        "_ = signal.signal(signal.SIGUSR1, on_signal)",
    ]
    if kind == "terminal":
        terminal = start(loop)
        for line in lines:
            terminal.enter(line, MORE if line.startswith("def") else PROMPT)
        terminal.send_signal(signal.SIGUSR1)
        printed, code = terminal.end()
        assert termios.tcgetattr(terminal.file) == terminal.attributes
    else:
        process = subprocess.Popen(
            [sys.executable, "-q", "-m", "greenback", "--loop", loop],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            process.stdin.write("\n".join([*lines, "print('ready', flush=True)", ""]))
            process.stdin.flush()
            # To the next prompt: it is another thread that prints it.
            printed = ""
            while not printed.endswith(f"ready\n{PROMPT}"):
                printed += process.stdout.read(1)
            process.send_signal(signal.SIGUSR1)
            printed, code = process.stdout.read(), process.wait(TIMEOUT)
    assert "leaving\n" in printed
    assert "Fatal Python error" not in printed
    assert code == 5


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_other_tasks_are_cancelled_at_the_end(start, loop):
    terminal = start(loop)
    define(
        terminal,
        """
async def other():
    try:
        await forever()
    finally:
        await get(1)
        print("cleaned up", flush=True)
""",
    )
    terminal.enter("task = spawn(other); await settle()", "waiting\n")
    terminal.expect(PROMPT)
    terminal.type(CTRL_D)
    printed, code = terminal.end()
    assert printed.endswith("\ncleaned up\n")
    assert code == 0


# Pipes


@pytest.mark.parametrize("loop", LOOPS)
def test_pipe(pipe, loop):
    text = """\
await get('awaited')
def function(x):
    return sync_get(x)

function('called')
await fail()
for i in range(2):
    await get(i)

print("printed")
"""
    result = pipe(text, loop)
    assert answers(result) == "'awaited'\n'called'\n0\n1\nprinted\n"
    error = result.stderr.decode()
    assert names_of_frames(error) == ["<module>", "fail"]
    assert error.endswith("ValueError: from fail\n\n")
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("text", "stdout", "stderr", "code"),
    [
        ("", "", "\n", 0),
        ("1 + 1", "2\n", "\n", 0),
        ("for i in range(2):\n    await get(i)", "0\n1\n", "\n\n", 0),
        ("sys.exit(4)\nprint('not reached')\n", "", "", 4),
        ("print(input())\nnext line\n", "next line\n", "\n", 0),
        ("1\n\n\n2\n", "1\n2\n", "\n", 0),
    ],
)
def test_small_input_through_a_pipe(pipe, text, stdout, stderr, code):
    result = pipe(text)
    assert answers(result) == stdout
    assert result.stderr.decode() == stderr
    assert result.returncode == code


UNFINISHED = [
    (b"x = (1,\n", "SyntaxError: '(' was never closed"),
    (b'x = """\n', "SyntaxError: unterminated triple-quoted string"),
]
WRONG = [
    (b"x = \0\n", "null bytes"),
    (b"x = '\xff'\n", "surrogates not allowed"),
    (b"if 1:\n1\n\n", "IndentationError: expected an indented block"),
    (b"x = " + b"(" * 10_000 + b"\n", "too many nested parentheses"),
    (b"x = " + b"-" * 100_000 + b"1\n", "Error"),
]


@pytest.mark.parametrize(("text", "message"), WRONG + UNFINISHED)
def test_bad_input(pipe, text, message):
    result = pipe(text + b"await get('usable')\n")
    errors = result.stderr.decode()
    assert message in errors
    assert "greenback" not in errors
    assert "During handling" not in errors
    assert result.returncode == 0
    assert ("'usable'" in answers(result)) == ((text, message) in WRONG)


def test_without_stdin(tmp_path, environment):
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -q -m greenback <&-', sys.executable],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "\n")


# What surrounds it


def test_startup(start, tmp_path):
    startup = tmp_path / "startup.py"
    startup.write_text(
        "import sys\n"
        "sys.ps1 = 'new> '\n"
        "answer = await_(asyncio.sleep(0, 'awaited'))\n"
        "1 / 0\n"
        "not_reached = 1\n"
    )
    terminal = start(prompt="new> ", PYTHONSTARTUP=str(startup))
    assert names_of_frames(terminal.introduction) == ["<module>"]
    assert "ZeroDivisionError" in terminal.introduction
    assert "new> import asyncio, greenback" in terminal.introduction
    assert terminal.enter("answer", "new> ") == "'awaited'\n"
    assert "NameError" in terminal.enter("not_reached", "new> ")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("1 +", "SyntaxError"), ("\0", "null bytes")],
)
def test_startup_that_cannot_be_run(start, tmp_path, content, message):
    if content is not None:
        (tmp_path / "startup.py").write_text(content)
    terminal = start(PYTHONSTARTUP=str(tmp_path / "startup.py"))
    assert message in terminal.introduction
    assert "_repl" not in terminal.introduction
    play(terminal, ("await_(asyncio.sleep(0, 1))", "1"))


def test_environment_that_is_ignored(tmp_path, environment):
    code = "import os, sys; sys.path[:0] = os.environ['PYTHONPATH'].split(os.pathsep); "
    environment = {"PYTHONPATH": "", **environment}
    arguments = ["-E", "-c", code + run_with("pass")]
    with Terminal(*arguments, cwd=tmp_path, env=environment) as terminal:
        terminal.expect("import await_\n" + PROMPT)
        assert "NameError" in terminal.enter("sync_get", PROMPT)
        assert_ends(terminal)
    assert not (tmp_path / "history").exists()
    assert (tmp_path / ".python_history").exists()


def test_quiet(start):
    terminal = start("asyncio", "-q")
    assert "greenback" not in terminal.transcript
    play(terminal, ("await get(1)", "1"))


def test_history(start, tmp_path):
    history = tmp_path / "history"
    history.write_text("'from before'\n")
    terminal = start("asyncio")
    up = "\x1b[A"
    terminal.type(up + "\n")
    terminal.expect("\n'from before'\n" + PROMPT)
    play(terminal, ("await get('new')", "'new'"))
    terminal.type(up + "\n")
    terminal.expect("\n'new'\n" + PROMPT)
    assert_ends(terminal)
    assert history.read_text() == "'from before'\nawait get('new')\n"
    terminal = start("asyncio")
    terminal.type("exit()\n")
    terminal.end()
    assert history.read_text() == "'from before'\nawait get('new')\nexit()\n"


def test_history_in_the_home_directory(start, tmp_path):
    terminal = start("asyncio", PYTHON_HISTORY="")
    play(terminal, ("1 + 1", "2"))
    assert_ends(terminal)
    assert (tmp_path / ".python_history").read_text() == "1 + 1\n"


@pytest.mark.parametrize("path", ["/no/such/directory/history", "."])
def test_history_that_cannot_be_written(start, path):
    terminal = start("asyncio", PYTHON_HISTORY=path)
    play(terminal, ("1 + 1", "2"))
    assert_ends(terminal)


def test_completion(start):
    terminal = start("asyncio")
    terminal.type("sync_g\t")
    terminal.expect("sync_get(")
    terminal.type("5)\n")
    terminal.expect("\n5\n" + PROMPT)
    terminal.type("greenback.with_portal_run_sy\t")
    terminal.expect("greenback.with_portal_run_sync(")
    terminal.type(CTRL_C)
    terminal.expect(PROMPT)
    assert_ends(terminal)


@pytest.mark.parametrize(
    ("hook", "printed"),
    [("print('the ' 'hook')", "the hook\n"), ("1 / 0", "ZeroDivisionError")],
)
def test_interactive_hook(tmp_path, environment, hook, printed):
    setting = f"sys.__interactivehook__ = lambda: {hook}"
    arguments = ["-c", run_with(setting)]
    with Terminal(*arguments, cwd=tmp_path, env=environment) as terminal:
        assert printed in terminal.expect("import await_\n")
        terminal.expect(PROMPT)
        play(terminal, ("await get(1)", "1"))
        assert_ends(terminal)
    assert not (tmp_path / "history").exists()


@pytest.mark.parametrize("loop", LOOPS)
def test_debugger_at_the_prompt(start, loop):
    # A dumb terminal: elsewhere pdb has a line editor of its own from 3.15 on.
    terminal = start(loop, PYTHONBREAKPOINT="greenback.set_trace", TERM="dumb")
    define(terminal, "def function(x):\n    breakpoint()\n    return sync_get(x)")
    pdb = "(Pdb) "
    assert "breakpoint()" in terminal.enter("function(5)", pdb) or (
        sys.version_info < (3, 13)
    )
    assert terminal.enter("await get(x)", pdb) == "5\n"
    assert "return sync_get(x)" in terminal.enter("list", pdb)
    terminal.enter("await forever()", "waiting\n")
    terminal.interrupt()
    assert terminal.expect(pdb) == "*** KeyboardInterrupt\n"
    assert terminal.enter("c", PROMPT) == "5\n"
    terminal.enter("await forever()", "waiting\n")
    terminal.interrupt()
    assert terminal.expect(PROMPT).endswith("\nKeyboardInterrupt\n")
    assert_ends(terminal)
