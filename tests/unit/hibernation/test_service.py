"""When the shell of the table is woken by time: never while no socket waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from hibernation._sockets.table import SocketTable
from hibernation.manager import HibernationManager
from hibernation.service import ROUNDING, SocketService
from objects.clock import ManualClock, ManualTimer
from tests.support.sockets import Peer, frame


class Clock(ManualClock):
    """Keeps the delays that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> ManualTimer:
        self.delays.append(delay)
        return super().call_later(delay, callback)


class World:
    def __init__(self) -> None:
        self.table = SocketTable(ping_interval=0.0, close_timeout=5.0, tick=0.5)
        self.clock = Clock()
        self.service = SocketService(HibernationManager(self.table, self.clock))
        self.service.start()

    async def settle(self) -> None:
        """Let the loop see the table's descriptor."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds, self.settle)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.service.stop()


class TestTime:
    async def test_sockets_that_only_stay_set_no_timer(self, world: World) -> None:
        peers = [Peer(world.table, 0.0) for _ in range(10)]
        peers[0].raw.send(frame(9, b"ping"))
        await world.advance(86_400)
        assert peers[0].raw.recv(100) == b"\x8a\x04ping"
        assert world.clock.delays == []
        for peer in peers:
            peer.close()

    async def test_a_close_after_a_long_silence_has_its_whole_timeout(self, world: World) -> None:
        peer = Peer(world.table, 0.0)
        await world.advance(86_400)
        world.table.close(peer.handle, 1000)
        await world.advance(4.9)
        assert world.table.ready_state(peer.handle) == 2
        await world.advance(0.7)
        assert world.table.ready_state(peer.handle) == 3
        assert len(world.clock.delays) == 1
        assert 5.0 <= world.clock.delays[0] <= 5.5 + ROUNDING
        peer.close()

    async def test_many_closes_share_a_timer(self, world: World) -> None:
        peers = [Peer(world.table, 0.0) for _ in range(100)]
        for peer in peers:
            world.table.close(peer.handle, 1000)
        await world.advance(6.0)
        assert world.table.counters()["rows"] == 0
        assert len(world.clock.delays) == 1
        for peer in peers:
            peer.close()
