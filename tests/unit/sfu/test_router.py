from __future__ import annotations

import pytest

from sfu.errors import TrackError
from sfu.messages import Kind, Ordering, SessionId, SimulcastPreference
from sfu.router import Router, choose_layer, may_fall_back
from sfu.sections import Outgoing
from sfu.track import LocalTrack, RemoteTrack
from tests.support.fake_plane import FakePlane
from tests.support.sdp_offers import H264, VP8, VP8_RTX


def published(plane: FakePlane, router: Router, name: str = "camera", app: str = "app") -> LocalTrack:
    track = LocalTrack(app, SessionId("p"), name, Kind.VIDEO, "0", published_at=0.0, codecs=(VP8, VP8_RTX))
    router.publish(track)
    plane_id = plane.add_track(plane.add_transport(), mid="0", codecs={}, extensions={}, rids=(), ssrcs=())
    router.bind(track, plane_id)
    return track


def pulled(plane: FakePlane, *, rtx: bool = True) -> RemoteTrack:
    transport = plane.add_transport()
    outgoing = Outgoing(1, 2 if rtx else 0, "p", "p", "t")
    remote = RemoteTrack(SessionId("s"), "0", Kind.VIDEO, SessionId("p"), "camera", outgoing)
    remote.codecs = (VP8, VP8_RTX)
    remote.forwarder = plane.add_forwarder(
        transport, mid="0", video=True, ssrc=1, rtx_ssrc=outgoing.rtx_ssrc, cname="p", extensions={}
    )
    return remote


def source_of(plane: FakePlane, remote: RemoteTrack) -> tuple[int, dict[str, object]]:
    assert remote.forwarder is not None
    source: tuple[int, dict[str, object]] = plane.forwarders[remote.forwarder]["source"]
    return source


class TestSubscriptions:
    """FWD-1."""

    def test_forwarder_is_fed_with_mapped_payload_types(self, plane: FakePlane, router: Router) -> None:
        track, remote = published(plane, router), pulled(plane)
        router.subscribe(remote, track, None)
        number, how = source_of(plane, remote)
        assert number == track.plane_id
        assert how == {
            "rid": "",
            "fallback": True,
            "payload_types": {96: 96},
            "rtx_payload_types": {96: 97},
            "cname": "p",
        }

    def test_section_without_rtx_gets_none(self, plane: FakePlane, router: Router) -> None:
        track, remote = published(plane, router), pulled(plane, rtx=False)
        router.subscribe(remote, track, None)
        assert source_of(plane, remote)[1]["rtx_payload_types"] == {}

    def test_without_a_common_codec_nothing_changes(self, plane: FakePlane, router: Router) -> None:
        first, second, remote = published(plane, router), published(plane, router, "other"), pulled(plane)
        second.codecs = (H264,)
        router.subscribe(remote, first, None)
        before = source_of(plane, remote)
        with pytest.raises(TrackError):
            router.subscribe(remote, second, None)
        assert source_of(plane, remote) == before
        assert remote.source is first
        assert first.subscribers == {remote}

    def test_switching_leaves_the_old_source(self, plane: FakePlane, router: Router) -> None:
        first, second, remote = published(plane, router), published(plane, router, "other"), pulled(plane)
        router.subscribe(remote, first, None)
        router.subscribe(remote, second, None)
        assert first.subscribers == set()
        assert second.subscribers == {remote}
        assert router.subscriptions == 1

    def test_end_of_the_publication_silences_its_subscribers(self, plane: FakePlane, router: Router) -> None:
        track, remote = published(plane, router), pulled(plane)
        number = track.plane_id
        router.subscribe(remote, track, None)
        router.unpublish(track)
        router.unpublish(track)
        assert source_of(plane, remote)[0] == 0
        assert remote.source is None
        assert number not in plane.tracks
        assert number is not None
        assert router.by_plane_id(number) is None
        assert len(router) == 0

    def test_end_of_the_subscription_frees_its_forwarder(self, plane: FakePlane, router: Router) -> None:
        track, remote = published(plane, router), pulled(plane)
        router.subscribe(remote, track, None)
        router.unsubscribe(remote)
        router.unsubscribe(remote)
        assert not plane.forwarders
        assert router.subscriptions == 0

    def test_apps_have_names_of_their_own(self, plane: FakePlane, router: Router) -> None:
        ours, theirs = published(plane, router), published(plane, router, app="other")
        assert router.find(ours.key) is ours
        assert router.find(theirs.key) is theirs


class TestLayerChoice:
    """realtime-api.md §8."""

    @pytest.mark.parametrize(
        ("preference", "rid"),
        [
            (None, ""),
            (SimulcastPreference(""), ""),
            (SimulcastPreference("m"), "m"),
            (SimulcastPreference("unknown"), ""),
        ],
    )
    def test_preferred_layer_if_there_is_one(self, preference: SimulcastPreference | None, rid: str) -> None:
        track = LocalTrack("app", SessionId("p"), "camera", Kind.VIDEO, "0", 0.0, rids=("h", "l", "m"))
        assert choose_layer(track, preference) == rid

    def test_single_layer_has_no_choice(self) -> None:
        track = LocalTrack("app", SessionId("p"), "camera", Kind.VIDEO, "0", 0.0)
        assert choose_layer(track, SimulcastPreference("h")) == ""

    @pytest.mark.parametrize(
        ("preference", "allowed"),
        [
            (None, True),
            (SimulcastPreference(""), True),
            (SimulcastPreference("m"), False),
            (SimulcastPreference("m", rid_not_available=Ordering.ASCIIBETICAL), True),
        ],
    )
    def test_another_layer_stands_in_only_where_asked_for_or_where_none_is_preferred(
        self, preference: SimulcastPreference | None, allowed: bool
    ) -> None:
        assert may_fall_back(preference) is allowed
