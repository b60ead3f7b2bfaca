"""Everything that can be set about the SFU; limits and times carry the rule they come from."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class SfuSettings:
    """Seconds are floats without a unit in the name other than `_s`; sizes are bytes."""

    listen_addresses: tuple[str, ...] = ("127.0.0.1",)
    """IPv4 or IPv6 literals to bind, without brackets."""
    announced_addresses: tuple[str, ...] = ()
    """What the candidates say; empty: the listen addresses (ICE-10)."""
    port: int = 0
    """One UDP port for all sessions; 0 lets the system choose."""
    threads: int = 1
    gso: bool = True

    pull_wait_s: float = 5.0
    """How long a pull waits for a track's first packet before it reports an item error."""
    transport_wait_s: float = 5.0
    """How long an operation waits for an outstanding offer to be answered."""
    stall_after_s: float = 2.0
    """A publication without packets for this long is reported stalled (LAY-1)."""
    inactive_track_s: float = 30.0
    """A publication without packets for this long is collected."""
    unconnected_session_s: float = 30.0
    """A session that exchanged SDP but does not connect is closed this long after its last request."""
    unused_session_s: float = 300.0
    """A session that never exchanged SDP is closed this long after its last request."""
    disconnected_session_s: float = 30.0
    """A session is closed this long after its last consent check (ICE-6)."""

    tracks_per_request: int = 64
    calls_per_session_per_s: int = 50
    """For the HTTP routes, which count the calls."""
    sessions_max: int = 20_000
    sdp_bytes_max: int = 512 * 1024
    track_name_bytes_max: int = 1024
    event_queue_max: int = 1024
    """Events kept for one listener; a slower one loses the oldest."""

    def endpoints(self, port: int) -> list[tuple[str, int]]:
        """Where peers reach us once `port` is bound: by the candidates, and by the addresses that we listen on."""
        hosts = dict.fromkeys((*self.announced_addresses, *self.listen_addresses))
        return [(host, port) for host in hosts if not ip_address(host).is_unspecified]
