"""The shell around the two ends: a Unix socket between the process of the sockets and a process of objects.

    sockets' process:  server = await listen(SocketsEnd(manager), path)
    objects' process:  link = await join(objects_end, path)      # our turn: open the storage, build the host,
                       objects_end.waker = host; link.begin()    # then take what has been waiting

One process of objects at a time. A new one may be started while the old one is still there: `join` waits for its turn,
so a deploy is "start the new, stop the old", and clients notice nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from hibernation.errors import LinkError

logger = logging.getLogger(__name__)

GREETING = b"torpor link 1\n"
"""What the sockets' end writes first: it is your turn."""
RETRY_SECONDS = 0.1


class LinkEnd(Protocol):
    """What both ends have in common."""

    def joined(self, write: Callable[[bytes], None]) -> None:
        """The other end is there."""

    def lost(self) -> None:
        """The other end is gone."""

    def receive_data(self, data: bytes) -> None:
        """Take what it wrote; raises `LinkError` for what is not its language."""


class Link(asyncio.Protocol):
    """A stream that belongs to `end`, once it has begun."""

    def __init__(self, end: LinkEnd) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the greeting has come; holds an error if something else did."""
        self._end = end
        self._received = b""
        self._begun = False
        self._transport: asyncio.Transport | None = None

    def begin(self) -> None:
        """Let the end talk: what has come meanwhile is given to it."""
        assert self._transport is not None
        self._begun = True
        if self._transport.is_closing():
            self._end.lost()
            return
        self._end.joined(self._transport.write)
        received, self._received = self._received, b""
        self._transport.resume_reading()
        self.data_received(received)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the greeting, on the objects' side."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass on, or keep until `begin`; what is not the other end's language ends the link."""
        if self._begun:
            try:
                self._end.receive_data(data)
            except LinkError as error:
                self._give_up(error)
            return
        self._received += data
        if self.turn.done():
            return
        if self._received[: len(GREETING)] != GREETING[: len(self._received)]:
            self._give_up(LinkError("no sockets' end answers there"))
        elif len(self._received) >= len(GREETING):
            self._received = self._received[len(GREETING) :]
            assert self._transport is not None
            self._transport.pause_reading()
            self.turn.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other process is gone."""
        if not self.turn.done():
            self.turn.set_exception(exc or ConnectionResetError("it is not our turn"))
        elif self._begun:
            self._end.lost()

    def greet(self, transport: asyncio.Transport) -> None:
        """Write the greeting and begin, on the sockets' side."""
        self._transport = transport
        transport.write(GREETING)
        self.turn.set_result(None)
        self.begin()

    def _give_up(self, error: LinkError) -> None:
        logger.error("a link is given up: %s", error)
        if not self.turn.done():
            self.turn.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


class _Gate(asyncio.Protocol):
    """Lets one process of objects in at a time."""

    def __init__(self, end: LinkEnd) -> None:
        self._end = end
        self._inside: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if self._inside is not None and not self._inside.is_closing():
            stream.abort()
            return
        self._inside = stream
        link = Link(self._end)
        stream.set_protocol(link)
        link.greet(stream)


async def listen(end: LinkEnd, path: Path) -> asyncio.Server:
    """Serve one process of objects after the other on a Unix socket that only this user may connect to."""
    gate = _Gate(end)
    before = os.umask(0o177)
    try:
        return await asyncio.get_running_loop().create_unix_server(lambda: gate, str(path))
    finally:
        os.umask(before)


async def join(end: LinkEnd, path: Path) -> Link:
    """Connect a process of objects; returns when it is its turn, with nothing given to `end` before `Link.begin`.

    Raises:
        LinkError: something else answers there.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, link = await loop.create_unix_connection(lambda: Link(end), str(path))
            await link.turn
            return link
        except (ConnectionError, FileNotFoundError):
            await asyncio.sleep(RETRY_SECONDS)
