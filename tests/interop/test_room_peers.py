"""The room servers compared are the same room: each keeps the contract in `loadtest.peers`, over the network.

Installs them from npm on the first run (workerd, partyserver, socket.io; about 180 MB).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from loadtest.peers.process import ServerProcess
from loadtest.peers.socketio import SocketIoServer
from loadtest.peers.torpor import TorporServer
from loadtest.peers.workerd import WorkerdServer

PEERS: dict[str, Callable[[], ServerProcess]] = {
    "torpor": TorporServer,
    "workerd": WorkerdServer,
    "socket.io": SocketIoServer,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Client:
    """One connection to a room, in the server's dialect."""

    def __init__(self, websocket: ClientConnection, dialect: str) -> None:
        self._websocket = websocket
        self._wraps = dialect == "socket.io"

    async def begin(self) -> None:
        if self._wraps:
            assert str(await self._websocket.recv()).startswith("0{")
            await self._websocket.send("40")
            assert str(await self._websocket.recv()).startswith("40{")

    async def send(self, message: str) -> None:
        await self._websocket.send("42" + json.dumps(["message", message]) if self._wraps else message)

    async def heard(self) -> str:
        async with asyncio.timeout(10):
            text = str(await self._websocket.recv())
        if not self._wraps:
            return text
        event, message = json.loads(text.removeprefix("42"))
        assert event == "message"
        return str(message)


@pytest.fixture(params=PEERS)
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[ServerProcess]:
    peer = PEERS[request.param]()
    await peer.start()
    yield peer
    await peer.stop()


@asynccontextmanager
async def joined(peer: ServerProcess, room: str) -> AsyncIterator[Client]:
    url = peer.url.replace("http", "ws", 1) + peer.room_path.format(room=room)  # type: ignore[attr-defined]
    async with connect(url, proxy=None) as websocket:
        client = Client(websocket, peer.dialect)  # type: ignore[attr-defined]
        await client.begin()
        yield client


async def connected(peer: ServerProcess, room: str) -> int:
    path = f"/?room={room}" if peer.name == "socket.io" else peer.room_path.format(room=room)  # type: ignore[attr-defined]
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(peer.url + path)  # type: ignore[attr-defined]
    assert response.status_code == 200
    return int(response.json()["connections"])


async def test_a_room_echoes_broadcasts_writes_and_answers_pings(peer: ServerProcess) -> None:
    assert peer.version
    async with joined(peer, "one") as ann, joined(peer, "one") as bob, joined(peer, "two") as eve:
        assert await connected(peer, "one") == 2
        await ann.send("e 1")
        assert await ann.heard() == "e 1"
        await ann.send("ping")
        assert await ann.heard() == "pong"
        await ann.send("b 2")
        assert await bob.heard() == "b 2"
        if peer.name != "socket.io":
            await ann.send("w 3")
            assert await ann.heard() == "w 3"
        for client in (ann, bob, eve):  # nothing else has come
            await client.send("e end")
            assert await client.heard() == "e end"
    assert peer.cpu_ns() > 0
    assert peer.resident_bytes() > 0
