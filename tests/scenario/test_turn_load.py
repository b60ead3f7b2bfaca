"""Many allocations, and many strangers: what is held is bounded and given back, and calls go on (X11 to X14, X19)."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from types import SimpleNamespace

import httpx
import psutil
import pytest

from loadtest.turn_client import TurnFailedError
from tests.support.server import running_server
from tests.support.turn_crowd import Crowd, relayed_address
from tests.support.turn_sockets import PASSWORD, PEER_HOST, USER, Client, Peer, eventually, serving
from wire import stun
from wire.stun import Attr, MessageClass, Method

pytestmark = pytest.mark.slow

UDP_RELAY = (int(Attr.REQUESTED_TRANSPORT), stun.uint32(17 << 24))
ALLOCATIONS = 10_000


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.timeout(300)
async def test_ten_thousand_allocations_live_are_refreshed_and_expire_to_nothing() -> None:
    offset = 0.0
    limits = {
        "allocations_max": ALLOCATIONS,
        "allocations_per_user": ALLOCATIONS,
        "connections_max": 64,
        "requests_per_s": 0,
        "errors_per_s": 0,
    }
    held = len(os.listdir("/proc/self/fd"))
    with descriptors(ALLOCATIONS + 2000):
        async with serving(clock=lambda: time.monotonic() + offset, **limits) as service:
            crowd = Crowd(ALLOCATIONS, service.port, USER, PASSWORD)
            lifetime = (int(Attr.LIFETIME), stun.uint32(1200))

            allocated = await asyncio.to_thread(crowd.request, Method.ALLOCATE, [UDP_RELAY])
            assert len({relayed_address(answer) for answer in allocated.values()}) == ALLOCATIONS
            assert service.live_counts()["turn_allocations"] == ALLOCATIONS
            assert service.live_counts()["turn_plane_relays"] == ALLOCATIONS

            full = Crowd(1, service.port, USER, PASSWORD)
            with pytest.raises(TurnFailedError, match="486"):
                await asyncio.to_thread(full.request, Method.ALLOCATE, [UDP_RELAY])
            full.close()

            offset = 590.0
            kept = range(0, ALLOCATIONS, 2)
            refreshed = await asyncio.to_thread(crowd.request, Method.REFRESH, [lifetime], kept)
            assert {answer.uint(Attr.LIFETIME) for answer in refreshed.values()} == {1200}

            offset = 1100.0  # those that were not refreshed have ended
            await asyncio.to_thread(crowd.challenge)
            await eventually(lambda: service.live_counts()["turn_allocations"] == ALLOCATIONS // 2)

            offset = 1900.0
            await asyncio.to_thread(crowd.challenge)
            await eventually(lambda: service.live_counts()["turn_allocations"] == 0)
            counts = service.live_counts()
            assert counts["turn_relays"] == counts["turn_plane_relays"] == counts["turn_users"] == 0
            crowd.close()
    assert len(os.listdir("/proc/self/fd")) <= held + 8


CALLS = 20
SECONDS = 4.0
FLOOD_PPS = 20_000


def flood(port: int, seconds: float, pps: int) -> None:
    """What strangers send, from thousands of addresses: at most so many a second, and only to this port."""
    tid = secrets.token_bytes(12)
    allocate = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, tid, [UDP_RELAY])
    identity = [
        UDP_RELAY, (int(Attr.USERNAME), b"mallory"), (int(Attr.REALM), b"torpor"), (int(Attr.NONCE), b"obMatJos2" * 4),
    ]  # fmt: skip
    signed = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, tid, identity, key=b"k" * 16)
    binding = stun.serialize(Method.BINDING, MessageClass.REQUEST, tid, [])
    messages = [
        allocate, signed, binding,
        allocate[:-1], b"\x00\x03" + b"\xff" * 18, bytes(20), secrets.token_bytes(200),  # no STUN
        b"\x40\x00\x00\x04data", b"\x7f\xff\xff\xffx",  # ChannelData of nobody
        stun.serialize(Method.SEND, MessageClass.INDICATION, tid, [(int(Attr.DATA), b"x" * 1000)]),
    ]  # fmt: skip
    sockets = []
    for number in range(500):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.3.{number // 250}.{number % 250 + 1}", 0))
        sock.connect(("127.0.0.1", port))
        sockets.append(sock)
    begun, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - begun) < seconds:
        if sent > elapsed * pps:
            time.sleep(0.001)
            continue
        for _ in range(20):
            with suppress(OSError):
                sockets[sent % len(sockets)].send(messages[sent % len(messages)])
            sent += 1


async def dawdle(port: int, count: int) -> list[asyncio.StreamWriter]:
    """TCP clients that begin a message and never end it."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x00\x03\x00\x20")
        writers.append(writer)
    return writers


class Call:
    """A client, a channel, and a peer that echoes: 50 packets a second each way."""

    def __init__(self, client: Client, peer: Peer) -> None:
        self.client, self.peer = client, peer
        self.sent = self.returned = 0

    async def talk(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while loop.time() < until:
            self.client.send_channel(0x4000, self.sent.to_bytes(4, "big") + bytes(156))
            self.sent += 1
            due += 0.02
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def echo(self) -> None:
        while True:
            data, (host, port) = await self.peer._protocol.received.get()
            self.peer.send(data, stun.TransportAddress(ip_address(host), port))

    async def listen(self) -> None:
        expected = 0
        while True:
            message = await self.client.others.get()
            assert int.from_bytes(message[4:8], "big") >= expected
            expected = int.from_bytes(message[4:8], "big") + 1
            self.returned += 1


@pytest.mark.timeout(120)
async def test_x19_twenty_calls_lose_nothing_while_strangers_flood_the_server() -> None:
    flags = ("--turn-allow-loopback-peers", "true", "--turn-threads", "1")
    async with running_server("--media-enabled", "false", *flags) as server:
        key = f"{server.url}/v1/turn/keys/{server.app_id}"
        async with httpx.AsyncClient(headers=server.authorization) as http:
            answer = await http.post(f"{key}/credentials/generate-ice-servers")
        issued = answer.json()["iceServers"][-1]
        where = SimpleNamespace(port=server.turn_port)
        calls = []
        for _ in range(CALLS):
            client = Client("udp", issued["username"], issued["credential"])
            await client.connect(where)  # type: ignore[arg-type]
            peer = await Peer.open(PEER_HOST)
            await client.allocate()
            assert await client.bind(0x4000, peer.address) == 0
            calls.append(Call(client, peer))
            await asyncio.sleep(0.08)  # one address may ask 50 times a second
        listeners = [asyncio.create_task(task) for call in calls for task in (call.echo(), call.listen())]
        process = psutil.Process(server.pid)
        before = process.memory_info().rss

        attack = multiprocessing.get_context("spawn").Process(target=flood, args=(server.turn_port, SECONDS, FLOOD_PPS))
        attack.start()
        dawdlers = await dawdle(server.turn_port, 100)
        until = asyncio.get_running_loop().time() + SECONDS
        await asyncio.gather(*(call.talk(until) for call in calls))
        await asyncio.to_thread(attack.join, 30)
        assert attack.exitcode == 0
        await eventually(lambda: all(call.returned == call.sent for call in calls))
        assert min(call.sent for call in calls) > SECONDS * 50 * 0.8
        assert process.memory_info().rss - before < 64 << 20

        async with httpx.AsyncClient(headers=server.authorization) as http:
            live = (await http.get(f"{key}/allocations")).json()["allocations"]
        assert len(live) == CALLS
        late = Client("udp", issued["username"], issued["credential"])
        await late.connect(where)  # type: ignore[arg-type]
        await late.allocate()

        for listener in listeners:
            listener.cancel()
        results = await asyncio.gather(*listeners, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        for writer in dawdlers:
            writer.transport.abort()
        for client in (late, *(call.client for call in calls)):
            await client.close()
        for call in calls:
            call.peer.close()
