"""Rules for the C code that no compiler checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import greenback._core

CSRC = Path(__file__).parent.parent / "csrc"
MAX_LINES = 700

# Each file may include its own header, and those of the layers above it in this list.
LAYERS = [
    ["vendor/pythoncapi_compat"],
    ["gb_compat"],
    ["gb_bytecode", "gb_internal"],
    ["gb_frames"],
    ["gb_cpython"],
    ["gb_tools"],
    ["gb_state"],
    ["gb_collector"],
    ["gb_engine", "gb_loop", "gb_drive"],  # the seams
    ["gb_portal"],
    ["gb_orphans"],
    ["gb_asyncio", "gb_trio"],
    ["engine/greenlet_api", "engine/stack"],
    ["engine/anchor", "engine/slabs", "engine/stack_aarch64", "engine/stack_x86_64"],
    ["engine/foreign"],
    ["engine/greenlet", "engine/direct"],
    ["gb_standin"],
    ["gb_coroutine"],
    ["gb_task", "gb_tree"],
    ["gb_await"],
    ["gb_factory", "gb_function", "gb_guard", "gb_wrappers"],
    ["gb_module"],
]
LAYER_OF = {unit: depth for depth, units in enumerate(LAYERS) for unit in units}

if not CSRC.is_dir():
    pytest.skip("the C sources are not here", allow_module_level=True)

FILES = sorted(path for path in CSRC.rglob("*.[ch]") if path.parent.name != "vendor")
each_file = pytest.mark.parametrize(
    "file", FILES, ids=[path.relative_to(CSRC).as_posix() for path in FILES]
)


def unit_of(file: Path) -> str:
    """Name a file as LAYERS does: below csrc/, without its ending."""
    return file.relative_to(CSRC).with_suffix("").as_posix()


def includes(file: Path) -> list[str]:
    """Return the names that ``file`` includes, as they stand there."""
    return re.findall(r'^\s*#\s*include\s+["<](.+)[">]', file.read_text(), re.MULTILINE)


def code_of(file: Path) -> str:
    """Return the text of ``file`` without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", file.read_text(), flags=re.DOTALL)


def test_layers_name_existing_files() -> None:
    """The list above holds nothing that is gone."""
    assert set(LAYER_OF) == {unit_of(path) for path in CSRC.rglob("*.[ch]")}


@each_file
def test_include_direction(file: Path) -> None:
    """A file includes its own header and those of lower layers, no others of ours."""
    unit = unit_of(file)
    for name in includes(file):
        included = name.removesuffix(".h")
        if (CSRC / name).is_file() and included != unit:
            assert LAYER_OF[included] < LAYER_OF[unit], f"{unit} includes {name}"


@each_file
def test_engine_headers_stay_in_engines(file: Path) -> None:
    """What is above the seam knows no engine, and no other engine's tools."""
    if file.parent.name != "engine":
        assert not [name for name in includes(file) if name.startswith("engine/")]


@each_file
def test_greenlet_in_one_file(file: Path) -> None:
    """greenlet.h holds a static pointer: a second file would see it as NULL."""
    knows_greenlet = "greenlet.h" in includes(file) or "PyGreenlet" in code_of(file)
    assert knows_greenlet == (
        unit_of(file) == "engine/greenlet_api" and file.suffix == ".c"
    )


@each_file
def test_internal_headers_in_one_file(file: Path) -> None:
    """Only gb_internal.h knows CPython's internal headers."""
    internal = [name for name in includes(file) if "pycore_" in name]
    assert bool(internal) == (file.name == "gb_internal.h")


@each_file
def test_version_checks_in_few_files(file: Path) -> None:
    """What depends on CPython's version is in one place, its names tell the rest."""
    know_versions = {"compat", "internal", "bytecode", "frames", "cpython", "tools"}
    if unit_of(file).removeprefix("gb_") not in know_versions:
        assert "PY_VERSION_HEX" not in code_of(file)


@each_file
def test_length(file: Path) -> None:
    """A longer file is about more than one thing."""
    assert len(file.read_text().splitlines()) <= MAX_LINES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm of binutils is not here")
def test_exported_symbols() -> None:
    """The module exports its initialisation and nothing that could clash."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", greenback._core.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbols = {line.split()[-1] for line in listing.splitlines()}
    assert symbols - {"_init", "_fini"} == {"PyInit__core"}
