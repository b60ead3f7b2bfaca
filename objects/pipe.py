"""Response bodies that an object produces piece by piece.

The pieces are made by the object's own code, in a task of the object; they pass its output gate, and a few wait for a
slow reader. The object stays awake until the reader has the last one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

from objects.blockers import BODY
from objects.errors import Disconnected
from objects.failures import FAILURES, for_callers
from objects.http import HttpResponse
from objects.instance import Instance, State

PIECES = 4
"""Pieces of a body that wait for the reader before the object's code is held up."""


class BodyPipe:
    """One body on its way from an object to its reader."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | Exception | None] = deque()
        self._room = asyncio.Event()
        self._some = asyncio.Event()
        self._closed = False

    async def fill(self, instance: Instance, source: AsyncIterator[bytes]) -> None:
        """Read the object's iterator; runs as a task of the object."""
        try:
            async for piece in source:
                await instance.output.wait()
                await self._give(piece)
                if self._closed:
                    return
            await instance.output.wait()
            await self._give(None)
        except FAILURES as error:
            await self._give(for_callers(error, instance.object_id))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the pieces; stopping early stops the object's iterator too."""
        try:
            while True:
                while not self._pieces:
                    self._some.clear()
                    await self._some.wait()
                piece = self._pieces.popleft()
                self._room.set()
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self._closed = True
            self._room.set()

    def cut(self) -> None:
        """The object was reset: the reader gets an error instead of an end."""
        self._pieces.clear()
        self._pieces.append(Disconnected("the object was reset while it sent a response"))
        self._some.set()

    async def _give(self, piece: bytes | Exception | None) -> None:
        while len(self._pieces) >= PIECES and not self._closed:
            self._room.clear()
            await self._room.wait()
        self._pieces.append(piece)
        self._some.set()


def sent_by(instance: Instance, response: HttpResponse) -> HttpResponse:
    """Return a response whose streamed body, if it has one, is produced by `instance`."""
    if isinstance(response.body, bytes):
        return response
    pipe = BodyPipe()
    task = instance.tasks.spawn(
        pipe.fill(instance, aiter(response.body)), instance.input.root, name="response body", blocker=BODY
    )

    def ended(_: asyncio.Task[None]) -> None:
        if instance.state is State.GONE:
            pipe.cut()

    task.add_done_callback(ended)
    return replace(response, body=pipe)
