"""Figures: named counters and histograms of times, the one form in which all measurements travel and are kept.

What an engine sends, what Locust's workers report to their master and what a report stores are the same thing, and
adding is all that happens on the way. Names are `group.what`, such as `rooms.delivered`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from loadtest.histogram import Histogram


class Figures:
    """Counters that grow, and histograms, by name."""

    __slots__ = ("counters", "times")

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.times: dict[str, Histogram] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Count something."""
        self.counters[name] = self.counters.get(name, 0) + amount

    def record(self, name: str, seconds: float) -> None:
        """Count a time."""
        self.time(name).record(seconds)

    def time(self, name: str) -> Histogram:
        """The histogram of a name, empty when it is new."""
        histogram = self.times.get(name)
        if histogram is None:
            histogram = self.times[name] = Histogram()
        return histogram

    def count(self, name: str) -> float:
        """A counter; 0 when nothing was counted."""
        return self.counters.get(name, 0)

    def merge(self, other: Figures) -> None:
        """Add all of another's."""
        for name, amount in other.counters.items():
            self.add(name, amount)
        for name, histogram in other.times.items():
            self.time(name).merge(histogram)

    def take(self) -> Figures:
        """What was counted since the last call; this one starts from nothing again."""
        taken = Figures()
        taken.counters, self.counters = self.counters, {}
        taken.times, self.times = self.times, {}
        return taken

    def __bool__(self) -> bool:
        return bool(self.counters or self.times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Figures) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_json(self) -> dict[str, Any]:
        """`{"counters": {name: number}, "times": {name: histogram}}`."""
        return {
            "counters": {name: self.counters[name] for name in sorted(self.counters)},
            "times": {name: self.times[name].to_json() for name in sorted(self.times)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: not such an object.
        """
        figures = cls()
        try:
            figures.counters = {str(name): float(amount) for name, amount in data["counters"].items()}
            figures.times = {str(name): Histogram.from_json(value) for name, value in data["times"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not figures: {error!r}") from error
        return figures
