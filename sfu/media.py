"""SessionMedia: the tracks of one session, kept in line with the sections that were agreed.

`reconcile` is the heart: given the agreed sections it creates, updates, pauses and ends what the data plane holds for
this session. It looks at what *is*, not at what was asked, so it may run after any step and twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from secrets import randbelow
from typing import TYPE_CHECKING

from sfu import codecs as codec_rules
from sfu.errors import TrackNotFound
from sfu.events import Event, TrackClosed, TrackPublished
from sfu.messages import Kind, Location, SessionId, SimulcastPreference, TrackState, TrackStatus
from sfu.router import Router, cname_of
from sfu.sections import LAYERS_MAX, Outgoing, Section
from sfu.track import LocalTrack, RemoteTrack
from wire.sdp import MediaSection

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane


class SessionMedia:
    """Local and remote tracks by mid, and what the plane knows of them."""

    def __init__(self, app_id: str, session_id: SessionId, transport: int, plane: Plane, router: Router) -> None:
        self.locals: dict[str, LocalTrack] = {}
        """Ended ones stay listed until their section is used again or gone."""
        self.remotes: dict[str, RemoteTrack] = {}
        self._app_id = app_id
        self._session_id = session_id
        self._transport = transport
        self._plane = plane
        self._router = router
        self._events: list[Event] = []

    # -- tracks begin and end -------------------------------------------------------------------------------------

    def publishes(self, mid: str) -> bool:
        """Whether a publication is open on this mid."""
        track = self.locals.get(mid)
        return track is not None and not track.closed

    def published(self, name: str) -> LocalTrack | None:
        """This session's open publication of this name."""
        return self._router.find((self._app_id, self._session_id, name))

    def source(self, session_id: SessionId | None, name: str | None) -> LocalTrack:
        """The publication that a pull or an update names.

        Raises:
            TrackNotFound: the app has none of this name.
        """
        track = self._router.find((self._app_id, session_id, name)) if session_id and name else None
        if track is None:
            raise TrackNotFound("no such track is published")
        return track

    def publish(self, mid: str, name: str, kind: Kind, now: float) -> LocalTrack:
        """Publish under `name`; what else was published on this mid or under this name ends."""
        known = self.locals.get(mid)
        if known is not None and not known.closed:
            if known.name == name:
                return known
            self.end_publication(known, "republished under another name", now)
        namesake = self.published(name)
        if namesake is not None:
            self.end_publication(namesake, "republished on another mid", now)
        track = LocalTrack(self._app_id, self._session_id, name, kind, mid, published_at=now)
        self.locals[mid] = track
        self._router.publish(track)
        self._events.append(TrackPublished(self._session_id, name, kind, now))
        return track

    def end_publication(self, track: LocalTrack, reason: str, now: float) -> None:
        """End it for everyone; its subscriptions stay without media."""
        self._router.unpublish(track)
        self._events.append(TrackClosed(self._session_id, track.name, reason, now))

    def pull(self, mid: str, source: LocalTrack, outgoing: Outgoing, preference: SimulcastPreference | None) -> None:
        """Subscribe `mid` to `source`. Media begins when `reconcile` finds the section agreed."""
        if not self.publishes(mid):
            self.locals.pop(mid, None)
        remote = RemoteTrack(self._session_id, mid, source.kind, source.session_id, source.name, outgoing)
        self.remotes[mid] = remote
        self._router.subscribe(remote, source, preference)

    def switch(self, remote: RemoteTrack, source: LocalTrack, preference: SimulcastPreference | None) -> None:
        """Feed a pulled mid from another track, or from another layer of the same.

        Raises:
            TrackError: no common codec; the old source stays.
        """
        self._router.subscribe(remote, source, preference)

    def close_mid(self, mid: str, reason: str, now: float) -> bool:
        """End both halves of this mid. False when nothing was open there."""
        remote = self.remotes.pop(mid, None)
        if remote is not None:
            self._router.unsubscribe(remote)
        open_local = self.publishes(mid)
        if open_local:
            self.end_publication(self.locals[mid], reason, now)
        return open_local or remote is not None

    def drop(self, mid: str, reason: str, now: float) -> None:
        """The section of this mid is gone, and what flowed on it."""
        self.close_mid(mid, reason, now)
        self.locals.pop(mid, None)

    def close(self, reason: str, now: float) -> None:
        """End everything."""
        for mid in {*self.locals, *self.remotes}:
            self.drop(mid, reason, now)

    def new_outgoing(self, kind: str, publisher: SessionId, offered: MediaSection | None = None) -> Outgoing:
        """Fresh SSRCs for a sending section; RTX for video, unless the section that the peer offered has none."""
        rtx = kind == Kind.VIDEO and (offered is None or bool(codec_rules.rtx_of(offered.codecs)))
        return Outgoing(
            # Of 2**32 values a session uses a few thousand in its life at most: none repeats (SRTP-4).
            ssrc=randbelow(0xFFFFFFFE) + 1,
            rtx_ssrc=randbelow(0xFFFFFFFE) + 1 if rtx else 0,
            cname=cname_of(publisher),
            stream_id=publisher,
            track_id=str(uuid.uuid4()),
        )

    # -- reconcile ------------------------------------------------------------------------------------------------

    def reconcile(self, sections: Iterable[Section], pending: Iterable[Section], now: float) -> None:
        """Make tracks, router and plane agree with the agreed `sections`; `pending` ones keep what waits on them."""
        agreed = {section.mid: section for section in sections if section.live}
        kept = agreed.keys() | {section.mid for section in pending if section.live}
        for mid in ({*self.locals, *self.remotes}) - kept:
            self.drop(mid, "its section is gone", now)
        for mid, track in self.locals.items():
            if mid in agreed and not track.closed:
                self._reconcile_local(track, agreed[mid], now)
        for mid, remote in self.remotes.items():
            if mid in agreed and agreed[mid].outgoing == remote.outgoing:
                self._reconcile_remote(remote, agreed[mid])

    def _reconcile_local(self, track: LocalTrack, section: Section, now: float) -> None:
        rids, ssrcs = _layers(section)
        agreed = (section.codecs, section.extensions, rids, ssrcs)
        if track.plane_id is not None:
            if (track.codecs, track.extensions, track.rids, track.ssrcs) == agreed:
                return
            if track.rids != rids:
                self._router.unbind(track)
        track.codecs, track.extensions, track.rids, track.ssrcs = agreed
        codecs = codec_rules.plane_codecs(section.codecs, section.kind)
        extensions = codec_rules.receive_extensions(section.extensions)
        if track.plane_id is not None:
            self._plane.update_track(track.plane_id, codecs=codecs, extensions=extensions, rids=rids, ssrcs=ssrcs)
        else:
            try:
                plane_id = self._plane.add_track(
                    self._transport,
                    mid=track.mid,
                    video=track.kind is Kind.VIDEO,
                    codecs=codecs,
                    extensions=extensions,
                    rids=rids,
                    ssrcs=ssrcs,
                )
            except OverflowError:
                self.end_publication(track, "the server's track table is full", now)
                return
            self._router.bind(track, plane_id)
        self._router.reconnect(track)

    def _reconcile_remote(self, remote: RemoteTrack, section: Section) -> None:
        sends = section.described.sends
        if remote.forwarder is None:
            if sends:
                self._add_forwarder(remote, section)
            return
        if remote.codecs != section.codecs:
            remote.codecs = section.codecs
            self._router.connect(remote)
        if sends is remote.paused:
            remote.paused = not sends
            self._plane.set_paused(remote.forwarder, remote.paused)

    def _add_forwarder(self, remote: RemoteTrack, section: Section) -> None:
        remote.codecs = section.codecs
        try:
            remote.forwarder = self._plane.add_forwarder(
                self._transport,
                mid=remote.mid,
                video=remote.kind is Kind.VIDEO,
                ssrc=remote.outgoing.ssrc,
                rtx_ssrc=remote.outgoing.rtx_ssrc,
                cname=remote.outgoing.cname,
                extensions=codec_rules.send_extensions(section.extensions),
            )
        except OverflowError:
            self._router.unsubscribe(remote)  # listed inactive
            return
        self._router.connect(remote)

    # -- figures --------------------------------------------------------------------------------------------------

    def tracks(self) -> tuple[TrackState, ...]:
        """Both sides' tracks, published ones first."""
        published = (
            TrackState(Location.LOCAL, mid, track.name, _status(active=not track.closed))
            for mid, track in self.locals.items()
        )
        pulled = (
            TrackState(
                Location.REMOTE,
                mid,
                remote.source_name,
                _status(active=remote.source is not None),
                remote.source_session_id,
            )
            for mid, remote in self.remotes.items()
        )
        return (*published, *pulled)

    def events_received(self) -> list[Event]:
        """Take what happened since asked last, in order."""
        events, self._events = self._events, []
        return events


def _status(*, active: bool) -> TrackStatus:
    return TrackStatus.ACTIVE if active else TrackStatus.INACTIVE


def _layers(section: Section) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Layers from best to worst, and signalled (media, RTX or 0) pairs in that order.

    Layers with rids are learnt from their packets. Those of an `a=ssrc-group:SIM`, which goes from worst to best, get
    the names 0, 1, 2 (SDP-5).
    """
    if section.rids:
        return tuple(sorted(section.rids)), ()
    remote = section.remote
    if remote is None:
        return (), ()
    groups = [(group.semantics, group.ssrcs) for group in remote.ssrc_groups]
    rtx = {ssrcs[0]: ssrcs[1] for semantics, ssrcs in groups if semantics == "FID" and len(ssrcs) == 2}
    simulcast = next((ssrcs for semantics, ssrcs in groups if semantics == "SIM"), ())
    if 1 < len(simulcast) <= LAYERS_MAX and 0 not in simulcast and len(set(simulcast)) == len(simulcast):
        return tuple(map(str, range(len(simulcast)))), tuple((ssrc, rtx.get(ssrc, 0)) for ssrc in reversed(simulcast))
    repairs = set(rtx.values())
    media = next((ssrc for ssrc, _ in remote.ssrcs if ssrc and ssrc not in repairs), 0)
    return (), ((media, rtx.get(media, 0)),) if media else ()
