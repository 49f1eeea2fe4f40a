"""Generators, exception handling, contexts, signals, imports, greenlets."""

from __future__ import annotations

import contextvars
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import signal
import sys
import threading
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

from frames import Call, Caller, add_pair, fold, frame_kind
from world import VARIABLES, Bang, Boom

# -------------------------------------------------------------------- generators


@frame_kind("yield from")
def through_yield_from(call: Call, times: int) -> None:
    def inner() -> Iterator[int]:
        for _ in range(times):
            yield call()

    def outer() -> Iterator[int]:
        yield from inner()

    list(outer())


@frame_kind("generator.send")
def through_generator_send(call: Call, times: int) -> None:
    def generator() -> Generator[int, int, None]:
        value = 0
        while True:
            value = yield value
            call()

    running = generator()
    next(running)
    for number in range(times):
        running.send(number)


async def throw_twin(call: Any, times: int) -> None:
    for _ in range(times):
        thrown = Bang()
        try:
            try:
                raise thrown
            finally:
                thrown.__context__ = None  # throw() leaves it alone
        except Bang:
            await call()


@frame_kind("generator.throw", throw_twin)
def through_generator_throw(call: Call, times: int) -> None:
    def generator() -> Iterator[int]:
        while True:
            try:
                yield 1
            except Bang:
                call()

    running = generator()
    next(running)
    for _ in range(times):
        running.throw(Bang())


async def close_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            raise GeneratorExit
        except GeneratorExit:
            try:
                await call()
            except GeneratorExit:
                pass  # it is what close() expects


@frame_kind("generator.close", close_twin)
def through_generator_close(call: Call, times: int) -> None:
    def generator() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            call()

    for _ in range(times):
        running = generator()
        next(running)
        running.close()


@frame_kind("generator expression nest")
def through_generator_nest(call: Call, times: int) -> None:
    stream: Any = (call() for _ in range(times))
    for _ in range(6):
        stream = (value for value in stream)
    for _value in stream:
        pass


@frame_kind("itertools.tee")
def through_tee(call: Call, times: int) -> None:
    one, two = itertools.tee(call() for _ in range(times))
    list(zip(one, two, strict=True))


@frame_kind("coroutine driven by sync code")
def through_coroutine(call: Call, times: int) -> None:
    async def coroutine() -> int:
        return call()

    for _ in range(times):
        driven: Coroutine[Any, Any, int] = coroutine()
        try:
            driven.send(None)
        except StopIteration:
            pass


@frame_kind("comprehension")
def through_comprehension(call: Call, times: int) -> None:
    len({i: [call() for _ in range(1)] for i in range(times)})


# ------------------------------------------------------------- exception handling


async def handler_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            raise Bang
        except Bang:
            try:
                raise Boom
            except Boom:
                await call()


@frame_kind("handlers in a generator", handler_twin)
def through_handlers(call: Call, times: int) -> None:
    def inner() -> Iterator[int]:
        try:
            raise Boom
        except Boom:
            yield call()

    for _ in range(times):
        try:
            raise Bang
        except Bang:
            list(inner())


async def finally_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            try:
                raise Bang
            finally:
                await call()
        except Bang:
            pass


@frame_kind("finally under way", finally_twin)
def through_finally(call: Call, times: int) -> None:
    class Leaving:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *exc_info: object) -> bool:
            call()
            return False

    for _ in range(times):
        try:
            with Leaving():
                raise Bang
        except Bang:
            pass


# ----------------------------------------------------------------------- contexts


def run_in_contexts(t: Any, body: Any, times: int) -> int:
    caller = Caller(t, body)
    t.kinds.append("Context.run")
    try:
        for _ in range(times):
            contextvars.copy_context().run(caller)
    finally:
        t.kinds.pop()
    return fold(caller.results)


async def pretend_contexts(t: Any, body: Any, times: int) -> int:
    """Natively nothing can be awaited in a Context of one's own."""
    results = []
    for _ in range(times):
        values = [variable.get() for variable in VARIABLES]
        try:
            results.append(await body(t))
        finally:
            for variable, value in zip(VARIABLES, values, strict=True):
                variable.set(value)
    return fold(results)


add_pair("Context.run", run_in_contexts, pretend_contexts, needs="known tasks")


# ------------------------------------------------------------------------ signals


@frame_kind("signal handler", needs="main thread")
def through_signal(call: Call, times: int) -> None:
    def handler(number: int, frame: object) -> None:
        call()

    for _ in range(times):
        if threading.current_thread() is not threading.main_thread():
            call()  # in the thread of a nested loop
            continue
        signal.signal(signal.SIGUSR1, handler)
        signal.raise_signal(signal.SIGUSR1)


# ------------------------------------------------------------------------ imports


class Loader(importlib.abc.Loader):
    def __init__(self, call: Call) -> None:
        self.call = call

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        exec("value = call()", {"call": self.call})


class Finder(importlib.abc.MetaPathFinder):
    loaders: dict[str, Loader] = {}  # noqa: RUF012  of all worlds

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        loader = self.loaders.get(name)
        return importlib.util.spec_from_loader(name, loader) if loader else None


finder = Finder()


@frame_kind("import")
def through_import(call: Call, times: int) -> None:
    if finder not in sys.meta_path:
        sys.meta_path.append(finder)
    for _ in range(times):
        name = call.t.world.unique("torture")  # type: ignore[attr-defined]
        finder.loaders[name] = Loader(call)
        try:
            __import__(name)
        finally:
            del finder.loaders[name]
            sys.modules.pop(name, None)


# ---------------------------------------------------------------------- greenlets


def make_greenlet(call: Call) -> Any:
    import greenlet

    def run() -> int:
        return call()

    started = greenlet.greenlet(run)
    # A greenlet has a Context of its own otherwise.
    started.gr_context = greenlet.getcurrent().gr_context
    return started


@frame_kind("greenlet", needs="greenlet")
def through_greenlet(call: Call, times: int) -> None:
    for _ in range(times):
        make_greenlet(call).switch()


@frame_kind("greenlet in a greenlet", needs="greenlet")
def through_nested_greenlets(call: Call, times: int) -> None:
    for _ in range(times):
        make_greenlet(lambda: make_greenlet(call).switch()).switch()


@frame_kind("greenlet ping-pong", needs="greenlet")
def through_ping_pong(call: Call, times: int) -> None:
    """As SQLAlchemy: each await is made by the outer greenlet on request."""
    import greenlet

    outer = greenlet.getcurrent()

    def run() -> None:
        for _ in range(times):
            outer.switch("please")
            call()

    started = greenlet.greenlet(run)
    started.gr_context = outer.gr_context
    request = started.switch()
    while request == "please":
        request = started.switch()
