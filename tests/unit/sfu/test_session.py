from __future__ import annotations

import dataclasses

import pytest

from sfu.errors import InvalidParams, InvalidSessionDescription
from sfu.events import SessionClosed, TrackClosed, TrackPublished
from sfu.messages import (
    Kind,
    Location,
    SessionDescription,
    SessionId,
    SimulcastPreference,
    TrackRequest,
    TrackResult,
    TracksResult,
    TrackStatus,
)
from sfu.negotiation import SECTIONS_KEPT
from sfu.session import OFFER_LOST_AFTER, Session
from tests.support.fake_plane import FakePlane
from tests.support.sdp_offers import H264, NAMES, VP8, VP8_RTX, Peer, load, offer, section
from tests.unit.sfu.conftest import MakeSession
from wire import sdp
from wire.sdp import Direction


def local(mid: str | None, name: str, **more: object) -> TrackRequest:
    return TrackRequest(Location.LOCAL, mid=mid, track_name=name, **more)  # type: ignore[arg-type]


def remote(publisher: Session | str, name: str, **more: object) -> TrackRequest:
    session_id = SessionId(publisher) if isinstance(publisher, str) else publisher.id
    return TrackRequest(Location.REMOTE, session_id=session_id, track_name=name, **more)  # type: ignore[arg-type]


def as_offer(text: str) -> SessionDescription:
    return SessionDescription("offer", text)


def as_answer(text: str) -> SessionDescription:
    return SessionDescription("answer", text)


def sdp_of(result: TracksResult) -> str:
    assert result.session_description is not None
    return result.session_description.sdp


def errors(result: TracksResult) -> list[str | None]:
    return [item.error_code for item in result.tracks]


class Client:
    """A session and the peer behind it, speaking in whole exchanges."""

    def __init__(self, make_session: MakeSession, name: str = "a", **more: object) -> None:
        self.session: Session = make_session(name, **more)
        self.peer = Peer()
        self.now = 0.0

    def publish(self, mid: str, name: str, kind: str = "video", **more: object) -> TracksResult:
        text = self.peer.offer(section(mid, kind, **more))  # type: ignore[arg-type]
        result = self.session.publish(as_offer(text), [local(mid, name)], now=self.now)
        self.peer.take_answer(sdp_of(result))
        return result

    def pull(self, *requests: TrackRequest) -> TracksResult:
        result = self.session.pull(requests, now=self.now)
        if result.session_description is not None:
            assert result.requires_immediate_renegotiation
            answer = self.peer.answer(result.session_description.sdp)
            self.session.receive_answer(as_answer(answer), now=self.now)
        return result

    def live(self) -> Client:
        """Every published track sends."""
        for track in self.session.media.locals.values():
            track.started = True
        return self


@pytest.fixture
def publisher(make_session: MakeSession) -> Client:
    client = Client(make_session, "publisher")
    client.publish("0", "camera")
    return client.live()


@pytest.fixture
def subscriber(make_session: MakeSession) -> Client:
    return Client(make_session, "subscriber")


def forwarder_of(plane: FakePlane, client: Client, mid: str) -> dict[str, object]:
    number = client.session.media.remotes[mid].forwarder
    assert number is not None
    return plane.forwarders[number]


class TestPublish:
    """realtime-api.md §4, rows 1 to 3."""

    def test_answers_recvonly_and_lists_each_mid(self, make_session: MakeSession) -> None:
        client = Client(make_session)
        result = client.publish("0", "camera")
        assert result.tracks == (TrackResult(track_name="camera", mid="0"),)
        assert not result.requires_immediate_renegotiation
        answer = sdp.parse(sdp_of(result))
        assert answer.ice_lite
        assert answer.sections[0].direction is Direction.RECVONLY
        assert answer.sections[0].setup == "passive"
        assert answer.sections[0].end_of_candidates
        assert len(answer.sections[0].candidates) == 1

    @pytest.mark.parametrize("name", [n for n in NAMES if "publish" in n or "sim" in n])
    def test_serves_each_browser(self, make_session: MakeSession, plane: FakePlane, name: str) -> None:
        offered = sdp.parse(load(name))
        requests = [local(s.mid, f"track {s.mid}") for s in offered.sections]
        result = make_session().publish(as_offer(load(name)), requests, now=0.0)
        assert errors(result) == [None] * len(requests)
        assert len(plane.tracks) == len(requests)

    def test_tells_the_plane_codecs_extensions_and_layers(self, make_session: MakeSession, plane: FakePlane) -> None:
        """SDP-4: the answer in the offer's order; for the plane from a to z, best to worst (§8)."""
        client = Client(make_session)
        result = client.publish("0", "camera", rids=("h", "m", "l"))
        (track,) = plane.tracks.values()
        assert track["rids"] == ("h", "l", "m")
        assert track["codecs"][97]["apt"] == 96
        assert track["codecs"][96]["nack"]
        answered = sdp.parse(sdp_of(result)).sections[0]
        assert answered.simulcast_recv == (("h",), ("m",), ("l",))
        assert [(rid.id, rid.direction) for rid in answered.rids] == [("h", "recv"), ("m", "recv"), ("l", "recv")]

    def test_signalled_ssrcs_reach_the_plane_with_their_rtx(self, make_session: MakeSession, plane: FakePlane) -> None:
        session = make_session()
        session.publish(as_offer(load("safari-shape-publish")), [local("1", "camera")], now=0.0)
        (track,) = plane.tracks.values()
        assert track["ssrcs"] == ((3141592653, 2718281828),)

    def test_ssrc_group_sim_becomes_layers(self, make_session: MakeSession, plane: FakePlane) -> None:
        """SDP-5. The group goes from worst to best, our layers the other way."""
        make_session().publish(as_offer(load("safari-shape-sim-group")), [local("0", "camera")], now=0.0)
        (track,) = plane.tracks.values()
        assert track["rids"] == ("0", "1", "2")
        assert track["ssrcs"] == ((13, 23), (12, 22), (11, 21))

    def test_new_layers_keep_the_subscribers(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(publisher.session, "camera"))
        publisher.peer.sections = [section("0", rids=("a", "b"))]
        publisher.session.publish(as_offer(publisher.peer.offer()), [local("0", "camera")], now=0.0)
        source = forwarder_of(plane, subscriber, "0")["source"]
        assert plane.tracks[source[0]]["rids"] == ("a", "b")  # type: ignore[index]

    def test_retry_with_the_same_mid_and_name_succeeds(self, make_session: MakeSession, plane: FakePlane) -> None:
        """Rule 11: the client lost our answer and offers again."""
        client = Client(make_session)
        client.publish("0", "camera")
        before = dict(plane.tracks)
        again = client.session.publish(as_offer(client.peer.offer()), [local("0", "camera")], now=1.0)
        assert errors(again) == [None]
        assert plane.tracks == before

    def test_same_mid_under_a_new_name_is_republished(self, make_session: MakeSession, plane: FakePlane) -> None:
        client = Client(make_session)
        client.publish("0", "camera")
        client.session.close_tracks(["0"], now=0.0)
        assert not plane.tracks
        again = client.session.publish(as_offer(client.peer.offer()), [local("0", "screen")], now=1.0)
        assert errors(again) == [None]
        assert len(plane.tracks) == 1
        assert [state.track_name for state in client.session.media.tracks()] == ["screen"]

    def test_collects_nothing_of_a_section_that_is_not_named(self, make_session: MakeSession) -> None:
        session = make_session()
        result = session.publish(as_offer(load("chrome-156-publish")), [local("1", "camera")], now=0.0)
        directions = [s.direction for s in sdp.parse(sdp_of(result)).sections]
        assert directions == [Direction.INACTIVE, Direction.RECVONLY]

    def test_auto_discover_names_every_new_sending_section(self, make_session: MakeSession) -> None:
        client = Client(make_session)
        text = client.peer.offer(section("0", "audio"), section("1"), section("2", direction=Direction.RECVONLY))
        first = client.session.discover(as_offer(text), now=0.0)
        assert [(item.mid, item.kind, item.location) for item in first.tracks] == [
            ("0", Kind.AUDIO, Location.LOCAL),
            ("1", Kind.VIDEO, Location.LOCAL),
        ]
        assert len({item.track_name for item in first.tracks}) == 2
        second = client.session.discover(as_offer(client.peer.offer(section("3"))), now=0.0)
        assert [item.mid for item in second.tracks] == ["3"]

    def test_section_without_a_codec_of_ours_is_an_item_error(self, make_session: MakeSession) -> None:
        client = Client(make_session)
        strange = sdp.Codec(100, "MPEG2", 90000)
        result = client.session.publish(
            as_offer(client.peer.offer(section("0", codecs=[strange]), section("1"))),
            [local("0", "odd"), local("1", "camera")],
            now=0.0,
        )
        assert errors(result) == ["track_error", None]
        assert [s.rejected for s in sdp.parse(sdp_of(result)).sections] == [True, False]

    def test_receiving_section_cannot_be_published(self, make_session: MakeSession, plane: FakePlane) -> None:
        client = Client(make_session)
        text = client.peer.offer(section("0", direction=Direction.RECVONLY))
        assert errors(client.session.publish(as_offer(text), [local("0", "x")], now=0.0)) == ["track_error"]
        assert not plane.tracks

    @pytest.mark.parametrize(
        "requests",
        [
            [local("9", "x")],
            [local(None, "x")],
            [local("0", "")],
            [local("0", "x"), local("0", "y")],
            [local("0", "x"), local("1", "x")],
            [local("0", "x" * 2000)],
        ],
    )
    def test_nonsense_is_refused_whole(
        self, make_session: MakeSession, plane: FakePlane, requests: list[TrackRequest]
    ) -> None:
        """Rule 5: a top-level error, and nothing of it was applied."""
        client = Client(make_session)
        with pytest.raises(InvalidParams):
            client.session.publish(as_offer(client.peer.offer(section("0"), section("1", "audio"))), requests, now=0.0)
        assert not plane.tracks
        assert not client.session.negotiation.sections
        assert not client.session.media.tracks()

    def test_name_in_use_on_another_mid_is_refused(self, publisher: Client) -> None:
        with pytest.raises(InvalidParams):
            publisher.session.publish(as_offer(publisher.peer.offer(section("1"))), [local("1", "camera")], now=0.0)

    def test_name_moves_to_a_new_mid_when_the_old_section_is_stopped(self, publisher: Client) -> None:
        publisher.peer.stop("0")
        result = publisher.publish("1", "camera")
        assert errors(result) == [None]
        assert [(s.mid, s.track_name) for s in publisher.session.media.tracks()] == [("1", "camera")]

    def test_full_track_table_is_an_item_error(self, make_session: MakeSession, plane: FakePlane) -> None:
        plane.max_tracks = 0
        client = Client(make_session)
        assert errors(client.publish("0", "camera")) == ["track_error"]

    def test_publisher_with_new_payload_types_keeps_its_subscribers(
        self, publisher: Client, subscriber: Client, plane: FakePlane
    ) -> None:
        """FWD-1: the subscriber's side does not change."""
        subscriber.pull(remote(publisher.session, "camera"))
        before = forwarder_of(plane, subscriber, "0")["source"]
        moved = [dataclasses.replace(VP8, payload_type=120), sdp.Codec(121, "rtx", 90000, parameters="apt=120")]
        publisher.peer.sections = [section("0", codecs=moved)]
        publisher.session.publish(as_offer(publisher.peer.offer()), [local("0", "camera")], now=0.0)
        after = forwarder_of(plane, subscriber, "0")["source"]
        assert before[1]["payload_types"] == {96: 96}  # type: ignore[index]
        assert after[1]["payload_types"] == {120: 96}  # type: ignore[index]


class TestOfferedPublish:
    """realtime-api.md §4, row 3: the SFU offers."""

    @pytest.mark.parametrize(("both", "direction"), [(False, Direction.RECVONLY), (True, Direction.SENDRECV)])
    def test_offers_a_section_of_the_kind(
        self, make_session: MakeSession, plane: FakePlane, both: bool, direction: Direction
    ) -> None:
        client = Client(make_session)
        result = client.session.offer_publish([local(None, "voice", kind=Kind.AUDIO, bidirectional=both)], now=0.0)
        assert result.requires_immediate_renegotiation
        assert result.tracks[0].mid == "0"
        offered = sdp.parse(sdp_of(result)).sections[0]
        assert offered.direction is direction
        assert not plane.tracks
        client.session.receive_answer(as_answer(client.peer.answer(sdp_of(result))), now=0.0)
        assert len(plane.tracks) == 1

    def test_send_half_takes_a_pull_by_name_without_sdp(
        self, make_session: MakeSession, publisher: Client, plane: FakePlane
    ) -> None:
        """`mid: "#name"` (openai-webrtc-relay)."""
        client = Client(make_session, "relay")
        result = client.session.offer_publish([local(None, "v", kind=Kind.VIDEO, bidirectional=True)], now=0.0)
        client.session.receive_answer(as_answer(client.peer.answer(sdp_of(result))), now=0.0)
        pulled = client.session.pull([remote(publisher.session, "camera", mid="#v")], now=0.0)
        assert errors(pulled) == [None]
        assert pulled.tracks[0].mid == "0"
        assert pulled.session_description is None
        assert not pulled.requires_immediate_renegotiation
        assert forwarder_of(plane, client, "0")["source"][1]["payload_types"]  # type: ignore[index]

    def test_needs_kind_and_name(self, make_session: MakeSession) -> None:
        with pytest.raises(InvalidParams):
            make_session().offer_publish([local(None, "x")], now=0.0)


class TestBidirectional:
    def test_client_offered_section_is_answered_sendrecv(self, make_session: MakeSession, publisher: Client) -> None:
        client = Client(make_session, "relay")
        text = client.peer.offer(section("0", direction=Direction.SENDRECV))
        result = client.session.publish(as_offer(text), [local("0", "mine", bidirectional=True)], now=0.0)
        answered = client.peer.take_answer(sdp_of(result)).sections[0]
        assert answered.direction is Direction.SENDRECV
        assert answered.ssrcs
        pulled = client.session.pull([remote(publisher.session, "camera", mid="0")], now=0.0)
        assert errors(pulled) == [None]

    def test_plain_sendrecv_is_answered_recvonly_and_takes_no_pull(
        self, make_session: MakeSession, publisher: Client
    ) -> None:
        client = Client(make_session, "plain")
        result = client.publish("0", "mine", direction=Direction.SENDRECV)
        assert sdp.parse(sdp_of(result)).sections[0].direction is Direction.RECVONLY
        pulled = client.session.pull([remote(publisher.session, "camera", mid="0")], now=0.0)
        assert errors(pulled) == ["track_error"]

    @pytest.mark.parametrize("mid", ["7", "#nobody"])
    def test_unknown_transceiver_is_an_item_error(self, publisher: Client, subscriber: Client, mid: str) -> None:
        result = subscriber.session.pull([remote(publisher.session, "camera", mid=mid)], now=0.0)
        assert errors(result) == ["not_found_track_error"]

    def test_closing_ends_both_halves(self, make_session: MakeSession, publisher: Client, plane: FakePlane) -> None:
        client = Client(make_session, "relay")
        text = client.peer.offer(section("0", direction=Direction.SENDRECV))
        client.session.publish(as_offer(text), [local("0", "mine", bidirectional=True)], now=0.0)
        client.session.pull([remote(publisher.session, "camera", mid="0")], now=0.0)
        assert len(plane.forwarders) == 1
        client.session.close_tracks(["0"], now=0.0)
        assert not plane.forwarders
        assert len(plane.tracks) == 1  # the publisher's


class TestPull:
    """realtime-api.md §4, rows 4 to 7; SDP-6."""

    def test_offers_one_sendonly_section_per_track(
        self, make_session: MakeSession, subscriber: Client, plane: FakePlane
    ) -> None:
        publisher = Client(make_session, "p")
        publisher.publish("0", "voice", "audio")
        publisher.publish("1", "camera")
        publisher.live()
        result = subscriber.pull(remote(publisher.session, "voice"), remote(publisher.session, "camera"))
        offered = sdp.parse(sdp_of(result))
        assert [s.kind for s in offered.sections] == ["audio", "video"]
        assert all(s.direction is Direction.SENDONLY for s in offered.sections)
        assert [item.mid for item in result.tracks] == [s.mid for s in offered.sections]
        assert {cname for s in offered.sections for _, cname in s.ssrcs} == {"p"}
        assert {(s.msid or "").split()[0] for s in offered.sections} == {"p"}
        assert len({(s.msid or "").split()[1] for s in offered.sections}) == 2
        assert offered.sections[1].ssrc_groups[0].semantics == "FID"
        assert len(plane.forwarders) == 2

    def test_media_waits_for_the_answer(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        """SDP-7: packets must not arrive before the answer."""
        result = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        assert not plane.forwarders
        subscriber.session.receive_answer(as_answer(subscriber.peer.answer(sdp_of(result))), now=0.0)
        assert len(plane.forwarders) == 1

    def test_problems_are_items_of_a_success(self, publisher: Client, subscriber: Client) -> None:
        """Rule 4. The failed item has no mid, and results keep the order of the request."""
        result = subscriber.pull(
            remote("nobody", "camera"), remote(publisher.session, "camera"), remote(publisher.session, "nothing")
        )
        assert errors(result) == ["not_found_track_error", None, "not_found_track_error"]
        assert [item.mid for item in result.tracks] == [None, "0", None]
        assert result.requires_immediate_renegotiation

    def test_nothing_succeeded_means_no_sdp(self, subscriber: Client) -> None:
        result = subscriber.pull(remote("nobody", "camera"))
        assert result.session_description is None
        assert not result.requires_immediate_renegotiation
        assert not subscriber.session.offer_outstanding

    def test_silent_track_is_empty(self, make_session: MakeSession, subscriber: Client) -> None:
        silent = Client(make_session, "silent")
        silent.publish("0", "camera")
        assert errors(subscriber.pull(remote(silent.session, "camera"))) == ["empty_track_error"]

    def test_apps_never_meet(self, make_session: MakeSession, publisher: Client) -> None:
        stranger = Client(make_session, "x", app="another app")
        assert errors(stranger.pull(remote(publisher.session, "camera"))) == ["not_found_track_error"]

    def test_more_sections_than_a_description_holds_is_an_item_error(
        self, publisher: Client, subscriber: Client
    ) -> None:
        for _ in range(4):
            assert set(errors(subscriber.pull(*[remote(publisher.session, "camera")] * 64))) == {None}
        result = subscriber.pull(remote(publisher.session, "camera"))
        assert errors(result) == ["track_error"]
        assert result.session_description is None
        assert not subscriber.session.offer_outstanding

    def test_payload_types_keep_their_meaning_in_the_session(
        self, make_session: MakeSession, subscriber: Client, plane: FakePlane
    ) -> None:
        """RFC 9143 §9.1: two publishers number their codecs differently; one subscriber has one numbering."""
        first = Client(make_session, "first")
        first.publish("0", "camera", codecs=[VP8, VP8_RTX])
        second = Client(make_session, "second")
        second.publish("0", "camera", codecs=[dataclasses.replace(H264, payload_type=96)])
        first.live()
        second.live()
        subscriber.pull(remote(first.session, "camera"))
        subscriber.pull(remote(second.session, "camera"))
        meanings: dict[int, set[str]] = {}
        for agreed in subscriber.session.negotiation.sections:
            for codec in agreed.codecs:
                meanings.setdefault(codec.payload_type, set()).add(f"{codec.name} {codec.parameters}")
        assert all(len(meaning) == 1 for meaning in meanings.values())
        source = forwarder_of(plane, subscriber, "1")["source"]
        assert source[1]["payload_types"][96] != 96  # type: ignore[index]

    def test_with_the_clients_offer(self, make_session: MakeSession, subscriber: Client, plane: FakePlane) -> None:
        """WHEP: entries go onto offered receiving sections, by mid or by kind in order."""
        publisher = Client(make_session, "p")
        publisher.publish("0", "voice", "audio")
        publisher.publish("1", "camera")
        publisher.live()
        text = subscriber.peer.offer(
            section("a", direction=Direction.RECVONLY),
            section("b", "audio", Direction.RECVONLY),
            section("c", direction=Direction.RECVONLY),
        )
        result = subscriber.session.pull_with_offer(
            as_offer(text),
            [remote(publisher.session, "camera", mid="c"), remote(publisher.session, "voice")],
            now=0.0,
        )
        assert [item.mid for item in result.tracks] == ["c", "b"]
        assert not result.requires_immediate_renegotiation
        answer = subscriber.peer.take_answer(sdp_of(result))
        assert [s.direction for s in answer.sections] == [Direction.INACTIVE, Direction.SENDONLY, Direction.SENDONLY]
        assert len(plane.forwarders) == 2

    def test_with_an_offer_that_has_no_equal_codec(self, make_session: MakeSession, publisher: Client) -> None:
        """FWD-1: an item error, and nothing is sent."""
        client = Client(make_session, "h264 only")
        text = client.peer.offer(section("0", direction=Direction.RECVONLY, codecs=[H264]))
        result = client.session.pull_with_offer(as_offer(text), [remote(publisher.session, "camera")], now=0.0)
        assert errors(result) == ["track_error"]
        assert result.session_description is None

    def test_rejected_by_the_subscriber(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        result = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        answer = subscriber.peer.answer(sdp_of(result), reject=["0"])
        subscriber.session.receive_answer(as_answer(answer), now=0.0)
        assert not plane.forwarders
        assert not subscriber.session.media.tracks()


class TestPublisherGone:
    """realtime-api.md §5: subscriptions stay as sections without media."""

    def test_subscription_becomes_inactive(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(publisher.session, "camera"))
        publisher.session.close("gone", now=1.0)
        (state,) = subscriber.session.media.tracks()
        assert state.status is TrackStatus.INACTIVE
        assert state.session_id == publisher.session.id
        assert forwarder_of(plane, subscriber, "0")["source"][0] == 0  # type: ignore[index]
        assert errors(subscriber.pull(remote(publisher.session, "camera"))) == ["not_found_track_error"]

    def test_publication_without_packets_is_collected(self, publisher: Client, plane: FakePlane) -> None:
        """§1: no incoming packets for 30 s."""
        (track,) = publisher.session.media.locals.values()
        track.stalled_at = 100.0
        publisher.session.touch(100.0)
        publisher.session.handle_timeout(129.9)
        assert not track.closed
        publisher.session.touch(129.9)
        publisher.session.handle_timeout(130.0)
        assert track.closed
        assert not plane.tracks
        assert publisher.session.media.tracks()[0].status is TrackStatus.INACTIVE

    def test_publication_that_never_sent_is_collected(self, make_session: MakeSession) -> None:
        client = Client(make_session)
        client.publish("0", "camera")
        client.session.touch(20.0)
        assert client.session.next_timeout() == 30.0
        client.session.handle_timeout(30.0)
        assert client.session.media.tracks()[0].status is TrackStatus.INACTIVE


class TestUpdate:
    """realtime-api.md §5."""

    @pytest.fixture
    def layered(self, make_session: MakeSession) -> Client:
        client = Client(make_session, "layered")
        client.publish("0", "camera", rids=("h", "m", "l"))
        return client.live()

    def test_layer_preference_reaches_the_plane(self, layered: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(layered.session, "camera", simulcast=SimulcastPreference("l")))
        assert forwarder_of(plane, subscriber, "0")["source"][1]["rid"] == "l"  # type: ignore[index]
        result = subscriber.session.update(
            [remote(layered.session, "camera", mid="0", simulcast=SimulcastPreference("h"))]
        )
        assert errors(result) == [None]
        assert forwarder_of(plane, subscriber, "0")["source"][1]["rid"] == "h"  # type: ignore[index]

    def test_mid_alone_keeps_the_track(self, layered: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(layered.session, "camera"))
        request = TrackRequest(Location.REMOTE, mid="0", simulcast=SimulcastPreference("m"))
        assert errors(subscriber.session.update([request])) == [None]
        assert forwarder_of(plane, subscriber, "0")["source"][1]["rid"] == "m"  # type: ignore[index]

    def test_empty_preference_leaves_the_choice_to_the_server(
        self, layered: Client, subscriber: Client, plane: FakePlane
    ) -> None:
        """Rule 12."""
        subscriber.pull(remote(layered.session, "camera", simulcast=SimulcastPreference("l")))
        subscriber.session.update([remote(layered.session, "camera", mid="0", simulcast=SimulcastPreference(""))])
        assert forwarder_of(plane, subscriber, "0")["source"][1]["rid"] == ""  # type: ignore[index]

    def test_switch_to_another_track_needs_no_sdp_and_keeps_the_ssrc(
        self, publisher: Client, layered: Client, subscriber: Client, plane: FakePlane
    ) -> None:
        subscriber.pull(remote(publisher.session, "camera"))
        before = forwarder_of(plane, subscriber, "0")
        result = subscriber.session.update([remote(layered.session, "camera", mid="0")])
        assert errors(result) == [None]
        assert result.session_description is None
        after = forwarder_of(plane, subscriber, "0")
        assert after["ssrc"] == before["ssrc"]
        assert plane.tracks[after["source"][0]]["rids"] == ("h", "l", "m")  # type: ignore[index]
        assert subscriber.session.media.tracks()[0].session_id == layered.session.id

    def test_works_while_an_offer_is_out(self, layered: Client, publisher: Client, subscriber: Client) -> None:
        """Rule 7: partytracks sends updates outside its queue."""
        pulled = subscriber.session.pull([remote(layered.session, "camera")], now=0.0)
        result = subscriber.session.update(
            [remote(layered.session, "camera", mid="0", simulcast=SimulcastPreference("l"))]
        )
        assert errors(result) == [None]
        assert subscriber.session.offer_outstanding
        subscriber.session.receive_answer(as_answer(subscriber.peer.answer(sdp_of(pulled))), now=0.0)
        remembered = subscriber.session.media.remotes["0"].preference
        assert remembered == SimulcastPreference("l")

    def test_unknown_mid_falls_back_to_the_track(self, layered: Client, subscriber: Client) -> None:
        subscriber.pull(remote(layered.session, "camera"))
        result = subscriber.session.update(
            [remote(layered.session, "camera", mid="99", simulcast=SimulcastPreference("m"))]
        )
        assert errors(result) == [None]
        assert result.tracks[0].mid == "0"

    def test_what_cannot_be_updated_is_an_item_error(
        self, make_session: MakeSession, publisher: Client, layered: Client, subscriber: Client
    ) -> None:
        voice = Client(make_session, "voice")
        voice.publish("0", "voice", "audio")
        h264 = Client(make_session, "h264")
        h264.publish("0", "camera", codecs=[H264])
        subscriber.pull(remote(publisher.session, "camera"))
        result = subscriber.session.update(
            [
                remote(layered.session, "camera", mid="5"),
                remote(publisher.session, "camera", mid="0", simulcast=SimulcastPreference("h")),
                remote("nobody", "camera", mid="0"),
                remote(voice.session, "voice", mid="0"),
                remote(h264.session, "camera", mid="0"),
            ]
        )
        assert errors(result) == [
            "update_track_error",
            "update_track_error",
            "not_found_track_error",
            "update_track_error",
            "update_track_error",
        ]
        assert subscriber.session.media.tracks()[0].session_id == publisher.session.id

    def test_layer_that_never_was_leaves_the_choice_to_the_server(
        self, layered: Client, subscriber: Client, plane: FakePlane
    ) -> None:
        subscriber.pull(remote(layered.session, "camera", simulcast=SimulcastPreference("zzz")))
        assert forwarder_of(plane, subscriber, "0")["source"][1]["rid"] == ""  # type: ignore[index]


class TestClose:
    """realtime-api.md §5 and 10.6."""

    def test_force_needs_no_sdp(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(publisher.session, "camera"))
        result = subscriber.session.close_tracks(["0", "9"], now=0.0)
        assert [item.mid for item in result.tracks] == ["0", "9"]
        assert errors(result) == [None, "close_track_error"]
        assert result.session_description is None
        assert not plane.forwarders

    def test_with_offer_always_answers(self, publisher: Client) -> None:
        """Rule 6, even if every item failed."""
        result = publisher.session.close_tracks_with_offer(as_offer(publisher.peer.offer()), ["7"], now=0.0)
        assert errors(result) == ["close_track_error"]
        answer = publisher.peer.take_answer(sdp_of(result))
        assert answer.sections[0].direction is Direction.RECVONLY

    def test_listed_mids_that_look_alive_become_inactive(self, publisher: Client, plane: FakePlane) -> None:
        """10.6: only the first of a batch is stopped in the offer."""
        publisher.publish("1", "second")
        publisher.peer.stop("0")
        result = publisher.session.close_tracks_with_offer(as_offer(publisher.peer.offer()), ["0", "1"], now=0.0)
        assert errors(result) == [None, None]
        answer = publisher.peer.take_answer(sdp_of(result))
        assert answer.sections[0].rejected
        assert answer.sections[1].direction is Direction.INACTIVE
        assert answer.bundle == ("1",)
        assert answer.sections[1].candidates
        assert not plane.tracks

    def test_every_section_at_port_zero_keeps_the_transport(self, publisher: Client) -> None:
        """Rule 10."""
        remote_before = publisher.session.transport.remote
        publisher.peer.stop("0")
        result = publisher.session.close_tracks_with_offer(as_offer(publisher.peer.offer()), ["0"], now=0.0)
        answer = publisher.peer.take_answer(sdp_of(result))
        assert answer.bundle == ()
        assert publisher.session.transport.remote == remote_before
        assert errors(publisher.publish("1", "camera")) == [None]

    def test_closing_while_an_offer_is_out_leaves_the_offer(self, publisher: Client, subscriber: Client) -> None:
        pulled = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        subscriber.session.close_tracks(["0"], now=0.0)
        assert subscriber.session.offer_outstanding
        subscriber.session.receive_answer(as_answer(subscriber.peer.answer(sdp_of(pulled))), now=0.0)
        assert not subscriber.session.media.tracks()


class TestRecycling:
    """SDP-7: 20 add/remove cycles leave at most the live sections plus one per kind."""

    @pytest.mark.parametrize("how", ["force", "inactive by the server", "stop()", "inactive by the client"])
    def test_sections_stay_bounded(self, publisher: Client, subscriber: Client, plane: FakePlane, how: str) -> None:
        subscriber.pull(remote(publisher.session, "camera"))  # stays, and carries the BUNDLE group
        for _ in range(20):
            result = subscriber.pull(remote(publisher.session, "camera"))
            mid = result.tracks[0].mid
            assert mid is not None
            offered = next(s for s in sdp.parse(sdp_of(result)).sections if s.mid == mid)
            assert offered.direction is Direction.SENDONLY
            if how == "force":
                subscriber.session.close_tracks([mid], now=0.0)
                continue
            if how == "stop()":
                subscriber.peer.stop(mid)
            elif how == "inactive by the client":
                subscriber.peer.set_direction(mid, Direction.INACTIVE)
            closing = as_offer(subscriber.peer.offer())
            closed = subscriber.session.close_tracks_with_offer(closing, [mid], now=0.0)
            subscriber.peer.take_answer(sdp_of(closed))
        assert len(subscriber.session.negotiation.sections) <= (4 if how == "inactive by the client" else 3)
        assert len(plane.forwarders) == 1
        last = subscriber.pull(remote(publisher.session, "camera"))
        assert forwarder_of(plane, subscriber, last.tracks[0].mid or "")["source"][0] in plane.tracks  # type: ignore[index]

    def test_reused_section_shows_inactive_between_two_tracks(self, publisher: Client, subscriber: Client) -> None:
        """10.4: only a section that was inactive before fires a `track` event."""
        subscriber.pull(remote(publisher.session, "camera"))
        subscriber.session.close_tracks(["0"], now=0.0)
        second = subscriber.pull(remote(publisher.session, "camera"))
        assert second.tracks[0].mid == "1"
        assert sdp.parse(sdp_of(second)).sections[0].direction is Direction.INACTIVE
        third = subscriber.pull(remote(publisher.session, "camera"))
        assert third.tracks[0].mid == "0"

    def test_nothing_is_recycled_before_the_section_that_carries_the_transport(
        self, publisher: Client, subscriber: Client
    ) -> None:
        for _ in range(3):
            subscriber.pull(remote(publisher.session, "camera"))
        for mid in ("0", "2"):
            subscriber.peer.stop(mid)
        closing = as_offer(subscriber.peer.offer())
        subscriber.session.close_tracks_with_offer(closing, ["0", "2"], now=0.0)
        offered = sdp.parse(sdp_of(subscriber.pull(remote(publisher.session, "camera"))))
        assert [s.port for s in offered.sections] == [0, 9, 9]
        assert offered.sections[2].mid == "3"
        assert offered.bundle == ("1", "3")

    def test_first_in_first_out_stays_bounded(self, publisher: Client, subscriber: Client) -> None:
        """The oldest is stopped each time, and it carries the transport."""
        live = [subscriber.pull(remote(publisher.session, "camera")).tracks[0].mid or ""]
        for _ in range(100):
            live.append(subscriber.pull(remote(publisher.session, "camera")).tracks[0].mid or "")
            subscriber.peer.stop(live[0])
            closing = as_offer(subscriber.peer.offer())
            subscriber.session.close_tracks_with_offer(closing, [live.pop(0)], now=0.0)
        assert len(subscriber.session.negotiation.sections) <= SECTIONS_KEPT
        assert subscriber.session.media.remotes.keys() == set(live)

    def test_new_mid_collides_with_none_of_either_side(self, publisher: Client, subscriber: Client) -> None:
        subscriber.publish("0", "mine")
        subscriber.publish("1", "mine too")
        result = subscriber.pull(remote(publisher.session, "camera"))
        assert result.tracks[0].mid == "2"


class TestOfferAnswer:
    """One state machine: SDP-10, table 17 row 18."""

    def test_answer_without_an_offer_is_refused(self, publisher: Client) -> None:
        with pytest.raises(InvalidSessionDescription):
            publisher.session.receive_answer(as_answer(publisher.peer.offer()), now=0.0)

    def test_replayed_answer_is_refused(self, publisher: Client, subscriber: Client) -> None:
        result = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        answer = as_answer(subscriber.peer.answer(sdp_of(result)))
        subscriber.session.receive_answer(answer, now=0.0)
        with pytest.raises(InvalidSessionDescription):
            subscriber.session.receive_answer(answer, now=0.0)

    def test_wrong_answer_leaves_the_offer_outstanding(self, publisher: Client, subscriber: Client) -> None:
        result = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        good = subscriber.peer.answer(sdp_of(result))
        for bad in ("", offer(), offer(section("x")), good + good[good.index("m=") :].replace("mid:0", "mid:1")):
            with pytest.raises(InvalidSessionDescription):
                subscriber.session.receive_answer(as_answer(bad), now=0.0)
        subscriber.session.receive_answer(as_answer(good), now=0.0)

    def test_glare_refuses_the_clients_offer(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        result = subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        with pytest.raises(InvalidSessionDescription) as error:
            subscriber.session.publish(as_offer(offer(section("a"))), [local("a", "x")], now=1.0)
        assert "have_local_offer" in error.value.description
        subscriber.session.receive_answer(as_answer(subscriber.peer.answer(sdp_of(result))), now=1.0)
        assert len(plane.forwarders) == 1

    def test_offer_that_was_lost_gives_way(self, publisher: Client, subscriber: Client) -> None:
        """The client never saw our offer, so it has nothing to answer."""
        subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        text = subscriber.peer.offer(section("a"))
        result = subscriber.session.publish(as_offer(text), [local("a", "x")], now=OFFER_LOST_AFTER)
        assert errors(result) == [None]
        assert [state.track_name for state in subscriber.session.media.tracks()] == ["x"]

    def test_next_offer_of_ours_includes_the_outstanding_one(self, publisher: Client, subscriber: Client) -> None:
        subscriber.session.pull([remote(publisher.session, "camera")], now=0.0)
        second = subscriber.pull(remote(publisher.session, "camera"))
        assert len(sdp.parse(sdp_of(second)).sections) == 2
        assert len(subscriber.session.media.remotes) == 2

    @pytest.mark.parametrize(
        "text",
        [
            "",
            offer(),
            offer(section("1")),
            offer(section("0", "audio")),
            offer(section("0")).replace("a=group:BUNDLE 0\r\n", ""),
            offer(section("0")).replace("a=rtcp-mux\r\n", ""),
            offer(section("0")).replace("UDP/TLS/RTP/SAVPF", "RTP/AVP"),
            offer(section("0")).replace("a=fingerprint", "a=x-fingerprint"),
            offer(section("0")).replace("a=ice-ufrag", "a=x-ice-ufrag"),
            offer(section("0")).replace("a=ice-ufrag:peer", "a=ice-ufrag:x"),
            offer(section("0"), section("1", "audio", codecs=[sdp.Codec(96, "opus", 48000, 2)])),
        ],
    )
    def test_broken_offer_changes_nothing(self, publisher: Client, plane: FakePlane, text: str) -> None:
        """Table 17 row 14."""
        sections, tracks = publisher.session.negotiation.sections, dict(plane.tracks)
        with pytest.raises(InvalidSessionDescription):
            publisher.session.publish(as_offer(text), [local("0", "camera")], now=0.0)
        assert publisher.session.negotiation.sections == sections
        assert plane.tracks == tracks

    def test_answer_given_as_offer_is_refused(self, publisher: Client) -> None:
        with pytest.raises(InvalidSessionDescription):
            publisher.session.publish(as_answer(publisher.peer.offer()), [local("0", "camera")], now=0.0)

    def test_data_channel_is_rejected_without_breaking_the_bundle(self, make_session: MakeSession) -> None:
        session = make_session()
        requests = [local("0", "voice"), local("1", "camera")]
        answer = sdp.parse(sdp_of(session.publish(as_offer(load("chrome-156-sendrecv-data")), requests, now=0.0)))
        assert [s.rejected for s in answer.sections] == [False, False, True]
        assert answer.bundle == ("0", "1")

    def test_data_only_offer_connects_a_session(self, make_session: MakeSession) -> None:
        """The legacy `sessions/new`."""
        session = make_session()
        answer = session.receive_offer(as_offer(load("chrome-156-data-only")), now=0.0, accept_data=True)
        (section,) = sdp.parse(answer.sdp).sections
        assert section.is_data
        assert not section.rejected
        assert section.candidates
        assert session.transport.remote is not None

    def test_data_section_that_carries_the_transport_stays(self, make_session: MakeSession, publisher: Client) -> None:
        """A later publish or pull on the legacy session must not take its transport away."""
        client = Client(make_session, "legacy")
        data = as_offer(client.peer.offer(section("d", "application", Direction.SENDRECV)))
        client.session.receive_offer(data, now=0.0, accept_data=True)
        answer = sdp.parse(sdp_of(client.publish("0", "camera")))
        assert [s.rejected for s in answer.sections] == [False, False]
        assert answer.bundle == ("d", "0")
        assert errors(client.pull(remote(publisher.session, "camera"))) == [None]


class TestIceRestart:
    """ICE-7: a new ufrag in an offer is answered with a new one of ours."""

    def test_credentials_change_together(self, publisher: Client) -> None:
        before = publisher.session.transport.agent.local
        publisher.peer.sections = [dataclasses.replace(s, ice_ufrag="again") for s in publisher.peer.sections]
        answer = publisher.session.receive_offer(as_offer(publisher.peer.offer()), now=0.0)
        after = publisher.session.transport.agent.local
        assert after.ufrag != before.ufrag
        assert sdp.parse(answer.sdp).sections[0].ice_ufrag == after.ufrag
        assert publisher.session.transport.agent.ufrags == (after.ufrag, before.ufrag)

    def test_same_credentials_do_not_restart(self, publisher: Client) -> None:
        before = publisher.session.transport.agent.local
        publisher.session.receive_offer(as_offer(publisher.peer.offer()), now=0.0)
        assert publisher.session.transport.agent.local == before


class TestLife:
    def test_unconnected_session_expires_after_its_last_request(self, make_session: MakeSession) -> None:
        client = Client(make_session, inactive_track_s=1000.0)
        client.publish("0", "camera")
        client.session.touch(10.0)
        client.session.handle_timeout(39.9)
        assert client.session.closed_because is None
        client.session.handle_timeout(40.0)
        assert client.session.closed_because == "not connected in time"

    def test_unused_session_lives_longer(self, make_session: MakeSession) -> None:
        session = make_session()
        assert session.next_timeout() == 300.0
        session.handle_timeout(300.0)
        assert session.closed_because is not None
        assert session.next_timeout() is None

    def test_close_frees_everything_and_tells(self, publisher: Client, subscriber: Client, plane: FakePlane) -> None:
        subscriber.pull(remote(publisher.session, "camera"))
        for client in (publisher, subscriber):
            client.session.close("done", now=5.0)
            client.session.close("twice", now=6.0)
            client.session.transport.release()
        assert not plane.tracks
        assert not plane.forwarders
        assert not plane.transports
        events = publisher.session.events_received()
        assert [type(event) for event in events] == [TrackPublished, TrackClosed, SessionClosed]
        assert events[-1] == SessionClosed(SessionId("publisher"), "done", 5.0)
