"""What the client counts. All counters only grow; histograms can be merged across tracks, processes and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from loadtest.histogram import Histogram


class Mergeable:
    """Adds field by field, and writes itself as JSON; for dataclasses of numbers and histograms."""

    __slots__ = ()

    def merge(self, other: Self) -> Self:
        """Both together: counters and seconds added, histograms merged."""
        values: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(ours, Histogram):
                merged = Histogram()
                merged.merge(ours)
                merged.merge(theirs)
                values[item.name] = merged
            else:
                values[item.name] = ours.merge(theirs) if isinstance(ours, Mergeable) else ours + theirs
        return type(self)(**values)

    def to_json(self) -> dict[str, Any]:
        """Numbers by name; histograms and inner figures as their own JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]  # as above
        return {name: value.to_json() if hasattr(value, "to_json") else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        blank = cls()
        return cls(
            **{
                name: getattr(blank, name).from_json(value) if hasattr(getattr(blank, name), "from_json") else value
                for name, value in values.items()
            }
        )


@dataclass(frozen=True, slots=True)
class SendFigures(Mergeable):
    """Tracks of one kind that were sent, all layers of simulcast together."""

    packets: int = 0
    """First transmissions."""
    bytes: int = 0
    """Of their payload, RTP and SRTP not counted."""
    frames: int = 0
    keyframes: int = 0
    nacks_received: int = 0
    """Sequence numbers that the server asked for."""
    resent: int = 0
    """Of these, sent once more (RTX where negotiated)."""
    plis_received: int = 0
    """PLI and FIR; each is answered by jumping to the next key frame."""
    reports_received: int = 0
    """Report blocks about us."""
    reported_lost: int = 0
    """Cumulative loss, before repair, as the server last reported it."""
    round_trip: Histogram = field(default_factory=Histogram)
    """From report blocks (RFC 3550 §6.4.1)."""


@dataclass(frozen=True, slots=True)
class ReceiveFigures(Mergeable):
    """Tracks of one kind that were received."""

    packets: int = 0
    """Of media, each sequence number once; repaired ones included."""
    bytes: int = 0
    """Of their payload."""
    expected: int = 0
    """Sequence numbers from the first received to the highest."""
    lost_before_repair: int = 0
    """Numbers that did not arrive by themselves: asked for, or given up."""
    lost_after_repair: int = 0
    """Of these, the ones given up after all retries or two seconds."""
    recovered: int = 0
    """Of these, the ones that arrived after a NACK."""
    reordered: int = 0
    """Arrived after a higher number, before any NACK for it."""
    duplicates: int = 0
    nacks_sent: int = 0
    """Sequence numbers asked for, retries included."""
    plis_sent: int = 0
    padding: int = 0
    """Packets without payload: probes."""
    frames: int = 0
    """Whole, in order and, for video, decodable: no hole since the last key frame."""
    keyframes: int = 0
    broken: int = 0
    """Frames with a hole, or between a hole and the next key frame."""
    freezes: int = 0
    """Gaps between decodable frames of more than max(3 × average, average + 150 ms) (W3C webrtc-stats)."""
    freeze_seconds: float = 0.0
    delay: Histogram = field(default_factory=Histogram)
    """From the send call for a frame's last packet to the read of it, repairs included."""
    jitter: Histogram = field(default_factory=Histogram)
    """Interarrival jitter (RFC 3550 §A.8), sampled once a second."""
    first_frame: Histogram = field(default_factory=Histogram)
    """From the call to `subscribe` to the first decodable frame, one value per track."""


@dataclass(frozen=True, slots=True)
class PictureFigures(Mergeable):
    """Pictures of the sampled tracks that were decoded and compared with what was encoded."""

    checked: int = 0
    wrong: int = 0
    """Not decodable, not the picture of its number, or below 25 dB PSNR."""


@dataclass(frozen=True, slots=True)
class PublicationFigures(Mergeable):
    """Of one publication, or of several merged."""

    publications: int = 0
    seconds: float = 0.0
    """Time since joined."""
    join_seconds: Histogram = field(default_factory=Histogram)
    """From the call to `publish` until ICE and DTLS are done; one value each."""
    audio: SendFigures = field(default_factory=SendFigures)
    video: SendFigures = field(default_factory=SendFigures)


@dataclass(frozen=True, slots=True)
class SubscriptionFigures(Mergeable):
    """Of one subscription, or of several merged."""

    subscriptions: int = 0
    tracks: int = 0
    silent_tracks: int = 0
    """Tracks that have not brought a whole frame yet."""
    seconds: float = 0.0
    """Time since joined."""
    join_seconds: Histogram = field(default_factory=Histogram)
    """From the call to `subscribe` until ICE and DTLS are done; one value each."""
    audio: ReceiveFigures = field(default_factory=ReceiveFigures)
    video: ReceiveFigures = field(default_factory=ReceiveFigures)
    pictures: PictureFigures = field(default_factory=PictureFigures)


@dataclass(frozen=True, slots=True)
class ClientFigures(Mergeable):
    """The client's own share: when these are bad, the run says nothing about the server."""

    seconds: float = 0.0
    """Since the client started."""
    cpu_seconds: float = 0.0
    """Of the plane's thread; near `seconds`, it is saturated."""
    sent: int = 0
    received: int = 0
    """Datagrams."""
    dropped_sending: int = 0
    """Datagrams that a full socket buffer refused."""
    dropped_receiving: int = 0
    """Datagrams that our kernel threw away because we did not read in time."""
    schedules_dropped: int = 0
    """Times a stream was half a second behind its schedule, which was then moved instead of sending a flood."""
    send_lag: Histogram = field(default_factory=Histogram)
    """How late each burst of packets left against its schedule."""
    decode_seconds: float = 0.0
    """CPU spent on decoding sampled pictures."""
