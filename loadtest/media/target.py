"""Servers under load, behind one face: `MediaTarget` joins, `Publication` and `Subscription` are what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from loadtest.media.figures import PublicationFigures, SubscriptionFigures
from loadtest.media.source import MediaSource


class MediaFailed(Exception):
    """A join that did not work: refused, or ICE or DTLS did not finish in time. The message says which."""


@dataclass(frozen=True, slots=True)
class PublicationRef:
    """What a subscriber must know of a publication, as plain values: it crosses processes as JSON."""

    session: str
    """The publishing session (Torpor), or the feed (Janus)."""
    tracks: tuple[str, ...]
    """Names of its tracks (Torpor), or its mids (Janus)."""

    def to_json(self) -> dict[str, Any]:
        """`{"session": ..., "tracks": [...]}`."""
        return {"session": self.session, "tracks": list(self.tracks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(value["session"], tuple(value["tracks"]))


class Publication(Protocol):
    """One session that publishes a `MediaSource`; sends until it leaves."""

    ref: PublicationRef
    join_seconds: float

    def figures(self) -> PublicationFigures:
        """Counters so far; also after `leave`, as they were then."""

    @property
    def failure(self) -> str:
        """Why it does not send any more (consent lost, closed by the server), or empty."""

    async def leave(self) -> None:
        """Say close_notify and free everything. Idempotent."""


class Subscription(Protocol):
    """One session that pulls the tracks of one or more publications."""

    join_seconds: float

    def figures(self) -> SubscriptionFigures:
        """Counters so far; also after `leave`, as they were then."""

    @property
    def failure(self) -> str:
        """Why it does not receive any more (consent lost, closed by the server), or empty."""

    async def wait_for_media(self, within: float = 10.0) -> float:
        """Wait until each track has brought a whole frame; seconds from the call to `subscribe`, or `MediaFailed`."""

    async def leave(self) -> None:
        """Say close_notify and free everything. Idempotent."""


class MediaTarget(Protocol):
    """One server under load."""

    name: str

    async def publish(self, source: MediaSource) -> Publication:
        """Join as a publisher; returns when the transport is up and media flows. Raises `MediaFailed`."""

    async def subscribe(self, refs: Sequence[PublicationRef], *, rid: str = "", verify: bool = False) -> Subscription:
        """Join as a subscriber to all tracks of `refs` in one session; returns when the transport is up.

        Args:
            refs: one or more publications.
            rid: preferred simulcast layer; empty: the server chooses.
            verify: decode the video and compare pictures with the source (costs about a core per ten 720p tracks).

        Raises:
            MediaFailed: refused, or not connected in time.
        """

    async def close(self) -> None:
        """Leave everything that is still joined, and free the target."""
