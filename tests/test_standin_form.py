"""Stand-ins instead of retyped coroutines, for all tasks.

That is how portals are put in place where the interpreter lays coroutines out
in a way that is not known. What can be told apart then (the identity of a
task's coroutine) is left out.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FILES = [
    "test_await.py",
    "test_cancellation.py",
    "test_collected.py",
    "test_contextvars.py",
    "test_has_portal.py",
    "test_nested_loops.py",
    "test_portal.py",
    "test_sqlalchemy.py",
    "test_threads.py",
    "test_tree.py",
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", FILES)
def test_with_stand_ins(file):
    here = pathlib.Path(__file__).parent
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            str(here / file),
        ],
        cwd=here.parent,
        env={**os.environ, "GREENBACK_FORM": "standin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert " passed" in run.stdout
