"""Losses are repaired on each side of the plane by itself: the shield (sections 6 to 9 of the media rules)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    CM_80,
    GCM_128,
    GCM_256,
    Rtp,
    SrtpPeer,
    VideoSource,
    count_plis,
    feed_video,
    nack,
    nacked,
    publish_video,
    pull_video,
)

WITH_COUNTERS = {dataplane.EXT_MID: 1, dataplane.EXT_TRANSPORT_CC: 2, dataplane.EXT_ABS_SEND_TIME: 3}


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0, threads=request.param, stun_per_address_per_s=1000)
    plane.start()
    yield plane
    plane.close()


class TestAnsweringSubscribers:
    def test_a_nack_is_answered_by_rtx(self, plane: Plane) -> None:
        """RTX-2: the subscriber's RTX SSRC and type, OSN in front, timestamp and marker of the first send."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778, extensions=WITH_COUNTERS)
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=5)
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            time.sleep(0.12)  # rtx.min_spacing counts from the first send
            lost = subscriber.rtp[4]
            subscriber.send_rtcp(nack(subscriber.ssrc, 7777, lost.seq))
            subscriber.wait(lambda: len(subscriber.rtp) == 6)
            repair = subscriber.rtp[5]
            assert (repair.ssrc, repair.payload_type) == (7778, 101)
            assert repair.payload == lost.seq.to_bytes(2) + lost.payload
            assert (repair.timestamp, repair.marker) == (lost.timestamp, lost.marker)
            assert int.from_bytes(repair.extensions[2]) == int.from_bytes(lost.extensions[2]) + 1  # a fresh number
            assert repair.extensions[1] == b"v"
            assert plane.forwarder_stats(forwarder)["answered"] == 1

    def test_padding_is_taken_off_a_repair(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher), rtx=7778)
            publisher.send(Rtp(96, 1, 1, 1111, b"\x10\x00xyz", padding=9))
            subscriber.wait(lambda: subscriber.rtp)
            time.sleep(0.12)
            subscriber.send_rtcp(nack(1, 7777, subscriber.rtp[0].seq))
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            assert (subscriber.rtp[1].padding, subscriber.rtp[1].payload[2:]) == (0, b"\x10\x00xyz")

    @pytest.mark.parametrize("profile", [CM_80, GCM_128, GCM_256])
    def test_without_rtx_the_same_datagram_is_sent_again(self, plane: Plane, profile: int) -> None:
        """SRTP-4: bit for bit, counters and send time included."""
        with SrtpPeer(plane, profile=profile) as publisher, SrtpPeer(plane, profile=profile) as subscriber:
            pull_video(subscriber, publish_video(publisher), extensions=WITH_COUNTERS)
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=5)
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            first = [data for data in subscriber.raw if data[1] & 127 == 100]
            time.sleep(0.12)
            subscriber.send_rtcp(nack(subscriber.ssrc, 7777, subscriber.rtp[2].seq))
            subscriber.wait(lambda: len([d for d in subscriber.raw if d[1] & 127 == 100]) == 6)
            assert [d for d in subscriber.raw if d[1] & 127 == 100][5] == first[2]

    def test_a_storm_of_the_same_nack_gets_one_answer(self, plane: Plane) -> None:
        """CACHE-3, SHLD-1: and the publisher hears nothing of it."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            VideoSource(publisher, 1111).send(key=True, size=5)
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            time.sleep(0.12)
            for _ in range(20):
                subscriber.send_rtcp(nack(subscriber.ssrc, 7777, subscriber.rtp[1].seq))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["nacks_in"] == 20)
            subscriber.settle(0.05)
            assert len(subscriber.rtp) == 6
            publisher.settle(0.05)
            assert not any(nacked(c) for c in publisher.rtcp)

    def test_at_most_512_numbers_per_100_ms_are_looked_at(self, plane: Plane) -> None:
        """Section 17 row 9."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            flood = bytearray(nack(subscriber.ssrc, 7777, *range(0, 253 * 17, 17)))
            for at in range(20, len(flood), 4):
                flood[at + 2 : at + 4] = b"\xff\xff"
            subscriber.send_rtcp(bytes(flood))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["nacks_in"] == 512)
            assert subscriber.drops()["drop_nack_budget"] == 1

    def test_resends_stay_within_half_of_the_media(self, plane: Plane) -> None:
        """CACHE-6: a subscriber that NACKs everything."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            VideoSource(publisher, 1111).send(key=True, size=20, length=1000)
            subscriber.wait(lambda: len(subscriber.rtp) == 20)
            time.sleep(0.12)
            subscriber.send_rtcp(nack(1, 7777, *(p.seq for p in subscriber.rtp)))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["nacks_in"] == 20)
            subscriber.settle(0.05)
            stats = plane.forwarder_stats(forwarder)
            assert 1 <= stats["answered"] <= 10
            assert stats["answered"] + stats["suppressed"] == 20

    def test_numbers_never_sent_are_misses(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtp)
            subscriber.send_rtcp(nack(1, 7777, subscriber.rtp[0].seq + 1, subscriber.rtp[0].seq - 5))
            subscriber.send_rtcp(nack(1, 4444, 1))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["missed"] == 2)
            subscriber.wait(lambda: subscriber.drops() == {"drop_rtcp_foreign": 1})

    def test_packets_of_the_former_source_can_still_be_repaired(self, plane: Plane) -> None:
        """CACHE-4"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as other, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            VideoSource(publisher, 1111).send(key=True, size=3)
            subscriber.wait(lambda: len(subscriber.rtp) == 3)
            feed_video(plane, forwarder, publish_video(other, 3333), rtx=True)
            VideoSource(other, 3333, seq=40_000).send(key=True)
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            time.sleep(0.12)
            subscriber.send_rtcp(nack(1, 7777, subscriber.rtp[1].seq))
            subscriber.wait(lambda: len(subscriber.rtp) == 5)
            assert subscriber.rtp[4].payload[2:] == subscriber.rtp[1].payload

    def test_cache_and_ledger_grow_with_the_stream(self, plane: Plane) -> None:
        """CACHE-1: a packet of a second ago is served, however many came since."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            pull_video(subscriber, track, rtx=7778)
            source = VideoSource(publisher, 1111)
            before = plane.stats()["cache_bytes"]
            for turn in range(12):
                source.send(key=turn == 0, size=100, length=1000)
                subscriber.wait(lambda turn=turn: len(subscriber.rtp) == 100 * (turn + 1))  # type: ignore[misc]
                subscriber.settle(0.02 if turn > 3 else 0.06)
            old = subscriber.rtp[150]
            subscriber.send_rtcp(nack(1, 7777, old.seq))
            subscriber.wait(lambda: len(subscriber.rtp) == 1201)
            assert subscriber.rtp[1200].payload[2:] == old.payload
            subscriber.wait(lambda: plane.stats()["cache_bytes"] == plane.track_stats(track)[0]["cache_bytes"])
            assert plane.track_stats(track)[0]["cache_bytes"] > before + 1_000_000
            plane.remove_track(track)
            assert plane.stats()["cache_bytes"] == before

    def test_the_planes_total_bounds_every_cache(self) -> None:
        plane = Plane(["127.0.0.1"], 0, cache_bytes_max=400_000)
        plane.start()
        try:
            with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
                pull_video(subscriber, publish_video(publisher))
                pull_video(subscriber, publish_video(publisher, 2222, mid="1"), 8888)
                for ssrc in (1111, 2222):
                    source = VideoSource(publisher, ssrc)
                    for turn in range(6):
                        source.send(key=turn == 0, size=100, length=1000)
                        subscriber.settle(0.06)
                assert len(subscriber.rtp) == 1200  # what is not cached is forwarded all the same
                assert 0 < plane.stats()["cache_bytes"] <= 400_000
        finally:
            plane.close()


class TestAskingPublishers:
    def test_a_gap_is_asked_for_and_the_repair_goes_out_on_its_reserved_number(self, plane: Plane) -> None:
        """NACK-2, RTX-1, SHLD-3."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher, rtx=1112)
            pull_video(subscriber, track, rtx=7778)
            source = VideoSource(publisher, 1111, seq=65534)
            sent = source.send(key=True, size=6, lose=(1, 3))
            publisher.wait(lambda: [n for c in publisher.rtcp for n in nacked(c)] == [65535, 1])
            for i, number in ((3, 65535), (1, 0)):
                restored = sent[i]
                publisher.send(
                    Rtp(
                        97,
                        number,
                        restored.timestamp,
                        1112,
                        (restored.seq).to_bytes(2) + restored.payload,
                        restored.marker,
                    )
                )
            subscriber.wait(lambda: len(subscriber.rtp) == 6)
            first = subscriber.rtp[0].seq
            assert [p.seq - first for p in subscriber.rtp] == [0, 2, 4, 5, 3, 1]
            assert [p.payload for p in sorted(subscriber.rtp, key=lambda p: p.seq)] == [p.payload for p in sent]
            stats = plane.track_stats(track)[0]
            assert (stats["nacks_sent"], stats["repaired"], stats["lost"]) == (2, 2, 0)

    def test_one_loss_and_many_subscribers_make_one_request(self, plane: Plane) -> None:
        """SHLD-3: subscribers that NACK what is missing upstream add nothing."""
        with SrtpPeer(plane) as publisher:
            subscribers = [SrtpPeer(plane) for _ in range(10)]
            track = publish_video(publisher)
            for subscriber in subscribers:
                pull_video(subscriber, track, rtx=7778)
            source = VideoSource(publisher, 1111)
            sent = source.send(key=True, size=3, lose=(1,))
            for subscriber in subscribers:
                subscriber.wait(lambda s=subscriber: len(s.rtp) == 2)  # type: ignore[misc]
                subscriber.send_rtcp(nack(1, 7777, subscriber.rtp[0].seq + 1))
            publisher.wait(lambda: any(nacked(c) for c in publisher.rtcp))
            publisher.send(sent[1])
            for subscriber in subscribers:
                subscriber.wait(lambda s=subscriber: len(s.rtp) == 3)  # type: ignore[misc]
                subscriber.settle(0.02)
                assert len(subscriber.rtp) == 3
                subscriber.close()
            assert sum(len(nacked(c)) for c in publisher.rtcp) == 1

    def test_a_layer_that_nobody_consumes_is_not_asked_for(self, plane: Plane) -> None:
        """NACK-5"""
        with SrtpPeer(plane) as publisher:
            publish_video(publisher)
            VideoSource(publisher, 1111).send(key=True, size=4, lose=(1,))
            publisher.settle(0.1)
            assert not any(nacked(c) for c in publisher.rtcp)

    @pytest.mark.slow
    def test_a_packet_that_never_comes_ends_as_one_key_frame_request(self, plane: Plane) -> None:
        """NACK-2, SHLD-3: ten tries or 2 s, then LOST once."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = publish_video(publisher)
            pull_video(subscriber, track)
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=4, lose=(1,))
            publisher.wait(lambda: plane.track_stats(track)[0]["lost"] == 1)
            publisher.settle(0.05)
            tries = sum(len(nacked(c)) for c in publisher.rtcp)
            assert 5 <= tries <= 10
            assert plane.track_stats(track)[0]["nacks_sent"] == tries
            assert 1 <= count_plis(publisher.rtcp) <= 3

    def test_a_repair_ahead_of_every_original_is_kept_and_served(self, plane: Plane) -> None:
        """RTX-3"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher, rtx=1112))
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            ahead = source.frame(size=3)
            publisher.send(Rtp(97, 9, ahead[2].timestamp, 1112, ahead[2].seq.to_bytes(2) + ahead[2].payload, True))
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            publisher.send(ahead[0], ahead[1], ahead[2])
            subscriber.wait(lambda: len(subscriber.rtp) == 4)
            subscriber.settle(0.05)
            first = subscriber.rtp[0].seq
            assert [p.seq - first for p in subscriber.rtp] == [0, 3, 1, 2]
            assert subscriber.drops() == {"drop_duplicate": 1}

    def test_padding_that_comes_late_fills_its_reserved_number(self, plane: Plane) -> None:
        """FWD-2, RX-3"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher), rtx=7778)
            source = VideoSource(publisher, 1111)
            source.send(key=True)
            late = Rtp(96, source.seq, source.timestamp, 1111, padding=100)
            source.seq += 1
            source.send()
            subscriber.wait(lambda: len(subscriber.rtp) == 2)
            publisher.send(late)
            subscriber.wait(lambda: len(subscriber.rtp) == 3)
            first, second, filler = subscriber.rtp
            assert (second.seq - first.seq, filler.seq - first.seq) == (2, 1)
            assert (filler.payload, filler.payload_type) == (b"", 100)
            assert filler.padding > 0
            time.sleep(0.12)
            subscriber.send_rtcp(nack(1, 7777, filler.seq))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["suppressed"] == 1)

    def test_rtx_probes_reach_nobody(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher, rtx=1112))
            VideoSource(publisher, 1111).send(key=True)
            publisher.send(Rtp(97, 1, 1, 1112, b""), Rtp(97, 2, 1, 1112, b"", padding=200))
            subscriber.wait(lambda: subscriber.drops() == {"drop_probe": 2})
            subscriber.settle(0.05)
            assert len(subscriber.rtp) == 1
