"""Frames to RTP payloads and back, as a decoder sees them."""

from __future__ import annotations

import contextlib
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._media.core import flags_of
from loadtest.media import clips, payloads
from loadtest.media.payloads import PAYLOAD_BYTES_MAX, TAIL_BYTES, Payload
from tests.support.reception_twin import EMPTY, KEY

NOW = 123_456_789_012_345


def stamped(frame: list[Payload]) -> list[bytes]:
    """What leaves: the clock filled in, as the plane does it."""
    return [p.data[:-TAIL_BYTES] + payloads.pack_clock(NOW) if p.clock else p.data for p in frame]


@given(st.integers(0, 2**63 - 1))
def test_the_clock_survives_and_needs_no_emulation_prevention(time_us: int) -> None:
    tail = payloads.pack_clock(time_us)
    assert len(tail) == TAIL_BYTES
    assert payloads.unpack_clock(b"media" + tail) == time_us
    assert b"\0" not in tail


@given(st.binary(max_size=64))
def test_media_without_a_clock_has_none(payload: bytes) -> None:
    assert payloads.unpack_clock(payload) is None


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_each_picture_decodes_to_its_number(codec: str) -> None:
    """RFC 7741, RFC 6184: with the clock in place, all pictures of the clip come out, none disturbed."""
    clip = clips.video_clip(codec, 180)
    assemble = payloads.assemble_vp8 if codec == "VP8" else payloads.assemble_h264
    decoder: Any = av.CodecContext.create(codec.lower(), "r")
    numbers = []
    for frame in clip.payloads():
        sent = stamped(frame)
        assert all(0 < len(payload) <= PAYLOAD_BYTES_MAX for payload in sent)
        assert sum(payload.clock for payload in frame) == 1
        for picture in decoder.decode(av.Packet(assemble(sent))):
            plane = picture.planes[0]
            numbers.append(clips.read_number(bytes(plane), plane.line_size, picture.height))
    assert numbers == list(range(clips.SECONDS * clips.FRAMES_PER_SECOND))


def test_opus_with_the_clock_as_padding_decodes_to_the_same_sound() -> None:
    """RFC 6716 §3.2.5: padding of code 3 does not change what is heard."""
    clip = clips.audio_clip()
    plain: Any = av.CodecContext.create("opus", "r")
    padded: Any = av.CodecContext.create("opus", "r")
    for frame, sent in zip(clip.frames[:50], clip.payloads()[:50], strict=True):
        one = [bytes(f.planes[0]) for f in plain.decode(av.Packet(frame))]
        other = [bytes(f.planes[0]) for f in padded.decode(av.Packet(stamped(sent)[0]))]
        assert one == other


def test_large_frames_are_cut_into_equal_parts() -> None:
    """So that the kernel sends them as one train."""
    for packets in (payloads.packetize_vp8(bytes(5000)), payloads.packetize_h264(b"\0\0\1\x65" + b"\1" * 5000)[1:]):
        sizes = [len(p.data) for p in packets]
        assert len(set(sizes[:-1])) == 1
        assert sizes[-1] <= sizes[0]


@pytest.mark.parametrize(("codec", "height"), [("VP8", 180), ("H264", 180)])
def test_key_frames_are_known_by_their_first_packet(codec: str, height: int) -> None:
    clip = clips.video_clip(codec, height)
    number = {"VP8": 1, "H264": 2}[codec]
    found = {i for i, frame in enumerate(clip.payloads()) if flags_of(number, frame[0].data) & KEY}
    assert found == set(clip.keyframes) == set(range(0, 240, clips.KEYFRAME_EVERY))
    assert not any(flags_of(number, p.data) & KEY for frame in clip.payloads() for p in frame[1:])


@given(st.integers(0, 2), st.binary(max_size=12))
def test_any_payload_has_flags(codec: int, payload: bytes) -> None:
    assert bool(flags_of(codec, payload) & EMPTY) == (not payload)


@given(st.lists(st.binary(max_size=8), max_size=4))
def test_bad_payloads_raise_nothing_but_value_errors(parts: list[bytes]) -> None:
    for assemble in (payloads.assemble_vp8, payloads.assemble_h264):
        with contextlib.suppress(ValueError):
            assert isinstance(assemble(parts), bytes)


def test_packets_of_several_opus_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="several frames"):
        payloads.packetize_opus(b"\x7d\0\0")
