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


Event = AllocationCreated | AllocationClosed | CredentialWanted | PeerJoined
