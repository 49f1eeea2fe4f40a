"""await_() in worker threads: where no portal is in force and no loop runs.

The awaitable runs as a task of the loop that the thread works for, and the
thread waits for it. Nothing is noted when a portal is made or when a thread is
started: which loop it is can be found out in the thread. What is known about
each library's threads stands in one class.

The C core calls ``await_from_thread``, ``await_works`` and ``refuse_portal``.
"""

from __future__ import annotations

import collections.abc
import sys
import threading
import time
import types
from collections.abc import Awaitable, Iterator
from typing import Any, NoReturn, Protocol

import sniffio

from ._impl import with_portal_run

LOOP_IS_CLOSED = "the event loop that this worker thread belongs to is closed"

# How often a waiting thread looks whether its loop has been closed, which
# drops what the loop had to do without telling anyone.
SECONDS_BETWEEN_LOOKS = 1.0


class Call:
    """An awaitable on its way to the loop."""

    __slots__ = ("awaitable", "entered")

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable
        self.entered = False

    def enter(self) -> Awaitable[Any]:
        """To be passed to with_portal_run(): the awaitable may use await_(), too."""
        self.entered = True
        return self.awaitable

    def discard(self) -> None:
        """Close a coroutine that will not run."""
        if isinstance(self.awaitable, collections.abc.Coroutine):
            self.awaitable.close()


class Host(Protocol):
    """The loop that this thread works for."""

    def runs(self) -> bool:
        """Tell whether the loop can be reached, as far as it lets us know."""

    def await_(self, call: Call) -> Any:
        """Have the loop await ``call.enter()``; wait for that."""


class TrioHost:
    """The host of a thread of ``trio.to_thread``, and of AnyIO's on Trio."""

    @classmethod
    def of_this_thread(cls) -> TrioHost | None:
        from_thread = sys.modules.get("trio.from_thread")
        if not hasattr(from_thread, "check_cancelled"):  # Trio before 0.23
            return None
        import trio

        try:
            trio.from_thread.check_cancelled()
        except trio.Cancelled:
            pass
        except RuntimeError:  # the thread is none of Trio's
            return None
        return cls(trio)

    def __init__(self, trio: types.ModuleType) -> None:
        self.trio = trio

    def runs(self) -> bool:
        return True

    def await_(self, call: Call) -> Any:
        try:
            return self.trio.from_thread.run(with_portal_run, call.enter)
        except self.trio.RunFinishedError:
            if call.entered:
                raise
            raise RuntimeError(
                "the Trio run that this worker thread belongs to has finished"
            ) from None


class AnyioHost:
    """The host of a thread of ``anyio.to_thread`` on asyncio."""

    @classmethod
    def of_this_thread(cls) -> AnyioHost | None:
        if "anyio.to_thread" not in sys.modules:
            return None
        from asyncio import CancelledError

        from anyio import from_thread  # AnyIO's threads come to be without it

        check_cancelled = getattr(from_thread, "check_cancelled", None)
        if check_cancelled is None:  # AnyIO before 4.1
            return None
        try:
            check_cancelled()
        except CancelledError:
            pass
        except RuntimeError:  # the thread is none of AnyIO's
            return None
        return cls(from_thread)

    def __init__(self, from_thread: types.ModuleType) -> None:
        self.from_thread = from_thread

    def runs(self) -> bool:
        return True

    def await_(self, call: Call) -> Any:
        from asyncio import CancelledError
        from concurrent.futures import CancelledError as CancelledByLoop

        try:
            return self.from_thread.run(with_portal_run, call.enter)
        except CancelledByLoop as error:  # before it began
            raise CancelledError(*error.args) from None
        except RuntimeError as error:
            if call.entered:
                raise
            raise RuntimeError(
                "the AnyIO run that this worker thread belongs to can't be reached"
            ) from error


class AsyncioHost:
    """The host of a thread of ``run_in_executor()``, and so of ``asyncio.to_thread()``.

    Its executor gave the thread a work item; the Future of that is chained to
    one of the loop's, which is how the loop is found.
    """

    @classmethod
    def of_this_thread(cls) -> AsyncioHost | None:
        for future in work_items_of_this_thread():
            loop = loop_that_awaits(future)
            if loop is not None:
                return cls(loop)
        return None

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def runs(self) -> bool:
        # Not asked whether it is running: see Request.check.
        return not self.loop.is_closed()

    def await_(self, call: Call) -> Any:
        request = Request(self.loop, call)
        try:
            # It runs `start` in a copy of this thread's context, of which the
            # task gets a copy in turn.
            self.loop.call_soon_threadsafe(request.start)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            raise RuntimeError(LOOP_IS_CLOSED) from None
        else:
            return request.wait()
        finally:
            if not call.entered:
                request.coro.close()


class Request:
    """What a thread has asked an asyncio loop for: to make a task of a call."""

    def __init__(self, loop: Any, call: Call) -> None:
        self.loop = loop
        self.coro = with_portal_run(call.enter)
        self.not_begun = [self.coro]  # who takes it decides what becomes of it
        self.task: Any = None
        self.failure: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()

    def start(self) -> None:
        """Begin; the loop calls it."""
        try:
            coro = self.not_begun.pop()
        except IndexError:
            return  # the thread has given up
        try:
            self.task = self.loop.create_task(coro)
            self.task.add_done_callback(self.finish)
        except BaseException as error:
            self.failure = error
            self.finished.release()

    def finish(self, _: object) -> None:
        self.finished.release()

    def wait(self) -> Any:
        """Wait in the thread; give what the task gives."""
        while not self.finished.acquire(timeout=SECONDS_BETWEEN_LOOKS):
            self.check()
        failure, task = self.failure, self.task
        self.failure = self.task = None
        try:
            if failure is not None:
                raise failure
            return task.result()
        finally:
            del failure, task  # an exception refers to this frame

    def check(self) -> None:
        """Raise if there is nothing more to wait for."""
        loop = self.loop
        if loop.is_closed() and (self.task is None or not self.task.done()):
            raise RuntimeError(
                "the event loop was closed while this thread waited for it"
            )
        # Asked only after a while: a loop stands still for a moment where
        # asyncio.run() goes on from one thing to the next.
        if not loop.is_running():
            try:
                del self.not_begun[0]
            except IndexError:
                return  # it goes on when the loop is run again
            raise RuntimeError(
                "the event loop that this worker thread belongs to is not running"
            )


def work_items_of_this_thread() -> Iterator[Any]:
    """Find what executors have this thread do, innermost first, as their Futures."""
    thread: Any = sys.modules.get("concurrent.futures.thread")
    if not hasattr(thread, "_WorkItem"):
        return
    run = thread._WorkItem.run.__code__
    for frame in frames_of_this_thread():
        if frame.f_code is run:
            item = frame.f_locals["self"]
            if item is not None:
                yield item.future


def frames_of_this_thread() -> Iterator[types.FrameType]:
    """Give the frames on the stack, those of the greenlets that wait included."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
    greenlet: Any = sys.modules.get("greenlet")
    if not hasattr(greenlet, "getcurrent"):
        return
    suspended = greenlet.getcurrent().parent
    while suspended is not None:
        frame = suspended.gr_frame
        while frame is not None:
            yield frame
            frame = frame.f_back
        suspended = suspended.parent


def loop_that_awaits(future: Any) -> Any:
    """Find the asyncio loop to which an executor's Future reports; None if none does.

    The Future is chained after the work item has been queued, and thus maybe
    after this thread has begun with it.
    """
    loop = chained_loop(future)
    while loop is None:
        under_way = is_being_chained(future)  # looked at first: it may end at any time
        loop = chained_loop(future)
        if not under_way:
            break
        time.sleep(0.0005)
    return loop


def chained_loop(future: Any) -> Any:
    """Find the loop in the closure that asyncio.wrap_future() makes a callback."""
    for callback in future._done_callbacks:
        if getattr(callback, "__module__", None) == "asyncio.futures":
            variables = dict(
                zip(callback.__code__.co_freevars, callback.__closure__, strict=True)
            )
            if "dest_loop" in variables:
                return variables["dest_loop"].cell_contents
    return None


def is_being_chained(future: Any) -> bool:
    """Tell whether a thread is between submit() and the end of wrap_future()."""
    this_thread = threading.get_ident()
    for ident, innermost in sys._current_frames().items():
        frame: types.FrameType | None = innermost if ident != this_thread else None
        while frame is not None:
            if is_on_its_way(frame) and any(
                value is future for value in frame.f_locals.values()
            ):
                return True
            frame = frame.f_back
    return False


def is_on_its_way(frame: types.FrameType) -> bool:
    """Tell whether it is a submit() of an executor, or a function of asyncio.futures."""
    code = frame.f_code
    if code.co_name == "submit" and code.co_argcount:
        # A submit() of something else may well wait for the future.
        owner = frame.f_locals.get(code.co_varnames[0])
        return isinstance(owner, sys.modules["concurrent.futures"].Executor)
    return frame.f_globals.get("__name__") == "asyncio.futures"


def other_library() -> str | None:
    """Name the library that runs here if it is none that we know."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return None
    # A name of ours is one that was inherited with a Context: no loop of ours
    # runs here.
    return None if library in ("asyncio", "trio") else library


def find_host() -> Host | None:
    """Find the loop that this thread, in which no loop of ours runs, works for."""
    if other_library() is not None:
        return None
    # In an order that is right for AnyIO's threads on Trio, which are Trio's.
    return (
        TrioHost.of_this_thread()
        or AnyioHost.of_this_thread()
        or AsyncioHost.of_this_thread()
    )


def await_from_thread(awaitable: Awaitable[Any]) -> Any:
    """Do what await_() does in a thread where no loop of ours runs."""
    call = Call(awaitable)
    try:
        host = find_host()
        if host is None:
            raise_no_host()
        return host.await_(call)
    except BaseException:
        if not call.entered:
            call.discard()
        raise


def await_works() -> bool:
    """Tell whether await_() can do something else here than raise."""
    host = find_host()
    return host is not None and host.runs()


def raise_no_host() -> NoReturn:
    """Say what await_() would need here."""
    library = other_library()
    if library is not None:
        raise RuntimeError(
            f"greenback does not support {library} in this place: there "
            "await_() needs greenback.with_portal_run(fn, *args) or "
            "greenback.with_portal_run_sync(fn, *args) around it"
        )
    raise sniffio.AsyncLibraryNotFoundError(
        "await_() found no event loop: none runs in this thread, and the thread "
        "was not started by asyncio.to_thread(), loop.run_in_executor(), "
        "trio.to_thread.run_sync() or anyio.to_thread.run_sync(), in whose "
        "threads it works. A coroutine runner that is neither asyncio nor Trio "
        "needs greenback.with_portal_run(fn, *args)"
    )


def refuse_portal() -> NoReturn:
    """Say why ensure_portal() has no task here to which it could give a portal."""
    library = other_library()
    advice = (
        "under another coroutine runner use greenback.with_portal_run() or "
        "greenback.with_portal_run_sync()"
    )
    if library is not None:
        raise RuntimeError(
            f"greenback does not support {library}: ensure_portal() works on "
            f"asyncio and Trio; {advice}"
        )
    raise sniffio.AsyncLibraryNotFoundError(
        f"ensure_portal() found no running task of asyncio or Trio; {advice}"
    )
