# /// script
# dependencies = ["plumpy>=0.26"]
# ///
"""plumpy, AiiDA's workflow engine: steps are sync code that runs other processes to their ends."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import plumpy

MANY = 10  # processes at once
all_there = asyncio.Barrier(MANY)


class Child(plumpy.Process):
    """Waits for the children of all other parents, between two steps."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("number")
        spec.output("square")

    async def run(self) -> Any:
        await all_there.wait()
        return plumpy.Continue(self.finish)

    def finish(self) -> None:
        plumpy.sync_await(asyncio.sleep(0))
        self.out("square", self.inputs.number**2)


class Parent(plumpy.Process):
    """Executes a child in a step, as AiiDA's engine.run() does."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("number")
        spec.output("result")

    def run(self) -> None:
        child = Child(inputs={"number": self.inputs.number}, loop=self.loop)
        outputs = child.execute()
        assert outputs is not None
        self.call_soon(self.later)
        self.out("result", outputs["square"] + 1)

    def later(self) -> None:
        """Sync callbacks of a process have a portal, too."""
        plumpy.sync_await(asyncio.sleep(0))
        called.append(self.inputs.number)


class Waiter(plumpy.Process):
    """Waits in a step for a child that nobody resumes."""

    def run(self) -> None:
        self.child = Sleeper(loop=self.loop)
        self.child.execute()


class Sleeper(plumpy.Process):
    def run(self) -> Any:
        return plumpy.Wait(self.run)


async def run_many() -> None:
    loop = asyncio.get_running_loop()
    parents = [Parent(inputs={"number": n}, loop=loop) for n in range(MANY)]
    await asyncio.gather(*[parent.step_until_terminated() for parent in parents])
    results = [parent.outputs["result"] for parent in parents]
    assert results == [n * n + 1 for n in range(MANY)], results
    while len(called) < MANY:
        await asyncio.sleep(0)
    assert not plumpy.has_portal()


async def kill_one() -> None:
    """A child is killed while its parent waits for it in sync code."""
    waiter = Waiter(loop=asyncio.get_running_loop())
    task = asyncio.create_task(waiter.step_until_terminated())
    while not hasattr(waiter, "child") or not isinstance(
        waiter.child._state, plumpy.Waiting
    ):
        await asyncio.sleep(0)
    waiter.child.kill()
    await task
    assert waiter.child.killed()
    assert isinstance(waiter.exception(), plumpy.KilledError), waiter


called: list[int] = []
asyncio.run(run_many())
asyncio.run(kill_one())
# from a script without a loop
loop = asyncio.new_event_loop()
all_there = asyncio.Barrier(1)
parent = Parent(inputs={"number": 3}, loop=loop)
assert parent.execute() == {"result": 10}
loop.close()
print(f"plumpy {version('plumpy')}: {MANY} processes run others in their steps, a kill")
