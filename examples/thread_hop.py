"""Worker threads that await: SQL queries whose functions ask a service in the loop.

Run it with:  python examples/thread_hop.py

sqlite3 blocks, so each query runs in a thread of asyncio.to_thread(). The SQL
function price() is plain synchronous code that SQLite calls from C, row by row.
It awaits the answer of a price service over a connection that belongs to the
event loop and that all threads share. Only the thread waits meanwhile: the service
itself is served by the same loop. A context variable that is set in the thread
tells the coroutine for whom it works.

The exit code is 1 if an answer was wrong.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import sys

import greenback

PRICES = {"tea": 3, "coffee": 4, "cake": 5, "juice": 2}
ORDERS = [(customer, item) for customer in range(6) for item in PRICES]

customer_var: contextvars.ContextVar[int] = contextvars.ContextVar("customer")


class PriceService:
    """The client's side of a connection; it can do one request at a time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.asked_for: list[int] = []

    async def connect(self, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)

    async def disconnect(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def price_of(self, item: str) -> int:
        async with self.lock:
            self.asked_for.append(customer_var.get())
            self.writer.write(f"{item}\n".encode())
            return int(await self.reader.readline())


class Server:
    """Answers each line with a price, after a while."""

    def __init__(self) -> None:
        self.is_left = asyncio.Event()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while line := await reader.readline():
            await asyncio.sleep(0.005)
            writer.write(f"{PRICES[line.decode().strip()]}\n".encode())
        writer.close()
        await writer.wait_closed()
        self.is_left.set()


def bill(service: PriceService, customer: int) -> int:
    """Sum up what a customer has to pay; runs in a thread, and may block."""
    customer_var.set(customer)
    database = sqlite3.connect(":memory:")
    database.create_function(
        "price", 1, lambda item: greenback.await_(service.price_of(item))
    )
    database.execute("CREATE TABLE orders (customer INTEGER, item TEXT)")
    database.executemany("INSERT INTO orders VALUES (?, ?)", ORDERS)
    query = "SELECT sum(price(item)) FROM orders WHERE customer = ?"
    (total,) = database.execute(query, [customer]).fetchone()
    database.close()
    return int(total)


async def main() -> int:
    prices = Server()
    server = await asyncio.start_server(prices.serve, "127.0.0.1", 0)
    service = PriceService()
    await service.connect(server.sockets[0].getsockname()[1])
    totals = await asyncio.gather(
        *[asyncio.to_thread(bill, service, customer) for customer in range(6)]
    )
    await service.disconnect()
    await prices.is_left.wait()
    server.close()
    print(f"bills: {totals}")
    print(f"{len(service.asked_for)} requests of 6 threads over one connection")
    fine = totals == [sum(PRICES.values())] * 6 and sorted(service.asked_for) == [
        customer for customer, _ in ORDERS
    ]
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
