"""The JIT frees code that it has made of a loop while that loop waits.

usage: jit.py await|step, with PYTHON_JIT=1
"""

import sys
import types

from support import skip

import greenback

REPEATS = 20_000  # of a loop, until the JIT has made code of it
OTHERS = 3000  # pieces of such code; where there are many, it frees what is not in use

kept = []


def make_other_code():
    """Have the JIT make so much code that it frees what it takes for unused."""
    for number in range(OTHERS):
        scope = {}
        source = f"""
def loop():
    total = 0
    for number in range(6000):
        total += number * {number}
    return total
"""
        exec(source, scope)
        scope["loop"]()
        kept.append(scope)


@types.coroutine
def trap(value):
    """Give the runner a value, get another."""
    return (yield value)


def test_await():
    """Code that waits in await_ goes on after it has been freed."""

    class Ready:
        def __await__(self):
            return iter(())

    def hot_loop(awaitables):
        count = 0
        for awaitable in awaitables:
            greenback.await_(awaitable)
            count += 1
        return count

    async def main():
        return hot_loop([Ready()] * REPEATS + [trap("waiting"), Ready()])

    task = greenback.with_portal_run(main)
    assert task.send(None) == "waiting"
    make_other_code()
    try:
        task.send(None)
    except StopIteration as done:
        assert done.value == REPEATS + 2
    else:
        raise AssertionError("did not end")


def test_step():
    """Code that has called a step goes on after it has been freed."""

    def hot_loop(send, values):
        count = 0
        for value in values:
            send(value)
            count += 1
        return count

    async def main():
        while True:
            value = greenback.await_(trap("waiting"))
            if value is not None:
                value()

    task = greenback.with_portal_run(main)
    task.send(None)
    values = [None] * REPEATS + [make_other_code, None]
    assert hot_loop(task.send, values) == REPEATS + 2
    task.close()


if not hasattr(sys, "_jit") or not sys._jit.is_enabled():
    skip("this Python has no JIT")
{"await": test_await, "step": test_step}[sys.argv[1]]()
print("OK")
