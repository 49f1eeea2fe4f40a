"""Tools see a program with sync code that awaits as they see its native form.

`tools_scripts/program.py` is a program as it is written natively; `twins.py` there
makes another form of it, line by line the same, in which the functions called
``sync_...`` are synchronous and wait by ``await_``. Each test runs both forms and
compares what a tool reports: where the program is, what it calls, what it raises.

In the portal's form the sync functions and the coroutines above them have no yields
of their own; what a tool tells of those is left out of the comparison.
"""

from __future__ import annotations

import asyncio
import bdb
import concurrent.futures
import contextlib
import contextvars
import cProfile
import faulthandler
import functools
import gc
import inspect
import io
import json
import logging
import os
import pathlib
import pdb
import pstats
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import tracemalloc
import warnings
import weakref

import pytest
from tools_scripts import twins

import greenback

SCRIPTS = pathlib.Path(twins.__file__).parent
PROGRAM = str(twins.PROGRAM)
# In a greenlet the chain of frames can't be linked to that of the loop.
FRAMES_END_AT_THE_PORTAL = greenback.engine == "greenlet"

# asyncio's own tools take no other kind of task.
C_TASKS = ["asyncio", "asyncio-subclass", "asyncio-eager", "uvloop"]
ASYNCIO_IDS = [*C_TASKS, "asyncio-pytask"]
each_loop = pytest.mark.parametrize(
    "runner", ["asyncio", "uvloop", "trio"], indirect=True
)
needs_314 = pytest.mark.skipif(sys.version_info < (3, 14), reason="came with 3.14")
needs_monitoring = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring came with 3.12"
)


# --- running the program ---------------------------------------------------------

task_number = contextvars.ContextVar("task_number", default=0)


def ignore(where):
    """Be a ``look`` that does not look."""


def run_program(runner, form, entry, look=ignore, tasks=1):
    """Run the program in one task, or in several at once; give the results."""
    program = twins.load(form, look, runner.checkpoint)
    one = getattr(program, entry)
    if tasks == 1:
        return [runner.run(one)]

    def numbered(number):
        async def run():
            task_number.set(number)
            return await one()

        return run

    async def main():
        return await runner.run_concurrently(*map(numbered, range(tasks)))

    return runner.run(main)


class Waiting:
    """What `while_waiting` gives: a task of the program that waits at the gate."""

    def __init__(self, child, frames):
        self.task = child.task
        self.frames = frames  # the program's innermost one of sync code, if it looked
        self.result = None  # in the end
        self.coro = (
            self.task.coro if hasattr(self.task, "coro") else self.task.get_coro()
        )


@contextlib.asynccontextmanager
async def while_waiting(runner, form, entry, *arguments, look=ignore):
    """Start the program in a child task and hold it at the gate for a block.

    Afterwards it goes on to its end.
    """
    gate = runner.Event()
    frames = []

    def look_and_note(where):
        if where == "waiting":
            frames.append(sys._getframe(1))
        look(where)

    program = twins.load(form, look_and_note, runner.checkpoint, gate.wait)
    child = runner.spawn(getattr(program, entry), *arguments)
    await runner.settle()
    assert not child.done
    waiting = Waiting(child, frames)
    try:
        yield waiting
    finally:
        gate.set()
        waiting.result = await child.join()


def both(fn, *args):
    """Call ``fn(*args, form)`` for each form, from the same line."""
    native, portal = [fn(*args, form) for form in twins.FORMS]
    return native, portal


# --- where the program is --------------------------------------------------------


def walk(frame):
    """Give (file, line, function) of a frame and of those below, innermost first."""
    entries = []
    while frame is not None:
        code = frame.f_code
        entries.append((code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return entries


def of_program(entries):
    """Leave out the frames of the tool itself, and that of with_portal_run_sync."""
    entries = [entry for entry in entries if entry[2] != "with_portal_run_sync"]
    while entries and entries[0][0] != PROGRAM:
        del entries[0]
    assert entries
    return entries


def as_promised(entries, entry):
    """Cut a native stack where the one with a portal may end."""
    if not FRAMES_END_AT_THE_PORTAL:
        return entries
    outermost = "sync_top" if entry.startswith("scoped") else entry
    names = [name for _, _, name in entries]
    return entries[: names.index(outermost) + 1]


def in_another_thread(fn):
    """Call *fn* in a thread while this one waits; give what it returns."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def by_f_back():
    return walk(sys._getframe())


def by_getframe():
    frames = []
    with contextlib.suppress(ValueError):
        while True:
            frames.append(sys._getframe(len(frames)))
    return [(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames]


def by_extract_stack():
    stack = traceback.extract_stack()
    return [(entry.filename, entry.lineno, entry.name) for entry in stack[::-1]]


def by_walk_stack():
    stack = traceback.walk_stack(sys._getframe())
    return [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in stack]


def by_inspect():
    return [(info.filename, info.lineno, info.function) for info in inspect.stack(0)]


def parse(text):
    """Read (file, line, function) of a traceback that somebody has written."""
    found = re.findall(r'File "(.+?)", line (\d+)(?:,)? in (\S+)', text)
    return [(file, int(line), name) for file, line, name in found]


def by_format_stack():
    return parse("".join(traceback.format_stack()[::-1]))


def by_faulthandler():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        return parse(file.read())


def by_registered_signal():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
        file.seek(0)
        return parse(file.read())


def by_signal_handler():
    seen = []
    before = signal.signal(
        signal.SIGUSR1, lambda number, frame: seen.extend(walk(frame))
    )
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    return seen


def by_current_frames():
    return walk(sys._current_frames()[threading.get_ident()])


def by_another_thread():
    here = threading.get_ident()
    return in_another_thread(lambda: walk(sys._current_frames()[here]))


def by_stacklevel_of_warning():
    entries = []
    for level, (_, _, name) in enumerate(by_f_back()[1:], 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("text", stacklevel=level)
        entries.append((caught[0].filename, caught[0].lineno, name))
    return entries


def by_stacklevel_of_log():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for level in range(1, len(by_f_back())):
        logger.warning("text", stacklevel=level)
    return [(record.pathname, record.lineno, record.funcName) for record in records]


def by_stack_info_of_log():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("text", stack_info=True)
    return parse(records[0].stack_info)[::-1]


def by_tracemalloc():
    was_on = tracemalloc.is_tracing()
    tracemalloc.start(200)
    try:
        found = tracemalloc.get_object_traceback(bytearray(1000))
    finally:
        if not was_on:
            tracemalloc.stop()
    names = [name for _, _, name in by_f_back()[1:]]
    return [
        (frame.filename, frame.lineno, name)
        for frame, name in zip(reversed(found), names, strict=True)
    ]


class FailsToGo:
    def __del__(self):
        raise LookupError("in __del__")


def by_unraisable_hook():
    seen = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda info: seen.extend(walk(sys._getframe()))
    try:
        FailsToGo()
    finally:
        sys.unraisablehook = before
    return seen


def by_trace_function():
    seen = []

    def tracer(frame, event, arg):
        if not seen:
            seen.extend(walk(frame))

    before = sys.gettrace()
    sys.settrace(tracer)
    ignore("here")
    sys.settrace(before)
    return seen


def by_remote_exec():
    """Run a script in this process as a debugger from outside would."""
    seen = []
    sys.modules["seen_by_remote_exec"] = seen
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(
                "import sys\n"
                "frame = sys._getframe()\n"
                "while frame:\n"
                "    code = frame.f_code\n"
                "    entry = code.co_filename, frame.f_lineno, code.co_name\n"
                "    sys.modules['seen_by_remote_exec'].append(entry)\n"
                "    frame = frame.f_back\n"
            )
            script.flush()
            try:
                sys.remote_exec(os.getpid(), script.name)
            except (PermissionError, OSError, RuntimeError) as error:
                pytest.skip(f"no process may run code in another here: {error}")
            for _ in range(10):  # it runs where the interpreter looks for signals
                ignore("here")
    finally:
        del sys.modules["seen_by_remote_exec"]
    return seen


WAYS = [
    by_f_back,
    by_getframe,
    by_extract_stack,
    by_walk_stack,
    by_inspect,
    by_format_stack,
    by_faulthandler,
    by_registered_signal,
    by_signal_handler,
    by_current_frames,
    by_another_thread,
    by_stacklevel_of_warning,
    by_stacklevel_of_log,
    by_stack_info_of_log,
    by_tracemalloc,
    by_unraisable_hook,
    by_trace_function,
    pytest.param(by_remote_exec, marks=needs_314),
]


@pytest.mark.parametrize("entry", ["task", "scoped_task"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_stack(runner, way, entry):
    """Each way to ask for the stack gives the native frames and lines.

    They are asked in sync code and in coroutines below and above it, before and
    after a suspension.
    """

    def stacks(form):
        seen = []
        run_program(
            runner, form, entry, lambda where: seen.append((where, of_program(way())))
        )
        return seen

    native, portal = both(stacks)
    expected = [(where, as_promised(stack, entry)) for where, stack in native]
    assert portal == expected
    names = [name for _, _, name in dict(portal)["leaf resumed"]]
    assert names[:5] == "leaf sync_bottom between sync_middle sync_top".split()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_stack_of_another_task(runner, way):
    """The frames of a task that waits in await_ are not in the way of others."""

    def stack(form):
        async def main():
            async with while_waiting(runner, form, "waiting"):
                return way()

        return runner.run(main)

    native, portal = both(stack)
    assert portal == native
    assert "main" in [name for _, _, name in portal]


@pytest.mark.parametrize("place", ["in the loop", "in another thread"])
def test_stack_of_a_thread(runner, place):
    """sys._current_frames() of a loop's thread that waits for events of its own."""

    def stack(form):
        seen = []

        async def main():
            async with while_waiting(runner, form, "waiting"):
                here = threading.get_ident()
                look = functools.partial(sys._current_frames)
                frames = in_another_thread(look) if place != "in the loop" else look()
                seen.extend(walk(frames[here]))

        runner.run(main)
        return seen

    native, portal = both(stack)
    assert portal == native


# --- a task that waits -----------------------------------------------------------


def awaited(coro):
    """Give the coroutines of a task from the outermost to the innermost."""
    coros = []
    while inspect.iscoroutine(coro):
        coros.append(coro)
        coro = coro.cr_await
    return coros


def frames_of(waiting, form):
    """Give the frames of a task that waits, outermost first."""
    coros = awaited(waiting.coro)
    if form == "native":
        return [coro.cr_frame for coro in coros]
    # Those on the stack of the step first, then what the innermost await_ drives.
    frames = [coro.cr_frame for coro in coros[1:]]
    frame = waiting.frames[0]
    while frame is not None:
        if frame.f_code.co_name != "with_portal_run_sync":
            frames.insert(0, frame)
        frame = frame.f_back
    return frames


def test_waiting_task(runner):
    """Coroutine, frames, lines and variables of a waiting task are the native ones."""

    def seen(form):
        async def main():
            async with while_waiting(runner, form, "waiting") as waiting:
                frames = frames_of(waiting, form)
                of_program = [f for f in frames if f.f_code.co_filename == PROGRAM]
                return (
                    waiting.coro.cr_frame.f_lineno,
                    sorted(inspect.getcoroutinelocals(waiting.coro)),
                    inspect.getcoroutinestate(waiting.coro),
                    [(f.f_code.co_name, f.f_lineno) for f in frames],
                    [dict(f.f_locals) for f in of_program],
                )

        return runner.run(main)

    native, portal = both(seen)
    assert portal == native
    assert native[-1][0] == {"marker": "in the task"}
    names = [name for name, _ in portal[3]]
    assert names[names.index("waiting") :][:4] == [
        "waiting",
        "sync_waiting",
        "waiting_between",
        "sync_waiting_inner",
    ]


def test_cr_await_of_a_waiting_task(runner):
    """cr_await leads from the task to what the innermost await_ waits for."""

    def names(form):
        async def main():
            async with while_waiting(runner, form, "waiting") as waiting:
                return [coro.__name__ for coro in awaited(waiting.coro)]

        return runner.run(main)

    native, portal = both(names)
    innermost = native.index("leaf_waiting")
    assert portal == [native[0], *native[innermost:]]


def test_frames_of_a_waiting_task_are_kept(runner):
    """Nobody can clear them; variables can be set where natively they can."""

    async def main():
        async with while_waiting(runner, "portal", "waiting") as waiting:
            for frame in walk_frames(waiting.frames[0]):
                with pytest.raises(RuntimeError, match="clear"):
                    frame.clear()
                traceback.print_stack(frame, file=io.StringIO())
            if sys.version_info >= (3, 13):
                waiting.frames[0].f_locals["value"] = "set from outside"
        return waiting.result

    value = "set from outside" if sys.version_info >= (3, 13) else 7
    assert runner.run(main) == ((value, "in sync code"), "in the task")


def walk_frames(frame):
    """Give a frame and those below."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_collector_functions(runner):
    """The functions of gc and sys that look at objects can look at a waiting task."""

    async def main():
        async with while_waiting(runner, "portal", "waiting") as waiting:
            objects = [waiting.task, waiting.coro, waiting.coro.cr_frame]
            objects += awaited(waiting.coro)
            objects += walk_frames(waiting.frames[0])
            for obj in objects:
                assert all(map(sys.getrefcount, gc.get_referents(obj)))
                assert all(map(sys.getsizeof, gc.get_referents(obj)))
                gc.get_referrers(obj)
                assert sys.getrefcount(obj) > 1
                assert sys.getsizeof(obj) > 0
            gc.collect()
            gc.get_stats()
        return waiting.result

    assert runner.run(main) == ((7, "in sync code"), "in the task")


def test_finalizers(runner):
    """weakref.finalize() calls its function when what sync code holds is gone."""

    def log_of(form):
        log = []

        class Held:
            pass

        def look(where):
            log.append(where)
            if where == "waiting":
                weakref.finalize(sys._getframe(2).f_locals["value"], log.append, "held")

        async def main():
            async with while_waiting(
                runner, form, "holding", Held, look=look
            ) as waiting:
                weakref.finalize(waiting.coro, log.append, "coroutine")
                waiting.frames.clear()
                gc.collect()
                log.append("opened")
            log.append("ended")
            waiting.task = waiting.coro = None
            await runner.settle()
            gc.collect()

        runner.run(main)
        return log

    native, portal = both(log_of)
    assert portal == native
    assert native == ["waiting", "opened", "gone on", "held", "ended", "coroutine"]


@each_loop
def test_async_generator(runner):
    """An async generator that await_ drives is in the native states at each point."""

    def states(form):
        seen = []
        generator = None

        def look(where):
            nonlocal generator
            if where == "before":
                generator = sys._getframe(2).f_locals["generator"]
            seen.append((where, state()))

        def state():
            entry = [generator.ag_running, getattr(generator, "ag_suspended", None)]
            if sys.version_info >= (3, 12):
                entry.append(inspect.getasyncgenstate(generator))
                entry.append(sorted(inspect.getasyncgenlocals(generator)))
            frame = generator.ag_frame
            return [*entry, frame and frame.f_lineno, type(generator.ag_await)]

        async def main():
            async with while_waiting(runner, form, "consuming", look=look) as waiting:
                seen.append(("waiting", state()))
            seen.append(("closed", state()))
            return waiting.result

        assert runner.run(main) == (1, 2, None)
        return seen

    native, portal = both(states)
    assert portal == native
    assert len(native) > 6


# --- asyncio's and AnyIO's own tools ----------------------------------------------

on_c_tasks = pytest.mark.parametrize("runner", C_TASKS, indirect=True)


def of_graph(graph):
    """Give the (file, line, function) of a call graph, and who waits for its future."""
    return (
        [
            (e.frame.f_code.co_filename, e.frame.f_lineno, e.frame.f_code.co_name)
            for e in graph.call_stack
        ],
        [waiter.future.get_name() for waiter in graph.awaited_by],
    )


def test_get_stack_of_the_running_task(asyncio_runner):
    """Task.get_stack() and print_stack() in sync code give the native frames."""

    def stacks(form):
        seen = []

        def look(where):
            task = asyncio.current_task()
            frames = [walk(frame)[0] for frame in task.get_stack()]
            output = io.StringIO()
            task.print_stack(file=output)
            (limited,) = [walk(frame)[0] for frame in task.get_stack(limit=1)]
            seen.append((frames[::-1], parse(output.getvalue())[::-1], limited))

        run_program(asyncio_runner, form, "task", look)
        return seen

    native, portal = both(stacks)
    for (frames, printed, limited), seen in zip(native, portal, strict=True):
        # Natively they are those from the task's own on; so they are here.
        assert seen == (
            as_promised(frames, "task"),
            as_promised(printed, "task"),
            limited,
        )
        assert limited[2] == "task"


def test_get_stack_of_a_failed_task(asyncio_runner):
    """The stack of a task that failed in sync code is that of the exception."""

    def stack(form):
        async def main():
            program = twins.load(form, ignore, asyncio_runner.checkpoint)
            task = asyncio.get_running_loop().create_task(program.failing())
            await asyncio.wait([task])
            assert type(task.exception()) is program.Stop
            output = io.StringIO()
            task.print_stack(file=output)
            return [walk(f)[0] for f in task.get_stack()], parse(output.getvalue())

        return asyncio_runner.run(main)

    native, portal = both(stack)
    assert portal == native
    names = [name for _, _, name in portal[0]]
    assert names[-3:] == ["failing_between", "sync_failing", "leaf_failing"]


def test_all_tasks(asyncio_runner):
    """all_tasks() and current_task(), from within and from another thread."""

    def tasks(form):
        seen = []

        def look(where=None):
            loop = asyncio.get_running_loop()
            number = len(asyncio.all_tasks())
            current = asyncio.current_task()
            assert asyncio.current_task(loop) is current
            assert current in asyncio.all_tasks()
            if asyncio_runner.id != "asyncio-pytask":  # those are not for threads
                tasks = in_another_thread(lambda: asyncio.all_tasks(loop))
                assert tasks == asyncio.all_tasks()
            seen.append((where, number, current.get_coro().__name__))

        async def main():
            async with while_waiting(asyncio_runner, form, "waiting", look=look):
                look()
            look()

        asyncio_runner.run(main)
        return seen

    native, portal = both(tasks)
    assert portal == native
    assert [number for _, number, _ in portal] == [2, 2, 2, 1]


@needs_314
@on_c_tasks
def test_call_graph_of_a_waiting_task(runner):
    """asyncio's call graph shows the task and what the innermost await_ waits for.

    It consists of coroutines, so sync frames have no place in it.
    """

    def graph(form):
        async def main():
            async with while_waiting(runner, form, "waiting") as waiting:
                output = io.StringIO()
                asyncio.print_call_graph(waiting.task, file=output)
                (awaiter,) = [
                    asyncio.get_running_loop().create_task(asyncio.wait_for(task, None))
                    for task in [waiting.task]
                ]
                await runner.settle()
                awaiter.set_name("awaiter")
                stack, awaiters = of_graph(asyncio.capture_call_graph(waiting.task))
            await awaiter
            return stack, awaiters, re.findall(r"(\w+)\(\)", output.getvalue())

        return runner.run(main)

    native, portal = both(graph)
    for seen, of_native in zip(portal[::2], native[::2], strict=True):
        names = [
            entry[-1] if isinstance(entry, tuple) else entry for entry in of_native
        ]
        innermost = names.index("leaf_waiting")
        assert seen == [*of_native[: innermost + 1], of_native[-1]]
    assert portal[1] == native[1] == ["awaiter"]


@needs_314
@on_c_tasks
def test_call_graph_of_the_running_task(runner):
    """In sync code, asyncio's call graph has its frames, up to a coroutine.

    asyncio takes the first coroutine that is called by a function which is none for
    the task's own.
    """

    def graphs(form):
        seen = []

        def look(where):
            graph = asyncio.capture_call_graph(depth=2)
            assert graph.future is asyncio.current_task()
            output = io.StringIO()
            asyncio.print_call_graph(file=output, depth=3)
            frames, _ = of_graph(graph)
            printed = re.findall(r"line (\d+), in (?:async )?(\w+)", output.getvalue())
            seen.append((where, frames, printed))

        run_program(runner, form, "task", look)
        return seen

    native, portal = both(graphs)
    for (where, frames, printed), (_, stack, text) in zip(portal, native, strict=True):
        names = [name for _, _, name in stack]
        number = 1 + next(n for n, name in enumerate(names) if name[:5] != "sync_")
        assert frames == stack[:number], where
        assert printed == text[:number], where
    assert [name for _, _, name in portal[-1][1]] == ["sync_top", "task"]


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_anyio(backend):
    """AnyIO's TaskInfo, from within, for a task that waits, and for a cancelled one."""
    anyio = pytest.importorskip("anyio")
    pytest.importorskip(backend)
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    library = "trio" if backend == "trio" else "asyncio"

    def seen_in(form):
        seen = []

        def look(where):
            info = anyio.get_current_task()
            assert info in anyio.get_running_tasks()
            see(where, info)

        def see(where, info):
            name = info.coro.__name__
            pending = info.has_pending_cancellation()
            seen.append((where, info.name, name, pending, info.parent_id == main_id))

        async def main():
            nonlocal main_id
            main_id = anyio.get_current_task().id
            gate = anyio.Event()
            program = twins.load(form, look, lambda: anyio.sleep(0), gate.wait)
            async with anyio.create_task_group() as group:
                group.start_soon(program.waiting, name="the task")
                await anyio.wait_all_tasks_blocked()
                for info in anyio.get_running_tasks():
                    see("running", info)
                gate.set()
                await anyio.wait_all_tasks_blocked()
                gate = anyio.Event()
                program.gate = gate.wait
                group.start_soon(program.waiting, name="another task")
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
                for info in anyio.get_running_tasks():
                    see("cancelled", info)

        main_id = None
        anyio.run(main, backend=library, backend_options=options)
        return sorted(seen)

    native, portal = both(seen_in)
    assert portal == native
    places = {
        (where, pending) for where, name, _, pending, *_ in portal if "task" in name
    }
    assert {("running", False), ("gone on", False), ("cancelled", True)} <= places


def names_in(stack):
    """Give the functions of a stackscope.Stack, outermost first."""
    assert stack.error is None
    names = [frame.funcname.rpartition(".")[2] for frame in stack.frames]
    return [name for name in names if name != "with_portal_run_sync"]


@each_loop
def test_stackscope_of_a_generator(runner):
    """stackscope sees what an async generator waits for that await_ drives."""
    stackscope = pytest.importorskip("stackscope")

    def names(form):
        async def main():
            def look(where):
                if where == "before":
                    held.append(sys._getframe(2).f_locals["generator"])

            async with while_waiting(runner, form, "consuming", look=look):
                return names_in(stackscope.extract(held.pop()))

        held = []
        return runner.run(main)

    native, portal = both(names)
    assert portal == native
    assert portal[:2] == ["numbers", "wait"]


@each_loop
def test_stackscope_of_a_thread(runner):
    """From another thread, stackscope sees the frames of a step, and of nothing else."""
    stackscope = pytest.importorskip("stackscope")

    def names(form):
        def look(where):
            seen.append((where, names_in(in_another_thread(extract))))

        def extract():
            return stackscope.extract(thread)

        async def main():
            async with while_waiting(runner, form, "waiting", look=look):
                look("suspended")

        seen = []
        thread = threading.current_thread()
        runner.run(main)
        return seen

    native, portal = both(names)
    for (where, stack), (_, seen) in zip(native, portal, strict=True):
        if where != "suspended" and FRAMES_END_AT_THE_PORTAL:
            begin = "body" if runner.library == "trio" else "waiting"
            stack = stack[stack.index(begin) :]
        assert seen == stack, where
        assert ("sync_waiting" in seen) is (where != "suspended")


def test_stackscope_of_child_tasks(trio_runner):
    """In Trio's tree of tasks, stackscope shows the sync frames of each that waits."""
    stackscope = pytest.importorskip("stackscope")
    trio = trio_runner.trio

    def lines(form):
        async def main():
            gate = trio.Event()
            program = twins.load(form, ignore, trio_runner.checkpoint, gate.wait)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(program.waiting)
                nursery.start_soon(program.scoped_waiting)
                await trio_runner.settle()
                task = trio.lowlevel.current_task()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    stack = stackscope.extract(task, recurse_child_tasks=True)
                gate.set()
            return str(stack)

        # The order of the children changes.
        names = re.findall(r"(\w*waiting\w*) in", trio_runner.run(main))
        return sorted(
            re.findall(r"\b(?:scoped_)?waiting .*?leaf_waiting", " ".join(names))
        )

    native, portal = both(lines)
    assert portal == native
    if native:  # it finds no nurseries in the frames of each Python
        assert " sync_waiting_inner " in portal[0]


# --- exceptions ------------------------------------------------------------------


def lines_of(error):
    """Give type, arguments and traceback of an exception and those behind it."""
    if error is None:
        return None
    stack = traceback.extract_tb(error.__traceback__)
    return (
        type(error).__name__,
        error.args,
        [(entry.filename, entry.lineno, entry.name) for entry in stack],
        lines_of(error.__cause__),
        lines_of(error.__context__),
    )


def handled_now():
    """Give what each way to ask tells about the exceptions that are handled here."""
    here = threading.get_ident()

    def current():
        found = sys._current_exceptions().get(here)
        return found[1] if isinstance(found, tuple) else found  # as in 3.11

    assert current() is in_another_thread(current) is sys.exception()
    assert sys.exc_info()[1] is sys.exception()
    assert parse(traceback.format_exc()) == parse(
        "".join(traceback.format_exception(sys.exception()))
    )
    return lines_of(sys.exception())


def test_handled_exceptions(runner):
    """What is handled, after suspensions in handlers, and meanwhile in other tasks."""

    def seen_in(form):
        seen = []

        def look(where):
            seen.append((where, handled_now()))

        async def main():
            try:
                raise LookupError("in main")
            except LookupError:
                async with while_waiting(runner, form, "handling", look=look):
                    look("in main")
                look("in main at last")
            look("at the end")

        runner.run(main)
        return seen

    native, portal = both(seen_in)
    assert portal == native
    handled = {where: info and info[1] for where, info in portal}
    assert handled["handling both after a wait"] == (2,)
    assert handled["handling the outer one"] == ("outer",)
    assert handled["in main"] == ("in main",)
    assert handled["at the end"] is None


def test_traceback(runner):
    """An exception that passes await_ several times has the native traceback."""

    def traceback_in(form):
        with pytest.raises(Exception, match="2") as caught:
            run_program(runner, form, "failing")
        formatted = "".join(traceback.format_exception(caught.value))
        return (
            lines_of(caught.value),
            formatted,
            [
                (info.filename, info.lineno, info.function)
                for info in inspect.getinnerframes(caught.value.__traceback__)
            ],
        )

    native, portal = both(traceback_in)
    assert portal == native
    names = [name for _, _, name in portal[0][2]]
    assert names[-6:] == [
        "sync_failing",
        "failing_between",
        "sync_failing",
        "failing_between",
        "sync_failing",
        "leaf_failing",
    ]


@each_loop
def test_thread_excepthook(runner, monkeypatch):
    """threading.excepthook gets an exception that ended a loop, as natively."""

    def seen_by_hook(form):
        seen = []
        monkeypatch.setattr(
            threading,
            "excepthook",
            lambda args: seen.append((lines_of(args.exc_value), args.thread.name)),
        )
        thread = threading.Thread(
            target=run_program, args=(runner, form, "failing"), name="the thread"
        )
        thread.start()
        thread.join()
        return seen

    native, portal = both(seen_by_hook)
    assert portal == native
    assert len(portal) == 1


# --- tracing, profiling, monitoring -----------------------------------------------


def sync_events(events):
    """Leave out that coroutines are suspended and resumed, and how CPython says so.

    In the portal's form that comes only from coroutines that await_ itself drives.
    An exception event for StopIteration is natively the return value of what is
    awaited.
    """
    last = {}
    left_out = set()
    for index, (frame, event, _, _) in enumerate(events):
        if event == "call" and frame in last:  # resumed
            left_out |= {index, last[frame]}
        if event in ("call", "return"):
            last[frame] = index
    return [
        (frame.f_code.co_name, event, line, detail)
        for index, (frame, event, line, detail) in enumerate(events)
        if index not in left_out and detail not in ("StopIteration", "await_")
    ]


def record(switch_on, switch_off, run):
    """Run with a trace or profile function; give the events by task."""
    events = {}

    def recorder(frame, event, arg):
        if frame.f_code.co_filename != PROGRAM or frame.f_code.co_name == "<module>":
            return None
        detail = None
        if event == "exception":
            detail = arg[0].__name__
        elif event.startswith("c_"):
            detail = arg.__name__
        of_task = events.setdefault(task_number.get(), [])
        of_task.append((frame, event, frame.f_lineno, detail))
        return recorder

    switch_on(recorder)
    try:
        result = run()
    finally:
        switch_off()
    return result, {number: sync_events(events[number]) for number in sorted(events)}


def run_in_thread(*args):
    """Run the program in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.extend(run_program(*args)))
    thread.start()
    thread.join()
    return results


TRACERS = {
    "sys.settrace": (sys.settrace, lambda: sys.settrace(None), run_program),
    "sys.setprofile": (sys.setprofile, lambda: sys.setprofile(None), run_program),
    "threading.settrace": (
        threading.settrace,
        lambda: threading.settrace(None),
        run_in_thread,
    ),
    "threading.setprofile": (
        threading.setprofile,
        lambda: threading.setprofile(None),
        run_in_thread,
    ),
}


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("entry", ["task", "scoped_task", "flow"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_trace_functions(runner, tracer, entry, tasks):
    """A trace or profile function is told of the native calls, lines and returns."""
    switch_on, switch_off, run = TRACERS[tracer]

    def events(form):
        args = (runner, form, entry, ignore, tasks)
        return record(switch_on, switch_off, lambda: run(*args))

    native, portal = both(events)
    assert portal == native
    results, by_task = portal
    assert len(results) == len(by_task) == tasks
    kinds = {event for events in by_task.values() for _, event, _, _ in events}
    assert {"call", "return"} <= kinds


@contextlib.contextmanager
def monitored(events, codes=None):
    """Note what sys.monitoring tells of the program, or of some of its code."""
    monitoring = sys.monitoring
    tool = next(n for n in range(6) if monitoring.get_tool(n) is None)
    kinds = {
        kind: name
        for name, kind in vars(monitoring.events).items()
        if name not in ("NO_EVENTS", "INSTRUCTION")
    }

    def make_callback(name):
        def callback(code, *args):
            if code.co_filename != PROGRAM or code.co_name == "<module>":
                return
            at = args[0]
            line = at if name == "LINE" else lines[code][at]
            if name == "PY_UNWIND":
                line = 0  # natively it comes from the hidden handler of a coroutine
            detail = None
            if isinstance(args[-1], BaseException):
                detail = type(args[-1]).__name__
            elif name in ("CALL", "C_RETURN", "C_RAISE"):
                detail = args[1].__name__
            of_task = events.setdefault(task_number.get(), [])
            of_task.append((code.co_name, name, line, detail))

        return callback

    lines = CodeLines()
    monitoring.use_tool_id(tool, "test_tools")
    for kind, name in kinds.items():
        monitoring.register_callback(tool, kind, make_callback(name))
    these = functools.reduce(int.__or__, kinds)
    these &= ~(monitoring.events.C_RETURN | monitoring.events.C_RAISE)  # come with CALL
    if codes is None:
        monitoring.set_events(tool, these)
    else:
        # Not all kinds can be asked for one code object at a time.
        these = monitoring.events.LINE | monitoring.events.PY_START
        these |= monitoring.events.PY_RETURN | monitoring.events.CALL
        for code in codes:
            monitoring.set_local_events(tool, code, these)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        for code in codes or ():
            monitoring.set_local_events(tool, code, 0)
        for kind in kinds:
            monitoring.register_callback(tool, kind, None)
        monitoring.free_tool_id(tool)


class CodeLines(dict):
    """Makes, for each code object, a dict of the lines of all offsets."""

    def __missing__(self, code):
        lines = self[code] = {}
        for begin, end, line in code.co_lines():
            lines.update(dict.fromkeys(range(begin, end), line))
        return lines


def sync_monitored(events, entry):
    """Leave out what belongs to coroutines that are sync functions or suspended there."""
    return [
        (name, event, line, detail)
        for name, event, line, detail in events
        if line is not None  # in that hidden handler
        and event != "STOP_ITERATION"
        and detail not in ("StopIteration", "await_")
        and (event not in ("PY_YIELD", "PY_RESUME") or name.startswith("leaf"))
        # It calls something else in each form.
        and (event not in ("CALL", "C_RETURN") or name != entry)
    ]


@needs_monitoring
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("entry", ["task", "scoped_task", "flow"])
def test_monitoring(runner, entry, tasks):
    """A tool of sys.monitoring is told of the native events, of every kind."""

    def seen_in(form):
        events = {}
        with monitored(events):
            result = run_program(runner, form, entry, ignore, tasks)
        # Coroutines that await_ drives do yield; the program has waited.
        leaf_yields = [e for e in events[0] if e[:2] == ("leaf", "PY_YIELD")]
        assert leaf_yields or tasks > 1
        return result, {n: sync_monitored(events[n], entry) for n in sorted(events)}

    native, portal = both(seen_in)
    assert portal == native
    assert len(portal[1]) == tasks
    kinds = {event for events in portal[1].values() for _, event, _, _ in events}
    assert {"PY_START", "PY_RETURN", "LINE", "CALL", "JUMP"} <= kinds
    if entry == "flow":
        assert {"PY_UNWIND", "RAISE", "RERAISE", "EXCEPTION_HANDLED"} <= kinds


@needs_monitoring
def test_monitoring_of_a_function(runner):
    """So is a tool that watches single functions."""

    def seen_in(form):
        events = {}
        program = twins.load(form, ignore, runner.checkpoint)
        codes = [fn.__code__ for fn in (program.sync_loop, program.sync_caught)]
        with monitored(events, codes):
            runner.run(program.flow)
        return sync_monitored(events[0], "flow")

    native, portal = both(seen_in)
    assert portal == native
    assert {name for name, *_ in portal} == {"sync_loop", "sync_caught"}


# --- profilers -------------------------------------------------------------------


def profiled(runner, entry, tasks, form):
    """Run the program under cProfile; give its number of calls of each function."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        run_program(runner, form, entry, ignore, tasks)
    finally:
        profile.disable()
    stats = pstats.Stats(profile, stream=io.StringIO()).stats
    return {
        name: (
            number,
            {
                entry if caller[2] == "with_portal_run_sync" else caller[2]: n
                for caller, (n, *_) in callers.items()
            },
        )
        for (file, _, name), (_, number, _, _, callers) in stats.items()
        if file == PROGRAM and name != "<module>"
    }


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("entry", ["task", "scoped_task", "flow"])
def test_cprofile(runner, entry, tasks):
    """cProfile counts the native calls, and knows who has made them.

    For it, each step of a coroutine is a call, and so is each of sync code.
    """
    native, portal = both(profiled, runner, entry, tasks)
    del native[entry], portal[entry]  # its callers are of different kinds
    assert portal == native
    assert max(number for number, _ in portal.values()) > 1


@each_loop
def test_cprofile_of_c_functions(runner):
    """C functions that wait are left and entered again, too."""

    def key(number):
        greenback.await_(runner.checkpoint())
        return -number

    def sync_code():
        return sorted([1, 2, 3], key=key), list(map(key, [4]))

    async def main():
        return await greenback.with_portal_run_sync(sync_code)

    profile = cProfile.Profile()
    profile.enable()
    try:
        assert runner.run(main) == ([3, 2, 1], [-4])
    finally:
        profile.disable()
    stats = pstats.Stats(profile, stream=io.StringIO()).stats
    callers = {
        name: {caller[2]: n for caller, (n, *_) in callers.items()}
        for (_, _, name), (_, _, _, _, callers) in stats.items()
    }
    # Each at first, and again each time when the loop goes on with the task.
    assert callers["sync_code"] == {"with_portal_run_sync": 5}
    assert callers["<built-in method builtins.sorted>"]["sync_code"] == 4
    assert callers["key"] == {"<built-in method builtins.sorted>": 6, "sync_code": 2}
    assert not {"key", "sync_code"} & callers["main"].keys()


@each_loop
def test_cprofile_of_what_an_exception_gives_up(runner):
    """What its end calls may wait: the C function that failed has gone by then."""
    ends = []

    def wait(*_):
        greenback.await_(runner.checkpoint())
        ends.append(None)

    def generator():
        try:
            yield
        finally:
            wait()

    def started():
        iterator = generator()
        next(iterator)
        return iterator

    class Finalized:
        __del__ = wait

    class Watched:
        def __init__(self, watch):
            self.watch = watch(self)

    class Raw(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            wait()
            return len(data)

    def buffered():
        buffer = io.BufferedWriter(Raw())
        buffer.write(b"data")
        return buffer

    references = []

    def referred():
        watched = Watched(lambda _: None)
        references.append(weakref.ref(watched, lambda _: wait()))
        return watched

    makers = [
        started,
        Finalized,
        lambda: Watched(lambda watched: weakref.finalize(watched, wait)),
        referred,
        buffered,
    ]

    def take(*_):
        pass

    def sync_code():
        for make in makers:
            for _ in range(20):
                with contextlib.suppress(IndexError):
                    take(make(), [[]], [].pop())
                with contextlib.suppress(ValueError):
                    take(make(), [[]], [{}].index([]))

    async def main():
        await greenback.with_portal_run_sync(sync_code)

    profile = cProfile.Profile()
    profile.enable()
    try:
        runner.run(main)
    finally:
        profile.disable()
    assert len(ends) == 40 * len(makers)


@each_loop
@pytest.mark.parametrize("event", ["return", "call", "c_return", "c_call"])
@pytest.mark.parametrize("fails", [False, True])
def test_profile_function_that_ends(runner, event, fails, monkeypatch):
    """It may switch itself off, or fail, when it is told of a step that waits."""
    strays = []
    waiting = False

    def profile(frame, what, arg):
        if waiting and what == event and frame.f_code is sync_code.__code__:
            if fails:
                raise LookupError
            sys.setprofile(None)

    def key(number):
        nonlocal waiting
        waiting = True
        greenback.await_(runner.checkpoint())
        waiting = False
        return number

    def sync_code():
        sys.setprofile(profile)
        try:
            return sorted([2, 1], key=key)
        finally:
            assert sys.getprofile() is None

    async def main():
        return await greenback.with_portal_run_sync(sync_code)

    monkeypatch.setattr(sys, "unraisablehook", lambda info: strays.append(info))
    before = sys.getprofile()
    try:
        assert runner.run(main) == [1, 2]
    finally:
        sys.setprofile(before)
    assert [info.exc_type for info in strays] == [LookupError] * fails


@each_loop
@pytest.mark.parametrize("switch", [sys.setprofile, sys.settrace])
@pytest.mark.parametrize("first", ["on", "off"])
def test_tool_that_changes_while_a_task_waits(runner, switch, first):
    """The frames that wait go on under the new one. (Debug builds check their code.)"""

    def tool(frame, event, arg):
        return tool

    def sync_code(depth):
        if depth:
            result = sync_code(depth - 1)
            return result + 1
        done.append("waits")
        while done[-1] == "waits":
            greenback.await_(runner.checkpoint())
        return 1

    async def waiting():
        await greenback.ensure_portal()
        return sync_code(3)

    async def changing():
        while not done:
            await runner.checkpoint()
        changes[1]()
        done.append("changed")

    async def main():
        changes[0]()
        return await runner.run_concurrently(waiting, changing)

    done = []
    changes = [lambda: switch(tool), lambda: switch(None)]
    if first == "off":
        changes.reverse()
    before = {sys.setprofile: sys.getprofile, sys.settrace: sys.gettrace}[switch]()
    try:
        assert runner.run(main) == [4, None]
    finally:
        switch(before)


# --- a debugger ------------------------------------------------------------------

BACKENDS = [{}]
if sys.version_info >= (3, 14):
    BACKENDS = [{"backend": "settrace"}, {"backend": "monitoring"}]

SOURCE = twins.PROGRAM.read_text().splitlines()


def line_with(text):
    """Give the number of the program's only line that has *text*."""
    (number,) = [n for n, line in enumerate(SOURCE, 1) if text in line]
    return number


BEFORE = line_with("result = await leaf(value)")
AFTER = line_with("bottom resumed")
IN_LEAF = line_with("leaf resumed")
LATER = line_with('look("middle")')

# From `between` to what waits, over that, and on to a caller of sync functions.
OVER = f"""
tbreak {BEFORE}
continue
where
p value
next
where
next
p result
up
p value
up
p number, value
down
tbreak {LATER}
continue
where
p number, result
continue
"""
if FRAMES_END_AT_THE_PORTAL:
    # pdb takes the task's coroutine for the bottom of the stack. From there to the next
    # breakpoint, older ones stop where a coroutine that is awaited has its result.
    OVER = OVER.partition(f"tbreak {LATER}")[0] + "continue\n"
# Into the coroutine that waits, over its wait, and out of it again.
INTO = f"""
tbreak {BEFORE}
continue
step
where
next
next
next
where
p value
tbreak {AFTER}
continue
where
p result
continue
"""
STOPS = {
    OVER: [BEFORE, AFTER, AFTER + 1, *([LATER] if f"break {LATER}" in OVER else [])],
    INTO: [BEFORE, IN_LEAF - 3, IN_LEAF - 2, IN_LEAF - 1, IN_LEAF, AFTER],
}


def session(runner, form, commands, backend):
    """Run the program in pdb with the commands; give what pdb has written."""
    output = io.StringIO()
    debugger = pdb.Pdb(
        stdin=io.StringIO(commands.lstrip()),
        stdout=output,
        nosigint=True,
        readrc=False,
        **backend,
    )
    debugger.prompt = "(Pdb)\n"
    started = False

    def look(where):
        nonlocal started
        if where == "between" and not started:
            started = True
            debugger.set_trace(sys._getframe(1))

    try:
        run_program(runner, form, "task", look)
    finally:
        bdb.Breakpoint.clearBreakpoints()
    lines = output.getvalue().splitlines()
    # The first place, where pdb waits for its first command, depends on Python.
    return lines[lines.index("(Pdb)") :]


def inside(lines):
    """Leave out the frames of others, each of which has two lines."""
    elsewhere = [
        n
        for n, line in enumerate(lines)
        if re.match(r"[> ] [/<]", line) and PROGRAM not in line
    ]
    left_out = {*elsewhere, *(n + 1 for n in elsewhere)}
    return [line for n, line in enumerate(lines) if n not in left_out]


@pytest.mark.skipif(
    FRAMES_END_AT_THE_PORTAL
    and sys.version_info >= (3, 12)
    and hasattr(sys, "gettotalrefcount"),
    reason="a debug build ends the process when tracing is switched on in a greenlet "
    "and a frame that was not in reach then goes on",
)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda kwds: kwds.get("backend", ""))
@pytest.mark.parametrize("commands", [OVER, INTO], ids=["over", "into"])
def test_pdb(runner, commands, backend):
    """pdb stops in sync code that waits, and shows its callers, as it does natively."""
    native, portal = both(lambda form: session(runner, form, commands, backend))
    if FRAMES_END_AT_THE_PORTAL:
        native, portal = inside(native), inside(portal)
    assert portal == native
    # Natively it might stop nowhere; each of these comes after the one before.
    rest = iter(portal)
    for stop in STOPS[commands]:
        assert any(line.startswith(f"> {PROGRAM}({stop})") for line in rest), stop


# --- tools that want a process of their own ----------------------------------------


def run_script(*command, **options):
    """Run a Python command in a process; give its outcome, output as text."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG")
    }
    environment.update(options.pop("env", {}))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=50,
        check=False,
        **options,
    )


each_loop_name = pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])


def skip_without(loop):
    """Skip the test if this loop is not installed."""
    if loop != "asyncio":
        pytest.importorskip(loop)


CORES = {
    "ctrace": [],
    "ctrace branch": ["--branch"],
    "ctrace greenlet": ["--concurrency=greenlet"],
    "sysmon": [],
    "sysmon branch": ["--branch"],
}


def measure(tmp_path, loop, core, form):
    """Run the program under coverage; give what it reports."""
    coverage = pytest.importorskip("coverage")
    data, report = tmp_path / "data", tmp_path / "report.json"
    command = ["-m", "coverage", "run", f"--data-file={data}", f"--include={PROGRAM}"]
    command += [*CORES[core], SCRIPTS / "run_program.py", loop, form, "flow", 2]
    run = run_script(*command, env={"COVERAGE_CORE": core.split()[0]}, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    measured = coverage.Coverage(data_file=data)
    measured.load()
    measured.json_report(outfile=str(report), pretty_print=True)
    (found,) = json.loads(report.read_text())["files"].values()
    del found["functions"], found["classes"]
    return found


@functools.cache
def measure_natively(core):
    """Do the same with the native form, once."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(pathlib.Path(folder), "asyncio", core, "native")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("core", CORES)
def test_coverage(tmp_path, loop, core):
    """coverage.py finds the native lines and branches, with tasks that take turns."""
    skip_without(loop)
    if core.startswith("ctrace"):
        pytest.importorskip("coverage.tracer")
    elif sys.version_info < ((3, 14) if "branch" in core else (3, 12)):
        pytest.skip("coverage can't do that with this Python")
    native = measure_natively(core)
    assert measure(tmp_path, loop, core, "portal") == native
    # All of sync_caught, but a line that can't be reached.
    begin = inspect.getsourcelines(twins.load("native", None, None).sync_caught)[1]
    executed = [line - begin for line in native["executed_lines"]]
    assert {*range(1, 6), *range(9, 15)} <= {*executed}


@each_loop_name
@pytest.mark.skipif(sys.version_info < (3, 12), reason="-X perf came with 3.12")
def test_perf_trampoline(loop):
    """`perf` can tell sync functions by name; they wait as they do without it."""
    skip_without(loop)
    command = [sys.executable, "-X", "perf", str(SCRIPTS / "run_program.py")]
    with subprocess.Popen(
        [*command, loop, "portal", "flow", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stdout, stderr = process.communicate(timeout=50)
    names = pathlib.Path(f"/tmp/perf-{process.pid}.map")
    if process.returncode and "perf" in stderr:
        pytest.skip(stderr.strip())
    assert (stdout, stderr) == ("[[0, 0], [0, 0]]\n", "")
    text = names.read_text()
    names.unlink()
    assert f"py::sync_caught:{PROGRAM}" in text


@each_loop_name
def test_traceback_at_exit(loop):
    """The traceback with which the interpreter ends is the native one."""
    skip_without(loop)
    script = SCRIPTS / "run_program.py"
    native, portal = [
        run_script(script, loop, form, "failing", 1) for form in twins.FORMS
    ]
    assert portal.returncode == native.returncode == 1
    assert portal.stderr == native.stderr
    assert "in leaf_failing" in portal.stderr


def dumped(loop, form, how):
    """Let faulthandler write the stack of a step that goes no further."""
    script = SCRIPTS / "stand_still.py"
    with subprocess.Popen(
        [sys.executable, script, loop, form, "task", "bottom resumed", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdin.flush()  # open until it has ended
        text = process.stderr.read()
        process.wait(timeout=50)
    text, _, _ = text.partition("Current thread's C stack trace")
    return process.returncode, text.splitlines()[0], of_program(parse(text))


@each_loop_name
@pytest.mark.parametrize("how", ["later", "abort"])
def test_faulthandler(loop, how):
    """faulthandler writes the stack of a step that hangs, or that ends the process."""
    skip_without(loop)
    native, portal = both(lambda form: dumped(loop, form, how))
    assert portal == (*native[:2], as_promised(native[2], "task"))
    assert [name for _, _, name in portal[2]][:2] == ["sync_bottom", "between"]


# --- tools that look at the process from outside ------------------------------------


@contextlib.contextmanager
def standing_still(loop, form, entry, place, how):
    """Run the program in a process up to a place; give the number of the process."""
    script = SCRIPTS / "stand_still.py"
    with subprocess.Popen(
        [sys.executable, script, loop, form, entry, place, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()
        assert process.wait(timeout=50) == 0


def looked_at(commands, loop, form, entry, place, how):
    """Let tools look at that process; give what they write.

    The test is skipped if they can't look at one without portals either.
    """
    texts = []
    with standing_still(loop, form, entry, place, how) as pid:
        for command in commands:
            tool = subprocess.run(
                [*command, str(pid)],
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
            if form == "native" and (tool.returncode or not tool.stdout):
                reason = (tool.stderr.strip() or tool.stdout.strip())[-300:]
                pytest.skip(f"it fails without a portal, too: {reason}")
            assert tool.returncode == 0, tool.stderr
            texts.append(tool.stdout)
    return texts


AT_A_PLACE = {
    "suspended": ("waiting", ""),  # in another task
    "blocked": ("task", "bottom resumed"),
}


def rows_of_ps(text):
    """Give name, coroutines from inner to outer, and awaiter of each task in a table."""
    rows = []
    for line in text.splitlines()[2:]:
        row = re.match(r"\d+ +0x\w+ +(.+?)  +((?:\S+ -> )*\S+) *(\S*)", line)
        rows.append((row[1], row[2].split(" -> "), row[3]))
    return rows


def rows_of_pstree(text):
    """Give depth and text of each row of the tree."""
    rows = [
        re.match(r"([\W]*)(.*)", line) for line in text.splitlines() if line.strip()
    ]
    return [(len(row[1]), row[2]) for row in rows]


@needs_314
@pytest.mark.parametrize(
    ("loop", "how"),
    [("asyncio", "suspended"), ("asyncio", "blocked"), ("uvloop", "suspended")],
)
def test_asyncio_from_outside(loop, how):
    """`python -m asyncio ps` and `pstree` show the task, where it is, and who awaits it.

    They look into coroutines that are suspended themselves. The one of a task that
    waits in sync code is in the middle of a call, as it would be in a step: of such
    a task they show its own coroutine and no others.
    """
    skip_without(loop)
    tools = [[sys.executable, "-m", "asyncio", name] for name in ("ps", "pstree")]

    def seen_in(form):
        ps, pstree = looked_at(tools, loop, form, *AT_A_PLACE[how], how)
        return rows_of_ps(ps), rows_of_pstree(pstree)

    (table, tree), (portal_table, portal_tree) = both(seen_in)
    if how == "suspended":
        assert len(table) == 3
        table = [(name, coros[-1:], awaiter) for name, coros, awaiter in table]
        shown = [depth for depth, text in tree if text.startswith("waiting ")]
        tree = [row for row in tree if row[0] <= max(shown)]
    assert sorted(portal_table) == sorted(table)
    assert portal_tree == tree


def outside_tools():
    """Give the tools that write the stacks of another process, by name."""
    here = os.pathsep.join(
        [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    )
    spy = shutil.which("py-spy", path=here)
    sampling = sys.version_info >= (3, 15)
    return {
        "py-spy": [spy, "dump", "--full-filenames", "--pid"] if spy else None,
        "profiling.sampling": (
            [sys.executable, "-m", "profiling.sampling", "dump"] if sampling else None
        ),
    }


def stack_of_dump(tool, text):
    """Give the frames of the first thread, innermost first."""
    if tool == "py-spy":
        _, _, text = text.partition("MainThread")
        frames = re.findall(r"^    (\S+) \((.+):(\d+)\)$", text, re.MULTILINE)
        # Names may be qualified.
        return [(file, int(line), name.split(".")[-1]) for name, file, line in frames]
    frames = re.findall(r'File "(.+?)", line (\d+), in (\S+)', text)[::-1]
    return [
        (str(pathlib.Path(file).absolute()), int(line), name.split(".")[-1])
        for file, line, name in frames
    ]


@pytest.mark.parametrize(
    ("loop", "how"),
    [("asyncio", "suspended"), ("asyncio", "blocked"), ("trio", "blocked")],
)
@pytest.mark.parametrize("tool", ["py-spy", "profiling.sampling"])
def test_dump_from_outside(loop, how, tool):
    """A tool that reads the stacks of another process finds the native frames."""
    skip_without(loop)
    command = outside_tools()[tool]
    if command is None:
        pytest.skip(f"{tool} is not installed")
    if FRAMES_END_AT_THE_PORTAL and (tool, how) == ("profiling.sampling", "blocked"):
        pytest.skip("it reads no stack that does not reach the thread's first frame")

    def seen_in(form):
        (text,) = looked_at([command], loop, form, *AT_A_PLACE[how], how)
        return stack_of_dump(tool, text)

    native, portal = both(seen_in)
    if how == "blocked":
        native, portal = of_program(native), of_program(portal)
        native = as_promised(native, "task")
        assert [n for *_, n in portal][:3] == ["sync_bottom", "between", "sync_middle"]
    assert portal == native
    assert len(portal) > 3
