"""The service of load.py: an HTTP server, a mapper of objects, a database on a socket.

Started by load.py; prints its port. The handler is async, and so is the database's
client. The mapper between them is synchronous: an attribute of an object that isn't
loaded yet is, which waits for the database. For ``native`` there is an async one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web
from loops import Loop, open_loop
from peers import Peer, open_peer

T = TypeVar("T")

# What a column refers to, by its name.
REFERENCES = {"customer": "customer", "items": "item", "product": "product"}


class Database:
    """A pool of connections."""

    async def connect(self, port: int, connections: int) -> None:
        """Open them."""
        self._free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(connections):
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", port))

    async def fetch(self, table: str, key: int) -> dict[str, Any]:
        """Return a row."""
        connection = await self._free.get()
        try:
            reader, writer = connection
            writer.write(f"{table} {key}\n".encode())
            row: dict[str, Any] = json.loads(await reader.readline())
        finally:
            self._free.put_nowait(connection)
        return row


def with_objects(row: dict[str, Any], make: Callable[[str, int], Any]) -> Any:
    """Return a row whose references are objects."""
    result = {}
    for column, value in row.items():
        table = REFERENCES.get(column)
        if table is None:
            result[column] = value
        elif isinstance(value, list):
            result[column] = [make(table, key) for key in value]
        else:
            result[column] = make(table, value)
    return result


class Mapper:
    """Gives objects whose attributes wait for the database, in sync code."""

    def __init__(self, database: Database, await_: Callable[[Any], Any]) -> None:
        self._fetch, self._await = database.fetch, await_

    def load(self, table: str, key: int) -> dict[str, Any]:
        """Return what an object's attributes are."""
        row = self._await(self._fetch(table, key))
        loaded: dict[str, Any] = with_objects(row, self.object)
        return loaded

    def object(self, table: str, key: int) -> Mapped:
        """Return an object that isn't loaded yet."""
        return Mapped(self, table, key)

    def answer(self, key: int) -> dict[str, Any]:
        """Return what is asked for."""
        order = self.object("order", key)
        return {
            "customer": order.customer.name,
            "total": sum(item.count * item.product.price for item in order.items),
        }


class Mapped:
    """A row as an object."""

    def __init__(self, mapper: Mapper, table: str, key: int) -> None:
        self._mapper, self._table, self._key = mapper, table, key

    def __getattr__(self, name: str) -> Any:
        self.__dict__.update(self._mapper.load(self._table, self._key))
        return self.__dict__[name]


class AsyncMapped:
    """The same for async code, which has to say where it waits."""

    def __init__(self, database: Database, table: str, key: int) -> None:
        self._database, self._table, self._key = database, table, key

    def _object(self, table: str, key: int) -> AsyncMapped:
        return AsyncMapped(self._database, table, key)

    async def get(self, name: str) -> Any:
        """Return an attribute."""
        if name not in self.__dict__:
            row = await self._database.fetch(self._table, self._key)
            self.__dict__.update(with_objects(row, self._object))
        return self.__dict__[name]

    async def answer(self) -> dict[str, Any]:
        """Return what is asked for."""
        customer = await self.get("customer")
        total = 0
        for item in await self.get("items"):
            product = await item.get("product")
            total += await item.get("count") * await product.get("price")
        return {"customer": await customer.get("name"), "total": total}


class Threads(Peer):
    """Sync code in a thread, which gives the loop something to do and waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        loop.set_default_executor(ThreadPoolExecutor(threads))

        def await_(awaitable: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(awaitable, loop).result()

        self.await_ = await_

    async def enter_sync(self, loop: Loop, fn: Callable[[], T]) -> T:
        return await asyncio.to_thread(fn)


async def serve(options: argparse.Namespace, loop: Loop) -> None:
    """Serve until killed."""
    database = Database()
    await database.connect(options.database, options.connections)
    answer: Callable[[int], Awaitable[Any]]
    if options.peer == "native":

        async def answer(key: int) -> Any:
            return await AsyncMapped(database, "order", key).answer()

    else:
        if options.peer == "threads":
            peer: Peer = Threads(asyncio.get_running_loop(), options.connections)
        else:
            peer = open_peer(options.peer, options.engine)
        assert peer.await_ is not None
        mapper = Mapper(database, peer.await_)

        async def answer(key: int) -> Any:
            return await peer.enter_sync(loop, lambda: mapper.answer(key))

    async def order(request: web.Request) -> web.Response:
        return web.json_response(await answer(int(request.match_info["key"])))

    async def cpu(request: web.Request) -> web.Response:
        return web.json_response(time.process_time())

    application = web.Application()
    application.add_routes([web.get("/order/{key}", order), web.get("/cpu", cpu)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--engine")
    parser.add_argument("--loop", required=True)
    parser.add_argument("--database", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    options = parser.parse_args()
    loop = open_loop(options.loop)
    loop.run(serve, options, loop)


if __name__ == "__main__":
    main()
