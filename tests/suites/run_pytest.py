"""Run pytest and write how each test ended.

``run_pytest.py OUTPUT [--portals] [PYTEST_ARGUMENT ...]``; OUTPUT becomes a JSON object of node
ids and "ok", "failed" or "skipped". With ``--portals`` each task gets a portal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Recorder:
    """A pytest plugin that remembers how each test ended."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}

    def _note(self, name: str, end: str) -> None:
        if self.ends.get(name, "ok") == "ok":
            self.ends[name] = end

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid, "failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            # also when it was reported as skipped before: in its clean-up
            self.ends[report.nodeid] = "failed"
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, "skipped")
        elif report.when == "call":
            self._note(report.nodeid, "ok")


def main() -> int:
    output, *arguments = sys.argv[1:]
    # Under nohup it is ignored, also by the programs that tests start and end with it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if arguments[:1] == ["--portals"]:
        import portals

        portals.in_asyncio()
        portals.in_trio()
        del arguments[0]
    # Not earlier: plugins of pytest may import what the portals have to be put into.
    import pytest

    recorder = Recorder()
    pytest.main(arguments, plugins=[recorder])
    Path(output).write_text(json.dumps(recorder.ends, indent=1, sort_keys=True))
    sys.stdout.flush()
    os._exit(0)  # whatever threads the tests may have left


if __name__ == "__main__":
    sys.exit(main())
