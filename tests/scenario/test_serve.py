"""`torpor serve` as a process: start, stop, signals, bounds before any handler runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from loadtest.turn_client import TurnClient, TurnFailedError
from tests.support.certificates import make_certificate
from tests.support.server import Server, running_server
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET
from torpor.figures import MEDIA_COUNTERS, MEDIA_GAUGES

NO_MEDIA = ("--media-enabled", "false", "--turn-enabled", "false")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    """One server for the tests that do not stop it, with short patience."""
    patience = ("--http-header-timeout", "1", "--http-body-timeout", "1", "--http-connections-max", "10")
    async with running_server(*NO_MEDIA, *patience) as server:
        yield server


async def answer_to(server: Server, request: bytes) -> bytes:
    """What the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


class TestStop:
    async def test_sigterm_and_sigint_end_it_with_0(self) -> None:
        async with running_server(*NO_MEDIA) as server:
            os.kill(server.pid, signal.SIGINT)
            assert await server.wait() == 0
            await server.start()
        assert [entry["event"] for entry in server.log] == ["serving", "draining", "stopped"] * 2

    async def test_a_stopping_server_ends_event_streams_and_does_not_wait_for_idle_connections(self) -> None:
        bearer = {"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"}
        async with running_server() as server, httpx.AsyncClient(base_url=server.url, headers=bearer) as client:
            await client.get("/healthz")
            async with client.stream("GET", f"/v1/apps/{DEVELOPMENT_APP_ID}/events") as stream:
                assert stream.status_code == 200
                chunks = stream.aiter_text()
                assert await anext(chunks) == ":\n\n"
                await server.stop()
                assert [chunk async for chunk in chunks] == []
        assert not [entry for entry in server.log if entry.get("level") == "error"]

    async def test_while_draining_healthz_says_503_and_everything_else_goes_on(self) -> None:
        async with running_server(*NO_MEDIA, "--shutdown-delay", "30") as server:
            async with httpx.AsyncClient(base_url=server.url) as client:
                os.kill(server.pid, signal.SIGTERM)
                for _ in range(500):
                    if (response := await client.get("/healthz")).status_code != 200:
                        break
                    await asyncio.sleep(0.02)
                assert response.status_code == 503
                assert response.json()["status"] == "draining"
                assert (await client.get("/")).status_code == 200
            # The second signal does not wait.
            os.kill(server.pid, signal.SIGTERM)
            assert await server.wait() == 128 + signal.SIGTERM


class TestReload:
    """SIGHUP."""

    async def test_new_certificates_are_for_new_connections_and_bad_ones_for_none(self, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)
        tls = ("--http-tls-certificate", str(certificate), "--http-tls-key", str(key))
        async with running_server("--media-enabled", "false", *tls) as server:
            turn = next(record for record in server.log if record["event"] == "turn")
            ports = (server.port, turn["tls_port"])
            before = [await shown_by(port) for port in ports]
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=unverified())
            make_certificate(tmp_path)
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "certificates", 2)
            after = [await shown_by(port) for port in ports]
            assert set(before) & set(after) == set()
            key.write_text("not a key")
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "certificates", 4)
            assert [await shown_by(port) for port in ports] == after
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            records = [record for record in server.log if record["event"] == "certificates"]
            assert [(record["where"], record["kept"]) for record in records] == [
                ("http", "new"), ("turn", "new"), ("http", "old"), ("turn", "old"),
            ]  # fmt: skip
            server.log = [record for record in server.log if record["event"] != "certificates"]

    async def test_d5_a_new_peer_policy_is_in_force_at_once_and_a_bad_one_never(self, tmp_path: Path) -> None:
        file = tmp_path / "torpor.toml"

        def write(allow: str, deny: str) -> None:
            file.write_text(
                '[turn]\nallow_loopback_peers = true\nusers = {alice = "wonderland"}\n'
                f'allow_peers = ["{allow}"]\ndeny_peers = ["{deny}"]\n'
            )

        write("127.0.0.2", "192.0.2.1")
        async with running_server("--media-enabled", "false", "--config", str(file)) as server:
            loop = asyncio.get_running_loop()
            with TurnClient(("127.0.0.1", server.turn_port), "alice", "wonderland") as client, peer_socket() as peer:
                await asyncio.to_thread(client.allocate)
                await asyncio.to_thread(client.permit, "127.0.0.2")
                client.socket.send(client.send_indication(peer.getsockname(), b"before"))
                assert await loop.sock_recv(peer, 100) == b"before"
                for allow, deny, reason in (
                    ("127.0.0.2", "nonsense", "nonsense"),
                    ("0.0.0.0/8", "127.0.0.2", "can never be an allowed peer"),
                    ("10.0.0.1", "127.0.0.2", ""),
                ):
                    write(allow, deny)
                    os.kill(server.pid, signal.SIGHUP)
                    await logged(server, "peers", 1)
                    (record,) = (record for record in server.log if record["event"] == "peers")
                    assert record["kept"] == ("old" if reason else "new")
                    assert reason in record.get("reason", "")
                    server.log.remove(record)
                    if reason:
                        client.socket.send(client.send_indication(peer.getsockname(), b"still"))
                        assert await loop.sock_recv(peer, 100) == b"still"
                client.socket.send(client.send_indication(peer.getsockname(), b"after"))
                with pytest.raises(TurnFailedError) as refused:
                    await asyncio.to_thread(client.permit, "127.0.0.2")
                assert refused.value.code == 403
                with pytest.raises(BlockingIOError):
                    peer.recv(100)
                file.unlink()
                os.kill(server.pid, signal.SIGHUP)
                await logged(server, "peers", 1)
                (record,) = (record for record in server.log if record["event"] == "peers")
                assert record["kept"] == "old"
                server.log.remove(record)


@contextmanager
def peer_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.2", 0))
        yield sock


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def shown_by(port: int) -> bytes:
    """The certificate on a port."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=unverified())
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return certificate


async def logged(server: Server, event: str, times: int) -> None:
    async with asyncio.timeout(10):
        while sum(record["event"] == event for record in server.log) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class TestStart:
    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
        return subprocess.run(
            [sys.executable, "-m", "torpor", *arguments],
            env={**clean, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )

    def test_a_public_address_without_an_app_is_refused_with_the_reason(self) -> None:
        done = self.run("serve", "--host", "0.0.0.0", "--port", "0")
        assert done.returncode == 2
        assert "TORPOR_APP_ID" in done.stderr
        assert "0.0.0.0" in done.stderr

    def test_an_address_in_use_is_named(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = self.run("serve", "--port", port, *NO_MEDIA)
        assert done.returncode == 2
        assert port in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_wrong_setting_is_one_line(self) -> None:
        done = self.run("serve", TORPOR_HTTP_PORT="many")
        assert done.returncode == 2
        assert done.stderr == "torpor: TORPOR_HTTP_PORT: http.port: 'many' is not a whole number\n"

    async def test_the_development_credentials_are_printed(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "torpor", "serve", "--port", "0", *NO_MEDIA),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(5)]
        process.terminate()
        await process.communicate()
        assert process.returncode == 0
        assert "TORPOR_APP_ID=0123456789abcdef0123456789abcdef\n" in lines[3]
        assert "TORPOR_APP_SECRET=development-secret-" in lines[4]


class TestTls:
    async def test_a_certificate_and_its_key_make_it_https(self, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)
        flags = ("--http-tls-certificate", str(certificate), "--http-tls-key", str(key))
        async with running_server(*NO_MEDIA, *flags) as server:
            assert server.url.startswith("https://")
            trust = ssl.create_default_context(cafile=str(certificate))
            async with httpx.AsyncClient(verify=trust) as client:
                assert (await client.get(f"https://localhost:{server.port}/healthz")).status_code == 200


@pytest.mark.asyncio(loop_scope="module")
class TestBounds:
    """What a stranger can make the server hold: a connection, a head, and neither for long."""

    async def test_what_is_not_http_is_answered_in_the_envelope(self, server: Server) -> None:
        answer = await answer_to(server, b"\x16\x03\x01 hello\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'{"errorCode":"decoding_error"' in answer

    async def test_a_head_that_is_too_large_is_431(self, server: Server) -> None:
        answer = await answer_to(server, b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"a" * 40_000)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"headers_too_large"' in answer

    async def test_a_head_that_does_not_end_is_cut_off(self, server: Server) -> None:
        assert await answer_to(server, b"GET / HTTP/1.1\r\nhost: localhost\r\n") == b""

    async def test_a_connection_that_says_nothing_is_cut_off(self, server: Server) -> None:
        assert await answer_to(server, b"") == b""

    async def test_a_second_head_that_does_not_end_is_cut_off(self, server: Server) -> None:
        answer = await answer_to(server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HT")
        assert answer.count(b"HTTP/1.1 ") == 1

    async def test_two_requests_in_one_segment_get_two_answers(self, server: Server) -> None:
        request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
        last = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert (await answer_to(server, request + last)).count(b"HTTP/1.1 200 OK") == 2

    async def test_a_flood_of_pipelined_requests_is_cut_off(self, server: Server) -> None:
        answer = await answer_to(server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2000)
        assert answer.count(b"HTTP/1.1 200 OK") < 100

    async def test_connections_beyond_the_limit_are_closed_and_free_places_count_again(self, server: Server) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(10)]
        assert await answer_to(server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n") == b""
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in opened))
        for _ in range(100):
            answer = await answer_to(server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            if answer:
                break
            await asyncio.sleep(0.05)
        assert b"200 OK" in answer


class TestMedia:
    """The media side belongs to the server: started with it, seen in its figures, closed with it."""

    async def test_the_udp_port_has_the_number_of_the_tcp_port(self) -> None:
        async with running_server() as server:
            assert server.udp_port == server.port

    async def test_every_figure_of_the_plane_has_a_name_and_a_text(self) -> None:
        async with running_server() as server, httpx.AsyncClient(base_url=server.url) as client:
            text = (await client.get("/metrics")).text
        families = dict(re.findall(r"^# HELP (torpor_media_\S+) (.*)$", text, re.MULTILINE))
        names = set(MEDIA_COUNTERS) | set(MEDIA_GAUGES)
        plane = {name.removeprefix("torpor_media_").removesuffix("_total"): text for name, text in families.items()}
        assert set(plane) - names == {"drops", "live", "forward_seconds", "batch_datagrams"}
        assert names <= set(plane)

    async def test_sessions_appear_in_the_figures_and_close_with_the_server(self) -> None:
        async with (
            running_server() as server,
            httpx.AsyncClient(base_url=server.api, headers=server.authorization) as client,
        ):
            session_id = (await client.post("/sessions/new")).json()["sessionId"]
            assert (await client.get(f"/sessions/{session_id}")).json() == {"tracks": [], "dataChannels": []}
            figures = (await client.get(f"{server.url}/metrics")).text
            assert 'torpor_media_live{kind="sessions"} 1\n' in figures
            async with client.stream("GET", "/events") as stream:
                chunks = stream.aiter_text()
                assert await anext(chunks) == ":\n\n"
                await server.stop()
                assert [chunk async for chunk in chunks] == []
        assert [entry["event"] for entry in server.log if session_id in entry["event"]]


class TestTurn:
    """STUN and TURN belong to the server: started with it, seen in its figures, closed with it."""

    @pytest.mark.parametrize("audit", [False, True])
    async def test_a_relay_is_seen_while_it_lives_and_ends_with_the_server(self, audit: bool) -> None:
        async with running_server("--turn-audit-log", str(audit)) as server:
            with await asyncio.to_thread(self.allocate, server) as relay:
                async with httpx.AsyncClient() as client:
                    figures = (await client.get(f"{server.url}/metrics")).text
                assert 'torpor_turn_live{kind="allocations"} 1\n' in figures
                assert f'torpor_turn_relayed_bytes_total{{key="{server.app_id}",custom_identifier="ada"' in figures
                await server.stop()
                relay.relayed = ("", 0)  # nothing to release any more
        # Who used it is logged only when the operator asks for it (X22).
        lines = [entry["event"].split()[0] for entry in server.log if entry["logger"] == "turn.audit"]
        assert lines == (["allocated", "closed"] if audit else [])

    @staticmethod
    def allocate(server: Server) -> TurnClient:
        url = f"{server.url}/v1/turn/keys/{server.app_id}/credentials/generate"
        issued = httpx.post(url, headers=server.authorization, json={"customIdentifier": "ada"}).json()["iceServers"]
        client = TurnClient(("127.0.0.1", server.turn_port), issued["username"], issued["credential"])
        client.allocate()
        return client

    async def test_two_development_servers_run_side_by_side(self) -> None:
        """The well-known port is the first one's, or some other program's; any other will do."""
        default = ("--turn-port", "", "--turn-tls-port", "")
        async with running_server(*default) as first, running_server(*default) as second:
            assert first.turn_port != second.turn_port
            for server in (first, second):
                relay = await asyncio.to_thread(self.allocate, server)
                relay.close()

    def test_a_taken_port_is_named(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = TestStart().run("serve", "--port", "0", "--turn-port", port)
        assert done.returncode == 2
        assert f"TURN port {port}" in done.stderr
        assert "Traceback" not in done.stderr
