"""TCP and TLS clients that are slow, silent, greedy or speak something else (T1 to T8, X19, X20)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support.turn_sockets import PEER_HOST, Client, Peer, eventually, serving
from turn.service import TurnService
from wire import stun
from wire.stun import Attr, MessageClass, Method, TransportAddress

UDP_SEGMENT = 103

BINDING = stun.serialize(Method.BINDING, MessageClass.REQUEST, bytes(range(1, 13)), [])


def tls_client(**options: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    return context


def counter(service: TurnService, name: str) -> int:
    return service.stats().counters.get(name, 0)


class TestDawdlers:
    """T2."""

    async def test_t2_a_connection_without_an_allocation_is_closed(self) -> None:
        async with serving(idle_connection_timeout=0.2) as service, Client.connected(service, "tcp") as client:
            assert await client.closed()
            assert counter(service, "connections_idle_timeout") == 1

    async def test_t2_one_with_an_allocation_is_not(self) -> None:
        async with serving(idle_connection_timeout=0.2) as service, Client.connected(service, "tcp") as client:
            await client.allocate()
            await asyncio.sleep(1.5)
            assert (await client.request(Method.REFRESH)).error() is None

    @pytest.mark.parametrize(
        "start", [b"\x00", b"\x40\x00\x00\x08", BINDING[:19], b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1 2 3 4\r\n"]
    )
    async def test_t2_t8_x21_an_unfinished_message_closes_the_connection(self, start: bytes) -> None:
        async with serving(frame_timeout=0.2) as service, Client.connected(service, "tcp") as client:
            await client.allocate()
            client.send(start)
            assert await client.closed()
            assert counter(service, "connections_partial_timeout") == 1
            await eventually(lambda: service.live_counts()["turn_allocations"] == 0)

    @pytest.mark.parametrize("start", [b"\x16\x03\x01", b"\xff", b"\r\n\r\n\0\r\nQUIT\n"])
    async def test_t2_x21_foreign_bytes_close_it_at_once(self, start: bytes) -> None:
        async with serving() as service, Client.connected(service, "tcp") as client:
            client.send(start)
            assert await client.closed()

    async def test_t5_a_tls_handshake_that_never_ends_is_closed(self, tmp_path: Path) -> None:
        async with serving(tmp_path, frame_timeout=0.2) as service:
            reader, writer = await asyncio.open_connection("127.0.0.1", service.tls_port)
            writer.write(b"\x16\x03\x01\x02\x00")
            assert await asyncio.wait_for(reader.read(), 5) == b""
            assert counter(service, "tls_handshake_timeout") == 1
            writer.transport.abort()
            await eventually(lambda: service.live_counts()["turn_connections"] == 0)


class TestCaps:
    async def test_t2_connections_per_source_and_in_total(self) -> None:
        for limits in ({"connections_per_source": 3}, {"connections_max": 3}):
            async with serving(**limits) as service:
                clients = [Client("tcp") for _ in range(5)]
                for client in clients:
                    await client.connect(service)
                await eventually(lambda: counter(service, "connections_refused") == 2)
                assert service.live_counts()["turn_connections"] == 3
                tasks = [client._task for client in clients if client._task is not None]
                done, _ = await asyncio.wait(tasks, timeout=1)
                assert len(done) == 2
                for client in clients:
                    await client.close()
                async with Client.connected(service, "tcp") as again:
                    await again.allocate()

    async def test_x20_connections_count_before_the_handshake(self, tmp_path: Path) -> None:
        async with serving(tmp_path, connections_per_source=3) as service:
            writers = [(await asyncio.open_connection("127.0.0.1", service.tls_port))[1] for _ in range(5)]
            await eventually(lambda: counter(service, "connections_refused") == 2)
            for writer in writers:
                writer.transport.abort()

    async def test_x19_requests_of_one_connection_are_limited(self) -> None:
        async with serving(requests_per_s=20) as service, Client.connected(service, "tcp") as client:
            for _ in range(200):
                client.send(BINDING)
            await eventually(lambda: counter(service, "requests_limited") >= 150)
            assert client.others.qsize() < 50

    async def test_t3_closing_the_connection_ends_the_allocation(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as service:
            for transport in ("tcp", "tls"):
                async with Client.connected(service, transport) as client:
                    await client.allocate()
                    assert service.live_counts()["turn_allocations"] == 1
                await eventually(lambda: service.live_counts()["turn_allocations"] == 0)


class TestSlowReaders:
    async def test_t4_output_is_bounded_whole_messages_are_dropped_and_others_are_not_delayed(self) -> None:
        limit = 64 * 1024
        async with serving(stream_queue_bytes=limit) as service, Client.connected(service, "tcp") as quick:
            peer = await Peer.open()
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.port))
            slow = Client("tcp")
            slow._reader, slow.writer = await asyncio.open_connection(sock=sock)
            slow._task = asyncio.create_task(slow._read())
            slow_relay, quick_relay = await slow.allocate(), await quick.allocate()
            await slow.bind(0x4000, peer.address)
            await quick.bind(0x4000, peer.address)
            slow._task.cancel()
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            sent = 0
            while counter(service, "plane_client_queue_full") < 100:
                for _ in range(50):
                    peer.send(sent.to_bytes(4, "big") * 250, slow_relay)
                    sent += 1
                await asyncio.sleep(0.005)
                assert sent < 100_000
            peer.send(b"not delayed", quick_relay)
            assert await quick.receive() == (0x4000, b"not delayed")
            # What gets through is whole: the framing of everything that the slow one reads later still holds.
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            slow._task = asyncio.create_task(slow._read())
            await eventually(lambda: slow.others.qsize() > 10)
            while not slow.others.empty():
                number, payload = await slow.receive()
                assert number == 0x4000
                assert payload == payload[:4] * 250
            await slow.close()
            peer.close()

    async def test_a_client_that_asks_and_never_reads_is_cut_off(self) -> None:
        async with serving(stream_queue_bytes=16 * 1024) as service:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", service.port))

            async def ask() -> None:
                while True:
                    await loop.sock_sendall(sock, BINDING * 500)

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ask(), 30)
            assert counter(service, "connections_stalled") == 1
            sock.close()


class TestTls:
    async def test_t5_old_versions_are_refused_and_alpn_is_optional(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as service:
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old = tls_client(maximum_version=ssl.TLSVersion.TLSv1_1)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", service.tls_port, ssl=old)
            for offered, chosen in (
                (["stun.turn"], "stun.turn"),
                (["stun.nat-discovery"], "stun.nat-discovery"),
                ([], None),
            ):
                context = tls_client()
                if offered:
                    context.set_alpn_protocols(offered)
                _, writer = await asyncio.open_connection("127.0.0.1", service.tls_port, ssl=context)
                assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
                writer.transport.abort()
            await asyncio.sleep(0.05)

    @pytest.mark.parametrize(("one_each", "expected"), [(False, [520]), (True, [104] * 5)])
    async def test_t6_data_that_is_ready_together_shares_a_record_unless_told_otherwise(
        self, one_each: bool, expected: list[int], tmp_path: Path
    ) -> None:
        async with (
            serving(tmp_path, tls_record_per_message=one_each) as service,
            Client.connected(service, "tls") as client,
        ):
            relay = await client.allocate()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind((PEER_HOST, 0))
                await client.bind(0x4000, TransportAddress(ip_address(PEER_HOST), peer.getsockname()[1]))
                assert client.writer is not None
                secured = client.writer.get_extra_info("ssl_object")
                read, sizes = secured.read, []

                def one_record(size: int) -> bytes:
                    data: bytes = read(size)
                    sizes.append(len(data))
                    return data

                secured.read = one_record
                peer.connect((str(relay.ip), relay.port))
                train = socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", 100)
                peer.sendmsg([bytes(500)], [train])
                for _ in range(5):
                    assert await client.receive() == (0x4000, bytes(100))
            assert sizes == expected

    async def test_t6_one_answer_per_tls_record(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as service:
            peer = await Peer.open()

            def reads() -> list[bytes]:
                raw = socket.create_connection(("127.0.0.1", service.tls_port), 5)
                with tls_client().wrap_socket(raw) as tls:
                    tls.sendall(BINDING * 5)
                    return [tls.recv(65536) for _ in range(5)]

            answers = await asyncio.to_thread(reads)
            assert [stun.parse(answer).method for answer in answers] == [Method.BINDING] * 5
            peer.close()


async def test_pieces_of_one_byte_are_as_good_as_whole_messages() -> None:
    """T1 on a socket."""
    async with serving() as service, Client.connected(service, "tcp") as client:
        peer = await Peer.open()
        relay = await client.allocate()
        await client.bind(0x4000, peer.address)
        assert client.writer is not None
        for byte in b"\x40\x00\x00\x05hello\0\0\0" + BINDING:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert await peer.receive() == (b"hello", relay)
        answer = stun.parse(await asyncio.wait_for(client.others.get(), 5))
        assert Attr.XOR_MAPPED_ADDRESS in answer
        peer.close()
