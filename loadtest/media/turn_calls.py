"""Requests to a TURN server from a coroutine, over whatever carries them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from loadtest.media.turn_server import TurnServer
from loadtest.turn_client import TurnFailedError, TurnRequests
from wire import stun
from wire.errors import WireError

_FIRST_RETRY: Final = 0.25  # seconds, doubled each time
_TIMEOUT: Final = 8.0
_AUTHENTICATION_ROUNDS: Final = 3


class TurnCalls:
    """One client's transactions (RFC 8489 §6.2).

    Args:
        send: hands a request to the transport.
        reliable: TCP and TLS: nothing is sent twice.
    """

    def __init__(self, server: TurnServer, send: Callable[[bytes], None], *, reliable: bool) -> None:
        self.requests = TurnRequests(server.username, server.password)
        self._send = send
        self._reliable = reliable
        self._waiting: dict[bytes, asyncio.Future[stun.Message]] = {}

    def receive(self, data: bytes) -> None:
        """A STUN message of the server; what nobody waits for is ignored."""
        with contextlib.suppress(WireError):
            message = stun.parse(data)
            if (waiting := self._waiting.get(message.transaction_id)) is not None and not waiting.done():
                waiting.set_result(message)

    async def call(
        self, method: int, attributes: list[tuple[int, bytes]], peer: tuple[str, int] | None = None
    ) -> stun.Message:
        """The successful answer. Raises `TurnFailedError`: refused, or none within eight seconds."""
        for _ in range(_AUTHENTICATION_ROUNDS):
            reply = await self._exchange(method, *self.requests.serialize(method, attributes, peer))
            if self.requests.accept(method, reply):
                return reply
        raise TurnFailedError(method, 401, "credentials refused")

    async def _exchange(self, method: int, transaction: bytes, request: bytes) -> stun.Message:
        waiting: asyncio.Future[stun.Message] = asyncio.get_running_loop().create_future()
        self._waiting[transaction] = waiting
        try:
            async with asyncio.timeout(_TIMEOUT):
                interval = _FIRST_RETRY
                self._send(request)
                while not waiting.done():
                    await asyncio.wait([waiting], timeout=None if self._reliable else interval)
                    if not waiting.done():
                        self._send(request)
                        interval *= 2
            return waiting.result()
        except TimeoutError:
            raise TurnFailedError(method, 0, "no answer") from None
        finally:
            del self._waiting[transaction]
