"""How often somebody may call: 50 calls a second of a session (no limit per app), new sessions of an address.

A generic cell rate algorithm: per key one number, the time at which its allowance is whole again. Keys whose time has
passed are forgotten, so the table holds no more keys than calls were admitted in about two seconds.
"""

from __future__ import annotations

from collections.abc import Hashable


class CallThrottle:
    """Admits `rate` calls a second per key, in bursts of at most `rate`."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._whole_at: dict[Hashable, float] = {}
        self._sweep_at = 0.0

    def admit(self, key: Hashable, *, now: float) -> bool:
        """Whether one more call of `key` is within its rate; a refused call costs nothing.

        Args:
            key: who calls; bounded in size by the caller.
            now: monotonic clock, in seconds.
        """
        if now >= self._sweep_at:
            self._whole_at = {k: at for k, at in self._whole_at.items() if at > now}
            self._sweep_at = now + 1.0
        whole_at = max(self._whole_at.get(key, now), now) + self._interval
        # The tolerance absorbs rounding, so that exactly `rate` calls fit one instant.
        if whole_at - now > 1.0 + 1e-6:
            return False
        self._whole_at[key] = whole_at
        return True

    def __len__(self) -> int:
        return len(self._whole_at)
