"""The engine's main loop: takes calls from the socketpair, runs them, answers in batches, and watches its own load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

from loadtest.engine.protocol import Decoder, ProtocolError, encode
from loadtest.engine.rooms import RoomFailed, Rooms
from loadtest.figures import Figures

logger = logging.getLogger("loadtest.engine")

REPORT_INTERVAL: Final = 0.5
"""Seconds between two reports of figures."""
LAG_INTERVAL: Final = 0.01
_READ_BYTES: Final = 256 * 1024

Operation = Callable[..., Awaitable[Any]]


class Engine:
    """One engine on its end of the socketpair; ends when the other end is closed.

    Args:
        connection: our end.
        first_number: see `Rooms`.
    """

    def __init__(self, connection: socket.socket, first_number: int) -> None:
        self.figures = Figures()
        self.rooms = Rooms(self.figures, first_number, lambda number, reason: self._ended.append((number, reason)))
        self._socket = connection
        self._answers: list[tuple[int, str | None, Any]] = []
        self._ended: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._outgoing = asyncio.Event()
        self._operations: dict[str, Operation] = {}
        self._sources: list[Callable[[], Figures]] = []
        self._leavers: list[Callable[[], Awaitable[None]]] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._register_rooms()
        self._register_media()

    def register(self, name: str, operation: Operation) -> None:
        """Offer an operation; it is called with the arguments of the call, and fails by raising."""
        self._operations[name] = operation

    def add_source(self, source: Callable[[], Figures]) -> None:
        """Ask for figures at every report: what was counted since the last."""
        self._sources.append(source)

    def _register_rooms(self) -> None:
        rooms = self.rooms

        async def ping(number: int, within: float) -> float:
            return await rooms.member(number).ping(within)

        async def close(number: int) -> None:
            rooms.close(number)

        async def ask(number: int, text: str, answer: str, within: float) -> float:
            return await rooms.member(number).ask(text, answer, within)

        operations: dict[str, Operation] = {
            "rooms.open": rooms.open,
            "rooms.broadcast": rooms.broadcast,
            "rooms.say": rooms.say,
            "rooms.ask": ask,
            "rooms.echo": rooms.echo,
            "rooms.ping": ping,
            "rooms.stream": rooms.stream,
            "rooms.request": rooms.request,
            "rooms.close": close,
        }
        for name, operation in operations.items():
            self.register(name, operation)
        self.register("settle", self._settle)
        self.register("resume", self._resume)
        self.register("leave", self._leave)
        self.register("burn", self._burn)
        self._leavers.append(rooms.leave)
        self._closers.append(rooms.aclose)

    def _register_media(self) -> None:
        from loadtest.engine.media import Media

        media = Media()
        media.register(self)
        self._leavers.append(media.leave_all)
        self._closers.append(media.aclose)

    async def run(self) -> None:
        """Serve until the other end is closed."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        helpers = [asyncio.create_task(work()) for work in (self._write, self._report, self._measure_lag)]
        decoder = Decoder()
        try:
            while data := await loop.sock_recv(self._socket, _READ_BYTES):
                for message in decoder.feed(data):
                    self._start(message.get("calls", ()))
        except (OSError, ProtocolError) as error:
            logger.error("the Locust process: %s", error)
        finally:
            for task in (*helpers, *self._tasks):
                task.cancel()
            await asyncio.gather(*helpers, *self._tasks, return_exceptions=True)
            for close in self._closers:
                with contextlib.suppress(Exception):
                    await close()

    def _start(self, calls: Any) -> None:
        now = time.monotonic()
        for number, name, arguments, sent_at in calls:
            self.figures.record("engine.call_lag", now - sent_at)
            task = asyncio.get_running_loop().create_task(self._call(number, name, arguments))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, number: int, name: str, arguments: list[Any]) -> None:
        error: str | None = None
        value: Any = None
        try:
            value = await self._operations[name](*arguments)
        except asyncio.CancelledError:
            return
        except RoomFailed as failure:
            error = str(failure)
            logger.debug("%s failed", name, exc_info=True)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            logger.debug("%s failed", name, exc_info=True)
        self._answers.append((number, error, value))
        self._outgoing.set()

    async def _write(self) -> None:
        """One message for all that was answered during a turn of the loop."""
        loop = asyncio.get_running_loop()
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            message: dict[str, Any] = {}
            if self._answers:
                message["answers"], self._answers = self._answers, []
            if self._ended:
                message["ended"], self._ended = self._ended, []
            if message:
                await loop.sock_sendall(self._socket, encode(message))

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        began, cpu = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            now, used = time.monotonic(), time.thread_time()
            for source in self._sources:
                self.figures.merge(source())
            load = {
                "cpu": (used - cpu) / (now - began),
                "connections": self.rooms.open_connections,
                "resident": _resident_bytes(),
            }
            began, cpu = now, used
            self._outgoing.set()
            await loop.sock_sendall(
                self._socket, encode({"figures": self.figures.take().to_json(), "load": load, "pid": os.getpid()})
            )

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.figures.record("engine.loop_lag", max(0.0, time.monotonic() - due))

    async def _settle(self, seconds: float) -> None:
        """Send nothing new, wait for what is under way, and for the report that counts it."""
        self.rooms.settle()
        await asyncio.sleep(seconds + REPORT_INTERVAL)

    async def _leave(self) -> None:
        """End all connections, sessions and relays: a test is over, the next may come."""
        for leave in self._leavers:
            await leave()

    async def _resume(self) -> None:
        self.rooms.resume()

    async def _burn(self, share: float, seconds: float) -> None:
        """Waste a share of this core, to show on purpose what a generator without a core to itself does to a run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stop = time.monotonic() + 0.1 * share
            while time.monotonic() < stop:
                pass
            await asyncio.sleep(0.1 * (1 - share))


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(descriptor: int, first_number: int) -> None:
    """Run an engine on an inherited end of a socketpair."""
    logging.basicConfig(level=os.environ.get("LOADTEST_LOG", "WARNING"), format="engine: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; Locust stops first, then we see EOF
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def serve() -> None:
        await Engine(socket.socket(fileno=descriptor), first_number).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
