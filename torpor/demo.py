"""Who is in a room of the demo page and where their tracks are: a room like any other. Served in development only.

The media API knows sessions and tracks but no rooms: discovery is the application's job. This is the least that lets
the page at `/` show a room, and a whole application of rooms in little: what a member tells lies with its connection,
ends with it, and outlives hibernation. Nothing is stored.

    WebSocket /parties/torpor-demo/<room>?name=Ada&_pk=<a secret of the page>
        from the room   {"you": memberId}, once; {"members": [...]}, first at once and then on change
        from the page   its presence, whenever that changes; "ping", answered with "pong" without waking the room
        closed with     4400 for what is no member, 4503 when the room is full; the reason is a sentence for the person
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from objects.ports import AutoResponse, Frame, UpgradeRequest
from objects.state import ObjectState
from partykit_compat import Connection, Server

PARTY = "torpor-demo"
MEMBERS_MAX = 24
TRACKS_MAX = 8
NAME_MAX = 40


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class TrackAddress(_Wire):
    """A published track: what others pull, and what it shows."""

    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]
    track_name: Annotated[str, Field(min_length=1, max_length=128)]
    kind: Literal["audio", "video"]
    source: Literal["camera", "microphone", "screen"]


class Presence(_Wire):
    """What a member tells the others."""

    tracks: Annotated[list[TrackAddress], Field(max_length=TRACKS_MAX)] = []
    muted: bool = False
    camera_off: bool = False


def member_id(connection_id: str) -> str:
    """Return a member's name for the others: who knows it cannot take the member's place, as with the id itself."""
    return hashlib.sha256(connection_id.encode()).hexdigest()[:16]


class DemoRoom(Server):
    """One room of the page."""

    replace_duplicates = True  # a page that comes back is there before its old connection is known to be dead

    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        ctx.set_web_socket_auto_response(AutoResponse("ping", "pong"))

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        """Let a member in whose name is one."""
        name = parse_qs(urlsplit(request.url).query).get("name", [""])[0].strip()
        if not 1 <= len(name) <= NAME_MAX:
            connection.close(4400, f"A name has 1 to {NAME_MAX} characters.")
        elif len(list(self.members())) >= MEMBERS_MAX:
            connection.close(4503, f"The room is full: {MEMBERS_MAX} people are in it.")
        else:
            connection.set_state({"name": name, **Presence().model_dump(by_alias=True)})
            connection.send(json.dumps({"you": member_id(connection.id)}))
            self.tell()

    async def on_message(self, connection: Connection, message: Frame) -> None:
        """Take a member's presence."""
        before = connection.state
        if before is None:
            return
        try:
            presence = Presence.model_validate_json(message)
        except ValidationError:
            connection.close(4400, "That is no presence.")
            return
        if connection.set_state({"name": before["name"], **presence.model_dump(by_alias=True)}) != before:
            self.tell()

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        """A member has left."""
        if connection.state is not None:
            self.tell()

    async def on_error(self, connection: Connection, error: str) -> None:
        """A member has left."""
        self.tell()

    def members(self) -> Iterator[dict[str, Any]]:
        """Iterate over the members in order of arrival."""
        for connection in self.get_connections():
            if (state := connection.state) is not None:
                yield {"memberId": member_id(connection.id), **state}

    def tell(self) -> None:
        """Tell everybody the list; whole, so that a page needs the latest only."""
        self.broadcast(json.dumps({"members": list(self.members())}))
