"""The interpreter exits while tasks are suspended in await_.

usage: exit_suspended.py LOOP HOLDER [native|portal]

Without a third argument, do it both natively and with portals, each in a process
of its own, and compare how many ``finally`` blocks have run: as many, if the
engine lets the garbage collector see them.

HOLDER says what still refers to the tasks: "global" a global of the main
module, "cycle" only a reference cycle, "foreign" an attribute of another
module, "closed" a global, with the loop closed before, "thread" a loop that
runs in a daemon thread.
"""

import asyncio
import builtins
import os
import queue
import subprocess
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


def tell_finally(write=os.write):
    """Leave a mark in the output; works until the very end."""
    write(1, b"finally\n")


async def suspended_natively(loop, number, arrived):
    """Wait for ever."""
    arrived(number)
    try:
        await forever(loop)
    finally:
        tell_finally()


async def suspended_in_await(loop, number, arrived):
    """Wait for ever in await_ below a few synchronous frames."""

    def sync(tell_finally=tell_finally):
        try:
            greenback.await_(forever(loop))
        finally:
            tell_finally()

    await greenback.ensure_portal()
    arrived(number)
    descend(number, sync)


def leave_asyncio(loop_name, holder):
    """Run an asyncio loop until all tasks are suspended, then leave it."""
    loop = new_asyncio_loop(loop_name)
    arrived = []

    async def until_all_arrived():
        while len(arrived) < TASKS:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    tasks = [
        loop.create_task(SUSPENDED_TASK("asyncio", number, arrived.append))
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
                nursery.start_soon(SUSPENDED_TASK, "trio", number, arrived.append)

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
                    nursery.start_soon(SUSPENDED_TASK, "trio", number, arrived.append)
                await trio.testing.wait_all_tasks_blocked()
                ready.set()
        else:
            tasks = [
                asyncio.ensure_future(SUSPENDED_TASK("asyncio", number, arrived.append))
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


def unraisable(
    info, closing=asyncio.BaseEventLoop.__del__, report=sys.__unraisablehook__
):
    """Report what goes wrong, but not with a loop whose sockets were collected before it."""
    if info.object is not closing:
        report(info)


def compare():
    """Run this script natively and with portals, and compare."""
    marks = {}
    # Debug builds show this warning by default.
    options = "-X faulthandler -W ignore:unclosed:ResourceWarning".split()
    for kind in ("native", "portal"):
        result = subprocess.run(
            [sys.executable, *options, *sys.argv, kind],
            capture_output=True,
            text=True,
            timeout=120,
        )
        print(result.stdout, end="")
        print(result.stderr, end="", file=sys.stderr)
        assert result.returncode == 0, (kind, result.returncode)
        if result.stdout.startswith("SKIP "):
            sys.exit(0)
        marks[kind] = result.stdout.count("finally")
    assert marks["portal"] <= marks["native"], marks
    if greenback.engine == "direct":
        assert marks["portal"] == marks["native"], marks
    print("OK")


if __name__ == "__main__":
    loop_arg, holder_arg = sys.argv[1:3]
    kind_arg = sys.argv[3] if len(sys.argv) > 3 else None
    sys.unraisablehook = unraisable
    SUSPENDED_TASK = suspended_natively if kind_arg == "native" else suspended_in_await
    if kind_arg is None:
        compare()
    elif holder_arg == "thread":
        leave_thread(loop_arg)
    elif loop_arg == "trio":
        leave_trio(holder_arg)
    else:
        leave_asyncio(loop_arg, holder_arg)
