"""Messages whose handler runs where they arrive (`Waker.handle_now`); that all else holds for them as well is shown in
`test_objects_websockets.py`, which runs both ways."""

import asyncio
import gc
import logging
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from objects.ports import Delivery, MessageReceived
from objects.state import DurableObject
from objects.websocket import WebSocket
from tests.unit.objects import conftest
from tests.unit.objects.fakes import FakeConnection, World, commits_stalled, spin

world = conftest.world

who: ContextVar[str] = ContextVar("who", default="nobody")


class Fatal(BaseException):
    pass


class Room(DurableObject):
    """Does what a message says."""

    async def web_socket_connect(self, ws: WebSocket, request: Any) -> None:
        self.ctx.accept_web_socket(ws)

    async def web_socket_message(self, ws: WebSocket, message: Any) -> None:
        match message:
            case "put":
                self.ctx.storage.kv.put("key", "value")
            case "nap":
                await self.ctx.sleep(5)
            case "raise":
                raise ValueError("no")
            case "raise no Exception":
                raise Fatal("no")
            case "abort and go on":
                try:
                    self.ctx.abort("enough")
                except asyncio.CancelledError:
                    await self.ctx.sleep(5)
            case "abort":
                self.ctx.abort("enough")
            case "section":
                await self.ctx.block_concurrency_while(self.slowly)
            case "who":
                ws.send(f"{message} {who.get()}")
                who.set("somebody")
                return
        ws.send(message)

    async def slowly(self) -> None:
        await self.ctx.sleep(1)

    async def note(self) -> None:
        for ws in self.ctx.get_web_sockets():
            ws.send("called")

    async def blockers(self) -> dict[str, int]:
        return self.ctx.hibernation_blockers()


class Setup:
    def __init__(self, world: World) -> None:
        self.world = world
        self.host = world.host
        self.stub = world.serve(Room).get_by_name("room")

    async def client(self) -> FakeConnection:
        client = await self.world.connections.open(self.stub.id)
        await self.host.settle()
        return client

    async def now(self, *messages: tuple[FakeConnection, str]) -> list[bool]:
        """Offer messages outside of any task, one after the other; which were taken."""
        taken: list[bool] = []

        def offer() -> None:
            taken.extend(self.host.handle_now(self.stub.id, one.connection_id, text) for one, text in messages)

        asyncio.get_running_loop().call_soon(offer)
        await asyncio.sleep(0)
        return taken


@pytest.fixture
async def room(world: World) -> Setup:
    return Setup(world)


async def test_a_handler_that_never_waits_has_ended_when_the_call_returns(room: Setup) -> None:
    client = await room.client()
    received: list[Any] = []

    def offer() -> None:
        assert room.host.handle_now(room.stub.id, client.connection_id, "hi")
        received.extend(client.received)

    asyncio.get_running_loop().call_soon(offer)
    await asyncio.sleep(0)
    assert received == ["hi"]
    assert room.host.namespaces["test"].meter.messages == 1


async def test_an_object_that_is_not_in_memory_takes_none(room: Setup) -> None:
    client = await room.client()
    await room.world.advance(10.1)
    assert room.world.awake() == 0
    assert await room.now((client, "hi")) == [False]
    assert room.world.awake() == 0
    assert client.received == []


async def test_the_idle_time_begins_anew_with_each(room: Setup) -> None:
    client = await room.client()
    for _ in range(3):
        await room.world.advance(9)
        assert await room.now((client, "hi")) == [True]
    await room.world.advance(9.9)
    assert room.world.awake() == 1
    await room.world.advance(0.2)
    assert room.world.awake() == 0


async def test_a_handler_that_waits_is_an_event_like_any_other(room: Setup) -> None:
    client = await room.client()
    assert await room.now((client, "nap")) == [True]
    assert await room.stub.blockers() == {"event": 2, "timer": 1}
    assert await room.now((client, "hi")) == [True]  # its await lets others in
    await room.world.advance(5)
    assert client.received == ["hi", "nap"]
    await room.world.advance(10.1)
    assert room.world.awake() == 0


async def test_an_event_timeout_counts_from_its_beginning(room: Setup) -> None:
    client = await room.client()
    room.world.connections.set_event_timeout(room.stub.id, 2000)
    assert await room.now((client, "nap")) == [True]
    await room.world.advance(1.9)
    assert client.received == []
    await room.world.advance(0.2)
    assert client.received == ["lost"]
    assert room.world.awake() == 0


async def test_nothing_overtakes_an_event_whose_first_step_is_to_come(room: Setup) -> None:
    one, two = await room.client(), await room.client()
    deliveries: list[Delivery] = []

    def offer() -> None:
        room.host.deliver(room.stub.id, MessageReceived(one.connection_id, "first"), deliveries.append)
        assert not room.host.handle_now(room.stub.id, two.connection_id, "second")

    asyncio.get_running_loop().call_soon(offer)
    await spin()
    assert one.received == ["first"]
    assert await room.now((two, "second")) == [True]
    assert deliveries == [Delivery.DISPATCHED]


async def test_nothing_runs_while_a_critical_section_does(room: Setup) -> None:
    client = await room.client()
    assert await room.now((client, "section"), (client, "hi")) == [True, False]
    call = room.stub.note()
    await spin()
    assert client.received == []
    await room.world.advance(1)
    await call
    assert client.received == ["section", "called"]  # who awaited the section goes on first


async def test_what_it_sends_waits_for_what_it_wrote(room: Setup) -> None:
    client = await room.client()
    with commits_stalled(room.world) as release:
        assert await room.now((client, "put"), (client, "hi")) == [True, True]
        await asyncio.sleep(0.05)
        assert client.received == []
        counts = next(iter(room.host.awake().values()))
        assert counts == {"event": 2, "storage": 1}
        release()
    await room.host.settle()
    assert client.received == ["put", "hi"]
    assert await room.stub.blockers() == {"event": 1}


async def test_the_meter_has_its_step_as_activity_and_what_lies_between_as_idleness(world: World) -> None:
    during: list[tuple[float, float]] = []

    def used() -> tuple[float, float]:
        usage = world.host.usage()["test"]
        return usage["active_s"], usage["idle_s"]

    class Slow(Room):
        async def web_socket_message(self, ws: WebSocket, message: Any) -> None:
            world.clock._now += 2  # it computes for so long
            during.append(used())
            if message == "put":
                await super().web_socket_message(ws, message)
            world.clock._now += 1
            during.append(used())

    room = Setup(world)
    world.host.namespaces["test"].kind.cls = Slow
    client = await room.client()
    await world.advance(1)
    assert await room.now((client, "hi"), (client, "hi")) == [True, True]
    assert during == [(2, 1), (3, 1), (5, 1), (6, 1)]
    await world.advance(1)
    assert await room.now((client, "put")) == [True]  # a blocker comes in the middle of the step
    assert during[4:] == [(8, 2), (9, 2)]
    await world.advance(1)
    assert used() == (9, 3)
    await world.advance(9)
    assert world.awake() == 0
    meter = world.host.namespaces["test"].meter
    assert (meter.active_s, meter.idle_s) == (9, 12)


async def test_one_that_raises_is_counted_and_the_connection_stays(
    room: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    client = await room.client()
    with caplog.at_level(logging.CRITICAL, "torpor.objects"):
        assert await room.now((client, "raise"), (client, "hi")) == [True, True]
    assert client.received == ["hi"]
    assert room.host.namespaces["test"].meter.errors == 1


async def test_one_that_aborts_ends_the_instance_and_its_connections(room: Setup) -> None:
    client = await room.client()
    assert await room.now((client, "abort"), (client, "hi")) == [True, False]
    assert client.received == ["lost"]
    await room.host.settle()
    assert room.world.awake() == 0


async def test_a_reset_ends_one_that_waits(room: Setup) -> None:
    one, two = await room.client(), await room.client()
    assert await room.now((one, "nap"), (two, "abort")) == [True, False]  # the one spare task went with the first
    assert await room.now((two, "abort")) == [True]
    await room.host.settle()
    assert one.received == two.received == ["lost"]
    assert room.world.awake() == 0


async def test_context_variables_of_one_message_are_not_seen_by_the_next(room: Setup) -> None:
    client = await room.client()
    await room.now((client, "who"), (client, "who"))
    assert client.received == ["who nobody", "who nobody"]
    assert who.get() == "nobody"


async def test_a_hibernated_instance_is_freed_without_the_garbage_collector(room: Setup) -> None:
    client = await room.client()
    assert await room.now((client, "hi")) == [True]
    seen = weakref.ref(next(iter(room.host._instances.values())).object)
    gc.disable()
    try:
        await room.world.advance(10.1)
        await spin()
        assert room.world.awake() == 0
        assert seen() is None
    finally:
        gc.enable()


async def test_what_a_handler_raises_is_no_other_connections_affair_whatever_its_type(
    room: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await room.client(), await room.client()
    assert await room.now((one, "raise no Exception"), (two, "hi")) == [True, True]
    assert two.received == ["hi"]
    assert "message handler raised" in caplog.text


async def test_a_handler_that_waits_after_an_abort_leaves_no_task(room: Setup) -> None:
    client = await room.client()
    assert await room.now((client, "abort and go on")) == [True]
    await room.host.settle()
    await spin()
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "spare"]) <= 1
