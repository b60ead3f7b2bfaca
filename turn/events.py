"""What happened, in the past tense: the outputs of `TurnServer` besides its answers."""

from __future__ import annotations

from dataclasses import dataclass

from turn.allocation import CloseReason, FiveTuple
from turn.ports import RelayUsage
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


Event = AllocationCreated | AllocationClosed
