"""Section 17 of the media rules: each bad input moves its counter, and media goes on."""

from __future__ import annotations

import random
import secrets
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfu._dataplane import plane as dataplane
from sfu._dataplane.plane import Plane
from tests.support.srtp_peer import (
    CM_80,
    EXTENSIONS,
    VIDEO,
    Rtp,
    SrtpPeer,
    VideoSource,
    binding_request,
    empty_rr,
    nack,
    publish_video,
    pull_video,
    sender_report,
)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(["127.0.0.1"], 0, stun_per_address_per_s=50)
    plane.start()
    yield plane
    plane.close()


class Scene:
    """A publisher, a subscriber, and the promise that media still goes through afterwards."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.publisher, self.subscriber = SrtpPeer(plane, profile=CM_80), SrtpPeer(plane)
        self.track = publish_video(self.publisher, rtx=1112)
        self.forwarder = pull_video(self.subscriber, self.track, rtx=7778, extensions={dataplane.EXT_MID: 1})
        self.source = VideoSource(self.publisher, 1111)
        self.source.send(key=True)
        self.subscriber.wait(lambda: len(self.subscriber.rtp) == 1)

    def expect_drops(self, **reasons: int) -> None:
        wanted = {f"drop_{reason}": count for reason, count in reasons.items()}
        self.subscriber.wait(lambda: self.subscriber.drops() == wanted, timeout=2)
        got = len(self.subscriber.rtp)
        self.source.send(key=True)
        self.subscriber.wait(lambda: len(self.subscriber.rtp) == got + 1)
        assert self.subscriber.drops() == wanted

    def protect(self, packet: bytes) -> bytes:
        return self.publisher.outgoing.protect(packet)

    def header(self, first: int = 0x80, payload_type: int = 96, ssrc: int = 1111) -> bytes:
        """The fixed header of the source's next packet."""
        self.source.seq += 1
        return header(first, payload_type, self.source.seq - 1, ssrc)


@pytest.fixture
def scene(plane: Plane) -> Iterator[Scene]:
    scene = Scene(plane)
    yield scene
    scene.publisher.close()
    scene.subscriber.close()


def header(first: int = 0x80, payload_type: int = 96, seq: int = 5000, ssrc: int = 1111) -> bytes:
    return struct.pack("!BBHII", first, payload_type, seq, 1, ssrc)


class TestDemultiplexing:
    def test_each_first_byte_reaches_its_parser_or_one_counter(self, scene: Scene) -> None:
        """DMX-1: RFC 7983 ranges."""
        for first in range(256):
            if 128 <= first <= 191:
                continue
            body = struct.pack("!I", 0x2112A442).rjust(7, b"\0") + bytes(20) if first <= 3 else bytes(30)
            scene.publisher.send_raw(bytes([first]) + body)
        stats: Callable[[], dict[str, int]] = scene.plane.stats
        scene.subscriber.wait(lambda: stats()["dtls_in"] == 44)
        assert stats()["stun_in"] == 4 + 2  # and the two checks by which the peers were learnt
        scene.expect_drops(first_byte=256 - 64 - 44 - 4)

    def test_too_short_for_their_kind(self, scene: Scene) -> None:
        for data in (b"\x80", b"\x80\x60" + bytes(9), b"\x80\xc8" + bytes(5), bytes([22]) * 12, b"\x00"):
            scene.publisher.send_raw(data)
        scene.publisher.send_raw(b"\x00\x01" + bytes(16))  # no cookie
        scene.expect_drops(short=5, first_byte=1)

    def test_strangers_get_stun_up_to_their_budget_and_nothing_else(self, scene: Scene) -> None:
        scene.plane.drain(10_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(300):
                stranger.sendto(binding_request(), scene.publisher.target)
            for data in (bytes([22]) * 40, header() + bytes(40), b"\x80\xc8" + bytes(40)):
                stranger.sendto(data, scene.publisher.target)
            scene.subscriber.wait(lambda: scene.subscriber.drops().get("drop_stranger") == 3)
            for _ in range(100):  # an owned tuple is not held to a stranger's budget, though behind the same address
                scene.publisher.send_raw(binding_request())
            owned: list[object] = []
            strange: list[object] = []

            def drained() -> bool:
                for upcall in scene.plane.drain():
                    (owned if upcall[1] else strange).append(upcall)
                return len(owned) == 100

            scene.subscriber.wait(drained)
            assert 30 <= len(strange) <= 100
            assert scene.subscriber.drops()["drop_stun_budget"] == 300 - len(strange)


class TestMalformedRtp:
    """Row 4, RX-1."""

    @pytest.mark.parametrize(
        ("first", "rest"),
        [
            pytest.param(0x8F, bytes(8), id="CC 15 in 20 bytes"),
            pytest.param(0x90, b"\xbe\xde\xff\xff" + bytes(20), id="extension of 65535 words"),
            pytest.param(0x90, b"\xbe", id="extension header cut"),
            pytest.param(0xA0, bytes(9) + b"\x00", id="padding 0"),
            pytest.param(0xA0, bytes(9) + b"\x0b", id="padding above payload"),
        ],
    )
    def test_broken_headers_and_padding(self, scene: Scene, first: int, rest: bytes) -> None:
        scene.publisher.send_raw(protect_anyway(scene, scene.header(first) + rest))
        scene.expect_drops(malformed=1)

    def test_nothing_but_a_header(self, scene: Scene) -> None:
        scene.publisher.send_raw(scene.protect(scene.header()))
        scene.expect_drops(empty=1)

    def test_a_header_without_room_for_a_tag(self, scene: Scene) -> None:
        scene.publisher.send_raw(header())
        scene.subscriber.wait(lambda: sum(scene.subscriber.drops().values()) == 1)
        assert set(scene.subscriber.drops()) <= {"drop_authentication", "drop_malformed"}

    def test_unknown_payload_type(self, scene: Scene) -> None:
        scene.publisher.send_raw(scene.protect(scene.header(payload_type=13) + bytes(30)))
        scene.expect_drops(payload_type=1)

    def test_the_largest_datagram_there_is(self, scene: Scene) -> None:
        scene.publisher.send_raw(header() + bytes(65_507 - 12))
        scene.expect_drops(oversize=1)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(min_size=1, max_size=200), st.integers(0, 3))
    def test_noise_of_any_kind_stops_nothing(self, scene: Scene, noise: bytes, kind: int) -> None:
        if kind == 0:
            scene.publisher.send_raw(noise)
        elif kind == 1:
            first = 0x80 | noise[0] & 0x3F
            scene.publisher.send_raw(protect_anyway(scene, header(first, ssrc=secrets.randbits(32)) + noise))
        elif kind == 2:
            scene.publisher.send_rtcp(empty_rr(5) + noise[: len(noise) // 4 * 4])
        else:
            scene.subscriber.send_rtcp(empty_rr(5) + bytes([0x80 | noise[0] & 31, 200 + noise[0] % 8]) + noise)
        got = len(scene.subscriber.rtp)
        scene.source.send(key=True)
        scene.subscriber.wait(lambda: len(scene.subscriber.rtp) > got)


class TestHeaderExtensions:
    """Row 5: the element is ignored, the packet is not."""

    @pytest.mark.parametrize(
        "block",
        [
            pytest.param(b"\xbe\xde\x00\x01\x00\x00\x00\x00", id="id 0 only"),
            pytest.param(b"\xbe\xde\x00\x01\xf0\x01\x02\x03", id="id 15"),
            pytest.param(b"\xbe\xde\x00\x01\x5f\x01\x02\x03", id="length past the block"),
            pytest.param(b"\xbe\xde\x00\x01\x60\x01\x60\x02", id="repeated id"),
            pytest.param(b"\x10\x00\x00\x01\x06\x01\x01\x00", id="two-byte form"),
            pytest.param(b"\x12\x34\x00\x01\x06\x01\x01\x00", id="unknown profile"),
        ],
    )
    def test_the_packet_goes_on(self, scene: Scene, block: bytes) -> None:
        scene.source.seq += 1
        packet = header(0x90, seq=scene.source.seq - 1) + block + b"\x10\x00payload"
        scene.publisher.send_raw(scene.protect(packet))
        scene.subscriber.wait(lambda: len(scene.subscriber.rtp) == 2)
        assert scene.subscriber.rtp[1].payload == b"\x10\x00payload"
        assert scene.subscriber.rtp[1].extensions[1] == b"v"


class TestNumbers:
    """Rows 6 and 7."""

    def test_a_jump_resyncs_with_its_second_packet_and_continues_downstream(self, scene: Scene) -> None:
        """RX-2"""
        scene.source.seq += 20_000
        for _ in range(3):
            scene.source.send(key=True)
        scene.subscriber.wait(lambda: len(scene.subscriber.rtp) == 3)
        numbers = [p.seq for p in scene.subscriber.rtp]
        assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
        scene.expect_drops(jump=1)

    def test_random_numbers_never_repeat_a_number_downstream(self, scene: Scene) -> None:
        generator = random.Random(5)
        seq = scene.source.seq
        for _ in range(500):  # steps that SRTP itself can still follow
            seq += generator.choice((generator.randrange(1, 4), generator.randrange(-900, 20_000)))
            scene.publisher.send(Rtp(96, seq, generator.randrange(1 << 32), 1111, b"\x10\x00abc", True))
        scene.subscriber.settle(0.3)
        numbers = [p.seq for p in scene.subscriber.rtp]
        assert len(numbers) == len(set(numbers))

    def test_frozen_backward_and_leaping_timestamps_travel_as_they_are(self, scene: Scene) -> None:
        base = scene.source.timestamp
        for step in (0, 0, -90_000, 1 << 31, 5):
            scene.source.timestamp = base + step - 3000
            scene.source.send(key=True)
        scene.subscriber.wait(lambda: len(scene.subscriber.rtp) == 6)
        offsets = {
            (p.timestamp - s.timestamp) % 2**32 for p, s in zip(scene.subscriber.rtp, scene.source.sent, strict=True)
        }
        assert len(offsets) == 1

    def test_our_own_out_ssrc_and_zero_are_just_the_peers_numbers(self, scene: Scene) -> None:
        for ssrc in (7777, 7778, 0, 0xFFFFFFFF):
            scene.publisher.send(Rtp(13, 1, 1, ssrc, b"probe"))
        scene.expect_drops(unbound=4)

    def test_the_same_ssrc_from_two_publishers_are_two_streams(self, scene: Scene) -> None:
        with SrtpPeer(scene.plane) as other:
            pull_video(scene.subscriber, publish_video(other, 1111), 8888)
            VideoSource(other, 1111).send(key=True)
            scene.subscriber.wait(lambda: {p.ssrc for p in scene.subscriber.rtp} == {7777, 8888})

    def test_one_ssrc_for_media_and_rtx_stays_media(self, plane: Plane) -> None:
        with SrtpPeer(plane) as publisher, SrtpPeer(plane) as subscriber:
            track = plane.add_track(
                publisher.transport, mid="0", video=True, codecs=VIDEO, extensions=EXTENSIONS, ssrcs=[(5, 5)]
            )
            pull_video(subscriber, track)
            VideoSource(publisher, 5).send(key=True)
            subscriber.wait(lambda: subscriber.rtp)


class TestSrtp:
    """Row 8."""

    def test_wrong_keys_are_counted_and_make_nothing(self, scene: Scene) -> None:
        with SrtpPeer(scene.plane, profile=CM_80, keys=False) as impostor:
            impostor.socket, scene.publisher.socket = scene.publisher.socket, impostor.socket
            for frame in range(20):
                impostor.send(*VideoSource(impostor, 2000 + frame).frame())
            impostor.socket, scene.publisher.socket = scene.publisher.socket, impostor.socket
        scene.expect_drops(authentication=20)
        assert scene.plane.transport_stats(scene.publisher.transport)["ssrcs"] == 2

    def test_a_broken_tag_on_rtcp(self, scene: Scene) -> None:
        data = bytearray(scene.subscriber.outgoing.protect_rtcp(nack(1, 7777, 1)))
        data[10] ^= 0x40
        scene.subscriber.send_raw(bytes(data))
        scene.expect_drops(authentication=1)

    def test_an_index_that_goes_back_on_rtcp(self, scene: Scene) -> None:
        data = scene.subscriber.outgoing.protect_rtcp(empty_rr(1))
        scene.subscriber.send_raw(data)
        scene.subscriber.send_raw(data)
        scene.expect_drops(replay=1)


class TestMalformedRtcp:
    """Row 11: what is whole is used, the rest is dropped."""

    @pytest.mark.parametrize(
        "tail",
        [
            pytest.param(b"\x81\xce\x00\x09" + bytes(8), id="length past the end"),
            pytest.param(b"\x81\xcd\x00\x00", id="feedback without SSRCs"),
            pytest.param(b"\x9f\xc9\x00\x01" + bytes(4), id="31 blocks promised, none there"),
            pytest.param(b"\x80\xc8\x00\x03" + bytes(12), id="sender report cut"),
            pytest.param(b"\x41\xc8\x00\x00", id="version 1"),
            pytest.param(b"\xa1\xcd\x00\x02" + bytes(7) + b"\x0d", id="padding past the start"),
        ],
    )
    def test_the_whole_part_counts(self, scene: Scene, tail: bytes) -> None:
        scene.subscriber.send_rtcp(nack(1, 7777, 9) + tail)
        scene.subscriber.wait(lambda: scene.plane.forwarder_stats(scene.forwarder)["nacks_in"] == 1)
        scene.expect_drops(rtcp_malformed=1)

    def test_five_hundred_names_and_unknown_types_are_skipped(self, scene: Scene) -> None:
        names = b"".join(struct.pack("!IBB", n, 1, 1) + b"x\0" for n in range(31)) * 3
        sdes = struct.pack("!BBH", 0x9F, 202, len(names) // 4) + names
        unknown = struct.pack("!BBHI", 0x80, 210, 1, 5)
        scene.subscriber.send_rtcp(empty_rr(1) + sdes + unknown + nack(1, 7777, 9))
        scene.subscriber.wait(lambda: scene.plane.forwarder_stats(scene.forwarder)["nacks_in"] == 1)
        scene.expect_drops()

    def test_sender_reports_for_what_is_not_theirs_change_nothing(self, scene: Scene) -> None:
        scene.subscriber.send_rtcp(sender_report(1111, 1 << 60, 5) + sender_report(7777, 1 << 60, 5))
        scene.expect_drops()


def protect_anyway(scene: Scene, packet: bytes) -> bytes:
    """SRTP around a packet whose header libsrtp may refuse: then around the bytes as they are, tag included."""
    from pylibsrtp import Error

    try:
        return scene.protect(packet)
    except Error:
        return packet + bytes(10)
