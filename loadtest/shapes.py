"""How the users of a profile come and go, as Locust load shapes."""

from __future__ import annotations

import math
import time
from typing import Any

from locust import LoadTestShape

from loadtest.observer import Observer
from loadtest.profiles import Profile

Tick = tuple[int, float] | None
FULL_WITHIN = 60.0
"""Seconds beyond the time that the spawn rate takes; a run whose users are not there then is measured without them."""


class ProfileShape(LoadTestShape):
    """Follows the profile that the command line names: `constant`, `ramp` or `spike`."""

    use_common_options = True  # their values are not used, but nobody shall be warned of defaults
    abstract = True
    observer: Observer | None = None

    def __init__(self) -> None:
        super().__init__()
        self._full_at: float | None = None

    def reset_time(self) -> None:
        """A test starts (again)."""
        super().reset_time()
        self._full_at = None

    def tick(self) -> Any:
        """Users wanted now and how fast they come; None at the end."""
        assert self.observer is not None
        profile = self.observer.profile
        if profile.shape == "constant":
            return self._constant(profile)
        return staged(profile, self.get_run_time())

    def _constant(self, profile: Profile) -> Tick:
        assert self.observer is not None
        rate = float(profile.parameters["spawn_rate"])
        if self._full_at is None:
            late = self.get_run_time() > profile.total / rate + FULL_WITHIN
            if self.observer.all_ready() or late or self.observer.nobody_joins(self.get_run_time()):
                self._full_at = time.monotonic()
        else:
            measured = time.monotonic() - self._full_at - profile.parameters["quiet"]
            if measured >= profile.parameters["duration"]:
                return None
            if measured >= 0:
                self.observer.full()
        return profile.total, rate


def staged(profile: Profile, seconds: float) -> Tick:
    """Users wanted `seconds` into a ramp or a spike; None when it is over."""
    duration = float(profile.parameters["duration"])
    if seconds >= duration:
        return None
    if profile.shape == "ramp":
        users = max(1, math.ceil(profile.total * min(1.0, (seconds + 1) / duration)))
        return users, max(1.0, profile.total / duration * 2)
    share = 1.0 if duration / 3 <= seconds < duration * 2 / 3 else 0.2
    return max(1, math.ceil(profile.total * share)), float(profile.parameters["spawn_rate"])
