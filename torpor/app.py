"""The HTTP application: every package's routes, one envelope for errors, one edge around it all. No globals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import torpor
from sfu.errors import SfuError
from sfu.gateway import GatewayPolicy, gateway_router
from sfu.routes import VERSIONED, BearerCheck, BodyLimits, SessionApi, api_router
from sfu.service import Sfu
from torpor.config import Settings
from torpor.edge import Cors, Edge, envelope
from torpor.events import events_router
from torpor.figures import Figures
from torpor.health import Health, health_router
from torpor.openapi import document
from torpor.pages import page_routes
from torpor.relay import ice_servers
from torpor.room_routes import RoomRoutes, limited, rooms_router
from torpor.rooms import Rooms
from turn.routes import credentials_router
from turn.service import TurnService

logger = logging.getLogger("torpor.http")

ERROR_CODES: Mapping[int, str] = {
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "invalid_params",
    408: "request_timeout",
    413: "payload_too_large",
    429: "too_many_requests",
    503: "temporarily_unavailable_error",
}


def build_app(
    settings: Settings,
    sfu: Sfu | None,
    turn: TurnService | None = None,
    rooms: Rooms | None = None,
    *,
    health: Health,
    figures: Figures,
) -> FastAPI:
    """Everything the port answers.

    Args:
        settings: checked ones.
        sfu: the media side; without it the session routes are absent.
        turn: the TURN server; without it the routes of TURN keys are absent, and browsers are told of no server.
        rooms: the room side; without it a room's URL is unknown, and the list of rooms is empty.
        health: read by `/healthz`.
        figures: read by `/metrics`.
    """
    app = FastAPI(
        title="Torpor",
        version=torpor.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(SfuError, on_sfu_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    if rooms is not None:
        limits = BodyLimits(settings.http.body_max_bytes, settings.http.body_timeout)
        app.add_middleware(RoomRoutes, rooms=rooms.routes, limits=limits)
    app.add_middleware(
        Edge,
        cors=cors_rules(settings),
        local_only=settings.development,
        health=health,
        metrics=figures.http,
        access_log=settings.http.access_log,
    )
    app.include_router(health_router(health, figures.collect))
    if sfu is not None:
        add_media_routes(app, settings, sfu, turn, figures)
    if turn is not None:
        app.include_router(credentials_router(turn))
    if (token := settings.rooms_admin_token) is not None:
        app.include_router(rooms_router(rooms.statuses if rooms else list, token))
    if settings.demo_enabled:
        app.router.routes.extend(page_routes())
    if rooms is not None:
        not_found = app.router.default
        if (unclaimed := rooms.routes.fetch_or(not_found)) is not not_found:
            app.router.default = limited(unclaimed, limits)
    return app


def cors_rules(settings: Settings) -> dict[str, Cors]:
    """Which paths scripts of other origins may call, and from which origins."""
    api = Cors(settings.http.cors_origins, local_only=settings.development)
    rules = {f"{VERSIONED}/": api, "/apps/": api}
    if settings.parties or settings.demo_enabled:
        origins = settings.rooms.allowed_origins
        rules |= dict.fromkeys(
            ("/parties/", "/party/"), Cors(origins, local_only=settings.development, any_request=True)
        )
    if settings.gateway_enabled:
        rules[f"{settings.gateway.prefix}/"] = Cors(settings.gateway.allowed_origins)
    return rules


def add_media_routes(app: FastAPI, settings: Settings, sfu: Sfu, turn: TurnService | None, figures: Figures) -> None:
    """The session API, versioned and not, the app's events, and the browser gateway if enabled."""
    limits = BodyLimits(settings.http.body_max_bytes, settings.http.body_timeout)
    api = SessionApi(sfu, limits)
    bearer = BearerCheck({app_id: secret.value for app_id, secret in settings.apps.items()})
    for base in (VERSIONED, ""):
        app.include_router(api_router(api, bearer, base=base))
    app.include_router(events_router(sfu, settings.events, figures, bearer))
    if settings.gateway_enabled:
        app.include_router(
            gateway_router(api, gateway_policy(settings), lambda: ice_servers(turn, settings.gateway_app_id))
        )


def gateway_policy(settings: Settings) -> GatewayPolicy:
    """What the gateway needs of the settings; only when it is enabled."""
    app_id = settings.gateway_app_id
    return GatewayPolicy(
        app_id=app_id,
        secret=settings.apps[app_id].value,
        prefix=settings.gateway.prefix,
        lock=settings.gateway.lock,
        allowed_origins=frozenset(settings.gateway.allowed_origins),
    )


def openapi_document(settings: Settings, sfu: Sfu, turn: TurnService) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings."""
    return document(build_app(settings, sfu, turn, health=Health(), figures=Figures(sfu, turn)))


async def on_sfu_error(request: Request, error: Exception) -> Response:
    """Errors of the media side carry their status and code."""
    assert isinstance(error, SfuError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request failed", exc_info=error)
    headers = {"www-authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else None
    return _error(error.status, error.code, error.description, headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Unknown routes, wrong methods and what handlers refuse by status."""
    assert isinstance(error, HTTPException)
    code = ERROR_CODES.get(error.status_code, "internal_error" if error.status_code >= 500 else "invalid_params")
    return _error(error.status_code, code, str(error.detail), error.headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Parameters that FastAPI checked: only the first problem, as for bodies."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    where = ".".join(str(step) for step in problem["loc"])
    return _error(406, "invalid_params", f"{where}: {problem['msg']}")


def _error(status: int, code: str, description: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(envelope(code, description), status, headers=dict(headers or {}), media_type="application/json")
