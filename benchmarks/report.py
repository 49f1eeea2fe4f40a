"""From raw figures to one table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ladder import (
    MEMORY_RUNGS,
    NATIVE,
    OURS,
    PREVIOUS,
    RETURN_RUNG,
    SQLALCHEMY,
    TASKS_RUNGS,
    TIME_RUNGS,
    Rung,
    Target,
    target,
)


class Column(NamedTuple):
    """A peer of the table, with the engine if it is ours."""

    peer: str
    engine: str | None = None

    @property
    def title(self) -> str:
        titles = {PREVIOUS: "greenback 1.3.0", SQLALCHEMY: "SQLAlchemy"}
        if self.peer == OURS:
            return f"greenback, {self.engine}"
        return titles.get(self.peer, self.peer)

    @property
    def key(self) -> str:
        return self.peer if self.engine is None else f"{self.peer}:{self.engine}"


class Results:
    """Figures by rung, loop and peer for each round.

    A figure is a list of seconds, a number of bytes, or, for tasks that come
    back, what the worker told about them.
    """

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, str, str], dict[int, Any]] = {}
        self._native: dict[tuple[str, str, str], dict[int, list[float]]] = {}
        self.problems: list[str] = []

    def add(
        self,
        rung: str,
        loop: str,
        column: Column,
        turn: int,
        figure: Any,
        native: list[float] | None = None,
    ) -> None:
        """Note the figure that ``column`` reached in round ``turn``.

        :param native: what native awaits took in the same process.
        """
        key = (rung, loop, column.key)
        self._rounds.setdefault(key, {})[turn] = figure
        if native is not None:
            self._native.setdefault(key, {})[turn] = native

    def rounds(self, rung: str, loop: str, column: Column) -> dict[int, Any]:
        """Return the figures by round; empty if there are none."""
        return self._rounds.get((rung, loop, column.key), {})

    def native(self, rung: str, loop: str, column: Column) -> dict[int, Any]:
        """Return by round what ``column`` has to be compared with."""
        paired = self._native.get((rung, loop, column.key))
        return paired or self.rounds(rung, loop, Column(NATIVE))

    def all_native(self, rung: str, loop: str) -> dict[int, Any]:
        """Return the native figures by round, whoever was timed beside them."""
        found: dict[int, Any] = dict(self.rounds(rung, loop, Column(NATIVE)))
        for (its_rung, its_loop, _), rounds in self._native.items():
            if (its_rung, its_loop) == (rung, loop):
                for turn, values in rounds.items():
                    found.setdefault(turn, []).append(min(values))
        return {
            turn: [statistics.median(figure)] if isinstance(figure, list) else figure
            for turn, figure in found.items()
        }


def spread(values: Iterable[float]) -> list[float]:
    """Return the quartiles, four digits of each."""
    values = list(values)
    if len(values) < 2:
        quartiles = values * 3
    else:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return [float(f"{quartile:.4g}") for quartile in quartiles]


class Figures(NamedTuple):
    """What a peer reached on a rung: quartiles over the rounds.

    Differences from native and ratios are taken within a round. Of the seconds
    in a round the smallest counts: whatever else runs on the machine can only
    add to them. ``fastest`` is the smallest of all rounds, ``fastest_native``
    what native needed in the same processes.
    """

    values: list[float]
    extras: list[float] | None = None
    ratios: list[float] | None = None
    fastest: float | None = None
    fastest_native: float | None = None
    returned: int | None = None
    tasks: int | None = None

    @property
    def value(self) -> float:
        """The median."""
        return self.values[1]

    @property
    def extra(self) -> float | None:
        """The median of what is beyond native."""
        return self.extras and self.extras[1]

    @property
    def ratio(self) -> float | None:
        """The median of how many times native."""
        return self.ratios and self.ratios[1]

    def judged(self, rung: Rung) -> float | None:
        """Return the figure that the rung's target applies to."""
        figure: float | None = getattr(self, rung.judged, None)
        return figure


class Summary(NamedTuple):
    """What a run of the ladder found, as it is kept in JSON."""

    columns: list[Column]
    loops: list[str]
    figures: dict[tuple[str, str, Column], Figures]

    @classmethod
    def of(cls, results: Results, columns: list[Column], loops: list[str]) -> Summary:
        """Sum ``results`` up."""
        found = {}
        for rung in (*TIME_RUNGS, *TASKS_RUNGS, *MEMORY_RUNGS, RETURN_RUNG):
            for loop in loops:
                for column in columns:
                    figures = _figures(results, rung, loop, column)
                    if figures is not None:
                        found[rung.key, loop, column] = figures
        return cls(columns, loops, found)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "peers": [column.key for column in self.columns],
            "loops": self.loops,
            "figures": [
                {"rung": rung, "loop": loop, "peer": column.key}
                | {k: v for k, v in figures._asdict().items() if v is not None}
                for (rung, loop, column), figures in self.figures.items()
            ],
        }

    @classmethod
    def from_json(cls, section: dict[str, Any]) -> Summary:
        """Take it from JSON."""
        columns = [Column(*key.split(":")) for key in section["peers"]]
        found = {}
        for entry in section["figures"]:
            figures = dict(entry)
            column = Column(*figures.pop("peer").split(":"))
            key = (figures.pop("rung"), figures.pop("loop"), column)
            found[key] = Figures(**figures)
        return cls(columns, section["loops"], found)


def _figures(results: Results, rung: Rung, loop: str, column: Column) -> Figures | None:
    """Return what ``column`` reached in one line, or None if nothing."""
    rounds = results.rounds(rung.key, loop, column)
    if rung == RETURN_RUNG:
        if not rounds:
            return None
        return Figures(
            spread(found["seconds"] for found in rounds.values()),
            returned=min(found["returned"] for found in rounds.values()),
            tasks=next(iter(rounds.values()))["tasks"],
        )
    if column.peer == NATIVE:
        rounds = results.all_native(rung.key, loop)
    mine = _single(rounds)
    if not mine:
        return None
    values = spread(mine.values())
    native = _single(results.native(rung.key, loop, column))
    shared = [(mine[turn], native[turn]) for turn in mine if turn in native]
    if column.peer == NATIVE or not shared:
        return Figures(values)
    return Figures(
        values,
        spread(own - base for own, base in shared),
        spread(own / base if base else float("inf") for own, base in shared),
        float(f"{min(own for own, _ in shared):.4g}"),
        float(f"{min(base for _, base in shared):.4g}"),
    )


def _single(rounds: dict[int, Any]) -> dict[int, float]:
    return {
        turn: min(figure) if isinstance(figure, list) else figure
        for turn, figure in rounds.items()
    }


def format_figure(value: float, unit: str, sign: str = "") -> str:
    """Return ``value`` with three digits and a fitting unit."""
    if unit == "times":
        return f"{value:.2f}x"
    if unit == "byte":
        return f"{value:{sign},.0f} B"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= 0.9995 * scale:
            scaled = value / scale
            digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
            return f"{scaled:{sign}.{digits}f} {name}"
    return f"{value * 1e9:{sign}.0f} ns"


def format_target(rung: Rung, target: Target) -> str:
    """Return what the rung may cost, or an empty string."""
    parts = []
    if target.limit is not None:
        if rung.judged == "ratio":
            parts.append(f"≤ {target.limit:g}x")
        else:
            sign = "+" if rung.judged == "extra" else ""
            parts.append(f"≤ {format_figure(target.limit, rung.unit, sign)}")
    for peer, times in target.times.items():
        parts.append(f"1/{times:.3g} of {Column(peer).title}")
    return ", ".join(parts)


def table(summary: Summary) -> tuple[str, int]:
    """Return the table as Markdown and how many targets were missed.

    A cell holds the figure, what it is above native (+) and how many times
    native (x). The last columns compare greenback 1.3.0 with ours.
    """
    columns, loops = summary.columns, summary.loops
    ours = [column for column in columns if column.peer == OURS]
    compare = [column for column in ours if Column(PREVIOUS) in columns]
    header = ["rung", "loop", *(column.title for column in columns)]
    header += [f"target, {column.engine}" for column in ours]
    header += [f"1.3.0 / {column.engine}" for column in compare]
    rows = []
    for rung in (*TIME_RUNGS, *TASKS_RUNGS, *MEMORY_RUNGS):
        for loop in loops:
            by_column = {
                column: summary.figures.get((rung.key, loop, column))
                for column in columns
            }
            if not any(by_column.values()):
                continue
            cells = [
                _cell(rung, found) + _verdict(rung, loop, column, by_column)
                for column, found in by_column.items()
            ]
            targets = [
                format_target(rung, target(column.engine, rung, loop))
                for column in ours
            ]
            against = [
                _times(rung, by_column[Column(PREVIOUS)], by_column[column])
                for column in compare
            ]
            rows.append([rung.title, loop, *cells, *targets, *against])
    for loop in loops:
        row = [
            _returned_cell(summary.figures.get((RETURN_RUNG.key, loop, column)))
            for column in columns
        ]
        if any(cell != "-" for cell in row):
            rest = ["all" for _ in ours] + ["" for _ in compare]
            rows.append([RETURN_RUNG.title, loop, *row, *rest])
    missed = sum(cell.endswith("MISSED") for row in rows for cell in row)
    return markdown(header, rows), missed


def _verdict(
    rung: Rung,
    loop: str,
    column: Column,
    by_column: Mapping[Column, Figures | None],
) -> str:
    """Return whether our ``column`` reaches its target; empty if it has none."""
    wanted = target(column.engine, rung, loop)
    found = by_column[column]
    reached = found and found.judged(rung)
    if column.peer != OURS or reached is None or wanted == Target():
        return ""
    ok = wanted.limit is None or reached <= wanted.limit
    for peer, times in wanted.times.items():
        other = by_column.get(Column(peer))
        theirs = other and other.judged(rung)
        if theirs is not None:
            ok = ok and reached * times <= theirs
    return " ok" if ok else " MISSED"


def _cell(rung: Rung, found: Figures | None) -> str:
    if found is None:
        return "-"
    parts = [format_figure(found.value, rung.unit)]
    if found.extra is not None:
        parts.append(format_figure(found.extra, rung.unit, "+"))
    if found.ratio is not None:
        parts.append(f"{found.ratio:.2f}x")
    return " ".join(parts)


def _times(rung: Rung, previous: Figures | None, own: Figures | None) -> str:
    """Return how many times our extra cost the previous version has."""
    if previous is None or own is None:
        return ""
    if rung.judged == "none":
        return ""
    if rung.judged == "value":
        return f"{previous.value / own.value:.1f}x"
    if previous.extra is None or own.extra is None:
        return ""
    if own.extra <= 0 or previous.extra <= 0:
        return f"{previous.value / own.value:.1f}x total"
    return f"{previous.extra / own.extra:.1f}x"


def _returned_cell(found: Figures | None) -> str:
    if found is None:
        return "-"
    verdict = "ok" if found.returned == found.tasks else "MISSED"
    seconds = format_figure(found.value, "second")
    return f"{found.returned:,} of {found.tasks:,} in {seconds} {verdict}"


def describe(section: Mapping[str, Any]) -> str:
    """Return the lines below a table that say what was measured, and where."""
    machine = section["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in section["packages"].items())
    return "\n".join(
        [
            f"- Machine: {machine['cpu']}, {machine['cores']} cores; {machine['os']}",
            f"- Python: {machine['python']}",
            f"- Packages: {packages}",
            f"- {section['method']}",
            f"- {section['date']}; load average at the end"
            f" {section['load average at the end']}",
        ]
    )


def save(path: Path, name: str, section: Mapping[str, Any]) -> None:
    """Make ``section`` the one called ``name`` in a file of results."""
    sections = json.loads(path.read_text("utf-8")) if path.exists() else {}
    sections[name] = section
    # A line for each row: figures that change are seen in diffs.
    lines = []
    for title, content in sections.items():
        entries = ",\n".join(
            f"  {json.dumps(key)}: "
            + (
                "[\n   " + ",\n   ".join(map(json.dumps, value)) + "\n  ]"
                if key in ("figures", "rows")
                else json.dumps(value, ensure_ascii=False)
            )
            for key, value in content.items()
        )
        lines.append(f" {json.dumps(title)}: {{\n{entries}\n }}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table."""
    lines = [header, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    text = []
    for number, line in enumerate(lines):
        text.append(
            "| "
            + " | ".join(
                cell.ljust(width) for cell, width in zip(line, widths, strict=True)
            )
            + " |"
        )
        if number == 0:
            text.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
