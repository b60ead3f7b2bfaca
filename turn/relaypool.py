"""Relay sockets and the ports under them: opened, reserved in pairs, announced to the peer policy, closed.

Whatever a method takes is given back by the `ExitStack` it was passed, unless the caller keeps it (A24).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from turn.allocation import FiveTuple, Relay
from turn.errors import StunRefusal
from turn.permission import PermissionTable
from turn.policy import PeerPolicy, Verdict
from turn.ports import RelayPlane, RelaySockets
from turn.relayports import PortPool
from turn.usage import RelayUsage
from wire.stun import IPAddress, TransportAddress

RESERVATION_LIFETIME = 30.0  # A15
RESERVATIONS_MAX = 256
"""At once. Each is a socket beside those of the allocations, which no quota counts (X13)."""
RESERVATIONS_PER_IDENTITY = 16
_OPEN_ATTEMPTS = 9  # A22: another process holds a port now and then, not nine in a row


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """An address of this host that relays are bound to."""

    local: IPAddress
    external: IPAddress
    """What clients and peers are told."""
    pool: PortPool


@dataclass(frozen=True, slots=True)
class _Reservation:
    """A held odd port, waiting for its token."""

    username: str
    identity: str
    handle: int
    local: TransportAddress
    expires_at: float


class RelayPool:
    """The relayed addresses of this host. The first of each family is used."""

    def __init__(
        self,
        addresses: Sequence[RelayAddress],
        plane: RelayPlane,
        policy: PeerPolicy,
        *,
        permissions_max: int,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
        tcp: RelaySockets | None = None,
    ) -> None:
        self._tcp = tcp
        self._addresses: dict[int, RelayAddress] = {a.local.version: a for a in reversed(addresses)}
        self._plane = plane
        self._policy = policy
        self._permissions_max = permissions_max
        self._token_bytes = token_bytes
        self._reservations: dict[bytes, _Reservation] = {}
        self._tcp_relays: set[TransportAddress] = set()
        for address in addresses:
            for ip in {address.local, address.external}:
                plane.restrict_address(ip)
        self._put_in_force()

    def change_policy(self, policy: PeerPolicy) -> None:
        """Put another filter in force. Live relays must be announced again."""
        for endpoint in self._policy.endpoints:
            self._plane.deny_port(endpoint)
        self._policy = policy
        self._put_in_force()

    def _put_in_force(self) -> None:
        self._plane.deny_peer_ports(self._policy.denied_ports)
        for endpoint in self._policy.endpoints:
            self._plane.restrict_address(endpoint.ip)
            self._plane.allow_port(endpoint)

    def has_family(self, version: int) -> bool:
        """Whether relays of IP `version` are offered."""
        return version in self._addresses

    # Relays.

    def open(
        self,
        undo: ExitStack,
        version: int,
        expires_at: float,
        *,
        even: bool = False,
        pair: bool = False,
        tcp: bool = False,
    ) -> Relay:
        """A bound relay socket, silent until it is started.

        Raises:
            StunRefusal: 440 for a family that is not offered, 508 when no port fits.
        """
        address = self._addresses.get(version)
        if address is None:
            raise StunRefusal(440)
        for _, port in zip(range(_OPEN_ATTEMPTS), address.pool.candidates(even=even, pair=pair), strict=False):
            local = TransportAddress(address.local, port)
            handle = self._sockets(tcp).open_relay(local)
            if handle is not None:
                relay = self._relay(handle, local, expires_at, tcp)
                address.pool.take(port)
                undo.callback(self.close, relay)
                return relay
        raise StunRefusal(508)

    def announce(self, relay: Relay) -> None:
        """From now on other clients of this server may name it as peer (X8)."""
        if relay.tcp:
            self._tcp_relays |= {relay.local, relay.external}
            return
        for address in {relay.local, relay.external}:
            self._policy.relay_opened(address)
            self._plane.allow_port(address)

    def close(self, relay: Relay) -> RelayUsage:
        """Free socket and port; nothing passes once this returned."""
        if relay.tcp:
            self._tcp_relays -= {relay.local, relay.external}
        else:
            for address in {relay.local, relay.external} - self._policy.endpoints:
                self._policy.relay_closed(address)
                self._plane.deny_port(address)
        usage = self._sockets(relay.tcp).close_relay(relay.handle)
        self._addresses[relay.version].pool.release(relay.local.port)
        return usage

    def start(self, relay: Relay, five_tuple: FiveTuple, identity: str) -> None:
        """Let it serve the client; see `RelaySockets.start_relay`."""
        self._sockets(relay.tcp).start_relay(relay.handle, five_tuple, identity)

    def usage(self, relay: Relay) -> RelayUsage:
        """What passed through it so far."""
        return self._sockets(relay.tcp).usage(relay.handle)

    def may_connect(self, peer: TransportAddress) -> bool:
        """Whether a TCP relay and `peer` may call each other.

        Of our own addresses only another TCP relay: the ports that datagrams may reach are other programs' over TCP.
        """
        if self._policy.check(peer.ip) is Verdict.RESTRICTED:
            return peer in self._tcp_relays
        return self._policy.check_endpoint(peer)

    def _sockets(self, tcp: bool) -> RelaySockets:
        if not tcp:
            return self._plane
        assert self._tcp is not None
        return self._tcp

    def _relay(self, handle: int, local: TransportAddress, expires_at: float, tcp: bool = False) -> Relay:
        external = TransportAddress(self._addresses[local.ip.version].external, local.port)
        return Relay(handle, local, external, expires_at, PermissionTable(self._permissions_max), tcp)

    # Reservations.

    def reserve(self, undo: ExitStack, relay: Relay, username: str, identity: str, now: float) -> bytes:
        """Hold the port above `relay`'s for 30 s and return its token (A15).

        Args:
            undo: gives it back.
            relay: whose neighbour.
            username: who may claim it.
            identity: who is to answer for it.
            now: monotonic clock, in seconds.

        Raises:
            StunRefusal: 508 when that port cannot be bound, or enough are held.
        """
        held = [reservation.identity for reservation in self._reservations.values()]
        if len(held) >= RESERVATIONS_MAX or held.count(identity) >= RESERVATIONS_PER_IDENTITY:
            raise StunRefusal(508)
        local = TransportAddress(relay.local.ip, relay.local.port + 1)
        handle = self._plane.open_relay(local)
        if handle is None:
            raise StunRefusal(508)
        self._addresses[relay.version].pool.take(local.port)
        token = self._token_bytes(8)
        self._reservations[token] = _Reservation(username, identity, handle, local, now + RESERVATION_LIFETIME)
        undo.callback(self._release, token)
        return token

    def is_reserved(self, token: bytes, username: str, now: float) -> bool:
        """Whether `username` may claim `token`: it travels in clear text over UDP, so only its owner may (A16)."""
        reservation = self._reservations.get(token)
        return reservation is not None and reservation.expires_at > now and reservation.username == username

    def claim(self, undo: ExitStack, token: bytes, expires_at: float) -> Relay:
        """The reserved relay. Ask `is_reserved` first."""
        reservation = self._reservations.pop(token)
        undo.callback(self._reservations.__setitem__, token, reservation)
        return self._relay(reservation.handle, reservation.local, expires_at)

    def handle_timeout(self, now: float) -> None:
        """Give unclaimed ports back."""
        for token in [t for t, reservation in self._reservations.items() if reservation.expires_at <= now]:
            self._release(token)

    def next_timeout(self) -> float | None:
        """When the next reservation ends."""
        return min((reservation.expires_at for reservation in self._reservations.values()), default=None)

    def release_reservations(self) -> None:
        """Give all of them back."""
        for token in list(self._reservations):
            self._release(token)

    def reservations(self) -> int:
        """How many ports are held."""
        return len(self._reservations)

    def _release(self, token: bytes) -> None:
        reservation = self._reservations.pop(token)
        self._plane.close_relay(reservation.handle)
        self._addresses[reservation.local.ip.version].pool.release(reservation.local.port)
