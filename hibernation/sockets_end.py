"""The sockets' end of a link: the two ports between two processes, so that room code can go without its connections.

    process with the sockets                                    process with the objects
    dispatcher ──▶ SocketsEnd ═══ connect, cancel, event ═══▶ ObjectsEnd ──▶ host (Waker)
    manager ◀───── SocketsEnd ◀══ calls, answers, settled ═══ ObjectsEnd ◀── host (Connections)

Both ends are sans-I/O: `receive_data` in, a `write` callable out; an asyncio transport's `write` fits. Order on the
link is order of calls, which is all that the ports ask.

When the objects' process goes away nothing is disconnected: `lost` keeps what was not settled, and `joined` gives it to
the next process, so an event that was under way may be handled twice. Upgrades under way are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from hibernation.connection import NO_CLOSE_FRAME
from hibernation.errors import LinkError
from hibernation.manager import HibernationManager
from hibernation.wire import (
    MessageReader,
    Value,
    pack_event,
    pack_id,
    pack_request,
    pack_rules,
    serialize,
    unpack_answer,
    unpack_id,
    unpack_rules,
)
from objects.errors import UsageError
from objects.ids import ObjectId
from objects.ports import (
    ConnectionClosed,
    ConnectionEvent,
    ConnectionId,
    Delivery,
    Frame,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
)

logger = logging.getLogger(__name__)

Settled = Callable[[Delivery], None]

_CALLS = frozenset(
    {"send", "close", "broadcast", "hold", "release", "set_attachment", "set_auto_responses", "set_event_timeout"}
)  # fmt: skip


class SocketsEnd:
    """The sockets' end: fills `Waker` for the dispatcher, carries out what the objects' end calls.

    Args:
        manager: this process' connections.
    """

    def __init__(self, manager: HibernationManager) -> None:
        self._manager = manager
        self._write: Callable[[bytes], None] | None = None
        self._reader = MessageReader()
        self._calls = 0
        self._connects: dict[int, asyncio.Future[UpgradeAnswer]] = {}
        self._events: dict[int, tuple[ObjectId, ConnectionEvent, Settled]] = {}

    @property
    def pending(self) -> int:
        """Upgrades and events that have no answer yet."""
        return len(self._connects) + len(self._events)

    def joined(self, write: Callable[[bytes], None]) -> None:
        """A process of objects is there; what the one before has not settled goes first."""
        self._write = write
        self._reader = MessageReader()
        for call, (object_id, event, _) in self._events.items():
            self._say_event(call, object_id, event)

    def lost(self) -> None:
        """The process of objects is gone: its instances with it, our connections not."""
        self._write = None
        for future in self._connects.values():
            if not future.done():
                future.set_result(UpgradeRefused(503, (("retry-after", "3"),), b"The room is being restarted\n"))
        self._connects.clear()
        self._manager.detach_all()

    async def connect(self, object_id: ObjectId, request: UpgradeRequest) -> UpgradeAnswer:
        """See `Waker.connect`."""
        if self._write is None:
            return UpgradeRefused(503, (("retry-after", "3"),), b"The room is being restarted\n")
        call = self._next()
        future: asyncio.Future[UpgradeAnswer] = asyncio.get_running_loop().create_future()
        self._connects[call] = future
        self._say("connect", call, pack_id(object_id), pack_request(request))
        try:
            answer = await future
        except asyncio.CancelledError:
            self._say("cancel", call)
            raise
        finally:
            self._connects.pop(call, None)
        return answer

    def deliver(self, object_id: ObjectId, event: ConnectionEvent, settled: Settled) -> None:
        """See `Waker.deliver`. Without a process of objects the event waits for one; the dispatcher bounds how many."""
        call = self._next()
        self._events[call] = (object_id, event, settled)
        self._say_event(call, object_id, event)

    def handle_now(self, object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
        """See `Waker.handle_now`: the objects are elsewhere."""
        return False

    def receive_data(self, data: bytes) -> None:
        """Take what the objects' end wrote.

        Raises:
            LinkError: it is not what that end writes; give the link up.
        """
        for message in self._reader.receive_data(data):
            try:
                self._receive(cast(tuple[Any, ...], message))
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                raise LinkError(f"a message that makes no sense: {error}") from error

    def _receive(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "answer":
            future = self._connects.pop(message[1], None)
            if future is not None and not future.done():
                future.set_result(unpack_answer(message[2]))
        elif kind == "settled":
            waiting = self._events.pop(message[1], None)
            if waiting is not None:
                waiting[2](Delivery(message[2]))
        elif kind == "attach":
            object_id = unpack_id(message[2])
            self._manager.mark_attached(object_id)
            self._say("attached", message[1], self._snapshot(object_id))
        elif kind == "detach":
            self._manager.detach(unpack_id(message[1]))
        elif kind == "disconnect_all":
            self._manager.disconnect_all(unpack_id(message[1]), message[2])
        elif kind == "accept":
            self._accept(unpack_id(message[1]), *message[2:])
        elif kind in _CALLS:
            self._call(kind, *message[1:])
        else:
            raise ValueError(f"an unknown message {kind!r}")

    def _accept(self, object_id: ObjectId, connection_id: int, tags: tuple[str, ...], hibernatable: bool) -> None:
        try:
            self._manager.accept(object_id, ConnectionId(connection_id), tags, hibernatable)
        except UsageError as error:  # the client has left meanwhile: the instance must hear of its end all the same
            logger.info("a connection could not be accepted: %s", error)
            event = ConnectionClosed(ConnectionId(connection_id), 1006, NO_CLOSE_FRAME, was_clean=False)
            self.deliver(object_id, event, lambda delivery: None)

    def _call(self, name: str, first: Any, *rest: Any) -> None:
        manager = self._manager
        if name == "broadcast":
            manager.broadcast(unpack_id(first), *rest)
        elif name in ("hold", "release"):
            getattr(manager, name)(unpack_id(first), *rest)
        elif name == "set_auto_responses":
            manager.set_auto_responses(unpack_id(first), unpack_rules(rest[0]))
        elif name == "set_event_timeout":
            manager.set_event_timeout(unpack_id(first), *rest)
        else:
            getattr(manager, name)(ConnectionId(first), *rest)

    def _snapshot(self, object_id: ObjectId) -> Value:
        manager = self._manager
        rows: list[Value] = []
        for connection_id in manager.connections(object_id):
            info = manager.info(connection_id)
            if info is not None:
                rows.append(
                    (
                        connection_id, info.url, info.protocol, info.tags, info.accepted_at_ms, info.client,
                        manager.attachment(connection_id), self._facts(connection_id),
                    )
                )  # fmt: skip
        rules = pack_rules(manager.auto_responses(object_id))
        return tuple(rows), rules, manager.event_timeout(object_id), manager.max_connections

    def _facts(self, connection_id: ConnectionId) -> Value:
        manager = self._manager
        return (
            int(manager.ready_state(connection_id)),
            manager.auto_response_at_ms(connection_id),
            manager.last_seen_ms(connection_id),
            manager.buffered_amount(connection_id),
        )

    def _say_event(self, call: int, object_id: ObjectId, event: ConnectionEvent) -> None:
        # The host wants to know the event's limit before it attaches, so it comes with the event.
        timeout_ms = self._manager.event_timeout(object_id)
        facts = self._facts(event.connection_id)
        self._say("event", call, pack_id(object_id), pack_event(event), facts, timeout_ms)

    def _say(self, *message: Value) -> None:
        if self._write is not None:
            self._write(serialize(message))

    def _next(self) -> int:
        self._calls += 1
        return self._calls
