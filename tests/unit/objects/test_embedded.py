import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from objects import embedded, history
from objects.clock import ManualClock
from objects.embedded import DataFolder, LocalPlacement
from objects.errors import Fenced, StorageCorrupt, StorageError, UsageError
from objects.ids import ObjectId
from objects.state import DurableObject
from tests.unit.objects.fakes import World, until

ID = ObjectId("test", bytes(32))


class Keeper(DurableObject):
    async def put(self, key: str, value: Any) -> None:
        await self.ctx.storage.put(key, value)

    async def all(self) -> dict[str, Any]:
        return await self.ctx.storage.list()

    async def fill(self, megabytes: int) -> None:
        for _ in range(megabytes):
            await self.ctx.storage.put("big", os.urandom(1_000_000))
            await self.ctx.storage.sync()


class TestDataFolder:
    def test_each_start_has_higher_epochs(self, tmp_path: Path) -> None:
        epochs = []
        for _ in range(3):
            folder = DataFolder(tmp_path / "data")
            epochs.append(asyncio.run(LocalPlacement(folder).claim(ID)).epoch)
            folder.close()
        assert epochs == sorted(set(epochs))

    async def test_an_object_is_claimed_once_at_a_time(self, tmp_path: Path) -> None:
        folder = DataFolder(tmp_path)
        placement = LocalPlacement(folder)
        claim = await placement.claim(ID)
        with pytest.raises(Fenced):
            await placement.claim(ID)
        await placement.release(claim)
        again = await placement.claim(ID)
        assert again.epoch > claim.epoch
        assert not placement.holds(claim)
        await placement.release(claim)
        assert placement.holds(again)
        folder.close()

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="data folder"):
            DataFolder(tmp_path / "file")

    def test_a_damaged_alarm_store_is_said_and_the_folder_let_go(self, tmp_path: Path) -> None:
        (tmp_path / "alarms.sqlite").write_bytes(b"nonsense" * 1000)
        for _ in range(2):
            with pytest.raises(StorageCorrupt):
                embedded.LocalDrivers(tmp_path)


class TestFlushing:
    async def test_a_flush_that_fails_sends_nothing_and_resets(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub = world.serve(Keeper).get_by_name("a")
        await stub.put("a", 1)

        def failing(descriptor: int) -> None:
            raise OSError(errno.EIO, "no disk")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing)
            with pytest.raises(StorageError, match="no disk") as caught:
                await stub.put("b", 2)
            assert caught.value.object_reset
        await stub.put("c", 3)
        assert {"a", "c"} <= set(await stub.all())

    async def test_the_flush_of_a_whole_lot_that_fails_fails_them_all(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        namespace = world.serve(Keeper)
        stubs = [namespace.get_by_name(f"{n}") for n in range(20)]
        await asyncio.gather(*(stub.put("a", 1) for stub in stubs))
        with monkeypatch.context() as patch:
            patch.setattr(embedded, "_sync_file_system", lambda descriptor: errno.EIO)
            patch.setattr(embedded, "GROUP", 1)
            results = await asyncio.gather(*(stub.put("a", 2) for stub in stubs), return_exceptions=True)
        assert all(isinstance(result, StorageError) for result in results)
        await asyncio.gather(*(stub.put("a", 3) for stub in stubs))

    async def test_without_syncfs_everything_is_flushed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[int] = []
        monkeypatch.setattr(embedded, "_syncfs", None)
        monkeypatch.setattr(os, "sync", lambda: called.append(1))
        await world.serve(Keeper).get_by_name("a").put("k", 1)
        assert called == [1]

    async def test_a_long_log_is_folded_while_the_object_runs(self, world: World) -> None:
        stub = world.serve(Keeper).get_by_name("a")
        folder: Any = world.drivers
        path = folder._folder.object_path(stub.id)
        log = path.with_name(path.name + "-wal")
        for _ in range(6):
            await stub.fill(3)
            await until(lambda: not folder._engine._checkpointing)
        assert log.stat().st_size < 3 * embedded.CHECKPOINT_BYTES
        assert world.awake() == 1

    async def test_a_fenced_owner_neither_commits_nor_answers(self, world: World) -> None:
        stub = world.serve(Keeper).get_by_name("a")
        await stub.put("a", 1)
        placement: Any = world.drivers.ports.placement
        placement._claimed.clear()
        with pytest.raises(Fenced):
            await stub.put("b", 2)
        assert await stub.all() == {"a": 1}


class TestHistory:
    """`history` does its steps in an order that a crash between any two cannot hurt."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        import sqlite3

        path = tmp_path / "object.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES ('old')")
        connection.commit()
        connection.close()
        return path

    def content(self, path: Path) -> list[str]:
        import sqlite3

        connection = sqlite3.connect(path)
        rows = [x for (x,) in connection.execute("SELECT x FROM t")]
        connection.close()
        return rows

    def change(self, path: Path, value: str) -> None:
        import sqlite3

        connection = sqlite3.connect(path)
        connection.execute("UPDATE t SET x = ?", (value,))
        connection.commit()
        connection.close()

    def test_a_restore_applied_twice_is_applied_once(self, path: Path) -> None:
        history.keep(path, "0000000000001-a-1", history.pin(path))
        self.change(path, "new")
        history.order_restore(path, "0000000000001-a-1", "0000000000002-a-1")
        order = path.with_suffix(".restore").read_text()
        history.apply_restore(path)
        assert self.content(path) == ["old"]
        # A crash before the order was removed: the undo point must not be overwritten with what is restored already.
        path.with_suffix(".restore").write_text(order)
        history.apply_restore(path)
        history.order_restore(path, "0000000000002-a-1", "0000000000003-a-1")
        history.apply_restore(path)
        assert self.content(path) == ["new"]
        history.apply_restore(path)

    def test_what_a_reader_saw_is_what_is_kept(self, path: Path) -> None:
        import sqlite3

        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        reader = history.pin(path)
        connection.execute("UPDATE t SET x = 'later'")
        connection.commit()
        history.keep(path, "0000000000001-a-1", reader)
        connection.close()
        history.order_restore(path, "0000000000001-a-1", "0000000000002-a-1")
        history.apply_restore(path)
        assert self.content(path) == ["old"]

    def test_back_to_before_there_was_a_file(self, path: Path) -> None:
        missing = path.with_name("missing.sqlite")
        history.keep(missing, "0000000000001-a-1", history.pin(missing))
        path.rename(missing)
        history.order_restore(missing, "0000000000001-a-1", "0000000000002-a-1")
        history.apply_restore(missing)
        assert not missing.exists()
        assert history.list_bookmarks(missing) == ["0000000000001-a-1", "0000000000002-a-1"]

    def test_old_points_go(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history, "MAX_POINTS", 3)
        day = 24 * 3600 * 1000
        names = [history.bookmark_name(n * 10 * day, 1, n) for n in range(1, 7)]
        for name in names:
            history.keep(path, name, history.pin(path))
        assert history.list_bookmarks(path) == names[-3:]
        history.keep(path, late := history.bookmark_name(90 * day, 1, 9), history.pin(path))
        assert history.list_bookmarks(path) == [names[-1], late]

    def test_an_unknown_point_and_one_that_went_missing(self, path: Path) -> None:
        with pytest.raises(UsageError):
            history.order_restore(path, "0000000000001-a-1", "0000000000002-a-1")
        history.keep(path, "0000000000001-a-1", history.pin(path))
        history.order_restore(path, "0000000000001-a-1", "0000000000002-a-1")
        path.with_name("object.at-0000000000001-a-1.sqlite").unlink()
        with pytest.raises(StorageCorrupt):
            history.apply_restore(path)
        history.apply_restore(path)
        assert self.content(path) == ["old"]


class TestManualClock:
    async def test_timers_run_in_order_at_their_time_and_can_be_cancelled(self) -> None:
        clock, log = ManualClock(), []

        async def settle() -> None:
            await asyncio.sleep(0)

        for delay in (3, 1, 2):
            clock.call_later(delay, lambda d=delay: log.append((d, clock.monotonic())))  # type: ignore[misc]
        cancelled = clock.call_later(1.5, lambda: log.append("never"))
        cancelled.cancel()
        start = clock.unix_ms()
        await clock.advance(2.5, settle)
        assert log == [(1, 1), (2, 2)]
        assert clock.unix_ms() == start + 2500
        await clock.advance(1, settle)
        assert log[-1] == (3, 3)
