"""Session: one peer's WebRTC state, and what the API may ask of it. Read this file first.

A session owns one `Transport` (how packets come and go), one `Negotiation` (which m-sections were agreed) and one
`SessionMedia` (its tracks: local ones that its client publishes, remote ones that it pulls). A request has three steps:

1. read: parse the description and look up tracks; anything wrong raises here, and nothing has changed;
2. agree: compute the answer or the offer, then commit it;
3. reconcile: bring tracks, router and data plane in line with the sections now agreed.

Step 3 is the same for all requests: it looks at what *is* agreed, not at what was asked. Media in or out begins
there, never before both sides agreed on it.

In: the methods, `receive_check`, `receive_dtls`, `handle_timeout`. Out: return values, `datagrams_to_send()`,
`events_received()`, `next_timeout()`. Errors that concern one item of a batch become fields of its `TrackResult`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final

from sfu import codecs as codec_rules
from sfu.errors import (
    InvalidParams,
    InvalidSessionDescription,
    LimitExceeded,
    TrackAlreadyClosed,
    TrackEmpty,
    TrackError,
    TrackNotFound,
    TrackNotUpdatable,
)
from sfu.events import Event, SessionClosed, SessionConnected, SessionDisconnected
from sfu.ice import Check, IceCredentials, Path
from sfu.media import SessionMedia
from sfu.messages import Kind, Location, SessionDescription, SessionId, TrackRequest, TrackResult, TracksResult
from sfu.negotiation import Draft, Negotiation, PeerDescription
from sfu.router import Router, check_codecs
from sfu.sections import Addition, LocalParameters, Outgoing, Wish
from sfu.settings import SfuSettings
from sfu.track import LocalTrack, RemoteTrack
from sfu.transport import (
    REPLACEMENT_WINDOW,
    Transport,
    TransportClosed,
    TransportConnected,
    TransportDisconnected,
    TransportState,
)
from wire.sdp import MediaSection, Setup

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane

OFFER_LOST_AFTER: Final = 10.0
"""An offer of ours unanswered for this long is taken as lost: the peer's next offer replaces it. Before, that offer is
refused, because it may have crossed ours on the way (glare)."""


class Session:
    """One peer. Not safe for concurrent use: the service serialises requests per session."""

    def __init__(
        self,
        app_id: str,
        session_id: SessionId,
        *,
        plane: Plane,
        router: Router,
        transport: Transport,
        candidates: tuple[str, ...],
        settings: SfuSettings,
        now: float,
    ) -> None:
        self.app_id = app_id
        self.id = session_id
        self.transport = transport
        self.negotiation = Negotiation(sdp_bytes_max=settings.sdp_bytes_max)
        self.media = SessionMedia(app_id, session_id, transport.id, plane, router)
        self.closed_because: str | None = None
        self._candidates = candidates
        self._settings = settings
        self._touched_at = now
        self._offered_at = now
        self._events: list[Event] = []

    # -- publish --------------------------------------------------------------------------------------------------

    def publish(self, offer: SessionDescription, requests: Sequence[TrackRequest], *, now: float) -> TracksResult:
        """Take the client's offer and publish the sections that `requests` name by mid.

        Repeating a request with a new offer succeeds; a new name for a mid republishes it (realtime-api.md §4).
        """
        return self._publish(self._read_offer(offer, now), requests, now)

    def discover(self, offer: SessionDescription, *, now: float) -> TracksResult:
        """Publish every new sending section of the offer under a random name (`autoDiscover`)."""
        peer = self._read_offer(offer, now)
        requests = [
            TrackRequest(Location.LOCAL, mid=section.mid, track_name=str(uuid.uuid4()))
            for section in peer.sections
            if not section.rejected
            and section.kind in ("audio", "video")
            and section.direction.sends
            and not self.media.publishes(section.mid or "")
        ]
        if len(requests) > self._settings.tracks_per_request:
            raise InvalidParams("too many tracks")
        result = self._publish(peer, requests, now)
        kinds = {section.mid: Kind(section.kind) for section in peer.sections if section.kind in ("audio", "video")}
        tracks = tuple(replace(item, location=Location.LOCAL, kind=kinds[item.mid]) for item in result.tracks)
        return replace(result, tracks=tracks)

    def _publish(self, peer: PeerDescription, requests: Sequence[TrackRequest], now: float) -> TracksResult:
        offered = {section.mid: section for section in peer.sections if not section.rejected}
        self._check_publish(requests, offered)
        wishes = self._standing_wishes()
        for request in requests:
            section = offered[request.mid]
            if _why_not_publishable(section) is None:
                outgoing = wishes.get(section.mid or "", Wish()).outgoing
                if request.bidirectional and outgoing is None:
                    outgoing = self.media.new_outgoing(section.kind, self.id, section)
                wishes[section.mid or ""] = Wish(receives=True, outgoing=outgoing)
        draft, credentials = self._draft_answer(peer, wishes)
        # Publications end and begin before the sections are taken, so that a name can move to another mid.
        tracks = {
            request.mid: self.media.publish(
                request.mid or "", request.track_name or "", Kind(offered[request.mid].kind), now
            )
            for request in requests
            if _why_not_publishable(offered[request.mid]) is None
        }
        self._take_answer(peer, draft, credentials, now)
        results = []
        for request in requests:
            reason = _why_not_publishable(offered[request.mid])
            if reason is None and tracks[request.mid].closed:
                reason = "the server's track table is full"
            results.append(
                TrackResult(track_name=request.track_name, mid=request.mid)
                if reason is None
                else _failure(request, TrackError(reason))
            )
        return TracksResult(tuple(results), session_description=SessionDescription("answer", draft.sdp))

    def offer_publish(self, requests: Sequence[TrackRequest], *, now: float) -> TracksResult:
        """Offer sections for the client to publish on: `recvonly`, or `sendrecv` when bidirectional."""
        for request in requests:
            if request.kind is None or not request.track_name:
                raise InvalidParams("without an offer a local track needs kind and trackName")
        self._check_names(requests, {})
        additions = [
            Addition(
                kind=request.kind or "",
                codecs=codec_rules.OFFERED_CODECS[request.kind or ""],
                extensions=tuple(codec_rules.EXTENSIONS),
                receives=True,
                outgoing=self.media.new_outgoing(request.kind or "", self.id) if request.bidirectional else None,
            )
            for request in requests
        ]
        draft = self._take_offer(additions, now)
        results = []
        for request, mid in zip(requests, draft.added, strict=True):
            self.media.publish(mid, request.track_name or "", Kind(request.kind or ""), now)
            results.append(TrackResult(track_name=request.track_name, mid=mid))
        return TracksResult(tuple(results), True, SessionDescription("offer", draft.sdp))

    def _check_publish(self, requests: Sequence[TrackRequest], offered: Mapping[str | None, MediaSection]) -> None:
        for request in requests:
            if request.mid is None or not request.track_name:
                raise InvalidParams("a local track needs mid and trackName")
            if request.mid not in offered or offered[request.mid].kind not in ("audio", "video"):
                raise InvalidParams("a mid is not in the offer")
        mids = [request.mid for request in requests]
        if len(set(mids)) != len(mids):
            raise InvalidParams("a mid is listed twice")
        self._check_names(requests, offered)

    def _check_names(self, requests: Sequence[TrackRequest], still_offered: Mapping[str | None, MediaSection]) -> None:
        names = [request.track_name or "" for request in requests]
        if len(set(names)) != len(names):
            raise InvalidParams("a trackName is listed twice")
        if any(len(name.encode(errors="replace")) > self._settings.track_name_bytes_max for name in names):
            raise InvalidParams("a trackName is too long")
        renamed = {request.mid for request in requests}
        for request in requests:
            known = self.media.published(request.track_name or "")
            if known is None or known.mid == request.mid or known.mid in renamed:
                continue
            if known.mid in still_offered:
                raise InvalidParams("a trackName is in use on another mid")

    # -- pull -----------------------------------------------------------------------------------------------------

    def pull(self, requests: Sequence[TrackRequest], *, now: float) -> TracksResult:
        """Offer one section for each requested track; those that name a `mid` go onto that transceiver without SDP.

        The service has waited for media before; what is unknown or silent now is an item error.
        """
        results: list[TrackResult | None] = [None] * len(requests)
        sources: list[tuple[int, LocalTrack]] = []
        for index, request in enumerate(requests):
            try:
                source = self._find_source(request)
                if request.mid is None:
                    sources.append((index, source))
                else:
                    mid = self._pull_into(request.mid, source, request, now)
                    results[index] = _pulled(request, mid)
            except TrackError as error:
                results[index] = _failure(request, error)
        if not sources:
            return TracksResult(tuple(result for result in results if result is not None))
        additions = [self._addition_for(source) for _, source in sources]
        try:
            draft = self._take_offer(additions, now)
        except LimitExceeded as error:
            # Rule 4: whatever is wrong with a pull is told per item.
            for index, _ in sources:
                results[index] = _failure(requests[index], TrackError(error.description))
            return TracksResult(tuple(result for result in results if result is not None))
        for (index, source), mid, addition in zip(sources, draft.added, additions, strict=True):
            assert addition.outgoing is not None
            self.media.pull(mid, source, addition.outgoing, requests[index].simulcast)
            results[index] = _pulled(requests[index], mid)
        items = tuple(result for result in results if result is not None)
        return TracksResult(items, True, SessionDescription("offer", draft.sdp))

    def pull_with_offer(
        self, offer: SessionDescription, requests: Sequence[TrackRequest], *, now: float
    ) -> TracksResult:
        """Pull onto sections that the client offers to receive on: by `mid`, else by kind in order."""
        peer = self._read_offer(offer, now)
        wishes = self._standing_wishes()
        free = {
            section.mid: section
            for section in peer.sections
            if section.mid is not None
            and not section.rejected
            and section.direction.receives
            and section.mid not in self.media.remotes
        }
        results = []
        pulled: list[tuple[str, LocalTrack, TrackRequest, Outgoing]] = []
        for request in requests:
            try:
                source = self._find_source(request)
                section = _take_section(free, request.mid, source.kind)
                check_codecs(source.codecs, codec_rules.supported(section.codecs, section.kind))
            except TrackError as error:
                results.append(_failure(request, error))
                continue
            mid = section.mid or ""
            standing = wishes.get(mid, Wish())
            outgoing = standing.outgoing or self.media.new_outgoing(section.kind, source.session_id, section)
            wishes[mid] = Wish(receives=standing.receives, outgoing=outgoing)
            pulled.append((mid, source, request, outgoing))
            results.append(_pulled(request, mid))
        if not pulled:
            return TracksResult(tuple(results))
        draft, credentials = self._draft_answer(peer, wishes)
        for mid, source, request, outgoing in pulled:
            self.media.pull(mid, source, outgoing, request.simulcast)
        self._take_answer(peer, draft, credentials, now)
        return TracksResult(tuple(results), session_description=SessionDescription("answer", draft.sdp))

    def _find_source(self, request: TrackRequest) -> LocalTrack:
        source = self.media.source(request.session_id, request.track_name)
        if not source.started:
            raise TrackEmpty("the track has sent no media yet")
        return source

    def _addition_for(self, source: LocalTrack) -> Addition:
        return Addition(
            kind=source.kind,
            codecs=codec_rules.first_of_each(source.codecs),
            extensions=tuple(codec_rules.offered_extension_uris(source.extensions)),
            outgoing=self.media.new_outgoing(source.kind, source.session_id),
        )

    def _pull_into(self, name: str, source: LocalTrack, request: TrackRequest, now: float) -> str:
        """Start media on the send half of a transceiver that is there already. Returns its mid."""
        mid = name
        if name.startswith("#"):
            track = self.media.published(name[1:])
            mid = "" if track is None else track.mid
        section = self.negotiation.find(mid)
        if section is None:
            raise TrackNotFound("no such transceiver on this session")
        if section.outgoing is None or section.kind != source.kind:
            raise TrackError("the transceiver cannot send this track")
        known = self.media.remotes.get(mid)
        if known is not None:
            self.media.switch(known, source, request.simulcast)
        else:
            check_codecs(source.codecs, section.codecs)
            self.media.pull(mid, source, section.outgoing, request.simulcast)
            self._reconcile(now)
        return mid

    # -- update and close -----------------------------------------------------------------------------------------

    def update(self, requests: Sequence[TrackRequest]) -> TracksResult:
        """Another layer preference, or another track on a pulled mid, without SDP. Fine while an offer is out."""
        results = []
        for request in requests:
            try:
                remote = self._update(request)
            except TrackError as error:
                results.append(_failure(request, error))
            else:
                results.append(_pulled(request, remote.mid))
        return TracksResult(tuple(results))

    def _update(self, request: TrackRequest) -> RemoteTrack:
        remotes = self.media.remotes
        # Some clients name the publisher's mid: an unknown one falls back to the track that is pulled (§5).
        remote = remotes.get(request.mid or "") or next(
            (
                remote
                for remote in remotes.values()
                if (remote.source_session_id, remote.source_name) == (request.session_id, request.track_name)
            ),
            None,
        )
        if remote is None:
            raise TrackNotUpdatable("no such pulled track")
        same = request.session_id is None and request.track_name is None
        source = self.media.source(
            remote.source_session_id if same else request.session_id,
            remote.source_name if same else request.track_name,
        )
        if source.kind is not remote.kind:
            raise TrackNotUpdatable("the track is of another kind")
        preference = remote.preference if request.simulcast is None else request.simulcast
        if request.simulcast is not None and (rid := request.simulcast.preferred_rid) and rid not in source.rids:
            raise TrackNotUpdatable("the track has no such simulcast layer")
        try:
            self.media.switch(remote, source, preference)
        except TrackError as error:
            raise TrackNotUpdatable(error.description) from None
        return remote

    def close_tracks(self, mids: Sequence[str], *, now: float) -> TracksResult:
        """End what flows on these mids, both halves, without SDP (`force`). An outstanding offer stays."""
        return TracksResult(self._close_each(mids, now))

    def close_tracks_with_offer(self, offer: SessionDescription, mids: Sequence[str], *, now: float) -> TracksResult:
        """The same, then answer the client's offer: listed mids become inactive, whatever the offer says of them."""
        peer = self._read_offer(offer, now)
        results = self._close_each(mids, now)
        draft, credentials = self._draft_answer(peer, self._standing_wishes())
        self._take_answer(peer, draft, credentials, now)
        return TracksResult(results, session_description=SessionDescription("answer", draft.sdp))

    def _close_each(self, mids: Sequence[str], now: float) -> tuple[TrackResult, ...]:
        results = []
        for mid in mids:
            if self.media.close_mid(mid, "closed by its session", now):
                self.negotiation.stop(mid)
                results.append(TrackResult(mid=mid))
            else:
                error = TrackAlreadyClosed("no open track on this mid")
                results.append(TrackResult(mid=mid, error_code=error.code, error_description=error.description))
        return tuple(results)

    # -- renegotiate ----------------------------------------------------------------------------------------------

    def receive_answer(self, answer: SessionDescription, *, now: float) -> None:
        """Take the answer to our outstanding offer.

        Raises:
            InvalidSessionDescription: no offer is outstanding, or this does not answer it; the offer stays out.
        """
        peer, draft = self.negotiation.read_answer(answer.sdp)
        self._agree(peer, draft, self.transport.agent.local, now)

    def receive_offer(self, offer: SessionDescription, *, now: float, accept_data: bool = False) -> SessionDescription:
        """Answer an offer that changes no track: an ICE restart, another direction, or a first transport."""
        peer = self._read_offer(offer, now)
        draft, credentials = self._draft_answer(peer, self._standing_wishes(), accept_data=accept_data)
        self._take_answer(peer, draft, credentials, now)
        return SessionDescription("answer", draft.sdp)

    @property
    def offer_outstanding(self) -> bool:
        """Whether we wait for an answer."""
        return self.negotiation.pending is not None

    def _read_offer(self, offer: SessionDescription, now: float) -> PeerDescription:
        if offer.type != "offer":
            raise InvalidSessionDescription("an offer is expected")
        if self.offer_outstanding and now - self._offered_at < OFFER_LOST_AFTER:
            raise InvalidSessionDescription("invalid_modification_have_local_offer: answer the server's offer first")
        peer = self.negotiation.read_offer(offer.sdp)
        if peer.remote is not None:
            self.transport.check_remote(peer.remote)
        return peer

    def _standing_wishes(self) -> dict[str, Wish]:
        """What the agreed sections do already."""
        return {
            section.mid: Wish(section.receives, section.outgoing)
            for section in self.negotiation.sections
            if section.live
        }

    def _draft_answer(
        self, peer: PeerDescription, wishes: Mapping[str, Wish], *, accept_data: bool = False
    ) -> tuple[Draft, IceCredentials]:
        credentials = self.transport.agent.local
        setup = Setup.ACTIVE if self.transport.is_dtls_client else Setup.PASSIVE
        if peer.remote is not None:
            credentials = self.transport.credentials_for(peer.remote)
            if peer.remote.setup is not Setup.ACTPASS:
                setup = Setup.ACTIVE if peer.remote.setup is Setup.PASSIVE else Setup.PASSIVE
        local = self._local_parameters(credentials, setup)
        return self.negotiation.answer(peer, wishes, local, accept_data=accept_data), credentials

    def _take_answer(self, peer: PeerDescription, draft: Draft, credentials: IceCredentials, now: float) -> None:
        for mid in self.negotiation.rollback():
            self.media.drop(mid, "its offer was never answered", now)
        self._agree(peer, draft, credentials, now)

    def _agree(self, peer: PeerDescription, draft: Draft, credentials: IceCredentials, now: float) -> None:
        """An exchange is complete: take it, then reconcile."""
        moved = self.negotiation.bundle and self.negotiation.bundle[:1] != draft.bundle[:1]
        self.negotiation.commit(draft)
        if peer.remote is not None:
            self.transport.apply_remote(peer.remote, credentials, now=now)
        if moved:
            # Without a live section the peer has no transport at all, until the next description.
            self.transport.expect_replacement(now=now, within=REPLACEMENT_WINDOW if draft.bundle else inf)
        self._reconcile(now)

    def _take_offer(self, additions: Sequence[Addition], now: float) -> Draft:
        local = self._local_parameters(self.transport.agent.local, Setup.ACTPASS)
        draft = self.negotiation.offer(additions, local)
        self.negotiation.commit(draft)
        self._offered_at = now
        return draft

    def _local_parameters(self, credentials: IceCredentials, setup: Setup) -> LocalParameters:
        return LocalParameters(credentials.ufrag, credentials.pwd, self.transport.fingerprint, setup, self._candidates)

    def _reconcile(self, now: float) -> None:
        self.media.reconcile(self.negotiation.sections, self.negotiation.pending or (), now)

    # -- transport and time ---------------------------------------------------------------------------------------

    def touch(self, now: float) -> None:
        """A request came in: it postpones the expiry of a session that is not connected."""
        self._touched_at = now

    def receive_check(self, check: Check, path: Path, now: float) -> bytes | None:
        """Judge a connectivity check. Returns the reply."""
        reply = self.transport.receive_check(check, path, now)
        self._follow_transport(now)
        return reply

    def receive_dtls(self, data: bytes, path: Path, now: float) -> None:
        """Feed DTLS."""
        self.transport.receive_dtls(data, path, now)
        self._follow_transport(now)

    def handle_timeout(self, now: float) -> None:
        """Whatever is due: handshake, consent, expiry, silent publications."""
        if self.closed_because is not None:
            return
        self.transport.handle_timeout(now)
        self._follow_transport(now)
        for track in self.media.locals.values():
            if not track.closed and now >= self._collect_at(track):
                self.media.end_publication(track, "no packets", now)
        expiry = self._expires_at()
        if expiry is not None and now >= expiry:
            lost = self.transport.state is TransportState.DISCONNECTED
            self.close("connectivity lost" if lost else "not connected in time", now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        if self.closed_because is not None:
            return None
        deadlines = [self._collect_at(track) for track in self.media.locals.values() if not track.closed]
        deadlines += [at for at in (self.transport.next_timeout(), self._expires_at()) if at is not None]
        return min(deadlines, default=None)

    def _collect_at(self, track: LocalTrack) -> float:
        """When a publication is collected for sending nothing; infinite while it sends."""
        if not track.started:
            return track.published_at + self._settings.inactive_track_s
        return inf if track.stalled_at is None else track.stalled_at + self._settings.inactive_track_s

    def _expires_at(self) -> float | None:
        match self.transport.state:
            case TransportState.NEW | TransportState.CONNECTING:
                used = self.negotiation.bundle or self.offer_outstanding
                limit = self._settings.unconnected_session_s if used else self._settings.unused_session_s
                return self._touched_at + limit
            case TransportState.DISCONNECTED:
                return self.transport.agent.consent_at + self._settings.disconnected_session_s
            case _:
                return None

    def _follow_transport(self, now: float) -> None:
        for event in self.transport.events_received():
            match event:
                case TransportConnected():
                    self._events.append(SessionConnected(self.id, now))
                case TransportDisconnected():
                    self._events.append(SessionDisconnected(self.id, now))
                case TransportClosed(reason):
                    self.close(reason, now)

    def close(self, reason: str, now: float) -> None:
        """End everything and say goodbye; the plane's transport is freed by `release`. Idempotent."""
        if self.closed_because is not None:
            return
        self.closed_because = reason
        self.media.close(reason, now)
        self.transport.close(now)
        self._events.append(SessionClosed(self.id, reason, now))

    def datagrams_to_send(self) -> list[tuple[bytes, Path]]:
        """Take what is to be sent."""
        return self.transport.datagrams_to_send()

    def events_received(self) -> list[Event]:
        """Take what happened since asked last, in order."""
        events, self._events = self._events, []
        return [*self.media.events_received(), *events]


def _why_not_publishable(section: MediaSection) -> str | None:
    if not section.direction.sends:
        return "the offer does not send on this mid"
    if not codec_rules.supported(section.codecs, section.kind):
        return "the section has no codec that the server forwards"
    return None


def _take_section(free: dict[str, MediaSection], mid: str | None, kind: Kind) -> MediaSection:
    """Take the offered section that a pull goes onto out of `free`: the one it names, else the next of its kind."""
    if mid is None:
        mid = next((mid for mid, section in free.items() if section.kind == kind), None)
    section = None if mid is None else free.get(mid)
    if section is None or section.kind != kind:
        raise TrackError("the offer has no free section to receive this track")
    del free[section.mid or ""]
    return section


def _pulled(request: TrackRequest, mid: str) -> TrackResult:
    return TrackResult(track_name=request.track_name, mid=mid, session_id=request.session_id)


def _failure(request: TrackRequest, error: TrackError) -> TrackResult:
    """The item of a request that failed; a pull's carries no mid (realtime-api.md §1)."""
    return TrackResult(
        track_name=request.track_name,
        mid=request.mid if request.location is Location.LOCAL else None,
        session_id=request.session_id,
        error_code=error.code,
        error_description=error.description,
    )
