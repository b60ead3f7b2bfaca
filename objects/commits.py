"""Write coalescing: the writes of one turn of the loop are one atomic commit, and output waits for it.

The first write opens a transaction and asks to be called at the end of the turn. Then the transaction is handed to the
kernel as batch n, the engine makes it durable off the loop, and the output gate, locked for n since that first write,
opens. Batches become durable in order. A write that fails anywhere on this way finishes the instance.

    write ─▶ BEGIN … writes … ─turn ends─▶ alarms that moved earlier are told ─▶ COMMIT n ─▶ engine ─▶ gate.confirm(n)
                                                                                                   └▶ other alarms told
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from objects import history
from objects.errors import CommitTimeout, Fenced, ObjectError, StorageError
from objects.gates import OutputGate
from objects.ports import Claim, Ports, Timer
from objects.sqlite import Database

log = logging.getLogger("torpor.objects")

BACKPRESSURE_BYTES = 8 * 1024 * 1024
"""Bytes written and not yet durable from which an awaited write waits."""


class AlarmMoves(Protocol):
    """The alarms that a batch changes; see `alarms.AlarmBook`."""

    def tell_earlier(self) -> asyncio.Future[None] | None:
        """Tell the scheduler of alarms that moved earlier, before the commit; None if there are none."""

    def sealed(self, seq: int) -> None:
        """The changes so far were committed as batch `seq`."""

    def durable(self, seq: int) -> None:
        """Batches up to `seq` are durable: tell the scheduler the rest."""

    def earliest_ms(self) -> int | None:
        """Return when the object's first alarm is due."""


@dataclass(frozen=True, slots=True)
class _Mark:
    seq: int
    bookmark: str
    done: asyncio.Future[None]


class Commits:
    """The batches of one instance.

    Args:
        on_failure: called once with what went wrong; nothing is committed after that.
        on_pending: called with True when something is not durable, with False when everything is.
        timeout: seconds that a commit may take.
        restore_point_every: make restore points by itself after commits, at most one in so many seconds.
    """

    def __init__(
        self,
        database: Database,
        ports: Ports,
        claim: Claim,
        gate: OutputGate,
        *,
        on_failure: Callable[[ObjectError], None],
        on_pending: Callable[[bool], None],
        timeout: float,
        restore_point_every: float | None = None,
    ) -> None:
        self.committed = 0
        self.durable = 0
        self.alarms: AlarmMoves | None = None
        self._database = database
        self._ports = ports
        self._claim = claim
        self._gate = gate
        self._on_failure = on_failure
        self._on_pending = on_pending
        self._timeout = timeout
        self._restore_point_every = restore_point_every
        self._restore_point_at = ports.clock.monotonic()
        self._loop = asyncio.get_running_loop()
        self._dirty = self._pending = False
        self._scheduled = False
        self._holds = 0
        self._telling = False
        self._pending_bytes = 0
        self._batch_bytes: list[tuple[int, int]] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._marks: list[_Mark] = []
        self._timer: Timer | None = None
        self.error: ObjectError | None = None

    @property
    def busy(self) -> bool:
        """Whether something that was written is not durable yet."""
        return self.error is None and (self._dirty or self.durable < self.committed)

    @property
    def next_seq(self) -> int:
        """The number of the batch that collects writes now."""
        return self.committed + 1

    def writing(self, size: int, *, confirmed: bool = True) -> None:
        """Call before each write: opens the batch, and locks the output gate for it if `confirmed`.

        Raises:
            ObjectError: the storage of this instance has failed.
        """
        self.reading()
        self._database.begin()
        self._dirty = True
        if not self._pending:
            self._pending = True
            self._on_pending(True)
        if confirmed:
            self._gate.lock(self.next_seq)
        self._pending_bytes += size
        self._schedule()

    def maybe_writing(self) -> None:
        """Call before a statement that may turn out to write: opens the transaction, and closes it with the turn."""
        self.reading()
        self._database.begin()
        self._schedule()

    def reading(self) -> None:
        """Call before each read.

        Raises:
            ObjectError: the storage of this instance has failed.
        """
        if self.error is not None:
            raise self.error

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let no commit happen inside: the statements of a transaction over several turns stay together."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._database.in_transaction:
                self._schedule()

    def pressure(self) -> asyncio.Future[None] | None:
        """Return what an awaited write has to wait for, if too much is under way."""
        if self._pending_bytes < BACKPRESSURE_BYTES or self._holds:
            return None
        return self._wait_for(self.next_seq if self._dirty else self.committed)

    async def sync(self) -> None:
        """Return when every write made before the call is durable.

        Raises:
            ObjectError: it never will be.
        """
        self.reading()
        last = self.next_seq if self._dirty else self.committed
        if last > self.durable:
            await self._wait_for(last)

    def mark(self, bookmark: str) -> asyncio.Future[None]:
        """Make a restore point of the state after the current batch, later writes of the same batch included."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._marks.append(_Mark(self.next_seq if self._dirty else self.committed, bookmark, done))
        self._make_marks()
        return done

    def bookmark(self) -> str:
        """Return a name for a restore point made now."""
        return history.bookmark_name(self._ports.clock.unix_ms(), self._claim.epoch, self.next_seq)

    def fail(self, error: ObjectError) -> None:
        """Undo what is not committed, never commit again, and tell the instance."""
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # nobody may be waiting any more
        for mark in self._marks:
            mark.done.cancel()
        self._on_failure(error)

    def commit_now(self) -> None:
        """Hand the batch over without waiting for the end of the turn."""
        if self.error is None and self._database.in_transaction:
            self._commit()
            self.reading()

    def discard(self) -> bool:
        """Undo the writes of this turn; if there were any, return True: the caller must write something else then.

        The output gate is locked for the batch they began, so that batch has to come.
        """
        self._database.rollback()
        return self._dirty

    def _schedule(self) -> None:
        if not self._scheduled and not self._holds:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._scheduled = False
        if self.error is not None or self._holds or self._telling or not self._database.in_transaction:
            return
        if self._dirty and self.alarms is not None and (told := self.alarms.tell_earlier()) is not None:
            # Writes made meanwhile join this batch.
            self._telling = True
            told.add_done_callback(self._told)
            return
        self._commit()

    def _told(self, told: asyncio.Future[None]) -> None:
        self._telling = False
        if not told.cancelled() and (error := told.exception()) is not None:
            self.fail(error if isinstance(error, ObjectError) else StorageError(f"the alarm store failed: {error}"))
        else:
            self._end_turn()

    def _commit(self) -> None:
        dirty, self._dirty = self._dirty, False
        if dirty and not self._ports.placement.holds(self._claim):
            self.fail(Fenced(f"{self._claim.object_id.key} has another owner"))
            return
        try:
            self._database.commit()
        except ObjectError as error:
            self.fail(error)
            return
        if not dirty:
            return
        self.committed += 1
        self._batch_bytes.append((self.committed, self._pending_bytes - sum(size for _, size in self._batch_bytes)))
        if self._timer is None:
            self._timer = self._ports.clock.call_later(self._timeout, self._too_slow)
        seq = self.committed
        alarm_at = None
        if self.alarms is not None:
            self.alarms.sealed(seq)
            alarm_at = self.alarms.earliest_ms()
        self._ports.storage.commit(self._claim, seq, alarm_at, lambda error: self._settled(seq, error))
        now = self._ports.clock.monotonic()
        if self._restore_point_every is not None and now >= self._restore_point_at + self._restore_point_every:
            self._restore_point_at = now
            self.mark(self.bookmark()).add_done_callback(_ignore_failure)
        self._make_marks()

    def _settled(self, seq: int, error: Exception | None) -> None:
        if self.error is not None:
            return
        if error is not None:
            self.fail(error if isinstance(error, ObjectError) else StorageError(str(error)))
            return
        self.durable = seq
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.committed > seq:
            self._timer = self._ports.clock.call_later(self._timeout, self._too_slow)
        while self._batch_bytes and self._batch_bytes[0][0] <= seq:
            self._pending_bytes -= self._batch_bytes.pop(0)[1]
        if self.alarms is not None:
            self.alarms.durable(seq)
        self._gate.confirm(seq)
        while self._waiters and self._waiters[0][0] <= seq:
            waiter = self._waiters.pop(0)[1]
            if not waiter.done():
                waiter.set_result(None)
        if not self._dirty and self.durable == self.committed:
            self._pending = False
            self._on_pending(False)

    def _too_slow(self) -> None:
        self.fail(CommitTimeout(f"storage took over {self._timeout:g} s"))

    def _wait_for(self, seq: int) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((seq, waiter))
        return waiter

    def _make_marks(self) -> None:
        due = [mark for mark in self._marks if mark.seq <= self.committed]
        self._marks = [mark for mark in self._marks if mark.seq > self.committed]
        for mark in due:
            self._ports.storage.mark(self._claim, mark.bookmark, partial(_finish, mark.done))


def _ignore_failure(done: asyncio.Future[None]) -> None:
    # A restore point that nobody asked for by name; the next one will be tried in time.
    if not done.cancelled() and (error := done.exception()) is not None:
        log.warning("a restore point could not be made: %s", error)


def _finish(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
