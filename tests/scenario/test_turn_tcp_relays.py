"""TCP relays over real sockets: bytes both ways, whole and in order, slow sides, ends (RFC 6062; TC3 to TC5)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support.turn_harness import TCP_RELAY
from tests.support.turn_sockets import PASSWORD, PATIENCE, PEER_HOST, USER, Client, code, eventually, serving
from turn.credentials import derive_keys
from turn.service import TurnService, TurnSettings
from wire import stun
from wire.stun import Attr, Message, MessageClass, Method, TransportAddress

MEGABYTE = os.urandom(1 << 20)


async def allocate(client: Client) -> TransportAddress:
    answer = await client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, TCP_RELAY))
    assert code(answer) == 0
    relayed = answer.address(Attr.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    return relayed


async def connect(client: Client, peer: TransportAddress) -> Message:
    tid = os.urandom(12)
    return await client.request(Method.CONNECT, (Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, tid)), tid=tid)


async def attempt(client: Client) -> int:
    """The number in the next ConnectionAttempt."""
    message = stun.parse(await asyncio.wait_for(client.others.get(), PATIENCE))
    assert message.method == Method.CONNECTION_ATTEMPT
    number = message.uint(Attr.CONNECTION_ID)
    assert number is not None
    return number


class DataConnection:
    """A client's second connection: asks to become a peer's, then is nothing but bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, service: TurnService, *, tls: bool = False, port: int = 0) -> DataConnection:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        where = service.tls_port if tls else service.port
        return cls(*await asyncio.open_connection("127.0.0.1", where, ssl=context, local_addr=("127.0.0.1", port)))

    async def bind(self, number: int, early: bytes = b"", user: str = USER) -> int:
        """Returns the error code, 0 for success. `early` travels in the segment of the request."""
        connection = (int(Attr.CONNECTION_ID), stun.uint32(number))
        challenge = await self._ask([connection])
        realm, nonce = challenge.text(Attr.REALM) or "", challenge.get(Attr.NONCE) or b""
        key = derive_keys(user, realm, PASSWORD).md5
        identity = [(int(Attr.USERNAME), user.encode()), (int(Attr.REALM), realm.encode()), (int(Attr.NONCE), nonce)]
        return code(await self._ask([connection, *identity], key, early))

    async def _ask(self, attributes: list[tuple[int, bytes]], key: bytes | None = None, behind: bytes = b"") -> Message:
        request = stun.serialize(Method.CONNECTION_BIND, MessageClass.REQUEST, os.urandom(12), attributes, key=key)
        self.writer.write(request + behind)
        head = await asyncio.wait_for(self.reader.readexactly(20), PATIENCE)
        return stun.parse(head + await self.reader.readexactly(int.from_bytes(head[2:4], "big")))

    async def ended(self) -> bool:
        """Whether nothing comes any more but the end."""
        try:
            return await asyncio.wait_for(self.reader.read(1), PATIENCE) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)


async def fill(writer: asyncio.StreamWriter) -> None:
    """Write until nothing more is taken for a while."""
    writer.transport.set_write_buffer_limits(0)
    try:
        while True:
            writer.write(MEGABYTE)
            await asyncio.wait_for(writer.drain(), 0.3)
    except TimeoutError:
        pass


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection without a goodbye."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class PeerServer:
    """Something that listens: keeps the connections it gets."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.address = TransportAddress(ip_address(PEER_HOST), 0)

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[PeerServer]:
        peer = cls()
        server = await asyncio.start_server(lambda *pair: peer.connections.put_nowait(pair), PEER_HOST, 0)
        peer.address = TransportAddress(ip_address(PEER_HOST), server.sockets[0].getsockname()[1])
        kept = []
        try:
            yield peer
        finally:
            server.close()
            while not peer.connections.empty():
                kept.append(peer.connections.get_nowait())
            for _, writer in kept:
                writer.transport.abort()

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self.connections.get(), PATIENCE)


@asynccontextmanager
async def joined(
    service: TurnService, peer: PeerServer, *, transport: str = "tcp", early: bytes = b""
) -> AsyncIterator[tuple[DataConnection, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection that has become the peer's: the client's end, and the peer's."""
    async with Client.connected(service, transport) as client:
        await allocate(client)
        answer = await connect(client, peer.address)
        assert code(answer) == 0
        data = await DataConnection.open(service, tls=transport == "tls")
        assert await data.bind(answer.uint(Attr.CONNECTION_ID) or 0, early) == 0
        reader, writer = await peer.connection()
        try:
            yield data, reader, writer
        finally:
            writer.transport.abort()
            await data.close()


class TestBytes:
    """TC4."""

    @pytest.mark.parametrize("transport", ["tcp", "tls"])
    async def test_tc4_bytes_pass_whole_both_ways(self, transport: str, tmp_path: Path) -> None:
        async with (
            serving(tmp_path, tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer, transport=transport, early=b"early ") as (data, reader, writer),
        ):
            assert await asyncio.wait_for(reader.readexactly(6), PATIENCE) == b"early "
            data.writer.write(MEGABYTE)
            writer.write(MEGABYTE[::-1])
            up, down = await asyncio.wait_for(
                asyncio.gather(reader.readexactly(1 << 20), data.reader.readexactly(1 << 20)), PATIENCE
            )
            assert up == MEGABYTE
            assert down == MEGABYTE[::-1]
            (row,) = [usage for usage in service.stats().usage.values() if usage.bytes_from_client]
            assert row.bytes_from_client == (1 << 20) + 6
            assert row.bytes_to_client == 1 << 20

    async def test_tc3_a_peer_that_calls_is_joined_with_what_it_said_first(self) -> None:
        async with serving(tcp_relays=True) as service, Client.connected(service, "tcp") as client:
            relayed = await allocate(client)
            assert await client.permit(TransportAddress(ip_address(PEER_HOST), 0)) == 0
            reader, writer = await asyncio.open_connection(str(relayed.ip), relayed.port, local_addr=(PEER_HOST, 0))
            writer.write(b"hello")
            data = await DataConnection.open(service)
            assert await data.bind(await attempt(client)) == 0
            assert await asyncio.wait_for(data.reader.readexactly(5), PATIENCE) == b"hello"
            data.writer.write(b"hi")
            assert await asyncio.wait_for(reader.readexactly(2), PATIENCE) == b"hi"
            writer.transport.abort()
            await data.close()

    async def test_tc3_a_peer_without_a_permission_gets_no_byte(self) -> None:
        async with serving(tcp_relays=True) as service, Client.connected(service, "tcp") as client:
            relayed = await allocate(client)
            reader, writer = await asyncio.open_connection(str(relayed.ip), relayed.port, local_addr=(PEER_HOST, 0))
            assert await asyncio.wait_for(reader.read(1), PATIENCE) == b""
            writer.transport.abort()
            assert client.others.empty()

    async def test_two_clients_of_this_server_meet(self) -> None:
        """One relay calls the other: the addresses of both are relayed ones."""
        async with (
            serving(tcp_relays=True) as service,
            Client.connected(service, "tcp") as one,
            Client.connected(service, "tcp") as two,
        ):
            first, second = await allocate(one), await allocate(two)
            assert await two.permit(first) == 0
            answer = await connect(one, second)
            assert code(answer) == 0
            left, right = await DataConnection.open(service), await DataConnection.open(service)
            assert await left.bind(answer.uint(Attr.CONNECTION_ID) or 0) == 0
            assert await right.bind(await attempt(two)) == 0
            left.writer.write(b"over two relays")
            assert await asyncio.wait_for(right.reader.readexactly(15), PATIENCE) == b"over two relays"
            await left.close()
            await right.close()

    async def test_a_refused_bind_leaves_the_stream_a_turn_stream(self) -> None:
        """Not for ever: each is handled alone, and thousands would hold everybody else up."""
        async with serving(tcp_relays=True) as service, Client.connected(service, "tcp") as client:
            await allocate(client)
            refused = stun.serialize(
                Method.CONNECTION_BIND, MessageClass.REQUEST, bytes(range(12)), [(Attr.CONNECTION_ID, stun.uint32(7))]
            )
            client.send(refused * 5)
            assert code(await client.request(Method.REFRESH)) == 0
            client.send(refused * 5000)
            await eventually(lambda: service.live_counts()["turn_connections"] == 0)
            assert service.stats().counters["connections_broken"] == 1


class TestLookUps:
    """E6: the password is asked for while a ConnectionBind waits."""

    async def test_e6_tc4_a_claim_that_waited_for_a_look_up_carries_bytes_both_ways(self) -> None:
        ahead = 0.0

        async def find_password(username: str) -> str | None:
            await asyncio.sleep(0.05)
            return PASSWORD

        settings = TurnSettings(
            port=0, tcp_relays=True, allow_loopback_peers=True, allocations_max=8, connections_max=8,
            peer_connections_max=8,
        )  # fmt: skip
        service = TurnService(
            settings,
            find_password=find_password,
            clock=lambda: time.monotonic() + ahead,
            wall_clock=lambda: time.time() + ahead,
        )
        await service.start()
        async with PeerServer.listening() as peer, Client.connected(service, "tcp") as client:
            await allocate(client)
            ahead = 25.0
            answer = await connect(client, peer.address)
            data = await DataConnection.open(service)
            ahead = 35.0  # what was found is forgotten, and the peer still waits
            assert await data.bind(answer.uint(Attr.CONNECTION_ID) or 0, b"early ") == 0
            reader, writer = await peer.connection()
            data.writer.write(b"late")
            assert await asyncio.wait_for(reader.readexactly(10), PATIENCE) == b"early late"
            writer.write(b"and back")
            assert await asyncio.wait_for(data.reader.readexactly(8), PATIENCE) == b"and back"
            writer.transport.abort()
            await data.close()
        await service.close()
        assert not any(service.live_counts().values())


class TestBackPressure:
    """TC5."""

    async def test_tc5_a_peer_that_does_not_read_stops_its_client(self) -> None:
        async with (
            serving(tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer) as (data, reader, writer),
        ):
            writer.transport.pause_reading()
            sent = 0
            data.writer.transport.set_write_buffer_limits(0)
            try:
                async with asyncio.timeout(1.0):
                    while True:
                        data.writer.write(MEGABYTE)
                        sent += len(MEGABYTE)
                        await data.writer.drain()
            except TimeoutError:
                pass
            assert sent < 64 << 20
            writer.transport.resume_reading()
            digest = hashlib.sha256()
            left = sent
            while left:
                piece = await asyncio.wait_for(reader.read(1 << 18), PATIENCE)
                digest.update(piece)
                left -= len(piece)
            assert digest.digest() == hashlib.sha256(MEGABYTE * (sent >> 20)).digest()

    async def test_tc5_a_client_that_does_not_read_stops_the_peer_and_nobody_else(self) -> None:
        async with (
            serving(tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer) as (data, _, writer),
            joined(service, peer) as (other, other_reader, _),
        ):
            data.writer.transport.pause_reading()
            writer.transport.set_write_buffer_limits(0)
            sent = 0
            try:
                async with asyncio.timeout(1.0):
                    while True:
                        writer.write(MEGABYTE)
                        sent += len(MEGABYTE)
                        await writer.drain()
            except TimeoutError:
                pass
            assert sent < 64 << 20
            other.writer.write(b"still here")
            assert await asyncio.wait_for(other_reader.readexactly(10), PATIENCE) == b"still here"
            data.writer.transport.resume_reading()
            received = await asyncio.wait_for(data.reader.readexactly(sent), PATIENCE)
            assert received == MEGABYTE * (sent >> 20)

    async def test_x16_a_bandwidth_cap_slows_and_loses_nothing(self) -> None:
        async with (
            serving(tcp_relays=True, allocation_bps_max=8 << 20) as service,
            PeerServer.listening() as peer,
            joined(service, peer) as (data, reader, _),
        ):
            loop = asyncio.get_running_loop()
            begun = loop.time()
            data.writer.write(MEGABYTE)
            assert await asyncio.wait_for(reader.readexactly(1 << 20), PATIENCE) == MEGABYTE
            assert loop.time() - begun > 0.8  # 8 Mbit at 8.4 Mbit/s, less the first read


class TestEnds:
    """TC2, TC5."""

    async def test_tc2_a_peer_that_refuses_is_447(self) -> None:
        sock = socket.socket()
        sock.bind((PEER_HOST, 0))
        nobody = TransportAddress(ip_address(PEER_HOST), sock.getsockname()[1])
        async with serving(tcp_relays=True) as service, Client.connected(service, "tcp") as client:
            await allocate(client)
            assert code(await connect(client, nobody)) == 447
        sock.close()

    @pytest.mark.parametrize("transport", ["tcp", "tls"])
    async def test_tc5_what_the_peer_said_last_arrives_before_the_end(self, transport: str, tmp_path: Path) -> None:
        async with (
            serving(tmp_path, tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer, transport=transport) as (data, _, writer),
        ):
            writer.write(MEGABYTE)
            writer.close()
            assert await asyncio.wait_for(data.reader.readexactly(1 << 20), PATIENCE) == MEGABYTE
            assert await data.ended()

    @pytest.mark.parametrize("transport", ["tcp", "tls"])
    async def test_tc5_what_the_client_said_last_arrives_before_the_end(self, transport: str, tmp_path: Path) -> None:
        async with (
            serving(tmp_path, tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer, transport=transport) as (data, reader, _),
        ):
            data.writer.write(MEGABYTE)
            data.writer.close()
            assert await asyncio.wait_for(reader.readexactly(1 << 20), PATIENCE) == MEGABYTE
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            await eventually(lambda: service.live_counts()["turn_peer_sockets"] == 0)

    async def test_tc5_the_end_of_the_allocation_ends_both_sides(self) -> None:
        async with (
            serving(tcp_relays=True) as service,
            PeerServer.listening() as peer,
            Client.connected(service, "tcp") as client,
        ):
            relayed = await allocate(client)
            answer = await connect(client, peer.address)
            data = await DataConnection.open(service)
            assert await data.bind(answer.uint(Attr.CONNECTION_ID) or 0) == 0
            reader, writer = await peer.connection()
            assert code(await client.request(Method.REFRESH, (Attr.LIFETIME, stun.uint32(0)))) == 0
            assert await data.ended()
            assert await asyncio.wait_for(reader.read(1), PATIENCE) == b""
            with pytest.raises(OSError, match=r"[Cc]onnect"):
                await asyncio.open_connection(str(relayed.ip), relayed.port)
            writer.transport.abort()
            await data.close()

    async def test_tc5_a_peer_that_left_before_it_was_claimed_ends_the_claimant(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also when its absence shows in the first bytes for it, which come with the claim."""
        async with (
            serving(tcp_relays=True) as service,
            PeerServer.listening() as peer,
            Client.connected(service, "tcp") as client,
        ):
            await allocate(client)
            answer = await connect(client, peer.address)
            _, writer = await peer.connection()
            reset(writer)
            data = await DataConnection.open(service)
            await asyncio.sleep(0.05)
            assert await data.bind(answer.uint(Attr.CONNECTION_ID) or 0, b"early") == 0
            assert await data.ended()
            await data.close()
            await eventually(lambda: service.live_counts()["turn_peer_connections"] == 0)
        assert not [record for record in caplog.records if record.name == "asyncio"]

    async def test_t2_a_client_that_never_takes_what_the_peer_said_last_is_cut_off(self) -> None:
        async with (
            serving(tcp_relays=True, idle_connection_timeout=0.2) as service,
            PeerServer.listening() as peer,
            Client.connected(service, "tcp") as client,
        ):
            await allocate(client)
            answer = await connect(client, peer.address)
            data = await DataConnection.open(service)
            assert await data.bind(answer.uint(Attr.CONNECTION_ID) or 0) == 0
            _, writer = await peer.connection()
            data.writer.transport.pause_reading()
            await fill(writer)
            assert code(await client.request(Method.REFRESH, (Attr.LIFETIME, stun.uint32(0)))) == 0
            await eventually(lambda: service.live_counts()["turn_connections"] == 0)
            writer.transport.abort()
            await data.close()

    async def test_x20_a_client_that_comes_back_from_the_port_of_its_last_connection_leaves_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While the peer does not read, neither do we: that the last one is gone shows when the next one comes."""
        async with (
            serving(tcp_relays=True) as service,
            PeerServer.listening() as peer,
            joined(service, peer) as (data, _, writer),
        ):
            writer.transport.pause_reading()
            await fill(data.writer)
            port = data.writer.get_extra_info("sockname")[1]
            reset(data.writer)
            await asyncio.sleep(0.05)
            again = await DataConnection.open(service, port=port)
            assert await again.bind(7) == 400
            assert service.live_counts()["turn_connections"] == 2
            await again.close()
            await eventually(lambda: service.live_counts()["turn_connections"] == 1)
        assert not [record for record in caplog.records if record.name == "asyncio"]

    async def test_t2_a_joined_connection_is_not_idle(self) -> None:
        async with (
            serving(tcp_relays=True, idle_connection_timeout=0.2) as service,
            PeerServer.listening() as peer,
            joined(service, peer) as (data, reader, _),
        ):
            await asyncio.sleep(1.5)
            data.writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), PATIENCE) == b"x"

    async def test_where_they_are_off_a_connect_gets_no_answer(self) -> None:
        async with serving() as service, Client.connected(service, "tcp") as client:
            answer = await client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, TCP_RELAY))
            assert code(answer) == 442
