"""The default alarm store: one SQLite file for all objects of a data folder, used by one thread.

Writes that arrive while the thread is busy become one transaction, flushed before any of them is acknowledged
(`synchronous=FULL`). Reads and writes happen in the order of the calls.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from objects.errors import StorageCorrupt, StorageError, StorageFull, StorageLocked
from objects.ids import ObjectId
from objects.ports import AlarmEntry

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS alarm (
    namespace TEXT NOT NULL, digest BLOB NOT NULL, alarm TEXT NOT NULL, object_name TEXT,
    scheduled_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL,
    retry_count INTEGER NOT NULL, attempt INTEGER NOT NULL, interrupted INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest, alarm)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS alarm_by_time ON alarm (due_ms);
"""
_PUT = "INSERT OR REPLACE INTO alarm VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM alarm WHERE namespace = ? AND digest = ? AND alarm = ? AND scheduled_ms = ?"
_DUE = "SELECT * FROM alarm WHERE due_ms <= ? ORDER BY due_ms LIMIT ?"
_NEXT = "SELECT min(due_ms) FROM alarm WHERE due_ms > ?"


class SqliteAlarmStore:
    """Alarm entries in `path`.

    Raises:
        StorageError: the file cannot be opened; `StorageCorrupt` if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "torpor-alarms")
        self._waiting: list[tuple[str, list[tuple[Any, ...]], asyncio.Future[None]]] = []
        self._writing = False
        self._connection: sqlite3.Connection = self._thread.submit(self._open).result()

    async def put(self, entries: Sequence[AlarmEntry]) -> None:
        """Add or replace entries; durable when it returns."""
        await self._write(_PUT, [_row(entry) for entry in entries])

    async def remove(self, entries: Sequence[AlarmEntry]) -> None:
        """Remove entries whose time is still the one given; durable when it returns."""
        await self._write(
            _REMOVE, [(e.object_id.namespace, e.object_id.digest, e.alarm, e.scheduled_ms) for e in entries]
        )

    async def due(self, now_ms: int, limit: int) -> list[AlarmEntry]:
        """Return up to `limit` entries that are due, most overdue first."""
        return await self._read(lambda c: [_entry(row) for row in c.execute(_DUE, (now_ms, limit))])

    async def next_due_ms(self, after_ms: int) -> int | None:
        """Return the earliest time after `after_ms` at which an entry is due."""
        return await self._read(lambda c: c.execute(_NEXT, (after_ms,)).fetchone()[0])

    def close(self) -> None:
        """Finish what was asked for and close the file."""
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()

    async def _write(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((sql, rows, done))
        if not self._writing:
            self._write_next()
        # Once asked for it happens, also if the caller gives up waiting.
        await asyncio.shield(done)

    def _write_next(self) -> None:
        lot, self._waiting = self._waiting, []
        self._writing = bool(lot)
        if not lot:
            return
        statements = [(sql, rows) for sql, rows, _ in lot]
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._apply, statements)

        def finished(future: asyncio.Future[StorageError | None]) -> None:
            error = future.result()
            self._write_next()
            for _, _, done in lot:
                if done.done():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        future.add_done_callback(finished)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._writing:
            # Behind the writes that were asked for before.
            await self._write("SELECT 1", [])
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: query(self._connection))
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _apply(self, statements: list[tuple[str, list[tuple[Any, ...]]]]) -> StorageError | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for sql, rows in statements:
                for row in rows:
                    self._connection.execute(sql, row)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return self._explain(error)
        return None

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            connection.close()
            raise self._explain(error) from error
        return connection

    def _explain(self, error: sqlite3.Error) -> StorageError:
        kinds: dict[int, type[StorageError]] = {
            sqlite3.SQLITE_CORRUPT: StorageCorrupt,
            sqlite3.SQLITE_NOTADB: StorageCorrupt,
            sqlite3.SQLITE_FULL: StorageFull,
            sqlite3.SQLITE_BUSY: StorageLocked,
        }
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return kinds.get(code, StorageError)(f"{self._path.name}: {error}")


def _row(entry: AlarmEntry) -> tuple[Any, ...]:
    who = entry.object_id
    when = (entry.scheduled_ms, entry.due_ms, entry.retry_count, entry.attempt, int(entry.interrupted))
    return (who.namespace, who.digest, entry.alarm, who.name, *when)


def _entry(row: tuple[Any, ...]) -> AlarmEntry:
    namespace, digest, alarm, name, scheduled_ms, due_ms, retry_count, attempt, interrupted = row
    who = ObjectId(namespace, digest, name)
    return AlarmEntry(who, alarm, scheduled_ms, due_ms, retry_count, attempt, bool(interrupted))
