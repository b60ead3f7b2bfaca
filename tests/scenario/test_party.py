"""Rooms by URL with the party-style API, over real sockets; numbers are those of the party contract's behaviours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.exceptions import InvalidStatus

from objects.clock import ManualClock
from objects.embedded import LocalDrivers
from objects.errors import LimitExceeded, UsageError
from objects.host import ObjectHost
from objects.http import HttpRequest, HttpResponse
from objects.ids import ObjectId
from objects.ports import Connections, Frame, UpgradeRequest
from partykit_compat import Close, Connection, Lobby, PartyRoutes, Server
from tests.support.rooms import Gateway, gateway, until


class Room(Server):
    """Does what its messages and URLs ask for; `env` is a log that outlives instances."""

    hibernate = False
    protocols = ("p1", "p2")

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.count = 0
        self.env["log"].append(f"construct {self.name}")

    async def on_start(self) -> None:
        self.env["log"].append("start")
        if self.env["fail_start"]:
            self.env["fail_start"] -= 1
            raise RuntimeError("not yet")
        await asyncio.sleep(self.env["start_takes"])
        self.env["log"].append("started")

    async def get_connection_tags(self, connection_id: str, request: UpgradeRequest) -> list[str]:
        query = httpx.URL(request.url).params
        return query.get("tags", "").split(",") if "tags" in query else []

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        self.env["log"].append(f"connect {connection.id}")
        match httpx.URL(request.url).params.get("do"):
            case "raise":
                raise RuntimeError("no entry")
            case "kick":
                connection.send("first")
                connection.close(4001, "kicked")
            case "slow":
                await asyncio.sleep(0.1)
                connection.send("welcome")
            case "reset":
                self.ctx.abort("as told")
            case "headers":
                connection.send(json.dumps(dict(request.headers)))

    async def on_message(self, connection: Connection, message: Frame) -> None:
        self.count += 1
        match message:
            case "who":
                open_ones = [one.id for one in self.get_connections()]
                connection.send(json.dumps([self.name, connection.id, connection.uri, connection.tags, open_ones]))
            case "raise":
                raise RuntimeError("handler")
            case "count":
                connection.send(f"count {self.count}")
            case "state":
                connection.send(json.dumps(connection.set_state(lambda last: (last or 0) + 1)))
            case "too much":
                connection.set_state("kept")
                with pytest.raises(LimitExceeded):
                    connection.set_state("x" * 20_000)
                connection.send(json.dumps(connection.state))
            case "long reason":
                with pytest.raises(UsageError):
                    connection.close(1000, "x" * 130)
                connection.send("raised")
            case "increment":
                value = (await self.ctx.storage.get("n") or 0) + 1
                await self.ctx.storage.put("n", value)
                connection.send(str(value))
            case str() if message.startswith("wait "):
                await asyncio.sleep(float(message[5:]))
                connection.send(message)
            case str() if message.startswith("say "):
                self.broadcast(message[4:])
            case str() if message.startswith("to all but "):
                self.broadcast("for the others", without=message[11:].split(","))
            case str() if message.startswith("tagged "):
                connection.send(json.dumps([one.id for one in self.get_connections(message[7:])]))
            case "other room":
                response = await self.parties["chat-room2"].get("elsewhere").fetch("/sub/p", method="POST", body=b"x")
                connection.send(await response.text())
            case "bad path":
                with pytest.raises(ValueError, match="Path must start with /"):
                    await self.parties["main"].get("elsewhere").fetch("sub")
                connection.send("raised")
            case "alarm":
                await self.ctx.storage.set_alarm(self.env["clock"].unix_ms() + 60_000)
                connection.send("set")
            case _:
                connection.send(message)

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        connection.send("into the void")
        listed = connection in list(self.get_connections())
        self.env["log"].append(("close", connection.id, code, reason, was_clean, listed))

    async def on_error(self, connection: Connection, error: str) -> None:
        self.env["log"].append(("error", error))

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        if request.url.endswith("/teapot"):
            error = RuntimeError("secret detail")
            error.code = 418  # type: ignore[attr-defined]
            raise error
        if request.url.endswith("/raise"):
            raise RuntimeError("secret detail")
        return HttpResponse.of([self.name, request.method, request.url, dict(request.headers)])

    async def on_alarm(self) -> None:
        self.env["log"].append(f"alarm in {self.name}")
        self.broadcast("alarm")

    @staticmethod
    async def on_before_connect(request: HttpRequest, lobby: Lobby) -> HttpRequest | HttpResponse | Close | None:
        if lobby.name == "shut":
            return Close(4403, "closed")
        if "refuse" in request.url:
            return HttpResponse.of("closed", 403, {"x-why": lobby.name})
        if "throw" in request.url:
            raise RuntimeError("who are you")
        if "rewrite" in request.url:
            return HttpRequest(request.url.replace("_pk=theirs", "_pk=ours"), headers=(("x-added", "1"),))
        return None

    @staticmethod
    async def on_before_request(request: HttpRequest, lobby: Lobby) -> HttpRequest | HttpResponse | None:
        if "refuse" in request.url:
            return HttpResponse.of("closed", 403)
        return None


class Sleeper(Room):
    hibernate = True
    ordered = True
    replace_duplicates = True


class Parties:
    """The objects side: rooms of three parties."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.env: dict[str, Any] = {"log": [], "fail_start": 0, "start_takes": 0.0, "clock": self.clock}
        self._folder = folder
        self._cors: bool = False
        self.main: type[Server] = Room

    def fill(self, connections: Connections) -> ObjectHost:
        self.drivers = LocalDrivers(self._folder, connections=connections, clock=self.clock)
        self.host = ObjectHost(self.drivers.ports, secret=b"0123456789abcdef")
        self.routes = PartyRoutes(
            self.host, {"main": self.main, "chat-room2": Room, "sleeper": Sleeper}, env=self.env, cors=self._cors
        )
        self.host.start()
        return self.host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.routes(scope, receive, send)

    def object_of(self, path: str) -> ObjectId:
        raise NotImplementedError

    async def sleep(self) -> None:
        for namespace in self.host.namespaces.values():
            for room in ("r", "elsewhere"):
                await self.host.force_hibernate(namespace.id_from_name(room))
        for key in list(self.host.awake()):
            namespace, _, digest = key.partition("/")
            await self.host.force_hibernate(self.host.namespaces[namespace].id_from_string(digest))

    async def close(self) -> None:
        await self.host.stop()
        self.drivers.close()


class World:
    def __init__(self, running: Gateway, parties: Parties) -> None:
        self.running = running
        self.parties = parties
        self.log: list[Any] = parties.env["log"]
        self.connect = running.connect

    async def get(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.running.port}") as client:
            return await client.request(method, path, **options)

    async def logged(self, what: Any) -> None:
        await until(lambda: what in self.log)

    async def advance(self, seconds: float) -> None:
        async def settle() -> None:
            await asyncio.sleep(0.01)
            await self.parties.host.settle()

        await self.parties.clock.advance(seconds, settle)
        await settle()


@pytest.fixture
def enter(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def enter(*, cors: bool = False, main: type[Server] = Room, **options: Any) -> AsyncIterator[World]:
        parties = Parties(tmp_path / "data")
        parties._cors = cors
        parties.main = main
        async with gateway(clock=parties.clock, side=parties, application=parties, **options) as running:
            yield World(running, parties)

    return enter


@pytest.fixture
async def world(enter: Callable[..., Any]) -> AsyncIterator[World]:
    async with enter() as world:
        yield world


async def ask(client: ClientConnection, message: str) -> Any:
    await client.send(message)
    return json.loads(await client.recv())


async def status_of(connecting: Any) -> int:
    with pytest.raises(InvalidStatus) as refused:
        async with connecting:
            pass
    return int(refused.value.response.status_code)


class TestAddresses:
    async def test_01_04_06_07_urls_name_rooms_and_connections(self, world: World) -> None:
        for path, name, connection_id in [
            ("/party/r?_pk=one&_pk=two", "r", "one"),
            ("/parties/main/r?_pk=three", "r", "three"),
            ("//parties/main/a%2Fb?_pk=x", "a%2Fb", "x"),
            ("/parties/chat-room2/r/sub?x=1&_pk=y", "r", "y"),
        ]:
            async with world.connect(path) as client:
                answer = await ask(client, "who")
                assert answer[:2] == [name, connection_id]
                assert answer[2].endswith(path)
        async with world.connect("/parties/main/r?_pk=") as client:
            assert len((await ask(client, "who"))[1]) == 21

    async def test_02_03_what_is_no_room(self, world: World) -> None:
        assert await status_of(world.connect("/parties/nope/r")) == 400
        assert (await world.get("/parties/nope/r")).status_code == 400
        for path in ("/parties/main", "/parties/main/", "/elsewhere"):
            response = await world.get(path)
            assert (response.status_code, response.text) == (404, "Not found")

    async def test_05_39_a_room_sees_the_whole_url_and_no_reserved_headers(self, world: World) -> None:
        headers = {"X-PartyKit-Props": "{}", "X-Mine": "1"}
        name, method, url, seen = (await world.get("/parties/main/r/sub?x=%20", "PUT", headers=headers)).json()
        assert (name, method) == ("r", "PUT")
        assert url.endswith("/parties/main/r/sub?x=%20")
        assert seen["x-mine"] == "1"
        assert "x-partykit-props" not in seen
        async with world.connect("/party/r?do=headers", additional_headers=headers) as client:
            seen = json.loads(await client.recv())
            assert seen["x-mine"] == "1"
            assert "x-partykit-props" not in seen


class TestBeforeTheRoom:
    async def test_09_10_a_hook_refuses_with_its_response_or_401(self, world: World) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with world.connect("/parties/main/refuse"):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["x-why"], response.body) == (403, "refuse", b"closed")
        with pytest.raises(InvalidStatus) as thrown:
            async with world.connect("/parties/main/throw"):
                pass
        assert (thrown.value.response.status_code, thrown.value.response.body) == (401, b"who are you")
        assert world.log == []

    async def test_11_a_hook_rewrites_url_and_headers(self, world: World) -> None:
        async with world.connect("/parties/main/rewrite?_pk=theirs&do=headers") as client:
            assert json.loads(await client.recv()) == {"x-added": "1"}
            assert (await ask(client, "who"))[1] == "ours"

    async def test_12_a_request_passes_or_is_refused(self, world: World) -> None:
        assert (await world.get("/parties/main/r")).status_code == 200
        assert (await world.get("/parties/main/refuse")).status_code == 403

    async def test_40_cors(self, enter: Callable[..., Any]) -> None:
        async with enter(cors=True) as world:
            preflight = await world.get("/parties/main/r", "OPTIONS")
            assert preflight.status_code == 200
            assert world.log == []
            for response in (preflight, await world.get("/parties/main/r"), await world.get("/parties/main/refuse")):
                assert response.headers["access-control-allow-origin"] == "*"
                assert response.headers["access-control-max-age"] == "86400"
            assert "access-control-allow-origin" not in (await world.get("/parties/nope/r")).headers


class TestLife:
    async def test_14_errors_of_requests_show_no_detail(self, world: World) -> None:
        for path, status in (("/raise", 500), ("/teapot", 418)):
            response = await world.get(f"/parties/main/r{path}")
            assert response.status_code == status
            assert "secret" not in response.text

    async def test_15_a_second_socket_waits_for_the_start(self, world: World) -> None:
        world.parties.env["start_takes"] = 0.1
        async with world.connect("/party/r?_pk=a"), world.connect("/party/r?_pk=b"):
            assert world.log == ["construct r", "start", "started", "connect a", "connect b"]

    async def test_16_a_start_that_fails_is_tried_again(self, world: World) -> None:
        world.parties.env["fail_start"] = 2
        assert [(await world.get("/parties/main/r")).status_code for _ in range(3)] == [500, 500, 200]

    async def test_17_the_101_comes_after_on_connect_and_messages_after_that(self, world: World) -> None:
        async with world.connect("/party/r?do=slow") as client:
            await client.send("echo")
            assert [await client.recv(), await client.recv()] == ["welcome", "echo"]

    async def test_18_a_connect_that_fails_is_1011_and_lists_nobody(self, world: World) -> None:
        async with (
            world.connect("/party/r?_pk=watcher") as watcher,
            world.connect("/party/r?do=raise&_pk=bad") as client,
        ):
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "on_connect failed")
            assert (await ask(watcher, "who"))[4] == ["watcher"]

    async def test_27_messages_then_a_close_inside_on_connect(self, world: World) -> None:
        for party in ("main", "sleeper"):
            async with world.connect(f"/parties/{party}/r?do=kick") as client:
                assert await client.recv() == "first"
                with pytest.raises(ClientClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4001

    async def test_19_20_handlers_overlap_unless_the_class_orders_them(self, world: World) -> None:
        async with world.connect("/party/r") as client:
            await client.send("raise")
            for message in ("wait 0.2", "wait 0.1", "wait 0"):
                await client.send(message)
            assert [await client.recv() for _ in range(3)] == ["wait 0", "wait 0.1", "wait 0.2"]
        async with world.connect("/parties/sleeper/r") as client:
            for message in ("wait 0.1", "wait 0.05", "wait 0"):
                await client.send(message)
            assert [await client.recv() for _ in range(3)] == ["wait 0.1", "wait 0.05", "wait 0"]

    async def test_21_no_update_is_lost(self, world: World) -> None:
        async with world.connect("/party/r") as client:
            for _ in range(5):
                await client.send("increment")
            assert sorted([await client.recv() for _ in range(5)]) == ["1", "2", "3", "4", "5"]

    async def test_26_a_hibernating_room_forgets_its_attributes_and_keeps_its_connections(self, world: World) -> None:
        async with world.connect("/parties/sleeper/r?_pk=me&tags=red") as client:
            await ask(client, "state")
            await client.send("count")
            assert await client.recv() == "count 2"
            await world.advance(11)
            assert world.parties.host.awake() == {}
            await client.send("count")
            assert await client.recv() == "count 1"
            assert await ask(client, "state") == 2
            name, connection_id, uri, tags, _ = await ask(client, "who")
            assert (name, connection_id, tags) == ("r", "me", ["me", "red"])
            assert uri.endswith("/parties/sleeper/r?_pk=me&tags=red")
            assert world.log.count("started") == 2
            assert world.log.count("connect me") == 1

    async def test_a_room_that_does_not_hibernate_keeps_its_attributes_while_somebody_is_there(
        self, world: World
    ) -> None:
        async with world.connect("/party/r") as client:
            await client.send("count")
            assert await client.recv() == "count 1"
            await world.advance(1_000)
            await client.send("count")
            assert await client.recv() == "count 2"
        await until(lambda: any(entry[0] == "close" for entry in world.log))
        await world.advance(11)
        assert world.parties.host.awake() == {}

    async def test_36_an_alarm_wakes_the_room_by_its_name(self, world: World) -> None:
        async with world.connect("/parties/sleeper/r") as client:
            await client.send("alarm")
            assert await client.recv() == "set"
            await world.advance(11)
            assert world.parties.host.awake() == {}
            await world.advance(60)
            assert await client.recv() == "alarm"
            assert "alarm in r" in world.log

    async def test_38_a_room_asks_another(self, world: World) -> None:
        async with world.connect("/party/r") as client:
            name, method, url, _ = await ask(client, "other room")
            assert (name, method) == ("elsewhere", "POST")
            assert url.endswith("/parties/chat-room2/elsewhere/sub/p")
            await client.send("bad path")
            assert await client.recv() == "raised"


class TestConnections:
    async def test_22_42_the_same_id_twice(self, world: World) -> None:
        async with world.connect("/party/r?_pk=twin") as second:
            async with world.connect("/party/r?_pk=twin") as first:
                await first.send("to all but nobody")
                assert (await first.recv(), await second.recv()) == ("for the others",) * 2
            await until(lambda: any(entry[:2] == ("close", "twin") for entry in world.log))
            assert (await ask(second, "who"))[4] == ["twin"]
            await second.send("to all but nobody")
            assert await second.recv() == "for the others"

    async def test_a_class_may_replace_duplicates(self, world: World) -> None:
        async with world.connect("/parties/sleeper/r?_pk=twin") as old, world.connect("/parties/sleeper/r?_pk=twin"):
            with pytest.raises(ClientClosed) as closed:
                await old.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "replaced")

    async def test_23_a_broadcast_without_an_id_spares_all_that_have_it(self, world: World) -> None:
        async with (
            world.connect("/party/r?_pk=a") as one,
            world.connect("/party/r?_pk=a") as two,
            world.connect("/party/r?_pk=b&tags=a") as three,
        ):
            await three.send("to all but a")
            assert await three.recv() == "for the others"
            for client in (one, two):
                await client.send("only this")
                assert await client.recv() == "only this"

    async def test_24_tags(self, world: World) -> None:
        async with world.connect("/party/r?_pk=a&tags=red,blue,red") as client:
            assert (await ask(client, "who"))[3] == ["a", "red", "blue"]
            for tag in ("red", "a"):
                assert await ask(client, f"tagged {tag}") == ["a"]
            assert await ask(client, "tagged green") == []
            for bad in (",".join(f"t{i}" for i in range(12)), "x" * 300, "a,,b"):
                async with world.connect(f"/party/r?_pk=bad&tags={bad}") as refused:
                    with pytest.raises(ClientClosed) as closed:
                        await refused.recv()
                    assert closed.value.rcvd is not None
                    assert closed.value.rcvd.code == 1011
            assert (await ask(client, "who"))[4] == ["a"]

    async def test_25_33_limits_raise_and_change_nothing(self, world: World) -> None:
        async with world.connect("/party/r") as client:
            assert await ask(client, "too much") == "kept"
            await client.send("long reason")
            assert await client.recv() == "raised"

    async def test_28_29_30_closes(self, world: World) -> None:
        async with world.connect("/party/r?_pk=a") as client:
            await client.close(4321, "foo")
            assert client.close_code == 4321
        await world.logged(("close", "a", 4321, "foo", True, False))
        async with world.connect("/party/r?_pk=b") as client:
            client.transport.write(b"\x88\x80abcd")
            await client.wait_closed()
        await world.logged(("close", "b", 1005, "", True, False))
        async with world.connect("/party/r?_pk=c") as client:
            client.transport.abort()
        await world.logged(("close", "c", 1006, "WebSocket disconnected without sending Close frame.", False, False))

    async def test_a_full_room_is_503_and_nobody_in_it_notices(self, enter: Callable[..., Any]) -> None:
        async with enter(max_connections=1) as world, world.connect("/party/r?_pk=a") as client:
            assert await status_of(world.connect("/party/r?_pk=b")) == 503
            assert world.running.manager.refused["connections_per_room"] == 1
            assert await status_of(world.connect("/party/r?_pk=b&tags=a,,b")) == 503
            assert (await ask(client, "who"))[4] == ["a"]

    async def test_31_a_protocol_error_is_on_error_alone(self, world: World) -> None:
        async with world.connect("/party/r?_pk=a") as client:
            client.transport.write(b"\x83\x80abcd")
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1002
        await world.logged(("error", "1002 invalid opcode"))
        assert not [entry for entry in world.log if entry[0] == "close"]

    async def test_34_a_subprotocol_of_the_class_is_agreed(self, world: World) -> None:
        async with world.connect("/party/r", subprotocols=["x", "p2", "p1"]) as client:
            assert client.subprotocol == "p2"

    async def test_an_address_has_a_number_of_connections_over_all_rooms(self, enter: Callable[..., Any]) -> None:
        async with enter(max_per_address=2) as world, world.connect("/party/r?_pk=a") as first:
            async with world.connect("/party/elsewhere?_pk=b"):
                assert await status_of(world.connect("/party/r?_pk=c")) == 429
                assert world.running.manager.refused["connections_per_address"] == 1
                assert (await ask(first, "who"))[4] == ["a"]
            await world.logged(("close", "b", 1000, "", True, False))
            async with world.connect("/party/r?_pk=d") as again:  # one has left: there is place for another
                assert (await ask(again, "who"))[4] == ["a", "d"]

    async def test_handshakes_under_way_count_as_connections_of_their_address(self, enter: Callable[..., Any]) -> None:
        async with enter(max_per_address=2) as world:
            world.parties.env["start_takes"] = 0.2
            addresses = world.running.manager._addresses

            async def connect() -> int:
                try:
                    async with world.connect("/party/r"):
                        await until(lambda: world.running.manager.refused["connections_per_address"] == 3)
                        return 101
                except InvalidStatus as refused:
                    return int(refused.response.status_code)

            assert sorted(await asyncio.gather(*(connect() for _ in range(5)))) == [101, 101, 429, 429, 429]
            await until(lambda: len(addresses) == 0)

            world.parties.env["fail_start"] = 1  # neither a refused one nor one whose client leaves is counted on
            assert await status_of(world.connect("/party/refusing")) == 500
            _, leaving = await asyncio.open_connection("127.0.0.1", world.running.port)
            leaving.write(
                b"GET /party/waiting HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await until(lambda: len(addresses) == 1)
            leaving.close()
            await until(lambda: len(addresses) == 0)

    async def test_a_reset_during_a_handshake_gives_the_address_its_place_back(self, enter: Callable[..., Any]) -> None:
        async with enter(max_per_address=1) as world:
            for _ in range(3):
                assert await status_of(world.connect("/party/r?do=reset")) == 503
            async with world.connect("/party/r"):
                pass


class Refuses(Room):
    refuse_with_close = True


class TestRefusals:
    async def test_a_class_refuses_with_codes_that_pages_can_read(self, enter: Callable[..., Any]) -> None:
        async with enter(main=Refuses, max_connections=1) as world, world.connect("/party/r?_pk=a") as member:
            for path, code, reason in [
                ("/party/refuse", 4403, "closed"),
                ("/party/throw", 4401, "who are you"),
                ("/party/r", 4503, "The room is full."),
            ]:
                async with world.connect(path) as client:
                    with pytest.raises(ClientClosed) as closed:
                        await client.recv()
                    assert closed.value.rcvd is not None
                    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
            assert (await ask(member, "who"))[4] == ["a"]
            assert (await world.get("/parties/main/refuse")).status_code == 403

    async def test_a_room_whose_start_fails_refuses_likewise(self, enter: Callable[..., Any]) -> None:
        async with enter(main=Refuses) as world:
            world.parties.env["fail_start"] = 1
            async with world.connect("/party/r") as client:
                with pytest.raises(ClientClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4500
                assert "not yet" not in closed.value.rcvd.reason


class Streams(Server):
    """Sends back what comes, piece by piece."""

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield f"{request.method};".encode()
            async for piece in request.stream():
                yield piece
            yield b";end"

        return HttpResponse(pieces(), 201, (("x-method", request.method),))


class TestRequestsThroughAServer:
    async def test_every_method_streams_both_ways(self, enter: Callable[..., Any]) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            yield b"second"

        async with enter(main=Streams) as world:
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
                response = await world.get("/parties/main/r", method, content=body())
                assert (response.status_code, response.headers["x-method"]) == (201, method)
                assert response.text == f"{method};firstsecond;end"
            response = await world.get("/parties/main/r", "HEAD")
            assert (response.status_code, response.headers["x-method"], response.text) == (201, "HEAD", "")

    async def test_a_piece_reaches_the_other_end_before_the_next_is_sent(self, enter: Callable[..., Any]) -> None:
        async with enter(main=Streams) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.running.port)
            writer.write(b"POST /parties/main/r HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            async with asyncio.timeout(10):
                await reader.readuntil(b"POST;")
                for number in range(20):
                    piece = b"%03d" % number
                    writer.write(b"3\r\n" + piece + b"\r\n")
                    await reader.readuntil(piece)
                writer.write(b"0\r\n\r\n")
                await reader.readuntil(b";end")
            writer.close()
            await writer.wait_closed()

    async def test_a_client_that_leaves_while_both_ways_stream_is_no_error(
        self, enter: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with enter(main=Streams) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.running.port)
            writer.write(b"POST /parties/main/r HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\none")
            async with asyncio.timeout(10):
                await reader.readuntil(b"one")
            writer.transport.abort()
            await world.advance(1)
            assert (await world.get("/parties/main/r", "PUT")).status_code == 201
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
