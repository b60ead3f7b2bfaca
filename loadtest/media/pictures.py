"""The sampled few that are decoded, to see whether these are the pictures that were encoded, in order.

Packets are put in order again, frames assembled and decoded in a thread. Each picture names its number (`clips`); it
must look like the original of that number, and follow the picture before it in the clip, or come from a key frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from loadtest._media.core import squared_error
from loadtest.media import clips
from loadtest.media.figures import PictureFigures
from loadtest.media.payloads import assemble_h264, assemble_vp8

PSNR_MIN: Final = 25.0
"""In dB; a picture shifted by one frame is far below, an encoder's worst key frame above."""
_PENDING_MAX: Final = 2048
_ROW_STEP: Final = 4
_CLIP_FRAMES: Final = clips.SECONDS * clips.FRAMES_PER_SECOND


class PictureCheck:
    """All video streams of one subscription; `codecs` by stream, as the plane numbers them (`opus`, `vp8`, `h264`)."""

    def __init__(self, codecs: Sequence[str]) -> None:
        self._streams = {i: _Stream(codec) for i, codec in enumerate(codecs) if codec != "opus"}
        # One thread: order matters, and more would take the machine away from what is measured.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")

    def receive(self, stream: int, seq: int, marker: bool, timestamp: int, payload: bytes) -> None:
        """One packet, as it arrives."""
        if (state := self._streams.get(stream)) is not None:
            for frame in state.take(seq, marker, payload):
                self._worker.submit(state.check, frame)

    def figures(self) -> PictureFigures:
        """Pictures checked so far."""
        streams = self._streams.values()
        return PictureFigures(checked=sum(s.checked for s in streams), wrong=sum(s.wrong for s in streams))

    async def close(self) -> float:
        """Check what is waiting; returns CPU seconds spent in all."""
        await asyncio.to_thread(self._worker.shutdown)
        return sum(stream.seconds for stream in self._streams.values())


class _Stream:
    """Order and frames on the caller's side; decoding on the worker's."""

    def __init__(self, codec: str) -> None:
        import av

        self._assemble = assemble_vp8 if codec == "vp8" else assemble_h264
        self._decoder: Any = av.CodecContext.create(codec, "r")
        self._packets: dict[int, tuple[bool, bytes]] = {}
        self._next: int | None = None
        self._frame: list[bytes] = []
        self._number = -1
        self.checked = 0
        self.wrong = 0
        self.seconds = 0.0

    def take(self, seq: int, marker: bool, payload: bytes) -> list[list[bytes]]:
        """The frames that are whole now. A hole that stays open is given up once too much waits behind it."""
        if self._next is None:
            self._next = seq
        self._packets[seq] = marker, payload
        if len(self._packets) > _PENDING_MAX:
            self._next = min(self._packets, key=lambda s: (s - (self._next or 0)) & 0xFFFF)
            self._frame = []
        frames = []
        while (packet := self._packets.pop(self._next, None)) is not None:
            self._next = (self._next + 1) & 0xFFFF
            self._frame.append(packet[1])
            if packet[0]:
                frames.append(self._frame)
                self._frame = []
        return frames

    def check(self, payloads: list[bytes]) -> None:
        """Decode one frame and judge what comes out."""
        import av
        from av.error import FFmpegError

        begun = time.thread_time()
        try:
            pictures = self._decoder.decode(av.Packet(self._assemble(payloads)))
        except (FFmpegError, ValueError):
            pictures = []
            if self.checked:  # before the first picture we may have joined in the middle of one
                self.checked += 1
                self.wrong += 1
        for picture in pictures:
            self.checked += 1
            self.wrong += not self._is_right(picture)
        self.seconds += time.thread_time() - begun

    def _is_right(self, picture: Any) -> bool:
        height, plane = picture.height, picture.planes[0]
        luma = bytes(plane)
        number = clips.read_number(luma, plane.line_size, height)
        follows = self._number < 0 or number == (self._number + 1) % _CLIP_FRAMES or picture.key_frame
        self._number = number
        if number >= _CLIP_FRAMES or not follows:
            return False
        width = clips.width_of(height)
        error = squared_error(luma, plane.line_size, clips.draw(number, height)[0], width, height, _ROW_STEP)
        return error <= 255**2 / 10 ** (PSNR_MIN / 10)
