"""A mergeable histogram of durations: log-spaced buckets, each at most 1/16 wide, from one microsecond to two minutes.

Bucket of `us` microseconds: sixteen per power of two, chosen by the four bits below the leading one. Processes and
machines add their counts; quantiles come from the sum and are off by at most 3 %. `loadtest/_media/histogram.pxd`
counts by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

SUB_BUCKETS: Final = 16
OCTAVES: Final = 27
BUCKETS: Final = SUB_BUCKETS * OCTAVES


def bucket_of(us: int) -> int:
    """The bucket that counts `us` microseconds; the first and the last take what lies beyond."""
    if us < 1:
        return 0
    octave = us.bit_length() - 1
    if octave >= OCTAVES:
        return BUCKETS - 1
    below = us >> octave - 4 if octave >= 4 else us << 4 - octave
    return octave * SUB_BUCKETS + (below & SUB_BUCKETS - 1)


def bounds(bucket: int) -> tuple[float, float]:
    """Lower and upper bound of a bucket, in seconds."""
    octave, sub = divmod(bucket, SUB_BUCKETS)
    unit = float(2**octave) / SUB_BUCKETS / 1e6
    return (SUB_BUCKETS + sub) * unit, (SUB_BUCKETS + sub + 1) * unit


class Histogram:
    """Durations in seconds. Not thread-safe."""

    __slots__ = ("_counts", "count", "max", "sum")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.sum = 0.0
        """Of all durations, in seconds."""
        self.max = 0.0

    def __repr__(self) -> str:
        if not self.count:
            return "Histogram()"
        return f"Histogram(count={self.count}, p50={self.quantile(0.5):.6f}, p99={self.quantile(0.99):.6f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def record(self, seconds: float, times: int = 1) -> None:
        """Count one duration, or several equal ones; a negative one counts as 0."""
        seconds = max(0.0, seconds)
        bucket = bucket_of(int(seconds * 1e6))
        self._counts[bucket] = self._counts.get(bucket, 0) + times
        self.count += times
        self.sum += seconds * times
        self.max = max(self.max, seconds)

    def merge(self, other: Histogram) -> None:
        """Add another's counts to ours."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def minus(self, earlier: Histogram) -> Histogram:
        """What was counted since `earlier`, a copy of this one then. The maximum stays that of all time."""
        since = Histogram()
        for bucket, count in self._counts.items():
            if added := count - earlier._counts.get(bucket, 0):
                since._counts[bucket] = added
        since.count, since.sum, since.max = self.count - earlier.count, self.sum - earlier.sum, self.max
        return since

    def quantile(self, q: float) -> float:
        """The duration that a share `q` (0 to 1) does not exceed, in seconds; NaN when empty."""
        if not self.count:
            return float("nan")
        rank = q * self.count
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                low, high = bounds(bucket)
                return min((low + high) / 2, self.max)
        return self.max

    @property
    def mean(self) -> float:
        """In seconds; NaN when empty."""
        return self.sum / self.count if self.count else float("nan")

    def items(self) -> Iterable[tuple[float, float, int]]:
        """Lower bound, upper bound (seconds) and count of each bucket that is not empty, ascending."""
        return ((*bounds(bucket), self._counts[bucket]) for bucket in sorted(self._counts))

    def to_json(self) -> dict[str, Any]:
        """`{"counts": {bucket: count}, "sum": seconds, "max": seconds}`."""
        counts = {str(bucket): self._counts[bucket] for bucket in sorted(self._counts)}
        return {"counts": counts, "sum": self.sum, "max": self.max}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises `ValueError` for a bucket that does not exist."""
        made = cls()
        for key, count in value["counts"].items():
            bucket = int(key)
            if not 0 <= bucket < BUCKETS or count < 0:
                raise ValueError(f"bucket {key} with count {count}")
            made._counts[bucket] = count
            made.count += count
        made.sum, made.max = float(value["sum"]), float(value["max"])
        return made
