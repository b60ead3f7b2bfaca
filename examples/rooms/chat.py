"""A chat room that remembers its last messages. A client says who it is with `?name=`.

    torpor serve examples/rooms/chat.py
    new WebSocket("ws://127.0.0.1:8787/parties/main/lobby?name=Ada")

The room hibernates: with nobody talking it is out of memory, whoever is connected. Names travel with the connections.
"""

import json
from urllib.parse import parse_qs, urlsplit

from objects.ports import Frame, UpgradeRequest
from partykit_compat import Connection, Server

KEPT = 50
"""Messages a newcomer is shown."""
NAME_LENGTH = 32
TEXT_LENGTH = 2_000


class Chat(Server):
    async def on_start(self) -> None:
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY, name TEXT, text TEXT)")

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        names = parse_qs(urlsplit(request.url).query).get("name", ["somebody"])
        connection.set_state(names[0][:NAME_LENGTH])
        rows = self.ctx.storage.sql.exec("SELECT name, text FROM said ORDER BY id DESC LIMIT ?", KEPT).to_array()
        connection.send(json.dumps({"type": "history", "said": rows[::-1]}))

    async def on_message(self, connection: Connection, message: Frame) -> None:
        if not isinstance(message, str) or not 0 < len(message) <= TEXT_LENGTH:
            connection.send(json.dumps({"type": "refused", "reason": f"1 to {TEXT_LENGTH} characters of text"}))
            return
        sql = self.ctx.storage.sql
        sql.exec("INSERT INTO said (name, text) VALUES (?, ?)", connection.state, message)
        sql.exec("DELETE FROM said WHERE id <= (SELECT max(id) FROM said) - ?", KEPT)
        self.broadcast(json.dumps({"type": "said", "name": connection.state, "text": message}))
