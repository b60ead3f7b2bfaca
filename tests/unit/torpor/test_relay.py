"""TURN as part of the server: what follows from the settings, how it starts, what browsers are told of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest

from sfu.settings import SfuSettings
from tests.support.certificates import make_certificate
from tests.support.fake_sfu import FakeSfu
from tests.support.turn_sockets import Client, Peer
from torpor.app import build_app
from torpor.config import (
    DEVELOPMENT_APP_ID,
    DEVELOPMENT_APP_SECRET,
    HttpSettings,
    MediaSettings,
    RelaySettings,
    Secret,
    Settings,
)
from torpor.errors import StartRefused
from torpor.events import serialize
from torpor.figures import Figures, turn_families
from torpor.health import Health
from torpor.metrics import render
from torpor.relay import ice_servers, media_endpoints, media_exchange, start_turn, turn_settings
from turn.events import AllocationEnded, AllocationStarted
from turn.service import TurnService, TurnStats
from turn.usage import Party, RelayUsage
from wire.stun import Attr, Method, TransportAddress

SMALL: dict[str, Any] = {"port": 0, "tls_port": 0, "threads": 1, "allocations_max": 16, "connections_max": 16}
APPS = {"app": Secret("s" * 64)}


def media(*addresses: str, announced: tuple[str, ...] = ()) -> MediaSettings:
    return MediaSettings(addresses=addresses, announced_addresses=announced)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[TurnService]:
    turn = await start_turn(settings, FakeSfu())  # type: ignore[arg-type]
    try:
        yield turn
    finally:
        await turn.close()
        assert not any(turn.live_counts().values())


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


class TestSettings:
    def test_the_defaults_are_the_well_known_ports_on_loopback(self) -> None:
        settings = turn_settings(Settings(), ())
        settings.check()
        assert (settings.listen_addresses, settings.port, settings.tls_port) == (("127.0.0.1",), 3478, 5349)
        assert (settings.relay_addresses, settings.external_addresses) == (("127.0.0.1",), {})
        assert settings.public_host == "127.0.0.1"
        assert not settings.allow_loopback_peers
        assert settings.keys == {DEVELOPMENT_APP_ID: DEVELOPMENT_APP_SECRET}
        assert settings.threads >= 1

    def test_behind_nat_relays_are_announced_as_media_is_unless_told(self) -> None:
        natted = media("10.0.0.2", "fd00::2", announced=("203.0.113.7", "203.0.113.8"))
        settings = turn_settings(Settings(media=natted), ())
        assert settings.relay_addresses == ("10.0.0.2", "fd00::2")
        assert settings.external_addresses == {"10.0.0.2": "203.0.113.7"}
        assert settings.public_host == "203.0.113.7"
        own = RelaySettings(announced_addresses=("2001:db8::9", "192.0.2.9"), public_host="turn.example.org")
        settings = turn_settings(Settings(media=natted, turn=own), ())
        assert settings.external_addresses == {"10.0.0.2": "192.0.2.9", "fd00::2": "2001:db8::9"}
        assert settings.public_host == "turn.example.org"

    def test_relays_have_the_first_address_of_each_family(self) -> None:
        own = RelaySettings(addresses=("10.0.0.2", "10.0.0.3", "fd00::2"))
        assert turn_settings(Settings(turn=own), ()).relay_addresses == ("10.0.0.2", "fd00::2")
        own = RelaySettings(addresses=("10.0.0.2",), relay_addresses=("10.0.0.9",))
        assert turn_settings(Settings(turn=own), ()).relay_addresses == ("10.0.0.9",)

    def test_secrets_are_handed_over_as_text(self) -> None:
        own = RelaySettings(
            keys={"key": Secret("t" * 64)},
            users={"ada": Secret("lovelace")},
            shared_secrets=(Secret("n" * 32), Secret("o" * 32)),
            credential_secret=Secret("c" * 32),
        )
        settings = turn_settings(Settings(turn=own), ())
        assert settings.keys == {"key": "t" * 64}
        assert settings.users == {"ada": "lovelace"}
        assert settings.rest_secrets == ("n" * 32, "o" * 32)
        assert settings.credential_secret == "c" * 32

    def test_the_media_sides_own_ports_are_peers_on_each_address_it_has(self) -> None:
        sfu = FakeSfu()
        sfu.settings = SfuSettings(
            listen_addresses=("0.0.0.0", "::1"), announced_addresses=("203.0.113.7", "2001:db8::7")
        )
        endpoints = tuple(media_endpoints(sfu))  # type: ignore[arg-type]
        assert endpoints == ("203.0.113.7:8787", "[2001:db8::7]:8787", "[::1]:8787")
        assert turn_settings(Settings(), endpoints).allow_endpoints == endpoints
        assert list(media_endpoints(None)) == []


class TestExchange:
    def test_relays_and_media_meet_in_memory_with_an_inbox_for_each_thread(self) -> None:
        media, relays = media_exchange(Settings(media=MediaSettings(threads=3), turn=RelaySettings(threads=2)))
        assert media is not None
        assert relays is not None
        assert (media.threads, relays.threads) == (3, 2)

    @pytest.mark.parametrize(
        "settings",
        [
            Settings(turn=RelaySettings(media_in_memory=False)),
            Settings(turn=RelaySettings(enabled=False)),
            Settings(media=MediaSettings(enabled=False)),
        ],
    )
    def test_unless_told_otherwise_or_one_of_them_is_missing(self, settings: Settings) -> None:
        assert media_exchange(settings) == (None, None)


class TestStart:
    async def test_in_development_a_taken_port_is_replaced_by_another(
        self, taken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torpor.relay.DEFAULT_PORT", taken)
        async with started(Settings(turn=RelaySettings(**SMALL | {"port": None}))) as turn:
            assert turn.port not in (0, taken)
            assert f":{turn.port}?" in turn.urls()[1][0]

    async def test_a_taken_port_that_was_asked_for_is_a_refusal(self, taken: int) -> None:
        with pytest.raises(StartRefused, match=rf"cannot listen on 127\.0\.0\.1, TURN port {taken}: "):
            await start_turn(Settings(turn=RelaySettings(**SMALL | {"port": taken})), None)

    async def test_outside_of_development_any_taken_port_is_a_refusal(
        self, taken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torpor.relay.DEFAULT_PORT", taken)
        own = RelaySettings(**SMALL | {"port": None})
        with pytest.raises(StartRefused, match=str(taken)):
            await start_turn(Settings(configured_apps=APPS, turn=own), None)

    async def test_a_certificate_that_is_none_is_a_refusal(self, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.pem"
        wrong.write_text("nothing")
        own = RelaySettings(**SMALL, tls_certificate=wrong, tls_key=wrong)
        with pytest.raises(StartRefused, match="certificate"):
            await start_turn(Settings(turn=own), None)

    async def test_a_file_that_cannot_be_read_is_a_refusal_that_names_it(self, tmp_path: Path) -> None:
        own = RelaySettings(**SMALL, revocations_file=tmp_path)
        with pytest.raises(StartRefused, match=rf"turn: .*{tmp_path.name}"):
            await start_turn(Settings(turn=own), None)

    async def test_an_address_that_this_machine_lacks_is_a_refusal(self) -> None:
        with pytest.raises(StartRefused, match=r"cannot listen on 192\.0\.2\.1"):
            await start_turn(Settings(turn=RelaySettings(**SMALL, addresses=("192.0.2.1",))), None)

    async def test_more_relays_than_descriptors_is_a_refusal_that_names_the_setting(self) -> None:
        own = RelaySettings(**SMALL | {"allocations_max": 1_000_000_000})
        with pytest.raises(StartRefused, match=r"turn: allocations_max"):
            await start_turn(Settings(turn=own), None)


class TestIceServers:
    async def test_they_list_what_listens_with_a_fresh_credential(self, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)
        own = RelaySettings(**SMALL, tls_certificate=certificate, tls_key=key, public_host="localhost")
        async with started(Settings(turn=own)) as turn:
            stun, relay = ice_servers(turn, "nobody")
            assert stun == {"urls": (f"stun:localhost:{turn.port}",)}
            assert relay["urls"] == (
                f"turn:localhost:{turn.port}?transport=udp",
                f"turn:localhost:{turn.port}?transport=tcp",
                f"turns:localhost:{turn.tls_port}?transport=tcp",
            )
            assert ice_servers(turn, "nobody")[1]["username"] != relay["username"]

    async def test_only_what_listens_is_listed(self) -> None:
        async with started(Settings(turn=RelaySettings(**SMALL, udp=False))) as turn:
            (relay,) = ice_servers(turn, "nobody")
            assert relay["urls"] == (f"turn:127.0.0.1:{turn.port}?transport=tcp",)
        assert ice_servers(None, "nobody") == []


class TestRoutes:
    """realtime-api §11, §10.7."""

    @asynccontextmanager
    async def client(self, settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, TurnService]]:
        async with started(settings) as turn:
            app = build_app(settings, FakeSfu(), turn, health=Health(), figures=Figures(None, turn))  # type: ignore[arg-type]
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
                yield client, turn

    async def test_a_key_gets_credentials_and_a_page_gets_them_by_the_gateway(self) -> None:
        async with self.client(Settings(turn=RelaySettings(**SMALL))) as (client, _):
            path = f"/v1/turn/keys/{DEVELOPMENT_APP_ID}/credentials/generate-ice-servers"
            answer = await client.post(path, headers={"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"})
            assert answer.status_code == 201
            assert "no-store" in answer.headers["cache-control"]
            by_key = answer.json()["iceServers"]
            answer = await client.get("/partytracks/generate-ice-servers")
            assert answer.status_code == 200
            by_gateway = answer.json()["iceServers"]
            assert [server["urls"] for server in by_key] == [server["urls"] for server in by_gateway]
            assert by_key[1]["username"] != by_gateway[1]["username"]

    async def test_a_stranger_gets_none(self) -> None:
        async with self.client(Settings(turn=RelaySettings(**SMALL))) as (client, _):
            path = f"/v1/turn/keys/{DEVELOPMENT_APP_ID}/credentials/generate-ice-servers"
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["errorCode"]) == (401, "unauthorized")
            foreign = {"host": "rebound.example"}
            assert (await client.post(path, headers=foreign)).status_code == 403
            assert (await client.get("/partytracks/generate-ice-servers", headers=foreign)).status_code == 403

    async def test_a_configured_key_ends_that_of_development(self) -> None:
        own = RelaySettings(**SMALL, keys={"key": Secret("t" * 64)})
        async with self.client(Settings(turn=own)) as (client, _):
            headers = {"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"}
            path = f"/v1/turn/keys/{DEVELOPMENT_APP_ID}/credentials/generate"
            assert (await client.post(path, headers=headers)).status_code == 404

    async def test_figures_are_there_before_anything_happened(self) -> None:
        async with self.client(Settings(turn=RelaySettings(**SMALL))) as (client, _):
            text = (await client.get("/metrics")).text
        assert 'torpor_turn_live{kind="allocations"} 0\n' in text
        assert 'torpor_turn_drops_total{reason="no_permission"} 0\n' in text
        assert "torpor_turn_datagrams_received_total 0\n" in text

    async def test_without_turn_there_are_no_routes_and_no_figures(self) -> None:
        app = build_app(Settings(), FakeSfu(), health=Health(), figures=Figures(None))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
            answer = await client.post(f"/v1/turn/keys/{DEVELOPMENT_APP_ID}/credentials/generate")
            assert answer.status_code == 404
            assert (await client.get("/partytracks/generate-ice-servers")).json() == {"iceServers": []}
            assert "torpor_turn" not in (await client.get("/metrics")).text


class TestFigures:
    def test_counters_become_families_with_labels(self) -> None:
        counters = {
            "requests_accepted": 3,
            "requests_refused_401": 4,
            "connections_accepted": 5,
            "tls_failed": 6,
            "plane_no_permission": 7,
            "plane_dropped_blocked": 8,
            "plane_datagrams_sent": 9,
        }
        usage = {Party("key", 'a"b\n'): RelayUsage(10, 1, 20, 2), Party("", ""): RelayUsage(30, 3, 40, 4)}
        lines = render(turn_families(TurnStats(counters, {"turn_allocations": 2}, usage))).splitlines()
        assert set(lines) >= {
            'torpor_turn_requests_total{result="accepted"} 3',
            'torpor_turn_requests_total{result="refused_401"} 4',
            'torpor_turn_connections_total{event="accepted"} 5',
            'torpor_turn_events_total{event="tls_failed"} 6',
            'torpor_turn_drops_total{reason="no_permission"} 7',
            'torpor_turn_drops_total{reason="blocked"} 8',
            "torpor_turn_datagrams_sent_total 9",
            'torpor_turn_live{kind="allocations"} 2',
            'torpor_turn_relayed_bytes_total{key="key",custom_identifier="a\\"b\\n",direction="from_client"} 10',
            'torpor_turn_relayed_packets_total{key="key",custom_identifier="a\\"b\\n",direction="to_client"} 2',
            'torpor_turn_relayed_bytes_total{key="",custom_identifier="",direction="to_client"} 40',
        }


def test_http_on_all_addresses_puts_turn_there_too_and_still_needs_an_app() -> None:
    settings = Settings(http=HttpSettings(host="0.0.0.0"))
    assert settings.refusal() is not None
    assert settings.turn_addresses == ("0.0.0.0",)
    assert not settings.turn_enabled


class TestEvents:
    """A key with the id of an app is the app's: its listeners hear of its relays."""

    async def test_an_apps_listeners_hear_of_its_relays(self) -> None:
        sfu = FakeSfu()
        turn = await start_turn(Settings(turn=RelaySettings(**SMALL)), sfu)  # type: ignore[arg-type]
        entry = ice_servers(turn, DEVELOPMENT_APP_ID)[-1]
        async with Client.connected(turn, username=entry["username"], password=entry["credential"]) as client:
            relayed = await client.allocate()
            await client.request(Method.REFRESH, (Attr.LIFETIME, bytes(4)))
        await turn.close()
        (app, started), (_, ended) = sfu.told
        assert app == DEVELOPMENT_APP_ID
        assert isinstance(started, AllocationStarted)
        assert started.relayed == (str(relayed),)
        assert isinstance(ended, AllocationEnded)
        assert (ended.reason, ended.username, ended.client) == ("deleted", started.username, started.client)
        told = serialize(started, 7, wall_offset=0.0)
        assert told.startswith(b'id: 7\nevent: allocationStarted\ndata: {"username":')

    async def test_nobody_hears_of_relays_without_a_key(self) -> None:
        sfu = FakeSfu()
        own = RelaySettings(**SMALL, users={"alice": Secret("wonderland")})
        turn = await start_turn(Settings(turn=own), sfu)  # type: ignore[arg-type]
        async with Client.connected(turn) as client:
            await client.allocate()
        await turn.close()
        assert sfu.told == []


class TestPeers:
    """A relay reaches the media side on this machine, and nothing else of it (X5, X8)."""

    async def test_the_media_port_is_reached_and_its_neighbours_are_not(self) -> None:
        media_side, neighbour = await Peer.open("127.0.0.1"), await Peer.open("127.0.0.1")
        sfu = FakeSfu()
        sfu.port = media_side.address.port
        turn = await start_turn(Settings(turn=RelaySettings(**SMALL)), sfu)  # type: ignore[arg-type]
        issued = turn.issue()
        identity = {"username": issued.username, "password": issued.credential}
        async with Client.connected(turn, **identity) as client:
            relayed = await client.allocate()
            assert await client.permit(media_side.address) == 0
            assert await client.bind(0x4000, neighbour.address) == 403
            assert await client.permit(TransportAddress(ip_address("127.0.0.2"), 1)) == 403
            assert await client.permit(TransportAddress(ip_address("10.0.0.1"), 1)) == 403
            client.send_indication(neighbour.address, b"never")
            client.send_indication(media_side.address, b"hello")
            assert await media_side.receive() == (b"hello", relayed)
            neighbour.send(b"never", relayed)
            media_side.send(b"welcome", relayed)
            assert await client.receive() == (media_side.address, b"welcome")
            assert neighbour.waiting == 0
        await turn.close()
        for peer in (media_side, neighbour):
            peer.close()
        assert not any(turn.live_counts().values())
