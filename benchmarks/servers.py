"""Servers under measurement, behind one face: start, publish, subscribe, CPU time, stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
import websockets

from benchmarks.hosts import CLIENT_HOST, SERVER_HOST, server_command
from benchmarks.machine import ROOT, process_cpu_ns, resident_bytes
from loadtest.media import sdp
from loadtest.media.dtls import SrtpKeys
from loadtest.media.peer import MediaPeer

APP_ID, APP_SECRET = "b" * 32, "c" * 64
PAYLOAD_TYPE = sdp.CODECS["VP8"].payload_type


class Server(Protocol):
    """What a benchmark needs of a server. `publish` and `subscribe` return connected peers with keys."""

    name: str

    async def start(self) -> None:
        """Start the process and wait until it answers."""

    async def publish(self, ssrc: int) -> MediaPeer:
        """A peer whose video of `ssrc` the server takes."""

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        """A peer to which the server forwards `publisher`'s video."""

    async def ready(self) -> None:
        """Called once when all peers are connected."""

    def cpu_ns(self) -> int:
        """CPU time of the server process so far."""

    def resident_bytes(self) -> int:
        """Resident memory of the server process."""

    async def stop(self) -> None:
        """End the process."""


class _Process:
    """A server process on the server host, pinned to core 0."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def spawn(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(server_command(command), text=True, cwd=ROOT, **options)
        return self.process

    def cpu_ns(self) -> int:
        # `ip netns exec` and `taskset` replace themselves by the command: the pid is the server's.
        assert self.process is not None
        return process_cpu_ns(self.process.pid)

    def resident_bytes(self) -> int:
        assert self.process is not None
        return resident_bytes(self.process.pid)

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                await asyncio.to_thread(self.process.wait, 5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Torpor(_Process):
    """`torpor serve` with one forwarding thread, and what else `environment` says."""

    name = "torpor"

    def __init__(self, *, core_threads: int = 1, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._threads = core_threads
        self._environment = environment or {}
        self._http = httpx.AsyncClient(
            base_url=f"http://{SERVER_HOST}:8787/v1/apps/{APP_ID}",
            headers={"authorization": f"Bearer {APP_SECRET}"},
            timeout=30,
        )
        self._tracks: dict[MediaPeer, dict[str, str]] = {}

    async def start(self) -> None:
        self.spawn(
            [sys.executable, "-m", "torpor", "serve"],
            env={
                **os.environ,
                "TORPOR_APP_ID": APP_ID,
                "TORPOR_APP_SECRET": APP_SECRET,
                "TORPOR_HTTP_HOST": SERVER_HOST,
                "TORPOR_MEDIA_ADDRESSES": SERVER_HOST,
                "TORPOR_MEDIA_THREADS": str(self._threads),
                "TORPOR_LOG_LEVEL": "warning",
                **self._environment,
            },
        )
        for _ in range(200):
            try:
                if (await self._http.get(f"http://{SERVER_HOST}:8787/healthz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        raise RuntimeError("torpor did not start")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._http.request(method, path, json=body)
        answer: dict[str, Any] = response.json()
        if response.status_code >= 300 or "errorCode" in answer:
            raise RuntimeError(f"{path}: {response.status_code} {answer}")
        return answer

    async def publish(self, ssrc: int) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        session = (await self._call("POST", "/sessions/new"))["sessionId"]
        offer = sdp.offer([sdp.Sending("0", "VP8", ssrc)], peer.ufrag, peer.password, plain=True)
        track = {"location": "local", "mid": "0", "trackName": f"video-{ssrc}"}
        answer = await self._call(
            "POST",
            f"/sessions/{session}/tracks/new",
            {"sessionDescription": {"type": "offer", "sdp": offer}, "tracks": [track]},
        )
        await peer.connect(sdp.parse(answer["sessionDescription"]["sdp"]))
        self._tracks[peer] = {"location": "remote", "sessionId": session, "trackName": track["trackName"]}
        return peer

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        session = (await self._call("POST", "/sessions/new"))["sessionId"]
        pulled = await self._call("POST", f"/sessions/{session}/tracks/new", {"tracks": [self._tracks[publisher]]})
        remote = sdp.parse(pulled["sessionDescription"]["sdp"])
        answer = sdp.answer(remote, peer.ufrag, peer.password, plain=True)
        await self._call(
            "PUT", f"/sessions/{session}/renegotiate", {"sessionDescription": {"type": "answer", "sdp": answer}}
        )
        await peer.connect(remote)
        return peer

    async def ready(self) -> None:
        pass

    async def stop(self) -> None:
        await self._http.aclose()
        await super().stop()


class Ceiling(_Process):
    """The bare loop of `benchmarks/_ceiling`: keys are made up, nobody shakes hands."""

    name = "ceiling"

    def __init__(self) -> None:
        super().__init__()
        self._port = 0
        self._sources: list[tuple[MediaPeer, list[MediaPeer]]] = []

    async def start(self) -> None:
        process = self.spawn(
            [sys.executable, "-m", "benchmarks.ceiling", SERVER_HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        self._port = int(await asyncio.to_thread(process.stdout.readline))

    def _peer(self) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        peer.socket.connect((SERVER_HOST, self._port))
        key = secrets.token_bytes(28)
        peer.keys = SrtpKeys(7, key, key)
        return peer

    async def publish(self, ssrc: int) -> MediaPeer:
        assert ssrc == len(self._sources) + 1, "the ceiling finds a source by its SSRC: 1, 2, 3..."
        peer = self._peer()
        self._sources.append((peer, []))
        return peer

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        peer = self._peer()
        next(outs for source, outs in self._sources if source is publisher).append(peer)
        return peer

    async def ready(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        ssrcs = itertools.count(1000)

        def key(peer: MediaPeer) -> str:
            assert peer.keys is not None
            return peer.keys.send.hex()

        configuration = [
            (key(source), [(key(out), next(ssrcs), *out.socket.getsockname()) for out in outs])
            for source, outs in self._sources
        ]
        self.process.stdin.write(json.dumps(configuration) + "\n")
        self.process.stdin.flush()
        await asyncio.sleep(0.3)


class Janus(_Process):
    """Janus from Debian with its VideoRoom plugin, ICE-lite, on the same host and core."""

    name = "janus"
    _PORT = 8188

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="torpor-bench-janus-"))
        self._socket: websockets.ClientConnection | None = None
        self._session = 0
        self._waiting: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._pacemaker: asyncio.Task[None] | None = None
        self._feeds: dict[MediaPeer, int] = {}

    async def start(self) -> None:
        if shutil.which("janus") is None:
            raise RuntimeError("janus is not installed: apt-get install janus")
        self._configure()
        self.spawn(
            ["janus", "-F", str(self._folder), "-o", "--debug-level=2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            try:
                self._socket = await websockets.connect(
                    f"ws://{SERVER_HOST}:{self._PORT}", subprotocols=[websockets.Subprotocol("janus-protocol")]
                )
                break
            except OSError:
                await asyncio.sleep(0.1)
        else:
            raise RuntimeError("janus did not start")
        self._reader = asyncio.create_task(self._read())
        self._session = (await self._ask({"janus": "create"}))["data"]["id"]
        self._pacemaker = asyncio.create_task(self._keep_alive())

    def _configure(self) -> None:
        libraries = next(Path("/usr/lib").glob("*/janus"))

        def unused(kind: str, used: str) -> list[str]:
            return [f.name for f in (libraries / kind).glob("*.so") if used not in f.name]

        (self._folder / "janus.jcfg").write_text(
            f"""
general: {{ configs_folder = "{self._folder}" plugins_folder = "{libraries}/plugins"
            transports_folder = "{libraries}/transports" events_folder = "{libraries}/events"
            loggers_folder = "{libraries}/loggers" interface = "{SERVER_HOST}" }}
nat: {{ ice_lite = true  ice_enforce_list = "bench-s" }}
media: {{ no_media_timer = 60 }}
plugins: {{ disable = "{",".join(unused("plugins", "videoroom"))}" }}
transports: {{ disable = "{",".join(unused("transports", "websockets"))}" }}
"""
        )
        (self._folder / "janus.transport.websockets.jcfg").write_text(
            f'general: {{ ws = true ws_port = {self._PORT} ws_ip = "{SERVER_HOST}" wss = false }}\n'
            "admin: { admin_ws = false }\n"
        )
        (self._folder / "janus.plugin.videoroom.jcfg").write_text(
            'room-1: { description = "bench" publishers = 10000 bitrate = 0 videocodec = "vp8" audiocodec = "opus" '
            "fir_freq = 0 transport_wide_cc_ext = false }\n"
        )

    async def _read(self) -> None:
        assert self._socket is not None
        async for text in self._socket:
            message = json.loads(text)
            if message.get("janus") != "ack" and message.get("transaction") in self._waiting:
                self._waiting[message["transaction"]].put_nowait(message)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(20)
            await self._ask({"janus": "keepalive", "session_id": self._session}, answer=False)

    async def _ask(self, request: dict[str, Any], *, answer: bool = True) -> dict[str, Any]:
        assert self._socket is not None
        transaction = secrets.token_hex(8)
        queue = self._waiting.setdefault(transaction, asyncio.Queue())
        await self._socket.send(json.dumps({**request, "transaction": transaction}))
        if not answer:
            return {}
        reply = await asyncio.wait_for(queue.get(), 20)
        del self._waiting[transaction]
        data = reply.get("plugindata", {}).get("data", {})
        if reply["janus"] == "error" or "error" in data:
            raise RuntimeError(f"janus: {reply}")
        return reply

    async def _attach(self) -> int:
        attach = {"janus": "attach", "session_id": self._session, "plugin": "janus.plugin.videoroom"}
        handle: int = (await self._ask(attach))["data"]["id"]
        return handle

    async def _message(self, handle: int, body: dict[str, Any], jsep: dict[str, str] | None = None) -> dict[str, Any]:
        request = {"janus": "message", "session_id": self._session, "handle_id": handle, "body": body}
        return await self._ask(request if jsep is None else {**request, "jsep": jsep})

    async def publish(self, ssrc: int) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        handle = await self._attach()
        joined = await self._message(handle, {"request": "join", "ptype": "publisher", "room": 1})
        self._feeds[peer] = joined["plugindata"]["data"]["id"]
        offer = sdp.offer([sdp.Sending("0", "VP8", ssrc)], peer.ufrag, peer.password, plain=True, setup="active")
        answer = await self._message(handle, {"request": "publish"}, {"type": "offer", "sdp": offer})
        await peer.connect(sdp.parse(answer["jsep"]["sdp"]))
        return peer

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        handle = await self._attach()
        streams = [{"feed": self._feeds[publisher]}]
        join = {"request": "join", "ptype": "subscriber", "room": 1, "streams": streams}
        for attempt in itertools.count():
            try:
                offered = await self._message(handle, join)
                break
            except RuntimeError:
                # Janus knows a feed a moment after its publisher is connected.
                if attempt == 20:
                    raise
                await asyncio.sleep(0.1)
        remote = sdp.parse(offered["jsep"]["sdp"])
        answer = sdp.answer(remote, peer.ufrag, peer.password, plain=True)
        await self._message(handle, {"request": "start"}, {"type": "answer", "sdp": answer})
        await peer.connect(remote)
        return peer

    async def ready(self) -> None:
        await asyncio.sleep(0.5)

    async def stop(self) -> None:
        for task in (self._reader, self._pacemaker):
            if task is not None:
                task.cancel()
        if self._socket is not None:
            await self._socket.close()
        await super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)


__all__ = ["Ceiling", "Janus", "Server", "Torpor"]
