"""Keys and values in an object's file: the synchronous interface, and what the asynchronous one is made of.

Keys are ordered by their UTF-8 bytes. Values are what `codec` carries; reading gives a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from objects import codec
from objects.commits import Commits
from objects.errors import LimitExceeded, UsageError
from objects.metering import Meter
from objects.sqlite import Database

MAX_KEY_BYTES = 2_048
MAX_PAIR_BYTES = 2 * 1024 * 1024
"""Key and serialized value together."""
_PAGE = 128
_PUT = "INSERT INTO _torpor_kv (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class Range:
    """Which keys, in which direction.

    `start` is included, `start_after` and `end` are not; `start` stays the smaller bound when `reverse` is set.

    Raises:
        UsageError: both `start` and `start_after`, or a limit that is not positive.
    """

    start: str | None = None
    start_after: str | None = None
    end: str | None = None
    prefix: str | None = None
    reverse: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.start_after is not None:
            raise UsageError("list takes start or start_after, not both")
        if self.limit is not None and self.limit <= 0:
            raise UsageError("the limit of a list must be positive")

    def bounds(self) -> tuple[bytes, bytes | None] | None:
        """Return the first key and the key after the last (None: no end), or None if nothing can be in between."""
        low = b"" if self.start is None else _bytes(self.start)
        if self.start_after is not None:
            # The smallest string greater than a string.
            low = _bytes(self.start_after) + b"\0"
        high = None if self.end is None else _bytes(self.end)
        if self.prefix:
            prefix = _bytes(self.prefix)
            low = max(low, prefix)
            # UTF-8 has no byte 0xFF, so every key with the prefix is below it.
            after = prefix + b"\xff"
            high = after if high is None else min(high, after)
        return None if high is not None and high <= low else (low, high)


class KeyValues:
    """`storage.kv`: get, put, delete and list one key at a time, without `await`."""

    def __init__(self, database: Database, commits: Commits, meter: Meter) -> None:
        self._database = database
        self._commits = commits
        self._meter = meter
        self._listing = 0

    def get(self, key: str) -> object:
        """Return the value, or None."""
        found = self.find(key)
        return None if found is None else found[0]

    def find(self, key: str) -> tuple[object] | None:
        """Return the value in a tuple, or None if there is no such key: a stored None is not a missing one."""
        raw = key_bytes(key)
        self._commits.reading()
        self._meter.rows_read += 1
        if not self._database.exists:
            return None
        row = self._database.run("SELECT value FROM _torpor_kv WHERE key = ?", (raw,)).fetchone()
        return None if row is None else (codec.decode(row[0]),)

    def put(self, key: str, value: object) -> None:
        """Store a value.

        Raises:
            LimitExceeded: the key has more than 2,048 bytes, or key and value together more than 2 MiB.
            NotSerializable: a value that `codec` does not carry.
        """
        self.store([prepare(key, value)])

    def delete(self, key: str) -> bool:
        """Remove a key; return whether it was there."""
        return self.remove([key_bytes(key)]) == 1

    def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, object]]:
        """Iterate over keys and values in order, reading as it goes.

        A new `list` ends the previous one: its next step raises `UsageError`. Keys written while it runs may appear.
        """
        self._listing += 1
        wanted = Range(start, start_after, end, prefix, reverse, limit)
        return self._iterate(wanted, self._listing)

    def select(self, wanted: Range) -> dict[str, object]:
        """Return a whole range at once."""
        return dict(self._iterate(wanted, None))

    def store(self, pairs: Sequence[tuple[bytes, bytes]], *, confirmed: bool = True) -> None:
        """Write prepared pairs in one batch."""
        self._commits.writing(sum(len(key) + len(value) for key, value in pairs), confirmed=confirmed)
        self._meter.rows_written += len(pairs)
        for key, value in pairs:
            self._database.run(_PUT, (key, value))

    def remove(self, keys: Sequence[bytes], *, confirmed: bool = True) -> int:
        """Remove keys; return how many were there."""
        self._commits.reading()
        if not self._database.exists:
            return 0
        self._commits.writing(sum(map(len, keys)), confirmed=confirmed)
        removed = sum(self._database.run("DELETE FROM _torpor_kv WHERE key = ?", (key,)).rowcount for key in keys)
        self._meter.rows_written += removed
        return removed

    def _iterate(self, wanted: Range, listing: int | None) -> Iterator[tuple[str, object]]:
        self._commits.reading()
        bounds = wanted.bounds()
        if bounds is None or not self._database.exists:
            return
        low, high = bounds
        left = wanted.limit
        while left is None or left > 0:
            # Page by page, so that no cursor stays open while the caller works with the rows.
            rows = self._page(low, high, wanted.reverse, _PAGE if left is None else min(_PAGE, left))
            for key, value in rows:
                if listing is not None and listing != self._listing:
                    raise UsageError("a later list() ended this one")
                self._commits.reading()
                self._meter.rows_read += 1
                yield key.decode("utf-8", "surrogatepass"), codec.decode(value)
            if len(rows) < _PAGE:
                return
            if left is not None:
                left -= len(rows)
            if wanted.reverse:
                high = rows[-1][0]
            else:
                low = rows[-1][0] + b"\0"

    def _page(self, low: bytes, high: bytes | None, reverse: bool, limit: int) -> Sequence[tuple[bytes, bytes]]:
        if high is None:
            sql = "SELECT key, value FROM _torpor_kv WHERE key >= ? ORDER BY key LIMIT ?"
            bindings: tuple[object, ...] = (low, limit)
        else:
            sql = "SELECT key, value FROM _torpor_kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
            bindings = (low, high, limit)
        if reverse:
            sql = sql.replace("ORDER BY key", "ORDER BY key DESC")
        return self._database.run(sql, bindings).fetchall()


def prepare(key: str, value: object) -> tuple[bytes, bytes]:
    """Return a pair as it is stored, after checking everything that could be wrong with it."""
    raw = key_bytes(key)
    return raw, codec.encode(value, limit=MAX_PAIR_BYTES - len(raw))


def key_bytes(key: str) -> bytes:
    """Return a key as it is stored.

    Raises:
        UsageError: not a string.
        LimitExceeded: more than 2,048 bytes of UTF-8.
    """
    if type(key) is not str:
        raise UsageError(f"a key is a str, not {type(key).__name__}")
    raw = _bytes(key)
    if len(raw) > MAX_KEY_BYTES:
        raise LimitExceeded("a storage key in bytes", MAX_KEY_BYTES, len(raw))
    return raw


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
