"""Channels: two bytes that stand for a peer's transport address (RFC 8656 §12; rules C1 to C4).

Numbers and peers are paired one to one within a relay. The relay plane holds the same table for the data path.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from wire.stun import TransportAddress

CHANNEL_LIFETIME = 600.0  # §12: not negotiable
CHANNEL_MIN = 0x4000
CHANNEL_MAX = 0x4FFF
CHANNEL_MAX_RFC5766 = 0x7FFF
CHANNEL_HEADER_BYTES = 4


class ChannelBinding(NamedTuple):
    """One number and its peer, until `expires_at`."""

    number: int
    peer: TransportAddress
    expires_at: float


class BindResult(Enum):
    """What became of a request to bind."""

    BOUND = "bound"
    CLASH = "clash"
    """The number has another peer, or the peer another number."""
    FULL = "full"


class ChannelTable:
    """The channels of one allocation: at most `size_max` live ones (X14)."""

    __slots__ = ("_by_number", "_by_peer", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._by_number: dict[int, ChannelBinding] = {}
        self._by_peer: dict[TransportAddress, ChannelBinding] = {}
        self._size_max = size_max

    def check(self, number: int, peer: TransportAddress, now: float) -> BindResult:
        """Whether `number` may be bound to `peer`, or its binding be renewed. Changes nothing but forgets the dead."""
        for binding in [b for b in self._by_number.values() if b.expires_at <= now]:
            self._remove(binding)
        held_number, held_peer = self._by_number.get(number), self._by_peer.get(peer)
        if (held_number is not None and held_number.peer != peer) or (
            held_peer is not None and held_peer.number != number
        ):
            return BindResult.CLASH
        if held_number is None and len(self._by_number) >= self._size_max:
            return BindResult.FULL
        return BindResult.BOUND

    def bind(self, number: int, peer: TransportAddress, now: float) -> ChannelBinding:
        """Bind, or renew for another 600 s. Ask `check` first."""
        binding = ChannelBinding(number, peer, now + CHANNEL_LIFETIME)
        self._by_number[number] = self._by_peer[peer] = binding
        return binding

    def live(self, now: float) -> list[ChannelBinding]:
        """The bindings in force."""
        return [binding for binding in self._by_number.values() if now < binding.expires_at]

    def forget_family(self, version: int) -> None:
        """The relay that reached peers of IP `version` is gone."""
        for binding in [b for b in self._by_number.values() if b.peer.ip.version == version]:
            self._remove(binding)

    def _remove(self, binding: ChannelBinding) -> None:
        del self._by_number[binding.number]
        del self._by_peer[binding.peer]
