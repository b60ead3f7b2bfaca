"""The I/O of TURN: UDP through the relay plane, connections over TCP and TLS, one timer. Decides nothing.

UDP listeners belong to the plane's threads; what is not data comes up through its eventfd. Connections are accepted
here, as many as may be; `stream_endpoint` has what becomes of each.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from OpenSSL import SSL

from turn._relay.plane import Plane
from turn.allocation import FiveTuple, Transport
from turn.events import AllocationClosed, Event, PeerJoined
from turn.limits import Quota, network_of
from turn.peer_endpoint import PeerEndpoint
from turn.policy import PeerPolicy
from turn.relays import Origin, PlaneRelays, UdpOrigin
from turn.server import TurnServer
from turn.settings import TurnSettings
from turn.stream_endpoint import StreamConnection
from turn.tls import TlsStream
from wire.stun import IPAddress, TransportAddress

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL = 1.0
_BIND_ATTEMPTS = 16
_BACKLOG = 1024
_ACCEPTS = 64
"""In one turn of the loop."""
_ACCEPT_PAUSE = 1.0
"""Seconds without accepting when descriptors have run out."""


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
        self.plane = plane
        self._relays = relays
        self._peers = peers
        if peers is not None:
            peers.listener = self
        self._on_event = on_event
        self._clock = clock
        self._udp: list[list[socket.socket]] = []
        self._tcp: list[tuple[socket.socket, Transport]] = []
        self._connections: dict[int, StreamConnection] = {}
        self._by_five_tuple: dict[FiveTuple, StreamConnection] = {}
        self._per_source = Quota(settings.connections_per_source)
        self._next_connection = 1
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._reopening: set[asyncio.TimerHandle] = set()
        self.tls: SSL.Context | None = None
        """For new connections."""

    async def start(self, tls: SSL.Context | None) -> None:
        """Bind and serve.

        Raises:
            OSError: an address or port cannot be bound; nothing is left open.
        """
        loop = asyncio.get_running_loop()
        self.tls = tls
        try:
            self._bind()
            if tls is not None:
                self.tls_port = self._listen(self._settings.tls_port, Transport.TLS)
            self.plane.start([[s.fileno() for s in sockets] for sockets in self._udp or [[]] * self.workers])
        except BaseException:
            await self.close()
            raise
        loop.add_reader(self.plane.fileno(), self._plane_is_ready)
        for sock, transport in self._tcp:
            name = sock.getsockname()
            here = TransportAddress(ip_address(name[0]), name[1])
            self._accept_from(sock, FiveTuple(transport, here, here))

    async def close(self) -> None:
        """End every allocation, close every socket. Idempotent."""
        for handle in (self._timer, self._sweeper, *self._reopening):
            if handle is not None:
                handle.cancel()
        self._stop_listening()
        self._server.close()
        self._drain_events()
        if (fd := self.plane.fileno()) >= 0:
            asyncio.get_running_loop().remove_reader(fd)
        for connection in list(self._connections.values()):
            connection.abort()
        self.plane.close()
        for sockets in self._udp:
            for udp in sockets:
                udp.close()
        self._udp.clear()
        await asyncio.sleep(0)  # the aborted connections leave

    def live_counts(self) -> dict[str, int]:
        """Connections, and what server and plane hold."""
        counts = {f"turn_{kind}": count for kind, count in self._server.live_counts().items()}
        counts |= {f"turn_plane_{kind}": count for kind, count in self.plane.live_counts().items()}
        if self._peers is not None:
            counts |= {f"turn_{kind}": count for kind, count in self._peers.live_counts().items()}
        return counts | {"turn_connections": len(self._connections)}

    def plane_counters(self) -> dict[str, int]:
        """What the relay threads did and dropped."""
        return self.plane.counters()

    # Binding.

    def _bind(self) -> None:
        """The same port for UDP and TCP on every address; with port 0, one that is free everywhere."""
        for attempt in range(_BIND_ATTEMPTS):
            try:
                self.port = self._bind_udp(self._settings.port) if self._settings.udp else self._settings.port
                if self._settings.tcp:
                    self.port = self._listen(self.port, Transport.TCP)
            except OSError:
                for udp in self._udp:
                    for sock in udp:
                        sock.close()
                self._udp.clear()
                self._stop_listening()
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

    def _listen(self, port: int, transport: Transport) -> int:
        for address in self._addresses:
            sock = _bound(address, port, socket.SOCK_STREAM)
            self._tcp.append((sock, transport))
            sock.listen(_BACKLOG)
            port = sock.getsockname()[1]
        return port

    def _stop_listening(self) -> None:
        for sock, _ in self._tcp:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._tcp.clear()

    def _accept_from(self, listener: socket.socket, server: FiveTuple) -> None:
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, server)

    def _accept(self, listener: socket.socket, server: FiveTuple) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, name = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self.counters["connections_not_accepted"] += 1
                logger.error("a connection could not be accepted: %s", error)
                self._pause_accepting(listener, server)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._admit(
                sock, FiveTuple(server.transport, TransportAddress(ip_address(name[0]), name[1]), server.server)
            )

    def _pause_accepting(self, listener: socket.socket, server: FiveTuple) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def go_on() -> None:
            self._reopening.discard(timer)
            self._accept_from(listener, server)

        timer = loop.call_later(_ACCEPT_PAUSE, go_on)
        self._reopening.add(timer)

    # From the plane.

    def _plane_is_ready(self) -> None:
        messages, streams = self.plane.receive()
        for worker, listener, host, port, data in messages:
            five_tuple = FiveTuple(
                Transport.UDP,
                TransportAddress(ip_address(host), port),
                TransportAddress(self._addresses[listener], self.port),
            )
            self._handle(data, five_tuple, UdpOrigin(worker, listener))
        for number, frames, returned in streams:
            if (connection := self._connections.get(number)) is None:
                continue
            if frames:
                connection.write(frames)
            if returned:
                connection.taken_back()
        if messages:
            self._schedule()
            # There may be more than one call gives; other tasks go first.
            asyncio.get_running_loop().call_soon(self._plane_has_more)

    def _plane_has_more(self) -> None:
        if self.plane.fileno() >= 0:
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
                self.plane.send_to_client(origin.worker, origin.listener, str(to.client.ip), to.client.port, answer)

    def _drain_events(self) -> None:
        for event in self._server.events_received():
            if isinstance(event, PeerJoined):
                self._join(event)
                continue
            if isinstance(event, AllocationClosed) and event.five_tuple in self._by_five_tuple:
                self._by_five_tuple[event.five_tuple].leave_thread()
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

    def reload_policy(self, policy: PeerPolicy) -> None:
        """Put another peer policy in force."""
        self._server.reload_policy(policy, self._clock())
        self._answers_are_late()

    def _sweep(self) -> None:
        """Close connections that dawdle (T2)."""
        now = self._clock()
        for connection in list(self._connections.values()):
            reason = connection.dawdles(now, self._server.has_allocation(connection.five_tuple))
            if reason:
                self.counters[reason] += 1
                connection.abort()
        for number in self.plane.stalled_streams(self._settings.frame_timeout):
            self.counters["connections_partial_timeout"] += 1
            self._connections[number].abort()
        self._sweeper = None
        if self._connections:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_INTERVAL, self._sweep)

    # Connections.

    def _admit(self, sock: socket.socket, five_tuple: FiveTuple) -> None:
        """Counted before any handshake, so that the caps hold (X20)."""
        if (former := self._by_five_tuple.get(five_tuple)) is not None:
            former.end()
        if len(self._connections) >= self._settings.connections_max or not self._per_source.take(
            network_of(five_tuple.client.ip)
        ):
            self.counters["connections_refused"] += 1
            sock.close()
            return
        number = self._next_connection
        while number in self._connections:
            number = number % 0xFFFFFFFF + 1
        self._next_connection = number % 0xFFFFFFFF + 1
        self.counters["connections_accepted"] += 1
        connection = StreamConnection(self, five_tuple, sock, number)
        self._connections[number] = self._by_five_tuple[five_tuple] = connection
        self._sweep_later()

    def forget(self, connection: StreamConnection) -> None:
        """The connection is closed: its allocation goes with it (T3)."""
        del self._connections[connection.origin.connection]
        del self._by_five_tuple[connection.five_tuple]
        if connection.peer is not None:
            self.peers.client_left(connection.peer)
        self._per_source.release(network_of(connection.five_tuple.client.ip))
        self._relays.origins.pop(connection.five_tuple, None)
        self._server.receive_disconnect(connection.five_tuple, self._clock())
        self._drain_events()
        self._schedule()

    def receive(self, connection: StreamConnection, messages: list[bytes]) -> None:
        """Whole messages of a connection: data is relayed at once, the rest goes through the server."""
        control = self.plane.receive_stream(*connection.origin, messages)
        if not control:  # data changes no deadline
            return
        now = self._clock()
        for message in control:
            if connection.closing:
                return
            if connection.requests.take(1, now):
                self._handle(message, connection.five_tuple, connection.origin)
            else:
                self.counters["requests_limited"] += 1
        self._schedule()

    def has_relay(self, five_tuple: FiveTuple) -> bool:
        """Whether a client has an allocation, and no request of it waits for a look-up."""
        return self._server.has_allocation(five_tuple) and five_tuple not in self._server.waiting()

    def tls_stream(self) -> TlsStream:
        """The server's side of a new TLS connection."""
        assert self.tls is not None
        return TlsStream(self.tls)

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
