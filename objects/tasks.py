"""The code of one instance that runs: its tasks, critical sections and timers.

Every step of a task passes the input gate, and everything here is a blocker of hibernation while it lasts.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from objects.blockers import TASK, TIMER, Blockers
from objects.errors import CriticalSectionTimeout, ObjectError, ObjectReset
from objects.firststep import Started
from objects.gates import InputGate, Section, Steps, discard, gated
from objects.limits import Limits
from objects.ports import Clock, Timer
from objects.scope import Scope, current_scope

if TYPE_CHECKING:
    from objects.instance import Instance

T = TypeVar("T")


class Tasks:
    """What runs in one instance.

    Args:
        reset: ends the instance; called when a critical section fails or takes too long.
    """

    def __init__(
        self,
        instance: Instance,
        gate: InputGate,
        blockers: Blockers,
        clock: Clock,
        limits: Limits,
        reset: Callable[[ObjectError], None],
    ) -> None:
        self._instance = instance
        self._input = gate
        self._blockers = blockers
        self._clock = clock
        self._limits = limits
        self._reset = reset
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[Timer] = set()

    def cancel(self) -> None:
        """The instance is gone: nothing runs on, no timer fires."""
        for timer in list(self._timers):
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Return when all tasks have ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        section: Section,
        *,
        context: contextvars.Context | None = None,
        name: str | None = None,
        blocker: str = TASK,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task of this object: through the input gate, and a blocker while it lasts."""
        task = self.run(coro, section, context or contextvars.copy_context(), False, name)
        self._blockers.add(blocker)
        task.add_done_callback(lambda _: self._blockers.remove(blocker))
        return task

    def critical(self, run: Callable[[], Awaitable[T]], *, breaks: bool = True) -> asyncio.Future[T]:
        """Run `run` as a critical section of the section that calls; if `breaks`, its failure resets the object.

        Raises:
            LimitExceeded: nested deeper than 64, at once.
        """
        result: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()

        def begin(section: Section) -> None:
            context.run(current_scope.set, Scope(self._instance, section))
            task = self.run(_call(run), section, context, True, "critical section")
            limit = self._limits.critical_section_s
            timer = self._clock.call_later(
                limit, lambda: self._reset(CriticalSectionTimeout(f"a critical section ran over {limit:g} s"))
            )
            task.add_done_callback(lambda task: self._section_ended(section, task, timer, result, breaks))

        self._input.begin(self.section_now(), begin)
        # Until the section has ended, also if whoever called gives up.
        self._blockers.add(TASK)
        return result

    def _section_ended(
        self, section: Section, task: asyncio.Task[T], timer: Timer, result: asyncio.Future[T], breaks: bool
    ) -> None:
        timer.cancel()
        self._blockers.remove(TASK)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._input.broken:
            result.cancel()
        elif error is not None and breaks:
            reset = ObjectReset(f"a critical section failed: {type(error).__name__}: {error}")
            reset.__cause__ = error
            result.cancel()
            self._reset(reset)
        else:
            self._input.end(section, result)
            if result.done():
                return
            if error is None:
                result.set_result(task.result())
            elif isinstance(error, asyncio.CancelledError):
                result.cancel()
            else:
                result.set_exception(error)
                result.exception()  # whoever awaited it may have been cancelled

    def section_now(self) -> Section:
        """Return the section of the running code, or the root if it is not this object's."""
        scope = current_scope.get()
        return scope.section if scope is not None and scope.instance is self._instance else self._input.root

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back after `delay` seconds of the host's clock, unless the instance is gone by then."""
        timers, blockers = self._timers, self._blockers

        class Blocking:
            def cancel(self) -> None:
                timer.cancel()
                if self in timers:
                    timers.discard(self)
                    blockers.remove(TIMER)

        handle = Blocking()

        def due() -> None:
            # The callback first: if it starts something, there is no moment without a blocker.
            callback()
            handle.cancel()

        timer = self._clock.call_later(delay, due)
        timers.add(handle)
        blockers.add(TIMER)
        return handle

    def run(
        self,
        coro: Coroutine[Any, Any, T],
        section: Section,
        context: contextvars.Context,
        admitted: bool,
        name: str | None,
    ) -> asyncio.Task[T]:
        """Run a coroutine in `context`, without making it a blocker; `admitted` as in `gates.gated`."""
        steps = gated(coro, self._input, section, admitted=admitted)
        name = name or getattr(coro, "__qualname__", None)
        task: asyncio.Task[T] = asyncio.Task(steps, loop=self._loop, context=context, name=name)
        self._keep(task, coro)
        return task

    def go_on(self, started: Started, ended: Callable[[], None], name: str) -> asyncio.Task[Any]:
        """Run a coroutine on that has begun as work of the root section; `ended` is called with its last step."""

        async def rest(awaited: Any, error: BaseException | None) -> None:
            try:
                await gated(started, self._input, self._input.root, waits_for=(awaited, error))
            finally:
                ended()

        started.go_on(rest)
        started.task.set_name(name)
        self._keep(started.task, started)
        return started.task

    def _keep(self, task: asyncio.Task[Any], coro: Steps) -> None:
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            discard(coro)  # it may have been cancelled before its first step

        task.add_done_callback(done)

    def context_of(self, section: Section) -> contextvars.Context:
        """Return a context in which code is this instance's, as work of `section`."""
        context = contextvars.Context()
        context.run(current_scope.set, Scope(self._instance, section))
        return context


async def _call(run: Callable[[], Awaitable[T]]) -> T:
    return await run()
