"""One forwarded packet, and where key frames start, in both implementations."""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfu._dataplane import plane
from sfu._reference import Codec, Extension
from tests.support.dual import CORES, on_both_cores
from wire import rtp
from wire.rtp import HeaderExtension, RtpPacket

SOURCE = RtpPacket(
    payload_type=96,
    seq=10,
    timestamp=1000,
    ssrc=0xAAAA,
    payload=b"the payload",
    marker=True,
    csrcs=(7, 8),
    extensions=(
        HeaderExtension(1, b"\x55"),
        HeaderExtension(3, b"publisher-mid"),
        HeaderExtension(5, b"\x12\x34"),
        HeaderExtension(6, b"h"),
        HeaderExtension(9, b"\x01"),
    ),
)
EXTENSIONS_IN = {
    1: Extension.AUDIO_LEVEL,
    3: Extension.MID,
    5: Extension.TRANSPORT_CC,
    6: Extension.RID,
    9: Extension.VIDEO_ORIENTATION,
}
EXTENSIONS_OUT = {Extension.AUDIO_LEVEL: 4, Extension.MID: 2, Extension.TRANSPORT_CC: 9, Extension.ABS_SEND_TIME: 11}


def rewrite(core: ModuleType, packet: bytes, **changes: Any) -> bytes | None:
    arguments: dict[str, Any] = {
        "payload_type": 102,
        "seq": 500,
        "timestamp": 77,
        "ssrc": 0xBBBB,
        "extensions_in": EXTENSIONS_IN,
        "extensions_out": EXTENSIONS_OUT,
        "mid": b"sub",
        "transport_seq": 0xBEEF,
    }
    result: bytes | None = core.rewrite(packet, **(arguments | changes))
    return result


def forwarded(core: ModuleType, source: RtpPacket = SOURCE, **changes: Any) -> RtpPacket:
    packet = rewrite(core, source.serialize(), **changes)
    assert packet is not None
    return rtp.parse(packet)


@on_both_cores
class TestHeader:
    """FWD-1, RX-5."""

    def test_the_subscribers_fields_replace_the_publishers(self, core: ModuleType) -> None:
        out = forwarded(core)
        assert (out.payload_type, out.seq, out.timestamp, out.ssrc) == (102, 500, 77, 0xBBBB)

    def test_payload_marker_and_csrcs_are_kept(self, core: ModuleType) -> None:
        out = forwarded(core)
        assert (out.payload, out.marker, out.csrcs) == (SOURCE.payload, True, (7, 8))

    @pytest.mark.parametrize("marker", [0, 1])
    def test_the_marker_can_be_moved(self, core: ModuleType, marker: int) -> None:
        assert forwarded(core, marker=marker).marker is bool(marker)

    def test_padding_travels_with_the_payload(self, core: ModuleType) -> None:
        packet = bytearray(SOURCE.serialize() + b"xyz\x04")
        packet[0] |= 0x20
        out = rewrite(core, bytes(packet))
        assert out is not None
        assert out.endswith(b"the payloadxyz\x04")
        assert rtp.parse(out).padding_bytes == 4

    def test_a_packet_of_padding_alone_is_a_packet(self, core: ModuleType) -> None:
        out = forwarded(core, RtpPacket(96, 1, 2, 3, padding_bytes=255))
        assert (out.payload, out.padding_bytes) == (b"", 255)

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            SOURCE.serialize()[:11],
            b"\x40" + SOURCE.serialize()[1:],
            b"\x8f" + bytes(19),
            b"\x90" + bytes(11) + b"\xbe\xde\xff\xff" + bytes(20),
            b"\xa0" + bytes(12),
            b"\xa0" + bytes(11) + b"\x02",
        ],
    )
    def test_rx_1_what_is_not_rtp_is_refused(self, core: ModuleType, packet: bytes) -> None:
        assert rewrite(core, packet) is None


@on_both_cores
class TestExtensions:
    """EXT-1, RX-4."""

    def test_ext_1_each_negotiated_value_sits_under_the_subscribers_id_and_none_other_appears(
        self, core: ModuleType
    ) -> None:
        out = forwarded(core, send_time=0x123456)
        assert out.extensions == (
            HeaderExtension(2, b"sub"),
            HeaderExtension(9, b"\xbe\xef"),
            HeaderExtension(11, b"\x12\x34\x56"),
            HeaderExtension(4, b"\x55"),
        )

    def test_without_anything_negotiated_there_is_no_extension(self, core: ModuleType) -> None:
        out = rewrite(core, SOURCE.serialize(), extensions_out={})
        assert out is not None
        assert out[0] & 0x10 == 0
        assert rtp.parse(out).payload == SOURCE.payload

    def test_values_not_given_are_left_out(self, core: ModuleType) -> None:
        assert forwarded(core, transport_seq=-1, mid=b"").extensions == (HeaderExtension(4, b"\x55"),)

    @pytest.mark.parametrize("kind", [k for k in Extension if k >= Extension.AUDIO_LEVEL])
    def test_what_is_copied_is_copied_unchanged(self, core: ModuleType, kind: Extension) -> None:
        source = RtpPacket(96, 1, 2, 3, extensions=(HeaderExtension(13, b"value"),))
        out = forwarded(core, source, extensions_in={13: kind}, extensions_out={kind: 7}, transport_seq=-1)
        assert out.extensions == (HeaderExtension(7, b"value"),)

    @pytest.mark.parametrize(
        "kind",
        [Extension.MID, Extension.RID, Extension.REPAIRED_RID, Extension.TRANSPORT_CC, Extension.ABS_SEND_TIME],
    )
    def test_what_belongs_to_the_hop_is_not_passed_on(self, core: ModuleType, kind: Extension) -> None:
        source = RtpPacket(96, 1, 2, 3, extensions=(HeaderExtension(13, b"value"),))
        out = forwarded(core, source, extensions_in={13: kind}, extensions_out={kind: 7}, transport_seq=-1, mid=b"")
        assert out.extensions == ()

    @pytest.mark.parametrize("element", [HeaderExtension(1, bytes(17)), HeaderExtension(1, b"")])
    def test_an_element_that_one_byte_heads_cannot_hold_makes_all_two_byte(
        self, core: ModuleType, element: HeaderExtension
    ) -> None:
        source = RtpPacket(96, 1, 2, 3, extensions=(element,))
        out = rewrite(core, source.serialize())
        assert out is not None
        assert out[12:14] == b"\x10\x00"
        assert rtp.parse(out).extension(4) == element.data

    def test_an_id_above_14_makes_all_two_byte(self, core: ModuleType) -> None:
        out = forwarded(core, extensions_out=EXTENSIONS_OUT | {Extension.AUDIO_LEVEL: 200})
        assert (out.extension(200), out.extension(2)) == (b"\x55", b"sub")

    def test_two_byte_elements_of_the_publisher_become_one_byte_where_they_fit(self, core: ModuleType) -> None:
        source = RtpPacket(96, 1, 2, 3, extensions=(HeaderExtension(20, b"\x55"),))
        out = rewrite(core, source.serialize(), extensions_in={20: Extension.AUDIO_LEVEL})
        assert out is not None
        assert out[12:14] == b"\xbe\xde"
        assert rtp.parse(out).extension(4) == b"\x55"

    @pytest.mark.parametrize(
        ("block", "copied"),
        [
            pytest.param(b"\x10a\x10b\x00\x00\x00\x00", b"a", id="repeated"),
            pytest.param(b"\x10a\xf0\x90\x20b\x00\x00", b"a", id="id 15 after it"),
            pytest.param(b"\xf0\x00\x10a\x00\x00\x00\x00", None, id="id 15 before it"),
            pytest.param(b"\x02xyz\x10a\x00\x00", None, id="id 0 with a length before it"),
            pytest.param(b"\x10a\x2fb\x00\x00\x00\x00", b"a", id="another one past the block"),
            pytest.param(b"\x00\x00\x00\x00\x00\x00\x1fa", None, id="itself past the block"),
        ],
    )
    def test_rx_4_a_bad_element_costs_itself_and_what_follows(
        self, core: ModuleType, block: bytes, copied: bytes | None
    ) -> None:
        packet = b"\x90\x60" + bytes(10) + b"\xbe\xde\x00\x02" + block + b"payload"
        out = rewrite(core, packet)
        assert out is not None
        assert rtp.parse(out).extension(4) == copied
        assert rtp.parse(out).payload == b"payload"


@on_both_cores
class TestRtx:
    """RTX-2, RFC 4588 §4."""

    def test_the_original_number_goes_before_the_payload(self, core: ModuleType) -> None:
        out = forwarded(core, payload_type=97, seq=9, ssrc=0xCCCC, rtx_osn=500)
        assert out.payload == b"\x01\xf4the payload"
        assert (out.payload_type, out.seq, out.ssrc, out.timestamp, out.marker) == (97, 9, 0xCCCC, 77, True)

    def test_mid_and_transport_number_are_fresh(self, core: ModuleType) -> None:
        out = forwarded(core, rtx_osn=500, transport_seq=3)
        assert (out.extension(2), out.extension(9)) == (b"sub", b"\x00\x03")

    def test_padding_is_removed(self, core: ModuleType) -> None:
        out = forwarded(core, RtpPacket(96, 1, 2, 3, payload=b"x", padding_bytes=9), rtx_osn=65_535)
        assert (out.payload, out.padding_bytes) == (b"\xff\xffx", 0)


elements = st.lists(
    st.builds(HeaderExtension, st.integers(1, 14), st.binary(min_size=1, max_size=16))
    | st.builds(HeaderExtension, st.integers(1, 40), st.binary(max_size=40)),
    max_size=10,
).map(tuple)
valid = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    seq=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(0, 0xFFFFFFFF),
    payload=st.binary(max_size=40),
    marker=st.booleans(),
    csrcs=st.lists(st.integers(0, 0xFFFFFFFF), max_size=3).map(tuple),
    extensions=elements,
    padding_bytes=st.sampled_from([0, 0, 1, 4, 255]),
).map(RtpPacket.serialize)
bad_blocks = st.builds(
    lambda profile, block, rest: b"\x90" + bytes(11) + profile + (len(block) // 4).to_bytes(2) + block + rest,
    st.sampled_from([b"\xbe\xde", b"\x10\x00", b"\x10\x05", b"\x20\x00"]),
    st.binary(max_size=60).map(lambda block: block[: len(block) // 4 * 4]),
    st.binary(max_size=20),
)
kinds = st.permutations(list(Extension))


@settings(max_examples=500)
@given(
    packet=valid | bad_blocks | st.binary(max_size=60),
    kinds_in=kinds,
    ids_in=st.lists(st.integers(1, 14) | st.integers(1, 40), max_size=13, unique=True),
    kinds_out=kinds,
    ids_out=st.lists(st.integers(1, 14) | st.integers(1, 255), max_size=13, unique=True),
    mid=st.binary(max_size=32),
    seq=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(0, 0xFFFFFFFF),
    marker=st.integers(-1, 1),
    transport_seq=st.integers(-1, 0xFFFF),
    send_time=st.integers(-1, 0xFFFFFF),
    rtx_osn=st.just(-1) | st.integers(-1, 0xFFFF),
)
def test_both_write_the_same_bytes(
    packet: bytes,
    kinds_in: list[Extension],
    ids_in: list[int],
    kinds_out: list[Extension],
    ids_out: list[int],
    **fields: Any,
) -> None:
    extensions_out = dict(zip(kinds_out, ids_out, strict=False))
    # Where one of these was negotiated, each packet has it.
    for kind, field in ((Extension.TRANSPORT_CC, "transport_seq"), (Extension.ABS_SEND_TIME, "send_time")):
        if fields[field] < 0:
            extensions_out.pop(kind, None)
    a, b = (
        core.rewrite(
            packet,
            payload_type=96,
            extensions_in=dict(zip(ids_in, kinds_in, strict=False)),
            extensions_out=extensions_out,
            **fields,
        )
        for core in CORES.values()
    )
    assert a == b


@pytest.mark.parametrize(("words", "prefix"), [(Extension, "EXT_"), (Codec, "CODEC_")])
def test_both_use_the_same_numbers(words: type[IntEnum], prefix: str) -> None:
    numbers = {name: value for name, value in vars(plane).items() if name.startswith(prefix)}
    assert numbers == {prefix + word.name: word.value for word in words}


KEY, DELTA = b"\x10\x02\x00", b"\x11\x02\x00"  # VP8 frame headers: bit 0 clear or set

KEYFRAME_STARTS = [
    pytest.param(Codec.VP8, b"\x10" + KEY, True, id="VP8 short descriptor"),
    pytest.param(Codec.VP8, b"\x10" + DELTA, False, id="VP8 predicted"),
    pytest.param(Codec.VP8, b"\x00" + KEY, False, id="VP8 continuation"),
    pytest.param(Codec.VP8, b"\x11" + KEY, False, id="VP8 second partition"),
    pytest.param(Codec.VP8, b"\x90\x80\x05" + KEY, True, id="VP8 7-bit picture id"),
    pytest.param(Codec.VP8, b"\x90\x80\x85\x05" + KEY, True, id="VP8 15-bit picture id"),
    pytest.param(Codec.VP8, b"\x90\xf0\x85\x05\x01\x20" + KEY, True, id="VP8 all descriptor fields"),
    pytest.param(Codec.VP8, b"\x90\xf0\x85\x05\x01\x20" + DELTA, False, id="VP8 all fields, predicted"),
    pytest.param(Codec.VP8, b"\x90\xf0\x85\x05\x01", False, id="VP8 cut in the descriptor"),
    pytest.param(Codec.VP8, b"\x90\x80", False, id="VP8 cut before the picture id"),
    pytest.param(Codec.VP8, b"\x10", False, id="VP8 one byte"),
    pytest.param(Codec.VP9, b"\x88\x05\x00", True, id="VP9 start, no layers"),
    pytest.param(Codec.VP9, b"\xa8\x85\x05\x00\x00\x00", True, id="VP9 lowest spatial layer"),
    pytest.param(Codec.VP9, b"\xa8\x85\x05\x02\x00\x00", False, id="VP9 higher spatial layer"),
    pytest.param(Codec.VP9, b"\xc8\x05\x00", False, id="VP9 predicted"),
    pytest.param(Codec.VP9, b"\x80\x05\x00", False, id="VP9 continuation"),
    pytest.param(Codec.VP9, b"\xa8\x85\x05", False, id="VP9 cut before the layer"),
    pytest.param(Codec.H264, b"\x67\x42", True, id="H264 SPS"),
    pytest.param(Codec.H264, b"\x65\x88", True, id="H264 IDR"),
    pytest.param(Codec.H264, b"\x41\x9a", False, id="H264 slice"),
    pytest.param(Codec.H264, b"\x68\xce", False, id="H264 PPS alone"),
    pytest.param(Codec.H264, b"\x78\x00\x02\x67\x42\x00\x02\x68\xce", True, id="H264 STAP-A with SPS first"),
    pytest.param(Codec.H264, b"\x78\x00\x01\x09\x00\x02\x67\x42", True, id="H264 STAP-A with SPS second"),
    pytest.param(Codec.H264, b"\x78\x00\x01\x09\x00\x02\x41\x42", False, id="H264 STAP-A of slices"),
    pytest.param(Codec.H264, b"\x78\x00\x09\x67\x42", False, id="H264 STAP-A length past the end"),
    pytest.param(Codec.H264, b"\x78\x00\x00\x00\x02\x67\x42", False, id="H264 STAP-A with an empty unit"),
    pytest.param(Codec.H264, b"\x78\x00", False, id="H264 STAP-A cut"),
    pytest.param(Codec.H264, b"\x7c\x85\x00", True, id="H264 FU-A, first of an IDR"),
    pytest.param(Codec.H264, b"\x7c\x05\x00", False, id="H264 FU-A, later one of an IDR"),
    pytest.param(Codec.H264, b"\x7c\x81\x00", False, id="H264 FU-A of a slice"),
    pytest.param(Codec.H265, b"\x40\x01", True, id="H265 VPS"),
    pytest.param(Codec.H265, b"\x26\x01", True, id="H265 IDR"),
    pytest.param(Codec.H265, b"\x02\x01", False, id="H265 slice"),
    pytest.param(Codec.H265, b"\x60\x01\x00\x02\x42\x01", True, id="H265 AP with SPS"),
    pytest.param(Codec.H265, b"\x60\x01\x00\x02\x02\x01", False, id="H265 AP of slices"),
    pytest.param(Codec.H265, b"\x62\x01\x93", True, id="H265 FU, first of an IDR"),
    pytest.param(Codec.H265, b"\x62\x01\x13", False, id="H265 FU, later one"),
    pytest.param(Codec.H265, b"\x62\x01", False, id="H265 FU cut"),
    pytest.param(Codec.AV1, b"\x18\x0a", True, id="AV1 new coded video sequence"),
    pytest.param(Codec.AV1, b"\x10\x0a", False, id="AV1 no new sequence"),
    pytest.param(Codec.AV1, b"\x98\x0a", False, id="AV1 continues an OBU"),
    pytest.param(Codec.OPUS, b"\x10" + KEY, False, id="Opus"),
    pytest.param(Codec.OPAQUE, b"\x10" + KEY, False, id="opaque"),
    pytest.param(99, b"\x10" + KEY, False, id="no such codec"),
]


@on_both_cores
class TestKeyframeStart:
    """The table of section 13; row 15 of the robustness table."""

    @pytest.mark.parametrize(("codec", "payload", "starts"), KEYFRAME_STARTS)
    def test_by_codec(self, core: ModuleType, codec: int, payload: bytes, starts: bool) -> None:
        assert bool(core.is_keyframe_start(int(codec), payload)) is starts


@settings(max_examples=500)
@given(codec=st.sampled_from(list(Codec)), payload=st.binary(max_size=12))
def test_both_see_the_same_key_frames(codec: Codec, payload: bytes) -> None:
    a, b = (bool(core.is_keyframe_start(int(codec), payload)) for core in CORES.values())
    assert a == b
