"""Janus' VideoRoom (https://janus.conf.meetecho.com/docs/videoroom): its signalling, and it as a `MediaTarget`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import websockets

from loadtest.media import sessions
from loadtest.media.client import MediaClient
from loadtest.media.sdp import Sending
from loadtest.media.source import MediaSource
from loadtest.media.target import MediaFailed, MediaTarget, Publication, PublicationRef, Subscription

_ANSWER_TIMEOUT: Final = 20.0
_KEEP_ALIVE: Final = 20.0
_SUBSTREAMS: Final = {"f": 2, "h": 1, "q": 0}
_PLUGIN: Final = "janus.plugin.videoroom"


class JanusRoom:
    """One WebSocket to Janus and one session on it; each publisher and each subscriber is a handle."""

    def __init__(self, url: str, room: int) -> None:
        self._url, self._room = url, room
        self._socket: websockets.ClientConnection | None = None
        self._session = 0
        self._waiting: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._starting = asyncio.Lock()

    async def open(self) -> None:
        """Connect, if not connected already. Raises `MediaFailed`."""
        async with self._starting:
            if self._socket is not None:
                return
            try:
                self._socket = await websockets.connect(
                    self._url, subprotocols=[websockets.Subprotocol("janus-protocol")], max_size=None
                )
            except OSError as error:
                raise MediaFailed(f"janus: {error}") from error
            self._tasks = [asyncio.create_task(self._read())]
            self._session = (await self._ask({"janus": "create"}))["data"]["id"]
            self._tasks.append(asyncio.create_task(self._keep_alive()))

    async def close(self) -> None:
        """Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    async def publish(self, offer: str) -> tuple[str, int, int]:
        """Join as a publisher: the answer, the feed's id, and the handle."""
        handle = await self._attach()
        joined = await self._message(handle, {"request": "join", "ptype": "publisher", "room": self._room})
        answer = await self._message(handle, {"request": "publish"}, {"type": "offer", "sdp": offer})
        return answer["jsep"]["sdp"], joined["plugindata"]["data"]["id"], handle

    async def subscribe(self, feeds: Sequence[int]) -> tuple[str, int]:
        """Join as a subscriber of all streams of `feeds`: Janus' offer, and the handle."""
        handle = await self._attach()
        streams = [{"feed": feed} for feed in feeds]
        join = {"request": "join", "ptype": "subscriber", "room": self._room, "streams": streams}
        for attempt in itertools.count():
            try:
                offered = await self._message(handle, join)
                break
            except MediaFailed:
                # Janus knows a feed a moment after its publisher is connected.
                if attempt == 20:
                    raise
                await asyncio.sleep(0.1)
        return offered["jsep"]["sdp"], handle

    async def start(self, handle: int, answer: str) -> None:
        """Answer a subscription's offer."""
        await self._message(handle, {"request": "start"}, {"type": "answer", "sdp": answer})

    async def prefer(self, handle: int, substream: int) -> None:
        """Choose a simulcast layer for a subscription's video: 0 is the lowest."""
        await self._message(handle, {"request": "configure", "substream": substream})

    async def detach(self, handle: int) -> None:
        """End a publisher or subscriber. Never fails: it may be gone already."""
        if self._socket is None:
            return
        request = {"janus": "detach", "session_id": self._session, "handle_id": handle}
        with contextlib.suppress(MediaFailed, TimeoutError, websockets.ConnectionClosed):
            await self._ask(request)

    async def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self._socket:
                message = json.loads(text)
                if message.get("janus") != "ack" and message.get("transaction") in self._waiting:
                    self._waiting[message["transaction"]].put_nowait(message)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_ALIVE)
            await self._ask({"janus": "keepalive", "session_id": self._session}, answer=False)

    async def _ask(self, request: dict[str, Any], *, answer: bool = True) -> dict[str, Any]:
        assert self._socket is not None
        transaction = secrets.token_hex(8)
        if answer:
            queue = self._waiting[transaction] = asyncio.Queue()
        try:
            await self._socket.send(json.dumps({**request, "transaction": transaction}))
            if not answer:
                return {}
            reply = await asyncio.wait_for(queue.get(), _ANSWER_TIMEOUT)
        except (TimeoutError, websockets.ConnectionClosed) as error:
            raise MediaFailed(f"janus: {str(error) or 'no answer'}") from error
        finally:
            self._waiting.pop(transaction, None)
        data = reply.get("plugindata", {}).get("data", {})
        if reply["janus"] == "error" or "error" in data:
            raise MediaFailed(f"janus: {data.get('error') or reply.get('error')}")
        return reply

    async def _attach(self) -> int:
        await self.open()
        reply = await self._ask({"janus": "attach", "session_id": self._session, "plugin": _PLUGIN})
        handle: int = reply["data"]["id"]
        return handle

    async def _message(self, handle: int, body: dict[str, Any], jsep: dict[str, str] | None = None) -> dict[str, Any]:
        request = {"janus": "message", "session_id": self._session, "handle_id": handle, "body": body}
        return await self._ask(request if jsep is None else {**request, "jsep": jsep})


class JanusTarget(MediaTarget):
    """A room of Janus.

    Args:
        url: of its WebSocket transport, such as `ws://10.87.87.1:8188`.
        room: its number.
    """

    name = "janus"

    def __init__(self, client: MediaClient, url: str, room: int = 1) -> None:
        self._client = client
        self._room = JanusRoom(url, room)
        self._joined: set[Publication | Subscription] = set()

    async def publish(self, source: MediaSource) -> Publication:
        """Join as a publisher; returns when the transport is up and media flows. Raises `MediaFailed`."""
        handle = 0

        async def exchange(offer: str, sendings: Sequence[Sending]) -> tuple[str, PublicationRef]:
            nonlocal handle
            answer, feed, handle = await self._room.publish(offer)
            return answer, PublicationRef(str(feed), tuple(sending.mid for sending in sendings))

        async def leave() -> None:
            self._joined.discard(made)
            await self._room.detach(handle)

        try:
            # We are the DTLS client with every server; Janus would choose that part for itself if it could.
            made = await sessions.publish(self._client, source, exchange, setup="active", on_leave=leave)
        except BaseException:
            await self._room.detach(handle)
            raise
        self._joined.add(made)
        return made

    async def subscribe(self, refs: Sequence[PublicationRef], *, rid: str = "", verify: bool = False) -> Subscription:
        """Join as a subscriber to all streams of `refs`; returns when the transport is up. Raises `MediaFailed`."""
        begun = time.monotonic()
        offer, handle = await self._room.subscribe([int(ref.session) for ref in refs])

        async def exchange(answer: str) -> None:
            await self._room.start(handle, answer)

        async def leave() -> None:
            self._joined.discard(made)
            await self._room.detach(handle)

        try:
            made = await sessions.subscribe(self._client, begun, offer, exchange, verify=verify, on_leave=leave)
        except BaseException:
            await self._room.detach(handle)
            raise
        self._joined.add(made)
        if rid:
            await self._room.prefer(handle, _SUBSTREAMS[rid])
        return made

    async def close(self) -> None:
        """Leave everything that is still joined, and free the target."""
        for session in list(self._joined):
            await session.leave()
        await self._room.close()
