"""The shell around the socket table: one reader on the event loop, and a timer only while a socket waits for a time.

Events of a row go to its owner if it has one in this process (an upgrade under way, a plain ASGI WebSocket),
else to the dispatcher and so to its object.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from typing import Protocol

from hibernation._sockets.table import Event, SocketTable
from hibernation.dispatcher import Dispatcher
from hibernation.manager import HibernationManager
from objects.ports import Timer

logger = logging.getLogger(__name__)

ROUNDING = 0.002
"""Seconds that the timer is set behind its time: loops count in milliseconds, and one too early would come twice."""


class RowOwner(Protocol):
    """Something in this process that takes a connection's events itself."""

    def receive(self, event: Event) -> None:
        """Take one event; must not raise."""


class SocketService:
    """Drives the table; one per event loop.

    Args:
        manager: its table is the one driven.
        dispatcher: where events of objects' connections go; None serves plain ASGI WebSockets only.
    """

    def __init__(self, manager: HibernationManager, dispatcher: Dispatcher | None = None) -> None:
        self.manager = manager
        self.table: SocketTable = manager.table
        self.dispatcher = dispatcher
        self.owners: dict[int, RowOwner] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: Timer | None = None
        self._due = math.inf
        """When the timer fires; too early is no harm, as where what it was set for has settled itself."""

    @property
    def started(self) -> bool:
        """Whether `start` was called, and `stop` was not."""
        return self._loop is not None

    def start(self) -> None:
        """Begin to drive the table on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.table.fileno(), self._readable)
        self._set_timer()

    def now(self) -> float:
        """Return the time that the table is driven with: the manager's clock."""
        return self.manager.clock.monotonic()

    async def drain(self, *, code: int = 1012, reason: str = "service restart", over: float = 0.0) -> None:
        """Close every connection, spread evenly over `over` seconds so that not all clients come back at once.

        Clients that reconnect do so a fixed time after their close frame; spreading the closes spreads the returns.
        """
        handles = self.table.handles()
        slices = max(1, min(len(handles), round(over / 0.05)))
        for i in range(slices):
            for handle in handles[i::slices]:
                self.table.close(handle, code, reason)
            if over:
                await asyncio.sleep(over / slices)

    def stop(self) -> None:
        """Cut what is still connected and stop driving."""
        if self._loop is None:
            return
        for handle in self.table.handles():
            self.table.abort(handle)
            self.table.release(handle)
        self._loop.remove_reader(self.table.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None
        self._due = math.inf

    def _readable(self) -> None:
        self._route(self.table.process(self.now()))
        self._set_timer()

    def _time_is_up(self) -> None:
        self._timer, self._due = None, math.inf
        self._route(self.table.handle_timeout(self.now()))
        self._set_timer()

    def _set_timer(self) -> None:
        due = self.table.next_timeout()
        if due is None or due >= self._due or self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self.manager.clock.call_later(max(0.0, due - self.now()) + ROUNDING, self._time_is_up)

    def _route(self, events: Iterable[Event]) -> None:
        owners = self.owners
        if not owners and self.dispatcher is not None:
            self.dispatcher.receive(events)
            return
        for event in events:
            owner = owners.get(event[1])
            if owner is not None:
                owner.receive(event)
            elif self.dispatcher is not None:
                self.dispatcher.receive((event,))
            else:
                self.table.release(event[1])
