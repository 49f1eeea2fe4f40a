# /// script
# dependencies = ["apache-airflow-core>=3.3"]
# ///
"""Airflow's triggerer: triggers, each a task with a portal, call the sync SDK in their run().

Airflow's TriggerRunner talks to a supervisor of ours, in a thread, over the socket that it takes
for its stdin. The runner imports this file for the triggers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

MANY = 20  # triggers at once
CANCELLED = MANY  # the id of the one that is cancelled
TIMEOUT = 60  # seconds, for what hangs

if __name__ == "__main__":
    home = tempfile.TemporaryDirectory()
    os.environ["AIRFLOW_HOME"] = home.name
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"

import msgspec  # noqa: E402
from airflow.executors.workloads import RunTrigger  # noqa: E402
from airflow.jobs.triggerer_job_runner import TriggerRunner, messages  # noqa: E402
from airflow.models.trigger import Trigger  # noqa: E402
from airflow.sdk import BaseHook, Variable  # noqa: E402
from airflow.sdk.execution_time.comms import (  # noqa: E402
    ConnectionResult,
    VariableResult,
    _RequestFrame,
    _ResponseFrame,
)
from airflow.triggers.base import BaseTrigger, TriggerEvent  # noqa: E402


class Asker(BaseTrigger):
    """Asks for a connection and for a variable as sync code does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "check_airflow.Asker", {"number": self.number}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        connection = BaseHook.get_connection(f"connection_{self.number}")
        for name in (f"a{self.number}", f"b{self.number}"):
            yield TriggerEvent([connection.host, Variable.get(name)])


class Cancelled(BaseTrigger):
    """Is cancelled in a sync call, and makes another one because of that."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "check_airflow.Cancelled", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            Variable.get("never")
        except asyncio.CancelledError:
            Variable.get("cancelled")
            raise
        yield TriggerEvent("not reached")


class Supervisor:
    """Has the runner make triggers, answers what they ask for, and stops the runner at the end."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(TIMEOUT)
        self.to_create = [
            self.workload(number, "Asker", number=number) for number in range(MANY)
        ] + [self.workload(CANCELLED, "Cancelled")]
        self.to_cancel: set[int] = set()
        self.unanswered: list[tuple[int, ConnectionResult]] = []
        self.events: list[tuple[int, Any]] = []
        self.finished: list[int] = []
        self.asked: list[str] = []
        self.failures: list[Any] = []

    def workload(self, ident: int, name: str, **options: Any) -> RunTrigger:
        return RunTrigger(
            id=ident,
            classpath=f"check_airflow.{name}",
            encrypted_kwargs=Trigger.encrypt_kwargs(options),
        )

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def send(self, number: int, answer: Any) -> None:
        body = None if answer is None else answer.model_dump(mode="json", by_alias=True)
        self.socket.sendall(_ResponseFrame(id=number, body=body).as_bytes())

    def answer(self, number: int, request: dict[str, Any]) -> None:
        kind = request["type"]
        if kind == "TriggerStateChanges":
            for trigger, event, *_ in request["events"] or ():
                self.events.append((trigger, event["payload"]))
            self.failures += request["failures"] or ()
            self.finished += request["finished"] or ()
            sync = messages.TriggerStateSync(
                to_create=self.to_create, to_cancel=self.to_cancel
            )
            self.to_create, self.to_cancel = [], set()
            self.send(number, sync)
        elif kind == "GetConnection":
            name = request["conn_id"]
            nothing = ("schema", "login", "password", "port", "extra")
            result = ConnectionResult(
                conn_id=name,
                conn_type="http",
                host=f"of {name}",
                **dict.fromkeys(nothing),
            )
            # Answered when all triggers wait, the last one first.
            self.unanswered.append((number, result))
            if len(self.unanswered) == MANY:
                for waiting, result in reversed(self.unanswered):
                    self.send(waiting, result)
        elif kind == "GetVariable":
            key = request["key"]
            self.asked.append(key)
            if key == "never":
                self.to_cancel = {CANCELLED}
            else:
                self.send(number, VariableResult(key=key, value=f"value of {key}"))
        else:
            self.send(number, None)

    def run(self) -> None:
        try:
            self.send(0, messages.StartTriggerer())
            decoder = msgspec.msgpack.Decoder(_RequestFrame)
            while len(self.finished) <= MANY:
                size = int.from_bytes(self.receive(4), "big")
                request = decoder.decode(self.receive(size))
                assert request.body is not None
                self.answer(request.id, request.body)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # which the runner handles


def main() -> None:
    ours, theirs = socket.socketpair()
    os.dup2(theirs.fileno(), 0)
    theirs.close()
    supervisor = Supervisor(ours)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    TriggerRunner().run()
    thread.join()
    assert not supervisor.failures, supervisor.failures
    assert sorted(supervisor.finished) == list(range(MANY + 1)), supervisor.finished
    assert sorted(supervisor.events) == [
        (number, [f"of connection_{number}", f"value of {name}{number}"])
        for number in range(MANY)
        for name in "ab"
    ], supervisor.events
    assert "cancelled" in supervisor.asked, supervisor.asked
    print(
        f"Airflow {version('apache-airflow-core')}: {MANY} triggers ask at once, one is cancelled"
    )


if __name__ == "__main__":
    main()
