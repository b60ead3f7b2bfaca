"""What objects need from outside, and what the outside may ask of them: the seams of this package.

    Waker           objects implement it   the connections side calls it: connect, message, close, error
    Connections     others implement it    accept, list, send, close, attachments, auto-responses
    Placement       others implement it    who may run an object now: claims with a fencing epoch
    StorageEngine   others implement it    makes an object's SQLite file ready, makes its commits durable
    AlarmStore      others implement it    when to wake which object, durable by itself
    Clock           others implement it    monotonic and wall time, timers

Everything that passes is a value (ids, bytes, text, numbers, frozen dataclasses), so the two sides may live in
different processes. All methods are called on the event loop's thread. Methods that are not `async` never block and
never wait for the other side: a remote filling answers queries from a mirror that it loads in `attach`.

The life of a connection, as both sides see it:

    upgrade request ──Waker.connect──▶ object runs its handler ──Connections.accept──▶ row with tags, before the 101
                    ◀── UpgradeAccepted: the 101 goes out, then whatever was sent meanwhile, in order
    frame ──Waker.deliver(MessageReceived)──▶ woken if need be, FIFO ──settled(DISPATCHED)──▶ the connection's next
    no handler runs, nothing pending, 10 s: ──Connections.detach──▶ the instance is gone, rows stay
    peer closes ──Waker.deliver(ConnectionClosed)──▶ handler started ──settled──▶ row removed from every list
    the instance is reset ──Connections.disconnect_all──▶ transports end without a close frame (clients see 1006)

What survives hibernation: rows, tags, attachments, auto-response rules, timestamps, event timeout, unsent frames, "we
sent close". What survives a reset or the loss of the connections' process: nothing; storage is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Literal, NewType, Protocol

from objects.ids import ObjectId

# ── connections: values ─────────────────────────────────────────────────────────────────────────────────────────────

ConnectionId = NewType("ConnectionId", int)
"""Names one connection for its whole life; 64 bits, never used twice by one gateway process."""

Frame = str | bytes
"""A whole message: `str` for text, `bytes` for binary."""

MAX_CONNECTIONS = 32_768
"""Connections of one object."""
MAX_TAGS = 10
"""Distinct tags of one connection."""
MAX_TAG_BYTES = 256
"""UTF-8 bytes of one tag."""
MAX_ATTACHMENT_BYTES = 16_384
"""Serialized attachment of one connection, header included."""
MAX_AUTO_RESPONSE_BYTES = 2_048
"""Bytes of a rule's request, and of its response."""
MAX_AUTO_RESPONSES = 16
"""Rules of one object."""
MAX_EVENT_TIMEOUT_MS = 604_800_000
"""Seven days."""
MAX_MESSAGE_BYTES = 33_554_432
"""One received or sent message: 32 MiB."""


class ReadyState(IntEnum):
    """As browsers number it. `CONNECTING`: the upgrade request has not been answered yet."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    """Our close was queued or sent and the peer's has not arrived. Frames from the peer are still delivered."""
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class AutoResponse:
    """A reply sent by the connections side: no handler runs, nothing wakes, the idle time goes on.

    The first rule that fits wins. A `str` request matches text frames only, a `bytes` request binary ones only.
    """

    request: Frame
    response: Frame
    match: Literal["exact", "prefix"] = "exact"
    tag: str | None = None
    """Only connections with this tag; `None` is all."""


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A client asks for a WebSocket. The connection exists already, in `ReadyState.CONNECTING`."""

    connection_id: ConnectionId
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    """Names in lower case, in order of arrival."""
    protocols: tuple[str, ...] = ()
    """Offered subprotocols, in order of preference."""
    client: str | None = None
    """Address of the peer, for logs and limits."""


@dataclass(frozen=True, slots=True)
class UpgradeAccepted:
    """Send the 101, then what was sent to the connection meanwhile. The object called `Connections.accept` before."""

    protocol: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class UpgradeRefused:
    """Answer with this HTTP response and forget the connection."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


UpgradeAnswer = UpgradeAccepted | UpgradeRefused


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What is known of a connection since its upgrade; survives hibernation."""

    connection_id: ConnectionId
    url: str
    protocol: str | None
    tags: tuple[str, ...]
    accepted_at_ms: int
    client: str | None = None


# ── connections → objects ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """One whole message that no auto-response took."""

    connection_id: ConnectionId
    data: Frame


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The last event of a connection, exactly once.

    A close frame without a status is 1005 with an empty reason; an end without a close frame is 1006, not clean.
    """

    connection_id: ConnectionId
    code: int
    reason: str
    was_clean: bool


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """A failure other than a lost peer, such as a protocol error. `ConnectionClosed` follows."""

    connection_id: ConnectionId
    message: str


ConnectionEvent = MessageReceived | ConnectionClosed | ConnectionFailed


class Delivery(Enum):
    """What became of an event."""

    DISPATCHED = "dispatched"
    """The first synchronous part of its handler has run (or there is no handler). Give the connection's next event."""
    OVERLOADED = "overloaded"
    """The object's queue is full; the event is lost. Close this connection alone (1013); others are unaffected."""
    FAILED = "failed"
    """The instance could not start, or was reset with the event in its queue; `disconnect_all` has been called."""


class Waker(Protocol):
    """The objects side. Delivers events in order to an object, waking it if needed; implemented by `objects.host`."""

    async def connect(self, object_id: ObjectId, request: UpgradeRequest) -> UpgradeAnswer:
        """Let the object decide on an upgrade; the answer has passed the output gate.

        Never raises: overload is a refusal with 503, an exception of the handler one with 500. Cancel it when the
        client goes away; an accepted connection then ends with `ConnectionClosed` like any other.
        """

    def deliver(self, object_id: ObjectId, event: ConnectionEvent, settled: Callable[[Delivery], None]) -> None:
        """Queue an event; `settled` is called exactly once, on the loop, never before this method returns.

        Order of starts is the order of calls. To keep memory bounded give the next message of a connection only after
        the previous one is settled, and stop reading the transport meanwhile: that is the backpressure.
        `ConnectionClosed` is never refused as overloaded.
        """

    def handle_now(self, object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
        """Run the handler of a message up to where it first waits, if its object is awake and nothing is to come first.

        The short way of the commonest event: no queue, no task, no callback. Call it outside of any task, and only
        while no event of the connection is unsettled.

        Returns:
            True: as if `deliver` had settled the message as `DISPATCHED`. False: nothing has happened, `deliver` it.
            A waker that is not in the same process as its objects always says so.
        """


# ── objects → connections ───────────────────────────────────────────────────────────────────────────────────────────


class Connections(Protocol):
    """The connections side: owns every server-side WebSocket, its tags, attachment and unsent frames.

    Limits that need only the values are checked by the caller (`objects`); an implementation checks those that need its
    tables (`MAX_CONNECTIONS`, state) and may trust the rest only if it runs in the same process. A connection that is
    gone is not an error: queries answer empty, actions do nothing. Only `accept` raises.
    """

    async def attach(self, object_id: ObjectId) -> None:
        """Called before an instance starts; when it returns all queries about the object's connections can be answered.

        Raises:
            Disconnected: gateways that hold connections of the object could not be reached.
        """

    def detach(self, object_id: ObjectId) -> None:
        """The instance hibernated or was evicted and no event is under way. Connections and all their state stay."""

    def accept(self, object_id: ObjectId, connection_id: ConnectionId, tags: Sequence[str], hibernatable: bool) -> None:
        """Put a `CONNECTING` connection into the object's lists.

        Args:
            tags: at most 10, distinct, in the order given.
            hibernatable: False keeps the instance in memory (the objects side counts that); such a connection is in no
                list and gets no auto-responses, but its events are delivered in the same way.

        Raises:
            UsageError: unknown, accepted before, or its upgrade answered already.
            TooManyConnections: the object has `MAX_CONNECTIONS`, or as many as the implementation lets it have.
        """

    def connections(self, object_id: ObjectId, tag: str | None = None) -> list[ConnectionId]:
        """Return accepted hibernatable connections, oldest first, with `tag` if given.

        A connection is in the list from `accept` until its `ConnectionClosed` has been settled.
        """

    def count(self, object_id: ObjectId, tag: str | None = None) -> int:
        """Return how many `connections` would return; O(1) where the implementation can. Wakes nothing."""

    def info(self, connection_id: ConnectionId) -> ConnectionInfo | None:
        """Return what is known since the upgrade, also while its close or error event is being handled."""

    def ready_state(self, connection_id: ConnectionId) -> ReadyState:
        """Return the state; `CLOSED` if unknown, `CLOSING` once `close` was called, in this life or an earlier one."""

    def send(self, connection_id: ConnectionId, data: Frame) -> None:
        """Queue one message; the output gate has let it pass. Frames survive hibernation until written."""

    def close(self, connection_id: ConnectionId, code: int | None, reason: str) -> None:
        """Queue a close frame behind earlier sends; `None` is a frame without a status. The second call is ignored."""

    def broadcast(
        self, object_id: ObjectId, data: Frame, tag: str | None = None, exclude: Sequence[ConnectionId] = ()
    ) -> int:
        """Queue one message to all open connections of the object (with `tag`), encoded once; return to how many."""

    def hold(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """A message for the connection (None: for any of the object's) waits for the object's output gate.

        Until as many `release` calls, auto-responses of it queue up instead of overtaking that message. `send`, `close`
        and `broadcast` called meanwhile are not held. Holds end with `detach` and `disconnect_all`.
        """

    def release(self, object_id: ObjectId, connection_id: ConnectionId | None) -> None:
        """End one `hold`; queued auto-responses follow what was sent before."""

    def buffered_amount(self, connection_id: ConnectionId) -> int:
        """Return the bytes accepted by `send` that the transport has not taken yet."""

    def set_attachment(self, connection_id: ConnectionId, value: bytes | None) -> None:
        """Keep at most 16,384 bytes with the connection, replacing what was there."""

    def attachment(self, connection_id: ConnectionId) -> bytes | None:
        """Return the last value set, also while the close or error event is being handled."""

    def set_auto_responses(self, object_id: ObjectId, rules: Sequence[AutoResponse]) -> None:
        """Replace the rules for all connections of the object; a reply under way is not disturbed."""

    def auto_responses(self, object_id: ObjectId) -> tuple[AutoResponse, ...]:
        """Return the rules in force."""

    def auto_response_at_ms(self, connection_id: ConnectionId) -> int | None:
        """Return when a rule last matched on this connection (Unix ms); kept after the rules are cleared."""

    def last_seen_ms(self, connection_id: ConnectionId) -> int | None:
        """Return when the peer last sent anything, pongs included (Unix ms)."""

    def set_event_timeout(self, object_id: ObjectId, timeout_ms: int | None) -> None:
        """Remember the limit for one message, close or error handler; the objects side enforces it."""

    def event_timeout(self, object_id: ObjectId) -> int | None:
        """Return the limit in force, in ms."""

    def disconnect_all(self, object_id: ObjectId, reason: str) -> None:
        """The instance was reset: end all connections of the object at once, without a close frame and without events.

        Attachments, rules, timestamps, queued frames and holds go with them; `CONNECTING` ones are not affected, their
        `connect` call answers. `reason` is for logs.
        """


# ── placement ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run an object. Each claim of an object has a higher epoch than all before it."""

    object_id: ObjectId
    epoch: int


class Placement(Protocol):
    """Who runs which object: at most one owner, and a stale owner cannot commit."""

    async def claim(self, object_id: ObjectId) -> Claim:
        """Become the owner, before anything is loaded.

        Raises:
            Fenced: somebody else owns it and is alive.
        """

    def holds(self, claim: Claim) -> bool:
        """Return False if the claim may have been lost: then no event starts, nothing commits and no output leaves."""

    async def release(self, claim: Claim) -> None:
        """Give the object up; everything is durable and its file closed."""


# ── storage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """An object's file, ready to be opened."""

    path: Path
    restored: bool = False
    """It holds an earlier state than the alarm store knows of: tell that its alarms, then call `settle_restore`."""


class StorageEngine(Protocol):
    """Keeps one SQLite file (WAL mode) per object and makes its commits durable off the event loop.

    `objects.sqlite` opens the file, runs the statements and COMMITs with `synchronous=OFF`, which only hands pages to
    the kernel. The engine then makes the commit durable: embedded by flushing the log, in a cluster by shipping its new
    frames. Automatic checkpoints are off; the engine makes them, flushed, when nothing reads the log any more.
    """

    def exists(self, object_id: ObjectId) -> bool:
        """Return whether the object has ever committed anything. May touch the disk, but only its metadata."""

    async def load(self, claim: Claim) -> LoadedFile:
        """Make the file ready to be opened: log recovered and durable, a pending restore applied.

        Raises:
            StorageError: the file cannot be served as it is.
        """

    def commit(
        self, claim: Claim, seq: int, alarm_at_ms: int | None, settled: Callable[[Exception | None], None]
    ) -> None:
        """Make everything that was committed to the file so far durable.

        Args:
            seq: number of the last batch, from 1 within this claim; grows.
            alarm_at_ms: the earliest alarm after this batch, or None. Only engines that replicate need it.
            settled: called once, on the loop, in order of `seq`; with an exception if durability cannot be had.
        """

    async def unload(self, claim: Claim) -> None:
        """The file was closed and nothing is being committed: let go of it."""

    def mark(self, claim: Claim, bookmark: str, settled: Callable[[Exception | None], None]) -> None:
        """Keep the object's state as it is committed at this moment, under `bookmark`.

        Args:
            bookmark: sorts by time; letters, digits and `-`.
            settled: called once, on the loop, when the restore point is durable or could not be made.
        """

    async def bookmarks(self, object_id: ObjectId) -> list[str]:
        """Return the restore points that are kept, oldest first."""

    async def settle_restore(self, claim: Claim) -> None:
        """The alarms of a restored file are in the alarm store: do not say `restored` again."""

    async def restore_next(self, claim: Claim, bookmark: str, undo: str) -> None:
        """At the next `load`, put the state of `bookmark` in place and keep the state it replaces under `undo`.

        Raises:
            UsageError: no such restore point.
        """


# ── alarms ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AlarmEntry:
    """When to wake an object. The object's own storage has the last word on whether the alarm still stands."""

    object_id: ObjectId
    """With its name, so that an object woken by its alarm knows it."""
    alarm: str
    """Name of the alarm; the one without a name is the empty string."""
    scheduled_ms: int
    """The time that was asked for (Unix ms)."""
    due_ms: int
    """When to run it: `scheduled_ms`, or later while it is being retried."""
    retry_count: int = 0
    """Retries so far that count against the limit."""
    attempt: int = 0
    """Failed runs so far since the backoff last restarted: the exponent of the backoff."""
    interrupted: bool = False
    """The last failure was not the handler's fault."""


class AlarmStore(Protocol):
    """Durable by itself, apart from the objects' storage. One entry per object and alarm name; never loses one."""

    async def put(self, entries: Sequence[AlarmEntry]) -> None:
        """Add or replace entries; durable when it returns.

        Raises:
            StorageError: nothing was changed.
        """

    async def remove(self, entries: Sequence[AlarmEntry]) -> None:
        """Remove entries, each only if its `scheduled_ms` is still the one given; durable when it returns."""

    async def due(self, now_ms: int, limit: int) -> list[AlarmEntry]:
        """Return up to `limit` entries with `due_ms` ≤ `now_ms`, most overdue first."""

    async def next_due_ms(self, after_ms: int) -> int | None:
        """Return the earliest `due_ms` greater than `after_ms`, if any."""


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Timer(Protocol):
    """A call that has been scheduled."""

    def cancel(self) -> None:
        """Forget it; harmless when it ran already."""


class Clock(Protocol):
    """Time as objects see it, so that tests can move it by hand."""

    def monotonic(self) -> float:
        """Return seconds since some point, never going back."""

    def unix_ms(self) -> int:
        """Return milliseconds since 1970."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back on the loop after `delay` seconds."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All that a host is built on."""

    placement: Placement
    storage: StorageEngine
    alarms: AlarmStore
    clock: Clock
    connections: Connections | None = field(default=None)
    """None for a host without WebSockets: objects then cannot accept any."""
