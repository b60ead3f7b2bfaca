"""A virtual network: links that lose, delay, reorder and duplicate by a seed, and a clock that jumps to the next event.

No sockets, no sleeping: hours pass in milliseconds, and a seed gives the same run each time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from itertools import count

Deliver = Callable[[bytes, float], None]


class Network:
    """Owns the time and everything that is on its way.

    Args:
        seed: decides all that is random on its links.
    """

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self._seed = seed
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        """Call `function` when the clock shows `at`; calls for one time keep their order."""
        heapq.heappush(self._events, (max(at, self.now), next(self._order), function))

    def call_every(self, interval: float, function: Callable[[], None], *, until: float) -> None:
        """Call `function` now and then each `interval` seconds, up to `until`."""

        def again() -> None:
            function()
            if self.now + interval <= until:
                self.call_at(self.now + interval, again)

        self.call_at(self.now, again)

    def run(self, until: float | None = None) -> None:
        """Let everything happen up to `until`, or until nothing is left to happen."""
        while self._events and (until is None or self._events[0][0] <= until):
            self.now, _, function = heapq.heappop(self._events)
            function()
        if until is not None:
            self.now = max(self.now, until)

    def link(self, name: str, deliver: Deliver, **conditions: float | Container[int]) -> Link:
        """A one-way path to `deliver`; `conditions` are fields of `Link`. Its luck depends on seed and name alone."""
        return Link(self, deliver, random.Random(f"{self._seed}/{name}"), **conditions)  # type: ignore[arg-type]


@dataclass
class Link:
    """One direction between two ends.

    Attributes:
        loss: probability that a datagram is lost.
        lose: which datagrams are lost besides, counted from 0 in the order of sending.
        delay: seconds on the way.
        jitter: up to so many seconds more, evenly spread: more than the spacing of datagrams reorders them.
        duplicate: probability that a datagram arrives twice.
    """

    network: Network
    deliver: Deliver
    rng: random.Random
    loss: float = 0.0
    lose: Container[int] = ()
    delay: float = 0.015
    jitter: float = 0.0
    duplicate: float = 0.0
    sent: int = field(default=0, init=False)
    lost: int = field(default=0, init=False)

    def send(self, data: bytes) -> None:
        """Put a datagram on its way."""
        index, self.sent = self.sent, self.sent + 1
        if self.rng.random() < self.loss or index in self.lose:
            self.lost += 1
            return
        for _ in range(2 if self.rng.random() < self.duplicate else 1):
            at = self.network.now + self.delay + self.rng.random() * self.jitter
            self.network.call_at(at, lambda at=at: self.deliver(data, at))  # type: ignore[misc]
