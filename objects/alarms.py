"""Alarms: wake an object at a time, at least once, never early, whatever dies in between.

Two records of each alarm: the row in the object's own file has the last word on whether it stands, and an entry in the
alarm store, durable by itself, is what wakes the object. The store is told of an *earlier* time before the file commits
and of a later one after, so it is never later than the file. When an entry fires it is compared with the row: gone
means forget it, later means come back then.

    set ─▶ stored ─▶ due ─▶ running ─▶ done                      row and entry removed
                      ▲        │ raised: 2 s · 2ⁿ (+ 0-25 %)      at most 6 retries that count
                      └────────┘                                  not the handler's fault: no limit
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any

from objects.commits import Commits
from objects.errors import LimitExceeded, StorageError, UsageError
from objects.ids import ObjectId, ObjectKey
from objects.metering import Meter
from objects.ports import AlarmEntry, AlarmStore, Clock, Timer
from objects.sqlite import Database
from objects.text import utf8_size

log = logging.getLogger("torpor.objects")

MAX_ALARMS = 100
"""Alarms of one object that stand at the same time."""
MAX_ALARM_NAME_BYTES = 256
MAX_RETRIES = 6
"""Retries after failures that are the handler's own."""
FIRST_BACKOFF_S = 2.0
MAX_BACKOFF_EXPONENT = 9
BACKOFF_JITTER = 0.25
CONCURRENT_ALARMS = 256
"""Alarms of one process that are started before others have ended; one that takes long makes room for the next."""
LONG_RUN_S = 10.0


@dataclass(frozen=True, slots=True)
class AlarmInfo:
    """What an alarm handler is told."""

    name: str
    """Empty for the alarm without a name."""
    scheduled_time: int
    """The time that was asked for (Unix ms)."""
    retry_count: int
    """Retries so far that count against the limit: 0 in the first run, and after failures that were not its fault."""

    @property
    def is_retry(self) -> bool:
        """Whether a counted retry."""
        return self.retry_count > 0


class Outcome(Enum):
    """How the run of an alarm ended."""

    DONE = "done"
    FAILED = "failed"
    """The handler's own fault: raised, or over its limits. Counts."""
    INTERRUPTED = "interrupted"
    """Not its fault: storage failed, the process is stopping. Does not count."""
    DROPPED = "dropped"
    """Failed, and is not to run again: replaced, deleted, or `abort(retry_alarm=False)`."""


# ── the object's side ───────────────────────────────────────────────────────────────────────────────────────────────


class AlarmBook:
    """The alarms of one instance: rows in its file, and which of them the store has to be told of."""

    def __init__(
        self, object_id: ObjectId, database: Database, commits: Commits, scheduler: AlarmScheduler, meter: Meter
    ) -> None:
        self._object_id = object_id
        self._database = database
        self._commits = commits
        self._scheduler = scheduler
        self._meter = meter
        self._running: dict[str, int] = {}
        # By name, the time that the store knows: what was committed when the current batch first touched the alarm.
        self._changed: dict[str, int | None] = {}
        # What the store is to be told when a batch is durable: put if the flag is set, else forget.
        self._sealed: list[tuple[int, AlarmEntry, bool]] = []

    def get(self, name: str = "") -> int | None:
        """Return when the alarm is due (Unix ms); None while it runs, unless set anew."""
        if name in self._running:
            return None
        return self._stored(name)

    def names(self) -> list[str]:
        """Return the names of all alarms that `get` would answer."""
        self._commits.reading()
        if not self._database.exists:
            return []
        rows = self._database.run("SELECT name FROM _torpor_alarm ORDER BY scheduled_ms, name").fetchall()
        return [name for (name,) in rows if name not in self._running]

    def set(self, when: int | float | datetime, name: str, *, confirmed: bool) -> None:
        """Set or replace an alarm; a time in the past is now.

        Raises:
            UsageError: not a positive time, or a name that is no text.
            LimitExceeded: too many alarms, or too long a name.
        """
        due = max(_milliseconds(when), self._scheduler.clock.unix_ms())
        if (size := utf8_size(name, "an alarm's name")) > MAX_ALARM_NAME_BYTES:
            raise LimitExceeded("an alarm's name in bytes", MAX_ALARM_NAME_BYTES, size)
        self._note(name)
        self._commits.writing(64, confirmed=confirmed)
        self._meter.rows_written += 1
        self._database.run(
            "INSERT INTO _torpor_alarm VALUES (?, ?) ON CONFLICT DO UPDATE SET scheduled_ms = excluded.scheduled_ms",
            (name, due),
        )
        count = self._database.run("SELECT count(*) FROM _torpor_alarm").fetchone()[0]
        if count > MAX_ALARMS:
            self._database.run("DELETE FROM _torpor_alarm WHERE name = ?", (name,))
            raise LimitExceeded("alarms of one object", MAX_ALARMS)
        self._running.pop(name, None)

    def delete(self, name: str, *, confirmed: bool = True) -> None:
        """Remove an alarm; a run under way goes on, but is not retried."""
        self._running.pop(name, None)
        if self._stored(name) is None:
            return
        self._note(name)
        self._commits.writing(64, confirmed=confirmed)
        self._meter.rows_written += 1
        self._database.run("DELETE FROM _torpor_alarm WHERE name = ?", (name,))

    def delete_all(self) -> None:
        """Note that all rows are being removed."""
        for name in [*self.names(), *self._running]:
            self._note(name)
        self._running.clear()

    def start(self, entry: AlarmEntry) -> AlarmInfo | None:
        """Begin a run that the store asks for; None if it should not happen (now)."""
        stored = self._stored(entry.alarm)
        now = self._scheduler.clock.unix_ms()
        if stored is None:
            self._scheduler.forget(entry)
            return None
        if stored != entry.scheduled_ms and stored > now:
            self._scheduler.tell(
                [replace(entry, scheduled_ms=stored, due_ms=stored, retry_count=0, attempt=0)]
            ).add_done_callback(_ignore_failure)
            return None
        self._running[entry.alarm] = stored
        return AlarmInfo(entry.alarm, stored, entry.retry_count)

    def finish(self, entry: AlarmEntry, outcome: Outcome) -> Outcome:
        """End a run; the row goes if it succeeded, unless the handler set the alarm anew."""
        if self._running.pop(entry.alarm, None) is None:
            return Outcome.DONE if outcome is Outcome.DONE else Outcome.DROPPED
        if outcome in (Outcome.DONE, Outcome.DROPPED):
            self.delete(entry.alarm)
        return outcome

    async def tell_all(self) -> None:
        """Tell the store of every alarm in the file: it was put back to an earlier state."""
        stand = [self._entry(name, due) for name in self.names() if (due := self.get(name)) is not None]
        if stand:
            await self._scheduler.tell(stand)

    def drop(self, entry: AlarmEntry) -> None:
        """Give up an alarm whose last run ended the instance that ran it."""
        if self._stored(entry.alarm) == entry.scheduled_ms:
            self.delete(entry.alarm)

    def tell_earlier(self) -> asyncio.Future[None] | None:
        """Tell the store of alarms that the batch sets earlier than it knows; see `Commits`."""
        sooner = []
        for name, known in self._changed.items():
            stored = self._stored(name)
            if stored is not None and (known is None or stored < known):
                sooner.append(self._entry(name, stored))
                self._changed[name] = stored
        return self._scheduler.tell(sooner) if sooner else None

    def sealed(self, seq: int) -> None:
        """Batch `seq` was committed: note what the store has to be told when it is durable."""
        changed, self._changed = self._changed, {}
        for name, known in changed.items():
            stored = self._stored(name)
            if known is None or stored == known:
                continue
            if stored is None:
                self._sealed.append((seq, self._entry(name, known), False))
            elif stored > known:
                self._sealed.append((seq, self._entry(name, stored), True))

    def durable(self, seq: int) -> None:
        """Batches up to `seq` are durable: tell the store what is later now, or gone."""
        later: dict[str, AlarmEntry] = {}
        while self._sealed and self._sealed[0][0] <= seq:
            _, entry, stands = self._sealed.pop(0)
            if stands:
                later[entry.alarm] = entry
            else:
                later.pop(entry.alarm, None)
                self._scheduler.forget(entry)
        if later:
            # If it fails the store fires early, finds the row and comes back later.
            self._scheduler.tell(list(later.values()))

    def earliest_ms(self) -> int | None:
        """Return when the first alarm is due."""
        if not self._database.exists:
            return None
        found: int | None = self._database.run("SELECT min(scheduled_ms) FROM _torpor_alarm").fetchone()[0]
        return found

    def _stored(self, name: str) -> int | None:
        self._commits.reading()
        if not self._database.exists:
            return None
        row = self._database.run("SELECT scheduled_ms FROM _torpor_alarm WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def _note(self, name: str) -> None:
        if name not in self._changed:
            self._changed[name] = self._stored(name)

    def _entry(self, name: str, scheduled_ms: int) -> AlarmEntry:
        return AlarmEntry(self._object_id, name, scheduled_ms, scheduled_ms)


def _ignore_failure(told: asyncio.Future[None]) -> None:
    # Not everybody who tells the store waits for it.
    if not told.cancelled():
        told.exception()


def _milliseconds(when: int | float | datetime) -> int:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise UsageError("an alarm's datetime needs a time zone")
        when = when.timestamp() * 1000
    if not 0 < when < 1 << 53:
        raise UsageError("an alarm's time is a positive number of milliseconds since 1970, or a datetime")
    return int(when)


# ── the host's side ─────────────────────────────────────────────────────────────────────────────────────────────────


class AlarmScheduler:
    """Fires the entries of an alarm store at their time, and runs failed ones again.

    Args:
        run: wakes the object, runs the handler and says how it ended; does not raise.
        jitter: a number from 0 to 1, for the backoff.
    """

    def __init__(
        self,
        store: AlarmStore,
        clock: Clock,
        run: Callable[[AlarmEntry], Coroutine[Any, Any, Outcome]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self._store = store
        self._run = run
        self._jitter = jitter
        self._timer: Timer | None = None
        self._firing: dict[tuple[ObjectKey, str], asyncio.Task[None]] = {}
        self._recent: set[tuple[ObjectKey, str]] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether the store is being read or written."""
        return bool(self._tasks or self._looking)

    def start(self) -> None:
        """Begin to look for due entries, those from before a restart included."""
        self._look()

    def halt(self) -> None:
        """Fire nothing any more; what runs goes on."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self) -> None:
        """Fire nothing any more; wait for what runs and for what the store was told."""
        self.halt()
        while self.busy or self._firing:
            pending = [*self._tasks, *self._firing.values(), *([self._looking] if self._looking else [])]
            await asyncio.wait(pending)

    def tell(self, entries: list[AlarmEntry]) -> asyncio.Future[None]:
        """Put entries into the store; the future ends when they are durable there."""
        return self._later(self._put(entries))

    def forget(self, entry: AlarmEntry) -> None:
        """Remove an entry from the store, unless it was changed meanwhile."""
        self._later(self._remove(entry))

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.Task(work, loop=asyncio.get_running_loop())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_ignore_failure)
        return task

    async def _put(self, entries: list[AlarmEntry]) -> None:
        await self._store.put(entries)
        self._look()

    async def _remove(self, entry: AlarmEntry) -> None:
        try:
            await self._store.remove([entry])
        except StorageError:
            # It fires once more, finds no row in the object's file and is removed then.
            log.warning("an alarm of %s could not be removed", entry.object_id.key)

    def _look(self) -> None:
        if self._looking is not None:
            self._look_again = True
        elif not self._stopped:
            self._looking = asyncio.Task(self._look_for_due(), loop=asyncio.get_running_loop())

    async def _look_for_due(self) -> None:
        delay: float | None = None
        try:
            self._look_again = True
            while self._look_again and not self._stopped:
                self._look_again = False
                delay = await self._fire_due()
        except StorageError:
            log.exception("the alarm store cannot be read")
            delay = 1.0
        finally:
            self._looking = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None and not self._stopped:
            self._timer = self.clock.call_later(delay, self._look)

    async def _fire_due(self) -> float | None:
        """Start what is due; return the seconds until the next entry."""
        now = self.clock.unix_ms()
        free = CONCURRENT_ALARMS - len(self._recent)
        if free > 0:
            # Those that run are still in the store: ask for enough to see past them.
            for entry in await self._store.due(now, len(self._firing) + free):
                key = (entry.object_id.key, entry.alarm)
                if key not in self._firing and len(self._recent) < CONCURRENT_ALARMS and not self._stopped:
                    self._recent.add(key)
                    self._firing[key] = asyncio.Task(self._fire(entry), loop=asyncio.get_running_loop())
        following = await self._store.next_due_ms(now)
        # A full table looks again when an entry has ended.
        return None if following is None else max(0, following - self.clock.unix_ms()) / 1000

    async def _fire(self, entry: AlarmEntry) -> None:
        key = (entry.object_id.key, entry.alarm)
        # Handlers that hang must not use up the places of those that do not.
        timer = self.clock.call_later(LONG_RUN_S, lambda: self._make_room(key))
        try:
            outcome = await self._run(entry)
            again = retry(entry, outcome, self.clock.unix_ms(), self._jitter())
            if again is not None:
                await self.tell([again])
        except StorageError:
            log.exception("the alarm store cannot be written; an alarm of %s will run again", entry.object_id.key)
            await asyncio.sleep(1)
        finally:
            timer.cancel()
            del self._firing[key]
            self._make_room(key)

    def _make_room(self, key: tuple[ObjectKey, str]) -> None:
        self._recent.discard(key)
        self._look()


def retry(entry: AlarmEntry, outcome: Outcome, now_ms: int, jitter: float) -> AlarmEntry | None:
    """Return the entry for the next attempt, or None if there is none.

    Args:
        jitter: from 0 to 1; adds up to a quarter to the delay.
    """
    if outcome in (Outcome.DONE, Outcome.DROPPED):
        return None
    # The backoff starts over when failures begin to be the handler's own.
    counted = outcome is Outcome.FAILED
    attempt = 0 if counted and entry.interrupted else entry.attempt
    delay = FIRST_BACKOFF_S * 2 ** min(attempt, MAX_BACKOFF_EXPONENT) * (1 + BACKOFF_JITTER * jitter)
    return replace(
        entry,
        due_ms=now_ms + round(delay * 1000),
        retry_count=entry.retry_count + counted,
        attempt=attempt + 1,
        interrupted=not counted,
    )
