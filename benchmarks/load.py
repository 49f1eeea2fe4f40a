#!/usr/bin/env python3
"""Compare ways to have synchronous code in the middle of an async HTTP service.

A client, the service and its database have a process each. The client keeps so many
connections busy, each with one request at a time; a request takes twelve queries. The
service is started anew for each way in each round, and the ways take turns. What is
shown is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environments
from ladder import NATIVE, OURS, PREVIOUS, SQLALCHEMY
from load_ends import QUERIES
from report import Column, describe, format_figure, markdown, save, spread

HERE = Path(__file__).resolve().parent
THREADS = "threads"
WAYS = (NATIVE, OURS, PREVIOUS, SQLALCHEMY, THREADS)
TITLES = {NATIVE: "native, all async", THREADS: "threads, run_coroutine_threadsafe()"}
FIGURES = ("rate", "p50", "p99", "cpu")


@contextmanager
def server(command: Sequence[str], environment: Any = None) -> Iterator[int]:
    """Run a server for a while; what it prints first is its port."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def cpu_seconds(port: int) -> float:
    """Return the CPU time that the service has needed so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/cpu") as response:
        seconds: float = json.load(response)
    return seconds


def measure(
    column: Column, python: Path | str, database: int, options: argparse.Namespace
) -> dict[str, float]:
    """Return what the client sees in one round, and the service's CPU time a request."""
    environment = {k: v for k, v in os.environ.items() if k != "GREENBACK_ENGINE"}
    command = [
        *(str(python), str(HERE / "load_service.py"), f"--peer={column.peer}"),
        *(f"--loop={options.loop}", f"--database={database}"),
        f"--connections={options.connections}",
    ]
    if column.engine is not None:
        environment["GREENBACK_ENGINE"] = column.engine
        command.append(f"--engine={column.engine}")
    with server(command, environment) as port:
        before = cpu_seconds(port)
        client = [
            *(sys.executable, str(HERE / "load_ends.py"), "client", str(port)),
            *(str(options.connections), str(options.seconds)),
        ]
        output = subprocess.run(client, check=True, stdout=subprocess.PIPE).stdout
        seen: dict[str, float] = json.loads(output)
        seen["cpu"] = (cpu_seconds(port) - before) / seen["requests"]
    return seen


def table(section: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for row in section["rows"]:
        column = Column(*row["peer"].split(":"))
        median = {name: row[name][1] for name in FIGURES}
        lines.append(
            [
                TITLES.get(column.peer, column.title),
                f"{median['rate']:,.0f}",
                *(format_figure(median[name], "second") for name in FIGURES[1:]),
            ]
        )
    header = ["", "requests a second", "p50", "p99", "CPU time of a request"]
    return markdown(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    try:
        previous = environments.previous_python(HERE.parent)
        engine = environments.find_engine(None)
    except environments.SetupError as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    columns = [Column(way, engine if way == OURS else None) for way in WAYS]
    seen: dict[Column, list[dict[str, float]]] = {column: [] for column in columns}
    with server([sys.executable, str(HERE / "load_ends.py"), "database"]) as database:
        for turn in range(options.rounds):
            start = turn % len(columns)  # going first is no gift
            for column in columns[start:] + columns[:start]:
                python = previous if column.peer == PREVIOUS else sys.executable
                seen[column].append(measure(column, python, database, options))
    section = {
        **environments.conditions("aiohttp"),
        "method": f"Median of {options.rounds} rounds of {options.seconds:g} s on"
        f" {options.loop}; {options.connections} connections, {QUERIES} queries a request.",
        "rows": [
            {"peer": column.key}
            | {name: spread(s[name] for s in seen[column]) for name in FIGURES}
            for column in columns
        ],
    }
    print(table(section), "", describe(section), sep="\n")
    if options.json:
        save(options.json, "load", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
