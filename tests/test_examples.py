"""The programs in examples/ run, and check themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)

COMMANDS = [
    ("nested_run.py",),
    ("nested_run.py", "--loop", "uvloop"),
    ("own_runner.py",),
    ("task_tree.py",),
    ("task_tree.py", "--loop", "uvloop"),
    ("thread_hop.py",),
]
# `make demo`, test_debugger_example and test_ipython.py run these.
ELSEWHERE = {"crawler.py", "debugger.py", "notebook.ipynb"}


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_example(command: tuple[str, ...]) -> None:
    """The program ends with code 0 and writes no error or warning."""
    if "uvloop" in command:
        pytest.importorskip("uvloop")
    script, *arguments = command
    result = subprocess.run(
        [sys.executable, "-X", "dev", str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_debugger_example() -> None:
    """What the example suggests to type at its prompt works."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "debugger.py")],
        input="""await stock.get("apples")
count("pears")
p await asyncio.gather(*map(stock.get, ["apples", "pears"]))
continue
""",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.replace("(Pdb) ", "") for line in result.stdout.splitlines()]
    shown = [line for line in lines if line in ("3", "4", "[3, 4]", "total: 7")]
    assert shown == ["3", "4", "[3, 4]", "total: 7"]
    assert "tick" in lines


def test_every_example_is_run() -> None:
    """No program lies in the folder unused."""
    scripts = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert scripts == ELSEWHERE | {script for script, *_ in COMMANDS}
