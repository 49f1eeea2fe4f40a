"""Tasks whose coroutine is no native one, and such coroutines in await_.

A portal can't become part of those, so that a stand-in takes their place.
"""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import types
import weakref

import pytest

import greenback

CYTHON_SOURCE = """
async def program(first, sync):
    await first()
    return sync()

async def echo(awaitable):
    return await awaitable

async def failing(awaitable):
    await awaitable
    raise LookupError("in Cython")

def call(fn):
    return fn()

class Extension:
    def __init__(self, fn):
        self.fn = fn

    async def method(self):
        return self.fn()

async def numbers(pause):
    for number in range(3):
        await pause()
        yield number
"""


@pytest.fixture(scope="module")
def cython(tmp_path_factory):
    """Give a module compiled by Cython."""
    pytest.importorskip("Cython")
    compiler = os.environ.get("CC", sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("cython")
    source = folder / "other_coroutines_cython.pyx"
    source.write_text(CYTHON_SOURCE)
    target = folder / (
        "other_coroutines_cython" + sysconfig.get_config_var("EXT_SUFFIX")
    )
    c_source = source.with_suffix(".c")
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", str(source), "-o", str(c_source)],
        check=True,
        capture_output=True,
    )
    include = sysconfig.get_path("include")
    command = [compiler, "-shared", "-fPIC", "-O0", "-w", f"-I{include}"]
    if sys.platform == "darwin":
        command += ["-undefined", "dynamic_lookup"]
    built = subprocess.run(
        [*command, str(c_source), "-o", str(target)], capture_output=True, text=True
    )
    if built.returncode != 0:
        pytest.skip("no extension module can be compiled here: " + built.stderr[:300])
    spec = importlib.util.spec_from_file_location("other_coroutines_cython", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Delegating(collections.abc.Coroutine):
    """A coroutine object written in Python."""

    extra = "attribute of the class"

    def __init__(self, coro):
        self.coro = coro
        self.calls = []

    def send(self, value):
        self.calls.append("send")
        return self.coro.send(value)

    def throw(self, *args):
        self.calls.append("throw")
        return self.coro.throw(*args)

    def close(self):
        self.calls.append("close")
        return self.coro.close()

    def __await__(self):
        return self.coro.__await__()


class Slotted:
    """Only looks like a coroutine; has no dict and no weak references."""

    __slots__ = ("coro",)

    def __init__(self, coro):
        self.coro = coro

    def send(self, value):
        return self.coro.send(value)

    def throw(self, typ, value=None, traceback=None):
        return self.coro.throw(typ if value is None else value)

    def close(self):
        return self.coro.close()

    def __await__(self):
        return self.coro.__await__()


async def native(first, sync):
    """Be what the others imitate."""
    await first()
    return sync()


@types.coroutine
def generator_based(first, sync):
    """Be a generator-based coroutine."""
    yield from first().__await__()
    return sync()


KINDS = ["native", "delegating", "slotted", "generator", "cython"]


@pytest.fixture(params=KINDS)
def kind(request):
    """Give a function that makes a coroutine: first await, then call."""
    if request.param == "native":
        return native
    if request.param == "delegating":
        return lambda first, sync: Delegating(native(first, sync))
    if request.param == "slotted":
        return lambda first, sync: Slotted(native(first, sync))
    if request.param == "generator":
        return generator_based
    return request.getfixturevalue("cython").program


def skip_if_refused(runner, kind):
    """Skip a kind that this library does not take for a task."""
    probe = kind(None, None)
    taken = asyncio.iscoroutine(probe)
    if runner.library == "trio":
        taken = isinstance(probe, collections.abc.Coroutine)
    probe.close()
    if not taken:
        pytest.skip(
            f"{runner.library} does not make a task of a {type(probe).__name__}"
        )


async def value_of(runner, value):
    """Suspend, then give *value*."""
    await runner.checkpoint()
    return value


async def failing(runner):
    """Suspend, then raise."""
    await runner.checkpoint()
    raise LookupError("raised")


# --- as the coroutine of a task --------------------------------------------------------


def test_ensure_portal(runner, kind):
    """ensure_portal() works in a task of each kind, and lasts."""
    skip_if_refused(runner, kind)

    def sync():
        assert greenback.has_portal()
        values = [greenback.await_(value_of(runner, number)) for number in range(3)]
        with pytest.raises(LookupError, match="raised"):
            greenback.await_(failing(runner))
        assert greenback.has_portal()
        return values

    assert runner.run(lambda: kind(greenback.ensure_portal, sync)) == [0, 1, 2]


def test_ensure_portal_twice(runner, kind):
    """The second call keeps the portal that is there."""
    skip_if_refused(runner, kind)

    async def first():
        await greenback.ensure_portal()
        greenback.await_(runner.checkpoint())
        await greenback.ensure_portal()
        await runner.checkpoint()

    def sync():
        return greenback.await_(value_of(runner, "value"))

    assert runner.run(lambda: kind(first, sync)) == "value"


@pytest.mark.parametrize("when", ["unstarted", "suspended"])
def test_bestow(runner, kind, when):
    """A portal bestowed from outside works, whatever the coroutine."""
    skip_if_refused(runner, kind)
    if runner.eager and when == "unstarted":
        pytest.skip("an eager task is never seen before its first step")

    async def main():
        gate = runner.Event()
        results = []

        def sync():
            results.append(greenback.await_(value_of(runner, "bestowed")))

        if runner.library == "trio":
            import trio

            task = trio.lowlevel.spawn_system_task(kind, gate.wait, sync)
        else:
            task = asyncio.get_running_loop().create_task(kind(gate.wait, sync))
        if when == "suspended":
            await runner.settle()
        assert not greenback.has_portal(task)
        greenback.bestow_portal(task)
        greenback.bestow_portal(task)
        assert greenback.has_portal(task)
        await runner.checkpoint()
        gate.set()
        await runner.settle()
        assert results == ["bestowed"]
        if runner.library == "asyncio":
            assert task.done()
        assert not greenback.has_portal(task)

    runner.run(main)


def test_exception_ends_the_task(runner, kind):
    """An exception from sync code leaves the task as it is."""
    skip_if_refused(runner, kind)

    def sync():
        greenback.await_(failing(runner))

    with pytest.raises(LookupError, match="raised"):
        runner.run(lambda: kind(greenback.ensure_portal, sync))


def test_cancellation(runner, kind):
    """Cancellation arrives in await_, and clean-up may await."""
    skip_if_refused(runner, kind)
    log = []

    def sync():
        try:
            greenback.await_(runner.sleep_forever())
        except runner.cancelled_exc:
            with runner.cleanup_shield():
                log.append(greenback.await_(value_of(runner, "clean-up")))
            raise

    async def main():
        if runner.library == "trio":
            import trio

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kind, greenback.ensure_portal, sync)
                await runner.settle()
                nursery.cancel_scope.cancel()
        else:
            coro = kind(greenback.ensure_portal, sync)
            task = asyncio.get_running_loop().create_task(coro)
            await runner.settle()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    runner.run(main)
    assert log == ["clean-up"]


def test_cancelled_before_first_step(runner, kind):
    """With a portal bestowed before the first step, nothing of it runs."""
    skip_if_refused(runner, kind)
    if runner.library == "trio" or runner.eager:
        pytest.skip("here, a task runs up to its first checkpoint in any case")

    async def main():
        def sync():
            raise AssertionError("must not run")

        task = asyncio.get_running_loop().create_task(kind(sync, sync))
        greenback.bestow_portal(task)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert runner.run(main) is True


def test_looks(runner, kind):
    """What stands in for a coroutine answers as that does."""
    skip_if_refused(runner, kind)

    async def main(bestow):
        gate = runner.Event()
        if runner.library == "trio":
            import trio

            task = trio.lowlevel.spawn_system_task(kind, gate.wait, int)
            original = task.coro
        else:
            original = kind(gate.wait, int)
            task = asyncio.get_running_loop().create_task(original)
        if not runner.eager:
            bestow(task)
        await runner.settle()
        bestow(task)
        coro = task.coro if runner.library == "trio" else task.get_coro()
        if bestow is not id:
            assert inspect.iscoroutine(coro)
            assert isinstance(coro, collections.abc.Coroutine)
            if not runner.eager:
                assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        # All that tools ask for; a stand-in has it under the names of both kinds.
        seen = {
            "iscoroutine": asyncio.iscoroutine(coro),
            "isawaitable": inspect.isawaitable(coro),
        }
        for name in ("__name__", "__qualname__", "code", "frame", "running"):
            for spelling in (name, "cr_" + name, "gi_" + name):
                if hasattr(original, spelling):
                    value = getattr(coro, spelling)
                    seen[name] = getattr(value, "f_code", value)
        for name in ("extra", "calls", "coro"):
            if hasattr(original, name):
                value = getattr(coro, name)
                seen[name] = getattr(value, "__name__", value)
        watch = weakref.ref(coro) if hasattr(original, "__weakref__") else None
        assert watch is None or watch() is coro
        gate.set()
        await runner.settle()
        return seen

    without = runner.run(main, id)
    assert runner.run(main, greenback.bestow_portal) == without


def test_stand_in_methods(runner, kind):
    """A stand-in can be closed, and sends and throws go to what it wraps."""
    skip_if_refused(runner, kind)
    if runner.library == "trio":
        pytest.skip("Trio dislikes tasks that lose their coroutine")
    if runner.eager:
        pytest.skip("an eager task is never seen before its first step")

    async def main():
        log = []

        async def first():
            try:
                await runner.sleep_forever()
            finally:
                log.append("closed")

        task = asyncio.get_running_loop().create_task(kind(first, int))
        greenback.bestow_portal(task)
        await runner.settle()
        coro = task.get_coro()
        coro.close()
        assert log == ["closed"]
        coro.close()
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            assert isinstance(task.exception(), (RuntimeError, StopIteration))

    runner.run(main)


def test_nothing_is_left(runner, kind):
    """A finished task of each kind leaves its coroutine to be freed."""
    skip_if_refused(runner, kind)

    class Marker:
        pass

    async def main():
        marker = Marker()

        def sync(marker=marker):
            greenback.await_(runner.checkpoint())
            return isinstance(marker, Marker)

        if runner.library == "trio":
            import trio

            trio.lowlevel.spawn_system_task(kind, greenback.ensure_portal, sync)
            await runner.settle()
        else:
            coro = kind(greenback.ensure_portal, sync)
            assert await asyncio.get_running_loop().create_task(coro)
            del coro
        watch = weakref.ref(marker)
        del marker, sync
        await runner.checkpoint()
        await runner.checkpoint()
        gc.collect()
        return watch() is None

    assert runner.run(main)


# --- as what await_ awaits --------------------------------------------------------------


def test_await(runner, kind):
    """await_ drives each kind to its result."""

    def sync():
        return greenback.await_(kind(runner.checkpoint, lambda: "result"))

    assert runner.run_sync(sync) == "result"


def test_await_nested(runner, kind):
    """Sync code that such a coroutine calls awaits another one."""

    def level(depth):
        if depth == 0:
            return greenback.await_(value_of(runner, "bottom"))
        return greenback.await_(kind(runner.checkpoint, lambda: level(depth - 1)))

    assert runner.run_sync(level, 4) == "bottom"


def test_await_raising(runner, kind):
    """Exceptions come out, those thrown in arrive."""
    log = []

    async def first():
        try:
            await runner.sleep_forever()
        except runner.cancelled_exc:
            log.append("cancelled")
            raise

    def raises():
        raise LookupError("from below")

    def sync():
        with pytest.raises(LookupError, match="from below"):
            greenback.await_(kind(runner.checkpoint, raises))
        greenback.await_(kind(first, int))

    async def task():
        await greenback.ensure_portal()
        sync()

    async def main():
        child = runner.spawn(task)
        await runner.settle()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()

    runner.run(main)
    assert log == ["cancelled"]


def test_closed_without_portal(runner, kind):
    """Without a portal, a coroutine passed in is closed."""

    async def main():
        coro = kind(runner.checkpoint, int)
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            greenback.await_(coro)
        if isinstance(coro, Delegating):
            assert coro.calls == ["close"]
        coro = getattr(coro, "coro", coro)
        if inspect.iscoroutine(coro):
            assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED

    runner.run(main)


def test_with_portal_run(runner, kind):
    """with_portal_run() takes a function that returns any of them."""

    def sync():
        return greenback.await_(value_of(runner, "result"))

    async def main():
        result = await greenback.with_portal_run(kind, runner.checkpoint, sync)
        assert not greenback.has_portal()
        return result

    assert runner.run(main) == "result"


# --- Cython's own ----------------------------------------------------------------------


def test_cython_frames_in_between(runner, cython):
    """await_ suspends through compiled functions and coroutines."""

    def sync():
        return cython.call(lambda: greenback.await_(value_of(runner, "result")))

    assert runner.run_sync(sync) == "result"
    assert (
        runner.run_sync(lambda: greenback.await_(cython.echo(value_of(runner, 3)))) == 3
    )

    def method():
        extension = cython.Extension(sync)
        return greenback.await_(extension.method())

    assert runner.run_sync(method) == "result"
    with pytest.raises(LookupError, match="in Cython"):
        runner.run_sync(lambda: greenback.await_(cython.failing(runner.checkpoint())))


def test_cython_async_generator(runner, cython):
    """async_iter() and autoawait() take what Cython made."""
    echo = greenback.autoawait(cython.echo)

    def sync():
        numbers = list(greenback.async_iter(cython.numbers(runner.checkpoint)))
        return numbers, echo(value_of(runner, "echo"))

    assert runner.run_sync(sync) == ([0, 1, 2], "echo")
