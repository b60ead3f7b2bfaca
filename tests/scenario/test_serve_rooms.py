"""`torpor serve` and `torpor dev` with rooms, as processes: what is on disk, who gets in, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.certificates import make_certificate
from tests.support.server import Server, running_server
from tests.support.tools import needs_partysocket
from torpor.config import DEVELOPMENT_APP_SECRET

SUPPORT = Path(__file__).parent.parent / "support"
NO_MEDIA = ("--media-enabled", "false", "--turn-enabled", "false")
ADMIN = {"authorization": f"Bearer {DEVELOPMENT_APP_SECRET}"}

APP = """\
import asyncio
from objects.http import HttpResponse
from partykit_compat import Server

class Counter(Server):
    async def on_connect(self, connection, request):
        connection.send(f"hello {connection.id}")

    async def on_message(self, connection, message):
        if message == "hang":
            await asyncio.sleep(3600)
        value = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", value)
        connection.send(f"{self.name} {value}")

    async def on_close(self, connection, code, reason, was_clean):
        await self.ctx.storage.put("closed", [connection.id, code])

    async def on_request(self, request):
        if request.method == "PUT":
            return HttpResponse.of(len(await request.read()))
        return HttpResponse.of([await self.ctx.storage.get("n"), await self.ctx.storage.get("closed")])
"""

EXITS = """\
import sys
from urllib.parse import urlsplit
from partykit_compat import Server

def leave(where, room):
    if room == where:
        sys.exit(3)
    if room == where + "-by-hand":
        raise KeyboardInterrupt

def room_of(request):
    return urlsplit(request.url).path.rpartition("/")[2]

class Exits(Server):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        leave("constructor", ctx.id.name)

    async def on_start(self):
        leave("start", self.name)
    async def on_connect(self, connection, request):
        leave("connect", self.name)
    async def on_message(self, connection, message):
        if message == "hello":
            connection.send(message)
            return
        leave("message", self.name)
        if self.name == "timer":
            self.ctx.set_timeout(lambda: sys.exit(3), 0)
        await self.ctx.sleep(0)
        leave("later", self.name)
    async def on_close(self, connection, code, reason, was_clean):
        leave("close", self.name)
    async def on_request(self, request):
        leave("request", self.name)
    @staticmethod
    async def on_before_connect(request, lobby):
        leave("before-connect", room_of(request))
    @staticmethod
    async def on_before_request(request, lobby):
        leave("before-request", room_of(request))
    @staticmethod
    async def on_fetch(request, lobby):
        leave("fetch", room_of(request))
"""

SITE = """\
from urllib.parse import urlsplit
from objects.http import HttpResponse
from partykit_compat import Server

class Site(Server):
    crons = {"tick": "* * * * * *"}

    @staticmethod
    async def on_fetch(request, lobby):
        url = urlsplit(request.url)
        if url.path == "/hello":
            return HttpResponse.of(f"{request.method} {url.path}?{url.query}")

    @staticmethod
    async def on_cron(cron, lobby):
        await lobby.parties["main"].get("r").fetch("/")

    async def on_request(self, request):
        self.broadcast("tick")
        return HttpResponse.of("ok")
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    file = tmp_path / "counter_app.py"
    file.write_text(APP)
    return file


def flags(app: Path) -> tuple[str, ...]:
    return (*NO_MEDIA, "--rooms-folder", str(app.parent / "data"), str(app))


@pytest.fixture
async def server(app: Path) -> AsyncIterator[Server]:
    async with running_server(*flags(app)) as server:
        yield server


def client(server: Server, path: str = "/parties/main/r?_pk=me", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{server.port}{path}", **options)


async def ask(websocket: ClientConnection, message: str) -> str | bytes:
    await websocket.send(message)
    async with asyncio.timeout(20):
        return await websocket.recv()


async def status_of(connecting: connect) -> int:
    with pytest.raises(InvalidStatus) as refused:
        async with connecting:
            pass
    return refused.value.response.status_code


class TestRooms:
    async def test_websockets_and_requests_reach_a_room_on_the_http_port(self, server: Server) -> None:
        async with client(server) as websocket, httpx.AsyncClient(base_url=server.url) as http:
            assert await websocket.recv() == "hello me"
            assert await ask(websocket, "x") == "r 1"
            assert (await http.get("/party/r")).json() == [1, None]
            assert (await http.get("/parties/nope/r")).status_code == 400
            assert (await http.get("/healthz")).status_code == 200

    async def test_only_names_and_pages_of_this_machine_use_a_development_server(self, server: Server) -> None:
        rebound = connect("ws://evil.example/party/r", host="127.0.0.1", port=server.port)
        assert await status_of(rebound) == 403
        assert await status_of(client(server, origin="https://evil.example")) == 403  # type: ignore[arg-type]
        assert await status_of(client(server, path="//party/r", origin="https://evil.example")) == 403  # type: ignore[arg-type]
        async with client(server, origin="http://localhost:5173"):  # type: ignore[arg-type]
            pass

    async def test_cors_is_as_for_websockets(self, server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url) as http:
            preflight = {"origin": "http://localhost:5173", "access-control-request-method": "PUT"}
            ours = await http.options("/parties/main/r", headers=preflight)
            assert ours.headers["access-control-allow-origin"] == "http://localhost:5173"
            assert ours.headers["access-control-allow-methods"] == "*"
            plain = await http.options("/parties/main/r", headers={"origin": "http://localhost:5173"})
            assert plain.json() == [None, None]  # asks for no permission: it is the room's
            theirs = await http.get("/parties/main/r", headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in theirs.headers
            assert theirs.status_code == 403
            forged = await http.put("/parties/main/r", content=b"x", headers={"origin": "https://evil.example"})
            assert forged.status_code == 403

    async def test_no_other_path_is_a_websocket(self, server: Server) -> None:
        for path in ("/", "/healthz", "/v1/rooms", "/parties/main"):
            assert await status_of(client(server, path)) == 403

    async def test_a_body_that_is_too_large_is_413(self, server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url) as http:
            assert (await http.put("/party/r", content=bytes(2**20))).json() == 2**20
            assert (await http.put("/party/r", content=bytes(2**21 + 1))).status_code == 413

    async def test_a_client_that_does_too_much_is_refused_and_counted(self, app: Path) -> None:
        limits = ("--rooms-connections-per-address", "1", "--rooms-messages-per-second", "3")
        async with running_server(*limits, *flags(app)) as server, httpx.AsyncClient(base_url=server.url) as http:
            async with client(server) as first:
                await first.recv()
                with pytest.raises(InvalidStatus) as refused:
                    async with client(server):
                        pass
                assert refused.value.response.status_code == 429
                for _ in range(4):
                    await first.send("count")
                async with asyncio.timeout(20):
                    await first.wait_closed()
                assert (first.close_code, first.close_reason) == (1008, "too many messages")
            figures = (await http.get("/metrics")).text
            assert 'torpor_rooms_socket_ends_total{reason="flooded"} 1' in figures

    async def test_what_nothing_else_answers_goes_to_on_fetch_and_crons_run(self, tmp_path: Path) -> None:
        site = tmp_path / "site_app.py"
        site.write_text(SITE)
        async with running_server(*flags(site)) as server, httpx.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/hello?x=1")).text == "GET /hello?x=1"
            assert (await http.post("/hello", content=b"x" * (11 * 2**20))).status_code == 413
            assert (await http.get("/nowhere")).status_code == 404
            assert (await http.get("/healthz")).json()["status"] == "ok"
            async with client(server) as watcher, asyncio.timeout(20):
                assert await watcher.recv() == "tick"
            listed = (await http.get("/v1/rooms", headers=ADMIN)).json()["rooms"]
            assert {room["party"] for room in listed} == {"main"}

    async def test_a_hook_that_exits_is_a_handler_that_failed_and_the_server_goes_on(self, tmp_path: Path) -> None:
        app = tmp_path / "exits_app.py"
        app.write_text(EXITS)
        async with running_server(*NO_MEDIA, "--rooms-folder", str(tmp_path / "data"), str(app)) as server:
            rooms = f"ws://127.0.0.1:{server.port}/parties/main/"
            for ending in ("", "-by-hand"):
                for room in ("constructor", "start", "before-connect"):
                    with pytest.raises(InvalidStatus) as refused:
                        async with connect(rooms + room + ending):
                            pass
                    assert refused.value.response.status_code == 500
                async with connect(rooms + "connect" + ending) as client:
                    with pytest.raises(ConnectionClosed):
                        await client.recv()
                    assert client.close_code == 1011
                for room in ("message", "later", "timer", "close"):
                    async with connect(rooms + room + ending) as client:
                        await client.send("go")
                        await client.send("hello")
                        assert await client.recv() == "hello"
                async with httpx.AsyncClient(base_url=server.url) as http:
                    for path in ("/parties/main/request", "/parties/main/before-request", "/site/fetch"):
                        assert (await http.get(path + ending)).status_code == 500
            # It stops as ever.
            async with asyncio.timeout(10):
                while sum(record["level"] == "error" for record in server.log) < 19:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            server.log = []
            await server.stop()

    async def test_tls(self, app: Path, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)
        secure = ("--http-tls-certificate", str(certificate), "--http-tls-key", str(key))
        async with running_server(*secure, *flags(app)) as server:
            trust = ssl.create_default_context(cafile=str(certificate))
            async with connect(f"wss://localhost:{server.port}/party/r", ssl=trust) as websocket:
                await websocket.recv()
                assert await ask(websocket, "x") == "r 1"


class TestOperation:
    async def test_rooms_are_listed_for_whoever_has_the_token(self, server: Server) -> None:
        async with client(server), httpx.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/v1/rooms")).status_code == 401
            listed = (await http.get("/v1/rooms", headers=ADMIN)).json()
            assert listed["total"] == 1
            room = listed["rooms"][0]
            assert (room["party"], room["room"], room["connections"], room["state"]) == ("main", "r", 1, "awake")
            cut = (await http.get("/v1/rooms?limit=1", headers=ADMIN)).json()
            assert len(cut["rooms"]) == cut["total"] == 1
            assert (await http.get("/v1/rooms?limit=0", headers=ADMIN)).status_code == 406

    async def test_a_hibernating_room_is_listed_and_printed_as_such(self, app: Path) -> None:
        async with (
            running_server("--rooms-idle-timeout", "0.1", *flags(app)) as server,
            client(server, "/parties/main/quiet"),
            httpx.AsyncClient(base_url=server.url) as http,
        ):
            for _ in range(500):
                listed = (await http.get("/v1/rooms", headers=ADMIN)).json()["rooms"]
                if listed[0]["state"] == "hibernating":
                    break
                await asyncio.sleep(0.02)
            assert listed[0] | {"id": ""} == {
                "party": "main",
                "room": "quiet",
                "id": "",
                "connections": 1,
                "state": "hibernating",
                "awakeFor": {},
            }
            command = (sys.executable, "-m", "torpor", "rooms", "--url", server.url)
            printed = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            out, _ = await printed.communicate()
            head, line = out.decode().splitlines()
            assert head.split() == ["PARTY", "ROOM", "CONNECTIONS", "STATE", "AWAKE", "FOR"]
            assert line.split() == ["main", "quiet", "1", "hibernating"]

    async def test_figures(self, server: Server) -> None:
        async with client(server) as websocket, httpx.AsyncClient(base_url=server.url) as http:
            await ask(websocket, "x")
            assert await websocket.recv() == "r 1"
            lines = (await http.get("/metrics")).text.splitlines()
            assert 'torpor_rooms_live{kind="connections"} 1' in lines
            assert 'torpor_rooms_events_total{party="main",kind="messages"} 1' in lines
            assert "torpor_rooms_socket_accepted_total 1" in lines


class TestLife:
    async def test_sigterm_closes_with_1012_and_the_handlers_of_the_end_are_on_disk(self, app: Path) -> None:
        server = Server(flags(app))
        await server.start()
        async with client(server) as websocket:
            await websocket.recv()
            stopping = asyncio.create_task(server.stop())
            with pytest.raises(ConnectionClosed) as closed:
                async with asyncio.timeout(20):
                    await websocket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "service restart")
        await stopping
        async with running_server(*flags(app)) as again, httpx.AsyncClient(base_url=again.url) as http:
            assert (await http.get("/party/r")).json() == [None, ["me", 1012]]

    async def test_a_client_and_a_handler_that_hang_do_not_keep_it(self, app: Path) -> None:
        server = Server(("--shutdown-timeout", "1", *flags(app)))
        await server.start()
        async with client(server) as websocket:
            await websocket.recv()
            await websocket.send("hang")
            assert await ask(websocket, "x") == "r 1"
            os.kill(server.pid, signal.SIGTERM)
            assert await server.wait() == 0

    async def test_what_was_answered_outlives_sigkill(self, app: Path) -> None:
        server = Server(flags(app))
        for expected in ("r 1", "r 2", "r 3"):
            await server.start()
            async with client(server) as websocket:
                await websocket.recv()
                assert await ask(websocket, "x") == expected
                await server.kill()

    async def test_a_folder_has_one_server(self, server: Server, app: Path) -> None:
        command = (sys.executable, "-m", "torpor", "serve", "--port", "0", *flags(app))
        second = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        _, error = await second.communicate()
        assert second.returncode == 2
        assert b"in use by another process" in error
        assert b"Traceback" not in error


@asynccontextmanager
async def developing(app: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = ("dev", "--port", "0", *NO_MEDIA, "--log-format", "json", app.name)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "torpor", *command), cwd=app.parent, env=inherited, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def save(app: Path, text: str) -> None:
    app.write_text(text)


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while line := await process.stderr.readline():
            if text in line.decode():
                return line.decode()
    raise AssertionError("it ended")


class TestDevelopment:
    async def test_a_saved_file_is_served_and_half_an_edit_is_waited_out(self, app: Path) -> None:
        async with developing(app) as process:
            port = json.loads(await line_with(process, '"serving"'))["url"].rpartition(":")[2]
            async with connect(f"ws://127.0.0.1:{port}/party/r?_pk=me") as websocket:
                assert await websocket.recv() == "hello me"
                save(app, APP.replace("hello", "goodbye") + "\ndef half(:")
                await line_with(process, "counter_app.py was saved")
                with pytest.raises(ConnectionClosed):
                    await websocket.recv()
            assert "SyntaxError" in await line_with(process, "cannot be loaded")
            save(app, APP.replace("hello", "goodbye"))
            port = json.loads(await line_with(process, '"serving"'))["url"].rpartition(":")[2]
            async with connect(f"ws://127.0.0.1:{port}/party/r?_pk=me") as websocket:
                assert await websocket.recv() == "goodbye me"


@needs_partysocket
async def test_the_real_partysocket_talks_to_it_and_comes_back_after_a_restart(app: Path) -> None:
    server = Server(flags(app))
    await server.start()
    node = await asyncio.create_subprocess_exec(
        *("node", "--experimental-websocket", "--no-warnings", str(SUPPORT / "partysocket_client.mjs")),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert node.stdin is not None and node.stdout is not None  # noqa: PT018  both pipes

    async def tell(**command: Any) -> None:
        assert node.stdin is not None
        node.stdin.write(json.dumps(command).encode() + b"\n")
        await node.stdin.drain()

    async def next_event(kind: str) -> dict[str, Any]:
        assert node.stdout is not None
        async with asyncio.timeout(30):
            while line := await node.stdout.readline():
                event: dict[str, Any] = json.loads(line)
                if event["type"] == kind:
                    return event
        raise AssertionError("the client ended")

    try:
        options = {"host": f"127.0.0.1:{server.port}", "room": "r", "id": "me", "minReconnectionDelay": 50}
        await tell(command="open", name="a", options=options, early=["x"])
        assert [(await next_event("message"))["data"] for _ in range(2)] == ["hello me", "r 1"]
        await server.stop()
        assert (await next_event("close"))["code"] == 1012
        await server.start()
        assert (await next_event("open"))["id"] == "me"
        await tell(command="send", name="a", message="x")
        assert [(await next_event("message"))["data"] for _ in range(2)] == ["hello me", "r 2"]
    finally:
        node.stdin.close()
        await node.wait()
        await server.stop()
