"""await_ in greenlets that the user's own code starts inside a step."""

from __future__ import annotations

import contextvars
import gc
import sys

import greenlet
import pytest

import greenback

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar(
    "VARIABLE", default="unset"
)


def spawn(fn, *args):
    """Run *fn* in a new greenlet until it ends or switches back here."""
    return greenlet.greenlet(fn).switch(*args)


async def value_of(runner, value):
    """Suspend, then give *value*."""
    await runner.checkpoint()
    return value


async def failing(runner):
    """Suspend, then raise."""
    await runner.checkpoint()
    raise LookupError("in the coroutine")


# --- the step's own greenlets --------------------------------------------------------


def test_one_greenlet(runner, portal_kind):
    """await_ works in a greenlet started in the step, repeatedly."""

    def in_greenlet():
        return [greenback.await_(value_of(runner, n)) for n in range(3)]

    def sync():
        before = greenback.await_(value_of(runner, "before"))
        inside = spawn(in_greenlet)
        after = greenback.await_(value_of(runner, "after"))
        return before, inside, after

    async def main():
        return await portal_kind(sync)

    assert runner.run(main) == ("before", [0, 1, 2], "after")


def test_has_portal_in_greenlet(runner):
    """has_portal() is right there, too."""
    assert runner.run_sync(spawn, greenback.has_portal) is True

    async def main():
        return spawn(greenback.has_portal)

    assert runner.run(main) is False


@pytest.mark.parametrize("depth", [2, 5, 20])
def test_nested_greenlets(runner, depth):
    """Greenlets within greenlets, each of which awaits."""

    def nest(level):
        before = greenback.await_(value_of(runner, level))
        below = spawn(nest, level - 1) if level else []
        after = greenback.await_(value_of(runner, level))
        return [before, *below, after]

    expected = [*range(depth, -1, -1), *range(depth + 1)]
    assert runner.run_sync(nest, depth) == expected


def test_exceptions_in_greenlets(runner):
    """Exceptions of the awaited thing arrive there, and leave as they should."""

    def catches():
        try:
            greenback.await_(failing(runner))
        except LookupError as error:
            return str(error)

    def lets_through():
        greenback.await_(failing(runner))

    def sync():
        assert spawn(catches) == "in the coroutine"
        with pytest.raises(LookupError, match="in the coroutine"):
            spawn(lets_through)
        return greenback.await_(value_of(runner, "fine"))

    assert runner.run_sync(sync) == "fine"


def test_interleaved_greenlets(runner):
    """Several greenlets of one step take turns between their awaits."""

    def body(name):
        log = []
        for number in range(3):
            log.append(greenback.await_(value_of(runner, f"{name}{number}")))
            greenlet.getcurrent().parent.switch("paused")
        return log

    def sync():
        greenlets = [greenlet.greenlet(body) for _ in range(3)]
        for name, one in zip("abc", greenlets, strict=True):
            assert one.switch(name) == "paused"
        for _ in range(2):
            for one in greenlets:
                assert one.switch() == "paused"
                greenback.await_(runner.checkpoint())
        return [one.switch() for one in greenlets]

    assert runner.run_sync(sync) == [[f"{name}{n}" for n in range(3)] for name in "abc"]


def test_await_in_parent_between(runner):
    """The parent awaits while its child is in the middle of something else."""

    def child():
        total = 0
        while (number := greenlet.getcurrent().parent.switch(total)) is not None:
            total += greenback.await_(value_of(runner, number))
        return total

    def sync():
        one = greenlet.greenlet(child)
        seen = [one.switch()]
        for number in (1, 2, 3):
            seen.append(one.switch(greenback.await_(value_of(runner, number))))
        return seen, one.switch(None)

    assert runner.run_sync(sync) == ([0, 1, 3, 6], 6)


def test_several_tasks(runner):
    """Tasks with greenlets of their own do not mix them up."""

    def in_greenlet(number):
        return [greenback.await_(value_of(runner, (number, n))) for n in range(4)]

    async def task(number):
        await greenback.ensure_portal()
        return spawn(spawn, in_greenlet, number)

    async def main():
        return await runner.run_concurrently(*[lambda n=n: task(n) for n in range(10)])

    assert runner.run(main) == [[(n, k) for k in range(4)] for n in range(10)]


def test_greenlet_in_awaited_coroutine(runner):
    """A coroutine that await_ drives starts greenlets that await."""

    async def coroutine(depth):
        await runner.checkpoint()
        if depth:
            return spawn(lambda: greenback.await_(coroutine(depth - 1)))
        return "bottom"

    assert runner.run_sync(lambda: greenback.await_(coroutine(4))) == "bottom"


def test_greenlet_across_native_suspensions(runner):
    """A greenlet's parent stays the right one while the task awaits natively."""

    def counts():
        return [greenlet.getcurrent().parent.switch(number) for number in range(3)]

    async def with_greenlet():
        await greenback.ensure_portal()
        one = greenlet.greenlet(counts)
        seen = [one.switch()]
        for answer in ("a", "b"):
            await runner.checkpoint()
            seen.append(one.switch(answer))
        await runner.checkpoint()
        return seen, one.switch("c")

    async def in_await():
        await greenback.ensure_portal()
        return [greenback.await_(value_of(runner, number)) for number in range(5)]

    async def main():
        return await runner.run_concurrently(
            with_greenlet, in_await, with_greenlet, in_await, with_greenlet
        )

    results = runner.run(main)
    assert results[0::2] == [([0, 1, 2], ["a", "b", "c"])] * 3
    assert results[1::2] == [[0, 1, 2, 3, 4]] * 2


def test_cancelled_in_greenlet(runner):
    """Cancellation arrives in the greenlet that waits; clean-up may await."""
    log = []

    def in_greenlet():
        try:
            greenback.await_(runner.sleep_forever())
        except runner.cancelled_exc:
            log.append("cancelled")
            with runner.cleanup_shield():
                log.append(greenback.await_(value_of(runner, "clean-up")))
            raise

    async def task():
        await greenback.ensure_portal()
        try:
            spawn(in_greenlet)
        finally:
            log.append("task")

    async def main():
        child = runner.spawn(task)
        await runner.settle()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()

    runner.run(main)
    assert log == ["cancelled", "clean-up", "task"]


# --- contexts -------------------------------------------------------------------------


def test_context_of_a_greenlet(runner):
    """A greenlet keeps its own context across its suspensions."""

    def in_greenlet():
        seen = [VARIABLE.get()]
        VARIABLE.set("greenlet")
        greenback.await_(runner.checkpoint())
        seen.append(VARIABLE.get())
        greenback.await_(runner.checkpoint())
        seen.append(VARIABLE.get())
        return seen

    def sync():
        VARIABLE.set("task")
        one = greenlet.greenlet(in_greenlet)
        one.gr_context = contextvars.copy_context()
        inside = one.switch()
        return inside, VARIABLE.get()

    inside, outside = runner.run_sync(sync)
    assert inside == ["task", "greenlet", "greenlet"]
    assert outside == "task"


def test_context_shared_with_a_greenlet(runner):
    """A greenlet given the task's very context shares it with the task."""

    def in_greenlet():
        greenback.await_(runner.checkpoint())
        seen = VARIABLE.get()
        VARIABLE.set("greenlet")
        greenback.await_(runner.checkpoint())
        return seen, VARIABLE.get()

    async def main():
        await greenback.ensure_portal()
        VARIABLE.set("task")
        one = greenlet.greenlet(in_greenlet)
        # SQLAlchemy does the same for each of its greenlets.
        one.gr_context = greenlet.getcurrent().gr_context
        assert one.switch() == ("task", "greenlet")
        first = VARIABLE.get()
        await runner.checkpoint()
        return first, VARIABLE.get()

    assert runner.run(main) == ("greenlet", "greenlet")


def test_empty_context_of_a_greenlet(runner):
    """A greenlet starts with an empty context by default; the task keeps its own."""

    def in_greenlet():
        seen = VARIABLE.get()
        VARIABLE.set("greenlet")
        # Without a context of its own, asyncio's primitives still work.
        greenback.await_(runner.checkpoint())
        return seen, VARIABLE.get()

    def sync():
        VARIABLE.set("task")
        return spawn(in_greenlet), VARIABLE.get()

    assert runner.run_sync(sync) == (("unset", "greenlet"), "task")


# --- greenlets that outlive their step ------------------------------------------------


def test_greenlet_outlives_its_step(runner):
    """Resumed outside of the portal, await_ there is a clear error."""
    box = []

    def in_greenlet():
        greenback.await_(runner.checkpoint())
        greenlet.getcurrent().parent.switch("out")
        try:
            greenback.await_(runner.checkpoint())
        except BaseException as error:
            return error

    async def with_portal():
        def sync():
            one = greenlet.greenlet(in_greenlet)
            box.append(one)
            assert one.switch() == "out"

        await greenback.with_portal_run_sync(sync)

    async def main():
        await with_portal()
        (one,) = box
        assert not greenback.has_portal()
        # Its parent has ended, so that its result arrives here.
        one.parent = greenlet.getcurrent()
        error = one.switch()
        assert isinstance(error, RuntimeError), error
        await runner.checkpoint()
        return "fine"

    assert runner.run(main) == "fine"


def test_greenlet_of_another_task(runner):
    """Resumed in a step of another portal, it awaits for that one, or refuses."""
    box = []

    def in_greenlet():
        greenlet.getcurrent().parent.switch("out")
        try:
            return greenback.await_(value_of(runner, "awaited"))
        except RuntimeError as error:
            return str(error)

    async def first():
        await greenback.ensure_portal()
        one = greenlet.greenlet(in_greenlet)
        box.append(one)
        assert one.switch() == "out"
        greenback.await_(runner.checkpoint())

    async def second():
        await greenback.ensure_portal()
        (one,) = box
        one.parent = greenlet.getcurrent()
        result = one.switch()
        greenback.await_(runner.checkpoint())
        return result

    async def main():
        await runner.spawn(first).join()
        return await runner.spawn(second).join()

    result = runner.run(main)
    assert result == "awaited" or "greenlet" in result


def test_task_ends_while_greenlet_is_paused(runner):
    """A paused greenlet that nobody resumes is unwound with its task."""
    log = []

    def in_greenlet():
        try:
            greenback.await_(runner.checkpoint())
            greenlet.getcurrent().parent.switch("out")
        finally:
            log.append("unwound")

    def sync():
        one = greenlet.greenlet(in_greenlet)
        assert one.switch() == "out"
        greenback.await_(runner.checkpoint())

    runner.run_sync(sync)
    gc.collect()
    assert log == ["unwound"]


# --- switching where one should not ----------------------------------------------------


class Doomed:
    """A task that may lose its greenlet, and with that its coroutine."""

    def __init__(self, runner, fn):
        self.runner = runner
        self.fn = fn

    async def __aenter__(self):
        if self.runner.library == "trio":
            import trio

            self.manager = trio.open_nursery()
            self.nursery = await self.manager.__aenter__()
            self.nursery.start_soon(self.fn)
        else:
            self.child = self.runner.spawn(self.fn)
        return self

    async def __aexit__(self, *error):
        if self.runner.library == "trio":
            self.nursery.cancel_scope.cancel()
            try:
                return await self.manager.__aexit__(*error)
            except ExceptionGroup as group:
                assert group.split(RuntimeError)[1] is None, group
                return True
        elif error[0] is None:
            self.child.cancel()
            with pytest.raises((RuntimeError, self.runner.ChildCancelled)):
                await self.child.join()


def suspended_greenlet(runner):
    """Make a task whose greenlet will wait in await_."""
    box = []
    outcome = []

    def in_greenlet():
        try:
            outcome.append(greenback.await_(runner.sleep_forever()))
        except BaseException as error:
            outcome.append(error)
            raise
        return "ended"

    async def task():
        await greenback.ensure_portal()
        box.append(greenlet.greenlet(in_greenlet))
        box[0].switch()

    return Doomed(runner, task), box, outcome


@pytest.mark.filterwarnings("ignore:.*was dropped while suspended:ResourceWarning")
@pytest.mark.parametrize("how", ["switch", "throw", "throw-exit"])
def test_switch_into_a_suspended_greenlet(runner, how):
    """Its await_ raises RuntimeError (or what was thrown); all goes on."""

    async def main():
        task, box, outcome = suspended_greenlet(runner)
        async with task:
            await runner.settle()
            (one,) = box
            assert not outcome
            one.parent = greenlet.getcurrent()
            if how == "switch":
                with pytest.raises(RuntimeError):
                    one.switch("surprise")
                assert isinstance(outcome[0], RuntimeError)
            elif how == "throw":
                with pytest.raises(KeyError):
                    one.throw(KeyError("thrown"))
                assert isinstance(outcome[0], KeyError)
            else:
                one.throw()
                assert isinstance(outcome[0], greenlet.GreenletExit)
            assert one.dead
        await greenback.ensure_portal()
        return greenback.await_(value_of(runner, "fine"))

    assert runner.run(main) == "fine"


@pytest.mark.filterwarnings("ignore:.*was dropped while suspended:ResourceWarning")
def test_switch_into_the_tasks_own_greenlet(runner):
    """The same for sync code of the task itself, suspended in await_."""
    box = []
    outcome = []

    async def task():
        await greenback.ensure_portal()
        box.append(greenlet.getcurrent())
        try:
            greenback.await_(runner.sleep_forever())
        except BaseException as error:
            outcome.append(error)
            raise

    async def main():
        async with Doomed(runner, task):
            await runner.settle()
            (one,) = box
            if one is greenlet.getcurrent():
                # This engine runs steps in the loop's own greenlet.
                return
            for attempt in (
                lambda: one.switch("surprise"),
                lambda: one.throw(KeyError()),
            ):
                try:
                    attempt()
                except (RuntimeError, KeyError):
                    pass
            assert isinstance(outcome[0], RuntimeError)

    runner.run(main)


def test_step_left_by_a_switch(runner):
    """A greenlet that switches to the loop's greenlet in a step: an error."""
    loops_greenlet = []

    def sync():
        greenback.await_(runner.checkpoint())
        if loops_greenlet[0] is not greenlet.getcurrent():
            loops_greenlet[0].switch("surprise")
        raise RuntimeError("nothing to leave, or came back")

    async def task():
        await greenback.ensure_portal()
        sync()

    async def main():
        loops_greenlet.append(greenlet.getcurrent())
        async with Doomed(runner, task):
            await runner.settle()
        await greenback.ensure_portal()
        return greenback.await_(value_of(runner, "fine"))

    assert runner.run(main) == "fine"


# --- tracers of greenlet ----------------------------------------------------------------


def test_greenlet_tracer_is_kept(runner):
    """A tracer set by greenlet.settrace() stays and sees the user's switches."""
    events = []

    def tracer(event, args):
        events.append((event, *args))

    def in_greenlet():
        greenback.await_(runner.checkpoint())
        return "ended"

    def sync():
        one = greenlet.greenlet(in_greenlet)
        here = greenlet.getcurrent()
        previous = greenlet.settrace(tracer)
        try:
            assert one.switch() == "ended"
            assert greenlet.gettrace() is tracer
            greenback.await_(runner.checkpoint())
            assert greenlet.gettrace() is tracer
        finally:
            greenlet.settrace(previous)
        assert ("switch", here, one) in events
        assert ("switch", one, here) in events

    runner.run_sync(sync)
    assert greenlet.gettrace() is None


def test_failing_greenlet_tracer(runner):
    """A tracer that raises is taken out, as greenlet does; await_ is unharmed."""

    def tracer(event, args):
        raise KeyError("in the tracer")

    def sync():
        greenlet.settrace(tracer)
        try:
            spawn(lambda: greenback.await_(runner.checkpoint()))
        except KeyError:
            pass
        finally:
            greenlet.settrace(None)
        return greenback.await_(value_of(runner, "fine"))

    try:
        assert runner.run_sync(sync) == "fine"
    finally:
        greenlet.settrace(None)


def test_sys_settrace_in_greenlets(runner):
    """A Python tracer goes on in a greenlet after its suspension."""
    seen = []

    def tracer(frame, event, arg):
        if event == "call" and frame.f_code.co_name.startswith("marked"):
            seen.append(frame.f_code.co_name)
        return tracer

    def marked_before():
        pass

    def marked_after():
        pass

    def in_greenlet():
        marked_before()
        greenback.await_(runner.checkpoint())
        marked_after()

    previous = sys.gettrace()
    # Not in the greenlet: CPython's debug builds object to that, also natively.
    sys.settrace(tracer)
    try:
        runner.run_sync(spawn, in_greenlet)
    finally:
        sys.settrace(previous)
    assert seen == ["marked_before", "marked_after"]


# --- a hub of somebody else's ------------------------------------------------------------


class Hub:
    """Cooperative tasks on greenlets, with a hub in the middle, as in gevent."""

    def __init__(self):
        self.ready = []
        self.greenlet = greenlet.greenlet(self.loop)

    def loop(self):
        while self.ready:
            self.ready.pop(0).switch()

    def spawn(self, fn, *args):
        one = greenlet.greenlet(lambda: fn(*args), parent=self.greenlet)
        self.ready.append(one)

    def pause(self):
        self.ready.append(greenlet.getcurrent())
        self.greenlet.switch()

    def run(self):
        self.greenlet.parent = greenlet.getcurrent()
        self.greenlet.switch()


def test_hub_inside_a_step(runner):
    """A whole hub runs in a step; its tasks await in between."""
    log = []

    def sync():
        hub = Hub()

        def task(name):
            for number in range(3):
                log.append(greenback.await_(value_of(runner, (name, number))))
                hub.pause()

        for name in "abc":
            hub.spawn(task, name)
        hub.run()
        assert hub.greenlet.dead
        return greenback.await_(value_of(runner, "after"))

    assert runner.run_sync(sync) == "after"
    assert log == [(name, number) for number in range(3) for name in "abc"]


def test_loop_inside_a_hub(runner):
    """The loop itself runs in a greenlet of a hub, next to others."""
    hub = Hub()
    log = []

    def with_loop():
        def sync():
            for number in range(3):
                log.append(greenback.await_(value_of(runner, number)))
            return spawn(lambda: greenback.await_(value_of(runner, "in greenlet")))

        log.append(runner.run_sync(sync))

    def plain():
        for _ in range(3):
            log.append("plain")
            hub.pause()

    hub.spawn(plain)
    hub.spawn(with_loop)
    hub.run()
    assert [entry for entry in log if entry != "plain"] == [0, 1, 2, "in greenlet"]
    assert log.count("plain") == 3


def test_current_greenlet_stays_while_others_depend_on_it(runner):
    """Greenlets that await and pause in turn find their parent current in each step."""

    def counts():
        parent = greenlet.getcurrent().parent
        for number in range(4):
            greenback.await_(value_of(runner, number))
            assert greenlet.getcurrent().parent is parent
            parent.switch(number)
        return "end"

    async def task():
        await greenback.ensure_portal()
        one = greenlet.greenlet(counts)
        seen = []
        for _ in range(5):
            assert one.parent is greenlet.getcurrent()
            seen.append(one.switch())
            await runner.checkpoint()
        return seen

    async def main():
        return await runner.run_concurrently(*[task] * 5)

    assert runner.run(main) == [[0, 1, 2, 3, "end"]] * 5
