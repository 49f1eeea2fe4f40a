"""``python -m greenback`` behaves as ``python`` does, with a portal."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import select
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

TIMEOUT = 60


def loop_parameter(name: str):
    missing = importlib.util.find_spec(name) is None
    return pytest.param(
        name,
        marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"),
    )


ASYNCIO_LOOPS = ["asyncio", loop_parameter("uvloop")]
ALL_LOOPS = [*ASYNCIO_LOOPS, loop_parameter("trio")]

# What the scripts need to be written once for all loops.
PRELUDE = """\
import importlib, sys
import sniffio
from greenback import await_
library = importlib.import_module(sniffio.current_async_library())
def call_when_suspended(function):
    if library.__name__ == "trio":
        async def task(): function()
        library.lowlevel.spawn_system_task(task)
    else:
        library.get_running_loop().call_soon(function)
def say(text): print(text, flush=True)
"""

# Shows everything that a program can see of how it was started.
SELF_PORTRAIT = """\
import sys
import __main__
portrait = dict(vars(__main__))
for name in sorted(portrait):
    print(name, repr(portrait[name]))
print(sys.argv, repr(sys.path[0]), sys.modules["__main__"] is __main__)
def function(): return "globals are kept"
print(__main__.function())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables that leave python's behaviour at its defaults."""
    variables = dict(os.environ)
    for name in ("PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE"):
        variables.pop(name, None)
    # Without cached bytecode each start would compile the standard library.
    variables["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))
    return variables


@pytest.fixture
def run(tmp_path, environment):
    """Run the interpreter in tmp_path.

    What it prints comes without object addresses and without tmp_path's name.
    """

    def normalise(text: str) -> str:
        text = text.replace(str(tmp_path), "DIRECTORY")
        return re.sub(r"0x[0-9a-fA-F]+", "0x", text)

    def run_python(*arguments: str, stdin: str = ""):
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        result.stdout = normalise(result.stdout)
        result.stderr = normalise(result.stderr)
        return result

    return run_python


@pytest.fixture(scope="module")
def plain_results():
    """What plain python did with a program, by the program's name."""
    return {}


@pytest.fixture
def write(tmp_path):
    """Write a source file below tmp_path."""

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return name

    return write_file


def assert_silent_success(result) -> None:
    assert (result.stderr, result.returncode) == ("", 0)


# What the program sees


def prepare_file(tmp_path: Path) -> list[str]:
    (tmp_path / "portrait.py").write_text(SELF_PORTRAIT)
    return ["portrait.py"]


def prepare_file_elsewhere(tmp_path: Path) -> list[str]:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/portrait.py").write_text(SELF_PORTRAIT)
    return ["./sub/../sub/portrait.py"]


def prepare_absolute_path(tmp_path: Path) -> list[str]:
    return [str(tmp_path / prepare_file(tmp_path)[0])]


def prepare_symlink(tmp_path: Path) -> list[str]:
    prepare_file_elsewhere(tmp_path)
    (tmp_path / "link.py").symlink_to(tmp_path / "sub/portrait.py")
    return ["link.py"]


def prepare_bytecode(tmp_path: Path) -> list[str]:
    source = tmp_path / prepare_file(tmp_path)[0]
    py_compile.compile(str(source), cfile=str(tmp_path / "portrait.pyc"))
    return ["portrait.pyc"]


def prepare_directory(tmp_path: Path) -> list[str]:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__main__.py").write_text(SELF_PORTRAIT)
    return ["./app/"]


def prepare_zip_file(tmp_path: Path) -> list[str]:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", SELF_PORTRAIT)
    return ["app.zip"]


def prepare_module(tmp_path: Path) -> list[str]:
    prepare_file(tmp_path)
    return ["-m", "portrait"]


def prepare_joined_module(tmp_path: Path) -> list[str]:
    prepare_file(tmp_path)
    return ["-mportrait"]


def prepare_package(tmp_path: Path) -> list[str]:
    (tmp_path / "package/inner").mkdir(parents=True)
    (tmp_path / "package/__init__.py").write_text("import sys; print(sys.argv)")
    (tmp_path / "package/inner/__init__.py").write_text("")
    (tmp_path / "package/inner/__main__.py").write_text(SELF_PORTRAIT)
    return ["-m", "package.inner"]


def prepare_code(tmp_path: Path) -> list[str]:
    return ["-c", SELF_PORTRAIT]


def prepare_joined_code(tmp_path: Path) -> list[str]:
    return ["-c" + SELF_PORTRAIT]


def prepare_stdin(tmp_path: Path) -> list[str]:
    return ["-"]


@pytest.mark.parametrize("safe_path", [[], ["-P"]], ids=["", "safe_path"])
@pytest.mark.parametrize(
    "prepare",
    [
        prepare_file,
        prepare_file_elsewhere,
        prepare_absolute_path,
        prepare_symlink,
        prepare_bytecode,
        prepare_directory,
        prepare_zip_file,
        prepare_module,
        prepare_joined_module,
        prepare_package,
        prepare_code,
        prepare_joined_code,
        prepare_stdin,
    ],
)
def test_program_sees_what_python_shows_it(run, tmp_path, prepare, safe_path):
    if safe_path and prepare in (
        prepare_module,
        prepare_joined_module,
        prepare_package,
    ):
        pytest.skip("safe_path keeps python from finding the module")
    program = [*prepare(tmp_path), "--loop", "an argument", "-h", "-c"]
    plain = run(*safe_path, *program, stdin=SELF_PORTRAIT)
    ours = run(*safe_path, "-m", "greenback", *program, stdin=SELF_PORTRAIT)
    assert_silent_success(plain)
    assert_silent_success(ours)
    assert "globals are kept" in ours.stdout
    assert ours.stdout == plain.stdout


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize(
    "program",
    [["script.py"], ["-m", "script"], ["-c", "import script"], ["-"], ["app"]],
    ids=lambda program: program[0],
)
def test_top_level_code_can_await(run, write, loop, program):
    text = PRELUDE + 'await_(library.sleep(0)); say("waited")\n'
    write("script.py", text)
    write("app/__main__.py", text)
    result = run("-m", "greenback", "--loop", loop, *program, stdin=text)
    assert_silent_success(result)
    assert result.stdout == "waited\n"


def test_code_of_parent_package_can_await(run, write):
    write("package/__init__.py", PRELUDE + "await_(library.sleep(0))\n")
    write("package/inner.py", "print('inner')\n")
    result = run("-m", "greenback", "-m", "package.inner")
    assert_silent_success(result)
    assert result.stdout == "inner\n"


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize("form", ["--loop {}", "--loop={}", "-l {}", "-l{}"])
def test_chosen_loop_runs(run, loop, form):
    code = """
import sys
if "asyncio" in sys.modules:
    import asyncio
    try:
        print(type(asyncio.get_running_loop()).__module__)
    except RuntimeError:
        pass
if "trio" in sys.modules:
    import trio
    print("trio" if trio.lowlevel.in_trio_run() else "")
"""
    result = run("-m", "greenback", *form.format(loop).split(), "-c", code)
    assert_silent_success(result)
    assert result.stdout.split()[0].partition(".")[0] == loop


def test_default_loop_is_asyncio(run):
    code = "import sniffio; print(sniffio.current_async_library())"
    assert run("-m", "greenback", "-c", code).stdout == "asyncio\n"


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_other_tasks_go_on_while_program_waits(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
if library.__name__ == "trio":
    done = library.Event()
    call_when_suspended(lambda: (say("other"), done.set()))
    await_(done.wait())
else:
    done = library.get_running_loop().create_future()
    call_when_suspended(lambda: (say("other"), done.set_result(None)))
    await_(done)
say("program")
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert_silent_success(result)
    assert result.stdout == "other\nprogram\n"


def test_program_reads_its_own_stdin(run, write):
    write("script.py", "print(input() + '!')")
    result = run("-m", "greenback", "script.py", stdin="hello\n")
    assert_silent_success(result)
    assert result.stdout == "hello!\n"


def test_double_dash_ends_our_options(run, write):
    write("-odd.py", "import sys; print(sys.argv)")
    result = run("-m", "greenback", "--", "-odd.py", "-x")
    assert_silent_success(result)
    assert result.stdout == "['-odd.py', '-x']\n"


def test_classes_of_main_can_be_pickled(run, write):
    write(
        "script.py",
        """
        import pickle
        class Point: x = 1
        print(pickle.loads(pickle.dumps(Point())).x)
        """,
    )
    result = run("-m", "greenback", "script.py")
    assert_silent_success(result)
    assert result.stdout == "1\n"


def test_multiprocessing_finds_functions_of_main(run, write):
    write(
        "script.py",
        """
        import multiprocessing
        def double(number): return 2 * number
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [1, 2]))
        """,
    )
    result = run("-m", "greenback", "script.py")
    assert_silent_success(result)
    assert result.stdout == "[2, 4]\n"


# Command line errors


def test_help(run):
    result = run("-m", "greenback", "--help")
    assert_silent_success(result)
    for word in ("SCRIPT", "MODULE", "CODE", "asyncio", "uvloop", "trio"):
        assert word in result.stdout


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(run, option):
    from importlib.metadata import version

    result = run("-m", "greenback", option)
    assert_silent_success(result)
    assert result.stdout == f"greenback {version('greenback')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loop", "curio", "-c", "0"], "invalid choice: 'curio'"),
        (["-l", "curio"], "invalid choice: 'curio'"),
        (["--loop"], "expected one argument"),
        (["-l"], "expected one argument"),
        (["--lo", "trio", "-c", "0"], "unrecognized arguments: --lo"),
        (["--nonsense", "x.py"], "unrecognized arguments: --nonsense"),
        (["-c"], "argument expected for the -c option"),
        (["-m"], "argument expected for the -m option"),
        (["--"], "a SCRIPT is required after --"),
    ],
)
def test_wrong_command_line(run, arguments, message):
    result = run("-m", "greenback", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("usage: python -m greenback")
    assert message in result.stderr


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        (["missing.py"], 2),
        (["missing/nor/this.py"], 2),
        (["empty_directory"], 1),
        (["-m", "missing_module"], 1),
        (["-m", "missing_package.module"], 1),
        (["-m", "package"], 1),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_program_not_found(run, write, tmp_path, loop, program, exit_code):
    (tmp_path / "empty_directory").mkdir()
    write("package/__init__.py", "")
    plain = run(*program)
    ours = run("-m", "greenback", "--loop", loop, *program)
    assert ours.returncode == plain.returncode == exit_code
    assert ours.stderr == plain.stderr
    assert ours.stdout == ""


def test_script_without_read_permission(run, write, tmp_path):
    write("secret.py", "print('read')")
    (tmp_path / "secret.py").chmod(0)
    if os.access(tmp_path / "secret.py", os.R_OK):
        pytest.skip("this user may read every file")
    result = run("-m", "greenback", "secret.py")
    assert result.returncode == 2
    assert "can't open file" in result.stderr


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_loop_not_installed(run, loop):
    code = f"""
import runpy, sys
sys.modules[{loop!r}] = None  # makes its import fail
sys.argv = ["-m", "--loop", {loop!r}, "-c", "print('ran')"]
runpy.run_module("greenback", run_name="__main__", alter_sys=True)
"""
    result = run("-c", code)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"{sys.executable}: the loop {loop!r} is not installed; "
        f"get it with: python -m pip install {loop}\n"
    )


# How the program ends

FAILING_PROGRAMS = {
    "syntax error": "x = 1\ny = (\n",
    "indentation error": "if 1:\nx = 2\n",
    "plain": "def fail():\n    raise ValueError('deep')\nfail()\n",
    "cause": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise ValueError("second") from error
        """,
    "context": """
        def fail():
            try:
                {}["key"]
            finally:
                [].pop()
        fail()
        """,
    "group": """
        def fail(number):
            raise OSError(number)
        errors = []
        for number in range(2):
            try:
                fail(number)
            except OSError as error:
                errors.append(error)
        raise ExceptionGroup("both", errors)
        """,
    "note": """
        error = RuntimeError("noted")
        error.add_note("a note")
        raise error
        """,
    "base exception": "class Stop(BaseException): pass\nraise Stop\n",
    "generator exit": "raise GeneratorExit\n",
    "recursion": "def again(): again()\nagain()\n",
    "import": "import broken\n",
    "missing import": "import no_such_module_at_all\n",
    "keyboard interrupt": "raise KeyboardInterrupt\n",
    "interrupt subclass": """
        class Interrupt(KeyboardInterrupt): pass
        raise Interrupt("from the program")
        """,
    "unprintable": """
        class Unprintable(Exception):
            def __str__(self): raise ValueError
        raise Unprintable
        """,
    "exit in group": "raise BaseExceptionGroup('g', [SystemExit(3)])\n",
    "exit 0": "import sys; sys.exit(0)\n",
    "exit 7": "import sys; sys.exit(7)\n",
    "exit none": "import sys; sys.exit()\n",
    "exit string": "import sys; sys.exit('the reason')\n",
    "exit object": "import sys; sys.exit((1, 2))\n",
    "exit subclass": "class E(SystemExit): pass\nraise E(3)\n",
    "exit big": "raise SystemExit(256 + 9)\n",
    "excepthook": """
        import sys, traceback
        def hook(kind, value, tb):
            print("hook", kind, value, len(traceback.extract_tb(tb)))
            print(value.__traceback__ is tb, sys.last_traceback is tb)
            print(sys.last_value is value, sys.excepthook is hook)
        sys.excepthook = hook
        raise ValueError("for the hook")
        """,
    "excepthook that exits": """
        import sys
        def hook(kind, value, tb):
            sys.exit(5)
        sys.excepthook = hook
        raise ValueError
        """,
    "atexit": """
        import atexit
        def at_exit(): print("main is", __name__, "and usable")
        atexit.register(at_exit)
        raise ValueError
        """,
    "atexit that fails": """
        import atexit
        def at_exit(): raise ValueError("late")
        atexit.register(at_exit)
        """,
    "thread that fails": """
        import threading
        def fail(): raise ValueError("in a thread")
        thread = threading.Thread(target=fail, name="failing")
        thread.start()
        thread.join()
        """,
    "thread to wait for": """
        import threading, time
        release = threading.Event()
        def late():
            release.wait()
            print("late")
        threading.Thread(target=late).start()
        import atexit
        threading.main_thread()
        threading._register_atexit(release.set)
        print("first")
        """,
    "daemon thread": """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print("end")
        """,
}


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize("name", FAILING_PROGRAMS)
def test_program_ends_as_in_python(run, write, plain_results, loop, name):
    write("broken.py", "def fail():\n    1 / 0\nfail()\n")
    write("script.py", FAILING_PROGRAMS[name])
    plain = plain_results.get(name) or run("script.py")
    plain_results[name] = plain
    ours = run("-m", "greenback", "--loop", loop, "script.py")
    if name == "recursion":
        plain.stderr = plain.stderr.splitlines()[-1]
        ours.stderr = ours.stderr.splitlines()[-1]
    assert ours.stderr == plain.stderr
    assert ours.stdout == plain.stdout
    assert ours.returncode == plain.returncode


@pytest.mark.parametrize(
    "name",
    ["syntax error", "plain", "cause", "group", "exit 7", "import"],
)
@pytest.mark.parametrize("kind", ["-", "-c", "-m", "directory"])
def test_other_programs_end_as_in_python(run, write, name, kind):
    text = textwrap.dedent(FAILING_PROGRAMS[name])
    write("broken.py", "def fail():\n    1 / 0\nfail()\n")
    write("script.py", text)
    write("app/__main__.py", text)
    write("app/broken.py", "def fail():\n    1 / 0\nfail()\n")
    program = {
        "-": ["-"],
        "-c": ["-c", text],
        "-m": ["-m", "script"],
        "directory": ["app"],
    }[kind]
    # Debug builds have runpy frozen only if they are asked to.
    plain = run("-X", "frozen_modules=on", *program, stdin=text)
    ours = run("-m", "greenback", *program, stdin=text)
    # The only frames that python itself leaves in.
    expected = re.sub(r'[ |]+File "<frozen runpy>".*\n', "", plain.stderr)
    if name == "syntax error" and kind in ("-m", "directory"):
        # Here python adds frames of the import system as well.
        expected = expected[expected.rindex("  File ") :]
        assert ours.stderr.endswith(expected)
        assert "runpy" not in ours.stderr
        assert "greenback" not in ours.stderr
    else:
        assert ours.stderr == expected
    assert ours.returncode == plain.returncode


@pytest.mark.parametrize(
    "source",
    [b"x = 1\0\n", b"# coding: no-such\nx = 1\n", b"x = '\xff'\n"],
    ids=["null byte", "unknown encoding", "wrong encoding"],
)
def test_source_that_cannot_be_decoded(run, tmp_path, source):
    (tmp_path / "script.py").write_bytes(source)
    result = run("-m", "greenback", "script.py")
    assert result.returncode == 1
    assert "script.py" in result.stderr
    assert "SyntaxError: " in result.stderr
    assert "_runner" not in result.stderr


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_traceback_after_waiting_is_the_programs(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
async def fail():
    await library.sleep(0)
    raise ValueError("from a coroutine")
def call():
    await_(fail())
try:
    call()
except ValueError as error:
    raise RuntimeError("from the program") from error
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert result.returncode == 1
    frames = re.findall(r'File ".*?([^/"]+)", line \d+, in (.+)', result.stderr)
    assert frames == [
        ("script.py", "<module>"),
        ("script.py", "call"),
        ("script.py", "fail"),
        ("script.py", "<module>"),
    ]
    assert "ValueError: from a coroutine" in result.stderr
    assert result.stderr.endswith("RuntimeError: from the program\n")


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_exit_from_a_coroutine(run, loop):
    code = PRELUDE + "async def leave(): sys.exit(4)\nawait_(leave())\n"
    result = run("-m", "greenback", "--loop", loop, "-c", code)
    assert (result.returncode, result.stderr) == (4, "")


def test_failing_excepthook_shows_both_errors(run, write):
    write(
        "script.py",
        """
        import sys
        def hook(*details):
            raise KeyError("hook's own")
        sys.excepthook = hook
        raise ValueError("original")
        """,
    )
    result = run("-m", "greenback", "script.py")
    assert result.returncode == 1
    assert "Error in sys.excepthook" in result.stderr
    assert "hook's own" in result.stderr
    assert result.stderr.endswith("ValueError: original\n")
    original = result.stderr.partition("Original exception was:")[2]
    assert original.count("File ") == 1


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_leftover_tasks_are_cancelled(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
async def forever():
    try:
        await library.get_running_loop().create_future()
    finally:
        await library.sleep(0)
        say("cleaned up")
async def numbers():
    try:
        while True: yield 1
    finally:
        await library.sleep(0)
        say("generator closed")
task = library.get_running_loop().create_task(forever())
generator = numbers()
await_(anext(generator))
call_when_suspended(lambda: say("started"))
await_(library.sleep(0))
await_(library.sleep(0))
import atexit
atexit.register(lambda: say(f"cancelled: {task.cancelled()}"))
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert_silent_success(result)
    assert result.stdout.splitlines() == [
        "started",
        "cleaned up",
        "generator closed",
        "cancelled: True",
    ]


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_exit_in_another_task_ends_the_program(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
call_when_suspended(lambda: sys.exit(6))
try:
    await_(library.get_running_loop().create_future())
finally:
    await_(library.sleep(0))
    say("cleaned up")
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert (result.returncode, result.stderr) == (6, "")
    assert result.stdout == "cleaned up\n"


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_stopped_loop_is_an_error_in_the_program(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
call_when_suspended(library.get_running_loop().stop)
try:
    await_(library.get_running_loop().create_future())
except RuntimeError as error:
    say(error)
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert_silent_success(result)
    assert result.stdout == "Event loop stopped before Future completed.\n"


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_program_that_cancels_itself(run, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
library.current_task().cancel("by itself")
await_(library.sleep(0))
""",
    )
    result = run("-m", "greenback", "--loop", loop, "script.py")
    assert result.returncode == 1
    assert "CancelledError" in result.stderr
    assert "_runner" not in result.stderr


# Interruption


@pytest.fixture
def start(tmp_path, environment):
    """Start the interpreter in tmp_path and wait until it says 'ready'."""
    processes = []

    def start_python(*arguments: str):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_python
    for process in processes:
        process.kill()
        process.communicate()


def interrupt(process, signal_number=signal.SIGINT) -> tuple[str, str]:
    process.send_signal(signal_number)
    return process.communicate("a line\n", timeout=TIMEOUT)


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_interrupt_while_waiting(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
import atexit
atexit.register(say, "at exit")
def wait():
    try:
        await_(library.sleep(3600))
    finally:
        await_(library.sleep(0))
        say("cleaned up")
call_when_suspended(lambda: say("ready"))
wait()
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process)
    assert stdout == "cleaned up\nat exit\n"
    assert re.findall(r'File ".*?([^/"]+)", line \d+, in (.+)', stderr) == [
        ("script.py", "<module>"),
        ("script.py", "wait"),
    ]
    assert "await_(library.sleep(3600))" in stderr
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert "During handling" not in stderr
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize("work", ["while True: time.sleep(0.01)", "while True: pass"])
@pytest.mark.parametrize("waited", [False, True])
def test_interrupt_of_sync_code(start, write, loop, work, waited):
    write(
        "script.py",
        PRELUDE
        + f"""
import time
def spin():
    if {waited}:
        await_(library.sleep(0))
    say("ready")
    {work}
spin()
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process)
    assert stdout == ""
    frames = re.findall(r'File ".*?([^/"]+)", line \d+, in (.+)', stderr)
    assert frames[:2] == [("script.py", "<module>"), ("script.py", "spin")]
    assert {file for file, _function in frames} == {"script.py"}
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_interrupt_of_awaited_coroutine(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
async def spin():
    await library.sleep(0)
    say("ready")
    while True: pass
await_(spin())
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    _stdout, stderr = interrupt(process)
    assert "in spin" in stderr
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_program_may_survive_interrupts(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
for text in ("ready", "again"):
    call_when_suspended(lambda: say(text))
    try:
        await_(library.sleep(3600))
    except KeyboardInterrupt as error:
        say(f"caught {error.__context__}")
await_(library.sleep(0))
if library.__name__ == "asyncio":
    say(library.current_task().cancelling())
else:
    say(0)
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "caught None\n"
    assert process.stdout.readline() == "again\n"
    stdout, stderr = interrupt(process)
    assert stdout == "caught None\n0\n"
    assert (stderr, process.returncode) == ("", 0)


@pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="asyncio has no selector of this kind here"
)
def test_interrupt_just_before_the_loop_waits(start, write):
    """It ends the wait, although no system call is there yet to be interrupted."""
    write(
        "script.py",
        PRELUDE
        + """
import ctypes, functools, operator, signal
send_sigint = functools.partial(ctypes.PyDLL(None)["raise"], signal.SIGINT)
class Poll:
    def __init__(self, epoll): self.epoll = epoll
    def __getattr__(self, name): return getattr(self.epoll, name)
    def poll(self, timeout, *arguments):
        if timeout not in (None, -1):
            return self.epoll.poll(timeout, *arguments)
        selector._selector = self.epoll
        # In one call of a C function, in which Python calls no handler.
        poll = functools.partial(self.epoll.poll, timeout, *arguments)
        return list(map(operator.call, [send_sigint, poll]))[1]
selector = library.get_running_loop()._selector
selector._selector = Poll(selector._selector)
say("ready")
try:
    await_(library.get_running_loop().create_future())
except KeyboardInterrupt:
    say("interrupted")
""",
    )
    process = start("-m", "greenback", "script.py")
    # Not communicate(): it would miss what has been read together with "ready".
    assert process.stdout.read() == "interrupted\n"
    assert process.stderr.read() == ""


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_programs_own_handler_is_used(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
import signal
if library.__name__ == "trio":
    done = library.Event()
    signal.signal(signal.SIGINT, lambda *details: done.set())
    waiting = done.wait()
else:
    done = library.get_running_loop().create_future()
    library.get_running_loop().add_signal_handler(
        signal.SIGINT, done.set_result, None)
    waiting = done
call_when_suspended(lambda: say("ready"))
await_(waiting)
say("own handler")
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process)
    assert (stdout, stderr) == ("own handler\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ALL_LOOPS)
def test_ignored_interrupt_stays_ignored(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
call_when_suspended(lambda: say("ready"))
if library.__name__ == "trio":
    await_(library.to_thread.run_sync(sys.stdin.readline))
else:
    await_(library.to_thread(sys.stdin.readline))
say("not interrupted")
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process)
    assert (stdout, stderr) == ("not interrupted\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_exception_of_signal_handler_reaches_the_program(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
import signal
def handler(*details):
    sys.exit(9)
signal.signal(signal.SIGTERM, handler)
call_when_suspended(lambda: say("ready"))
try:
    await_(library.sleep(3600))
finally:
    await_(library.sleep(0))
    say("cleaned up")
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process, signal.SIGTERM)
    assert (stdout, stderr) == ("cleaned up\n", "")
    assert process.returncode == 9


@pytest.mark.parametrize("loop", ALL_LOOPS)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_child_tasks_first(start, write, loop, sent):
    if loop == "trio" and sent == signal.SIGTERM:
        pytest.skip("Trio's signal handlers must not raise")
    write(
        "script.py",
        PRELUDE
        + """
import signal
from greenback import async_context
if library.__name__ == "asyncio":
    signal.signal(signal.SIGTERM, lambda *details: sys.exit("terminated"))
async def child():
    try:
        await library.sleep(3600)
    except BaseException as error:
        say(f"child: {type(error).__name__}")
        raise
async def say_when_all_wait():
    from trio.testing import wait_all_tasks_blocked
    await wait_all_tasks_blocked()
    say("ready")
def run_children():
    if library.__name__ == "trio":
        with async_context(library.open_nursery()) as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)
            library.lowlevel.spawn_system_task(say_when_all_wait)
    else:
        with async_context(library.TaskGroup()) as group:
            group.create_task(child())
            group.create_task(child())
            call_when_suspended(lambda: say("ready"))
try:
    run_children()
except (KeyboardInterrupt, SystemExit) as error:
    await_(library.sleep(0))
    say(f"program: {type(error).__name__} {error.args}")
    raise
except BaseExceptionGroup as group:
    say(f"program: {type(group.exceptions[0]).__name__} ()")
    raise group.exceptions[0]
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    stdout, stderr = interrupt(process, sent)
    cancelled = "Cancelled" if loop == "trio" else "CancelledError"
    if sent == signal.SIGINT:
        error = "KeyboardInterrupt ()"
        assert stderr.endswith("\nKeyboardInterrupt\n")
        assert process.returncode == -signal.SIGINT
    else:
        error = "SystemExit ('terminated',)"
        assert stderr == "terminated\n"
        assert process.returncode == 1
    assert stdout.splitlines() == [
        f"child: {cancelled}",
        f"child: {cancelled}",
        f"program: {error}",
    ]


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_second_interrupt_gives_a_deaf_program_up(start, write, loop):
    write(
        "script.py",
        PRELUDE
        + """
async def deaf():
    call_when_suspended(lambda: say("ready"))
    try:
        await library.sleep(3600)
    except library.CancelledError:
        call_when_suspended(lambda: say("deaf"))
    await library.sleep(3600)
await_(library.get_running_loop().create_task(deaf()))
""",
    )
    process = start("-m", "greenback", "--loop", loop, "script.py")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "deaf\n"
    _stdout, stderr = interrupt(process)
    frames = re.findall(r'File ".*?([^/"]+)", line \d+, in (.+)', stderr)
    assert frames == [("script.py", "<module>")]
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT
