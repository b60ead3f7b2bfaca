"""Relays whose peer is a service of the same process: in memory, with every rule of the network."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support.turn_sockets import Client, Peer, eventually, serving
from turn.service import TurnService
from wire._batch.exchange import CAPACITY, DATAGRAM_BYTES_MAX, End, Exchange
from wire.stun import TransportAddress

TRANSPORTS = ("udp", "tcp", "tls")
MEDIA = TransportAddress(ip_address("203.0.113.7"), 8787)
ENDPOINTS = ("203.0.113.7:8787",)
PLENTY = 5.0
FAR_THREADS = 3


@pytest.fixture
def ends() -> tuple[End, End]:
    """The service's, played by the test, and the relays', of one thread."""
    media, relays = Exchange(FAR_THREADS, 1).ends()
    media.bind([(str(MEDIA.ip), MEDIA.port)])
    media.open()
    return media, relays


async def arrived(media: End, count: int = 1) -> list[tuple[TransportAddress, TransportAddress, bytes]]:
    """The next datagrams for the service: source, destination, data."""
    found: list[tuple[TransportAddress, TransportAddress, bytes]] = []
    async with asyncio.timeout(PLENTY):
        while len(found) < count:
            await asyncio.sleep(0.002)
            for thread in range(FAR_THREADS):
                for _, source, to, data in media.take(thread):
                    found.append((_address(source), _address(to), data))
    return found


def _address(address: tuple[str, int]) -> TransportAddress:
    return TransportAddress(ip_address(address[0]), address[1])


def answer(media: End, to: TransportAddress, data: bytes, source: TransportAddress = MEDIA) -> str:
    return media.post(0, 0, (str(source.ip), source.port), (str(to.ip), to.port), data)


def counters(service: TurnService) -> dict[str, int]:
    return {name.removeprefix("plane_"): n for name, n in service.stats().counters.items() if n}


class TestRoundTrips:
    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_channels_and_indications_reach_the_service_and_its_answers_come_back(
        self, ends: tuple[End, End], transport: str, tmp_path: Path
    ) -> None:
        media, relays = ends
        async with (
            serving(tmp_path, exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service, transport) as client,
        ):
            relay = await client.allocate()
            assert await client.permit(MEDIA) == 0
            for size in (1, 3, 1200, DATAGRAM_BYTES_MAX):
                payload = os.urandom(size)
                client.send_indication(MEDIA, payload)
                assert await arrived(media) == [(relay, MEDIA, payload)]
                answer(media, relay, payload)
                assert await client.receive() == (MEDIA, payload)
            assert await client.bind(0x4000, MEDIA) == 0
            for size in (1, 3, 1200, DATAGRAM_BYTES_MAX):
                payload = os.urandom(size)
                client.send_channel(0x4000, payload)
                assert await arrived(media) == [(relay, MEDIA, payload)]
                answer(media, relay, payload)
                assert await client.receive() == (0x4000, payload)
            seen = counters(service)
            assert (seen["in_memory_sent"], seen["in_memory_received"]) == (8, 8)
            [usage] = service.stats().usage.values()
            assert (usage.packets_from_client, usage.packets_to_client) == (8, 8)
            assert usage.bytes_from_client == usage.bytes_to_client == 2 * (1 + 3 + 1200 + DATAGRAM_BYTES_MAX)

    async def test_bursts_keep_their_order_and_every_relay_its_thread(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with serving(exchange=relays, allow_endpoints=ENDPOINTS) as service:
            clients = [Client("udp") for _ in range(6)]
            threads: set[int] = set()
            for client in clients:
                await client.connect(service)
                await client.allocate()
                assert await client.bind(0x4000, MEDIA) == 0
                payloads = [n.to_bytes(2, "big") * 300 for n in range(100)]
                for payload in payloads:
                    client.send_channel(0x4000, payload)
                found: list[tuple[int, bytes]] = []
                async with asyncio.timeout(PLENTY):
                    while len(found) < 100:
                        await asyncio.sleep(0.002)
                        found += [(t, data) for t in range(FAR_THREADS) for *_, data in media.take(t)]
                assert [data for _, data in found] == payloads
                [thread] = {t for t, _ in found}
                threads.add(thread)
            assert threads == set(range(FAR_THREADS)), "spread over the service's threads"
            for client in clients:
                await client.close()

    async def test_other_peers_still_reach_the_relay_by_its_port(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service) as client,
        ):
            peer = await Peer.open()
            relay = await client.allocate()
            await client.bind(0x4000, MEDIA)
            await client.bind(0x4001, peer.address)
            client.send_channel(0x4001, b"outside")
            assert await peer.receive() == (b"outside", relay)
            peer.send(b"inside", relay)
            assert await client.receive() == (0x4001, b"inside")
            client.send_channel(0x4000, b"within")
            assert await arrived(media) == [(relay, MEDIA, b"within")]
            peer.close()


class TestRules:
    async def test_what_has_no_permission_does_not_pass_either_way(self, ends: tuple[End, End]) -> None:
        """P1, P2: from the service as from anybody."""
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service) as client,
        ):
            relay = await client.allocate()
            client.send_indication(MEDIA, b"too soon")
            answer(media, relay, b"unasked")
            await eventually(lambda: counters(service).get("no_permission") == 2)
            assert [media.take(thread) for thread in range(FAR_THREADS)] == [[]] * FAR_THREADS
            assert client.others.empty()

    async def test_only_the_service_and_nothing_beside_it_is_reached(self, ends: tuple[End, End]) -> None:
        """X8: another port of the same address is denied, in memory too."""
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service) as client,
        ):
            beside = TransportAddress(MEDIA.ip, MEDIA.port + 1)
            relay = await client.allocate()
            await client.permit(MEDIA)
            client.send_indication(beside, b"")
            answer(media, relay, b"", beside)
            await eventually(lambda: counters(service).get("denied_port") == 2)

    async def test_a_service_that_the_policy_denies_stays_closed(self, ends: tuple[End, End]) -> None:
        _, relays = ends
        async with serving(exchange=relays) as service, Client.connected(service) as client:
            await client.allocate()
            assert await client.permit(MEDIA) == 403
            assert await client.bind(0x4000, MEDIA) == 403

    async def test_bandwidth_is_capped(self, ends: tuple[End, End]) -> None:
        """X16"""
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS, allocation_bps_max=8000) as service,
            Client.connected(service) as client,
        ):
            relay = await client.allocate()
            await client.bind(0x4000, MEDIA)
            for _ in range(100):  # a burst of 64 KiB passes
                client.send_channel(0x4000, bytes(1000))
                answer(media, relay, bytes(1000))
            await eventually(lambda: counters(service).get("rate_limited", 0) >= 60)
            assert 60 <= len(await arrived(media, 60)) <= 70

    async def test_what_does_not_fit_is_counted(self, ends: tuple[End, End]) -> None:
        _, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service) as client,
        ):
            await client.allocate()
            await client.bind(0x4000, MEDIA)
            client.send_channel(0x4000, bytes(DATAGRAM_BYTES_MAX + 1))
            client.send_channel(0x4000, b"")
            await eventually(lambda: counters(service).get("too_big") == 1 and counters(service).get("ignored") == 1)

    async def test_a_service_that_does_not_keep_up_costs_counted_drops(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service, "tcp") as client,
        ):
            await client.allocate()
            await client.bind(0x4000, MEDIA)
            for _ in range(CAPACITY + 7):
                client.send_channel(0x4000, b"full")
            await eventually(lambda: counters(service).get("dropped_inbox_full") == 7)
            assert len(await arrived(media, CAPACITY)) == CAPACITY


class TestLife:
    async def test_nothing_passes_after_the_allocations_end(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with serving(exchange=relays, allow_endpoints=ENDPOINTS) as service:
            async with Client.connected(service, "tcp") as client:
                relay = await client.allocate()
                await client.bind(0x4000, MEDIA)
                answer(media, relay, b"there")
                assert await client.receive() == (0x4000, b"there")
            await eventually(lambda: service.live_counts()["turn_allocations"] == 0)
            answer(media, relay, b"late")
            await eventually(lambda: counters(service).get("no_allocation") == 1)

    async def test_an_address_that_never_was_a_relay_is_no_peer(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with serving(exchange=relays) as service:
            answer(media, TransportAddress(ip_address("127.0.0.1"), 50_000), b"lost")
            await eventually(lambda: counters(service).get("no_allocation") == 1)

    async def test_a_stopped_service_costs_a_count_and_a_started_one_goes_on(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        async with (
            serving(exchange=relays, allow_endpoints=ENDPOINTS) as service,
            Client.connected(service) as client,
        ):
            relay = await client.allocate()
            await client.bind(0x4000, MEDIA)
            media.close()
            client.send_channel(0x4000, b"nobody")
            await eventually(lambda: counters(service).get("dropped_inbox_closed") == 1)
            media.open()
            client.send_channel(0x4000, b"again")
            assert await arrived(media) == [(relay, MEDIA, b"again")]

    async def test_stopped_relays_take_nothing_and_started_ones_do_again(self, ends: tuple[End, End]) -> None:
        media, relays = ends
        somewhere = TransportAddress(ip_address("127.0.0.1"), 50_000)
        assert answer(media, somewhere, b"early") == "closed"
        for _ in range(2):
            async with serving(exchange=relays) as service:
                assert answer(media, somewhere, b"") == "posted"
                await eventually(lambda service=service: counters(service).get("no_allocation") == 1)  # type: ignore[misc]
            assert answer(media, somewhere, b"late") == "closed"

    async def test_an_exchange_for_another_number_of_threads_is_refused(self, ends: tuple[End, End]) -> None:
        with pytest.raises(ValueError, match="an exchange for 1 threads"):
            async with serving(exchange=ends[1], threads=2):
                raise AssertionError("started")


class TestForgotten:
    """Owners that are garbage without having closed anything, as after a start that failed."""

    def test_a_plane_among_garbage_ends_its_threads_before_its_memory_goes(self) -> None:
        script = """
import gc
from turn._relay.plane import Plane
from wire.exchange import Exchange

media, relays = Exchange(1, 2).ends()
plane = Plane(relays_max=4, workers=2, exchange=relays)
plane.start([[], []])
owner = [plane, media, relays]
owner.append(owner)
del plane, media, relays, owner
gc.collect()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
