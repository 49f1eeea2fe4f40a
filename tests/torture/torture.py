"""Random programs, run natively and with portals, that must not differ.

``python tests/torture/torture.py --seconds 120 [--seed N] [--anchor on|off|both] ...``

A round makes a random program (programs.py) in two twins: async functions that await, and
sync functions of the same names and lines that call ``await_``. Both run with the same random
decisions of the loop; they must do the same things in the same order: what each function
sees (context variables, exceptions that are being handled, callers, results), tracebacks,
what goes to sys.unraisablehook. Rounds are of three kinds (rounds.py):

trampoline
    A loop written by hand (trampolines.py) sends, throws, closes and drops, each time from
    another stack depth. Where portals suspend, the thread state (native/thread_state.c) is
    compared too: the loop's before and after a step, the step's before and after an await.
threads
    Several such at once, some on small stacks.
loops
    asyncio, uvloop and Trio (loops.py).

Between the portals and ``await_`` there are C frames of many kinds (frames_*.py). Noise that
must make no difference (noise.py) is made by the run with portals only: suspensions that the
program does not know of (in trace functions, signal handlers), collections, frame walks.

**Replay.** A crash or a difference ends the run; its seed is printed. ``--replay SEED`` runs
that round alone, ``--source SEED`` prints its program. Add ``--anchor``, ``--rounds``,
``--tasks``, ``--kinds`` and ``--greenlets`` as in the run that failed. What depends on time
(timer signals, threads) may need more than one attempt: ``--repeat``.

The rounds run in a process of their own for each way to place steps on the stack: with
``--anchor off`` (GREENBACK_ANCHOR=0) they begin right below the loop's frames, so that
a resumption from deeper in the stack has to move live frames aside.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
# For a worker that hangs: its last round may take this long.
GRACE = 360
ORDER = (
    "programs",
    "steps",
    "suspensions",
    "noise suspensions",
    "interrupting suspensions",
    "resumptions at another depth",
    "overlaps",
    "throws",
    "cancels",
    "closes",
    "drops",
    "frame walks",
    "gcs",
)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Random programs, natively and with portals.",
        epilog="See the head of torture.py.",
    )
    parser.add_argument("--seconds", type=float, default=120, help="in all")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one round alone")
    parser.add_argument("--repeat", type=int, default=1, help="attempts at --replay")
    parser.add_argument("--source", type=int, metavar="SEED", help="print a program")
    parser.add_argument("--tasks", type=int, default=0, help="in each program")
    parser.add_argument("--anchor", choices=("on", "off", "both"), default="both")
    parser.add_argument(
        "--rounds", choices=("all", "trampoline", "threads", "loops"), default="all"
    )
    parser.add_argument("--kinds", default="", help="only these kinds of C frames")
    parser.add_argument("--greenlets", action="store_true", help="foreign greenlets")
    parser.add_argument("--require-overlaps", type=int, default=0, metavar="N")
    parser.add_argument("--engine", default="", help="GREENBACK_ENGINE")
    return parser.parse_args(argv)


def worker_environment(args: argparse.Namespace, anchor: str) -> dict[str, str]:
    environment = dict(os.environ, PYTHONFAULTHANDLER="1")
    environment.pop("GREENBACK_ANCHOR", None)
    if anchor == "off":
        environment["GREENBACK_ANCHOR"] = "0"
    if args.engine:
        environment["GREENBACK_ENGINE"] = args.engine
    return environment


def worker_arguments(args: argparse.Namespace, seconds: float) -> list[str]:
    seed = args.seed
    arguments = ["--seconds", str(seconds), "--rounds", args.rounds]
    for name in ("tasks", "kinds"):
        arguments += [f"--{name}", str(getattr(args, name))]
    if args.greenlets:
        arguments.append("--greenlets")
    if args.replay is not None:
        seed = args.replay
        arguments.append("--once")
    if args.source is not None:
        seed = args.source
        arguments.append("--print-source")
    return [*arguments, "--seed", str(seed)]


def run_worker(args: argparse.Namespace, anchor: str, seconds: float) -> dict[str, Any]:
    """The worker's report. After a crash it has only a failure and a seed."""
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "seed"
        command = [sys.executable, str(WORKER), "--status", str(status)]
        command += worker_arguments(args, seconds)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=worker_environment(args, anchor),
        )
        try:
            output, errors = process.communicate(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors = f"no end after {seconds + GRACE:.0f} s\n{errors}"
        lines = output.strip().splitlines()
        if args.source is not None:
            print(output)
            return {"counts": {}}
        if process.returncode in (0, 1) and lines:
            report: dict[str, Any] = json.loads(lines[-1])
            return report
        noted = status.read_text().strip() if status.exists() else ""
        seed, counts = json.loads(noted) if noted else (-1, {})
    ending = f"exit code {process.returncode}"
    if process.returncode < 0:
        ending = signal.Signals(-process.returncode).name
    return {
        "failure": f"crashed: {ending}\n{output}{errors}",
        "seed": seed,
        "counts": counts,
    }


def print_failure(
    args: argparse.Namespace, report: dict[str, Any], anchor: str
) -> None:
    print(f"FAILED with anchor {anchor}, seed {report['seed']}:")
    text = report["failure"].strip()
    print(text if len(text) < 9000 else f"{text[:5000]}\n[...]\n{text[-4000:]}")
    options = [f"--replay {report['seed']}", f"--anchor {anchor}"]
    options += [f"--rounds {args.rounds}"]
    options += [f"--tasks {args.tasks}"] * bool(args.tasks)
    options += [f"--kinds {args.kinds!r}"] * bool(args.kinds)
    options += ["--greenlets"] * args.greenlets
    options += [f"--engine {args.engine}"] * bool(args.engine)
    print(f"replay: python {sys.argv[0]} {' '.join(options)}", flush=True)


def print_summary(counts: Counter[str], reports: list[dict[str, Any]]) -> None:
    engines = {report.get("engine", "crashed") for report in reports}
    python = ".".join(map(str, sys.version_info[:3]))
    head = ", ".join(f"{name}: {counts[name]}" for name in ORDER)
    print(f"python {python}, engine {'/'.join(sorted(engines))}; {head}")
    kinds = {key: n for key, n in counts.items() if key.startswith("through ")}
    rest = {
        key: n for key, n in counts.items() if key not in ORDER and key not in kinds
    }
    print("; ".join(f"{key}: {rest[key]}" for key in sorted(rest)))
    listed = [f"{key[8:]}: {n}" for key, n in sorted(kinds.items())]
    print("suspended through " + "; ".join(listed))
    missing = {}
    for report in reports:
        missing.update(report.get("missing", {}))
    for name, reason in missing.items():
        print(f"NOT TESTED, {name} is missing: {reason}")


def main(argv: list[str]) -> int:
    args = parse(argv)
    anchors = ["on", "off"] if args.anchor == "both" else [args.anchor]
    counts: Counter[str] = Counter()
    reports = []
    failed = False
    for anchor in anchors[: 1 if args.source is not None else None]:
        for _ in range(args.repeat if args.replay is not None else 1):
            report = run_worker(args, anchor, args.seconds / len(anchors))
            reports.append(report)
            counts.update(report["counts"])
            for name, number in report.get("engine_counters", {}).items():
                counts[name if name == "overlaps" else f"engine's {name}"] += number
            if report.get("failure"):
                print_failure(args, report, anchor)
                failed = True
                break
    if args.source is not None:
        return 0
    print_summary(counts, reports)
    if counts["overlaps"] < args.require_overlaps:
        print(f"FAILED: {args.require_overlaps} overlaps were required")
        failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
