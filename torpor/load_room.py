"""The load room: what `torpor load` serves, and load tests connect to.

Its behaviour is a contract that the same room on other servers keeps too: see `loadtest.peers`.
"""

from __future__ import annotations

from typing import Any

from objects.http import HttpRequest, HttpResponse
from objects.ports import AutoResponse, Frame
from objects.state import ObjectState
from partykit_compat import Connection, Server


class LoadRoom(Server):
    """Broadcasts, echoes, writes, answers `ping` without waking, and counts its connections by HTTP."""

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        ctx.set_web_socket_auto_response(AutoResponse("ping", "pong"))

    async def on_message(self, connection: Connection, message: Frame) -> None:
        """Do what the first character asks for; nothing for one that asks for nothing."""
        if not isinstance(message, str):
            return
        if message.startswith("b"):
            self.broadcast(message, without=[connection.id])
        elif message.startswith("w"):
            self.ctx.storage.kv.put("last", message)
            connection.send(message)  # leaves when that is on disk
        elif message.startswith("e"):
            connection.send(message)

    async def on_request(self, request: HttpRequest) -> HttpResponse:
        """How many are connected."""
        return HttpResponse.of({"connections": self.connection_count()})
