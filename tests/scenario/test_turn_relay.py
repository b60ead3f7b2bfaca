"""Data through a running server: real sockets on loopback, every client transport."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.turn_sockets import (
    PASSWORD,
    UDP_RELAY,
    USER,
    Client,
    Peer,
    code,
    eventually,
    make_certificate,
    serving,
)
from turn.errors import ConfigurationError
from turn.interfaces import machine_addresses
from turn.service import TurnService, TurnSettings
from wire import stun
from wire.stun import Attr, MessageClass, Method, TransportAddress

TRANSPORTS = ("udp", "tcp", "tls")
IPV6 = stun.uint32(2 << 24)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestRoundTrips:
    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_channels_and_indications_carry_any_size_both_ways(self, transport: str, tmp_path: Path) -> None:
        """D2, D4, C6, C7, T1."""
        async with serving(tmp_path) as service, Client.connected(service, transport) as client:
            peer, other = await Peer.open(), await Peer.open()
            relay = await client.allocate()
            assert await client.bind(0x4000, peer.address) == 0
            for size in (0, 1, 2, 3, 4, 5, 1200, 9000, 65000):
                payload = os.urandom(size)
                client.send_channel(0x4000, payload)
                assert await peer.receive() == (payload, relay)
                peer.send(payload, relay)
                assert await client.receive() == (0x4000, payload)
                client.send_indication(other.address, payload)
                assert await other.receive() == (payload, relay)
                other.send(payload, relay)
                assert await client.receive() == (other.address, payload)
            peer.close()
            other.close()

    async def test_d7_the_largest_datagram_passes_whole(self) -> None:
        async with serving() as service, Client.connected(service) as client:
            peer = await Peer.open()
            relay = await client.allocate()
            await client.bind(0x4000, peer.address)
            payload = os.urandom(65503)  # with the channel header, all that UDP over IPv4 can carry
            client.send_channel(0x4000, payload)
            assert await peer.receive() == (payload, relay)
            peer.send(payload, relay)
            assert await client.receive() == (0x4000, payload)
            peer.send(bytes(65507), relay)
            await eventually(lambda: service.stats().counters["plane_too_big"] == 1)
            peer.close()

    async def test_v3_ipv6_listeners_take_no_ipv4_in_disguise(self) -> None:
        async with serving(listen_addresses=("::1",)) as service:
            for sock in (*service._endpoint._udp[0], service._endpoint._tcp[0][0]):  # type: ignore[union-attr]
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1

    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_bursts_arrive_whole_and_in_order(self, transport: str, tmp_path: Path) -> None:
        async with serving(tmp_path) as service, Client.connected(service, transport) as client:
            peer = await Peer.open()
            relay = await client.allocate()
            await client.bind(0x4000, peer.address)
            payloads = [n.to_bytes(2, "big") * (1 + n % 90) for n in range(150)]
            for payload in payloads:
                client.send_channel(0x4000, payload)
            assert [(await peer.receive())[0] for _ in payloads] == payloads
            for payload in payloads:
                peer.send(payload, relay)
            assert [(await client.receive())[1] for _ in payloads] == payloads
            peer.close()

    async def test_v1_ipv6_clients_and_relays(self) -> None:
        async with (
            serving(listen_addresses=("127.0.0.1", "::1")) as service,
            Client.connected(service, "udp", "::1") as one,
            Client.connected(service, "tcp", "127.0.0.1") as two,
        ):
            relay_one = await one.allocate((Attr.REQUESTED_ADDRESS_FAMILY, IPV6))
            relay_two = await two.allocate((Attr.REQUESTED_ADDRESS_FAMILY, IPV6))
            assert relay_one.ip.version == relay_two.ip.version == 6
            assert await one.permit(relay_two) == 0
            assert await two.bind(0x4000, relay_one) == 0
            one.send_indication(relay_two, b"ping")
            assert await two.receive() == (0x4000, b"ping")
            two.send_channel(0x4000, b"pong")
            assert await one.receive() == (relay_two, b"pong")

    async def test_many_clients_on_two_threads(self) -> None:
        async with serving(threads=2) as service:
            peer = await Peer.open()
            clients = [Client("udp" if n % 3 else "tcp") for n in range(18)]
            for client in clients:
                await client.connect(service)
            relays = await asyncio.gather(*(client.allocate() for client in clients))
            await asyncio.gather(*(client.bind(0x4000, peer.address) for client in clients))
            by_relay = dict(zip(relays, clients, strict=True))
            for round_number in range(5):
                for client in clients:
                    client.send_channel(0x4000, b"up%d" % round_number)
                heard = [await peer.receive() for _ in clients]
                assert {relay for _, relay in heard} == set(by_relay)
                for _, relay in heard:
                    peer.send(str(relay).encode(), relay)
                for relay, client in by_relay.items():
                    assert await client.receive() == (0x4000, str(relay).encode())
            for client in clients:
                await client.close()
            peer.close()

    async def test_s13_t9_binding_is_answered_from_the_address_that_was_asked(self) -> None:
        async with serving(listen_addresses=("127.0.0.1", "127.0.0.3")) as service:
            for host in ("127.0.0.1", "127.0.0.3"):
                # The client checks that answers come from where it sent to.
                async with Client.connected(service, "udp", host) as client:
                    answer = await client.request(Method.BINDING)
                    mapped = answer.address(Attr.XOR_MAPPED_ADDRESS)
                    assert mapped is not None
                    assert str(mapped.ip) == host


class TestWhatMayNotPass:
    async def test_x8_nothing_of_ours_is_reached_through_a_relay(self) -> None:
        async with serving(allow_loopback_peers=False) as service, Client.connected(service) as client:
            relay = await client.allocate()
            us = TransportAddress(relay.ip, service.port)
            assert await client.permit(us) == 0
            assert await client.bind(0x4000, us) == 403
            client.send_indication(us, stun.serialize(Method.BINDING, MessageClass.REQUEST, os.urandom(12), []))
            await eventually(lambda: service.stats().counters["plane_denied_port"] == 1)
            assert client.others.empty()

    async def test_a_stranger_to_the_relay_is_not_heard(self) -> None:
        async with serving() as service, Client.connected(service) as client:
            peer = await Peer.open()
            relay = await client.allocate()
            peer.send(b"hello?", relay)
            await eventually(lambda: service.stats().counters["plane_no_permission"] == 1)
            assert client.others.empty()
            peer.close()

    async def test_an_allowed_endpoint_beside_us_is_reached_and_its_neighbours_are_not(self) -> None:
        sfu, neighbour = await Peer.open("127.0.0.1"), await Peer.open("127.0.0.1")
        options = {"allow_loopback_peers": False, "allow_endpoints": (str(sfu.address),)}
        async with serving(**options) as service, Client.connected(service) as client:
            relay = await client.allocate()
            assert await client.permit(sfu.address) == 0
            client.send_indication(neighbour.address, b"x")
            client.send_indication(sfu.address, b"hello")
            assert await sfu.receive() == (b"hello", relay)
            assert neighbour.waiting == 0
            sfu.send(b"welcome", relay)
            assert await client.receive() == (sfu.address, b"welcome")
        sfu.close()
        neighbour.close()

    async def test_rf1_nothing_passes_after_a_deletion(self) -> None:
        async with serving() as service, Client.connected(service) as client:
            peer = await Peer.open()
            relay = await client.allocate()
            await client.bind(0x4000, peer.address)
            assert code(await client.request(Method.REFRESH, (Attr.LIFETIME, bytes(4)))) == 0
            client.send_channel(0x4000, b"x")
            peer.send(b"x", relay)
            await eventually(lambda: service.stats().counters["plane_no_allocation"] >= 1)
            assert peer.waiting == 0
            assert client.others.empty()
            peer.close()

    async def test_revoking_a_credential_ends_its_allocations_at_once(self) -> None:
        async with serving(keys={"key": "token"}) as service:
            entry = service.ice_servers(60, key_id="key")[-1]
            assert entry.username is not None
            assert entry.credential is not None
            identity = {"username": entry.username, "password": entry.credential}
            async with Client.connected(service, **identity) as client:
                await client.allocate()
                assert service.live_counts()["turn_allocations"] == 1
                service.revoke("key", entry.username)
                assert service.live_counts()["turn_allocations"] == 0
                answer = await client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, stun.uint32(17 << 24)))
                assert code(answer) == 401


class TestResources:
    async def test_x20_when_the_relays_are_used_up_it_is_508_and_nothing_breaks(self) -> None:
        async with serving(allocations_max=2) as service:
            clients = [Client("udp") for _ in range(4)]
            for client in clients:
                await client.connect(service)
            await clients[0].allocate((Attr.EVEN_PORT, b"\x80"))
            await clients[1].allocate()
            answer = await clients[2].request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, stun.uint32(17 << 24)))
            assert code(answer) == 508
            await clients[1].request(Method.REFRESH, (Attr.LIFETIME, bytes(4)))
            await clients[3].allocate()
            for client in clients:
                await client.close()

    async def test_x20_too_few_descriptors_stop_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
        with pytest.raises(ConfigurationError, match="file descriptors"):
            await TurnService(TurnSettings(port=0, allocations_max=100_000)).start()

    async def test_closing_leaves_no_descriptor_and_no_thread(self, tmp_path: Path) -> None:
        def held() -> tuple[int, int, int]:
            return descriptors(), threading.active_count(), len(os.listdir("/proc/self/task"))

        before = (0, 0, 0)
        for attempt in range(3):
            if attempt == 1:  # the first made what the loop itself keeps
                before = held()
            async with serving(tmp_path, threads=2) as service:
                client = Client("tcp")
                await client.connect(service)
                await client.allocate((Attr.EVEN_PORT, b"\x80"))
                await service.close()
                await service.close()
                await client.close()
        await eventually(lambda: held() == before)

    async def test_a_port_that_is_taken_stops_the_start_and_leaves_nothing(self) -> None:
        async with serving() as service:
            before = descriptors()
            with pytest.raises(OSError):
                await TurnService(replace(service.settings, port=service.port)).start()
            assert descriptors() == before

    async def test_starting_twice_or_asking_too_early_is_our_mistake(self) -> None:
        service = TurnService(TurnSettings(port=0, allocations_max=4, connections_max=4))
        with pytest.raises(Exception, match="not started"):
            _ = service.port
        await service.start()
        with pytest.raises(Exception, match="started already"):
            await service.start()
        await service.close()


class TestUrls:
    """realtime-api §11: only what listens, TLS last."""

    async def test_order(self, tmp_path: Path) -> None:
        async with serving(tmp_path, public_host="turn.example.org") as service:
            port, tls = service.port, service.tls_port
            assert service.urls() == (
                (f"stun:turn.example.org:{port}",),
                (
                    f"turn:turn.example.org:{port}?transport=udp",
                    f"turn:turn.example.org:{port}?transport=tcp",
                    f"turns:turn.example.org:{tls}?transport=tcp",
                ),
            )

    async def test_without_udp_or_tcp(self) -> None:
        async with serving(udp=False) as service:
            stun_urls, turn_urls = service.urls()
            assert stun_urls == ()
            assert turn_urls == (f"turn:127.0.0.1:{service.port}?transport=tcp",)
        async with serving(tcp=False, listen_addresses=("::1",)) as service:
            assert service.urls()[1] == (f"turn:[::1]:{service.port}?transport=udp",)

    async def test_every_address_of_the_machine_is_told_as_one_that_clients_can_reach(self) -> None:
        addresses = [ip for ip in machine_addresses() if ip.version == 4 and not ip.is_loopback]
        if not addresses:
            pytest.skip("this machine has only loopback")
        async with serving(listen_addresses=("0.0.0.0",), tcp=False, external_addresses={}) as service:
            ((told,), _) = service.urls()
            assert told in {f"stun:{ip}:{service.port}" for ip in addresses}

    def test_something_must_listen(self) -> None:
        with pytest.raises(ConfigurationError, match="neither UDP nor TCP nor TLS"):
            TurnService(TurnSettings(udp=False, tcp=False))


async def test_t5_the_certificate_can_be_replaced_while_connections_live(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, Client.connected(service, "tls") as client:
        peer = await Peer.open()
        relay = await client.allocate()
        await client.bind(0x4000, peer.address)
        make_certificate(tmp_path)
        service.reload_certificate()
        async with Client.connected(service, "tls") as newcomer:
            await newcomer.allocate()
        client.send_channel(0x4000, b"still here")
        assert await peer.receive() == (b"still here", relay)
        (tmp_path / "key.pem").write_text("broken")
        with pytest.raises(ConfigurationError):
            service.reload_certificate()
        async with Client.connected(service, "tls") as newcomer:
            await newcomer.allocate()
        peer.close()


class TestPasswordsFromElsewhere:
    """E6 over sockets."""

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    async def test_e6_a_callback_finds_the_password(self, transport: str) -> None:
        asked: list[str] = []

        async def find_password(username: str) -> str | None:
            asked.append(username)
            await asyncio.sleep(0.05)
            return "secret" if username == "zoe" else None

        service = TurnService(TurnSettings(port=0, allocations_max=8, connections_max=8), find_password=find_password)
        await service.start()
        async with Client.connected(service, transport, username="zoe", password="secret") as client:
            await client.allocate()
            assert code(await client.request(Method.REFRESH)) == 0
        async with Client.connected(service, transport, username="mallory", password="secret") as client:
            assert code(await client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))) == 401
        assert asked == ["zoe", "mallory"]
        await service.close()
        assert not any(service.live_counts().values())

    async def test_e6_a_callback_that_hangs_or_fails_is_500_and_hurts_nobody(self) -> None:
        async def find_password(username: str) -> str | None:
            if username == "broken":
                raise RuntimeError("database is down")
            await asyncio.sleep(60)
            return None

        settings = TurnSettings(port=0, users={USER: PASSWORD}, allocations_max=8, connections_max=8)
        service = TurnService(settings, find_password=find_password)
        await service.start()
        for name in ("broken", "slow"):
            async with (
                Client.connected(service, "tcp", username=name, password="x") as client,
                Client.connected(service) as other,
            ):
                request = asyncio.create_task(client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY)))
                await other.allocate()
                assert code(await request) == 500
        assert service.stats().counters["lookups_failed"] == 2
        await service.close()


class TestGathering:
    async def test_a_lone_stream_waits_for_nothing_and_a_crowd_for_each_other(self) -> None:
        async with serving(gather_us_max=1000) as service, Client.connected(service) as client:
            peer = await Peer.open()
            await client.allocate()
            await client.bind(0x4000, peer.address)
            for _ in range(50):
                client.send_channel(0x4000, b"lone")
                await asyncio.sleep(0.002)
            assert service.stats().counters["plane_gathered"] == 0
            while service.stats().counters["plane_gathered"] == 0:
                for _ in range(100):
                    client.send_channel(0x4000, b"crowd")
                await asyncio.sleep(0)
            peer.close()

    async def test_off_it_is_off(self) -> None:
        async with serving(gather_us_max=0) as service, Client.connected(service) as client:
            peer = await Peer.open()
            await client.allocate()
            await client.bind(0x4000, peer.address)
            for _ in range(2000):
                client.send_channel(0x4000, b"crowd")
            await eventually(lambda: peer.waiting > 100)
            assert service.stats().counters["plane_gathered"] == 0
            peer.close()

    async def test_more_than_a_millisecond_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="gather_us_max: 0 to 1000 us"):
            TurnService(TurnSettings(gather_us_max=1001))
