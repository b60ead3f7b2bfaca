"""Every example runs as its docstring says, against a server of its own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.support.browser import only_loopback
from tests.support.server import running_server

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


async def start(name: str, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, EXAMPLES / name, *arguments, stdout=PIPE, stderr=PIPE)


async def output(process: Process) -> str:
    """Wait for the end and give what was printed; a failure shows what went wrong."""
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


@pytest.mark.skipif(only_loopback(), reason="aiortc gathers no candidate on loopback")
async def test_one_track_is_forwarded_and_its_events_are_recorded() -> None:
    async with running_server() as server:
        recorder = await start("record_events.py", "--server", server.url, "--count", "4")
        assert recorder.stdout is not None
        assert (await asyncio.wait_for(recorder.stdout.readline(), 20)).startswith(b"following ")
        forwarded = await output(await start("forward_one_track.py", "--server", server.url, "--frames", "30"))
        assert "first frame: 320x180" in forwarded
        assert "30 frames forwarded" in forwarded
        events = [line.split()[0] for line in (await output(recorder)).splitlines()]
    assert len(events) == 4
    assert {"sessionConnected", "trackPublished", "trackStarted"} <= set(events)
