"""aioice's TURN client, the one behind aiortc, against us."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from aioice import Candidate, Connection
from aioice.stun import TransactionFailed
from aioice.turn import create_turn_endpoint

from tests.support.turn_sockets import PASSWORD, USER, Peer, serving
from turn.service import TurnService


class Receiver(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()
        self.closed = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put_nowait((data, addr))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


async def endpoint(service: TurnService, transport: str, **changes: Any) -> tuple[Any, Receiver]:
    context: Any = False
    if transport == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    options = {"username": USER, "password": PASSWORD, "lifetime": 600, "channel_refresh_time": 500} | changes
    return await create_turn_endpoint(
        Receiver,
        server_addr=("127.0.0.1", service.tls_port if transport == "tls" else service.port),
        transport="udp" if transport == "udp" else "tcp",
        ssl=context,
        **options,
    )


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_channels_both_ways(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        peer = await Peer.open()
        turn, receiver = await endpoint(service, transport)
        turn.sendto(b"hello", (str(peer.address.ip), peer.address.port))
        data, relay = await peer.receive()
        assert data == b"hello"
        assert (str(relay.ip), relay.port) == turn.get_extra_info("sockname")
        for size in (0, 1, 3, 1200):
            peer.send(b"x" * size, relay)
            data, source = await asyncio.wait_for(receiver.received.get(), 5)
            assert (data, source) == (b"x" * size, (str(peer.address.ip), peer.address.port))
        turn.close()
        await asyncio.wait_for(receiver.closed.wait(), 5)
        peer.close()


async def test_issued_credentials_and_a_wrong_password(tmp_path: Path) -> None:
    async with serving(tmp_path, keys={"key": "token"}) as service:
        entry = service.ice_servers(60, key_id="key")[-1]
        turn, receiver = await endpoint(service, "udp", username=entry.username, password=entry.credential)
        turn.close()
        await asyncio.wait_for(receiver.closed.wait(), 5)
        with pytest.raises(TransactionFailed) as caught:
            await endpoint(service, "udp", username=entry.username, password="wrong")
        assert caught.value.response.attributes["ERROR-CODE"][0] == 401


async def test_two_ice_agents_meet_through_relays_only(tmp_path: Path) -> None:
    """Relay candidates on both sides: each reaches the other's relayed address of the same server (X8)."""
    async with serving(tmp_path, allow_loopback_peers=False) as service:
        options: dict[str, Any] = {
            "turn_server": ("127.0.0.1", service.port),
            "turn_username": USER,
            "turn_password": PASSWORD,
        }
        one, two = Connection(ice_controlling=True, **options), Connection(ice_controlling=False, **options)
        await asyncio.gather(one.gather_candidates(), two.gather_candidates())

        async def introduce(agent: Connection, other: Connection) -> None:
            for candidate in other.local_candidates:
                if candidate.type == "relay":
                    await agent.add_remote_candidate(Candidate.from_sdp(candidate.to_sdp()))
            await agent.add_remote_candidate(None)
            agent.remote_username, agent.remote_password = other.local_username, other.local_password

        await introduce(one, two)
        await introduce(two, one)
        await asyncio.wait_for(asyncio.gather(one.connect(), two.connect()), 20)
        await one.send(b"ping")
        assert await asyncio.wait_for(two.recv(), 5) == b"ping"
        await two.send(b"pong")
        assert await asyncio.wait_for(one.recv(), 5) == b"pong"
        await asyncio.gather(one.close(), two.close())
