"""A library with a synchronous interface, used inside a running loop.

Run it with:  python examples/nested_run.py [--loop uvloop]

The class Warehouse is what many libraries look like: asynchronous inside, and each of
its methods calls asyncio.run() for those who are not. asyncio refuses that where a loop
is running, as here, in the handlers of a server. allow_nested_run() makes it work in
tasks that have a portal; while one handler waits for its warehouse, the others go on.

The exit code is 1 if an answer was wrong or the handlers had to wait for each other.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

import greenback

STOCK = {"apples": 3, "pears": 0, "quinces": 12}


class Warehouse:
    """Knows nothing of who calls it."""

    def __init__(self) -> None:
        self.askers = 0
        self.most_askers = 0

    async def count_async(self, fruit: str) -> int:
        self.askers += 1
        self.most_askers = max(self.askers, self.most_askers)
        await asyncio.sleep(0.05)  # the network
        self.askers -= 1
        return STOCK[fruit]

    def count(self, fruit: str) -> int:
        return asyncio.run(self.count_async(fruit))

    def report(self) -> dict[str, int]:
        """Call synchronous methods of its own, in a nested run."""

        async def collect() -> dict[str, int]:
            return {fruit: self.count(fruit) for fruit in STOCK}

        return asyncio.run(collect())


warehouse = Warehouse()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a question for each connection."""
    await greenback.ensure_portal()
    question = (await reader.readline()).decode().strip()
    if question == "all":
        answer = ", ".join(f"{n} {fruit}" for fruit, n in warehouse.report().items())
    else:
        answer = f"{warehouse.count(question)} {question}"
    writer.write(f"{answer}\n".encode())
    writer.close()
    await writer.wait_closed()


async def ask(port: int, question: str) -> str:
    """Be a client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{question}\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode().strip()


async def serve() -> list[str]:
    """Let clients ask a server, all at once."""
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.gather(
            *[ask(port, question) for question in [*STOCK, "all"]]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="see the head of the file")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    loop = importlib.import_module(parser.parse_args().loop)
    greenback.allow_nested_run()
    with asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
        answers = runner.run(serve())
    print(*answers, sep="\n")
    print(f"{warehouse.most_askers} handlers waited at once")
    lines = [f"{n} {fruit}" for fruit, n in STOCK.items()]
    fine = answers == [*lines, ", ".join(lines)] and warehouse.most_askers > 1
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
