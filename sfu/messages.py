"""What the API asks of a session and what it answers, as values: between `routes` (HTTP) and `session` (the core).

Fields are those of the HTTPS API in the words of Python; `None` means that the key is absent on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NewType

SessionId = NewType("SessionId", str)

DescriptionType = Literal["offer", "answer"]


class Kind(StrEnum):
    """Media kind of a track."""

    AUDIO = "audio"
    VIDEO = "video"


class Location(StrEnum):
    """Which side of the session a track is on: `local` as published by its client, `remote` as pulled by it."""

    LOCAL = "local"
    REMOTE = "remote"


class Ordering(StrEnum):
    """How to choose among simulcast layers when the preference does not decide."""

    NONE = "none"
    ASCIIBETICAL = "asciibetical"


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """An SDP offer or answer, verbatim."""

    type: DescriptionType
    sdp: str


@dataclass(frozen=True, slots=True)
class SimulcastPreference:
    """Which layer a subscriber wants; an empty `preferred_rid` lets the server decide."""

    preferred_rid: str = ""
    priority_ordering: Ordering = Ordering.NONE
    rid_not_available: Ordering = Ordering.NONE


@dataclass(frozen=True, slots=True)
class TrackRequest:
    """One entry of `tracks/new` or `tracks/update`."""

    location: Location
    mid: str | None = None
    track_name: str | None = None
    session_id: SessionId | None = None
    kind: Kind | None = None
    bidirectional: bool = False
    simulcast: SimulcastPreference | None = None


@dataclass(frozen=True, slots=True)
class TrackResult:
    """One entry of an answer, in request order. A failed one has `error_code` and `error_description`."""

    track_name: str | None = None
    mid: str | None = None
    session_id: SessionId | None = None
    location: Location | None = None
    kind: Kind | None = None
    error_code: str | None = None
    error_description: str | None = None


@dataclass(frozen=True, slots=True)
class TracksResult:
    """The answer of `tracks/new`, `tracks/update` and `tracks/close`."""

    tracks: tuple[TrackResult, ...]
    requires_immediate_renegotiation: bool = False
    session_description: SessionDescription | None = None


class TrackStatus(StrEnum):
    """`active` does not promise packets: it means not closed and not collected."""

    ACTIVE = "active"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class TrackState:
    """One entry of `GET sessions/{id}`; `session_id` (the publisher) only on remote tracks."""

    location: Location
    mid: str
    track_name: str
    status: TrackStatus
    session_id: SessionId | None = None
