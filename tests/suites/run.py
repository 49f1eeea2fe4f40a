#!/usr/bin/env python3
"""Run test suites that other people wrote, natively and with a portal in every task.

``run.py [SUITE ...]``; suites are ``asyncio`` (CPython's test.test_asyncio) and ``trio`` (the tests
that Trio installs). Both runs use the same harness. A test that fails with portals alone is run
twice more by itself, to tell it from one that fails now and then. What is left must stand in
known.toml, under the engine in force. Prints the figures; the exit code is 1 if something else
failed, or if something in known.toml does not fail any more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import greenback

HERE = Path(__file__).resolve().parent
TIMEOUT = 1200  # seconds, for a whole suite
REPEATS = 2

Ends = dict[str, str]  # how each test ended: "ok", "failed" or "skipped"


class SuiteError(Exception):
    """A suite could not be run."""


def run_script(command: list[str], output: Path) -> None:
    """Run one of our scripts; SuiteError if it has left no ``output``."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise SuiteError(f"{command[0]} took more than {TIMEOUT} s") from None
    if not output.exists():
        raise SuiteError(f"{command}: {run.stdout[-2000:]}{run.stderr[-2000:]}")


def run_asyncio(with_portals: bool, only: list[str], output: Path) -> Ends:
    command = [str(HERE / "run_asyncio.py"), str(output)]
    command += ["--portals"] * with_portals
    run_script([*command, *only], output)
    ends: Ends = json.loads(output.read_text())
    return ends


def run_trio(with_portals: bool, only: list[str], output: Path) -> Ends:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "trio._tests.pytest_plugin", f"--junitxml={output}"]
    command += ["-p", "trio_portals"] * with_portals
    # Some files need what only Trio's developers have.
    command += ["--continue-on-collection-errors", "--pyargs"]
    run_script([*command, *(only or ["trio._core._tests", "trio._tests"])], output)
    ends = {}
    for case in ET.parse(output).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        tags = {child.tag for child in case}
        ends[name] = (
            "failed"
            if tags & {"failure", "error"}
            else "skipped"
            if "skipped" in tags
            else "ok"
        )
    return ends


def trio_file(test: str) -> str:
    """The module of a test, as pytest takes it: tests can't be named with --pyargs."""
    name = test.split("[")[0]
    return name.rpartition(".")[0].removeprefix("lib.").partition("site-packages.")[2]


Runner = Callable[[bool, list[str], Path], Ends]
SUITES: dict[str, tuple[str, Runner, Callable[[str], str]]] = {
    "asyncio": ("test.test_asyncio", run_asyncio, lambda test: test),
    "trio": ("trio._tests", run_trio, trio_file),
}


def only_with_portals(native: Ends, portals: Ends) -> list[str]:
    """Tests that fail, or are missing, with portals only."""
    return sorted(
        test
        for test, end in native.items()
        if end != "failed" and portals.get(test, "failed") == "failed"
    )


def compare(suite: str, known: dict[str, str]) -> bool:
    """Run a suite twice; whether all is as it should be."""
    package, run, name = SUITES[suite]
    if importlib.util.find_spec(package) is None:
        print(f"{suite}: {package} IS NOT INSTALLED with this Python, NOT RUN")
        return False
    with tempfile.TemporaryDirectory() as folder:
        counter = iter(range(1000))

        def once(with_portals: bool, only: list[str]) -> Ends:
            output = Path(folder) / f"{next(counter)}"
            return run(with_portals, only, output)

        native, portals = once(False, []), once(True, [])
        failing = only_with_portals(native, portals)
        for _ in range(REPEATS):
            if failing:
                again = once(True, sorted({name(test) for test in failing}))
                failing = [test for test in failing if again.get(test) == "failed"]
    counts = [Counter(ends.values()) for ends in (native, portals)]
    print(
        f"{suite}: {len(native)} tests; failed natively {counts[0]['failed']}, with portals"
        f" {counts[1]['failed']}; always with portals only: {len(failing)}"
    )
    unknown = [test for test in failing if test not in known]
    healed = [test for test in known if portals.get(test) == "ok"]
    for test in unknown:
        print(f"  FAILS WITH PORTALS: {test}")
    for test in healed:
        print(f"  passes, but stands in known.toml: {test}")
    return not unknown and not healed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], default=[])
    args = parser.parse_args()
    known = tomllib.loads((HERE / "known.toml").read_text())
    print(f"Python {sys.version.split()[0]}, engine {greenback.engine}")
    as_should_be = True
    for suite in args.suites or SUITES:
        tests = known.get(str(greenback.engine), {}).get(suite, {})
        try:
            as_should_be &= compare(suite, tests)
        except SuiteError as exc:
            print(f"{suite}: {exc}")
            as_should_be = False
    return 0 if as_should_be else 1


if __name__ == "__main__":
    sys.exit(main())
