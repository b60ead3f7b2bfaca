"""What happened, in the past tense: the outputs of `TurnServer` besides its answers."""

from __future__ import annotations

from dataclasses import dataclass

from turn.allocation import CloseReason, FiveTuple
from turn.usage import RelayUsage
from wire.stun import TransportAddress


@dataclass(frozen=True, slots=True)
class AllocationCreated:
    """A client got relayed addresses."""

    five_tuple: FiveTuple
    username: str
    relayed: tuple[TransportAddress, ...]


@dataclass(frozen=True, slots=True)
class AllocationClosed:
    """An allocation ended, with what it carried."""

    five_tuple: FiveTuple
    username: str
    reason: CloseReason
    usage: RelayUsage


@dataclass(frozen=True, slots=True)
class CredentialWanted:
    """A request waits for the credential of `username`: answer with `TurnServer.receive_credential` (E6)."""

    username: str


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """From its answer on, the bytes of the client's connection `five_tuple` are those of a peer's (RFC 6062 §5.4)."""

    five_tuple: FiveTuple
    number: int


@dataclass(frozen=True, slots=True)
class AllocationStarted:
    """An allocation by a credential of a key, as the key's owner is told. `at` is monotonic, in seconds."""

    username: str
    custom_identifier: str
    transport: str
    """Between client and server: `udp`, `tcp` or `tls`."""
    client: str
    """`address:port`."""
    relayed: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class AllocationEnded:
    """Its end, and the payload that it carried."""

    username: str
    custom_identifier: str
    client: str
    reason: str
    """A `CloseReason`."""
    bytes_from_client: int
    bytes_to_client: int
    at: float


Event = AllocationCreated | AllocationClosed | CredentialWanted | PeerJoined
