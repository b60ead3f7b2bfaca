"""A media side without media: answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sfu.errors import SessionGone
from sfu.events import Event
from sfu.messages import (
    Kind,
    Location,
    SessionDescription,
    SessionId,
    TrackRequest,
    TrackResult,
    TracksResult,
    TrackState,
    TrackStatus,
)
from sfu.service import SessionStats, SfuSettings, SfuStats, TrackStats

ANSWER = SessionDescription("answer", "v=0\r\nan answer")
OFFER = SessionDescription("offer", "v=0\r\nan offer")


class FakeStream:
    """Events that a test pushes; `None` ends it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self.is_open = False

    async def __aenter__(self) -> FakeStream:
        self.is_open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self.is_open = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            yield event


class FakeSfu:
    """Fills `sfu.routes.SessionService` and what `torpor` needs of `Sfu`. Set `error` to make every call fail."""

    def __init__(self) -> None:
        self.settings = SfuSettings()
        self.port = 8787
        self._ids = itertools.count()
        self.forget()

    def forget(self) -> None:
        """Start anew, but never give an id twice."""
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.sessions: dict[str, str] = {}
        self.streams: list[FakeStream] = []
        self.told: list[tuple[str, Any]] = []
        self.result = TracksResult((TrackResult(track_name="camera", mid="0"),), False, ANSWER)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def _session(self, app_id: str, session_id: str) -> None:
        if self.sessions.get(session_id) != app_id:
            raise SessionGone("no such session")

    async def create_session(
        self, app_id: str, *, offer: SessionDescription | None, correlation_id: str | None, third_party: bool
    ) -> tuple[SessionId, SessionDescription | None]:
        self._called("create_session", app_id, offer, correlation_id, third_party)
        session_id = SessionId(f"{next(self._ids):032x}")
        self.sessions[session_id] = app_id
        return session_id, ANSWER if offer else None

    def tracks_of(self, app_id: str, session_id: SessionId) -> tuple[TrackState, ...]:
        self._called("tracks_of", app_id, session_id)
        self._session(app_id, session_id)
        return (
            TrackState(Location.LOCAL, "0", "camera", TrackStatus.ACTIVE),
            TrackState(Location.REMOTE, "1", "mic", TrackStatus.INACTIVE, SessionId("ff" * 16)),
        )

    async def renegotiate(
        self, app_id: str, session_id: SessionId, description: SessionDescription
    ) -> SessionDescription | None:
        self._called("renegotiate", app_id, session_id, description)
        self._session(app_id, session_id)
        return ANSWER if description.type == "offer" else None

    async def add_tracks(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        tracks: Sequence[TrackRequest],
        offer: SessionDescription | None,
        auto_discover: bool,
    ) -> TracksResult:
        self._called("add_tracks", app_id, session_id, tuple(tracks), offer, auto_discover)
        self._session(app_id, session_id)
        return self.result

    async def update_tracks(self, app_id: str, session_id: SessionId, tracks: Sequence[TrackRequest]) -> TracksResult:
        self._called("update_tracks", app_id, session_id, tuple(tracks))
        self._session(app_id, session_id)
        return self.result

    async def close_tracks(
        self, app_id: str, session_id: SessionId, *, mids: Sequence[str], force: bool, offer: SessionDescription | None
    ) -> TracksResult:
        self._called("close_tracks", app_id, session_id, tuple(mids), force, offer)
        self._session(app_id, session_id)
        return self.result

    def session_stats(self, app_id: str, session_id: SessionId) -> SessionStats:
        self._called("session_stats", app_id, session_id)
        self._session(app_id, session_id)
        states = self.tracks_of(app_id, session_id)
        layers = ({"rid": "h", "packets": 12, "rtt": 0.02},)
        return SessionStats("connected", "ipv4", {"rtt": 0.01}, (TrackStats(states[0], Kind.VIDEO, layers),))

    def subscribe_events(self, app_id: str) -> FakeStream:
        self._called("subscribe_events", app_id)
        self.streams.append(FakeStream())
        return self.streams[-1]

    def tell(self, app_id: str, event: Any) -> None:
        self.told.append((app_id, event))

    def live_counts(self) -> dict[str, int]:
        return {"sessions": len(self.sessions)}

    def stats(self) -> SfuStats:
        return SfuStats({"rtp_in": 7, "cache_bytes": 5, "drop_no_keys": 2}, self.live_counts(), (1, 2, 3), (4, 0, 1))
