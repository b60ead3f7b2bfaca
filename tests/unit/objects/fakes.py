"""The connections side in memory, and a host on a temporary folder with a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objects.clock import ManualClock
from objects.embedded import LocalDrivers
from objects.errors import LimitExceeded, UsageError
from objects.host import ObjectHost
from objects.ids import ObjectId
from objects.limits import Limits
from objects.namespace import ObjectNamespace
from objects.ports import (
    MAX_CONNECTIONS,
    AutoResponse,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionId,
    ConnectionInfo,
    Delivery,
    Frame,
    MessageReceived,
    ReadyState,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRequest,
)
from objects.state import DurableObject

SECRET = b"a secret of at least sixteen bytes"


@dataclass(eq=False)
class FakeConnection:
    """One client, and its row on the connections side."""

    gateway: FakeConnections
    object_id: ObjectId
    connection_id: ConnectionId
    tags: tuple[str, ...] = ()
    hibernatable: bool = True
    state: ReadyState = ReadyState.CONNECTING
    accepted: bool = False
    protocol: str | None = None
    attachment: bytes | None = None
    auto_response_at_ms: int | None = None
    received: list[Any] = field(default_factory=list)
    """What the client got: messages, then ("close", code, reason) or "lost"."""
    waiting_replies: list[Frame] = field(default_factory=list)
    holds: int = 0

    async def send(self, data: Frame) -> Delivery | None:
        """Send as the client; the delivery, or None if an auto-response took it."""
        now = self.gateway.now_ms()
        for rule in self.gateway.rules.get(self.object_id, ()):
            fits = data == rule.request or (
                rule.match == "prefix" and isinstance(data, type(rule.request)) and data.startswith(rule.request)  # type: ignore[arg-type]
            )
            if fits and type(data) is type(rule.request) and (rule.tag is None or rule.tag in self.tags):
                self.auto_response_at_ms = now
                if self.state is ReadyState.OPEN:
                    held = self.holds or self.gateway.object_holds.get(self.object_id, 0)
                    (self.waiting_replies if held else self.received).append(rule.response)
                return None
        return await self.gateway.deliver(self, MessageReceived(self.connection_id, data))

    async def close(self, code: int = 1000, reason: str = "", was_clean: bool = True) -> Delivery:
        delivery = await self.gateway.deliver(self, ConnectionClosed(self.connection_id, code, reason, was_clean))
        self.state = ReadyState.CLOSED
        self.gateway.rows.pop(self.connection_id, None)
        return delivery

    async def drop(self) -> Delivery:
        return await self.close(1006, "disconnected without a close frame", was_clean=False)

    async def fail(self, message: str) -> Delivery:
        return await self.gateway.deliver(self, ConnectionFailed(self.connection_id, message))

    def end(self) -> None:
        self.state = ReadyState.CLOSED
        self.received.append("lost")
        self.gateway.rows.pop(self.connection_id, None)

    def flush_replies(self) -> None:
        if not self.holds and not self.gateway.object_holds.get(self.object_id, 0):
            self.received += self.waiting_replies
            self.waiting_replies.clear()


class FakeConnections:
    """Fills `objects.ports.Connections`."""

    def __init__(self) -> None:
        self.host: ObjectHost | None = None
        self.rows: dict[ConnectionId, FakeConnection] = {}
        self.rules: dict[ObjectId, tuple[AutoResponse, ...]] = {}
        self.timeouts: dict[ObjectId, int | None] = {}
        self.object_holds: dict[ObjectId, int] = {}
        self.attached: set[ObjectId] = set()
        self.lost: list[str] = []
        self.at_once = False
        """Messages are offered to `handle_now` first, as a dispatcher does."""
        self._numbers = itertools.count(1)

    def now_ms(self) -> int:
        assert self.host is not None
        return self.host.ports.clock.unix_ms()

    async def open(self, object_id: ObjectId, url: str = "ws://x/") -> FakeConnection:
        """Connect as a client; raises if refused."""
        connection, answer = await self.try_open(object_id, url)
        assert isinstance(answer, UpgradeAccepted), answer
        return connection

    async def try_open(self, object_id: ObjectId, url: str = "ws://x/") -> tuple[FakeConnection, UpgradeAnswer]:
        connection = FakeConnection(self, object_id, ConnectionId(next(self._numbers)))
        self.rows[connection.connection_id] = connection
        assert self.host is not None
        answer = await self.host.connect(object_id, UpgradeRequest(connection.connection_id, url))
        if isinstance(answer, UpgradeAccepted):
            connection.state = ReadyState.OPEN
            connection.protocol = answer.protocol
        else:
            self.rows.pop(connection.connection_id, None)
        return connection, answer

    async def deliver(self, connection: FakeConnection, event: Any) -> Delivery:
        assert self.host is not None
        done: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._give, connection.object_id, event, done)
        delivery = await done
        if delivery is Delivery.OVERLOADED:
            connection.end()
        return delivery

    def _give(self, object_id: ObjectId, event: Any, done: asyncio.Future[Delivery]) -> None:
        assert self.host is not None
        if (
            self.at_once
            and isinstance(event, MessageReceived)
            and self.host.handle_now(object_id, event.connection_id, event.data)
        ):
            if not done.done():
                done.set_result(Delivery.DISPATCHED)
            return
        self.host.deliver(object_id, event, lambda delivery: done.done() or done.set_result(delivery))

    # The port

    async def attach(self, object_id: ObjectId) -> None:
        self.attached.add(object_id)

    def detach(self, object_id: ObjectId) -> None:
        self.attached.discard(object_id)

    def accept(self, object_id: ObjectId, connection_id: ConnectionId, tags: Sequence[str], hibernatable: bool) -> None:
        row = self.rows.get(connection_id)
        if row is None or row.accepted or row.state is not ReadyState.CONNECTING:
            raise UsageError("not waiting to be accepted")
        if self.count(object_id) >= MAX_CONNECTIONS:
            raise LimitExceeded("connections of one object", MAX_CONNECTIONS)
        row.accepted, row.tags, row.hibernatable = True, tuple(tags), hibernatable

    def connections(self, object_id: ObjectId, tag: str | None = None) -> list[ConnectionId]:
        return [row.connection_id for row in self._of(object_id, tag)]

    def count(self, object_id: ObjectId, tag: str | None = None) -> int:
        return len(self._of(object_id, tag))

    def info(self, connection_id: ConnectionId) -> ConnectionInfo | None:
        row = self.rows.get(connection_id)
        if row is None or not row.accepted:
            return None
        return ConnectionInfo(connection_id, "ws://x/", row.protocol, row.tags, 0)

    def ready_state(self, connection_id: ConnectionId) -> ReadyState:
        row = self.rows.get(connection_id)
        return ReadyState.CLOSED if row is None else row.state

    def send(self, connection_id: ConnectionId, data: Frame) -> None:
        if (row := self.rows.get(connection_id)) is not None:
            row.received.append(data)

    def close(self, connection_id: ConnectionId, code: int | None, reason: str) -> None:
        if (row := self.rows.get(connection_id)) is not None and row.state < ReadyState.CLOSING:
            row.state = ReadyState.CLOSING
            row.received.append(("close", code, reason))

    def broadcast(
        self, object_id: ObjectId, data: Frame, tag: str | None = None, exclude: Sequence[ConnectionId] = ()
    ) -> int:
        rows = [r for r in self._of(object_id, tag) if r.connection_id not in exclude and r.state is ReadyState.OPEN]
        for row in rows:
            row.received.append(data)
        return len(rows)

    def hold(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        if connection_id is None:
            self.object_holds[object_id] = self.object_holds.get(object_id, 0) + 1
        elif (row := self.rows.get(connection_id)) is not None:
            row.holds += 1

    def release(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        if connection_id is None:
            self.object_holds[object_id] -= 1
            for row in self._of(object_id, None):
                row.flush_replies()
        elif (row := self.rows.get(connection_id)) is not None:
            row.holds -= 1
            row.flush_replies()

    def buffered_amount(self, connection_id: ConnectionId) -> int:
        return 0

    def set_attachment(self, connection_id: ConnectionId, value: bytes | None) -> None:
        self.rows[connection_id].attachment = value

    def attachment(self, connection_id: ConnectionId) -> bytes | None:
        row = self.rows.get(connection_id)
        return None if row is None else row.attachment

    def set_auto_responses(self, object_id: ObjectId, rules: Sequence[AutoResponse]) -> None:
        self.rules[object_id] = tuple(rules)

    def auto_responses(self, object_id: ObjectId) -> tuple[AutoResponse, ...]:
        return self.rules.get(object_id, ())

    def auto_response_at_ms(self, connection_id: ConnectionId) -> int | None:
        return self.rows[connection_id].auto_response_at_ms

    def last_seen_ms(self, connection_id: ConnectionId) -> int | None:
        return None

    def set_event_timeout(self, object_id: ObjectId, timeout_ms: int | None) -> None:
        self.timeouts[object_id] = timeout_ms

    def event_timeout(self, object_id: ObjectId) -> int | None:
        return self.timeouts.get(object_id)

    def disconnect_all(self, object_id: ObjectId, reason: str) -> None:
        self.lost.append(reason)
        for row in [row for row in self.rows.values() if row.object_id == object_id and row.accepted]:
            row.end()

    def _of(self, object_id: ObjectId, tag: str | None) -> list[FakeConnection]:
        return [
            row
            for row in self.rows.values()
            if row.object_id == object_id and row.accepted and row.hibernatable and (tag is None or tag in row.tags)
        ]


class World:
    """A host with everything around it; `restart` is a clean stop and a new process's start."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.clock = ManualClock()
        self.root = root
        self.limits = limits or Limits()
        self.classes: dict[str, tuple[type[DurableObject], Any]] = {}
        self._open()

    def _open(self) -> None:
        self.connections = FakeConnections()
        self.drivers = LocalDrivers(self.root, connections=self.connections, clock=self.clock)
        self.host = ObjectHost(self.drivers.ports, secret=SECRET, limits=self.limits, jitter=lambda: 0.0)
        self.connections.host = self.host

    def serve(self, cls: type[DurableObject], env: Any = None, name: str = "test") -> ObjectNamespace:
        self.classes[name] = (cls, env)
        namespace = self.host.register(name, cls, env)
        if self.host._uninstall is None:
            self.host.start()
        return namespace

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds, self.host.settle)

    async def restart(self) -> None:
        await self.stop()
        self._open()
        for name, (cls, env) in self.classes.items():
            self.serve(cls, env, name)
        await self.host.settle()

    async def stop(self) -> None:
        await self.host.stop()
        self.drivers.close()

    def awake(self) -> int:
        return len(self.host.awake())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop, and the threads behind it, work until `condition` holds."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


class commits_stalled:  # noqa: N801  # reads as a verb
    """Hold every commit's confirmation until `release(error=None)` is called."""

    def __init__(self, world: World) -> None:
        self._engine: Any = world.drivers.ports.storage
        self._held: list[Callable[[Exception | None], None]] = []

    def __enter__(self) -> Callable[..., None]:
        self._commit = self._engine.commit
        self._engine.commit = lambda claim, seq, at, settled: self._held.append(settled)
        return self._release

    def _release(self, error: Exception | None = None) -> None:
        self._engine.commit = self._commit
        for settled in self._held:
            settled(error)

    def __exit__(self, *exc: object) -> None:
        self._engine.commit = self._commit


async def spin() -> None:
    """Let the loop work for some turns, without any thread's results."""
    for _ in range(30):
        await asyncio.sleep(0)
