"""The host: keeps at most one instance per object, wakes it for events, and puts it out of memory again.

    host = ObjectHost(ports, secret=...)
    counters = host.register("counter", Counter)
    host.start()
    await counters.get_by_name("visits").increment()
    await host.stop()

It is the `Waker` of the connections side, and what namespaces and alarms send their events to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from functools import partial
from typing import Any

from objects import memory, scope
from objects.alarms import MAX_RETRIES, AlarmScheduler, Outcome
from objects.errors import (
    CommitTimeout,
    HostStopping,
    ObjectError,
    Overloaded,
    QueueFull,
    StorageError,
    UsageError,
)
from objects.failures import FAILURES
from objects.firststep import FirstSteps
from objects.http import check_response
from objects.ids import ObjectId, ObjectKey
from objects.instance import Instance, State
from objects.limits import Limits
from objects.mailbox import Event
from objects.metering import gb_seconds
from objects.namespace import ObjectClass, ObjectNamespace
from objects.ports import (
    AlarmEntry,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionFailed,
    ConnectionId,
    Delivery,
    Frame,
    MessageReceived,
    Ports,
    Timer,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
)
from objects.sqlite import OpenFiles
from objects.state import AlarmInfo, DurableObject
from objects.watchdog import Watchdog
from objects.websocket import WebSocket

log = logging.getLogger("torpor.objects")

GIVE_BACK_AFTER = 64
"""Objects that have left, if more than stay: then memory is given back to the system."""


class ObjectHost:
    """All objects that run in this process.

    Args:
        ports: connections, placement, storage, alarms, clock.
        secret: what ids are made with; at least 16 bytes, the same for ever.
        jitter: a number from 0 to 1 for the backoff of alarms; random if not given.
    """

    def __init__(
        self, ports: Ports, *, secret: bytes, limits: Limits | None = None, jitter: Callable[[], float] | None = None
    ) -> None:
        self.ports = ports
        self.limits = limits or Limits()
        self._closer = ThreadPoolExecutor(2, "torpor-close")
        self.files = OpenFiles(self.limits.open_files, self._closer)
        self.first_steps = FirstSteps()
        self.scheduler = AlarmScheduler(ports.alarms, ports.clock, self._run_alarm, *([jitter] if jitter else []))
        self._secret = secret
        self._namespaces: dict[str, ObjectNamespace] = {}
        self._instances: dict[ObjectKey, Instance] = {}
        self._closing: dict[ObjectKey, asyncio.Future[None]] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._sweep_timer: Timer | None = None
        self._uninstall: Callable[[], None] | None = None
        self._watchdog: Watchdog | None = None
        self._stopping = False
        self._left = 0
        """Objects that have left since memory was given back."""

    def register(self, name: str, cls: type[DurableObject], env: Any = None) -> ObjectNamespace:
        """Add a namespace of objects of `cls`; `env` goes to every constructor.

        Raises:
            UsageError: the name is taken or not fit for a folder, or `cls` is not a `DurableObject`.
        """
        if name in self._namespaces:
            raise UsageError(f"namespace {name!r} is registered already")
        if not issubclass(cls, DurableObject):
            raise UsageError(f"{cls.__name__} must derive from DurableObject")
        namespace = ObjectNamespace(name, ObjectClass(cls, env), self, self._secret)
        self._namespaces[name] = namespace
        return namespace

    @property
    def namespaces(self) -> dict[str, ObjectNamespace]:
        """The registered namespaces by name."""
        return dict(self._namespaces)

    def start(self) -> None:
        """Begin to fire alarms; call on the running loop, after `register`."""
        self._uninstall = scope.install(asyncio.get_running_loop())
        if self.limits.blocking_s is not None and Watchdog.possible():
            self._watchdog = Watchdog(self.limits.blocking_s, lambda: bool(self._instances))
        self.scheduler.start()
        self.first_steps.prepare()

    async def stop(self) -> None:
        """Take no more events, let those under way finish (for at most 30 s), make everything durable, let all go.

        Connections are left to their side: `detach` is called for each object, as when it hibernates.
        """
        self.scheduler.halt()
        self._stopping = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        instances = list(self._instances.values())
        if instances:
            drained = [asyncio.ensure_future(instance.take_leave("stopping")) for instance in instances]
            await asyncio.wait(drained, timeout=self.limits.stop_s)
            for waiting in drained:
                waiting.cancel()
            for instance in instances:
                if instance.blockers.only_background():
                    instance.hibernate()
                else:
                    instance.break_(HostStopping("the server is stopping"))
        await self.scheduler.stop()
        while self._closing:
            await asyncio.wait(set(self._closing.values()))
        if self._starting:
            await asyncio.wait(set(self._starting))
        await self.first_steps.close()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._uninstall is not None:
            self._uninstall()
        await asyncio.get_running_loop().run_in_executor(None, self._closer.shutdown)

    def hook(self) -> AbstractContextManager[None]:
        """Watch over code of the application that belongs to no object and runs in here.

        Raises:
            EventTimeout: it held the loop up for `Limits.blocking_s`, and was ended.
        """
        return nullcontext() if self._watchdog is None else self._watchdog.watching_hook()

    # What runs

    def awake(self) -> dict[ObjectKey, dict[str, int]]:
        """Return the objects in memory with what keeps each there; an empty dict means counting down."""
        return {key: instance.reasons() for key, instance in self._instances.items()}

    def usage(self) -> dict[str, dict[str, float]]:
        """Return what each namespace has used until now, as `Meter.numbers`: times under way are in it."""
        now = self.ports.clock.monotonic()
        used = {}
        for name, namespace in self._namespaces.items():
            used[name] = namespace.meter.numbers() | {"hibernated_s": namespace.meter.hibernated_so_far(now)}
        for instance in self._instances.values():
            numbers = used[instance.object_id.namespace]
            active, idle = instance.unmetered(now)
            numbers["active_s"] += active
            numbers["idle_s"] += idle
        for numbers in used.values():
            numbers["gb_seconds"] = gb_seconds(numbers["active_s"])
        return used

    async def force_hibernate(self, object_id: ObjectId) -> bool:
        """Put an object out of memory as soon as its events are done, whatever timers it has; False if it was not in.

        Those who called get their answers. Events that arrive meanwhile go to it, or to the next instance.
        """
        instance = self._instances.get(object_id.key)
        if instance is None:
            return False
        await instance.take_leave("forced")
        if instance.state is not State.GONE:
            instance.hibernate()
        await instance.closed
        return True

    async def replace(self, name: str, cls: type[DurableObject]) -> None:
        """Swap the code of a namespace: objects go out of memory as their events end, and wake with the new class.

        Connections stay. An object that does not finish its events within 30 s is reset.

        Raises:
            UsageError: no such namespace.
        """
        namespace = self._namespaces.get(name)
        if namespace is None:
            raise UsageError(f"no namespace {name!r}")
        namespace.kind.cls = cls
        old = [instance for key, instance in self._instances.items() if key.startswith(f"{name}/")]
        ends = [asyncio.ensure_future(self.force_hibernate(instance.object_id)) for instance in old]
        if ends:
            await asyncio.wait(ends, timeout=self.limits.stop_s)
        for instance in old:
            instance.break_(HostStopping("the code of the object was replaced"))

    async def settle(self) -> None:
        """Return when the present moment has no work left: what is not done waits for time, or for somebody else.

        For tests with a `ManualClock`.
        """
        quiet = 0
        while quiet < 10:
            await asyncio.sleep(0)
            if self._starting or self._closing or self.scheduler.busy or self._storing():
                quiet = 0
                await asyncio.sleep(0.0005)
            else:
                quiet += 1

    def _storing(self) -> bool:
        return any(instance.commits is not None and instance.commits.busy for instance in self._instances.values())

    def submit(self, object_id: ObjectId, event: Event) -> None:
        """Queue an event for an object, waking it if need be. Never raises: failures go to the event's reply."""
        instance = self._instances.get(object_id.key)
        if self._stopping:
            _refuse(event, HostStopping("the server is stopping"), Delivery.FAILED)
        elif instance is not None:
            instance.submit(event)
        elif event.refusable and len(self._instances) >= self.limits.instances:
            self._namespaces[object_id.namespace].meter.overloads += 1
            _refuse(event, QueueFull("too many objects are in memory"), Delivery.OVERLOADED)
        else:
            self._wake(object_id, event.cause).submit(event)

    def gone(self, instance: Instance) -> None:
        """An instance has left; the next event starts another one when it is closed."""
        key = instance.object_id.key
        if self._instances.get(key) is instance:
            del self._instances[key]
            if not self._instances and self._sweep_timer is not None:
                self._sweep_timer.cancel()
                self._sweep_timer = None
        self._closing[key] = instance.closed
        connections = self.ports.connections
        if instance.error is None and connections is not None and connections.count(instance.object_id):
            instance.meter.fall_asleep(key, self.ports.clock.monotonic())

        def closed(future: asyncio.Future[None]) -> None:
            if self._closing.get(key) is future:
                del self._closing[key]
            self._left += 1
            if self._left >= max(GIVE_BACK_AFTER, len(self._instances)) and not self._closing and not self._stopping:
                self._left = 0
                self._closer.submit(memory.give_back)

        instance.closed.add_done_callback(closed)

    def _wake(self, object_id: ObjectId, cause: str) -> Instance:
        namespace = self._namespaces[object_id.namespace]
        kind = namespace.kind
        handles_alarms = hasattr(kind.cls, "alarm")
        key = object_id.key
        namespace.meter.wake(key, cause, self.ports.clock.monotonic())
        # Whoever wakes it, its life is its own: a context without anybody's scope.
        context = Context()
        instance = context.run(Instance, object_id, self, namespace.meter, kind.construct, handles_alarms)
        self._instances[key] = instance
        if self._watchdog is not None:
            self._watchdog.watch()
        if self._sweep_timer is None:
            self._sweep_timer = self.ports.clock.call_later(self.limits.sweep_s, self._sweep)
        start = instance.start(self._closing.get(key))
        task = asyncio.Task(start, loop=instance.loop, context=context, name=f"start {key}")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return instance

    def _sweep(self) -> None:
        now = self.ports.clock.monotonic()
        for instance in list(self._instances.values()):
            if instance.can_evict(now):
                instance.leave_soon("evicted")
        self._sweep_timer = None
        if self._instances and not self._stopping:
            self._sweep_timer = self.ports.clock.call_later(self.limits.sweep_s, self._sweep)

    # The connections side's waker

    async def connect(self, object_id: ObjectId, request: UpgradeRequest) -> UpgradeAnswer:
        """Let the object decide on an upgrade; see `ports.Waker`."""
        if object_id.namespace not in self._namespaces:
            return UpgradeRefused(404)
        reply: asyncio.Future[UpgradeAnswer] = asyncio.get_running_loop().create_future()
        self.submit(object_id, Event("connect", partial(_connect, request=request), reply))
        try:
            return await reply
        except Overloaded:
            return UpgradeRefused(503, (("retry-after", "1"),), b"The object is overloaded.")
        except ObjectError as error:
            return UpgradeRefused(500 if error.remote else 503, (), b"The object is not available.")
        except Exception:
            return UpgradeRefused(500, (), b"The object failed to accept the WebSocket.")

    def handle_now(self, object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
        """Handle a message without queueing; see `ports.Waker`."""
        instance = self._instances.get(object_id.key)
        return instance is not None and not self._stopping and instance.handle_now(connection_id, data)

    def deliver(self, object_id: ObjectId, event: ConnectionEvent, settled: Callable[[Delivery], None]) -> None:
        """Queue a connection's event for its object; see `ports.Waker`."""
        if object_id.namespace not in self._namespaces:
            asyncio.get_running_loop().call_soon(settled, Delivery.FAILED)
            return
        instance = self._instances.get(object_id.key)
        lone = instance.lone_socket(event.connection_id) if instance is not None else None
        if lone is not None and instance is not None:
            _deliver_alone(instance, lone, event, settled)
            return
        timeout_ms = None if self.ports.connections is None else self.ports.connections.event_timeout(object_id)
        timeout = None if timeout_ms is None else timeout_ms / 1000
        match event:
            case MessageReceived():
                run, cause, size = partial(_message, event=event), "message", len(event.data)
            case ConnectionClosed():
                run, cause, size = partial(_closed, event=event), "close", 0
            case ConnectionFailed():
                run, cause, size = partial(_failed, event=event), "error", 0
        refusable = not isinstance(event, ConnectionClosed)
        what = Event(cause, run, dispatched=settled, size=size, timeout=timeout, refusable=refusable)
        self.submit(object_id, what)

    # Alarms

    async def _run_alarm(self, entry: AlarmEntry) -> Outcome:
        if entry.object_id.namespace not in self._namespaces:
            log.warning("an alarm is due for %s, but there is no such namespace", entry.object_id.key)
            return Outcome.INTERRUPTED
        ran_in: list[Instance] = []
        reply: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        run = partial(_alarm, entry=entry, ran_in=ran_in)
        self.submit(entry.object_id, Event("alarm", run, reply, timeout=self.limits.alarm_s))
        try:
            return await reply
        except (StorageError, CommitTimeout, HostStopping, QueueFull):
            return Outcome.INTERRUPTED
        except Exception:
            # The instance went with the handler. Who retries it, if at all, is the store; the row is in the file.
            wanted = not ran_in or ran_in[0].retry_alarm
            if wanted and entry.retry_count < MAX_RETRIES:
                return Outcome.FAILED
            return await self._drop_alarm(entry)

    async def _drop_alarm(self, entry: AlarmEntry) -> Outcome:
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submit(entry.object_id, Event("alarm", partial(_drop, entry=entry), reply, refusable=False))
        try:
            await reply
        except Exception:
            log.exception("an alarm of %s could not be dropped", entry.object_id.key)
            return Outcome.INTERRUPTED
        return Outcome.DROPPED


def _refuse(event: Event, error: ObjectError, delivery: Delivery) -> None:
    if event.reply is not None and not event.reply.done():
        event.reply.set_exception(error)
        event.reply.exception()  # the caller may be gone
    if event.dispatched is not None:
        asyncio.get_running_loop().call_soon(event.dispatched, delivery)


# ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _alarm(instance: Instance, entry: AlarmEntry, ran_in: list[Instance]) -> Outcome:
    assert instance.alarms is not None
    handler: Callable[[AlarmInfo], Any] | None = getattr(instance.object, "alarm", None)
    info = instance.alarms.start(entry)
    if info is None:
        return Outcome.DROPPED
    ran_in.append(instance)
    instance.meter.alarms += 1
    outcome = Outcome.DONE
    try:
        if handler is None:
            raise UsageError("the class has no alarm() method any more")
        await handler(info)
    except FAILURES:
        log.exception("%s: alarm handler raised", instance.object_id.key)
        instance.meter.errors += 1
        outcome = Outcome.FAILED if entry.retry_count < MAX_RETRIES else Outcome.DROPPED
    return instance.alarms.finish(entry, outcome)


async def _drop(instance: Instance, entry: AlarmEntry) -> None:
    assert instance.alarms is not None
    instance.alarms.drop(entry)


async def _connect(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
    instance.meter.connects += 1
    handler = getattr(instance.object, "web_socket_connect", None)
    if handler is None:
        return UpgradeRefused(501, (), b"This object accepts no WebSockets.")
    ws = instance.socket(request.connection_id)
    try:
        answer = await handler(ws, request)
    except BaseException:
        _abandon(instance, ws)
        raise
    if ws.answer is not None:
        return ws.answer
    instance.forget_socket(request.connection_id)
    try:
        refusal = check_response(answer, f"{type(instance.object).__name__}.web_socket_connect")
    except UsageError as error:
        log.error("%s: a WebSocket was neither accepted nor refused: %s", instance.object_id.key, error)
        return UpgradeRefused(500, (), b"The object did not accept the WebSocket.")
    return UpgradeRefused(refusal.status, refusal.headers, await refusal.read())


def _abandon(instance: Instance, ws: WebSocket) -> None:
    if ws.stands_alone:
        ws.receive(None, lambda: None)
    instance.forget_socket(ws.connection_id)


async def _message(instance: Instance, event: MessageReceived) -> None:
    instance.meter.messages += 1
    handler = getattr(instance.object, "web_socket_message", None)
    if handler is not None:
        await handler(instance.socket(event.connection_id), event.data)


async def _closed(instance: Instance, event: ConnectionClosed) -> None:
    handler = getattr(instance.object, "web_socket_close", None)
    try:
        if handler is not None:
            ws = instance.socket(event.connection_id)
            ws.retain()
            await handler(ws, event.code, event.reason, event.was_clean)
    finally:
        instance.forget_socket(event.connection_id)


async def _failed(instance: Instance, event: ConnectionFailed) -> None:
    ws = instance.socket(event.connection_id)
    ws.failed = True
    handler = getattr(instance.object, "web_socket_error", None)
    if handler is not None:
        ws.retain()
        await handler(ws, event.message)


def _deliver_alone(
    instance: Instance, ws: WebSocket, event: ConnectionEvent, settled: Callable[[Delivery], None]
) -> None:
    def settle() -> None:
        instance.loop.call_soon(settled, Delivery.DISPATCHED)

    match event:
        case MessageReceived():
            instance.meter.messages += 1
            ws.receive(event.data, settle)
        case ConnectionClosed():
            instance.forget_socket(event.connection_id)
            ws.receive(None, lambda: None)
            settle()
        case ConnectionFailed():
            ws.failed = True
            settle()
