"""The compiled plane in the core's words: `turn.ports.RelayPlane` on `turn._relay.plane.Plane`."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from turn._relay.plane import Plane
from turn.allocation import FiveTuple
from turn.channel import CHANNEL_MAX, CHANNEL_MAX_RFC5766
from turn.relaypool import RESERVATIONS_MAX
from turn.settings import TurnSettings
from turn.usage import RelayUsage
from wire.exchange import End
from wire.stun import IPAddress, TransportAddress


class UdpOrigin(NamedTuple):
    """Which thread's socket of which listen address a datagram came to."""

    worker: int
    listener: int


class StreamOrigin(NamedTuple):
    """Which connection a message came from, and the thread that relays for it."""

    worker: int
    connection: int


Origin = UdpOrigin | StreamOrigin


class PlaneRelays:
    """Translates addresses, and is told where each request came from: that thread owns the allocation."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.origins: dict[FiveTuple, Origin] = {}
        """Of each request that the server is at, or keeps waiting."""

    def open_relay(self, local: TransportAddress) -> int | None:
        """See `RelayPlane`."""
        return self._plane.open_relay(str(local.ip), local.port)

    def close_relay(self, handle: int) -> RelayUsage:
        """See `RelayPlane`."""
        return RelayUsage(*self._plane.close_relay(handle))

    def usage(self, handle: int) -> RelayUsage:
        """See `RelayPlane`."""
        return RelayUsage(*self._plane.usage(handle))

    def start_relay(self, handle: int, five_tuple: FiveTuple, identity: str) -> None:
        """See `RelayPlane`."""
        user = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
        match self.origins[five_tuple]:
            case UdpOrigin(worker, listener):
                client = five_tuple.client
                self._plane.start_relay(handle, worker, listener, str(client.ip), client.port, user)
            case StreamOrigin(worker, connection):
                self._plane.start_stream_relay(handle, worker, connection, user)

    def permit(self, handle: int, ip: IPAddress, expires_at: float) -> None:
        """See `RelayPlane`."""
        self._plane.permit(handle, str(ip), expires_at)

    def forbid(self, handle: int, ip: IPAddress) -> None:
        """See `RelayPlane`."""
        self._plane.forbid(handle, str(ip))

    def bind_channel(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None:
        """See `RelayPlane`."""
        self._plane.bind_channel(handle, number, str(peer.ip), peer.port, expires_at)

    def deny_peer_ports(self, ports: frozenset[int]) -> None:
        """See `RelayPlane`."""
        self._plane.deny_peer_ports(ports)

    def restrict_address(self, ip: IPAddress) -> None:
        """See `RelayPlane`."""
        self._plane.restrict_address(str(ip))

    def allow_port(self, address: TransportAddress) -> None:
        """See `RelayPlane`."""
        self._plane.set_port(str(address.ip), address.port, True)

    def deny_port(self, address: TransportAddress) -> None:
        """See `RelayPlane`."""
        self._plane.set_port(str(address.ip), address.port, False)


def make_plane(settings: TurnSettings, families: int, exchange: End | None) -> Plane:
    """A plane with the limits of `settings`.

    Args:
        settings: checked ones.
        families: how many relayed addresses an allocation can have.
        exchange: with a plane of this process that relays may reach in memory.
    """
    return Plane(
        relays_max=settings.allocations_max * families + RESERVATIONS_MAX,
        workers=settings.threads,
        channel_max=CHANNEL_MAX_RFC5766 if settings.rfc5766_channel_numbers else CHANNEL_MAX,
        allocation_bps=settings.allocation_bps_max,
        user_bps=settings.user_bps_max,
        total_bps=settings.total_bps_max,
        allocation_pps=settings.allocation_pps_max,
        bindings_per_s=settings.bindings_per_s,
        requests_per_s=settings.requests_per_s,
        stream_queue_bytes=settings.stream_queue_bytes,
        gather_us=settings.gather_us_max,
        tls_record_per_message=settings.tls_record_per_message,
        exchange=exchange,
    )
