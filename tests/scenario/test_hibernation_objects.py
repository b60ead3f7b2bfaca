"""The whole room: real objects behind real sockets, time moved by hand, the two sides joined directly and by a link.

W- ids are those of the objects contract; the clients are the `websockets` package over TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.exceptions import InvalidStatus

from hibernation.manager import SlowPolicy
from objects.clock import ManualClock
from objects.embedded import LocalDrivers
from objects.errors import LimitExceeded, ObjectReset, StorageFull, TooManyConnections, UsageError
from objects.host import ObjectHost
from objects.http import HttpResponse
from objects.ids import ObjectId
from objects.limits import Limits
from objects.ports import AutoResponse, Connections, ReadyState
from objects.state import AlarmInfo, DurableObject, ObjectState
from objects.websocket import WebSocket
from tests.support.rooms import Gateway, gateway, until
from tests.unit.objects.fakes import commits_stalled

Log = list[Any]


def refusals(*attempts: Callable[[], object]) -> list[str]:
    said = []
    for attempt in attempts:
        with pytest.raises(UsageError) as refused:
            attempt()
        said.append(str(refused.value))
    return said


class Room(DurableObject):
    """Logs what happens into `env`, which outlives its instances. Messages are orders, see `web_socket_message`."""

    def __init__(self, ctx: ObjectState, env: Log) -> None:
        super().__init__(ctx, env)
        self.seen = 0
        env.append("constructed")
        if "fail in the constructor" in env:
            for ws in ctx.get_web_sockets():
                ws.send("never")
            raise RuntimeError("constructor")
        if "fail in a section" in env:
            ctx.block_concurrency_while(self._fail_later)

    async def _fail_later(self) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("section")

    async def web_socket_connect(self, ws: WebSocket, request: Any) -> HttpResponse | None:
        query = request.url.partition("?")[2]
        tags = [tag for tag in query.split(",") if tag]
        if query == "standard":
            ws.accept()
            self.ctx.wait_until(self._read(ws))
            return None
        try:
            self.ctx.accept_web_socket(ws, tags, request.protocols[0] if request.protocols else None)
        except TooManyConnections:
            return HttpResponse.of("full", 503)
        return None

    async def _read(self, ws: WebSocket) -> None:
        async for message in ws:
            ws.send(f"alone {message!s}")

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        self.seen += 1
        self.env.append(message)
        match message:
            case "raise":
                raise RuntimeError("handler")
            case "close":
                ws.close(4000, "asked")
            case "wait":
                await self.ctx.sleep(5)
            case "half":
                self.env.append(refusals(lambda: ws.send("half \ud83d"), lambda: self.ctx.broadcast("\ud83d")))
            case "half behind a gate":
                self.ctx.storage.kv.put("key", "value")
                self.env.append(refusals(lambda: ws.send("half \ud83d"), lambda: self.ctx.broadcast("\ud83d")))
            case "half elsewhere":
                self.env.append(
                    refusals(
                        lambda: ws.close(4000, "\ud83d"),
                        lambda: self.ctx.broadcast("text", "\ud83d"),
                        lambda: self.ctx.set_web_socket_auto_response(AutoResponse("\ud83d", "no")),
                    )
                )
            case "write":
                await self.ctx.storage.put("count", (await self.ctx.storage.get("count") or 0) + 1)
            case "timer":
                self.ctx.set_timeout(lambda: None, 15)
            case "alarm":
                await self.ctx.storage.set_alarm(self.env[0].unix_ms() + 60_000)
            case "attach":
                value = {"n": [1]}
                ws.serialize_attachment(value)
                value["n"].append(2)
            case "too much":
                ws.serialize_attachment({"kept": True})
                with pytest.raises(LimitExceeded):
                    ws.serialize_attachment("x" * 16_400)
        ws.send(f"{self.seen} {message!s}")

    async def web_socket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        self.env.append(("closed", code, was_clean, ws in self.ctx.get_web_sockets()))

    async def web_socket_error(self, ws: WebSocket, error: str) -> None:
        ws.send("ignored")
        self.env.append(("error", error))

    async def alarm(self, info: AlarmInfo) -> None:
        self.env.append("alarm")
        self.ctx.broadcast("alarm")

    async def say(self, text: str, tag: str | None = None) -> int:
        self.ctx.broadcast(text, tag)
        return self.ctx.web_socket_count(tag)

    async def written(self) -> int:
        return await self.ctx.storage.get("count") or 0

    async def abort(self) -> None:
        self.ctx.abort("asked to")

    async def answer(self, *pairs: list[str]) -> None:
        self.ctx.set_web_socket_auto_response(*(AutoResponse(*pair) for pair in pairs))

    async def limit_events(self, timeout_ms: int) -> None:
        self.ctx.set_hibernatable_web_socket_event_timeout(timeout_ms)

    async def facts(self) -> list[Any]:
        ctx = self.ctx
        return [
            [
                ctx.get_tags(ws),
                ws.deserialize_attachment(),
                None if ws.info is None else ws.info.protocol,
                int(ws.ready_state),
                ctx.get_web_socket_auto_response_timestamp(ws),
            ]
            for ws in ctx.get_web_sockets()
        ]

    async def send_to_closing(self) -> str:
        (ws,) = self.ctx.get_web_sockets()
        try:
            ws.send("late")
        except UsageError as error:
            return str(error)
        return "sent"

    async def write_then_send_then_close(self) -> None:
        (ws,) = self.ctx.get_web_sockets()
        await self.ctx.storage.put("k", 1)
        ws.send("written")
        ws.close(4002)


class Objects:
    """The objects side: a host of `Room`s, one per path."""

    def __init__(self, folder: Path, clock: ManualClock, limits: Limits | None = None) -> None:
        self.clock = clock
        self.log: Log = [clock]
        self._folder = folder
        self._limits = limits

    def fill(self, connections: Connections) -> ObjectHost:
        self.drivers = LocalDrivers(self._folder, connections=connections, clock=self.clock)
        self.host = ObjectHost(self.drivers.ports, secret=b"0123456789abcdef", limits=self._limits)
        self.namespace = self.host.register("rooms", Room, self.log)
        self.host.start()
        return self.host

    def object_of(self, path: str) -> ObjectId:
        return self.namespace.id_from_name(path)

    async def sleep(self) -> None:
        await self.host.force_hibernate(self.object_of("/room"))

    async def close(self) -> None:
        await self.host.stop()
        self.drivers.close()


class Setup:
    """A test's handle on everything."""

    def __init__(self, room: Gateway, objects: Objects) -> None:
        self.room = room
        self.objects = objects
        self.log = objects.log
        self.connect = room.connect
        self.stub = objects.namespace.get_by_name("/room")

    def awake(self) -> int:
        return len(self.objects.host.awake())

    async def advance(self, seconds: float) -> None:
        """Move time, with pauses in which the network works."""

        async def settle() -> None:
            await asyncio.sleep(0.01)
            await self.objects.host.settle()

        await self.objects.clock.advance(seconds, settle)
        await settle()

    async def logged(self, what: Any, times: int = 1) -> None:
        await until(lambda: self.log.count(what) >= times)


Enter = Callable[..., Any]


@pytest.fixture(params=["direct", "piped"])
def enter(request: pytest.FixtureRequest, tmp_path: Path) -> Enter:
    @asynccontextmanager
    async def enter(limits: Limits | None = None, **options: Any) -> AsyncIterator[Setup]:
        clock = ManualClock()
        objects = Objects(tmp_path / "data", clock, limits)
        async with gateway(piped=request.param == "piped", clock=clock, side=objects, **options) as room:
            yield Setup(room, objects)

    return enter


@pytest.fixture
async def world(enter: Enter) -> AsyncIterator[Setup]:
    async with enter() as setup:
        yield setup


async def ended(client: ClientConnection) -> int | None:
    """The code of the server's close frame once the connection has ended; None for none."""
    with pytest.raises(ClientClosed) as closed:
        await client.recv()
    return closed.value.rcvd.code if closed.value.rcvd else None


async def _until_closed(client: ClientConnection) -> AsyncIterator[str | bytes]:
    try:
        async for message in client:
            yield message
    except ClientClosed:
        pass


class TestSleepAndWake:
    async def test_w01_w02_w03_ten_idle_seconds_and_the_next_event(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.send("write")
            assert await client.recv() == "1 write"
            await world.advance(9.5)
            assert world.awake() == 1
            await world.advance(1)
            assert world.awake() == 0
            assert world.room.table.counters()["rows"] == 1
            assert await world.stub.say("called") == 1
            assert await client.recv() == "called"
            await world.advance(11)
            await client.send("write")
            assert await client.recv() == "1 write"
            assert world.log.count("constructed") == 3
            assert await world.stub.written() == 2

    async def test_w04_w26_all_that_belongs_to_the_connection_survives_two_cycles(self, world: Setup) -> None:
        async with world.connect("/room?a,b", subprotocols=["p1"]) as client:
            await client.send("attach")
            await client.recv()
            for _ in range(2):
                await world.advance(11)
                assert world.awake() == 0
                ((tags, attachment, protocol, state, at),) = await world.stub.facts()
                assert (tags, attachment, protocol, state, at) == (["a", "b"], {"n": [1]}, "p1", ReadyState.OPEN, None)
            await client.send("x")
            assert await client.recv() == "1 x"

    async def test_w05_an_abort_ends_the_clients_connection(self, world: Setup) -> None:
        async with world.connect() as client:
            await world.advance(11)
            with pytest.raises(ObjectReset, match="asked to"):
                await world.stub.abort()
            assert await ended(client) is None
            assert await world.stub.facts() == []

    @pytest.mark.parametrize("how", ["fail in the constructor", "fail in a section"])
    async def test_w06_w07_a_start_that_fails_sends_nothing_and_ends_every_socket(self, world: Setup, how: str) -> None:
        async with world.connect() as client, world.connect() as other:
            await world.advance(11)
            world.log.append(how)
            await client.send("anything")
            assert await ended(client) is None
            assert await ended(other) is None
            world.log.remove(how)
            assert await world.stub.facts() == []

    async def test_w16_sockets_that_came_at_the_same_instant_do_not_keep_it_awake(self, world: Setup) -> None:
        clients = await asyncio.gather(world.connect(), world.connect())
        await world.advance(11)
        assert world.awake() == 0
        for client in clients:
            await client.close()

    async def test_w27_w28_what_keeps_it_awake(self, world: Setup) -> None:
        async with world.connect("/room?standard") as alone:
            await alone.send("hi")
            assert await alone.recv() == "alone hi"
            await world.advance(30)
            assert world.awake() == 1
        async with world.connect() as client:
            await client.send("timer")
            await client.recv()
            await world.advance(14)
            assert world.awake() == 1
            await world.advance(10)
            assert world.awake() == 1
            await world.advance(2)
            assert world.awake() == 0

    async def test_w30_an_alarm_wakes_it_and_the_sockets_are_there(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.send("alarm")
            await client.recv()
            await world.advance(11)
            assert world.awake() == 0
            await world.advance(60)
            assert await client.recv() == "alarm"
            assert world.log.count("constructed") == 2

    async def test_a_new_class_takes_over_and_no_client_notices(self, world: Setup) -> None:
        class Better(Room):
            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                ws.send("better")

        async with world.connect("/room?kept") as client:
            await client.send("x")
            assert await client.recv() == "1 x"
            await world.objects.host.replace("rooms", Better)
            await client.send("x")
            assert await client.recv() == "better"
            ((tags, *_),) = await world.stub.facts()
            assert tags == ["kept"]


class TestMessages:
    async def test_w20_a_handler_that_raises_costs_neither_socket_nor_next_message(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.send("raise")
            await client.send("next")
            assert await client.recv() == "2 next"

    async def test_w21_a_handler_that_waits_does_not_hold_up_the_next(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.send("wait")
            await client.send("quick")
            assert await client.recv() == "2 quick"
            await world.advance(6)
            assert await client.recv() == "2 wait"

    async def test_w22_frames_of_a_sleeping_object_keep_their_order(self, world: Setup) -> None:
        async with world.connect() as client:
            await world.advance(11)
            for i in range(20):
                await client.send(str(i))
            assert [await client.recv() for _ in range(20)] == [f"{i + 1} {i}" for i in range(20)]

    async def test_w14_a_send_and_a_close_wait_for_the_commit(self, world: Setup) -> None:
        async with world.connect() as client:
            with commits_stalled(world.objects) as go:  # type: ignore[arg-type]
                call = asyncio.ensure_future(world.stub.write_then_send_then_close())
                await asyncio.sleep(0.05)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.recv()
                go()
                await call
            assert await client.recv() == "written"
            assert await ended(client) == 4002

    async def test_w14_after_a_commit_that_fails_neither_ever_leaves(self, world: Setup) -> None:
        async with world.connect() as client:
            with commits_stalled(world.objects) as go:  # type: ignore[arg-type]
                call = asyncio.ensure_future(world.stub.write_then_send_then_close())
                await asyncio.sleep(0.05)
                go(StorageFull("no space"))
                with pytest.raises(StorageFull):
                    await call
            assert await ended(client) is None

    async def test_w08_to_w12_auto_responses_and_the_gate(self, world: Setup) -> None:
        async with world.connect() as client:
            await world.stub.answer(["ping", "pong"])
            await world.advance(11)
            await client.send("ping")
            assert await client.recv() == "pong"
            assert world.awake() == 0
            ((*_, at),) = await world.stub.facts()
            assert at is not None
            with commits_stalled(world.objects) as go:  # type: ignore[arg-type]
                call = asyncio.ensure_future(world.stub.write_then_send_then_close())
                await asyncio.sleep(0.05)
                await client.send("ping")
                await asyncio.sleep(0.05)
                go()
                await call
            assert await client.recv() == "written"
            await ended(client)  # no reply after our close

    async def test_half_a_surrogate_pair_is_refused_and_named_and_costs_nothing(self, world: Setup) -> None:
        async with world.connect() as client:
            for order in ("half", "half behind a gate", "half elsewhere"):
                await client.send(order)
                assert (await client.recv()).endswith(order)
        said = [entry for entry in world.log if isinstance(entry, list)]
        messages = [f"a message with a lone surrogate at {at} is not text" for at in (5, 0)]
        named = ("a close reason", "a tag", "an auto-response")
        rest = [f"{what} with a lone surrogate at 0 is not text" for what in named]
        assert said == [messages, messages, rest]

    async def test_w25_an_attachment_over_the_limit_leaves_the_old_one(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.send("too much")
            await client.recv()
            ((_, attachment, *_),) = await world.stub.facts()
            assert attachment == {"kept": True}

    async def test_w32_an_event_over_its_time_resets_the_object(self, world: Setup) -> None:
        async with world.connect() as client:
            await world.stub.limit_events(1000)
            await world.advance(11)
            await client.send("wait")
            await world.logged("wait")
            await world.advance(2)
            assert await ended(client) is None


class TestEnds:
    async def test_w17_w18_a_close_is_seen_once_and_listed_only_in_its_handler(self, world: Setup) -> None:
        async with world.connect() as client:
            await client.close(4321, "bye")
        await world.logged(("closed", 4321, True, True))
        assert await world.stub.facts() == []
        async with world.connect() as client:
            await world.advance(11)
            client.transport.abort()
            await world.logged(("closed", 1006, False, True))
        assert await world.stub.facts() == []

    async def test_w19_after_our_close_a_send_raises_in_the_next_life_too(self, world: Setup) -> None:
        async with world.connect() as client:
            client.transport.pause_reading()  # so that it does not answer
            await client.send("close")
            await world.logged("close")
            await world.objects.sleep()
            assert await world.stub.send_to_closing() == "send after close"
            client.transport.resume_reading()
            assert await ended(client) == 4000

    async def test_an_error_is_told_and_its_send_ignored(self, world: Setup) -> None:
        async with world.connect() as client:
            client.transport.write(b"\xc1\x80abcd")
            assert await ended(client) == 1002
        await world.logged(("error", "1002 reserved bits must be 0"))
        await world.logged(("closed", 1006, False, True))

    async def test_w15_an_overloaded_object_closes_this_connection_alone(self, enter: Enter) -> None:
        async with enter(Limits(events_per_10_s=5)) as world:  # noqa: SIM117 - the inner ones need `world`
            async with world.connect("/room?a") as client, world.connect("/room?a") as other:
                for i in range(5):
                    await client.send(str(i))
                answered = [message async for message in _until_closed(client)]
                assert len(answered) < 5
                assert client.close_code == 1013
                await world.advance(11)
                assert await world.stub.say("still here", "a") == 1
                assert await other.recv() == "still here"

    async def test_w24_one_connection_too_many_is_refused(self, enter: Enter) -> None:
        async with enter(max_connections=2) as world, world.connect("/room?a"), world.connect("/room?a"):
            with pytest.raises(InvalidStatus) as refused:
                async with world.connect("/room?a"):
                    pass
            assert refused.value.response.status_code == 503
            assert await world.stub.say("x", "a") == 2

    async def test_w33_w34_unsent_frames_and_a_close_survive_the_instance(self, enter: Enter) -> None:
        # More than the kernel takes; a peer has longer to answer the close than the time that passes here.
        options = {"close_timeout": 10.0, "queue_bytes": 2**25, "slow": SlowPolicy(2**25)}
        async with enter(**options) as world, world.connect(max_queue=1, max_size=None) as client:
            client.transport.pause_reading()
            for _ in range(160):
                await world.stub.say("x" * 100_000)
            await client.send("close")
            await world.logged("close")
            await world.advance(2)
            await world.objects.sleep()
            assert world.awake() == 0
            table = world.room.service.table
            assert sum(table.buffered(handle) for handle in table.handles()) > 0
            await asyncio.sleep(0.1)  # the table looks at its deadlines
            client.transport.resume_reading()
            assert [len(await client.recv()) for _ in range(160)] == [100_000] * 160
            assert await ended(client) == 4000
