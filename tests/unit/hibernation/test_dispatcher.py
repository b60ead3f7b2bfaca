"""Order, backpressure and ends of a connection's events; the waker is played by hand, one settlement at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hibernation._sockets.table import MESSAGE, SocketTable
from hibernation.dispatcher import Dispatcher
from hibernation.manager import HibernationManager
from objects.clock import ManualClock
from objects.errors import LimitExceeded, UsageError
from objects.ids import IdFactory, ObjectId
from objects.ports import (
    AutoResponse,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionFailed,
    ConnectionId,
    Delivery,
    Frame,
    MessageReceived,
    ReadyState,
    UpgradeAnswer,
    UpgradeRequest,
)
from tests.support.sockets import ANSWER, Peer, drain, frame

ROOM = IdFactory("rooms", bytes(16)).from_name("lobby")


class Hand:
    """A waker that keeps what it is given until the test settles it."""

    def __init__(self) -> None:
        self.under_way: list[tuple[ConnectionEvent, Callable[[Delivery], None]]] = []
        self.broken = False

    async def connect(self, object_id: ObjectId, request: UpgradeRequest) -> UpgradeAnswer:
        raise NotImplementedError

    def handle_now(self, object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
        return False

    def deliver(self, object_id: ObjectId, event: ConnectionEvent, settled: Callable[[Delivery], None]) -> None:
        assert object_id == ROOM
        if self.broken:
            raise RuntimeError("a bug")
        self.under_way.append((event, settled))

    @property
    def events(self) -> list[ConnectionEvent]:
        return [event for event, _ in self.under_way]

    def settle(self, delivery: Delivery = Delivery.DISPATCHED) -> ConnectionEvent:
        event, settled = self.under_way.pop(0)
        settled(delivery)
        return event


class World:
    def __init__(self) -> None:
        self.table = SocketTable(ping_interval=0.0)
        self.clock = ManualClock()
        self.manager = HibernationManager(self.table, self.clock)
        self.hand = Hand()
        self.dispatcher = Dispatcher(self.manager, self.hand, max_frames=4, max_bytes=10_000)
        self.peers: list[Peer] = []

    def client(self, *tags: str) -> Peer:
        peer = Peer(self.table, 0.0, opened=False)
        self.peers.append(peer)
        connection_id = ConnectionId(peer.handle)
        self.manager.begin(UpgradeRequest(connection_id, "ws://test/room"))
        self.manager.accept(ROOM, connection_id, tags, hibernatable=True)
        self.manager.answered(connection_id, None)
        self.table.open(peer.handle, ANSWER, 0.0)
        peer.raw.recv(len(ANSWER))
        return peer

    def write(self, peer: Peer, data: bytes) -> None:
        peer.raw.send(data)
        self.pump()

    def pump(self) -> None:
        self.dispatcher.receive(drain(self.table, 0.0))

    def settle_all(self) -> list[ConnectionEvent]:
        events = []
        while self.hand.under_way:
            events.append(self.hand.settle())
            self.pump()
        return events


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for peer in world.peers:
        peer.close()
    world.hand.broken = False
    world.pump()
    world.settle_all()
    assert world.dispatcher.lines == 0
    assert world.manager.counters() == {"objects": 0, "upgrades": 0, "standard": 0}
    assert world.table.counters()["rows"] == world.table.counters()["groups"] == 0


def data(events: list[Any]) -> list[Any]:
    return [event.data for event in events if isinstance(event, MessageReceived)]


class TestOrder:
    def test_one_event_of_a_connection_is_under_way_at_a_time(self, world: World) -> None:
        one, two = world.client(), world.client()
        world.write(one, frame(1, b"a") + frame(1, b"b"))
        world.write(two, frame(1, b"c"))
        assert data(world.hand.events) == ["a", "c"]
        world.hand.settle()
        assert data(world.hand.events) == ["c", "b"]
        world.settle_all()
        assert world.dispatcher.lines == 0

    def test_the_end_waits_behind_the_messages_before_it(self, world: World) -> None:
        peer = world.client("kept")
        world.write(peer, frame(1, b"a") + frame(8, b"\x0f\xa0bye"))
        assert data(world.hand.events) == ["a"]
        assert world.manager.ready_state(ConnectionId(peer.handle)) is ReadyState.CLOSED
        assert world.manager.count(ROOM, "kept") == 1
        world.hand.settle()
        assert world.hand.events == [ConnectionClosed(ConnectionId(peer.handle), 4000, "bye", True)]
        assert world.manager.count(ROOM, "kept") == 1
        world.hand.settle()
        assert world.manager.count(ROOM) == 0

    def test_a_failure_comes_before_the_end(self, world: World) -> None:
        peer = world.client()
        world.write(peer, frame(1, b"\xff"))
        assert world.settle_all() == [
            ConnectionFailed(ConnectionId(peer.handle), "1007 invalid UTF-8"),
            ConnectionClosed(
                ConnectionId(peer.handle), 1006, "WebSocket disconnected without sending Close frame.", False
            ),
        ]


class TestWrites:
    def test_answers_to_messages_of_one_read_gather_until_the_next_connection_has_its_turn(self, world: World) -> None:
        one, two = world.client(), world.client()
        arrived: list[list[str]] = []

        def echo(object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
            arrived.append(one.texts() + two.texts())
            world.manager.send(connection_id, data)
            return True

        world.hand.handle_now = echo  # type: ignore[method-assign]
        messages = [(one, text) for text in ("1", "2", "3")] + [(two, "4"), (one, "5"), (one, "6")]
        world.dispatcher.receive([(MESSAGE, peer.handle, text, None) for peer, text in messages])
        assert arrived == [[], ["1"], [], ["2", "3"], ["4"], ["5"]]
        assert one.texts() == ["6"]

    def test_what_has_gathered_leaves_also_when_a_handler_ends_the_process(self, world: World) -> None:
        peer = world.client()

        def echo(object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
            world.manager.send(connection_id, data)
            if data == "3":
                raise KeyboardInterrupt
            return True

        world.hand.handle_now = echo  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            world.dispatcher.receive([(MESSAGE, peer.handle, text, None) for text in "123"])
        assert peer.texts() == ["1", "2", "3"]


class TestBackpressure:
    def test_reading_pauses_at_the_limit_and_goes_on_at_half_of_it(self, world: World) -> None:
        peer = world.client()
        for i in range(20):
            world.write(peer, frame(1, str(i).encode()))
        assert world.table.counters()["messages_received"] == 5  # one under way, four waiting
        assert data(world.settle_all()) == [str(i) for i in range(20)]

    def test_the_limit_counts_bytes_too(self, world: World) -> None:
        peer = world.client()
        for _ in range(6):
            world.write(peer, frame(2, bytes(6_000)))
        assert world.table.counters()["messages_received"] == 3
        assert len(world.settle_all()) == 6

    def test_one_slow_connection_does_not_hold_up_another(self, world: World) -> None:
        slow, quick = world.client(), world.client()
        for _ in range(20):
            world.write(slow, frame(1, b"x"))
        world.write(quick, frame(1, b"quick"))
        assert "quick" in data(world.hand.events)


class TestFailures:
    def test_an_overloaded_object_loses_the_connection_and_only_hears_of_its_end(self, world: World) -> None:
        peer, other = world.client("t"), world.client("t")
        world.write(peer, frame(1, b"a") + frame(1, b"b"))
        world.hand.settle(Delivery.OVERLOADED)
        assert world.manager.connections(ROOM, "t") == [other.handle]
        assert world.hand.events == []
        world.write(peer, frame(1, b"c") + frame(8, b"\x03\xf5"))
        assert world.settle_all() == [ConnectionClosed(ConnectionId(peer.handle), 1013, "", True)]
        assert world.dispatcher.overloaded == 1
        peer.read()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1013

    def test_a_failed_delivery_frees_the_connection(self, world: World) -> None:
        peer = world.client()
        world.write(peer, frame(1, b"a") + frame(1, b"b"))
        world.manager.disconnect_all(ROOM, "reset")
        world.hand.settle(Delivery.FAILED)
        assert world.hand.events == []
        assert peer.raw.recv(10) == b""

    def test_a_reset_while_an_event_is_under_way_leaves_nothing_behind(self, world: World) -> None:
        peer = world.client()
        world.write(peer, frame(1, b"a"))
        world.manager.disconnect_all(ROOM, "reset")
        world.hand.settle(Delivery.DISPATCHED)
        assert world.dispatcher.lines == 0

    def test_a_waker_that_raises_costs_that_connection_only(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        peer, other = world.client(), world.client()
        world.hand.broken = True
        world.write(peer, frame(1, b"a"))
        world.hand.broken = False
        assert peer.raw.recv(10) == b""
        world.write(other, frame(1, b"b"))
        assert data(world.hand.events) == ["b"]
        assert "delivering" in caplog.text


class TestManager:
    def test_accept_needs_an_undecided_upgrade_and_stays_within_the_limits(self, world: World) -> None:
        peer = Peer(world.table, 0.0, opened=False)
        world.peers.append(peer)
        connection_id = ConnectionId(peer.handle)
        with pytest.raises(UsageError):
            world.manager.accept(ROOM, connection_id, [], hibernatable=True)
        world.manager.begin(UpgradeRequest(connection_id, "ws://test/"))
        for tags in (["x"] * 11, ["é" * 129]):
            with pytest.raises(LimitExceeded):
                world.manager.accept(ROOM, connection_id, tags, hibernatable=True)
        world.manager.accept(ROOM, connection_id, ["é" * 128] + ["x"] * 9, hibernatable=True)
        with pytest.raises(UsageError):
            world.manager.accept(ROOM, connection_id, [], hibernatable=True)
        world.manager.answered(connection_id, None)

    def test_an_attachment_is_a_copy_within_its_limit_and_ends_with_its_connection(self, world: World) -> None:
        """W-25."""
        peer = world.client()
        connection_id = ConnectionId(peer.handle)
        world.manager.set_attachment(connection_id, b"x" * 16_384)
        with pytest.raises(LimitExceeded):
            world.manager.set_attachment(connection_id, b"y" * 16_385)
        assert world.manager.attachment(connection_id) == b"x" * 16_384
        world.manager.set_attachment(connection_id, None)
        assert world.manager.attachment(connection_id) is None
        world.manager.disconnect_all(ROOM, "reset")
        world.manager.set_attachment(connection_id, b"late")
        assert world.manager.attachment(connection_id) is None
        assert world.manager.info(connection_id) is None
        assert world.manager.ready_state(connection_id) is ReadyState.CLOSED

    def test_a_connection_that_is_gone_is_not_an_error(self, world: World) -> None:
        nobody = ConnectionId(1 << 40)
        world.manager.send(nobody, "x")
        world.manager.close(nobody, 1000, "")
        world.manager.hold(ROOM, nobody)
        world.manager.release(ROOM, nobody)
        assert world.manager.buffered_amount(nobody) == 0
        assert world.manager.auto_response_at_ms(nobody) is None
        assert world.manager.last_seen_ms(nobody) is None
        assert world.manager.broadcast(ROOM, "x") == 0
        assert world.manager.connections(ROOM) == []
        assert world.manager.auto_responses(ROOM) == ()
        world.manager.disconnect_all(ROOM, "nothing there")

    async def test_rules_and_event_timeout_last_as_long_as_instance_or_connections(self, world: World) -> None:
        await world.manager.attach(ROOM)
        world.manager.set_auto_responses(ROOM, [AutoResponse("a", "b")])
        world.manager.set_event_timeout(ROOM, 500)
        peer = world.client()
        world.manager.detach(ROOM)
        assert world.manager.auto_responses(ROOM) == (AutoResponse("a", "b"),)
        assert world.manager.event_timeout(ROOM) == 500
        with pytest.raises(LimitExceeded):
            world.manager.set_event_timeout(ROOM, 604_800_001)
        peer.close()
        world.pump()
        world.settle_all()
        assert world.manager.auto_responses(ROOM) == ()
        assert world.manager.event_timeout(ROOM) is None
