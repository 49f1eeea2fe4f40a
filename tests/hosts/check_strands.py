# /// script
# dependencies = ["strands-agents>=1.62"]
# ///
"""Strands agents with a model of ours: sync hooks and tools await, in a tree with portals.

strands-agents starts a task for each tool call, and calls sync tools in worker threads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from strands import Agent, tool
from strands.hooks import (
    AfterToolCallEvent,
    BeforeModelCallEvent,
    BeforeToolCallEvent,
)
from strands.models import Model

import greenback

MANY = 5  # agents at once

barriers: dict[str, asyncio.Barrier] = {}


async def meet(place: str, value: Any = None) -> Any:
    """Give the value when all agents' tasks are at this place."""
    await barriers[place].wait()
    return value


@tool
def double(number: int) -> int:
    """Double a number; a sync tool.

    Args:
        number: The number.
    """
    return 2 * greenback.await_(meet("tools", number))


@tool
async def square(number: int) -> int:
    """Square a number; an async tool whose inner parts are sync.

    Args:
        number: The number.
    """
    (number,) = map(greenback.await_, [meet("tools", number)])
    return number * number


class Script(Model):
    """Has each tool called once, then says what they gave."""

    def update_config(self, **config: Any) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        return {}

    def structured_output(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def stream(
        self, messages: Any, *args: Any, **options: Any
    ) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        results = [
            block["toolResult"]["content"][0]["text"]
            for block in messages[-1]["content"]
            if "toolResult" in block
        ]
        yield {"messageStart": {"role": "assistant"}}
        if results:
            yield {"contentBlockStart": {"start": {}}}
            text = " ".join(sorted(results))
            yield {"contentBlockDelta": {"delta": {"text": text}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "end_turn"}}
            return
        arguments = json.dumps({"number": int(messages[-1]["content"][0]["text"])})
        for name in ("double", "square"):
            use = {"name": name, "toolUseId": name}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": arguments}}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use"}}


def agent_that_notes(log: list[str]) -> Agent:
    agent = Agent(model=Script(), tools=[double, square], callback_handler=None)

    def before_model(event: BeforeModelCallEvent) -> None:
        greenback.await_(meet("model"))
        log.append("model")

    def before_tool(event: BeforeToolCallEvent) -> None:
        greenback.await_(meet("before"))
        log.append("before")

    def after_tool(event: AfterToolCallEvent) -> None:
        greenback.await_(meet("after"))
        log.append("after")

    agent.hooks.add_callback(BeforeModelCallEvent, before_model)
    agent.hooks.add_callback(BeforeToolCallEvent, before_tool)
    agent.hooks.add_callback(AfterToolCallEvent, after_tool)
    return agent


async def main() -> None:
    barriers["model"] = asyncio.Barrier(MANY)
    for place in ("before", "tools", "after"):  # both tools of each agent
        barriers[place] = asyncio.Barrier(2 * MANY)
    # Its threads wait for each other here.
    executor = ThreadPoolExecutor(2 * MANY)
    asyncio.get_running_loop().set_default_executor(executor)
    logs: list[list[str]] = [[] for _ in range(MANY)]
    results = await asyncio.gather(
        *[
            greenback.with_portal_run_tree(agent_that_notes(log).invoke_async, f"{n}")
            for n, log in enumerate(logs)
        ]
    )
    answers = [str(result).strip() for result in results]
    expected = [" ".join(sorted([f"{2 * n}", f"{n * n}"])) for n in range(MANY)]
    assert answers == expected, answers
    for log in logs:
        assert sorted(log) == sorted(["model", "before", "after"] * 2), log


asyncio.run(main())
print(
    f"strands-agents {version('strands-agents')}: {MANY} agents, sync hooks and tools"
)
