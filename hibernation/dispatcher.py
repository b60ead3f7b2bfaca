"""From sockets to objects: each connection's events one after the other, with bounded memory while an object starts.

    table ──MESSAGE──▶ line of the connection ──one at a time──▶ Waker.deliver ──settled──▶ the next, or the line ends
                 └────no line, and the object at hand──────────▶ Waker.handle_now

A `_Line` exists only from a connection's first unsettled event to its last. When it holds `max_frames` or `max_bytes`
the table stops reading that socket, so a client that is faster than the object waits in its own TCP window; others are
not affected. `ConnectionClosed` stands in the same line, behind the messages that came before it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from hibernation._sockets.table import CLOSED, FAILED, MESSAGE, REPLY, Event, SocketTable
from hibernation.admission import MessageRate
from hibernation.connection import NO_CLOSE_FRAME
from hibernation.manager import HibernationManager
from objects.ids import ObjectId
from objects.ports import (
    ConnectionClosed,
    ConnectionEvent,
    ConnectionFailed,
    ConnectionId,
    Delivery,
    Frame,
    MessageReceived,
    Waker,
)

logger = logging.getLogger(__name__)

_OurEvent = tuple[int, ConnectionId, Any, str | None]
"""An event of the table, whose handles are our ids of connections; the kind says what the value is."""


@dataclass(slots=True)
class _Line:
    object_id: ObjectId
    waiting: deque[ConnectionEvent] = field(default_factory=deque)
    waiting_bytes: int = 0
    in_flight: bool = False
    paused: bool = False
    refused: bool = False
    """The object was overloaded, or the client too quick: nothing but the end is delivered any more."""


class Dispatcher:
    """Delivers what the socket table reports.

    Args:
        manager: knows whose connection it is, and frees it after its last event.
        waker: the objects side.
        max_frames: messages of one connection that may wait; then reading pauses.
        max_bytes: the same in bytes. One read of 16 KiB may exceed either.
        messages_per_second: of one connection, auto-responses not counted; more ends it with 1008. 0: no limit.
    """

    def __init__(
        self,
        manager: HibernationManager,
        waker: Waker,
        *,
        max_frames: int = 64,
        max_bytes: int = 1_048_576,
        messages_per_second: int = 0,
    ) -> None:
        self._manager = manager
        self._table: SocketTable = manager.table
        self.waker = waker
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._lines: dict[ConnectionId, _Line] = {}
        self._rate = MessageRate(messages_per_second) if messages_per_second else None
        self.overloaded = 0
        self.flooded = 0
        manager.on_disconnect = self._cut

    @property
    def lines(self) -> int:
        """Connections with an event under way or waiting; 0 when all is quiet."""
        return len(self._lines)

    def receive(self, events: Iterable[Event]) -> None:
        """Take what `SocketTable.process` or `handle_timeout` returned, in that order."""
        try:
            self._receive(cast("Iterable[_OurEvent]", events))
        finally:
            self._table.uncork()

    def _receive(self, events: Iterable[_OurEvent]) -> None:
        lines, owner, handle_now = self._lines, self._table.owner, self.waker.handle_now
        last, corked = None, False
        for kind, connection_id, value, reason in events:
            if connection_id != last:
                last = connection_id
                if corked:
                    self._table.uncork()
                    corked = False
            elif not corked:  # several from one read: after the first, their answers leave in one write
                self._table.cork(connection_id)
                corked = True
            if kind == MESSAGE:
                if self._rate is not None and not self._rate.admit(connection_id, self._manager.clock.monotonic()):
                    self._flood(connection_id)
                    continue
                if connection_id not in lines:  # else behind what came before
                    record = owner(connection_id)
                    if record is not None and handle_now(record.object_id, connection_id, value):
                        continue
                self._enqueue(connection_id, MessageReceived(connection_id, value))
            elif kind == REPLY:
                self._manager.reply(connection_id, value)
            elif kind == CLOSED:
                self.closed(connection_id, value, reason or "")
            elif kind == FAILED:
                self._enqueue(connection_id, ConnectionFailed(connection_id, f"{value} {reason}"))
                self.closed(connection_id, 1006, "")

    def closed(self, connection_id: ConnectionId, code: int, reason: str) -> None:
        """The connection has ended: its last event."""
        clean = code != 1006
        text = reason if clean else NO_CLOSE_FRAME
        self._enqueue(connection_id, ConnectionClosed(connection_id, code, text, clean))

    def _enqueue(self, connection_id: ConnectionId, event: ConnectionEvent) -> None:
        line = self._lines.get(connection_id)
        if line is None:
            object_id = self._manager.owner(connection_id)
            if object_id is None:  # cut meanwhile, or never anyone's
                self._manager.forget(connection_id)
                return
            line = self._lines[connection_id] = _Line(object_id)
        if line.refused and not isinstance(event, ConnectionClosed):
            return
        line.waiting.append(event)
        if isinstance(event, MessageReceived):
            line.waiting_bytes += _size(event.data)
        if not line.in_flight:
            self._deliver_next(connection_id, line)
        elif not line.paused and (len(line.waiting) >= self._max_frames or line.waiting_bytes >= self._max_bytes):
            line.paused = True
            self._table.pause(connection_id)

    def _deliver_next(self, connection_id: ConnectionId, line: _Line) -> None:
        event = line.waiting.popleft()
        if isinstance(event, MessageReceived):
            line.waiting_bytes -= _size(event.data)
        line.in_flight = True
        try:
            self.waker.deliver(line.object_id, event, partial(self._settled, connection_id, line, event))
        except Exception:  # the port says it does not raise; one broken object must not stop the others' sockets
            logger.exception("delivering to %s failed", line.object_id.key)
            self._manager.forget(connection_id)
            self._lines.pop(connection_id, None)

    def _settled(self, connection_id: ConnectionId, line: _Line, event: ConnectionEvent, delivery: Delivery) -> None:
        if self._lines.get(connection_id) is not line:  # cut by a reset
            return
        line.in_flight = False
        if delivery is Delivery.FAILED or isinstance(event, ConnectionClosed):
            del self._lines[connection_id]
            self._manager.forget(connection_id)
            return
        if delivery is Delivery.OVERLOADED:
            self._refuse(connection_id, line)
        if line.waiting:
            self._deliver_next(connection_id, line)
        elif not line.refused:
            del self._lines[connection_id]
        if line.paused and len(line.waiting) <= self._max_frames // 2 and line.waiting_bytes <= self._max_bytes // 2:
            line.paused = False
            self._table.resume(connection_id, self._manager.clock.monotonic())

    def _refuse(self, connection_id: ConnectionId, line: _Line) -> None:
        """The object has too much to do: this connection alone is closed, and leaves all lists at once (W-15)."""
        self.overloaded += 1
        line.waiting = deque(event for event in line.waiting if isinstance(event, ConnectionClosed))
        line.waiting_bytes = 0
        self._end(connection_id, line, 1013, "object overloaded")

    def _flood(self, connection_id: ConnectionId) -> None:
        """One message too many: what came before it is still handled, nothing after it."""
        line = self._lines.get(connection_id)
        if line is None:
            object_id = self._manager.owner(connection_id)
            if object_id is None:
                return
            line = self._lines[connection_id] = _Line(object_id)
        if not line.refused:
            self.flooded += 1
            self._end(connection_id, line, 1008, "too many messages")

    def _end(self, connection_id: ConnectionId, line: _Line, code: int, reason: str) -> None:
        line.refused = True
        self._manager.unlist(connection_id)
        self._table.close(connection_id, code, reason)

    def _cut(self, connection_id: ConnectionId) -> None:
        self._lines.pop(connection_id, None)


def _size(frame: Frame) -> int:
    return len(frame)
