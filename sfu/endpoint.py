"""The shell: the plane's upcalls and one timer for the event loop, events for listeners. Nothing is decided here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sfu.events import Dated

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


class EventStream:
    """One listener's events: use as an async context manager, then iterate. Ends when the service closes.

    The queue is bounded: a listener that falls behind loses the oldest events, counted in `lost`.
    """

    def __init__(self, listeners: set[EventStream], queue_max: int) -> None:
        self.lost = 0
        self._listeners = listeners
        self._queue: deque[Dated] = deque(maxlen=queue_max)
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, event: Dated) -> None:
        """Called by the service."""
        self.lost += len(self._queue) == self._queue.maxlen
        self._queue.append(event)
        self._ready.set()

    def close(self) -> None:
        """End the iteration once the queue is empty. Idempotent."""
        self._closed = True
        self._listeners.discard(self)
        self._ready.set()

    async def __aenter__(self) -> Self:
        self._listeners.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Dated:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()
