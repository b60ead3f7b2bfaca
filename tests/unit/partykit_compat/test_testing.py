"""The test client itself: what a user's test may rely on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from objects.http import HttpRequest, HttpResponse
from objects.ports import Frame, UpgradeRequest
from partykit_compat import Connection, Lobby, Server
from partykit_compat.testing import TestRooms, serve_rooms


class Counter(Server):
    protocols = ("v1",)

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.in_memory = 0

    @staticmethod
    async def on_before_connect(request: HttpRequest, lobby: Lobby) -> HttpResponse | None:
        return HttpResponse.of("no", 403) if request.header("x-stranger") else None

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        connection.send(f"{connection.id} {request.url.partition('?')[2]}")

    async def on_message(self, connection: Connection, message: Frame) -> None:
        self.in_memory += 1
        match message:
            case "alarm":
                await self.ctx.storage.set_alarm((time.time() + 60) * 1000)
                connection.send("set")
            case "kick":
                connection.close(4001, "kicked")
            case _:
                stored = (await self.ctx.storage.get("n") or 0) + 1
                await self.ctx.storage.put("n", stored)
                connection.send(f"{self.in_memory} {stored}")

    async def on_alarm(self) -> None:
        self.broadcast("alarm")

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse.of([self.name, request.method, request.url, self.env, await request.text()], 201)


class TestTheRooms:
    async def test_clients_talk_to_a_room(self) -> None:
        async with serve_rooms(Counter) as rooms:
            client = await rooms.connect("r", id="me", query={"a": "b"}, protocols=["v1"])
            assert await client.recv() == "me _pk=me&a=b"
            assert client.websocket.subprotocol == "v1"
            await client.send("x")
            assert await client.recv() == "1 1"
            await client.send("kick")
            assert await client.closed() == (4001, "kicked")

    async def test_a_refusal_shows_its_status(self) -> None:
        async with serve_rooms(Counter) as rooms:
            with pytest.raises(InvalidStatus) as refused:
                await rooms.connect("r", headers={"x-stranger": "1"})
            assert refused.value.response.status_code == 403

    async def test_requests_have_path_query_method_and_body(self) -> None:
        async with serve_rooms({"main": Counter, "other": Counter}, env="mine") as rooms:
            response = await rooms.fetch("r", "/sub?x=1", party="other", method="POST", body=b"text")
            assert response.status == 201
            url = "http://rooms.test/parties/other/r/sub?x=1"
            assert await response.json() == ["r", "POST", url, "mine", "text"]

    async def test_sleep_loses_attributes_and_keeps_connections_and_storage(self) -> None:
        async with serve_rooms(Counter) as rooms:
            client = await rooms.connect("r")
            await client.recv()
            await client.send("x")
            assert await client.recv() == "1 1"
            assert await rooms.sleep("r")
            assert not rooms.is_awake("r")
            assert not await rooms.sleep("r")
            await client.send("x")
            assert await client.recv() == "1 2"
            assert rooms.is_awake("r")

    async def test_ten_idle_seconds_are_no_time(self) -> None:
        async with serve_rooms(Counter) as rooms:
            client = await rooms.connect("r")
            await client.recv()
            await rooms.advance(9)
            assert rooms.is_awake("r")
            await rooms.advance(2)
            assert not rooms.is_awake("r")

    async def test_an_alarm_runs_now_or_when_its_time_comes(self) -> None:
        async with serve_rooms(Counter) as rooms:
            client = await rooms.connect("r")
            await client.recv()
            assert not await rooms.run_alarm()
            for run in (rooms.run_alarm(), rooms.advance(61)):
                await client.send("alarm")
                assert await client.recv() == "set"
                await run
                assert await client.recv() == "alarm"

    async def test_a_folder_outlives_its_rooms(self, tmp_path: Path) -> None:
        for expected in ("1 1", "1 2"):
            async with serve_rooms(Counter, folder=tmp_path) as rooms:
                client = await rooms.connect("r")
                await client.recv()
                await client.send("x")
                assert await client.recv() == expected

    def test_pytest_does_not_take_it_for_a_test(self) -> None:
        assert TestRooms.__test__ is False
