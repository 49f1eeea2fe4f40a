"""Each allocation in turn fails: MemoryError or success, and things go on.

usage: nomemory.py LOOP

With the greenlet engine nothing here suspends while allocations fail: the
greenlet package does not survive that by itself.
"""

import contextlib
import contextvars
import gc
import sys
import warnings
import weakref

from support import gather, pause, run, skip

import greenback

try:
    import _testcapi
except ImportError:
    skip("this interpreter has no _testcapi")

# Beyond this number of allocations in one attempt something runs in circles.
LIMIT = 5000
ATTRIBUTES = (
    *("cr_await", "cr_running", "cr_frame", "cr_code", "cr_origin"),
    *("__name__", "__qualname__"),
)
# When a Python frame ends with an error and there is no memory to link it to its
# caller's, the interpreter drops the error; if there is none to make it an object for
# a profile function, it says something else.
LOST_BY_INTERPRETER = (
    "error return without exception set",
    "returned NULL without",
    "Missing frame when calling profile function",
)
INSIDE = {}
OUTSIDE = {}


class ReadyAwaitable:
    """An awaitable that is no coroutine and has its result at once."""

    def __await__(self):
        return iter(())


class Raising:
    """An awaitable that raises."""

    def __await__(self):
        raise LookupError


async def ready():
    """Give a result at once."""
    return 1


async def fail():
    """Raise at once."""
    raise LookupError


async def nested():
    """Use await_ again."""
    greenback.await_(ready())


async def generate():
    """Yield at once."""
    yield 1
    yield 2


@contextlib.asynccontextmanager
async def manage():
    """Enter and leave at once."""
    yield 1


auto_ready = greenback.autoawait(ready)


def case(table, *expected, prepare=lambda: None):
    """Register a Python function; *expected* errors count as success."""

    def register(fn):
        table[fn.__name__] = (fn, expected, prepare, LOST_BY_INTERPRETER)
        return fn

    return register


def direct(table, name, fn, *expected, prepare):
    """Register a function of the package, called with no Python frame between."""
    table[name] = (fn, expected, prepare, ())


direct(INSIDE, "coroutine", greenback.await_, prepare=ready)
direct(INSIDE, "awaitable", greenback.await_, prepare=ReadyAwaitable)
direct(INSIDE, "failing", greenback.await_, LookupError, prepare=fail)
direct(INSIDE, "raising", greenback.await_, LookupError, prepare=Raising)
direct(INSIDE, "nonsense", greenback.await_, TypeError, prepare=object)
direct(INSIDE, "iter_nonsense", greenback.async_iter, TypeError, prepare=object)
direct(INSIDE, "iter", greenback.async_iter, prepare=generate)
direct(INSIDE, "next", next, prepare=lambda: greenback.async_iter(generate()))
direct(INSIDE, "query", greenback.has_portal, prepare=object)
direct(OUTSIDE, "no_portal", greenback.await_, RuntimeError, prepare=ready)
direct(OUTSIDE, "query", greenback.has_portal, prepare=lambda: None)
direct(
    OUTSIDE,
    "repr",
    repr,
    prepare=lambda: greenback.with_portal_run(ready),
)


def task_maker(*args):
    """Make what takes anything for a task."""
    return greenback._core.TaskMaker(id, 0, *args)


def ready_again():
    """Do as ready() does, and close what was made before: nobody awaits these."""
    while made:
        made.pop().close()
    made.append(ready())
    return made[0]


made = []


def open_tree():
    """Make what makes the tasks of a tree that is open here; and a coroutine."""
    variable = contextvars.ContextVar("tree")
    maker = task_maker(variable, weakref.WeakKeyDictionary())
    variable.set(greenback._core.TreeMark(maker, None))
    return maker, ready_again()


direct(OUTSIDE, "factory", task_maker(), prepare=ready_again)
direct(OUTSIDE, "factory_nonsense", task_maker(), prepare=object)


@case(OUTSIDE, prepare=open_tree)
def tree(both):
    maker, coro = both
    maker(coro)


@case(OUTSIDE, TypeError, prepare=open_tree)
def tree_stranger(both):
    maker, coro = both
    maker(coro, context=contextvars.Context())


@case(INSIDE, prepare=nested)
def await_nested(coro):
    greenback.await_(coro)


@case(INSIDE)
def has_portal(_):
    greenback.has_portal()


@case(INSIDE)
def call_autoawait(_):
    auto_ready()


@case(INSIDE, prepare=generate)
def iterate(agen):
    for _ in greenback.async_iter(agen):
        pass


@case(INSIDE, prepare=lambda: greenback.async_iter(generate()))
def iterator_methods(iterator):
    next(iterator)
    iterator.send(None)
    iterator.close()


@case(INSIDE, prepare=manage)
def enter_and_leave(manager):
    with greenback.async_context(manager):
        pass


@case(INSIDE)
def nested_portal(_):
    coro = greenback.with_portal_run_sync(int)
    try:
        coro.send(None)
    except StopIteration:
        pass
    finally:
        coro.close()


@case(OUTSIDE)
def make_portal(_):
    greenback.with_portal_run(ready).close()


@case(OUTSIDE)
def make_sync_portal(_):
    greenback.with_portal_run_sync(int, "3", base=5).close()


@case(OUTSIDE, prepare=lambda: greenback.with_portal_run(ready))
def look_at_portal(coro):
    try:
        repr(coro)
        for name in ATTRIBUTES:
            getattr(coro, name)
    finally:
        coro.close()


@case(OUTSIDE, prepare=lambda: greenback.with_portal_run(ready))
def misuse_portal(coro):
    try:
        coro.send(1)
    except TypeError:
        pass
    finally:
        coro.close()


class Trap:
    """An awaitable that suspends."""

    def __await__(self):
        yield


def below_c_frames(levels):
    """Wait where the slice of the C stack is a large one."""
    if levels == 0:
        greenback.await_(Trap())
    else:
        list(map(below_c_frames, [levels - 1]))


if greenback.engine == "direct":

    @case(OUTSIDE, prepare=lambda: greenback.with_portal_run_sync(below_c_frames, 60))
    def suspend_and_resume(coro):
        coro.send(None)
        try:
            coro.send(None)
        except StopIteration:
            pass


# Debug builds assert that the interpreter has switched its own events off for a
# function, which it has not if there was no memory for that.
if greenback.engine == "direct" and not hasattr(sys, "gettotalrefcount"):

    def wait(_):
        """Wait, as the key function of a sort."""
        greenback.await_(Trap())
        return 0

    def profiled():
        """Wait below C functions, where a profiler has to be told of it."""
        sorted([1, 2], key=wait)

    def prepare_profiled():
        """Make what is to be profiled; from now on something is."""
        coro = greenback.with_portal_run_sync(profiled)
        sys.setprofile(lambda *_: None)
        return coro

    @case(OUTSIDE, prepare=prepare_profiled)
    def suspend_and_resume_profiled(coro):
        try:
            for _ in range(3):
                coro.send(None)
        except StopIteration:
            pass
        finally:
            sys.setprofile(None)


def attempt(number, fn, expected, prepare, lost):
    """Let allocation *number* fail; return what came of it."""
    argument = prepare()
    error = None
    # Makes the frame object now: the interpreter loses the exception otherwise.
    sys._getframe()
    _testcapi.set_nomemory(number, number + 1)
    try:
        fn(argument)
    except BaseException as caught:
        error = caught
    finally:
        _testcapi.remove_mem_hooks()
    if hasattr(argument, "close"):
        argument.close()
    failed = isinstance(error, MemoryError) or (
        isinstance(error, SystemError) and any(text in str(error) for text in lost)
    )
    if error is not None and not failed and not isinstance(error, expected):
        raise error
    return failed


def check(table):
    """Fail allocations 0, 1, 2, ... in each case until no more are made; count them."""
    failures = 0
    for case in table.values():
        for _ in range(3):
            assert not attempt(LIMIT, *case)
        quiet = number = 0
        while quiet < 20:
            assert number < LIMIT
            if attempt(number, *case):
                failures += 1
                quiet = 0
            else:
                quiet += 1
            number += 1
        assert not attempt(LIMIT, *case)
    assert failures, "no allocation failed"
    return failures


async def main(loop):
    """Run all cases, then see that portals still work."""
    # What an attempt left unfinished needs nobody to finish it.
    sys.set_asyncgen_hooks(firstiter=None, finalizer=None)
    failures = check(OUTSIDE)

    async def one():
        nonlocal failures
        await greenback.ensure_portal()
        for _ in range(2):
            failures += check(INSIDE)
            greenback.await_(pause(loop))

    await gather(loop, one)
    await gather(loop, one)
    assert not greenback.has_portal()
    print(f"{failures} allocations failed")


def unraisable(info):
    """Report what may not go wrong in finalizers, lack of memory aside."""
    if not issubclass(info.exc_type, MemoryError):
        sys.__unraisablehook__(info)


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    sys.unraisablehook = unraisable
    # A coroutine for which there is no memory to await it is just that.
    warnings.filterwarnings("ignore", ".*was never awaited", RuntimeWarning)
    run(loop_arg, main, loop_arg)
    gc.collect()
    print("OK")
