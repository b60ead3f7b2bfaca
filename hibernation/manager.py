"""HibernationManager: connections outlive objects. Fills the port `objects.ports.Connections` from the socket table.

Per connection nothing is kept in Python: tags, info and attachment lie in its row. Per object with connections there is
one small `ObjectRecord`, instance or no instance:

    upgrade begun ──begin──▶ CONNECTING, of no object ──accept──▶ in the object's lists ──forget──▶ gone
                                                                    └──disconnect_all (reset)──────▶ cut

Events go the other way, through `dispatcher.py`. Hibernation itself is nothing that happens here: the objects side
calls `detach`, drops its instance, and the rows stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from hibernation._sockets.table import SocketTable
from hibernation.admission import AddressCounts
from hibernation.autoresponse import Holds, table_rules
from hibernation.connection import pack_info, unpack_info
from objects.errors import LimitExceeded, TooManyConnections, UsageError
from objects.ids import ObjectId
from objects.ports import (
    MAX_ATTACHMENT_BYTES,
    MAX_CONNECTIONS,
    MAX_EVENT_TIMEOUT_MS,
    MAX_TAG_BYTES,
    MAX_TAGS,
    AutoResponse,
    Clock,
    ConnectionId,
    ConnectionInfo,
    Frame,
    ReadyState,
    UpgradeRequest,
)

_READY_STATES = tuple(ReadyState)  # by number; calling the enum takes longer than sending a message


REFUSALS = ("handshakes_per_second", "connections_per_address", "connections_per_room", "connections_max")
"""Limits that an upgrade can meet."""


@dataclass(slots=True)
class ObjectRecord:
    """One object that has connections, or an instance that may get some."""

    object_id: ObjectId
    group: int = 0
    """Of the table; its owner there is this record."""
    attached: bool = False
    rules: tuple[AutoResponse, ...] = ()
    event_timeout_ms: int | None = None
    standard: dict[ConnectionId, None] = field(default_factory=dict)
    """Connections accepted without hibernation: in no list, without auto-responses. Keys alone: sets are larger."""
    holds: Holds = field(default_factory=Holds)


@dataclass(frozen=True, slots=True)
class SlowPolicy:
    """What to do when a socket does not take its frames: its queue is bounded, then this applies."""

    queue_bytes: int = 1_048_576
    action: Literal["close", "drop-newest"] = "close"
    """`close`: 1013 "too slow". `drop-newest`: the frame is lost to this receiver, counted in `dropped_frames`."""


class HibernationManager:
    """The connections side of every object in this process.

    Args:
        table: where the sockets live; driven by `service.py`.
        clock: the clock whose monotonic time the table is driven with.
        slow: policy for receivers that fall behind.
        max_connections: limit of one object.
        max_per_address: limit of one client address, over all objects; 0: none.
    """

    def __init__(
        self,
        table: SocketTable,
        clock: Clock,
        *,
        slow: SlowPolicy = SlowPolicy(),
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = 0,
    ) -> None:
        self.table = table
        # Of the port; without a step of ours, as it is called the most.
        self.send = cast("Callable[[ConnectionId, Frame], None]", table.send)
        self.clock = clock
        self._slow = slow
        self.max_connections = max_connections
        """Of one object."""
        self._addresses = AddressCounts(max_per_address)
        self._records: dict[ObjectId, ObjectRecord] = {}
        self._standard: dict[ConnectionId, ObjectRecord] = {}
        self._upgrades: dict[ConnectionId, UpgradeRequest] = {}
        self.dropped_replies = 0
        self.refused = dict.fromkeys(REFUSALS, 0)
        """Upgrades refused, by the limit that they met."""
        self.on_disconnect: Callable[[ConnectionId], None] = lambda connection_id: None
        """Called for each connection that `disconnect_all` cuts; set by whoever keeps frames of it."""

    # ── upgrades, from the endpoint ─────────────────────────────────────────────────────────────────────────────────

    def admit(self, client: str | None) -> bool:
        """Count one more connection of this address from its handshake on; False if it has as many as one may have.

        What was counted ends with the connection, with an answer that is no 101 (`answered`), or with `leave`.
        """
        if self._addresses.is_full(client):
            self.refused["connections_per_address"] += 1
            return False
        self._addresses.add(client)
        return True

    def leave(self, client: str | None) -> None:
        """An admitted client got no row."""
        self._addresses.remove(client)

    def begin(self, request: UpgradeRequest) -> None:
        """A `CONNECTING` row exists; from now on the object may accept it."""
        self._upgrades[request.connection_id] = request

    def answered(self, connection_id: ConnectionId, protocol: str | None) -> ObjectId | None:
        """The upgrade is decided: note the subprotocol, and return whose connection it has become, if anyone's."""
        request = self._upgrades.pop(connection_id, None)
        record = self._record_of(connection_id)
        if request is None:
            return None
        if record is None:
            self._addresses.remove(request.client)
            return None
        if protocol is not None:
            tags, _ = self.table.labels(connection_id)
            self._label(request, protocol, tags)
        return record.object_id

    def owner(self, connection_id: ConnectionId) -> ObjectId | None:
        """Return whose connection this is."""
        record = self._record_of(connection_id)
        return None if record is None else record.object_id

    def unlist(self, connection_id: ConnectionId) -> None:
        """Take a connection out of every list; its tags and attachment stay until `forget`."""
        record = self._record_of(connection_id)
        if record is None:
            return
        self._uncount(connection_id)
        record.holds.forget(connection_id)
        record.standard.pop(connection_id, None)
        self._standard.pop(connection_id, None)
        if self.table.group(connection_id) == record.group:
            self.table.assign(connection_id, 0)
        self._drop_if_idle(record)

    def forget(self, connection_id: ConnectionId) -> None:
        """The connection's last event has been settled: free its row."""
        self.unlist(connection_id)
        self._upgrades.pop(connection_id, None)
        self.table.release(connection_id)

    def reply(self, connection_id: ConnectionId, frame: Frame) -> None:
        """Send an auto-response that matched on a held connection, or keep it until the hold ends."""
        record = self._record_of(connection_id)
        if record is None or not record.holds.holds(connection_id):
            self.table.send(connection_id, frame)
        elif not record.holds.keep(connection_id, frame):
            self.dropped_replies += 1

    def objects(self) -> Iterator[tuple[ObjectId, int]]:
        """Iterate over the objects with an instance or connections, and how many connections each has."""
        for record in self._records.values():
            yield record.object_id, self.table.count(record.group) + len(record.standard)

    def counters(self) -> dict[str, int]:
        """Return gauges that are zero when no object has connections or an instance."""
        return {"objects": len(self._records), "upgrades": len(self._upgrades), "standard": len(self._standard)}

    # ── the port `Connections` ──────────────────────────────────────────────────────────────────────────────────────

    async def attach(self, object_id: ObjectId) -> None:
        """See `Connections.attach`: here all answers are at hand."""
        self.mark_attached(object_id)

    def mark_attached(self, object_id: ObjectId) -> None:
        """Keep the object's record from now on, connections or none."""
        self._record(object_id).attached = True

    def detach_all(self) -> None:
        """All instances are gone at once: the process that ran them died."""
        for object_id in list(self._records):
            self.detach(object_id)

    def detach(self, object_id: ObjectId) -> None:
        """See `Connections.detach`."""
        record = self._records.get(object_id)
        if record is not None:
            record.attached = False
            self._end_holds(record)
            self._drop_if_idle(record)

    def accept(self, object_id: ObjectId, connection_id: ConnectionId, tags: Sequence[str], hibernatable: bool) -> None:
        """See `Connections.accept`."""
        request = self._upgrades.get(connection_id)
        if request is None:
            raise UsageError("the connection is unknown, or its upgrade has been answered")
        if self._record_of(connection_id) is not None:
            raise UsageError("the connection was accepted before")
        encoded = [tag.encode() for tag in tags]
        if len(encoded) > MAX_TAGS:
            raise LimitExceeded("tags of a connection", MAX_TAGS, len(encoded))
        if any(len(tag) > MAX_TAG_BYTES for tag in encoded):
            raise LimitExceeded("bytes of a tag", MAX_TAG_BYTES, max(map(len, encoded)))
        record = self._record(object_id)
        if self.table.count(record.group) + len(record.standard) >= self.max_connections:
            self.refused["connections_per_room"] += 1
            self._drop_if_idle(record)
            raise TooManyConnections("connections of an object", self.max_connections)
        self._label(request, None, encoded)
        if hibernatable:
            self.table.assign(connection_id, record.group)
        else:
            record.standard[connection_id] = None
            self._standard[connection_id] = record

    def connections(self, object_id: ObjectId, tag: str | None = None) -> list[ConnectionId]:
        """See `Connections.connections`; O(n) in the table, without a Python step per connection."""
        record = self._records.get(object_id)
        found = [] if record is None else self.table.rows(record.group, None if tag is None else tag.encode())
        return [ConnectionId(handle) for handle in found]

    def count(self, object_id: ObjectId, tag: str | None = None) -> int:
        """See `Connections.count`; O(1) without a tag."""
        record = self._records.get(object_id)
        return 0 if record is None else self.table.count(record.group, None if tag is None else tag.encode())

    def info(self, connection_id: ConnectionId) -> ConnectionInfo | None:
        """See `Connections.info`."""
        try:
            tags, packed = self.table.labels(connection_id)
        except KeyError:
            return None
        return unpack_info(connection_id, tags, packed) if packed else None

    def ready_state(self, connection_id: ConnectionId) -> ReadyState:
        """See `Connections.ready_state`."""
        return _READY_STATES[self.table.ready_state(connection_id)]

    def close(self, connection_id: ConnectionId, code: int | None, reason: str) -> None:
        """See `Connections.close`."""
        self.table.close(connection_id, code or 0, reason)

    def broadcast(
        self, object_id: ObjectId, data: Frame, tag: str | None = None, exclude: Sequence[ConnectionId] = ()
    ) -> int:
        """See `Connections.broadcast`."""
        record = self._records.get(object_id)
        if record is None:
            return 0
        label = None if tag is None else tag.encode()
        return self.table.broadcast_group(record.group, data, label, frozenset(exclude))

    def hold(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """See `Connections.hold`."""
        record = self._records.get(object_id)
        if record is not None and record.holds.hold(connection_id):
            self._set_held(record, connection_id, held=True)

    def release(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """See `Connections.release`."""
        record = self._records.get(object_id)
        if record is not None and record.holds.release(connection_id):
            self._set_held(record, connection_id, held=False)
            self._send_free_replies(record)

    def buffered_amount(self, connection_id: ConnectionId) -> int:
        """See `Connections.buffered_amount`."""
        return self.table.buffered(connection_id)

    def set_attachment(self, connection_id: ConnectionId, value: bytes | None) -> None:
        """See `Connections.set_attachment`.

        Raises:
            LimitExceeded: over 16,384 bytes; the old value is kept.
        """
        if value is not None and len(value) > MAX_ATTACHMENT_BYTES:
            raise LimitExceeded("bytes of an attachment", MAX_ATTACHMENT_BYTES, len(value))
        if self._exists(connection_id):
            self.table.attach(connection_id, value)

    def attachment(self, connection_id: ConnectionId) -> bytes | None:
        """See `Connections.attachment`."""
        return self.table.attachment(connection_id) if self._exists(connection_id) else None

    def set_auto_responses(self, object_id: ObjectId, rules: Sequence[AutoResponse]) -> None:
        """See `Connections.set_auto_responses`."""
        encoded = table_rules(rules)
        record = self._record(object_id)
        record.rules = tuple(rules)
        self.table.set_auto_responses(record.group, encoded)
        self._drop_if_idle(record)

    def auto_responses(self, object_id: ObjectId) -> tuple[AutoResponse, ...]:
        """See `Connections.auto_responses`."""
        record = self._records.get(object_id)
        return () if record is None else record.rules

    def auto_response_at_ms(self, connection_id: ConnectionId) -> int | None:
        """See `Connections.auto_response_at_ms`."""
        at = self.table.auto_response_at(connection_id) if self._exists(connection_id) else None
        return None if at is None else self._unix_ms(at)

    def last_seen_ms(self, connection_id: ConnectionId) -> int | None:
        """See `Connections.last_seen_ms`."""
        return self._unix_ms(self.table.last_seen(connection_id)) if self._exists(connection_id) else None

    def set_event_timeout(self, object_id: ObjectId, timeout_ms: int | None) -> None:
        """See `Connections.set_event_timeout`."""
        if timeout_ms is not None and not 0 <= timeout_ms <= MAX_EVENT_TIMEOUT_MS:
            raise LimitExceeded("event timeout in ms", MAX_EVENT_TIMEOUT_MS, timeout_ms)
        record = self._record(object_id)
        record.event_timeout_ms = timeout_ms or None
        self._drop_if_idle(record)

    def event_timeout(self, object_id: ObjectId) -> int | None:
        """See `Connections.event_timeout`."""
        record = self._records.get(object_id)
        return None if record is None else record.event_timeout_ms

    def disconnect_all(self, object_id: ObjectId, reason: str) -> None:
        """See `Connections.disconnect_all`; upgrades still to be answered leave the object's lists."""
        record = self._records.pop(object_id, None)
        if record is None:
            return
        for handle in [*self.table.rows(record.group), *record.standard]:
            connection_id = ConnectionId(handle)
            self._standard.pop(connection_id, None)
            if connection_id in self._upgrades:
                self.table.assign(connection_id, 0)
                continue
            self._uncount(connection_id)
            self.table.abort(connection_id)
            self.table.release(connection_id)
            self.on_disconnect(connection_id)
        self.table.remove_group(record.group)

    # ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _record(self, object_id: ObjectId) -> ObjectRecord:
        record = self._records.get(object_id)
        if record is None:
            record = ObjectRecord(object_id)
            record.group = self.table.add_group(record)
            self.table.set_slow_policy(record.group, self._slow.queue_bytes, self._slow.action == "close")
            self._records[object_id] = record
        return record

    def _record_of(self, connection_id: ConnectionId) -> ObjectRecord | None:
        record: ObjectRecord | None = self.table.owner(connection_id)
        return record or self._standard.get(connection_id)

    def _drop_if_idle(self, record: ObjectRecord) -> None:
        """Forget an object without an instance and without connections, rules and all."""
        if not record.attached and not record.standard and not self.table.count(record.group):
            self._records.pop(record.object_id, None)
            self.table.remove_group(record.group)

    def _uncount(self, connection_id: ConnectionId) -> None:
        if self._addresses.most and (info := self.info(connection_id)) is not None:
            self._addresses.remove(info.client)

    def _exists(self, connection_id: ConnectionId) -> bool:
        try:
            self.table.last_seen(connection_id)
        except KeyError:
            return False
        return True

    def _label(self, request: UpgradeRequest, protocol: str | None, tags: Sequence[bytes]) -> None:
        info = pack_info(request.url, protocol, self.clock.unix_ms(), request.client)
        self.table.label(request.connection_id, tags, info)

    def _unix_ms(self, at: float) -> int:
        return round(self.clock.unix_ms() - (self.clock.monotonic() - at) * 1000)

    # ── holds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _set_held(self, record: ObjectRecord, connection_id: ConnectionId | None, *, held: bool) -> None:
        if connection_id is None:
            self.table.hold_group(record.group, held)
        else:
            self.table.hold(connection_id, held)

    def _end_holds(self, record: ObjectRecord) -> None:
        for connection_id in record.holds.clear():
            self._set_held(record, connection_id, held=False)
        self._send_free_replies(record)

    def _send_free_replies(self, record: ObjectRecord) -> None:
        for connection_id, replies in record.holds.free_replies():
            for frame in replies:
                self.table.send(connection_id, frame)
