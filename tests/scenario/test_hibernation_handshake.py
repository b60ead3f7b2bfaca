"""The handshake over real TCP and TLS, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import os
import random
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.exceptions import InvalidStatus

from hibernation.endpoint import HandshakeSettings, http_answer
from objects.ports import (
    ConnectionClosed,
    MessageReceived,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
)
from tests.support.rooms import ROOM, Gateway, Instance, accept_all, gateway, until
from torpor.config import HttpSettings
from torpor.http import HttpProtocol

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes and return everything that comes back until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def request(path: str = "/echo", **headers: str) -> bytes:
    """A handshake request, with headers replaced or, by an empty value, left out."""
    fields = {
        "Host": "test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode()


async def talk(scheme: str, room: Gateway, **options: Any) -> None:
    """Wake, echo, hibernate, wake again, close: what every transport and loop has to carry."""

    def echo(instance: Instance, event: object) -> None:
        if isinstance(event, MessageReceived):
            instance.connections.send(event.connection_id, event.data)

    room.script.on_event = echo
    async with connect(f"{scheme}://localhost:{room.port}/room?t", compression=None, **options) as client:
        for message in ("hello", b"x" * 900_000):
            await client.send(message)
            assert await client.recv() == message
        room.script.hibernate()
        await client.send("wake")
        assert await client.recv() == "wake"
        info = room.script.instance.connections.info(room.script.instance.connections.connections(ROOM)[0])
        assert info is not None
        assert info.url == f"{scheme}://localhost:{room.port}/room?t"
        await client.close(4000, "bye")
    (event,) = await room.seen(1, ConnectionClosed)
    assert (event.code, event.was_clean) == (4000, True)


class TestLoops:
    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    @pytest.mark.parametrize("tls", [False, True])
    def test_the_descriptor_leaves_either_loop_with_and_without_tls(
        self, run: Callable[[Coroutine[Any, Any, None]], None], tls: bool, certificate: dict[str, str]
    ) -> None:
        async def main() -> None:
            async with gateway(tls=certificate if tls else None) as room:
                trust = ssl.create_default_context(cafile=certificate["ssl_certfile"])
                await talk("wss" if tls else "ws", room, **({"ssl": trust} if tls else {}))

        run(main())


class TestDecisions:
    async def test_a_plain_asgi_websocket_echoes_text_bytes_and_nothing(self) -> None:
        async with gateway() as room, room.connect("/echo", subprotocols=["p1", "p2"]) as client:
            assert client.subprotocol == "p1"
            for message in ("text", b"bytes", "", b"", "x" * 300_000):
                await client.send(message)
                assert await client.recv() == message

    async def test_a_plain_asgi_websocket_that_floods_is_held_back(self) -> None:
        async with gateway() as room, room.connect("/echo", max_queue=1) as client:
            sending = asyncio.gather(*(client.send(bytes(30_000)) for _ in range(300)))
            for _ in range(300):
                assert len(await client.recv()) == 30_000
            await sending

    @pytest.mark.parametrize(
        "answer",
        [
            UpgradeAccepted(headers=(("x-a", "b\r\nset-cookie: c"),)),
            UpgradeRefused(403, (("x-a", "b\r\nset-cookie: c"),)),
            UpgradeRefused(403, (("x-a", "\u0416"),)),
        ],
    )
    async def test_an_answer_that_cannot_be_sent_is_500_and_leaves_nothing(self, answer: UpgradeAnswer) -> None:
        def answering(instance: Instance, upgrade: UpgradeRequest) -> UpgradeAnswer:
            if isinstance(answer, UpgradeAccepted):
                accept_all(instance, upgrade)
            return answer

        async with gateway() as room:
            room.script.on_connect = answering
            with pytest.raises(InvalidStatus) as refused:
                async with asyncio.timeout(5), room.connect():
                    pass
            assert refused.value.response.status_code == 500
            assert "set-cookie" not in refused.value.response.headers
            await until(lambda: room.service.table.counters()["rows"] == 0)

    async def test_party_9_a_refusal_is_plain_http_with_its_headers(self) -> None:
        async with gateway() as room:
            room.script.on_connect = lambda instance, upgrade: UpgradeRefused(403, (("x-reason", "full"),), b"not here")
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect():
                    pass
            response = refused.value.response
            assert (response.status_code, response.headers["x-reason"], response.body) == (403, "full", b"not here")
            with pytest.raises(InvalidStatus) as closed:
                async with room.connect("/nowhere"):
                    pass
            assert closed.value.response.status_code == 403

    async def test_a_refusal_for_good_is_an_accept_and_a_close_code(self) -> None:
        async with gateway() as room, room.connect("/bye") as client:
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "not today")

    async def test_headers_of_an_acceptance_reach_the_client(self) -> None:
        def on_connect(instance: Instance, upgrade: UpgradeRequest) -> UpgradeAnswer:
            accept_all(instance, upgrade)
            return UpgradeAccepted("chat", (("x-room", "lobby"),))

        async with gateway() as room:
            room.script.on_connect = on_connect
            async with room.connect(subprotocols=["chat"]) as client:
                assert client.response is not None
                assert client.response.headers["x-room"] == "lobby"
                assert client.subprotocol == "chat"

    async def test_the_object_sees_url_headers_and_protocols_undecoded(self) -> None:
        seen: list[UpgradeRequest] = []

        def on_connect(instance: Instance, upgrade: UpgradeRequest) -> UpgradeAnswer:
            seen.append(upgrade)
            return accept_all(instance, upgrade)

        async with gateway() as room:
            room.script.on_connect = on_connect
            async with room.connect("/room?a=%2F%20b", additional_headers={"X-One": "1"}, subprotocols=["p", "q"]):
                pass
            assert seen[0].url == f"ws://127.0.0.1:{room.port}/room?a=%2F%20b"
            assert ("x-one", "1") in seen[0].headers
            assert seen[0].protocols == ("p", "q")
            assert seen[0].client == "127.0.0.1"

    async def test_an_acceptance_without_a_connection_is_500(self) -> None:
        async with gateway() as room:
            room.script.on_connect = lambda instance, upgrade: UpgradeAccepted()
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect():
                    pass
            assert refused.value.response.status_code == 500

    async def test_an_application_that_fails_is_500(self) -> None:
        async with gateway() as room:
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect("/broken"):
                    pass
            assert refused.value.response.status_code == 500

    async def test_an_application_that_does_not_decide_is_503(self) -> None:
        async with gateway(handshake=HandshakeSettings(decision_timeout=0.1)) as room:
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect("/slow"):
                    pass
            assert refused.value.response.status_code == 503

    @pytest.mark.parametrize("piped", [False, True])
    async def test_an_object_that_does_not_decide_is_503(self, piped: bool) -> None:
        async def constructor(instance: Instance) -> None:
            await asyncio.sleep(0.5)

        async with gateway(piped=piped, handshake=HandshakeSettings(decision_timeout=0.1)) as room:
            room.script.constructor = constructor
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect():
                    pass
            assert refused.value.response.status_code == 503

    @pytest.mark.parametrize("piped", [False, True])
    async def test_a_client_that_leaves_while_the_object_decides_leaves_nothing(self, piped: bool) -> None:
        gate = asyncio.Event()

        async def constructor(instance: Instance) -> None:
            await gate.wait()

        async with gateway(piped=piped) as room:
            room.script.constructor = constructor
            _, writer = await asyncio.open_connection("127.0.0.1", room.port)
            writer.write(request("/room"))
            await until(lambda: room.manager.counters()["upgrades"] == 1)
            writer.close()
            await until(lambda: room.manager.counters()["upgrades"] == 0)
            gate.set()


class TestBadHandshakes:
    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (request(Sec_WebSocket_Version="8"), 400),
            (request(Sec_WebSocket_Version=""), 400),
            (request(Sec_WebSocket_Key=""), 400),
            (request(Sec_WebSocket_Key="c2hvcnQ="), 400),
            (request(Sec_WebSocket_Key="not base64!"), 400),
            (request().replace(b"GET", b"POST", 1), 405),
            (request("/" + "x" * 9_000), 414),
            (request(X_Long="x" * 9_000), 431),
            (request(**{f"X_{i}": "x" for i in range(130)}), 431),
        ],
        ids=["version", "no version", "no key", "short key", "bad key", "POST", "long path", "long header", "headers"],
    )
    async def test_a_bad_handshake_is_refused_with_its_status(self, data: bytes, status: int) -> None:
        async with gateway() as room:
            answer = await raw(room.port, data)
            assert int(answer.split(b" ", 2)[1]) == status

    async def test_an_origin_that_is_not_allowed_is_403(self) -> None:
        async with gateway(handshake=HandshakeSettings(allowed_origins=("https://good.example",))) as room:
            assert (await raw(room.port, request(Origin="https://evil.example"))).startswith(b"HTTP/1.1 403")
            async with room.connect("/echo", origin="https://good.example"), room.connect("/echo"):
                pass

    async def test_a_flood_from_one_address_is_429(self) -> None:
        settings = HandshakeSettings(rate_per_address=0.001, burst_per_address=3)
        async with gateway(handshake=settings) as room:
            statuses = []
            for _ in range(5):
                try:
                    async with room.connect("/echo"):
                        statuses.append(101)
                except InvalidStatus as refused:
                    statuses.append(refused.response.status_code)
            assert statuses == [101, 101, 101, 429, 429]
            assert room.manager.refused["handshakes_per_second"] == 2

    async def test_behind_a_proxy_the_client_counts_not_the_proxy(self) -> None:
        settings = HandshakeSettings(
            rate_per_address=0.001, burst_per_address=1, trusted_proxies=frozenset({"127.0.0.1"})
        )
        async with gateway(handshake=settings) as room:
            for number in (1, 2):
                async with room.connect(additional_headers={"X-Forwarded-For": f"198.51.100.{number}"}):
                    (connection_id,) = room.script.instance.connections.connections(ROOM)
                    info = room.script.instance.connections.info(connection_id)
                    assert info is not None
                    assert info.client == f"198.51.100.{number}"
                await room.seen(number, ConnectionClosed)
                await until(lambda: room.manager.count(ROOM) == 0)
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect(additional_headers={"X-Forwarded-For": "198.51.100.1"}):
                    pass
            assert refused.value.response.status_code == 429

    async def test_a_full_table_is_503(self) -> None:
        async with gateway(max_sockets=1) as room, room.connect("/echo"):
            with pytest.raises(InvalidStatus) as refused:
                async with room.connect("/echo"):
                    pass
            assert refused.value.response.status_code == 503
            assert room.manager.refused["connections_max"] == 1

    async def test_frames_sent_before_the_answer_do_no_harm(self) -> None:
        """RFC 6455 §4.1 forbids them; what came in the same segment as the head is dropped, never misread."""
        async with gateway() as room:
            reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
            writer.write(request("/echo"))
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101")
            writer.write(b"\x81\x85\0\0\0\0hello")
            assert await reader.readexactly(7) == b"\x81\x05hello"
            writer.close()

    async def test_a_head_that_never_ends_is_cut_by_the_servers_http_protocol(self) -> None:
        """Slowloris: uvicorn itself would wait for ever; the server's own HTTP protocol does not."""
        limits = HttpSettings(header_timeout=0.3)
        http = functools.partial(HttpProtocol, limits=limits)
        async with gateway(http=http) as room, room.connect("/echo") as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
            for byte in request()[:20]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await client.send("still served")
            assert await client.recv() == "still served"

    def test_a_header_that_breaks_its_line_is_never_written(self) -> None:
        with pytest.raises(ValueError):
            http_answer(200, [("x", "a\r\nset-cookie: b")], b"")


class TestTls:
    async def test_a_client_lost_under_tls_is_1006(self, certificate: dict[str, str]) -> None:
        trust = ssl.create_default_context(cafile=certificate["ssl_certfile"])
        async with gateway(tls=certificate) as room:
            async with connect(f"wss://localhost:{room.port}/room", ssl=trust) as client:
                client.transport.abort()
            (event,) = await room.seen(1, ConnectionClosed)
            assert event.code == 1006


class TestDeflate:
    async def test_a_browser_like_client_gets_compression_when_offered(self) -> None:
        async with gateway(handshake=HandshakeSettings(deflate=True)) as room:
            uri = f"ws://127.0.0.1:{room.port}/echo"
            async with connect(uri) as client:
                assert client.response is not None
                offer = client.response.headers["Sec-WebSocket-Extensions"]
                assert "client_no_context_takeover" in offer
                assert "server_no_context_takeover" in offer
                for text in ("short", "long " * 10_000):
                    await client.send(text)
                    assert await client.recv() == text
            assert room.table.counters()["bytes_sent"] < 5_000

    async def test_without_the_option_none_is_agreed(self) -> None:
        async with gateway() as room, connect(f"ws://127.0.0.1:{room.port}/echo") as client:
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers


class TestChurn:
    @pytest.mark.parametrize("tls", [False, True])
    async def test_clients_come_and_go_in_every_way_and_no_descriptor_stays(
        self, tls: bool, certificate: dict[str, str]
    ) -> None:
        trust = ssl.create_default_context(cafile=certificate["ssl_certfile"])
        options: dict[str, Any] = {"ssl": trust} if tls else {}
        chance = random.Random(7)
        async with gateway(tls=certificate if tls else None) as room:

            async def visit(number: int) -> None:
                path = chance.choice(["/room", "/room?tag", "/echo", "/bye"])
                way = chance.choice(["close", "abort", "bare", "nonsense"])
                async with connect(f"{'wss' if tls else 'ws'}://localhost:{room.port}{path}", **options) as client:
                    if path != "/bye":
                        await client.send(f"hello {number}")
                    if way == "abort":
                        client.transport.abort()
                    elif way == "bare":
                        client.transport.write(b"\x88\x80abcd")
                    elif way == "nonsense":
                        client.transport.write(b"\xff" * 20)

            await asyncio.gather(*(visit(number) for number in range(4)))
            await until(lambda: room.table.counters()["rows"] == 0)
            await asyncio.sleep(0.05)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                await asyncio.gather(*(visit(number) for number in range(12)))
                room.script.hibernate()
            await until(lambda: room.table.counters()["rows"] == 0)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
            counters = room.table.counters()
            assert counters["inbound_bytes"] == counters["outbound_bytes"] == 0


class TestStopping:
    async def test_a_drain_closes_every_connection_with_1012(self) -> None:
        async with gateway() as room, room.connect() as one, room.connect("/echo") as two:
            await room.service.drain(over=0.1)
            for client in (one, two):
                with pytest.raises(ClientClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
