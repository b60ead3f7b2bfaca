"""Relay ports, picked uniformly by the system's random source: nobody can guess the next one (A14, A15, A22)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from turn.errors import ConfigurationError

_RANDOM_TRIES = 64


class PortPool:
    """The ports of one relay address, each free or taken."""

    def __init__(self, first: int, last: int, *, randbelow: Callable[[int], int] = secrets.randbelow) -> None:
        if not 1024 <= first <= last <= 65535:
            raise ConfigurationError(f"relay ports {first} to {last}: not a range within 1024 to 65535")
        self._first = first
        self._last = last
        self._randbelow = randbelow
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return self._last - self._first + 1 - len(self._taken)

    def candidates(self, *, even: bool = False, pair: bool = False) -> Iterator[int]:
        """Free ports: random picks first, then, when the pool is nearly full, a scan from a random start.

        Args:
            even: even ports only.
            pair: even ports whose odd neighbour is free as well.
        """
        size = self._last - self._first + 1
        for _ in range(_RANDOM_TRIES):
            port = self._first + self._randbelow(size)
            if self._fits(port, even or pair, pair):
                yield port
        start = self._randbelow(size)
        for step in range(size):
            port = self._first + (start + step) % size
            if self._fits(port, even or pair, pair):
                yield port

    def _fits(self, port: int, even: bool, pair: bool) -> bool:
        if port in self._taken or (even and port % 2):
            return False
        return not pair or (port + 1 <= self._last and port + 1 not in self._taken)

    def take(self, port: int) -> None:
        """Mark `port` as taken."""
        self._taken.add(port)

    def release(self, port: int) -> None:
        """Mark `port` as free."""
        self._taken.discard(port)
