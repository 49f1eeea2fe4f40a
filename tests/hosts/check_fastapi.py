# /// script
# dependencies = ["fastapi", "httpx", "uvicorn", "uvloop>=0.18"]
# ///
"""FastAPI on uvicorn and uvloop: sync code in endpoints and in dependencies awaits, over HTTP."""

from __future__ import annotations

import asyncio
from typing import Annotated

import anyio
import fastapi
import httpx
import uvicorn
import uvloop
from fastapi import Depends, FastAPI, HTTPException, Request

import greenback

MANY = 30  # requests at once; fewer than AnyIO has worker threads
TIMEOUT = 60  # seconds, for what hangs

# FastAPI awaits this one in the task of each request.
app = FastAPI(dependencies=[Depends(greenback.ensure_portal)])
everybody = asyncio.Barrier(MANY)
waiting = asyncio.Event()
cancelled = asyncio.Event()


async def find_user(number: int) -> str:
    """Give an answer when all requests wait for theirs."""
    if number < 0:
        raise HTTPException(404, "no such user")
    async with everybody:
        return f"user {number}"


def user(number: int) -> str:
    """FastAPI calls sync dependencies in worker threads."""
    return greenback.await_(find_user(number))


@app.get("/dependency/{number}")
async def dependency(user: Annotated[str, Depends(user)]) -> str:
    return user


@app.get("/endpoint/{number}")
async def endpoint(number: int) -> str:
    return user(number)


@app.get("/both/{number}")
async def both(number: int, first: Annotated[str, Depends(user)]) -> list[str]:
    return [first, user(number)]


def wait_forever() -> None:
    waiting.set()
    try:
        greenback.await_(anyio.sleep_forever())
    except asyncio.CancelledError:
        cancelled.set()
        raise


@app.get("/forever")
async def forever(request: Request) -> None:
    """End when the client goes away."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        wait_forever()


async def check(client: httpx.AsyncClient) -> None:
    async def get(path: str) -> object:
        return (await client.get(path)).raise_for_status().json()

    users = [f"user {number}" for number in range(MANY)]
    for route, expected in (
        ("dependency", users),
        ("endpoint", users),
        ("both", [[user, user] for user in users]),
    ):
        requests = (get(f"/{route}/{number}") for number in range(MANY))
        assert await asyncio.gather(*requests) == expected, route
        response = await client.get(f"/{route}/-1")
        assert response.status_code == 404, response
        assert response.json() == {"detail": "no such user"}

    request = asyncio.create_task(client.get("/forever"))
    await waiting.wait()
    request.cancel()  # closes the connection
    await cancelled.wait()
    assert await get("/openapi.json")  # the server is still there


class Server(uvicorn.Server):
    """Does something when it has started."""

    async def startup(self, *args: object, **kwds: object) -> None:
        await super().startup(*args, **kwds)  # type: ignore[arg-type]
        (socket,) = self.servers[0].sockets
        self.client = asyncio.create_task(self.run_client(socket.getsockname()[1]))

    async def run_client(self, port: int) -> None:
        limits = httpx.Limits(max_connections=None)
        try:
            async with (
                httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}",
                    limits=limits,
                    timeout=TIMEOUT,
                    trust_env=False,
                ) as client,
                asyncio.timeout(TIMEOUT),
            ):
                await check(client)
        finally:
            self.should_exit = True


server = Server(uvicorn.Config(app, port=0, loop="uvloop", log_level="warning"))
server.run()
server.client.result()
print(
    f"FastAPI {fastapi.__version__}, uvicorn {uvicorn.__version__}, uvloop {uvloop.__version__}:"
    f" 3 * {MANY} requests at once, a client that goes away"
)
