"""Rooms in the HTTP application: their URLs before any other route, and `GET /v1/rooms` for the operator."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from partykit_compat.names import parse_path
from sfu.errors import Unauthorized
from sfu.routes import BodyLimits
from torpor.config import Secret
from torpor.edge import envelope, respond
from torpor.rooms import RoomStatus

LIST_DEFAULT = 1_000
LIST_MAX = 100_000


@dataclass(frozen=True, slots=True)
class _Route:
    path: str


ROOM_ROUTE = _Route("/parties/{party}/{room}")
"""How requests to rooms are counted."""


class RoomRoutes:
    """ASGI: what names a room goes to the rooms, all else to `app`.

    A request's body is bounded: one that says it is too large gets 413; one that becomes too large or takes too long
    ends for the room as if its client had left.

    Args:
        app: the rest.
        rooms: a `PartyRoutes`.
        limits: of a body.
    """

    def __init__(self, app: ASGIApp, *, rooms: ASGIApp, limits: BodyLimits) -> None:
        self._app = app
        self._rooms = rooms
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] not in ("http", "websocket") or not names_room(scope):
            await self._app(scope, receive, send)
            return
        scope["route"] = ROOM_ROUTE
        await limited(self._rooms, self._limits)(scope, receive, send)


def limited(app: ASGIApp, limits: BodyLimits) -> ASGIApp:
    """Return `app` behind limits on a request's body."""

    async def behind_limits(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > limits.max_bytes:
            text = f"the body is larger than {limits.max_bytes} bytes"
            await respond(send, 413, envelope("payload_too_large", text))
            return
        await app(scope, bounded(receive, limits), send)

    return behind_limits


def names_room(scope: Scope) -> bool:
    """Whether the path, as it was sent, names a room."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    return parse_path(raw_path.decode("latin-1")) is not None


def bounded(receive: Receive, limits: BodyLimits) -> Receive:
    """Return `receive` that says the client has left when the body is too large or late."""
    left = limits.max_bytes
    deadline = asyncio.get_running_loop().time() + limits.timeout
    whole = False

    async def receiving() -> Message:
        nonlocal left, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        left -= len(message.get("body", b""))
        whole = not message.get("more_body", False)
        return message if left >= 0 else {"type": "http.disconnect"}

    return receiving


def rooms_router(statuses: Callable[[], Iterable[RoomStatus]], token: Secret) -> APIRouter:
    """`GET /v1/rooms`.

    Args:
        statuses: the rooms, now.
        token: the bearer that may see them.
    """
    router = APIRouter(tags=["Operation"])

    async def operator(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        given = b"" if credentials is None else credentials.credentials.encode()
        if not hmac.compare_digest(given, token.value.encode()):
            raise Unauthorized("the bearer is missing or not the rooms' admin token")

    @router.get(
        "/v1/rooms",
        summary="Rooms in memory or with connections (extension)",
        operation_id="listRooms",
        response_class=Response,
        dependencies=[Depends(operator)],
        responses={200: {"content": {"application/json": {"schema": _ROOMS}}, "description": "The rooms"}},
    )
    async def list_rooms(
        limit: Annotated[int, Query(ge=1, le=LIST_MAX, description="Rooms listed at most")] = LIST_DEFAULT,
    ) -> Response:
        every = iter(statuses())
        listed = [_status(status) for status in islice(every, limit)]
        body = {"rooms": listed, "total": len(listed) + sum(1 for _ in every)}
        return Response(orjson.dumps(body), media_type="application/json", headers={"cache-control": "no-store"})

    return router


def _status(status: RoomStatus) -> dict[str, object]:
    return {
        "party": status.party,
        "room": status.name,
        "id": status.id,
        "connections": status.connections,
        "state": "awake" if status.awake else "hibernating",
        "awakeFor": dict(status.reasons),
    }


_ROOMS = {
    "type": "object",
    "required": ["rooms", "total"],
    "properties": {
        "total": {"type": "integer", "description": "All of them, also those beyond `limit`"},
        "rooms": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["party", "room", "id", "connections", "state", "awakeFor"],
                "properties": {
                    "party": {"type": "string"},
                    "room": {"type": ["string", "null"], "description": "As the path has it"},
                    "id": {"type": "string"},
                    "connections": {"type": "integer"},
                    "state": {"enum": ["awake", "hibernating"]},
                    "awakeFor": {
                        "type": "object",
                        "additionalProperties": {"type": "integer"},
                        "description": "What keeps it in memory, by kind; empty: it is about to leave",
                    },
                },
            },
        },
    },
}
