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
`routes.py`; rooms that call rooms, `parties.py`; schedules, `crons.py`; class names as URLs, `names.py`; PartyKit's
`room`, `room.py`; tests of your own rooms, `testing.py`. Not here: storage and alarms (`objects`), sockets
(`hibernation`). The guide for users is docs/rooms.md.
"""

from partykit_compat.connection import Connection
from partykit_compat.crons import Cron
from partykit_compat.names import party_name
from partykit_compat.parties import Lobby, PartyNamespace, PartyStub, get_server_by_name
from partykit_compat.room import Room
from partykit_compat.routes import PartyRoutes, route_party_request
from partykit_compat.server import Close, Server

__all__ = [
    "Close",
    "Connection",
    "Cron",
    "Lobby",
    "PartyNamespace",
    "PartyRoutes",
    "PartyStub",
    "Room",
    "Server",
    "get_server_by_name",
    "party_name",
    "route_party_request",
]
