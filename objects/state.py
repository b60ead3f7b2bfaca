"""What an instance gets from the runtime: `ctx`, and the base class of all objects.

    class Counter(DurableObject):
        def __init__(self, ctx: ObjectState, env: object) -> None:
            super().__init__(ctx, env)
            self.count = ctx.storage.kv.get("count") or 0

        async def increment(self) -> int:           # callable through stubs
            self.count += 1
            await self.ctx.storage.put("count", self.count)
            return self.count                       # leaves when the write is durable

Handlers that a class may have, all `async`: `fetch(request)`, `alarm(info)`, `web_socket_connect(ws, request)`,
`web_socket_message(ws, message)`, `web_socket_close(ws, code, reason, was_clean)`, `web_socket_error(ws, error)`. A
WebSocket event without a handler is consumed silently; a connect without one is refused.

`before_leave(reason)` runs before an instance leaves memory in good order ("idle", "evicted", "forced", "stopping"),
for at most 10 s; its writes are there when the next instance starts. An event that arrives meanwhile keeps the
instance. It does not run on a reset or a crash: persist as you go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from objects.alarms import AlarmInfo
from objects.errors import LimitExceeded, ObjectReset, UsageError
from objects.failures import FAILURES
from objects.gates import discard
from objects.ids import ObjectId
from objects.instance import Aborted, Instance
from objects.ports import (
    MAX_AUTO_RESPONSE_BYTES,
    MAX_AUTO_RESPONSES,
    MAX_EVENT_TIMEOUT_MS,
    AutoResponse,
    ConnectionId,
    Frame,
    Timer,
)
from objects.storage import Storage
from objects.text import utf8_size
from objects.websocket import WebSocket, check_message, check_tags

__all__ = ["AlarmInfo", "DurableObject", "ObjectState"]

T = TypeVar("T")

log = logging.getLogger("torpor.objects")


class DurableObject:
    """Base of all object classes. Its public methods and properties can be called through stubs."""

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        self.ctx = ctx
        self.env = env  # whatever the server was configured with


class ObjectState:
    """The runtime, as one instance sees it. Nothing here survives the instance unless it says so."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    @property
    def id(self) -> ObjectId:
        """Who this is; with the name if it was reached by one of at most 1,024 bytes."""
        return self._instance.object_id

    @property
    def storage(self) -> Storage:
        """What survives everything."""
        assert self._instance.storage is not None
        return self._instance.storage

    # Concurrency

    def block_concurrency_while(self, run: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """Run `run` as a critical section: nothing but what it starts goes on meanwhile.

        Starts at once, awaited or not; the result is `run`'s. If `run` raises or takes over 30 s, the object is reset.

        Raises:
            LimitExceeded: 64 sections are nested already; the object stays healthy.
        """
        return self._instance.tasks.critical(run)

    def wait_until(self, work: Awaitable[Any]) -> None:
        """Keep the instance awake until `work` is done, in the background; its exception is logged."""
        finishing = self._logged(lambda: work, "wait_until")
        task = self._instance.tasks.spawn(finishing, self._instance.tasks.section_now(), name="wait_until")
        if asyncio.iscoroutine(work):
            task.add_done_callback(lambda _: discard(work))  # after a reset it may not have begun

    async def sleep(self, seconds: float) -> None:
        """Sleep by the host's clock. Blocks hibernation, but not eviction when nobody is connected."""
        woken = asyncio.Event()
        timer = self._instance.tasks.call_later(seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    def set_timeout(self, run: Callable[[], Awaitable[None] | None], seconds: float) -> Timer:
        """Call `run` once, in `seconds`; cancel with the result. A timer blocks hibernation: alarms do not."""
        section = self._instance.tasks.section_now()
        return self._instance.tasks.call_later(seconds, lambda: self._start(run, section))

    def set_interval(self, run: Callable[[], Awaitable[None] | None], seconds: float) -> Timer:
        """Call `run` each `seconds` until cancelled, or until the instance is evicted.

        Raises:
            UsageError: an interval of under a millisecond.
        """
        if seconds < 0.001:
            raise UsageError("an interval is at least a millisecond")
        return _Interval(self._instance, lambda section: self._start(run, section), seconds)

    def abort(self, reason: str = "the object was aborted", *, retry_alarm: bool = True) -> None:
        """Reset this object now: does not return. Writes of this turn are undone; all callers get `reason`.

        Args:
            retry_alarm: False drops an alarm whose handler is running.
        """
        self._instance.retry_alarm = retry_alarm
        self._instance.break_(ObjectReset(reason))
        raise Aborted(reason)

    def hibernation_blockers(self) -> dict[str, int]:
        """Return what keeps this instance in memory, by name; inside a handler that is at least the event itself."""
        return self._instance.reasons()

    # WebSockets. All of it survives hibernation.

    def accept_web_socket(self, ws: WebSocket, tags: Sequence[str] = (), protocol: str | None = None) -> None:
        """Accept an upgrade, for a connection that outlives this instance.

        Args:
            tags: labels to find it by; at most 10, each at most 256 bytes of UTF-8. Duplicates are dropped.
            protocol: the subprotocol to answer with.

        Raises:
            UsageError: accepted before, or its upgrade was answered.
            LimitExceeded: tags.
            TooManyConnections: 32,768 connections, or what the server lets a room have; others are not affected.
        """
        self._instance.accept(ws, check_tags(tags), protocol, hibernatable=True)

    def get_web_sockets(self, tag: str | None = None) -> list[WebSocket]:
        """Return the connections, oldest first. One that is closing is in it until its close handler has started."""
        instance = self._instance
        return [instance.socket(one) for one in instance.connections.connections(instance.object_id, tag)]

    def web_socket_count(self, tag: str | None = None) -> int:
        """Return how many `get_web_sockets` would, without making handles."""
        return self._instance.connections.count(self._instance.object_id, tag)

    def get_tags(self, ws: WebSocket) -> list[str]:
        """Return the tags in the order of accept; also in close and error handlers.

        Raises:
            UsageError: never accepted with `accept_web_socket`.
        """
        info = self._instance.connections.info(ws.connection_id)
        if info is None:
            raise UsageError("the WebSocket was not accepted with accept_web_socket")
        return list(info.tags)

    def broadcast(self, message: Frame, tag: str | None = None, exclude: Iterable[WebSocket] = ()) -> None:
        """Send to all connections (with `tag`) but some; encoded once, without making handles.

        Raises:
            UsageError: neither text nor bytes; a lone surrogate, in the tag as well.
            LimitExceeded: over the limit of a message.
        """
        check_message(message)
        if tag is not None:
            utf8_size(tag, "a tag")
        instance, connections = self._instance, self._instance.connections
        without: list[ConnectionId] = [ws.connection_id for ws in exclude]
        if instance.output.is_open:
            connections.broadcast(instance.object_id, message, tag, without)
            return
        connections.hold(instance.object_id, None)

        def release() -> None:
            connections.broadcast(instance.object_id, message, tag, without)
            connections.release(instance.object_id, None)

        instance.output.pass_(release)

    def set_web_socket_auto_response(self, *rules: AutoResponse) -> None:
        """Answer matching messages without running or waking the object; no rules clears them.

        Raises:
            LimitExceeded: over 16 rules, or a request or response over 2,048 bytes.
        """
        if len(rules) > MAX_AUTO_RESPONSES:
            raise LimitExceeded("auto-response rules", MAX_AUTO_RESPONSES, len(rules))
        for rule in rules:
            for part in (rule.request, rule.response):
                size = len(part) if isinstance(part, bytes) else utf8_size(part, "an auto-response")
                if size > MAX_AUTO_RESPONSE_BYTES:
                    raise LimitExceeded("an auto-response in bytes", MAX_AUTO_RESPONSE_BYTES, size)
        self._instance.connections.set_auto_responses(self.id, rules)

    def get_web_socket_auto_response(self) -> tuple[AutoResponse, ...]:
        """Return the rules in force."""
        return self._instance.connections.auto_responses(self.id)

    def get_web_socket_auto_response_timestamp(self, ws: WebSocket) -> int | None:
        """Return when a rule last matched on this connection (Unix ms)."""
        return self._instance.connections.auto_response_at_ms(ws.connection_id)

    def set_hibernatable_web_socket_event_timeout(self, timeout_ms: int | None = None) -> None:
        """Reset the object if a message, close or error handler runs longer; 0 or None clears.

        Raises:
            LimitExceeded: over seven days.
        """
        if timeout_ms is not None and not 0 <= timeout_ms <= MAX_EVENT_TIMEOUT_MS:
            raise LimitExceeded("the event timeout in ms", MAX_EVENT_TIMEOUT_MS, timeout_ms)
        self._instance.connections.set_event_timeout(self.id, timeout_ms or None)

    def get_hibernatable_web_socket_event_timeout(self) -> int | None:
        """Return the timeout in ms, or None."""
        return self._instance.connections.event_timeout(self.id)

    def _start(self, run: Callable[[], Awaitable[None] | None], section: Any) -> None:
        self._instance.tasks.spawn(self._logged(run, "a timer"), section, name="timer")

    async def _logged(self, run: Callable[[], Awaitable[Any] | None], what: str) -> None:
        try:
            awaitable = run()
            if awaitable is not None:
                await awaitable
        except FAILURES:
            log.exception("%s: work of %s raised", self.id.key, what)


class _Interval:
    def __init__(self, instance: Instance, start: Callable[[Any], None], seconds: float) -> None:
        self._instance = instance
        self._start = start
        self._seconds = seconds
        self._section = instance.tasks.section_now()
        self._timer = instance.tasks.call_later(seconds, self._due)

    def cancel(self) -> None:
        """Call no more."""
        self._timer.cancel()

    def _due(self) -> None:
        self._timer = self._instance.tasks.call_later(self._seconds, self._due)
        self._start(self._section)
