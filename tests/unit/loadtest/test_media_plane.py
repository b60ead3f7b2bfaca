"""The media client's plane, seen in plain Python from the other end of its socket."""

from __future__ import annotations

import random
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pylibsrtp import Error, Policy, Session

from loadtest._media import srtp
from loadtest._media.plane import Plane
from loadtest.media.payloads import MAGIC, TAIL_BYTES, packetize_vp8, unpack_clock
from wire import rtcp, rtp
from wire.rtcp import Nack, PictureLossIndication, ReceiverReport, ReportBlock, RtcpPacket, SenderReport
from wire.rtp import HeaderExtension, RtpPacket, serialize_extensions

SSRC, RTX_SSRC, LOCAL = 1111, 2222, 77
KEY = b"\x10" + bytes(400)  # a VP8 frame header with P=0
DELTA = b"\x11" + bytes(2500)
FRAMES = [[(p.data, p.clock) for p in packetize_vp8(frame)] for frame in (KEY, DELTA, DELTA, KEY, DELTA, DELTA)]
KEYFRAMES = {0, 3}
LONG = [[(p.data, p.clock) for p in packetize_vp8(frame)] for frame in (KEY, *[DELTA] * 200)]
GCM = Policy.SRTP_PROFILE_AEAD_AES_128_GCM


class Far:
    """The other end of one peer of the plane."""

    def __init__(self, plane: Plane, *, transport_cc_id: int = 0) -> None:
        self.plane = plane
        self.near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in (self.near, self.far):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        keys = [secrets.token_bytes(28) for _ in range(2)]
        self.handles = [srtp.create_session(7, key, inbound=bool(i)) for i, key in enumerate(keys)]
        self.incoming = Session(Policy(keys[0], Policy.SSRC_ANY_INBOUND, srtp_profile=GCM))
        self.outgoing = Session(Policy(keys[1], Policy.SSRC_ANY_OUTBOUND, srtp_profile=GCM))
        host, port = self.far.getsockname()
        self.id = plane.add_peer(
            self.near.fileno(),
            host,
            port,
            channel=0,
            sending=self.handles[0],
            receiving=self.handles[1],
            ssrc=LOCAL,
            transport_cc_id=transport_cc_id,
        )
        self.raw: dict[tuple[int, int], bytes] = {}
        self.repeats: list[bytes] = []
        self.packets: list[RtpPacket] = []
        self.feedback: list[RtcpPacket] = []

    def send_rtcp(self, *packets: RtcpPacket) -> None:
        self.far.sendto(self.outgoing.protect_rtcp(rtcp.serialize(packets)), self.near.getsockname())

    def send_rtp(self, packet: RtpPacket) -> None:
        self.far.sendto(self.outgoing.protect(packet.serialize()), self.near.getsockname())

    def wait(self, condition: Callable[[], Any], within: float = 5.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, (len(self.packets), self.feedback)
            if select.select([self.far], [], [], 0.02)[0]:
                self.take(self.far.recv(2048))

    def take(self, data: bytes) -> None:
        if 192 <= data[1] <= 223:
            self.feedback += rtcp.parse(self.incoming.unprotect_rtcp(data))
            return
        name = int.from_bytes(data[8:12], "big"), int.from_bytes(data[2:4], "big")
        if name in self.raw:
            self.repeats.append(data)
            assert data == self.raw[name], "a resend without RTX must repeat the same bytes"
            return
        self.raw[name] = data
        self.packets.append(rtp.parse(self.incoming.unprotect(data)))

    def media(self, ssrc: int = SSRC) -> list[RtpPacket]:
        return [packet for packet in self.packets if packet.ssrc == ssrc]

    def close(self) -> None:
        self.plane.remove_peer(self.id)
        for handle in self.handles:
            srtp.destroy_session(handle)
        self.near.close()
        self.far.close()


@pytest.fixture
def upcalls() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair[0].settimeout(5)
    pair[1].setblocking(False)
    yield pair
    for sock in pair:
        sock.close()


@pytest.fixture
def plane(upcalls: tuple[socket.socket, socket.socket]) -> Iterator[Plane]:
    made = Plane(upcalls[1].fileno(), magic=MAGIC, tail_bytes=TAIL_BYTES)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    assert (made.figures()["peers"], made.figures()["timers"]) == (0, 0)
    made.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture
def far(plane: Plane) -> Iterator[Far]:
    made = Far(plane, transport_cc_id=2)
    yield made
    made.close()


def first_packets(far: Far) -> list[RtpPacket]:
    """Return the first packet of each frame that has begun to arrive."""
    packets = far.media()
    return [packet for i, packet in enumerate(packets) if i == 0 or packets[i - 1].marker]


def publish(far: Far, *, rtx: bool = True, long: bool = False) -> None:
    extensions = serialize_extensions([HeaderExtension(2, b"\0\0"), HeaderExtension(1, b"v")]), 5
    far.plane.add_outgoing(
        far.id,
        far.plane.add_clip(LONG if long else FRAMES, {0} if long else KEYFRAMES, 30, 90_000, True),
        ssrc=SSRC,
        payload_type=96,
        rtx_ssrc=RTX_SSRC if rtx else 0,
        rtx_payload_type=97,
        extensions=extensions,
        rtx_extensions=extensions,
        first_seq=65_530,
        timestamp=2**32 - 9000,
        frame=0,
        delay_us=0,
    )
    far.plane.start_peer(far.id)


class TestSending:
    def test_a_clip_is_sent_in_order_for_ever_with_a_clock_that_goes_on(self, far: Far) -> None:
        publish(far)
        far.wait(lambda: len(far.media()) > 40)
        packets = far.media()
        assert [p.seq for p in packets] == [(65_530 + i) & 0xFFFF for i in range(len(packets))]
        numbers = [int.from_bytes(p.extension(2) or b"", "big") for p in packets]
        assert numbers == list(range(len(packets)))
        assert {p.extension(1) for p in packets} == {b"v"}
        timestamps = list(dict.fromkeys(p.timestamp for p in packets))
        assert timestamps == [(2**32 - 9000 + 3000 * i) & 0xFFFFFFFF for i in range(len(timestamps))]
        pictures = list(dict.fromkeys(p.payload[2:4] for p in packets))
        assert pictures == [(0x8001 + i).to_bytes(2, "big") for i in range(len(pictures))]
        sizes = [len(frame) for frame in FRAMES]
        ends = [i for i, p in enumerate(packets) if p.marker]
        assert [b - a for a, b in zip([-1, *ends], ends, strict=False)] == (sizes * 9)[: len(ends)]

    def test_the_last_packet_of_a_frame_has_the_time_it_left(self, far: Far) -> None:
        publish(far)
        far.wait(lambda: far.media() and far.media()[-1].marker)
        sent_at = unpack_clock(far.media()[-1].payload)
        assert sent_at is not None
        assert 0 <= time.monotonic_ns() // 1000 - sent_at < 5_000_000

    def test_a_nack_is_answered_by_rtx_with_the_same_payload(self, far: Far) -> None:
        publish(far)
        far.wait(lambda: len(far.media()) > 10)
        lost = far.media()[3], far.media()[7]
        far.send_rtcp(Nack(1, SSRC, tuple(p.seq for p in lost)))
        far.wait(lambda: len(far.media(RTX_SSRC)) == 2)
        for original, repair in zip(lost, far.media(RTX_SSRC), strict=True):
            assert repair.payload == original.seq.to_bytes(2, "big") + original.payload
            assert (repair.timestamp, repair.marker, repair.payload_type) == (original.timestamp, original.marker, 97)
        (figures,) = far.plane.outgoing_figures(far.id)
        assert (figures["nacks_received"], figures["resent"]) == (2, 2)

    def test_without_rtx_the_same_bytes_leave_again(self, far: Far) -> None:
        publish(far, rtx=False)
        far.wait(lambda: len(far.media()) > 10)
        far.send_rtcp(Nack(1, SSRC, (far.media()[5].seq,)))
        far.wait(lambda: far.repeats)

    def test_numbers_never_sent_are_not_resent(self, far: Far) -> None:
        publish(far)
        far.wait(lambda: len(far.media()) > 5)
        far.send_rtcp(Nack(1, SSRC, (30_000, 60_000)), Nack(1, 9999, (1,)))
        far.wait(lambda: far.plane.outgoing_figures(far.id)[0]["nacks_received"] == 2)
        assert far.plane.outgoing_figures(far.id)[0]["resent"] == 0

    def test_a_pli_makes_the_next_frame_a_key_frame(self, far: Far) -> None:
        publish(far, long=True)
        far.wait(lambda: len(far.media()) == 2)  # in the second frame
        far.send_rtcp(PictureLossIndication(1, SSRC))
        far.wait(lambda: far.plane.outgoing_figures(far.id)[0]["plis_received"] == 1)
        begun = len(first_packets(far))
        far.wait(lambda: len(first_packets(far)) > begun)
        keys = [i for i, p in enumerate(first_packets(far)) if not p.payload[4] & 1]
        assert keys[0] == 0
        assert 1 <= keys[1] <= begun < len(LONG)

    def test_reports_go_out_each_second_and_come_back_as_round_trips(self, far: Far) -> None:
        publish(far)
        far.wait(lambda: any(isinstance(p, SenderReport) for p in far.feedback))
        report = next(p for p in far.feedback if isinstance(p, SenderReport))
        assert report.ssrc == SSRC
        block = ReportBlock(SSRC, 10, -3, 70_000, last_sr=report.ntp >> 16 & 0xFFFFFFFF, delay_since_last_sr=0)
        far.send_rtcp(ReceiverReport(1, (block,)))
        far.wait(lambda: far.plane.outgoing_figures(far.id)[0]["reports_received"] == 1)
        figures = far.plane.outgoing_figures(far.id)[0]
        assert figures["reported_lost"] == -3
        assert sum(figures["round_trip"]["counts"].values()) == 1


class TestReceiving:
    def packet(self, seq: int, payload: bytes, **changes: Any) -> RtpPacket:
        values = {"payload_type": 96, "seq": seq, "timestamp": 3000 * seq, "ssrc": SSRC, "marker": True}
        return RtpPacket(**values | {"payload": payload} | changes)

    @pytest.fixture
    def receiving(self, far: Far) -> Far:
        far.plane.add_incoming(
            far.id, ssrc=SSRC, rtx_ssrc=RTX_SSRC, codec=1, clock_rate=90_000, asks=True, hand_up=False
        )
        far.plane.start_peer(far.id)
        return far

    def test_a_hole_is_asked_for_and_rtx_fills_it(self, receiving: Far) -> None:
        payload = b"\x10\x11delta"
        for seq in (100, 101, 103):
            receiving.send_rtp(self.packet(seq, b"\x10\x10key" if seq == 100 else payload))
        receiving.wait(lambda: any(isinstance(p, Nack) for p in receiving.feedback))
        nack = next(p for p in receiving.feedback if isinstance(p, Nack))
        assert (nack.media_ssrc, tuple(nack.seqs)) == (SSRC, (102,))
        repair = self.packet(5, (102).to_bytes(2, "big") + payload, ssrc=RTX_SSRC, payload_type=97)
        receiving.send_rtp(repair)
        receiving.wait(lambda: receiving.plane.incoming_figures(receiving.id)[0]["recovered"] == 1)
        figures = receiving.plane.incoming_figures(receiving.id)[0]
        assert (figures["expected"], figures["packets"], figures["frames"]) == (4, 4, 4)
        assert (figures["lost_before_repair"], figures["lost_after_repair"]) == (1, 0)

    def test_reports_and_transport_wide_feedback_say_what_arrived(self, receiving: Far) -> None:
        for seq in (100, 101, 103):
            number = HeaderExtension(2, seq.to_bytes(2, "big"))
            receiving.send_rtp(self.packet(seq, b"\x10\x10key", extensions=(number,)))
        receiving.wait(lambda: any(isinstance(p, ReceiverReport) and p.reports for p in receiving.feedback))
        (block,) = next(p.reports for p in receiving.feedback if isinstance(p, ReceiverReport) and p.reports)
        assert (block.ssrc, block.cumulative_lost, block.highest_seq) == (SSRC, 1, 103)
        arrivals = [seq for p in receiving.feedback if hasattr(p, "arrivals") for seq, _ in p.arrivals]
        assert arrivals == [100, 101, 103]

    def test_anything_from_the_network_is_survived(self, receiving: Far) -> None:
        """Noise of every first byte; and, authenticated, RTP and RTCP cut and bent at random."""
        rng = random.Random(4)
        near = receiving.near.getsockname()
        good = self.packet(100, b"\x10\x10key", extensions=(HeaderExtension(2, b"\0\1"),)).serialize()
        report = rtcp.serialize([ReceiverReport(1, ()), Nack(1, SSRC, (1, 2, 3)), PictureLossIndication(1, SSRC)])
        for first in range(256):
            receiving.far.sendto(bytes([first]) + rng.randbytes(rng.randint(0, 80)), near)
        for number in range(1500):
            if number % 50 == 0:
                time.sleep(
                    0.005
                )  # so that the socket's buffer does not overflow while the plane's thread waits its turn
            data = bytearray(good if rng.random() < 0.5 else report)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            del data[rng.randint(12, len(data)) :]
            try:
                protect = receiving.outgoing.protect_rtcp if 192 <= data[1] <= 223 else receiving.outgoing.protect
                protected = protect(bytes(data))
            except Error:
                continue
            receiving.far.sendto(protected, near)
        receiving.send_rtp(self.packet(40_000, b"\x10\x10key", ssrc=SSRC))
        assert receiving.plane.peer_figures(receiving.id)["received"] >= 0
        receiving.wait(lambda: receiving.plane.peer_figures(receiving.id)["received"] > 500)  # loss is no matter here


class TestControl:
    def test_stun_and_dtls_are_handed_up_with_their_peer(
        self, plane: Plane, far: Far, upcalls: tuple[socket.socket, socket.socket]
    ) -> None:
        plane.start_peer(far.id)
        for data in (b"\0\1" + bytes(18), bytes([22]) + bytes(20)):
            far.far.sendto(data, far.near.getsockname())
            assert upcalls[0].recv(4096) == (0).to_bytes(4, "big") + far.id.to_bytes(4, "big") + data

    def test_misuse_is_named(self, plane: Plane, far: Far) -> None:
        with pytest.raises(ValueError, match="no peer 99"):
            plane.remove_peer(99)
        with pytest.raises(ValueError, match="payload of 5000 bytes"):
            plane.add_clip([[(bytes(5000), False)]], {0}, 30, 90_000, True)
        with pytest.raises(ValueError, match="no frame 0 of clip 7"):
            plane.add_outgoing(
                far.id,
                7,
                ssrc=1,
                payload_type=96,
                rtx_ssrc=0,
                rtx_payload_type=0,
                extensions=(b"", -1),
                rtx_extensions=(b"", -1),
                first_seq=1,
                timestamp=0,
                frame=0,
                delay_us=0,
            )
        with pytest.raises(ValueError, match="not an address"):
            plane.add_peer(0, "nowhere", 1, channel=0, sending=0, receiving=0, ssrc=1, transport_cc_id=0)
        with pytest.raises(ValueError, match="a tail of 3 bytes"):
            Plane(0, magic=MAGIC, tail_bytes=3)
