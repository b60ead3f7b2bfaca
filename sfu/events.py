"""What happened to sessions and tracks, as told to listeners of an app (`Sfu.subscribe_events`).

Frozen values in the past tense. `at` is the service's monotonic clock, in seconds. Events are for operators and
applications; nothing inside `sfu` reacts to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from sfu.messages import Kind, SessionId


class Dated(Protocol):
    """What an app's listeners can be told: a frozen dataclass that says when it happened."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # how typing knows a dataclass

    @property
    def at(self) -> float:
        """The service's monotonic clock, in seconds."""


@dataclass(frozen=True, slots=True)
class SessionConnected:
    """ICE has a valid pair and DTLS is done: media may flow."""

    session_id: SessionId
    at: float


@dataclass(frozen=True, slots=True)
class SessionDisconnected:
    """Consent checks stopped coming (13 s, ICE-6); the session may still return or expire."""

    session_id: SessionId
    at: float


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session is gone; its id answers 410 from now on."""

    session_id: SessionId
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class TrackPublished:
    """A track can be pulled by (`session_id`, `track_name`)."""

    session_id: SessionId
    track_name: str
    kind: Kind
    at: float


@dataclass(frozen=True, slots=True)
class TrackStarted:
    """The first media packet of a track arrived."""

    session_id: SessionId
    track_name: str
    at: float


@dataclass(frozen=True, slots=True)
class TrackStalled:
    """No media packet for the stall time."""

    session_id: SessionId
    track_name: str
    at: float


@dataclass(frozen=True, slots=True)
class TrackResumed:
    """Media again after a stall."""

    session_id: SessionId
    track_name: str
    at: float


@dataclass(frozen=True, slots=True)
class TrackClosed:
    """The publication ended; its subscriptions are inactive."""

    session_id: SessionId
    track_name: str
    reason: str
    at: float


Event: TypeAlias = (
    SessionConnected
    | SessionDisconnected
    | SessionClosed
    | TrackPublished
    | TrackStarted
    | TrackStalled
    | TrackResumed
    | TrackClosed
)
