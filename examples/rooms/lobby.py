"""A room that others call: every table tells the lobby how many sit at it, and the lobby shows all tables.

    torpor serve examples/rooms/lobby.py        Tables are `main`, the lobby is `lobby`
    new WebSocket("ws://127.0.0.1:8787/parties/main/round-one")
    new WebSocket("ws://127.0.0.1:8787/parties/lobby/all")

Calls between rooms are calls of methods: `seat(...)` of a stub runs `Lobby.seat`. What it wrote is then on disk.
"""

import json

from objects.ports import UpgradeRequest
from partykit_compat import Connection, Server

EVERYBODY = "all"
"""The lobby's name: there is one."""


class Table(Server):
    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        await self.tell_lobby()

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        await self.tell_lobby()

    async def tell_lobby(self) -> None:
        await self.parties["lobby"].get(EVERYBODY).seat(self.name, len(list(self.get_connections())))


class Lobby(Server):
    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        connection.send(json.dumps(await self.tables()))

    async def seat(self, table: str, players: int) -> None:
        """Called by a table whose players have changed."""
        if players:
            await self.ctx.storage.put(f"table:{table}", players)
        else:
            await self.ctx.storage.delete(f"table:{table}")
        self.broadcast(json.dumps(await self.tables()))

    async def tables(self) -> dict[str, int]:
        """Players by table."""
        found = await self.ctx.storage.list(prefix="table:")
        return {key.removeprefix("table:"): players for key, players in found.items()}
