"""Servers under measurement, behind one face: start, publish, subscribe, CPU time, stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import httpx

from benchmarks.machine import ROOT
from loadtest.media import sdp
from loadtest.media.dtls import SrtpKeys
from loadtest.media.janus import JanusRoom
from loadtest.media.peer import MediaPeer
from loadtest.peers.hosts import CLIENT_HOST, SERVER_HOST, SERVER_NAMESPACE, server_command
from loadtest.peers.janus import ROOM, JanusServer
from loadtest.peers.process import process_cpu_ns, resident_bytes
from loadtest.peers.torpor import TorporServer

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


class Torpor(TorporServer):
    """`torpor serve` with one forwarding thread, and what else `environment` says."""

    def __init__(self, *, environment: Mapping[str, str] | None = None, port: int | None = None) -> None:
        super().__init__(host=SERVER_HOST, port=port, core=0, netns=SERVER_NAMESPACE, environment=environment)
        headers = {"authorization": f"Bearer {self.app_secret}"}
        self._http = httpx.AsyncClient(base_url=self.api, headers=headers, timeout=30)
        self._tracks: dict[MediaPeer, dict[str, str]] = {}

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

    def make_subscriber(self) -> MediaPeer:
        """A peer that is not connected yet."""
        return MediaPeer(host=CLIENT_HOST)

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        peer = self.make_subscriber()
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


class Janus(JanusServer):
    """Janus from Debian with its VideoRoom plugin, ICE-lite, on the same host and core."""

    def __init__(self) -> None:
        super().__init__(transport_cc=False)
        self._room = JanusRoom(self.url, ROOM)
        self._feeds: dict[MediaPeer, int] = {}

    async def publish(self, ssrc: int) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        offer = sdp.offer([sdp.Sending("0", "VP8", ssrc)], peer.ufrag, peer.password, plain=True, setup="active")
        answer, self._feeds[peer], _ = await self._room.publish(offer)
        await peer.connect(sdp.parse(answer))
        return peer

    async def subscribe(self, publisher: MediaPeer) -> MediaPeer:
        peer = MediaPeer(host=CLIENT_HOST)
        offer, handle = await self._room.subscribe([self._feeds[publisher]])
        remote = sdp.parse(offer)
        await self._room.start(handle, sdp.answer(remote, peer.ufrag, peer.password, plain=True))
        await peer.connect(remote)
        return peer

    async def ready(self) -> None:
        await asyncio.sleep(0.5)

    async def stop(self) -> None:
        await self._room.close()
        await super().stop()


__all__ = ["Ceiling", "Janus", "Server", "Torpor"]
