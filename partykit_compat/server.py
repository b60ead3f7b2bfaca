"""Server: a room's class. Subclass it and write the hooks you need.

    constructor ─▶ on_start ─▶ per socket: get_connection_tags ─▶ accepted ─▶ on_connect ─▶ 101 ─▶ on_message*
                                                                               ─▶ on_close, or on_error after a failure

`on_start` ends before any other hook of the instance begins; it runs again after hibernation, and is tried again by the
next event if it raised. The 101 leaves after `on_connect`, then what that sent, in order. Handlers of one connection
start in the order of its messages but may overlap while they wait; `ordered = True` runs them one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortly
from typing import Any, ClassVar
from urllib.parse import unquote

from objects.errors import ObjectError, TooManyConnections
from objects.failures import FAILURES, as_exception
from objects.http import HttpRequest, HttpResponse, check_response
from objects.ports import Frame, ReadyState, UpgradeRequest
from objects.state import AlarmInfo, DurableObject, ObjectState
from objects.websocket import MAX_REASON_BYTES, WebSocket
from partykit_compat.connection import Connection, connection_id_of
from partykit_compat.crons import Cron
from partykit_compat.parties import Lobby, PartyContext, PartyNamespace
from partykit_compat.room import Room

logger = logging.getLogger(__name__)

MAX_TAGS = 10
"""Tags of a connection, its id included."""
SLOW_CONNECT_S = 2.0
"""A client that waits longer for its 101 is logged."""
MAX_TAG_BYTES = 256
"""Bytes of a tag in UTF-8."""


@dataclass(frozen=True, slots=True)
class Close:
    """Refuses a WebSocket so that a browser's code learns why: accepted, then closed with this code at once.

    An HTTP answer to an upgrade never reaches a page: all it sees is 1006. partysocket comes back after any code.
    """

    code: int
    """3000 to 4999 are an application's own."""
    reason: str = ""
    """At most 123 bytes."""

    def __post_init__(self) -> None:
        if not 3000 <= self.code <= 4999 and self.code not in (1000, 1001, 1008, 1011, 1012, 1013):
            raise ValueError(f"a connection is refused with a code from 3000 to 4999, not {self.code}")
        if len(self.reason.encode()) > MAX_REASON_BYTES:
            raise ValueError(f"a close reason has at most {MAX_REASON_BYTES} bytes")


class Server(DurableObject):
    """One room. Attributes of the class are its options; attributes of an instance last until it leaves memory."""

    hibernate: ClassVar[bool] = True
    """Leave memory after ten idle seconds although clients are connected. They notice nothing; attributes are lost.
    With False the instance stays as long as anybody is connected."""
    ordered: ClassVar[bool] = False
    """Run the message handlers of a connection one after the other."""
    protocols: ClassVar[Sequence[str]] = ()
    """Subprotocols this room speaks; the first that a client offers as well is agreed."""
    replace_duplicates: ClassVar[bool] = False
    """Close older connections with the id of a new one, with 4000 "replaced"; else all stay, and all get broadcasts."""
    refuse_with_close: ClassVar[bool] = False
    """Refuse by accepting and closing, as with `Close`, where hooks and rooms give an HTTP answer: 4000 plus its status
    (4401, 4403; 4503 for a full room), and as reason the first 123 bytes of its body."""
    crons: ClassVar[Mapping[str, str]] = {}
    """When to run `on_cron`: expressions of five fields, or six with seconds, in UTC, by a name of your choice."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if isinstance(cls.protocols, str):
            raise TypeError(f"{cls.__name__}.protocols is a sequence of names, not one str")

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        context = env if isinstance(env, PartyContext) else PartyContext(env)
        super().__init__(ctx, context.env)
        self.parties: Mapping[str, PartyNamespace] = context.parties
        self.props: Any = None
        """What `get_server_by_name` started this instance with; None if anything else did."""
        self._started = False
        self._reports = type(self).on_exception is not Server.on_exception
        self._present: asyncio.Event | None = None
        self._turns: dict[Connection, asyncio.Lock] = {}

    # Hooks

    async def on_start(self) -> None:
        """The room has come to life, for the first time or again."""

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        """A client has been accepted. If this raises, it gets 101 and then 1011."""

    async def on_message(self, connection: Connection, message: Frame) -> None:
        """A message has come. If this raises, the connection stays. None comes after the room has called `close`."""

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        """A connection has ended: 1005 without a status, 1006 without a close frame. It is in no list any more."""

    async def on_error(self, connection: Connection, error: str) -> None:
        """A connection has broken a rule of the protocol and was closed; `on_close` does not follow."""

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        """An HTTP request to the room. An exception is 500, or its attribute `code` if that is an error status."""
        return HttpResponse.of("Not implemented", 404)

    async def on_alarm(self) -> None:
        """The alarm that `ctx.storage.set_alarm` set is due. If this raises it is tried again, six times at most."""

    async def on_named_alarm(self, info: AlarmInfo) -> None:
        """An alarm that was set with a name is due; runs `on_alarm` if not overridden."""
        await self.on_alarm()

    async def on_exception(self, error: Exception) -> None:
        """A hook has raised, which is logged in any case; what it does to the client does not change."""

    async def get_connection_tags(self, connection_id: str, request: UpgradeRequest) -> Iterable[str]:
        """Return tags for a connection; its id becomes the first. At most 10 in all, each 1 to 256 bytes."""
        return ()

    @staticmethod
    async def on_before_connect(request: HttpRequest, lobby: Lobby) -> HttpRequest | HttpResponse | Close | None:
        """Look at an upgrade before any room does: a response or `Close` refuses, a request replaces it, None passes.

        An exception refuses with 401 and its message. This is where to look at who connects.
        """
        return None

    @staticmethod
    async def on_before_request(request: HttpRequest, lobby: Lobby) -> HttpRequest | HttpResponse | None:
        """Look at an HTTP request before any room does, in the same way."""
        return None

    @staticmethod
    async def on_fetch(request: HttpRequest, lobby: Lobby) -> HttpResponse | None:
        """An HTTP request that nothing else answers; None is 404. Only that of `main` is asked."""
        return None

    @staticmethod
    async def on_cron(cron: Cron, lobby: Lobby) -> None:
        """A cron of `crons` is due. Runs at least once for each time, without a room; one missed while down, once.

        If this raises it is tried again like an alarm, unless `cron.no_retry()` was called or it is due anew before.
        """

    # Helpers

    @property
    def name(self) -> str:
        """The room, as the path has it; also in the constructor and when an alarm woke it."""
        return self.ctx.id.name or ""

    @property
    def decoded_name(self) -> str:
        """The name as its author wrote it, to show: `a%20b` is `a b`. Several names may look alike so."""
        return unquote(self.name)

    @property
    def room(self) -> Room:
        """The same as PartyKit's classes have it."""
        return Room(self)

    def broadcast(self, message: Frame, without: Iterable[str] = ()) -> None:
        """Send to every connection but those with the ids in `without`.

        Raises:
            TypeError: `without` is one id and no collection of them.
        """
        if isinstance(without, str):
            raise TypeError("without is a collection of ids, not one")
        left_out = [
            ws
            for connection_id in without
            for ws in self.ctx.get_web_sockets(connection_id)
            if Connection(ws).id == connection_id  # others may have it as a tag
        ]
        self.ctx.broadcast(message, exclude=left_out)

    def get_connections(self, tag: str | None = None) -> Iterator[Connection]:
        """Iterate over the connections that are open, oldest first; an id is a tag, too."""
        for ws in self.ctx.get_web_sockets(tag):
            if ws.ready_state <= ReadyState.OPEN:
                yield Connection(ws)

    def get_connection(self, connection_id: str) -> Connection | None:
        """Return the newest open connection with an id."""
        found = [one for one in self.get_connections(connection_id) if one.id == connection_id]
        return found[-1] if found else None

    def connection_count(self, tag: str | None = None) -> int:
        """Return how many connections there are, closing ones included; makes no handles."""
        return self.ctx.web_socket_count(tag)

    # What the objects side calls

    async def web_socket_connect(self, ws: WebSocket, request: UpgradeRequest) -> HttpResponse | None:
        """Accept a client, run `on_connect`; a room that has all its connections answers 503."""
        began = asyncio.get_running_loop().time()
        try:
            return await self._connect(ws, request)
        finally:
            waited = asyncio.get_running_loop().time() - began
            if waited > SLOW_CONNECT_S:
                logger.warning(
                    "%s: a client waited %.1f s for on_start and on_connect; partysocket gives up after 4 s",
                    self.ctx.id.key,
                    waited,
                )

    async def _connect(self, ws: WebSocket, request: UpgradeRequest) -> HttpResponse | None:
        await self._ensure_started()
        connection_id = connection_id_of(request.url)
        protocol = next((offer for offer in request.protocols if offer in self.protocols), None)
        tags = await self._tags_of(connection_id, request)
        older = list(self.get_connections(connection_id)) if self.replace_duplicates else []
        try:
            self.ctx.accept_web_socket(ws, tags, protocol)
        except TooManyConnections:
            return HttpResponse.of("The room is full.", 503, {"retry-after": "5"})
        if not tags:
            ws.close(1011, "invalid connection tags")
            return None
        connection = Connection.begin(ws, connection_id)
        for duplicate in older:
            duplicate.close(4000, "replaced")
        self._stay_awake()
        try:
            await self.on_connect(connection, request)
        except FAILURES as error:
            await self._report(error, "on_connect")
            connection.close(1011, "on_connect failed")
        return None

    async def _tags_of(self, connection_id: str, request: UpgradeRequest) -> list[str]:
        """Return the tags, the id first; none if one of them is impossible."""
        try:
            return check_tags(connection_id, await self.get_connection_tags(connection_id, request))
        except FAILURES as error:
            await self._report(error, "get_connection_tags")
            return []

    def web_socket_message(self, ws: WebSocket, message: Frame) -> Coroutine[Any, Any, None]:
        """Run `on_message`, unless the room has closed the connection: a client it has refused need not care."""
        if ws.has_closed:
            return _nothing()
        if self._started and not self.ordered and not self._reports:
            return self.on_message(Connection(ws), message)
        return self._message_in_turn(ws, message)

    async def _message_in_turn(self, ws: WebSocket, message: Frame) -> None:
        await self._ensure_started()
        connection = Connection(ws)
        if not self.ordered:
            await self._reported(self.on_message(connection, message))
            return
        turn = self._turns.setdefault(connection, asyncio.Lock())
        async with turn:
            if not ws.has_closed:
                await self._reported(self.on_message(connection, message))

    async def web_socket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        """Run `on_close`, unless `on_error` told the end already."""
        await self._ensure_started()
        connection = Connection(ws)
        self._turns.pop(connection, None)
        self._let_sleep(ws)
        if not ws.failed and connection.is_known:
            await self._reported(self.on_close(connection, code, reason, was_clean))

    async def web_socket_error(self, ws: WebSocket, error: str) -> None:
        """Run `on_error`."""
        await self._ensure_started()
        await self._reported(self.on_error(Connection(ws), error))

    async def fetch(self, request: HttpRequest) -> HttpResponse:
        """Run `on_request`."""
        try:
            await self._ensure_started()
            return check_response(await self.on_request(request), f"{type(self).__name__}.on_request")
        except ObjectError:
            raise
        except FAILURES as error:
            await self._report(error, "on_request")
            code = getattr(error, "code", None)
            status = code if isinstance(code, int) and 400 <= code <= 599 else 500
            return HttpResponse.of("The room failed to answer.", status)

    async def alarm(self, info: AlarmInfo) -> None:
        """Run `on_alarm`, or `on_named_alarm`."""
        await self._ensure_started()
        await self._reported(self.on_named_alarm(info) if info.name else self.on_alarm())

    async def _reported(self, hook: Coroutine[Any, Any, None]) -> None:
        """Run a hook whose exception the host logs; `on_exception` hears of it first."""
        try:
            await hook
        except FAILURES as error:
            await self._tell(error)
            raise

    async def _report(self, error: BaseException, hook: str) -> None:
        logger.error("%s: %s.%s failed: %s", self.ctx.id.key, type(self).__name__, hook, error, exc_info=error)
        await self._tell(error)

    async def _tell(self, error: BaseException) -> None:
        if self._reports:
            try:
                await self.on_exception(as_exception(error))
            except FAILURES:
                logger.exception("%s: on_exception raised", self.ctx.id.key)

    async def _ensure_started(self, props: Any = None) -> None:
        """Run `on_start` once, with everything else waiting; its failure is this event's, the next one tries again."""
        if self._started:
            return
        failure = await self.ctx.block_concurrency_while(lambda: self._start(props))
        if failure is not None:
            raise failure

    async def _start(self, props: Any) -> Exception | None:
        if self._started:
            return None
        self.props = props
        try:
            await self.on_start()
        except FAILURES as error:  # raised by the caller: here it would reset the object and cut its connections
            await self._tell(error)
            return as_exception(error)
        self._started = True
        if self.ctx.web_socket_count():
            self._stay_awake()
        return None

    def _stay_awake(self) -> None:
        """Without `hibernate`, keep the instance in memory while anybody is connected."""
        if not self.hibernate and self._present is None:
            self._present = asyncio.Event()
            self.ctx.wait_until(self._present.wait())

    def _let_sleep(self, leaving: WebSocket) -> None:
        if self._present is None or self.ctx.web_socket_count() > 1:
            return
        if all(ws is leaving for ws in self.ctx.get_web_sockets()):
            self._present.set()
            self._present = None


async def _nothing() -> None:
    """What a message is to a room that has closed its connection."""


def check_tags(connection_id: str, tags: Iterable[str]) -> list[str]:
    """Return the id and the tags without duplicates.

    Raises:
        ValueError: over 10, or one without 1 to 256 bytes.
        TypeError: one tag and no collection of them, or a tag that is no str.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise TypeError(f"tags are a collection of str, not {shortly(tags)} ({type(tags).__name__})")
    given = list(tags)
    if not all(isinstance(tag, str) for tag in given):
        raise TypeError(f"a tag is a str, in {shortly(given)}")
    checked = list(dict.fromkeys([connection_id, *given]))
    if len(checked) > MAX_TAGS:
        raise ValueError(f"a connection has at most {MAX_TAGS} tags with its id, not {len(checked)}")
    if not all(1 <= len(tag.encode()) <= MAX_TAG_BYTES for tag in checked):
        raise ValueError(f"a tag has 1 to {MAX_TAG_BYTES} bytes")
    return checked
