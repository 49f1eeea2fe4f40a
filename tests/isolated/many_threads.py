"""Many short threads, each with a loop and portals, leave nothing behind.

usage: many_threads.py LOOP
"""

import gc
import sys
import threading

from support import descend, gather, pause, run

import greenback

THREADS = 300


def thread_main(loop, results):
    """Run two tasks with portals at the same time."""

    async def one():
        await greenback.ensure_portal()
        results.append(descend(3, lambda: greenback.await_(pause(loop))))

    async def main():
        await gather(loop, one, one)

    run(loop, main)


def run_threads(loop, count):
    """Run *count* threads, a few at a time; return how many objects exist then."""
    results = []
    for _ in range(0, count, 4):
        threads = [
            threading.Thread(target=thread_main, args=(loop, results)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == ["paused"] * (2 * count)
    # The portals' remains of other threads go when this one uses a portal.
    thread_main(loop, [])
    del results, threads, thread
    gc.collect()
    gc.collect()
    return len(gc.get_objects())


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    run_threads(loop_arg, 20)
    before = run_threads(loop_arg, THREADS // 3)
    middle = run_threads(loop_arg, THREADS // 3)
    after = run_threads(loop_arg, THREADS // 3)
    growth = (middle - before, after - middle)
    assert min(growth) < 20, f"objects left by threads: {growth}"
    print("OK")
