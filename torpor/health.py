"""`/healthz` and `/metrics`: what an operator's machinery reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import orjson
from fastapi import APIRouter, Response

import torpor
from torpor.metrics import CONTENT_TYPE, Family, render


class Health:
    """Where the server is in its life: serving, draining, stopping."""

    def __init__(self) -> None:
        self.draining = False
        self.streams: set[asyncio.Task[None]] = set()
        """Requests whose answer ends only when somebody says so: server-sent events."""

    def drain(self) -> None:
        """`/healthz` says 503 from now on; everything else goes on."""
        self.draining = True

    def stop(self) -> None:
        """End the answers that have no end; no new connection is accepted any more."""
        self.draining = True
        for stream in self.streams:
            stream.cancel()


def health_router(health: Health, collect: Callable[[], Iterable[Family]]) -> APIRouter:
    """Both routes. Neither is authenticated: keep `/metrics` from the public at the proxy (docs/operations.md)."""
    router = APIRouter(tags=["Operation"])

    @router.get(
        "/healthz",
        summary="Whether to send work here",
        operation_id="getHealth",
        response_class=Response,
        responses={200: _HEALTH | {"description": "Serving"}, 503: _HEALTH | {"description": "Draining"}},
    )
    async def healthz() -> Response:
        body = {"status": "draining" if health.draining else "ok", "version": torpor.__version__}
        return Response(orjson.dumps(body), 503 if health.draining else 200, media_type="application/json")

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        operation_id="getMetrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Format 0.0.4"}},
    )
    async def metrics() -> Response:
        return Response(render(collect()), media_type=CONTENT_TYPE)

    return router


_HEALTH = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["status", "version"],
                "properties": {"status": {"enum": ["ok", "draining"]}, "version": {"type": "string"}},
            }
        }
    }
}
