"""Figures of the service, of a session and of its tracks, as values for metrics and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sfu.messages import Kind, Location, TrackState

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane
    from sfu.session import Session


@dataclass(frozen=True, slots=True)
class SfuStats:
    """The plane's counters and the service's live objects, for metrics."""

    counters: Mapping[str, int]
    live: Mapping[str, int]
    latency_histogram: tuple[int, ...]
    batch_histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrackStats:
    """One track of a session. `layers` holds the plane's counters: one dict per simulcast layer of a published track,
    one for a pulled track."""

    state: TrackState
    kind: Kind
    layers: tuple[Mapping[str, int | float | str], ...]


@dataclass(frozen=True, slots=True)
class SessionStats:
    """One session, for an operator or the stats panel of a page."""

    transport_state: str  # new, connecting, connected or disconnected
    address_family: str | None  # "ipv4" or "ipv6" of the selected tuple
    transport: Mapping[str, int | float]  # the plane's counters, rtt among them
    tracks: tuple[TrackStats, ...]


def session_stats(session: Session, plane: Plane) -> SessionStats:
    """Ask the plane about everything of one session."""
    selected = session.transport.agent.selected
    states = {(state.location, state.mid): state for state in session.media.tracks()}
    tracks = [
        TrackStats(
            states[Location.LOCAL, mid],
            track.kind,
            () if track.plane_id is None else tuple(plane.track_stats(track.plane_id)),
        )
        for mid, track in session.media.locals.items()
    ]
    tracks += [
        TrackStats(
            states[Location.REMOTE, mid],
            remote.kind,
            () if remote.forwarder is None else (plane.forwarder_stats(remote.forwarder),),
        )
        for mid, remote in session.media.remotes.items()
    ]
    return SessionStats(
        transport_state=session.transport.state.value,
        address_family=None if selected is None else f"ipv{ip_address(selected[1]).version}",
        transport=plane.transport_stats(session.transport.id),
        tracks=tuple(tracks),
    )
