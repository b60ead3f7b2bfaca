"""Hibernation from a client's point of view, the objects side scripted; each test runs with direct calls and piped.

W- ids are those of the objects contract, Party numbers those of the party contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.exceptions import InvalidStatus

from hibernation.manager import SlowPolicy
from hibernation.objects_end import ObjectsEnd
from objects.errors import LimitExceeded, UsageError
from objects.ports import (
    AutoResponse,
    ConnectionClosed,
    ConnectionFailed,
    Delivery,
    MessageReceived,
    ReadyState,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
)
from tests.support.rooms import ROOM, Gateway, Instance, LoopClock, Pipe, Script, accept_all, gateway, until


@pytest.fixture(params=["direct", "piped"])
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """A gateway; its counters have returned to zero when the test is over."""
    async with gateway(piped=request.param == "piped") as running:
        yield running


def echo(instance: Instance, event: object) -> None:
    """Answer with the instance's number, so that a test sees which life answered."""
    if isinstance(event, MessageReceived):
        instance.connections.send(event.connection_id, f"{instance.number}:{event.data!s}")


async def receive_all(client: ClientConnection) -> tuple[list[str | bytes], int | None]:
    """Everything until the end, and the code of the server's close frame."""
    messages: list[str | bytes] = []
    try:
        async for message in client:
            messages.append(message)  # noqa: PERF401 - those before an exception are wanted
    except ClientClosed:
        pass
    return messages, None if client.close_code == 1006 else client.close_code


class TestWaking:
    async def test_w01_w03_a_socket_outlives_its_instance_and_wakes_the_next(self, room: Gateway) -> None:
        room.script.on_event = echo
        async with room.connect("/room?a,b") as client:
            await client.send("one")
            assert await client.recv() == "0:one"
            room.script.hibernate()
            await asyncio.sleep(0.02)
            assert room.script.asleep
            assert room.table.counters()["rows"] == 1
            await client.send("two")
            assert await client.recv() == "1:two"

    async def test_w02_an_instance_woken_by_something_else_reaches_the_socket(self, room: Gateway) -> None:
        async with room.connect() as client, room.connect() as other:
            room.script.hibernate()
            await other.send("wake")
            await room.seen(1)
            instance = room.script.instance
            assert instance.number == 1
            assert instance.connections.count(ROOM) == 2
            assert instance.connections.broadcast(ROOM, "hello") == 2
            assert (await client.recv(), await other.recv()) == ("hello", "hello")

    async def test_w04_tags_attachment_and_protocol_survive_two_cycles(self, room: Gateway) -> None:
        async with room.connect("/room?red,blue", subprotocols=["p1", "p2"]) as client:
            assert client.subprotocol == "p1"
            for life in range(3):
                await client.send("x")
                await room.seen(life + 1)
                instance = room.script.instance
                (connection_id,) = instance.connections.connections(ROOM)
                info = instance.connections.info(connection_id)
                assert info is not None
                assert (info.tags, info.protocol, info.client) == (("red", "blue"), "p1", "127.0.0.1")
                assert info.url.endswith("/room?red,blue")
                assert instance.connections.attachment(connection_id) == (b"%d" % (life - 1) if life else None)
                instance.connections.set_attachment(connection_id, b"%d" % life)
                room.script.hibernate()

    async def test_w22_frames_wait_in_order_while_the_constructor_runs(self, room: Gateway) -> None:
        gate = asyncio.Event()

        async def constructor(instance: Instance) -> None:
            if instance.number:
                await gate.wait()

        room.script.constructor = constructor
        async with room.connect() as client:
            room.script.hibernate()
            for i in range(10):
                await client.send(str(i))
            await asyncio.sleep(0.05)
            assert await room.seen(0) == []
            gate.set()
            events = await room.seen(10)
            assert [event.data for event in events] == [str(i) for i in range(10)]
            assert room.script.instance.number == 1

    async def test_w06_a_constructor_that_fails_ends_every_socket_abruptly(self, room: Gateway) -> None:
        async def constructor(instance: Instance) -> None:
            if instance.number == 1:
                raise RuntimeError("broken")

        room.script.constructor = constructor
        async with room.connect() as client, room.connect() as other:
            room.script.hibernate()
            await client.send("wake")
            for websocket in (client, other):
                with pytest.raises(ClientClosed) as closed:
                    await websocket.recv()
                assert closed.value.rcvd is None  # 1006
        async with room.connect() as again:
            await again.send("clean")
            await room.seen(1)
            assert room.script.instance.number == 2

    async def test_w05_a_reset_ends_the_connection_without_events(self, room: Gateway) -> None:
        async with room.connect() as client:
            room.script.reset()
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is None
        assert room.script.events == []

    async def test_the_upgrade_of_an_object_that_is_reset_meanwhile_is_answered(self, room: Gateway) -> None:
        def resetting(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
            accept_all(instance, request)
            room.script.reset()
            return UpgradeRefused(500, body=b"reset")

        room.script.on_connect = resetting
        with pytest.raises(InvalidStatus) as refused:
            async with room.connect():
                pass
        assert refused.value.response.status_code == 500


class TestLists:
    async def test_w23_lists_by_tag_and_counts(self, room: Gateway) -> None:
        async with room.connect("/room?a,b"), room.connect("/room?b"), room.connect():
            connections = room.script.instance.connections
            everyone = connections.connections(ROOM)
            assert len(everyone) == 3
            assert connections.connections(ROOM, "b") == everyone[:2]
            assert connections.connections(ROOM, "nobody") == []
            assert (connections.count(ROOM), connections.count(ROOM, "a")) == (3, 1)
            assert connections.broadcast(ROOM, "x", "b", [everyone[0]]) == 1

    async def test_w24_too_many_tags_and_connections_are_refused_and_change_nothing(self, room: Gateway) -> None:
        errors: list[Exception] = []

        def strict(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
            for tags in ([f"t{i}" for i in range(11)], ["x" * 257]):
                try:
                    room.manager.accept(ROOM, request.connection_id, tags, hibernatable=True)
                except LimitExceeded as error:
                    errors.append(error)
            answer = accept_all(instance, request)
            try:
                instance.connections.accept(ROOM, request.connection_id, [], hibernatable=True)
            except UsageError as error:
                errors.append(error)
            return answer

        room.script.on_connect = strict
        async with room.connect("/room?ok"):
            await until(lambda: len(errors) == 3)
            (connection_id,) = room.script.instance.connections.connections(ROOM)
            info = room.script.instance.connections.info(connection_id)
            assert info is not None
            assert info.tags == ("ok",)
            with pytest.raises(UsageError):
                room.script.instance.connections.accept(ROOM, connection_id, [], hibernatable=True)

    async def test_w27_a_standard_connection_is_in_no_list_but_its_events_come(self, room: Gateway) -> None:
        def standard(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
            instance.connections.accept(ROOM, request.connection_id, [], hibernatable=False)
            return UpgradeAccepted()

        room.script.on_connect = standard
        room.script.on_event = echo
        async with room.connect() as client:
            connections = room.script.instance.connections
            connections.set_auto_responses(ROOM, [AutoResponse("ping", "pong")])
            assert connections.connections(ROOM) == []
            await client.send("ping")
            assert await client.recv() == "0:ping"

    async def test_w18_a_closing_socket_is_listed_in_its_close_handler_and_not_after(self, room: Gateway) -> None:
        listed: list[int] = []

        def on_event(instance: Instance, event: object) -> None:
            if isinstance(event, ConnectionClosed):
                listed.append(instance.connections.count(ROOM))
                info = instance.connections.info(event.connection_id)
                assert info is not None
                assert info.tags == ("kept",)
                assert instance.connections.ready_state(event.connection_id) is ReadyState.CLOSED
                instance.connections.send(event.connection_id, "into the void")

        room.script.on_event = on_event
        async with room.connect("/room?kept"):
            pass
        await until(lambda: listed == [1])
        await until(lambda: room.script.instance.connections.count(ROOM) == 0)


class TestClosing:
    async def test_party_28_a_clients_code_comes_to_the_object_and_back(self, room: Gateway) -> None:
        async with room.connect() as client:
            await client.close(4321, "foo")
            assert client.close_code == 4321
        (event,) = await room.seen(1, ConnectionClosed)
        assert (event.code, event.reason, event.was_clean) == (4321, "foo", True)

    async def test_w17_party_30_a_lost_client_is_1006_while_hibernating(self, room: Gateway) -> None:
        async with room.connect() as client:
            room.script.hibernate()
            client.transport.abort()
            (event,) = await room.seen(1, ConnectionClosed)
        assert (event.code, event.reason, event.was_clean) == (
            1006,
            "WebSocket disconnected without sending Close frame.",
            False,
        )
        assert room.script.instance.number == 1

    async def test_party_31_a_protocol_error_is_reported_before_the_end(self, room: Gateway) -> None:
        async with room.connect() as client:
            client.transport.write(b"\x83\x80abcd")  # opcode 3
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1002
        await room.seen(1, ConnectionClosed)
        assert [type(event) for event in room.script.events] == [ConnectionFailed, ConnectionClosed]

    async def test_party_32_a_message_over_the_limit_is_1009(self, room: Gateway) -> None:
        async with room.connect() as client:
            await client.send(bytes((1 << 20) + 1))
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009

    async def test_party_27_messages_and_a_close_inside_connect_arrive_in_order(self, room: Gateway) -> None:
        def kick(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
            answer = accept_all(instance, request)
            instance.connections.send(request.connection_id, "one")
            instance.connections.send(request.connection_id, b"two")
            instance.connections.close(request.connection_id, 4001, "kicked")
            return answer

        room.script.on_connect = kick
        async with room.connect() as client:
            assert [await client.recv(), await client.recv()] == ["one", b"two"]
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "kicked")
        (event,) = await room.seen(1, ConnectionClosed)
        assert event.code == 4001

    async def test_w19_after_our_close_the_socket_is_closing_in_the_next_life_too(self, room: Gateway) -> None:
        def close_first(instance: Instance, event: object) -> None:
            if isinstance(event, MessageReceived) and event.data == "close":
                instance.connections.close(event.connection_id, 1000, "")

        room.script.on_event = close_first
        async with room.connect() as client, room.connect() as other:
            client.transport.pause_reading()  # a client that does not answer our close
            await client.send("close")
            await room.seen(1)
            room.script.hibernate()
            await other.send("wake")
            await room.seen(2)
            connections = room.script.instance.connections
            states = [connections.ready_state(connection_id) for connection_id in connections.connections(ROOM)]
            assert states == [ReadyState.CLOSING, ReadyState.OPEN]
            client.transport.resume_reading()

    async def test_w33_w34_frames_to_a_slow_client_survive_hibernation(self, room: Gateway) -> None:
        async with room.connect(max_queue=1, max_size=None) as client:
            connections = room.script.instance.connections
            (connection_id,) = connections.connections(ROOM)
            client.transport.pause_reading()
            for _ in range(20):
                connections.send(connection_id, bytes(45_000))
            connections.send(connection_id, "last")
            connections.close(connection_id, 4000, "done")
            room.script.hibernate()
            await asyncio.sleep(0.05)
            client.transport.resume_reading()
            received, close = await receive_all(client)
            assert [len(message) for message in received] == [45_000] * 20 + [4]
            assert close == 4000


class TestAutoResponses:
    async def test_w08_w09_w10_answers_come_without_waking(self, room: Gateway) -> None:
        room.script.on_event = echo
        async with room.connect() as client:
            connections = room.script.instance.connections
            rules = [AutoResponse("ping", "pong"), AutoResponse(b"\xc0\x00", b"\xd0\x00")]
            connections.set_auto_responses(ROOM, rules)
            assert connections.auto_responses(ROOM) == tuple(rules)
            await client.send("ping")
            assert await client.recv() == "pong"
            room.script.hibernate()
            await asyncio.sleep(0.02)
            await client.send("ping")
            await client.send(b"\xc0\x00")
            assert [await client.recv(), await client.recv()] == ["pong", b"\xd0\x00"]
            assert room.script.asleep
            assert room.script.events == []
            await client.send(b"ping")
            assert await client.recv() == "1:b'ping'"
            connections = room.script.instance.connections
            assert connections.auto_responses(ROOM) == tuple(rules)
            (connection_id,) = connections.connections(ROOM)
            at = connections.auto_response_at_ms(connection_id)
            seen = connections.last_seen_ms(connection_id)
            assert at is not None
            assert seen is not None
            assert abs(at - seen) < 5_000

    async def test_w12_a_reply_follows_the_message_that_waits_for_the_gate(self, room: Gateway) -> None:
        async with room.connect() as client, room.connect() as other:
            connections = room.script.instance.connections
            first, _ = connections.connections(ROOM)
            connections.set_auto_responses(ROOM, [AutoResponse("ping", "pong")])
            connections.hold(ROOM, first)
            connections.hold(ROOM, first)
            await asyncio.sleep(0.02)
            await client.send("ping")
            await other.send("ping")
            assert await other.recv() == "pong"  # W-11: the other socket is not held
            connections.send(first, "gated")
            connections.release(ROOM, first)
            assert await client.recv() == "gated"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.recv()
            connections.release(ROOM, first)
            assert await client.recv() == "pong"
            connections.hold(ROOM, None)
            await asyncio.sleep(0.02)
            await other.send("ping")
            await asyncio.sleep(0.02)
            room.script.hibernate()  # holds end with the instance
            assert await other.recv() == "pong"

    async def test_event_timeout_survives_hibernation(self, room: Gateway) -> None:
        async with room.connect() as client:
            room.script.instance.connections.set_event_timeout(ROOM, 1500)
            room.script.hibernate()
            await client.send("wake")
            await room.seen(1)
            assert room.script.instance.connections.event_timeout(ROOM) == 1500


class TestOverload:
    async def test_w15_an_overloaded_object_loses_this_connection_alone(self, room: Gateway) -> None:
        async with room.connect("/room?a") as client, room.connect("/room?a") as other:
            room.script.deliveries.append(Delivery.OVERLOADED)
            await client.send("too much")
            with pytest.raises(ClientClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
            connections = room.script.instance.connections
            await until(lambda: connections.count(ROOM) == connections.count(ROOM, "a") == 1)
            await other.send("fine")
            await room.seen(1)
        closes = await room.seen(2, ConnectionClosed)
        assert sorted(event.code for event in closes) == [1000, 1013]

    @pytest.mark.parametrize("piped", [False, True])
    async def test_a_client_faster_than_the_object_waits_in_its_own_window(self, piped: bool) -> None:
        gate = asyncio.Event()

        async def constructor(instance: Instance) -> None:
            if instance.number:
                await gate.wait()

        async with gateway(piped=piped, max_frames=8) as room:
            room.script.constructor = constructor
            async with room.connect() as client, room.connect() as other:
                room.script.hibernate()
                sending = asyncio.ensure_future(_send_many(client, 400, 20_000))
                await until(lambda: room.service.dispatcher is not None and room.service.dispatcher.lines == 1)
                await asyncio.sleep(0.2)
                assert not sending.done()
                assert room.table.counters()["bytes_received"] < 600_000
                assert await other.ping() is not None
                gate.set()
                events = await room.seen(400)
                await sending
                assert [int.from_bytes(event.data[:4], "big") for event in events] == list(range(400))

    async def test_a_slow_receiver_is_closed_and_the_others_get_everything(self) -> None:
        async with gateway(slow=SlowPolicy(queue_bytes=200_000)) as room:
            async with room.connect(max_queue=1, max_size=None) as slow, room.connect(max_size=None) as fast:
                slow.transport.pause_reading()
                connections = room.script.instance.connections
                got = 0
                for _ in range(200):
                    connections.broadcast(ROOM, bytes(60_000))
                    got += len(await fast.recv())
                assert got == 200 * 60_000
                assert room.table.counters()["closed_slow"] == 1
                slow.transport.abort()
            closes = await room.seen(2, ConnectionClosed)
            assert sorted(event.was_clean for event in closes) == [False, True]

    @pytest.mark.parametrize("piped", [False, True])
    async def test_w24_an_object_with_all_its_connections_refuses_one_more(self, piped: bool) -> None:
        async with gateway(piped=piped, max_connections=2) as room:
            refused: list[Exception] = []

            def careful(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
                try:
                    return accept_all(instance, request)
                except LimitExceeded as error:
                    refused.append(error)
                    return UpgradeRefused(503)

            room.script.on_connect = careful
            async with room.connect(), room.connect():
                with pytest.raises(InvalidStatus):
                    async with room.connect():
                        pass
            assert piped or refused


class TestRestart:
    async def test_connections_outlive_the_process_of_the_objects(self) -> None:
        """The promise behind the seam: room code may crash or be deployed anew, no client notices."""
        async with gateway(piped=True) as room:
            assert room.ends is not None
            sockets_end, _ = room.ends
            room.script.on_event = echo
            async with room.connect("/room?kept") as client:
                await client.send("before")
                assert await client.recv() == "0:before"
                sockets_end.lost()
                await client.send("while it is gone")
                with pytest.raises(InvalidStatus) as refused:
                    async with room.connect():
                        pass
                assert refused.value.response.status_code == 503

                second, pipe = Script(), Pipe(2)
                second.on_event = echo
                objects_end = ObjectsEnd(LoopClock().unix_ms)
                objects_end.joined(pipe.to(sockets_end.receive_data))
                objects_end.waker, second.connections = second, objects_end
                sockets_end.joined(pipe.to(objects_end.receive_data))
                room.script.asleep = True
                room.ends = sockets_end, objects_end

                assert await client.recv() == "0:while it is gone"
                assert objects_end.count(ROOM, "kept") == 1
                await client.send("after")
                assert await client.recv() == "0:after"
            await until(lambda: len(second.events) == 3)
            second.hibernate()
            room.script.connections = objects_end


async def _send_many(client: object, count: int, size: int) -> None:
    for i in range(count):
        await client.send(i.to_bytes(4, "big") + bytes(size))  # type: ignore[attr-defined]
