"""Presence: where everybody's cursor is. Nothing is stored, and the room hibernates between movements.

    torpor serve examples/rooms/cursors.py
    new WebSocket("ws://127.0.0.1:8787/parties/main/board").send('{"x": 0.5, "y": 0.25}')

A newcomer gets `{"type": "here", "cursors": {id: position}}`, everybody else then `moved` and `left`. Positions are
the state of connections, so they survive hibernation and end with them.
"""

import json

from objects.ports import Frame, UpgradeRequest
from partykit_compat import Connection, Server


class Cursors(Server):
    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        cursors = {one.id: one.state for one in self.get_connections() if one.state is not None}
        connection.send(json.dumps({"type": "here", "you": connection.id, "cursors": cursors}))

    async def on_message(self, connection: Connection, message: Frame) -> None:
        position = parse_position(message)
        if position is not None:
            connection.set_state(position)
            moved = {"type": "moved", "id": connection.id, **position}
            self.broadcast(json.dumps(moved), without=[connection.id])

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        self.broadcast(json.dumps({"type": "left", "id": connection.id}))

    async def on_error(self, connection: Connection, error: str) -> None:
        self.broadcast(json.dumps({"type": "left", "id": connection.id}))


def parse_position(message: Frame) -> dict[str, float] | None:
    """The position in a message, both coordinates from 0 to 1; None if there is none."""
    try:
        value = json.loads(message)
        position = {axis: float(value[axis]) for axis in ("x", "y")}
    except (ValueError, TypeError, KeyError):
        return None
    return position if all(0 <= coordinate <= 1 for coordinate in position.values()) else None
