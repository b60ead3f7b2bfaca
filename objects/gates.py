"""The two gates of an object: what may come in now, and what may go out yet.

**Input gate.** One object runs on one thread, and between two `await`s nothing else runs. But at an `await` other work
of the same object may run, and sometimes that must not happen: while the constructor runs, and inside a critical
section. So every step of an object's code passes here. Steps are *of a section*: there is a root section, and each
critical section is a child of the one it was started in. Live sections form a chain, and only work of its innermost
link goes on; all other work waits in the queue of its own section, first in first out. A critical section that is ready
to start goes ahead of that queue, and whoever awaited a section that ended continues before it too.

    events ─▶ root queue ─▶ ┌ root ───────────────┐      work of `root` waits while `a` lives,
                            │  a ← started in root │      work of `a` waits while `b` lives
                            │  └ b ← started in a  │
                            └──────────────────────┘

**Output gate.** Whatever leaves an object (responses, results, frames, closes, outgoing calls) while writes are not
durable yet is held until they are. It waits only for writes made *before* it. If a commit fails, held output is dropped
for ever: from outside, that code never ran. The same holds for a start that fails: nothing leaves before the
constructor has returned, and what it or its critical sections send to WebSockets not before all of them have ended.
(Calls to other objects leave with the constructor's return: its sections may need the answers.)

A broken gate stays broken; the instance it belongs to is finished.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Callable, Generator
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

from objects.errors import LimitExceeded
from objects.failures import ESCAPES, as_exception

log = logging.getLogger("torpor.objects")

MAX_NESTED_SECTIONS = 64


class Section:
    """One link of the chain: the root of an object, or one critical section."""

    __slots__ = ("depth", "ended", "parent", "starting", "waiting")

    def __init__(self, parent: Section | None) -> None:
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.ended = False
        # Lists, though they are taken from in front: an empty deque has 680 bytes, and nearly all stay empty.
        self.waiting: list[Callable[[], None]] = []
        self.starting: list[Callable[[], None]] = []

    def live(self) -> Section:
        """Return this section, or the nearest enclosing one that has not ended: it adopts what outlives a section."""
        section = self
        while section.ended and section.parent is not None:
            section = section.parent
        return section


class InputGate:
    """Lets work of the innermost live section pass, one piece at a time, in order.

    Args:
        call_soon: the loop's. One waiter is let in per turn of the loop, so that it may lock the gate again before
            the next one passes.
    """

    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        self.root = Section(None)
        self.active = self.root
        self.broken = False
        self.is_open = True
        """Whether `admit` would start work of the root section at once."""
        self._call_soon = call_soon
        self._scheduled = False
        self._reserved: asyncio.Future[Any] | None = None

    def admit(self, section: Section, start: Callable[[], None]) -> None:
        """Call `start` when work of `section` may go on, behind those who wait already; at once if nobody does."""
        section = section.live()
        if self._free(section):
            start()
        else:
            section.waiting.append(start)
            self._schedule()

    def begin(self, parent: Section, start: Callable[[Section], None]) -> None:
        """Start a critical section inside `parent` as soon as no other one runs there; ahead of ordinary waiters.

        Raises:
            LimitExceeded: nested deeper than 64; nothing was changed.
        """
        parent = parent.live()
        section = Section(parent)
        if section.depth > MAX_NESTED_SECTIONS:
            raise LimitExceeded("nested critical sections", MAX_NESTED_SECTIONS, section.depth)

        def enter() -> None:
            self.active = section
            self._see()
            start(section)

        if parent is self.active and not parent.starting:
            enter()
        else:
            parent.starting.append(enter)
            self._schedule()

    def end(self, section: Section, waiter: asyncio.Future[Any] | None = None) -> None:
        """End a critical section; work of it that goes on belongs to its parent from now on.

        Args:
            waiter: the future that is about to be resolved; whoever awaits it goes before all others.
        """
        parent = section.parent
        assert parent is not None
        section.ended = True
        parent.starting[:0] = section.starting
        parent.waiting[:0] = section.waiting
        if self.active is section:
            self.active = parent
            if waiter is None:
                self._schedule()
            else:
                # Its own callbacks are not in the loop's queue yet: they come between these two.
                self._reserved = waiter
                expire = partial(self._expire, waiter)
                self._call_soon(partial(self._call_soon, expire))
        else:
            # A section begun inside outlives it, and belongs to the parent now.
            child = self.active
            while child.parent is not section:
                assert child.parent is not None
                child = child.parent
            child.parent = parent

    def break_(self) -> None:
        """Let nobody in any more and forget the queues: nothing of this object runs again."""
        self.broken = True
        self._see()
        section: Section | None = self.active
        while section is not None:
            section.waiting.clear()
            section.starting.clear()
            section = section.parent

    def passes(self, section: Section, awaited: object) -> bool:
        """Return whether a step of `section` that awaited `awaited` may go on without queueing."""
        section = section.live()
        if section is not self.active:
            return False
        if self._reserved is not None and awaited is self._reserved:
            self._reserved = None
            self._schedule()
            return True
        return self._free(section)

    def _free(self, section: Section) -> bool:
        return section is self.active and self._reserved is None and not (section.waiting or section.starting)

    def _see(self) -> None:
        self.is_open = not self.broken and self._free(self.root)

    def _schedule(self) -> None:
        self._see()
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._serve)

    def _expire(self, waiter: asyncio.Future[Any]) -> None:
        # Nobody awaited it directly.
        if self._reserved is waiter:
            self._reserved = None
            self._schedule()

    def _serve(self) -> None:
        self._scheduled = False
        if self.broken or self._reserved is not None:
            return
        active = self.active
        if active.starting:
            active.starting.pop(0)()
        elif active.waiting:
            active.waiting.pop(0)()
        self._see()
        if self.active.starting or self.active.waiting:
            # After the steps that this one has just made ready.
            self._schedule()


class Steps(Protocol):
    """What can be driven through the gate: a coroutine, or one that has begun elsewhere (`firststep.Started`)."""

    def send(self, value: Any, /) -> Any:
        """Take a step."""

    def throw(self, error: BaseException, /) -> Any:
        """Take a step with an exception."""

    def close(self) -> None:
        """End it."""


@types.coroutine
def _steps(
    coro: Steps,
    gate: InputGate,
    section: Section,
    loop: asyncio.AbstractEventLoop,
    admitted: bool,
    waits_for: tuple[Any, BaseException | None] | None,
) -> Generator[Any, Any, Any]:
    awaited: Any = None
    error: BaseException | None = None
    if waits_for is not None:
        awaited, error = waits_for
        if error is None:
            error = yield from _wait(awaited, coro)
    while True:
        # If the first step has been admitted it need not queue again, but a critical section may have begun since.
        queue = not admitted
        admitted = False
        while not gate.broken and not (gate.passes(section, awaited) if queue else section.live() is gate.active):
            turn = loop.create_future()

            def let_in(turn: asyncio.Future[None] = turn) -> None:
                if not turn.done():
                    turn.set_result(None)

            here = section.live()
            if queue:
                here.waiting.append(let_in)
            else:
                here.waiting.insert(0, let_in)
            gate._schedule()
            try:
                yield from turn
            except asyncio.CancelledError as cancelled:
                error = cancelled
                break
            queue = False
        if gate.broken:
            discard(coro)
            raise asyncio.CancelledError
        try:
            if error is None:
                awaited = coro.send(None)
            else:
                failure, error = error, None
                awaited = coro.throw(failure)
        except StopIteration as stop:
            return stop.value
        except ESCAPES as escape:
            raise as_exception(escape) from escape
        error = yield from _wait(awaited, coro)


def _wait(awaited: Any, coro: Steps) -> Generator[Any, Any, BaseException | None]:
    """Let the task wait for what `coro` awaits; returns what is to be thrown into it, whatever that is."""
    try:
        yield awaited
    except GeneratorExit:
        discard(coro)
        raise
    except BaseException as caught:
        return caught
    return None


async def gated(
    coro: Steps,
    gate: InputGate,
    section: Section,
    *,
    admitted: bool = False,
    waits_for: tuple[Any, BaseException | None] | None = None,
) -> Any:
    """Run a coroutine so that each of its steps passes the input gate as work of `section`.

    If the gate breaks, the coroutine is closed at its next step, whatever it catches, and this one ends as cancelled.

    Args:
        admitted: the gate has let it in already, so that its first step does not queue again.
        waits_for: it has taken its first step already; what it awaits, and the exception that came instead, if any.
    """
    return await _steps(coro, gate, section, asyncio.get_running_loop(), admitted, waits_for)


def discard(coro: Steps) -> None:
    """End a coroutine that is not going to be run on, whatever it does about it."""
    # Its `finally` may fail, or it may catch even this and go on: then once more, and it does not run again anyway.
    for _ in range(3):
        try:
            coro.close()
        except RuntimeError:
            continue
        except BaseException:
            return
        return


class Stage(IntEnum):
    """How far the start of an instance has come, as far as its output is concerned."""

    CONSTRUCTING = 0
    SECTIONS = 1
    """The constructor has returned; critical sections that it began may still run."""
    STARTED = 2


class OutputGate:
    """Holds output until the writes before it are durable, and until the instance has started.

    `lock(n)` says that batch n has to be confirmed, `confirm(n)` that all batches up to n are. Numbers only grow.
    """

    def __init__(self, stage: Stage = Stage.STARTED) -> None:
        self.stage = stage
        self.is_open = stage is Stage.STARTED
        """Whether output of this moment would leave at once."""
        self._locked = 0
        self._confirmed = 0
        self._held: dict[int, list[Callable[[], None]]] = {}
        """By the batch that it waits for, in order."""
        self._unborn: list[tuple[Stage, int, Callable[[], None]]] = []
        self._error: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def held(self) -> int:
        """How much output waits."""
        return sum(map(len, self._held.values())) + len(self._unborn)

    def reach(self, stage: Stage) -> None:
        """The start has come to `stage`: what waited for that goes on, to wait for its writes."""
        self.stage = stage
        self._see()
        unborn, self._unborn = self._unborn, []
        for needed, number, send in unborn:
            self.pass_(send, number, needed)

    def lock(self, number: int) -> None:
        """From now on output waits for batch `number`."""
        self._locked = max(self._locked, number)
        self._see()

    def confirm(self, number: int) -> None:
        """All batches up to `number` are durable: let go what waited for them, in order."""
        self._confirmed = max(self._confirmed, number)
        self._see()
        while self._held and (first := min(self._held)) <= self._confirmed:
            for send in self._held.pop(first):
                if self._error is not None:
                    return
                try:
                    send()
                except Exception:  # it must not keep back what waits behind it, nor another object's commit
                    log.exception("output could not leave")

    def _see(self) -> None:
        self.is_open = self._confirmed >= self._locked and self._error is None and self.stage is Stage.STARTED

    def mark(self) -> int:
        """Return the last batch that output of this moment would wait for."""
        return self._locked

    def pass_(self, send: Callable[[], None], mark: int | None = None, needed: Stage = Stage.STARTED) -> None:
        """Call `send` when what was written so far is durable: at once, later, or never if the gate breaks.

        Args:
            mark: "so far" is when this was taken from `mark()`, instead of now.
            needed: how far the instance has to have started.
        """
        if self._error is not None:
            return
        number = self._locked if mark is None else mark
        if self.stage < needed:
            self._unborn.append((needed, number, send))
        elif self._confirmed >= number:
            send()
        else:
            self._held.setdefault(number, []).append(send)

    async def wait(self) -> None:
        """Return when what was written so far is durable.

        Raises:
            BaseException: what the gate broke with.
        """
        if self._error is not None:
            raise self._error
        if self._confirmed >= self._locked:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiters.add(done)

        def let_out() -> None:
            if not done.done():
                done.set_result(None)

        self.pass_(let_out, needed=Stage.CONSTRUCTING)
        try:
            await done
        finally:
            self._waiters.discard(done)

    def break_(self, error: BaseException) -> None:
        """Drop what is held, for ever; those who wait get `error`."""
        if self._error is not None:
            return
        self._error = error
        self._see()
        self._held.clear()
        self._unborn.clear()
        for done in self._waiters:
            if not done.done():
                done.set_exception(error)
