#!/usr/bin/env python3
"""Measure greenback beside what else there is, and print one table.

Every peer on every loop gets a process of its own, and the processes take
turns: a round visits all of them. Times are compared with native awaits that
are timed in the same process, and with other peers within a round, so that a
machine that becomes slower half-way does not favour anyone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import environments
import pyperf
from ladder import (
    LOOPS,
    NATIVE,
    OURS,
    PEERS,
    PREVIOUS,
    RETURN_RUNG,
    TASK_COUNTS,
    TASKS_RUNGS,
    TIME_RUNGS,
)
from report import Column, Results, Summary, describe, save, table

HERE = Path(__file__).resolve().parent
WORKER_TIMEOUT = 600


class Effort(NamedTuple):
    """How long to measure.

    After ``MINIMUM_ROUNDS`` no further round starts that would probably end
    later than ``seconds`` after the first began.
    """

    rounds: int
    values: int
    min_time: float
    memory_rounds: int
    tasks: int
    tasks_rounds: int
    most_tasks: int
    seconds: float

    @property
    def burst(self) -> int:
        """How many tasks are suspended at once in a burst."""
        return 10 * self.tasks


MINIMUM_ROUNDS = 5
NORMAL = Effort(
    rounds=7,
    values=3,
    min_time=0.01,
    memory_rounds=1,
    tasks=10_000,
    tasks_rounds=3,
    most_tasks=100_000,
    seconds=200,
)
QUICK = Effort(
    rounds=2,
    values=2,
    min_time=0.005,
    memory_rounds=1,
    tasks=1_000,
    tasks_rounds=1,
    most_tasks=1_000,
    seconds=60,
)
RIGOROUS = Effort(
    rounds=25,
    values=5,
    min_time=0.05,
    memory_rounds=3,
    tasks=10_000,
    tasks_rounds=7,
    most_tasks=100_000,
    seconds=float("inf"),
)


class WorkerError(Exception):
    """A worker process did not finish its job."""


class Bench:
    """One run: who takes part, and what was found so far."""

    def __init__(
        self,
        columns: list[Column],
        loops: list[str],
        effort: Effort,
        previous: Path | None,
    ) -> None:
        self.columns = columns
        self.loops = loops
        self.effort = effort
        self.results = Results()
        self.rounds = 0
        self.rungs = [rung.key for rung in TIME_RUNGS]
        self.handicap: int | None = None
        self._previous = previous
        self._known_loops: dict[tuple[str, Column], dict[str, int]] = {}
        self._broken: set[tuple[str, Column]] = set()

    def measure_times(self) -> None:
        """Time every rung, in rounds."""
        # Native awaits are timed beside each of the others.
        columns = [c for c in self.columns if c.peer != NATIVE] or self.columns
        start = time.monotonic()
        for turn in range(self.effort.rounds):
            elapsed = time.monotonic() - start
            if turn >= MINIMUM_ROUNDS and elapsed * (turn + 1) / turn > (
                self.effort.seconds
            ):
                break
            self.rounds = turn + 1
            for loop in self.loops:
                for column in _rotated(columns, turn):
                    progress(
                        f"round {turn + 1} of {self.effort.rounds}: {loop}, {column.title}"
                    )
                    if (loop, column) not in self._broken:
                        self._guard(loop, column, self._time, turn, self.rungs)

    def measure_many_tasks(self) -> None:
        """Time what depends on the number of tasks; each number has its processes."""
        columns = [c for c in self.columns if c.peer != NATIVE] or self.columns
        for turn in range(self.effort.tasks_rounds):
            for loop in self.loops:
                for count in TASK_COUNTS:
                    rungs = [
                        rung.key
                        for rung in TASKS_RUNGS
                        if rung.key.endswith(f"-of-{count}") and loop in rung.loops
                    ]
                    if count > self.effort.most_tasks or not rungs:
                        continue
                    for column in _rotated(columns, turn):
                        progress(f"{count} tasks: {loop}, {column.title}")
                        self._guard(loop, column, self._time, turn, rungs)

    def measure_memory(self) -> None:
        """Measure parked tasks, and see suspended ones come back."""
        kinds = [
            ("idle", "rss"),
            ("idle", "traced"),
            ("suspended", "rss"),
            ("suspended", "traced"),
            ("burst", "rss"),
            ("return", "rss"),
        ]
        for turn in range(self.effort.memory_rounds):
            for loop in self.loops:
                for scenario, measure in kinds:
                    for column in _rotated(self.columns, turn):
                        if loop == "bare" or (
                            scenario == "idle"
                            and column.peer not in (NATIVE, OURS, PREVIOUS)
                        ):
                            continue
                        progress(f"memory: {loop}, {column.title}, {scenario}")
                        self._guard(loop, column, self._memory, turn, scenario, measure)

    def _guard(self, loop: str, column: Column, measure: Any, *args: Any) -> None:
        try:
            measure(loop, column, *args)
        except WorkerError as exc:
            self._broken.add((loop, column))
            self.results.problems.append(f"{column.title} on {loop}: {exc}")

    def _time(self, loop: str, column: Column, turn: int, rungs: list[str]) -> None:
        known = self._known_loops.setdefault((loop, column), {})
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "result.json"
            options = [
                "--in-process",
                "--quiet",
                "--processes=1",
                "--warmups=1",
                f"--output={output}",
            ]
            options += [
                f"--values={self.effort.values}",
                f"--min-time={self.effort.min_time}",
            ]
            options += [
                f"--rungs={json.dumps(rungs)}",
                f"--known-loops={json.dumps(known)}",
            ]
            if self.handicap is not None and column.peer == OURS:
                options.append(f"--handicap={self.handicap}")
            printed = self._work("time_worker.py", loop, column, options)
            suite = pyperf.BenchmarkSuite.load(str(output)) if output.exists() else []
        native = {}
        for line in printed.splitlines():
            if line.startswith("NATIVE "):
                _, rung, values = line.split(maxsplit=2)
                native[rung] = json.loads(values)
            if line.startswith("FAILED "):
                problem = f"{column.title} on {loop}: {line.removeprefix('FAILED ')}"
                if problem not in self.results.problems:
                    self.results.problems.append(problem)
        for bench in suite:
            rung = bench.get_name()
            known[rung] = bench.get_loops()
            self.results.add(
                rung, loop, column, turn, list(bench.get_values()), native.get(rung)
            )

    def _memory(
        self, loop: str, column: Column, turn: int, scenario: str, measure: str
    ) -> None:
        options = [
            f"--scenario={scenario}",
            f"--measure={measure}",
            f"--tasks={self.effort.burst if scenario == 'burst' else self.effort.tasks}",
        ]
        found = json.loads(self._work("memory_worker.py", loop, column, options))
        if scenario == "return":
            self.results.add(RETURN_RUNG.key, loop, column, turn, found)
            if found["returned"] != found["tasks"]:
                lost = found["tasks"] - found["returned"]
                self.results.problems.append(
                    f"{column.title} on {loop}: {lost} tasks did not come back"
                )
        else:
            self.results.add(
                f"{scenario}-{measure}", loop, column, turn, found["figure"]
            )

    def _work(self, script: str, loop: str, column: Column, options: list[str]) -> str:
        python = self._previous if column.peer == PREVIOUS else sys.executable
        environment = dict(os.environ)
        environment.pop("GREENBACK_ENGINE", None)
        command = [
            str(python),
            str(HERE / script),
            f"--loop={loop}",
            f"--peer={column.peer}",
            *options,
        ]
        if column.engine is not None:
            environment["GREENBACK_ENGINE"] = column.engine
            command.append(f"--engine={column.engine}")
        try:
            result = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=WORKER_TIMEOUT,
            )
        except subprocess.TimeoutExpired as exc:
            raise WorkerError(f"{script} took more than {WORKER_TIMEOUT} s") from exc
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise WorkerError(f"{script} exited with {result.returncode}: {last}")
        return result.stdout


def _rotated(columns: list[Column], turn: int) -> list[Column]:
    """Return ``columns`` starting elsewhere each turn: going first is no gift."""
    start = turn % len(columns)
    return columns[start:] + columns[:start]


def progress(text: str) -> None:
    """Show what happens now, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--quick",
        action="store_true",
        help="two minutes: does everything still run?",
    )
    length.add_argument(
        "--rigorous",
        action="store_true",
        help="half an hour or more, for figures to publish",
    )
    parser.add_argument(
        "--engines", help="comma-separated; default: the one greenback chooses here"
    )
    parser.add_argument(
        "--loops", default=",".join(LOOPS), help="comma-separated; default: %(default)s"
    )
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        help="comma-separated; native always takes part; default: %(default)s",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the results to FILE"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a target is missed"
    )
    arguments = parser.parse_args()
    for name, allowed in (
        ("loops", LOOPS),
        ("peers", PEERS),
    ):
        chosen = getattr(arguments, name).split(",")
        for item in chosen:
            if item not in allowed:
                parser.error(
                    f"argument --{name}: {item!r} is not one of {', '.join(allowed)}"
                )
        setattr(
            arguments,
            name,
            [item for item in allowed if item in chosen or item == NATIVE],
        )
    return arguments


def choose_columns(arguments: argparse.Namespace) -> list[Column]:
    """Return the peers in the order of the table; SetupError if one is absent."""
    columns = []
    for peer in arguments.peers:
        if peer == OURS:
            requested = arguments.engines.split(",") if arguments.engines else [None]
            columns += [
                Column(OURS, environments.find_engine(name)) for name in requested
            ]
        elif peer in (NATIVE, PREVIOUS) or importlib.util.find_spec(peer):
            columns.append(Column(peer))
        else:
            print(f"{peer} is not installed here and left out", file=sys.stderr)
    return columns


def choose_loops(requested: list[str]) -> list[str]:
    """Return the loops that are installed."""
    loops = []
    for name in requested:
        if name in ("uvloop", "trio") and not importlib.util.find_spec(name):
            print(f"{name} is not installed here and left out", file=sys.stderr)
        else:
            loops.append(name)
    return loops


def main() -> int:
    arguments = parse_arguments()
    effort = QUICK if arguments.quick else RIGOROUS if arguments.rigorous else NORMAL
    start = time.monotonic()
    try:
        columns = choose_columns(arguments)
        previous = (
            environments.previous_python(HERE.parent)
            if PREVIOUS in arguments.peers
            else None
        )
    except environments.SetupError as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    loops = choose_loops(arguments.loops)
    bench = Bench(columns, loops, effort, previous)
    bench.measure_times()
    bench.measure_many_tasks()
    bench.measure_memory()
    progress("")

    results = bench.results
    summary = Summary.of(results, columns, loops)
    section = {
        **environments.conditions(),
        "method": f"Median of {bench.rounds} rounds, best of {effort.values} values in each;"
        f" CPU time of the thread. Rung 7: {effort.tasks:,} tasks, {effort.burst:,} in a"
        f" burst, {effort.memory_rounds} round(s); rung 9: {effort.tasks_rounds} round(s)."
        f" Measured in {time.monotonic() - start:.0f} s.",
        **summary.to_json(),
    }
    text, missed = table(summary)
    print(text, "", describe(section), sep="\n")
    for problem in results.problems:
        print(f"PROBLEM: {problem}")
    print(f"Targets missed: {missed}" if missed else "All targets reached.")
    if arguments.json and not results.problems:
        save(arguments.json, "ladder", section)
    return 1 if results.problems or (missed and arguments.strict) else 0


if __name__ == "__main__":
    sys.exit(main())
