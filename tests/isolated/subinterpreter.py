"""A subinterpreter gets an ImportError, and the main one goes on.

usage: subinterpreter.py own-gil|shared-gil
"""

import asyncio
import sys

from support import skip

import greenback

CODE = """
import os
import sys
sys.path[:] = {path!r}
try:
    import greenback
except ImportError as error:
    outcome = "ImportError"
else:
    outcome = "imported"
os.write({fd}, outcome.encode())
"""


def run_in_subinterpreter(kind, code):
    """Run *code* in a new interpreter of that kind."""
    if sys.version_info >= (3, 13):
        import _interpreters

        config = "isolated" if kind == "own-gil" else "legacy"
        interpreter = _interpreters.create(config)
        failure = _interpreters.run_string(interpreter, code)
        assert failure is None, failure
        _interpreters.destroy(interpreter)
    else:
        import _xxsubinterpreters

        if kind == "own-gil" and sys.version_info < (3, 12):
            skip("a GIL per interpreter came with 3.12")
        interpreter = _xxsubinterpreters.create(isolated=kind == "own-gil")
        _xxsubinterpreters.run_string(interpreter, code)
        _xxsubinterpreters.destroy(interpreter)


async def use():
    """Use a portal in the main interpreter."""
    await greenback.ensure_portal()
    return greenback.await_(asyncio.sleep(0, "fine"))


if __name__ == "__main__":
    import os

    (kind_arg,) = sys.argv[1:]
    assert asyncio.run(use()) == "fine"
    reading, writing = os.pipe()
    run_in_subinterpreter(kind_arg, CODE.format(path=sys.path, fd=writing))
    os.close(writing)
    outcome = os.read(reading, 100).decode()
    assert outcome == "ImportError", outcome
    assert asyncio.run(use()) == "fine"
    print("OK")
