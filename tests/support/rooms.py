"""A whole gateway for tests: uvicorn, endpoint, table, dispatcher; the objects side is a script, here or behind a pipe.

`Script` plays `objects.host` as far as the ports ask: FIFO per object, constructor first, handlers started in order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from hibernation._sockets.table import SocketTable
from hibernation.dispatcher import Dispatcher
from hibernation.endpoint import UPGRADE_EXTENSION, HandshakeSettings, Upgrade, websocket_protocol
from hibernation.manager import HibernationManager, SlowPolicy
from hibernation.objects_end import ObjectsEnd
from hibernation.service import SocketService
from hibernation.sockets_end import SocketsEnd
from objects.ids import IdFactory, ObjectId
from objects.ports import (
    Clock,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionId,
    Connections,
    Delivery,
    Frame,
    MessageReceived,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
    Waker,
)

Ends = tuple[SocketsEnd, ObjectsEnd]


class ObjectsSide(Protocol):
    """What runs the objects in a test."""

    def fill(self, connections: Connections) -> Waker:
        """Take the connections side, and be its waker."""

    def object_of(self, path: str) -> ObjectId:
        """Whose a request is."""

    async def sleep(self) -> None:
        """Put every instance out of memory."""

    async def close(self) -> None:
        """End what is still running."""


ROOM = IdFactory("rooms", b"0123456789abcdef").from_name("lobby")


class LoopClock:
    """The running loop's time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix_ms(self) -> int:
        return round(time.time() * 1000)

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, callback)


Handler = Callable[["Instance", ConnectionEvent], None]
Accepting = Callable[["Instance", UpgradeRequest], UpgradeAnswer]


@dataclass
class Instance:
    """One in-memory life of the object; what it has seen."""

    number: int
    object_id: ObjectId
    connections: Connections
    events: list[ConnectionEvent] = field(default_factory=list)


def accept_all(instance: Instance, request: UpgradeRequest) -> UpgradeAnswer:
    """Accept with the tags that the query names: `?a,b`."""
    tags = [tag for tag in request.url.partition("?")[2].split(",") if tag]
    instance.connections.accept(instance.object_id, request.connection_id, tags, hibernatable=True)
    return UpgradeAccepted(request.protocols[0] if request.protocols else None)


class Script:
    """The objects side of one object.

    Attributes:
        instances: every life so far; the last one runs unless `asleep`.
        on_connect, on_event, constructor: what object code does; set by the test.
    """

    def __init__(self) -> None:
        self.connections: Connections | None = None
        self.instances: list[Instance] = []
        self.asleep = True
        self.on_connect: Accepting = accept_all
        self.on_event: Handler = lambda instance, event: None
        self.constructor: Callable[[Instance], Awaitable[None]] | None = None
        self.deliveries: deque[Delivery] = deque()
        """What to answer to the next events instead of handling them."""
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def fill(self, connections: Connections) -> Script:
        self.connections = connections
        return self

    def object_of(self, path: str) -> ObjectId:
        return ROOM

    async def sleep(self) -> None:
        if self.instances and not self.asleep:
            self.hibernate()

    @property
    def instance(self) -> Instance:
        return self.instances[-1]

    @property
    def events(self) -> list[ConnectionEvent]:
        """Everything any instance has seen, in order."""
        return [event for instance in self.instances for event in instance.events]

    async def connect(self, object_id: ObjectId, request: UpgradeRequest) -> UpgradeAnswer:
        async with self._lock:
            instance = await self._wake(object_id)
            return UpgradeRefused(500) if instance is None else self.on_connect(instance, request)

    def handle_now(self, object_id: ObjectId, connection_id: ConnectionId, data: Frame) -> bool:
        return False

    def deliver(self, object_id: ObjectId, event: ConnectionEvent, settled: Callable[[Delivery], None]) -> None:
        task = asyncio.ensure_future(self._handle(object_id, event, settled))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hibernate(self) -> None:
        """What the host does after ten idle seconds."""
        assert self.connections is not None
        self.asleep = True
        self.connections.detach(self.instance.object_id)

    def reset(self, reason: str = "aborted") -> None:
        """The instance broke: it and its connections go."""
        assert self.connections is not None
        self.asleep = True
        self.connections.disconnect_all(self.instance.object_id, reason)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, object_id: ObjectId, event: ConnectionEvent, settled: Callable[[Delivery], None]) -> None:
        async with self._lock:
            if self.deliveries and not isinstance(event, ConnectionClosed):
                settled(self.deliveries.popleft())
                return
            instance = await self._wake(object_id)
            if instance is None:
                settled(Delivery.FAILED)
                return
            instance.events.append(event)
            self.on_event(instance, event)
            settled(Delivery.DISPATCHED)

    async def _wake(self, object_id: ObjectId) -> Instance | None:
        assert self.connections is not None
        if not self.asleep:
            return self.instance
        instance = Instance(len(self.instances), object_id, self.connections)
        self.instances.append(instance)
        await self.connections.attach(object_id)
        self.asleep = False
        try:
            if self.constructor is not None:
                await self.constructor(instance)
        except RuntimeError:
            self.reset("the constructor failed")
            return None
        return instance


class Pipe:
    """Joins the two ends: bytes, in pieces of any size, each in a later turn of the loop."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.bytes = 0
        self.cut = False

    def to(self, receive: Callable[[bytes], None]) -> Callable[[bytes], None]:
        loop = asyncio.get_running_loop()

        def deliver(piece: bytes) -> None:
            if not self.cut:
                receive(piece)

        def write(data: bytes) -> None:
            self.bytes += len(data)
            while data:
                size = self._random.randint(1, max(len(data), 1))
                loop.call_soon(deliver, data[:size])
                data = data[size:]

        return write


class Gateway:
    """A running server and the script behind it; see `gateway`."""

    def __init__(self, side: ObjectsSide, service: SocketService, port: int, ends: Ends | None):
        self.side = side
        self.service = service
        self.manager = service.manager
        self.table = service.table
        self.port = port
        self.ends = ends

    @property
    def script(self) -> Script:
        """The objects side, where it is a script."""
        assert isinstance(self.side, Script)
        return self.side

    def connect(self, path: str = "/room", **options: Any) -> connect:
        """A client of the real `websockets` package."""
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, **options)

    async def quiet(self) -> None:
        """Wait until nothing is under way any more; fails after five seconds."""
        await until(
            lambda: (
                self.table.counters()["rows"] == 0
                and not any(self.manager.counters().values())
                and self.service.dispatcher is not None
                and self.service.dispatcher.lines == 0
                and not self.service.owners
                and (self.ends is None or self.ends[0].pending + self.ends[1].pending == 0)
            )
        )

    async def seen(self, count: int, kind: type = MessageReceived) -> list[Any]:
        """Wait until the script has seen `count` events of a kind."""
        await until(lambda: sum(isinstance(event, kind) for event in self.script.events) >= count)
        return [event for event in self.script.events if isinstance(event, kind)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; gives up after five seconds, in a broken test only."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def make_application(object_of: Callable[[str], ObjectId]) -> Any:
    """`/room…` is an object's; `/bye` is closed with 4001; `/echo` is a plain ASGI WebSocket; the rest is 403."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        upgrade: Upgrade = scope["extensions"][UPGRADE_EXTENSION]
        path = scope["path"]
        if path.startswith("/room"):
            await upgrade.hand_to(object_of(path))
        elif path == "/bye":
            await upgrade.close(4001, "not today")
        elif path == "/echo":
            await receive()
            await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
            while (event := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})
        elif path == "/slow":
            await asyncio.sleep(60)
        elif path == "/broken":
            raise RuntimeError("a bug in the application")
        else:
            await send({"type": "websocket.close"})

    return application


@asynccontextmanager
async def gateway(
    *,
    piped: bool = False,
    slow: SlowPolicy | None = None,
    handshake: HandshakeSettings | None = None,
    max_frames: int = 64,
    max_connections: int = 100,
    max_per_address: int = 0,
    tls: dict[str, str] | None = None,
    clock: Clock | None = None,
    side: ObjectsSide | None = None,
    application: Any = None,
    http: Any = "auto",
    **table_options: Any,
) -> AsyncIterator[Gateway]:
    """Run a server; when it is over everything must have returned to zero.

    Args:
        side: the objects side; a `Script` if not given.
        application: the ASGI application; `make_application`'s if not given.
        http: uvicorn's HTTP protocol, which reads the head of an upgrade.
    """
    clock = clock or LoopClock()
    table = SocketTable(**{"close_timeout": 0.5, "tick": 0.05, **table_options})
    manager = HibernationManager(
        table, clock, slow=slow or SlowPolicy(), max_connections=max_connections, max_per_address=max_per_address
    )
    side = side or Script()
    ends: Ends | None = None
    if piped:
        pipe, sockets_end = Pipe(), SocketsEnd(manager)
        objects_end = ObjectsEnd(clock.unix_ms)
        objects_end.joined(pipe.to(sockets_end.receive_data))
        objects_end.waker = side.fill(objects_end)
        sockets_end.joined(pipe.to(objects_end.receive_data))
        ends = sockets_end, objects_end
        dispatcher = Dispatcher(manager, sockets_end, max_frames=max_frames)
    else:
        dispatcher = Dispatcher(manager, side.fill(manager), max_frames=max_frames)
    service = SocketService(manager, dispatcher)
    service.start()
    config = uvicorn.Config(
        application or make_application(side.object_of),
        port=0,
        ws=websocket_protocol(service, handshake),
        http=http,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        **(tls or {}),
    )
    server = uvicorn.Server(config)
    server.capture_signals = _leave_signals  # type: ignore[method-assign]
    task = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    running = Gateway(side, service, port, ends)
    try:
        yield running
        await side.sleep()
        await running.quiet()
    finally:
        server.should_exit = True
        await task
        await side.close()
        service.stop()
        await asyncio.sleep(0)


@asynccontextmanager
async def client(running: Gateway, path: str = "/room", **options: Any) -> AsyncIterator[ClientConnection]:
    """A connected client; the connection is closed in the end if it has not been."""
    async with running.connect(path, **options) as websocket:
        yield websocket


class _LeaveSignals:
    def __enter__(self) -> None: ...
    def __exit__(self, *exc: object) -> None: ...


def _leave_signals() -> _LeaveSignals:
    return _LeaveSignals()
