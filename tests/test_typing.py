"""What type checkers make of the package: the files in typing/ say what they should."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

CASES = sorted(pathlib.Path(__file__).with_name("typing").glob("*.py"))
pytestmark = pytest.mark.timeout(300)


def check(folder, *command):
    """Run a type checker as a module, in an empty folder: it takes no settings from elsewhere."""
    pytest.importorskip(command[0])
    pytest.importorskip("trio")
    # --verifytypes asks the first Python of the PATH where packages are
    path = os.pathsep.join(
        [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    )
    result = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy(tmp_path):
    """mypy --strict accepts the good cases and rejects each bad one."""
    check(
        tmp_path,
        *("mypy", "--strict", "--warn-unused-ignores", "--config-file", ""),
        *("--cache-dir", tmp_path, *CASES),
    )


def test_basedpyright(tmp_path):
    """basedpyright, as strict as Pyright can be, does the same."""
    settings = {
        "include": [str(path) for path in CASES],
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    check(tmp_path, "basedpyright", "--pythonpath", sys.executable)


def test_nothing_is_without_a_type(tmp_path):
    """Each public name has a type that all type checkers take for the same."""
    check(tmp_path, "basedpyright", "--verifytypes", "greenback", "--ignoreexternal")
