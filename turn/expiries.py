"""When allocations are to be looked at: a heap with one valid entry for each.

A refresh moves nothing: the entry comes due early, and is made anew. Entries of allocations that were ended before
their time stay until they come due or outnumber the valid ones: making and ending allocations cannot fill memory.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from turn.allocation import Allocation

_SPARE = 64


class ExpiryQueue:
    """All of one server."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Allocation]] = []
        self._sequence = 0
        self._live = 0

    def __len__(self) -> int:
        """Entries, the outdated ones included."""
        return len(self._heap)

    def schedule(self, allocation: Allocation) -> None:
        """Let it come due no later than the first of its relays expires."""
        soonest = min(relay.expires_at for relay in allocation.relays)
        if soonest >= allocation.scheduled_at:
            return
        self._live += allocation.scheduled_at == math.inf
        allocation.scheduled_at = soonest
        self._sequence += 1
        heapq.heappush(self._heap, (soonest, self._sequence, allocation))
        if len(self._heap) > 2 * self._live + _SPARE:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].scheduled_at]
            heapq.heapify(self._heap)

    def forget(self, allocation: Allocation) -> None:
        """It has ended."""
        self._live -= allocation.scheduled_at != math.inf
        allocation.scheduled_at = math.inf

    def due(self, now: float) -> Iterator[Allocation]:
        """Iterate over those whose time has come. Schedule each again, unless it ends."""
        while self._heap and self._heap[0][0] <= now:
            due, _, allocation = heapq.heappop(self._heap)
            if allocation.scheduled_at == due:
                self.forget(allocation)
                yield allocation

    def next_timeout(self) -> float | None:
        """When the next entry comes due."""
        return self._heap[0][0] if self._heap else None

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._live = 0
