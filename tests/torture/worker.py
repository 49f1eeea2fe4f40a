"""The process that runs rounds; started by torture.py. Prints one line of JSON at the end."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import fields
import native
from rounds import Options, ProgramShown, run_round

import greenback

SECONDS_PER_ROUND = 300


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--print-source", action="store_true")
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--rounds", default="all")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--greenlets", action="store_true")
    parser.add_argument("--status", type=Path, required=True)
    return parser.parse_args(argv)


def engine_counters() -> dict[str, int]:
    counters: Any = getattr(greenback._core, "engine_counters", None)
    return dict(counters()) if counters is not None else {}


def missing_parts() -> dict[str, str]:
    missing = {name: reason[-300:] for name, reason in native.missing.items()}
    for name in ("trio", "uvloop", "greenlet"):
        try:
            __import__(name)
        except ImportError as error:
            missing[name] = str(error)
    return missing


def main(argv: list[str]) -> int:
    args = parse(argv)
    faulthandler.enable()
    # A coroutine that is closed before it was started.
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(3000)
    gc.freeze()  # collections needn't look at what was imported
    options = Options(
        tasks=args.tasks,
        greenlets=args.greenlets,
        rounds=args.rounds,
        keep=set(filter(None, args.kinds.split(","))),
    )
    if args.print_source:
        options.print_source = True
    counts: Counter[str] = Counter()
    until = time.monotonic() + args.seconds
    seed, failure = args.seed, ""
    status = os.open(args.status, os.O_WRONLY | os.O_CREAT)
    try:
        fields.check_all()
    except BaseException:
        failure = traceback.format_exc()
    while not failure and time.monotonic() < until:
        # For the parent, should we crash.
        os.pwrite(status, json.dumps([seed, counts]).encode(), 0)
        faulthandler.dump_traceback_later(SECONDS_PER_ROUND, exit=True)
        try:
            run_round(seed, options, counts)
        except ProgramShown:
            return 0
        except BaseException:
            failure = traceback.format_exc()
        if args.once or failure:
            break
        seed += 1
    faulthandler.cancel_dump_traceback_later()
    report = {
        "engine": getattr(greenback, "engine", "none"),
        "counts": dict(counts),
        "engine_counters": engine_counters(),
        "missing": missing_parts(),
        "failure": failure,
        "seed": seed,
    }
    print(json.dumps(report), flush=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
