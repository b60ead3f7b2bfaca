"""What every request meets, whatever the application inside does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from torpor.edge import Cors, Edge
from torpor.health import Health
from torpor.metrics import HttpMetrics, render

OK = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}


class Call:
    """One request through an edge around `app`."""

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        cors: Cors | None = None,
        access_log: bool = False,
        local_only: bool = False,
    ) -> None:
        self.metrics = HttpMetrics()
        self.health = Health()
        self.sent: list[dict[str, Any]] = []
        rules = {"/v1/": cors or Cors(("*",))}
        self._edge = Edge(
            app, cors=rules, local_only=local_only, health=self.health, metrics=self.metrics, access_log=access_log
        )

    async def run(self, path: str = "/v1/x", method: str = "GET", origin: str = "", host: str = "x") -> None:
        headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
        await self._edge({"type": "http", "path": path, "method": method, "headers": headers}, _receive, self._send)

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    def counted(self, status: int) -> bool:
        return f'method="GET",status="{status}"}} 1' in render(self.metrics.collect())


async def _receive() -> Any:
    await asyncio.Event().wait()


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send(dict(OK))
    await send(dict(END))


class TestFailures:
    async def test_an_exception_is_a_500_in_the_envelope_and_its_text_stays_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("the detail")

        call = Call(fail)
        await call.run(origin="https://a.example")
        assert call.sent[0]["status"] == 500
        assert b'"errorCode":"internal_error"' in call.sent[1]["body"]
        assert b"the detail" not in call.sent[1]["body"]
        assert call.headers[b"access-control-allow-origin"] == b"https://a.example"
        assert "the detail" in caplog.text
        assert call.counted(500)

    async def test_once_the_answer_has_begun_the_server_must_cut_it(self) -> None:
        async def fail(scope: Any, receive: Any, send: Any) -> None:
            await send(dict(OK))
            raise RuntimeError

        call = Call(fail)
        with pytest.raises(RuntimeError):
            await call.run()
        assert [message["type"] for message in call.sent] == ["http.response.start"]

    async def test_a_client_that_left_is_counted_and_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async def leave(scope: Any, receive: Any, send: Any) -> None:
            raise ClientDisconnect

        call = Call(leave)
        await call.run()
        assert call.sent == []
        assert call.counted(499)
        assert caplog.records == []


class TestHeaders:
    async def test_api_answers_are_not_stored_and_other_paths_get_no_cors(self) -> None:
        api, page = Call(_answer), Call(_answer)
        await api.run("/v1/x", origin="https://a.example")
        await page.run("/", origin="https://a.example")
        assert api.headers[b"cache-control"] == b"no-store"
        assert api.headers[b"access-control-allow-origin"] == b"https://a.example"
        assert page.headers == {b"x-content-type-options": b"nosniff"}

    async def test_a_preflight_does_not_reach_the_application(self) -> None:
        call = Call(_answer, cors=Cors(("https://a.example",)))
        await call.run(method="OPTIONS", origin="https://b.example")
        assert call.sent[0]["status"] == 204
        assert b"access-control-allow-origin" not in call.headers
        assert call.headers[b"vary"] == b"Origin"


class TestDevelopment:
    """The development secret is public: only pages and names of this machine may use a server that has it."""

    @pytest.mark.parametrize("host", ["localhost:8787", "127.0.0.1:8787", "[::1]:8787"])
    async def test_names_of_this_machine_pass(self, host: str) -> None:
        call = Call(_answer, local_only=True)
        await call.run(host=host)
        assert call.sent[0]["status"] == 200

    @pytest.mark.parametrize("host", ["evil.example:8787", "localhost.evil.example", "192.0.2.1", ""])
    @pytest.mark.parametrize("path", ["/v1/x", "/", "/metrics"])
    async def test_other_names_reach_nothing(self, host: str, path: str) -> None:
        call = Call(_answer, local_only=True)
        await call.run(path, host=host)
        assert call.sent[0]["status"] == 403
        assert b'"errorCode":"forbidden"' in call.sent[1]["body"]

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("http://localhost:5173", True),
            ("http://127.0.0.1:3000", True),
            ("https://a.localhost", True),
            ("https://evil.example", False),
            ("http://localhost.evil.example", False),
            ("null", False),
        ],
    )
    def test_a_star_means_the_origins_of_this_machine(self, origin: str, allowed: bool) -> None:
        headers = dict(Cors(("*",), local_only=True).headers(origin))
        assert (b"access-control-allow-origin" in headers) is allowed


class TestStreams:
    async def test_only_event_streams_are_ended_by_a_stop(self) -> None:
        started = asyncio.Event()

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send({**OK, "headers": [(b"content-type", b"text/event-stream")]})
            started.set()
            await asyncio.Event().wait()

        call = Call(stream)
        task = asyncio.create_task(call.run())
        await started.wait()
        call.health.stop()
        await task
        assert call.sent[-1] == END
        assert not call.health.streams

    async def test_a_cancelled_request_that_is_no_stream_stays_cancelled(self) -> None:
        async def hang(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        call = Call(hang)
        task = asyncio.create_task(call.run())
        await asyncio.sleep(0)
        call.health.stop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestAccessLog:
    async def test_a_line_has_the_route_and_no_path(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        await Call(_answer, access_log=True).run("/v1/secret-session")
        (record,) = caplog.records
        assert record.getMessage() == "request"
        assert (record.__dict__["route"], record.__dict__["status"]) == ("unmatched", 200)
        assert "secret-session" not in str(record.__dict__)

    async def test_it_is_silent_unless_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        await Call(_answer).run()
        assert caplog.records == []


class TestUpgrades:
    """A browser asks nobody before it opens a WebSocket, so host and origin are judged here."""

    @staticmethod
    async def refused(call: Call, path: str = "/v1/x", host: str = "localhost:8787", origin: str = "") -> bool:
        headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
        scope = {"type": "websocket", "path": path, "headers": headers}
        call.sent.clear()
        await call._edge(scope, _receive, call._send)
        if call.sent[0]["type"] == "websocket.accept":
            return False
        assert call.sent[0]["status"] == 403
        return True

    @staticmethod
    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def test_a_development_server_refuses_names_of_others(self) -> None:
        call = Call(self.accept, local_only=True)
        assert await self.refused(call, host="evil.example")
        assert not await self.refused(call, host="127.0.0.1:8787")

    async def test_pages_of_other_origins_are_refused_programs_are_not(self) -> None:
        call = Call(self.accept, cors=Cors(("https://a.example",)))
        assert await self.refused(call, origin="https://b.example")
        assert await self.refused(call, path="//v1/x", origin="https://b.example")
        assert not await self.refused(call, origin="https://a.example")
        assert not await self.refused(call)

    async def test_in_development_any_origin_means_this_machine(self) -> None:
        call = Call(self.accept, cors=Cors(("*",), local_only=True), local_only=True)
        assert await self.refused(call, origin="https://evil.example")
        assert not await self.refused(call, origin="http://localhost:5173")


async def test_what_is_neither_request_nor_upgrade_passes_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], send))

    call = Call(app)
    await call._edge({"type": "lifespan"}, _receive, call._send)
    assert seen == [("lifespan", call._send)]
