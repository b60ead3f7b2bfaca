"""Media through the plane over loopback, against a peer written in plain Python."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    AUDIO,
    CM_80,
    EXTENSIONS,
    GCM_128,
    GCM_256,
    VIDEO,
    Rtp,
    SrtpPeer,
    VideoSource,
    publish_video,
    pull_video,
)

SO_NO_CHECK = 11  # a socket that sends no checksums refuses UDP_SEGMENT


@pytest.fixture
def make_plane() -> Iterator[Callable[..., Plane]]:
    planes: list[Plane] = []

    def make(addresses: tuple[str, ...] = ("127.0.0.1",), **options: object) -> Plane:
        plane = Plane(addresses, 0, **options)  # type: ignore[arg-type]
        planes.append(plane)
        plane.start()
        return plane

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield make
    for plane in planes:
        plane.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def plane(make_plane: Callable[..., Plane]) -> Plane:
    return make_plane()


class TestRewriting:
    """FWD-1, FWD-2, EXT-1: everything a subscriber sees is its own, but payload, marker and order."""

    @pytest.mark.parametrize("profile", [CM_80, GCM_128, GCM_256])
    def test_a_packet_arrives_under_the_subscribers_numbers(self, plane: Plane, profile: int) -> None:
        with SrtpPeer(plane, profile=profile) as publisher, SrtpPeer(plane, profile=profile) as subscriber:
            track = publish_video(publisher)
            wanted = {dataplane.EXT_MID: 5, dataplane.EXT_TRANSPORT_CC: 9, dataplane.EXT_VIDEO_ORIENTATION: 2}
            pull_video(subscriber, track, extensions=wanted)
            source = VideoSource(publisher, 1111)
            source.extensions = {1: b"0", 5: b"\x7f", 6: b"\x01"}
            sent = source.send(key=True, size=3)
            subscriber.wait(lambda: len(subscriber.rtp) == 3)
            first = subscriber.rtp[0]
            counter = int.from_bytes(first.extensions[9])
            assert 1 <= first.seq <= 32767  # SRTP-1
            for number, (before, after) in enumerate(zip(sent, subscriber.rtp, strict=True)):
                assert (after.payload, after.marker) == (before.payload, before.marker)
                assert (after.payload_type, after.ssrc, after.seq) == (100, 7777, first.seq + number)
                assert after.timestamp == first.timestamp
                assert after.extensions == {5: b"v", 9: (counter + number).to_bytes(2), 2: b"\x01"}

    def test_subscribers_with_different_profiles_get_the_same_payload(self, plane: Plane) -> None:
        with SrtpPeer(plane, profile=CM_80) as publisher, SrtpPeer(plane, profile=GCM_256) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            [sent] = VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            assert subscriber.rtp[0].payload == sent.payload

    def test_csrcs_and_padding_behind_a_payload_travel(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            publisher.send(Rtp(96, 5, 1, 1111, b"\x10\x00abc", csrcs=(3, 4), padding=6))
            subscriber.wait(lambda: subscriber.rtp)
            [packet] = subscriber.rtp
            assert (packet.csrcs, packet.padding, packet.payload) == ((3, 4), 6, b"\x10\x00abc")

    def test_padding_only_packets_leave_no_hole(self, plane: Plane) -> None:
        """RX-3"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=2)
            for _ in range(10):
                publisher.send(Rtp(96, source.seq, source.timestamp, 1111, padding=200))
                source.seq += 1
            source.send(size=2)
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            first = subscriber.rtp[0].seq
            assert [p.seq for p in subscriber.rtp] == [first, first + 1, first + 2, first + 3]
            assert subscriber.drops() == {"drop_padding": 10}

    def test_an_upstream_hole_stays_a_hole_until_its_packet_comes_late(self, plane: Plane) -> None:
        """SHLD-4"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            sent = source.send(key=True, size=4, lose=(1,))
            subscriber.wait(lambda: len(subscriber.rtp) == 3)
            first = subscriber.rtp[0].seq
            assert [p.seq - first for p in subscriber.rtp] == [0, 2, 3]
            publisher.send(sent[1])
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            assert (subscriber.rtp[3].seq - first, subscriber.rtp[3].payload) == (1, sent[1].payload)

    def test_audio_begins_with_any_packet_and_keeps_its_level(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = plane.add_track(publisher.transport, mid="a", video=False, codecs=AUDIO, extensions=EXTENSIONS)
            forwarder = plane.add_forwarder(
                subscriber.transport,
                mid="x",
                video=False,
                ssrc=42,
                rtx_ssrc=0,
                cname="c",
                extensions={dataplane.EXT_AUDIO_LEVEL: 3, dataplane.EXT_ABS_SEND_TIME: 7},
            )
            plane.set_source(forwarder, track, payload_types={111: 96}, rtx_payload_types={})
            publisher.send(Rtp(111, 65535, 960, 99, b"opus", extensions={1: b"a", 5: b"\x85"}))
            publisher.send(Rtp(111, 0, 1920, 99, b"more"))
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            one, two = subscriber.rtp
            assert (one.payload_type, one.ssrc, one.extensions[3], len(one.extensions[7])) == (96, 42, b"\x85", 3)
            assert (two.seq - one.seq, two.timestamp - one.timestamp) == (1, 960)
            assert set(two.extensions) == {7}


class TestWhoMaySend:
    """DMX-3, DMX-4, SRTP-2, SRTP-5."""

    def test_valid_srtp_from_a_new_port_is_dropped_until_its_tuple_is_added(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as moved:
                moved.bind(("127.0.0.1", 0))
                moved.sendto(publisher.outgoing.protect(source.frame()[0].serialize()), publisher.target)
                subscriber.settle()
                assert len(subscriber.rtp) == 1
                assert subscriber.drops() == {"drop_stranger": 1}
                host, port = moved.getsockname()
                plane.add_tuple(publisher.transport, (publisher.path[0], host, port))
                moved.sendto(publisher.outgoing.protect(source.frame()[0].serialize()), publisher.target)
                subscriber.wait(lambda: len(subscriber.rtp) == 2)

    def test_media_before_keys_is_dropped(self, plane: Plane) -> None:
        with SrtpPeer(plane, keys=False) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.settle()
            assert subscriber.drops() == {"drop_no_keys": 1}
            publisher.set_keys()
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)

    def test_replayed_packets_are_forwarded_once(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            capture = [publisher.outgoing.protect(p.serialize()) for p in source.frame(key=True, size=20)]
            for _ in range(3):
                for data in capture:
                    publisher.send_raw(data)
            subscriber.wait(lambda: len(subscriber.rtp) == 20)
            subscriber.settle()
            assert len(subscriber.rtp) == 20
            assert subscriber.drops() == {"drop_replay": 40}
            assert plane.track_stats(track)[0]["packets"] == 20

    def test_a_tampered_packet_makes_no_state(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher:
            publish_video(publisher)
            data = bytearray(publisher.outgoing.protect(VideoSource(publisher, 4321).frame()[0].serialize()))
            data[-1] ^= 1
            publisher.send_raw(bytes(data))
            publisher.settle()
            assert publisher.drops() == {"drop_authentication": 1}
            stats = plane.transport_stats(publisher.transport)
            assert (stats["authentication_failures"], stats["packets_in"], stats["ssrcs"]) == (1, 0, 1)

    def test_a_mid_binds_an_unknown_ssrc_and_a_newer_ssrc_replaces_it(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = plane.add_track(publisher.transport, mid="cam", video=True, codecs=VIDEO, extensions=EXTENSIONS)
            publish_video(publisher, 2222, mid="other")  # the payload type alone would not decide
            pull_video(subscriber, track)
            old, new = VideoSource(publisher, 50), VideoSource(publisher, 60, seq=9)
            old.extensions = new.extensions = {1: b"cam"}
            old.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            new.send()  # not a key frame: waits
            new.send(key=True)
            old.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            subscriber.settle()
            one, two = subscriber.rtp
            assert (two.seq - one.seq) & 0xFFFF == 1
            assert 0 < (two.timestamp - one.timestamp) & 0xFFFFFFFF < 90_000
            assert subscriber.drops() == {"drop_retired_ssrc": 1}

    def test_learnt_ssrcs_are_bounded_and_the_oldest_goes(self, make_plane: Callable[..., Plane]) -> None:
        plane = make_plane(max_streams_per_transport=8)
        with SrtpPeer(plane) as publisher:
            for ssrc in range(1, 101):
                publisher.send(Rtp(96, 1, 1, ssrc, b"probe"))
            publisher.wait(lambda: publisher.drops().get("drop_unbound") == 100)
            assert plane.transport_stats(publisher.transport)["ssrcs"] == 8


class TestDelivery:
    """IO-1 to IO-3 and the threads."""

    def test_a_frame_leaves_as_one_train_in_order(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            sent = VideoSource(publisher, 1111).frame(key=True, size=40, length=1000)
            publisher.send_train(sent)
            subscriber.wait(lambda: len(subscriber.rtp) == 40)
            assert [p.payload for p in subscriber.rtp] == [p.payload for p in sent]
            stats = plane.stats()
            assert (stats["gso_trains"], stats["gso_datagrams"]) == (1, 40)
            assert plane.batch_histogram()[1] == stats["batches"]  # coalesced on arrival: one datagram per call

    def test_a_socket_that_refuses_trains_sends_singles_and_is_not_tried_again(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            refuse_trains(plane.port)
            source = VideoSource(publisher, 1111)
            for turn in range(1, 4):
                sent = source.frame(key=True, size=40, length=1000)
                publisher.send_train(sent)
                subscriber.wait(lambda turn=turn: len(subscriber.rtp) == 40 * turn)  # type: ignore[misc]
                assert [p.payload for p in subscriber.rtp[-40:]] == [p.payload for p in sent]
            stats = plane.stats()
            assert stats["gso_refused"] == 1
            assert stats["drop_send_error"] == 0

    def test_ipv6_and_ipv4_share_the_port(self, make_plane: Callable[..., Plane]) -> None:
        plane = make_plane(("127.0.0.1", "::1"))
        with SrtpPeer(plane, host="::1") as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            [sent] = VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            assert subscriber.rtp[0].payload == sent.payload

    def test_packets_cross_between_threads(self, make_plane: Callable[..., Plane]) -> None:
        plane = make_plane(threads=3, stun_per_address_per_s=1000)
        with SrtpPeer(plane) as publisher:
            subscribers = [SrtpPeer(plane) for _ in range(12)]
            track = publish_video(publisher, rtx=1112)
            for subscriber in subscribers:
                pull_video(subscriber, track)
            assert len({plane.transport_stats(s.transport)["thread"] for s in subscribers}) > 1
            source = VideoSource(publisher, 1111)
            for i in range(10):
                source.send(key=i == 0, size=10)
            for subscriber in subscribers:
                subscriber.wait(lambda s=subscriber: len(s.rtp) == 100)  # type: ignore[misc]
                assert [p.payload for p in subscriber.rtp] == [p.payload for p in source.sent]
                subscriber.close()
            assert plane.stats()["crossed"] > 0

    def test_a_datagram_on_another_threads_socket_is_handed_over(self, make_plane: Callable[..., Plane]) -> None:
        plane = make_plane(threads=2, stun_per_address_per_s=1000)
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            owner = plane.transport_stats(publisher.transport)["thread"]
            while True:  # a tuple that the kernel gives to the other thread
                first, publisher.socket = publisher.socket, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                first.close()
                publisher.socket.bind(("127.0.0.1", 0))
                path = publisher.learn_path()
                if path[0] != owner:
                    break
            plane.select_tuple(publisher.transport, path)
            source.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert plane.transport_stats(publisher.transport)["thread"] == owner

    def test_selecting_another_tuple_moves_what_is_sent(self, plane: Plane) -> None:
        """ICE-5"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 1)
            subscriber.socket.close()
            subscriber.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            subscriber.socket.bind(("127.0.0.1", 0))
            plane.select_tuple(subscriber.transport, subscriber.learn_path())
            source.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].seq - subscriber.rtp[0].seq) & 0xFFFF == 1

    def test_lost_consent_stops_everything_at_once(self, plane: Plane) -> None:
        """ICE-6: media, reports and all."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            plane.set_sending(subscriber.transport, False)
            subscriber.settle(0.05)
            got = len(subscriber.raw)
            source.send(key=True)
            subscriber.settle()
            assert len(subscriber.raw) == got
            plane.set_sending(subscriber.transport, True)
            source.send()
            source.send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].seq - subscriber.rtp[0].seq) & 0xFFFF in (1, 2)

    def test_figures_agree_with_what_was_seen(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            forwarder = pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=5)
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            assert plane.stats()["forwarded"] == sum(plane.latency_histogram()) == 5
            assert sum(plane.batch_histogram()) == plane.stats()["batches"]
            assert plane.forwarder_stats(forwarder)["packets"] == 5
            assert plane.track_stats(track)[0]["keyframes"] == 1


class TestRaces:
    """Section 17 row 21: the graph changes while packets fly."""

    @pytest.mark.parametrize("threads", [1, 2])
    def test_forwarders_tracks_and_transports_go_while_traffic_flows(
        self, make_plane: Callable[..., Plane], threads: int
    ) -> None:
        plane = make_plane(threads=threads, stun_per_address_per_s=100_000)
        publisher, steady = SrtpPeer(plane), SrtpPeer(plane)
        track = publish_video(publisher)
        pull_video(steady, track)
        source = VideoSource(publisher, 1111)
        stop = threading.Event()

        def pour() -> None:
            while not stop.is_set():
                source.send(key=True, size=5)
                time.sleep(0.001)

        pourer = threading.Thread(target=pour)
        pourer.start()
        try:
            for turn in range(60):
                peer = SrtpPeer(plane)
                other = publish_video(peer, 3)
                forwarder = pull_video(peer, track, rtx=8)
                back = pull_video(publisher, other, 100_000 + turn)
                VideoSource(peer, 3).send(key=True)
                if turn % 3 == 0:
                    plane.remove_forwarder(forwarder)
                if turn % 3 == 1:
                    plane.remove_track(other)
                plane.remove_transport(peer.transport)
                plane.remove_forwarder(back)
                peer.close()
        finally:
            stop.set()
            pourer.join()
        steady.wait(lambda: len(steady.rtp) >= len(source.sent) or steady.settle(0.05))
        assert [p.payload for p in steady.rtp] == [p.payload for p in source.sent]
        assert plane.stats()["transports"] == 2
        publisher.close()
        steady.close()


def refuse_trains(port: int) -> None:
    """Make every UDP socket of this process on `port` refuse UDP_SEGMENT."""
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if not os.path.lexists(path) or not os.readlink(path).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(name))) as duplicate:
            if duplicate.type == socket.SOCK_DGRAM and duplicate.getsockname()[1] == port:
                duplicate.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
