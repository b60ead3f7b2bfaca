"""Which codecs and header extensions the SFU forwards, and when two payload types mean the same (SDP-2, SDP-8, FWD-1).

Nothing is transcoded: a track reaches a subscriber under a payload type of the subscriber's whose codec and decisive
format parameters equal the publisher's. RED, FEC, comfort noise and DTMF are left out of every answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sfu._dataplane import plane
from wire import sdp

if TYPE_CHECKING:
    from sfu._dataplane.plane import Codec as PlaneCodec

# Name in lower case and clock rate to how the data plane reads the payload.
_CODECS: Final[Mapping[str, Mapping[tuple[str, int], int]]] = {
    "audio": {
        ("opus", 48000): plane.CODEC_OPUS,
        ("pcmu", 8000): plane.CODEC_OPAQUE,
        ("pcma", 8000): plane.CODEC_OPAQUE,
    },
    "video": {
        ("vp8", 90000): plane.CODEC_VP8,
        ("vp9", 90000): plane.CODEC_VP9,
        ("h264", 90000): plane.CODEC_H264,
        ("h265", 90000): plane.CODEC_H265,
        ("av1", 90000): plane.CODEC_AV1,
    },
}

_FEEDBACK: Final = frozenset({"nack", "nack pli", "ccm fir", "transport-cc", "goog-remb"})

OFFERED_FEEDBACK: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": ("transport-cc",),
    "video": ("goog-remb", "transport-cc", "ccm fir", "nack", "nack pli"),
}
"""What our own offers ask of a subscriber, per kind."""

OFFERED_CODECS: Final[Mapping[str, tuple[sdp.Codec, ...]]] = {
    "audio": (
        sdp.Codec(111, "opus", 48000, 2, "minptime=10;useinbandfec=1"),
        sdp.Codec(0, "PCMU", 8000),
        sdp.Codec(8, "PCMA", 8000),
    ),
    "video": (
        sdp.Codec(96, "VP8", 90000),
        sdp.Codec(98, "VP9", 90000, parameters="profile-id=0"),
        sdp.Codec(
            102,
            "H264",
            90000,
            parameters="level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        ),
        sdp.Codec(45, "AV1", 90000),
    ),
}
"""What we offer to receive when the client leaves the offer to us."""

# The dependency descriptor is missing on purpose: it is not rewritten when packets are left out, and a browser freezes
# on one that does not match what it receives (COD-3).
EXTENSIONS: Final[Mapping[str, int]] = {
    "urn:ietf:params:rtp-hdrext:sdes:mid": plane.EXT_MID,
    "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id": plane.EXT_RID,
    "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id": plane.EXT_REPAIRED_RID,
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01": plane.EXT_TRANSPORT_CC,
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time": plane.EXT_ABS_SEND_TIME,
    "urn:ietf:params:rtp-hdrext:ssrc-audio-level": plane.EXT_AUDIO_LEVEL,
    "urn:ietf:params:rtp-hdrext:csrc-audio-level": plane.EXT_CSRC_AUDIO_LEVEL,
    "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay": plane.EXT_PLAYOUT_DELAY,
    "urn:3gpp:video-orientation": plane.EXT_VIDEO_ORIENTATION,
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time": plane.EXT_ABS_CAPTURE_TIME,
    "http://www.webrtc.org/experiments/rtp-hdrext/video-content-type": plane.EXT_VIDEO_CONTENT_TYPE,
    "http://www.webrtc.org/experiments/rtp-hdrext/color-space": plane.EXT_COLOR_SPACE,
}
"""URI to the data plane's internal id: what an answer may keep."""

_LAYER_EXTENSIONS: Final = frozenset({plane.EXT_RID, plane.EXT_REPAIRED_RID})
_ALWAYS_OFFERED: Final = (plane.EXT_MID, plane.EXT_TRANSPORT_CC, plane.EXT_ABS_SEND_TIME)


def supported(codecs: Iterable[sdp.Codec], kind: str) -> tuple[sdp.Codec, ...]:
    """Those we forward, in their order, with the feedback we speak; RTX only with the codec it repairs."""
    known = _CODECS[kind]
    codecs = tuple(codecs)
    media = {c.payload_type: c.clock_rate for c in codecs if (c.name.lower(), c.clock_rate) in known}
    return tuple(
        sdp.Codec(
            codec.payload_type,
            codec.name,
            codec.clock_rate,
            codec.channels,
            codec.parameters,
            tuple(feedback for feedback in codec.feedback if feedback in _FEEDBACK),
        )
        for codec in codecs
        if codec.payload_type in media or (codec.apt is not None and media.get(codec.apt) == codec.clock_rate)
    )


def same(a: sdp.Codec, b: sdp.Codec) -> bool:
    """Whether a payload of `a` can be decoded as one of `b`; levels may differ (RFC 6184 §8.2.2, RFC 9628, AV1 RTP)."""
    return _identity(a) == _identity(b)


def _identity(codec: sdp.Codec) -> tuple[str | int, ...]:
    name = codec.name.lower()
    base = (name, codec.clock_rate, codec.channels)
    match name:
        case "h264":
            profile = _h264_profile(codec.parameter("profile-level-id") or "42000a")
            return (*base, codec.parameter("packetization-mode") or "0", profile)
        case "vp9":
            return (*base, codec.parameter("profile-id") or "0")
        case "av1":
            return (*base, codec.parameter("profile") or "0")
        case "h265":
            return (*base, codec.parameter("profile-id") or "1", codec.parameter("tier-flag") or "0")
        case _:
            return base


def _h264_profile(profile_level_id: str) -> str:
    """The profile without the level (RFC 6184 §8.1, table 5): constrained baseline has several spellings."""
    try:
        idc, iop = int(profile_level_id[:2], 16), int(profile_level_id[2:4], 16)
    except ValueError:
        return profile_level_id.lower()
    if (idc == 0x42 and iop & 0x40) or (idc == 0x4D and iop & 0x80) or (idc == 0x58 and iop & 0xC0 == 0xC0):
        return "constrained baseline"
    return f"{idc:02x}{iop & 0x0C:02x}" if idc == 0x64 else f"{idc:02x}"


def first_of_each(codecs: Iterable[sdp.Codec]) -> tuple[sdp.Codec, ...]:
    """The first variant of each codec with its RTX: what a publisher sends unless it is told otherwise.

    A browser lists up to a dozen variants; repeating all of them for every pulled track would fill the description of
    a large meeting with lines that nobody uses.
    """
    codecs = tuple(codecs)
    first: dict[str, int] = {}
    for codec in codecs:
        if codec.apt is None:
            first.setdefault(codec.name.lower(), codec.payload_type)
    chosen = set(first.values())
    return tuple(codec for codec in codecs if codec.payload_type in chosen or codec.apt in chosen)


def rtx_of(codecs: Iterable[sdp.Codec]) -> dict[int, int]:
    """Payload type to that of its RTX."""
    return {codec.apt: codec.payload_type for codec in codecs if codec.apt is not None}


def map_payload_types(publisher: Sequence[sdp.Codec], subscriber: Sequence[sdp.Codec]) -> dict[int, int]:
    """The publisher's payload types to the subscriber's; empty when they share no codec (FWD-1)."""
    return {
        source.payload_type: target.payload_type
        for source in publisher
        if source.apt is None
        for target in subscriber
        if target.apt is None and same(source, target)
    }


def plane_codecs(codecs: Iterable[sdp.Codec], kind: str) -> dict[int, PlaneCodec]:
    """How the data plane shall read the payload types of a published track."""
    codecs = tuple(codecs)
    numbers = {
        codec.payload_type: _CODECS[kind].get((codec.name.lower(), codec.clock_rate), plane.CODEC_OPAQUE)
        for codec in codecs
    }
    return {
        codec.payload_type: {
            "codec": numbers[codec.payload_type],
            "clock_rate": codec.clock_rate,
            "apt": -1 if codec.apt is None else codec.apt,
            "nack": "nack" in codec.feedback,
            "pli": "nack pli" in codec.feedback,
            "fir": "ccm fir" in codec.feedback,
        }
        for codec in codecs
    }


def supported_extensions(extensions: Iterable[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """Those we know, each URI once, under the offered ids."""
    found: dict[str, int] = {}
    for number, uri in extensions:
        if uri in EXTENSIONS:
            found.setdefault(uri, number)
    return tuple((number, uri) for uri, number in found.items())


def receive_extensions(extensions: Iterable[tuple[int, str]]) -> dict[int, int]:
    """Wire id to internal id, for a published track."""
    return {number: EXTENSIONS[uri] for number, uri in extensions if uri in EXTENSIONS}


def send_extensions(extensions: Iterable[tuple[int, str]]) -> dict[int, int]:
    """Internal id to wire id, for a subscriber: never the layers', which a single stream does not have."""
    internal = {EXTENSIONS[uri]: number for number, uri in extensions if uri in EXTENSIONS}
    return {key: number for key, number in internal.items() if key not in _LAYER_EXTENSIONS}


def offered_extension_uris(source: Iterable[tuple[int, str]]) -> list[str]:
    """What we offer a subscriber: what the transport needs, then what the publisher's section carries."""
    wanted = [uri for uri, internal in EXTENSIONS.items() if internal in _ALWAYS_OFFERED]
    carried = [uri for _, uri in source if uri in EXTENSIONS and EXTENSIONS[uri] not in _LAYER_EXTENSIONS]
    return list(dict.fromkeys(wanted + carried))
