"""Messages in a byte stream: STUN and ChannelData over TCP and TLS (RFC 8489 §6.2.2, RFC 8656 §12.5; T1, T2)."""

from __future__ import annotations

from turn.channel import CHANNEL_HEADER_BYTES
from turn.errors import StreamError
from wire.stun import HEADER_BYTES

_CONNECTION_BIND_REQUEST = b"\x00\x0b"
_CONNECTION_BINDS_MAX = 16
"""Of one stream: a challenge, a stale nonce and some mistakes. Each ends a batch, so many would cost much."""


class StreamFramer:
    """Cuts a client's stream into messages, whatever its segmentation. Holds at most one unfinished message.

    `receive_data(data, now)`, then `messages_received()`. A message comes with its padding.

    Behind a ConnectionBind request the stream may be a peer's (RFC 6062 §5.4): nothing is cut until `resume`, or
    `take_rest` ends the framing.
    """

    __slots__ = ("_binds", "_buffer", "_messages", "held", "partial_since")

    held: bool
    """A ConnectionBind has been cut, and what is behind it waits for its answer."""

    partial_since: float | None
    """When the unfinished message began to arrive; None between messages."""

    def __init__(self) -> None:
        self._binds = 0
        self._buffer = b""
        self._messages: list[bytes] = []
        self.held = False
        self.partial_since = None

    def receive_data(self, data: bytes, now: float) -> None:
        """Take what arrived.

        Raises:
            StreamError: a message begins with a byte that is neither STUN nor ChannelData, or is a ConnectionBind too
                many. Messages before it stand.
        """
        had_partial = bool(self._buffer)
        buffer = self._buffer + data if had_partial else data
        at = 0
        size = len(buffer)
        try:
            while at < size and not self.held:
                end = at + _message_size(buffer, at)
                if end > size or size - at < CHANNEL_HEADER_BYTES:
                    break
                if buffer[at : at + 2] == _CONNECTION_BIND_REQUEST:
                    self._count_bind()
                self._messages.append(buffer[at:end])
                at = end
        finally:
            self._buffer = buffer[at:]
            if not self._buffer or self.held:
                self.partial_since = None
            elif at or not had_partial or self.partial_since is None:
                self.partial_since = now

    def _count_bind(self) -> None:
        self._binds += 1
        if self._binds > _CONNECTION_BINDS_MAX:
            raise StreamError(f"more than {_CONNECTION_BINDS_MAX} ConnectionBinds")
        self.held = True

    def resume(self, now: float) -> None:
        """The ConnectionBind was refused: go on cutting.

        Raises:
            StreamError: as `receive_data`.
        """
        self.held = False
        self.receive_data(b"", now)

    def take_rest(self) -> bytes:
        """The ConnectionBind succeeded: return what came behind it. Nothing is cut any more."""
        rest, self._buffer = self._buffer, b""
        return rest

    def messages_received(self) -> list[bytes]:
        """The whole messages since asked last."""
        messages, self._messages = self._messages, []
        return messages


def split(frames: bytes) -> list[bytes]:
    """Whole, well-formed messages, one after the other: what the relay plane queued for a client."""
    messages = []
    at = 0
    while at < len(frames):
        end = at + _message_size(frames, at)
        messages.append(frames[at:end])
        at = end
    return messages


def _message_size(buffer: bytes, at: int) -> int:
    """Bytes of the message that begins at `at`; 4, a lower bound, while its length field is not complete."""
    first = buffer[at]
    if 4 <= first <= 0x3F or first >= 0x80:
        raise StreamError(f"a message begins with {first:#04x}")
    if len(buffer) - at < CHANNEL_HEADER_BYTES:
        return CHANNEL_HEADER_BYTES
    length = int.from_bytes(buffer[at + 2 : at + 4], "big")
    if first <= 3:
        return HEADER_BYTES + length
    # 0x50 to 0x7F is no channel of ours, but measured like one, and dropped by the plane (RFC 8656 §12.6).
    return CHANNEL_HEADER_BYTES + (length + 3 & ~3)
