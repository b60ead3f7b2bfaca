"""Track: named media of a session, as published (`LocalTrack`) or as pulled (`RemoteTrack`).

State only. `session` creates and ends tracks, `router` connects them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from sfu.messages import Kind, SessionId, SimulcastPreference
from sfu.sections import Outgoing
from wire.sdp import Codec

TrackKey: TypeAlias = tuple[str, SessionId, str]
"""App id, publishing session, track name."""


@dataclass(eq=False, slots=True)
class LocalTrack:
    """A track as its client publishes it."""

    app_id: str
    session_id: SessionId
    name: str
    kind: Kind
    mid: str
    published_at: float
    plane_id: int | None = None
    """None until the section is agreed, and again after the end."""
    codecs: tuple[Codec, ...] = ()
    extensions: tuple[tuple[int, str], ...] = ()
    rids: tuple[str, ...] = ()
    """Simulcast layers from best to worst; empty for a single one."""
    ssrcs: tuple[tuple[int, int], ...] = ()
    """Signalled (media, RTX or 0) pairs, in the order of the layers."""
    started: bool = False
    """Whether any media arrived."""
    stalled_at: float | None = None
    """Time of the last packet, while no more come."""
    subscribers: set[RemoteTrack] = field(default_factory=set)
    closed: bool = False

    @property
    def key(self) -> TrackKey:
        """What a pull names."""
        return self.app_id, self.session_id, self.name


@dataclass(eq=False, slots=True)
class RemoteTrack:
    """A track as a client pulls it; it outlives its source as a section without media."""

    session_id: SessionId
    """The subscriber."""
    mid: str
    kind: Kind
    source_session_id: SessionId
    source_name: str
    outgoing: Outgoing
    preference: SimulcastPreference | None = None
    source: LocalTrack | None = None
    """None once the publication ended."""
    forwarder: int | None = None
    """The plane's number; None until the section is agreed."""
    codecs: tuple[Codec, ...] = ()
    """The subscriber's."""
    paused: bool = False
