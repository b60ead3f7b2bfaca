"""Hooks, schedules and refusals of the party-style API, by its own test client; numbers are the party contract's."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from objects.http import HttpRequest, HttpResponse
from objects.ports import Frame, UpgradeRequest
from objects.state import AlarmInfo
from partykit_compat import (
    Close,
    Connection,
    Cron,
    Lobby,
    PartyRoutes,
    Server,
    get_server_by_name,
    route_party_request,
)
from partykit_compat.crons import next_run_ms
from partykit_compat.testing import TestRooms, serve_rooms


class Bare(Server):
    """A room without hooks."""


class TestRequests:
    async def test_13_without_on_request_the_answer_is_404(self) -> None:
        async with serve_rooms(Bare) as rooms:
            response = await rooms.fetch("r")
            assert (response.status, await response.text()) == (404, "Not implemented")

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
    async def test_every_method_reaches_the_room(self, method: str) -> None:
        class Says(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse.of(request.method)

        async with serve_rooms(Says) as rooms:
            assert await (await rooms.fetch("r", method=method)).text() == method

    @pytest.mark.parametrize("path", ["/party/r", "/elsewhere"])
    async def test_a_client_that_leaves_in_its_body_is_no_error(
        self, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Reads(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse.of(await request.text())

            @staticmethod
            async def on_fetch(request: HttpRequest, lobby: Lobby) -> HttpResponse:
                return HttpResponse.of(await request.text())

        caplog.set_level(logging.DEBUG)
        async with serve_rooms(Reads) as rooms:
            to_room: asyncio.Queue[Any] = asyncio.Queue()
            to_room.put_nowait({"type": "http.request", "body": b"half", "more_body": True})
            to_room.put_nowait({"type": "http.disconnect"})
            scope = {"type": "http", "method": "POST", "scheme": "http", "path": path, "headers": []}
            async with asyncio.timeout(5):
                await rooms._routes(scope, to_room.get, asyncio.Queue().put)  # type: ignore[arg-type]
            levels = {one.levelno for one in caplog.records if "left in the middle of its body" in one.getMessage()}
            assert levels == {logging.DEBUG}
            assert await (await rooms.fetch("r", method="POST", body=b"whole")).text() == "whole"

    async def test_bodies_stream_both_ways_piece_by_piece(self) -> None:
        class Doubles(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                async def pieces() -> AsyncIterator[bytes]:
                    async for piece in request.stream():
                        yield piece * 2

                return HttpResponse(pieces())

        async with serve_rooms(Doubles) as rooms:
            to_room: asyncio.Queue[Any] = asyncio.Queue()
            from_room: asyncio.Queue[Any] = asyncio.Queue()
            scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/party/r", "headers": []}
            routes = rooms._routes
            asking = asyncio.create_task(routes(scope, to_room.get, from_room.put))  # type: ignore[arg-type]
            for piece in (b"a", b"b"):
                to_room.put_nowait({"type": "http.request", "body": piece, "more_body": True})
                heads_too = await from_room.get()
                message = await from_room.get() if heads_too["type"] == "http.response.start" else heads_too
                assert message["body"] == piece * 2  # the answer to a piece arrives before the next is sent
            to_room.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            await asking

    async def test_a_body_may_be_read_after_the_answer_has_begun(self) -> None:
        class ReadsLate(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                async def pieces() -> AsyncIterator[bytes]:
                    yield b"begun "
                    await asyncio.sleep(0.05)  # meanwhile the whole request arrives
                    yield await request.read()

                return HttpResponse(pieces())

        async with serve_rooms(ReadsLate) as rooms, asyncio.timeout(5):
            response = await rooms.fetch("r", method="POST", body=b"read")
            assert await response.read() == b"begun read"

    async def test_a_client_that_leaves_mid_body_is_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        class Reads(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse.of(len(await request.read()))

        async with serve_rooms(Reads) as rooms:
            messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"a", "more_body": True}]
            sent: list[Any] = []

            async def receive() -> Any:
                return messages.pop()

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/party/r", "headers": []}
            await rooms._routes(scope, receive, send)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def test_a_name_longer_than_an_object_may_know_of_itself_is_refused(self) -> None:
        async with serve_rooms(Bare) as rooms:
            assert (await rooms.fetch("x" * 1025)).status == 400
            assert (await rooms.fetch("x" * 1024)).status == 404  # of the room: no `on_request`
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            # Bytes that no client should send as they are take two each in the object's name.
            raw_path = b"/parties/main/" + b"\xe9" * 513
            scope = {
                "type": "http",
                "method": "GET",
                "scheme": "http",
                "path": "/",
                "raw_path": raw_path,
                "headers": [],
            }
            await rooms._routes(scope, asyncio.Event().wait, send)
            assert sent[0]["status"] == 400


class TestFetch:
    async def test_on_fetch_of_main_answers_what_no_room_takes(self) -> None:
        class Site(Server):
            @staticmethod
            async def on_fetch(request: HttpRequest, lobby: Lobby) -> HttpResponse | None:
                if request.url.endswith("/raise"):
                    raise RuntimeError("secret detail")
                if request.url.endswith("/hello?x=1"):
                    room = await lobby.parties["main"].get("r").fetch("/x")
                    return HttpResponse.of(
                        [lobby.name, lobby.env, await room.text(), request.header("x-partykit-props")]
                    )
                return None

        async with serve_rooms(Site, env="mine") as rooms:
            hello = await rooms.request("/hello?x=1", headers={"x-partykit-props": "{}"})
            assert (hello.status, await hello.json()) == (200, [None, "mine", "Not implemented", None])
            nothing = await rooms.request("/elsewhere", method="POST", body=b"x")
            assert (nothing.status, await nothing.text()) == (404, "Not found")
            failed = await rooms.request("/raise")
            assert (failed.status, "secret" in await failed.text()) == (500, False)

    async def test_an_on_fetch_that_nobody_asks_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        class Site(Server):
            @staticmethod
            async def on_fetch(request: HttpRequest, lobby: Lobby) -> HttpResponse | None:
                return HttpResponse.of("never")

        async with serve_rooms({"main": Bare, "site": Site}) as rooms:
            assert (await rooms.request("/x")).status == 404
            assert "on_fetch of party site is never asked" in caplog.text
        caplog.clear()
        async with serve_rooms({"main": Site, "site": Site}):
            assert "never asked" not in caplog.text

    async def test_route_party_request_says_whether_a_room_took_it(self) -> None:
        async with serve_rooms(Bare) as rooms:
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            routes: PartyRoutes = rooms._routes
            scope = {"type": "http", "method": "GET", "scheme": "http", "headers": []}
            assert not await route_party_request(routes, {**scope, "path": "/about"}, receive, send)
            assert sent == []
            assert await route_party_request(routes, {**scope, "path": "/parties/main/r"}, receive, send)
            assert sent[0]["status"] == 404


class TestByName:
    async def test_get_server_by_name_returns_a_room_that_has_started_with_its_props(self) -> None:
        class Started(Server):
            async def on_start(self) -> None:
                await self.ctx.storage.put("props", self.props)
                if self.props == "bad":
                    raise ValueError("bad props")

            async def props_seen(self) -> Any:
                return await self.ctx.storage.get("props")

        async with serve_rooms(Started) as rooms:
            party = rooms.parties["main"]
            stub = await get_server_by_name(party, "r", props={"level": 3})
            assert rooms.is_awake("r")
            assert await stub.props_seen() == {"level": 3}
            await get_server_by_name(party, "r", props="late")  # it has started: too late for these
            assert await stub.props_seen() == {"level": 3}
            with pytest.raises(ValueError, match="bad props"):
                await get_server_by_name(party, "other", props="bad")

    async def test_a_room_called_by_a_method_has_started_and_calls_keep_their_order(self) -> None:
        class Counts(Server):
            def __init__(self, ctx: Any, env: Any) -> None:
                super().__init__(ctx, env)
                self.seen: list[int] | None = None

            async def on_start(self) -> None:
                await asyncio.sleep(0.02)
                self.seen = []

            async def begin(self, number: int) -> list[int]:  # any name that is not a hook's is the user's
                assert self.seen is not None
                self.seen.append(number)
                return self.seen

        async with serve_rooms(Counts) as rooms:
            room = rooms.parties["main"].get("r")
            assert (room.party, room.name) == ("main", "r")
            calls = [room.begin(number) for number in range(5)]
            assert [len(await call) for call in calls] == [1, 2, 3, 4, 5]
            assert await room.begin(5) == [0, 1, 2, 3, 4, 5]

    async def test_a_stub_can_be_sent_to_another_room(self) -> None:
        class Asks(Server):
            async def on_start(self) -> None:
                self.started = True

            async def ask(self, other: Any) -> str:
                return str(await other.answer())

            async def answer(self) -> str:
                assert self.started
                return f"I am {self.name}"

        async with serve_rooms(Asks) as rooms:
            party = rooms.parties["main"]
            assert await party.get("a").ask(party.get("b")) == "I am b"

    async def test_room_is_the_same_as_in_partykit(self) -> None:
        class Ported(Server):
            async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
                room = self.room
                await room.storage.put("n", 1)
                names = sorted(room.context.parties)
                connection.send(f"{room.id} {room.name} {room.env} {names} {len(room.internal_id)}")
                assert room.get_connection("me") == connection == next(room.get_connections())
                room.broadcast("to all", without=["nobody"])

        async with serve_rooms({"main": Ported, "other": Bare}, env="mine") as rooms:
            client = await rooms.connect("r", id="me")
            assert await client.recv() == "r main mine ['main', 'other'] 64"
            assert await client.recv() == "to all"


class TestExceptions:
    async def test_on_exception_hears_of_every_hook_that_raised(self) -> None:
        heard: list[str] = []

        class Fails(Server):
            async def on_exception(self, error: Exception) -> None:
                heard.append(str(error))
                raise RuntimeError("this one, too")  # harms nobody

            async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
                if connection.id == "bad":
                    raise RuntimeError("connect")

            async def on_message(self, connection: Connection, message: Frame) -> None:
                if message == "raise":
                    raise RuntimeError("message")
                connection.send(message)

            async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
                raise RuntimeError("close")

            async def on_request(self, request: HttpRequest) -> HttpResponse:
                raise RuntimeError("request")

        async with serve_rooms(Fails) as rooms:
            client = await rooms.connect("r", id="good")
            await client.send("raise")
            await client.send("still here")
            assert await client.recv() == "still here"
            assert (await rooms.fetch("r")).status == 500
            bad = await rooms.connect("r", id="bad")
            assert (await bad.closed())[0] == 1011
            await client.close()
            await rooms.settle()
        assert heard[:3] == ["message", "request", "connect"]
        assert set(heard[3:]) == {"close"}


class TestRefusals:
    async def test_close_tells_a_browser_why(self) -> None:
        class Members(Server):
            @staticmethod
            async def on_before_connect(request: HttpRequest, lobby: Lobby) -> Close:
                return Close(4401, "sign in first")

        async with serve_rooms(Members) as rooms:
            client = await rooms.connect("r")
            assert await client.closed() == (4401, "sign in first")
            assert not rooms.is_awake("r")

    @pytest.mark.parametrize(("code", "reason"), [(999, ""), (1005, ""), (5000, ""), (4000, "ü" * 62)])
    def test_a_close_that_cannot_be_sent_raises(self, code: int, reason: str) -> None:
        with pytest.raises(ValueError):
            Close(code, reason)

    async def test_24_an_id_that_is_too_long_in_utf_8_is_1011_and_neither_wakes_nor_logs(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serve_rooms(Bare) as rooms:
            for bad in ("x" * 257, "ü" * 129):
                client = await rooms.connect("r", id=bad)
                assert await client.closed() == (1011, "_pk has at most 256 bytes")
            assert not rooms.is_awake("r")
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    @pytest.mark.parametrize("how", ["tags", "raise", "close", "close in turn"])
    async def test_a_client_that_was_closed_is_not_heard_though_it_goes_on_sending(self, how: str) -> None:
        class Members(Server):
            ordered = how == "close in turn"

            async def get_connection_tags(self, connection_id: str, request: UpgradeRequest) -> list[str]:
                return [""] if how == "tags" else []

            async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
                if how == "raise":
                    raise RuntimeError("who are you?")
                if how == "close":
                    connection.close(4401, "sign in first")

            async def on_message(self, connection: Connection, message: Frame) -> None:
                self.env.append(message)
                await asyncio.sleep(0.05)  # the others wait for their turn, and the client leaves
                connection.close(4401, "sign in first")

        heard: list[Frame] = []
        async with serve_rooms(Members, env=heard) as rooms:
            # By hand, as a client that does not care about close frames.
            ours, theirs = socket.socketpair()
            with ours:
                ours.sendall(
                    b"GET /parties/main/r HTTP/1.1\r\nHost: rooms.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                await rooms._serve(theirs)
                await rooms.settle()
                for _ in range(3):
                    ours.sendall(b"\x81\x85\0\0\0\0hello")
                    await rooms.settle()
            await asyncio.sleep(0.1)
        assert heard == (["hello"] if how == "close in turn" else [])

    async def test_a_client_refused_for_its_tags_is_none_of_the_rooms(self) -> None:
        class Tags(Server):
            async def get_connection_tags(self, connection_id: str, request: UpgradeRequest) -> list[str]:
                return [""] if connection_id == "bad" else []

            async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
                self.env.append(connection.id)

        ended: list[str] = []
        async with serve_rooms(Tags, env=ended) as rooms:
            for name in ("bad", "good"):
                client = await rooms.connect("r", id=name)
                await client.close()
            await rooms.settle()
        assert ended == ["good"]

    async def test_what_is_written_to_an_attachment_itself_leaves_the_id(self) -> None:
        class Writes(Server):
            async def on_message(self, connection: Connection, message: Frame) -> None:
                connection.web_socket.serialize_attachment({"mine": 1})
                with pytest.raises(TypeError, match="collection of ids"):
                    self.broadcast("x", without=connection.id)
                connection.send(f"{connection.id} {connection.state} {self.decoded_name}")

        async with serve_rooms(Writes) as rooms:
            client = await rooms.connect("a%20b", id="me")
            await client.send("x")
            assert await client.recv() == "me None a b"

    async def test_a_slow_connect_is_logged(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Slow(Server):
            async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
                await asyncio.sleep(0.02)

        async with serve_rooms({"main": Slow, "other": Bare}) as rooms:
            monkeypatch.setattr("partykit_compat.server.SLOW_CONNECT_S", 3600)
            await rooms.connect("r", party="other")
            assert "a client waited" not in caplog.text
            monkeypatch.setattr("partykit_compat.server.SLOW_CONNECT_S", 0.01)
            await rooms.connect("r")
            assert "a client waited" in caplog.text


class Echo(Server):
    async def on_message(self, connection: Connection, message: Frame) -> None:
        connection.send(message)


class TestFrames:
    async def test_32_a_message_above_the_limit_is_1009(self) -> None:
        async with serve_rooms(Echo, message_max_bytes=1024) as rooms:
            client = await rooms.connect("r")
            await client.send("x" * 1024)
            assert await client.recv() == "x" * 1024
            await client.send("x" * 1025)
            assert (await client.closed())[0] == 1009

    async def test_35_a_ping_is_answered_without_waking_the_room(self) -> None:
        async with serve_rooms(Echo) as rooms:
            client = await rooms.connect("r")
            assert await rooms.sleep("r")
            async with asyncio.timeout(5):
                await (await client.websocket.ping(b"pp"))
            assert not rooms.is_awake("r")

    async def test_too_many_messages_a_second_are_1008(self) -> None:
        async with serve_rooms(Echo, messages_per_second=5) as rooms:
            client, other = await rooms.connect("r"), await rooms.connect("r")
            for number in range(6):
                await client.send(str(number))
            assert [await client.recv() for _ in range(5)] == ["0", "1", "2", "3", "4"]
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "too many messages")
            for number in range(20):  # the limit is each connection's own, and a second's
                await other.send(str(number))
                assert await other.recv() == str(number)
                await rooms.advance(0.5)


class TestAlarms:
    async def test_37_an_alarm_that_raises_is_tried_again_after_2_4_and_8_seconds(self) -> None:
        runs: list[float] = []
        found: list[TestRooms] = []

        class Fails(Server):
            async def on_request(self, request: HttpRequest) -> HttpResponse:
                await self.ctx.storage.set_alarm(found[0].clock.unix_ms() + 500)
                return HttpResponse()

            async def on_alarm(self) -> None:
                runs.append(found[0].clock.monotonic())
                if len(runs) <= 3:
                    raise RuntimeError("not yet")

        async with serve_rooms(Fails) as rooms:
            found.append(rooms)
            await rooms.fetch("r")
            await rooms.advance(60)
        assert [round(later - runs[0]) for later in runs] == pytest.approx([0, 2, 6, 15], abs=2)

    async def test_alarms_with_a_name_have_a_hook_of_their_own(self) -> None:
        class Two(Server):
            async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
                now = self.env()
                await self.ctx.storage.set_alarm(now + 1000)
                await self.ctx.storage.set_alarm(now + 2000, "tea")

            async def on_alarm(self) -> None:
                self.broadcast("alarm")

            async def on_named_alarm(self, info: AlarmInfo) -> None:
                self.broadcast(f"alarm {info.name}")

        at_ms = 1_800_000_000_000
        async with serve_rooms(Two, env=lambda: at_ms, at_ms=at_ms) as rooms:
            client = await rooms.connect("r")
            await rooms.advance(3)
            assert [await client.recv(), await client.recv()] == ["alarm", "alarm tea"]


FIVE_PAST_MS = 1_800_000_005_000
"""Five seconds after a full minute (Unix ms)."""


class Scheduled(Server):
    crons = {"minutely": "* * * * *", "quick": "*/10 * * * * *"}  # noqa: RUF012
    runs: list[Cron] = []  # noqa: RUF012

    @staticmethod
    async def on_cron(cron: Cron, lobby: Lobby) -> None:
        Scheduled.runs.append(cron)
        if cron.name == "quick":
            cron.no_retry()
            raise RuntimeError("comes again all the same")


class TestCrons:
    @pytest.fixture(autouse=True)
    def no_runs(self) -> None:
        Scheduled.runs.clear()

    async def test_crons_run_when_they_are_due_also_after_one_that_raised(self) -> None:
        async with serve_rooms(Scheduled, at_ms=FIVE_PAST_MS) as rooms:
            await rooms.advance(120)
        names = [cron.name for cron in Scheduled.runs]
        assert (names.count("minutely"), names.count("quick")) == (2, 12)
        minutely = [cron for cron in Scheduled.runs if cron.name == "minutely"]
        assert [cron.scheduled_ms % 60_000 for cron in minutely] == [0, 0]
        assert minutely[0].expression == "* * * * *"

    async def test_one_that_raises_is_tried_again_before_it_is_due_next(self) -> None:
        class Fails(Server):
            crons = {"minutely": "* * * * *"}  # noqa: RUF012
            failures = 0

            @staticmethod
            async def on_cron(cron: Cron, lobby: Lobby) -> None:
                Scheduled.runs.append(cron)
                if Fails.failures:
                    Fails.failures -= 1
                    raise RuntimeError("not now")

        async with serve_rooms(Fails, at_ms=FIVE_PAST_MS) as rooms:
            Fails.failures = 2
            await rooms.advance(55 + 59)
            assert [cron.retry_count for cron in Scheduled.runs] == [0, 1, 2]
            assert len({cron.scheduled_ms for cron in Scheduled.runs}) == 1
            Scheduled.runs.clear()
            Fails.failures = 100  # after 0, 2, 6, 14 and 30 s; the next retry would come after the next run
            await rooms.advance(59)
            assert [cron.retry_count for cron in Scheduled.runs] == [0, 1, 2, 3, 4]
            await rooms.advance(2)
            assert Scheduled.runs[-1].retry_count == 0

    async def test_one_that_hangs_is_stopped_and_comes_again(self) -> None:
        class Hangs(Server):
            crons = {"minutely": "* * * * *"}  # noqa: RUF012

            @staticmethod
            async def on_cron(cron: Cron, lobby: Lobby) -> None:
                Scheduled.runs.append(cron)
                await asyncio.Event().wait()

        async with serve_rooms(Hangs, at_ms=FIVE_PAST_MS) as rooms:
            rooms.host.limits = dataclasses.replace(rooms.host.limits, alarm_s=5.0)
            await rooms.advance(400)
        assert len({cron.scheduled_ms for cron in Scheduled.runs}) >= 5

    async def test_one_that_hangs_ends_none_of_the_others(self) -> None:
        class Hangs(Server):
            crons = {"hangs": "0 * * * * *", "works": "4 * * * * *"}  # noqa: RUF012

            @staticmethod
            async def on_cron(cron: Cron, lobby: Lobby) -> None:
                await (go_on if cron.name == "works" else asyncio.Event()).wait()
                Scheduled.runs.append(cron)

        go_on = asyncio.Event()
        async with serve_rooms(Hangs, at_ms=FIVE_PAST_MS) as rooms:
            rooms.host.limits = dataclasses.replace(rooms.host.limits, alarm_s=5.0)
            await rooms.advance(61)  # the one was ended while the other was waiting
            go_on.set()
            await rooms.settle()
            assert [cron.name for cron in Scheduled.runs] == ["works"]
            assert Scheduled.runs[0].retry_count == 0

    async def test_a_run_missed_while_down_is_made_up_for_once(self, tmp_path: Any) -> None:
        class Minutely(Scheduled):
            crons = {"minutely": "* * * * *"}  # noqa: RUF012

        start = FIVE_PAST_MS
        async with serve_rooms(Minutely, folder=tmp_path, at_ms=start) as rooms:
            await rooms.settle()
        assert Scheduled.runs == []
        async with serve_rooms(Minutely, folder=tmp_path, at_ms=start + 3_600_000) as rooms:
            await rooms.advance(1)
            assert [cron.name for cron in Scheduled.runs] == ["minutely"]
            assert Scheduled.runs[0].scheduled_ms <= start + 60_000

    async def test_a_cron_taken_out_of_the_class_ends(self, tmp_path: Any) -> None:
        class Fewer(Scheduled):
            crons = {"minutely": "* * * * *"}  # noqa: RUF012

        async with serve_rooms(Scheduled, folder=tmp_path, at_ms=FIVE_PAST_MS) as rooms:
            await rooms.settle()
        async with serve_rooms(Fewer, folder=tmp_path, at_ms=FIVE_PAST_MS) as rooms:
            await rooms.advance(60)
        assert {cron.name for cron in Scheduled.runs} == {"minutely"}

    async def test_the_alarms_of_a_server_without_crons_are_let_go(self, tmp_path: Any) -> None:
        async with serve_rooms(Scheduled, folder=tmp_path, at_ms=FIVE_PAST_MS) as rooms:
            await rooms.settle()
        async with serve_rooms(Bare, folder=tmp_path, at_ms=FIVE_PAST_MS) as rooms:
            ran = [await rooms.run_alarm() for _ in range(len(Scheduled.crons) + 1)]
            assert ran == [True, True, False]
        assert Scheduled.runs == []

    @pytest.mark.parametrize("expression", ["", "* * *", "61 * * * *", "0 0 30 2 *"])
    async def test_an_expression_that_is_none_is_refused_at_once(self, expression: str) -> None:
        class Wrong(Server):
            crons = {"x": expression}  # noqa: RUF012

        with pytest.raises(ValueError, match=r"cron expression|never due"):
            async with serve_rooms(Wrong):
                pass

    def test_the_next_run_is_strictly_later(self) -> None:
        assert next_run_ms("* * * * *", 60_000) == 120_000
        assert next_run_ms("* * * * *", 59_999) == 60_000


class Parting(Server):
    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        connection.set_state("kept")

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        await self.ctx.storage.get("anything")
        self.broadcast(f"{connection.id} {connection.state} {code} {connection.tags}")


async def test_26_a_close_that_wakes_the_room_runs_on_close_with_id_tags_and_state() -> None:
    async with serve_rooms(Parting) as rooms:
        leaving, staying = await rooms.connect("r", id="ada"), await rooms.connect("r")
        assert await rooms.sleep("r")
        await leaving.close(4321)
        assert await staying.recv() == "ada kept 4321 ['ada']"
