"""The I/O of TCP relays: sockets that listen at relayed addresses, connections with peers, bytes both ways (RFC 6062).

Fills `ports.PeerSockets`. A connection with a peer is not read until a client's connection is joined to it, so that
what the peer says first waits in the kernel. Back-pressure is end to end: a side that cannot be written to stops the
reading of the other, and so does a bandwidth cap (TC5). Decides nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol

from turn.allocation import FiveTuple
from turn.limits import Pace
from turn.settings import TurnSettings
from turn.usage import RelayUsage
from wire.stun import TransportAddress

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_HIGH_WATER_BYTES = 64 * 1024
_BACKLOG = 16
_LINGER = 30.0
"""Seconds for a peer to take what its client said last."""
_ACCEPT_PAUSE = 1.0
"""Seconds without accepting when descriptors have run out."""


class ClientStream(Protocol):
    """A client's connection, as a peer's bytes see it."""

    def write_raw(self, data: bytes) -> bool:
        """Bytes of the peer; False: write no more until `PeerEndpoint.client_has_room`."""

    def read_raw(self, reading: bool) -> None:
        """Whether the peer's side can take bytes of the client."""

    def finish(self) -> None:
        """The peer has left: close once what was written has left."""


class PeerListener(Protocol):
    """Who hears of peers: the methods of `TurnServer`, with the time added and the answers sent."""

    def peer_called(self, handle: int, peer: TransportAddress) -> int | None:
        """A peer called; its number, or None to hang up."""

    def peer_connected(self, number: int) -> None:
        """A peer answered."""

    def peer_closed(self, number: int) -> None:
        """A peer did not answer, or left."""


@dataclass(slots=True)
class _Relay:
    """One relayed address."""

    listening: socket.socket
    local: TransportAddress
    paces: list[Pace] = field(default_factory=list)
    identity: str = ""
    from_client: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes and reads."""
    to_client: list[int] = field(default_factory=lambda: [0, 0])
    peers: dict[int, _Peer] = field(default_factory=dict)
    reopening: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _User:
    """Whose relays share a cap."""

    pace: Pace
    relays: int = 0


class PeerEndpoint:
    """All sockets of all TCP relays."""

    def __init__(self, settings: TurnSettings, *, clock: Callable[[], float]) -> None:
        self.counters: Counter[str] = Counter()
        self.listener: PeerListener
        self._settings = settings
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._relays: dict[int, _Relay] = {}
        self._peers: dict[int, _Peer] = {}
        self._next_handle = 1
        self._total = Pace(settings.total_bps_max)
        self._users: dict[str, _User] = {}

    # The port `PeerSockets`.

    def open_relay(self, local: TransportAddress) -> int | None:
        """See `PeerSockets`."""
        try:
            sock = _bound(local)
            try:
                sock.listen(_BACKLOG)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            logger.debug("no TCP relay at %s: %s", local, error)
            return None
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._relays[handle] = _Relay(sock, local)
        return handle

    def start_relay(self, handle: int, five_tuple: FiveTuple, identity: str) -> None:
        """See `PeerSockets`."""
        relay = self._relays[handle]
        relay.identity = identity
        user = self._users.setdefault(identity, _User(Pace(self._settings.user_bps_max)))
        user.relays += 1
        relay.paces = [Pace(self._settings.allocation_bps_max), user.pace, self._total]
        self._accept_later(handle, relay)

    def close_relay(self, handle: int) -> RelayUsage:
        """See `PeerSockets`."""
        usage = self.usage(handle)
        relay = self._relays.pop(handle)
        for peer in list(relay.peers.values()):
            peer.end()
        self._loop.remove_reader(relay.listening)
        if relay.reopening is not None:
            relay.reopening.cancel()
        relay.listening.close()
        if relay.paces:
            user = self._users[relay.identity]
            user.relays -= 1
            if not user.relays:
                del self._users[relay.identity]
        return usage

    def usage(self, handle: int) -> RelayUsage:
        """See `PeerSockets`. A read counts as a packet."""
        relay = self._relays[handle]
        return RelayUsage(*relay.from_client, *relay.to_client)

    def connect(self, handle: int, number: int, peer: TransportAddress) -> None:
        """See `PeerSockets`."""
        relay = self._relays[handle]
        try:
            sock = _bound(relay.local)
        except OSError as error:
            self._failed(number, error)
            return
        code = sock.connect_ex((str(peer.ip), peer.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(number, OSError(code, "connect"))
            return
        calling = _Peer(self, relay, number, sock)
        self._loop.add_writer(sock, self._answered, calling)

    def close_connection(self, number: int) -> None:
        """See `PeerSockets`."""
        if (peer := self._peers.get(number)) is not None:
            peer.end()

    # Clients' connections.

    def join(self, number: int, client: ClientStream, first: bytes) -> bool:
        """Let bytes flow between a peer and a client; False if the peer has left.

        Args:
            number: of the connection.
            client: the other side; call `client_said`, `client_has_room` and `client_left` for it.
            first: what the client has said already.
        """
        peer = self._peers.get(number)
        if peer is None:
            return False
        peer.client = client
        if first:
            peer.write(first)  # which may show that the peer has left
        if number not in self._peers:
            return False
        peer.pause_reading("unclaimed", False)
        return True

    def client_said(self, number: int, data: bytes) -> None:
        """Bytes for the peer."""
        if (peer := self._peers.get(number)) is not None:
            peer.write(data)

    def client_has_room(self, number: int, room: bool) -> None:
        """Whether the client's connection takes bytes."""
        if (peer := self._peers.get(number)) is not None:
            peer.pause_reading("client is full", not room)

    def client_left(self, number: int) -> None:
        """The client's connection has ended; what it said last still goes to the peer."""
        if (peer := self._peers.get(number)) is not None:
            peer.finish()

    def live_counts(self) -> dict[str, int]:
        """Sockets; all 0 when every allocation is closed."""
        return {"tcp_relays": len(self._relays), "peer_sockets": len(self._peers)}

    # Sockets.

    def _accept_later(self, handle: int, relay: _Relay) -> None:
        relay.reopening = None
        self._loop.add_reader(relay.listening, self._accept, handle, relay)

    def _accept(self, handle: int, relay: _Relay) -> None:
        try:
            sock, name = relay.listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self.counters["peers_not_accepted"] += 1
            logger.error("a peer could not be accepted: %s", error)
            self._loop.remove_reader(relay.listening)
            relay.reopening = self._loop.call_later(_ACCEPT_PAUSE, self._accept_later, handle, relay)
            return
        number = self.listener.peer_called(handle, TransportAddress(ip_address(name[0]), name[1]))
        if number is None:
            sock.close()
            return
        sock.setblocking(False)
        _Peer(self, relay, number, sock).established()

    def _answered(self, peer: _Peer) -> None:
        self._loop.remove_writer(peer.sock)
        if code := peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            peer.end()
            self._failed(peer.number, OSError(code, "connect"))
            return
        peer.established()
        self.listener.peer_connected(peer.number)

    def _failed(self, number: int, error: OSError) -> None:
        """Tell it in a turn of its own: the server may be in the middle of the request."""
        self.counters["peers_not_reached"] += 1
        logger.debug("a peer was not reached: %s", error)
        self._loop.call_soon(self.listener.peer_closed, number)


class _Peer:
    """One connection with a peer."""

    def __init__(self, endpoint: PeerEndpoint, relay: _Relay, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.client: ClientStream | None = None
        self._endpoint = endpoint
        self._loop = endpoint._loop
        self._relay = relay
        self._out = bytearray()
        self._paused = {"unclaimed"}
        self._client_paused: set[str] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._finishing = False
        endpoint._peers[number] = relay.peers[number] = self

    def established(self) -> None:
        """Connected: small messages leave at once."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause_reading(self, reason: str, paused: bool) -> None:
        """Read only while no reason is left not to."""
        before = bool(self._paused)
        (self._paused.add if paused else self._paused.discard)(reason)
        if before and not self._paused:
            self._loop.add_reader(self.sock, self._read)
        elif self._paused and not before:
            self._loop.remove_reader(self.sock)

    def write(self, data: bytes) -> None:
        """Bytes of the client; it is not read while too many wait."""
        if self._finishing:
            return
        self._relay.from_client[0] += len(data)
        self._relay.from_client[1] += 1
        self._pace(len(data), self._pause_client)
        if not self._out:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self._broken()
                return
        if data:
            if not self._out:
                self._loop.add_writer(self.sock, self._flush)
            self._out += data
            if len(self._out) > _HIGH_WATER_BYTES:
                self._pause_client("peer is full", True)

    def finish(self) -> None:
        """The client has left: close when everything is sent, or when that takes too long."""
        self._finishing = True
        self.client = None
        self.pause_reading("finishing", True)
        if not self._out:
            self._broken()
        else:
            self._timers.add(self._loop.call_later(_LINGER, self._broken))

    def end(self) -> None:
        """Close, and the client's connection behind what was written to it. Idempotent."""
        if self._endpoint._peers.pop(self.number, None) is None:
            return
        del self._relay.peers[self.number]
        for timer in self._timers:
            timer.cancel()
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
        client, self.client = self.client, None
        if client is not None:
            client.read_raw(True)
            client.finish()

    def _broken(self) -> None:
        self.end()
        self._endpoint.listener.peer_closed(self.number)

    def _read(self) -> None:
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or self.client is None:
            self._broken()
            return
        self._relay.to_client[0] += len(data)
        self._relay.to_client[1] += 1
        if not self.client.write_raw(data):
            self.pause_reading("client is full", True)
        self._pace(len(data), self.pause_reading)

    def _flush(self) -> None:
        try:
            del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._broken()
            return
        if self._out:
            return
        self._loop.remove_writer(self.sock)
        if self._finishing:
            self._broken()
        else:
            self._pause_client("peer is full", False)

    def _pause_client(self, reason: str, paused: bool) -> None:
        before = bool(self._client_paused)
        (self._client_paused.add if paused else self._client_paused.discard)(reason)
        if self.client is not None and before != bool(self._client_paused):
            self.client.read_raw(before)

    def _pace(self, size: int, pause: Callable[[str, bool], None]) -> None:
        """Stop reading one side for as long as the bandwidth caps say."""
        now = self._endpoint._clock()
        delay = max(pace.charge(size, now) for pace in self._relay.paces)
        if delay <= 0:
            return
        pause("over its bandwidth", True)

        def go_on() -> None:
            self._timers.discard(timer)
            pause("over its bandwidth", False)

        timer = self._loop.call_later(delay, go_on)
        self._timers.add(timer)


def _bound(local: TransportAddress) -> socket.socket:
    """A socket at a relayed address; several may be there, one of which listens (RFC 6062 §5.2)."""
    sock = socket.socket(socket.AF_INET if local.ip.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local.ip.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((str(local.ip), local.port))
    except BaseException:
        sock.close()
        raise
    return sock
