"""`ctx.storage`: what an object keeps for ever.

Every method works on the object's own file, at once, on the loop's thread; what is written in one turn of the loop is
one atomic commit, and nothing the object says leaves before that commit is durable. So an `await` on a read or write
does not let other work in, and a write needs no `await` to be safe. Awaiting writes matters only in bulk: it waits when
8 MiB are under way.

A write with `confirmed=False` does not hold output back: it may be lost in a power cut although the object has already
told somebody. If it fails the object is reset all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar, overload

from objects import history
from objects.alarms import AlarmBook
from objects.commits import Commits
from objects.errors import LimitExceeded, UsageError
from objects.kv import KeyValues, Range, key_bytes, prepare
from objects.ports import Claim, Ports
from objects.sql import Sql, check_sync
from objects.sqlite import Database

MAX_KEYS_PER_CALL = 128

T = TypeVar("T")


class Sections(Protocol):
    """Runs a function as a critical section; its exception reaches the caller and breaks nothing."""

    def __call__(self, run: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Run it when no other section does."""


class Storage:
    """The storage of one instance. Survives hibernation, reset and restart; see the module for when."""

    def __init__(
        self,
        database: Database,
        commits: Commits,
        kv: KeyValues,
        sql: Sql,
        alarms: AlarmBook,
        ports: Ports,
        claim: Claim,
        section: Sections,
        may_set_alarms: Callable[[], bool],
    ) -> None:
        self.kv = kv
        """The same keys, without `await`."""
        self.sql = sql
        self._database = database
        self._commits = commits
        self._alarms = alarms
        self._ports = ports
        self._claim = claim
        self._section = section
        self._may_set_alarms = may_set_alarms
        self._depth = 0

    @overload
    async def get(self, key: str) -> Any: ...
    @overload
    async def get(self, key: Sequence[str]) -> dict[str, Any]: ...
    async def get(self, key: str | Sequence[str]) -> Any:  # what was stored is the caller's business
        """Return one value or None; or of up to 128 keys those that exist, sorted by their UTF-8 bytes."""
        if isinstance(key, str):
            return self.kv.get(key)
        _check_count(len(key))
        found = {}
        for name in sorted(set(key), key=key_bytes):
            if (value := self.kv.find(name)) is not None:
                found[name] = value[0]
        return found

    @overload
    async def put(self, key: str, value: object, *, confirmed: bool = True) -> None: ...
    @overload
    async def put(self, key: Mapping[str, object], *, confirmed: bool = True) -> None: ...
    async def put(self, key: str | Mapping[str, object], value: object = None, *, confirmed: bool = True) -> None:
        """Store one value, or up to 128 at once: all are checked before any is written.

        Raises:
            LimitExceeded: a key above 2,048 bytes, key and value above 2 MiB, or too many.
            NotSerializable: a value that `codec` does not carry.
        """
        if isinstance(key, Mapping):
            _check_count(len(key))
            pairs = [prepare(name, item) for name, item in key.items()]
        else:
            pairs = [prepare(key, value)]
        self.kv.store(pairs, confirmed=confirmed)
        await self._breathe()

    @overload
    async def delete(self, key: str, *, confirmed: bool = True) -> bool: ...
    @overload
    async def delete(self, key: Sequence[str], *, confirmed: bool = True) -> int: ...
    async def delete(self, key: str | Sequence[str], *, confirmed: bool = True) -> bool | int:
        """Remove one key and say whether it was there, or up to 128 and say how many were."""
        if isinstance(key, str):
            removed: bool | int = self.kv.remove([key_bytes(key)], confirmed=confirmed) == 1
        else:
            _check_count(len(key))
            removed = self.kv.remove([key_bytes(name) for name in key], confirmed=confirmed)
        await self._breathe()
        return removed

    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Return keys and values in the order of the keys' UTF-8 bytes.

        Args:
            start: the first key; stays the smaller bound when `reverse` is set.
            start_after: only keys after this one; not together with `start`.
            end: only keys before this one.
            reverse: from the greatest to the smallest; `limit` counts in this direction.
        """
        return self.kv.select(Range(start, start_after, end, prefix, reverse, limit))

    async def delete_all(self, *, alarms: bool = True) -> None:
        """Remove all keys, tables and (unless `alarms` is False) alarms, atomically.

        Writes of this turn are discarded, not applied first.

        Raises:
            UsageError: inside a transaction.
        """
        if self._depth:
            raise UsageError("delete_all cannot be used inside a transaction")
        self._commits.reading()
        if self._commits.discard() or self._database.exists:
            self._database.allow_dangling(True)
            try:
                self._commits.writing(4096)
                if alarms:
                    self._alarms.delete_all()
                self._database.wipe(keep_alarms=not alarms)
                self._commits.commit_now()
            finally:
                if self._commits.error is None:
                    self._database.allow_dangling(False)
            self._commits.writing(0)
            self._database.give_back_space(False)
        await self._commits.sync()

    async def sync(self) -> None:
        """Return when every write made before the call is durable, those with `confirmed=False` included."""
        await self._commits.sync()

    async def transaction(self, run: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `run` in a critical section; commit what it writes together, or undo all of it if it raises.

        Its exception reaches the caller and resets nothing. Plain `storage` calls inside are part of the transaction.
        There are no conflicts: nothing else of the object runs meanwhile, and nothing commits.
        """

        async def inside() -> T:
            with self._commits.hold():
                name = self._save()
                transaction = Transaction(self, name)
                try:
                    result = await run(transaction)
                except BaseException:
                    if self._commits.error is None:
                        self._undo(name)
                    raise
                else:
                    self._keep(name)
                    return result
                finally:
                    self._depth -= 1
                    transaction.end()

        return await self._section(inside)

    def transaction_sync(self, run: Callable[[], T]) -> T:
        """Run `run`, undoing what it wrote if it raises; may be nested: an inner one can fail alone.

        Raises:
            UsageError: `run` is async.
        """
        name = self._save()
        try:
            result = run()
            check_sync(result)
        except BaseException:
            if self._commits.error is None:
                self._undo(name)
            raise
        else:
            self._keep(name)
            return result
        finally:
            self._depth -= 1

    # Alarms

    async def set_alarm(self, when: int | float | datetime, name: str = "", *, confirmed: bool = True) -> None:
        """Run the class's `alarm` handler at `when` (Unix ms or an aware datetime); replaces the alarm of this name.

        Raises:
            UsageError: the class has no `alarm` method, or the time is not positive.
            LimitExceeded: more than 100 alarms.
        """
        if not self._may_set_alarms():
            raise UsageError("the class has no alarm() method")
        self._alarms.set(when, name, confirmed=confirmed)
        await self._breathe()

    async def get_alarm(self, name: str = "") -> int | None:
        """Return when the alarm is due (Unix ms), or None; None too while its handler runs, unless set anew."""
        return self._alarms.get(name)

    async def delete_alarm(self, name: str = "", *, confirmed: bool = True) -> None:
        """Remove an alarm; a run under way goes on, but is not retried."""
        self._alarms.delete(name, confirmed=confirmed)

    async def list_alarms(self) -> dict[str, int]:
        """Return the alarms that stand, by name, soonest first."""
        return {name: due for name in self._alarms.names() if (due := self._alarms.get(name)) is not None}

    # Restore points

    async def get_current_bookmark(self) -> str:
        """Make a restore point of the present state, later writes of the same batch included; return its name.

        Names sort by time. A restore point is a copy of the object's file and is kept for 30 days.
        """
        self._commits.reading()
        bookmark = self._commits.bookmark()
        await self._commits.mark(bookmark)
        return bookmark

    async def get_bookmark_for_time(self, when: int | float | datetime) -> str | None:
        """Return the latest restore point made at or before `when` (Unix ms or datetime), or None."""
        limit = when.timestamp() * 1000 if isinstance(when, datetime) else when
        kept = [
            b for b in await self._ports.storage.bookmarks(self._claim.object_id) if history.bookmark_ms(b) <= limit
        ]
        return kept[-1] if kept else None

    async def on_next_session_restore_bookmark(self, bookmark: str) -> str:
        """Go back to a restore point when the object next starts (so follow with `ctx.abort()`).

        Returns the bookmark that will undo this: the state at the end of the present life.

        Raises:
            UsageError: no such restore point.
        """
        undo = self._commits.bookmark()
        await self._ports.storage.restore_next(self._claim, bookmark, undo)
        return undo

    def _save(self) -> str:
        self._commits.maybe_writing()
        self._depth += 1
        name = f"_torpor_{self._depth}"
        self._database.run(f"SAVEPOINT {name}")
        return name

    def _keep(self, name: str) -> None:
        self._database.run(f"RELEASE {name}")

    def _undo(self, name: str) -> None:
        self._database.run(f"ROLLBACK TO {name}")
        self._database.run(f"RELEASE {name}")

    async def _breathe(self) -> None:
        if (pressure := self._commits.pressure()) is not None:
            await pressure


class Transaction:
    """What `storage.transaction` hands to its function; of no use after it."""

    def __init__(self, storage: Storage, savepoint: str) -> None:
        self._storage: Storage | None = storage
        self._savepoint = savepoint
        self._rolled_back = False

    async def get(self, key: Any) -> Any:
        """As `Storage.get`."""
        return await self._open().get(key)

    async def put(self, key: Any, value: object = None) -> None:
        """As `Storage.put`."""
        await self._open().put(key, value)

    async def delete(self, key: Any) -> Any:
        """As `Storage.delete`."""
        return await self._open().delete(key)

    async def list(self, **options: Any) -> dict[str, Any]:
        """As `Storage.list`."""
        return await self._open().list(**options)

    def rollback(self) -> None:
        """Undo what was written so far; may be called again. The transaction cannot be used after it."""
        if self._rolled_back:
            return
        self._open()._database.run(f"ROLLBACK TO {self._savepoint}")
        self._rolled_back = True

    def end(self) -> None:
        """The function has returned."""
        self._storage = None

    def _open(self) -> Storage:
        if self._storage is None or self._rolled_back:
            raise UsageError("the transaction is over")
        return self._storage


def _check_count(count: int) -> None:
    if count > MAX_KEYS_PER_CALL:
        raise LimitExceeded("keys in one call", MAX_KEYS_PER_CALL, count)
