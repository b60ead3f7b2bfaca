"""A server whose rooms hibernate and whose media nobody uses is woken by nothing but its clients."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
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


# System calls of x86-64 that may wait for a time: which argument says how long. A number of ms, or an address.
IN_MS = {7: 2, 232: 3, 281: 3}
"""poll, epoll_wait, epoll_pwait: -1 is for ever."""
BY_ADDRESS = {23: 4, 202: 3, 270: 4, 271: 2, 441: 3}
"""select, futex, pselect6, ppoll, epoll_pwait2: null is for ever."""
SLEEPS = {35, 230}
"""nanosleep, clock_nanosleep."""


def timed_waits(pid: int) -> list[str]:
    """Threads that wait for a time, however far away, and clocks that are set: what will wake the process by itself."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        number, *rest = (thread / "syscall").read_text().split()
        if number == "running":
            continue
        call, arguments = int(number), [int(word, 16) for word in rest]
        if (
            call in SLEEPS
            or (call in IN_MS and arguments[IN_MS[call]] & 0xFFFFFFFF != 0xFFFFFFFF)
            or (call in BY_ADDRESS and arguments[BY_ADDRESS[call]])
        ):
            found.append(f"{(thread / 'comm').read_text().strip()}: system call {number} {rest}")
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        found += [
            line for line in descriptor.read_text().splitlines() if line.startswith("it_value") and "(0, 0)" not in line
        ]
    return found


def is_running(pid: int) -> bool:
    return any((thread / "syscall").read_text().startswith("running") for thread in Path(f"/proc/{pid}/task").iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize(
    ("waiting", "is_timed"),
    [
        ("import asyncio; print(flush=True); asyncio.run(asyncio.sleep(3600))", True),
        ("import time; print(flush=True); time.sleep(3600)", True),
        ("import threading; print(flush=True); threading.Event().wait(3600)", True),
        ("import threading; print(flush=True); threading.Event().wait()", False),
        ("import asyncio; print(flush=True); asyncio.run(asyncio.Event().wait())", False),
    ],
)
async def test_a_wait_for_an_hour_is_seen_at_once(waiting: str, is_timed: bool) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", waiting, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        async with asyncio.timeout(20):
            before: dict[str, int] = {}
            while before != (now := times_woken(child.pid)) or is_running(child.pid):
                before = now
                await asyncio.sleep(0.2)
        assert bool(timed_waits(child.pid)) == is_timed
    finally:
        child.kill()
        await child.wait()


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
        if platform.machine() == "x86_64":
            assert timed_waits(server.pid) == []
        for client in clients:
            await client.send("still here")
            assert await client.recv() == "still here"
