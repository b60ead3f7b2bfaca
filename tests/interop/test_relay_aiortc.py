"""aiortc behind a firewall: aioice's TURN client, over each transport, into a call through our relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiortc import RTCIceServer

from tests.support.aiortc_peer import loopback_only, open_peer, until
from tests.support.certificates import make_certificate
from tests.support.clips import EncodedTrack
from tests.support.server import Server, running_server

__all__ = ["loopback_only"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("loopback_only"),
]

TRANSPORTS = {
    "udp": ("turn:", "?transport=udp"),
    "tcp": ("turn:", "?transport=tcp"),
    "tls": ("turns:", "?transport=tcp"),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["in-memory", "network"])
async def server(certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Packets between relay and media side stay in memory, as by default, or pass the network."""
    flags = ["--turn-tls-certificate", str(certificate[0]), "--turn-tls-key", str(certificate[1])]
    if request.param == "network":
        flags += ["--turn-media-in-memory", "false"]
    async with running_server(*flags) as server:
        yield server
        in_memory = [
            await figure(server, f"torpor_{plane}_in_memory_{way}_total")
            for plane, ways in (("media", ("in", "out")), ("turn", ("sent", "received")))
            for way in ways
        ]
        if request.param == "network":
            assert in_memory == [0, 0, 0, 0]
        else:
            # Both planes saw the same datagrams, and neither sent its share through a socket to the other.
            assert in_memory[0] == in_memory[2] > 100
            assert in_memory[1] == in_memory[3] > 100
            assert await figure(server, "torpor_media_datagrams_in_total") == 0
            assert await figure(server, "torpor_media_datagrams_out_total") == 0


async def call_key(server: Server, method: str, path: str, body: Any = None) -> httpx.Response:
    """A request of whoever has the key, as a back end would send it."""
    async with httpx.AsyncClient(headers=server.authorization) as client:
        return await client.request(method, f"{server.url}/v1/turn/keys/{server.app_id}{path}", json=body)


async def relay(server: Server, transport: str, identifier: str) -> RTCIceServer:
    """A TURN server of one transport, with a credential from the HTTP API."""
    answer = await call_key(
        server, "POST", "/credentials/generate-ice-servers", {"ttl": 3600, "customIdentifier": identifier}
    )
    assert answer.status_code == 201
    (turn,) = [entry for entry in answer.json()["iceServers"] if "credential" in entry]
    scheme, parameter = TRANSPORTS[transport]
    (url,) = [url for url in turn["urls"] if url.startswith(scheme) and url.endswith(parameter)]
    return RTCIceServer(urls=[url], username=turn["username"], credential=turn["credential"])


async def figure(server: Server, name: str) -> float:
    """A metric without labels."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def allocations(server: Server) -> dict[str, dict[str, Any]]:
    """The key's live allocations by custom identifier."""
    listed = (await call_key(server, "GET", "/allocations")).json()["allocations"]
    return {entry["customIdentifier"]: entry for entry in listed}


class TestRelayOnly:
    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_media_passes_bit_for_bit_both_ways(
        self, server: Server, certificate: tuple[Path, Path], transport: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        up, down = [await relay(server, transport, f"{way}-{transport}") for way in ("up", "down")]
        async with open_peer(server, relays=[up]) as publisher, open_peer(server, relays=[down]) as subscriber:
            await publisher.publish(audio=EncodedTrack("opus"), video=EncodedTrack("VP8"))
            await publisher.connected()
            pulled = await subscriber.pull(publisher, "audio", "video")
            await subscriber.connected()
            for track in pulled:
                await until(track.name, lambda t=track: len(subscriber.packets_received(t)) >= 50, within=20)  # type: ignore[misc]
            sent = {packet.payload for packet in publisher.recording.sent}
            for track in pulled:
                assert {packet.payload for packet in subscriber.packets_received(track)} <= sent
            live = await allocations(server)
            first, second = live[f"up-{transport}"], live[f"down-{transport}"]
            assert first["transport"] == second["transport"] == transport
            assert first["bytesFromClient"] > first["bytesToClient"] > 0
            assert second["bytesToClient"] > second["bytesFromClient"] > 0
            assert first["channels"] == second["channels"] == 1

    async def test_a_revoked_credential_ends_its_relay(self, server: Server) -> None:
        turn = await relay(server, "udp", "revoked")
        async with open_peer(server, relays=[turn]) as publisher:
            await publisher.publish(audio=EncodedTrack("opus"))
            await publisher.connected()
            assert "revoked" in await allocations(server)
            assert (await call_key(server, "POST", f"/credentials/{turn.username}/revoke")).status_code == 204
            assert "revoked" not in await allocations(server)

    async def test_a_stopping_server_says_goodbye_through_the_relay(self) -> None:
        async with (
            running_server() as server,
            open_peer(server, relays=[await relay(server, "udp", "bye")]) as publisher,
        ):
            await publisher.publish(audio=EncodedTrack("opus"))
            await publisher.connected()
            await server.stop()
            # By close_notify: without it ICE would notice only after half a minute.
            await publisher.reach("closed")
