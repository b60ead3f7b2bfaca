"""A handler's first step, taken at once and without a task of its own.

Most handlers of messages never wait, and a task for each would cost more than what runs in it. So the first step is
taken where the message arrives, as a step of a spare task: `asyncio.timeout`, `TaskGroup` and others keep hold of
`asyncio.current_task()`, so a handler that does wait has to go on in the task that it began in. It takes the spare with
it, and a new one is made for those that come later.

Making a task current is what asyncio offers to task implementations, see "Task lifetime support" in its documentation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from objects._step.step import FirstStep, Spare


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


class FirstSteps(FirstStep):
    """Takes first steps on one event loop: `take` is compiled, see `_step/step.pyi`."""

    def prepare(self) -> None:
        """Be ready from the next turn of the running loop on."""
        if self._spare is None:
            self._spare = _Spare(asyncio.get_running_loop(), self)

    def _waits(self, spare: _Spare, coro: Coroutine[Any, Any, Any], context: Context, awaited: Any) -> Started:
        if self._spare is spare:
            self._replace()
        return Started(spare, coro, context, awaited)

    def _replace(self) -> None:
        self._spare, self.ready = None, False
        self.prepare()

    def _coroutine(self, awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
        return _await(awaitable)

    async def close(self) -> None:
        """End the spare task."""
        spare, self._spare, self.ready = self._spare, None, False
        if spare is not None:
            spare.task.cancel()
            await asyncio.wait((spare.task,))


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class _Spare(Spare):
    """A task that waits for a coroutine to go on with."""

    __slots__ = ("_rest",)

    def __init__(self, loop: asyncio.AbstractEventLoop, home: FirstSteps) -> None:
        self.loop = loop
        self._rest: Callable[[BaseException | None], Coroutine[Any, Any, Any]] | None = None
        self.handed = loop.create_future()
        self.task = asyncio.Task(self._run(home), loop=loop, context=Context(), name="spare")

    def hand(self, rest: Callable[[BaseException | None], Coroutine[Any, Any, Any]]) -> None:
        self._rest = rest
        if not self.handed.done():
            self.handed.set_result(None)

    async def _run(self, home: FirstSteps) -> Any:
        # A task that is cancelled before its first step never takes it: only from here on is it of use.
        home.ready = True
        error: BaseException | None = None
        try:
            await self.handed
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if self._rest is not None:
            return await self._rest(error)
        return None
