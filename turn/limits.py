"""Bounded counters and rates: quotas, token buckets, one bucket per source in a table of fixed size."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Hashable

from wire.stun import IPAddress

_SOURCE_SLOTS = 4096


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved. A rate of 0 means no limit."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated_at = now

    def take(self, count: float, now: float) -> bool:
        """Take `count` tokens, all or none."""
        if self._rate <= 0:
            return True
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated_at) * self._rate)
        self._updated_at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True


class Pace:
    """Bits per second of a stream, kept by waiting: what is too fast is not dropped but taken later.

    Args:
        bps: 0 means no limit.
    """

    __slots__ = ("_bytes_per_s", "_free_at")

    def __init__(self, bps: float) -> None:
        self._bytes_per_s = bps / 8
        self._free_at = 0.0

    def charge(self, size: int, now: float) -> float:
        """Count `size` bytes that passed; return for how many seconds no more should be taken."""
        if self._bytes_per_s <= 0:
            return 0.0
        self._free_at = max(self._free_at, now) + size / self._bytes_per_s
        return self._free_at - now


def network_of(source: IPAddress) -> tuple[int, int]:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one, of which a host has every address."""
    return source.version, int(source) if source.version == 4 else int(source) >> 64


class SourceLimiter:
    """A token bucket per source network (IPv4 address or IPv6 /64) in a table of fixed size (X11).

    Sources that fall on one slot share it: a flood of forged addresses costs no memory, only the accuracy of the limit.
    The slot depends on a secret, so that nobody can aim at a victim's.
    """

    def __init__(self, rate: float, burst: float, *, seed: bytes | None = None) -> None:
        self._rate = rate
        self._burst = burst
        self._seed = secrets.token_bytes(16) if seed is None else seed
        self._slots: list[TokenBucket | None] = [None] * _SOURCE_SLOTS

    def take(self, source: IPAddress, now: float) -> bool:
        """Whether one more answer may go to `source`."""
        slot = hash((self._seed, network_of(source))) % _SOURCE_SLOTS
        bucket = self._slots[slot]
        if bucket is None:
            bucket = self._slots[slot] = TokenBucket(self._rate, self._burst, now)
        return bucket.take(1, now)


class Quota:
    """How many allocations live per key. Take and release come in pairs (X13)."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._held: Counter[Hashable] = Counter()

    def take(self, key: Hashable) -> bool:
        """One more for `key`; False when it has its share."""
        if self._held[key] >= self._maximum:
            return False
        self._held[key] += 1
        return True

    def release(self, key: Hashable) -> None:
        """One less. A key without allocations is forgotten."""
        self._held[key] -= 1
        if self._held[key] <= 0:
            del self._held[key]

    def __len__(self) -> int:
        return sum(1 for count in self._held.values() if count)
