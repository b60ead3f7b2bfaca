import asyncio
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import uvloop

from objects import memory
from objects.blockers import Blockers
from objects.errors import HostStopping, InvalidObjectId, QueueFull, UsageError
from objects.host import GIVE_BACK_AFTER
from objects.limits import Limits
from objects.ports import Delivery, MessageReceived
from objects.state import DurableObject, ObjectState
from tests.unit.objects.fakes import World


class Counter(DurableObject):
    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        self.count = ctx.storage.kv.get("count") or 0

    async def increment(self, by: int = 1) -> int:
        self.count += by
        await self.ctx.storage.put("count", self.count)
        return int(self.count)

    async def wait(self) -> str:
        await self.env.wait()
        return "waited"

    async def nap(self) -> None:
        await self.ctx.sleep(1_000_000)

    async def gather(self) -> int:
        async def one(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

        return sum(await asyncio.gather(*(one(n) for n in range(10))))


async def test_memory_goes_storage_stays(world: World) -> None:
    stub = world.serve(Counter).get_by_name("a")
    assert await stub.increment() == 1
    assert await stub.increment(by=2) == 3
    await world.advance(11)
    assert world.awake() == 0
    assert await stub.increment() == 4
    await world.restart()
    assert await world.host.namespaces["test"].get_by_name("a").increment() == 5


async def test_an_object_in_memory_that_does_nothing_takes_less_than_10_kb(world: World) -> None:
    """And so does what it leaves behind: the allocator keeps the place of objects that were awake together."""

    class Nothing(DurableObject):
        async def nothing(self) -> None: ...

    namespace = world.serve(Nothing)
    for n in range(10):
        await namespace.get_by_name(f"before {n}").nothing()
    tracemalloc.start()
    try:
        count = 200
        for n in range(count):
            await namespace.get_by_name(f"object {n}").nothing()
        await world.advance(1)
        gc.collect()
        bytes_each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert world.awake() == 10 + count
    assert bytes_each < 10_000


async def test_memory_is_given_back_when_many_objects_have_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory, "give_back", lambda: loop.call_soon_threadsafe(given.set))
    namespace = world.serve(Counter)
    for n in range(GIVE_BACK_AFTER - 1):
        await namespace.get_by_name(f"{n}").increment()
    await world.advance(11)
    assert world.awake() == 0
    await loop.run_in_executor(None, lambda: [world.host._closer.submit(int).result() for _ in range(4)])
    assert not given.is_set()
    await namespace.get_by_name("last").increment()
    await world.advance(11)
    async with asyncio.timeout(10):
        await given.wait()


async def test_ids_lead_to_the_same_object_however_they_were_made(world: World) -> None:
    namespace = world.serve(Counter)
    named = namespace.id_from_name("a")
    assert await namespace.get(named).increment() == 1
    assert await namespace.get(namespace.id_from_string(str(named))).increment() == 2
    assert await namespace.get(namespace.new_unique_id()).increment() == 1
    assert namespace.get(named).name == "a"
    other = world.serve(Counter, name="other")
    with pytest.raises(InvalidObjectId):
        other.get(named)
    with pytest.raises(InvalidObjectId):
        other.id_from_string(str(named))


async def test_making_ids_and_stubs_wakes_nothing(world: World) -> None:
    namespace = world.serve(Counter)
    namespace.get(namespace.new_unique_id())
    namespace.get_by_name("a")
    await world.host.settle()
    assert world.awake() == 0


async def test_registering(world: World) -> None:
    world.serve(Counter)
    with pytest.raises(UsageError, match="already"):
        world.host.register("test", Counter)
    with pytest.raises(UsageError, match="DurableObject"):
        world.host.register("dict", dict)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        world.host.register("../up", Counter)


async def test_too_many_objects_in_memory_are_refused(world: World) -> None:
    world.host.limits = Limits(instances=2)
    namespace = world.serve(Counter)
    for n in range(2):
        await namespace.get_by_name(f"{n}").increment()
    with pytest.raises(QueueFull):
        await namespace.get_by_name("2").increment()
    await namespace.get_by_name("1").increment()
    await world.advance(11)
    await namespace.get_by_name("2").increment()


class Leaving(Counter):
    async def before_leave(self, reason: str) -> None:
        self.env.append(reason)
        if "slow" in self.env:
            await self.ctx.sleep(100)
        if "fail" in self.env:
            raise ValueError("no")
        await self.ctx.storage.put("left", reason)

    async def left(self) -> Any:
        return await self.ctx.storage.get("left")


class TestLeaving:
    async def test_the_handler_runs_once_before_hibernation_and_its_writes_are_kept(self, world: World) -> None:
        reasons: list[str] = []
        stub = world.serve(Leaving, reasons).get_by_name("a")
        await stub.increment()
        await world.advance(10.1)
        assert world.awake() == 0
        assert reasons == ["idle"]
        assert await stub.left() == "idle"
        await world.host.force_hibernate(stub.id)
        await stub.increment()
        await world.restart()
        assert reasons == ["idle", "forced", "stopping"]

    async def test_an_event_meanwhile_keeps_the_instance(self, world: World) -> None:
        reasons = ["slow"]
        stub = world.serve(Leaving, reasons).get_by_name("a")
        await stub.increment()
        await world.advance(10.1)
        assert await stub.increment() == 2
        await world.advance(10.1)
        assert world.awake() == 1
        await world.advance(30)
        assert world.awake() == 0
        assert reasons == ["slow", "idle", "idle"]

    async def test_one_that_fails_or_takes_over_ten_seconds_holds_nobody_up(self, world: World) -> None:
        for trouble in ("fail", "slow"):
            reasons = [trouble]
            stub = world.serve(Leaving, reasons, name=trouble).get_by_name("a")
            await stub.increment()
            await world.advance(21)
            assert world.awake() == 0
            assert reasons == [trouble, "idle"]


class TestStopping:
    async def test_calls_under_way_finish_and_new_ones_are_refused(self, tmp_path: Path) -> None:
        world, go = World(tmp_path), asyncio.Event()
        stub = world.serve(Counter, go).get_by_name("a")
        call = stub.wait()
        await world.host.settle()
        stopping = asyncio.ensure_future(world.stop())
        await asyncio.sleep(0)
        with pytest.raises(HostStopping):
            await stub.increment()
        deliveries: list[Delivery] = []
        world.host.deliver(stub.id, MessageReceived(1, "x"), deliveries.append)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert deliveries == [Delivery.FAILED]
        go.set()
        assert await call == "waited"
        await stopping

    async def test_one_that_does_not_finish_is_reset_after_its_time(self, tmp_path: Path) -> None:
        world = World(tmp_path, Limits(stop_s=0.05))
        call = world.serve(Counter).get_by_name("a").nap()
        await world.host.settle()
        await world.stop()
        with pytest.raises(HostStopping):
            await call

    async def test_one_that_is_still_starting_leaves_nothing_behind(self, tmp_path: Path) -> None:
        world, go = World(tmp_path, Limits(stop_s=0.05)), asyncio.Event()
        engine: Any = world.drivers.ports.storage
        load = engine.load

        async def slow(claim: Any) -> Any:
            await go.wait()
            return await load(claim)

        engine.load = slow
        call = world.serve(Counter).get_by_name("a").increment()
        await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(world.stop())
        with pytest.raises(HostStopping):
            await call
        assert not stopping.done()
        go.set()
        await stopping
        assert len(world.host.files) == 0
        placement: Any = world.drivers.ports.placement
        assert placement._claimed == {}

    async def test_the_loops_task_factory_is_put_back(self, tmp_path: Path) -> None:
        loop, made = asyncio.get_running_loop(), []

        def factory(loop: Any, coro: Any, **options: Any) -> Any:
            made.append(coro)
            return asyncio.Task(coro, loop=loop, **options)

        loop.set_task_factory(factory)
        world = World(tmp_path)
        world.serve(Counter)
        await asyncio.create_task(asyncio.sleep(0))
        assert len(made) == 1
        await world.stop()
        assert loop.get_task_factory() is factory
        loop.set_task_factory(None)


async def test_replacing_code_resets_what_will_not_end(world: World) -> None:
    world.host.limits = Limits(stop_s=0.05)
    stub = world.serve(Counter).get_by_name("a")
    call = stub.nap()
    await world.host.settle()

    class Newer(Counter):
        async def increment(self, by: int = 1) -> int:
            return -1

    await world.host.replace("test", Newer)
    with pytest.raises(HostStopping):
        await call
    assert await stub.increment() == -1
    with pytest.raises(UsageError):
        await world.host.replace("none", Newer)


def test_it_runs_on_uvloop(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        stub = world.serve(Counter).get_by_name("a")
        assert await stub.gather() == 45
        assert await asyncio.gather(*(stub.increment() for _ in range(20))) == list(range(1, 21))
        await world.advance(11)
        assert world.awake() == 0
        await world.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class TestBlockers:
    def test_changes_are_told_at_the_first_and_the_last(self) -> None:
        changes: list[bool] = []
        blockers = Blockers(changes.append)
        blockers.add("a")
        with blockers.held("b"):
            assert blockers.counts() == {"a": 1, "b": 1}
            assert not blockers.only("a")
            blockers.remove("a")
            assert blockers.only("b", "c")
        assert changes == [True, False]
        assert not blockers
        with pytest.raises(AssertionError):
            blockers.remove("a")

    async def test_waiting_for_some_of_them(self) -> None:
        blockers = Blockers(lambda busy: None)
        blockers.add("a")
        blockers.add("b")
        waiting = asyncio.ensure_future(blockers.until_none("a"))
        await asyncio.sleep(0)
        blockers.remove("b")
        await asyncio.sleep(0)
        assert not waiting.done()
        blockers.remove("a")
        await waiting
        blockers.add("a")
        waiting = asyncio.ensure_future(blockers.until_none("a"))
        await asyncio.sleep(0)
        blockers.end()
        await waiting
