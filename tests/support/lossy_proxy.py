"""A UDP path that loses media: between one peer and the server, where a kernel may have no network emulator."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class LossyProxy:
    """Forwards datagrams both ways and loses RTP and RTCP, by a seed.

    Args:
        loss_down: probability that a media datagram towards the peer is lost.
        loss_up: the same towards the server.
    """

    def __init__(self, server_port: int, *, loss_down: float, loss_up: float, seed: int) -> None:
        self._loss_down = loss_down
        self._loss_up = loss_up
        self.forwarded = 0
        self.lost = 0
        self.port = 0
        self._server_port = server_port
        self._rng = random.Random(seed)
        self._peer: tuple[str, int] | None = None
        self._near: asyncio.DatagramTransport | None = None
        self._far: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._far, _ = await loop.create_datagram_endpoint(
            lambda: _Side(self._from_server), remote_addr=("127.0.0.1", self._server_port)
        )
        self._near, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_peer), local_addr=("127.0.0.1", 0))
        self.port = self._near.get_extra_info("sockname")[1]

    def close(self) -> None:
        for transport in (self._near, self._far):
            if transport is not None:
                transport.close()

    def redirect(self, sdp: str) -> str:
        """The server's description, with its candidates led through here."""
        return re.sub(rf"(a=candidate:.* 127\.0\.0\.1) {self._server_port} ", rf"\1 {self.port} ", sdp)

    def _from_peer(self, data: bytes, source: tuple[str, int]) -> None:
        self._peer = source
        if self._far is not None and not self._loses(data, self._loss_up):
            self._far.sendto(data)

    def _from_server(self, data: bytes, source: tuple[str, int]) -> None:
        if self._peer is None or self._near is None:
            return
        if not self._loses(data, self._loss_down):
            self._near.sendto(data, self._peer)

    def _loses(self, data: bytes, probability: float) -> bool:
        lost = 128 <= data[0] <= 191 and self._rng.random() < probability
        self.lost += lost
        self.forwarded += not lost
        return lost


class _Side(asyncio.DatagramProtocol):
    def __init__(self, receive: Any) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._receive(data, addr)


@asynccontextmanager
async def lossy_proxy(
    server_port: int, *, loss_down: float = 0.0, loss_up: float = 0.0, seed: int = 1
) -> AsyncIterator[LossyProxy]:
    """A proxy to the server's UDP port for the time of the context."""
    proxy = LossyProxy(server_port, loss_down=loss_down, loss_up=loss_up, seed=seed)
    await proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
