"""A server of its own for a test: `torpor serve` as a process, on ports that the system chooses, stopped by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET

START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
PORT_ATTEMPTS = 5
LOG_LINES_MAX = 10_000


class ServerFailed(AssertionError):
    """It did not start, did not stop cleanly, or logged an error; the message holds its log."""


class Server:
    """A server process. May be stopped and started again: it keeps its port.

    Args:
        flags: for `torpor serve`.
        environment: added to ours, from which every `TORPOR_` variable is taken out.
    """

    def __init__(self, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self._flags = flags
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
        self._environment = {**inherited, **(environment or {})}
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.app_id = DEVELOPMENT_APP_ID
        self.app_secret = DEVELOPMENT_APP_SECRET
        self.url = ""
        self.port = 0
        self.udp_port = 0
        """0 without media."""
        self.turn_port = 0
        """0 without TURN."""
        self.log: list[dict[str, Any]] = []
        """What it wrote to standard error so far, a record per line."""

    @property
    def api(self) -> str:
        """Base address of the app's API."""
        return f"{self.url}/v1/apps/{self.app_id}"

    @property
    def authorization(self) -> dict[str, str]:
        """Headers that let a request in."""
        return {"Authorization": f"Bearer {self.app_secret}"}

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start, and wait until it accepts connections.

        The UDP port has the number of the TCP port that the system chose, which another socket may hold: then again.

        Raises:
            ServerFailed: it ends instead, or takes too long.
        """
        for _ in range(PORT_ATTEMPTS - 1):
            try:
                return await self._start()
            except ServerFailed as error:
                if self.port or "Address already in use" not in str(error):
                    raise
                self.log.clear()
        return await self._start()

    async def _start(self) -> None:
        assert self._process is None
        ports = ["--port", str(self.port), "--turn-port", str(self.turn_port), "--turn-tls-port", "0"]
        command = [sys.executable, "-m", "torpor", "serve", *ports, "--log-format", "json"]
        serving: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        with tempfile.TemporaryDirectory() as folder:  # no torpor.toml there
            self._process = await asyncio.create_subprocess_exec(
                *command, *self._flags, cwd=folder, env=self._environment, stdout=DEVNULL, stderr=PIPE
            )
            self._reader = asyncio.create_task(self._read_log(self._process, serving))
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    record = await serving
            except BaseException:
                await self.kill()
                raise
        self.url = record["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.udp_port = record["udp_port"] or 0
        self.turn_port = record["turn_port"] or 0

    async def stop(self) -> None:
        """SIGTERM; nothing to do when it does not run.

        Raises:
            ServerFailed: it ended with another code than 0, or logged an error.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                code = await self.wait()
        except TimeoutError:
            await self.kill()
            raise ServerFailed("it did not stop:\n" + self._printed(self.log)) from None
        errors = [record for record in self.log if record.get("level") in ("error", "critical")]
        if code != 0 or errors:
            raise ServerFailed(f"exit code {code}\n" + self._printed(errors or self.log))

    async def wait(self) -> int:
        """Wait for the end of the process; returns its exit code, negative for a signal."""
        assert self._process is not None
        assert self._reader is not None
        code = await self._process.wait()
        await self._reader
        self._process = self._reader = None
        return code

    async def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self.wait()

    async def _read_log(self, process: Process, serving: asyncio.Future[dict[str, Any]]) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            try:
                record: dict[str, Any] = json.loads(line)
            except ValueError:  # a traceback from outside logging, or a refusal to start
                record = {"level": "error", "event": line.decode(errors="replace").rstrip()}
            if len(self.log) < LOG_LINES_MAX:
                self.log.append(record)
            if record.get("event") == "serving" and not serving.done():
                serving.set_result(record)
        if not serving.done():
            serving.set_exception(ServerFailed("it did not start:\n" + self._printed(self.log)))

    def _printed(self, records: list[dict[str, Any]]) -> str:
        return "\n".join(map(str, records))


@asynccontextmanager
async def running_server(*flags: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """One with these further flags while inside; at the end it must stop in order.

    Raises:
        ServerFailed: it does not start, ends with another code than 0, or has logged an error.
    """
    server = Server(flags, environment)
    await server.start()
    try:
        yield server
    except BaseException:
        await server.kill()
        raise
    await server.stop()
