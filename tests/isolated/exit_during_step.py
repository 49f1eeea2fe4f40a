"""sys.exit() is called in sync code of a portal, while others are suspended.

usage: exit_during_step.py LOOP
"""

import asyncio
import atexit
import sys

from support import descend, forever, new_asyncio_loop, pause

import greenback

KEEP = []
UNWOUND = []


async def bystander(loop):
    """Be suspended in await_ while another task leaves the program."""
    await greenback.ensure_portal()
    try:
        descend(5, lambda: greenback.await_(forever(loop)))
    finally:
        UNWOUND.append(loop)


def leave(loop):
    """Suspend once, then leave the program from here."""
    assert greenback.await_(pause(loop)) == "paused"
    try:
        sys.exit(0)
    finally:
        UNWOUND.append("leave")


async def quitter(loop):
    """Call leave() through a portal, a few frames deep."""
    await greenback.ensure_portal()
    descend(5, lambda: leave(loop))


async def trio_main():
    """Run the tasks in a nursery."""
    import trio

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(bystander, "trio")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(quitter, "trio")


def finish():
    """Check, at exit, that the frames on the way out were unwound."""
    assert "leave" in UNWOUND
    print("OK")


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    atexit.register(finish)
    if loop_arg == "trio":
        import trio
        import trio.testing

        try:
            trio.run(trio_main)
        except BaseExceptionGroup as group:
            exits = group.subgroup(SystemExit)
            assert exits is not None
            assert UNWOUND.count("trio") == 3
            sys.exit(0)
    else:
        loop = new_asyncio_loop(loop_arg)
        KEEP.append(loop)
        KEEP.append([loop.create_task(bystander("asyncio")) for _ in range(3)])
        KEEP.append(loop.create_task(quitter("asyncio")))
        loop.run_until_complete(asyncio.Event().wait())
    raise AssertionError("sys.exit() did not come through")
