"""What the server tells a publisher, seen packet by packet: requests, reports, feedback; and what it does not tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.support.aiortc_peer import until
from tests.support.figures import assert_no_media_state_left, drops, figures
from tests.support.light_peer import MEDIA_TYPE, MID_ID, RTX_TYPE, TRANSPORT_CC_ID, LightPeer, open_light_peer
from tests.support.server import Server, running_server
from wire.rtcp import Nack, PictureLossIndication, ReceiverReport
from wire.rtp import HeaderExtension, RtpPacket
from wire.transport_cc import TransportFeedback

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SSRC = 0x5EED
KEY, DELTA = b"\x10\x00", b"\x10\x01"  # VP8 descriptors with the first byte of a frame


class Source:
    """A publisher that a test drives: 50 frames a second, one packet each, a key frame first."""

    def __init__(self, peer: LightPeer, first_seq: int = 65_500) -> None:
        self.peer = peer
        self.next_seq = first_seq
        self.transport_seq = 0
        self.rtx_seq = 0
        self.packets: dict[int, RtpPacket] = {}

    def send(self, *, lose: bool = False, key: bool = False) -> RtpPacket:
        """The next frame; `lose` keeps it from leaving."""
        seq = self.next_seq & 0xFFFF
        payload = (KEY if key else DELTA) + f"frame {self.next_seq}".encode()
        packet = RtpPacket(
            MEDIA_TYPE, seq, self.next_seq * 1800, SSRC, payload, marker=True, extensions=self._extensions()
        )
        self.next_seq += 1
        self.packets[seq] = packet
        if not lose:
            self.peer.send(packet)
        return packet

    def repair(self, seq: int) -> None:
        """Send a packet again, as RTX."""
        original = self.packets[seq]
        self.rtx_seq += 1
        payload = seq.to_bytes(2) + original.payload
        extensions = self._extensions()
        repair = RtpPacket(RTX_TYPE, self.rtx_seq, original.timestamp, SSRC + 1, payload, True, extensions=extensions)
        self.peer.send(repair)

    async def play(self, frames: int, *, lose: frozenset[int] = frozenset()) -> None:
        """Send in real time; the frames of these indices are lost on the way."""
        for index in range(frames):
            self.send(lose=index in lose, key=index == 0)
            await asyncio.sleep(0.02)

    def _extensions(self) -> tuple[HeaderExtension, ...]:
        self.transport_seq += 1
        number = (self.transport_seq & 0xFFFF).to_bytes(2)
        return HeaderExtension(MID_ID, b"0"), HeaderExtension(TRANSPORT_CC_ID, number)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server
        await assert_no_media_state_left(server)


@pytest_asyncio.fixture(loop_scope="module")
async def source(server: Server) -> AsyncIterator[Source]:
    async with open_light_peer(server, decrypts=True) as peer:
        await peer.publish_video("video", SSRC)
        source = Source(peer)
        source.send(key=True)
        yield source


@pytest_asyncio.fixture(loop_scope="module")
async def subscriber(server: Server, source: Source) -> AsyncIterator[LightPeer]:
    async with open_light_peer(server, decrypts=True) as peer:
        await peer.pull_video(source.peer.session_id, "video")
        yield peer


def heard(source: Source, kind: type) -> list:  # type: ignore[type-arg]
    return [packet for packet in source.peer.feedback if isinstance(packet, kind)]


def payloads(peer: LightPeer) -> list[bytes]:
    return [packet.payload for packet in peer.packets]


class TestUpstream:
    async def test_nack_2_a_lost_packet_is_asked_for_and_its_repair_takes_the_reserved_number(
        self, source: Source, subscriber: LightPeer
    ) -> None:
        await source.play(30, lose=frozenset({20}))
        lost = (source.next_seq - 10) & 0xFFFF
        await until("a NACK", lambda: bool(heard(source, Nack)))
        assert heard(source, Nack)[0].media_ssrc == SSRC
        assert {seq for nack in heard(source, Nack) for seq in nack.seqs} == {lost}
        source.repair(lost)
        await until("the repair", lambda: source.packets[lost].payload in payloads(subscriber))
        by_payload = {packet.payload: packet.seq for packet in subscriber.packets}
        before = by_payload[source.packets[(lost - 1) & 0xFFFF].payload]
        assert by_payload[source.packets[lost].payload] == (before + 1) & 0xFFFF
        count = len(heard(source, Nack))
        await asyncio.sleep(0.5)
        assert len(heard(source, Nack)) == count, "an arrival ends the asking"

    async def test_nack_2_without_repair_the_asking_ends_after_ten_times_and_a_key_frame_is_asked_for(
        self, source: Source, subscriber: LightPeer
    ) -> None:
        await source.play(25, lose=frozenset({20}))
        plis = len(heard(source, PictureLossIndication))
        await asyncio.sleep(2.5)
        asked = [nack for nack in heard(source, Nack) if nack.seqs]
        assert 3 <= len(asked) <= 10
        assert len(heard(source, PictureLossIndication)) > plis

    async def test_shld_3_all_subscribers_ask_and_the_publisher_hears_one_request(
        self, server: Server, source: Source
    ) -> None:
        async with AsyncExitStack() as stack:
            peers = []
            for _ in range(8):
                peer = await stack.enter_async_context(open_light_peer(server, decrypts=True))
                peers.append((peer, await peer.pull_video(source.peer.session_id, "video")))
            await source.play(10)
            source.send(lose=True)
            lost = (source.next_seq - 1) & 0xFFFF
            after = source.send().payload
            for peer, ssrc in peers:
                await until("the packet after", lambda p=peer: after in payloads(p))  # type: ignore[misc]
                peer.send_feedback(Nack(1, ssrc, ((peer.packets[-1].seq - 1) & 0xFFFF,)))
            await until("a NACK", lambda: bool(heard(source, Nack)))
            source.repair(lost)
            for peer, _ in peers:
                await until("the repair", lambda p=peer: source.packets[lost].payload in payloads(p))  # type: ignore[misc]
            await asyncio.sleep(0.1)
            asked = [seq for nack in heard(source, Nack) for seq in nack.seqs]
            assert set(asked) == {lost}
            assert len(asked) < len(peers), "on its own schedule, whoever asks"
            for peer, _ in peers:
                assert payloads(peer).count(source.packets[lost].payload) == 1

    async def test_kf_1_newcomers_cost_one_request_per_half_second_at_most(
        self, server: Server, source: Source
    ) -> None:
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(open_light_peer(server)) for _ in range(8)]
            before = len(heard(source, PictureLossIndication))
            begun = asyncio.get_running_loop().time()
            playing = asyncio.create_task(source.play(25))
            await asyncio.gather(*(peer.pull_video(source.peer.session_id, "video") for peer in peers))
            await playing
            requests = heard(source, PictureLossIndication)[before:]
            elapsed = asyncio.get_running_loop().time() - begun
            assert 1 <= len(requests) <= 1 + elapsed / 0.5
            assert {request.media_ssrc for request in requests} == {SSRC}

    async def test_tcc_1_feedback_lists_what_came_and_what_did_not(self, source: Source, subscriber: LightPeer) -> None:
        first = source.transport_seq
        await source.play(50, lose=frozenset({10, 30}))
        await asyncio.sleep(0.3)
        reports: list[TransportFeedback] = heard(source, TransportFeedback)
        arrived = {seq for report in reports for seq, _ in report.arrivals}
        expected = set(range(first + 1, source.transport_seq + 1)) - {first + 11, first + 31}
        assert expected <= arrived
        assert not {first + 11, first + 31} & arrived
        assert {first + 11, first + 31} <= {seq for report in reports for seq in report.lost}
        assert all(report.media_ssrc == SSRC for report in reports)
        counts = [report.feedback_count for report in reports]
        assert counts == [(counts[0] + index) & 0xFF for index in range(len(counts))]
        spacing = [report.arrival_us(ticks) for report in reports for _, ticks in report.arrivals]
        assert spacing == sorted(spacing)
        assert 0.5e6 < spacing[-1] - spacing[0] < 10e6

    async def test_shld_2_reports_state_the_loss_of_originals(self, source: Source, subscriber: LightPeer) -> None:
        begin = len(heard(source, ReceiverReport))

        async def repair_everything() -> None:
            answered = 0
            while True:
                for nack in heard(source, Nack)[answered:]:
                    answered += 1
                    for seq in nack.seqs:
                        source.repair(seq)
                await asyncio.sleep(0.01)

        repairing = asyncio.create_task(repair_everything())
        await source.play(150, lose=frozenset(range(5, 150, 10)))
        repairing.cancel()
        reports = [report for report in heard(source, ReceiverReport)[begin:] if report.reports]
        blocks = [block for report in reports for block in report.reports if block.ssrc == SSRC]
        assert blocks
        assert max(block.fraction_lost for block in blocks) == pytest.approx(26, abs=12)
        assert blocks[-1].cumulative_lost >= 5
        assert len({packet.payload for packet in subscriber.packets}) >= 140


DROPPED_MEDIA = {"malformed": 2, "payload_type": 1, "probe": 2, "unbound": 201, "authentication": 0, "replay": 0}


class TestHostile:
    """Rows 4 to 6, 9 to 13 of the robustness table: counted, dropped, nothing stalls; the log stays clean."""

    async def test_rx_1_malformed_media_is_dropped_by_cause_and_the_rest_goes_on(
        self, server: Server, source: Source, subscriber: LightPeer
    ) -> None:
        await source.play(5)
        earlier = await figures(server)

        def packet(payload: bytes, payload_type: int = MEDIA_TYPE, ssrc: int = SSRC) -> bytes:
            source.next_seq += 1
            return RtpPacket(payload_type, (source.next_seq - 1) & 0xFFFF, 1, ssrc, payload).serialize()

        def padded(payload: bytes) -> bytes:
            data = packet(payload)
            return bytes([data[0] | 0x20]) + data[1:]

        for bad in (
            padded(b"padding of zero\x00"),
            padded(b"padding beyond the payload\xff"),
            packet(b"unknown type", payload_type=13),
            packet(b"", payload_type=RTX_TYPE, ssrc=SSRC + 1),
            packet(b"\x00", payload_type=RTX_TYPE, ssrc=SSRC + 1),
            packet(b"of source 0", ssrc=0),
            packet(bytes(1300)),
        ):
            source.peer.send(bad)
        for count in range(200):  # a new source with each packet
            source.peer.send(RtpPacket(13, 1, 1, 0x10000 + count, b"x"))
        before = len(subscriber.packets)
        await source.play(20)
        await until("media", lambda: len(subscriber.packets) >= before + 20)
        later = await figures(server)
        moved = {reason: drops(later, reason) - drops(earlier, reason) for reason in DROPPED_MEDIA}
        assert moved == DROPPED_MEDIA

    async def test_broken_extensions_cost_no_packet(self, source: Source, subscriber: LightPeer) -> None:
        await source.play(5)
        for block in (b"\x1f\x00\x00\x00", b"\xf0\x00\x00\x00", b"\x02ab\x00", b"\xff\xff\xff\xff"):
            seq, timestamp = source.next_seq & 0xFFFF, source.next_seq * 1800
            head = RtpPacket(MEDIA_TYPE, seq, timestamp, SSRC, marker=True).serialize()
            data = bytes([head[0] | 0x10]) + head[1:] + b"\xbe\xde\x00\x01" + block + DELTA + b"kept " + block
            source.next_seq += 1
            source.peer.send(data)
            await until("the packet", lambda b=block: DELTA + b"kept " + b in payloads(subscriber))  # type: ignore[misc]

    async def test_a_jump_of_20000_resumes_at_the_next_key_frame_with_out_numbers_going_on(
        self, source: Source, subscriber: LightPeer
    ) -> None:
        """RX-2, row 6."""
        await source.play(20)
        await until("media", lambda: len(subscriber.packets) >= 15)
        last = subscriber.packets[-1].seq
        source.next_seq += 20_000
        await source.play(3)
        await source.play(20)
        await until("media after the jump", lambda: len(subscriber.packets) >= 35)
        assert 1 <= (subscriber.packets[-1].seq - last) & 0xFFFF <= 40
        assert {packet.ssrc for packet in subscriber.packets} == {subscriber.packets[0].ssrc}

    async def test_nacks_and_requests_by_the_thousand_reach_no_publisher(
        self, source: Source, subscriber: LightPeer
    ) -> None:
        """Rows 9, 10; SHLD-1, KF-4."""
        await source.play(30)
        await until("media", lambda: bool(subscriber.packets))
        ssrc = subscriber.packets[-1].ssrc
        before = len(heard(source, Nack))
        plis = len(heard(source, PictureLossIndication))
        for start in range(0, 0x10000, 500):
            subscriber.send_feedback(Nack(1, ssrc, tuple((start + n) & 0xFFFF for n in range(0, 4301, 17))))
            subscriber.send_feedback(Nack(1, ssrc + 5, (start,)))
            subscriber.send_feedback(PictureLossIndication(1, ssrc))
        await source.play(30)
        assert len(heard(source, Nack)) == before
        assert len(heard(source, PictureLossIndication)) - plis <= 2

    async def test_broken_rtcp_changes_nothing(self, server: Server, source: Source, subscriber: LightPeer) -> None:
        """Rows 11 to 13."""
        await source.play(5)
        earlier = await figures(server)
        for bad in (
            b"\x80\xc8\x00\x00" + bytes(4),
            b"\x9f\xc9\x00\x01" + bytes(4),
            b"\x81\xcd\xff\xff" + bytes(8),
            b"\x8f\xcd\x00\x05" + bytes(8) + b"\x00\x00\xff\xff" + bytes(8),
            b"\x8f\xce\x00\x05" + bytes(8) + b"REMB\xff\xff\xff\xff" + bytes(4),
            b"\x9f\xcb\x00\x01" + bytes(4),
            b"\x81\xca\x00\x02\x00\x00\x00\x01\x01\xffab",
            b"\x80\xcf\x00\x02" + bytes(4) + b"\x04\x00\xff\xff",
            b"\xa1\xce\x00\x02" + bytes(7) + b"\xff",
            b"\x84\xce\x00\x04" + bytes(8) + b"\xff\xff\xff\xff" + bytes(4),
        ):
            for peer in (source.peer, subscriber):
                peer.send_feedback(bad)
        before = len(subscriber.packets)
        await source.play(20)
        await until("media", lambda: len(subscriber.packets) >= before + 20)
        later = await figures(server)
        assert drops(later, "rtcp_malformed") - drops(earlier, "rtcp_malformed") >= 10
