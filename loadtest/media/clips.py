"""The media itself: eight seconds of pictures or sound, encoded once with `av`, kept in the user's cache, and looped.

A picture is a texture that scrolls, with its number written as sixteen light or dark blocks along the top: whoever
decodes it knows which picture it should be, and can draw the original to compare. The cache is keyed by everything the
content depends on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from loadtest.media.payloads import Payload, packetize_h264, packetize_opus, packetize_vp8

VERSION: Final = 2  # of pictures, sound and encoder settings: a change makes old caches invisible
SECONDS: Final = 8
FRAMES_PER_SECOND: Final = 30
KEYFRAME_EVERY: Final = 60
AUDIO_FRAMES_PER_SECOND: Final = 50
_OPUS_SAMPLES: Final = 960

_BIT_RATES: Final = {720: 1_500_000, 360: 500_000, 180: 150_000}
_ENCODERS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "VP8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}),
    "H264": ("libx264", {"preset": "veryfast", "tune": "zerolatency", "profile": "baseline", "sc_threshold": "0"}),
}
_COUNTER_BITS: Final = 16


@dataclass(frozen=True, slots=True)
class Clip:
    """One encoding, frame by frame."""

    codec: str
    """`VP8`, `H264` or `opus`."""
    height: int
    """Of the picture; 0 for sound."""
    frames: tuple[bytes, ...]
    keyframes: frozenset[int]
    """Empty for sound."""

    @property
    def frames_per_second(self) -> int:
        """At which it plays."""
        return AUDIO_FRAMES_PER_SECOND if self.codec == "opus" else FRAMES_PER_SECOND

    @property
    def clock_rate(self) -> int:
        """Of RTP timestamps."""
        return 48_000 if self.codec == "opus" else 90_000

    def payloads(self) -> list[list[Payload]]:
        """Frame by frame, what RTP carries."""
        packetize = {"VP8": packetize_vp8, "H264": packetize_h264, "opus": packetize_opus}[self.codec]
        return [packetize(frame) for frame in self.frames]


@functools.cache
def video_clip(codec: str, height: int) -> Clip:
    """`VP8` or `H264` of 180, 360 or 720 lines: from the cache, or encoded now (some seconds)."""
    return _cached(codec, height) or _store(_encode_video(codec, height))


@functools.cache
def audio_clip() -> Clip:
    """Opus, 20 ms a packet, about 32 kbit/s."""
    return _cached("opus", 0) or _store(_encode_audio())


def width_of(height: int) -> int:
    """16:9."""
    return height * 16 // 9


def draw(number: int, height: int) -> tuple[bytes, bytes, bytes]:
    """The three planes (4:2:0) of picture `number`, without padding between rows."""
    width = width_of(height)
    texture = _texture(height)
    shift = number * 2 % width
    rows = [row[shift : shift + width] for row in texture]
    block = block_size(height)
    head = b"".join((b"\xeb" if number >> bit & 1 else b"\x10") * block for bit in range(_COUNTER_BITS))
    for y in range(block):
        rows[y] = head + rows[y][len(head) :]
    u = bytes([96 + number % 64]) * (width * height // 4)
    v = bytes([160 - number % 64]) * (width * height // 4)
    return b"".join(rows), u, v


def read_number(luma: bytes, stride: int, height: int) -> int:
    """The number written into a decoded picture."""
    block = block_size(height)
    row = (block // 2) * stride
    return sum((luma[row + bit * block + block // 2] > 0x80) << bit for bit in range(_COUNTER_BITS))


def block_size(height: int) -> int:
    """Side of a block of the counter, in pixels."""
    return height // 11


@functools.cache
def _texture(height: int) -> tuple[bytes, ...]:
    """Rows of twice the picture's width, so that a window can slide over them: soft blocks of random brightness."""
    rng = random.Random(height)  # noqa: S311 (a picture, not a secret)
    width, cell = width_of(height), max(4, height // 45)
    rows: list[bytes] = []
    while len(rows) < height:
        levels = [rng.randrange(64, 192) for _ in range(width // cell + 1)]
        smooth = bytes(
            (levels[x // cell] * (cell - x % cell) + levels[(x // cell + 1) % len(levels)] * (x % cell)) // cell
            for x in range(width)
        )
        rows += [smooth * 2] * cell
    return tuple(rows[:height])


def _encode_video(codec: str, height: int) -> Clip:
    import av

    name, options = _ENCODERS[codec]
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width_of(height), height, "yuv420p"
    encoder.time_base, encoder.bit_rate = Fraction(1, FRAMES_PER_SECOND), _BIT_RATES[height]
    encoder.options = {"g": str(KEYFRAME_EVERY), "keyint_min": str(KEYFRAME_EVERY)} | options
    packets: list[Any] = []
    for number in range(SECONDS * FRAMES_PER_SECOND):
        frame = av.VideoFrame(encoder.width, height, "yuv420p")
        for plane, data in zip(frame.planes, draw(number, height), strict=True):
            plane.update(_padded(data, plane.width, plane.line_size))
        frame.pts, frame.time_base = number, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    keyframes = frozenset(index for index, packet in enumerate(packets) if packet.is_keyframe)
    return Clip(codec, height, tuple(bytes(packet) for packet in packets), keyframes)


def _padded(data: bytes, width: int, line_size: int) -> bytes:
    if width == line_size:
        return data
    pad = bytes(line_size - width)
    return b"".join(data[at : at + width] + pad for at in range(0, len(data), width))


def _encode_audio() -> Clip:
    import av

    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo", "s16"
    encoder.time_base, encoder.bit_rate = Fraction(1, 48_000), 32_000
    frames: list[bytes] = []
    for index in range(SECONDS * AUDIO_FRAMES_PER_SECOND):
        frame = av.AudioFrame(format="s16", layout="stereo", samples=_OPUS_SAMPLES)
        period = 100 + index % 100
        wave = (int(8000 * ((at % period) * 2 / period - 1)) for at in range(_OPUS_SAMPLES))
        frame.planes[0].update(b"".join(value.to_bytes(2, "little", signed=True) * 2 for value in wave))
        frame.pts, frame.sample_rate, frame.time_base = index * _OPUS_SAMPLES, 48_000, encoder.time_base
        frames += (bytes(packet) for packet in encoder.encode(frame))
    return Clip("opus", 0, tuple(frames), frozenset())


def _path(codec: str, height: int) -> Path:
    content = [VERSION, codec, height, SECONDS, KEYFRAME_EVERY, _BIT_RATES.get(height), _ENCODERS.get(codec)]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torpor" / "clips" / f"{codec.lower()}-{height}-{key}.clip"


def _cached(codec: str, height: int) -> Clip | None:
    """A line of JSON with the frames' sizes, then the frames. Anything else counts as absent."""
    try:
        head, _, data = _path(codec, height).read_bytes().partition(b"\n")
        facts = json.loads(head)
        sizes, keyframes = facts["sizes"], frozenset(facts["keyframes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if sum(sizes) != len(data):
        return None
    frames, at = [], 0
    for size in sizes:
        frames.append(data[at : at + size])
        at += size
    return Clip(codec, height, tuple(frames), keyframes)


def _store(clip: Clip) -> Clip:
    """Keep it for the next time, whole or not at all; several processes may do so at once."""
    path = _path(clip.codec, clip.height)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"sizes": [len(f) for f in clip.frames], "keyframes": sorted(clip.keyframes)})
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(head.encode() + b"\n" + b"".join(clip.frames))
    os.replace(file.name, path)
    return clip
