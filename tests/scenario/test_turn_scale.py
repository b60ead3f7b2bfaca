"""Ten thousand allocations at once, and calls that go on while strangers do their worst."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.turn_sockets import PASSWORD, USER, Client, Peer, serving
from turn.credentials import derive_keys
from turn.service import TurnService
from wire import stun
from wire.stun import Attr, Message, MessageClass, Method, TransportAddress

UDP_RELAY = stun.uint32(17 << 24)
ALLOCATIONS, ADDRESSES = 10_000, 20
"""A client's socket has one allocation with each address that the server listens on."""
WINDOW = 64
CALLS, PACKETS = 20, 100


class CompactClients:
    """Allocations by the thousand: one coroutine, few sockets, a dictionary of requests that are not answered yet."""

    def __init__(self, service: TurnService, hosts: list[str], sockets: int) -> None:
        self.tuples = [(index, (host, service.port)) for index in range(sockets) for host in hosts]
        self.relayed: set[TransportAddress] = set()
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(sockets)]
        self._nonces: dict[tuple[int, tuple[str, int]], bytes] = {}
        self._key = derive_keys(USER, "torpor", PASSWORD).md5
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            loop.add_reader(sock, self._read, sock)

    def close(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    async def everyone(self, method: Method, *attributes: tuple[int, bytes]) -> list[Message]:
        """One request of each, `WINDOW` at a time; fails when one is refused."""
        todo = iter(self.tuples)
        answers: list[Message] = []

        async def work() -> None:
            answers.extend([await self._request(client, method, *attributes) for client in todo])

        await asyncio.gather(*(work() for _ in range(WINDOW)))
        return answers

    async def _request(
        self, client: tuple[int, tuple[str, int]], method: Method, *attributes: tuple[int, bytes]
    ) -> Message:
        answer = await self._ask(client, method, *attributes)
        if (error := answer.error()) is not None and error[0] in (401, 438):
            self._nonces[client] = answer.get(Attr.NONCE) or b""
            answer = await self._ask(client, method, *attributes)
        assert answer.error() is None, answer.error()
        return answer

    async def _ask(
        self, client: tuple[int, tuple[str, int]], method: Method, *attributes: tuple[int, bytes]
    ) -> Message:
        index, server = client
        tid, key = os.urandom(12), None
        identity: list[tuple[int, bytes]] = []
        if (nonce := self._nonces.get(client)) is not None:
            key = self._key
            identity = [(Attr.USERNAME, USER.encode()), (Attr.REALM, b"torpor"), (Attr.NONCE, nonce)]
        data = stun.serialize(method, MessageClass.REQUEST, tid, [*attributes, *identity], key=key)
        answer = self._waiting[tid] = asyncio.get_running_loop().create_future()
        try:
            for _ in range(10):  # as clients send again what got no answer
                self._sockets[index].sendto(data, server)
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(answer), 1.0)
            raise AssertionError("no answer")
        finally:
            del self._waiting[tid]

    def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message = stun.parse(sock.recv(2048))
                future = self._waiting.get(message.transaction_id)
                if future is not None and not future.done():
                    future.set_result(message)


@pytest.mark.slow
async def test_ten_thousand_allocations_are_held_refreshed_and_expire_to_zero() -> None:
    """Every five-tuple is its own, none shares a relayed port, and the clock (not a sleep) ends them (G7, RF2)."""
    later = 0.0
    hosts = [f"127.0.0.{n + 10}" for n in range(ADDRESSES)]
    async with serving(
        clock=lambda: time.monotonic() + later,
        listen_addresses=tuple(hosts),
        relay_addresses=("127.0.0.1",),
        tcp=False,
        relay_port_min=32768,
        allocations_max=ALLOCATIONS,
        allocations_per_user=ALLOCATIONS,
        allocations_per_source=ALLOCATIONS,
    ) as service:
        clients = CompactClients(service, hosts, ALLOCATIONS // ADDRESSES)
        try:
            answers = await clients.everyone(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
            assert len({answer.address(Attr.XOR_RELAYED_ADDRESS) for answer in answers}) == ALLOCATIONS
            assert service.live_counts()["turn_allocations"] == ALLOCATIONS
            later = 500.0
            await clients.everyone(Method.REFRESH, (Attr.LIFETIME, stun.uint32(900)))
            later = 1300.0  # past the first lifetime, not past the second
            await clients.everyone(Method.REFRESH, (Attr.LIFETIME, stun.uint32(600)))
            assert service.live_counts()["turn_allocations"] == ALLOCATIONS
            later = 2500.0
            # The shell's timer counts real seconds; a request of anybody shows it the time.
            answer = await clients._ask(clients.tuples[0], Method.REFRESH)
            assert answer.error() is not None
            async with asyncio.timeout(30):
                while service.live_counts()["turn_allocations"]:  # noqa: ASYNC110  (a timer has no event)
                    await asyncio.sleep(0.05)
            left = service.live_counts()
            assert not left["turn_relays"], left
            assert not left["turn_users"], left
            assert not left["turn_sources"], left
        finally:
            clients.close()


def hostile_datagrams(seed: int) -> Iterator[bytes]:
    """Allocates without credentials or with wrong integrity, damaged STUN, ChannelData of nobody, noise."""
    rng = random.Random(seed)
    allocate = [(int(Attr.REQUESTED_TRANSPORT), UDP_RELAY)]
    identity = [(int(Attr.USERNAME), b"alice"), (int(Attr.REALM), b"torpor"), (int(Attr.NONCE), b"obMatJos2gAAAforged")]
    while True:
        tid = rng.randbytes(12)
        yield stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, tid, allocate)
        signed = stun.serialize(
            Method.ALLOCATE, MessageClass.REQUEST, tid, [*allocate, *identity], key=rng.randbytes(16)
        )
        yield signed
        damaged = bytearray(signed)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        yield bytes(damaged)
        yield signed[: rng.randrange(len(signed))]
        yield (0x4000 + rng.randrange(16)).to_bytes(2, "big") + (64).to_bytes(2, "big") + rng.randbytes(64)
        yield rng.randbytes(rng.randrange(1, 200))


def resident_bytes() -> int:
    """Of this process, clients and server together; now, not its highest."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def flood(service: TurnService, stop: asyncio.Event) -> int:
    """Datagrams from eight sockets in small bursts, until told to stop; returns how many."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
    sent = 0
    try:
        for sock in sockets:
            sock.setblocking(False)
            sock.bind(("127.0.0.3", 0))
        datagrams = hostile_datagrams(4)
        while not stop.is_set():
            for sock in sockets:
                for _ in range(6):
                    with contextlib.suppress(BlockingIOError):
                        sock.sendto(next(datagrams), ("127.0.0.1", service.port))
                        sent += 1
            await asyncio.sleep(0.002)
    finally:
        for sock in sockets:
            sock.close()
    return sent


async def dawdle(service: TurnService, stop: asyncio.Event) -> None:
    """Connections that start a message and never end it."""
    writers = []
    for _ in range(40):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", service.port, local_addr=("127.0.0.3", 0))
            writer.write(b"\0\3\0")
            writers.append(writer)
    await stop.wait()
    for writer in writers:
        writer.transport.abort()


async def test_x11_x19_n4_twenty_calls_lose_nothing_while_strangers_flood_the_server() -> None:
    """Every packet of every call arrives, and the strangers leave nothing behind."""
    async with serving(
        requests_per_s=50.0, errors_per_s=10.0, frame_timeout=1.0, connections_max=64, connections_per_source=32
    ) as service:
        peers = [await Peer.open() for _ in range(CALLS)]
        clients = [Client("udp") for _ in range(CALLS)]
        for client, peer in zip(clients, peers, strict=True):
            while True:  # twenty calls from one address set up faster than one source may
                try:
                    if client.realm == "" or not client.nonce:
                        await client.connect(service)
                        await client.allocate()
                    assert await client.bind(0x4000, peer.address) == 0
                    break
                except TimeoutError:
                    continue
            await asyncio.sleep(0.08)
        before = resident_bytes()
        stop = asyncio.Event()
        strangers = [asyncio.create_task(flood(service, stop)), asyncio.create_task(dawdle(service, stop))]
        try:
            for number in range(PACKETS):
                payload = number.to_bytes(4, "big") * 40
                for client in clients:
                    client.send_channel(0x4000, payload)
                heard = [await asyncio.wait_for(peer.receive(), 5) for peer in peers]
                assert all(data == payload for data, _ in heard)
                for peer, (data, relay) in zip(peers, heard, strict=True):
                    peer.send(data, relay)
                assert [await client.receive() for client in clients] == [(0x4000, payload)] * CALLS
        finally:
            stop.set()
            sent, _ = await asyncio.gather(*strangers)
        counters, live = service.stats().counters, service.live_counts()
        assert sent > 1000
        assert live["turn_allocations"] == CALLS, live
        assert live["turn_sources"] <= 1, live
        assert counters["requests_errors_suppressed"] > 0, counters
        assert counters["plane_request_limited"] > 0, counters
        assert resident_bytes() - before < 32 * 2**20
        for client in clients:
            await client.close()
        for peer in peers:
            peer.close()
