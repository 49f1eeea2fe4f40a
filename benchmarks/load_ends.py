"""The two ends of the service of load.py: who asks it, and the database it asks.

``load_ends.py database`` answers lines such as ``order 17`` by JSON, and prints its
port. ``load_ends.py client PORT CONNECTIONS SECONDS`` asks for one order after the other
on each connection, checks the answers, and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

WARM_UP = 1.0
ITEMS = 5
QUERIES = 2 + 2 * ITEMS  # the order, its customer; each item and its product


def row(table: str, key: int) -> dict[str, Any]:
    """Return what the database has in a table under a key."""
    match table:
        case "order":
            first = key * ITEMS
            return {"customer": key % 100, "items": [*range(first, first + ITEMS)]}
        case "item":
            return {"product": key % 70, "count": key % 3 + 1}
        case "product":
            return {"price": 10 + key}
        case "customer":
            return {"name": f"customer {key}"}
    raise LookupError(table)


def answer(order: int) -> dict[str, Any]:
    """Return what the service has to say about an order."""
    found = row("order", order)
    items = [row("item", key) for key in found["items"]]
    return {
        "customer": row("customer", found["customer"])["name"],
        "total": sum(i["count"] * row("product", i["product"])["price"] for i in items),
    }


class Database(asyncio.Protocol):
    """One connection to the database."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            table, key = line.decode().split()
            self.transport.write(json.dumps(row(table, int(key))).encode() + b"\n")


async def database() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Database, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Client(asyncio.Protocol):
    """One connection to the service: the next request follows the response."""

    def __init__(self, number: int, responses: list[tuple[float, float]]) -> None:
        self.order, self.responses = number, responses
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.order += 1
        self.began = time.perf_counter()
        self.transport.write(b"GET /order/%d HTTP/1.1\r\nHost: x\r\n\r\n" % self.order)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers[b"Content-Length"]):
            return
        now = time.perf_counter()
        if json.loads(body) != answer(self.order):
            raise SystemExit(f"a wrong answer: {self.buffer!r}")
        self.responses.append((now, now - self.began))
        self.buffer = b""
        self.ask()


async def client(port: int, connections: int, seconds: float) -> None:
    """Ask for so many seconds after the warm-up, and print what was seen."""
    loop = asyncio.get_running_loop()
    responses: list[tuple[float, float]] = []
    for number in range(connections):
        await loop.create_connection(
            lambda number=number: Client(1000 * number, responses), "127.0.0.1", port
        )
    begin = time.perf_counter() + WARM_UP
    await asyncio.sleep(WARM_UP + seconds)
    end = time.perf_counter()
    latencies = [latency for when, latency in responses if begin <= when <= end]
    centiles = statistics.quantiles(latencies, n=100)
    print(
        json.dumps(
            {
                "requests": len(responses),
                "rate": len(latencies) / (end - begin),
                "p50": centiles[49],
                "p99": centiles[98],
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "database":
        asyncio.run(database())
    else:
        asyncio.run(client(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
