"""Builds and loads the compiled modules of this folder, at first use.

They go to a cache folder that is named after the interpreter and the sources. What can't
be built is None, and ``missing`` says why.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
missing: dict[str, str] = {}


def cache_folder() -> Path:
    configured = os.environ.get("TORTURE_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "greenback-torture"


def compile_module(source: Path, target: Path, includes: list[str]) -> None:
    command = ["g++" if source.suffix == ".cpp" else "gcc", "-O1", "-g", "-shared"]
    command += ["-fPIC", "-w", f"-I{sysconfig.get_path('include')}"]
    command += [f"-I{folder}" for folder in includes]
    if source.suffix == ".cpp":
        command += ["-std=c++17", "-fvisibility=hidden"]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command += [str(source), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{command[0]} failed: {result.stderr[-2000:]}")
        os.replace(built, target)


def translate_with_cython(source: Path, folder: Path, name: str) -> Path:
    translated = folder / f"{name}.c"
    result = subprocess.run(
        [
            sys.executable,
            *("-m", "cython", "-3"),
            *(f"--module-name={name}", str(source), "-o", str(translated)),
        ],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"Cython failed: {result.stderr[-2000:]}")
    return translated


def build(name: str, source: Path) -> Path:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    content = hashlib.sha256(source.read_bytes() + sys.version.encode()).hexdigest()
    folder = cache_folder() / content[:16]
    target = folder / f"{name}{suffix}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    includes: list[str] = []
    if source.suffix == ".pyx":
        source = translate_with_cython(source, folder, name)
    elif name.startswith("torture_pybind"):
        import pybind11

        includes.append(pybind11.get_include())
    compile_module(source, target, includes)
    return target


def load(file_name: str) -> Any:
    """The module built from `file_name`, or None."""
    source = SOURCES / file_name
    name = f"torture_{source.stem}"
    try:
        spec = importlib.util.spec_from_file_location(name, build(name, source))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        missing[file_name] = str(error)
        return None
    return module


thread_state = load("thread_state.c")
cpp_frames = load("cpp_frames.cpp")
pybind_frames = load("pybind_frames.cpp")
cython_frames = load("cython_frames.pyx")
