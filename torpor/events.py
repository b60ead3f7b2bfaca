"""What happens to an app's sessions, tracks and relays, as server-sent events: `GET /v1/apps/{appId}/events`.

    id: 1                                            counts from 1 for each listener; nothing is replayed
    event: trackPublished                            the event's name
    data: {"sessionId":"…","trackName":"…","kind":"video","at":"2026-11-21T21:52:09.125Z"}

A comment comes after each silence of `events.heartbeat`. A listener that does not keep up gets a last event `dropped`
and the end of the answer, rather than a gap it cannot see; it connects again and asks for the state.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter, Depends
from pydantic.alias_generators import to_camel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sfu.errors import LimitExceeded
from sfu.events import Dated
from sfu.routes import VERSIONED, Caller, error_responses
from sfu.service import EventStream, Sfu
from torpor.config import EventSettings
from torpor.figures import Figures

DROPPED = b'event: dropped\ndata: {"reason":"too slow"}\n\n'
HEARTBEAT = b":\n\n"


def events_router(sfu: Sfu, settings: EventSettings, figures: Figures, caller: Caller) -> APIRouter:
    """The route, versioned and not.

    Args:
        sfu: whose events.
        settings: how many listeners, how long their queues.
        figures: counts listeners.
        caller: authenticates, as for the session API.
    """
    router = APIRouter(tags=["Events (extension)"])
    listeners: dict[str, int] = {}

    def leave(app_id: str) -> None:
        listeners[app_id] -= 1
        figures.event_listeners -= 1

    def add_route(base: str, operation_id: str) -> None:
        @router.get(
            f"{base}/apps/{{appId}}/events",
            summary="Follow sessions and tracks",
            description=__doc__,
            operation_id=operation_id,
            response_class=Response,
            responses=error_responses(401, 404, 429)
            | {200: {"description": "Until either side ends it", "content": _EVENT_STREAM}},
        )
        async def follow(app_id: str = Depends(caller)) -> Response:
            if listeners.get(app_id, 0) >= settings.listeners_max:
                raise LimitExceeded("too many listeners of this app's events")
            stream = sfu.subscribe_events(app_id)
            listeners[app_id] = listeners.get(app_id, 0) + 1
            figures.event_listeners += 1
            return EventAnswer(stream, settings, figures, lambda: leave(app_id))

    add_route(VERSIONED, "followEvents")
    add_route("", "followEventsUnversioned")
    return router


def serialize(event: Dated, number: int, *, wall_offset: float) -> bytes:
    """One event on the wire.

    Args:
        event: what happened; `at` is monotonic.
        number: its id.
        wall_offset: what to add to monotonic seconds to get seconds since 1970.
    """
    kind = type(event).__name__
    fields = {to_camel(f.name): getattr(event, f.name) for f in dataclasses.fields(event)}
    at = datetime.fromtimestamp(fields["at"] + wall_offset, UTC)
    fields["at"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, (kind[0].lower() + kind[1:]).encode(), orjson.dumps(fields))


class EventAnswer(Response):
    """One listener: a bounded queue between the service's events and a socket that may be slow.

    Args:
        stream: the app's events.
        settings: bounds and heartbeat.
        figures: counts the dropped.
        on_end: called once when the answer has ended, however it did.
    """

    def __init__(
        self, stream: EventStream, settings: EventSettings, figures: Figures, on_end: Callable[[], None]
    ) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._stream = stream
        self._settings = settings
        self._figures = figures
        self._on_end = on_end
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the service, the listener or its slowness ends it."""
        watchers = [asyncio.create_task(self._fill()), asyncio.create_task(self._watch(receive))]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})
            while chunk := await self._next():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._on_end()

    async def _next(self) -> bytes:
        """What waits, or a heartbeat; empty at the end."""
        if not self._waiting and not self._ended:
            try:
                async with asyncio.timeout(self._settings.heartbeat):
                    await self._wake.wait()
            except TimeoutError:
                return HEARTBEAT
        self._wake.clear()
        chunk = b"".join(self._waiting)
        self._waiting.clear()
        return chunk

    async def _fill(self) -> None:
        """Queue the service's events; a full queue is replaced by `dropped` and the end."""
        wall_offset = time.time() - time.monotonic()
        number = 0
        try:
            async with self._stream as events:
                async for event in events:
                    number += 1
                    if len(self._waiting) >= self._settings.queue_max:
                        self._figures.event_listeners_dropped += 1
                        self._waiting.clear()
                        self._waiting.append(DROPPED)
                        return
                    self._waiting.append(serialize(event, number, wall_offset=wall_offset))
                    self._wake.set()
        finally:
            self._end()

    async def _watch(self, receive: Receive) -> None:
        """See the listener leave."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()


_EVENT_STREAM = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'id: 1\nevent: sessionConnected\ndata: {"sessionId":"5f0c","at":"2026-11-21T21:52:09.125Z"}\n\n',
    }
}
