"""stackscope sees the user's frames, sync and async, in the right order."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import sysconfig
import warnings

import pytest

import greenback

stackscope = pytest.importorskip("stackscope")


def sees_contexts():
    """Whether this stackscope can look into the frames of this Python."""

    @contextlib.contextmanager
    def manager():
        yield

    def generator():
        with manager():
            yield

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False  # not into those that run
    suspended = generator()
    next(suspended)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = stackscope.extract(suspended)
    suspended.close()
    return any(frame.contexts for frame in stack.frames)


IMPORT_ORDERS = {
    "greenback first": "import greenback, stackscope",
    "stackscope first": "import stackscope, greenback",
    "greenback used first": (
        "import asyncio, greenback\n"
        "async def main():\n"
        "    await greenback.ensure_portal()\n"
        "    greenback.await_(asyncio.sleep(0))\n"
        "asyncio.run(main())\n"
        "import stackscope"
    ),
    "stackscope used first": (
        "import stackscope\nstackscope.extract_since(None)\nimport greenback"
    ),
}

SCRIPT = """
import asyncio

def sync_outer(gate):
    sync_inner(gate)

def sync_inner(gate):
    greenback.await_(async_inner(gate))

async def async_inner(gate):
    await gate.wait()

async def main():
    gate = asyncio.Event()

    async def program():
        await greenback.ensure_portal()
        sync_outer(gate)

    task = asyncio.create_task(program())
    for _ in range(5):
        await asyncio.sleep(0)
    stack = stackscope.extract(task.get_coro())
    assert stack.error is None, stack.error
    names = [frame.funcname for frame in stack.frames]
    assert names[:4] == ["program", "sync_outer", "sync_inner", "async_inner"], names
    gate.set()
    await task

asyncio.run(main())
print("OK")
"""


@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_import_order(order):
    """Both import orders work, and warn of nothing."""
    result = subprocess.run(
        [
            *(sys.executable, "-W", "error"),
            # Of stackscope's own, on import under 3.13.
            *("-W", "ignore:coroutine method"),
            # Where it does not know the interpreter's frames; they still are found.
            *("-W", "ignore:Inspection trickery"),
            *("-c", IMPORT_ORDERS[order] + "\n" + SCRIPT),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    # Where stackscope does not know the interpreter it writes so.
    assert result.stderr == "" or not sees_contexts()
    assert result.stdout == "OK\n"


def extract(task):
    """Extract the stack of a task."""
    # stackscope knows Trio's tasks; for asyncio's it takes the coroutine.
    target = task if hasattr(task, "coro") else task.get_coro()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not sees_contexts():
            warnings.simplefilter("ignore", stackscope.InspectionWarning)
        return stackscope.extract(target)


def names_of(task):
    """Extract a stack; return its function names, without those of libraries."""
    stack = extract(task)
    assert stack.error is None, stack.error
    return [
        frame.funcname.rpartition(".")[2]
        for frame in stack.frames
        if frame.filename == __file__ and not frame.hide
    ]


def start(runner, fn):
    """Start a task that runs *fn* directly."""
    if runner.library == "trio":
        import trio

        return trio.lowlevel.spawn_system_task(fn)
    import asyncio

    return asyncio.get_running_loop().create_task(fn())


def make_program(runner, gate, kind):
    """Make an async function that ends up waiting for the gate."""

    async def async_inner():
        await gate.wait()

    def sync_inner():
        greenback.await_(async_inner())

    def sync_outer():
        sync_inner()

    async def async_middle():
        sync_outer()

    def sync_top():
        greenback.await_(async_middle())

    async def native_middle():
        await async_inner()

    async def program():
        await greenback.ensure_portal()
        if kind == "simple":
            sync_outer()
        elif kind == "nested":
            sync_top()
        elif kind == "through coroutines":
            await async_middle()
        elif kind == "idle":
            await native_middle()

    async def scoped():
        if kind == "run-sync":
            await greenback.with_portal_run_sync(sync_outer)
        else:
            await greenback.with_portal_run(async_middle)

    return scoped if kind.startswith("run") else program


EXPECTED = {
    "simple": "program sync_outer sync_inner async_inner",
    "nested": "program sync_top async_middle sync_outer sync_inner async_inner",
    "through coroutines": "program async_middle sync_outer sync_inner async_inner",
    "idle": "program native_middle async_inner",
    "run": "scoped async_middle sync_outer sync_inner async_inner",
    "run-sync": "scoped sync_outer sync_inner async_inner",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_suspended_task(runner, kind):
    """The stack of a task suspended in await_ goes through its sync frames."""

    async def main():
        gate = runner.Event()
        task = start(runner, make_program(runner, gate, kind))
        await runner.settle()
        names = names_of(task)
        gate.set()
        await runner.settle()
        return names

    assert runner.run(main) == EXPECTED[kind].split()


@pytest.mark.parametrize("resumed", [False, True])
def test_current_task(runner, resumed):
    """So does the stack of the current task, seen from its sync code."""

    def sync_inner():
        if resumed:
            greenback.await_(runner.checkpoint())
        return names_of(runner.current_task())

    def sync_outer():
        return sync_inner()

    async def program():
        await greenback.ensure_portal()
        return sync_outer()

    names = runner.run(program)
    assert names[0] == "program"
    position = [names.index(name) for name in ("program", "sync_outer", "sync_inner")]
    assert position == sorted(position)


def test_current_stack(runner):
    """extract_since(None) in sync code has all of the task's frames."""

    def sync_inner():
        greenback.await_(runner.checkpoint())
        return stackscope.extract_since(None)

    def sync_outer():
        return sync_inner()

    async def program():
        await greenback.ensure_portal()
        return sync_outer()

    stack = runner.run(program)
    assert stack.error is None
    names = [frame.funcname.rpartition(".")[2] for frame in stack.frames]
    assert names[-3:] == ["program", "sync_outer", "sync_inner"]


def test_context_managers(runner):
    """Context managers of sync frames are seen, async_context among them."""
    if not sees_contexts():
        pytest.skip("this stackscope finds no contexts in the frames of this Python")

    @contextlib.contextmanager
    def sync_manager():
        yield "sync"

    @contextlib.asynccontextmanager
    async def async_manager():
        yield "async"

    async def main():
        gate = runner.Event()

        def sync():
            with sync_manager(), greenback.async_context(async_manager()):
                greenback.await_(gate.wait())

        async def program():
            await greenback.ensure_portal()
            sync()

        task = start(runner, program)
        await runner.settle()
        stack = extract(task)
        gate.set()
        await runner.settle()
        (frame,) = [
            frame
            for frame in stack.frames
            if frame.funcname.rpartition(".")[2] == "sync"
        ]
        assert len(frame.contexts) == 2
        assert "async_manager" in str(stack)

    runner.run(main)


def test_foreign_greenlet(runner):
    """A greenlet that waits in await_ is part of its task's stack."""
    import greenlet

    async def main():
        gate = runner.Event()

        def in_greenlet():
            greenback.await_(gate.wait())

        def sync():
            greenlet.greenlet(in_greenlet).switch()

        async def program():
            await greenback.ensure_portal()
            sync()

        task = start(runner, program)
        await runner.settle()
        names = names_of(task)
        gate.set()
        await runner.settle()
        return names

    assert runner.run(main) == ["program", "sync", "in_greenlet"]
