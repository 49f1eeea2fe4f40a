"""await_ and the garbage collector."""

import asyncio
import gc
import threading

import pytest

import greenback
from greenback import await_


class InCycle:
    """Runs a function when the garbage collector finalizes it."""

    def __init__(self, function):
        self.function = function
        self.cycle = self

    def __del__(self):
        self.function()


def test_refused_in_the_collectors_finalizers(runner):
    seen = []

    def finalizer():
        seen.append(greenback.has_portal())
        try:
            await_(runner.checkpoint())
        except RuntimeError as error:
            seen.append(str(error))

    def sync():
        InCycle(finalizer)
        gc.collect()
        await_(runner.checkpoint())

    runner.run_sync(sync)
    had_portal, message = seen
    assert had_portal
    assert "garbage collector" in message


def test_refused_without_the_callback(asyncio_runner):
    """If greenback does not hear of collections, it takes them to be its thread's."""
    callbacks = list(gc.callbacks)
    seen = []

    def finalizer():
        with pytest.raises(RuntimeError, match="garbage collector"):
            await_(asyncio.sleep(0))
        seen.append("refused")

    def sync():
        InCycle(finalizer)
        gc.collect()

    gc.callbacks.clear()
    try:
        asyncio_runner.run_sync(sync)
    finally:
        gc.callbacks[:] = callbacks
    assert seen == ["refused"]


def test_works_while_another_thread_collects(runner):
    """A finalizer elsewhere may let other threads run; their await_ is none of its business."""
    in_finalizer = threading.Event()
    go_on = threading.Event()

    def finalizer():
        in_finalizer.set()
        assert go_on.wait(30)

    def collect():
        InCycle(finalizer)
        gc.collect()

    def sync():
        thread = threading.Thread(target=collect)
        thread.start()
        try:
            assert in_finalizer.wait(30)
            await_(runner.checkpoint())
        finally:
            go_on.set()
            thread.join()
        return "waited"

    gc.collect()
    gc.disable()  # this thread's own collections would not be run meanwhile
    try:
        assert runner.run_sync(sync) == "waited"
    finally:
        gc.enable()
