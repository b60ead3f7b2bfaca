"""A `MediaPeer` that reaches the server through TURN only: one allocation over UDP, one channel to the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Final

from loadtest.media.peer import ConnectFailed, MediaPeer
from loadtest.media.turn_calls import TurnCalls
from loadtest.media.turn_server import TurnServer
from loadtest.turn_client import TurnFailedError, TurnRequests, channel_data
from wire.stun import Method

CHANNEL: Final = 0x4000
REFRESH_INTERVAL: Final = 240.0  # permissions last 300 s, channels and allocations 600 s


class RelayedPeer(MediaPeer):
    """See the module. Refreshes itself whenever `check` finds it due.

    Raises:
        ConnectFailed: the server is not reached over UDP; only UDP carries media here.
    """

    def __init__(self, server: TurnServer, *, host: str) -> None:
        if server.transport != "udp":
            raise ConnectFailed("media goes through TURN over UDP only")
        super().__init__(host=host)
        self._server = server
        self._calls = TurnCalls(server, super()._send, reliable=False)
        self._peer: tuple[str, int] = ("", 0)
        self._refresh_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """A consent check; and what the allocation needs, when it is time."""
        super().check()
        if self._refresh_at and time.monotonic() >= self._refresh_at:
            self._refresh_at = time.monotonic() + REFRESH_INTERVAL
            self._refreshing = asyncio.create_task(self._refresh())

    def receive_from_relay(self, data: bytes) -> None:
        """One datagram of the TURN server itself."""
        self._calls.receive(data)

    def close(self) -> None:
        """Say close_notify, release the allocation without waiting for the answer, free the socket. Idempotent."""
        if self.socket.fileno() >= 0 and self.channel:
            if self._dtls is not None:
                self._dtls.close()
                self._flush()
            with contextlib.suppress(OSError):
                self.socket.send(self._calls.requests.serialize(Method.REFRESH, TurnRequests.lifetime(0))[1])
            self._dtls = None
        if self._refreshing is not None:
            self._refreshing.cancel()
        super().close()

    async def _open_path(self, candidate: tuple[str, int]) -> None:
        self.target, self._peer = (self._server.host, self._server.port), candidate
        self.socket.connect(self.target)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.socket, self._read)
        try:
            family = socket.AF_INET6 if ":" in candidate[0] else socket.AF_INET
            await self._calls.call(Method.ALLOCATE, TurnRequests.allocation(600, family))
            await self._calls.call(Method.CHANNEL_BIND, TurnRequests.channel(CHANNEL), self._peer)
        except TurnFailedError as error:
            raise ConnectFailed(str(error)) from error
        finally:
            loop.remove_reader(self.socket)
        self.channel = CHANNEL
        self._refresh_at = time.monotonic() + REFRESH_INTERVAL

    async def _refresh(self) -> None:
        """A channel's binding installs its permission, too (RFC 8656 §12.1)."""
        with contextlib.suppress(TurnFailedError):
            await self._calls.call(Method.REFRESH, TurnRequests.lifetime(600))
            await self._calls.call(Method.CHANNEL_BIND, TurnRequests.channel(CHANNEL), self._peer)

    def _send(self, data: bytes) -> None:
        super()._send(channel_data(self.channel, data))

    def _receive_datagram(self, data: bytes) -> None:
        if int.from_bytes(data[:2], "big") == CHANNEL and len(data) >= 4:
            self.receive(data[4 : 4 + int.from_bytes(data[2:4], "big")])
        elif data[0] < 4:
            self.receive_from_relay(data)
