import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from objects.alarmstore import SqliteAlarmStore
from objects.errors import StorageError
from objects.ids import ObjectId
from objects.ports import AlarmEntry

A, B = ObjectId("n", b"a" * 32, "ann"), ObjectId("n", b"b" * 32)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteAlarmStore]:
    store = SqliteAlarmStore(tmp_path / "alarms.sqlite")
    yield store
    store.close()


async def test_entries_come_back_as_they_were_most_overdue_first(store: SqliteAlarmStore) -> None:
    entries = [AlarmEntry(A, "x", 30, 30), AlarmEntry(A, "", 10, 12, 2, 3, True), AlarmEntry(B, "x", 20, 20)]
    await store.put(entries)
    found = await store.due(25, 10)
    assert found == [entries[1], entries[2]]
    assert [e.object_id.name for e in found] == ["ann", None]
    assert await store.due(100, 1) == [entries[1]]
    assert await store.next_due_ms(20) == 30
    assert await store.next_due_ms(30) is None


async def test_one_entry_per_object_and_name(store: SqliteAlarmStore) -> None:
    await store.put([AlarmEntry(A, "x", 30, 30)])
    await store.put([AlarmEntry(A, "x", 5, 5), AlarmEntry(B, "x", 7, 7)])
    assert [(e.object_id, e.due_ms) for e in await store.due(100, 10)] == [(A, 5), (B, 7)]


async def test_removal_leaves_an_entry_that_was_changed(store: SqliteAlarmStore) -> None:
    old = AlarmEntry(A, "x", 30, 30)
    await store.put([old])
    await store.put([AlarmEntry(A, "x", 50, 50)])
    await store.remove([old])
    assert len(await store.due(100, 10)) == 1
    await store.remove([AlarmEntry(A, "x", 50, 999)])
    assert await store.due(100, 10) == []


async def test_calls_happen_in_order_and_share_transactions(store: SqliteAlarmStore) -> None:
    puts = [store.put([AlarmEntry(A, "x", n, n)]) for n in range(1, 200)]
    *_, found = await asyncio.gather(*puts, store.due(1000, 10))
    assert [e.due_ms for e in found] == [199]


async def test_entries_survive_a_restart_and_a_waiter_that_gave_up(tmp_path: Path) -> None:
    store = SqliteAlarmStore(tmp_path / "a.sqlite")
    waiting = asyncio.ensure_future(store.put([AlarmEntry(A, "x", 1, 1)]))
    await asyncio.sleep(0)
    waiting.cancel()
    await store.put([AlarmEntry(B, "x", 2, 2)])
    store.close()
    again = SqliteAlarmStore(tmp_path / "a.sqlite")
    assert len(await again.due(10, 10)) == 2
    again.close()


async def test_a_failed_write_changes_nothing_and_says_so(store: SqliteAlarmStore) -> None:
    await store.put([AlarmEntry(A, "x", 1, 1)])
    store._thread.submit(store._connection.execute, "PRAGMA query_only = ON").result()
    with pytest.raises(StorageError):
        await store.put([AlarmEntry(B, "x", 2, 2)])
    store._thread.submit(store._connection.execute, "PRAGMA query_only = OFF").result()
    await store.put([AlarmEntry(B, "y", 3, 3)])
    assert [e.due_ms for e in await store.due(10, 10)] == [1, 3]
