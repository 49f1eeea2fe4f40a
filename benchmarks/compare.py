"""What the benchmarks of single features share: rounds, ratios, a table.

Every worker is a process of its own that prints its times as JSON, and the
workers take turns: a round visits all of them. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import environments
from report import format_figure, markdown

Times = dict[str, float]


class Row(NamedTuple):
    """A line of the table: which times of a round are compared."""

    what: str
    loop: str
    ours: str
    peer: str
    theirs: str
    limit: float | None = None


def main(
    script: str,
    workers: Sequence[str],
    work: Callable[[str], Times],
    rows: Callable[[], Sequence[Row]],
    *packages: str,
) -> int:
    """Print the table of a benchmark, or in one of its workers the times.

    ``work(worker)`` measures; ``rows()`` is asked for what is to be shown.
    """
    parser = argparse.ArgumentParser(description="see the head of the file")
    parser.add_argument("--worker", choices=workers, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options.worker)))
        return 0
    rounds = measure_rounds(script, workers, options.rounds)
    return 0 if report(rows(), rounds, *packages) else 1


def measure_rounds(script: str, workers: Sequence[str], rounds: int) -> list[Times]:
    """Return for each round what all workers have printed, put together."""
    result = []
    for turn in range(rounds):
        times: Times = {}
        start = turn % len(workers)  # going first is no gift
        for worker in [*workers[start:], *workers[:start]]:
            command = [sys.executable, script, "--worker", worker]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            times |= json.loads(output)
        result.append(times)
    return result


def report(rows: Sequence[Row], rounds: Sequence[Times], *packages: str) -> bool:
    """Print the table and what it was measured with; whether all targets are reached."""
    lines, missed = [], 0
    for row in rows:
        ours, theirs = ([r[key] for r in rounds] for key in (row.ours, row.theirs))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        target = ""
        if row.limit is not None:
            missed += ratio > row.limit
            target = f"≤ {row.limit:g} {'MISSED' if ratio > row.limit else 'ok'}"
        figures = [format_figure(statistics.median(t), "s") for t in (ours, theirs)]
        lines.append(
            [
                *(row.what, row.loop, figures[0], row.peer, figures[1]),
                *(f"{ratio:.2f}", target),
            ]
        )
    header = ["", "loop", "greenback", "peer", "its time", "ratio", "target"]
    machine, versions = environments.machine(), environments.versions(*packages)
    print(markdown(header, lines))
    print()
    print(f"- Machine: {machine['cpu']}, {machine['cores']} cores; {machine['os']}")
    print(f"- Python: {machine['python']}; engine: {environments.find_engine(None)}")
    print(
        "- Packages: "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    print(
        f"- Median of {len(rounds)} rounds; load average at the end "
        f"{os.getloadavg()[0]:.1f}"
    )
    return not missed
