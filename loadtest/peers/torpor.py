"""Torpor itself as a server under load: `torpor serve` with the load room, media and TURN, on ports of its own."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping

import httpx

from loadtest.peers.process import Dialect, ServerProcess, free_port

ROOM = "torpor.load_room:LoadRoom"
"""What it serves as the party `main`."""


class TorporServer(ServerProcess):
    """One `torpor serve` on `host`, with fresh credentials.

    Args:
        host: address to bind, HTTP and UDP alike.
        port: HTTP and media; None: a free one, in a namespace 8787.
        core: pins it to one core, and gives it one forwarding and one relay thread.
        environment: `TORPOR_*` variables over ours, to change any setting.
    """

    dialect: Dialect = "text"
    room_path = "/parties/main/{room}"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        core: int | None = None,
        netns: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            "torpor",
            [sys.executable, "-m", "torpor", "serve", ROOM],
            self._is_healthy,
            core=core,
            netns=netns,
        )
        self.host = host
        self.app_id = secrets.token_hex(16)
        self.app_secret = secrets.token_hex(32)
        self.turn_key_id = "load"
        self.turn_key_token = secrets.token_hex(32)
        self.port = port or (free_port(host) if netns is None else 8787)
        self.turn_port = free_port(host) if netns is None else 3478
        self.url = f"http://{host}:{self.port}"
        threads = {} if core is None else {"TORPOR_MEDIA_THREADS": "1", "TORPOR_TURN_THREADS": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
        self.environment = {
            **inherited,
            "TORPOR_APP_ID": self.app_id,
            "TORPOR_APP_SECRET": self.app_secret,
            "TORPOR_TURN_KEY_ID": self.turn_key_id,
            "TORPOR_TURN_KEY_TOKEN": self.turn_key_token,
            "TORPOR_HTTP_HOST": host,
            "TORPOR_HTTP_PORT": str(self.port),
            "TORPOR_HTTP_CONNECTIONS_MAX": "100000",
            "TORPOR_TURN_PORT": str(self.turn_port),
            "TORPOR_TURN_TLS_PORT": "0",
            # One machine plays every client, and relays to itself: limits per address do not apply.
            "TORPOR_ROOMS_HANDSHAKES_PER_SECOND": "0",
            "TORPOR_TURN_ALLOW_LOOPBACK_PEERS": "true",
            "TORPOR_TURN_ALLOW_PEERS": host,
            "TORPOR_TURN_ALLOCATIONS_PER_USER": "100000",
            "TORPOR_TURN_ALLOCATIONS_PER_SOURCE": "100000",
            # All clients of a load test have one address.
            "TORPOR_TURN_REQUESTS_PER_S": "0",
            "TORPOR_TURN_ERRORS_PER_S": "0",
            "TORPOR_LOG_LEVEL": "warning",
            **threads,
            **(environment or {}),
        }

    @property
    def api(self) -> str:
        """Base address of the sessions API."""
        return f"{self.url}/v1/apps/{self.app_id}"

    async def inside(self) -> dict[str, float]:
        """Rooms with connections (`rooms`), and those of them in memory (`awake`), from `/metrics`."""
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            try:
                text = (await client.get(f"{self.url}/metrics")).text
            except httpx.TransportError:
                return {}
        found = {}
        for kind in ("rooms", "awake"):
            if value := re.search(rf'^torpor_rooms_live{{kind="{kind}"}} (\d+)$', text, re.MULTILINE):
                found[kind] = float(value[1])
        return found

    async def _is_healthy(self) -> bool:
        """Asked in the server's namespace by callers who are there; from elsewhere it cannot be reached."""
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            try:
                response = await client.get(f"{self.url}/healthz")
            except httpx.TransportError:
                return False
        self.version = response.json()["version"]
        return response.status_code == 200
