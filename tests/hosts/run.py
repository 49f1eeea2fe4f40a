#!/usr/bin/env python3
"""Run packages from PyPI that use greenback, with the greenback of this environment.

``run.py [--break FAULT] [HOST ...]``; a host is a script ``check_HOST.py`` here, whose head tells
pip what it needs. Each has an environment of its own in .venvs/hosts, for they need different
versions of the same packages. What a host requires of greenback does not count: ours is put in
the place of what pip chose, and the table says where pip would object. With ``--break`` greenback
has a fault, and a check that passes has not noticed. The exit code is 1 if a check fails, with
``--break`` if one passes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import greenback

HERE = Path(__file__).resolve().parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
ENVIRONMENTS = HERE.parents[1] / ".venvs" / "hosts" / VERSION
SOURCE = Path(sys.prefix) / "source"  # what tools/test-env has built greenback from
TIMEOUT = 180  # seconds, for a check
HOSTS = sorted(path.stem.removeprefix("check_") for path in HERE.glob("check_*.py"))
FAULTS = {
    "await": """
def await_(aw):
    raise RuntimeError("broken")
greenback.await_ = await_
""",
    "portals": """
async def ensure_portal():
    pass
async def with_portal_run(function, *args, **kwds):
    return await function(*args, **kwds)
async def with_portal_run_sync(function, *args, **kwds):
    return function(*args, **kwds)
greenback.ensure_portal = ensure_portal
greenback.with_portal_run = greenback.with_portal_run_tree = with_portal_run
greenback.with_portal_run_sync = with_portal_run_sync
""",
}


class InstallError(Exception):
    """pip can't install something."""


def pip(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if run.returncode and "check" not in arguments:
        lines = run.stderr.splitlines()
        errors = [line for line in lines if line.lower().startswith("error")]
        raise InstallError(" ".join(errors or lines[-3:])[:300])
    return run.stdout


def install(host: str, wheel: Path) -> Path:
    """Make the host's environment, or bring it up to date; its interpreter."""
    environment = ENVIRONMENTS / host
    python = environment / "bin" / "python"
    if not python.exists():
        command = [sys.executable, "-m", "venv", "--without-pip", environment]
        subprocess.run(command, check=True)
    into = ("--python", python, "install", "--quiet")
    pip(*into, "--requirements-from-script", HERE / f"check_{host}.py")
    extra = "[greenlet]" if greenback.engine == "greenlet" else ""
    pip(*into, "--force-reinstall", f"{wheel}{extra}")
    return python


def check(host: str, python: Path, fault: str | None) -> tuple[bool, str]:
    """Run the host's script; whether it passed, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        path = []
        if fault:
            customize = Path(folder) / "sitecustomize.py"
            customize.write_text("import greenback\n" + FAULTS[fault])
            path.append(folder)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        try:
            run = subprocess.run(
                [python, HERE / f"check_{host}.py"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return False, f"took more than {TIMEOUT} s"
    if run.returncode:
        output = run.stdout[-2000:] + run.stderr[-4000:]
        if not fault:
            print(f"{host} ended with {run.returncode}:\n{output}")
        return False, (output.splitlines() or ["no output"])[-1][:100]
    return True, run.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hosts", nargs="*", choices=[*HOSTS, []], default=[])
    parser.add_argument("--break", dest="fault", choices=FAULTS)
    args = parser.parse_args()
    table = []
    as_should_be = True
    with tempfile.TemporaryDirectory() as folder:
        options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
        pip("wheel", "--quiet", *options, SOURCE)
        (wheel,) = Path(folder).iterdir()
        for host in args.hosts or HOSTS:
            start = time.monotonic()
            try:
                python = install(host, wheel)
            except InstallError as exc:
                table.append(f"{host:11} !!!!!!!! NOT INSTALLABLE, NOT RUN: {exc}")
                continue
            installed = time.monotonic()
            passed, closing = check(host, python, args.fault)
            as_should_be &= passed is not bool(args.fault)
            times = f"{installed - start:4.0f} s {time.monotonic() - installed:4.0f} s"
            result = "ok" if passed else "FAILED"
            table.append(f"{host:11} {result:6} {times}  {closing}")
            for line in pip("--python", python, "check").splitlines():
                if "greenback" in line:
                    table.append(f"{'':29} pip: {line}")
    print(f"Python {sys.version.split()[0]}, engine {greenback.engine}")
    print(f"{'host':11} {'':6} install  check")
    print("\n".join(table))
    return 0 if as_should_be else 1


if __name__ == "__main__":
    sys.exit(main())
