"""The process forks while tasks are suspended in await_.

usage: fork_suspended.py LOOP
"""

import os
import sys
import threading
import traceback

from support import descend, gather, pause, run, skip

import greenback


async def work_in_child(loop, results):
    """Use a portal on a new loop, in the child."""
    await greenback.ensure_portal()
    results.append(descend(10, lambda: greenback.await_(pause(loop))))


def child_main(loop):
    """Run a loop with portals on top of everything inherited; never return."""
    code = 1
    try:
        results = []
        # This thread still is inside the loop of the parent.
        thread = threading.Thread(target=run, args=(loop, work_in_child, loop, results))
        thread.start()
        thread.join()
        assert results == ["paused"]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


async def main(loop):
    """Suspend some tasks, fork in the sync code of one, let all go on."""
    forked = []
    results = []

    def wait_for_fork(number):
        while not forked:
            greenback.await_(pause(loop))
        return number

    async def waiter(number):
        await greenback.ensure_portal()
        results.append(descend(number, lambda: wait_for_fork(number)))

    async def forker():
        await greenback.ensure_portal()
        for _ in range(5):
            greenback.await_(pause(loop))
        pid = os.fork()
        if pid == 0:
            child_main(loop)
        _, status = os.waitpid(pid, 0)
        forked.append(os.waitstatus_to_exitcode(status))

    def waiter_number(number):
        return lambda: waiter(number)

    await gather(loop, forker, *[waiter_number(number) for number in range(10)])
    assert forked == [0], forked
    assert sorted(results) == list(range(10)), results


if __name__ == "__main__":
    if not hasattr(os, "fork"):
        skip("this platform has no fork")
    (loop_arg,) = sys.argv[1:]
    run(loop_arg, main, loop_arg)
    print("OK")
