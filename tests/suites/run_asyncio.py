"""Run CPython's test.test_asyncio and write how each test ended.

``run_asyncio.py OUTPUT [--portals] [TEST ...]``; OUTPUT becomes a JSON object of test names and
"ok", "failed" or "skipped".
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import sys
import unittest
from pathlib import Path
from typing import Any


class Recorder(unittest.TextTestResult):
    """Remembers how each test ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ends: dict[str, str] = {}

    def _note(self, test: unittest.TestCase, end: str) -> None:
        name = test.id()
        if self.ends.get(name, "ok") == "ok":
            self.ends[name] = end

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._note(test, "ok")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "failed")

    def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "ok")


def modules() -> list[str]:
    import test.test_asyncio as package

    return sorted(
        f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if module.name.startswith("test_")
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--portals", action="store_true")
    parser.add_argument("tests", nargs="*")
    args = parser.parse_intermixed_args()
    if args.portals:
        import portals

        portals.in_asyncio()
    from test import support

    support.use_resources = ["network", "cpu"]
    suite = unittest.TestSuite()
    loader = unittest.defaultTestLoader
    for name in args.tests or modules():
        try:
            suite.addTests(loader.loadTestsFromName(name))
        except unittest.SkipTest:
            pass  # for another platform
    runner = unittest.TextTestRunner(resultclass=Recorder, verbosity=1)
    result: Any = runner.run(suite)
    args.output.write_text(json.dumps(result.ends, indent=1, sort_keys=True))
    sys.stdout.flush()
    os._exit(0)  # whatever threads the tests may have left


if __name__ == "__main__":
    sys.exit(main())
