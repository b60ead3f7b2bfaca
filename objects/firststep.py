"""A handler's first step, taken at once and without a task of its own.

Most handlers of messages never wait, and a task for each would cost more than what runs in it. So the first step is
taken where the message arrives, as a step of a spare task: `asyncio.timeout`, `TaskGroup` and others keep hold of
`asyncio.current_task()`, so a handler that does wait has to go on in the task that it began in. It takes the spare with
it, and a new one is made for those that come later.

Making a task current is what asyncio offers to task implementations, see "Task lifetime support" in its documentation.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class Started:
    """A coroutine that has taken its first step and waits; to be driven on by `go_on`.

    Attributes:
        task: the task that it saw as the current one.
    """

    __slots__ = ("_awaited", "_context", "_coro", "_is_future", "_spare", "task")

    def __init__(self, spare: _Spare, coro: Coroutine[Any, Any, Any], context: Context, awaited: Any) -> None:
        self.task = spare.task
        self._awaited = awaited
        self._is_future = getattr(awaited, "_asyncio_future_blocking", False) is True
        if self._is_future:  # how a future knows that it is awaited; somebody else may do so before the task does
            awaited._asyncio_future_blocking = False
        self._spare = spare
        self._coro = coro
        self._context = context

    def send(self, value: Any) -> Any:
        """Take a step in its context."""
        return self._context.run(self._coro.send, value)

    def throw(self, error: BaseException) -> Any:
        """Take a step with an exception, in its context."""
        return self._context.run(self._coro.throw, error)

    def close(self) -> None:
        """End it."""
        self._context.run(self._coro.close)

    def go_on(self, rest: Callable[[Any, BaseException | None], Coroutine[Any, Any, Any]]) -> None:
        """Let the task run `rest`, which drives this coroutine from here to its end.

        Args:
            rest: given what the coroutine awaits, as a task must see it, and the cancellation that has come meanwhile.
        """

        def begin(error: BaseException | None) -> Coroutine[Any, Any, Any]:
            if self._is_future and error is None:
                self._awaited._asyncio_future_blocking = True
            return rest(self._awaited, error)

        self._spare.hand(begin)


class FirstSteps:
    """Takes first steps on one event loop."""

    def __init__(self) -> None:
        self._spare: _Spare | None = None

    @property
    def ready(self) -> bool:
        """Whether `take` may be called: there is a spare task, and no task is running."""
        spare = self._spare
        if spare is None:
            self.prepare()  # its own first step comes first
            return False
        return spare.waits and asyncio.current_task(spare.loop) is None

    def prepare(self) -> None:
        """Have a spare task from the next turn of the running loop on."""
        self._spare = self._spare or _Spare(asyncio.get_running_loop())

    def take(self, coro: Coroutine[Any, Any, Any], context: Context) -> Started | None:
        """Run `coro` in `context` until it ends (None) or waits; raises what it raises. Only when `ready`."""
        spare = self._spare
        assert spare is not None
        _enter_task(spare.loop, spare.task)
        try:
            awaited = context.run(coro.send, None)
        except StopIteration:
            return None
        finally:
            _leave_task(spare.loop, spare.task)
            if not spare.waits:  # it cancelled itself
                self._spare = None
        self._spare = _Spare(spare.loop)
        return Started(spare, coro, context, awaited)

    async def close(self) -> None:
        """End the spare task."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.task.cancel()
            await asyncio.wait((spare.task,))


class _Spare:
    """A task that waits for a coroutine to go on with."""

    __slots__ = ("_handed", "_rest", "loop", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._rest: Callable[[BaseException | None], Coroutine[Any, Any, Any]] | None = None
        self._handed: asyncio.Future[None] | None = None
        self.task = asyncio.Task(self._run(), loop=loop, context=Context(), name="spare")

    @property
    def waits(self) -> bool:
        """Whether it has begun, and nothing has been handed to it, no cancellation either."""
        return self._handed is not None and not self._handed.done()

    def hand(self, rest: Callable[[BaseException | None], Coroutine[Any, Any, Any]]) -> None:
        assert self._handed is not None
        self._rest = rest
        if not self._handed.done():
            self._handed.set_result(None)

    async def _run(self) -> Any:
        self._handed = self.loop.create_future()
        error: BaseException | None = None
        try:
            await self._handed
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if self._rest is not None:
            return await self._rest(error)
        return None
