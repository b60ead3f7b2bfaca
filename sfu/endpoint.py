"""Endpoint: the data plane's upcalls and one timer, brought to the event loop. Nothing is decided here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sfu._dataplane.plane import Plane, Upcall

UPCALLS_PER_TURN: Final = 256


class Endpoint:
    """Runs while the service does: `receive` gets each upcall, `wake` is called when the timer set last fires."""

    def __init__(self, plane: Plane, *, receive: Callable[[Upcall], None], wake: Callable[[], None]) -> None:
        self._plane = plane
        self._receive = receive
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(plane.fileno(), self._drain)

    def _drain(self) -> None:
        # One portion per turn of the loop: a flood of checks must not starve HTTP requests. The descriptor stays
        # readable while more is waiting.
        for upcall in self._plane.drain(UPCALLS_PER_TURN):
            self._receive(upcall)

    def set_timer(self, delay: float) -> None:
        """Call `wake` in `delay` seconds, instead of whatever was set before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, delay), self._wake)

    def close(self) -> None:
        """Stop listening to the plane and to the clock."""
        self._loop.remove_reader(self._plane.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
