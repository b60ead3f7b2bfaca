"""The load tests' TURN client, and media that goes through a relay only, against our server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from loadtest.media.client import MediaClient
from loadtest.media.source import MediaSource
from loadtest.media.torpor import TorporTarget
from loadtest.media.turn import Transport, TurnFailedError, TurnServer, open_relay
from tests.support.server import running_server
from tests.support.turn_sockets import PASSWORD, USER, serving
from turn.service import TurnService


def reached(
    service: TurnService, transport: Transport, *, host: str = "127.0.0.1", password: str = PASSWORD
) -> TurnServer:
    return TurnServer(host, service.tls_port if transport == "tls" else service.port, USER, password, transport)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_what_is_sent_comes_back_and_is_timed(transport: Transport, tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        relay = await open_relay(reached(service, transport))
        try:
            assert 0 < relay.allocate_seconds < 5
            await relay.echo(seconds=1.0, pps=100, size=203)
            await relay.refresh()
            await asyncio.sleep(0.1)
            figures = relay.figures()
        finally:
            await relay.close()
        assert (figures.sent, figures.echoed, figures.lost) == (100, 100, 0)
        assert figures.bytes == 100 * 203
        assert figures.round_trip.count == 100
        assert (figures.refreshes, figures.failures) == (1, 0)
        assert service.live_counts()["turn_allocations"] == 0, "closing releases the allocation"


async def test_clients_come_over_ipv6_too() -> None:
    async with serving(listen_addresses=("127.0.0.1", "::1")) as service:
        relay = await open_relay(reached(service, "udp", host="::1"), peer_host="127.0.0.2")
        await relay.echo(seconds=0.2, pps=50)
        await asyncio.sleep(0.1)
        assert relay.figures().echoed == 10
        await relay.close()


async def test_packets_that_do_not_come_back_are_lost_after_two_seconds(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        relay = await open_relay(reached(service, "udp"))
        relay._echo.close()  # the peer is gone
        await relay.echo(seconds=0.1, pps=100)
        assert relay.figures().lost == 0
        await asyncio.sleep(2.1)
        assert (relay.figures().sent, relay.figures().lost) == (10, 10)
        await relay.close()


async def test_refusals_have_their_code() -> None:
    async with serving() as service:
        with pytest.raises(TurnFailedError, match="401") as caught:
            await open_relay(reached(service, "udp", password="wrong"))
        assert caught.value.code == 401
    with pytest.raises(TurnFailedError, match="tcp"):
        await open_relay(TurnServer("127.0.0.1", 9, USER, PASSWORD, "tcp"))


async def test_media_goes_through_the_relay_both_ways() -> None:
    async with running_server("--turn-allow-loopback-peers", "true") as server:
        url = f"{server.url}/v1/turn/keys/{server.app_id}/credentials/generate"
        async with httpx.AsyncClient() as http:
            issued = (await http.post(url, headers=server.authorization, json={})).json()["iceServers"]
            relay = TurnServer("127.0.0.1", server.turn_port, issued["username"], issued["credential"])
            async with MediaClient(relay=relay) as client:
                target = TorporTarget(client, server.url, server.app_id, server.app_secret)
                publication = await target.publish(MediaSource())
                subscription = await target.subscribe([publication.ref], verify=True)
                await subscription.wait_for_media()
                await asyncio.sleep(1.0)
                metrics = (await http.get(f"{server.url}/metrics")).text
                assert 'torpor_turn_live{kind="allocations"} 2\n' in metrics
                await subscription.leave()
                figures = subscription.figures()
                assert figures.video.lost_after_repair == 0
                assert figures.pictures.checked > 20
                assert figures.pictures.wrong == 0
                await target.close()
            metrics = (await http.get(f"{server.url}/metrics")).text
            assert 'torpor_turn_live{kind="allocations"} 0\n' in metrics
