"""A server's process under measurement."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.peers.process import ServerProcess, StartFailed
from loadtest.peers.torpor import TorporServer


async def test_a_server_that_ends_at_once_is_reported_with_what_it_printed() -> None:
    server = ServerProcess("broken", [sys.executable, "-c", "raise SystemExit('no such port')"], _never)
    with pytest.raises(StartFailed, match="no such port"):
        await server.start()
    assert server.exit_code is None


async def test_its_children_are_measured_and_stopped_with_it(tmp_path: Path) -> None:
    child = "import time; x = bytearray(60_000_000); open('ready', 'w').close(); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ready = tmp_path / "ready"

    async def answers() -> bool:
        return ready.exists()

    server = ServerProcess("parent", [sys.executable, "-c", code], answers, core=0, folder=tmp_path)
    await server.start()
    assert server.resident_bytes() > 60_000_000
    assert server.cpu_ns() > 0
    pid = server.pid
    await server.stop()
    assert not psutil.pid_exists(pid)


async def test_torpor_starts_answers_and_stops_in_order() -> None:
    server = TorporServer()
    await server.start()
    assert server.version
    process = server._process
    assert process is not None
    await server.stop()
    assert await asyncio.to_thread(process.wait) == 0


async def _never() -> bool:
    return False
