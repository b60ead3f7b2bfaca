"""WebSockets as object code sees them: handles by connection id.

The connection itself lives on the connections side and outlives the instance. A handle is a name for it: everything
that must survive hibernation (tags, attachment, "we sent close") is asked from there. Attributes set on a handle die
with the instance; inside one instance a connection always has the same handle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from objects import codec
from objects._step.step import SURELY_SHORT, Sender
from objects.blockers import WEB_SOCKET
from objects.errors import LimitExceeded, UsageError
from objects.ports import (
    MAX_ATTACHMENT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TAG_BYTES,
    MAX_TAGS,
    ConnectionId,
    ConnectionInfo,
    Connections,
    Frame,
    ReadyState,
    UpgradeAccepted,
)
from objects.text import utf8_size

if TYPE_CHECKING:
    from objects.instance import Instance

_RESERVED_CODES = frozenset({1004, 1005, 1006, 1015})
MAX_REASON_BYTES = 123


class WebSocket(Sender):
    """One connection of this object; `send` is compiled, see `_step/step.pyi`."""

    # An awake object has one for each connection. Code of objects may add attributes of its own: those are in the dict.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_connections",
        "_inbox",
        "_instance",
        "_last_attachment",
        "_last_info",
        "answer",
    )

    def __init__(self, instance: Instance, connections: Connections, connection_id: ConnectionId) -> None:
        self.connection_id = connection_id
        self.answer: UpgradeAccepted | None = None
        self._instance = instance
        self._output = instance.output
        self._connections = connections
        self._pass_on = connections.send
        self._inbox: _Inbox | None = None
        self._last_attachment: bytes | None = None
        self._last_info: ConnectionInfo | None = None

    def __repr__(self) -> str:
        return f"<WebSocket {self.connection_id} {self.ready_state.name.lower()}>"

    @property
    def ready_state(self) -> ReadyState:
        """The state; CLOSING once this side has called `close`, in this life of the object or an earlier one."""
        state = self._connections.ready_state(self.connection_id)
        return ReadyState.CLOSING if self._closing and state is ReadyState.OPEN else state

    @property
    def info(self) -> ConnectionInfo | None:
        """URL, protocol, tags and time of the upgrade; survives hibernation."""
        info = self._connections.info(self.connection_id)
        return self._last_info if info is None else info

    @property
    def buffered_amount(self) -> int:
        """Bytes given to `send` that the transport has not taken yet."""
        return self._connections.buffered_amount(self.connection_id)

    @property
    def last_seen_ms(self) -> int | None:
        """When the peer last sent anything, pongs included (Unix ms)."""
        return self._connections.last_seen_ms(self.connection_id)

    def _send_otherwise(self, message: Frame) -> None:
        kind = type(message)
        # Text is looked at whatever its length: behind a gate it leaves when nobody is there to be told.
        if kind is not bytes or len(message) > SURELY_SHORT:
            check_message(message)
        if not self.failed and self._may_send():
            self._leave(lambda: self._pass_on(self.connection_id, message))

    def _may_send(self) -> bool:
        state = self._connections.ready_state(self.connection_id)
        if state is ReadyState.CLOSED:
            return False
        if self._closing or state is ReadyState.CLOSING:
            raise UsageError("send after close")
        if state is ReadyState.CONNECTING and self.answer is None:
            raise UsageError("the WebSocket has not been accepted")
        self._has_been_open = state is ReadyState.OPEN
        return True

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Queue a close frame behind what was sent; a second call is ignored.

        Raises:
            UsageError: a code outside 1000 to 4999, or one of 1004, 1005, 1006, 1015; a reason without a code, or
                above 123 bytes of UTF-8, or no text.
        """
        if code is not None and (not 1000 <= code <= 4999 or code in _RESERVED_CODES):
            raise UsageError(f"{code} cannot be sent as a close code")
        if reason and code is None:
            raise UsageError("a close reason needs a code")
        if utf8_size(reason, "a close reason") > MAX_REASON_BYTES:
            raise UsageError(f"a close reason has at most {MAX_REASON_BYTES} bytes")
        if self.failed or self._closing:
            return
        if self.ready_state in (ReadyState.CLOSING, ReadyState.CLOSED):
            self._closing = True  # of no use to the peer, but messages may wait here
            return
        if self.answer is None and self.ready_state is ReadyState.CONNECTING:
            raise UsageError("the WebSocket has not been accepted")
        self._closing = True
        self._leave(lambda: self._connections.close(self.connection_id, code, reason))

    def serialize_attachment(self, value: object) -> None:
        """Keep a copy of `value` with the connection: survives hibernation, not the connection.

        Raises:
            LimitExceeded: more than 16,384 bytes serialized; the old value is kept.
            NotSerializable: of a type that `codec` does not carry.
        """
        data = None if value is None else codec.encode(value, limit=MAX_ATTACHMENT_BYTES)
        self._connections.set_attachment(self.connection_id, data)

    def deserialize_attachment(self) -> Any:
        """Return a fresh copy of the attachment, or None."""
        data = self._connections.attachment(self.connection_id)
        if data is None:
            data = self._last_attachment
        return None if data is None else codec.decode(data)

    def retain(self) -> None:
        """Keep attachment and info for the handler of the last event: once that waits, the connection is forgotten."""
        self._last_attachment = self._connections.attachment(self.connection_id)
        self._last_info = self._connections.info(self.connection_id)

    def accept(self, protocol: str | None = None) -> None:
        """Accept without hibernation: read with `async for message in ws`. Keeps the instance in memory.

        Raises:
            UsageError: accepted before.
        """
        self._instance.accept(self, (), protocol, hibernatable=False)
        self._inbox = _Inbox()
        self.stands_alone = True
        self._instance.blockers.add(WEB_SOCKET)

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Iterate over the messages of a socket accepted with `accept`, until it is closed."""
        if self._inbox is None:
            raise UsageError("messages of a hibernatable WebSocket go to web_socket_message")
        while (message := await self._inbox.take()) is not None:
            yield message

    # The instance's side

    def receive(self, message: Frame | None, taken: Callable[[], None]) -> None:
        """Give a message (None: the end) to the reader; `taken` is called when it has it."""
        assert self._inbox is not None
        if message is None:
            self._instance.blockers.remove(WEB_SOCKET)
        self._inbox.give(message, taken)

    def _leave(self, act: Callable[[], None]) -> None:
        output = self._output
        if output.is_open:
            act()
            return
        # Auto-responses must not overtake what waits at the gate.
        key = self._instance.object_id
        self._connections.hold(key, self.connection_id)

        def release() -> None:
            act()
            self._connections.release(key, self.connection_id)

        output.pass_(release)


class _Inbox:
    """Messages of one socket; filled one at a time, since the next comes when this one was taken."""

    def __init__(self) -> None:
        self._items: deque[tuple[Frame | None, Callable[[], None]]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._ended = False

    def give(self, message: Frame | None, taken: Callable[[], None]) -> None:
        self._items.append((message, taken))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> Frame | None:
        while not self._items:
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message, taken = self._items.popleft()
        taken()
        self._ended = message is None
        return message


def check_message(message: Frame) -> None:
    """Refuse what cannot be sent as one message."""
    if not isinstance(message, (str, bytes)):
        raise UsageError(f"a message is str or bytes, not {type(message).__name__}")
    size = utf8_size(message, "a message") if isinstance(message, str) else len(message)
    if size > MAX_MESSAGE_BYTES:
        raise LimitExceeded("a message in bytes", MAX_MESSAGE_BYTES, size)


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct tags in order; each entry is checked in turn, duplicates included.

    Raises:
        UsageError: not a str.
        LimitExceeded: more than 10 entries so far, or more than 256 bytes.
    """
    distinct: list[str] = []
    for tag in tags:
        if not isinstance(tag, str):
            raise UsageError(f"a tag is a str, not {type(tag).__name__}")
        if len(distinct) >= MAX_TAGS:
            raise LimitExceeded("tags of one WebSocket", MAX_TAGS)
        if (size := utf8_size(tag, "a tag")) > MAX_TAG_BYTES:
            raise LimitExceeded("a tag in bytes", MAX_TAG_BYTES, size)
        if tag not in distinct:
            distinct.append(tag)
    return tuple(distinct)
