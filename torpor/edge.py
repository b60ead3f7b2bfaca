"""The outermost ASGI layer: what every HTTP request meets, whatever route it takes.

It answers preflights and adds CORS headers where scripts of other origins may call, turns an unforeseen exception into
the JSON envelope, forbids type sniffing, lets a stopping server end its event streams, and counts. It reads no body.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfu.gateway import is_local_name
from torpor.health import Health
from torpor.metrics import HttpMetrics

logger = logging.getLogger("torpor.http")

PREFLIGHT_MAX_AGE_S = 7200
NOT_LOCAL = "a development server is used as localhost or a loopback address"
NOT_ALLOWED = "pages of this origin may not connect or make requests"
CLIENT_CLOSED_REQUEST = 499
"""Not sent: how a request whose client went away is counted."""


def envelope(code: str, description: str) -> bytes:
    """The body of every error: `errorCode` and `errorDescription`."""
    return orjson.dumps({"errorCode": code, "errorDescription": description})


class Cors:
    """Who may call the API from a page. No cookies are involved, so no credentials header either.

    Args:
        origins: exact origins, or `*` for all.
        local_only: `*` means all origins of this machine.
        any_request: with any method and header, and answers that may be kept; else those of the API.
    """

    def __init__(self, origins: Iterable[str], *, local_only: bool = False, any_request: bool = False) -> None:
        self._origins = frozenset(origins)
        self._local_only = local_only
        self._any_request = any_request

    def headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """Headers of any answer to `origin`; `Vary` always, since another origin may get another answer."""
        vary = [(b"vary", b"Origin")]
        if not self._any_request:
            vary.append((b"cache-control", b"no-store"))
        if origin is None or not self.allows(origin):
            return vary
        return [*vary, (b"access-control-allow-origin", origin.encode("latin-1"))]

    def allows(self, origin: str) -> bool:
        """Whether pages of `origin` may."""
        if origin in self._origins:
            return True
        return "*" in self._origins and (not self._local_only or is_local_name(origin.lower().partition("://")[2]))

    def refuses(self, origin: str | None) -> bool:
        """Whether a request is not even made: where no bearer protects from what pages send without asking."""
        return self._any_request and origin is not None and not self.allows(origin)

    def is_preflight(self, headers: Headers) -> bool:
        """Whether a request by `OPTIONS` asks for permission (Fetch §3.2.2): where any may be made it may be one."""
        return not self._any_request or "access-control-request-method" in headers

    def preflight_headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer to an `OPTIONS` preflight has besides."""
        any_request = self._any_request
        headers = b"*, authorization" if any_request else b"authorization, content-type"
        return [
            (b"access-control-allow-methods", b"*" if any_request else b"GET, POST, PUT, OPTIONS"),
            (b"access-control-allow-headers", headers),
            (b"access-control-max-age", str(PREFLIGHT_MAX_AGE_S).encode()),
        ]


class Edge:
    """Wraps the application.

    Args:
        app: what is wrapped.
        cors: by path prefix; paths with none of them are for pages of our own.
        local_only: refuse requests whose `Host` is not this machine: a development server's secret is public, and a
            foreign name that resolves to 127.0.0.1 would let any page on the web use it (DNS rebinding).
        health: learns which answers must be ended when the server stops.
        metrics: counts requests by route, method and status, and their time.
        access_log: write a line per request.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cors: Mapping[str, Cors],
        local_only: bool,
        health: Health,
        metrics: HttpMetrics,
        access_log: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._cors = cors
        self._local_only = local_only
        self._health = health
        self._metrics = metrics
        self._access_log = access_log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        extra = [(b"x-content-type-options", b"nosniff")]
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        cors = self._rule(scope)
        if cors is not None:
            extra += cors.headers(origin)
        status = 0
        task = asyncio.current_task()
        assert task is not None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
                if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                    self._health.streams.add(task)
            await send(message)

        try:
            if self._local_only and not is_local_name(headers.get("host", "").lower()):
                await respond(send_with_headers, 403, envelope("forbidden", NOT_LOCAL))
            elif cors is not None and cors.refuses(headers.get("origin")):
                await respond(send_with_headers, 403, envelope("forbidden", NOT_ALLOWED))
            elif cors is not None and scope["method"] == "OPTIONS" and cors.is_preflight(headers):
                await respond(send_with_headers, 204, headers=cors.preflight_headers())
            else:
                await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not (self._health.draining and task in self._health.streams):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            status = status or CLIENT_CLOSED_REQUEST
        except Exception:
            logger.exception("request failed", extra={"method": scope["method"], "route": route_of(scope)})
            if status:
                raise  # the answer has begun: the server cuts the connection
            await respond(send_with_headers, 500, envelope("internal_error", "the server failed; its log says why"))
        finally:
            self._health.streams.discard(task)
            self._record(scope, status or CLIENT_CLOSED_REQUEST, self._clock() - started)

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request for a WebSocket. Browsers ask nobody before they send it, so the origin is judged here."""
        headers = Headers(scope=scope)
        origin, rule = headers.get("origin"), self._rule(scope)
        if self._local_only and not is_local_name(headers.get("host", "").lower()):
            await deny(send, NOT_LOCAL)
        elif origin is not None and rule is not None and not rule.allows(origin):
            await deny(send, NOT_ALLOWED)
        else:
            await self._app(scope, receive, send)

    def _rule(self, scope: Scope) -> Cors | None:
        path = "/" + scope["path"].lstrip("/")  # rooms are found so
        return next((rule for prefix, rule in self._cors.items() if path.startswith(prefix)), None)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._metrics.record(route=route, method=scope["method"], status=status, seconds=seconds)
        if self._access_log:
            fields = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1)}
            logger.info("request", extra=fields)


def route_of(scope: Scope) -> str:
    """The matched route's template, never the path itself: it may hold ids, and anyone can invent paths."""
    return getattr(scope.get("route"), "path", "unmatched")


async def deny(send: Send, description: str) -> None:
    """Answer 403 to a request for a WebSocket."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": envelope("forbidden", description)})


async def respond(send: Send, status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """One whole answer; a body is JSON."""
    described = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())] if body else []
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": [*described, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
