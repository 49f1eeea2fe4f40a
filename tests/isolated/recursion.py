"""Deep recursion in the sync code of a portal, up to and over the limit.

usage: recursion.py LOOP
"""

import sys

from support import descend, gather, pause, run

import greenback


def fall(counter):
    """Recurse without end."""
    counter[0] += 1
    fall(counter)


def deep_without_await(loop):
    """Hit the recursion limit, then suspend as if nothing had happened."""
    counter = [0]
    try:
        fall(counter)
    except RecursionError:
        pass
    else:
        raise AssertionError("no RecursionError")
    assert greenback.await_(pause(loop)) == "paused"
    return counter[0]


async def fall_async(counter):
    """Recurse without end through native awaits."""
    counter[0] += 1
    await fall_async(counter)


def fall_awaiting(counter):
    """Recurse without end through await_ calls."""
    counter[0] += 1

    async def again():
        fall_awaiting(counter)

    greenback.await_(again())


def deep_with_await(loop):
    """Hit the limit inside await_, in both kinds of recursion."""
    for recurse in (
        lambda counter: greenback.await_(fall_async(counter)),
        fall_awaiting,
    ):
        counter = [0]
        try:
            recurse(counter)
        except RecursionError:
            pass
        else:
            raise AssertionError("no RecursionError")
        assert counter[0] > 50, counter
        assert greenback.await_(pause(loop)) == "paused"


def suspend_near_limit(loop):
    """Suspend at every depth there is, close to the limit."""
    reached = []

    def dive():
        try:
            dive()
        except RecursionError:
            if not reached:
                reached.append("bottom")
        if reached and len(reached) < 50:
            try:
                reached.append(greenback.await_(pause(loop)))
            except RecursionError:
                pass

    dive()
    assert reached == ["bottom"] + ["paused"] * 49


async def main(loop):
    """Do all of it in several tasks at the same time."""
    budgets = []

    async def one():
        await greenback.ensure_portal()
        budgets.append(deep_without_await(loop))
        deep_with_await(loop)
        suspend_near_limit(loop)
        for depth in (500, 600, 700):
            assert descend(depth, lambda: greenback.await_(pause(loop))) == "paused"
        budgets.append(deep_without_await(loop))

    await gather(loop, one, one, one)
    assert len(budgets) == 6
    # Nothing is lost from the limit, nor gained, however often it is reached.
    assert max(budgets) - min(budgets) < 100, budgets
    assert min(budgets) > 500, budgets


async def main_twice(loop):
    """Check that a larger limit set between two steps counts at once."""
    await greenback.ensure_portal()
    before = deep_without_await(loop)
    sys.setrecursionlimit(sys.getrecursionlimit() + 500)
    await pause(loop)
    after = deep_without_await(loop)
    assert after - before > 400, (before, after)
    greenback.await_(pause(loop))


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    run(loop_arg, main, loop_arg)
    run(loop_arg, main_twice, loop_arg)
    print("OK")
