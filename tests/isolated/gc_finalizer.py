"""await_ in a finalizer that the garbage collector runs is refused.

usage: gc_finalizer.py LOOP
"""

import gc
import sys

from support import gather, pause, run

import greenback

ERRORS = []


class Cyclic:
    """Calls await_ when it is finalized, which takes the collector."""

    def __init__(self, loop):
        self.loop = loop
        self.itself = self

    def __del__(self):
        greenback.await_(pause(self.loop))


class ByReferenceCount:
    """Calls await_ when its last reference goes."""

    def __init__(self, loop, results):
        self.loop = loop
        self.results = results

    def __del__(self):
        self.results.append(greenback.await_(pause(self.loop)))


class ReadyCyclic(Cyclic):
    """Awaits what never suspends: there is nothing wrong with that."""

    finished = 0

    def __del__(self):
        async def ready():
            return 1

        ReadyCyclic.finished += greenback.await_(ready())


def sync_code(loop):
    """Collect cycles whose finalizers want to suspend."""
    for _ in range(10):
        Cyclic(loop)
        ReadyCyclic(loop)
    gc.collect()
    results = []
    ByReferenceCount(loop, results)
    assert results == ["paused"]
    assert greenback.await_(pause(loop)) == "paused"


async def main(loop):
    """Collect in several tasks, in between their suspensions."""

    async def one():
        await greenback.ensure_portal()
        for _ in range(3):
            sync_code(loop)

    await gather(loop, one, one)


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    gc.disable()
    sys.unraisablehook = lambda unraisable: ERRORS.append(unraisable.exc_value)
    run(loop_arg, main, loop_arg)
    assert len(ERRORS) == 60, len(ERRORS)
    for error in ERRORS:
        assert type(error) is RuntimeError, repr(error)
        assert "garbage" in str(error) or "collect" in str(error), error
    assert ReadyCyclic.finished == 60
    sys.unraisablehook = sys.__unraisablehook__
    print("OK")
