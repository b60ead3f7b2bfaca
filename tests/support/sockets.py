"""A client at the other end of a socket table's row, over a socket pair: sans-I/O on both sides, time moved by hand."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from hibernation._sockets.table import Event, SocketTable

ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Peer:
    """One client and its row, by default opened already.

    Attributes:
        handle: the row in the table.
        raw: the client's end, non-blocking.
    """

    def __init__(
        self, table: SocketTable, now: float = 100.0, *, group: int = 0, opened: bool = True, deflate: bool = False
    ) -> None:
        theirs, self.raw = socket.socketpair()
        theirs.setblocking(False)
        self.raw.setblocking(False)
        self.table = table
        self.handle = table.adopt(theirs.detach(), now, deflate=deflate)
        table.assign(self.handle, group)
        self.protocol = ClientProtocol(parse_uri("ws://torpor/"), state=State.OPEN, max_size=None)
        if deflate:
            self.protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
        self.frames: list[Frame] = []
        if opened:
            table.open(self.handle, ANSWER, now)
            assert self.raw.recv(len(ANSWER)) == ANSWER

    def write(self, data: bytes, now: float = 100.0) -> list[Event]:
        """Send raw bytes, all of them; returns the events they caused."""
        events: list[Event] = []
        while data:
            try:
                data = data[self.raw.send(data) :]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            events += self.table.process(now)
        return events + drain(self.table, now)

    def flush(self, now: float = 100.0) -> list[Event]:
        """Send what the client's protocol wants to."""
        return self.write(b"".join(self.protocol.data_to_send()), now)

    def read(self) -> list[Frame]:
        """Parse what has arrived at the client; the end of the stream included."""
        while True:
            try:
                data = self.raw.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                if not self.protocol.eof_sent or self.protocol.state is not State.CLOSED:
                    self.protocol.receive_eof()
                break
            self.protocol.receive_data(data)
        new = [event for event in self.protocol.events_received() if isinstance(event, Frame)]
        self.frames += new
        return new

    def texts(self) -> list[str]:
        """Return the text messages that have arrived since the last read."""
        return [bytes(frame.data).decode() for frame in self.read() if frame.opcode is Opcode.TEXT]

    def close(self) -> None:
        """Drop the client's end without a word."""
        self.raw.close()


def drain(table: SocketTable, now: float = 100.0) -> list[Event]:
    """Process until nothing more happens."""
    events: list[Event] = []
    while True:
        before = table.counters()
        new = table.process(now)
        events += new
        if not new and table.counters() == before:
            return events


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\x01\x02\x03\x04"
) -> bytes:
    """Serialize any frame, right or wrong, as a client would."""
    head = struct.pack("!B", (0x80 if fin else 0) | rsv | opcode)
    masked = 0x80 if mask is not None else 0
    if len(payload) < 126:
        head += struct.pack("!B", masked | len(payload))
    elif len(payload) < 65536:
        head += struct.pack("!BH", masked | 126, len(payload))
    else:
        head += struct.pack("!BQ", masked | 127, len(payload))
    if mask is None:
        return head + payload
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Cut `data` at the given sizes, over and over, into 200 pieces at most."""
    at = i = 0
    while at < len(data):
        size = cuts[i % len(cuts)] if cuts and i < 199 else len(data)
        yield data[at : at + size]
        at += size
        i += 1
