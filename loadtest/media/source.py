"""What a publication sends. The media itself is encoded once per machine and looped for ever (`clips`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

VideoCodec = Literal["VP8", "H264"]

LAYERS: Final = {"f": 720, "h": 360, "q": 180}
"""Simulcast rids and picture heights: full, half, quarter. Sorted from a to z they go from best to worst."""


@dataclass(frozen=True, slots=True)
class MediaSource:
    """Opus at 50 packets/s, video at 30 frames/s with a key frame every two seconds; a PLI brings one at once.

    Args:
        audio: whether Opus is sent.
        video: the codec, or None for audio alone.
        height: of the picture, 180, 360 or 720 (about 0.15, 0.5 and 1.5 Mbit/s); of the best layer with `simulcast`.
        simulcast: send the layer of `height` and all below it, by the rids of `LAYERS`.

    Raises:
        ValueError: nothing to send, or another height.
    """

    audio: bool = True
    video: VideoCodec | None = "VP8"
    height: int = 360
    simulcast: bool = False

    def __post_init__(self) -> None:
        if not self.audio and self.video is None:
            raise ValueError("a source without audio and video")
        if self.height not in LAYERS.values():
            raise ValueError(f"height {self.height}: choose from {sorted(LAYERS.values())}")

    @property
    def rids(self) -> tuple[str, ...]:
        """The layers sent, best first; empty without simulcast."""
        if self.video is None or not self.simulcast:
            return ()
        return tuple(rid for rid, height in LAYERS.items() if height <= self.height)
