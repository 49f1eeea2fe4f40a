"""Rare paths: refusals, re-entrancy, unusual objects."""

import asyncio
import collections.abc
import contextvars
import gc
import inspect
import pickle
import sys
import types
import warnings

import greenlet
import pytest
import sniffio

import greenback
from greenback import _core, await_, bestow_portal, with_portal_run_sync


@types.coroutine
def trap(value=None):
    return (yield value)


def finish(coro):
    """Drive a coroutine that does not yield to its end; return its result."""
    with pytest.raises(StopIteration) as stop:
        coro.send(None)
    return stop.value.value


# --- methods of a coroutine that are kept or called by others than the loop


def test_methods_of_a_coroutine_that_has_ended():
    """Methods that were bound while there was a portal are a coroutine's afterwards."""
    coro = with_portal_run_sync(lambda: await_(trap("waits")))
    send, throw, close, get_iterator = (
        coro.send,
        coro.throw,
        coro.close,
        coro.__await__,
    )
    iterator = get_iterator()
    assert send(None) == "waits"
    with pytest.raises(StopIteration):
        send(None)
    for call in (
        lambda: send(None),
        lambda: throw(LookupError()),
        lambda: next(iterator),
        lambda: next(get_iterator()),
    ):
        with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
            call()
    assert close() is None


@pytest.mark.parametrize("end", ["return", "raise", "throw", "close"])
def test_step_under_a_profiler(end):
    """A profile function may see the very call in which the coroutine ends."""

    def sync():
        await_(trap("waits"))
        if end == "raise":
            raise LookupError

    coro = with_portal_run_sync(sync)
    assert coro.send(None) == "waits"
    expected = {"return": StopIteration, "raise": LookupError, "throw": KeyError}
    sys.setprofile(lambda *event: None)
    try:
        if end == "close":
            coro.close()
        else:
            with pytest.raises(expected[end]):
                if end == "throw":
                    coro.throw(KeyError())
                else:
                    coro.send(None)
    finally:
        sys.setprofile(None)


# --- what goes on yielding when nobody listens


class Stubborn:
    """Yields again whatever it is told; notes how it ends."""

    def __init__(self):
        self.heard = []
        self.closed = False

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return "trap"

    def send(self, value):
        return "trap"

    def throw(self, *exc):
        self.heard.append(exc[-1])
        return "trap"

    def close(self):
        self.closed = True


def refused_in_finalizer(awaitable):
    """The error of await_(awaitable) in a finalizer of the garbage collector."""
    errors = []

    class InCycle:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            try:
                await_(awaitable)
            except BaseException as error:
                errors.append(error)

    def sync():
        InCycle()
        gc.collect()

    finish(with_portal_run_sync(sync))
    (error,) = errors
    return error


def test_awaitable_that_goes_on_regardless_is_closed():
    awaitable = Stubborn()
    error = refused_in_finalizer(awaitable)
    assert isinstance(error, RuntimeError)
    assert "has been closed" in str(error)
    (heard,) = awaitable.heard
    assert "garbage collector" in str(heard)
    assert awaitable.closed


def test_awaitable_without_throw_and_close():
    class Bare:
        def __await__(self):
            return iter(["trap"])

    error = refused_in_finalizer(Bare())
    assert isinstance(error, RuntimeError)
    assert "garbage collector" in str(error)


def test_close_that_fails_is_reported(monkeypatch):
    class Failing(Stubborn):
        def close(self):
            raise LookupError("in close")

    reports = []
    monkeypatch.setattr("sys.unraisablehook", reports.append)
    error = refused_in_finalizer(Failing())
    assert "has been closed" in str(error)
    assert [str(report.exc_value) for report in reports] == ["in close"]


# --- functions in C


async def async_method(self, number):
    return type(self).__name__, number


class Host:
    run = greenback.with_portal_run_sync
    through = greenback.autoawait(async_method)


def test_functions_are_methods_in_classes():
    host = Host()
    coro = host.run()  # the instance is the function to be called
    with pytest.raises(TypeError, match="not callable"):
        coro.send(None)
    assert finish(with_portal_run_sync(host.through, 3)) == ("Host", 3)
    assert finish(with_portal_run_sync(Host.through, host, 4)) == ("Host", 4)
    assert Host.run is greenback.with_portal_run_sync


def test_functions_look_like_functions():
    for function in (
        greenback.await_,
        greenback.with_portal_run,
        greenback.with_portal_run_sync,
    ):
        assert repr(function).startswith(f"<function {function.__qualname__} at ")
        assert pickle.loads(pickle.dumps(function)) is function
        assert "Parameters" in inspect.getdoc(function)
        assert function.__annotations__["return"] == "T"
    function = greenback.autoawait(async_method)
    function.note = "kept"
    assert function.note == "kept"
    assert function.__wrapped__ is async_method
    function.__annotations__ = {"number": int}
    assert function.__annotations__ == {"number": int}
    with pytest.raises(AttributeError):
        del function.__annotations__
    del function.__qualname__
    assert repr(function) == f"<function around {async_method!r}>"
    with pytest.raises(TypeError):
        type(function)()


def test_autoawait_of_an_object_without_a_name():
    class Callable:
        async def __call__(self):
            return "called"

    function = greenback.autoawait(Callable())
    assert finish(with_portal_run_sync(function)) == "called"


# --- wrappers that were not initialised


def test_wrappers_need_init():
    def sync():
        with pytest.raises(RuntimeError, match="was not called"):
            greenback.async_context.__new__(greenback.async_context).__enter__()
        with pytest.raises(RuntimeError, match="not entered"):
            greenback.async_context(None).__exit__(None, None, None)
        with pytest.raises(TypeError, match="3 arguments"):
            greenback.async_context(None).__exit__()
        with pytest.raises(RuntimeError, match="was not called"):
            next(greenback.async_iter.__new__(greenback.async_iter))

    finish(with_portal_run_sync(sync))
    assert greenback.async_iter[int].__args__ == (int,)
    assert greenback.async_context[int].__args__ == (int,)


# --- coroutines with a portal, at the wrong moment


def test_step_of_a_coroutine_bestowed_in_this_very_step(asyncio_runner):
    async def main():
        task = asyncio.current_task()
        coro = task.get_coro()
        bestow_portal(task)
        with pytest.raises(ValueError, match="coroutine already executing"):
            coro.send(None)
        with pytest.raises(ValueError, match="coroutine already executing"):
            coro.close()
        await asyncio.sleep(0)
        return greenback.has_portal()

    assert asyncio_runner.run(main)


def test_throw_of_a_class_whose_instances_are_no_exceptions():
    class Strange(Exception):
        def __new__(cls, *args):
            return 3

    coro = with_portal_run_sync(await_, trap())
    coro.send(None)
    with pytest.raises(TypeError, match="should have returned an instance"):
        coro.throw(Strange)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(LookupError) as caught:
            coro.throw(LookupError, ("one", "two"))
    assert caught.value.args == ("one", "two")


# --- coroutines in stand-ins


class Delegating(collections.abc.Coroutine):
    """A coroutine in Python, around a real one."""

    def __init__(self, coro):
        self.coro = coro
        self.__name__ = "delegating"
        self.send, self.throw, self.close = coro.send, coro.throw, coro.close

    def send(self, value):
        raise NotImplementedError

    def throw(self, *exc):
        raise NotImplementedError

    def __await__(self):
        return self


def test_stand_in_forwards(asyncio_runner):
    async def program():
        await asyncio.sleep(0)
        return await_(asyncio.sleep(0, "result"))

    async def main():
        coro = Delegating(program())
        task = asyncio.create_task(coro)
        if task.get_coro() is None:
            pytest.skip("run eagerly, to the end")
        bestow_portal(task)
        stand_in = task.get_coro()
        assert type(stand_in) is _core.StandIn
        assert stand_in.__wrapped__ is coro
        assert isinstance(stand_in, types.CoroutineType)
        assert repr(stand_in) == repr(coro)
        stand_in.__name__ = "renamed"
        assert coro.__name__ == stand_in.__name__ == "renamed"
        del stand_in.__name__
        assert not hasattr(coro, "__name__")
        assert stand_in.__name__ == "Delegating"
        with pytest.raises(AttributeError):
            stand_in.no_such_attribute  # noqa: B018
        assert await task == "result"
        # Without its portal it still forwards.
        with pytest.raises(RuntimeError, match="cannot reuse"):
            stand_in.throw(LookupError("late"))
        stand_in.close()

    asyncio_runner.run(main)


# --- switches by others


@pytest.mark.skipif(
    greenback.engine == "direct", reason="steps run in the loop's own greenlet"
)
def test_step_left_for_the_loops_greenlet():
    """Whoever switches to the loop's greenlet in a step gets that step failed."""
    log = []

    def sync():
        try:
            greenlet.getcurrent().parent.switch("out of the step")
        except BaseException as error:
            log.append(type(error).__name__)
            raise

    coro = with_portal_run_sync(sync)
    with pytest.raises(RuntimeError, match="left by a switch"):
        coro.send(None)
    assert log == ["GreenletExit"]
    assert coro.cr_frame is None
    # and the next portal is not troubled
    assert finish(with_portal_run_sync(lambda: "fine")) == "fine"


def test_loop_in_a_greenlet():
    """The loop may run in any greenlet, and some engines allow changes at each step."""

    def sync():
        return [await_(trap(number)) for number in range(3)]

    coro = with_portal_run_sync(sync)
    assert greenlet.greenlet(coro.send).switch(None) == 0
    assert coro.send("a") == 1
    if greenback.engine == "direct":
        # Suspended on the main greenlet's stack, which no other can hold.
        with pytest.raises(RuntimeError, match="in the greenlet that suspended it"):
            greenlet.greenlet(coro.send).switch("x")
        assert coro.send("b") == 2
    else:
        assert greenlet.greenlet(coro.send).switch("b") == 2
    with pytest.raises(StopIteration) as stop:
        coro.send("c")
    assert stop.value.value == ["a", "b", "c"]


def test_own_context_under_an_unknown_runner():
    """Without a loop to ask, a Context of the user's own belongs to the step."""

    def sync():
        def inside():
            assert greenback.has_portal()
            return [await_(trap(number)) for number in range(2)]

        return contextvars.copy_context().run(inside)

    coro = with_portal_run_sync(sync)
    assert coro.send(None) == 0
    assert coro.send("a") == 1
    with pytest.raises(StopIteration) as stop:
        coro.send("b")
    assert stop.value.value == ["a", "b"]


def test_callback_of_a_loop_inside_a_step():
    """What a loop calls outside of its tasks has no portal, whatever runs the loop."""
    seen = []

    def callback():
        seen.append(greenback.has_portal())
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            await_(trap())

    def sync():
        loop = asyncio.new_event_loop()
        try:
            loop.call_soon(callback)
            loop.call_soon(loop.stop)
            loop.run_forever()
        finally:
            loop.close()
        return greenback.has_portal()

    assert finish(with_portal_run_sync(sync))
    assert seen == [False]
