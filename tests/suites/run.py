#!/usr/bin/env python3
"""Run test suites that other people wrote with a portal in every task.

``run.py [--native] [SUITE ...]``; suites are ``asyncio`` (CPython's test.test_asyncio), ``trio``
(the tests that Trio installs), ``anyio`` and ``uvloop`` (the tests in the source distribution of
the version that is installed, which pip fetches into .venvs). What fails is run again in the same
harness without portals, and what passes there twice more with portals, to tell it from what fails
now and then. The rest must stand in known.toml, under the engine in force. With ``--native`` the
whole suite is run without portals first. Prints the figures; the exit code is 1 if something else
failed, or if something in known.toml does not fail any more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import greenback

HERE = Path(__file__).resolve().parent
ARCHIVES = HERE.parents[1] / ".venvs" / "sdists"
TIMEOUT = 1200  # seconds, for a whole suite
REPEATS = 2

Ends = dict[str, str]  # how each test ended: "ok", "failed" or "skipped"


class SuiteError(Exception):
    """A suite could not be run."""


class MissingError(Exception):
    """A suite is not to be had here."""


def run_script(command: list[str], output: Path, cwd: Path | None = None) -> None:
    """Run one of our scripts; SuiteError if it has left no ``output``."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = subprocess.run(
                [sys.executable, *command],
                cwd=cwd or folder,
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
    """Run all, also if ``only`` some are asked for: pytest can't find those by their names."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "trio._tests.pytest_plugin", f"--junitxml={output}"]
    command += ["-p", "trio_portals"] * with_portals
    # Some files need what only Trio's developers have.
    command += ["--continue-on-collection-errors", "--pyargs"]
    run_script([*command, "trio._core._tests", "trio._tests"], output)
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


def fetch(package: str) -> Path:
    """Have pip fetch the source distribution of what is installed, if it has not yet."""
    version = importlib.metadata.version(package)
    archive = ARCHIVES / f"{package}-{version}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps"]
        command += ["--no-binary", package, "--dest", str(ARCHIVES)]
        run = subprocess.run(
            [*command, f"{package}=={version}"],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not archive.exists():
            raise MissingError(f"pip can't fetch {archive.name}: {run.stderr[-500:]}")
    return archive


def run_sdist(
    package: str, options: list[str], with_portals: bool, only: list[str], output: Path
) -> Ends:
    """Run the tests in a package's source distribution on the installed package."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fetch(package)) as archive:
            # Not the package itself, which would be imported instead of the installed one.
            parts = {member: Path(member.name).parts for member in archive}
            wanted = [
                member
                for member, (_, *path) in parts.items()
                if path[:1] == ["tests"] or path == ["pyproject.toml"]
            ]
            archive.extractall(folder, wanted, filter="data")
        (top,) = Path(folder).iterdir()
        if not (top / "tests").is_dir():
            raise MissingError(f"the source distribution of {package} has no tests")
        command = [str(HERE / "run_pytest.py"), str(output)]
        command += ["--portals"] * with_portals
        command += ["-q", "-p", "no:cacheprovider", *options]
        run_script([*command, *(only or ["tests"])], output, top)
    ends: Ends = json.loads(output.read_text())
    return ends


def run_anyio(with_portals: bool, only: list[str], output: Path) -> Ends:
    options = ["-m", "not network"]
    # They have three seconds for a pytest of their own, in which no task has a portal.
    for name in (
        "test_keyboardinterrupt_during_test",
        "test_dynamic_async_fixture_access_does_not_hang",
    ):
        options += ["--deselect", f"tests/test_pytest_plugin.py::{name}"]
    return run_sdist("anyio", options, with_portals, only, output)


def run_uvloop(with_portals: bool, only: list[str], output: Path) -> Ends:
    # for the whole source tree: how that is written
    options = ["--ignore", "tests/test_sourcecode.py"]
    return run_sdist("uvloop", options, with_portals, only, output)


Runner = Callable[[bool, list[str], Path], Ends]
SUITES: dict[str, tuple[str, Runner]] = {
    "asyncio": ("test.test_asyncio", run_asyncio),
    "trio": ("trio._tests", run_trio),
    "anyio": ("anyio", run_anyio),
    "uvloop": ("uvloop", run_uvloop),
}


def failures(ends: Ends) -> list[str]:
    return sorted(test for test, end in ends.items() if end == "failed")


def check(suite: str, known: dict[str, str], all_native: bool) -> bool:
    """Run a suite; whether all is as it should be."""
    package, run = SUITES[suite]
    top, _, _ = package.partition(".")
    if not importlib.util.find_spec(top) or not importlib.util.find_spec(package):
        print(f"!!!!!!!! {suite}: {package} IS NOT INSTALLED with this Python, NOT RUN")
        return True
    with tempfile.TemporaryDirectory() as folder:
        counter = iter(range(1000))

        def once(with_portals: bool, only: list[str]) -> Ends:
            output = Path(folder) / f"{next(counter)}"
            return run(with_portals, only, output)

        native = once(False, []) if all_native else {}
        portals = once(True, [])
        if not portals:
            raise SuiteError("no test was found")
        missing = sorted(native.keys() - portals.keys())
        failing = failures(portals) + missing
        if failing:
            again = once(False, failing)
            failing = [test for test in failing if again.get(test) != "failed"]
        for _ in range(REPEATS):
            if failing:
                again = once(True, failing)
                failing = [test for test in failing if again.get(test) != "ok"]
    counts = Counter(portals.values())
    print(
        f"{suite}: {len(portals)} tests with portals, {counts['skipped']} skipped,"
        f" {counts['failed']} failed; with portals only, always: {len(failing)}"
    )
    if all_native:
        print(f"  {len(native)} natively, {len(failures(native))} failed")
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
    parser.add_argument(
        "--native", action="store_true", help="all of them without portals, too"
    )
    args = parser.parse_args()
    known = tomllib.loads((HERE / "known.toml").read_text())
    print(f"Python {sys.version.split()[0]}, engine {greenback.engine}")
    as_should_be = True
    for suite in args.suites or SUITES:
        tests = known.get(str(greenback.engine), {}).get(suite, {})
        try:
            as_should_be &= check(suite, tests, args.native)
        except MissingError as exc:
            print(f"!!!!!!!! {suite}: {exc}, NOT RUN")
        except SuiteError as exc:
            print(f"{suite}: {exc}")
            as_should_be = False
    return 0 if as_should_be else 1


if __name__ == "__main__":
    sys.exit(main())
