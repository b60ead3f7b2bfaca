"""Sfu: the package's facade, and its asyncio shell.

It finds the session, waits where the API says that a request waits, and then calls one
synchronous method of `Session`. Nothing is awaited in the middle of a step, so requests of one session are serial by
construction: an offer or an answer is applied whole before anything else can see it.

After every step `_follow` sends what the session wants sent, tells listeners what happened, and notes its next
deadline. One timer serves all sessions.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from sfu._dataplane import plane as dataplane
from sfu.deadlines import Deadlines
from sfu.dtls import DtlsContext
from sfu.endpoint import Endpoint, EventStream
from sfu.errors import InvalidParams, InvalidSessionDescription, LimitExceeded, SessionGone, UsageError
from sfu.events import Dated, TrackResumed, TrackStalled, TrackStarted
from sfu.ice import Check, CheckGate, IceLiteAgent, Path
from sfu.messages import (
    Location,
    SessionDescription,
    SessionId,
    TrackRequest,
    TracksResult,
    TrackState,
)
from sfu.router import Router
from sfu.session import Session
from sfu.settings import SfuSettings
from sfu.stats import SessionStats, SfuStats, TrackStats, session_stats
from sfu.track import TrackKey
from sfu.transport import Transport, candidates

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane, Upcall
    from wire.exchange import End

__all__ = ["EventStream", "SessionStats", "Sfu", "SfuSettings", "SfuStats", "TrackStats"]

_log = logging.getLogger(__name__)

_LABEL_CHARS: Final = 64


@dataclass(eq=False, slots=True)
class _Entry:
    """A session with what the service keeps beside it."""

    session: Session
    ufrags: tuple[str, ...]
    label: str


def _make_plane(settings: SfuSettings, exchange: End | None) -> Plane:
    return dataplane.Plane(
        settings.listen_addresses,
        settings.port,
        threads=settings.threads,
        gso=settings.gso,
        max_transports=settings.sessions_max,
        stall_after=settings.stall_after_s,
        exchange=exchange,
    )


class Sfu:
    """Sessions and tracks of all apps on one UDP port. Apps never see each other's sessions."""

    def __init__(
        self,
        settings: SfuSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        exchange: End | None = None,
        make_plane: Callable[[SfuSettings, End | None], Plane] = _make_plane,
    ) -> None:
        """Touches no socket.

        Args:
            settings: checked ones.
            clock: monotonic seconds, as `time.monotonic`.
            exchange: with the relays of this process, whose clients then reach us in memory; for `settings.threads`.
            make_plane: the forwarding plane.
        """
        self.settings = settings
        self._clock = clock
        self._exchange = exchange
        self._make_plane = make_plane
        self._plane: Plane | None = None
        self._endpoint: Endpoint | None = None
        self._router: Router | None = None
        self._dtls = DtlsContext()
        self._gate = CheckGate()
        self._candidates: tuple[str, ...] = ()
        self._entries: dict[SessionId, _Entry] = {}
        self._by_transport: dict[int, _Entry] = {}
        self._by_agent: dict[IceLiteAgent, _Entry] = {}
        self._deadlines: Deadlines[SessionId] = Deadlines()
        self._listeners: dict[str, set[EventStream]] = {}
        self._waiters: dict[TrackKey | SessionId, set[asyncio.Future[None]]] = {}
        self._timer_at: float | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind, start the plane's threads and begin to serve.

        Raises:
            OSError: an address cannot be bound.
        """
        plane = self._make_plane(self.settings, self._exchange)
        self._plane = plane
        if self._exchange is not None:
            self._exchange.bind(self.settings.endpoints(plane.port))
        self._router = Router(plane)
        self._candidates = candidates(self.settings.announced_addresses or self.settings.listen_addresses, plane.port)
        plane.start()
        self._endpoint = Endpoint(plane, receive=self._receive, wake=self._wake)

    async def close(self) -> None:
        """Say goodbye to every peer, then free everything. Idempotent."""
        if self._plane is None or self._endpoint is None:
            return
        now = self._clock()
        for entry in list(self._entries.values()):
            entry.session.close("server closing", now)
            self._follow(entry, now)
        for listeners in list(self._listeners.values()):
            for stream in list(listeners):
                stream.close()
        self._listeners.clear()
        self._endpoint.close()
        self._plane.close()
        self._plane = self._endpoint = self._router = None

    @property
    def port(self) -> int:
        """The UDP port in use, after `start`."""
        return self._running.port

    @property
    def _running(self) -> Plane:
        if self._plane is None:
            raise UsageError("the service is not running")
        return self._plane

    # -- sessions -------------------------------------------------------------------------------------------------

    async def create_session(
        self,
        app_id: str,
        *,
        offer: SessionDescription | None = None,
        correlation_id: str | None = None,
        third_party: bool = False,
    ) -> tuple[SessionId, SessionDescription | None]:
        """A new session and, when an offer came along, its answer.

        Args:
            app_id: whose session it is.
            offer: its data channel sections are accepted, so that the transport can come up on one alone.
            correlation_id: a label for the log; two sessions may share it.
            third_party: the peer is itself ICE-lite, so that we would have to dial: not available.

        Raises:
            LimitExceeded: too many sessions.
            InvalidParams: `third_party`.
            InvalidSessionDescription: the offer cannot be answered; there is no session then.
        """
        plane, now = self._running, self._clock()
        if third_party:
            raise InvalidParams("sessions towards an ICE-lite third party are not available")
        if len(self._entries) >= self.settings.sessions_max:
            raise LimitExceeded("too many sessions")
        entry = self._new_entry(plane, app_id, correlation_id, now)
        answer = None
        try:
            if offer is not None:
                answer = entry.session.receive_offer(offer, now=now, accept_data=True)
        except InvalidSessionDescription:
            entry.session.close("its first offer was refused", now)
            raise
        finally:
            self._follow(entry, now)
        return entry.session.id, answer

    def _new_entry(self, plane: Plane, app_id: str, label: str | None, now: float) -> _Entry:
        assert self._router is not None
        try:
            transport = Transport(plane, self._dtls, now=now)
        except OverflowError:
            raise LimitExceeded("too many sessions") from None
        session = Session(
            app_id,
            SessionId(secrets.token_hex(16)),
            plane=plane,
            router=self._router,
            transport=transport,
            candidates=self._candidates,
            settings=self.settings,
            now=now,
        )
        entry = _Entry(session, (), repr((label or "")[:_LABEL_CHARS]))
        self._entries[session.id] = entry
        self._by_transport[transport.id] = entry
        self._by_agent[transport.agent] = entry
        return entry

    def _find(self, app_id: str, session_id: SessionId) -> _Entry:
        entry = self._entries.get(session_id)
        if entry is None or entry.session.app_id != app_id:
            raise SessionGone("no such session")
        return entry

    def _call(self, app_id: str, session_id: SessionId) -> tuple[_Entry, float]:
        """The session of a request, and the time."""
        entry, now = self._find(app_id, session_id), self._clock()
        entry.session.touch(now)
        return entry, now

    def tracks_of(self, app_id: str, session_id: SessionId) -> tuple[TrackState, ...]:
        """The session's tracks, both sides.

        Raises:
            SessionGone: no such session in this app.
        """
        entry, _ = self._call(app_id, session_id)
        return entry.session.media.tracks()

    async def renegotiate(
        self, app_id: str, session_id: SessionId, description: SessionDescription
    ) -> SessionDescription | None:
        """Take the answer to the outstanding offer (returns None), or an offer (returns the answer).

        Raises:
            SessionGone: no such session in this app.
            InvalidSessionDescription: it does not fit; nothing changed.
        """
        entry, now = self._call(app_id, session_id)
        try:
            if description.type == "answer":
                entry.session.receive_answer(description, now=now)
                return None
            return entry.session.receive_offer(description, now=now)
        finally:
            self._follow(entry, now)

    # -- tracks ---------------------------------------------------------------------------------------------------

    async def add_tracks(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        tracks: Sequence[TrackRequest],
        offer: SessionDescription | None,
        auto_discover: bool = False,
    ) -> TracksResult:
        """`tracks/new`: publish or pull. Failures of a pull are per item.

        A pull waits up to `pull_wait_s` for the first packets of what it names, and a request that needs an offer of
        ours waits up to `transport_wait_s` for the one that is out.

        Raises:
            SessionGone: no such session in this app.
            InvalidParams: a wrong field, combination or count.
            InvalidSessionDescription: the offer cannot be answered; nothing changed.
        """
        entry, now = self._call(app_id, session_id)
        session = entry.session
        self._check_batch(tracks, offer, auto_discover=auto_discover)
        pulls = bool(tracks) and tracks[0].location is Location.REMOTE
        if pulls:
            await self._wait_for_media(session, tracks)
        if offer is None and any(track.mid is None for track in tracks):
            await self._wait(session.id, self.settings.transport_wait_s, lambda: not session.offer_outstanding)
        if session.closed_because is not None:
            raise SessionGone("the session closed meanwhile")
        now = self._clock()
        try:
            if offer is not None:
                if pulls:
                    return session.pull_with_offer(offer, tracks, now=now)
                if auto_discover:
                    return session.discover(offer, now=now)
                return session.publish(offer, tracks, now=now)
            return session.pull(tracks, now=now) if pulls else session.offer_publish(tracks, now=now)
        finally:
            self._follow(entry, now)

    def _check_batch(
        self, tracks: Sequence[TrackRequest], offer: SessionDescription | None, *, auto_discover: bool
    ) -> None:
        if auto_discover:
            if offer is None or tracks:
                raise InvalidParams("autoDiscover needs an offer and no tracks")
            return
        if not 1 <= len(tracks) <= self.settings.tracks_per_request:
            raise InvalidParams(f"tracks must hold 1 to {self.settings.tracks_per_request} entries")
        if len({track.location for track in tracks}) > 1:
            raise InvalidParams("tracks must be all local or all remote")

    async def _wait_for_media(self, session: Session, tracks: Sequence[TrackRequest]) -> None:
        deadline = self._clock() + self.settings.pull_wait_s
        for track in tracks:
            if track.session_id is None or track.track_name is None:
                continue
            key = (session.app_id, track.session_id, track.track_name)
            await self._wait(key, deadline - self._clock(), lambda key=key: self._settled(session, key))  # type: ignore[misc]  # a lambda's default has no annotation

    def _settled(self, session: Session, key: TrackKey) -> bool:
        """Whether waiting for a track can change nothing: it has media, or nobody is left to publish it."""
        app_id, publisher_id, _ = key
        publisher = self._entries.get(publisher_id)
        if publisher is None or publisher.session.app_id != app_id or session.closed_because is not None:
            return True
        assert self._router is not None
        track = self._router.find(key)
        return track is not None and track.started

    async def _wait(self, key: TrackKey | SessionId, seconds: float, settled: Callable[[], bool]) -> None:
        """Wait until `settled()` or for `seconds`; `_notify(key)` makes it look again.

        Nothing is awaited between the last look and the return.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not settled() and (left := end - loop.time()) > 0:
            waiter = loop.create_future()
            waiters = self._waiters.setdefault(key, set())
            waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=left)
            finally:
                waiters.discard(waiter)
                if not waiters and self._waiters.get(key) is waiters:
                    del self._waiters[key]

    def _notify(self, key: TrackKey | SessionId) -> None:
        for waiter in self._waiters.get(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def update_tracks(self, app_id: str, session_id: SessionId, tracks: Sequence[TrackRequest]) -> TracksResult:
        """`tracks/update`: another layer preference or another track on a pulled mid, without SDP.

        Raises:
            SessionGone: no such session in this app.
            InvalidParams: a wrong count, or a local track.
        """
        entry, now = self._call(app_id, session_id)
        self._check_batch(tracks, None, auto_discover=False)
        if tracks[0].location is not Location.REMOTE:
            raise InvalidParams("only remote tracks can be updated")
        try:
            return entry.session.update(tracks)
        finally:
            self._follow(entry, now)

    async def close_tracks(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        mids: Sequence[str],
        force: bool,
        offer: SessionDescription | None,
    ) -> TracksResult:
        """`tracks/close`: with `force` no SDP, else the offer is always answered.

        Raises:
            SessionGone: no such session in this app.
            InvalidParams: no mids, too many, or neither `force` nor an offer.
            InvalidSessionDescription: the offer cannot be answered; nothing changed.
        """
        entry, now = self._call(app_id, session_id)
        if not 1 <= len(mids) <= self.settings.tracks_per_request:
            raise InvalidParams(f"tracks must hold 1 to {self.settings.tracks_per_request} entries")
        if not force and offer is None:
            raise InvalidParams("closing without force needs an offer")
        try:
            if force or offer is None:
                return entry.session.close_tracks(mids, now=now)
            return entry.session.close_tracks_with_offer(offer, mids, now=now)
        finally:
            self._follow(entry, now)

    # -- after a step ---------------------------------------------------------------------------------------------

    def _follow(self, entry: _Entry, now: float) -> None:
        """Do what the session wants after a step: send, tell, remember its deadline; free it when it closed."""
        session, plane = entry.session, self._running
        for datagram, path in session.datagrams_to_send():
            plane.send_datagram(datagram, path)
        for event in session.events_received():
            self.tell(session.app_id, event)
        self._notify(session.id)
        if session.closed_because is not None:
            self._forget(entry)
            return
        ufrags = session.transport.agent.ufrags
        if ufrags != entry.ufrags:
            for ufrag in entry.ufrags:
                self._gate.discard(ufrag)
            self._gate.add(session.transport.agent)
            entry.ufrags = ufrags
        self._deadlines.schedule(session.id, session.next_timeout())
        self._set_timer(now)

    def _forget(self, entry: _Entry) -> None:
        session = entry.session
        if self._entries.pop(session.id, None) is None:
            return
        _log.info("session %s closed: %s (label %s)", session.id, session.closed_because, entry.label)
        del self._by_transport[session.transport.id]
        del self._by_agent[session.transport.agent]
        for ufrag in entry.ufrags:
            self._gate.discard(ufrag)
        self._deadlines.discard(session.id)
        session.transport.release()
        for key in list(self._waiters):
            if isinstance(key, tuple) and key[1] == session.id:
                self._notify(key)

    def tell(self, app_id: str, event: Dated) -> None:
        """Tell the app's listeners of something, maybe of another part of this server."""
        for listener in self._listeners.get(app_id, ()):
            listener.put(event)

    def _set_timer(self, now: float) -> None:
        earliest = self._deadlines.next()
        if earliest is not None and self._endpoint is not None and earliest != self._timer_at:
            self._timer_at = earliest
            self._endpoint.set_timer(earliest - now)

    def _wake(self) -> None:
        self._timer_at = None
        now = self._clock()
        for session_id in self._deadlines.due(now):
            if (entry := self._entries.get(session_id)) is not None:
                with self._step(entry, now):
                    entry.session.handle_timeout(now)
        self._set_timer(now)

    @contextmanager
    def _step(self, entry: _Entry, now: float) -> Iterator[None]:
        """One step that no request waits for. A mistake of ours ends the session it hit, not the others'."""
        try:
            yield
        except Exception:
            _log.exception("session %s: closing after an internal error", entry.session.id)
            entry.session.close("internal error", now)
        self._follow(entry, now)

    # -- what the plane hands up ----------------------------------------------------------------------------------

    def _receive(self, upcall: Upcall) -> None:
        kind = upcall[0]
        now = self._clock()
        if kind == dataplane.STUN:
            _, _, path, data, _ = cast("tuple[int, int, Path, bytes, float]", upcall)
            self._receive_stun(data, path, now)
        elif kind == dataplane.DTLS:
            _, transport, path, data, _ = cast("tuple[int, int, Path, bytes, float]", upcall)
            entry = self._by_transport.get(transport)
            if entry is not None:
                with self._step(entry, now):
                    entry.session.receive_dtls(data, path, now)
        else:
            self._receive_track_upcall(upcall, now)

    def _receive_stun(self, data: bytes, path: Path, now: float) -> None:
        verdict = self._gate.receive_datagram(data, path, now)
        if isinstance(verdict, Check):
            entry = self._by_agent[verdict.agent]
            with self._step(entry, now):
                reply = self._gate.limit_errors(entry.session.receive_check(verdict, path, now), data, path, now)
                # The reply first: a DTLS flight that follows finds the peer's pair valid.
                if reply is not None:
                    self._running.send_datagram(reply, path)
        elif verdict is not None:
            self._running.send_datagram(verdict, path)

    def _receive_track_upcall(self, upcall: tuple[object, ...], now: float) -> None:
        assert self._router is not None
        track = self._router.by_plane_id(cast("int", upcall[1]))
        if track is None:
            return
        match upcall:
            case (dataplane.STREAM_STARTED, *_) if not track.started:
                track.started = True
                self.tell(track.app_id, TrackStarted(track.session_id, track.name, now))
                self._notify(track.key)
            case (dataplane.TRACK_STALLED, _):
                track.stalled_at = now - self.settings.stall_after_s
                self.tell(track.app_id, TrackStalled(track.session_id, track.name, now))
            case (dataplane.TRACK_RESUMED, _):
                track.stalled_at = None
                self.tell(track.app_id, TrackResumed(track.session_id, track.name, now))
        entry = self._entries.get(track.session_id)
        if entry is not None:
            self._follow(entry, now)

    # -- figures --------------------------------------------------------------------------------------------------

    def subscribe_events(self, app_id: str) -> EventStream:
        """The app's events from now on, in a bounded queue."""
        return EventStream(self._listeners.setdefault(app_id, set()), self.settings.event_queue_max)

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind; all 0 after `close`."""
        return {
            "sessions": len(self._entries),
            "transports": len(self._by_transport),
            "ufrags": len(self._gate),
            "deadlines": len(self._deadlines),
            "tracks": 0 if self._router is None else len(self._router),
            "subscriptions": 0 if self._router is None else self._router.subscriptions,
            "waiters": sum(map(len, self._waiters.values())),
            "listeners": sum(map(len, self._listeners.values())),
        }

    def stats(self) -> SfuStats:
        """Figures of the whole service."""
        plane = self._running
        return SfuStats(
            counters=plane.stats(),
            live=self.live_counts(),
            latency_histogram=tuple(plane.latency_histogram()),
            batch_histogram=tuple(plane.batch_histogram()),
        )

    def session_stats(self, app_id: str, session_id: SessionId) -> SessionStats:
        """Figures of one session.

        Raises:
            SessionGone: no such session in this app.
        """
        return session_stats(self._find(app_id, session_id).session, self._running)
