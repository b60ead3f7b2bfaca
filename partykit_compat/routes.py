"""URLs to rooms: `/parties/<party>/<room>` and `/party/<room>`, HTTP and WebSocket, before any other route.

A room is told the URL and headers as they came, less the reserved `x-partykit-*`: what those carry elsewhere travels
here beside the request, where a client cannot write it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hibernation.endpoint import UPGRADE_EXTENSION, Upgrade
from objects.fetch import fetch, to_request, to_response
from objects.host import ObjectHost
from objects.http import HttpRequest, HttpResponse
from objects.namespace import ObjectNamespace
from partykit_compat.names import RoomAddress, is_party_name, parse_path
from partykit_compat.server import Lobby, PartyContext, PartyNamespace, Server

logger = logging.getLogger(__name__)

CORS_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, HEAD, OPTIONS",
    "access-control-allow-headers": "*",
    "access-control-max-age": "86400",
}

_RESERVED = "x-partykit-"


class PartyRoutes:
    """An ASGI application for rooms; all other requests go to `app`, or are 404.

    Args:
        host: parties are registered with it, so it must not have been started.
        parties: class by the name in the URL; `main` has the short form `/party/<room>`.
        env: given to every room as `self.env`.
        prefix: one path segment or several.
        cors: True for the usual headers on every HTTP answer of a room, a mapping for others.

    Raises:
        ValueError: a party whose name cannot stand in a URL.
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
        self._app = app or PlainTextResponse("Not found", 404)
        self._prefix = prefix
        self._cors = CORS_HEADERS if cors is True else dict(cors or {})
        self._namespaces: dict[str, ObjectNamespace] = {}
        self._parties: dict[str, PartyNamespace] = {}
        context = PartyContext(env, self._parties)
        for name, cls in parties.items():
            if not is_party_name(name):
                raise ValueError(f"a party is named by lower-case letters, digits, '_' and '-', not {name!r}")
            self._namespaces[name] = host.register(name, cls, context)
            self._parties[name] = PartyNamespace(name, self._namespaces[name])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        address = None
        if scope["type"] in ("http", "websocket"):
            raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
            address = parse_path(raw_path.decode("latin-1"), self._prefix)
        if address is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._connect(address, scope, receive, send)
        else:
            await self._request(address, scope, receive, send)

    async def _connect(self, address: RoomAddress, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade: Upgrade | None = scope.get("extensions", {}).get(UPGRADE_EXTENSION)
        namespace = self._namespaces.get(address.party)
        if upgrade is None or namespace is None:
            status, text = (400, "Invalid request") if namespace is None else (501, "This server parks no WebSockets")
            await _deny(send, HttpResponse.of(text, status))
            return
        request = HttpRequest(upgrade.url, "GET", _stripped(upgrade.headers), client=upgrade.client)
        answer = await self._before("on_before_connect", address, request)
        if isinstance(answer, HttpResponse):
            await _deny(send, answer)
            return
        upgrade.url, upgrade.headers = answer.url, answer.headers
        await upgrade.hand_to(namespace.id_from_name(address.room))

    async def _request(self, address: RoomAddress, scope: Scope, receive: Receive, send: Send) -> None:
        namespace = self._namespaces.get(address.party)
        if namespace is None:
            await PlainTextResponse("Invalid request", 400)(scope, receive, send)
            return
        if self._cors:
            send = _with_headers(send, self._cors)
            if scope["method"] == "OPTIONS":
                await Response(status_code=200)(scope, receive, send)
                return
        scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if not k.startswith(_RESERVED.encode())]}
        request = Request(scope, receive)
        plain = to_request(request)
        answer = await self._before("on_before_request", address, plain)
        if isinstance(answer, HttpResponse):
            await to_response(answer)(scope, receive, send)
            return
        stub = namespace.get_by_name(address.room)
        response = await fetch(stub, request) if answer is plain else to_response(await stub.fetch(answer))
        await response(scope, receive, send)

    async def _before(self, hook: str, address: RoomAddress, request: HttpRequest) -> HttpRequest | HttpResponse:
        """Run a hook of the party's class; one that raises refuses with 401 and its message."""
        lobby = Lobby(address.party, address.room, self._parties)
        try:
            answer: HttpRequest | HttpResponse | None = await getattr(self._classes[address.party], hook)(
                request, lobby
            )
        except Exception as error:
            logger.info("%s of %s refused a request: %s", hook, address.party, error)
            return HttpResponse.of(str(error), 401)
        return request if answer is None else answer


def _stripped(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if not name.startswith(_RESERVED))


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
