"""Builds the extension module; everything else is in pyproject.toml.

Switches in the environment, off when empty or 0:

``GREENBACK_WERROR``
    many warnings, each an error
``GREENBACK_DEBUG``
    assertions on, little optimisation, debug information
``GREENBACK_SANITIZE``
    AddressSanitizer and UndefinedBehaviorSanitizer; implies ``GREENBACK_DEBUG``
``GREENBACK_COVERAGE``
    gcov's instrumentation; implies ``GREENBACK_DEBUG``
"""

import os
import sys
import sysconfig
from pathlib import Path

import greenlet
from setuptools import Extension, setup

HERE = Path(__file__).parent
SWITCHES = ("WERROR", "DEBUG", "SANITIZE", "COVERAGE")


def enabled_switches() -> list[str]:
    """Return the names of the switches that are on, without their prefix."""
    return [
        name
        for name in SWITCHES
        if os.environ.get(f"GREENBACK_{name}", "") not in ("", "0")
    ]


def greenlet_include_dir() -> Path:
    """Return the folder that holds greenlet.h.

    Wheels of greenlet have it inside the package, some installers (and some
    distributions) put it where the headers of packages go.

    :raises FileNotFoundError: there is none.
    """
    package = Path(greenlet.__file__).parent
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefixes = [*package.parents, Path(sys.prefix), Path(sys.base_prefix)]
    candidates = [
        package,
        *(prefix / "include" / "site" / version / "greenlet" for prefix in prefixes),
        Path(sysconfig.get_path("include")) / "greenlet",
    ]
    for candidate in candidates:
        if (candidate / "greenlet.h").is_file():
            return candidate
    raise FileNotFoundError(f"greenlet {greenlet.__version__} came without greenlet.h")


def is_clang() -> bool:
    """Whether the C compiler is Clang."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or ""
    return "clang" in compiler or sys.platform == "darwin"


def compiler_flags(switches: list[str]) -> tuple[list[str], list[str]]:
    """Return what the compiler and what the linker get, besides Python's own flags."""
    if sys.platform == "win32":
        return ["/std:c11"], []
    compile_flags = ["-std=c11", "-fvisibility=hidden", "-fno-strict-aliasing"]
    link_flags = []
    if sys.platform.startswith("linux"):
        # One cache line less for each call into Python.
        compile_flags.append("-fno-plt")
    if "WERROR" in switches:
        compile_flags += [
            "-Wall",
            "-Wextra",
            "-Wstrict-prototypes",
            "-Wmissing-prototypes",
            "-Wno-unused-parameter",  # slots have signatures that are not ours
            "-Werror",
        ]
    if "-O" not in os.environ.get("CFLAGS", ""):
        # Less code than with the -O3 of most Pythons: a step runs with cold caches.
        compile_flags.append("-O2")
    if set(switches) & {"DEBUG", "SANITIZE", "COVERAGE"}:
        # Fortified headers want optimisation, and Python's own flags may ask for them.
        compile_flags += ["-g", "-Og", "-UNDEBUG", "-U_FORTIFY_SOURCE"]
    if "SANITIZE" in switches:
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # Red zones on the stack do not survive stack switching; those on the heap do.
        no_stack = (
            ["-mllvm", "-asan-stack=0"] if is_clang() else ["--param", "asan-stack=0"]
        )
        compile_flags += [*sanitize, *no_stack, "-fno-omit-frame-pointer"]
        link_flags += sanitize
    if "COVERAGE" in switches:
        compile_flags += ["--coverage", "-O0"]
        link_flags += ["--coverage"]
        if sys.platform.startswith("linux"):
            # or the module would export what gcov's library needs
            link_flags += ["-Wl,--exclude-libs,libgcov.a"]
    return compile_flags, link_flags


switches = enabled_switches()
variant = "-".join(switches).lower() or "plain"
compile_flags, link_flags = compiler_flags(switches)

setup(
    ext_modules=[
        Extension(
            "greenback._core",
            sources=sorted(
                str(path.relative_to(HERE))
                for pattern in ("csrc/*.c", "csrc/engine/*.c")
                for path in HERE.glob(pattern)
            ),
            depends=sorted(
                str(path.relative_to(HERE)) for path in HERE.glob("csrc/**/*.h")
            ),
            include_dirs=["csrc", str(greenlet_include_dir())],
            extra_compile_args=compile_flags,
            extra_link_args=link_flags,
        )
    ],
    # Objects that were compiled with other switches must not be taken for these.
    options={"build": {"build_base": f"build/{variant}"}},
)
