"""A server of its own for a test: `torpor serve` as a process, on ports that the system chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
LOG_LINES_MAX = 10_000


class ServerFailed(AssertionError):
    """It did not start, did not stop cleanly, or logged an error; the message holds its log."""


@dataclass
class Server:
    """A running one."""

    url: str
    udp_port: int
    pid: int
    app_id: str = DEVELOPMENT_APP_ID
    app_secret: str = DEVELOPMENT_APP_SECRET
    log: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Its log so far, a record per line."""

    @property
    def api(self) -> str:
        """Base address of the app's API."""
        return f"{self.url}/v1/apps/{self.app_id}"

    @property
    def authorization(self) -> dict[str, str]:
        """Headers that let a request in."""
        return {"Authorization": f"Bearer {self.app_secret}"}


@contextlib.asynccontextmanager
async def running_server(*arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """Start one with these further `arguments` of `torpor serve`, and stop it at the end.

    Raises:
        ServerFailed: it does not start, ends with another code than 0, or has logged an error.
    """
    command = [sys.executable, "-m", "torpor", "serve", "--http-port", "0", "--log-format", "json", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE, env=environment)
    log: list[dict[str, Any]] = []
    started: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(_read_log(process, log, started))
    try:
        async with asyncio.timeout(START_TIMEOUT):
            record = await started
        yield Server(url=record["url"], udp_port=record["udp_port"] or 0, pid=process.pid, log=log)
    finally:
        await _stop(process)
        await reading
    errors = [record for record in log if record.get("level") in ("error", "critical")]
    if process.returncode != 0 or errors:
        raise ServerFailed(f"exit code {process.returncode}\n" + "\n".join(map(str, errors or log)))


async def _read_log(process: Process, log: list[dict[str, Any]], started: asyncio.Future[dict[str, Any]]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:  # a traceback from outside logging, or a refusal to start
            record = {"level": "error", "event": line.decode(errors="replace").rstrip()}
        if len(log) < LOG_LINES_MAX:
            log.append(record)
        if record.get("event") == "serving" and not started.done():
            started.set_result(record)
    if not started.done():
        started.set_exception(ServerFailed("it did not start:\n" + "\n".join(map(str, log))))


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
