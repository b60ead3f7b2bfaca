"""socket.io, on Node, with the load room; from npm.

On the wire a socket.io message is a WebSocket text frame in two layers: `4` (Engine.IO message) and `2` (event), then
JSON: `42["message","e..."]`. A client says `40` after Engine.IO's greeting (`0{...}`), and `3` to each heartbeat `2`.
"""

from __future__ import annotations

import asyncio

import httpx

from loadtest.peers import packages
from loadtest.peers.process import Dialect, ServerProcess, free_port


class SocketIoServer(ServerProcess):
    """One Node process with socket.io, WebSocket transport only, no compression.

    Args:
        core: pins it to one core.
    """

    dialect: Dialect = "socket.io"
    room_path = "/socket.io/?EIO=4&transport=websocket&room={room}"

    def __init__(self, *, core: int | None = None) -> None:
        super().__init__("socket.io", answers=self._serves, core=core)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Install it if need be, start it and wait until it answers.

        Raises:
            PeerUnavailable: it cannot be had on this machine.
            StartFailed: it did not answer.
        """
        folder = await asyncio.to_thread(packages.install)
        self.version = packages.version("socket.io")
        self.command = ["node", str(folder / "socketio_room.js"), str(self.port)]
        await super().start()

    async def _serves(self) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            try:
                return (await client.get(self.url)).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False
