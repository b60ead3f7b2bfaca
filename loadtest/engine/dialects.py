"""How a room message travels: as a WebSocket text frame itself, or inside socket.io's envelope.

A load message is `kind sender sequence sent_at padding`: a character, then 8, 8 and 16 hexadecimal digits, then dots.
`kind` is what the load room acts on (`loadtest.peers`); `sent_at` is the sender's monotonic clock in ns, which all
processes of one machine share: delays are valid between them only.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

BROADCAST: Final = "b"
ECHO: Final = "e"
WRITE: Final = "w"
HEADER_LENGTH: Final = 33
"""Shortest message."""


class LoadMessage(NamedTuple):
    """What a received message says about itself."""

    kind: str
    sender: int
    sequence: int
    sent_ns: int


def compose(kind: str, sender: int, sequence: int, sent_ns: int, size: int) -> str:
    """A load message of `size` bytes, at least `HEADER_LENGTH`."""
    return f"{kind}{sender:08x}{sequence & 0xFFFFFFFF:08x}{sent_ns:016x}".ljust(size, ".")


def decompose(message: bytes) -> LoadMessage | None:
    """The message's header; None for what is no load message."""
    if len(message) < HEADER_LENGTH:
        return None
    try:
        return LoadMessage(
            chr(message[0]), int(message[1:9], 16), int(message[9:17], 16), int(message[17:HEADER_LENGTH], 16)
        )
    except ValueError:
        return None


class Dialect(Protocol):
    """A way to talk to a room over a WebSocket."""

    greets: bool
    """Whether the room is joined only after an exchange beyond the WebSocket handshake."""

    def wrap(self, message: str) -> bytes:
        """A room message as the payload of a text frame."""

    def unwrap(self, payload: bytes) -> bytes | None:
        """The room message in a text frame; None when there is none."""

    def answer(self, payload: bytes) -> bytes | None:
        """What must be sent back for the protocol's own sake."""

    def joined(self, payload: bytes) -> bool:
        """Whether this frame completes the joining."""


class Text:
    """One text frame a message."""

    greets = False

    def wrap(self, message: str) -> bytes:
        """See `Dialect`."""
        return message.encode()

    def unwrap(self, payload: bytes) -> bytes | None:
        """See `Dialect`."""
        return payload

    def answer(self, payload: bytes) -> bytes | None:
        """See `Dialect`."""
        return None

    def joined(self, payload: bytes) -> bool:
        """See `Dialect`."""
        return False


class SocketIo:
    """Engine.IO 4 packets (open 0, ping 2, pong 3, message 4) with socket.io 5 packets (connect 0, event 2) in them."""

    greets = True
    _PREFIX = b'42["message","'
    _SUFFIX = b'"]'

    def wrap(self, message: str) -> bytes:
        """See `Dialect`. Load messages hold nothing that JSON would escape."""
        return self._PREFIX + message.encode() + self._SUFFIX

    def unwrap(self, payload: bytes) -> bytes | None:
        """See `Dialect`."""
        if payload.startswith(self._PREFIX) and payload.endswith(self._SUFFIX):
            return payload[len(self._PREFIX) : -len(self._SUFFIX)]
        return None

    def answer(self, payload: bytes) -> bytes | None:
        """See `Dialect`: the namespace is joined after the open packet, a ping gets its pong."""
        if payload[:1] == b"0":
            return b"40"
        return b"3" if payload == b"2" else None

    def joined(self, payload: bytes) -> bool:
        """See `Dialect`."""
        return payload.startswith(b"40")


DIALECTS: Final[dict[str, Dialect]] = {"text": Text(), "socket.io": SocketIo()}
DialectName = Literal["text", "socket.io"]


def room_url(url: str, path: str, room: str, *, websocket: bool = True) -> str:
    """Address of a room.

    Args:
        url: `http(s)://` or `ws(s)://` address of the server.
        path: of a room, with `{room}` in it.
        websocket: with the scheme of a WebSocket, else of HTTP.

    Raises:
        ValueError: another scheme, or no host.
    """
    parts = urlsplit(url)
    secure = {"http": False, "ws": False, "https": True, "wss": True}.get(parts.scheme)
    if secure is None or not parts.netloc:
        raise ValueError(f"{url!r} is no http:// or ws:// address")
    scheme = ("ws" if websocket else "http") + ("s" if secure else "")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{path.format(room=quote(room, safe=''))}"
