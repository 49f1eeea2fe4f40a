"""Stops at a certain point, for tools that look at a process from outside.

usage: stand_still.py LOOP native|portal ENTRY PLACE [HOW]

Once the program is at PLACE it writes "ready" and waits for the end of its standard
input. HOW says otherwise: "suspended" lets the program wait, and stops in another
task once nothing moves any more; "later" and "abort" let faulthandler write what it
sees before the process ends.
"""

import faulthandler
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # python -P leaves it out

import twins


def stop_here():
    """Wait for the parent process."""
    # In one line: the parent may look before the reading has begun.
    return print("ready", flush=True) or sys.stdin.read()


def main(loop, form, entry, place, how="blocked"):
    """Run the program up to PLACE and further."""
    pause = twins.pause_on(loop)
    opened = twins.event_on(loop)

    def look(where):
        if where != place:
            return
        if how == "blocked":
            stop_here()
        elif how == "later":
            faulthandler.dump_traceback_later(0.01, exit=True)
            sys.stdin.read()
        elif how == "abort":
            faulthandler.enable()
            signal.raise_signal(signal.SIGABRT)

    program = twins.load(form, look, pause, opened.wait)

    async def watched():
        async with twins.started(loop, [getattr(program, entry)] * 2):
            for _ in range(10):
                await pause()
            stop_here()
            opened.set()

    twins.run_on(loop, watched if how == "suspended" else getattr(program, entry))


if __name__ == "__main__":
    main(*sys.argv[1:])
