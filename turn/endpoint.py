"""The I/O of TURN: UDP through the relay plane, TCP and TLS through asyncio, one timer. Decides nothing.

UDP listeners belong to the plane's threads; what is not data comes up through its eventfd. A TCP or TLS connection is
read here, cut into messages and handed to the plane in one call per read; what the plane has for it is fetched in
batches and written, one message per TLS record (T6).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import cast

from turn._relay.plane import Plane
from turn.allocation import FiveTuple, Transport
from turn.errors import StreamError
from turn.events import Event, PeerJoined
from turn.framing import StreamFramer, split
from turn.limits import Quota, TokenBucket
from turn.peer_endpoint import PeerEndpoint
from turn.relays import Origin, PlaneRelays, StreamOrigin, UdpOrigin
from turn.server import TurnServer
from turn.settings import TurnSettings
from turn.tls import TlsStream
from wire.stun import IPAddress, TransportAddress

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL = 1.0
_WRITE_HIGH_WATER_BYTES = 64 * 1024
_BIND_ATTEMPTS = 16


class TurnEndpoint:
    """Sockets, connections and timer of one `TurnServer`."""

    def __init__(
        self,
        settings: TurnSettings,
        addresses: Sequence[IPAddress],
        server: TurnServer,
        plane: Plane,
        relays: PlaneRelays,
        *,
        peers: PeerEndpoint | None = None,
        on_event: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.port = 0
        self.tls_port = 0
        self._settings = settings
        self._addresses = tuple(addresses)
        self._server = server
        self._plane = plane
        self._relays = relays
        self._peers = peers
        if peers is not None:
            peers.listener = self
        self._on_event = on_event
        self._clock = clock
        self._udp: list[list[socket.socket]] = []
        self._tcp: list[asyncio.Server] = []
        self._connections: dict[int, _Connection] = {}
        self._by_five_tuple: dict[FiveTuple, _Connection] = {}
        self._per_source = Quota(settings.connections_per_source)
        self._next_connection = 1
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def start(self, tls: ssl.SSLContext | None) -> None:
        """Bind and serve.

        Raises:
            OSError: an address or port cannot be bound; nothing is left open.
        """
        loop = asyncio.get_running_loop()
        self._tls = tls
        try:
            await self._bind()
            if tls is not None:
                self.tls_port = await self._listen(self._settings.tls_port, Transport.TLS)
            self._plane.start([[s.fileno() for s in sockets] for sockets in self._udp or [[]] * self.workers])
        except BaseException:
            await self.close()
            raise
        loop.add_reader(self._plane.fileno(), self._plane_is_ready)

    async def close(self) -> None:
        """End every allocation, close every socket. Idempotent."""
        for handle in (self._timer, self._sweeper):
            if handle is not None:
                handle.cancel()
        for listener in self._tcp:
            listener.close()
        self._server.close()
        self._drain_events()
        if (fd := self._plane.fileno()) >= 0:
            asyncio.get_running_loop().remove_reader(fd)
        self._plane.close()
        for connection in list(self._connections.values()):
            connection.abort()
        for sockets in self._udp:
            for udp in sockets:
                udp.close()
        self._udp.clear()
        for listener in self._tcp:
            await listener.wait_closed()
        self._tcp.clear()
        await asyncio.sleep(0)  # connection_lost of the aborted connections

    def live_counts(self) -> dict[str, int]:
        """Connections, and what server and plane hold."""
        counts = {f"turn_{kind}": count for kind, count in self._server.live_counts().items()}
        counts |= {f"turn_plane_{kind}": count for kind, count in self._plane.live_counts().items()}
        if self._peers is not None:
            counts |= {f"turn_{kind}": count for kind, count in self._peers.live_counts().items()}
        return counts | {"turn_connections": len(self._connections)}

    def plane_counters(self) -> dict[str, int]:
        """What the relay threads did and dropped."""
        return self._plane.counters()

    # Binding.

    async def _bind(self) -> None:
        """The same port for UDP and TCP on every address; with port 0, one that is free everywhere."""
        for attempt in range(_BIND_ATTEMPTS):
            try:
                self.port = self._bind_udp(self._settings.port) if self._settings.udp else self._settings.port
                if self._settings.tcp:
                    self.port = await self._listen(self.port, Transport.TCP)
            except OSError:
                for udp in self._udp:
                    for sock in udp:
                        sock.close()
                self._udp.clear()
                for listener in self._tcp:
                    listener.close()
                self._tcp.clear()
                if self._settings.port or attempt == _BIND_ATTEMPTS - 1:
                    raise
            else:
                return

    def _bind_udp(self, port: int) -> int:
        shared = self._settings.threads > 1
        for _ in range(self._settings.threads):
            self._udp.append([])
            for address in self._addresses:
                sock = _bound(address, port, socket.SOCK_DGRAM, reuse_port=shared)
                self._udp[-1].append(sock)
                port = sock.getsockname()[1]
        return port

    async def _listen(self, port: int, transport: Transport) -> int:
        loop = asyncio.get_running_loop()
        for address in self._addresses:
            sock = _bound(address, port, socket.SOCK_STREAM)
            port = sock.getsockname()[1]
            server_address = TransportAddress(address, port)
            try:
                server = await loop.create_server(
                    lambda server_address=server_address: _Connection(self, transport, server_address),  # type: ignore[misc]
                    sock=sock,
                    backlog=1024,
                )
            except BaseException:
                sock.close()
                raise
            self._tcp.append(server)
        return port

    # From the plane.

    def _plane_is_ready(self) -> None:
        messages = self._plane.receive()
        for worker, listener, host, port, data in messages:
            five_tuple = FiveTuple(
                Transport.UDP,
                TransportAddress(ip_address(host), port),
                TransportAddress(self._addresses[listener], self.port),
            )
            self._handle(data, five_tuple, UdpOrigin(worker, listener))
        for number, frames in self._plane.take_output():
            if (connection := self._connections.get(number)) is not None:
                connection.write(frames)
        if messages:
            self._schedule()
            # There may be more than one call gives; other tasks go first.
            asyncio.get_running_loop().call_soon(self._plane_has_more)

    def _plane_has_more(self) -> None:
        if self._plane.fileno() >= 0:
            self._plane_is_ready()

    def _handle(self, data: bytes, five_tuple: FiveTuple, origin: Origin) -> None:
        """One control message through the server, and its answer out."""
        self._relays.origins[five_tuple] = origin
        self._server.receive_message(data, five_tuple, self._clock())
        self._send_answers()
        if five_tuple not in self._server.waiting():
            self._relays.origins.pop(five_tuple, None)
        self._drain_events()

    def credential_found(self, username: str) -> None:
        """A look-up is over, and its result where the server finds it (E6)."""
        self._server.receive_credential(username, self._clock())
        self._answers_are_late()

    def _answers_are_late(self) -> None:
        self._send_answers()
        waiting = self._server.waiting()
        answered = [five_tuple for five_tuple in self._relays.origins if five_tuple not in waiting]
        for five_tuple in answered:
            del self._relays.origins[five_tuple]
        self._drain_events()
        for five_tuple in answered:
            if (connection := self._by_five_tuple.get(five_tuple)) is not None:
                connection.proceed()
        self._schedule()

    def _send_answers(self) -> None:
        for to, answer in self._server.messages_to_send():
            if (connection := self._by_five_tuple.get(to)) is not None:
                connection.write(answer)
            elif isinstance(origin := self._relays.origins.get(to), UdpOrigin):
                self._plane.send_to_client(origin.worker, origin.listener, str(to.client.ip), to.client.port, answer)

    def _drain_events(self) -> None:
        for event in self._server.events_received():
            if isinstance(event, PeerJoined):
                self._join(event)
            else:
                self._on_event(event)

    # TCP relays: what `PeerEndpoint` tells, and clients' connections that have become a peer's.

    def peer_called(self, handle: int, peer: TransportAddress) -> int | None:
        """See `PeerListener`."""
        number = self._server.receive_peer(handle, peer, self._clock())
        self._answers_are_late()
        return number

    def peer_connected(self, number: int) -> None:
        """See `PeerListener`."""
        self._server.receive_peer_connected(number, self._clock())
        self._answers_are_late()

    def peer_closed(self, number: int) -> None:
        """See `PeerListener`."""
        self._server.receive_peer_closed(number, self._clock())
        self._answers_are_late()

    @property
    def peers(self) -> PeerEndpoint:
        """Of TCP relays; only where they are served."""
        assert self._peers is not None
        return self._peers

    def is_waiting(self, five_tuple: FiveTuple) -> bool:
        """Whether a request of this client waits for a look-up."""
        return five_tuple in self._server.waiting()

    def _join(self, event: PeerJoined) -> None:
        connection = self._by_five_tuple.get(event.five_tuple)
        if connection is not None:
            connection.join(event.number)
        else:  # gone meanwhile
            self.peers.client_left(event.number)

    # Time.

    def _schedule(self) -> None:
        due = self._server.next_timeout()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = max(0.0, due - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._server.handle_timeout(self._clock())
        self._answers_are_late()

    def revoke(self, username: str) -> None:
        """End the allocations of `username`."""
        self._server.revoke(username)
        self._drain_events()
        self._schedule()

    def _sweep(self) -> None:
        """Close connections that dawdle (T2)."""
        now = self._clock()
        for connection in list(self._connections.values()):
            reason = connection.dawdles(now, self._server.has_allocation(connection.five_tuple))
            if reason:
                self.counters[reason] += 1
                connection.abort()
        self._sweeper = None
        if self._connections:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_INTERVAL, self._sweep)

    # Connections.

    def admit(self, connection: _Connection) -> int | None:
        """A number for the connection, or None when there are enough."""
        if (former := self._by_five_tuple.get(connection.five_tuple)) is not None:
            former.end()
        source = connection.five_tuple.client.ip
        if len(self._connections) >= self._settings.connections_max or not self._per_source.take(source):
            self.counters["connections_refused"] += 1
            return None
        number = self._next_connection
        while number in self._connections:
            number = number % 0xFFFFFFFF + 1
        self._next_connection = number % 0xFFFFFFFF + 1
        self._connections[number] = self._by_five_tuple[connection.five_tuple] = connection
        self.counters["connections_accepted"] += 1
        self._sweep_later()
        return number

    def forget(self, connection: _Connection, number: int) -> None:
        """The connection is closed: its allocation goes with it (T3)."""
        del self._connections[number]
        del self._by_five_tuple[connection.five_tuple]
        if connection.peer is not None:
            self.peers.client_left(connection.peer)
        self._per_source.release(connection.five_tuple.client.ip)
        self._relays.origins.pop(connection.five_tuple, None)
        self._server.receive_disconnect(connection.five_tuple, self._clock())
        self._drain_events()
        self._schedule()

    def receive(self, connection: _Connection, origin: StreamOrigin, messages: list[bytes]) -> None:
        """Whole messages of a connection: data is relayed at once, the rest goes through the server."""
        control = self._plane.receive_stream(origin.worker, origin.connection, messages)
        if not control:  # data changes no deadline
            return
        now = self._clock()
        for message in control:
            if origin.connection not in self._connections:
                return
            if connection.requests.take(1, now):
                self._handle(message, connection.five_tuple, origin)
            else:
                self.counters["requests_limited"] += 1
        self._schedule()

    def tls_stream(self) -> TlsStream:
        """The server's side of a new TLS connection."""
        assert self._tls is not None
        return TlsStream(self._tls)

    def pause(self, origin: StreamOrigin, paused: bool) -> None:
        """The connection's transport is full, or has room again."""
        if self._plane.fileno() >= 0:
            self._plane.pause_stream(origin.worker, origin.connection, paused)

    @property
    def settings(self) -> TurnSettings:
        """As given."""
        return self._settings

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    @property
    def workers(self) -> int:
        """Relay threads to choose from."""
        return self._settings.threads


class _Connection(asyncio.Protocol):
    """One TCP or TLS client."""

    def __init__(self, endpoint: TurnEndpoint, transport: Transport, server: TransportAddress) -> None:
        self._endpoint = endpoint
        self._kind = transport
        self._server_address = server
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None
        self._origin: StreamOrigin | None = None
        self._tls: TlsStream | None = None
        self._since = endpoint.now()
        self.peer: int | None = None
        """The connection with a peer whose bytes these are (RFC 6062 §5.4)."""
        settings = endpoint.settings
        self.requests = TokenBucket(settings.requests_per_s, settings.requests_per_s, self._since)
        self.five_tuple = FiveTuple(transport, server, server)

    def connection_made(self, base: asyncio.BaseTransport) -> None:
        """Accepted. Counted before any handshake, so that the caps hold (X20)."""
        transport = cast(asyncio.Transport, base)  # uvloop's do not inherit from it
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if peer is None:  # gone already
            transport.abort()
            return
        client = TransportAddress(ip_address(peer[0]), peer[1])
        self.five_tuple = FiveTuple(self._kind, client, self._server_address)
        number = self._endpoint.admit(self)
        if number is None:
            transport.abort()
            return
        self._origin = StreamOrigin(number % self._endpoint.workers, number)
        transport.set_write_buffer_limits(_WRITE_HIGH_WATER_BYTES)
        if self._kind is Transport.TLS:
            self._tls = self._endpoint.tls_stream()

    def data_received(self, data: bytes) -> None:
        """Bytes of the wire."""
        if self._origin is None:
            return
        if self._tls is not None:
            try:
                data = self._tls.receive_data(data)
            except ssl.SSLError:
                self._endpoint.counters["tls_failed"] += 1
                self._flush()
                self._close()
                return
            self._flush()
        if self.peer is not None:
            if data:
                self._endpoint.peers.client_said(self.peer, data)
        else:
            self._receive_messages(lambda: self._framer.receive_data(data, self._endpoint.now()))
        if self._tls is not None and self._tls.finished:
            self._close()

    def _receive_messages(self, cut: Callable[[], None]) -> None:
        while self._origin is not None:
            broken = False
            try:
                cut()
            except StreamError:
                broken = True
            if messages := self._framer.messages_received():
                self._endpoint.receive(self, self._origin, messages)
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

    def join(self, number: int) -> None:
        """From now on the bytes are those of a peer."""
        self.peer = number
        self.read_raw(True)  # it was not read while a look-up took its time; the peer's side may say no again
        if not self._endpoint.peers.join(number, self, self._framer.take_rest()):
            self.finish()

    def write_raw(self, data: bytes) -> bool:
        """See `ClientStream`."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return True  # the end is on its way
        if self._tls is not None:
            self._tls.send_message(data)
            self._flush()
        else:
            transport.write(data)
        return transport.get_write_buffer_size() <= _WRITE_HIGH_WATER_BYTES

    def read_raw(self, reading: bool) -> None:
        """See `ClientStream`."""
        transport = self._transport
        if transport is not None and not transport.is_closing() and reading != transport.is_reading():
            if reading:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def finish(self) -> None:
        """See `ClientStream`."""
        if self._tls is not None and self._transport is not None:
            self._tls.close()
            self._flush()
        self._close()

    def write(self, frames: bytes) -> None:
        """Whole messages to the client. One that asks and never reads is cut off."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._endpoint.settings.stream_queue_bytes:
            self._endpoint.counters["connections_stalled"] += 1
            self.abort()
        elif self._tls is not None:
            for message in split(frames):
                self._tls.send_message(message)
            self._flush()
        else:
            transport.write(frames)

    def _flush(self) -> None:
        if self._tls is not None and self._transport is not None and (wire := self._tls.data_to_send()):
            self._transport.write(wire)

    def pause_writing(self) -> None:
        """The transport's buffer is above its high-water mark."""
        self._has_room(False)

    def resume_writing(self) -> None:
        """And below its low-water mark again."""
        self._has_room(True)

    def _has_room(self, room: bool) -> None:
        if self.peer is not None:
            self._endpoint.peers.client_has_room(self.peer, room)
        elif self._origin is not None:
            self._endpoint.pause(self._origin, not room)

    def dawdles(self, now: float, has_allocation: bool) -> str:
        """Why the connection should be closed, if at all."""
        settings = self._endpoint.settings
        if self._tls is not None and not self._tls.established:
            return "tls_handshake_timeout" if now - self._since > settings.frame_timeout else ""
        closing = self._transport is None or self._transport.is_closing()  # and the client has to take what is left
        if not closing and (has_allocation or self.peer is not None):
            self._since = now
        partial_since = self._framer.partial_since
        if partial_since is not None and now - partial_since > settings.frame_timeout:
            return "connections_partial_timeout"
        if now - self._since > settings.idle_connection_timeout:
            return "connections_idle_timeout"
        return ""

    def connection_lost(self, error: Exception | None) -> None:
        """Closed by either side."""
        self._gone()

    def _gone(self) -> None:
        origin, self._origin = self._origin, None
        if origin is not None:
            self._endpoint.forget(self, origin.connection)
        self._transport = None

    def _close(self) -> None:
        """Close once what is queued has left, an alert for example."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """The client is gone: it has connected anew from the same port, which showed before this one was read."""
        self.abort()
        self._gone()


def _bound(address: IPAddress, port: int, kind: int, *, reuse_port: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)
    try:
        sock.setblocking(False)
        if address.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock
