"""The browser gateway: a page uses partytracks against this server without a back end of its own.

    {prefix}/sessions/...            the session API of one app, without a bearer
    {prefix}/generate-ice-servers    the `iceServers` of an RTCPeerConnection

Instead of the bearer, a cookie ties each session to the browser that made it (`lock`): `partytracks-session-{id}` holds
a JWT {sessionId, iat}, HS256 under the app's secret, so nothing is stored. Without the cookie: 401 `unauthorized`.

Only pages of our own origin may use it, unless others are allowed: the gateway acts for the app, and any page on the
web can make a visitor's browser send requests here.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse

from sfu import schemas
from sfu.errors import SfuError
from sfu.messages import SessionId
from sfu.routes import CorrelationId, SessionApi, add_session_routes, error_responses, request_body
from sfu.throttle import CallThrottle

SESSIONS_PER_ADDRESS_PER_S = 20.0
"""New sessions of one client address: a call that needs no cookie."""
ICE_SERVERS_PER_ADDRESS_PER_S = 20.0
"""Credentials for one client address, likewise."""

AUTHORITY = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^:@/\[\]]+))(?::[0-9]*)?\Z")
"""A `Host` header in lower case: RFC 9110 §7.2, no user information."""

IceServers = Callable[[], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class GatewayPolicy:
    """Whom the gateway serves, and as which app.

    Args:
        app_id, secret: the app; its secret also keys the cookies.
        prefix: path before `/sessions`, as `/partytracks`.
        lock: tie sessions to browsers by cookie.
        allowed_origins: origins besides our own; `*` for all.
    """

    app_id: str
    secret: str
    prefix: str
    lock: bool
    allowed_origins: frozenset[str]


class Locked(Exception):
    """The request lacks the session's cookie: 401 with the plain text that partytracks' own back end sends."""


class GatewayRoute(APIRoute):
    """Answers `Locked` in plain text, unlike everything else."""

    def get_route_handler(self) -> Callable[..., Any]:
        """The handler, guarded."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except Locked:
                return PlainTextResponse("unauthorized", HTTPStatus.UNAUTHORIZED)
            return response

        return guarded


def gateway_router(
    api: SessionApi, policy: GatewayPolicy, ice_servers: IceServers, *, clock: Callable[[], float] = time.time
) -> APIRouter:
    """The gateway's routes.

    Args:
        api: the operations, as the bearer's routes use them.
        policy: whom to serve.
        ice_servers: the STUN and TURN servers that listen now.
        clock: seconds since 1970, for `iat`.
    """
    router = APIRouter(prefix=policy.prefix, tags=["Browser gateway"], route_class=GatewayRoute)
    new_sessions = CallThrottle(SESSIONS_PER_ADDRESS_PER_S)
    new_credentials = CallThrottle(ICE_SERVERS_PER_ADDRESS_PER_S)

    async def visitor(request: Request) -> str:
        check_origin(request, policy)
        return policy.app_id

    async def owner(request: Request) -> str:
        check_origin(request, policy)
        session_id = request.path_params["sessionId"]
        if policy.lock and not is_valid_token(
            request.cookies.get(cookie_name(session_id), ""), session_id, policy.secret
        ):
            raise Locked
        return policy.app_id

    @router.post(
        "/sessions/new",
        summary="Make a session and its cookie",
        description="503 in plain text when the server is full: partytracks tries again after that, and only that.",
        operation_id="createSessionByGateway",
        response_model=schemas.SessionsNewResponse,
        responses=error_responses(400, 403, 406, 413) | {503: {"description": "Full", "content": _PLAIN_TEXT}},
        openapi_extra=request_body(schemas.SessionsNewRequest, required=False),
    )
    async def create_session(
        request: Request, app_id: str = Depends(visitor), correlation_id: CorrelationId = None
    ) -> Response:
        if not new_sessions.admit(_network(request), now=time.monotonic()):
            return _busy()
        try:
            # Never a third party's session: without a bearer nobody may make this server call out.
            session_id, response = await api.create_session(
                request, app_id, correlation_id=correlation_id, third_party=False
            )
        except SfuError as error:
            if error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return _busy()
            raise
        response.status_code = HTTPStatus.OK  # partytracks' back end turns the 201 into this
        response.set_cookie(
            cookie_name(session_id),
            make_token(session_id, policy.secret, issued_at=int(clock())),
            path=policy.prefix,
            secure=not _is_plain_local(request),
            httponly=True,
            samesite="strict",
        )
        return response

    @router.get(
        "/generate-ice-servers",
        summary="STUN and TURN servers",
        operation_id="getIceServersByGateway",
        response_class=Response,
        responses=error_responses(403, 429) | {200: {"description": "Those that listen now", "content": _ICE_SERVERS}},
    )
    async def generate_ice_servers(request: Request, app_id: str = Depends(visitor)) -> Response:
        if not new_credentials.admit(_network(request), now=time.monotonic()):
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, "too many credentials for one address: try again later")
        return Response(orjson.dumps({"iceServers": list(ice_servers())}), media_type="application/json")

    refusals = error_responses(403) | {401: {"description": "No cookie of this session", "content": _PLAIN_TEXT}}
    add_session_routes(router, api, owner, refusals=refusals, variant="ByGateway")
    return router


def check_origin(request: Request, policy: GatewayPolicy) -> None:
    """Refuse pages of other origins.

    `Origin` comes with every request that a page makes by PUT or POST; a GET may have only `Sec-Fetch-Site`. A request
    with neither is no page's.

    Raises:
        HTTPException: 403.
    """
    host = request.headers.get("host", "").lower()
    origin = request.headers.get("origin")
    if "*" in policy.allowed_origins or origin in policy.allowed_origins:
        return
    if origin is None:
        same = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    else:
        same = bool(host) and origin.lower().partition("://")[2] == host
    if not same:
        raise HTTPException(HTTPStatus.FORBIDDEN, "pages of this origin may not use the gateway")


def is_local_name(host: str) -> bool:
    """Whether a `Host` header, with or without port, names this machine: `localhost` or a loopback address."""
    if not (match := AUTHORITY.match(host)):
        return False
    name = match["literal"] or match["name"]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def cookie_name(session_id: str) -> str:
    """Name of the session's cookie; session ids are safe in it."""
    return f"partytracks-session-{session_id}"


def make_token(session_id: SessionId, secret: str, *, issued_at: int) -> str:
    """A JWT (RFC 7519) of `{sessionId, iat}`, HS256. It does not expire: the session does."""
    header = _encode(orjson.dumps({"alg": "HS256", "typ": "JWT"}))
    payload = _encode(orjson.dumps({"sessionId": session_id, "iat": issued_at}))
    return f"{header}.{payload}.{_sign(f'{header}.{payload}', secret)}"


def is_valid_token(token: str, session_id: str, secret: str) -> bool:
    """Whether `token` was made with `secret` for this session. The signature is checked before anything is parsed."""
    signed, _, signature = token.rpartition(".")
    if not hmac.compare_digest(_sign(signed, secret).encode(), signature.encode()):
        return False
    header, _, payload = signed.partition(".")
    try:
        return bool(_decode(header)["alg"] == "HS256" and _decode(payload)["sessionId"] == session_id)
    except (ValueError, KeyError, TypeError):
        return False


def _sign(text: str, secret: str | bytes) -> str:
    key = secret.encode() if isinstance(secret, str) else secret
    return _encode(hmac.digest(key, text.encode(), hashlib.sha256))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _is_plain_local(request: Request) -> bool:
    """Whether `Secure` must be left out: Safari drops such cookies on http://localhost, Chromium and Firefox do not.

    Nothing is lost there: the cookie does not leave the machine. Any other plain HTTP is taken for the inside of a
    proxy that speaks TLS.
    """
    return request.scope["scheme"] == "http" and is_local_name(request.headers.get("host", "").lower())


def _network(request: Request) -> str:
    """The client's address, or its /64: an IPv6 host owns one."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def _busy() -> Response:
    return PlainTextResponse("too many sessions, try again", HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1"})


_PLAIN_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_ICE_SERVERS = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["iceServers"],
            "properties": {
                "iceServers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["urls"],
                        "properties": {
                            "urls": {"type": "array", "items": {"type": "string"}},
                            "username": {"type": "string"},
                            "credential": {"type": "string"},
                        },
                    },
                }
            },
        }
    }
}
