#!/usr/bin/env python3
"""Draw the plots of docs/plots/ from a file of results."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from ladder import DEPTHS, NATIVE, OURS, PREVIOUS, SQLALCHEMY, TASK_COUNTS
from load import TITLES
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter
from report import Column, Figures, Summary

PLOTS = Path(__file__).resolve().parent.parent / "docs" / "plots"
COLOURS = {
    NATIVE: "#6b6b6b",
    OURS: "#1b6ca8",
    PREVIOUS: "#c0392b",
    SQLALCHEMY: "#b07d2b",
    "awaitlet": "#4f8f5d",
    "greenletio": "#7468b0",
    "threads": "#4f8f5d",
}
STYLE = {
    "svg.fonttype": "none",  # text remains text
    "svg.hashsalt": "greenback",  # the same results give the same file
    "font.family": "sans-serif",
    "font.size": 10,
    # A white ground, so that a page may be dark.
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}
SECONDS = FuncFormatter(
    lambda value, _: (
        f"{value * 1e6:g} µs" if value > 0.9e-6 else f"{value * 1e9:.0f} ns"
    )
)
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}


def finish(figure: Any, name: str) -> None:
    """Write a plot."""
    figure.savefig(
        PLOTS / f"{name}.svg",
        metadata={"Date": None, "Creator": None},
        bbox_inches="tight",
    )
    pyplot.close(figure)


def colour(column: Column) -> str:
    """Return a peer's colour; our engines differ."""
    return "#63a8d6" if column.engine == "greenlet" else COLOURS[column.peer]


def curve(axes: Any, summary: Summary, column: Column, points: dict[int, str]) -> None:
    """Draw a peer's time by what the rungs differ in, with its quartiles."""
    found = {
        x: figures
        for x, rung in points.items()
        if (figures := summary.figures.get((rung, "asyncio", column)))
    }
    if not found:
        return
    first, median, third = zip(*(f.values for f in found.values()), strict=True)
    axes.plot(list(found), median, "o-", ms=4, color=colour(column), label=column.title)
    axes.fill_between(list(found), first, third, color=colour(column), alpha=0.2, lw=0)


def logarithmic(axes: Any, points: dict[int, str]) -> None:
    """Have both axes logarithmic, with plain numbers."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    shown = [x for x in points if low <= x <= high]
    axes.set_xticks(shown, [f"{x:,}" for x in shown])
    axes.minorticks_off()
    ticks = (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter(SECONDS)


def depth(summary: Summary) -> None:
    """Cost of an await below so many calls."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    points = {calls: f"depth-{calls}" for calls in DEPTHS}
    for column in summary.columns:
        curve(axes, summary, column, points)
    logarithmic(axes, points)
    axes.set_title("One await below so many calls, on asyncio")
    axes.set_xlabel("coroutines (native) or sync calls")
    axes.legend(**BESIDE)
    finish(figure, "depth")


def tasks(summary: Summary) -> None:
    """Cost of a step and of an await_ by the number of tasks."""
    figure, both = pyplot.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    titles = {"step": "A step of a task with a portal", "await": "An await_"}
    for axes, (what, title) in zip(both, titles.items(), strict=True):
        points = {count: f"{what}-of-{count}" for count in TASK_COUNTS}
        for column in summary.columns:
            curve(axes, summary, column, points)
        logarithmic(axes, points)
        axes.set_title(f"{title}, on asyncio")
        axes.set_xlabel("tasks that take turns")
    both[1].legend(**BESIDE)
    finish(figure, "tasks")


def bars(axes: Any, groups: list[str], rows: list[tuple[Any, list[float]]]) -> None:
    """Draw groups of horizontal bars, each with its colour, label and figures."""
    height = 0.8 / len(rows)
    have = [
        [not math.isnan(values[g]) for _, values in rows] for g in range(len(groups))
    ]
    for number, ((title, tone), values) in enumerate(rows):
        at = [
            group + height * (sum(have[group][:number]) + 0.5 - sum(have[group]) / 2)
            for group in range(len(groups))
        ]
        axes.barh(at, values, height * 0.9, color=tone, label=title)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def peers(summary: Summary) -> list[Column]:
    """Return all but native."""
    return [column for column in summary.columns if column.peer != NATIVE]


def ladder(summary: Summary) -> None:
    """What each peer adds to native, rung by rung."""
    figure, axes = pyplot.subplots(figsize=(7.2, 5))
    rungs = {
        "step": "an ordinary step",
        "await": "an await_\nthat suspends",
        "await-no-suspend": "an await_ that\ndoes not suspend",
        "run-sync": "with_portal_run_sync",
        "ensure": "a task that calls\nensure_portal",
    }
    least = 1e-9  # what is below that can't be told from native

    def extra(found: Figures | None) -> float:
        return max(found.extra or 0, least) if found else float("nan")

    rows = [
        (
            (column.title, colour(column)),
            [extra(summary.figures.get((rung, "asyncio", column))) for rung in rungs],
        )
        for column in peers(summary)
    ]
    bars(axes, list(rungs.values()), rows)
    axes.set_xscale("log")
    axes.set_xlim(least)
    axes.xaxis.set_major_formatter(SECONDS)
    axes.set_title("Time beyond that of native code, on asyncio")
    axes.legend(**BESIDE)
    finish(figure, "ladder")


def memory(summary: Summary) -> None:
    """What a task that waits takes."""
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4))
    rungs = {"idle-rss": "waits, with a portal", "suspended-rss": "waits in await_"}
    nothing = Figures([float("nan")] * 3)
    rows = [
        (
            (column.title, colour(column)),
            [
                summary.figures.get((rung, "asyncio", column), nothing).value / 1000
                for rung in rungs
            ],
        )
        for column in summary.columns
    ]
    bars(axes, list(rungs.values()), rows)
    axes.set_title("Resident memory of a task on asyncio, in KB")
    axes.legend(**BESIDE)
    finish(figure, "memory")


def service(section: dict[str, Any]) -> None:
    """Latency and throughput of the HTTP service."""
    figure, both = pyplot.subplots(1, 2, figsize=(9.6, 3.2), sharey=True)
    columns = [Column(*row["peer"].split(":")) for row in section["rows"]]
    titles = [
        TITLES.get(column.peer, column.title).replace(", run_", ",\nrun_")
        for column in columns
    ]
    tones = [colour(column) for column in columns]
    for axes, names, title in (
        (both[0], ("p50", "p99"), "Latency, median and 99th percentile, in ms"),
        (both[1], ("rate",), "Requests a second"),
    ):
        for name in reversed(names):
            unit = 1 if name == "rate" else 1000
            low, median, high = zip(
                *([unit * q for q in row[name]] for row in section["rows"]), strict=True
            )
            error = [
                [m - q for m, q in zip(median, low, strict=True)],
                [q - m for m, q in zip(median, high, strict=True)],
            ]
            axes.barh(
                titles,
                median,
                0.6,
                color=tones,
                alpha=0.45 if name == "p99" else 1,
                xerr=error,
                ecolor="#333333",
            )
        axes.set_title(title)
        axes.grid(visible=False, axis="y")
    both[0].invert_yaxis()
    finish(figure, "service")


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    PLOTS.mkdir(exist_ok=True)
    summary = Summary.from_json(results["ladder"])
    with pyplot.rc_context(STYLE):
        for plot in (depth, tasks, ladder, memory):
            plot(summary)
        service(results["load"])


if __name__ == "__main__":
    main()
