"""One object's SQLite file: opening, limits, what statements it refuses, and errors in our words.

The connection is used on the event loop's thread. COMMIT runs there too, with `synchronous=OFF` in WAL mode: it hands
pages to the kernel without waiting for the disk. Waiting for the disk is the storage engine's part, off the loop: it
flushes the log before anybody is told of a commit. Every checkpoint, which moves pages from the log to the file, is
made by another connection, or when this one is closed, with `synchronous=FULL`.

Files are opened on first use and closed when not used: `OpenFiles` bounds how many are open at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from objects.errors import (
    LimitExceeded,
    ObjectError,
    SqlError,
    SqlForbidden,
    StorageCorrupt,
    StorageError,
    StorageFull,
    StorageLocked,
)

HIDDEN = "_torpor_"
"""Prefix of our own tables; user SQL cannot name them."""

# A user's copy of an internal statement must not hit its entry in the statement cache, where it would pass unchecked:
# so ours have a text that nobody can guess.
_OURS = f"/*{secrets.token_hex(8)}*/ "

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4 * 1024 * 1024,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 5,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 32,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
MAX_SQL_BYTES = 100_000
STATEMENT_S = 10.0
"""How long one step of a user's statement may compute; the loop stands still meanwhile. Longer resets the object."""
LOCK_WAIT_S = 0.25
LOG_KEEP_BYTES = 1024 * 1024
"""What is left of a long log's file after it was folded."""

_SETTINGS = f"""
    PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
    PRAGMA journal_size_limit = {LOG_KEEP_BYTES}; PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON;
    PRAGMA temp_store = MEMORY; PRAGMA cache_size = -1024;
"""

_READ_PRAGMAS = frozenset(
    {"table_info", "table_xinfo", "table_list", "index_info", "index_xinfo", "index_list", "foreign_key_check"}
    | {"foreign_key_list", "quick_check", "optimize", "data_version"}
)
_SWITCH_PRAGMAS = frozenset(
    {"foreign_keys", "defer_foreign_keys", "case_sensitive_like", "ignore_check_constraints"}
    | {"legacy_alter_table", "recursive_triggers", "reverse_unordered_selects"}
)
_SIZE_PRAGMAS = ("page_count", "freelist_count", "page_size")
_FORBIDDEN_ACTIONS = {
    sqlite3.SQLITE_TRANSACTION: "transaction control: use storage.transaction or transaction_sync",
    sqlite3.SQLITE_SAVEPOINT: "transaction control: use storage.transaction or transaction_sync",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
}
_VIRTUAL_TABLES = frozenset({"fts5", "fts5vocab"})
# SQLite calls these itself to alter tables; nobody else can.
_ALTER_TABLE = ("sqlite_rename_", "sqlite_drop_column", "sqlite_fail")
# Tables that exist without being created and show what is not the user's.
_EPONYMOUS = frozenset({"dbstat", "sqlite_stmt", "sqlite_dbpage", "bytecode", "tables_used"})

# An empty database in WAL mode: the one page that every file starts as. The tables come with the first commit.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS _torpor_kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS _torpor_alarm (name TEXT PRIMARY KEY, scheduled_ms INTEGER NOT NULL) WITHOUT ROWID",
)
_HAS_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name GLOB '_torpor_*'"
# Views and triggers first; virtual tables before plain ones, for they take their shadow tables with them.
_NEXT_TO_DROP = """
    SELECT type, name FROM sqlite_master
    WHERE type IN ('table', 'view', 'trigger') AND name NOT GLOB '_torpor_*' AND name NOT GLOB 'sqlite_*'
    ORDER BY type = 'table', type = 'view', sql NOT LIKE 'CREATE VIRTUAL%' LIMIT 1
"""


def _empty_page() -> bytes:
    memory = sqlite3.connect(":memory:")
    try:
        memory.execute("PRAGMA page_size = 4096")
        memory.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that delete_all gives the space back
        memory.execute("PRAGMA user_version = 1")
        page = bytearray(memory.serialize())
    finally:
        memory.close()
    page[18:20] = b"\x02\x02"  # file format versions: WAL
    return bytes(page)


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """Open an object's file, for use by any thread. All connections to it are made here.

    One process owns it (`StorageEngine`), so its lock is taken once and the index of its log lies in memory: no third
    file, and a commit is a write instead of ten calls for locks. Other processes find the file locked while it is open.

    Args:
        timeout: seconds to wait for another connection's lock.
    """
    name = f"file:{quote(os.fsencode(path))}?vfs=unix-excl"
    return sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout)


class OpenFiles:
    """Bounds the number of open database files of a process; closes the least recently used one that is at rest.

    Args:
        limit: how many; each takes two descriptors. A file with a transaction or an unread cursor is not at
            rest, and if all are busy the limit is passed rather than an object failed.
        closer: where files are closed, since that flushes them.
    """

    def __init__(self, limit: int, closer: Executor) -> None:
        self.limit = limit
        self.closer = closer
        self._open: OrderedDict[Database, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def touch(self, database: Database) -> None:
        """Note that `database` is in use."""
        if database in self._open:
            self._open.move_to_end(database)
            return
        if len(self._open) >= self.limit:
            idle = next((d for d in self._open if d.at_rest), None)
            if idle is not None:
                idle.close_soon()
        self._open[database] = None

    def forget(self, database: Database) -> None:
        """Note that `database` is closed."""
        self._open.pop(database, None)


class Database:
    """The file of one object.

    Args:
        path: made by the first write, not before.
        max_bytes: limit of the file's size; beyond it writes fail with `StorageFull`.
        on_critical: called with the error when the file can no longer be trusted to hold what the object believes:
            disk full, I/O error, damage. The instance has to be reset even if user code swallows the exception.
    """

    def __init__(
        self, path: Path, files: OpenFiles, max_bytes: int, on_critical: Callable[[StorageError], None]
    ) -> None:
        self.path = path
        self.in_transaction = False
        self.open_cursors = 0
        self._files = files
        self._max_bytes = max_bytes
        self._on_critical = on_critical
        self._connection: sqlite3.Connection | None = None
        self._closing: Future[None] | None = None
        self._has_tables = False
        self._tables_are_new = False
        self._trusted = False
        self._deadline = math.inf
        self._refusal: str | None = None
        self._closed = False

    @property
    def exists(self) -> bool:
        """Whether anything was ever written; asking, or reading an object without a file, makes none."""
        if not self._has_tables and self.path.exists():
            self.connection  # noqa: B018  # looks for the tables
        return self._has_tables

    @property
    def at_rest(self) -> bool:
        """Whether the file could be closed and opened again without anyone noticing."""
        return not self.in_transaction and self.open_cursors == 0

    def run(self, sql: str, bindings: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one of our own statements; `sql` is constant text, values come as bindings.

        Raises:
            StorageError: the file failed; the instance is being reset.
        """
        self._trusted = True
        try:
            return self.connection.execute(_OURS + sql, bindings)
        except sqlite3.Error as error:
            raise self.translate(error) from error
        finally:
            self._trusted = False

    def run_user(self, sql: str, bindings: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement of user code.

        Raises:
            SqlForbidden, SqlError, LimitExceeded: the statement's fault; the transaction goes on.
            StorageError: the file failed; the instance is being reset.
        """
        self._refusal = None
        self._deadline = time.monotonic() + STATEMENT_S
        try:
            return self.connection.execute(sql, bindings)
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            raise self.translate(error) from error

    def fetch(self, cursor: sqlite3.Cursor) -> tuple[Any, ...] | None:
        """Return the next row of a statement of user code.

        Raises:
            SqlError, StorageError: as `run_user`.
        """
        self._deadline = time.monotonic() + STATEMENT_S
        try:
            row: tuple[Any, ...] | None = cursor.fetchone()
        except sqlite3.Error as error:
            raise self.translate(error) from error
        return row

    def begin(self) -> None:
        """Open the transaction that collects the writes of this turn of the loop, if it is not open."""
        if self.in_transaction:
            return
        self.connection  # noqa: B018  # opens the file: it may not exist yet
        self.run("BEGIN")
        self.in_transaction = True
        if not self._has_tables:
            for statement in _SCHEMA:
                self.run(statement)
            self._has_tables = self._tables_are_new = True

    def commit(self) -> None:
        """Hand the transaction to the kernel; durable only when the engine says so."""
        self.run("COMMIT")
        self.in_transaction = self._tables_are_new = False

    def rollback(self) -> None:
        """Undo the open transaction, if any."""
        if self.in_transaction and self._connection is not None:
            self.in_transaction = False
            if self._tables_are_new:
                self._has_tables = self._tables_are_new = False
            if self._connection.in_transaction:  # SQLite may have rolled back by itself
                self.run("ROLLBACK")

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:
            if self._closed:
                raise StorageError("the storage of this instance is closed")
            self._connection = self._open()
        self._files.touch(self)
        return self._connection

    @property
    def total_changes(self) -> int:
        """Rows changed through this connection so far."""
        return 0 if self._connection is None else self._connection.total_changes

    def size(self) -> int:
        """Return the bytes in use: pages that are not free, times their size."""
        if not self.exists:
            return 0
        pages, free, size = (
            self.run(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def allow_dangling(self, allowed: bool) -> None:
        """Switch foreign keys off and on again; has no effect inside a transaction."""
        self.run(f"PRAGMA foreign_keys = {'OFF' if allowed else 'ON'}")

    def wipe(self, *, keep_alarms: bool) -> None:
        """Remove all tables, views and triggers, and the content of our own, inside the open transaction."""
        while (row := self.run(_NEXT_TO_DROP).fetchone()) is not None:
            kind, name = row
            quoted = '"' + name.replace('"', '""') + '"'
            self.run(f"DROP {kind} {quoted}")
        self.run("DELETE FROM _torpor_kv")
        if not keep_alarms:
            self.run("DELETE FROM _torpor_alarm")
        self.give_back_space(True)

    def give_back_space(self, now: bool) -> None:
        """Let the commits from this one on shrink the file (costs moving pages), or keep free pages for later use."""
        self.run(f"PRAGMA auto_vacuum = {'FULL' if now else 'INCREMENTAL'}")

    def close_soon(self) -> None:
        """Close the file off the loop; it opens again on the next use."""
        connection, self._connection = self._connection, None
        self._files.forget(self)
        if connection is not None:
            self._closing = self._files.closer.submit(_fold_and_close, connection)

    def close(self) -> Callable[[], None]:
        """Undo what is not committed and end the use of the file; call what is returned, off the loop."""
        self._closed = True
        connection, self._connection = self._connection, None
        self._files.forget(self)
        if connection is None:
            return lambda: None
        if self.in_transaction:
            self.in_transaction = False
            # If it fails nothing has to be undone: the frames in the log have no commit mark.
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
        return partial(_fold_and_close, connection)

    def translate(self, error: Exception) -> ObjectError:
        """Return the error in our words; reports it first if it is critical."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            return SqlForbidden(f"not allowed: {refusal}")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_TOOBIG:
            return LimitExceeded("a text, blob or row in bytes", _LIMITS[sqlite3.SQLITE_LIMIT_LENGTH])
        if code == sqlite3.SQLITE_AUTH:
            return SqlForbidden(f"not allowed: {error}")
        kind = _CRITICAL.get(code)
        if kind is None:
            return SqlError(str(error))
        critical = kind(f"{self.path.name}: {error}")
        self._on_critical(critical)
        return critical

    def _open(self) -> sqlite3.Connection:
        if self._closing is not None:
            # Closing the last connection locks the file; wanting it back at that moment is rare.
            self._closing.result()
            self._closing = None
        try:
            is_new = _make(self.path)
            # Nobody else uses the file, so waiting for a lock would only hold the loop up.
            connection = connect(self.path, LOCK_WAIT_S)
        except (OSError, sqlite3.Error) as error:
            raise self._failed_to_open(error) from error
        try:
            # First, the limits that hold for pragmas too; then what makes the file safe to share with user SQL.
            for limit, value in _LIMITS.items():
                connection.setlimit(limit, value)
            connection.executescript(_SETTINGS + f"PRAGMA max_page_count = {max(1, self._max_bytes // 4096)}")
            self._has_tables = not is_new and connection.execute(_HAS_TABLES).fetchone()[0] == len(_SCHEMA)
            connection.set_authorizer(self._authorize)
            connection.set_progress_handler(self._too_long, 100_000)
        except sqlite3.Error as error:
            connection.close()
            raise self._failed_to_open(error) from error
        return connection

    def _failed_to_open(self, error: Exception) -> ObjectError:
        failure = self.translate(error)
        if isinstance(failure, StorageError):
            return failure
        failure = StorageError(f"{self.path.name}: {error}")
        self._on_critical(failure)
        return failure

    def _too_long(self) -> bool:
        return not self._trusted and time.monotonic() > self._deadline

    def _authorize(
        self, action: int, first: str | None, second: str | None, _db: str | None, _inner: str | None
    ) -> int:
        if self._trusted:
            return sqlite3.SQLITE_OK
        refusal = _FORBIDDEN_ACTIONS.get(action)
        if refusal is None and action == sqlite3.SQLITE_PRAGMA:
            name = (first or "").lower()
            if not (name in _READ_PRAGMAS or name in _SWITCH_PRAGMAS):
                refusal = f"PRAGMA {name}"
        elif refusal is None and action == sqlite3.SQLITE_FUNCTION:
            name = (second or "").lower()
            if name.startswith(("sqlite_", "load_extension", "fts3_tokenizer")) and not name.startswith(_ALTER_TABLE):
                refusal = f"function {name}"
        elif refusal is None and action in (sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE):
            if (second or "").lower() not in _VIRTUAL_TABLES:
                refusal = f"virtual table module {second}"
        elif refusal is None and first is not None and first.lower() in _EPONYMOUS:
            refusal = f"table {first}"
        elif refusal is None and (_hidden(first) or (action != sqlite3.SQLITE_FUNCTION and _hidden(second))):
            refusal = f"names that start with {HIDDEN}"
        if refusal is None:
            return sqlite3.SQLITE_OK
        self._refusal = refusal
        return sqlite3.SQLITE_DENY


_CRITICAL: dict[int, type[StorageError]] = {
    sqlite3.SQLITE_FULL: StorageFull,
    sqlite3.SQLITE_CORRUPT: StorageCorrupt,
    sqlite3.SQLITE_NOTADB: StorageCorrupt,
    sqlite3.SQLITE_BUSY: StorageLocked,
    sqlite3.SQLITE_PROTOCOL: StorageLocked,
    sqlite3.SQLITE_IOERR: StorageError,
    sqlite3.SQLITE_CANTOPEN: StorageError,
    sqlite3.SQLITE_READONLY: StorageError,
    sqlite3.SQLITE_PERM: StorageError,
    sqlite3.SQLITE_NOMEM: StorageError,
    sqlite3.SQLITE_INTERRUPT: StorageError,
}

_EMPTY = _empty_page()


def _fold_and_close(connection: sqlite3.Connection) -> None:
    # Closing the last connection moves the log into the file: that has to be flushed.
    connection.set_authorizer(None)
    connection.set_progress_handler(None, 0)
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = FULL")
    connection.close()


def _hidden(name: str | None) -> bool:
    return name is not None and name.lower().startswith(HIDDEN)


def _make(path: Path) -> bool:
    """Make an object's file with nothing in it; False if it is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _make(path)
    try:
        os.write(descriptor, _EMPTY)
    finally:
        os.close(descriptor)
    return True
