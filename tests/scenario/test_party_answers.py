"""Hooks that return what cannot be sent: the client gets a 500, the log says which hook of which class, and what."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from objects.http import HttpRequest, HttpResponse
from objects.ports import UpgradeRequest
from partykit_compat import Lobby, Server
from partykit_compat.testing import serve_rooms


def wrong_answers() -> dict[str, Any]:
    return {
        "nothing": (None, "returned None (NoneType), not an HttpResponse"),
        "text": ("hello", "returned 'hello' (str), not an HttpResponse"),
        "status": (HttpResponse(b"", 99), "an HttpResponse with the status 99"),
        "status-text": (HttpResponse(b"", "200"), "an HttpResponse with the status '200'"),  # type: ignore[arg-type]
        "beyond": (HttpResponse(b"", 200, (("x-name", "\u0416"),)), "in its header 'x-name'"),
        "lines": (HttpResponse(b"", 200, (("x-name", "a\r\nset-cookie: b"),)), "in its header 'x-name'"),
        "name": (HttpResponse(b"", 200, (("x name", "a"),)), "the header name 'x name'"),
        "pairs": (HttpResponse(b"", 200, ("x-name",)), "the header 'x-name', not a pair"),  # type: ignore[arg-type]
        "headers": (HttpResponse(b"", 200, {"x": "y"}), "headers of type dict"),  # type: ignore[arg-type]
        "body": (HttpResponse("hello"), "a body of type str"),  # type: ignore[arg-type]
        "request": (HttpRequest(7), "with what is no text"),  # type: ignore[arg-type]
        "request-headers": (HttpRequest("http://a/", headers=(("a",),)), "with what is no text"),  # type: ignore[arg-type]
    }


WRONG = [
    (hook, case)
    for hook in ("on_before_connect", "on_before_request", "on_fetch", "on_request")
    for case in wrong_answers()
    if (case != "nothing" or hook == "on_request")  # elsewhere None passes
    and (not case.startswith("request") or hook.startswith("on_before"))
]


class Wrong(Server):
    """Answers what the URL names; a room `fine` is as others."""

    @staticmethod
    def chosen(url: str, hook: str) -> Any:
        return wrong_answers()[url.rpartition("=")[2]][0] if f"{hook}=" in url else None

    @staticmethod
    async def on_before_connect(request: HttpRequest, lobby: Lobby) -> Any:
        return Wrong.chosen(request.url, "on_before_connect")

    @staticmethod
    async def on_before_request(request: HttpRequest, lobby: Lobby) -> Any:
        return Wrong.chosen(request.url, "on_before_request")

    @staticmethod
    async def on_fetch(request: HttpRequest, lobby: Lobby) -> Any:
        return Wrong.chosen(request.url, "on_fetch")

    async def on_request(self, request: HttpRequest) -> Any:
        return Wrong.chosen(request.url, "on_request") if "?" in request.url else HttpResponse.of("fine")

    async def get_connection_tags(self, connection_id: str, request: UpgradeRequest) -> Any:
        return {"none": None, "number": 7, "numbers": [7], "lists": [[]], "text": "a"}.get(
            request.url.rpartition("=")[2], []
        )


class TestWrongAnswers:
    @pytest.mark.parametrize(("hook", "case"), WRONG)
    async def test_an_answer_that_cannot_be_sent_is_500(
        self, hook: str, case: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serve_rooms(Wrong) as rooms:
            neighbour = await rooms.connect("fine")
            if hook == "on_before_connect":
                with pytest.raises(InvalidStatus) as refused:
                    await rooms.connect("r", query={hook: case})
                status = refused.value.response.status_code
            else:
                path = f"/elsewhere?{hook}={case}" if hook == "on_fetch" else f"/parties/main/r?{hook}={case}"
                status = (await rooms.request(path)).status
            assert status == 500
            (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
            assert f"Wrong.{hook} returned" in record.getMessage()
            assert wrong_answers()[case][1] in record.getMessage()
            await (await neighbour.websocket.ping())
            assert await (await rooms.fetch("fine")).text() == "fine"

    @pytest.mark.parametrize("case", ["none", "number", "numbers", "lists", "text"])
    async def test_24_tags_that_are_none_are_1011(self, case: str, caplog: pytest.LogCaptureFixture) -> None:
        async with serve_rooms(Wrong) as rooms:
            client = await rooms.connect("r", query={"tags": case})
            assert await client.closed() == (1011, "invalid connection tags")
            assert "Wrong.get_connection_tags failed: " in caplog.text
            await rooms.connect("r")

    async def test_a_subprotocol_that_is_none_is_500(self, caplog: pytest.LogCaptureFixture) -> None:
        class Splits(Server):
            async def web_socket_connect(self, ws: Any, request: UpgradeRequest) -> None:
                self.ctx.accept_web_socket(ws, (), "a\r\nx: y")

        async with serve_rooms(Splits) as rooms:
            with pytest.raises(InvalidStatus) as refused:
                await rooms.connect("r")
            assert refused.value.response.status_code == 500
