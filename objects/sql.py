"""SQL for objects: `storage.sql.exec(query, *bindings)`, synchronous, inside the batch of the current turn.

Rows read and written are counted as SQLite reports them to Python: rows returned, and rows inserted, updated or deleted
(index entries are not counted apart).
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from typing import Self

from objects.commits import Commits
from objects.errors import LimitExceeded, ObjectError, SqlError, UsageError
from objects.metering import Meter
from objects.sqlite import MAX_SQL_BYTES, Database

SqlValue = None | int | float | str | bytes


class SqlCursor:
    """The rows of one statement, read as they are asked for.

    There is no snapshot: rows read after an `await` may show later writes. Read what you need first, or use `to_array`.
    """

    def __init__(
        self, cursor: sqlite3.Cursor, database: Database, commits: Commits, meter: Meter, changes: int
    ) -> None:
        self.column_names: tuple[str, ...] = tuple(column[0] for column in cursor.description or ())
        """Names of the columns; stays when the rows have been read."""
        self.rows_read = 0
        self.rows_written = changes
        self._cursor = cursor
        self._database = database
        self._commits = commits
        self._meter = meter
        self._end = _OpenCursor(database) if self.column_names else None
        if self._end is not None:
            weakref.finalize(self, self._end.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, SqlValue]:
        """Return the next row by column name; of columns with one name the last wins."""
        return dict(zip(self.column_names, self._next_row(), strict=True))

    def next(self) -> dict[str, SqlValue] | None:
        """Return the next row, or None at the end."""
        return next(self, None)

    def to_array(self) -> list[dict[str, SqlValue]]:
        """Return the rows that are left."""
        return list(self)

    def one(self) -> dict[str, SqlValue]:
        """Return the only row.

        Raises:
            SqlError: there is none, or more than one.
        """
        row = self.next()
        if row is None:
            raise SqlError("one() expected a row, got none")
        if self.next() is not None:
            self._close()
            raise SqlError("one() expected one row, got more")
        return row

    def raw(self) -> Iterator[tuple[SqlValue, ...]]:
        """Iterate over the rows that are left as tuples; shares its position with the cursor."""
        while True:
            try:
                yield self._next_row()
            except StopIteration:
                return

    def _next_row(self) -> tuple[SqlValue, ...]:
        if self._end is None or self._end.closed:
            raise StopIteration
        self._commits.reading()
        try:
            row = self._database.fetch(self._cursor)
        except ObjectError:
            self._close()
            raise
        if row is None:
            self._close()
            raise StopIteration
        self.rows_read += 1
        self._meter.rows_read += 1
        return row

    def _close(self) -> None:
        if self._end is not None:
            self._end.close()
        self._cursor.close()


class _OpenCursor:
    """Counts a cursor that has rows left: its file must not be closed meanwhile."""

    def __init__(self, database: Database) -> None:
        self.closed = False
        self._database = database
        database.open_cursors += 1

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._database.open_cursors -= 1


class Sql:
    """`storage.sql`."""

    def __init__(self, database: Database, commits: Commits, meter: Meter) -> None:
        self._database = database
        self._commits = commits
        self._meter = meter

    def exec(self, query: str, *bindings: SqlValue) -> SqlCursor:
        """Run one or several statements; bindings and rows belong to the last one.

        Writes join the batch of this turn and hold the output gate. A failed statement is undone, those before it in
        the same call are not.

        Raises:
            LimitExceeded: more than 100,000 bytes of SQL, 100 bindings, or a value of more than 4 MiB.
            SqlForbidden: transaction control, ATTACH, most PRAGMAs, our own tables, foreign virtual tables.
            SqlError: empty, malformed, wrong number of bindings, or a broken constraint.
            StorageError: the file failed, or the statement computed for over ten seconds; the instance is being reset.
        """
        if len(query.encode("utf-8", "surrogatepass")) > MAX_SQL_BYTES:
            raise LimitExceeded("SQL text in bytes", MAX_SQL_BYTES)
        statements = split(query)
        if not statements:
            raise SqlError("empty SQL")
        for statement in statements[:-1]:
            self._run(statement, ())
        return self._run(statements[-1], bindings)

    @property
    def database_size(self) -> int:
        """Bytes in use by the object's tables and ours."""
        self._commits.reading()
        return self._database.size()

    def _run(self, statement: str, bindings: tuple[SqlValue, ...]) -> SqlCursor:
        word = statement.split(None, 1)[0].upper()
        if word == "PRAGMA":
            # Switches such as foreign_keys have no effect inside a transaction.
            self._commits.reading()
        elif word != "SELECT":
            self._commits.maybe_writing()
        else:
            self._commits.reading()
        before = self._database.total_changes
        cursor = self._database.run_user(statement, bindings)
        changes = self._database.total_changes - before
        if word not in ("PRAGMA", "SELECT") and (changes or cursor.description is None):
            self._commits.writing(changes * 100)
            self._meter.rows_written += changes
        return SqlCursor(cursor, self._database, self._commits, self._meter, changes)


def split(query: str) -> list[str]:
    """Return the statements of a query, without comments before them or empty ones."""
    statements = []
    start = at = 0
    while (at := query.find(";", at)) != -1:
        at += 1
        # Knows strings, comments and the bodies of triggers.
        if sqlite3.complete_statement(query[start:at]):
            statements.append(query[start:at])
            start = at
    statements.append(query[start:])
    return [text for statement in statements if (text := _strip(statement)) not in ("", ";")]


def _strip(statement: str) -> str:
    while True:
        statement = statement.strip()
        if statement.startswith("--"):
            statement = statement.partition("\n")[2]
        elif statement.startswith("/*"):
            statement = statement.partition("*/")[2]
        else:
            return statement


def check_sync(result: object) -> None:
    """Refuse the result of an `async` function where only a synchronous one can work.

    Raises:
        UsageError: it is a coroutine; it is closed without having run.
    """
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()
        raise UsageError("transaction_sync takes a function that is not async")
