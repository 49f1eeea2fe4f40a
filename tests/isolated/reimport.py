"""greenback is imported a second time after it left sys.modules.

usage: reimport.py LOOP
"""

import gc
import importlib
import sys

from support import gather, pause, run

import greenback


def forget():
    """Remove the package from sys.modules."""
    for name in [name for name in sys.modules if name.split(".")[0] == "greenback"]:
        del sys.modules[name]


async def use(module, loop):
    """Use a portal of one of the imported modules."""
    await module.ensure_portal()
    assert module.has_portal()
    assert module.await_(pause(loop)) == "paused"


async def main(loop):
    """Import again in between the steps of portals, and use both modules."""
    await greenback.ensure_portal()
    assert greenback.await_(pause(loop)) == "paused"
    forget()
    again = importlib.import_module("greenback")
    assert greenback.await_(pause(loop)) == "paused"
    await gather(loop, lambda: use(again, loop), lambda: use(greenback, loop))
    forget()
    again = None
    gc.collect()
    assert greenback.await_(pause(loop)) == "paused"
    importlib.reload(importlib.import_module("greenback"))


if __name__ == "__main__":
    (loop_arg,) = sys.argv[1:]
    run(loop_arg, main, loop_arg)
    gc.collect()
    run(loop_arg, use, importlib.import_module("greenback"), loop_arg)
    print("OK")
