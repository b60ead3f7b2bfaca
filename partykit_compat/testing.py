"""For tests of your own rooms: the real sockets, storage and hooks in one process, and a clock that you move.

    async with serve_rooms({"main": Chat}) as rooms:
        alice = await rooms.connect("lobby", id="alice")
        await alice.send("hello")
        assert await alice.recv() == "hello"
        await rooms.sleep("lobby")              # hibernated now: instances are gone, connections stay
        await rooms.advance(60)                 # seconds, with every alarm and timeout on the way
        assert await rooms.run_alarm()          # or straight to the next alarm

Idle rooms leave memory as in production, after ten seconds of that clock. Time in your own code must come from `ctx`
(`ctx.sleep`, alarms), not from `asyncio.sleep`, to follow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect

from hibernation._sockets.table import SocketTable
from hibernation.dispatcher import Dispatcher
from hibernation.endpoint import HandshakeSettings, websocket_protocol
from hibernation.manager import HibernationManager
from hibernation.service import SocketService
from objects.clock import ManualClock
from objects.embedded import LocalDrivers
from objects.host import ObjectHost
from objects.http import HttpResponse
from partykit_compat.routes import PartyRoutes
from partykit_compat.server import Server

HOST = "rooms.test"
RECEIVE_TIMEOUT = 5.0
"""Real seconds that `Client.recv` waits for a message; a room that sends none fails the test."""

_SETTLE = 0.01


class Client:
    """A connected client.

    Attributes:
        websocket: the `websockets` connection, for everything that has no method here.
    """

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, message: str | bytes) -> None:
        """Send text or bytes."""
        await self.websocket.send(message)

    async def recv(self) -> str | bytes:
        """Return the next message.

        Raises:
            TimeoutError: none came within five seconds.
            websockets.exceptions.ConnectionClosed: the connection ended; `rcvd.code` says how.
        """
        async with asyncio.timeout(RECEIVE_TIMEOUT):
            return await self.websocket.recv()

    async def closed(self) -> tuple[int, str]:
        """Wait for the end; returns its code and reason."""
        async with asyncio.timeout(RECEIVE_TIMEOUT):
            await self.websocket.wait_closed()
        return self.websocket.close_code or 1006, self.websocket.close_reason or ""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, and wait until the room has answered."""
        await self.websocket.close(code, reason)


class TestRooms:
    """Rooms under test; see `serve_rooms`.

    Attributes:
        clock: theirs; move it with `advance`.
        host: where their objects run.
        parties: for calls: `await rooms.parties["main"].get("lobby").public_method()`, and `get_server_by_name`.
    """

    __test__ = False  # pytest takes what is called so for tests

    def __init__(
        self,
        classes: Mapping[str, type[Server]],
        folder: Path,
        env: Any,
        *,
        at_ms: int | None = None,
        message_max_bytes: int = 1_048_576,
        messages_per_second: int = 0,
    ) -> None:
        # The real time, unless told otherwise, so that `time.time() + 60` is in a minute here, too.
        self.clock = ManualClock(time.time_ns() // 1_000_000 if at_ms is None else at_ms)
        table = SocketTable(
            tick=0.05,
            ping_interval=0.0,
            close_timeout=0.5,
            max_frame_bytes=message_max_bytes,
            max_message_bytes=message_max_bytes,
        )
        manager = HibernationManager(table, self.clock)
        self._drivers = LocalDrivers(folder, connections=manager, clock=self.clock)
        self.host = ObjectHost(self._drivers.ports, secret=bytes(16))
        self._routes = PartyRoutes(self.host, classes, env=env)
        self.parties = self._routes.parties
        self._service = SocketService(manager, Dispatcher(manager, self.host, messages_per_second=messages_per_second))
        self._protocol = websocket_protocol(self._service, HandshakeSettings(rate_per_address=0))
        self._server = SimpleNamespace(connections=set(), tasks=set())
        self._clients: list[ClientConnection] = []
        self.host.start()
        self._service.start()

    async def start(self) -> None:
        """Begin to run crons."""
        await self._routes.start()

    async def connect(
        self,
        room: str,
        *,
        party: str = "main",
        id: str | None = None,  # noqa: A002  as clients call it
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        protocols: Sequence[str] = (),
    ) -> Client:
        """Connect a client; returns when `on_connect` is done.

        Args:
            id: `_pk`, the connection's id; the room makes one if it is absent.
            query: parameters of the URL.
            headers: of the upgrade request.
            protocols: subprotocols that are offered.

        Raises:
            websockets.exceptions.InvalidStatus: refused; `response.status_code` says how.
        """
        parameters = {**({} if id is None else {"_pk": id}), **(query or {})}
        url = f"ws://{HOST}/parties/{party}/{room}" + (f"?{urlencode(parameters)}" if parameters else "")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        serving = asyncio.create_task(self._serve(theirs))
        try:
            websocket = await connect(
                url,
                sock=ours,
                compression=None,
                additional_headers=headers,
                subprotocols=list(protocols) or None,  # type: ignore[arg-type]  # a NewType of str
            )
        finally:
            await serving
        self._clients.append(websocket)
        return Client(websocket)

    async def fetch(
        self,
        room: str,
        path: str = "",
        *,
        party: str = "main",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> HttpResponse:
        """Send an HTTP request to a room, through `on_before_request`; returns the whole answer.

        Args:
            path: what follows the room in the URL, query included.
        """
        whole = f"/parties/{party}/{room}{path}"
        return await self.request(whole, method=method, headers=headers, body=body)

    async def request(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> HttpResponse:
        """Send an HTTP request that may name a room or not, as for `on_fetch`; returns the whole answer.

        Args:
            path: of the URL, query included.
        """
        raw_path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": raw_path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "headers": [(b"host", HOST.encode())]
            + [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 0),
        }
        requests = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Any:
            return requests.pop() if requests else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._routes(scope, receive, send)
        answered = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in sent[0]["headers"])
        return HttpResponse(b"".join(message.get("body", b"") for message in sent[1:]), sent[0]["status"], answered)

    async def sleep(self, room: str, *, party: str = "main") -> bool:
        """Put a room out of memory as hibernation does, when its events are done; False if it was not in.

        Also a class that does not hibernate: so a restart of the server is for it.
        """
        return await self.host.force_hibernate(self.host.namespaces[party].id_from_name(room))

    def is_awake(self, room: str, *, party: str = "main") -> bool:
        """Whether a room is in memory."""
        return self.host.namespaces[party].id_from_name(room).key in self.host.awake()

    async def advance(self, seconds: float) -> None:
        """Move the clock, stopping at each alarm and timeout on the way until what it causes is done."""
        await self.clock.advance(seconds, self.settle)
        await self.settle()

    async def run_alarm(self) -> bool:
        """Move the clock to the next alarm of any room, or cron of any party, and run it; False if there is none."""
        await self.settle()
        now = self.clock.unix_ms()
        due = await self._drivers.ports.alarms.next_due_ms(-1)
        if due is None:
            return False
        await self.advance(max(0, due - now) / 1000)
        return True

    async def settle(self) -> None:
        """Return when everything that is under way is done: only time, or a client, makes more happen."""
        await asyncio.sleep(_SETTLE)  # what clients sent has arrived
        await self.host.settle()

    async def close(self) -> None:
        """Disconnect the clients, end the rooms."""
        for client in self._clients:
            await client.close()
        await self.settle()
        await self.host.stop()
        self._service.stop()
        self._drivers.close()

    async def _serve(self, connection: socket.socket) -> None:
        """Play the HTTP server for one upgrade: read the head, then hand over as uvicorn does."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await loop.sock_recv(connection, 65_536)
            if not piece:
                connection.close()
                return
            head += piece
        config = SimpleNamespace(loaded_app=self._routes, root_path="")
        _, protocol = await loop.connect_accepted_socket(lambda: self._protocol(config, self._server, {}), connection)
        protocol.data_received(head)


@asynccontextmanager
async def serve_rooms(
    classes: Mapping[str, type[Server]] | type[Server],
    *,
    env: Any = None,
    folder: Path | None = None,
    at_ms: int | None = None,
    message_max_bytes: int = 1_048_576,
    messages_per_second: int = 0,
) -> AsyncIterator[TestRooms]:
    """Rooms to test while inside.

    Args:
        classes: by party name; a class alone is `main`.
        env: their `self.env`.
        folder: where their data is kept, to look at restarts; else a temporary one.
        at_ms: when it is (Unix ms); else now.
        message_max_bytes: as the setting of the server.
        messages_per_second: likewise; 0: no limit.
    """
    parties = {"main": classes} if isinstance(classes, type) else classes
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rooms = TestRooms(
            parties,
            root,
            env,
            at_ms=at_ms,
            message_max_bytes=message_max_bytes,
            messages_per_second=messages_per_second,
        )
        try:
            await rooms.start()
            yield rooms
        finally:
            await rooms.close()
