"""A plain ASGI WebSocket whose socket lives in the table all the same: messages in a bounded queue, no task of ours."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from hibernation._sockets.outgoing import GONE
from hibernation._sockets.table import CLOSED, FAILED, MESSAGE, WRITABLE, Event
from hibernation.connection import NO_CLOSE_FRAME
from hibernation.service import SocketService

MAX_WAITING = 32
"""Messages the application has not taken; then reading pauses."""
HIGH_WATER_BYTES = 65_536
"""Unsent bytes above which `send` waits until the socket has taken them all."""


class AsgiWebSocket:
    """Receives a row's events and turns them into ASGI messages; frees the row after its end.

    Args:
        service: drives the table.
        handle: the row, which this owns from now on.
    """

    def __init__(self, service: SocketService, handle: int) -> None:
        self._service = service
        self._table = service.table
        self._handle = handle
        self._waiting: deque[dict[str, Any]] = deque()
        self._something = asyncio.Event()
        self._writable = asyncio.Event()
        self._ended = False
        self._abandoned = False
        service.owners[handle] = self

    def receive(self, event: Event) -> None:
        """Take one event of the table."""
        kind, _, value, reason = event
        if kind == MESSAGE:
            text = isinstance(value, str)
            self._put({"type": "websocket.receive", "text": value if text else None, "bytes": None if text else value})
        elif kind == WRITABLE:
            self._writable.set()
        elif kind in (CLOSED, FAILED):
            self._ended = True
            self._writable.set()
            if self._abandoned:
                self._free()
            else:
                self._put(
                    {
                        "type": "websocket.disconnect",
                        "code": value,
                        "reason": reason if value != 1006 else NO_CLOSE_FRAME,
                    }
                )

    async def next_message(self) -> dict[str, Any]:
        """Return the next ASGI message; after the end always the same disconnect."""
        while not self._waiting:
            self._something.clear()
            await self._something.wait()
        if len(self._waiting) == 1 and self._ended:
            return self._waiting[0]
        message = self._waiting.popleft()
        if len(self._waiting) == MAX_WAITING // 2:
            self._table.resume(self._handle, self._service.now())
        return message

    async def send(self, data: str | bytes) -> None:
        """Send one message; waits while the client is slow.

        Raises:
            OSError: the connection is closed, as ASGI has it.
        """
        if self._table.send(self._handle, data) == GONE:
            raise OSError("the WebSocket is closed")
        if self._table.buffered(self._handle) > HIGH_WATER_BYTES and self._table.notify_writable(self._handle):
            self._writable.clear()
            await self._writable.wait()

    def close(self, code: int, reason: str) -> None:
        """Begin to close; the peer's answer arrives as a disconnect."""
        self._table.close(self._handle, code, reason)

    def abandon(self, code: int = 1000, reason: str = "") -> None:
        """The application is done with it: close if need be, free the row when the connection has ended."""
        self._abandoned = True
        self._waiting.clear()
        self._table.resume(self._handle, self._service.now())
        if self._ended:
            self._free()
        else:
            self._table.close(self._handle, code, reason)

    def _put(self, message: dict[str, Any]) -> None:
        if self._abandoned:
            return
        self._waiting.append(message)
        self._something.set()
        if len(self._waiting) == MAX_WAITING:
            self._table.pause(self._handle)

    def _free(self) -> None:
        self._service.owners.pop(self._handle, None)
        self._table.release(self._handle)
