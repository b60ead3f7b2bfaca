"""One in-memory life of an object, from its constructor to hibernation, eviction or reset.

    STARTING ──constructor done──▶ RUNNING ──no blockers for 10 s──▶ GONE (hibernated: connections stay)
        │                             ├──────only timers, no clients──▶ GONE (evicted)
        └──failed──▶ GONE (reset) ◀───┘ abort, failed section, failed commit, over a limit: connections go too

Events wait in the input gate's queue from the moment they arrive, also while the instance starts. Whatever they answer
passes the output gate. Every event, task and timer is a blocker while it lasts.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Protocol

from objects._step.step import ShortWay
from objects.alarms import AlarmBook, AlarmScheduler
from objects.blockers import BODY, EVENT, RPC_STUB, STORAGE, TASK, TIMER, Blockers
from objects.commits import Commits
from objects.errors import (
    Disconnected,
    EventTimeout,
    ObjectError,
    ObjectReset,
    UsageError,
)
from objects.failures import for_callers
from objects.firststep import FirstSteps, Started
from objects.gates import InputGate, OutputGate, Section, Stage
from objects.http import is_token
from objects.ids import ObjectId
from objects.kv import KeyValues
from objects.limits import Limits
from objects.mailbox import Event, Mailbox
from objects.metering import Meter
from objects.ports import Claim, ConnectionId, Connections, Delivery, Ports, Timer, UpgradeAccepted
from objects.sql import Sql
from objects.sqlite import Database, OpenFiles
from objects.storage import Storage
from objects.tasks import Tasks
from objects.websocket import WebSocket

log = logging.getLogger("torpor.objects")

_ACCEPTED = UpgradeAccepted()

LONG_TASK_S = 900.0
"""Background tasks hold eviction off for this long after the last event."""


class Home(Protocol):
    """What an instance needs of the host that it lives in."""

    ports: Ports
    limits: Limits
    files: OpenFiles
    scheduler: AlarmScheduler
    first_steps: FirstSteps

    def gone(self, instance: Instance) -> None:
        """The instance takes no more events; the next one starts another, once `closed` is done."""


class State(Enum):
    """Where in its life an instance is."""

    STARTING = "starting"
    RUNNING = "running"
    GONE = "gone"


class Aborted(asyncio.CancelledError):
    """Ends the code that called `ctx.abort`."""


class Instance(ShortWay):
    """The runtime's side of one life of an object; user code sees it as `ctx` (`ObjectState`).

    Most messages are handled the short way, which is compiled: `handle_now`, see `_step/step.pyi`.
    """

    # More attributes than CPython keeps without a dict of 1.3 KB.
    __slots__ = (
        "__weakref__",
        "_claim",
        "_construct",
        "_constructor",
        "_database",
        "_events",
        "_handles_alarms",
        "_idle_timer",
        "_leaving",
        "_mailbox",
        "_since",
        "_started",
        "alarms",
        "blockers",
        "closed",
        "commits",
        "error",
        "home",
        "loop",
        "object_id",
        "retry_alarm",
        "state",
        "storage",
        "stubs",
        "tasks",
    )

    def __init__(
        self,
        object_id: ObjectId,
        home: Home,
        meter: Meter,
        construct: Callable[[Instance], Any],
        handles_alarms: bool,
    ) -> None:
        self.object_id = object_id.inside()
        self.home = home
        self.meter = meter
        self.state = State.STARTING
        self.error: Exception | None = None
        self.retry_alarm = True
        self.loop = asyncio.get_running_loop()
        self.input = InputGate(self.loop.call_soon)
        self.output = OutputGate(Stage.CONSTRUCTING)
        self.blockers = Blockers(self._busy_changed)
        self.tasks = Tasks(self, self.input, self.blockers, home.ports.clock, home.limits, self.break_)
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.object = None
        self.stubs: set[Disposable] = set()
        self.storage: Storage | None = None
        self.commits: Commits | None = None
        self.alarms: AlarmBook | None = None
        self._construct = construct
        self._handles_alarms = handles_alarms
        self._database: Database | None = None
        self._claim: Claim | None = None
        self._events: set[Event] = set()
        self._sockets = {}
        self._mailbox = Mailbox(self.object_id, home.limits)
        self._rate = self._mailbox.rate
        self._last_event = self._since = home.ports.clock.monotonic()
        self._now = home.ports.clock.monotonic
        self._first_steps = home.first_steps
        self._idle_timer: Timer | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = self.loop.create_future()
        self._context = self.tasks.context_of(self.input.root)
        # Everything waits until the constructor, a section of its own, has ended.
        self.input.begin(self.input.root, self._begin_constructor)
        # First of all that waits: so it is let in when the constructor's own critical sections have ended, too.
        self.input.admit(self.input.root, lambda: self.output.reach(Stage.STARTED))
        self._constructor: Section

    # Life

    async def start(self, after: Awaitable[None] | None) -> None:
        """Become the owner, load the storage and run the constructor; a failure resets the instance.

        Args:
            after: the end of the previous life, if it is not over yet.
        """
        try:
            if after is not None:
                await after
            await self._prepare()
        except Exception as error:
            if self.error is None:
                log.warning("%s could not start: %r", self.object_id.key, error)
            self.break_(error)
        except Aborted:
            pass  # by the constructor
        else:
            if self.state is State.STARTING:
                self.state = State.RUNNING
                self._running = True
                self.output.reach(Stage.SECTIONS)
                self.input.end(self._constructor)
        finally:
            self._started.set_result(None)

    async def _prepare(self) -> None:
        ports = self.home.ports
        self._claim = await ports.placement.claim(self.object_id)
        if ports.connections is not None:
            await ports.connections.attach(self.object_id)
        file = await ports.storage.load(self._claim)
        # The host may have given up on it meanwhile.
        if self.state is not State.STARTING:
            return
        self._open_storage(self._claim, file.path)
        if file.restored:
            assert self.alarms is not None
            await self.alarms.tell_all()
            await ports.storage.settle_restore(self._claim)
        if self.state is State.STARTING:
            self.object = self.tasks.context_of(self._constructor).run(self._construct, self)

    def _begin_constructor(self, section: Section) -> None:
        self._constructor = section

    def break_(self, error: Exception) -> None:
        """Reset: nothing of this instance runs, commits or leaves any more; callers get `error`, connections end."""
        if self.state is State.GONE:
            return
        self.error = error
        self.meter.resets += 1
        answer: Any = for_callers(error, self.object_id)
        answer.object_reset = True
        self.output.break_(answer)
        events = self._leave()
        for event in events:
            if event.reply is not None and not event.reply.done():
                event.reply.set_exception(answer)
                event.reply.exception()  # the caller may be gone
            if event.dispatched is not None:
                self.loop.call_soon(event.dispatched, Delivery.FAILED)
        if self.home.ports.connections is not None:
            self.home.ports.connections.disconnect_all(self.object_id, f"object reset: {error}")

    def hibernate(self) -> None:
        """Leave memory; connections and all that is theirs stay. Nothing may be under way but timers and tasks."""
        if self.state is State.GONE:
            return
        self.meter.hibernations += 1
        self._leave()
        if self.home.ports.connections is not None:
            self.home.ports.connections.detach(self.object_id)

    def can_evict(self, now: float) -> bool:
        """Return whether only timers keep it in memory, or tasks that have had their time."""
        if self.state is not State.RUNNING or not self.blockers:
            return False
        idle = now - self._last_event
        limit = self.home.limits.evict_after_s if self.blockers.only(TIMER) else LONG_TASK_S
        if idle <= limit or not self.blockers.only(TIMER, TASK, RPC_STUB):
            return False
        connections = self.home.ports.connections
        return connections is None or connections.count(self.object_id) == 0

    def leave_soon(self, reason: str) -> None:
        """Hibernate when `before_leave` has run, unless something happens meanwhile."""
        if not hasattr(self.object, "before_leave"):
            self.hibernate()
        elif not self._leaving:
            events = self._begun
            self._leaving = asyncio.Task(self.take_leave(reason), loop=self.loop, context=contextvars.Context())

            def left(_: asyncio.Task[None]) -> None:
                self._leaving = None
                # One event was the handler's own.
                if (
                    self._begun == events + 1
                    and self.state is State.RUNNING
                    and self.blockers.only(TIMER, TASK, RPC_STUB)
                ):
                    self.hibernate()

            self._leaving.add_done_callback(left)

    async def take_leave(self, reason: str) -> None:
        """Let the class's `before_leave` run, for 10 s at most; return when nothing is under way any more."""
        handler = getattr(self.object, "before_leave", None)
        if handler is not None and self.state is State.RUNNING:
            reply: asyncio.Future[None] = self.loop.create_future()
            self.submit(Event("leave", lambda _: handler(reason), reply, refusable=False))
            timer = self.home.ports.clock.call_later(self.home.limits.leave_s, lambda: _cancel(reply))
            try:
                await asyncio.wait((reply,))
            finally:
                timer.cancel()
            if not reply.cancelled() and (error := reply.exception()) is not None:
                log.warning("%s: before_leave raised: %r", self.object_id.key, error)
        await self.drained()

    async def drained(self) -> None:
        """Return when no event is under way, no response is being sent, and everything written is durable."""
        await self.blockers.until_none(EVENT, STORAGE, BODY)

    def _leave(self) -> set[Event]:
        """Stop everything, at once; return the events that were under way."""
        self._account(self._now())
        self.state = State.GONE
        self._running = False
        self.input.break_()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self.commits is not None:
            self.commits.fail(ObjectReset("this instance of the object is gone"))
        close_file = self._database.close() if self._database is not None else None
        self.tasks.cancel()
        for stub in list(self.stubs):
            stub.dispose()
        self.blockers.end()
        events, self._events = self._events, set()
        for event in events:
            if event.timer is not None:
                event.timer.cancel()
        self.home.gone(self)
        asyncio.Task(self._close(close_file), loop=self.loop, context=contextvars.Context())
        return events

    async def _close(self, close_file: Callable[[], None] | None) -> None:
        try:
            await self._started
            await self.tasks.ended()
            if close_file is not None:
                await self.loop.run_in_executor(self.home.files.closer, close_file)
            if self._claim is not None:
                await self.home.ports.storage.unload(self._claim)
                await self.home.ports.placement.release(self._claim)
        except Exception:
            log.exception("closing %s failed", self.object_id.key)
        finally:
            # They hold this instance: without this, all three wait for the garbage collector.
            self._sockets.clear()
            self.object = None
            self.closed.set_result(None)

    def _open_storage(self, claim: Claim, path: Any) -> None:
        limits, ports = self.home.limits, self.home.ports
        database = Database(path, self.home.files, limits.database_bytes, self._storage_failed)
        commits = Commits(
            database,
            ports,
            claim,
            self.output,
            on_failure=self._storage_failed,
            on_pending=lambda pending: self.blockers.add(STORAGE) if pending else self.blockers.remove(STORAGE),
            timeout=limits.commit_s,
            restore_point_every=limits.restore_point_s,
        )
        self.alarms = commits.alarms = AlarmBook(self.object_id, database, commits, self.home.scheduler, self.meter)
        self._database, self.commits = database, commits
        self.storage = Storage(
            database,
            commits,
            KeyValues(database, commits, self.meter),
            Sql(database, commits, self.meter),
            self.alarms,
            ports,
            claim,
            lambda run: self.tasks.critical(run, breaks=False),
            # The constructor may set one before anybody can look at the class's methods.
            lambda: self._handles_alarms or self.state is State.STARTING,
        )

    def _storage_failed(self, error: ObjectError) -> None:
        if self.commits is not None and self.commits.error is None:
            self.commits.fail(error)
        else:
            self.break_(error)

    # Events

    def submit(self, event: Event) -> None:
        """Queue an event; refuses it with `QueueFull` if the object has too much to do."""
        now = self.home.ports.clock.monotonic()
        if event.refusable and (refusal := self._mailbox.refusal(event, now)) is not None:
            self.meter.overloads += 1
            if event.reply is not None:
                event.reply.set_exception(refusal)
            if event.dispatched is not None:
                self.loop.call_soon(event.dispatched, Delivery.OVERLOADED)
            return
        self._events.add(event)
        self.blockers.add(EVENT)
        self._mailbox.put(event, now)
        self.input.admit(event.section or self.input.root, lambda: self._begin(event))

    def _begin(self, event: Event) -> None:
        self._mailbox.take(event)
        if event.reply is not None and event.reply.done():
            self._end(event)  # the caller gave up
            return
        self._begun += 1
        self._unstarted += 1
        self._limit(event)
        section = event.section or self.input.root
        context = self._context.copy() if event.section is None else self.tasks.context_of(section)
        task = self.tasks.run(self._handle(event), section, context, True, event.cause)
        task.add_done_callback(lambda task: self._finished(event, task))
        if event.reply is not None:
            # A caller that stops waiting stops the handler, as with any awaited coroutine.
            event.reply.add_done_callback(lambda reply: reply.cancelled() and task.cancel())
        if event.dispatched is not None:
            # Behind the task's first step, which is in the loop's queue already.
            self.loop.call_soon(self._dispatched, event)

    def _limit(self, event: Event) -> None:
        if event.timeout is not None:
            event.timer = self.home.ports.clock.call_later(event.timeout, lambda: self._timed_out(event))

    async def _handle(self, event: Event) -> Any:
        self._unstarted -= 1
        event.started = True
        try:
            return await event.run(self)
        finally:
            event.mark = self.output.mark()

    def _dispatched(self, event: Event) -> None:
        if self.state is not State.GONE and event.dispatched is not None:
            dispatched, event.dispatched = event.dispatched, None
            dispatched(Delivery.DISPATCHED)

    def _finished(self, event: Event, task: asyncio.Task[Any]) -> None:
        if not event.started:
            self._unstarted -= 1
        if self.state is State.GONE or event not in self._events:
            if not task.cancelled():
                task.exception()
            return
        if task.cancelled():
            error: BaseException | None = Disconnected("the handler was cancelled")
        else:
            error = task.exception()
        if error is not None and not (event.reply is not None and event.reply.cancelled()):
            self.meter.errors += 1
            if event.reply is None or event.cause in ("alarm", "connect"):  # nobody else says why
                log.error("%s: %s handler raised", self.object_id.key, event.cause, exc_info=error)
        result = None if error is not None else task.result()
        # Calls back into a section of the constructor are answered while it runs; all others begin later.
        self.output.pass_(lambda: self._answer(event, result, error), event.mark, Stage.SECTIONS)

    def _answer(self, event: Event, result: object, error: BaseException | None) -> None:
        if event.reply is not None and not event.reply.done():
            if error is None:
                event.reply.set_result(result)
            else:
                event.reply.set_exception(for_callers(error, self.object_id))
                event.reply.exception()
        self._end(event)

    def _end(self, event: Event) -> None:
        if event.timer is not None:
            event.timer.cancel()
        self._last_event = self._now()
        if event in self._events:
            self._events.discard(event)
            self.blockers.remove(EVENT)

    # Messages, the short way

    def _step_failed(self, error: BaseException) -> None:
        if self._running:
            self.meter.errors += 1
            log.error("%s: message handler raised", self.object_id.key, exc_info=error)

    def _go_on(self, started: Started, size: int) -> None:
        """Its first step has been taken, and it waits: from here on it is an event like any other."""
        if not self._running:
            started.close()
            started.task.cancel()
            return
        event = Event("message", _went_on, size=size, started=True)
        self.blockers.add(EVENT)
        self._events.add(event)
        timeout_ms = self.connections.event_timeout(self.object_id)
        event.timeout = None if timeout_ms is None else timeout_ms / 1000
        self._limit(event)

        def ended() -> None:
            event.mark = self.output.mark()

        task = self.tasks.go_on(started, ended, event.cause)
        task.add_done_callback(lambda task: self._finished(event, task))

    def _stay_until_durable(self) -> None:
        """It stays an event until what it wrote is durable."""
        self.blockers.add(EVENT)
        self.output.pass_(self._message_left)

    def _message_left(self) -> None:
        if self._running:
            self.blockers.remove(EVENT)
            self._last_event = self._now()

    def _timed_out(self, event: Event) -> None:
        if event in self._events:
            self.break_(EventTimeout(f"a {event.cause} handler ran over {event.timeout:g} s"))

    # WebSockets

    @property
    def connections(self) -> Connections:
        """The connections side.

        Raises:
            UsageError: the host has none.
        """
        if self.home.ports.connections is None:
            raise UsageError("this host serves no WebSockets")
        return self.home.ports.connections

    def socket(self, connection_id: ConnectionId) -> WebSocket:
        """Return the handle of a connection, the same one each time."""
        handle = self._sockets.get(connection_id)
        if handle is None:
            handle = self._sockets[connection_id] = WebSocket(self, self.connections, connection_id)
        return handle

    def lone_socket(self, connection_id: ConnectionId) -> WebSocket | None:
        """Return the handle if the connection was accepted without hibernation: its events do not queue here."""
        handle = self._sockets.get(connection_id)
        return handle if handle is not None and handle.stands_alone else None

    def forget_socket(self, connection_id: ConnectionId) -> None:
        """The connection's last event has been handled."""
        self._sockets.pop(connection_id, None)

    def accept(self, ws: WebSocket, tags: Sequence[str], protocol: str | None, *, hibernatable: bool) -> None:
        """Accept an upgrade; see `ObjectState.accept_web_socket`."""
        if ws.answer is not None:
            raise UsageError("the WebSocket has been accepted already")
        if protocol is not None and not is_token(protocol):
            raise UsageError(f"{protocol!r} is no name of a subprotocol")
        self.connections.accept(self.object_id, ws.connection_id, tags, hibernatable)
        ws.answer = _ACCEPTED if protocol is None else UpgradeAccepted(protocol)

    # Idle time

    def reasons(self) -> dict[str, int]:
        """Return what keeps it in memory, and how many times each; nothing: it counts down."""
        counts = self.blockers.counts()
        if self._stepping:
            counts[EVENT] = counts.get(EVENT, 0) + 1
        return counts

    def _busy_changed(self, busy: bool) -> None:
        if self.state is State.GONE:
            return
        self._account(self._now(), was_busy=not busy)
        if not busy and self._idle_timer is None:
            self._idle_timer = self.home.ports.clock.call_later(self.home.limits.idle_s, self._idle)

    def _idle(self) -> None:
        """A timer of the past is due: moving it with each event would cost more than looking again."""
        self._idle_timer = None
        if self.blockers or self.state is not State.RUNNING:
            return
        left = max(self._since, self._last_event) + self.home.limits.idle_s - self._now()
        if left > 0:
            self._idle_timer = self.home.ports.clock.call_later(left, self._idle)
        else:
            self.leave_soon("idle")

    def unmetered(self, now: float, was_busy: bool | None = None) -> tuple[float, float]:
        """Return the seconds of activity and of idleness until `now` that are not in the meter yet.

        Args:
            was_busy: whether anything but first steps of messages was under way; None: as it is now.
        """
        elapsed = now - self._since
        if self.blockers.total if was_busy is None else was_busy:
            return elapsed, 0.0
        active = self._steps_s + (now - self._step_began if self._stepping else 0.0)
        return active, elapsed - active

    def _account(self, now: float, was_busy: bool | None = None) -> None:
        active, idle = self.unmetered(now, was_busy)
        self.meter.active_s += active
        self.meter.idle_s += idle
        self._since = self._step_began = now
        self._steps_s = 0.0


class Disposable(Protocol):
    """A stub that this instance has received."""

    def dispose(self) -> None:
        """Let go of what it stands for."""


async def _went_on(instance: Instance) -> None:
    raise AssertionError("this event began before it was one")


def _cancel(reply: asyncio.Future[None]) -> None:
    reply.cancel()
