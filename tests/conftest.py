"""What every test file shares.

``runner``
    A fixture that makes a test run once on each kind of task.  Its attributes:

    ``id``                  "asyncio" (C Task), "asyncio-pytask" (Task written in Python),
                            "asyncio-subclass" (subclass of asyncio.Task), "asyncio-eager"
                            (eager_task_factory, 3.12+), "uvloop" or "trio"
    ``library``             "asyncio" or "trio"
    ``eager``               whether a new child task starts before ``spawn`` returns
    ``run(fn, *args)``      run async ``fn`` as the main task of a new loop; the task's
                            coroutine is the one that ``fn`` returns; result or exception
                            as is
    ``run_sync(fn, *args)`` call sync ``fn`` in a main task which has a portal
    ``current_task()``      the running task
    ``spawn(fn, *args)``    start a child task (a plain call, no await); gives an object with
                            ``task``, ``cancel()``, ``done`` and ``await join()`` (result or
                            exception; ``runner.ChildCancelled`` if it was cancelled)
    ``await run_concurrently(*fns)``  run each in a child task, give the list of results
    ``await checkpoint()``  let other tasks run once
    ``await settle()``      let all other tasks run until each of them waits for something
    ``await sleep(secs)``, ``await sleep_forever()``
    ``Event()``             has ``set()``, ``is_set()`` and ``await wait()``
    ``timeout(secs)``       async context manager, raises ``timeout_exc`` when time is up;
                            0 means at the next chance, None never
    ``cleanup_shield()``    sync context manager in which clean-up may await although the task
                            was cancelled (a shielded scope on Trio, nothing on asyncio)
    ``cancelled_exc``       what a cancelled task sees
    ``loop_errors``         what the loop's exception handler was told; must be empty at the
                            end of the test

``asyncio_runner``, ``trio_runner``
    The same for the tasks of one library only.

``portal_kind``
    A fixture: ``await portal_kind(sync_fn, *args)`` calls ``sync_fn`` inside a portal. A test
    with it runs once for each way to get one (ids: ensure, bestow-self, run, run-sync).

``no_overlaps``
    Used by every test by itself: fails the test if a stack was resumed over live stack (the
    direct engine can do that, but there should be no need). Tests that force it have the
    mark ``overlaps``.

``strays``
    Used by every test by itself: fails the test on unraisable exceptions and on coroutines
    which were never awaited, also those found by a garbage collection after the test. A test
    that expects some takes the fixture (a list of strings) and clears it.
"""

import asyncio
import contextlib
import contextvars
import gc
import os
import platform
import sys
import sysconfig
import threading

import greenlet
import pytest

import greenback

# Windows has no pseudo-terminals to type into.
collect_ignore = ["test_debugger.py", "test_repl.py"] * (sys.platform == "win32")


def pytest_configure(config):
    if hasattr(sys, "gettotalrefcount"):
        # The programs that tests run are to show the warnings that they show everywhere else:
        # debug builds show all.
        os.environ["PYTHONWARNINGS"] = (
            "ignore::ResourceWarning,ignore::DeprecationWarning,default::DeprecationWarning:__main__"
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        # No warning on the standard error of the programs that tests run; test_engine.py has a
        # test of it.
        os.environ["PYTHON_GIL"] = "1"
    # Raised in the coroutine's finalizer, so that the hook of `strays` sees it.
    config.addinivalue_line(
        "filterwarnings", "error:.*was never awaited:RuntimeWarning"
    )
    config.addinivalue_line("markers", "overlaps: resumes stacks over live stack")


def pytest_report_header(config):
    engine = getattr(greenback, "engine", "none of its own")
    version = getattr(greenback, "__version__", "unknown")
    return (
        f"greenback {version} (engine: {engine}), greenlet {greenlet.__version__}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


class ChildCancelled(Exception):
    """Raised by ``join()`` of a child that was cancelled."""


class Runner:
    ChildCancelled = ChildCancelled
    eager = False

    def __init__(self, id):
        self.id = id
        self.loop_errors = []

    def __repr__(self):
        return f"<runner {self.id}>"

    def run_sync(self, fn, *args):
        async def main():
            await greenback.ensure_portal()
            return fn(*args)

        return self.run(main)

    async def run_concurrently(self, *fns):
        children = [self.spawn(fn) for fn in fns]
        try:
            return [await child.join() for child in children]
        finally:
            for child in children:
                if not child.done:
                    child.cancel()


class AsyncioChild:
    def __init__(self, coro):
        self.task = asyncio.get_running_loop().create_task(coro)

    @property
    def done(self):
        return self.task.done()

    def cancel(self):
        self.task.cancel()

    async def join(self):
        await asyncio.wait([self.task])
        if self.task.cancelled():
            raise ChildCancelled
        return self.task.result()


class AsyncioRunner(Runner):
    library = "asyncio"
    cancelled_exc = asyncio.CancelledError
    timeout_exc = TimeoutError
    Event = asyncio.Event

    def __init__(self, id, task_factory=None, loop_factory=asyncio.new_event_loop):
        super().__init__(id)
        self.task_factory = task_factory
        self.loop_factory = loop_factory
        self.eager = id == "asyncio-eager"

    def run(self, fn, *args):
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            loop = runner.get_loop()
            loop.set_task_factory(self.task_factory)
            loop.set_exception_handler(lambda loop, info: self.loop_errors.append(info))
            return runner.run(fn(*args))

    def spawn(self, fn, *args):
        return AsyncioChild(fn(*args))

    def current_task(self):
        return asyncio.current_task()

    async def checkpoint(self):
        await asyncio.sleep(0)

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)

    async def sleep(self, secs):
        await asyncio.sleep(secs)

    async def sleep_forever(self):
        await asyncio.get_running_loop().create_future()

    def timeout(self, secs):
        return asyncio.timeout(secs)

    def cleanup_shield(self):
        return contextlib.nullcontext()


class TrioChild:
    def __init__(self, fn, args):
        import trio

        self.scope = trio.CancelScope()
        self.finished = trio.Event()
        self.result = self.error = None
        # A system task, as there is no nursery that fits every test.
        self.task = trio.lowlevel.spawn_system_task(
            self.body, fn, args, context=contextvars.copy_context()
        )

    @property
    def done(self):
        return self.finished.is_set()

    async def body(self, fn, args):
        try:
            with self.scope:
                self.result = await fn(*args)
        except Exception as exc:
            self.error = exc
        finally:
            self.finished.set()

    def cancel(self):
        self.scope.cancel()

    async def join(self):
        await self.finished.wait()
        if self.scope.cancelled_caught:
            raise ChildCancelled
        if self.error is not None:
            raise self.error
        return self.result


class TrioRunner(Runner):
    library = "trio"

    def __init__(self, id):
        super().__init__(id)
        import trio
        import trio.testing

        self.trio = trio
        self.Event = trio.Event
        self.cancelled_exc = trio.Cancelled
        self.timeout_exc = trio.TooSlowError

    def run(self, fn, *args):
        return self.trio.run(fn, *args)

    def spawn(self, fn, *args):
        return TrioChild(fn, args)

    def current_task(self):
        return self.trio.lowlevel.current_task()

    async def checkpoint(self):
        await self.trio.sleep(0)

    async def settle(self):
        await self.trio.testing.wait_all_tasks_blocked()

    async def sleep(self, secs):
        await self.trio.sleep(secs)

    async def sleep_forever(self):
        await self.trio.sleep_forever()

    @contextlib.asynccontextmanager
    async def timeout(self, secs):
        with self.trio.fail_after(float("inf") if secs is None else secs):
            yield

    def cleanup_shield(self):
        return self.trio.CancelScope(shield=True)


class TaskSubclass(asyncio.Task):
    pass


def make_task_factory(task_class):
    def task_factory(loop, coro, **kwds):
        return task_class(coro, loop=loop, **kwds)

    return task_factory


class PyTaskRunner(AsyncioRunner):
    """Tasks as in a Python without asyncio's C parts, or patched to do without."""

    def __init__(self, id):
        super().__init__(id, make_task_factory(asyncio.tasks._PyTask))
        self.replacements = {"Task": asyncio.tasks._PyTask}
        if sys.version_info >= (3, 14):  # the two kinds share no state any more
            self.replacements["current_task"] = asyncio.tasks._py_current_task
            self.replacements["all_tasks"] = asyncio.tasks._py_all_tasks

    # Shared by all threads: put in place by the first, undone by the last.
    lock = threading.Lock()
    users = 0
    patch = None

    @contextlib.contextmanager
    def patched_asyncio(self):
        cls = PyTaskRunner
        with cls.lock:
            cls.users += 1
            if cls.users == 1:
                cls.patch = pytest.MonkeyPatch()
                for name, value in self.replacements.items():
                    cls.patch.setattr(asyncio, name, value)
                    cls.patch.setattr(asyncio.tasks, name, value)
        try:
            yield
        finally:
            with cls.lock:
                cls.users -= 1
                if cls.users == 0:
                    cls.patch.undo()

    def run(self, fn, *args):
        with self.patched_asyncio():
            return super().run(fn, *args)


def make_runner(id):
    if id == "asyncio":
        return AsyncioRunner(id)
    if id == "asyncio-pytask":
        return PyTaskRunner(id)
    if id == "asyncio-subclass":
        return AsyncioRunner(id, make_task_factory(TaskSubclass))
    if id == "asyncio-eager":
        if sys.version_info < (3, 12):
            pytest.skip("eager tasks came with Python 3.12")
        return AsyncioRunner(id, asyncio.eager_task_factory)
    if id == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        return AsyncioRunner(id, loop_factory=uvloop.new_event_loop)
    pytest.importorskip("trio")
    return TrioRunner(id)


ASYNCIO_IDS = [
    "asyncio",
    "asyncio-pytask",
    "asyncio-subclass",
    "asyncio-eager",
    "uvloop",
]


@pytest.fixture(params=[*ASYNCIO_IDS, "trio"])
def runner(request, strays):
    yield from checked_runner(request.param)


@pytest.fixture(params=ASYNCIO_IDS)
def asyncio_runner(request, strays):
    yield from checked_runner(request.param)


@pytest.fixture
def trio_runner(strays):
    yield from checked_runner("trio")


def checked_runner(id):
    runner = make_runner(id)
    yield runner
    if runner.loop_errors:
        pytest.fail(f"errors reported to the loop: {runner.loop_errors}")


async def portal_ensure(fn, *args):
    await greenback.ensure_portal()
    return fn(*args)


async def portal_bestow_self(fn, *args):
    if greenback.has_portal():
        return fn(*args)
    task = _current_task()
    greenback.bestow_portal(task)
    await _checkpoint()
    return fn(*args)


async def portal_run(fn, *args):
    async def body():
        return fn(*args)

    return await greenback.with_portal_run(body)


async def portal_run_sync(fn, *args):
    return await greenback.with_portal_run_sync(fn, *args)


def _in_trio():
    import sniffio

    return sniffio.current_async_library() == "trio"


def _current_task():
    if _in_trio():
        import trio

        return trio.lowlevel.current_task()
    return asyncio.current_task()


async def _checkpoint():
    if _in_trio():
        import trio

        await trio.sleep(0)
    else:
        await asyncio.sleep(0)


@pytest.fixture(
    params=[portal_ensure, portal_bestow_self, portal_run, portal_run_sync],
    ids=["ensure", "bestow-self", "run", "run-sync"],
)
def portal_kind(request):
    return request.param


def count_overlaps():
    return greenback._core.engine_counters().get("overlaps", 0)


@pytest.fixture(autouse=True)
def no_overlaps(request):
    before = count_overlaps()
    yield
    if count_overlaps() != before and not request.node.get_closest_marker("overlaps"):
        pytest.fail(f"{count_overlaps() - before} resumptions over live stack")


@pytest.fixture(autouse=True)
def strays():
    found = []

    def hook(info):
        where = info.err_msg or "Exception ignored in"
        found.append(f"{where}: {info.object!r}: {info.exc_value!r}")

    previous_hook = sys.unraisablehook
    sys.unraisablehook = hook
    try:
        yield found
        gc.collect()
        gc.freeze()  # or each collection looks at all that pytest keeps
    finally:
        sys.unraisablehook = previous_hook
    if found:
        pytest.fail("stray errors:\n" + "\n".join(found))
