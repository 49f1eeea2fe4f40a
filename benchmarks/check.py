#!/usr/bin/env python3
"""Tell whether greenback has become slower than a file of results says.

Only ratios are compared, since machines differ and have slow phases: ours to native
in the same processes, and ours to greenback 1.3.0, each of the fastest of all rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import environments
from ladder import NATIVE, OURS, PREVIOUS
from report import Column, Figures, Summary, markdown
from run import HERE, QUICK, Bench

LOOPS = ["bare", "asyncio"]
RUNGS = ["step", "await", "below-c", "await-no-suspend", "run", "run-sync", "depth-30"]
EFFORT = QUICK._replace(rounds=8, values=4, min_time=0.005)
TOLERANCE = 1.25


def ratios(figures: Figures, previous: Figures) -> dict[str, float]:
    """Return what is compared."""
    assert figures.fastest and figures.fastest_native and previous.fastest
    return {
        "native": figures.fastest / figures.fastest_native,
        PREVIOUS: figures.fastest / previous.fastest,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--handicap", type=int, metavar="N", help="count to N before each await_"
    )
    options = parser.parse_args()
    section = json.loads(options.results.read_text("utf-8"))["ladder"]
    kept = Summary.from_json(section)
    python, its = environments.machine()["python"], section["machine"]["python"]
    try:
        if python.split(".")[:2] != its.split(".")[:2]:
            raise environments.SetupError(
                f"{options.results} is of {its}, not {python}"
            )
        ours = Column(OURS, environments.find_engine(None))
        if ours not in kept.columns:
            raise environments.SetupError(f"{options.results} lacks {ours.title}")
        previous = environments.previous_python(HERE.parent)
    except environments.SetupError as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    columns = [Column(NATIVE), ours, Column(PREVIOUS)]
    bench = Bench(columns, LOOPS, EFFORT, previous)
    bench.rungs, bench.handicap = RUNGS, options.handicap
    bench.measure_times()
    for problem in bench.results.problems:
        print(f"PROBLEM: {problem}")
    if bench.results.problems:
        return 1
    found = Summary.of(bench.results, columns, LOOPS).figures
    rows, slower = [], 0
    for rung in RUNGS:
        for loop in LOOPS:
            was, now = (
                ratios(f[rung, loop, ours], f[rung, loop, Column(PREVIOUS)])
                for f in (kept.figures, found)
            )
            for peer in was:
                change = now[peer] / was[peer]
                slower += change > TOLERANCE
                verdict = "SLOWER" if change > TOLERANCE else "ok"
                figures = (f"{x:.3f}" for x in (was[peer], now[peer], change))
                rows.append([rung, loop, peer, *figures, verdict])
    print(markdown(["rung", "loop", "ours to", "was", "is", "change", ""], rows))
    print(f"slower by more than 25 %: {slower} of {len(rows)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
