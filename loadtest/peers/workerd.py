"""workerd, Cloudflare's runtime of stateful objects, with the load room as a partyserver class; both from npm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from loadtest.peers import packages
from loadtest.peers.process import Dialect, ServerProcess, free_port


class WorkerdServer(ServerProcess):
    """One workerd. Its objects' SQLite files lie in its working directory, and go with it.

    Args:
        core: pins it to one core.
        folder: its working directory; None: a fresh one, removed at the end.
    """

    dialect: Dialect = "text"
    room_path = "/parties/main/{room}"

    def __init__(self, *, core: int | None = None, folder: Path | None = None) -> None:
        super().__init__("workerd", answers=self._serves, core=core, folder=folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Install it if need be, start it and wait until it answers.

        Raises:
            PeerUnavailable: it cannot be had on this machine.
            StartFailed: it did not answer.
        """
        program = await asyncio.to_thread(packages.workerd)
        self.version = packages.version("workerd")
        self.command = [
            str(program),
            "serve",
            str(packages.NPM / "workerd.capnp"),
            f"--socket-addr=http=127.0.0.1:{self.port}",
            "--directory-path=objects=.",
        ]
        await super().start()

    async def _serves(self) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            try:
                return (await client.get(self.url)).status_code == httpx.codes.NOT_FOUND
            except httpx.TransportError:
                return False
