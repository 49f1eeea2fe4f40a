"""Makes random programs: the source of functions ``f0`` .. ``fN``, in two twins.

The text is made once, with markers where the twins differ, so that both have the same
names, the same lines, and do the same things in the same order:

=================  ==================  =======================
marker             with await_         native
=================  ==================  =======================
``@DEF``           ``def``             ``async def``
``@CALL f(t)``     ``f(t)``            ``await f(t)``
``@AWAIT(x)``      ``t.await_(x)``     ``await (x)``
``@WITH``          ``with``            ``async with``
``@FOR``           ``for``             ``async for``
=================  ==================  =======================

A function calls only functions of higher numbers, so that each program ends.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType

import frames

MARKERS = {
    "@DEF": ("def", "async def"),
    "@CALL": ("", "await"),
    "@AWAIT": ("t.await_", "await "),
    "@WITH": ("with", "async with"),
    "@FOR": ("for", "async for"),
}
HANDLERS = (
    "Boom",
    "Boom",
    "Exception",
    "Exception",
    "(Bang, CancelledError)",
    "(Exception, CancelledError)",
    "BaseException",
)


@dataclass
class Limits:
    """How big programs get."""

    functions: int = 9
    suspensions_per_function: int = 40
    statements: int = 6
    nesting: int = 3
    recursion: int = 60
    # A trampoline throws; elsewhere awaits in clean-up would be cancelled at random.
    raises: bool = True
    # Whether tracing is switched on and off within programs.
    tracing: bool = True


@dataclass
class Program:
    seed: int
    text: str
    roots: list[str]
    kinds: set[str] = field(default_factory=set)

    def source(self, portal: bool) -> str:
        text = self.text
        for marker, twins in MARKERS.items():
            text = text.replace(marker, twins[0 if portal else 1])
        return text

    def compiled(self, portal: bool) -> CodeType:
        twin = "portal" if portal else "native"
        return compile(self.source(portal), f"<program {self.seed}, {twin}>", "exec")


class Generator:
    def __init__(self, seed: int, kinds: Sequence[str], limits: Limits) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        # Few kinds a program, so that they meet themselves.
        sample = self.random.sample(kinds, min(len(kinds), 8))
        self.kinds = frames.compatible(sample)
        self.limits = limits
        self.costs: dict[str, int] = {}
        self.callable: list[str] = []
        self.lines: list[str] = []
        self.indent = 0
        self.cost = 0  # suspensions of the function that is being written
        self.multiplier = 1
        self.labels = 0
        self.used: set[str] = set()

    def program(self, tasks: int) -> Program:
        parts: list[str] = []
        count = self.random.randint(3, self.limits.functions)
        for number in reversed(range(count)):
            parts.append(self.function(f"f{number}"))
        first = [name for name in self.callable[::-1] if self.costs[name]]
        names = first[: max(2, count // 2)] or self.callable[-1:]
        roots = [self.random.choice(names) for _ in range(tasks)]
        text = "\n\n".join(reversed(parts))
        return Program(self.seed, text, roots, self.used)

    # ------------------------------------------------------------------- functions

    def function(self, name: str) -> str:
        self.lines, self.indent, self.cost, self.multiplier = [], 0, 0, 1
        self.line(f"@DEF {name}(t, depth=0):")
        self.indent += 1
        self.line("x = 1")
        big = self.random.random() < 0.1
        if big:
            count = self.random.choice((30, 300, 1500))
            self.line("; ".join(f"v{i} = {i}" for i in range(count)))
        if self.random.random() < 0.15:
            depth = self.random.randint(1, self.limits.recursion)
            self.line(f"if depth < {depth}:")
            self.line(f"    return (@CALL {name}(t, depth + 1)) + 1")
        self.line(f"t.mark('{name}')")
        self.block(0)
        if not self.cost:
            self.suspend()
        if big:
            self.line("x += " + " + ".join(f"v{i}" for i in range(0, count, 7)))
        self.line(f"t.mark('{name} ends', x)")
        self.line("return x")
        self.costs[name] = self.cost
        self.callable.append(name)
        return "\n".join(self.lines) + "\n"

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def label(self) -> str:
        self.labels += 1
        return f"'L{self.labels}'"

    def room(self) -> int:
        return self.limits.suspensions_per_function - self.cost

    def charge(self, cost: int) -> None:
        self.cost += cost * self.multiplier

    def block(self, nesting: int) -> None:
        self.indent += nesting > 0
        for _ in range(self.random.randint(1, self.limits.statements)):
            self.statement(nesting)
        self.indent -= nesting > 0

    def statement(self, nesting: int) -> None:
        choices = [
            (self.suspend, 5),
            (self.evaluate, 10),
            (self.mark, 2),
            (self.set_variable, 2),
            (self.noise, 3),
            (self.probe, 1),
        ]
        if self.limits.raises:
            choices.append((self.raise_something, 1))
        if nesting < self.limits.nesting:
            choices += [
                (lambda: self.try_except(nesting), 4),
                (lambda: self.try_finally(nesting), 3),
                (lambda: self.loop(nesting), 2),
                (lambda: self.manager(nesting), 2),
                (lambda: self.tracing(nesting), 1),
                (lambda: self.iterate(nesting), 1),
            ]
        actions, weights = zip(*choices, strict=True)
        self.random.choices(actions, weights)[0]()

    # ------------------------------------------------------------------ statements

    def suspend(self) -> None:
        self.charge(1)
        self.line(f"x = (x * 31 + @AWAIT({self.trap()})) % 1000003")

    def evaluate(self) -> None:
        self.line(f"x = (x * 31 + {self.expression(0)}) % 1000003")

    def mark(self) -> None:
        self.line(f"t.mark({self.label()}, x)")

    def set_variable(self) -> None:
        self.line(f"t.set({self.random.randrange(3)}, x)")

    def noise(self) -> None:
        self.line("t.noisy()")

    def probe(self) -> None:
        """The room for calls is the same before and after a suspension."""
        self.charge(1)
        self.line("room = t.room()")
        self.line(f"x += @AWAIT({self.trap()})")
        self.line("t.same_room(room)")

    def raise_something(self) -> None:
        self.line(f"if x % {self.random.choice((1, 2, 3))} == 0:")
        name = self.random.choice(("Boom", "Boom", "Bang", "CancelledError", "Blast"))
        cause = self.random.choice(("", "", " from Bang()", " from None"))
        self.line(f"    raise {name}(x){cause}")

    def try_except(self, nesting: int) -> None:
        self.line("try:")
        self.block(nesting + 1)
        handler = self.random.choice(HANDLERS)
        self.line(f"except {handler} as exc:")
        self.indent += 1
        self.line("t.raised(exc)")
        self.indent -= 1
        self.block(nesting + 1)
        ending = self.random.random()
        if ending < 0.15:
            self.line("    raise")
        elif ending < 0.3:
            self.line("    raise Boom(x) from exc")
        if self.random.random() < 0.2:
            self.line("else:")
            self.block(nesting + 1)

    def try_finally(self, nesting: int) -> None:
        self.line("try:")
        self.block(nesting + 1)
        self.line("finally:")
        self.line(f"    t.mark({self.label()})")
        if self.random.random() < 0.4:
            self.block(nesting + 1)

    def repeated(self, times: int, nesting: int) -> None:
        before = self.multiplier
        self.multiplier *= times
        self.block(nesting + 1)
        self.multiplier = before

    def loop(self, nesting: int) -> None:
        times = self.random.randint(1, 3)
        self.line(f"for i{nesting} in range({times}):")
        self.repeated(times, nesting)
        if self.random.random() < 0.2:
            self.line(f"    if x % 3 == 0: {self.random.choice(('break', 'continue'))}")

    def iterate(self, nesting: int) -> None:
        callee = self.callee()
        if callee is None:
            return self.suspend()
        times = self.random.randint(1, 2)
        self.charge(self.costs[callee] * times)
        self.line(f"@FOR y in Iterate(t, {callee}, {times}):")
        self.line("    x += y")
        self.repeated(times, nesting)

    def manager(self, nesting: int) -> None:
        callee = self.callee()
        if callee is None:
            return self.suspend()
        when = self.random.randint(0, 3)
        self.charge(self.costs[callee] * when.bit_count())
        swallows = self.random.random() < 0.3
        self.line(f"@WITH Manager(t, {callee}, {when}, {swallows}) as y:")
        self.line("    x += y")
        self.block(nesting + 1)

    def tracing(self, nesting: int) -> None:
        kind = "allocation"
        if self.limits.tracing:
            kind = self.random.choice(("trace", "trace", "profile", "monitor", kind))
        self.line(f"before = t.tracing_on('{kind}')")
        self.line("try:")
        self.block(nesting + 1)
        self.line("finally:")
        self.line(f"    t.tracing_off('{kind}', before)")

    # ----------------------------------------------------------------- expressions

    def trap(self) -> str:
        return f"t.trap({self.random.randrange(100)})"

    def callee(self) -> str | None:
        fitting = [
            name
            for name in self.callable
            if self.costs[name] * self.multiplier <= self.room()
        ]
        return self.random.choice(fitting) if fitting else None

    def expression(self, nesting: int) -> str:
        roll = self.random.random()
        if nesting < 2 and roll < 0.3:
            return self.combination(nesting + 1)
        callee = self.callee()
        if callee is None or roll < 0.4:
            if self.room() <= 0:
                return str(self.random.randrange(50))
            self.charge(1)
            return f"(@AWAIT({self.trap()}))"
        cost = self.costs[callee]
        if roll < 0.55:
            self.charge(cost)
            return f"(@CALL {callee}(t))"
        times = self.random.choice((1, 1, 1, 2, 3))
        if cost * times * self.multiplier > self.room():
            times = 1
        self.charge(cost * times)
        kind = self.random.choice(self.kinds)
        self.used.add(kind)
        return f"(@CALL frames['{kind}'](t, {callee}, {times}))"

    def combination(self, nesting: int) -> str:
        """Leaves values on the value stack while something else is evaluated."""
        one, two = self.expression(nesting), self.expression(nesting)
        templates = (
            f"t.add({one}, {two})",
            f"t.add(1, *[{one}, 2], last={two})",
            f"[{one}, {two}][1]",
            f"{{1: {one}, 2: {two}}}[1]",
            f"int('1%d%d' % ({one} % 9, {two} % 9))",
            f"(7 + {one} - {two})",
            f"({one} or {two})",
            f"(3 if {one} % 2 else {two})",
            f"sum([{one} for _ in range(1)])",
            f"(lambda a, b=0: a - b)({one}, b={two})",
            f"max({one}, {two})",
        )
        return self.random.choice(templates)
