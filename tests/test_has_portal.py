"""has_portal() tells whether await_ would work, and never raises."""

import asyncio
import contextvars
import functools
import threading

import pytest

from greenback import (
    await_,
    bestow_portal,
    ensure_portal,
    has_portal,
    with_portal_run,
    with_portal_run_sync,
)


def test_no_loop():
    assert has_portal() is False
    assert has_portal(None) is False
    assert has_portal(task=None) is False


def test_current_task(runner):
    async def main():
        task = runner.current_task()
        assert (has_portal(), has_portal(task)) == (False, False)
        await ensure_portal()
        assert (has_portal(), has_portal(task)) == (True, True)
        assert await_(in_coroutine(task)) == (True, True)
        return task

    async def in_coroutine(task):
        await runner.checkpoint()
        return has_portal(), has_portal(task)

    task = runner.run(main)
    assert has_portal(task) is False
    assert has_portal() is False


def test_bestowed_on_self(runner):
    async def main():
        task = runner.current_task()
        bestow_portal(task)
        assert (has_portal(), has_portal(task)) == (False, False)
        await runner.checkpoint()
        assert (has_portal(), has_portal(task)) == (True, True)

    runner.run(main)


@pytest.mark.parametrize("run", [with_portal_run, with_portal_run_sync])
def test_during_a_run(runner, run):
    async def main():
        task = runner.current_task()

        def sync():
            assert (has_portal(), has_portal(task)) == (True, True)
            await_(runner.checkpoint())
            assert (has_portal(), has_portal(task)) == (True, True)

        async def body():
            sync()

        await run(body if run is with_portal_run else sync)
        assert (has_portal(), has_portal(task)) == (False, False)

    runner.run(main)


def test_other_task(runner):
    async def main():
        proceed = runner.Event()
        seen = []

        async def body():
            if runner.eager:
                await runner.checkpoint()
            seen.append(has_portal())
            await proceed.wait()
            seen.append(has_portal())

        bestowed, plain = runner.spawn(body), runner.spawn(body)
        assert not has_portal(bestowed.task)
        bestow_portal(bestowed.task)
        # It is active before the task can ask.
        assert has_portal(bestowed.task)
        assert not has_portal(plain.task)
        assert not has_portal()
        await runner.settle()
        assert sorted(seen) == [False, True]
        assert has_portal(bestowed.task)

        # A portal that comes when the task is suspended.
        bestow_portal(plain.task)
        assert has_portal(plain.task)
        assert not has_portal()
        proceed.set()
        await bestowed.join()
        await plain.join()
        assert sorted(seen[2:]) == [True, True]
        await runner.settle()
        assert not has_portal(bestowed.task)
        assert not has_portal(plain.task)

    runner.run(main)


def test_other_task_in_a_run(runner):
    async def main():
        proceed = runner.Event()
        child = runner.spawn(with_portal_run_sync, await_, proceed.wait())
        await runner.settle()
        assert has_portal(child.task)
        assert not has_portal()
        proceed.set()
        await child.join()

    runner.run(main)


def test_task_of_another_loop_and_thread(runner):
    async def main():
        await ensure_portal()
        task = runner.current_task()
        seen = []

        def in_thread():
            seen.append((has_portal(), has_portal(task)))

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert seen == [(False, True)]
        assert has_portal()

    runner.run(main)


def test_callback(asyncio_runner):
    async def main():
        await ensure_portal()
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        answers = []

        def callback(done):
            answers.append((has_portal(), has_portal(task)))
            done.set_result(None)

        for schedule in loop.call_soon, functools.partial(loop.call_later, 0):
            done = loop.create_future()
            schedule(callback, done)
            await done
            done = loop.create_future()
            schedule(callback, done)
            await_(done)
        assert answers == [(False, True)] * 4

    asyncio_runner.run(main)


def test_finished_task(runner):
    async def at_once():
        pass

    async def returns():
        await ensure_portal()

    async def raises():
        await ensure_portal()
        raise KeyError

    async def is_cancelled():
        await ensure_portal()
        await runner.sleep_forever()

    async def main():
        for fn, error in [
            (at_once, None),
            (returns, None),
            (raises, KeyError),
            (is_cancelled, runner.ChildCancelled),
        ]:
            child = runner.spawn(fn)
            await runner.settle()
            if fn is is_cancelled:
                assert has_portal(child.task)
                child.cancel()
            if error is None:
                await child.join()
            else:
                with pytest.raises(error):
                    await child.join()
            await runner.settle()
            assert not has_portal(child.task)

    runner.run(main)


def test_generator_and_async_generator(runner):
    def generator():
        yield has_portal()

    async def async_generator():
        yield has_portal()

    async def main():
        async def both():
            return list(generator()), [value async for value in async_generator()]

        assert await both() == ([False], [False])
        await ensure_portal()
        assert await both() == ([True], [True])
        assert await_(both()) == ([True], [True])

    runner.run(main)


def test_asking_about_others_from_a_run(runner):
    """with_portal_run finds out its task late; questions about others don't mislead it."""

    async def main():
        others = [runner.spawn(runner.sleep_forever) for _ in range(2)]
        await runner.settle()
        bestow_portal(others[1].task)

        def answers():
            me = runner.current_task()
            asked = [has_portal(task) for task in (others[0].task, me, others[1].task)]
            await_(runner.checkpoint())
            return [*asked, has_portal(me), has_portal()]

        def sync():
            return answers(), contextvars.copy_context().run(answers)

        result = await with_portal_run_sync(sync)
        for other in others:
            other.cancel()
            with pytest.raises(runner.ChildCancelled):
                await other.join()
        return result

    expected = [False, True, True, True, True]
    assert runner.run(main) == (expected, expected)
