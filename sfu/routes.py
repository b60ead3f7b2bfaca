"""HTTP: sessions and tracks, `/v1/apps/{appId}/...` and the unversioned `/apps/{appId}/...`.

Each request passes, in this order: the app's bearer, the session's rate of calls, the body (read under a limit and a
time, parsed as JSON under any content type), the service. Errors are raised, not answered: the application turns every
`SfuError` into the API's envelope. Nothing here redirects.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from sfu import schemas
from sfu.errors import AppNotFound, InvalidParams, LimitExceeded, PayloadTooLarge, SessionGone, Unauthorized
from sfu.messages import SessionDescription, SessionId
from sfu.schemas import Schema
from sfu.service import Sfu
from sfu.throttle import CallThrottle

VERSIONED = "/v1"

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
"""Which ids a session can have; longer ones are not even counted."""

SchemaT = TypeVar("SchemaT", bound=Schema)
Caller = Callable[..., Awaitable[str]]
"""A FastAPI dependency: authenticates the request and returns the app it may act for."""

Responses = dict[int | str, dict[str, Any]]
"""OpenAPI entries by status."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much of a body is read and how long it may take."""

    max_bytes: int
    timeout: float


class SessionApi:
    """The operations, from parsed path to response; shared by the bearer's routes and the browser gateway.

    Args:
        service: the media side.
        limits: for request bodies.
        clock: monotonic seconds.
    """

    def __init__(self, service: Sfu, limits: BodyLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._limits = limits
        self._throttle = CallThrottle(service.settings.calls_per_session_per_s)
        self._clock = clock

    async def create_session(
        self, request: Request, app_id: str, *, correlation_id: str | None, third_party: bool
    ) -> tuple[SessionId, Response]:
        """`POST sessions/new`: the new id, and the 201."""
        body = await self._read(request, schemas.SessionsNewRequest, optional=True)
        session_id, answer = await self._service.create_session(
            app_id,
            offer=_offer(body.session_description),
            correlation_id=correlation_id,
            third_party=third_party,
        )
        response = schemas.SessionsNewResponse(
            session_id=session_id, session_description=schemas.SessionDescription.from_message(answer)
        )
        return session_id, _json(response, 201)

    async def get_session(self, app_id: str, session_id: str) -> Response:
        """`GET sessions/{id}`."""
        states = self._service.tracks_of(app_id, self._admit(app_id, session_id))
        return _json(schemas.SessionResponse(tracks=tuple(map(schemas.TrackState.from_message, states))))

    async def get_stats(self, app_id: str, session_id: str) -> Response:
        """`GET sessions/{id}/stats`, an extension."""
        figures = self._service.session_stats(app_id, self._admit(app_id, session_id))
        return _json(schemas.SessionStatsResponse.from_stats(figures))

    async def renegotiate(self, request: Request, app_id: str, session_id: str) -> Response:
        """`PUT sessions/{id}/renegotiate`."""
        session = self._admit(app_id, session_id)
        body = await self._read(request, schemas.RenegotiateRequest)
        answer = await self._service.renegotiate(app_id, session, body.session_description.to_message())
        return _json(
            schemas.RenegotiateResponse(session_description=schemas.SessionDescription.from_message(answer)),
        )

    async def add_tracks(self, request: Request, app_id: str, session_id: str) -> Response:
        """`POST sessions/{id}/tracks/new`."""
        session = self._admit(app_id, session_id)
        body = await self._read(request, schemas.TracksNewRequest)
        if body.tracks is None and not body.auto_discover:
            raise InvalidParams("tracks: Field required unless autoDiscover is true")
        result = await self._service.add_tracks(
            app_id,
            session,
            tracks=[track.to_message() for track in body.tracks or ()],
            offer=_offer(body.session_description),
            auto_discover=bool(body.auto_discover),
        )
        return _json(schemas.TracksResponse.from_message(result))

    async def update_tracks(self, request: Request, app_id: str, session_id: str) -> Response:
        """`PUT sessions/{id}/tracks/update`."""
        session = self._admit(app_id, session_id)
        body = await self._read(request, schemas.TracksUpdateRequest)
        result = await self._service.update_tracks(app_id, session, [track.to_message() for track in body.tracks])
        return _json(schemas.TracksResponse.from_message(result))

    async def close_tracks(self, request: Request, app_id: str, session_id: str) -> Response:
        """`PUT sessions/{id}/tracks/close`."""
        session = self._admit(app_id, session_id)
        body = await self._read(request, schemas.TracksCloseRequest)
        result = await self._service.close_tracks(
            app_id,
            session,
            mids=[track.mid for track in body.tracks],
            force=bool(body.force),
            offer=_offer(body.session_description),
        )
        return _json(schemas.TracksResponse.from_message(result))

    def _admit(self, app_id: str, session_id: str) -> SessionId:
        """Check the id's form and count the call.

        Raises:
            SessionGone: no session can have this id.
            LimitExceeded: too many calls of this session in a second.
        """
        if not SESSION_ID.match(session_id):
            raise SessionGone("no such session")
        if not self._throttle.admit((app_id, session_id), now=self._clock()):
            raise LimitExceeded("too many calls of this session in a second")
        return SessionId(session_id)

    async def _read(self, request: Request, shape: type[SchemaT], *, optional: bool = False) -> SchemaT:
        body = await read_body(request, self._limits)
        return schemas.parse(shape, body if body or not optional else b"{}")


class BearerCheck:
    """The dependency of the API's routes: `Authorization: Bearer <secret>` of the app in the path."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = {app_id: secret.encode() for app_id, secret in secrets.items()}

    async def __call__(
        self,
        app_id: Annotated[str, Path(alias="appId")],
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> str:
        """The app id.

        Raises:
            AppNotFound: no such app.
            Unauthorized: no bearer, or not this app's. Compared in constant time.
        """
        if (secret := self._secrets.get(app_id)) is None:
            raise AppNotFound("no such app")
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), secret):
            raise Unauthorized("the bearer is missing or not this app's secret")
        return app_id


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The whole body, refused as soon as it is known to be too large.

    Raises:
        PayloadTooLarge: above the limit, by its `Content-Length` or as it arrives.
        HTTPException: 408, it took longer than allowed.
    """
    too_large = PayloadTooLarge(f"the body is larger than {limits.max_bytes} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    return bytes(body)


def api_router(api: SessionApi, caller: Caller, *, base: str) -> APIRouter:
    """The session routes below `{base}/apps/{appId}`; `base` is `/v1` or empty."""
    router = APIRouter(prefix=f"{base}/apps/{{appId}}", tags=["Sessions" if base else "Sessions (unversioned alias)"])

    @router.post(
        "/sessions/new",
        status_code=201,
        summary="Make a session",
        operation_id=_operation_id("createSession", base),
        response_model=schemas.SessionsNewResponse,
        responses=error_responses(400, 401, 404, 406, 413, 429),
        openapi_extra=request_body(schemas.SessionsNewRequest, required=False),
    )
    async def create_session(
        request: Request,
        app_id: str = Depends(caller),
        correlation_id: CorrelationId = None,
        third_party: ThirdParty = False,
    ) -> Response:
        _, response = await api.create_session(request, app_id, correlation_id=correlation_id, third_party=third_party)
        return response

    add_session_routes(router, api, caller, refusals=error_responses(401, 404), variant=base)
    return router


def add_session_routes(
    router: APIRouter, api: SessionApi, caller: Caller, *, refusals: Responses, variant: str
) -> None:
    """Everything below `/sessions/{sessionId}`.

    Args:
        router: gets the routes.
        api: the operations.
        caller: authenticates.
        refusals: the OpenAPI entries of how it refuses.
        variant: keeps operation ids apart; `/v1` needs no mark.
    """
    reading: Responses = {**error_responses(410, 429), **refusals}
    changing: Responses = {**error_responses(400, 406, 410, 413, 425, 429), **refusals}

    @router.get(
        "/sessions/{sessionId}",
        summary="List a session's tracks",
        operation_id=_operation_id("getSession", variant),
        response_model=schemas.SessionResponse,
        responses=reading,
    )
    async def get_session(session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.get_session(app_id, session_id)

    @router.get(
        "/sessions/{sessionId}/stats",
        summary="A session's figures (extension)",
        operation_id=_operation_id("getSessionStats", variant),
        response_model=schemas.SessionStatsResponse,
        responses=reading,
    )
    async def get_stats(session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.get_stats(app_id, session_id)

    @router.put(
        "/sessions/{sessionId}/renegotiate",
        summary="Answer the server's offer",
        operation_id=_operation_id("renegotiate", variant),
        response_model=schemas.RenegotiateResponse,
        responses=changing,
        openapi_extra=request_body(schemas.RenegotiateRequest),
    )
    async def renegotiate(request: Request, session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.renegotiate(request, app_id, session_id)

    @router.post(
        "/sessions/{sessionId}/tracks/new",
        summary="Publish or pull tracks",
        operation_id=_operation_id("addTracks", variant),
        response_model=schemas.TracksResponse,
        responses=changing,
        openapi_extra=request_body(schemas.TracksNewRequest),
    )
    async def add_tracks(request: Request, session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.add_tracks(request, app_id, session_id)

    @router.put(
        "/sessions/{sessionId}/tracks/update",
        summary="Change what pulled mids receive",
        operation_id=_operation_id("updateTracks", variant),
        response_model=schemas.TracksResponse,
        responses=changing,
        openapi_extra=request_body(schemas.TracksUpdateRequest),
    )
    async def update_tracks(request: Request, session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.update_tracks(request, app_id, session_id)

    @router.put(
        "/sessions/{sessionId}/tracks/close",
        summary="Close tracks by mid",
        operation_id=_operation_id("closeTracks", variant),
        response_model=schemas.TracksResponse,
        responses=changing,
        openapi_extra=request_body(schemas.TracksCloseRequest),
    )
    async def close_tracks(request: Request, session_id: SessionIdPath, app_id: str = Depends(caller)) -> Response:
        return await api.close_tracks(request, app_id, session_id)


CorrelationId = Annotated[
    str | None, Query(alias="correlationId", description="A label for diagnosis; no lookup by it")
]
ThirdParty = Annotated[bool, Query(alias="thirdparty", description="The peer is another server, not a client")]
SessionIdPath = Annotated[str, Path(alias="sessionId", description="From `sessions/new`")]

_ERRORS: Mapping[int, str] = {
    400: "`decoding_error`: not JSON, or a field of the wrong type; the text names the field",
    401: "`unauthorized`: the bearer is missing or wrong",
    403: "`forbidden`: a page of another origin",
    404: "`not_found`: no such app",
    406: "`invalid_params` or `invalid_session_description`",
    410: "`session_error`: the session expired, was closed or never existed; make a new one",
    413: "`payload_too_large`",
    425: "`session_error`: the transport is not up yet; finish the setup and retry",
    429: "`too_many_requests`: more than 50 calls of a session in a second, or a table is full",
}


def error_responses(*statuses: int) -> Responses:
    """The OpenAPI entries of an operation's errors."""
    return {status: {"model": schemas.ErrorResponse, "description": _ERRORS[status]} for status in statuses}


def request_body(shape: type[Schema], *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI entry of a body that is read by hand, under any content type."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _operation_id(name: str, variant: str) -> str:
    suffix = {VERSIONED: "", "": "Unversioned"}.get(variant, variant)
    return name + suffix


def _offer(description: schemas.SessionDescription | None) -> SessionDescription | None:
    return None if description is None else description.to_message()


def _json(answer: Schema, status: int = 200) -> Response:
    return Response(schemas.serialize(answer), status, media_type="application/json")
