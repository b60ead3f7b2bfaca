"""What objects used, in plain numbers: one `Meter` per namespace, read by whoever exports metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

MESSAGES_PER_REQUEST = 20
"""Twenty incoming WebSocket messages count as one request."""
INSTANCE_BYTES = 128_000_000
"""What an instance in memory is charged with, whatever it uses."""


@dataclass(slots=True)
class Meter:
    """Totals of one namespace since the process started. Times are seconds summed over objects."""

    calls: int = 0
    """Calls on object stubs; calls through stubs that they returned are inside."""
    fetches: int = 0
    connects: int = 0
    messages: int = 0
    """Incoming WebSocket messages that reached a handler; auto-responses do not."""
    alarms: int = 0
    errors: int = 0
    """Events whose handler raised."""
    resets: int = 0
    overloads: int = 0
    """Events refused because a queue was full."""
    active_s: float = 0.0
    """In memory and working, or kept in memory by something else than a countdown to hibernation."""
    idle_s: float = 0.0
    """In memory, nothing to do, counting down: not charged."""
    hibernated_s: float = 0.0
    """Out of memory, with connections that wait."""
    hibernations: int = 0
    rows_read: int = 0
    rows_written: int = 0
    wakes: Counter[str] = field(default_factory=Counter)
    """Instances started, by cause: call, fetch, connect, message, close, error, alarm."""
    _asleep: dict[str, float] = field(default_factory=dict)

    def fall_asleep(self, object_key: str, now: float) -> None:
        """An object with connections has left memory."""
        self._asleep[object_key] = now

    def wake(self, object_key: str, cause: str, now: float) -> None:
        """An object comes into memory."""
        self.wakes[cause] += 1
        self.hibernated_s += now - self._asleep.pop(object_key, now)

    def hibernated_so_far(self, now: float) -> float:
        """Return `hibernated_s` with the time of those that sleep now."""
        return self.hibernated_s + len(self._asleep) * now - sum(self._asleep.values())

    @property
    def requests(self) -> float:
        """Charged requests: messages count as a twentieth."""
        return self.calls + self.fetches + self.connects + self.alarms + self.messages / MESSAGES_PER_REQUEST

    @property
    def gb_seconds(self) -> float:
        """Charged memory over time."""
        return gb_seconds(self.active_s)

    def numbers(self) -> dict[str, float]:
        """Return everything by name; wakes as `wakes_<cause>`."""
        plain = {f.name: float(getattr(self, f.name)) for f in fields(self) if f.name not in ("wakes", "_asleep")}
        causes = {f"wakes_{cause}": float(count) for cause, count in self.wakes.items()}
        return plain | causes | {"requests": self.requests, "gb_seconds": self.gb_seconds}


def gb_seconds(active_s: float) -> float:
    """Return the charged memory of so much active time."""
    return active_s * INSTANCE_BYTES / 1e9
