"""The interpreter exits while tasks are suspended in await_.

usage: exit_suspended.py LOOP HOLDER

HOLDER says what still refers to the tasks: "global" a global of the main
module, "cycle" only a reference cycle, "foreign" an attribute of another
module, "closed" a global, with the loop closed before, "thread" a loop that
runs in a daemon thread.
"""

import asyncio
import atexit
import builtins
import queue
import sys
import threading
import warnings

from support import descend, forever, new_asyncio_loop

import greenback

KEEP = []
TASKS = 20


class Cycle:
    """Refers to itself and to whatever it was given."""

    def __init__(self, held):
        self.held = held
        self.itself = self


def hold(holder, held):
    """Keep *held* alive in the way that was asked for."""
    if holder == "cycle":
        Cycle(held)
    elif holder == "foreign":
        builtins.greenback_tasks_held_at_exit = held
    else:
        KEEP.append(held)


async def suspended_task(loop, number, arrived):
    """Wait for ever in await_ below a few synchronous frames."""
    await greenback.ensure_portal()
    arrived(number)
    descend(number, lambda: greenback.await_(forever(loop)))


def leave_asyncio(loop_name, holder):
    """Run an asyncio loop until all tasks are suspended, then leave it."""
    loop = new_asyncio_loop(loop_name)
    arrived = []

    async def until_all_arrived():
        while len(arrived) < TASKS:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    tasks = [
        loop.create_task(suspended_task("asyncio", number, arrived.append))
        for number in range(TASKS)
    ]
    loop.run_until_complete(until_all_arrived())
    assert not any(task.done() for task in tasks)
    if holder == "closed":
        loop.close()
    hold(holder, [loop, tasks])


def leave_trio(holder):
    """Run Trio as a guest until all tasks are suspended, then leave it."""
    import trio

    warnings.filterwarnings("ignore", ".*guest run got abandoned.*", RuntimeWarning)
    calls = queue.Queue()
    arrived = []

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                nursery.start_soon(suspended_task, "trio", number, arrived.append)

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=calls.put,
        done_callback=calls.put,
        restrict_keyboard_interrupt_to_checkpoints=True,
    )
    for _ in range(20):
        try:
            call = calls.get(timeout=0.2 if len(arrived) == TASKS else 10)
        except queue.Empty:
            break
        call()
    assert len(arrived) == TASKS
    hold(holder, calls)


def leave_thread(loop_name):
    """Leave a daemon thread whose loop has suspended tasks."""
    ready = threading.Event()
    arrived = []

    async def main():
        if loop_name == "trio":
            import trio

            async with trio.open_nursery() as nursery:
                for number in range(TASKS):
                    nursery.start_soon(suspended_task, "trio", number, arrived.append)
                await trio.testing.wait_all_tasks_blocked()
                ready.set()
        else:
            tasks = [
                asyncio.ensure_future(suspended_task("asyncio", number, arrived.append))
                for number in range(TASKS)
            ]
            while len(arrived) < TASKS:
                await asyncio.sleep(0)
            ready.set()
            await asyncio.gather(*tasks)

    def thread_main():
        if loop_name == "trio":
            import trio
            import trio.testing

            trio.run(main)
        else:
            new_asyncio_loop(loop_name).run_until_complete(main())

    threading.Thread(target=thread_main, daemon=True).start()
    assert ready.wait(30)


if __name__ == "__main__":
    loop_arg, holder_arg = sys.argv[1:]
    atexit.register(print, "OK")
    if holder_arg == "thread":
        leave_thread(loop_arg)
    elif loop_arg == "trio":
        leave_trio(holder_arg)
    else:
        leave_asyncio(loop_arg, holder_arg)
