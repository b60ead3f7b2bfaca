"""What an object keeps; names carry the ids of the behaviours in the objects contract (S-…)."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from objects.embedded import LocalDrivers
from objects.errors import (
    LimitExceeded,
    NotSerializable,
    ObjectReset,
    SqlError,
    SqlForbidden,
    StorageCorrupt,
    StorageError,
    StorageFull,
    StorageLocked,
    UsageError,
)
from objects.limits import Limits
from objects.namespace import ObjectNamespace, ObjectStub
from objects.state import DurableObject
from objects.storage import Storage, Transaction
from tests.unit.objects import conftest
from tests.unit.objects.fakes import World, commits_stalled, spin

world = conftest.world

Script = Callable[..., Any]


class Scripted(DurableObject):
    """Runs a function of the test inside the object: the tests are about storage, not about calls."""

    async def run(self, name: str) -> Any:
        return await self.env[name](self)

    async def ping(self) -> str:
        return "pong"


class Bench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.env: dict[str, Script] = {}
        self.namespace: ObjectNamespace = world.serve(Scripted, self.env)
        self.stub: ObjectStub = self.namespace.get_by_name("a")

    async def run(self, script: Script) -> Any:
        """Run `await script(storage)` in the object; its exception comes back as a caller gets it."""
        self.env["script"] = lambda obj: script(obj.ctx.storage)
        return await self.stub.run("script")

    async def run_with(self, script: Script) -> Any:
        """Run `await script(obj)`."""
        self.env["script"] = script
        return await self.stub.run("script")

    async def restart(self) -> None:
        await self.world.restart()
        self.namespace = self.world.host.namespaces["test"]
        self.stub = self.namespace.get_by_name("a")

    @property
    def path(self) -> Path:
        folder: Any = self.world.drivers
        path: Path = folder._folder.object_path(self.stub.id)
        return path


@pytest.fixture
async def bench(world: World) -> Bench:
    return Bench(world)


class TestKeysAndValues:
    async def test_values_of_every_kind_come_back_as_copies(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            value = {"list": [1, 2.5, None, True], "set": {1}, "bytes": b"\0", "when": datetime(2026, 1, 1, tzinfo=UTC)}
            await storage.put("k", value)
            value["list"].append("later")  # type: ignore[attr-defined]
            first, second = await storage.get("k"), await storage.get("k")
            assert first == {**value, "list": [1, 2.5, None, True]}
            assert first == second
            assert first is not second

        await bench.run(script)

    async def test_get_put_and_delete_of_many(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            await storage.put({"b": 2, "a": 1, "é": 3, "z": 4})
            found = await storage.get(["z", "é", "a", "none", "a"])
            assert list(found.items()) == [("a", 1), ("z", 4), ("é", 3)]
            assert await storage.get("none") is None
            assert await storage.delete("a") is True
            assert await storage.delete("a") is False
            assert await storage.delete(["b", "z", "none"]) == 2
            assert await storage.list() == {"é": 3}

        await bench.run(script)

    async def test_limits(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            await storage.put("k" * 2048, 1)
            await storage.put({f"k{n}": n for n in range(128)})
            for bad in ("k" * 2049, "é" * 1025):
                with pytest.raises(LimitExceeded):
                    await storage.put(bad, 1)
            for call in (
                storage.put({f"k{n}": n for n in range(129)}),
                storage.get([f"k{n}" for n in range(129)]),
                storage.delete([f"k{n}" for n in range(129)]),
                storage.put("big", b"x" * (2 * 1024 * 1024)),
            ):
                with pytest.raises(LimitExceeded):
                    await call
            # Version, tag and four bytes of length, and the key.
            await storage.put("big", b"x" * (2 * 1024 * 1024 - 6 - 3))
            with pytest.raises(UsageError):
                await storage.put(1, 1)  # type: ignore[call-overload]

        await bench.run(script)

    async def test_a_bad_pair_in_a_batch_leaves_nothing_written(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            with pytest.raises(NotSerializable):
                await storage.put({"fine": 1, "bad": object()})
            assert await storage.list() == {}

        await bench.run(script)

    async def test_list_is_ordered_by_utf8_bytes_and_bounded_as_asked(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            keys = ["", "a", "a\0", "ab", "b", "é", "\uffff", "\U0001f600"]
            await storage.put({key: n for n, key in enumerate(keys)})

            async def listed(**options: Any) -> list[str]:
                found = list(await storage.list(**options))
                assert found == [key for key, _ in storage.kv.list(**options)]
                return found

            assert await listed() == keys
            assert await listed(reverse=True) == keys[::-1]
            assert await listed(start="a", end="b") == ["a", "a\0", "ab"]
            assert await listed(start="a", end="b", reverse=True) == ["ab", "a\0", "a"]
            assert await listed(start_after="a", limit=2) == ["a\0", "ab"]
            assert await listed(prefix="a", reverse=True, limit=1) == ["ab"]
            assert await listed(prefix="a", start="ab") == ["ab"]
            assert await listed(prefix="\uffff") == ["\uffff"]
            assert await listed(start="b", end="a") == []
            assert await listed(prefix="a", end="a") == []
            with pytest.raises(UsageError):
                await storage.list(start="a", start_after="a")
            for limit in (0, -1):
                with pytest.raises(UsageError):
                    await storage.list(limit=limit)

        await bench.run(script)

    async def test_long_lists_are_read_in_pages_both_ways(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            for start in range(0, 500, 100):
                await storage.put({f"{n:04}": n for n in range(start, start + 100)})
            assert list((await storage.list()).values()) == list(range(500))
            assert list((await storage.list(reverse=True, limit=300)).values()) == list(range(499, 199, -1))
            assert list((await storage.list(limit=128)).values()) == list(range(128))

        await bench.run(script)

    async def test_a_new_sync_list_ends_the_one_before(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            storage.kv.put("a", 1)
            storage.kv.put("b", 2)
            first = storage.kv.list()
            assert next(first) == ("a", 1)
            assert list(storage.kv.list()) == [("a", 1), ("b", 2)]
            with pytest.raises(UsageError, match="later list"):
                next(first)

        await bench.run(script)

    async def test_reading_an_object_without_storage_makes_no_file(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            assert await storage.get("k") is None
            assert await storage.list() == {}
            assert await storage.get_alarm() is None
            assert await storage.delete("k") is False
            assert storage.sql.database_size == 0
            await storage.sync()

        await bench.run(script)
        assert not bench.path.exists()


class TestCoalescing:
    async def test_s01_writes_of_one_turn_are_one_commit(self, bench: Bench) -> None:
        await bench.stub.ping()
        seqs: list[int] = []
        with watched_commits(bench.world, seqs):

            async def script(storage: Storage) -> None:
                storage.kv.put("a", 1)
                await storage.put("b", 2)
                storage.sql.exec("CREATE TABLE t (x)")

            await bench.run(script)
            assert seqs == [1]

    async def test_s01_a_crash_before_the_flush_keeps_none(self, bench: Bench) -> None:
        async def script(obj: Scripted) -> None:
            for key in "abc":
                await obj.ctx.storage.put(key, key)
            obj._crashed = True  # type: ignore[attr-defined]
            obj.ctx.abort("crash")

        with pytest.raises(ObjectReset):
            await bench.run_with(script)
        await bench.restart()
        assert await bench.run(lambda storage: storage.list()) == {}

    async def test_s02_a_put_then_abort_is_gone(self, bench: Bench) -> None:
        await bench.run(lambda storage: storage.put("kept", 1))

        async def script(obj: Scripted) -> None:
            await obj.ctx.storage.put("lost", 1)
            obj.ctx.abort("no")

        with pytest.raises(ObjectReset):
            await bench.run_with(script)
        assert await bench.run(lambda storage: storage.list()) == {"kept": 1}

    async def test_after_an_await_that_suspends_a_new_batch_begins(self, bench: Bench) -> None:
        await bench.stub.ping()
        seqs: list[int] = []
        with watched_commits(bench.world, seqs):

            async def script(storage: Storage) -> None:
                await storage.put("a", 1)
                await asyncio.sleep(0.01)
                await storage.put("b", 2)

            await bench.run(script)
        assert seqs == [1, 2]

    async def test_awaited_writes_wait_when_too_much_is_under_way(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            for n in range(40):
                await storage.put(f"{n}", b"x" * 1_000_000)
                assert storage._commits._pending_bytes < 10_000_000

        await bench.run(script)


class TestTransactions:
    async def test_s03_a_transaction_that_raises_is_undone_and_resets_nothing(self, bench: Bench) -> None:
        async def script(storage: Storage) -> str:
            await storage.put("before", 1)

            async def failing(transaction: Transaction) -> None:
                await transaction.put("inside", 1)
                await asyncio.sleep(0.01)
                await storage.put("plain call inside", 1)
                raise ValueError("no")

            with pytest.raises(ValueError, match="no"):
                await storage.transaction(failing)
            await storage.put("after", 1)
            return "still here"

        assert await bench.run(script) == "still here"
        assert await bench.run(lambda storage: storage.list()) == {"after": 1, "before": 1}
        assert bench.namespace.meter.resets == 0

    async def test_a_transaction_commits_once_and_over_several_turns(self, bench: Bench) -> None:
        await bench.stub.ping()
        seqs: list[int] = []
        with watched_commits(bench.world, seqs):

            async def script(storage: Storage) -> int:
                async def inside(transaction: Transaction) -> int:
                    await transaction.put("a", 1)
                    await asyncio.sleep(0.01)
                    await transaction.put("b", await transaction.get("a") + 1)
                    return 7

                return await storage.transaction(inside)

            assert await bench.run(script) == 7
        assert seqs == [1]
        assert await bench.run(lambda storage: storage.list()) == {"a": 1, "b": 2}

    async def test_rollback_may_be_repeated_and_ends_the_transaction(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            kept: list[Transaction] = []

            async def inside(transaction: Transaction) -> None:
                kept.append(transaction)
                await transaction.put("a", 1)
                transaction.rollback()
                transaction.rollback()
                with pytest.raises(UsageError):
                    await transaction.get("a")

            await storage.transaction(inside)
            assert await storage.list() == {}
            with pytest.raises(UsageError):
                await kept[0].put("late", 1)

        await bench.run(script)

    async def test_s04_an_inner_sync_transaction_can_fail_alone(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            def inner() -> None:
                storage.kv.put("inner", 1)
                raise ValueError("inner")

            def outer() -> str:
                storage.kv.put("outer", 1)
                with pytest.raises(ValueError, match="inner"):
                    storage.transaction_sync(inner)
                return "done"

            assert storage.transaction_sync(outer) == "done"
            assert await storage.list() == {"outer": 1}

        await bench.run(script)

    async def test_a_sync_transaction_takes_no_async_function(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            async def inside() -> None: ...

            with pytest.raises(UsageError, match="not async"):
                storage.transaction_sync(inside)

        await bench.run(script)

    async def test_s05_delete_all_in_a_transaction_is_an_error(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            async def inside(transaction: Transaction) -> None:
                await storage.put("k", 1)
                with pytest.raises(UsageError, match="delete_all"):
                    await storage.delete_all()

            await storage.transaction(inside)
            assert await storage.get("k") == 1

        await bench.run(script)

    async def test_s06_a_full_disk_resets_even_if_the_handler_swallows_it(self, bench: Bench) -> None:
        bench.world.host.limits = Limits(database_bytes=400_000)
        await bench.run(lambda storage: storage.put("earlier", 1))

        async def script(storage: Storage) -> str:
            def inside() -> None:
                with contextlib.suppress(StorageFull):
                    for n in range(10):
                        storage.kv.put(f"{n}", b"x" * 100_000)

            with contextlib.suppress(Exception):
                storage.transaction_sync(inside)
            return "swallowed"

        with pytest.raises(StorageFull) as caught:
            await bench.run(script)
        assert caught.value.object_reset
        assert await bench.run(lambda storage: storage.list()) == {"earlier": 1}

    async def test_s07_an_unconfirmed_put_delays_nothing_but_sync(self, bench: Bench) -> None:
        await bench.stub.ping()
        with commits_stalled(bench.world) as release:
            await bench.run(lambda storage: storage.put("k", 1, confirmed=False))

            async def script(storage: Storage) -> None:
                await storage.put("l", 1, confirmed=False)
                await storage.sync()

            synced = asyncio.ensure_future(bench.run(script))
            await spin()
            assert not synced.done()
            release()
            await synced

    async def test_s07_its_failure_still_resets(self, bench: Bench) -> None:
        await bench.stub.ping()
        with commits_stalled(bench.world) as release:
            await bench.run(lambda storage: storage.put("k", 1, confirmed=False))
            release(StorageError("flush failed"))
        assert bench.namespace.meter.resets == 1


class TestDeleteAll:
    async def test_everything_goes_unsaved_writes_included(self, bench: Bench) -> None:
        async def fill(storage: Storage) -> None:
            storage.sql.exec(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE child (p REFERENCES parent);"
                "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1); CREATE VIEW v AS SELECT * FROM child;"
                "CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('hello');"
                "CREATE TRIGGER t AFTER INSERT ON child BEGIN DELETE FROM parent; END;"
            )
            await storage.put({f"{n}": b"x" * 10_000 for n in range(50)})

        async def wipe(storage: Storage) -> int:
            await storage.put("unsaved", 1)
            await storage.delete_all()
            assert await storage.list() == {}
            assert storage.sql.exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '%torpor%'").to_array() == []
            storage.sql.exec("CREATE TABLE parent (id)")
            return storage.sql.database_size

        await bench.run(fill)
        await bench.world.host.force_hibernate(bench.stub.id)
        assert bench.path.stat().st_size > 500_000
        assert await bench.run(wipe) < 50_000
        await bench.world.host.force_hibernate(bench.stub.id)
        assert bench.path.stat().st_size < 50_000
        assert await bench.run(lambda storage: storage.list()) == {}

    async def test_of_an_object_that_has_nothing(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            await storage.delete_all()
            await storage.put("k", 1)
            await storage.delete_all()
            assert await storage.list() == {}

        await bench.run(script)


class TestSql:
    async def test_cursors(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            sql = storage.sql
            sql.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
            cursor = sql.exec("INSERT INTO t (name) VALUES (?), (?), (?)", "a", "b", "c")
            assert cursor.rows_written == 3
            cursor = sql.exec("SELECT * FROM t ORDER BY id")
            assert cursor.column_names == ("id", "name")
            assert cursor.next() == {"id": 1, "name": "a"}
            assert next(cursor.raw()) == (2, "b")
            assert cursor.to_array() == [{"id": 3, "name": "c"}]
            assert (cursor.next(), cursor.rows_read, cursor.column_names) == (None, 3, ("id", "name"))
            assert sql.exec("SELECT 1 AS x, 2 AS x").one() == {"x": 2}
            assert list(sql.exec("SELECT 1 AS x, 2 AS x").raw()) == [(1, 2)]
            assert sql.exec("INSERT INTO t (name) VALUES ('d') RETURNING id").one() == {"id": 4}
            assert sql.exec("SELECT ? AS big, ? AS blob", 2**62 + 1, b"\0").one() == {"big": 2**62 + 1, "blob": b"\0"}
            for query in ("SELECT * FROM t", "SELECT * FROM t WHERE id = 99"):
                with pytest.raises(SqlError, match="one"):
                    sql.exec(query).one()

        await bench.run(script)

    async def test_several_statements_with_bindings_for_the_last(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            result = storage.sql.exec(
                """-- a comment; with a semicolon
                CREATE TABLE t (x TEXT DEFAULT ';');
                CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET x = x || '!'; SELECT 1; END;
                INSERT INTO t VALUES ('a;b');
                /* here; too */ SELECT x || ? AS y FROM t;;""",
                "?",
            )
            assert result.one() == {"y": "a;b!?"}

        await bench.run(script)

    @pytest.mark.parametrize(
        "query",
        [
            "BEGIN",
            "COMMIT",
            "SAVEPOINT x",
            "ATTACH ':memory:' AS x",
            "SELECT * FROM _torpor_kv",
            "CREATE TABLE _torpor_x (y)",
            "DROP TABLE _torpor_alarm",
            "PRAGMA user_version",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA writable_schema = ON",
            "SELECT sqlite_version()",
            "SELECT load_extension('x')",
            "CREATE VIRTUAL TABLE r USING rtree(a, b, c)",
            "SELECT * FROM sqlite_stmt",
            "VACUUM",
        ],
    )
    async def test_what_is_forbidden(self, bench: Bench, query: str) -> None:
        async def script(storage: Storage) -> None:
            await storage.put("k", 1)
            with pytest.raises((SqlForbidden, SqlError)):
                storage.sql.exec(query)
            assert await storage.get("k") == 1

        await bench.run(script)
        assert await bench.run(lambda storage: storage.get("k")) == 1

    async def test_what_is_allowed(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            sql = storage.sql
            sql.exec("CREATE TABLE t (a, b); ALTER TABLE t RENAME COLUMN a TO c; ALTER TABLE t DROP COLUMN b")
            assert [row["name"] for row in sql.exec("PRAGMA table_info(t)")] == ["c"]
            sql.exec("CREATE VIRTUAL TABLE words USING fts5(text)")
            sql.exec("INSERT INTO words VALUES ('hello world')")
            assert sql.exec("SELECT count(*) AS n FROM words WHERE words MATCH 'world'").one() == {"n": 1}
            assert sql.exec("PRAGMA foreign_keys").one() == {"foreign_keys": 1}
            assert sql.database_size > 0

        await bench.run(script)

    @pytest.mark.parametrize(
        ("query", "bindings"),
        [
            ("", ()),
            (" ; -- nothing", ()),
            ("SELEC 1", ()),
            ("SELECT ?", ()),
            ("SELECT 1", (1,)),
            ("SELECT ?", (2**63,)),
            ("SELECT ?", (object(),)),
            ("SELECT 'x' LIKE '" + "x" * 51 + "'", ()),
            ("SELECT " + "+".join("1" * 200), ()),
            ("CREATE TABLE t (" + ",".join(f"c{n}" for n in range(101)) + ")", ()),
            ("SELECT 1" + " UNION SELECT 1" * 5, ()),
            ("SELECT '" + "x" * 100_000 + "'", ()),
        ],
    )
    async def test_mistakes_and_limits(self, bench: Bench, query: str, bindings: tuple[Any, ...]) -> None:
        async def script(storage: Storage) -> None:
            with pytest.raises((SqlError, LimitExceeded)):
                storage.sql.exec(query, *bindings).to_array()

        await bench.run(script)
        assert bench.namespace.meter.resets == 0

    @pytest.mark.parametrize("first", ["", "SELECT 0 AS x UNION ALL "], ids=["at once", "while reading"])
    async def test_a_statement_that_never_ends_resets_the_object(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, first: str
    ) -> None:
        monkeypatch.setattr("objects.sqlite.STATEMENT_S", 0.05)

        async def script(storage: Storage) -> None:
            endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r WHERE x < 0"
            storage.sql.exec(f"{first}SELECT * FROM ({endless})").to_array()

        with pytest.raises(StorageError, match="interrupted") as caught:
            await bench.run(script)
        assert caught.value.object_reset
        assert await bench.stub.ping() == "pong"

    async def test_a_broken_constraint_undoes_its_statement_alone(self, bench: Bench) -> None:
        async def script(storage: Storage) -> None:
            storage.sql.exec("CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1)")
            with pytest.raises(SqlError, match="UNIQUE"):
                storage.sql.exec("INSERT INTO t VALUES (2), (1)")
            assert storage.sql.exec("SELECT x FROM t").to_array() == [{"x": 1}]

        await bench.run(script)

    async def test_a_constraint_broken_at_commit_resets_to_the_last_commit(self, bench: Bench) -> None:
        async def fill(storage: Storage) -> None:
            storage.sql.exec(
                "CREATE TABLE p (id PRIMARY KEY);"
                "CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED); INSERT INTO p VALUES (1)"
            )

        async def breaking(storage: Storage) -> None:
            storage.sql.exec("INSERT INTO c VALUES (99)")

        await bench.run(fill)
        with pytest.raises(Exception, match="FOREIGN KEY"):
            await bench.run(breaking)
        assert bench.namespace.meter.resets == 1

        async def look(storage: Storage) -> Any:
            return storage.sql.exec("SELECT (SELECT count(*) FROM c) AS c, (SELECT count(*) FROM p) AS p").one()

        assert await bench.run(look) == {"c": 0, "p": 1}

    async def test_only_writing_sql_holds_the_output_back(self, bench: Bench) -> None:
        await bench.stub.ping()
        with commits_stalled(bench.world) as release:

            async def reading(storage: Storage) -> Any:
                return storage.sql.exec("WITH t(x) AS (VALUES (1)) SELECT x FROM t").one()

            async def writing(storage: Storage) -> None:
                storage.sql.exec("CREATE TABLE t (x)")

            assert await bench.run(reading) == {"x": 1}
            call = asyncio.ensure_future(bench.run(writing))
            await spin()
            assert not call.done()
            release()
            await call


class TestFiles:
    async def test_files_are_spread_over_hashed_folders_and_closed_when_it_hibernates(self, bench: Bench) -> None:
        await bench.run(lambda storage: storage.put("k", 1))
        name = str(bench.stub.id)
        assert bench.path == bench.world.root / "objects" / "test" / name[:2] / f"{name}.sqlite"
        files = list(bench.path.parent.iterdir())
        assert {file.name for file in files} == {bench.path.name, f"{bench.path.name}-wal"}
        assert all(file.stat().st_mode & 0o077 == 0 for file in files)
        await bench.world.advance(10.1)
        assert len(bench.world.host.files) == 0
        assert [p.name for p in bench.path.parent.iterdir()] == [bench.path.name]

    async def test_open_files_are_bounded_and_reopened_unnoticed(self, world: World) -> None:
        world.host.files.limit = 4
        bench = Bench(world)
        bench.env["put"] = lambda obj: obj.ctx.storage.put("k", obj.ctx.id.name)
        bench.env["get"] = lambda obj: obj.ctx.storage.get("k")
        stubs = [bench.namespace.get_by_name(f"{n}") for n in range(20)]
        for stub in stubs:
            await stub.run("put")
            assert len(world.host.files) <= 4
        assert world.awake() == 20
        assert [await stub.run("get") for stub in stubs] == [f"{n}" for n in range(20)]

    async def test_many_objects_commit_together(self, world: World) -> None:
        bench = Bench(world)
        bench.env["put"] = lambda obj: obj.ctx.storage.put("k", obj.ctx.id.name)
        stubs = [bench.namespace.get_by_name(f"{n}") for n in range(50)]
        await asyncio.gather(*(stub.run("put") for stub in stubs))
        await bench.restart()
        bench.env["get"] = lambda obj: obj.ctx.storage.get("k")
        names = await asyncio.gather(*(bench.namespace.get_by_name(f"{n}").run("get") for n in range(50)))
        assert names == [f"{n}" for n in range(50)]

    async def test_a_damaged_file_is_refused_and_left_alone(self, bench: Bench) -> None:
        await bench.run(lambda storage: storage.put("k", 1))
        await bench.world.host.force_hibernate(bench.stub.id)
        bench.path.write_bytes(b"not a database, but long enough to look like one" * 100)
        before = bench.path.read_bytes()
        for _ in range(2):
            with pytest.raises(StorageCorrupt):
                await bench.run(lambda storage: storage.get("k"))
        assert bench.path.read_bytes() == before
        assert await bench.namespace.get_by_name("other").ping() == "pong"

    async def test_a_file_locked_by_somebody_else_is_a_clear_error(self, bench: Bench) -> None:
        await bench.run(lambda storage: storage.put("k", 1))
        other = sqlite3.connect(bench.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageLocked) as caught:
            await bench.run(lambda storage: storage.put("k", 2))
        assert caught.value.retryable
        other.execute("ROLLBACK")
        other.close()
        assert await bench.run(lambda storage: storage.get("k")) == 1

    async def test_a_data_folder_has_one_process(self, bench: Bench) -> None:
        with pytest.raises(StorageLocked):
            LocalDrivers(bench.world.root)

    async def test_a_folder_that_cannot_be_written_is_a_clear_error(self, bench: Bench) -> None:
        await bench.stub.ping()
        blocked = bench.path.parent.parent
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.write_text("a file where a folder should be")
        with pytest.raises(StorageError):
            await bench.run(lambda storage: storage.put("k", 1))
        os.unlink(blocked)
        await bench.run(lambda storage: storage.put("k", 1))
        assert await bench.run(lambda storage: storage.get("k")) == 1


class TestRestorePoints:
    async def test_going_back_and_undoing_that(self, bench: Bench) -> None:
        async def mark(storage: Storage) -> str:
            await storage.put("k", "old")
            return await storage.get_current_bookmark()

        async def go_back(obj: Scripted, bookmark: str) -> None:
            bench.undo = await obj.ctx.storage.on_next_session_restore_bookmark(bookmark)  # type: ignore[attr-defined]
            obj.ctx.abort("restore")

        bookmark = await bench.run(mark)
        await bench.world.advance(1)
        await bench.run(lambda storage: storage.put("k", "new"))
        later = await bench.run(lambda storage: storage.get_current_bookmark())
        assert later > bookmark
        with pytest.raises(ObjectReset):
            await bench.run_with(lambda obj: go_back(obj, bookmark))
        assert await bench.run(lambda storage: storage.get("k")) == "old"
        with pytest.raises(ObjectReset):
            await bench.run_with(lambda obj: go_back(obj, bench.undo))  # type: ignore[attr-defined]
        assert await bench.run(lambda storage: storage.get("k")) == "new"

    async def test_a_bookmark_includes_later_writes_of_the_same_batch(self, bench: Bench) -> None:
        async def script(obj: Scripted) -> None:
            storage = obj.ctx.storage
            await storage.put("a", 1)
            marking = asyncio.ensure_future(storage.get_current_bookmark())
            await storage.put("b", 2)
            bookmark = await marking
            await storage.put("c", 3)
            await storage.sync()
            await storage.on_next_session_restore_bookmark(bookmark)
            obj.ctx.abort("restore")

        with pytest.raises(ObjectReset):
            await bench.run_with(script)
        assert await bench.run(lambda storage: storage.list()) == {"a": 1, "b": 2}

    async def test_finding_one_by_time_and_asking_for_an_unknown_one(self, bench: Bench) -> None:
        start = bench.world.clock.unix_ms()
        first = await bench.run(lambda storage: storage.get_current_bookmark())
        await bench.world.advance(5)
        second = await bench.run(lambda storage: storage.get_current_bookmark())
        for at, expected in ((start - 1, None), (start + 4000, first), (start + 9000, second)):
            assert await bench.run(lambda storage, at=at: storage.get_bookmark_for_time(at)) == expected
        with pytest.raises(UsageError, match="restore point"):
            await bench.run(lambda storage: storage.on_next_session_restore_bookmark("0"))

    async def test_restore_points_by_themselves(self, world: World) -> None:
        world.host.limits = Limits(restore_point_s=60)
        bench = Bench(world)
        for n in range(3):
            await bench.run(lambda storage, n=n: storage.put("k", n))
            await world.host.settle()
            await world.advance(61)
        kept = await world.drivers.ports.storage.bookmarks(bench.stub.id)
        assert len(kept) <= 2


@contextlib.contextmanager
def watched_commits(world: World, seqs: list[int]) -> Iterator[None]:
    engine: Any = world.drivers.ports.storage
    commit = engine.commit

    def noting(claim: Any, seq: int, at: int | None, settled: Any) -> None:
        seqs.append(seq)
        commit(claim, seq, at, settled)

    engine.commit = noting
    yield
    engine.commit = commit
