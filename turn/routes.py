"""HTTP: hand out and revoke TURN credentials, `/v1/turn/keys/{keyId}/credentials/...`, and see what they are used for.

Every answer is a JSON object, errors too (`errorCode`, `errorDescription`), but for the empty 204. The body is parsed
as JSON under any content type, and may be absent. Nothing is stored: see `turn.credentials.CredentialIssuer`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from turn.errors import ApiError, DecodingError, InvalidParams, PayloadTooLarge, Unauthorized, UnknownKey
from turn.service import AllocationStatus, IceServer, TurnService

BODY_BYTES_MAX = 16 * 1024

KeyId = Annotated[str, Path(alias="keyId", max_length=64)]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, description="The key's token"))
]


@dataclass(frozen=True, slots=True)
class CredentialRequest:
    """The body of both generate calls."""

    ttl: float | None
    custom_identifier: str | None


class _Route(APIRoute):
    """Turns an `ApiError` into the API's envelope."""

    def get_route_handler(self) -> Any:  # the type of a handler is FastAPI's own
        """The handler of this route, wrapped."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ApiError as error:
                body = {"errorCode": error.code, "errorDescription": error.description}
                return _json(body, error.status)

        return answer


def credentials_router(service: TurnService) -> APIRouter:
    """The routes; they need a started service."""
    router = APIRouter(prefix="/v1/turn/keys/{keyId}", tags=["TURN"], route_class=_Route)

    async def authorized(key_id: KeyId, credentials: Bearer) -> str:
        token = service.key_token(key_id)
        if token is None:
            raise UnknownKey("no such TURN key")
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
            raise Unauthorized("the bearer is missing or not this key's token")
        return key_id

    @router.post(
        "/credentials/generate-ice-servers",
        status_code=201,
        summary="A credential, as `iceServers` of an RTCPeerConnection",
        operation_id="generateIceServers",
        responses=_responses(400, 401, 404, 406, 413),
        openapi_extra=_BODY,
    )
    async def generate_ice_servers(request: Request, key_id: str = Depends(authorized)) -> Response:
        asked = await _read(request)
        servers = service.ice_servers(asked.ttl, key_id=key_id, custom_identifier=asked.custom_identifier)
        return _json({"iceServers": [_entry(server) for server in servers]}, 201)

    @router.post(
        "/credentials/generate",
        status_code=201,
        summary="A credential, STUN and TURN urls in one entry",
        operation_id="generateTurnCredential",
        responses=_responses(400, 401, 404, 406, 413),
        openapi_extra=_BODY,
    )
    async def generate(request: Request, key_id: str = Depends(authorized)) -> Response:
        asked = await _read(request)
        servers = service.ice_servers(asked.ttl, key_id=key_id, custom_identifier=asked.custom_identifier)
        merged = IceServer(
            tuple(url for server in servers for url in server.urls), servers[-1].username, servers[-1].credential
        )
        return _json({"iceServers": _entry(merged)}, 201)

    @router.post(
        "/credentials/{username}/revoke",
        status_code=204,
        response_class=Response,
        summary="End a credential and its allocations",
        operation_id="revokeTurnCredential",
        responses=_responses(401, 404),
    )
    async def revoke(username: Annotated[str, Path(max_length=512)], key_id: str = Depends(authorized)) -> Response:
        service.revoke(key_id, username)
        return Response(status_code=204)

    @router.get(
        "/allocations",
        summary="Live allocations of this key's credentials (extension)",
        operation_id="getTurnAllocations",
        response_class=Response,
        responses=_responses(401, 404) | {200: {"description": "Those of now", "content": _ALLOCATIONS}},
    )
    async def allocations(key_id: str = Depends(authorized)) -> Response:
        return _json({"allocations": [_allocation(status) for status in service.allocations(key_id)]}, 200)

    return router


async def _read(request: Request) -> CredentialRequest:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise PayloadTooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes")
    if not body.strip():
        return CredentialRequest(None, None)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise DecodingError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise DecodingError("the body is not a JSON object")
    ttl, identifier = fields.get("ttl"), fields.get("customIdentifier")
    if isinstance(ttl, bool) or not (ttl is None or isinstance(ttl, int | float)):
        raise DecodingError("ttl: a number of seconds")
    if not (identifier is None or isinstance(identifier, str)):
        raise DecodingError("customIdentifier: a string")
    if ttl is not None and not ttl > 0:
        raise InvalidParams("ttl must be above 0")
    return CredentialRequest(ttl, identifier)


def _entry(server: IceServer) -> dict[str, Any]:
    entry: dict[str, Any] = {"urls": list(server.urls)}
    if server.username is not None:
        entry |= {"username": server.username, "credential": server.credential}
    return entry


def _allocation(status: AllocationStatus) -> dict[str, Any]:
    return {
        "username": status.username,
        "customIdentifier": status.identifier,
        "transport": status.transport,
        "client": str(status.client),
        "relayed": [str(address) for address in status.relayed],
        "expiresIn": round(status.expires_in),
        "permissions": status.permissions,
        "channels": status.channels,
        "bytesFromClient": status.usage.bytes_from_client,
        "packetsFromClient": status.usage.packets_from_client,
        "bytesToClient": status.usage.bytes_to_client,
        "packetsToClient": status.usage.packets_to_client,
    }


def _json(body: Mapping[str, Any], status: int) -> Response:
    return Response(json.dumps(body), status, media_type="application/json", headers={"Cache-Control": "no-store"})


_DESCRIPTIONS = {
    400: "`decoding_error`: not JSON, or a field of the wrong type",
    401: "`unauthorized`: the bearer is missing or wrong",
    404: "`not_found`: no such key, or no such credential under it",
    406: "`invalid_params`: `ttl` or `customIdentifier` outside its limits",
    413: "`payload_too_large`",
}

_BODY = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "ttl": {"type": "number", "description": "Seconds; 86400 when absent"},
                        "customIdentifier": {"type": "string", "maxLength": 128},
                    },
                }
            }
        },
    }
}

_COUNTS = (
    "expiresIn", "permissions", "channels",
    "bytesFromClient", "packetsFromClient", "bytesToClient", "packetsToClient",
)  # fmt: skip
_ALLOCATIONS = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["allocations"],
            "properties": {
                "allocations": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "username": {"type": "string"},
                            "customIdentifier": {"type": "string", "description": "Empty when it was given none"},
                            "transport": {"enum": ["udp", "tcp", "tls"]},
                            "client": {"type": "string", "description": "address:port"},
                            "relayed": {"type": "array", "items": {"type": "string"}},
                            **{name: {"type": "integer"} for name in _COUNTS},
                        },
                    },
                }
            },
        }
    }
}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": _DESCRIPTIONS[status]} for status in statuses}
