"""Crons: a party's schedule, kept by one object of its own, so that it survives restarts and no run is forgotten.

Each cron is a named alarm of that object. A run that was due while the server was down is made up for once, at the
start; a run cut by a crash is made again. One that raises is tried again as alarms are, after 2, 4, 8, ... s, six times
at most and only before it is due next anyhow.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError

from objects.alarms import BACKOFF_JITTER, FIRST_BACKOFF_S, MAX_RETRIES, AlarmInfo
from objects.state import DurableObject, ObjectState

logger = logging.getLogger(__name__)

_EXPRESSION = "expression "


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
    """What the constructor of a `CronKeeper` gets: the expressions by name, and what to do at each run."""

    expressions: Mapping[str, str]
    run: Callable[[Cron], Awaitable[None]]
    now_ms: Callable[[], int]


async def _nothing(cron: Cron) -> None:
    """Of a party that is not served any more."""


class CronKeeper(DurableObject):
    """The schedule of one party."""

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        self._context: CronContext = env.get(ctx.id.name, CronContext({}, _nothing, lambda: 0))

    async def schedule(self) -> None:
        """Set the alarms of crons that are new or changed; those that stand keep their time, also if it is past."""
        standing = await self.ctx.storage.list_alarms()
        for name, expression in self._context.expressions.items():
            if name not in standing or await self.ctx.storage.get(_EXPRESSION + name) != expression:
                await self.ctx.storage.put(_EXPRESSION + name, expression)
                await self._set(name, expression)
        for name in standing.keys() - self._context.expressions.keys():
            await self.ctx.storage.delete_alarm(name)
            await self.ctx.storage.delete(_EXPRESSION + name)

    async def alarm(self, info: AlarmInfo) -> None:
        """Run a cron, then set its next alarm: so a crash between the two runs it again rather than never."""
        expression = self._context.expressions.get(info.name)
        if expression is None:  # taken out of the class
            return
        cron = Cron(info.name, expression, info.scheduled_time, info.retry_count)
        if info.retry_count and not cron.is_tried_again(self._context.now_ms()):
            # One that hangs is stopped from outside: what comes next must not hang on its end.
            await self._set(info.name, expression)
            await self.ctx.storage.sync()
        try:
            await self._context.run(cron)
        except Exception:
            if cron.is_tried_again(self._context.now_ms()):
                raise
            logger.exception("on_cron %r raised", info.name)
        await self._set(info.name, expression)

    async def _set(self, name: str, expression: str) -> None:
        await self.ctx.storage.set_alarm(next_run_ms(expression, self._context.now_ms()), name)


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
