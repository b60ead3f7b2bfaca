"""The real Yjs providers of y-partykit and y-partyserver, unmodified, in Node, with the document example served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, running_server
from tests.support.tools import needs_partysocket

ROOT = Path(__file__).parents[2]
NO_MEDIA = ("--media-enabled", "false", "--turn-enabled", "false")
LINE_MAX_BYTES = 1 << 20

pytestmark = [needs_partysocket, pytest.mark.slow]


class Provider:
    """A process of Node with one document."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last: dict[str, Any] = {}

    def tell(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def until(self, **wanted: Any) -> None:
        """Wait until what it last said has these values."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(20):
                while any(self.last.get(key) != value for key, value in wanted.items()):
                    line = await self._process.stdout.readline()
                    assert line, "the client ended"
                    self.last |= json.loads(line)
        except TimeoutError:
            raise AssertionError(f"wanted {wanted}, last heard {self.last}") from None


@asynccontextmanager
async def provider(kind: str, server: Server, room: str = "notes") -> AsyncIterator[Provider]:
    process = await asyncio.create_subprocess_exec(
        "node",
        str(ROOT / "tests" / "support" / "yjs_client.mjs"),
        kind,
        f"127.0.0.1:{server.port}",
        room,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_MAX_BYTES,
    )
    try:
        yield Provider(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    flags = (*NO_MEDIA, "--rooms-folder", str(folder), "--rooms-idle-timeout", "0.5")
    async with running_server(*flags, str(ROOT / "examples" / "rooms" / "document.py")) as server:
        yield server


async def test_48_both_providers_converge_see_each_other_and_a_later_one_joins_a_room_that_slept(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path) as server,
        provider("y-partykit", server) as one,
        provider("y-partyserver", server) as other,
    ):
        await one.until(synced=True)
        await other.until(synced=True)
        one.tell(insert="hello ", name="Ada")
        await other.until(text="hello ", names=["Ada"])
        other.tell(insert="world", name="Bob")
        await one.until(text="hello world", names=["Ada", "Bob"])
        await asyncio.sleep(4)  # stored after two seconds, then half a second without an event
        async with provider("y-partyserver", server) as late:
            await late.until(text="hello world", names=["Ada", "Bob"], synced=True)
            late.tell(name="Cleo")
            await one.until(names=["Ada", "Bob", "Cleo"])
        await one.until(names=["Ada", "Bob"])


async def test_47_a_document_of_2500_kb_comes_in_chunks_and_goes_to_a_later_joiner_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, provider("y-partykit", server) as one:
        await one.until(synced=True)
        one.tell(insert="x" * 100, repeat=25_000)
        async with provider("y-partyserver", server) as late:
            await late.until(length=2_500_000)
        await asyncio.sleep(3)
        async with provider("y-partyserver", server) as later:
            await later.until(length=2_500_000, synced=True)
