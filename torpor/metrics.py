"""Prometheus text exposition, format 0.0.4, and the counters that belong to nobody else.

The planes count for themselves and hand over plain numbers when asked; `Family` is the one shape in which all figures
meet. Collecting happens when `/metrics` is read, never before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
"""Suffix to the family's name (empty but for histograms), labels, value."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: name, type, help, and its samples."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    text: str
    samples: Sequence[Sample] = ()


def counter(name: str, text: str, values: Mapping[str, float] | float, label: str = "") -> Family:
    """A counter, plain or by one label. The name gets no suffix: write `_total` yourself."""
    return Family(name, "counter", text, _samples(values, label))


def gauge(name: str, text: str, values: Mapping[str, float] | float, label: str = "") -> Family:
    """A gauge, plain or by one label."""
    return Family(name, "gauge", text, _samples(values, label))


def _samples(values: Mapping[str, float] | float, label: str) -> list[Sample]:
    if isinstance(values, Mapping):
        return [("", ((label, key),), value) for key, value in sorted(values.items())]
    return [("", (), values)]


def histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float | None) -> Family:
    """A histogram from per-bucket counts.

    Args:
        bounds: upper bounds, ascending, without infinity.
        counts: how many fell into each bucket; one more than `bounds`, the last is what lies above them.
        total: sum of all observed values, if it is known.
    """
    return Family(name, "histogram", text, list(_buckets((), bounds, counts, total)))


def _buckets(labels: Labels, bounds: Sequence[float], counts: Sequence[int], total: float | None) -> Iterator[Sample]:
    seen = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        seen += count
        yield "_bucket", (*labels, ("le", _number(bound))), seen
    if total is not None:
        yield "_sum", labels, total
    yield "_count", labels, seen


def render(families: Iterable[Family]) -> str:
    """The exposition: HELP and TYPE before each family's samples, a line feed at the end."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escape(family.text, quote=False)}")
        lines.append(f"# TYPE {family.name} {family.type}")
        for suffix, labels, value in family.samples:
            inner = ",".join(f'{name}="{_escape(text, quote=True)}"' for name, text in labels)
            braced = f"{{{inner}}}" if inner else ""
            lines.append(f"{family.name}{suffix}{braced} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escape(text: str, *, quote: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


@dataclass(slots=True)
class Histogram:
    """Counts observations into fixed buckets."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self, labels: Labels = ()) -> Iterator[Sample]:
        """Its samples under `labels`."""
        return _buckets(labels, self.bounds, self.counts, self.total)


REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class HttpMetrics:
    """Requests by route, method and status. Labels come from our route table, so their number is bounded."""

    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[str, Histogram] = {}

    def record(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. An invented method counts as `other`."""
        key = (route, method if method in self.METHODS else "other", status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if route not in self._seconds:
            self._seconds[route] = Histogram(REQUEST_BOUNDS)
        self._seconds[route].observe(seconds)

    def collect(self) -> Iterator[Family]:
        """Both families."""
        requests = [
            ("", (("route", route), ("method", method), ("status", str(status))), float(count))
            for (route, method, status), count in sorted(self._requests.items())
        ]
        yield Family("torpor_http_requests_total", "counter", "HTTP requests answered.", requests)
        seconds = [
            sample for route in sorted(self._seconds) for sample in self._seconds[route].samples((("route", route),))
        ]
        yield Family("torpor_http_request_seconds", "histogram", "Time from request head to end of answer.", seconds)
