"""Sockets in one process, objects in another that is killed and replaced: no client notices, no write is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from hibernation.errors import LinkError
from hibernation.link import join, listen
from hibernation.manager import HibernationManager
from hibernation.objects_end import ObjectsEnd
from hibernation.sockets_end import SocketsEnd
from objects.clock import SystemClock
from objects.ids import IdFactory, ObjectId
from objects.ports import Connections
from tests.support.objects_process import SECRET
from tests.support.rooms import gateway, until


class Process:
    """The objects side: a child process behind a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "link"
        self._ids = IdFactory("rooms", SECRET)
        self._children: list[asyncio.subprocess.Process] = []

    def fill(self, connections: Connections) -> SocketsEnd:
        assert isinstance(connections, HibernationManager)
        self.end = SocketsEnd(connections)
        return self.end

    def object_of(self, path: str) -> ObjectId:
        return self._ids.from_name(path)

    async def start(self, name: str) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.objects_process", str(self.path), str(self.folder / "data"), name,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._children.append(child)
        return child

    async def ready(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        async with asyncio.timeout(20):
            assert await child.stdout.readline() == b"ready\n"

    async def sleep(self) -> None:
        await until(lambda: self.end.pending == 0)
        for child in self._children:
            if child.returncode is None:
                child.kill()
            await child.wait()

    async def close(self) -> None:
        await self.sleep()


async def test_room_code_is_killed_and_replaced_under_open_connections(tmp_path: Path) -> None:
    side = Process(tmp_path)
    async with gateway(side=side) as running, await listen(side.end, side.path) as server:
        assert side.path.stat().st_mode & 0o077 == 0
        first = await side.start("first")
        await side.ready(first)
        async with running.connect() as client, running.connect() as idle:
            await client.send("a")
            assert await client.recv() == "first a 1 ['kept']"

            second = await side.start("second")  # waits for its turn
            await client.send("b")
            assert await client.recv() == "first b 2 ['kept']"
            first.kill()
            await first.wait()
            await client.send("c")
            assert await client.recv() == "second c 3 ['kept']"
            await idle.send("d")
            assert await idle.recv() == "second d 4 ['kept']"
            await side.ready(second)
        await until(lambda: running.table.counters()["rows"] == 0)
        await side.sleep()
        server.close()


async def test_what_is_not_a_link_is_refused(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def imposter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async with await asyncio.start_unix_server(imposter, tmp_path / "link"):
        with pytest.raises(LinkError):
            await join(ObjectsEnd(SystemClock().unix_ms), tmp_path / "link")
        await left.wait()


async def test_nonsense_from_the_objects_process_ends_its_link_only(tmp_path: Path) -> None:
    side = Process(tmp_path)
    async with gateway(side=side) as running, await listen(side.end, side.path):
        reader, writer = await asyncio.open_unix_connection(side.path)
        await reader.readline()
        writer.write(b"\x00\x00\x00\x01?")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        child = await side.start("after")
        await side.ready(child)
        async with running.connect() as client:
            await client.send("x")
            assert await client.recv() == "after x 1 ['kept']"
        await until(lambda: running.table.counters()["rows"] == 0)
        await side.sleep()
