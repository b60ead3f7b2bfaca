"""Whether a run measured the server, or its own load generator: the thresholds, and what is said beyond them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loadtest.figures import Figures

CPU_BUSY: Final = 0.9
"""A second in which a process (or a thread that owns a core) used more than this share of a core counts as busy."""
BUSY_SHARE: Final = 0.2
"""More than this share of busy seconds, and the generator is saturated."""
LAG_MAX: Final = 0.05
"""Seconds at the 99th percentile: the engine's loop woke later, or messages left later than they were due."""
EXIT_INVALID: Final = 3
"""Exit code of a run that does not count."""

WATCHED: Final[Mapping[str, str]] = {
    "locust_cpu": "a Locust process",
    "engine_cpu": "an engine's event loop",
    "plane_cpu": "an engine's media thread",
}
"""Keys of samples, and what they are: each the busiest of its kind in that second."""
LAGS: Final[Mapping[str, str]] = {
    "engine.loop_lag": "the engine's event loop woke late",
    "engine.send_lag": "messages left later than they were due",
    "plane.send_lag": "media packets left later than they were due",
    "turn.send_lag": "packets to relays left later than they were due",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run is worth."""

    reasons: tuple[str, ...]
    """Why it does not count; empty when it does."""

    @property
    def valid(self) -> bool:
        """Whether the figures are the server's."""
        return not self.reasons

    def __str__(self) -> str:
        return "valid" if self.valid else "INVALID: " + "; ".join(self.reasons)


def judge(samples: Iterable[Mapping[str, Any]], figures: Figures, gone: str = "") -> Verdict:
    """Judge the measured part of a run.

    Args:
        samples: one a second, with the keys of `WATCHED`.
        figures: with the histograms of `LAGS`, as far as there are any.
        gone: why the generator itself broke down, if it did.
    """
    samples = list(samples)
    reasons = [gone] if gone else []
    if not samples:
        reasons.append("nothing was measured: the run ended before all users were there")
    for key, name in WATCHED.items():
        busy = sum(sample.get(key, 0.0) > CPU_BUSY for sample in samples)
        if samples and busy / len(samples) > BUSY_SHARE:
            worst = max(sample.get(key, 0.0) for sample in samples)
            reasons.append(
                f"{name} used more than {CPU_BUSY:.0%} of a core in {busy} of {len(samples)} seconds "
                f"(at most {worst:.0%}): use --processes, fewer users or a lower rate"
            )
    for key, what in LAGS.items():
        lag = figures.times.get(key)
        if lag is not None and lag.count and lag.quantile(0.99) > LAG_MAX:
            reasons.append(f"{what}: {lag.quantile(0.99) * 1000:.0f} ms at p99, above {LAG_MAX * 1000:.0f} ms")
    lost_here = figures.count("plane.dropped_receiving") + figures.count("plane.dropped_sending")
    packets = figures.count("plane.received") + figures.count("plane.sent")
    if packets and lost_here / packets > 0.001:
        reasons.append(f"the client itself dropped {lost_here:,.0f} of {packets:,.0f} datagrams")
    return Verdict(tuple(reasons))
