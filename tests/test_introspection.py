"""A task with a portal looks like one without.

Most tests run the same program twice, without and with a portal ("twins"), and
compare what tools would see.
"""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import io
import logging
import re
import signal
import subprocess
import sys
import traceback
import types
import warnings
import weakref

import pytest

import greenback

ASYNCIO_IDS = [
    "asyncio",
    "asyncio-pytask",
    "asyncio-subclass",
    "asyncio-eager",
    "uvloop",
]
# In a greenlet the chain of frames can't be linked to that of the loop.
FRAMES_END_AT_THE_PORTAL = getattr(greenback, "engine", None) == "greenlet"

on_asyncio = pytest.mark.parametrize("runner", ASYNCIO_IDS, indirect=True)
on_trio = pytest.mark.parametrize("runner", ["trio"], indirect=True)
on_asyncio_and_trio = pytest.mark.parametrize(
    "runner", ["asyncio", "trio"], indirect=True
)


def start(runner, fn, *args):
    """Start a task that runs *fn* directly; return the task and its coroutine."""
    if runner.library == "trio":
        import trio

        task = trio.lowlevel.spawn_system_task(fn, *args)
        return task, task.coro
    coro = fn(*args)
    task = asyncio.get_running_loop().create_task(coro)
    return task, coro


def coro_of(task):
    """Return the coroutine of a task."""
    return task.coro if hasattr(task, "coro") else task.get_coro()


def plain(text):
    """Write *text* without what may differ between equal things."""
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    text = re.sub(r"Task-\d+", "Task-N", text)
    text = re.sub(r"([\w./]*\.py):\d+", r"\1:LINE", text)
    text = re.sub(r", line \d+", ", line N", text)
    return re.sub(r"took [\d.]+ seconds", "took N seconds", text)


def look(coro):
    """Collect what a tool can find out about a coroutine."""
    frame = coro.cr_frame
    return {
        "iscoroutine": inspect.iscoroutine(coro),
        "asyncio.iscoroutine": asyncio.iscoroutine(coro),
        "isawaitable": inspect.isawaitable(coro),
        "isinstance": isinstance(coro, types.CoroutineType),
        "abc": isinstance(coro, collections.abc.Coroutine),
        "state": inspect.getcoroutinestate(coro),
        "name": coro.__name__,
        "qualname": coro.__qualname__,
        "code": coro.cr_code,
        "frame": frame and frame.f_code,
        "line": frame and frame.f_lineno,
        "running": coro.cr_running,
        "suspended": getattr(coro, "cr_suspended", None),
        "origin": coro.cr_origin,
        "await": type(coro.cr_await).__name__,
        "repr": plain(repr(coro)),
        "type": type(coro).__name__,
        "locals": sorted(inspect.getcoroutinelocals(coro)),
        "has_next": hasattr(coro, "__next__"),
        "has_iter": hasattr(coro, "__iter__"),
    }


def twins(runner, program):
    """Run *program* without and with a portal; return the two results.

    The program gets an async function that either makes a portal or does
    nothing but take the same turn of the loop.
    """
    return (
        runner.run(program, runner.checkpoint),
        runner.run(program, greenback.ensure_portal),
    )


# --- at each stage ---------------------------------------------------------------


def test_each_stage(runner):
    """Created, running, suspended and finished coroutines look as natively."""

    async def inner(gate):
        await gate.wait()

    async def main(set_up):
        looks = {}
        gate = runner.Event()

        async def program():
            await set_up()
            coro = coro_of(runner.current_task())
            looks["running"] = look(coro)
            assert greenback.has_portal() is (set_up is greenback.ensure_portal)
            awaited.append(inner(gate))
            looks["before"] = look(coro)
            await awaited[0]
            looks["after"] = look(coro)
            return "result"

        awaited = []
        task, coro = start(runner, program)
        if not runner.eager:
            looks["created"] = look(coro)
        await runner.settle()
        looks["suspended"] = look(coro)
        assert coro.cr_await is awaited[0]
        assert coro_of(task) is coro
        gate.set()
        await runner.settle()
        looks["finished"] = look(coro)
        assert coro_of(task) is coro
        return looks

    native, portal = twins(runner, main)
    assert native == portal
    if not runner.eager:
        assert native["created"]["state"] == inspect.CORO_CREATED
        assert native["finished"]["state"] == inspect.CORO_CLOSED


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_each_stage_bestowed(runner, steps):
    """A portal bestowed from outside changes nothing at any stage."""
    if runner.eager and steps == 0:
        pytest.skip("an eager task is never seen before its first step")

    async def main(bestow):
        looks = []
        gate = runner.Event()
        first = runner.Event()

        async def program():
            await first.wait()
            looks.append(look(holder[0]))
            await gate.wait()
            looks.append(look(holder[0]))

        holder = []
        task, coro = start(runner, program)
        holder.append(coro)
        if steps:
            await runner.settle()
        if steps == 2:
            first.set()
            await runner.settle()
        bestow(task)
        looks.append(look(coro))
        first.set()
        await runner.settle()
        looks.append(look(coro))
        assert coro_of(task) is coro
        gate.set()
        await runner.settle()
        looks.append(look(coro))
        assert coro_of(task) is coro
        return looks

    assert runner.run(main, greenback.bestow_portal) == runner.run(main, id)


def test_suspended_in_await(runner):
    """A task suspended in await_ looks like one suspended in await."""

    async def inner(gate):
        await gate.wait()

    async def main():
        gate = runner.Event()
        holder = []

        def sync():
            return greenback.await_(holder[0])

        async def program():
            marker = "program"
            await greenback.ensure_portal()
            holder.append(inner(gate))
            sync()
            return marker

        async def native():
            await greenback.ensure_portal()
            await inner(gate)

        _, coro = start(runner, program)
        _, native_coro = start(runner, native)
        await runner.settle()
        portal_look = look(coro)
        native_look = look(native_coro)
        for same in (
            "iscoroutine asyncio.iscoroutine isawaitable isinstance abc state running "
            "suspended origin await type has_next has_iter"
        ).split():
            assert portal_look[same] == native_look[same], same
        assert portal_look["state"] == inspect.CORO_SUSPENDED
        assert portal_look["suspended"] is True
        assert portal_look["running"] is False
        assert portal_look["name"] == "program"
        assert portal_look["code"] is portal_look["frame"] is program.__code__
        assert coro.cr_await is holder[0]
        assert coro.cr_frame.f_locals["marker"] == "program"
        lines, first = inspect.getsourcelines(program)
        assert coro.cr_frame.f_lineno == first + len(lines) - 2
        gate.set()
        await runner.settle()
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert coro.cr_await is None
        assert coro.cr_frame is None

    runner.run(main)


def test_cr_await_is_the_innermost(runner):
    """With nested await_ calls, cr_await is what the innermost one awaits."""

    async def main():
        gate = runner.Event()
        nested = []

        async def level(number):
            if number:
                nested.append(level(number - 1))
                (lambda: greenback.await_(nested[-1]))()
            else:
                await gate.wait()

        async def program():
            await greenback.ensure_portal()
            nested.append(level(3))
            greenback.await_(nested[0])

        _, coro = start(runner, program)
        await runner.settle()
        assert len(nested) == 4
        assert coro.cr_await is nested[-1]
        gate.set()
        await runner.settle()
        assert coro.cr_await is None

    runner.run(main)


def test_states_seen_from_inside(runner):
    """In a step, before and after a suspension, the coroutine is running."""

    async def main():
        coro = coro_of(runner.current_task())
        await greenback.ensure_portal()

        def sync():
            before = look(coro)
            greenback.await_(runner.checkpoint())
            return before, look(coro)

        before, after = sync()
        assert before == after
        assert before["state"] == inspect.CORO_RUNNING
        assert before["running"] is True
        assert before["suspended"] is False
        assert before["await"] == "NoneType"

        async def inside():
            return look(coro)

        assert greenback.await_(inside())["state"] == inspect.CORO_RUNNING

    runner.run(main)


# --- names -----------------------------------------------------------------------


def test_name_and_qualname_can_be_set(runner):
    """The names can be set before and after a portal was made; errors as natively."""

    async def main(set_up):
        coro = coro_of(runner.current_task())
        coro.__name__ = "before"
        await set_up()
        seen = [coro.__name__, coro.__qualname__]
        coro.__name__ = "renamed"
        coro.__qualname__ = "quite.renamed"
        seen += [coro.__name__, coro.__qualname__, plain(repr(coro))]
        for attribute in (
            "__name__",
            "__qualname__",
            "cr_code",
            "cr_frame",
            "cr_await",
        ):
            for value in (3, None):
                try:
                    setattr(coro, attribute, value)
                except Exception as error:
                    seen.append((type(error), attribute))
            try:
                delattr(coro, attribute)
            except Exception as error:
                seen.append((type(error), attribute))
        await runner.checkpoint()
        seen += [coro.__name__, coro.__qualname__, plain(repr(runner.current_task()))]
        return seen

    native, portal = twins(runner, main)
    assert native == portal
    assert native[2:4] == ["renamed", "quite.renamed"]


def test_attributes(runner):
    """No attribute comes or goes with the portal."""

    async def main(set_up):
        coro = coro_of(runner.current_task())
        before = set(dir(coro))
        await set_up()
        with pytest.raises(AttributeError):
            coro.new_attribute = 1
        return before, set(dir(coro))

    native, portal = twins(runner, main)
    assert portal == native


def test_origin(runner):
    """cr_origin keeps what was recorded when the coroutine was made."""

    async def main():
        origins = []
        depth = sys.get_coroutine_origin_tracking_depth()
        gate = runner.Event()

        async def program():
            await gate.wait()
            await greenback.with_portal_run_sync(int)

        try:
            for tracked in (0, 1, 4):
                sys.set_coroutine_origin_tracking_depth(tracked)
                task, coro = start(runner, program)
                seen = [coro.cr_origin]
                greenback.bestow_portal(task)
                seen.append(coro.cr_origin)
                sys.set_coroutine_origin_tracking_depth(0)
                await runner.settle()
                seen.append(coro.cr_origin)
                origins.append((coro, seen))
            gate.set()
            await runner.settle()
        finally:
            sys.set_coroutine_origin_tracking_depth(depth)
        for (coro, seen), tracked in zip(origins, (0, 1, 4), strict=True):
            assert seen == [seen[0]] * 3
            assert coro.cr_origin == seen[0]
            if tracked:
                assert len(seen[0]) == tracked
                assert seen[0][0][0].endswith(".py")
            else:
                assert seen[0] is None

    runner.run(main)


# --- tasks -----------------------------------------------------------------------


@on_asyncio
def test_task_repr_and_stack(runner):
    """repr(), get_stack() and print_stack() of idle, running and done tasks."""

    async def main(set_up):
        seen = []
        gate = asyncio.Event()

        def stack_names():
            return [frame.f_code.co_name for frame in task.get_stack()]

        async def inner():
            await gate.wait()
            seen.append(plain(repr(task)))
            seen.append(stack_names()[-1:])

        async def program():
            await set_up()
            await asyncio.sleep(0)
            await inner()
            raise ValueError("at the end")

        task = asyncio.get_running_loop().create_task(program(), name="the task")
        await runner.settle()
        output = io.StringIO()
        task.print_stack(file=output)
        seen += [plain(repr(task)), stack_names(), plain(output.getvalue())]
        gate.set()
        await asyncio.wait([task])
        output = io.StringIO()
        task.print_stack(file=output)
        seen += [plain(repr(task)), stack_names(), plain(output.getvalue())]
        assert isinstance(task.exception(), ValueError)
        return seen

    native, portal = twins(runner, main)
    assert native == portal
    assert "program() running at" in native[0]


@on_asyncio
def test_task_suspended_in_await(runner):
    """The task's repr and stack name the user's function."""

    async def main():
        gate = asyncio.Event()

        async def program():
            await greenback.ensure_portal()
            (lambda: greenback.await_(gate.wait()))()

        task = asyncio.get_running_loop().create_task(program(), name="the task")
        await runner.settle()
        lines, first = inspect.getsourcelines(program)
        last = first + len(lines) - 1
        assert re.search(
            rf"program\(\) running at .*test_introspection.py:{last}>", repr(task)
        )
        assert "wait_for=<Future pending" in repr(task)
        assert [frame.f_code for frame in task.get_stack()] == [program.__code__]
        assert task.get_stack(limit=1)[0].f_lineno == last
        output = io.StringIO()
        task.print_stack(file=output)
        assert f"line {last}, in program" in output.getvalue()
        assert "greenback/" not in output.getvalue()
        gate.set()
        await task

    runner.run(main)


def test_frames_up_to_the_loop(runner):
    """The frames of a running task lead to the loop, as natively, or to the portal."""

    def names():
        frame = sys._getframe(1)
        result = []
        while frame is not None:
            result.append(frame.f_code.co_name)
            frame = frame.f_back
        return result

    async def main(set_up):
        await set_up()
        return names()

    def of_sync_code():
        before = names()
        greenback.await_(runner.checkpoint())
        return before, names()

    async def main_sync():
        await greenback.ensure_portal()
        return of_sync_code()

    native, portal = twins(runner, main)
    # those of the loop: the test's own differ
    outside = native[native.index("main") + 1 : native.index("twins")]
    assert outside
    if FRAMES_END_AT_THE_PORTAL:
        outside = []
        assert len(portal) == 1
    assert portal[: 1 + len(outside)] == ["main", *outside]
    before, after = runner.run(main_sync)
    assert before[0] == after[0] == "of_sync_code"
    for seen in (before, after):
        assert seen[1] == "main_sync"
        if FRAMES_END_AT_THE_PORTAL:
            assert len(seen) == 2
        assert seen[2 : 2 + len(outside)] == outside


@on_asyncio
def test_slow_callback_message(runner, caplog):
    """In debug mode, a slow step is reported with the user's function."""

    async def main(set_up):
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = -1.0
        caplog.clear()

        async def program():
            await set_up()
            await asyncio.sleep(0)

        await loop.create_task(program(), name="the task")
        loop.set_debug(False)
        messages = [plain(record.getMessage()) for record in caplog.records]
        return [message for message in messages if "the task" in message]

    with caplog.at_level(logging.WARNING, "asyncio"):
        native, portal = twins(runner, main)
    assert portal == native
    if runner.id != "uvloop":
        assert any("program()" in message for message in native)


@on_asyncio
@pytest.mark.parametrize("debug", [False, True])
def test_destroyed_pending_message(runner, debug):
    """Dropping a pending task with an idle portal is reported as natively."""

    async def main(set_up):
        contexts = []
        loop = asyncio.get_running_loop()
        loop.set_debug(debug)
        loop.set_exception_handler(lambda loop, context: contexts.append(context))

        async def program():
            await set_up()
            await loop.create_future()

        task = loop.create_task(program(), name="the task")
        await runner.settle()
        del task
        gc.collect()
        loop.set_debug(False)
        (context,) = contexts
        return context["message"], plain(repr(context["task"])), sorted(context)

    native, portal = twins(runner, main)
    assert portal == native
    assert native[0] == "Task was destroyed but it is pending!"
    assert "program() " in native[1]


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("task_class", ["c", "python"])
def test_never_awaited_warning(depth, task_class):
    """A coroutine with a portal that never ran is reported as natively."""
    make = asyncio.Task if task_class == "c" else asyncio.tasks._PyTask

    async def program():
        raise AssertionError("must not run")

    def drop(bestow):
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        sys.set_coroutine_origin_tracking_depth(depth)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            task = make(program(), loop=loop)
            sys.set_coroutine_origin_tracking_depth(0)
            bestow(task)
            loop.close()
            del task, loop
            gc.collect()
        return [plain(str(warning.message)) for warning in caught]

    native, portal = [drop(bestow) for bestow in (id, greenback.bestow_portal)]
    assert portal == native
    assert len(native) == 1
    assert "program' was never awaited" in native[0]
    assert ("Coroutine created at" in native[0]) is (depth > 0)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with 3.14")
@pytest.mark.parametrize(
    "runner",
    # asyncio takes no other kind of task here.
    ["asyncio", "asyncio-subclass", "asyncio-eager", "uvloop"],
    indirect=True,
)
def test_call_graph(runner):
    """asyncio's call graph shows the same frames."""

    async def main(set_up):
        gate = asyncio.Event()

        async def inner():
            await gate.wait()

        async def program():
            await set_up()
            await inner()

        task = asyncio.get_running_loop().create_task(program(), name="the task")
        await runner.settle()
        text = plain(asyncio.format_call_graph(task))
        gate.set()
        await task
        return text

    native, portal = twins(runner, main)
    assert portal == native
    assert "program()" in native


ASYNCIO_PS = """
import asyncio, subprocess, sys, os
import greenback

async def inner(gate):
    await gate.wait()

async def user_function(gate):
    await greenback.ensure_portal()
    await inner(gate)

async def user_function_suspended(gate):
    await greenback.ensure_portal()
    greenback.await_(inner(gate))

async def main():
    gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(user_function(gate), name="task one")
        group.create_task(user_function_suspended(gate), name="task two")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        result = subprocess.run(
            [sys.executable, "-m", "asyncio", "ps", str(os.getpid())],
            capture_output=True, text=True,
        )
        gate.set()
    print(result.stdout)
    sys.stderr.write(result.stderr)
    sys.exit(result.returncode)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="asyncio ps came with 3.14")
def test_asyncio_ps():
    """`python -m asyncio ps` lists tasks with portals."""
    result = subprocess.run(
        [sys.executable, "-c", ASYNCIO_PS], capture_output=True, text=True, timeout=60
    )
    if result.returncode != 0 and re.search(
        "[Pp]ermission|not permitted|not supported|[Ff]ailed to (find|open|read)",
        result.stderr + result.stdout,
    ):
        pytest.skip("this machine does not let one process inspect another")
    assert result.returncode == 0, result.stderr
    assert "task one" in result.stdout
    assert "user_function" in result.stdout
    assert "task two" in result.stdout


# --- weak references, errors of the coroutine's methods -----------------------------


def test_weak_references(runner):
    """A weak reference to the coroutine lives as long as the coroutine."""

    async def main():
        gate = runner.Event()
        called = []

        async def program():
            await gate.wait()
            greenback.await_(gate.wait())

        task, coro = start(runner, program)
        early = weakref.ref(coro, called.append)
        await runner.settle()
        greenback.bestow_portal(task)
        late = weakref.ref(coro, called.append)
        assert early() is late() is coro
        gate.set()
        await runner.settle()
        assert early() is late() is coro
        del task, coro
        await runner.settle()
        gc.collect()
        assert early() is late() is None
        assert sorted(map(id, called)) == sorted(map(id, (early, late)))

    runner.run(main)


def test_already_executing(runner):
    """Stepping a running coroutine is refused as natively, and harmless."""

    def attempts(coro):
        seen = []
        for attempt in (
            lambda: coro.send(None),
            lambda: coro.throw(KeyError()),
            lambda: coro.close(),
        ):
            with pytest.raises(ValueError) as caught:
                attempt()
            seen.append(str(caught.value))
        return seen

    async def main(set_up):
        coro = coro_of(runner.current_task())
        await set_up()
        seen = attempts(coro)

        async def inner():
            return attempts(coro)

        seen += await inner()
        if greenback.has_portal():
            assert greenback.await_(inner()) == attempts(coro)
            greenback.await_(runner.checkpoint())
            assert attempts(coro) == greenback.await_(inner())
        return seen

    native, portal = twins(runner, main)
    assert portal == native
    assert set(native) == {"coroutine already executing"}


def test_reuse(runner):
    """A finished coroutine refuses another step as natively."""

    async def main(set_up):
        seen = []
        finished = runner.Event()

        async def program():
            await set_up()
            finished.set()

        _, coro = start(runner, program)
        await finished.wait()
        await runner.settle()
        for attempt in (
            lambda: coro.send(None),
            lambda: coro.send(3),
            lambda: coro.throw(KeyError("thrown")),
            lambda: coro.__await__().send(None),
            lambda: next(coro.__await__()),
        ):
            with pytest.raises(RuntimeError) as caught:
                attempt()
            seen.append(str(caught.value))
        try:
            await coro
        except RuntimeError as error:
            seen.append(str(error))
        assert coro.close() is None
        return seen

    native, portal = twins(runner, main)
    assert portal == native
    assert set(native) == {"cannot reuse already awaited coroutine"}


def test_awaited_already(runner):
    """Awaiting a task's coroutine that waits for something is refused."""

    async def main(set_up):
        gate = runner.Event()

        async def program():
            await set_up()
            await gate.wait()

        _, coro = start(runner, program)
        await runner.settle()
        with pytest.raises(RuntimeError) as caught:
            await coro
        gate.set()
        await runner.settle()
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        return str(caught.value)

    native, portal = twins(runner, main)
    assert portal == native == "coroutine is being awaited already"


def test_awaited_already_in_await(runner):
    """So is awaiting one that is suspended in await_."""

    async def main():
        gate = runner.Event()
        finished = []

        async def program():
            await greenback.ensure_portal()
            greenback.await_(gate.wait())
            finished.append(True)

        _, coro = start(runner, program)
        await runner.settle()
        with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
            await coro
        gate.set()
        await runner.settle()
        assert finished == [True]

    runner.run(main)


@pytest.mark.parametrize("task_class", ["c", "python"])
@pytest.mark.parametrize(
    "attempt",
    [
        lambda coro: coro.send(1),
        lambda coro: coro.send(),
        lambda coro: coro.send(None, None),
        lambda coro: coro.throw(),
        lambda coro: coro.throw(3),
        lambda coro: coro.throw(int),
        lambda coro: coro.throw(None),
        lambda coro: coro.throw(ValueError(), "separate"),
        lambda coro: coro.throw(ValueError, None, "no traceback"),
        lambda coro: coro.throw(ValueError, None, None, None),
        lambda coro: coro.close(1),
        lambda coro: coro.__await__(1),
        lambda coro: coro.__await__().send(1),
        lambda coro: iter(coro),
    ],
    ids=range(14),
)
def test_wrong_arguments(attempt, task_class):
    """Wrong arguments before the first step give the native error."""
    make = asyncio.Task if task_class == "c" else asyncio.tasks._PyTask

    async def program():
        await asyncio.sleep(0)
        return "unharmed"

    async def main(bestow):
        coro = program()
        task = make(coro, loop=asyncio.get_running_loop())
        bestow(task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with pytest.raises(TypeError) as caught:
                attempt(coro)
        assert await task == "unharmed"
        return str(caught.value).replace(type(coro).__name__, "coroutine")

    def without_owner(text):
        # The qualified name in front of "send()" is no part of the promise, nor
        # is how slots word it.
        text = re.sub(
            r"expected 0 arguments, got (\d)", r"takes no arguments (\1 given)", text
        )
        return re.sub(
            r"^[\w.]*?(\w+)\(\) (?=takes no arguments)|[\w.]*\.(?=\w+\(\))", "", text
        )

    native = asyncio.run(main(id))
    portal = asyncio.run(main(greenback.bestow_portal))
    assert without_owner(portal) == without_owner(native)


# --- a coroutine with a portal, stepped by hand ------------------------------------


def steps_by_hand(runner, fn):
    """Run *fn* in a task, for code that steps a portal's coroutine itself."""

    async def main():
        return fn()

    return runner.run(main)


class Traps:
    """Suspends with each of the given values; collects what comes back."""

    def __init__(self, *values):
        self.values = values
        self.answers = []

    def __await__(self):
        for value in self.values:
            self.answers.append((yield value))
        return self.answers


async def suspend_with(*values):
    """Be a coroutine that yields the values to whoever steps it."""
    return await Traps(*values)


def sync_suspend(*values):
    """Do the same from a sync function."""
    return greenback.await_(suspend_with(*values))


def make_by_hand(kind, fn, *args):
    """Make a coroutine with a portal of its own that runs sync *fn*."""
    if kind == "run-sync":
        return greenback.with_portal_run_sync(fn, *args)

    async def async_fn():
        return fn(*args)

    return greenback.with_portal_run(async_fn)


by_kind = pytest.mark.parametrize("kind", ["run", "run-sync"])


@by_kind
@on_asyncio_and_trio
def test_by_hand_values(runner, kind):
    """Traps come out and answers go in, unchanged."""

    def body():
        objects = [object() for _ in range(6)]
        coro = make_by_hand(kind, sync_suspend, *objects[:3])
        assert coro.send(None) is objects[0]
        assert coro.send(objects[3]) is objects[1]
        assert coro.send(objects[4]) is objects[2]
        with pytest.raises(StopIteration) as caught:
            coro.send(objects[5])
        assert caught.value.value == objects[3:]

    steps_by_hand(runner, body)


@by_kind
@on_asyncio_and_trio
def test_by_hand_states(runner, kind):
    """The coroutine of with_portal_run[_sync] reports its states."""
    name = "with_portal_run" + ("_sync" if kind == "run-sync" else "")

    def body():
        inner = suspend_with(1)
        seen = []

        def sync():
            seen.append(look(coro))
            greenback.await_(inner)
            seen.append(look(coro))

        coro = make_by_hand(kind, sync)
        seen.append(look(coro))
        coro.send(None)
        seen.append(look(coro))
        with pytest.raises(StopIteration):
            coro.send(None)
        seen.append(look(coro))
        for one in seen:
            assert one["iscoroutine"] and one["isawaitable"] and one["abc"]
            assert one["name"] == one["qualname"] == name
            assert one["repr"].startswith(f"<coroutine object {name} at")
            assert not one["has_next"] and not one["has_iter"]
            assert one["origin"] is None
        created, running, suspended, resumed, finished = seen
        assert created["state"] == inspect.CORO_CREATED
        assert running["state"] == resumed["state"] == inspect.CORO_RUNNING
        assert suspended["state"] == inspect.CORO_SUSPENDED
        assert finished["state"] == inspect.CORO_CLOSED

    steps_by_hand(runner, body)


@by_kind
@on_asyncio_and_trio
def test_by_hand_throw(runner, kind):
    """throw() arrives in the suspended await_; its argument forms work."""

    class Stop(Exception):
        pass

    def sync():
        caught = []
        for _ in range(4):
            try:
                sync_suspend("trap")
            except Stop as error:
                caught.append(error)
        return caught

    def body():
        coro = make_by_hand(kind, sync)
        instance = Stop("instance")
        assert coro.send(None) == "trap"
        assert coro.throw(instance) == "trap"
        assert coro.throw(Stop) == "trap"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert coro.throw(Stop, "value") == "trap"
            with pytest.raises(StopIteration) as caught:
                coro.throw(Stop, Stop("both"), None)
        errors = caught.value.value
        assert errors[0] is instance
        assert [error.args for error in errors[1:]] == [(), ("value",), ("both",)]
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            coro.throw(Stop)

    steps_by_hand(runner, body)


@by_kind
@on_asyncio_and_trio
def test_by_hand_close(runner, kind):
    """close() works at each stage and runs every clean-up."""
    unwound = []

    async def inner():
        try:
            await Traps("trap")
        finally:
            unwound.append("inner")

    def sync(fate="raise"):
        try:
            greenback.await_(inner())
        except GeneratorExit:
            unwound.append("sync")
            if fate == "raise":
                raise
            if fate == "suspend":
                greenback.await_(inner())
            if fate == "other":
                raise KeyError("other") from None

    def body():
        coro = make_by_hand(kind, sync)
        coro.close()
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        with pytest.raises(
            RuntimeError, match="cannot reuse already awaited coroutine"
        ):
            coro.send(None)
        assert unwound == []

        for fate in ("raise", "return"):
            coro = make_by_hand(kind, sync, fate)
            assert coro.send(None) == "trap"
            assert coro.close() is None
            assert unwound == ["inner", "sync"]
            assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
            assert coro.close() is None
            unwound.clear()

        coro = make_by_hand(kind, sync, "suspend")
        coro.send(None)
        with pytest.raises(RuntimeError, match="coroutine ignored GeneratorExit"):
            coro.close()
        with pytest.raises(StopIteration):
            coro.send(None)

        coro = make_by_hand(kind, sync, "other")
        coro.send(None)
        with pytest.raises(KeyError, match="other"):
            coro.close()

        coro = make_by_hand(kind, int)
        with pytest.raises(StopIteration):
            coro.send(None)
        assert coro.close() is None

    steps_by_hand(runner, body)


@pytest.mark.parametrize(
    "runner", ["asyncio", "asyncio-pytask", "uvloop"], indirect=True
)
@pytest.mark.parametrize("stage", ["created", "suspended", "in await_"])
def test_close_bestowed(runner, stage):
    """close() on a task's own coroutine unwinds it, portal and all."""

    async def main(bestow):
        unwound = []

        async def inner():
            try:
                await runner.sleep_forever()
            finally:
                unwound.append("inner")

        async def program():
            try:
                await runner.checkpoint()
                if stage == "in await_" and greenback.has_portal():
                    greenback.await_(inner())
                else:
                    await inner()
            finally:
                unwound.append("program")

        coro = program()

        task = asyncio.get_running_loop().create_task(coro)
        if stage != "created":
            await asyncio.sleep(0)
        bestow(task)
        if stage != "created":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        coro.close()
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
            task.result()
        return unwound

    native = runner.run(main, id)
    assert runner.run(main, greenback.bestow_portal) == native


@by_kind
def test_awaited_through_python_await(runner, kind):
    """coro.__await__() works in `return`, in `yield from` and by hand."""

    class Returns:
        def __init__(self, coro):
            self.coro = coro

        def __await__(self):
            return self.coro.__await__()

    class YieldsFrom(Returns):
        def __await__(self):
            return (yield from self.coro.__await__())

    class Steps(Returns):
        def __await__(self):
            wrapper = self.coro.__await__()
            assert iter(wrapper) is wrapper
            answer = None
            while True:
                try:
                    trap = wrapper.send(answer)
                except StopIteration as stop:
                    return stop.value
                answer = yield trap

    def sync(value):
        greenback.await_(runner.checkpoint())
        greenback.await_(runner.checkpoint())
        return value

    async def main():
        results = []
        for wrap in (Returns, YieldsFrom, Steps):
            assert not greenback.has_portal()
            results.append(await wrap(make_by_hand(kind, sync, wrap)))
            assert not greenback.has_portal()
        assert results == [Returns, YieldsFrom, Steps]
        with pytest.raises(KeyError):
            await YieldsFrom(make_by_hand(kind, {}.__getitem__, "missing"))

    runner.run(main)


@by_kind
def test_yield_from_in_generator_based_coroutine(runner, kind):
    """A types.coroutine generator can `yield from` it; others cannot."""

    @types.coroutine
    def generator_based(coro):
        return (yield from coro)

    def plain_generator(coro):
        yield from coro

    def sync():
        greenback.await_(runner.checkpoint())
        return "result"

    async def main():
        coro = make_by_hand(kind, sync)
        with pytest.raises(TypeError):
            next(plain_generator(coro))
        with pytest.raises(TypeError):
            iter(coro)
        return await generator_based(coro)

    assert runner.run(main) == "result"


@by_kind
@on_asyncio_and_trio
def test_with_portal_run_never_awaited(runner, kind):
    """The warning for a coroutine of ours that was dropped names the function."""

    def body():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            make_by_hand(kind, int)
        (warning,) = caught
        name = "with_portal_run" + ("_sync" if kind == "run-sync" else "")
        assert f"coroutine '{name}' was never awaited" in str(warning.message)

    steps_by_hand(runner, body)


# --- Trio ---------------------------------------------------------------------------


@on_trio
def test_trio_iter_await_frames(runner):
    """Trio's own walk over the frames of an idle task is the native one."""

    async def main(set_up):
        gate = runner.Event()

        async def inner():
            await gate.wait()

        async def program():
            await set_up()
            await inner()

        task, _ = start(runner, program)
        await runner.settle()
        names = [
            (frame.f_code.co_name, line - frame.f_code.co_firstlineno)
            for frame, line in task.iter_await_frames()
        ]
        gate.set()
        return names

    native, portal = twins(runner, main)
    assert portal == native
    assert native[:2] == [("program", 2), ("inner", 1)]


@on_trio
def test_trio_iter_await_frames_in_await(runner):
    """For a task in await_ it goes on with what await_ waits for."""

    async def main():
        gate = runner.Event()

        async def inner():
            await gate.wait()

        async def program():
            await greenback.ensure_portal()
            greenback.await_(inner())

        task, _ = start(runner, program)
        await runner.settle()
        names = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
        assert names[:3] == ["program", "inner", "wait"]
        gate.set()
        await runner.settle()

    runner.run(main)


def run_interrupted(runner, main, seen):
    """Run *main*; an interrupt that was lost on its way must not stop the tests."""
    try:
        runner.run(main)
    except KeyboardInterrupt:
        seen.append("after the run")


@on_trio
@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("way", ["native", "ensure", "run", "run-sync"])
@pytest.mark.parametrize("resumed", [False, True])
def test_trio_keyboard_interrupt(runner, protected, way, resumed):
    """Ctrl-C in sync code comes at once, or waits if the code is protected."""
    import trio

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        seen.append("after the signal")

    if protected:
        interrupt = trio.lowlevel.enable_ki_protection(interrupt)
    else:
        interrupt = trio.lowlevel.disable_ki_protection(interrupt)

    def sync_code():
        if resumed and way != "native":
            greenback.await_(trio.lowlevel.checkpoint())
        try:
            interrupt()
        except KeyboardInterrupt:
            seen.append("at once")

    async def main():
        if way == "ensure":
            await greenback.ensure_portal()
            sync_code()
        elif way == "run":

            async def body():
                sync_code()

            await greenback.with_portal_run(body)
        elif way == "run-sync":
            await greenback.with_portal_run_sync(sync_code)
        else:
            sync_code()
        try:
            await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            seen.append("at the checkpoint")

    seen = []
    run_interrupted(runner, main, seen)
    if protected:
        assert seen == ["after the signal", "at the checkpoint"]
    else:
        assert seen == ["at once"]


@on_trio
@pytest.mark.parametrize("way", ["native", "ensure", "run", "run-sync"])
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("kind", ["main", "system"])
def test_trio_keyboard_interrupt_by_task(runner, way, resumed, kind):
    """Code without a mark of its own is protected if its task is.

    Trio finds that out by walking the frames up to the task's own. Where they
    end before, it takes everything to be protected.
    """
    import trio

    def sync_code():
        if resumed and way != "native":
            greenback.await_(trio.lowlevel.checkpoint())
        seen.append(trio.lowlevel.currently_ki_protected())
        try:
            signal.raise_signal(signal.SIGINT)
            seen.append("later")
        except KeyboardInterrupt:
            seen.append("at once")

    async def body():
        sync_code()

    async def program():
        if way == "ensure":
            await greenback.ensure_portal()
            sync_code()
        elif way == "run":
            await greenback.with_portal_run(body)
        elif way == "run-sync":
            await greenback.with_portal_run_sync(sync_code)
        else:
            sync_code()

    async def main():
        if kind == "main":
            await program()
        else:
            trio.lowlevel.spawn_system_task(program)
            try:
                await trio.sleep_forever()
            except KeyboardInterrupt:
                seen.append("in main")

    seen = []
    run_interrupted(runner, main, seen)
    if kind == "main" and way in ("run", "run-sync") and FRAMES_END_AT_THE_PORTAL:
        assert seen == [True, "later", "after the run"]
    elif kind == "main":
        assert seen == [False, "at once"]
    else:
        assert seen == [True, "later", "in main"]


@on_trio
def test_trio_testing(runner):
    """trio.testing's helpers see await_ as they see await."""
    import trio
    import trio.testing

    async def ready():
        return 1

    async def main():
        await greenback.ensure_portal()
        with trio.testing.assert_checkpoints():
            greenback.await_(trio.lowlevel.checkpoint())
        with pytest.raises(AssertionError), trio.testing.assert_no_checkpoints():
            greenback.await_(trio.lowlevel.checkpoint())
        with trio.testing.assert_no_checkpoints():
            assert greenback.await_(ready()) == 1
        with trio.testing.assert_checkpoints():
            await greenback.ensure_portal()
        with trio.testing.assert_no_checkpoints():
            await greenback.with_portal_run(ready)
        with trio.testing.assert_no_checkpoints():
            await greenback.with_portal_run_sync(int)

        order = []
        sequencer = trio.testing.Sequencer()

        async def turn(*numbers):
            await greenback.ensure_portal()
            for number in numbers:
                with greenback.async_context(sequencer(number)):
                    order.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn, 0, 3)
            nursery.start_soon(turn, 1, 2, 4)
        assert order == [0, 1, 2, 3, 4]

    trio.run(main)


@on_trio
def test_trio_mock_clock(runner):
    """An autojump clock jumps while all tasks are suspended in await_."""
    import trio
    import trio.testing

    async def main():
        woken = []

        async def sleeper(seconds):
            await greenback.ensure_portal()
            greenback.await_(trio.sleep(seconds))
            woken.append((seconds, trio.current_time()))

        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            for seconds in (3000, 1000, 2000):
                nursery.start_soon(sleeper, seconds)
        assert woken == [(s, begin + s) for s in (1000, 2000, 3000)]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@on_trio
def test_trio_instruments(runner):
    """Instruments see the task under its own name, step by step."""
    import trio

    class Recorder(trio.abc.Instrument):
        def before_task_step(self, task):
            if task.name.endswith("program"):
                steps.append((task, task.coro, task.coro.cr_frame.f_code.co_name))

    async def main(set_up):
        task = None

        async def program():
            nonlocal task
            task = trio.lowlevel.current_task()
            await set_up()
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(program)
        result = [(step is task, coro is task.coro, name) for step, coro, name in steps]
        steps.clear()
        return result

    steps = []
    native = trio.run(main, trio.lowlevel.checkpoint, instruments=[Recorder()])
    portal = trio.run(main, greenback.ensure_portal, instruments=[Recorder()])
    assert portal == native == [(True, True, "program")] * 3


# --- tracebacks of the step ----------------------------------------------------------


def test_extract_stack(runner):
    """traceback.extract_stack() in sync code shows the user's frames in order."""

    def innermost():
        greenback.await_(runner.checkpoint())
        return [entry.name for entry in traceback.extract_stack()]

    def outer():
        return innermost()

    async def main():
        await greenback.ensure_portal()
        return outer()

    names = runner.run(main)
    assert names[-3:] == ["main", "outer", "innermost"]
