"""Every limit of a host in one place; the defaults are the documented ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds unless the name says otherwise."""

    idle_s: float = 10.0
    """An instance without blockers hibernates after this."""
    evict_after_s: float = 70.0
    """One that only timers keep awake, without clients and events for this long, goes at the next sweep."""
    sweep_s: float = 70.0
    """So such an instance goes after 70 to 140 s."""
    critical_section_s: float = 30.0
    commit_s: float = 30.0
    alarm_s: float = 900.0
    """How long one run of an alarm handler may take."""
    blocking_s: float | None = None
    """How long code of an object may run without an await, holding everything up; then it is stopped and its object
    reset. None is for ever. Works only where the loop runs on the main thread."""
    leave_s: float = 10.0
    """How long a `before_leave` handler may take."""
    stop_s: float = 30.0
    """How long events under way may go on when the host stops."""
    queued_events: int = 2_000
    """Events of one object that wait; one more is refused as overload."""
    queued_bytes: int = 64 * 1024 * 1024
    queue_age_s: float = 30.0
    """While the oldest event of an object has waited longer than this, new ones are refused."""
    events_per_10_s: int = 50_000
    """Events of one object within ten seconds."""
    instances: int = 50_000
    """Objects in memory at once; an event that would wake one more is refused as overload."""
    database_bytes: int = 10 * 1024**3
    """Size of one object's file."""
    open_files: int = 1_000
    """Object files open at once; each takes two descriptors."""
    restore_point_s: float | None = None
    """Make restore points by themselves, at most one in this time per object that writes; None is never."""
