"""What the benchmarks of single features share: rounds, ratios, a table.

Every worker is a process of its own that prints its times as JSON, and the
workers take turns: a round visits all of them. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import environments
from report import describe, format_figure, markdown, save, spread

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
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options.worker)))
        return 0
    rounds = measure_rounds(script, workers, options.rounds)
    section = {
        **environments.conditions(*packages),
        "method": f"Median of {len(rounds)} rounds; the {environments.find_engine(None)}"
        " engine. A ratio is the median of those of the rounds.",
        "rows": [summed_up(row, rounds) for row in rows()],
    }
    text, missed = table(section["rows"])
    print(text, "", describe(section), sep="\n")
    if options.json:
        save(options.json, Path(script).stem, section)
    # Who keeps the results wants the rest of them, too; the table tells of targets.
    return 1 if missed and not options.json else 0


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


def summed_up(row: Row, rounds: Sequence[Times]) -> dict[str, Any]:
    """Return quartiles of what a row compares, as JSON has them."""
    ours, theirs = ([r[key] for r in rounds] for key in (row.ours, row.theirs))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "what": row.what,
        "loop": row.loop,
        "peer": row.peer,
        "limit": row.limit,
        "ours": spread(ours),
        "theirs": spread(theirs),
        "ratio": spread(ratios),
    }


def table(rows: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """Return the table as Markdown and how many targets were missed."""
    lines, missed = [], 0
    for row in rows:
        ours, theirs, ratio = (row[key][1] for key in ("ours", "theirs", "ratio"))
        target = ""
        if row["limit"] is not None:
            missed += ratio > row["limit"]
            target = f"≤ {row['limit']:g} {'MISSED' if ratio > row['limit'] else 'ok'}"
        lines.append(
            [
                *(row["what"], row["loop"], format_figure(ours, "second"), row["peer"]),
                *(format_figure(theirs, "second"), f"{ratio:.2f}", target),
            ]
        )
    header = ["", "loop", "greenback", "peer", "its time", "ratio", "target"]
    return markdown(header, lines), missed
