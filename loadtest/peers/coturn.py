"""coturn, Debian's TURN server, as a peer under load."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from pathlib import Path

from loadtest.media.turn_server import Transport, TurnServer
from loadtest.peers.debian import ensure_installed
from loadtest.peers.process import ServerProcess, free_port

REALM = "load"


class CoturnServer(ServerProcess):
    """`turnserver` over UDP and TCP with one relay thread, one long-term user, nothing else switched on.

    Args:
        host: address to bind and to relay from.
        port: UDP and TCP; None: a free one, in a namespace 3478.
        certificate: PEM files of a certificate and its key; with them it serves TLS on `tls_port`, too.
        loopback_peers: whether peers may be on loopback.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        certificate: tuple[Path, Path] | None = None,
        loopback_peers: bool = True,
        core: int | None = None,
        netns: str | None = None,
    ) -> None:
        self.host = host
        self.port = port or (free_port(host) if netns is None else 3478)
        self.tls_port = free_port(host) if netns is None else 5350
        self.username, self.password = "load", secrets.token_hex(16)
        loopback = ["--allow-loopback-peers"] if loopback_peers else []
        tls = ["--no-tls"]
        if certificate is not None:
            tls = ["--cert", str(certificate[0]), "--pkey", str(certificate[1])]
        # fmt: off
        command = [
            "turnserver", "-n", "--no-cli", *tls, "--no-dtls", "-L", host, "-E", host, "-p", str(self.port),
            "--tls-listening-port", str(self.tls_port),
            "-a", "-u", f"{self.username}:{self.password}", "-r", REALM, "-m", "1", "--no-multicast-peers", *loopback,
            "--no-stdout-log", "-l", "/dev/null", "--pidfile", "/dev/null", "--userdb", "/dev/null",
        ]
        # fmt: on
        super().__init__("coturn", command, self._accepts, core=core, netns=netns)

    async def start(self) -> None:
        """Install it if it is missing, spawn, wait until it answers. Raises `NotInstalled`, `StartFailed`."""
        await asyncio.to_thread(ensure_installed, "turnserver")
        await super().start()
        asked = ["turnserver", "--version"]
        printed = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, check=False)
        self.version = printed.stdout.strip().rpartition("\n")[2]

    def server(self, transport: Transport = "udp") -> TurnServer:
        """Where it listens, with credentials; no TLS here."""
        return TurnServer(self.host, self.port, self.username, self.password, transport)

    async def _accepts(self) -> bool:
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.close()
        return True
