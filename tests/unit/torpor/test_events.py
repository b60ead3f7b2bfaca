"""An app's events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from sfu.events import SessionClosed, TrackPublished, TrackStarted
from sfu.messages import Kind, SessionId
from tests.support.fake_sfu import FakeSfu
from torpor.app import build_app
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, EventSettings, Settings
from torpor.events import serialize
from torpor.figures import Figures
from torpor.health import Health

SESSION = SessionId("5f0c")
STARTED = TrackStarted(SESSION, "camera", at=1.0)


class Listener:
    """One ASGI request for the events: a client that reads only when asked to."""

    def __init__(self, app: FastAPI, *, secret: str = DEVELOPMENT_APP_SECRET) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {secret}".encode())]
        path = f"/v1/apps/{DEVELOPMENT_APP_ID}/events"
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self.messages.put_nowait(dict(message))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self.messages.get()

    async def body(self) -> bytes:
        return bytes((await self.next())["body"])


@pytest.fixture
def sfu() -> FakeSfu:
    return FakeSfu()


@asynccontextmanager
async def listening(sfu: FakeSfu, **options: Any) -> AsyncIterator[tuple[Listener, FastAPI, Figures, Health]]:
    """A listener that has been greeted; afterwards nothing of it may be left."""
    figures, health = Figures(None), Health()
    app = build_app(Settings(events=EventSettings(**options)), sfu, health=health, figures=figures)  # type: ignore[arg-type]
    listener = Listener(app)
    start = await listener.next()
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert await listener.body() == b":\n\n"
    yield listener, app, figures, health
    async with asyncio.timeout(5):
        await listener.task
    assert figures.event_listeners == 0
    assert not sfu.streams[0].is_open
    assert not health.streams


class TestWire:
    def test_an_event_has_an_id_a_name_and_json_data(self) -> None:
        event = TrackPublished(SESSION, "a\nb", Kind.VIDEO, at=10.5)
        lines = serialize(event, 3, wall_offset=1_700_000_000.0).decode().split("\n")
        assert lines[:2] == ["id: 3", "event: trackPublished"]
        assert json.loads(lines[2].removeprefix("data: ")) == {
            "sessionId": "5f0c",
            "trackName": "a\nb",
            "kind": "video",
            "at": "2023-11-14T22:13:30.500Z",
        }
        assert lines[3:] == ["", ""]

    def test_a_reason_is_told(self) -> None:
        assert b'"reason":"closed by peer"' in serialize(
            SessionClosed(SESSION, "closed by peer", at=0), 1, wall_offset=0
        )


class TestListening:
    async def test_events_arrive_numbered_and_the_answer_ends_with_the_service(self, sfu: FakeSfu) -> None:
        async with listening(sfu) as (listener, _, figures, _):
            assert figures.event_listeners == 1
            sfu.streams[0].queue.put_nowait(STARTED)
            assert (await listener.body()).startswith(b"id: 1\nevent: trackStarted\n")
            sfu.streams[0].queue.put_nowait(STARTED)
            assert (await listener.body()).startswith(b"id: 2\n")
            sfu.streams[0].queue.put_nowait(None)
            assert await listener.next() == {"type": "http.response.body", "body": b"", "more_body": False}

    async def test_silence_is_filled_with_comments(self, sfu: FakeSfu) -> None:
        async with listening(sfu, heartbeat=0.1) as (listener, *_):
            assert await listener.body() == b":\n\n"
            assert await listener.body() == b":\n\n"
            sfu.streams[0].queue.put_nowait(None)

    async def test_a_listener_that_leaves_is_forgotten(self, sfu: FakeSfu) -> None:
        async with listening(sfu) as (listener, *_):
            listener.gone.set()

    async def test_a_stopping_server_ends_the_answer(self, sfu: FakeSfu) -> None:
        async with listening(sfu) as (listener, _, _, health):
            health.stop()
            assert await listener.next() == {"type": "http.response.body", "body": b"", "more_body": False}

    async def test_a_slow_listener_gets_a_last_event_instead_of_a_gap(self, sfu: FakeSfu) -> None:
        async with listening(sfu, queue_max=8) as (listener, _, figures, _):
            listener.reads.clear()
            for _ in range(40):
                sfu.streams[0].queue.put_nowait(STARTED)
                await asyncio.sleep(0)
            while sfu.streams[0].is_open:  # noqa: ASYNC110  the drop has no event to wait for
                await asyncio.sleep(0.001)
            listener.reads.set()
            received = b""
            while (message := await listener.next())["more_body"]:
                received += message["body"]
            assert received.endswith(b'event: dropped\ndata: {"reason":"too slow"}\n\n')
            assert figures.event_listeners_dropped == 1


class TestAdmission:
    async def test_so_many_listeners_per_app(self, sfu: FakeSfu) -> None:
        async with listening(sfu, listeners_max=1) as (listener, app, *_):
            second = Listener(app)
            assert (await second.next())["status"] == 429
            await second.task
            listener.gone.set()
            await listener.task
            third = Listener(app)
            assert (await third.next())["status"] == 200
            third.gone.set()
            await third.task

    async def test_a_stranger_hears_nothing(self, sfu: FakeSfu) -> None:
        app = build_app(Settings(), sfu, health=Health(), figures=Figures(None))  # type: ignore[arg-type]
        stranger = Listener(app, secret="wrong")
        assert (await stranger.next())["status"] == 401
        await stranger.task
        assert sfu.streams == []
