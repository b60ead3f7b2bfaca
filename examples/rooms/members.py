"""Only members get in: a token signed by your back end, checked before the room is even woken.

    MEMBERS_SECRET=... torpor serve examples/rooms/members.py
    new WebSocket(`ws://127.0.0.1:8787/parties/main/board?token=${token}`)

A token is `name.expiry.signature`: `sign` shows how a back end makes one. It counts for one room. The name becomes the
connection's id, whatever the client asked for with `_pk`, so the room may believe it.
"""

import hashlib
import hmac
import time
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from objects.http import HttpRequest, HttpResponse
from objects.ports import Frame
from partykit_compat import Connection, Lobby, Server


def sign(name: str, room: str, expiry: int, secret: str) -> str:
    """A token for `name` (letters and digits) in `room` until `expiry`, seconds since 1970."""
    signature = hmac.new(secret.encode(), f"{name}\n{room}\n{expiry}".encode(), hashlib.sha256).hexdigest()
    return f"{name}.{expiry}.{signature}"


def member(token: str, room: str, secret: str) -> str | None:
    """Whose a token is; None if it is not good for this room now."""
    name, _, rest = token.partition(".")
    expiry, _, _ = rest.partition(".")
    if not name.isalnum() or not expiry.isdecimal() or int(expiry) < time.time():
        return None
    return name if hmac.compare_digest(token.encode(), sign(name, room, int(expiry), secret).encode()) else None


class Members(Server):
    @staticmethod
    async def on_before_connect(request: HttpRequest, lobby: Lobby) -> HttpRequest | HttpResponse | None:
        parts = urlsplit(request.url)
        token = parse_qs(parts.query).get("token", [""])[0]
        name = member(token, lobby.name, lobby.env["MEMBERS_SECRET"])
        if name is None:
            return HttpResponse.of("a token for this room is needed", 401)
        url = urlunsplit(parts._replace(query=urlencode({"_pk": name})))  # the room never sees the token
        return HttpRequest(url, headers=request.headers, client=request.client)

    async def on_message(self, connection: Connection, message: Frame) -> None:
        self.broadcast(f"{connection.id}: {message if isinstance(message, str) else len(message)}")
