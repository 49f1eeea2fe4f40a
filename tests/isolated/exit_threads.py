"""Threads end with pooled and with suspended portals; then the interpreter exits.

usage: exit_threads.py LOOP
"""

import asyncio
import sys
import threading

from support import descend, forever, gather, new_asyncio_loop, pause, run

import greenback

KEEP = []
FAILURES = []


def finish_all(loop):
    """Run portals to their end: what remains is what the thread keeps for reuse."""

    async def one():
        await greenback.ensure_portal()
        for depth in range(5):
            descend(depth, lambda: greenback.await_(pause(loop)))

    async def main():
        await gather(loop, one, one, one)

    run(loop, main)


def leave_suspended(loop_name, keep):
    """Leave the thread with tasks suspended in await_."""
    loop = new_asyncio_loop(loop_name)

    async def one(depth):
        await greenback.ensure_portal()
        descend(depth, lambda: greenback.await_(forever("asyncio")))

    async def main():
        for _ in range(10):
            await asyncio.sleep(0)

    tasks = [loop.create_task(one(depth)) for depth in range(10)]
    loop.run_until_complete(main())
    if keep:
        KEEP.append([loop, tasks])


def ignore_closed_pipe(unraisable):
    """Report what could not be raised, as Python does, with one exception.

    An asyncio loop that is dropped unclosed closes itself, which fails when the
    collector comes to the socket pair that wakes the loop before the loop.
    """
    if isinstance(unraisable.exc_value, ValueError) and "file descriptor: -1" in str(
        unraisable.exc_value
    ):
        return
    sys.__unraisablehook__(unraisable)


def guarded(fn, *args):
    """Call *fn* and note a failure for the main thread."""
    try:
        fn(*args)
    except BaseException as error:
        FAILURES.append(error)
        raise


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    sys.unraisablehook = ignore_closed_pipe
    for round_number in range(20):
        jobs = [(finish_all, loop_arg)]
        if loop_arg != "trio":
            jobs.append((leave_suspended, loop_arg, round_number % 2))
        threads = [threading.Thread(target=guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not FAILURES, FAILURES
    finish_all(loop_arg)
    print("OK")
