"""Janus, Debian's SFU, with its VideoRoom plugin, as a peer under load."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import websockets

from loadtest.peers.debian import ensure_installed
from loadtest.peers.hosts import SERVER_DEVICE, SERVER_HOST, SERVER_NAMESPACE
from loadtest.peers.process import ServerProcess

ROOM = 1
"""The one room it has."""
SUBPROTOCOL = websockets.Subprotocol("janus-protocol")


class JanusServer(ServerProcess):
    """Janus on the server's test host (`hosts`): libnice gathers no loopback candidates. ICE-lite, one room.

    Args:
        transport_cc: whether the room negotiates transport-wide feedback.
    """

    def __init__(
        self, *, core: int | None = 0, netns: str | None = SERVER_NAMESPACE, transport_cc: bool = True
    ) -> None:
        self.host, self.port = SERVER_HOST, 8188
        self.url = f"ws://{self.host}:{self.port}"
        self._transport_cc = transport_cc
        self._configuration: tempfile.TemporaryDirectory[str] | None = None
        super().__init__("janus", ["janus", "-F", ".", "-o", "--debug-level=2"], self._accepts, core=core, netns=netns)

    async def start(self) -> None:
        """Install it if it is missing, spawn, wait until it answers. Raises `NotInstalled`, `StartFailed`."""
        await asyncio.to_thread(ensure_installed, "janus")
        self._configuration = tempfile.TemporaryDirectory(prefix="torpor-janus-")
        self.folder = Path(self._configuration.name)
        self._configure(self.folder)
        await super().start()

    async def stop(self) -> None:
        """End the process and remove its configuration. Idempotent."""
        await super().stop()
        if self._configuration is not None:
            self._configuration.cleanup()
            self._configuration = self.folder = None

    def _configure(self, folder: Path) -> None:
        """Write what it reads: only the plugin and the transport we use are loaded."""
        libraries = next(Path("/usr/lib").glob("*/janus"))

        def unused(kind: str, used: str) -> str:
            return ",".join(f.name for f in (libraries / kind).glob("*.so") if used not in f.name)

        (folder / "janus.jcfg").write_text(
            f"""
general: {{ configs_folder = "{folder}" plugins_folder = "{libraries}/plugins"
            transports_folder = "{libraries}/transports" events_folder = "{libraries}/events"
            loggers_folder = "{libraries}/loggers" interface = "{self.host}" }}
nat: {{ ice_lite = true  ice_enforce_list = "{SERVER_DEVICE}" }}
media: {{ no_media_timer = 60 }}
plugins: {{ disable = "{unused("plugins", "videoroom")}" }}
transports: {{ disable = "{unused("transports", "websockets")}" }}
"""
        )
        (folder / "janus.transport.websockets.jcfg").write_text(
            f'general: {{ ws = true ws_port = {self.port} ws_ip = "{self.host}" wss = false }}\n'
            "admin: { admin_ws = false }\n"
        )
        (folder / "janus.plugin.videoroom.jcfg").write_text(
            f'room-{ROOM}: {{ description = "load" publishers = 10000 bitrate = 0 videocodec = "vp8,h264" '
            f'audiocodec = "opus" fir_freq = 0 transport_wide_cc_ext = {str(self._transport_cc).lower()} }}\n'
        )

    async def _accepts(self) -> bool:
        async with websockets.connect(self.url, subprotocols=[SUBPROTOCOL]) as connection:
            await connection.send(json.dumps({"janus": "info", "transaction": "version"}))
            self.version = json.loads(await connection.recv()).get("version_string", "")
        return True
