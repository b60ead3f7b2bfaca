"""What `HttpProtocol` adds to uvicorn's, on a transport that only remembers. Sockets: tests/scenario/test_serve.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from torpor.config import HttpSettings
from torpor.http import DatedState, HttpProtocol


class FakeTransport:
    """A connection whose peer is controlled by the test."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()
        self.closed = False
        self.unread = 0
        self.written = b""

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted.is_set()

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
async def connection() -> tuple[HttpProtocol, FakeTransport]:
    config = uvicorn.Config(_app, log_config=None, lifespan="off", ws="none")
    limits = HttpSettings(header_timeout=1000.0)
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, limits=limits)
    transport = FakeTransport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    return protocol, transport


class TestUnreadAnswers:
    async def test_a_peer_that_does_not_read_is_cut_off(
        self, connection: tuple[HttpProtocol, FakeTransport], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torpor.http.SEND_TIMEOUT", 0.01)
        protocol, transport = connection
        protocol.pause_writing()
        async with asyncio.timeout(5):
            await transport.aborted.wait()
        protocol.connection_lost(None)

    async def test_a_peer_that_begins_to_read_again_is_not(
        self, connection: tuple[HttpProtocol, FakeTransport], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torpor.http.SEND_TIMEOUT", 0.01)
        protocol, transport = connection
        protocol.pause_writing()
        protocol.resume_writing()
        await asyncio.sleep(0.05)
        assert not transport.aborted.is_set()
        protocol.connection_lost(None)

    @pytest.mark.parametrize("unread", [0, 1])
    async def test_an_idle_connection_is_closed_and_one_with_an_unread_answer_aborted(
        self, connection: tuple[HttpProtocol, FakeTransport], unread: int
    ) -> None:
        protocol, transport = connection
        transport.unread = unread
        protocol.timeout_keep_alive_handler()
        assert (transport.closed, transport.aborted.is_set()) == (unread == 0, unread == 1)
        protocol.connection_lost(None)


class TestHeads:
    async def test_a_head_is_measured_anew_for_each_request(
        self, connection: tuple[HttpProtocol, FakeTransport]
    ) -> None:
        protocol, transport = connection
        for _ in range(40):
            protocol.data_received(b"GET / HTTP/1.1\r\nx: " + b"a" * 1000 + b"\r\n")
            protocol.data_received(b"\r\n")
            for _ in range(10):
                await asyncio.sleep(0)
        assert transport.written.count(b"HTTP/1.1 204") == 40
        protocol.connection_lost(None)

    async def test_a_refused_connection_is_refused_once(self, connection: tuple[HttpProtocol, FakeTransport]) -> None:
        protocol, transport = connection
        protocol.data_received(b"nonsense\r\n\r\n")
        protocol.send_400_response("again")
        assert transport.written.count(b"HTTP/1.1 400") == 1
        protocol.connection_lost(None)


def test_the_date_is_of_the_second_in_which_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    state = DatedState()
    for second, text in ((1.5, b"Thu, 01 Jan 1970 00:00:01 GMT"), (3600.7, b"Thu, 01 Jan 1970 01:00:00 GMT")):
        monkeypatch.setattr("torpor.http.time.time", lambda second=second: second)
        assert state.default_headers == [(b"date", text)]
