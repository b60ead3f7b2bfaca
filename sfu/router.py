"""Router: which published track feeds which forwarder, for all sessions of all apps.

The one place that knows a track by its key (`app_id`, `session_id`, `name`), and the one that tells the data plane
about sources. Apps never meet: the key carries the app.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfu import codecs as codec_rules
from sfu.errors import TrackError
from sfu.messages import Ordering, SimulcastPreference
from sfu.track import LocalTrack, RemoteTrack, TrackKey
from wire.sdp import Codec

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane


class Router:
    """Published tracks and their subscriptions."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._published: dict[TrackKey, LocalTrack] = {}
        self._by_plane_id: dict[int, LocalTrack] = {}

    def __len__(self) -> int:
        return len(self._published)

    @property
    def subscriptions(self) -> int:
        """Live subscriptions of all tracks."""
        return sum(len(track.subscribers) for track in self._published.values())

    def find(self, key: TrackKey) -> LocalTrack | None:
        """The publication that a pull names."""
        return self._published.get(key)

    def by_plane_id(self, plane_id: int) -> LocalTrack | None:
        """The track an upcall speaks of; None when it ended while the upcall was on its way."""
        return self._by_plane_id.get(plane_id)

    def publish(self, track: LocalTrack) -> None:
        """Make the track known under its key."""
        self._published[track.key] = track

    def bind(self, track: LocalTrack, plane_id: int) -> None:
        """The plane receives the track under this number."""
        track.plane_id = plane_id
        self._by_plane_id[plane_id] = track

    def unbind(self, track: LocalTrack) -> None:
        """The plane forgets the track; forwarders that it feeds fall silent until `reconnect`."""
        if track.plane_id is not None:
            self._plane.remove_track(track.plane_id)
            del self._by_plane_id[track.plane_id]
            track.plane_id = None

    def unpublish(self, track: LocalTrack) -> None:
        """End the publication: its subscriptions stay without media. Idempotent."""
        if track.closed:
            return
        track.closed = True
        del self._published[track.key]
        subscribers, track.subscribers = track.subscribers, set()
        for remote in subscribers:
            remote.source = None
            self.connect(remote)
        self.unbind(track)

    def subscribe(self, remote: RemoteTrack, source: LocalTrack, preference: SimulcastPreference | None) -> None:
        """Feed `remote` from `source` from now on, in place of what fed it before.

        Raises:
            TrackError: no payload type of the source is one of the subscriber's (FWD-1); nothing changed.
        """
        if remote.codecs and source.codecs:
            check_codecs(source.codecs, remote.codecs)
        if remote.source is not None:
            remote.source.subscribers.discard(remote)
        source.subscribers.add(remote)
        remote.source = source
        remote.source_session_id, remote.source_name = source.session_id, source.name
        remote.preference = preference
        self.connect(remote)

    def unsubscribe(self, remote: RemoteTrack) -> None:
        """End the subscription and free its forwarder. Idempotent."""
        if remote.source is not None:
            remote.source.subscribers.discard(remote)
            remote.source = None
        if remote.forwarder is not None:
            self._plane.remove_forwarder(remote.forwarder)
            remote.forwarder = None

    def connect(self, remote: RemoteTrack) -> None:
        """Tell the plane what feeds the forwarder of `remote`, if it has one yet."""
        if remote.forwarder is None:
            return
        source = remote.source
        if source is None or source.plane_id is None:
            self._plane.set_source(remote.forwarder, 0, payload_types={}, rtx_payload_types={})
            return
        self._plane.set_source(
            remote.forwarder,
            source.plane_id,
            rid=choose_layer(source, remote.preference),
            fallback=may_fall_back(remote.preference),
            payload_types=codec_rules.map_payload_types(source.codecs, remote.codecs),
            rtx_payload_types=codec_rules.rtx_of(remote.codecs) if remote.outgoing.rtx_ssrc else {},
            cname=cname_of(source.session_id),
        )

    def reconnect(self, source: LocalTrack) -> None:
        """The source's payload types or layers changed: tell the plane for every subscriber."""
        for remote in source.subscribers:
            self.connect(remote)


def cname_of(session_id: str) -> str:
    """One CNAME and one stream per publishing session, so that a receiver keeps its tracks in sync (SDP-6)."""
    return session_id


def check_codecs(publisher: Sequence[Codec], subscriber: Sequence[Codec]) -> None:
    """FWD-1.

    Raises:
        TrackError: they share no codec.
    """
    if not codec_rules.map_payload_types(publisher, subscriber):
        raise TrackError("publisher and subscriber share no codec")


def choose_layer(source: LocalTrack, preference: SimulcastPreference | None) -> str:
    """The rid to ask the plane for; "" leaves the choice to it, as does a preference for a layer that never was.

    The plane sees each packet, so it decides what plays while the layer asked for is silent. Its order of layers is
    from a to z, best to worst (realtime-api.md §8).
    """
    return preference.preferred_rid if preference is not None and preference.preferred_rid in source.rids else ""


def may_fall_back(preference: SimulcastPreference | None) -> bool:
    """Whether another layer may stand in for one that has stopped; a subscriber without a wish takes what there is."""
    if preference is None or not preference.preferred_rid:
        return True
    return preference.rid_not_available is Ordering.ASCIIBETICAL
