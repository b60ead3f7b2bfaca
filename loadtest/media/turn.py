"""TURN under load: allocations that echo traffic through a peer socket and keep themselves alive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from loadtest.histogram import Histogram
from loadtest.media.figures import Mergeable
from loadtest.media.turn_server import TurnServer as TurnServer


@dataclass(frozen=True, slots=True)
class TurnFigures(Mergeable):
    """Of one relay, or of several merged."""

    relays: int = 0
    allocate_seconds: Histogram = field(default_factory=Histogram)
    """From the first byte sent to the relayed address, handshakes of TCP and TLS included."""
    sent: int = 0
    echoed: int = 0
    """Packets that came back: client → relay → peer → relay → client."""
    lost: int = 0
    """Sent, and not back within two seconds."""
    bytes: int = 0
    """Echoed, payload."""
    refreshes: int = 0
    failures: int = 0
    """Refreshes, permissions or bindings that were refused."""
    round_trip: Histogram = field(default_factory=Histogram)
    send_lag: Histogram = field(default_factory=Histogram)
    """How late packets left against schedule."""


class TurnRelay(Protocol):
    """One allocation with a channel to a peer socket of ours that echoes."""

    allocate_seconds: float

    async def echo(self, *, seconds: float, pps: float, size: int = 200) -> None:
        """Send packets of `size` bytes on schedule for `seconds`, through the channel; counts what comes back."""

    def figures(self) -> TurnFigures:
        """Counters so far."""

    async def close(self) -> None:
        """Release the allocation. Idempotent."""
