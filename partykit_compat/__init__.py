"""The party-style server API on objects and hibernation: rooms by URL, connections with an id, state and tags.

    class Chat(Server):
        async def on_connect(self, connection, request):
            self.broadcast(f"{connection.id} is here", without=[connection.id])

        async def on_message(self, connection, message):
            self.broadcast(message)

    app = PartyRoutes(host, {"main": Chat}, app=rest)      # /parties/main/<room>, /party/<room>

A room is one object of its party's namespace, named by the path segment as it was sent, never decoded. A connection is
one hibernatable WebSocket: id and state lie in its attachment, the id is also its first tag.

Where to look: hooks, order, errors, `server.py`; id, state, `connection.py`; URLs, hooks before the room, CORS,
`routes.py`; class names as URLs, `names.py`; tests of your own rooms, `testing.py`. Not here: storage
and alarms (`objects`), sockets (`hibernation`).
"""

from partykit_compat.connection import Connection
from partykit_compat.names import party_name
from partykit_compat.routes import PartyRoutes
from partykit_compat.server import Lobby, Server

__all__ = ["Connection", "Lobby", "PartyRoutes", "Server", "party_name"]
