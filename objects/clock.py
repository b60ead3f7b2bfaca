"""Time: the loop's clock, and one that tests move by hand.

Idle times, event limits, alarms and `ctx.sleep` follow the host's clock, so a test of ten idle seconds takes none.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable

from objects.ports import Timer


class SystemClock:
    """Real time; timers are the running loop's."""

    monotonic = staticmethod(time.monotonic)
    """Seconds since some point."""

    def unix_ms(self) -> int:
        """Return milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back on the running loop after `delay` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)


class ManualTimer:
    """A call that a `ManualClock` will make."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget it."""
        self.callback = None


class ManualClock:
    """A clock that stands still until `advance` moves it; for tests of code that runs in objects."""

    def __init__(self, unix_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = unix_ms
        self._now = 0.0
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._now

    def unix_ms(self) -> int:
        """Return the start plus what was advanced."""
        return self._start_ms + round(self._now * 1000)

    def call_later(self, delay: float, callback: Callable[[], None]) -> ManualTimer:
        """Call back when the clock has been moved that far."""
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]]) -> None:
        """Move on by `seconds`, stopping at each timer on the way.

        Args:
            settle: awaited before moving and after each timer: returns when all work of the present moment is done.
                `ObjectHost.settle` is made for this.
        """
        end = self._now + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end + 1e-9:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if timer.callback is not None:
                timer.callback()
                await settle()
        self._now = end
