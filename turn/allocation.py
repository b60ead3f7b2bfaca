"""Allocations: a client's 5-tuple and the relayed addresses it holds (RFC 8656 §6, §7).

States of an allocation: none → live (Allocate) → live (Refresh resets the timer) → none (LIFETIME 0, expiry, client
connection closed, credential revoked). Data in either direction never extends it (RF4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from turn.channel import ChannelTable
from turn.credentials import Credential
from turn.limits import TokenBucket
from turn.permission import PermissionTable
from turn.usage import RelayUsage
from wire.stun import IPAddress, TransportAddress

LIFETIME_DEFAULT = 600  # §3.2; also the least that is granted
LIFETIME_MAX = 3600


class Transport(Enum):
    """Between client and server. Part of the 5-tuple: equal addresses on another transport are strangers (G4)."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


class FiveTuple(NamedTuple):
    """Transport, client address and server address, as the server sees them."""

    transport: Transport
    client: TransportAddress
    server: TransportAddress

    def __str__(self) -> str:
        return f"{self.transport.value} {self.client} {self.server}"


@dataclass(slots=True)
class Relay:
    """One relayed transport address of an allocation; a dual allocation has two (RFC 8656 §7.2)."""

    handle: int
    """The name of the socket to those who hold it: the plane, or `PeerSockets`."""
    local: TransportAddress
    """Where the socket is bound."""
    external: TransportAddress
    """What client and peers are told; differs behind 1:1 NAT (A23)."""
    expires_at: float
    permissions: PermissionTable
    tcp: bool = False
    """Towards peers (RFC 6062)."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.local.ip.version


@dataclass(slots=True)
class Allocation:
    """What one 5-tuple holds."""

    five_tuple: FiveTuple
    credential: Credential
    """As of the Allocate request. Kept so that data and refreshes never wait for a look-up (E6)."""
    quota_identity: str
    relays: list[Relay]
    channels: ChannelTable
    new_peers: TokenBucket = field(repr=False)
    """How fast it may name new peer addresses (X15)."""
    ends_at: float | None
    """Never refreshed beyond this: the credential's or the session's end (E4). None: open-ended."""
    carried: RelayUsage = field(default_factory=RelayUsage)
    """By relays of it that are closed already."""
    scheduled_at: float = math.inf
    """The server's next look at it."""

    @property
    def username(self) -> str:
        """Who may change it (G2)."""
        return self.credential.username

    @property
    def expires_at(self) -> float:
        """When the last relay of it goes."""
        return max(relay.expires_at for relay in self.relays)

    @property
    def tcp(self) -> bool:
        """Whether peers are reached over TCP (RFC 6062)."""
        return any(relay.tcp for relay in self.relays)

    def relay_for(self, ip: IPAddress) -> Relay | None:
        """The relay of the same family as `ip`."""
        return next((relay for relay in self.relays if relay.version == ip.version), None)


class CloseReason(Enum):
    """Why an allocation ended."""

    DELETED = "deleted"
    EXPIRED = "expired"
    CREDENTIAL_ENDED = "credential_ended"
    REVOKED = "revoked"
    DISCONNECTED = "disconnected"
    SHUTDOWN = "shutdown"
