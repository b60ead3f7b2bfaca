"""Alarms; names carry the ids of the behaviours in the objects contract (A-…)."""

import asyncio
from typing import Any

import pytest

from objects.errors import LimitExceeded, ObjectReset, StorageError, UsageError
from objects.state import AlarmInfo, DurableObject
from tests.unit.objects import conftest
from tests.unit.objects.fakes import World

world = conftest.world


class Clocked(DurableObject):
    """`env` is the log; "fail" in it makes the handler raise."""

    async def alarm(self, info: AlarmInfo) -> None:
        now = self.env.world.clock.unix_ms()
        self.env.runs.append((now - self.env.start, info.retry_count, info.name))
        self.env.seen.append(await self.ctx.storage.get_alarm(info.name))
        if self.env.handler is not None:
            await self.env.handler(self, info)

    async def set(self, in_ms: float, name: str = "") -> None:
        await self.ctx.storage.set_alarm(self.env.world.clock.unix_ms() + in_ms, name)

    async def set_at(self, when: Any) -> None:
        await self.ctx.storage.set_alarm(when)

    async def get(self, name: str = "") -> int | None:
        when = await self.ctx.storage.get_alarm(name)
        return None if when is None else when - self.env.start

    async def list(self) -> dict[str, int]:
        return {name: when - self.env.start for name, when in (await self.ctx.storage.list_alarms()).items()}

    async def delete(self, name: str = "") -> None:
        await self.ctx.storage.delete_alarm(name)

    async def wipe(self, alarms: bool) -> None:
        await self.ctx.storage.delete_all(alarms=alarms)

    async def name(self) -> str | None:
        return self.ctx.id.name

    async def abort(self) -> None:
        self.ctx.abort("asked to")


class Bench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.start = world.clock.unix_ms()
        self.runs: list[Any] = []
        self.seen: list[int | None] = []
        self.handler: Any = None
        self.namespace = world.serve(Clocked, self)
        self.stub = self.namespace.get_by_name("ann")

    async def stored(self) -> list[Any]:
        return await self.world.drivers.ports.alarms.due(1 << 60, 100)


@pytest.fixture
async def bench(world: World) -> Bench:
    return Bench(world)


async def test_an_alarm_runs_at_its_time_and_never_before(bench: Bench) -> None:
    await bench.stub.set(5_000)
    assert await bench.stub.get() == 5_000
    await bench.world.advance(4.999)
    assert bench.runs == []
    await bench.world.advance(0.002)
    assert bench.runs == [(5_000, 0, "")]
    assert await bench.stub.get() is None
    assert await bench.stored() == []


async def test_a01_the_running_alarm_is_not_there_any_more(bench: Bench) -> None:
    await bench.stub.set(10)
    await bench.world.advance(1)
    assert bench.seen == [None]


async def test_a02_an_alarm_set_by_a_handler_that_raises_replaces_its_retry(bench: Bench) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        if len(bench.runs) == 1:
            await obj.set(60_000)
            raise ValueError("after setting a new one")

    bench.handler = handler
    await bench.stub.set(1_000)
    await bench.world.advance(50)
    assert bench.runs == [(1_000, 0, "")]
    await bench.world.advance(50)
    assert bench.runs == [(1_000, 0, ""), (61_000, 0, "")]
    assert await bench.stored() == []


async def test_a03_a_handler_that_always_raises_runs_seven_times(bench: Bench) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        raise ValueError("always")

    bench.handler = handler
    await bench.stub.set(1_000)
    await bench.world.advance(1_000)
    waits = [later[0] - earlier[0] for earlier, later in zip(bench.runs, bench.runs[1:], strict=False)]
    assert waits == [2_000, 4_000, 8_000, 16_000, 32_000, 64_000]
    assert [count for _, count, _ in bench.runs] == list(range(7))
    assert await bench.stub.get() is None
    assert await bench.stored() == []


async def test_a04_deleting_in_the_handler_leaves_the_run_alone_and_removes_a_queued_one(bench: Bench) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        await obj.set(1_000)
        await obj.delete()

    bench.handler = handler
    await bench.stub.set(1_000)
    await bench.world.advance(100)
    assert len(bench.runs) == 1
    assert await bench.stored() == []


async def test_a05_a_past_time_is_now_and_a_bad_one_an_error(bench: Bench) -> None:
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            await bench.stub.set_at(bad)
    await bench.stub.set_at(1)
    await bench.world.host.settle()
    assert bench.runs == [(0, 0, "")]


@pytest.mark.parametrize("alarms", [True, False])
async def test_a06_delete_all_takes_the_alarm_along_unless_told_not_to(bench: Bench, alarms: bool) -> None:
    await bench.stub.set(5_000)
    await bench.stub.wipe(alarms)
    assert await bench.stub.get() == (None if alarms else 5_000)
    await bench.world.advance(10)
    assert len(bench.runs) == (0 if alarms else 1)
    assert await bench.stored() == []


@pytest.mark.parametrize("retry", [True, False])
async def test_a07_abort_can_say_not_to_retry(bench: Bench, retry: bool) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        obj.ctx.abort("in the alarm", retry_alarm=retry)

    bench.handler = handler
    await bench.stub.set(1_000)
    await bench.world.advance(5)
    assert len(bench.runs) == (2 if retry else 1)
    bench.handler = None
    await bench.world.advance(100)
    assert await bench.stub.get() is None
    assert await bench.stored() == []


async def test_a08_a_restart_loses_neither_the_alarm_nor_the_name(bench: Bench) -> None:
    names: list[str | None] = []

    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        names.append(await obj.name())

    bench.handler = handler
    await bench.stub.set(60_000)
    await bench.world.restart()
    await bench.world.advance(61)
    assert bench.runs == [(60_000, 0, "")]
    assert names == ["ann"]


async def test_an_alarm_overdue_at_start_runs_at_once(bench: Bench) -> None:
    await bench.stub.set(1_000)
    await bench.world.stop()
    bench.world.clock._now += 3_600
    bench.world._open()
    bench.world.serve(Clocked, bench)
    await bench.world.host.settle()
    assert bench.runs == [(3_600_000, 0, "")]


async def test_named_alarms_stand_side_by_side(bench: Bench) -> None:
    await bench.stub.set(3_000, "b")
    await bench.stub.set(1_000, "a")
    await bench.stub.set(2_000)
    assert list((await bench.stub.list()).items()) == [("a", 1_000), ("", 2_000), ("b", 3_000)]
    await bench.stub.delete("b")
    await bench.world.advance(10)
    assert bench.runs == [(1_000, 0, "a"), (2_000, 0, "")]
    for n in range(100):
        await bench.stub.set(10_000, f"{n}")
    with pytest.raises(LimitExceeded):
        await bench.stub.set(10_000, "one more")
    await bench.stub.set(20_000, "0")


async def test_moving_an_alarm_both_ways(bench: Bench) -> None:
    await bench.stub.set(10_000)
    await bench.stub.set(5_000)
    assert [e.due_ms - bench.start for e in await bench.stored()] == [5_000]
    await bench.stub.set(20_000)
    await bench.world.host.settle()
    assert [e.due_ms - bench.start for e in await bench.stored()] == [20_000]
    await bench.world.advance(19.9)
    assert bench.runs == []
    await bench.world.advance(0.2)
    assert bench.runs == [(20_000, 0, "")]


async def test_an_entry_that_is_too_early_is_put_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.stub.set(5_000)
    store = bench.world.drivers.ports.alarms
    put = store.put

    async def failing(entries: Any) -> None:
        raise StorageError("the store is down")

    monkeypatch.setattr(store, "put", failing)
    await bench.stub.set(20_000)
    await bench.world.host.settle()
    monkeypatch.setattr(store, "put", put)
    assert [e.due_ms - bench.start for e in await bench.stored()] == [5_000]
    await bench.world.advance(10)
    assert bench.runs == []
    await bench.world.advance(11)
    assert bench.runs == [(20_000, 0, "")]


async def test_if_the_store_cannot_be_told_of_an_earlier_time_the_write_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(entries: Any) -> None:
        raise StorageError("the store is down")

    with monkeypatch.context() as patch:
        patch.setattr(bench.world.drivers.ports.alarms, "put", failing)
        with pytest.raises(StorageError, match="down"):
            await bench.stub.set(5_000)
    assert await bench.stub.get() is None
    assert bench.namespace.meter.resets == 1


async def test_an_undone_alarm_does_not_run(bench: Bench) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None: ...

    bench.handler = handler
    await bench.stub.get()

    class Undoing(Clocked):
        async def set(self, in_ms: float, name: str = "") -> None:
            def inside() -> None:
                self.ctx.storage._alarms.set(self.env.start + in_ms, name, confirmed=True)
                raise ValueError

            with pytest.raises(ValueError):
                self.ctx.storage.transaction_sync(inside)

    await bench.world.host.replace("test", Undoing)
    await bench.stub.set(1_000)
    await bench.world.advance(5)
    assert bench.runs == []
    assert await bench.stored() == []


async def test_failures_that_are_not_the_handlers_fault_do_not_count(bench: Bench) -> None:
    from objects.alarms import Outcome, retry
    from objects.ports import AlarmEntry

    entry: AlarmEntry | None = AlarmEntry(bench.stub.id, "", 1_000, 1_000)
    delays = []
    for outcome in [Outcome.INTERRUPTED] * 12 + [Outcome.FAILED] * 2 + [Outcome.INTERRUPTED, Outcome.FAILED]:
        assert entry is not None
        entry = retry(entry, outcome, 0, 0.0)
        assert entry is not None
        delays.append(entry.due_ms // 1000)
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 2, 4, 8, 2]
    assert entry is not None
    assert entry.retry_count == 3
    assert retry(entry, Outcome.FAILED, 0, 1.0).due_ms == 5_000  # type: ignore[union-attr]


async def test_a_class_without_a_handler_cannot_set_one(world: World) -> None:
    class Plain(DurableObject):
        async def set(self) -> None:
            await self.ctx.storage.set_alarm(1)

    with pytest.raises(UsageError, match="alarm"):
        await world.serve(Plain).get_by_name("a").set()


async def test_a_handler_over_fifteen_minutes_is_reset_and_retried(bench: Bench) -> None:
    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        if len(bench.runs) == 1:
            await obj.ctx.sleep(10_000)

    bench.handler = handler
    await bench.stub.set(1_000)
    await bench.world.advance(1 + 900 + 3)
    assert [(at, count) for at, count, _ in bench.runs] == [(1_000, 0), (903_000, 1)]


async def test_abort_keeps_alarms_that_were_set_before(bench: Bench) -> None:
    await bench.stub.set(1_000)
    with pytest.raises(ObjectReset):
        await bench.stub.abort()
    await bench.world.advance(2)
    assert len(bench.runs) == 1


async def test_alarms_of_a_restored_state_run_again(bench: Bench) -> None:
    class Restoring(Clocked):
        async def mark(self) -> str:
            return await self.ctx.storage.get_current_bookmark()

        async def go_back(self, bookmark: str) -> None:
            await self.ctx.storage.on_next_session_restore_bookmark(bookmark)
            self.ctx.abort("restore")

    await bench.world.host.replace("test", Restoring)
    await bench.stub.set(60_000, "kept")
    bookmark = await bench.stub.mark()
    await bench.stub.delete("kept")
    await bench.stub.set(30_000, "later than the restore point")
    with pytest.raises(ObjectReset):
        await bench.stub.go_back(bookmark)
    assert await bench.stub.list() == {"kept": 60_000}
    await bench.world.restart()
    await bench.world.advance(61)
    assert bench.runs == [(60_000, 0, "kept")]
    assert await bench.stored() == []


async def test_handlers_that_hang_do_not_keep_the_alarms_of_others_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objects.alarms.CONCURRENT_ALARMS", 2)
    go = asyncio.Event()

    async def handler(obj: Clocked, info: AlarmInfo) -> None:
        if info.name.startswith("hangs"):
            await go.wait()

    bench.handler = handler
    for n in range(5):
        await bench.stub.set(1_000 + n, f"hangs{n}")
    await bench.namespace.get_by_name("bob").set(2_000, "quick")
    await bench.world.advance(9)
    assert [name for _, _, name in bench.runs] == ["hangs0", "hangs1"]
    await bench.world.advance(25)
    assert [name for _, _, name in bench.runs] == ["hangs0", "hangs1", "hangs2", "hangs3", "hangs4", "quick"]
    go.set()
    await bench.world.advance(1)
    assert await bench.stored() == []
