"""A client's TCP or TLS connection: who reads it, when it is closed, what becomes of its bytes (T1 to T6).

    accepted ─▶ (TLS handshake) ─▶ READ HERE ──an allocation, and nothing unfinished──▶ read by a relay thread
                                    │   ▲                                                 │
                     ConnectionBind │   └──anything but data, an answer to send, the end──┘
                                    ▼
                               a peer's bytes (RFC 6062 §5.4)

Requests are read here, and strangers: their limits are those of this file. A client that sends data has its socket in a
relay thread (`Plane.adopt_stream`), and its TLS session with it; the thread gives them back when there is something
that it does not handle. Decides nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from turn.allocation import FiveTuple, Transport
from turn.errors import StreamError, TlsError
from turn.framing import StreamFramer, split
from turn.limits import TokenBucket
from turn.relays import StreamOrigin
from turn.tls import TlsStream

if TYPE_CHECKING:
    from turn.endpoint import TurnEndpoint

_READ_BYTES = 64 * 1024
_HIGH_WATER_BYTES = 64 * 1024
_LOW_WATER_BYTES = 16 * 1024


class StreamConnection:
    """One client."""

    def __init__(self, endpoint: TurnEndpoint, five_tuple: FiveTuple, sock: socket.socket, number: int) -> None:
        self.five_tuple = five_tuple
        self.peer: int | None = None
        """The connection with a peer whose bytes these are (RFC 6062 §5.4)."""
        settings = endpoint.settings
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._since = endpoint.now()
        self.requests = TokenBucket(settings.requests_per_s, settings.requests_per_s, self._since)
        self.origin = StreamOrigin(number % endpoint.workers, number)
        self._framer = StreamFramer()
        self._tls: TlsStream | None = endpoint.tls_stream() if five_tuple.transport is Transport.TLS else None
        self._out = bytearray()
        # A relay thread's unsent bytes and a peer's come on top of answers.
        self._out_max = 2 * (settings.stream_queue_bytes + _HIGH_WATER_BYTES)
        self._full = False
        self._unread = bytearray()
        """What the client said, and a relay thread had read."""
        self._adopted = False
        self._reading = False
        self.closing = False
        """Nothing more is read; it is closed when what is queued has left."""
        self._gone = False
        self.read_raw(True)

    # Who reads.

    def _hand_over(self) -> None:
        """To a relay thread, if only data is to be expected."""
        if (
            self._adopted
            or self.closing
            or not self._reading
            or self._out
            or self._unread
            or self._framer.held
            or self._framer.partial_since is not None
            or not self._endpoint.has_relay(self.five_tuple)
        ):
            return
        self.read_raw(False)
        self._adopted = self._endpoint.plane.adopt_stream(*self.origin, self._sock.fileno(), self._tls)
        if not self._adopted:
            self.read_raw(True)

    def _take_back(self) -> None:
        """The socket; what the thread has read waits for `_catch_up`, which must follow."""
        self._adopted = False
        said, unsent = self._endpoint.plane.release_stream(*self.origin)
        self._unread += said
        self._send(unsent)

    def taken_back(self) -> None:
        """There is something for Python: a request, foreign bytes or the end, of the connection or its TLS."""
        if self._adopted:
            self._take_back()
            said = bool(self._unread)
            self._digest()
            self.read_raw(True)
            if said:  # else the end may be next
                self._hand_over()

    def leave_thread(self) -> None:
        """The same for what does not come from the client; what the thread had read is handled in a turn of its own."""
        if self._adopted:
            self._take_back()
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        self._digest()
        self._hand_over()

    def _digest(self) -> None:
        """What the thread had read."""
        self.read_raw(True)
        said, self._unread = bytes(self._unread), bytearray()
        if said and not self.closing:
            self._said(said)
        if self._tls is not None and not self.closing:
            self._records(b"")  # of which the thread had given some to the session

    # Bytes of the client.

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if not data:
            self._close()
        elif self._tls is not None:
            self._records(data)
        else:
            self._said(data)
        self._hand_over()

    def _records(self, data: bytes) -> None:
        assert self._tls is not None
        try:
            said = self._tls.receive_data(data)
        except TlsError:
            self._tls_failed()
            return
        self._flush_tls()
        self._said(said)
        if self._tls.finished:
            self._close()

    def _tls_failed(self) -> None:
        self._endpoint.counters["tls_failed"] += 1
        self._flush_tls()
        self._close()

    def _said(self, data: bytes) -> None:
        if self.peer is not None:
            if data:
                self._endpoint.peers.client_said(self.peer, data)
        else:
            self._receive_messages(lambda: self._framer.receive_data(data, self._endpoint.now()))

    def _receive_messages(self, cut: Callable[[], None]) -> None:
        while not self.closing:
            broken = False
            try:
                cut()
            except StreamError:
                broken = True
            if messages := self._framer.messages_received():
                self._endpoint.receive(self, messages)
            if broken:
                self._endpoint.counters["connections_broken"] += 1
                self.abort()
                return
            if not self._framer.held or self.peer is not None:
                return
            if self._endpoint.is_waiting(self.five_tuple):
                self.read_raw(False)  # until `proceed`
                return
            cut = self._resume

    def _resume(self) -> None:
        self._framer.resume(self._endpoint.now())

    def proceed(self) -> None:
        """A look-up is over: go on behind the ConnectionBind that waited for it, if it did not join a peer."""
        if self._framer.held and self.peer is None:
            self.read_raw(True)
            self._receive_messages(self._resume)
        self._hand_over()

    # Of a peer.

    def join(self, number: int) -> None:
        """From now on the bytes are those of a peer."""
        self.peer = number
        self.read_raw(True)  # it was not read while a look-up took its time; the peer's side may say no again
        if not self._endpoint.peers.join(number, self, self._framer.take_rest()):
            self.finish()

    def write_raw(self, data: bytes) -> bool:
        """See `ClientStream`."""
        if self.closing:
            return True  # the end is on its way
        self._say((data,))
        return len(self._out) <= _HIGH_WATER_BYTES

    def read_raw(self, reading: bool) -> None:
        """See `ClientStream`."""
        if not self.closing and not self._adopted and reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)

    def finish(self) -> None:
        """See `ClientStream`."""
        if self._tls is not None and not self._gone:
            self._tls.close()
            self._flush_tls()
        self._close()

    # Bytes for the client.

    def write(self, frames: bytes) -> None:
        """Whole messages to the client."""
        self.leave_thread()
        if not self.closing:
            self._say((frames,) if self._tls is None else split(frames))

    def _say(self, messages: Iterable[bytes]) -> None:
        """Each in a record of its own, over TLS (T6)."""
        if self._tls is None:
            self._send(b"".join(messages))
            return
        try:
            for message in messages:
                self._tls.send_message(message)
        except TlsError:
            self._tls_failed()
        else:
            self._flush_tls()

    def _flush_tls(self) -> None:
        if self._tls is not None and (wire := self._tls.data_to_send()):
            self._send(wire)

    def _send(self, data: bytes) -> None:
        """A client that asks and never reads is cut off."""
        if not data or self._gone:
            return
        if not self._out:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.abort()
                return
        if data:
            if not self._out:
                self._loop.add_writer(self._sock, self._writable)
            self._out += data
            if len(self._out) > self._out_max:
                self._endpoint.counters["connections_stalled"] += 1
                self.abort()
            elif len(self._out) > _HIGH_WATER_BYTES and not self._full:
                self._full = True
                self._has_room(False)

    def _writable(self) -> None:
        try:
            del self._out[: self._sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if self._full and len(self._out) <= _LOW_WATER_BYTES:
            self._full = False
            self._has_room(True)
        if self._out:
            return
        self._loop.remove_writer(self._sock)
        if self.closing:
            self.abort()
        else:
            self._hand_over()

    def _has_room(self, room: bool) -> None:
        if self.peer is not None:
            self._endpoint.peers.client_has_room(self.peer, room)
        else:
            self._endpoint.plane.pause_stream(*self.origin, not room)

    # Ends.

    def dawdles(self, now: float, has_allocation: bool) -> str:
        """Why the connection should be closed, if at all."""
        settings = self._endpoint.settings
        if self._tls is not None and not self._tls.established:
            return "tls_handshake_timeout" if now - self._since > settings.frame_timeout else ""
        # While it is closing, the client has to take what is left.
        if not self.closing and (has_allocation or self.peer is not None):
            self._since = now
        partial_since = self._framer.partial_since
        if partial_since is not None and now - partial_since > settings.frame_timeout:
            return "connections_partial_timeout"
        if now - self._since > settings.idle_connection_timeout:
            return "connections_idle_timeout"
        return ""

    def _close(self) -> None:
        """Close once what is queued has left, an alert for example."""
        if self._adopted:
            self._take_back()
        self.read_raw(False)
        self.closing = True
        if not self._out:
            self.abort()

    def abort(self) -> None:
        """Close at once; `TurnEndpoint.forget` follows in a turn of its own."""
        if self._gone:
            return
        self._gone = True
        if self._adopted:
            self._adopted = False
            self._endpoint.plane.release_stream(*self.origin)
        self.read_raw(False)
        self.closing = True
        self._loop.remove_writer(self._sock)
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        if self._sock.fileno() >= 0:
            self._sock.close()
            self._endpoint.forget(self)

    def end(self) -> None:
        """The client is gone: it has connected anew from the same port, which showed before this one was read."""
        self.abort()
        self._leave()
