"""Events of one object, and when there are too many of them.

The order in which events start is the input gate's business; here they are counted, so that an object which cannot
keep up refuses work instead of gathering it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from objects._step.step import EventRate
from objects.errors import QueueFull
from objects.gates import Section
from objects.ids import ObjectId
from objects.limits import Limits
from objects.ports import Delivery, Timer

if TYPE_CHECKING:
    from objects.instance import Instance


@dataclass(slots=True, eq=False)
class Event:
    """Something that an object has to handle."""

    cause: str
    """call, fetch, connect, message, close, error, alarm: for metering and for why it woke."""
    run: Callable[[Instance], Coroutine[Any, Any, Any]]
    reply: asyncio.Future[Any] | None = None
    dispatched: Callable[[Delivery], None] | None = None
    size: int = 0
    timeout: float | None = None
    section: Section | None = None
    """For calls back into a critical section that they were made possible in."""
    refusable: bool = True
    started: bool = False
    """Its first step has been taken."""
    timer: Timer | None = None
    queued_at: float | None = None
    mark: int | None = None
    """Where the output gate stood when the handler ended."""


class Mailbox:
    """The events of one instance that have not started."""

    def __init__(self, object_id: ObjectId, limits: Limits) -> None:
        self._object_id = object_id
        self._limits = limits
        self._waiting: list[Event] = []
        self._bytes = 0
        self.rate = EventRate(limits.events_per_10_s)

    def put(self, event: Event, now: float) -> None:
        """Count an event that has to wait."""
        event.queued_at = now
        self._waiting.append(event)
        self._bytes += event.size

    def take(self, event: Event) -> None:
        """It starts."""
        # Events of one section start in order, so this one is almost always the first.
        self._waiting.remove(event)
        self._bytes -= event.size

    def refusal(self, event: Event, now: float) -> QueueFull | None:
        """Return why an event cannot be taken, if it cannot."""
        limits = self._limits
        in_rate = self.rate.admit(now)
        oldest = self._waiting[0].queued_at if self._waiting else None
        if len(self._waiting) >= limits.queued_events:
            reason = "too many events are waiting"
        elif self._bytes + event.size > limits.queued_bytes:
            reason = "too many bytes are waiting"
        elif oldest is not None and now - oldest > limits.queue_age_s:
            reason = "the oldest event has been waiting too long"
        elif not in_rate:
            reason = "too many events within ten seconds"
        else:
            return None
        refusal = QueueFull(f"{self._object_id.key}: {reason}")
        refusal.object_key = self._object_id.key
        return refusal
