"""What the core needs from outside: the relay plane that moves datagrams, and the sockets of TCP relays.

`TurnServer` decides; a plane obeys and repeats the decision per packet. `_relay` is the compiled one with sockets and
threads, `_reference` the plain-Python one without, for tests. Streams need no decision per byte: `peer_endpoint`.
"""

from __future__ import annotations

from typing import Protocol

from turn.allocation import FiveTuple
from turn.usage import RelayUsage
from wire.stun import IPAddress, TransportAddress


class RelaySockets(Protocol):
    """Sockets at relayed addresses, of one transport. All times are seconds of the monotonic clock."""

    def open_relay(self, local: TransportAddress) -> int | None:
        """A socket bound to `local`, silent until `start_relay`. None: the port or the descriptors are taken."""

    def close_relay(self, handle: int) -> RelayUsage:
        """Free the socket and all that hangs on it. Nothing passes once this returned."""

    def usage(self, handle: int) -> RelayUsage:
        """What passed so far."""

    def start_relay(self, handle: int, five_tuple: FiveTuple, identity: str) -> None:
        """Let `handle` serve the client of `five_tuple`; `identity` shares its bandwidth among its allocations."""


class PeerSockets(RelaySockets, Protocol):
    """TCP at relayed addresses (RFC 6062). Tells `TurnServer` of peers that call, answer or leave."""

    def connect(self, handle: int, number: int, peer: TransportAddress) -> None:
        """Call `peer` from the relayed address; `receive_peer_connected` or `receive_peer_closed` follows."""

    def close_connection(self, number: int) -> None:
        """End one connection, and the client's that is joined to it, if any. Nothing is told of it."""


class RelayPlane(RelaySockets, Protocol):
    """Datagrams: sockets and tables of the data path."""

    def permit(self, handle: int, ip: IPAddress, expires_at: float) -> None:
        """Let `ip` talk through `handle` until `expires_at`; renewing moves the time."""

    def forbid(self, handle: int, ip: IPAddress) -> None:
        """Take the permission away, and with it the use of channels to `ip`."""

    def bind_channel(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None:
        """Let `number` stand for `peer` until `expires_at`. Permission is a separate matter (C8)."""

    def deny_peer_ports(self, ports: frozenset[int]) -> None:
        """From now on no packet passes to or from these ports of unrestricted addresses (X9)."""

    def restrict_address(self, ip: IPAddress) -> None:
        """From now on packets to and from `ip` pass only if the port was allowed with `allow_port` (X8)."""

    def allow_port(self, address: TransportAddress) -> None:
        """Allow one port of a restricted address."""

    def deny_port(self, address: TransportAddress) -> None:
        """Take it back."""
