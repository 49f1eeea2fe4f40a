"""Where each peer runs: this environment, and one made for greenback 1.3.0."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ladder import PREVIOUS

PACKAGES = (
    *("greenlet", "trio", "uvloop", "SQLAlchemy", "awaitlet", "greenletio"),
    *("pyperf", "sniffio"),
)
# What greenback 1.3.0 meets in its own environment has to be what we meet.
SHARED = ("aiohttp", "greenlet", "trio", "uvloop", "pyperf", "sniffio")

_VERSIONS_SCRIPT = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


class SetupError(Exception):
    """An environment cannot be made or lacks something."""


def installed(python: str | Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those ``names`` that ``python`` has installed."""
    command = [str(python), "-I", "-c", _VERSIONS_SCRIPT, *names]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(output)
    return versions


def previous_python(root: Path) -> Path:
    """Return a Python that has greenback 1.3.0 and the packages of ours.

    The environment is made on first use, and brought up to date when a version
    here has changed.

    :param root: the checkout; the environment goes to ``.venvs`` there.
    :raises SetupError: pip could not install something.
    """
    tag = f"py{sys.version_info.major}.{sys.version_info.minor}"
    where = root / ".venvs" / f"bench-{PREVIOUS}-{tag}"
    python = where / "bin" / "python"
    wanted = {"greenback": PREVIOUS, **installed(sys.executable, SHARED)}
    if python.exists() and installed(python, tuple(wanted)) == wanted:
        return python
    print(
        f"setting up greenback {PREVIOUS} in {where.relative_to(root)}", file=sys.stderr
    )
    requirements = [f"{name}=={version}" for name, version in wanted.items()]
    where.parent.mkdir(exist_ok=True)
    (where.parent / ".gitignore").write_text("*\n")
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(where)], check=True
        )
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--quiet",
            "--disable-pip-version-check",
            *requirements,
        ]
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as exc:
        raise SetupError(f"cannot set up greenback {PREVIOUS}: {exc}") from exc
    return python


def find_engine(requested: str | None) -> str:
    """Return the engine that greenback runs on if ``requested`` is asked for.

    :param requested: an engine's name, or None for the default.
    :raises SetupError: greenback is missing here or lacks that engine.
    """
    environment = dict(os.environ)
    if requested is not None:
        environment["GREENBACK_ENGINE"] = requested
    command = [sys.executable, "-c", "import greenback; print(greenback.engine)"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    engine = result.stdout.strip()
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:]
        raise SetupError(f"greenback is not usable here: {' '.join(reason)}")
    if requested not in (None, engine):
        raise SetupError(f"greenback has no {requested} engine here: it uses {engine}")
    return engine


def machine() -> dict[str, str]:
    """Return what the figures depend on besides the packages."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "os": f"{_os_name()}, {platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}"
        f" ({platform.python_compiler()})",
    }


def versions(*others: str) -> dict[str, str]:
    """Return the versions of the packages in this environment."""
    return {
        "greenback": importlib.metadata.version("greenback"),
        **installed(sys.executable, (*others, *PACKAGES)),
    }


def conditions(*others: str) -> dict[str, Any]:
    """Return what has to be told with any figure."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "packages": versions(*others),
        "load average at the end": round(load, 1),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform(terse=True)
