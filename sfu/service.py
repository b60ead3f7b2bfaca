"""Sfu: the package's facade and its asyncio shell."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sfu.errors import SfuError
from sfu.events import Event
from sfu.messages import Kind, SessionDescription, SessionId, TrackRequest, TracksResult, TrackState
from sfu.settings import SfuSettings

__all__ = ["EventStream", "SessionStats", "Sfu", "SfuSettings", "SfuStats", "TrackStats"]


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

    transport_state: str  # new, connecting, connected, disconnected, failed, closed
    address_family: str | None  # "ipv4" or "ipv6" of the selected tuple
    transport: Mapping[str, int | float]  # the plane's counters, rtt among them
    tracks: tuple[TrackStats, ...]


class EventStream:
    """One listener's events: use as an async context manager, then iterate. Ends when the service closes."""

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def __anext__(self) -> Event:
        raise NotImplementedError


class Sfu:
    """Sessions and tracks of all apps on one UDP port. Apps never see each other's sessions."""

    def __init__(self, settings: SfuSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock

    async def start(self) -> None:
        """Bind, start the plane's threads and begin to serve.

        Raises:
            OSError: an address cannot be bound.
        """
        raise SfuError("not yet")

    async def close(self) -> None:
        """Say goodbye to every peer, then free everything. Idempotent."""

    @property
    def port(self) -> int:
        """The UDP port in use, after `start`."""
        raise SfuError("not yet")

    async def create_session(
        self,
        app_id: str,
        *,
        offer: SessionDescription | None = None,
        correlation_id: str | None = None,
        third_party: bool = False,
    ) -> tuple[SessionId, SessionDescription | None]:
        """A new session and, when an offer came along, its answer."""
        raise SfuError("not yet")

    def tracks_of(self, app_id: str, session_id: SessionId) -> tuple[TrackState, ...]:
        """The session's tracks, both sides.

        Raises:
            SessionGone: no such session in this app.
        """
        raise SfuError("not yet")

    async def renegotiate(
        self, app_id: str, session_id: SessionId, description: SessionDescription
    ) -> SessionDescription | None:
        """Take the answer to the outstanding offer (returns None), or an offer (returns the answer)."""
        raise SfuError("not yet")

    async def add_tracks(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        tracks: Sequence[TrackRequest],
        offer: SessionDescription | None,
        auto_discover: bool = False,
    ) -> TracksResult:
        """`tracks/new`: publish or pull. Failures of a pull are per item."""
        raise SfuError("not yet")

    async def update_tracks(self, app_id: str, session_id: SessionId, tracks: Sequence[TrackRequest]) -> TracksResult:
        """`tracks/update`: another layer preference or another track on a pulled mid, without SDP."""
        raise SfuError("not yet")

    async def close_tracks(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        mids: Sequence[str],
        force: bool,
        offer: SessionDescription | None,
    ) -> TracksResult:
        """`tracks/close`: with `force` no SDP, else the offer is always answered."""
        raise SfuError("not yet")

    def subscribe_events(self, app_id: str) -> EventStream:
        """The app's events from now on, in a bounded queue."""
        raise SfuError("not yet")

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind; all 0 after `close`."""
        return {}

    def stats(self) -> SfuStats:
        """Figures of the whole service."""
        raise SfuError("not yet")

    def session_stats(self, app_id: str, session_id: SessionId) -> SessionStats:
        """Figures of one session.

        Raises:
            SessionGone: no such session in this app.
        """
        raise SfuError("not yet")
