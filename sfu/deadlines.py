"""Deadlines: when each of many sessions wants its time, for one timer to serve.

Most deadlines move later again and again (each consent check postpones one), so only an earlier one touches the heap;
a key that comes up too early simply says its new deadline. An idle session costs one heap entry.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=str)


class Deadlines(Generic[Key]):
    """The earliest known deadline of each key, in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._at)

    def schedule(self, key: Key, at: float | None) -> None:
        """Come up at `at` or before; None changes nothing."""
        if at is None or at >= self._at.get(key, float("inf")):
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))

    def discard(self, key: Key) -> None:
        """Forget the key; its heap entries fall out when their time comes."""
        self._at.pop(key, None)

    def due(self, now: float) -> list[Key]:
        """Take the keys whose time has come; schedule them anew to see them again."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                due.append(key)
        return due

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
