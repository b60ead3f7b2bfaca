"""A server whose rooms hibernate and whose media nobody uses is woken by nothing but its clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from websockets.asyncio.client import connect

from tests.support.server import running_server

APP = """\
from partykit_compat import Server

class Echo(Server):
    async def on_message(self, connection, message):
        await self.ctx.storage.put("last", message)
        connection.send(message)
"""
QUIET = ("--rooms-ping-interval", "0", "--rooms-idle-timeout", "0.2", "--turn-port", "0", "--turn-tls-port", "0")


def times_woken(pid: int) -> dict[str, int]:
    """How often each thread has gone to sleep so far."""
    return {
        thread.name: int((thread / "status").read_text().partition("voluntary_ctxt_switches:")[2].split()[0])
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }


async def test_no_thread_wakes_while_all_rooms_hibernate(tmp_path: Path) -> None:
    app = tmp_path / "echo_app.py"
    app.write_text(APP)
    async with (
        running_server(*QUIET, "--rooms-folder", str(tmp_path / "data"), str(app)) as server,
        AsyncExitStack() as all_,
    ):
        clients = [
            await all_.enter_async_context(
                connect(f"ws://127.0.0.1:{server.port}/parties/main/r{n % 5}", ping_interval=None)
            )
            for n in range(20)
        ]
        for client in clients:
            await client.send("hello")
            assert await client.recv() == "hello"
        async with asyncio.timeout(90):  # what the last messages have begun ends by itself, and then nothing begins
            before, now = {}, times_woken(server.pid)
            while before != now:
                await asyncio.sleep(3)
                before, now = now, times_woken(server.pid)
        for client in clients:
            await client.send("still here")
            assert await client.recv() == "still here"
