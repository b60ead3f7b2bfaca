"""Hibernating WebSockets as objects see them; names carry the ids of the behaviours in the objects contract (W-…)."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from objects.errors import LimitExceeded, ObjectReset, UsageError
from objects.ids import ObjectId
from objects.limits import Limits
from objects.ports import AutoResponse, Delivery, ReadyState, UpgradeRefused
from objects.state import AlarmInfo, DurableObject, ObjectState
from objects.websocket import WebSocket
from tests.unit.objects import conftest
from tests.unit.objects.fakes import FakeConnection, World, commits_stalled, spin, until

world = conftest.world

Log = list[Any]


class Room(DurableObject):
    """Notes what happens to it in `env`, which outlives its instances; tests replace its hooks."""

    def __init__(self, ctx: ObjectState, env: Log) -> None:
        super().__init__(ctx, env)
        self.messages = 0
        env.append("constructed")

    async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
        self.ctx.accept_web_socket(ws, ["all"])

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        self.messages += 1
        self.env.append((message, self.messages))
        ws.send(f"echo {message!r}")

    async def web_socket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        listed = ws in self.ctx.get_web_sockets()
        self.env.append(("closed", code, was_clean, listed))

    async def count(self) -> int:
        return len(self.ctx.get_web_sockets())

    async def say(self, text: str) -> None:
        for ws in self.ctx.get_web_sockets():
            ws.send(text)

    async def blockers(self) -> dict[str, int]:
        return self.ctx.hibernation_blockers()


class Setup:
    def __init__(self, world: World, cls: type[DurableObject] = Room) -> None:
        self.world = world
        self.log: Log = []
        self.namespace = world.serve(cls, self.log)
        self.id: ObjectId = self.namespace.id_from_name("room")
        self.stub = self.namespace.get(self.id)

    async def client(self) -> FakeConnection:
        return await self.world.connections.open(self.id)

    async def sleep(self) -> None:
        """Ten idle seconds; the object must be gone."""
        await self.world.advance(10.1)
        assert self.world.awake() == 0, self.world.host.awake()


@pytest.fixture(params=[False, True], ids=["queued", "at once"], autouse=True)
def way(request: pytest.FixtureRequest, world: World) -> None:
    """Everything here holds for both ways of a message to its handler."""
    world.connections.at_once = request.param


@pytest.fixture
async def room(world: World) -> Setup:
    return Setup(world)


class TestHibernation:
    async def test_w01_ten_idle_seconds_end_the_instance_and_keep_the_socket(self, room: Setup) -> None:
        client = await room.client()
        await client.send("hi")
        await room.world.advance(9.9)
        assert room.world.awake() == 1
        await room.world.advance(0.2)
        assert room.world.awake() == 0
        assert client.state is ReadyState.OPEN
        assert room.world.connections.attached == set()

    async def test_w02_a_call_wakes_it_and_finds_the_socket(self, room: Setup) -> None:
        client = await room.client()
        await room.sleep()
        assert await room.stub.count() == 1
        await room.stub.say("awake")
        assert client.received == ["awake"]
        assert room.log.count("constructed") == 2

    async def test_w03_a_frame_wakes_it_storage_is_kept_and_memory_is_not(self, room: Setup) -> None:
        client = await room.client()
        await client.send("a")
        await room.sleep()
        await client.send("b")
        assert room.log == ["constructed", ("a", 1), "constructed", ("b", 1)]
        assert client.received == ["echo 'a'", "echo 'b'"]

    async def test_w04_tags_attachment_and_protocol_survive_two_cycles(self, world: World) -> None:
        class Tagged(Room):
            async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
                self.ctx.accept_web_socket(ws, ["blue", "red"], protocol="chat")
                ws.serialize_attachment({"name": "ann"})

            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                assert ws.info is not None
                self.env.append((self.ctx.get_tags(ws), ws.deserialize_attachment(), ws.info.protocol))

        room = Setup(world, Tagged)
        client = await room.client()
        for _ in range(2):
            await room.sleep()
            await client.send("x")
        assert room.log[2::2] == [(["blue", "red"], {"name": "ann"}, "chat")] * 2

    async def test_w16_two_sockets_opened_at_the_same_instant_do_not_keep_it_awake(self, room: Setup) -> None:
        await asyncio.gather(room.client(), room.client())
        await room.sleep()
        assert await room.stub.count() == 2

    async def test_w28_a_pending_timer_keeps_it_until_ten_seconds_after(self, world: World) -> None:
        class Timed(Room):
            async def start_timer(self) -> None:
                self.ctx.set_timeout(lambda: self.env.append("fired"), 15)

        room = Setup(world, Timed)
        await room.stub.start_timer()
        await world.advance(14.9)
        assert world.host.awake() == {room.id.key: {"timer": 1}}
        await world.advance(0.2)
        assert "fired" in room.log
        await world.advance(9.8)
        assert world.awake() == 1
        await world.advance(0.3)
        assert world.awake() == 0

    async def test_w29_an_interval_never_cleared_is_evicted_at_the_sweep(self, world: World) -> None:
        class Ticking(Room):
            async def start_timer(self) -> None:
                self.ctx.set_interval(lambda: self.env.append("tick"), 20)

        room = Setup(world, Ticking)
        await room.stub.start_timer()
        await world.advance(60)
        assert world.awake() == 1
        await world.advance(82)
        assert world.awake() == 0
        assert 5 <= room.log.count("tick") <= 7

    async def test_w29_clients_hold_that_eviction_off(self, world: World) -> None:
        class Ticking(Room):
            async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
                self.ctx.accept_web_socket(ws)
                self.ctx.set_interval(lambda: None, 20)

        room = Setup(world, Ticking)
        await room.client()
        await world.advance(300)
        assert world.awake() == 1

    async def test_w30_a_future_alarm_does_not_keep_it_and_wakes_it_with_its_sockets(
        self,
        world: World,
    ) -> None:
        class Alarmed(Room):
            async def set(self) -> None:
                await self.ctx.storage.set_alarm(self.env[-1])

            async def alarm(self, info: AlarmInfo) -> None:
                self.env.append(("alarm", len(self.ctx.get_web_sockets()), self.ctx.id.name))

        room = Setup(world, Alarmed)
        client = await room.client()
        room.log.append(world.clock.unix_ms() + 60_000)
        await room.stub.set()
        await room.sleep()
        await world.advance(51)
        assert room.log[-1] == ("alarm", 1, "room")
        assert client.state is ReadyState.OPEN

    async def test_w31_forced_hibernation_waits_for_the_request_in_flight(self, world: World) -> None:
        go = asyncio.Event()

        class Slow(Room):
            async def slow(self) -> str:
                await go.wait()
                return "answer"

        room = Setup(world, Slow)
        call = room.stub.slow()
        await world.host.settle()
        forced = asyncio.ensure_future(world.host.force_hibernate(room.id))
        await world.host.settle()
        assert not forced.done()
        go.set()
        assert await call == "answer"
        assert await forced is True
        assert world.awake() == 0
        assert await world.host.force_hibernate(room.id) is False

    async def test_w33_w34_frames_are_handed_over_and_survive_any_teardown(self, room: Setup) -> None:
        # A slow client's unsent frames are the connections side's; the instance is free to go.
        client = await room.client()
        await room.stub.say("to a slow client")
        await room.world.host.force_hibernate(room.id)
        assert client.received == ["to a slow client"]

    async def test_an_event_during_the_countdown_starts_it_anew(self, room: Setup) -> None:
        client = await room.client()
        for _ in range(3):
            await room.world.advance(9)
            await client.send("x")
        assert room.log.count("constructed") == 1

    async def test_an_auto_response_does_not_reset_the_countdown(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        await world.advance(9)
        await client.send("ping")
        await world.advance(1.1)
        assert world.awake() == 0

    async def test_the_settable_idle_time(self, world: World) -> None:
        world.host.limits = Limits(idle_s=1)
        room = Setup(world)
        await room.client()
        await world.advance(1.01)
        assert world.awake() == 0


class Ponging(Room):
    def __init__(self, ctx: ObjectState, env: Log) -> None:
        super().__init__(ctx, env)
        if not ctx.get_web_socket_auto_response():
            ctx.set_web_socket_auto_response(AutoResponse("ping", "pong"))

    async def write_and_say(self) -> None:
        await self.ctx.storage.put("k", 1)
        for ws in self.ctx.get_web_sockets():
            ws.send("gated")

    async def write_and_wait(self) -> None:
        await self.ctx.storage.put("k", 1)

    async def clear(self) -> int | None:
        [ws] = self.ctx.get_web_sockets()
        self.ctx.set_web_socket_auto_response()
        return self.ctx.get_web_socket_auto_response_timestamp(ws)


class TestAutoResponses:
    async def test_w08_an_awake_object_does_not_see_the_request(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        assert await client.send("ping") is None
        assert client.received == ["pong"]
        assert room.log == ["constructed"]

    async def test_w09_a_hibernated_one_stays_so_and_can_read_when(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        await room.sleep()
        await client.send("ping")
        assert client.received == ["pong"]
        assert room.log == ["constructed"]
        assert await room.stub.clear() == world.clock.unix_ms()

    async def test_w10_other_bytes_and_other_kinds_of_frame_reach_the_handler(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        await client.send(b"ping")
        await client.send("ping ")
        assert [m for m, _ in room.log[1:]] == [b"ping", "ping "]

    async def test_w11_a_locked_output_gate_does_not_hold_the_reply(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        with commits_stalled(world) as release:
            call = room.stub.write_and_wait()
            await spin()
            await client.send("ping")
            assert client.received == ["pong"]
            release()
        await call

    async def test_w12_a_reply_does_not_overtake_a_gated_message(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        with commits_stalled(world) as release:
            call = room.stub.write_and_say()
            await spin()
            await client.send("ping")
            assert client.received == []
            release()
        await call
        assert client.received == ["gated", "pong"]

    async def test_w13_a_reply_on_its_way_is_not_changed_by_clearing_the_rules(self, world: World) -> None:
        room = Setup(world, Ponging)
        client = await room.client()
        await room.sleep()
        world.connections.hold(room.id, client.connection_id)
        await client.send("ping")
        await room.stub.clear()
        world.connections.release(room.id, client.connection_id)
        assert client.received == ["pong"]
        assert await client.send("ping") is Delivery.DISPATCHED

    async def test_limits_are_on_bytes(self, world: World) -> None:
        class Setting(Room):
            async def set(self, text: str) -> None:
                self.ctx.set_web_socket_auto_response(AutoResponse(text, "x"))

        stub = Setup(world, Setting).stub
        await stub.set("é" * 1024)
        with pytest.raises(UsageError):
            await stub.set("é" * 1024 + "x")


class TestReset:
    async def test_w05_abort_tells_the_caller_and_ends_the_connections(self, world: World) -> None:
        class Aborting(Room):
            async def stop(self) -> None:
                self.ctx.abort("enough")

        room = Setup(world, Aborting)
        client = await room.client()
        await room.sleep()
        with pytest.raises(ObjectReset, match="enough") as caught:
            await room.stub.stop()
        assert caught.value.object_reset
        assert caught.value.object_key == room.id.key
        assert client.received == ["lost"]
        assert await room.stub.count() == 0

    @pytest.mark.parametrize("writes", [False, True], ids=["sends", "writes_and_sends"])
    @pytest.mark.parametrize("inside", [False, True], ids=["w06_constructor", "w07_critical_section"])
    async def test_w06_w07_a_constructor_that_fails_on_wake_sends_nothing(
        self,
        world: World,
        inside: bool,
        writes: bool,
    ) -> None:
        class Failing(Room):
            def __init__(self, ctx: ObjectState, env: Log) -> None:
                super().__init__(ctx, env)
                if env.count("constructed") == 2:
                    if inside:
                        ctx.block_concurrency_while(self.fail_later)
                    else:
                        self.send()
                        raise ValueError("no")

            async def fail_later(self) -> None:
                self.send()
                await asyncio.sleep(0)
                raise ValueError("no")

            def send(self) -> None:
                if writes:
                    self.ctx.storage.kv.put("k", 1)
                self.ctx.broadcast("never")
                for ws in self.ctx.get_web_sockets():
                    ws.send("never")
                    ws.close(4000)

        room = Setup(world, Failing)
        client = await room.client()
        await room.sleep()
        assert await client.send("anything") is Delivery.FAILED
        await world.host.settle()
        assert client.received == ["lost"]
        assert await room.stub.count() == 0
        assert room.log == ["constructed"] * 3

    async def test_what_a_constructor_and_its_section_send_leaves_in_order_when_both_have_ended(
        self, world: World
    ) -> None:
        class Greeting(Room):
            def __init__(self, ctx: ObjectState, env: Log) -> None:
                super().__init__(ctx, env)
                self.say("constructor")
                ctx.block_concurrency_while(self.later)

            async def later(self) -> None:
                self.say("section")
                await self.ctx.sleep(1)
                self.say("section ends")

            def say(self, text: str) -> None:
                for ws in self.ctx.get_web_sockets():
                    ws.send(text)

        room = Setup(world, Greeting)
        connecting = asyncio.ensure_future(room.client())
        await world.advance(1)
        client = await connecting
        await room.sleep()
        sending = asyncio.ensure_future(client.send("x"))
        await world.host.settle()
        assert client.received == []
        await world.advance(1)
        await sending
        await world.host.settle()
        assert client.received[:3] == ["constructor", "section", "section ends"]

    async def test_a_constructor_that_fails_has_called_nobody_and_its_section_may_call(self, world: World) -> None:
        class Asked(DurableObject):
            async def note(self, what: str) -> str:
                self.env.append(what)
                return what

        log: Log = []
        other = world.host.register("asked", Asked, log).get_by_name("a")

        class Calling(DurableObject):
            def __init__(self, ctx: ObjectState, env: Log) -> None:
                super().__init__(ctx, env)
                other.note("constructor")
                if log.count("wanted") == 0:
                    raise ValueError("no")
                ctx.block_concurrency_while(self.ask)

            async def ask(self) -> None:
                self.config = await other.note("section")

            async def get(self) -> str:
                return self.config

        stub = world.host.register("calling", Calling, log).get_by_name("c")
        with pytest.raises(ValueError, match="no"):
            await stub.get()
        await world.host.settle()
        assert log == []
        log.append("wanted")
        assert await world.host.namespaces["calling"].get_by_name("c").get() == "section"
        assert log == ["wanted", "constructor", "section"]

    async def test_a_message_that_is_not_text_is_refused_where_it_is_sent(self, world: World) -> None:
        class Odd(Room):
            async def odd(self) -> None:
                self.ctx.storage.kv.put("k", 1)
                self.ctx.broadcast("\ud800")

        room = Setup(world, Odd)
        await room.client()
        with pytest.raises(UsageError, match="lone surrogate at 0"):
            await room.stub.odd()
        assert await room.stub.count() == 1

    async def test_w15_an_overloaded_object_loses_one_socket_not_all(self, world: World) -> None:
        world.host.limits = Limits(queued_events=1)
        go = asyncio.Event()

        class Busy(Room):
            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                await self.ctx.block_concurrency_while(go.wait)

        room = Setup(world, Busy)
        clients = [await room.client() for _ in range(3)]
        first = asyncio.ensure_future(clients[0].send("runs"))
        await world.host.settle()
        second = asyncio.ensure_future(clients[1].send("waits"))
        await spin()
        assert await clients[2].send("too many") is Delivery.OVERLOADED
        go.set()
        assert (await first, await second) == (Delivery.DISPATCHED, Delivery.DISPATCHED)
        assert await room.stub.count() == 2
        assert world.connections.count(room.id, "all") == 2
        assert room.namespace.meter.overloads == 1

    async def test_w32_a_handler_over_the_event_timeout_ends_the_instance(self, world: World) -> None:
        class Sleepy(Room):
            def __init__(self, ctx: ObjectState, env: Log) -> None:
                super().__init__(ctx, env)
                ctx.set_hibernatable_web_socket_event_timeout(1000)

            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                await self.ctx.sleep(2)
                self.env.append("survived")

        room = Setup(world, Sleepy)
        client = await room.client()
        await client.send("x")
        call = room.stub.count()
        assert await call == 1
        await world.advance(1.1)
        assert world.awake() == 0
        assert client.received == ["lost"]
        assert "survived" not in room.log
        assert "ran over 1 s" in world.connections.lost[0]


class TestOrder:
    async def test_w20_an_exception_in_a_handler_ends_neither_socket_nor_instance(self, world: World) -> None:
        class Raising(Room):
            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                await super().web_socket_message(ws, message)
                raise ValueError("oops")

        room = Setup(world, Raising)
        client = await room.client()
        await client.send("a")
        await client.send("b")
        assert room.log == ["constructed", ("a", 1), ("b", 2)]
        assert client.state is ReadyState.OPEN
        assert room.namespace.meter.errors == 2

    async def test_w21_a_handler_that_awaits_something_else_lets_the_next_message_start(
        self,
        world: World,
    ) -> None:
        go = asyncio.Event()

        class Waiting(Room):
            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                self.env.append(("start", message))
                if message == "1":
                    await go.wait()
                self.env.append(("end", message))

        room = Setup(world, Waiting)
        client = await room.client()
        await client.send("1")
        await client.send("2")
        await world.host.settle()
        assert room.log[1:] == [("start", "1"), ("start", "2"), ("end", "2")]
        go.set()
        await until(lambda: ("end", "1") in room.log)

    async def test_w22_messages_wait_in_order_for_the_constructors_critical_section(
        self,
        world: World,
    ) -> None:
        class Slow(Room):
            def __init__(self, ctx: ObjectState, env: Log) -> None:
                super().__init__(ctx, env)
                ctx.block_concurrency_while(self.load)

            async def load(self) -> None:
                await self.ctx.sleep(5)
                self.env.append("loaded")

        room = Setup(world, Slow)
        opening = asyncio.ensure_future(room.client())
        await world.advance(5)
        client = await opening
        await world.advance(11)
        sent = [asyncio.ensure_future(client.send(text)) for text in "abc"]
        await world.advance(4.9)
        assert not any(one.done() for one in sent)
        await world.advance(0.2)
        assert await asyncio.gather(*sent) == [Delivery.DISPATCHED] * 3
        assert room.log[-4:] == ["loaded", ("a", 1), ("b", 2), ("c", 3)]


class TestClosing:
    async def test_w17_a_lost_connection_closes_once_as_1006(self, room: Setup) -> None:
        client = await room.client()
        await client.drop()
        await room.world.host.settle()
        assert room.log[1:] == [("closed", 1006, False, True)]
        assert await room.stub.count() == 0

    async def test_w18_a_closing_socket_is_listed_in_its_handler_and_not_after(self, room: Setup) -> None:
        client = await room.client()
        await client.close(1000, "bye")
        assert room.log[1:] == [("closed", 1000, True, True)]
        assert await room.stub.count() == 0

    async def test_w19_send_after_close_raises_also_after_a_hibernation(self, world: World) -> None:
        class Closing(Room):
            async def close(self) -> None:
                for ws in self.ctx.get_web_sockets():
                    ws.close(4000, "out")
                    ws.close(4001, "ignored")

        room = Setup(world, Closing)
        client = await room.client()
        await room.stub.close()
        with pytest.raises(UsageError, match="send after close"):
            await room.stub.say("x")
        await room.sleep()
        with pytest.raises(UsageError, match="send after close"):
            await room.stub.say("x")
        assert client.received == [("close", 4000, "out")]

    async def test_w14_send_and_close_wait_for_the_commit(self, world: World) -> None:
        room = Setup(world, Leaving)
        client = await room.client()
        with commits_stalled(world) as release:
            call = room.stub.leave()
            await spin()
            assert client.received == []
            release()
        await call
        assert client.received == ["bye", ("close", 1000, "")]

    async def test_w14_and_never_leave_if_it_fails(self, world: World) -> None:
        room = Setup(world, Leaving)
        client = await room.client()
        with commits_stalled(world) as release:
            call = room.stub.leave()
            await spin()
            release(OSError("disk on fire"))
            with pytest.raises(Exception, match="disk on fire"):
                await call
        assert client.received == ["lost"]

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000])
    async def test_codes_that_cannot_be_sent(self, world: World, code: int) -> None:
        class Closing(Room):
            async def close(self, code: int | None, reason: str) -> None:
                for ws in self.ctx.get_web_sockets():
                    ws.close(code, reason)

        room = Setup(world, Closing)
        client = await room.client()
        for arguments in ((code, ""), (None, "reason"), (1000, "x" * 124)):
            with pytest.raises(UsageError):
                await room.stub.close(*arguments)
        assert client.received == []

    async def test_in_the_error_handler_send_and_close_do_nothing(self, world: World) -> None:
        class Erring(Room):
            async def web_socket_error(self, ws: WebSocket, error: str) -> None:
                ws.send("x")
                ws.close(1000)
                self.env.append(error)

        room = Setup(world, Erring)
        client = await room.client()
        assert await client.fail("bad frame") is Delivery.DISPATCHED
        assert room.log[1:] == ["bad frame"]
        assert client.received == []


class Leaving(Room):
    async def leave(self) -> None:
        await self.ctx.storage.put("k", 1)
        for ws in self.ctx.get_web_sockets():
            ws.send("bye")
            ws.close(1000)


class TestAccepting:
    async def test_w23_duplicate_tags_are_dropped_in_order(self, world: World) -> None:
        room = Setup(world, Tagging)
        assert await room.stub.tags(["a", "a", "b"]) is None
        await room.client()
        assert room.log[-1] == ["a", "b"]

    @pytest.mark.parametrize("tags", [list("abcdefghijk"), [*"abcdefghij", "a"], ["x" * 257], ["é" * 129], [1]])
    async def test_w24_bad_tags_refuse_one_connection(self, world: World, tags: list[Any]) -> None:
        room = Setup(world, Tagging)
        await room.stub.tags(["fine", "x" * 256])
        client = await room.client()
        await room.stub.tags(tags)
        _, answer = await world.connections.try_open(room.id)
        assert isinstance(answer, UpgradeRefused)
        assert answer.status == 500
        assert client.state is ReadyState.OPEN
        assert await room.stub.count() == 1

    async def test_w24_one_socket_too_many(
        self,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("tests.unit.objects.fakes.MAX_CONNECTIONS", 2)
        room = Setup(world)
        clients = [await room.client() for _ in range(2)]
        _, answer = await world.connections.try_open(room.id)
        assert isinstance(answer, UpgradeRefused)
        assert [c.state for c in clients] == [ReadyState.OPEN] * 2

    async def test_w25_w26_attachments_are_bounded_copies(self, world: World) -> None:
        class Attaching(Room):
            async def attach(self, size: int) -> None:
                [ws] = self.ctx.get_web_sockets()
                value = ["x" * size]
                ws.serialize_attachment(value)
                value.append("later")

            async def attached(self) -> int:
                [ws] = self.ctx.get_web_sockets()
                [text] = ws.deserialize_attachment()
                return len(text)

        room = Setup(world, Attaching)
        client = await room.client()
        # Version, list of one, text and its length: 6 bytes around it.
        fits = 16_384 - 6
        await room.stub.attach(fits)
        assert client.attachment is not None
        assert len(client.attachment) == 16_384
        with pytest.raises(UsageError):
            await room.stub.attach(fits + 1)
        await room.sleep()
        assert await room.stub.attached() == fits

    async def test_w27_a_socket_is_accepted_once_and_in_one_way(self, world: World) -> None:
        class Twice(Room):
            async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
                ways: list[Callable[[], None]] = [ws.accept, lambda: self.ctx.accept_web_socket(ws)]
                if request.url.endswith("reverse"):
                    ways.reverse()
                ways[0]()
                with pytest.raises(UsageError):
                    ways[1]()
                self.kept = ws

            async def again(self) -> None:
                self.ctx.accept_web_socket(self.kept)

        room = Setup(world, Twice)
        await world.connections.open(room.id)
        with pytest.raises(UsageError):
            await room.stub.again()
        client = await world.connections.open(room.id, "ws://x/reverse")
        await client.close()

    async def test_a_class_without_a_connect_handler_refuses(self, world: World) -> None:
        class Plain(DurableObject):
            pass

        room = Setup(world, Plain)
        _, answer = await world.connections.try_open(room.id)
        assert isinstance(answer, UpgradeRefused)
        assert answer.status == 501

    async def test_a_socket_accepted_the_standard_way_keeps_it_awake_and_is_read_in_a_loop(
        self,
        world: World,
    ) -> None:
        class Standard(Room):
            async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
                ws.accept()
                self.ctx.wait_until(self.read(ws))

            async def read(self, ws: WebSocket) -> None:
                async for message in ws:
                    ws.send(message)
                self.env.append("ended")

        room = Setup(world, Standard)
        client = await room.client()
        assert await client.send("a") is Delivery.DISPATCHED
        assert await client.send(b"b") is Delivery.DISPATCHED
        await world.advance(200)
        assert world.host.awake()[room.id.key]["web_socket"] == 1
        assert await room.stub.count() == 0
        await client.close()
        await world.advance(10.1)
        assert client.received == ["a", b"b"]
        assert room.log[-1] == "ended"
        assert world.awake() == 0


class Tagging(Room):
    wanted: list[Any]

    async def tags(self, tags: list[Any]) -> None:
        Tagging.wanted = tags

    async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
        self.ctx.accept_web_socket(ws, Tagging.wanted)
        self.env.append(self.ctx.get_tags(ws))


class TestFanOut:
    async def test_broadcast_by_tag_without_some_after_the_commit(self, world: World) -> None:
        class Broadcasting(Room):
            async def shout(self, write: bool) -> None:
                if write:
                    await self.ctx.storage.put("k", 1)
                first, *_ = self.ctx.get_web_sockets()
                self.ctx.broadcast("hi", tag="all", exclude=[first])

        room = Setup(world, Broadcasting)
        clients = [await room.client() for _ in range(3)]
        await room.stub.shout(False)
        with commits_stalled(world) as release:
            call = room.stub.shout(True)
            await spin()
            assert [len(c.received) for c in clients] == [0, 1, 1]
            release()
        await call
        assert [len(c.received) for c in clients] == [0, 2, 2]

    async def test_counting_makes_no_handles(self, world: World) -> None:
        class Counting(Room):
            async def counted(self) -> tuple[int, int, int]:
                return (
                    self.ctx.web_socket_count(),
                    self.ctx.web_socket_count("none"),
                    len(self.ctx._instance._sockets),
                )

        room = Setup(world, Counting)
        await room.client()
        await room.client()
        await room.sleep()
        assert await room.stub.counted() == (2, 0, 0)

    async def test_a_handle_is_the_same_within_one_life(self, world: World) -> None:
        class Same(Room):
            async def same(self) -> bool:
                return self.ctx.get_web_sockets()[0] is self.ctx.get_web_sockets()[0]

        room = Setup(world, Same)
        await room.client()
        assert await room.stub.same() is True


class TestReplacingCode:
    async def test_a_new_class_takes_over_without_dropping_a_connection(self, room: Setup) -> None:
        class Newer(Room):
            async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
                ws.send("new")

        client = await room.client()
        await client.send("x")
        await room.world.host.replace("test", Newer)
        await client.send("x")
        assert client.received == ["echo 'x'", "new"]
        assert client.state is ReadyState.OPEN


def test_limit_errors_say_what_and_how_much() -> None:
    assert str(LimitExceeded("tags", 10, 11)) == "tags: the limit is 10, got 11"
