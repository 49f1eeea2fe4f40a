"""100,000 portals come and go, and the memory is given back.

usage: churn.py LOOP
"""

import gc
import os
import sys

from support import gather, pause, run

import greenback

PORTALS = 100_000
AT_ONCE = 1_000


def rss():
    """Return the resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except FileNotFoundError:
        return 0


async def churn(loop, number):
    """Be one of the tasks that has a portal, in one of the ways to get one."""
    if number % 4 == 0:
        await greenback.ensure_portal()
        return greenback.await_(pause(loop))
    if number % 4 == 1:
        return await greenback.with_portal_run(pause, loop)
    if number % 4 == 2:
        return await greenback.with_portal_run_sync(
            lambda: greenback.await_(pause(loop))
        )
    coroutine = greenback.with_portal_run_sync(lambda: greenback.await_(pause(loop)))
    coroutine.close()  # has not been started
    return "paused"


async def main(loop):
    """Run the portals AT_ONCE at a time; return the memory after a tenth and at the end."""
    done = []

    async def one(number):
        assert await churn(loop, number) == "paused"
        done.append(number)

    early = None
    for start in range(0, PORTALS, AT_ONCE):
        await gather(
            loop, *(lambda n=number: one(n) for number in range(start, start + AT_ONCE))
        )
        if start == PORTALS // 10:
            gc.collect()
            early = rss()
    assert len(done) == PORTALS
    done.clear()
    gc.collect()
    return early, rss()


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    early_arg, late_arg = run(loop_arg, main, loop_arg)
    # The list of what is done has grown by less than a megabyte meanwhile. The
    # address sanitizer holds back 256 MB of freed blocks on purpose.
    if "ASAN_OPTIONS" not in os.environ:
        assert late_arg < early_arg + 8_000_000, (early_arg, late_arg)
    print("OK")
