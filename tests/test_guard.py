"""forbid_await(): sections in which a task must not be suspended."""

import inspect

import pytest

from greenback import (
    await_,
    ensure_portal,
    forbid_await,
    with_portal_run,
)


async def nothing():
    return "nothing"


def test_sync_code_can_not_wait(runner, portal_kind):
    """await_ raises what was given as the reason, with the place of the section."""

    def sync():
        with forbid_await("the counter is being changed"):
            line = inspect.currentframe().f_lineno - 1
            with pytest.raises(RuntimeError) as caught:
                await_(runner.checkpoint())
        return str(caught.value), f"{__file__}, line {line})"

    async def main():
        return await portal_kind(sync)

    message, place = runner.run(main)
    assert "the counter is being changed" in message
    assert message.endswith(place)


def test_coroutine_can_not_wait(runner):
    """Nor can an await of the task's own."""

    async def main():
        await ensure_portal()
        with forbid_await("why"), pytest.raises(RuntimeError, match="why"):
            await runner.checkpoint()
        await runner.checkpoint()
        return "goes on"

    assert runner.run(main) == "goes on"


def test_other_tasks_do_not_run(runner):
    """What others would see is as before; they run after the section."""
    log = []

    async def other():
        for _ in range(3):
            log.append("other")
            await runner.checkpoint()

    def callback():
        await_(runner.checkpoint())

    async def main():
        await ensure_portal()
        child = runner.spawn(other)
        with forbid_await():
            log.append("begin")
            for _ in range(3):
                with pytest.raises(RuntimeError, match="must not be suspended"):
                    callback()
                with pytest.raises(RuntimeError, match="must not be suspended"):
                    await runner.checkpoint()
            log.append("end")
        await child.join()

    runner.run(main)
    assert log.index("end") == log.index("begin") + 1
    assert log.count("other") == 3


def test_what_is_ready(runner):
    """Awaiting without waiting is no suspension."""

    async def main():
        await ensure_portal()
        with forbid_await():
            return await_(nothing()), await nothing()

    assert runner.run(main) == ("nothing", "nothing")


def test_nested(runner):
    """The innermost reason counts, and after it the outer one again."""

    def complaint():
        with pytest.raises(RuntimeError) as caught:
            await_(runner.checkpoint())
        return str(caught.value)

    async def main():
        await ensure_portal()
        with forbid_await("outer"):
            with forbid_await("inner"):
                messages = [complaint()]
            messages.append(complaint())
        await_(runner.checkpoint())
        return messages

    inner, outer = runner.run(main)
    assert "inner" in inner
    assert "outer" in outer


def test_left_by_an_exception(runner):
    """The section ends however it is left; what was awaited is closed."""
    log = []

    async def waiting():
        try:
            await runner.sleep_forever()
        finally:
            log.append("closed")

    async def main():
        await ensure_portal()
        with pytest.raises(RuntimeError, match="why"), forbid_await("why"):
            await_(waiting())
        await_(runner.checkpoint())

    runner.run(main)
    assert log == ["closed"]


def test_goes_on_regardless(runner):
    """What awaits again and again when refused is refused again and again."""
    refused = []

    async def stubborn():
        for _ in range(5):
            try:
                await runner.checkpoint()
            except RuntimeError as exc:
                refused.append(exc)
        return "done"

    async def main():
        await ensure_portal()
        with forbid_await():
            return await stubborn()

    assert runner.run(main) == "done"
    assert len(refused) == 5


def test_other_portals_are_not_concerned(runner):
    """The section belongs to one task."""

    async def other():
        await ensure_portal()
        await_(runner.checkpoint())
        return "waited"

    async def main():
        child = runner.spawn(with_portal_run, other)
        await runner.settle()
        await ensure_portal()
        with forbid_await():
            pass
        return await child.join()

    runner.run(main)


def test_without_a_portal(runner):
    """Where await_ can't wait anyway, the section does nothing."""

    async def main():
        with forbid_await():
            await runner.checkpoint()

    runner.run(main)
    with forbid_await("outside of all loops"):
        pass


def test_misuse(runner):
    """Sections are left in the reverse order, and entered once."""

    async def main():
        await ensure_portal()
        one, two = forbid_await("one"), forbid_await("two")
        with pytest.raises(RuntimeError, match="has not been entered"):
            one.__exit__(None, None, None)
        one.__enter__()
        with pytest.raises(RuntimeError, match="entered already"):
            one.__enter__()
        two.__enter__()
        with pytest.raises(RuntimeError, match="reverse order"):
            one.__exit__(None, None, None)
        two.__exit__(None, None, None)
        one.__exit__(None, None, None)
        with one:
            pass
        await_(runner.checkpoint())

    runner.run(main)
    with pytest.raises(TypeError, match="reason must be a str or None"):
        forbid_await(3)
