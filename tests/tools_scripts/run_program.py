"""Runs the program, for tools that want a process of their own.

usage: run_program.py LOOP native|portal ENTRY TASKS
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # python -P leaves it out

import twins


def main(loop, form, entry, tasks):
    """Run the program in one task, or in several at once; print the results."""
    pause = twins.pause_on(loop)
    program = twins.load(form, lambda where: None, pause)
    entry = getattr(program, entry)
    results = []

    async def one():
        results.append(await entry())

    async def several():
        async with twins.started(loop, [one] * int(tasks)):
            pass

    twins.run_on(loop, one if tasks == "1" else several)
    print(results)


if __name__ == "__main__":
    main(*sys.argv[1:])
