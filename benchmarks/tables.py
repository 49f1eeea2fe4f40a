#!/usr/bin/env python3
"""Write the tables of README.md and benchmarks/README.md from a file of results.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. With
``--check`` nothing is written; the exit code is 1 if a table is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import load
import report
from ladder import NATIVE, OURS
from report import Column, Summary, describe, format_figure, markdown

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "benchmarks" / "results" / "cpython-3.13-x86_64.json"
PAGES = ("README.md", "benchmarks/README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

# What the overview tells: rung on asyncio, title, and the figure.
OVERVIEW = (
    ("step", "an ordinary step of a task with a portal", "extra"),
    ("await", "an `await_` that suspends", "extra"),
    ("await-no-suspend", "an `await_` that does not suspend", "extra"),
    ("run-sync", "`with_portal_run_sync` of a trivial function", "extra"),
    ("idle-rss", "memory of an idle portal", "extra"),
    ("suspended-rss", "memory of a task that waits in `await_`", "value"),
)


def overview(results: dict[str, Any]) -> str:
    """Return what it costs, beyond native, on asyncio."""
    section = results["ladder"]
    summary = Summary.from_json(section)
    columns = [column for column in summary.columns if column.peer != NATIVE]
    rows = []
    for rung, title, what in OVERVIEW:
        unit = "byte" if rung.endswith("rss") else "second"
        native = summary.figures.get((rung, "asyncio", Column(NATIVE)))
        if native is not None and what == "value":
            title = f"{title} (native: {format_figure(native.value, unit)})"
        cells = []
        for column in columns:
            found = summary.figures.get((rung, "asyncio", column))
            figure = None if found is None else getattr(found, what)
            sign = "+" if what == "extra" else ""
            cells.append("-" if figure is None else format_figure(figure, unit, sign))
        rows.append([title, *cells])
    titles = [
        f"greenback 2, {column.engine} engine" if column.peer == OURS else column.title
        for column in columns
    ]
    python = " ".join(section["machine"]["python"].split()[:2])
    return (
        f"On one machine ({python}, {section['machine']['cpu']}), beyond the native `await` on asyncio:\n\n"
        + markdown(["", *titles], rows)
    )


def with_conditions(
    name: str, table: Callable[[dict[str, Any]], str]
) -> Callable[[dict[str, Any]], str]:
    """Return what gives a section's table, and what it was measured with."""
    return lambda results: f"{table(results[name])}\n\n{describe(results[name])}"


def compared(section: dict[str, Any]) -> str:
    return compare.table(section["rows"])[0]


TABLES = {
    "overview": overview,
    "ladder": with_conditions(
        "ladder", lambda section: report.table(Summary.from_json(section))[0]
    ),
    "load": with_conditions("load", load.table),
    **{
        name: with_conditions(name, compared)
        for name in ("nested_run", "task_creation", "thread_hop")
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=PUBLISHED)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    results = json.loads(options.results.read_text("utf-8"))
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text("utf-8")
        new = MARKED.sub(
            lambda found: f"{found[1]}\n{TABLES[found[2]](results)}\n\n{found[3]}", old
        )
        if new != old:
            stale.append(name)
            if not options.check:
                page.write_text(new, "utf-8")
    for name in stale:
        print(f"{name}: {'not what the results say' if options.check else 'written'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
