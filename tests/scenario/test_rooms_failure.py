"""Bad input and failure in rooms, through `torpor serve`: the cases of docs/design/rooms-failure.md have their stated
results, and another room of the same server goes on answering."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.server import Server
from tests.support.sockets import frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = """\
import asyncio
import gc
import json
import time
import weakref
from pathlib import Path

from objects.http import HttpResponse
from objects.ports import AutoResponse
from partykit_compat import Server

ALIVE = weakref.WeakSet()
FAIL = Path(__file__).with_name("fail")


class Room(Server):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        if FAIL.exists() and ctx.id.name != "good":
            ctx.broadcast("never")
            raise RuntimeError("the constructor fails")
        ALIVE.add(self)
        self.seen = 0

    @staticmethod
    async def on_before_connect(request, lobby):
        if "hookblocks" in request.url:
            time.sleep(600)

    @staticmethod
    async def on_before_request(request, lobby):
        while "hookblocks" in request.url:
            try:
                time.sleep(0.001)
            except Exception:
                pass

    async def on_start(self):
        self.ctx.set_web_socket_auto_response(AutoResponse("ping", "pong"))

    async def get_connection_tags(self, connection_id, request):
        if "longtag" in request.url:
            return ["x" * 300]
        return ["t%d" % n for n in range(20)] if "manytags" in request.url else []

    async def on_connect(self, connection, request):
        n = await self.ctx.storage.get("connected") or 0
        await self.ctx.storage.put("connected", n + 1)
        connection.set_state({"n": n})

    async def on_message(self, connection, message):
        self.seen += 1
        if message == "raise":
            raise RuntimeError("the handler fails")
        if message == "block":
            time.sleep(600)
        if message == "hang":
            await asyncio.Event().wait()
        if message == "attach":
            try:
                connection.set_state("x" * 20_000)
            except Exception as error:
                connection.send(f"{type(error).__name__} {json.dumps(connection.state)}")
            return
        if message == "fill":
            self.ctx.storage.kv.put("marker", "lost")
            connection.send("never")
            for n in range(8):
                self.ctx.storage.kv.put(f"fill{n}", b"x" * 500_000)
        if message == "flood":
            for _ in range(400):
                connection.send("x" * 50_000)
            return
        if message == "report":
            states = [one.state["n"] for one in self.get_connections()]
            connection.send(json.dumps([await self.ctx.storage.get("connected"), states]))
            return
        connection.send(f"{self.seen} {message}")

    async def on_request(self, request):
        gc.collect()
        marker = await self.ctx.storage.get("marker")
        return HttpResponse.of({"alive": len(ALIVE), "marker": marker})


class Watch(Server):
    async def on_request(self, request):
        gc.collect()
        return HttpResponse.of(len(ALIVE))
"""

FLAGS = (
    "--media-enabled", "false", "--turn-enabled", "false", "--rooms-message-timeout", "1",
    "--rooms-blocking-timeout", "0.5", "--rooms-storage-max-bytes", str(2**20), "--http-header-timeout", "1",
)  # fmt: skip


class Running:
    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def connect(self, room: str, query: str = "", **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.server.port}/parties/main/{room}?{query}", **options)

    async def ask(self, client: ClientConnection, message: str) -> str | bytes:
        await client.send(message)
        async with asyncio.timeout(20):
            return await client.recv()

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=20) as http:
            return (await http.get(path)).json()

    async def figure(self, line: str) -> float:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=20) as http:
            lines = (await http.get("/metrics")).text.splitlines()
        return next((float(one.rpartition(" ")[2]) for one in lines if one.rpartition(" ")[0] == line), 0.0)

    @asynccontextmanager
    async def unharmed(self) -> AsyncIterator[ClientConnection]:
        """Another room, whose client is answered before and after, on one connection."""
        async with self.connect("good") as good:
            before = str(await self.ask(good, "x")).split()
            yield good
            after = str(await self.ask(good, "x")).split()
            assert int(after[0]) > int(before[0])


@asynccontextmanager
async def serving(tmp_path: Path, *flags: str) -> AsyncIterator[Running]:
    app = tmp_path / "failing_app.py"
    app.write_text(APP)
    server = Server((*FLAGS, *flags, "--rooms-folder", str(tmp_path / "data"), f"{app}:Room", f"{app}:Watch"))
    await server.start()
    try:
        yield Running(server, tmp_path)
        # What failed is in the log as a record; nothing came past it, and nothing is left.
        assert not [record for record in server.log if "Traceback" in str(record.get("event"))]
    finally:
        await server.kill()  # a stop would call the errors that were meant to happen failures


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with serving(tmp_path_factory.mktemp("rooms"), "--rooms-handshakes-per-second", "0") as running:
        yield running


async def code_of(client: ClientConnection) -> int:
    """The code that a browser would see at the end of a connection; nothing may come before it."""
    async with asyncio.timeout(20):
        try:
            message = await client.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
    raise AssertionError(f"{message!r} came instead of the end")


LONG = struct.pack("!BBQ", 0x82, 0xFF, (1 << 63) - 1) + b"\1\2\3\4"
FRAMES = {
    "oversized": (struct.pack("!BBQ", 0x81, 0xFF, 2_000_000) + b"\1\2\3\4", 1009),
    "longer than any": (LONG, 1009),
    "oversized in pieces": (frame(1, bytes(600_000), fin=False) + frame(0, bytes(600_000)), 1009),
    "unknown opcode": (frame(3, b"x"), 1002),
    "reserved bit": (frame(1, b"x", rsv=0x20), 1002),
    "compressed without agreement": (frame(1, b"x", rsv=0x40), 1002),
    "unmasked": (frame(1, b"x", mask=None), 1002),
    "interleaved": (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "fragmented ping": (frame(9, b"x", fin=False), 1002),
    "long ping": (frame(9, bytes(126)), 1002),
    "close of one byte": (frame(8, b"\3"), 1002),
    "close code that may not be": (frame(8, b"\3\xed"), 1002),
    "close reason that is not text": (frame(8, b"\3\xe8\xff"), 1007),
    "invalid UTF-8": (frame(1, b"\xff"), 1007),
    "surrogate": (frame(1, b"\xed\xa0\x80"), 1007),
    "invalid UTF-8 across pieces": (frame(1, b"\xe2\x82", fin=False) + frame(0, b"x"), 1007),
    "never whole": (frame(1, b"abc")[:-1], 1008),
    "endless pieces": (frame(1, b"x", fin=False) + frame(0, b"", fin=False) * 100, 1008),
}


class TestFrames:
    @pytest.mark.parametrize(("data", "code"), FRAMES.values(), ids=FRAMES)
    async def test_a_bad_frame_has_its_code(self, running: Running, data: bytes, code: int) -> None:
        async with running.unharmed(), running.connect("bad") as bad:
            bad.transport.write(data)
            assert await code_of(bad) == code

    async def test_text_split_inside_a_character_is_text(self, running: Running) -> None:
        async with running.connect("good") as client:
            client.transport.write(frame(1, b"\xe2\x82", fin=False) + frame(0, b"\xac"))
            async with asyncio.timeout(20):
                assert str(await client.recv()).endswith("€")


class TestHandlers:
    async def test_one_that_raises_costs_nothing_else(self, running: Running) -> None:
        async with running.unharmed(), running.connect("raising") as client:
            await client.send("raise")
            assert await running.ask(client, "x") == "2 x"

    async def test_one_that_blocks_is_stopped_and_its_room_reset(self, running: Running) -> None:
        async with running.unharmed() as good, running.connect("blocking") as client:
            await client.send("block")
            began = time.monotonic()
            assert "x" in str(await running.ask(good, "x"))
            assert time.monotonic() - began < 10
            assert await code_of(client) == 1006
            async with running.connect("blocking") as again:
                assert await running.ask(again, "x") == "1 x"

    async def test_a_hook_that_blocks_is_stopped_and_its_request_fails(self, running: Running) -> None:
        async with running.unharmed():
            with pytest.raises(InvalidStatus) as refused:
                await running.connect("good", "hookblocks").__aenter__()
            assert refused.value.response.status_code == 500
            async with httpx.AsyncClient(base_url=running.server.url, timeout=20) as http:
                answer = await http.get("/parties/main/good?hookblocks")
            assert (answer.status_code, answer.text) == (500, "The party failed to answer.")

    async def test_one_that_never_returns_holds_up_nobody(self, running: Running) -> None:
        async with running.unharmed(), running.connect("hanging") as client:
            await client.send("hang")
            assert await running.ask(client, "x") == "2 x"

    async def test_attachments_and_tags_over_the_limit(self, running: Running) -> None:
        async with running.unharmed(), running.connect("limits") as client:
            assert await running.ask(client, "attach") == 'LimitExceeded {"n": 0}'
            for query in ("longtag", "manytags"):
                async with running.connect("limits", query) as tagged:
                    assert await code_of(tagged) == 1011
            assert await running.ask(client, "x") == "2 x"

    async def test_storage_that_fails_at_commit_undoes_and_resets_its_room(self, running: Running) -> None:
        async with running.unharmed(), running.connect("full") as client:
            assert await running.ask(client, "x") == "1 x"
            await client.send("fill")
            assert await code_of(client) == 1006
            async with running.connect("full") as again:
                assert await running.ask(again, "x") == "1 x"
            assert (await running.get("/parties/main/full"))["marker"] is None

    async def test_a_constructor_that_fails_on_wake_ends_that_rooms_clients(self, running: Running) -> None:
        async with running.unharmed(), running.connect("failing") as client, running.connect("failing") as other:
            assert await running.ask(client, "x") == "1 x"
            async with httpx.AsyncClient(base_url=running.server.url) as http:
                await client.send("block")  # the shortest way to a reset
                assert await code_of(client) == await code_of(other) == 1006
                fail = running.folder / "fail"
                fail.touch()
                try:
                    assert (await http.get("/parties/main/failing")).status_code in (500, 503)
                finally:
                    fail.unlink()
                assert (await http.get("/parties/main/failing")).status_code == 200


async def test_a_client_that_never_ends_its_handshake_is_cut(running: Running) -> None:
    async with running.unharmed():
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        writer.write(b"GET /parties/main/bad HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nX-Slow: ")
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


SENDERS, CONNECTS = 2, 5_000


@pytest.mark.timeout(300)
async def test_10000_handshakes_a_second_from_one_address_are_429_and_open_connections_go_on(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # The kernel makes a connection at once, but on a busy machine two senders beside the server may take a minute until
    # they have written its head.
    async with serving(tmp_path, "--http-header-timeout", "200") as running, running.unharmed() as good:
        process = psutil.Process(running.server.pid)
        rss, descriptors = process.memory_info().rss, process.num_fds()
        most_rss, most_descriptors, echoes = rss, descriptors, 0
        began = time.monotonic()
        senders = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.flood", str(running.server.port), str(CONNECTS),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(SENDERS)
        ]  # fmt: skip
        for sender in senders:
            assert sender.stdout is not None
            assert await sender.stdout.readline() == b"ready\n"
        ends = [asyncio.create_task(sender.communicate(b"\n")) for sender in senders]
        while not all(end.done() for end in ends):
            await running.ask(good, "x")  # in its room, while they knock
            echoes += 1
            most_rss = max(most_rss, process.memory_info().rss)
            most_descriptors = max(most_descriptors, process.num_fds())
        reports = [json.loads((await end)[0]) for end in ends]
        statuses: Counter[str] = sum((Counter(report["statuses"]) for report in reports), Counter())
        rate = round(SENDERS * CONNECTS / max(report["begun_s"] for report in reports))
        answered = round(SENDERS * CONNECTS / max(report["answered_s"] for report in reports))
        # For whoever reads the report (`-rA`): what the machine could do beside whatever else it did.
        print(f"{rate} connects a second begun, {answered} answered, {echoes} echoes meanwhile, statuses {statuses}")
        record_property("connects_per_second", rate)

        assert statuses.total() == SENDERS * CONNECTS
        assert statuses["101"] <= 1000 + 100 * (time.monotonic() - began)
        assert statuses["429"] == statuses.total() - statuses["101"] > 0
        assert echoes > 0
        assert most_rss - rss < 100 * 2**20
        assert most_descriptors < 12_000  # `http.connections_max`, and what a server has anyhow
        refused = await running.figure('torpor_rooms_refused_total{limit="handshakes_per_second"}')
        assert refused == statuses["429"]

        async with asyncio.timeout(60):  # its clients have gone
            while process.num_fds() > descriptors + 10:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.1)
            while True:
                with contextlib.suppress(InvalidStatus):
                    async with running.connect("flood"):
                        break
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)  # the address may begin a hundred anew
        for _ in range(50):
            async with running.connect("after") as client:
                assert await running.ask(client, "x")


async def test_settings_for_compression_silence_and_slow_clients(tmp_path: Path) -> None:
    flags = ("--rooms-compression", "true", "--rooms-silence-timeout", "3", "--rooms-slow-clients", "drop-newest")
    async with serving(tmp_path, *flags) as running:
        async with running.connect("deflated") as client:
            assert client.protocol.extensions
            assert await running.ask(client, "long " * 10_000) == "1 " + "long " * 10_000
            assert await code_of(client) == 1001
        async with running.connect("slow", compression=None, max_queue=None) as slow:
            assert await running.ask(slow, "x") == "1 x"
            await slow.send("flood")  # more than the socket takes, and the handler does not wait
            received = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.5):
                        received += len(await slow.recv()) == 50_000
            assert await running.ask(slow, "end") == "3 end"  # connected, and served again
            dropped = await running.figure("torpor_rooms_socket_dropped_frames_total")
            assert dropped == 400 - received > 0


async def test_a_room_with_1000_clients_hibernates_answers_them_and_wakes_in_order(tmp_path: Path) -> None:
    flags = ("--rooms-handshakes-per-second", "0", "--rooms-idle-timeout", "0.5", "--http-header-timeout", "30")
    async with serving(tmp_path, *flags) as running:  # fifty at once may take this process seconds to write their heads
        clients = []
        for _ in range(20):
            group = [running.connect("big", ping_interval=None, open_timeout=60) for _ in range(50)]
            clients += await asyncio.gather(*group)
        numbers = [(await running.figure('torpor_rooms_live{kind="connections"}'))]
        assert numbers == [1000]
        async with asyncio.timeout(30):
            while await running.get("/parties/watch/eye"):  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.2)
        wakes = 'torpor_rooms_events_total{party="main",kind="messages"}'
        before = await running.figure(wakes)
        hibernations = await running.figure('torpor_rooms_hibernations_total{party="main"}')

        async def ping(client: ClientConnection) -> None:
            await client.send("ping")
            assert await client.recv() == "pong"

        async with asyncio.timeout(60):
            await asyncio.gather(*map(ping, clients))
        assert await running.get("/parties/watch/eye") == 0  # a weak reference found no instance
        assert await running.figure(wakes) == before
        assert await running.figure("torpor_rooms_socket_auto_responses_total") == 1000
        assert await running.figure('torpor_rooms_hibernations_total{party="main"}') == hibernations

        for message in ("first", "second", "report"):
            await clients[7].send(message)
        async with asyncio.timeout(30):
            assert [await clients[7].recv(), await clients[7].recv()] == ["1 first", "2 second"]
            assert await clients[7].recv() == f"[1000, {list(range(1000))}]"
        assert await running.get("/parties/watch/eye") == 1
        for client in clients:
            client.transport.abort()
