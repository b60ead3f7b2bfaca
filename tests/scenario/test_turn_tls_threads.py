"""TLS sessions that a relay thread has: what a client may do to them between its data (T5, T6)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.scenario.test_turn_stream_threads import BINDING, channel_data, gone, plane
from tests.support.tls_tunnel import TlsTunnel
from tests.support.turn_sockets import Client, Peer, eventually, serving
from turn.service import TurnService
from wire.stun import TransportAddress


@asynccontextmanager
async def calling(
    service: TurnService, *, receive_buffer: int = 0
) -> AsyncIterator[tuple[TlsTunnel, Client, Peer, TransportAddress]]:
    """A client behind a tunnel, whose channel 0x4000 leads to a peer, and its relayed address."""
    tunnel = await asyncio.to_thread(TlsTunnel, ("127.0.0.1", service.tls_port), receive_buffer=receive_buffer)
    client = Client("tls")
    client._reader, client.writer = await asyncio.open_connection(sock=tunnel.plain)
    client._task = asyncio.create_task(client._read())
    tunnel.start()
    peer = await Peer.open()
    relay = await client.allocate()
    await client.bind(0x4000, peer.address)
    yield tunnel, client, peer, relay
    peer.close()
    await client.close()
    tunnel.close()


async def test_a_client_may_take_new_keys_at_any_time(tmp_path: Path) -> None:
    """RFC 8446 §4.6.3: the server answers with new keys of its own."""
    async with serving(tmp_path) as service, calling(service) as (tunnel, client, peer, relay):
        for number in range(100):
            assert tunnel.update_keys()
            client.send_channel(0x4000, b"up %d" % number)
            assert await peer.receive() == (b"up %d" % number, relay)
            peer.send(b"down %d" % number, relay)
            assert await client.receive() == (0x4000, b"down %d" % number)
        client.send(BINDING)  # Python has the session for a moment
        await asyncio.wait_for(client.others.get(), 5)
        assert tunnel.update_keys()
        peer.send(b"after", relay)
        assert await client.receive() == (0x4000, b"after")


async def test_one_that_asks_for_keys_and_never_reads_is_cut_off(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, stream_queue_bytes=16 * 1024) as service,
        calling(service, receive_buffer=4096) as (tunnel, *_),
    ):
        tunnel.pause()
        while not service.stats().counters.get("connections_stalled", 0):
            for _ in range(100):  # with data between, as OpenSSL counts the keys that come in a row
                if not (tunnel.update_keys() and tunnel.write(channel_data(b"x"))):
                    break
            await asyncio.sleep(0)
        await gone(service)


async def test_a_goodbye_ends_the_allocation_and_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, calling(service) as (tunnel, client, peer, _):
        client.send_channel(0x4000, b"last words")
        assert (await peer.receive())[0] == b"last words"
        tunnel.say_goodbye()
        await gone(service)
        assert await client.closed()
        assert service.stats().counters.get("tls_failed", 0) == 0


@pytest.mark.parametrize(
    "damaged",
    [b"\x17\x03\x03\x00\x20" + bytes(32), b"\x17\x03\x03\xff\xff", b"\x16\x03\x03\x00\x04\x01\0\0\0", BINDING],
    ids=["unauthentic", "too long", "a second handshake", "plain"],
)
async def test_damaged_records_end_the_connection_with_an_alert(damaged: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as service, calling(service) as (tunnel, client, peer, _):
        client.send_channel(0x4000, b"before it")
        assert (await peer.receive())[0] == b"before it"
        tunnel.pause()
        tunnel.socket.send(damaged)
        await eventually(lambda: service.stats().counters.get("tls_failed", 0) == 1)
        await gone(service)
        assert tunnel.socket.recv(65536)[:1] in (b"\x15", b"\x17")  # an alert, in the clear or sealed


@pytest.mark.parametrize("one_each", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_messages_of_every_size_go_both_ways(version: ssl.TLSVersion, one_each: bool, tmp_path: Path) -> None:
    """A message may be longer than a record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    async with serving(tmp_path, tls_record_per_message=one_each) as service:
        client = Client("tls")
        client._reader, client.writer = await asyncio.open_connection("127.0.0.1", service.tls_port, ssl=context)
        client._task = asyncio.create_task(client._read())
        peer = await Peer.open()
        relay = await client.allocate()
        await client.bind(0x4000, peer.address)
        writes = plane(service, "stream_writes")
        for size in (0, 1, 1100, 16379, 16380, 16381, 16384, 40000, 65507):
            payload = bytes(size % 251 for _ in range(size))
            client.send_channel(0x4000, payload)
            assert await peer.receive() == (payload, relay)
            peer.send(payload, relay)
            assert await client.receive() == (0x4000, payload)
        assert plane(service, "stream_writes") >= writes + 9
        peer.close()
        await client.close()
