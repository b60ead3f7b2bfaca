"""Crons: each is kept by an object of its own, so that it survives restarts and no run is forgotten.

A cron is the alarm of its object. A run that was due while the server was down is made up for once, at the
start; a run cut by a crash is made again. One that raises is tried again as alarms are, after 2, 4, 8, ... s, six times
at most and only before it is due next anyhow.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError

from objects.alarms import BACKOFF_JITTER, FIRST_BACKOFF_S, MAX_RETRIES, AlarmInfo
from objects.failures import FAILURES
from objects.state import DurableObject, ObjectState

logger = logging.getLogger(__name__)

_EXPRESSION = "expression"

MAX_CRON_BYTES = 256
"""Bytes of a cron's name."""


@dataclass(slots=True)
class Cron:
    """One run of a schedule."""

    name: str
    """Its key in `Server.crons`."""
    expression: str
    scheduled_ms: int
    """When it was due (Unix ms); now, or earlier if the server was down or busy, or if this is a retry."""
    retry_count: int = 0
    _once: bool = field(default=False, repr=False)

    def no_retry(self) -> None:
        """If this run raises, come again when it is due next, not before."""
        self._once = True

    def is_tried_again(self, now_ms: int) -> bool:
        """Whether a run that raised now is tried again before the next one is due."""
        wait_ms = 1000 * FIRST_BACKOFF_S * 2**self.retry_count * (1 + BACKOFF_JITTER)
        before_next = now_ms + wait_ms < next_run_ms(self.expression, now_ms)
        return not self._once and self.retry_count < MAX_RETRIES and before_next


@dataclass(frozen=True, slots=True)
class CronContext:
    """What the constructor of a `CronKeeper` gets, by `keeper_name`: the cron, and what to do at each run."""

    name: str
    expression: str
    run: Callable[[Cron], Awaitable[None]]
    now_ms: Callable[[], int]


def keeper_name(party: str, cron: str) -> str:
    """Return the name of the object that keeps a party's cron."""
    return f"{party} {cron}"


class CronKeeper(DurableObject):
    """One cron of a party, apart from the others: one that hangs is ended by the end of its object."""

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        self._context: CronContext | None = env.get(ctx.id.name)  # None: it was taken out of the class

    async def schedule(self) -> None:
        """Set the alarm if the cron is new or changed; one that stands keeps its time, also if it is past."""
        context = self._context
        assert context is not None
        standing = await self.ctx.storage.get_alarm() is not None
        if not standing or await self.ctx.storage.get(_EXPRESSION) != context.expression:
            await self.ctx.storage.put(_EXPRESSION, context.expression)
            await self._set(context)

    async def alarm(self, info: AlarmInfo) -> None:
        """Run the cron, then set its next alarm: so a crash between the two runs it again rather than never."""
        context = self._context
        if context is None:
            return
        cron = Cron(context.name, context.expression, info.scheduled_time, info.retry_count)
        if info.retry_count and not cron.is_tried_again(context.now_ms()):
            # One that hangs is stopped from outside: what comes next must not hang on its end.
            await self._set(context)
            await self.ctx.storage.sync()
        try:
            await context.run(cron)
        except FAILURES:
            if cron.is_tried_again(context.now_ms()):
                raise
            logger.exception("on_cron %r raised", context.name)
        await self._set(context)

    async def _set(self, context: CronContext) -> None:
        await self.ctx.storage.set_alarm(next_run_ms(context.expression, context.now_ms()))


def next_run_ms(expression: str, now_ms: int) -> int:
    """Return when an expression is due next, strictly after `now_ms` (Unix ms, the expression in UTC).

    Raises:
        ValueError: no cron expression, or one that is never due.
    """
    try:
        due = next(CronSim(expression, datetime.fromtimestamp(now_ms / 1000, UTC)), None)
    except CronSimError as error:
        raise ValueError(f"{expression!r} is no cron expression: {error}") from error
    if due is None:
        raise ValueError(f"{expression!r} is never due")
    return round(due.timestamp() * 1000)
