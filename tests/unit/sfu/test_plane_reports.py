"""Reports and transport-wide feedback: sections 11 and 12 of the media rules."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest
from aiortc.rtp import RtcpPacket, RtcpRrPacket, RtcpSdesPacket, RtcpSrPacket

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    Rtp,
    SrtpPeer,
    VideoSource,
    nack,
    publish_video,
    pull_video,
    rtcp_packets,
    sender_report,
)
from wire import transport_cc


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0, stun_per_address_per_s=1000)
    plane.start()
    yield plane
    plane.close()


def reports(peer: SrtpPeer, kind: type) -> list[RtcpPacket]:
    return [p for c in peer.rtcp for p in RtcpPacket.parse(c) if isinstance(p, kind)]


def feedback(peer: SrtpPeer) -> list[bytes]:
    return [p for c in peer.rtcp for p in rtcp_packets(c) if p[1] == 205 and p[0] & 31 == 15]


class TestSenderReports:
    NTP = 3_900_000_000 << 32

    def test_the_first_goes_at_once_with_the_publishers_cname(self, plane: Plane) -> None:
        """RTCP-1"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtcp)
            [report] = reports(subscriber, RtcpSrPacket)
            assert (report.ssrc, report.sender_info.packet_count, report.sender_info.octet_count) == (7777, 1, 100)
            [names] = reports(subscriber, RtcpSdesPacket)
            assert names.chunks[0].items == [(1, b"publisher")]

    def test_it_speaks_the_publishers_clock_in_the_subscribers_timestamps(self, plane: Plane) -> None:
        """RTCP-2"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            source = VideoSource(publisher, 1111)
            publisher.send(*source.frame())  # binds the SSRC
            publisher.send_rtcp(sender_report(1111, self.NTP, source.timestamp))
            said = time.monotonic()
            source.send(key=True)
            subscriber.wait(lambda: reports(subscriber, RtcpSrPacket))
            info = reports(subscriber, RtcpSrPacket)[0].sender_info
            elapsed = (info.ntp_timestamp - self.NTP) / 2**32
            assert 0 <= elapsed <= time.monotonic() - said
            captured = subscriber.rtp[0].timestamp - 3000  # of the source timestamp that the publisher's report names
            assert abs((info.rtp_timestamp - captured) % 2**32 - elapsed * 90000) <= 2

    def test_round_trip_time_comes_from_the_report_a_subscriber_names(self, plane: Plane) -> None:
        """RTCP-3, section 17 row 13: unknown, future and negative values change nothing."""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            forwarder = pull_video(subscriber, publish_video(publisher))
            VideoSource(publisher, 1111).send(key=True)
            subscriber.wait(lambda: subscriber.rtcp)
            middle = reports(subscriber, RtcpSrPacket)[0].sender_info.ntp_timestamp >> 16 & 0xFFFFFFFF
            time.sleep(0.05)

            def report(last_sr: int, delay: int, fraction: int = 255) -> bytes:
                block = struct.pack("!IIIIII", 7777, fraction << 24 | 0xFFFFFF, 1, 0, last_sr, delay)
                return struct.pack("!BBHI", 0x81, 201, 7, 5) + block

            for bad in (report(0, 0), report(middle + 9, 0), report(middle, 0xFFFFFFFF)):
                subscriber.send_rtcp(bad)
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["fraction_lost"] > 0.99)
            subscriber.settle(0.02)
            assert plane.forwarder_stats(forwarder)["rtt"] == 0
            subscriber.send_rtcp(report(middle, 0, fraction=0))
            subscriber.wait(lambda: plane.forwarder_stats(forwarder)["rtt"] > 0)
            assert 0.05 <= plane.forwarder_stats(forwarder)["rtt"] < 2

    def test_a_reference_time_is_answered_at_once(self, plane: Plane) -> None:
        """RTCP-5, RFC 3611"""
        with SrtpPeer(plane) as peer:
            peer.send_rtcp(struct.pack("!BBHI", 0x80, 207, 4, 99) + struct.pack("!BBHQ", 4, 0, 2, 0x1122334455667788))
            peer.wait(lambda: peer.rtcp)
            [answer] = [p for p in rtcp_packets(peer.rtcp[0]) if p[1] == 207]
            assert answer[8] == 5
            assert struct.unpack("!III", answer[12:]) == (99, 0x33445566, 0)


class TestReceiverReports:
    def test_loss_is_stated_as_it_was_before_repair(self, plane: Plane) -> None:
        """SHLD-2, RTCP-4"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher, rtx=1112))
            source = VideoSource(publisher, 1111, seq=65530)
            sent = source.send(key=True, size=20, lose=(3, 7))
            publisher.send_rtcp(sender_report(1111, 0x1122334455667788, 1))
            for i in (3, 7):
                publisher.send(Rtp(97, i, sent[i].timestamp, 1112, sent[i].seq.to_bytes(2) + sent[i].payload))
            subscriber.wait(lambda: len(subscriber.rtp) == 20)

            def with_blocks() -> list[RtcpRrPacket]:
                return [r for r in reports(publisher, RtcpRrPacket) if r.reports]

            publisher.wait(with_blocks)
            [block] = with_blocks()[0].reports
            assert (block.ssrc, block.packets_lost, block.fraction_lost) == (1111, 2, 2 * 256 // 20)
            assert block.highest_sequence == 65536 + 13
            assert block.lsr == 0x33445566
            assert 0 < block.dlsr < 5 * 65536

    def test_nothing_a_subscriber_says_changes_what_the_publisher_is_told(self, plane: Plane) -> None:
        """SHLD-1"""
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher), rtx=9)
            source = VideoSource(publisher, 1111)
            source.send(key=True, size=10)
            subscriber.wait(lambda: len(subscriber.rtp) == 10)
            before = len(publisher.rtcp)
            lossy = struct.pack("!BBHIIIIIII", 0x81, 201, 7, 5, 7777, 0xFF7FFFFF, 1, 9999, 0, 0)
            remb = struct.pack("!BBHIIIII", 0x8F, 206, 5, 5, 0, 0x52454D42, 1 << 24, 7777)
            for _ in range(20):
                subscriber.send_rtcp(lossy + remb)
                subscriber.send_rtcp(nack(1, 7777, *(p.seq for p in subscriber.rtp)))
            publisher.settle(0.3)
            assert len(publisher.rtcp) == before


class TestTransportWideFeedback:
    """TCC-1, TCC-2, read back by another implementation."""

    def test_every_authenticated_packet_is_reported_with_its_arrival(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher:
            publish_video(publisher)
            source = VideoSource(publisher, 1111)
            numbers = [65530, 65531, 65533, 65534, 0, 3, 2]
            for number in numbers:
                source.extensions = {4: number.to_bytes(2)}
                source.send()
                time.sleep(0.003)
            publisher.wait(lambda: feedback(publisher))
            publisher.settle(0.15)
            arrived: dict[int, float] = {}
            for data in feedback(publisher):
                assert int.from_bytes(data[8:12]) == 1111
                arrived.update(arrivals(data))
            assert sorted(arrived, key=lambda n: arrived[n]) == numbers
            spread = arrived[2] - arrived[65530]
            assert 0.017 < spread < 1

    def test_a_burst_is_reported_before_the_interval_ends(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher:
            publish_video(publisher)
            source = VideoSource(publisher, 1111)
            for number in range(600):
                source.extensions = {4: number.to_bytes(2)}
                source.send()
            publisher.wait(lambda: len({seq for f in feedback(publisher) for seq in arrivals(f)}) == 600)
            assert all(len(f) <= 1200 for f in feedback(publisher))

    def test_no_feedback_without_the_extension(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher:
            publish_video(publisher)
            VideoSource(publisher, 1111).send(key=True, size=5)
            publisher.settle(0.25)
            assert feedback(publisher) == []


class TestLiveness:
    def test_a_silent_track_is_reported_and_so_is_its_return(self) -> None:
        plane = Plane(["127.0.0.1"], 0, stall_after=0.2)
        plane.start()
        try:
            with SrtpPeer(plane) as publisher:
                track = publish_video(publisher)
                source = VideoSource(publisher, 1111)
                source.send(key=True)
                seen: list[object] = []

                def upcalls(kind: int) -> list[object]:
                    seen.extend(plane.drain())
                    return [u for u in seen if u[0] == kind]  # type: ignore[index]

                publisher.wait(
                    lambda: upcalls(dataplane.STREAM_STARTED) == [(dataplane.STREAM_STARTED, track, "", 1111)]
                )
                publisher.wait(lambda: upcalls(dataplane.TRACK_STALLED) == [(dataplane.TRACK_STALLED, track)])
                source.send()
                publisher.wait(lambda: upcalls(dataplane.TRACK_RESUMED) == [(dataplane.TRACK_RESUMED, track)])
        finally:
            plane.close()

    def test_bye_names_its_track_and_foreign_ssrcs_are_ignored(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher:
            track = publish_video(publisher)
            VideoSource(publisher, 1111).send(key=True)
            publisher.send_rtcp(struct.pack("!BBHIII", 0x83, 203, 3, 1111, 5, 6))
            byes: list[object] = []
            publisher.wait(lambda: byes.extend(u for u in plane.drain() if u[0] == dataplane.BYE) or byes)
            assert byes == [(dataplane.BYE, track, 1111)]
            assert publisher.drops() == {"drop_rtcp_foreign": 2}

    def test_an_idle_plane_sleeps(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            pull_video(subscriber, publish_video(publisher))
            subscriber.settle(0.1)
            before = plane.stats()["wakeups"]
            time.sleep(0.5)
            assert plane.stats()["wakeups"] - before <= 2


def arrivals(data: bytes) -> dict[int, float]:
    """Arrival in seconds by number."""
    parsed = transport_cc.TransportFeedback.parse(0, 0, data[12:])
    return {seq: parsed.arrival_us(ticks) / 1e6 for seq, ticks in parsed.arrivals}
