"""URLs to rooms: `/parties/<party>/<room>` and `/party/<room>`, HTTP and WebSocket, before any other route.

A room is told the URL and headers as they came, less the reserved `x-partykit-*`: what those carry elsewhere travels
here beside the request, where a client cannot write it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hibernation.endpoint import UPGRADE_EXTENSION, Upgrade, closing
from objects.errors import Disconnected, EventTimeout, UsageError
from objects.failures import ESCAPES, FAILURES
from objects.fetch import fetch, to_request, to_response
from objects.host import ObjectHost
from objects.http import HttpRequest, HttpResponse, check_request, check_response
from objects.namespace import ObjectNamespace
from partykit_compat.connection import given_id
from partykit_compat.crons import MAX_CRON_BYTES, Cron, CronContext, CronKeeper, keeper_name, next_run_ms
from partykit_compat.names import MAX_ROOM_BYTES, RoomAddress, is_party_name, parse_path
from partykit_compat.parties import Lobby, PartyContext, PartyNamespace
from partykit_compat.server import MAX_TAG_BYTES, Close, Server

logger = logging.getLogger(__name__)

CORS_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, HEAD, OPTIONS",
    "access-control-allow-headers": "*",
    "access-control-max-age": "86400",
}

_RESERVED = "x-partykit-"
_CRONS = "Crons"
"""Namespace of the schedules; no party can be called so."""


async def route_party_request(routes: PartyRoutes, scope: Scope, receive: Receive, send: Send) -> bool:
    """Serve a request if its path names a room; False, with nothing sent, if it is the application's own affair.

    For an application that decides itself where rooms come in; one that does not is given to `PartyRoutes` as `app`.
    """
    return await routes.route(scope, receive, send)


class PartyRoutes:
    """An ASGI application for rooms; all other requests go to `app`, or are 404.

    Args:
        host: parties are registered with it, so it must not have been started.
        parties: class by the name in the URL; `main` has the short form `/party/<room>`.
        env: given to every room as `self.env`.
        prefix: one path segment or several.
        cors: True for the usual headers on every HTTP answer of a room, a mapping for others.

    Raises:
        ValueError: a party whose name cannot stand in a URL, or a cron that is none or whose name is too long.
        UsageError: a party whose name is taken on that host.
    """

    def __init__(
        self,
        host: ObjectHost,
        parties: Mapping[str, type[Server]],
        *,
        env: Any = None,
        app: ASGIApp | None = None,
        prefix: str = "parties",
        cors: bool | Mapping[str, str] = False,
    ) -> None:
        self._host = host
        self._classes = dict(parties)
        self._env = env
        self._app = app or self.fetch_or(PlainTextResponse("Not found", 404))
        self._prefix = prefix
        self._cors = CORS_HEADERS if cors is True else dict(cors or {})
        self._namespaces: dict[str, ObjectNamespace] = {}
        self._parties: dict[str, PartyNamespace] = {}
        context = PartyContext(env, self.parties)
        for name, cls in parties.items():
            if not is_party_name(name):
                raise ValueError(f"a party is named by lower-case letters, digits, '_' and '-', not {name!r}")
            if cls.on_fetch not in (Server.on_fetch, getattr(parties.get("main"), "on_fetch", None)):
                logger.warning("on_fetch of party %s is never asked: only that of main is", name)
            self._namespaces[name] = host.register(name, cls, context)
            self._parties[name] = PartyNamespace(name, self._namespaces[name])
        # Also without crons: alarms of those that were taken out must find somebody who lets them go.
        self._crons = host.register(_CRONS, CronKeeper, self._cron_contexts())

    @property
    def parties(self) -> Mapping[str, PartyNamespace]:
        """The parties, for code outside of rooms; see `get_server_by_name`."""
        return MappingProxyType(self._parties)

    async def start(self) -> None:
        """Begin to run crons; after the host was started."""
        for name, cls in self._classes.items():
            for cron in cls.crons:
                await self._crons.get_by_name(keeper_name(name, cron)).schedule()

    def fetch_or(self, app: ASGIApp) -> ASGIApp:
        """Return what answers where nothing else does: `on_fetch` of the party `main`, or `app` if that passes."""
        main = self._classes.get("main")
        if main is None or main.on_fetch is Server.on_fetch:
            return app

        async def fetch_or_app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            stripped = _stripped_scope(scope)
            answer = await self._fetch(main, Request(stripped, receive))
            await (app(scope, receive, send) if answer is None else answer(stripped, receive, send))

        return fetch_or_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not await self.route(scope, receive, send):
            await self._app(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a request if its path names a room; returns whether it does."""
        address = None
        if scope["type"] in ("http", "websocket"):
            raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
            address = parse_path(raw_path.decode("latin-1"), self._prefix)
        if address is None:
            return False
        if scope["type"] == "websocket":
            await self._connect(address, scope, receive, send)
        else:
            await self._request(address, scope, receive, send)
        return True

    async def _connect(self, address: RoomAddress, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade: Upgrade | None = scope.get("extensions", {}).get(UPGRADE_EXTENSION)
        namespace = self._namespaces.get(address.party)
        if upgrade is None or namespace is None or len(address.room.encode()) > MAX_ROOM_BYTES:
            status, text = (501, "This server parks no WebSockets") if upgrade is None else (400, "Invalid request")
            await _deny(send, HttpResponse.of(text, status))
            return
        request = HttpRequest(upgrade.url, "GET", _stripped(upgrade.headers), client=upgrade.client)
        by_close = self._classes[address.party].refuse_with_close
        answer = await self._before("on_before_connect", address, request)
        if isinstance(answer, HttpResponse) and not by_close:
            await _deny(send, answer)
            return
        if isinstance(answer, HttpResponse):
            answer = Close(*closing(answer.status, await answer.read()))
        if isinstance(answer, Close):
            await upgrade.close(answer.code, answer.reason)
            return
        if len(given_id(answer.url).encode()) > MAX_TAG_BYTES:
            await upgrade.close(1011, f"_pk has at most {MAX_TAG_BYTES} bytes")  # wakes no room, logs nothing
            return
        upgrade.url, upgrade.headers = answer.url, answer.headers
        await upgrade.hand_to(namespace.id_from_name(address.room), refuse_with_close=by_close)

    async def _request(self, address: RoomAddress, scope: Scope, receive: Receive, send: Send) -> None:
        namespace = self._namespaces.get(address.party)
        if namespace is None or len(address.room.encode()) > MAX_ROOM_BYTES:
            await PlainTextResponse("Invalid request", 400)(scope, receive, send)
            return
        if self._cors:
            send = _with_headers(send, self._cors)
            if scope["method"] == "OPTIONS":
                await Response(status_code=200)(scope, receive, send)
                return
        scope = _stripped_scope(scope)
        request = to_request(Request(scope, receive))
        answer = await self._before("on_before_request", address, request)
        if isinstance(answer, HttpRequest):
            response = await fetch(namespace.get_by_name(address.room), answer)
        elif isinstance(answer, HttpResponse):
            response = to_response(answer)
        else:
            response = PlainTextResponse(answer.reason, 403)
        await response(scope, receive, send)

    async def _fetch(self, main: type[Server], request: Request) -> Response | None:
        try:
            with self._host.hook():
                answer = await main.on_fetch(to_request(request), self._lobby("main"))
            return None if answer is None else to_response(check_response(answer, f"{main.__name__}.on_fetch"))
        except EventTimeout:  # logged
            return PlainTextResponse("The party failed to answer.", 500)
        except Disconnected as error:  # the client left in its body, or a room that was asked went away
            logger.debug("%s.on_fetch: %s", main.__name__, error)
            return PlainTextResponse("The party is not available.", 503, {"retry-after": "1"})
        except FAILURES as error:
            logger.exception("%s.on_fetch failed: %s", main.__name__, error)
            return PlainTextResponse("The party failed to answer.", 500)

    def _lobby(self, party: str, room: str | None = None) -> Lobby:
        return Lobby(party, room, self.parties, self._env)

    def _cron_contexts(self) -> dict[str, CronContext]:
        contexts = {}
        now_ms = self._host.ports.clock.unix_ms
        for name, cls in self._classes.items():

            async def run(cron: Cron, name: str = name, cls: type[Server] = cls) -> None:
                await cls.on_cron(cron, self._lobby(name))

            for cron, expression in cls.crons.items():
                next_run_ms(expression, now_ms())
                if len(cron.encode()) > MAX_CRON_BYTES:
                    raise ValueError(f"a cron is named by at most {MAX_CRON_BYTES} bytes, not {cron!r}")
                contexts[keeper_name(name, cron)] = CronContext(cron, expression, run, now_ms)
        return contexts

    async def _before(
        self, hook: str, address: RoomAddress, request: HttpRequest
    ) -> HttpRequest | HttpResponse | Close:
        """Run a hook of the party's class; one that raises refuses with 401 and its message, a wrong answer is 500."""
        cls = self._classes[address.party]
        try:
            with self._host.hook():
                answer: object = await getattr(cls, hook)(request, self._lobby(*address))
        except EventTimeout:  # logged, with what is not for the client
            return HttpResponse.of("The party failed to answer.", 500)
        except ESCAPES as error:
            logger.exception("%s of %s failed: %r", hook, address.party, error)
            return HttpResponse.of("The party failed to answer.", 500)
        except Exception as error:
            logger.info("%s of %s refused a request: %s", hook, address.party, error)
            return HttpResponse.of(str(error), 401)
        if answer is None or isinstance(answer, Close):
            return request if answer is None else answer
        try:
            source = f"{cls.__name__}.{hook}"
            return check_request(answer, source) if isinstance(answer, HttpRequest) else check_response(answer, source)
        except UsageError as error:
            logger.error("%s: %s", address.party, error)
            return HttpResponse.of("The party failed to answer.", 500)


def _stripped(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if not name.startswith(_RESERVED))


def _stripped_scope(scope: Scope) -> Scope:
    return {**scope, "headers": [(k, v) for k, v in scope["headers"] if not k.startswith(_RESERVED.encode())]}


async def _deny(send: Send, response: HttpResponse) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": await response.read()})


def _with_headers(send: Send, extra: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in extra.items():
                headers[name] = value
        await send(message)

    return sending
