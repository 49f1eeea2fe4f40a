"""What type checkers make of the package: the files in typing/ say what they should."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

CASES = pathlib.Path(__file__).with_name("typing")


@pytest.mark.timeout(300)
def test_mypy(tmp_path):
    """mypy --strict accepts the good cases and rejects each bad one."""
    pytest.importorskip("mypy")
    pytest.importorskip("trio")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"),
            *("--config-file", "", "--cache-dir", str(tmp_path)),
            *(str(path) for path in sorted(CASES.glob("*.py"))),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
