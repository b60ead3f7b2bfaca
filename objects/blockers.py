"""Why an object is still in memory: a counted set of named reasons.

Everything that must keep an instance awake takes a blocker while it lasts and gives it back. None left: the countdown
to hibernation begins. So "why does it not hibernate?" has an answer: `ctx.hibernation_blockers()`.

    event        a handler runs, or its answer has not left        task        a background task, `wait_until` included
    timer        `ctx.sleep`, `set_timeout`, `set_interval`        storage     writes that are not durable yet
    web_socket   accepted without hibernation                      rpc_call    an outgoing call without an answer yet
    rpc_stub     others hold stubs of functions of this object     body        a response body that is still being sent
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVENT = "event"
TASK = "task"
TIMER = "timer"
STORAGE = "storage"
WEB_SOCKET = "web_socket"
RPC_CALL = "rpc_call"
RPC_STUB = "rpc_stub"
BODY = "body"


class Blockers:
    """The reasons of one instance.

    Args:
        on_change: called with True when the first reason comes, with False when the last one goes.
    """

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._counts: defaultdict[str, int] = defaultdict(int)
        self.total = 0
        """How many reasons hold."""
        self._on_change = on_change
        self._waiters: list[asyncio.Future[None]] = []
        self._released = False

    def __bool__(self) -> bool:
        return self.total > 0

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def add(self, name: str) -> None:
        """Take a reason; each `add` needs one `remove`."""
        self._counts[name] += 1
        self.total += 1
        if self.total == 1:
            self._on_change(True)

    def remove(self, name: str) -> None:
        """Give it back."""
        assert self._counts[name] > 0, name
        self._counts[name] -= 1
        self.total -= 1
        if self._waiters and not self._counts[name]:
            self._look_again()
        if self.total == 0:
            self._on_change(False)

    async def until_none(self, *names: str) -> None:
        """Return when none of these reasons holds, or the instance is gone."""
        while any(self._counts[name] for name in names) and not self._released:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def end(self) -> None:
        """The instance is gone: its reasons hold nobody up any more."""
        self._released = True
        self._look_again()

    def _look_again(self) -> None:
        """Let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold a reason inside a `with` block."""
        self.add(name)
        try:
            yield
        finally:
            self.remove(name)

    def counts(self) -> dict[str, int]:
        """Return the reasons that hold now, with how many times each."""
        return {name: count for name, count in self._counts.items() if count}

    def only_background(self) -> bool:
        """Return whether nothing of an event is left: an instance can go without anybody missing an answer."""
        return not (self._counts[EVENT] or self._counts[STORAGE] or self._counts[WEB_SOCKET] or self._counts[BODY])

    def only(self, *names: str) -> bool:
        """Return whether no reason but these holds."""
        return self.total == sum(self._counts[name] for name in names)
