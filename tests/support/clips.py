"""Short encoded clips, and tracks that play them in real time: what goes in is known to the byte.

aiortc packs `av.Packet`s without touching them, so that payloads can be compared from end to end.
"""

from __future__ import annotations

import asyncio
import functools
from fractions import Fraction

import av
from aiortc import MediaStreamTrack

FRAMES_PER_SECOND = 30
KEYFRAME_EVERY = 10  # frames: a subscriber that joins waits for the next one
AUDIO_FRAMES_PER_SECOND = 50

_VIDEO_OPTIONS = {
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"},
}
_ENCODERS = {"VP8": "libvpx", "H264": "libx264"}


@functools.cache
def video_clip(codec: str) -> tuple[bytes, ...]:
    """One second of a moving gradient as `VP8` or `H264`, some frames larger than a packet."""
    encoder = av.CodecContext.create(_ENCODERS[codec], "w")
    encoder.width, encoder.height, encoder.pix_fmt = 320, 180, "yuv420p"  # type: ignore[attr-defined]
    encoder.time_base, encoder.bit_rate = Fraction(1, FRAMES_PER_SECOND), 1_000_000
    encoder.options = {"g": str(KEYFRAME_EVERY)} | _VIDEO_OPTIONS[_ENCODERS[codec]]
    frames: list[bytes] = []
    for index in range(FRAMES_PER_SECOND):
        frame = av.VideoFrame(320, 180, "yuv420p")
        for plane in frame.planes:
            texture = bytes(abs((position * 2 + index * 9) % 512 - 256) & 0xFF for position in range(256))
            plane.update((texture * (plane.buffer_size // 256 + 1))[: plane.buffer_size])
        frame.pts, frame.time_base = index, encoder.time_base
        frames += (bytes(packet) for packet in encoder.encode(frame))  # type: ignore[attr-defined]
    return tuple(frames) + tuple(bytes(packet) for packet in encoder.encode(None))  # type: ignore[attr-defined]


@functools.cache
def audio_clip() -> tuple[bytes, ...]:
    """One second of a rising tone as Opus, 20 ms a frame."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo", "s16"  # type: ignore[attr-defined]
    encoder.time_base = Fraction(1, 48_000)
    frames: list[bytes] = []
    for index in range(AUDIO_FRAMES_PER_SECOND):
        frame = av.AudioFrame(format="s16", layout="stereo", samples=960)
        samples = (int(8000 * ((position * (index + 5) % 200) / 100 - 1)) for position in range(960))
        frame.planes[0].update(b"".join(value.to_bytes(2, "little", signed=True) * 2 for value in samples))
        frame.pts, frame.sample_rate, frame.time_base = index * 960, 48_000, encoder.time_base
        frames += (bytes(packet) for packet in encoder.encode(frame))  # type: ignore[attr-defined]
    return tuple(frames)


class EncodedTrack(MediaStreamTrack):
    """Plays a clip in a loop; each round begins with a key frame.

    Args:
        codec: `VP8`, `H264` or `opus`.
    """

    def __init__(self, codec: str) -> None:
        self.kind = "audio" if codec == "opus" else "video"
        super().__init__()
        self.codec = codec
        self._clip = audio_clip() if codec == "opus" else video_clip(codec)
        self._rate = AUDIO_FRAMES_PER_SECOND if codec == "opus" else FRAMES_PER_SECOND
        self._started_at: float | None = None
        self._count = 0

    async def recv(self) -> av.Packet:
        """The next frame, at its time."""
        loop = asyncio.get_running_loop()
        if self._started_at is None:
            self._started_at = loop.time()
        await asyncio.sleep(self._started_at + self._count / self._rate - loop.time())
        packet = av.Packet(self._clip[self._count % len(self._clip)])
        packet.pts, packet.time_base = self._count, Fraction(1, self._rate)
        self._count += 1
        return packet
