"""The objects' end of a link (see `sockets_end.py`): fills `Connections` in a process that has no sockets.

Queries are answered from a mirror: `attach` loads it, our own calls and the events that pass keep it current. Times and
buffered bytes are as of the connection's last event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hibernation.errors import LinkError
from hibernation.wire import (
    MessageReader,
    Value,
    pack_answer,
    pack_id,
    pack_rules,
    serialize,
    unpack_event,
    unpack_id,
    unpack_request,
    unpack_rules,
)
from objects.errors import Disconnected, TooManyConnections, UsageError
from objects.ids import ObjectId
from objects.ports import (
    MAX_CONNECTIONS,
    AutoResponse,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionId,
    ConnectionInfo,
    Delivery,
    Frame,
    ReadyState,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
    Waker,
)


@dataclass(slots=True)
class _Mirrored:
    """One connection, as far as the objects' end knows."""

    object_id: ObjectId
    info: ConnectionInfo
    hibernatable: bool = True
    attachment: bytes | None = None
    state: ReadyState = ReadyState.CONNECTING
    auto_response_at_ms: int | None = None
    last_seen_ms: int | None = None
    buffered: int = 0

    def learn(self, facts: tuple[int, int | None, int | None, int]) -> None:
        self.state = max(self.state, ReadyState(facts[0]))
        self.auto_response_at_ms, self.last_seen_ms, self.buffered = facts[1:]


@dataclass(slots=True)
class _Mirror:
    """One attached object."""

    connections: dict[ConnectionId, _Mirrored] = field(default_factory=dict)
    rules: tuple[AutoResponse, ...] = ()
    event_timeout_ms: int | None = None
    connections_max: int = MAX_CONNECTIONS
    """The sockets' end's limit: who is refused there would be too late for the object to answer."""


class ObjectsEnd:
    """The objects' end: fills `Connections` for the host, gives it what the sockets' end reports.

    Args:
        unix_ms: the time, for connections accepted here.
    """

    def __init__(self, unix_ms: Callable[[], int]) -> None:
        self.waker: Waker | None = None
        """The host, set once both exist."""
        self._write: Callable[[bytes], None] | None = None
        self._unix_ms = unix_ms
        self._reader = MessageReader()
        self._calls = 0
        self._attaching: dict[int, tuple[ObjectId, asyncio.Future[None]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._upgrades: dict[ConnectionId, UpgradeRequest] = {}
        self._mirrors: dict[ObjectId, _Mirror] = {}
        self._connections: dict[ConnectionId, _Mirrored] = {}
        self._delivering: tuple[ObjectId, int | None] | None = None
        """The event being delivered: its object may not be attached yet, but has an event timeout."""

    @property
    def pending(self) -> int:
        """Upgrades and attachments that have no answer yet, and mirrored connections: 0 when all is quiet."""
        return len(self._attaching) + len(self._tasks) + len(self._connections)

    def joined(self, write: Callable[[bytes], None]) -> None:
        """The sockets' end is there; `write` sends it bytes."""
        self._write = write
        self._reader = MessageReader()

    def lost(self) -> None:
        """The sockets' end is gone, and all connections with it."""
        self._write = None
        for _, future in self._attaching.values():
            if not future.done():
                future.set_exception(Disconnected("the connections' process is gone"))
        for task in self._tasks.values():
            task.cancel()
        self._attaching.clear()
        self._connections.clear()
        self._mirrors.clear()

    # ── from the link ───────────────────────────────────────────────────────────────────────────────────────────────

    def receive_data(self, data: bytes) -> None:
        """Take what the sockets' end wrote.

        Raises:
            LinkError: it is not what that end writes; give the link up.
        """
        for message in self._reader.receive_data(data):
            try:
                self._receive(cast(tuple[Any, ...], message))
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                raise LinkError(f"a message that makes no sense: {error}") from error

    def _receive(self, message: tuple[Any, ...]) -> None:
        kind, call = message[:2]
        if kind == "connect":
            task = asyncio.ensure_future(self._connect(call, unpack_id(message[2]), unpack_request(message[3])))
            self._tasks[call] = task
            task.add_done_callback(lambda _: self._tasks.pop(call, None))
        elif kind == "cancel":
            if call in self._tasks:
                self._tasks[call].cancel()
        elif kind == "event":
            self._deliver(call, unpack_id(message[2]), unpack_event(message[3]), message[4], message[5])
        elif kind == "attached":
            object_id, future = self._attaching[call]
            if not future.done():
                self._load(object_id, message[2])
                future.set_result(None)
        else:
            raise ValueError(f"an unknown message {kind!r}")

    async def _connect(self, call: int, object_id: ObjectId, request: UpgradeRequest) -> None:
        assert self.waker is not None
        self._upgrades[request.connection_id] = request
        answer: UpgradeAnswer = UpgradeRefused(503)
        try:
            answer = await self.waker.connect(object_id, request)
        finally:
            self._upgrades.pop(request.connection_id, None)
            row = self._connections.get(request.connection_id)
            if row is not None:
                if isinstance(answer, UpgradeAccepted):
                    row.state = max(row.state, ReadyState.OPEN)
                    info = row.info
                    row.info = ConnectionInfo(
                        info.connection_id, info.url, answer.protocol, info.tags, info.accepted_at_ms, info.client
                    )
                else:
                    self._forget(request.connection_id)
            self._say("answer", call, pack_answer(answer))

    def _deliver(
        self, call: int, object_id: ObjectId, event: ConnectionEvent, facts: Any, timeout_ms: int | None
    ) -> None:
        assert self.waker is not None
        row = self._connections.get(event.connection_id)
        if row is not None:
            row.learn(facts)

        def settled(delivery: Delivery) -> None:
            if isinstance(event, ConnectionClosed) or delivery is Delivery.OVERLOADED:
                self._forget(event.connection_id)
            self._say("settled", call, delivery.value)

        self._delivering = object_id, timeout_ms
        self.waker.deliver(object_id, event, settled)
        self._delivering = None

    # ── the port `Connections` ──────────────────────────────────────────────────────────────────────────────────────

    async def attach(self, object_id: ObjectId) -> None:
        """See `Connections.attach`."""
        self._calls += 1
        call = self._calls
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attaching[call] = object_id, future
        if self._write is None:
            future.set_exception(Disconnected("the connections' process is gone"))
        self._say("attach", call, pack_id(object_id))
        try:
            await future
        finally:
            self._attaching.pop(call, None)

    def detach(self, object_id: ObjectId) -> None:
        """See `Connections.detach`."""
        self._drop_mirror(object_id)
        self._say("detach", pack_id(object_id))

    def accept(self, object_id: ObjectId, connection_id: ConnectionId, tags: Sequence[str], hibernatable: bool) -> None:
        """See `Connections.accept`."""
        request = self._upgrades.get(connection_id)
        if request is None:
            raise UsageError("the connection is unknown, or its upgrade has been answered")
        if connection_id in self._connections:
            raise UsageError("the connection was accepted before")
        mirror = self._mirrors.setdefault(object_id, _Mirror())
        if len(mirror.connections) >= mirror.connections_max:
            raise TooManyConnections("connections of an object", mirror.connections_max)
        info = ConnectionInfo(connection_id, request.url, None, tuple(tags), self._unix_ms(), request.client)
        row = _Mirrored(object_id, info, hibernatable, last_seen_ms=self._unix_ms())
        mirror.connections[connection_id] = self._connections[connection_id] = row
        self._say("accept", pack_id(object_id), connection_id, tuple(tags), hibernatable)

    def connections(self, object_id: ObjectId, tag: str | None = None) -> list[ConnectionId]:
        """See `Connections.connections`."""
        mirror = self._mirrors.get(object_id)
        return [
            connection_id
            for connection_id, row in (mirror.connections if mirror else {}).items()
            if row.hibernatable and (tag is None or tag in row.info.tags)
        ]

    def count(self, object_id: ObjectId, tag: str | None = None) -> int:
        """See `Connections.count`."""
        return len(self.connections(object_id, tag))

    def info(self, connection_id: ConnectionId) -> ConnectionInfo | None:
        """See `Connections.info`."""
        row = self._connections.get(connection_id)
        return None if row is None else row.info

    def ready_state(self, connection_id: ConnectionId) -> ReadyState:
        """See `Connections.ready_state`."""
        row = self._connections.get(connection_id)
        if row is None:
            return ReadyState.CONNECTING if connection_id in self._upgrades else ReadyState.CLOSED
        return row.state

    def send(self, connection_id: ConnectionId, data: Frame) -> None:
        """See `Connections.send`."""
        self._say("send", connection_id, data)

    def close(self, connection_id: ConnectionId, code: int | None, reason: str) -> None:
        """See `Connections.close`."""
        row = self._connections.get(connection_id)
        if row is not None:
            row.state = max(row.state, ReadyState.CLOSING)
        self._say("close", connection_id, code, reason)

    def broadcast(
        self, object_id: ObjectId, data: Frame, tag: str | None = None, exclude: Sequence[ConnectionId] = ()
    ) -> int:
        """See `Connections.broadcast`; the count is the mirror's."""
        self._say("broadcast", pack_id(object_id), data, tag, tuple(exclude))
        reached = set(self.connections(object_id, tag)) - set(exclude)
        return sum(self._connections[connection_id].state <= ReadyState.OPEN for connection_id in reached)

    def hold(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """See `Connections.hold`."""
        self._say("hold", pack_id(object_id), connection_id)

    def release(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """See `Connections.release`."""
        self._say("release", pack_id(object_id), connection_id)

    def buffered_amount(self, connection_id: ConnectionId) -> int:
        """See `Connections.buffered_amount`; as of the connection's last event."""
        row = self._connections.get(connection_id)
        return 0 if row is None else row.buffered

    def set_attachment(self, connection_id: ConnectionId, value: bytes | None) -> None:
        """See `Connections.set_attachment`."""
        row = self._connections.get(connection_id)
        if row is not None:
            row.attachment = value
            self._say("set_attachment", connection_id, value)

    def attachment(self, connection_id: ConnectionId) -> bytes | None:
        """See `Connections.attachment`."""
        row = self._connections.get(connection_id)
        return None if row is None else row.attachment

    def set_auto_responses(self, object_id: ObjectId, rules: Sequence[AutoResponse]) -> None:
        """See `Connections.set_auto_responses`."""
        self._mirrors.setdefault(object_id, _Mirror()).rules = tuple(rules)
        self._say("set_auto_responses", pack_id(object_id), pack_rules(rules))

    def auto_responses(self, object_id: ObjectId) -> tuple[AutoResponse, ...]:
        """See `Connections.auto_responses`."""
        mirror = self._mirrors.get(object_id)
        return () if mirror is None else mirror.rules

    def auto_response_at_ms(self, connection_id: ConnectionId) -> int | None:
        """See `Connections.auto_response_at_ms`; as of the connection's last event."""
        row = self._connections.get(connection_id)
        return None if row is None else row.auto_response_at_ms

    def last_seen_ms(self, connection_id: ConnectionId) -> int | None:
        """See `Connections.last_seen_ms`; as of the connection's last event."""
        row = self._connections.get(connection_id)
        return None if row is None else row.last_seen_ms

    def set_event_timeout(self, object_id: ObjectId, timeout_ms: int | None) -> None:
        """See `Connections.set_event_timeout`."""
        self._mirrors.setdefault(object_id, _Mirror()).event_timeout_ms = timeout_ms or None
        self._say("set_event_timeout", pack_id(object_id), timeout_ms)

    def event_timeout(self, object_id: ObjectId) -> int | None:
        """See `Connections.event_timeout`."""
        mirror = self._mirrors.get(object_id)
        if mirror is None and self._delivering is not None and self._delivering[0] == object_id:
            return self._delivering[1]
        return None if mirror is None else mirror.event_timeout_ms

    def disconnect_all(self, object_id: ObjectId, reason: str) -> None:
        """See `Connections.disconnect_all`."""
        self._drop_mirror(object_id)
        self._say("disconnect_all", pack_id(object_id), reason)

    # ── the mirror ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, object_id: ObjectId, snapshot: Any) -> None:
        rows, rules, timeout_ms, connections_max = snapshot
        mirror = self._mirrors[object_id] = _Mirror({}, unpack_rules(rules), timeout_ms, connections_max)
        for connection, url, protocol, tags, accepted_at_ms, client, attachment, facts in rows:
            connection_id = ConnectionId(connection)
            info = ConnectionInfo(connection_id, url, protocol, tags, accepted_at_ms, client)
            row = _Mirrored(object_id, info, attachment=attachment)
            row.learn(facts)
            mirror.connections[connection_id] = self._connections[connection_id] = row

    def _forget(self, connection_id: ConnectionId) -> None:
        row = self._connections.pop(connection_id, None)
        if row is not None and row.object_id in self._mirrors:
            self._mirrors[row.object_id].connections.pop(connection_id, None)

    def _drop_mirror(self, object_id: ObjectId) -> None:
        mirror = self._mirrors.pop(object_id, None)
        for connection_id in list(mirror.connections) if mirror else ():
            self._connections.pop(connection_id, None)

    def _say(self, *message: Value) -> None:
        if self._write is not None:
            self._write(serialize(message))
