"""TCP and TLS clients whose sockets are in a relay thread: data, what is not data, and every way to end (T1 to T5)."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.turn_sockets import USER, Client, Peer, eventually, serving
from turn.service import TurnService
from wire import stun
from wire.stun import Attr, MessageClass, Method

BINDING = stun.serialize(Method.BINDING, MessageClass.REQUEST, bytes(range(1, 13)), [])
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "tls"])


def plane(service: TurnService, name: str) -> int:
    return service.stats().counters[f"plane_{name}"]


def channel_data(payload: bytes, number: int = 0x4000) -> bytes:
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload + bytes(-len(payload) % 4)


def write(client: Client, data: bytes) -> None:
    assert client.writer is not None
    client.writer.write(data)


async def gone(service: TurnService) -> None:
    await eventually(lambda: service.live_counts()["turn_connections"] == 0)
    counts = service.live_counts()
    assert counts["turn_allocations"] == counts["turn_plane_clients"] == counts["turn_plane_relays"] == 0


@asynccontextmanager
async def calling(service: TurnService, transport: str) -> AsyncIterator[tuple[Client, Peer]]:
    """A client whose channel 0x4000 leads to a peer."""
    async with Client.connected(service, transport) as client:
        peer = await Peer.open()
        await client.allocate()
        await client.bind(0x4000, peer.address)
        yield client, peer
        peer.close()


@TRANSPORTS
async def test_t1_data_and_requests_in_one_stream_keep_their_order_in_pieces_of_any_size(
    transport: str, tmp_path: Path
) -> None:
    """A relay thread reads until a request comes, and again behind it."""
    chance = random.Random(7)
    async with serving(tmp_path, requests_per_s=0) as service, Client.connected(service, transport) as client:
        peer = await Peer.open()
        await client.allocate()
        await client.bind(0x4000, peer.address)
        payloads = [number.to_bytes(4, "big") * chance.randrange(1, 300) for number in range(200)]
        stream, requests = b"", 0
        for payload in payloads:
            stream += channel_data(payload)
            if chance.random() < 0.1:
                stream += BINDING
                requests += 1
        reads = plane(service, "stream_reads")
        while stream:
            size = min(len(stream), chance.choice((1, 3, 20, 700, 5000)))
            write(client, stream[:size])
            await asyncio.sleep(0)
            stream = stream[size:]
        for payload in payloads:
            assert (await peer.receive())[0] == payload
        for _ in range(requests):
            answer = stun.parse(await asyncio.wait_for(client.others.get(), 5))
            assert Attr.XOR_MAPPED_ADDRESS in answer
        assert plane(service, "stream_reads") > reads
        peer.close()


@TRANSPORTS
async def test_data_goes_both_ways_by_the_relay_thread(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, Client.connected(service, transport) as client:
        peer = await Peer.open()
        relay = await client.allocate()
        await client.bind(0x4000, peer.address)
        writes = plane(service, "stream_writes")
        for number in range(50):
            client.send_channel(0x4000, b"up %d" % number)
            assert await peer.receive() == (b"up %d" % number, relay)
            peer.send(b"down %d" % number, relay)
            assert await client.receive() == (0x4000, b"down %d" % number)
        assert plane(service, "stream_writes") >= writes + 50
        peer.close()


@TRANSPORTS
async def test_what_is_no_data_is_counted_and_harms_nobody(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, calling(service, transport) as (client, peer):
        malformed = b"\0\1\0\4" + bytes(20)  # no cookie
        write(client, channel_data(b"unbound", 0x4001) + malformed + channel_data(b"too high", 0x7FFF))
        write(client, channel_data(b"after it"))
        assert (await peer.receive())[0] == b"after it"
        assert plane(service, "unbound_channel") == 1
        assert plane(service, "malformed") == 2


@TRANSPORTS
@pytest.mark.parametrize("end", ["half-closed", "reset", "foreign bytes"])
async def test_t2_t3_every_end_ends_the_allocation(transport: str, end: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, calling(service, transport) as (client, peer):
        client.send_channel(0x4000, b"last words")
        assert (await peer.receive())[0] == b"last words"
        assert client.writer is not None
        sock = client.writer.get_extra_info("socket")
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
        elif end == "half-closed":
            sock.shutdown(socket.SHUT_WR)
        else:
            write(client, channel_data(b"and") + b"\xff")
            assert (await peer.receive())[0] == b"and"
            await eventually(lambda: service.stats().counters.get("connections_broken", 0) == 1)
        await gone(service)


@TRANSPORTS
async def test_a_revoked_client_sends_nothing_more_and_may_go_on_asking(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, calling(service, transport) as (client, peer):
        client.send_channel(0x4000, b"before")
        assert (await peer.receive())[0] == b"before"
        assert service._endpoint is not None
        service._endpoint.revoke(USER)
        client.send_channel(0x4000, b"after")
        await eventually(lambda: plane(service, "no_allocation") == 1)
        assert service.live_counts()["turn_plane_clients"] == 0
        await client.allocate()
        await client.bind(0x4000, peer.address)
        client.send_channel(0x4000, b"again")
        assert (await peer.receive())[0] == b"again"


@TRANSPORTS
async def test_rf1_an_allocation_given_back_gives_the_socket_back(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, Client.connected(service, transport) as client:
        for _ in range(3):
            await client.allocate()
            answer = await client.request(Method.REFRESH, (Attr.LIFETIME, stun.uint32(0)))
            assert answer.error() is None
            assert service.live_counts()["turn_plane_clients"] == 0


@TRANSPORTS
async def test_t4_a_client_that_does_not_read_delays_nobody_and_gets_whole_messages(
    transport: str, tmp_path: Path
) -> None:
    """A request in between takes the socket out of the thread and back with what was not yet sent."""
    limit = 64 * 1024
    async with serving(tmp_path, stream_queue_bytes=limit) as service, Client.connected(service, transport) as slow:
        peer = await Peer.open()
        relay = await slow.allocate()
        await slow.bind(0x4000, peer.address)
        assert slow.writer is not None
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        while plane(service, "client_queue_full") < 100:
            for _ in range(50):
                peer.send(sent.to_bytes(4, "big") * 250, relay)
                sent += 1
            await asyncio.sleep(0.005)
            assert sent < 100_000
        write(slow, BINDING)
        async with Client.connected(service, transport) as quick:
            quick_relay = await quick.allocate()
            await quick.bind(0x4000, peer.address)
            for _ in range(20):
                peer.send(b"not delayed", quick_relay)
                assert await quick.receive() == (0x4000, b"not delayed")
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answered, last = 0, -1
        while not answered:
            message = await asyncio.wait_for(slow.others.get(), 5)
            if message[0] < 0x40:
                answered += 1
                continue
            payload = message[4:1004]
            number = int.from_bytes(payload[:4], "big")
            assert payload == payload[:4] * 250
            assert number > last
            last = number
        peer.send(b"awake again", relay)
        while (await slow.receive())[1] != b"awake again":
            pass
        peer.close()


@TRANSPORTS
async def test_x19_a_flood_of_requests_and_data_leaves_room_for_others(transport: str, tmp_path: Path) -> None:
    async with serving(tmp_path, requests_per_s=20) as service, Client.connected(service, transport) as loud:
        peer = await Peer.open()
        await loud.allocate()
        await loud.bind(0x4000, peer.address)
        for _ in range(100):  # as many as the peer's socket holds unread
            write(loud, BINDING * 3 + channel_data(b"x"))
        await eventually(lambda: service.stats().counters.get("requests_limited", 0) >= 200)
        async with Client.connected(service, transport) as quiet:
            await quiet.allocate()
        for _ in range(100):
            assert (await peer.receive())[0] == b"x"
        peer.close()


async def test_closing_the_service_takes_every_socket_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        clients = [Client(transport) for transport in ("tcp", "tls") for _ in range(5)]
        for client in clients:
            await client.connect(service)
            await client.allocate()
        await service.close()
        assert not any(service.live_counts().values())
        for client in clients:
            assert await client.closed()
            await client.close()
