"""Publish one video through a running server and pull it again: the session API, start to end.

    torpor serve &
    python examples/forward_one_track.py

Two aiortc peers on this machine: the publisher sends a drawn picture, the subscriber counts the frames that arrive.
Without arguments it uses the development app, which a server on loopback serves by default.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from typing import Any

import httpx
from aiortc import RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from av import VideoFrame

from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET


class MovingBar(VideoStreamTrack):
    """A bright bar that wanders over a dark picture, 320x180."""

    async def recv(self) -> VideoFrame:
        """Draw the next frame, when its time has come."""
        pts, time_base = await self.next_timestamp()
        frame = VideoFrame(320, 180, "yuv420p")
        luma, *chroma = frame.planes
        position = int(pts * time_base * 160) % 300
        row = bytearray(b"\x30" * luma.line_size)
        row[position : position + 20] = b"\xd0" * 20
        luma.update(bytes(row) * 180)
        for plane in chroma:
            plane.update(b"\x80" * plane.buffer_size)
        frame.pts, frame.time_base = pts, time_base
        return frame


class Session:
    """One peer: a session of the API and the peer connection that belongs to it."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self.api = api
        self.connection = RTCPeerConnection()
        self.id = ""

    async def open(self) -> None:
        """Make the session; its transport comes with the first track."""
        self.id = (await self.call("POST", "/sessions/new"))["sessionId"]

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make one request; raises `httpx.HTTPStatusError` when it is refused."""
        response = await self.api.request(method, path, json=body)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def publish(self, track: VideoStreamTrack, name: str) -> None:
        """We offer, the server answers."""
        transceiver = self.connection.addTransceiver(track, direction="sendonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        answer = await self.call(
            "POST",
            f"/sessions/{self.id}/tracks/new",
            {
                "sessionDescription": {"type": "offer", "sdp": self.connection.localDescription.sdp},
                "tracks": [{"location": "local", "mid": transceiver.mid, "trackName": name}],
            },
        )
        await self.connection.setRemoteDescription(RTCSessionDescription(**answer["sessionDescription"]))

    async def pull(self, publisher: Session, name: str) -> Any:
        """The server offers, we answer; the track comes out of the peer connection."""
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.connection.on("track", arrived.set_result)
        track = {"location": "remote", "sessionId": publisher.id, "trackName": name}
        offer = await self.call("POST", f"/sessions/{self.id}/tracks/new", {"tracks": [track]})
        await self.connection.setRemoteDescription(RTCSessionDescription(**offer["sessionDescription"]))
        await self.connection.setLocalDescription(await self.connection.createAnswer())
        answer = {"type": "answer", "sdp": self.connection.localDescription.sdp}
        await self.call("PUT", f"/sessions/{self.id}/renegotiate", {"sessionDescription": answer})
        return await arrived


async def main() -> None:
    """Publish, pull, count frames."""
    parser = argparse.ArgumentParser(description="Publish a video through a running server and pull it again.")
    parser.add_argument("--server", default="http://127.0.0.1:8787")
    parser.add_argument("--app-id", default=os.environ.get("TORPOR_APP_ID", DEVELOPMENT_APP_ID))
    parser.add_argument("--frames", type=int, default=60, help="stop after this many")
    options = parser.parse_args()
    secret = os.environ.get("TORPOR_APP_SECRET", DEVELOPMENT_APP_SECRET)

    base = f"{options.server}/v1/apps/{options.app_id}"
    async with httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {secret}"}, timeout=15) as api:
        publisher, subscriber = Session(api), Session(api)
        try:
            await publisher.open()
            await subscriber.open()
            await publisher.publish(MovingBar(), "bar")
            track = await subscriber.pull(publisher, "bar")
            first = await track.recv()
            began = time.monotonic()
            print(f"first frame: {first.width}x{first.height}")
            for _ in range(options.frames - 1):
                await track.recv()
            print(
                f"{options.frames} frames forwarded, {(options.frames - 1) / (time.monotonic() - began):.1f} a second"
            )
        finally:
            await publisher.connection.close()
            await subscriber.connection.close()


if __name__ == "__main__":
    asyncio.run(main())
