"""Scripts that need an interpreter of their own: exit, fork, leaks, no memory."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).with_name("isolated")
LOOPS = ["asyncio", "trio", "uvloop"]

CASES = [
    ("exit_suspended.py", loop, holder)
    for loop in LOOPS
    for holder in ("global", "cycle", "foreign", "closed", "thread")
    if (loop, holder) != ("trio", "closed")
]
CASES += [
    (script, loop)
    for script in (
        "churn.py",
        "exit_during_step.py",
        "exit_threads.py",
        "fork_suspended.py",
        "gc_finalizer.py",
        "leaks.py",
        "many_threads.py",
        "nomemory.py",
        "recursion.py",
        "reimport.py",
    )
    for loop in LOOPS
]
CASES += [
    ("tracing.py", loop, kind)
    for loop in LOOPS
    for kind in ("trace", "profile", "monitoring")
]
CASES += [("interrupts.py", loop) for loop in ("asyncio", "uvloop")]
CASES += [("jit.py", kind) for kind in ("await", "step")]
CASES += [("subinterpreter.py", kind) for kind in ("own-gil", "shared-gil")]


def run_script(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the folder; its output and exit code are captured."""
    script, *arguments = command
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG")
    }
    if script == "jit.py":
        environment["PYTHON_JIT"] = "1"
    return subprocess.run(
        [
            *(sys.executable, "-X", "faulthandler"),
            *("-W", "ignore::ResourceWarning"),  # which debug builds show
            *(str(SCRIPTS / script), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("command", CASES, ids="-".join)
def test_script(command: tuple[str, ...]) -> None:
    """The script ends with code 0, says OK last, and writes no error."""
    _, *arguments = command
    if "trio" in arguments:
        pytest.importorskip("trio")
    if "uvloop" in arguments:
        pytest.importorskip("uvloop")
    result = run_script(*command)
    report = f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert result.returncode == 0, report
    last_line = (result.stdout.splitlines() or [""])[-1]
    if last_line.startswith("SKIP "):
        pytest.skip(last_line.removeprefix("SKIP "))
    assert last_line == "OK", report
    assert result.stderr == "", report


def test_every_script_is_run() -> None:
    """No script lies in the folder unused."""
    scripts = {path.name for path in SCRIPTS.glob("*.py")} - {"support.py"}
    assert scripts == {case[0] for case in CASES}
