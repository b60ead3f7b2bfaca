"""Who is in a room of the demo page and where their tracks are. Served in development only.

The media API knows sessions and tracks but no rooms: discovery is the application's job. This is the least that lets
the page at `/` show a room: join, heartbeat with what one publishes, leave, and the member list as server-sent events.
Everything is in memory, bounded, and gone on restart; the page then joins again by itself.

    POST   /demo/rooms/{room}/members              {name, ...presence} -> 201 {memberId, token}
    PUT    /demo/rooms/{room}/members/{memberId}   presence -> 204; the heartbeat; header `member-token`
    DELETE /demo/rooms/{room}/members/{memberId}   -> 204; header `member-token`
    GET    /demo/rooms/{room}/events               `event: members`, data: the list, first at once and then on change
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Path
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

ROOMS_MAX = 100
MEMBERS_MAX = 24
LISTENERS_MAX = 2 * MEMBERS_MAX
TRACKS_MAX = 8
HEARTBEAT_TIMEOUT = 15.0
LISTENER_TICK = 5.0
"""A listener looks for silent members this often and, when nothing changed, sends a comment."""


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


class JoinRequest(Presence):
    """The first presence, with a name for the tile."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"\S")]


class PublicMember(Presence):
    """One entry of the list as everybody in the room sees it."""

    member_id: str
    name: str


MEMBER_LIST = TypeAdapter(list[PublicMember])


@dataclass(slots=True)
class Member:
    """A person in a room. `token` proves later requests are theirs; only they know it."""

    public: PublicMember
    token: str
    seen_at: float


@dataclass(slots=True)
class DemoRoom:
    """Members by id, in order of arrival. `changed` is replaced each time it was set."""

    members: dict[str, Member] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: int = 0

    def announce(self) -> None:
        """Wake every listener."""
        self.changed.set()
        self.changed = asyncio.Event()

    def forget_silent(self, now: float) -> None:
        """Remove members without a heartbeat for 15 s."""
        silent = [key for key, member in self.members.items() if now - member.seen_at > HEARTBEAT_TIMEOUT]
        for key in silent:
            del self.members[key]
        if silent:
            self.announce()

    def to_json(self) -> str:
        """The public list."""
        return MEMBER_LIST.dump_json([member.public for member in self.members.values()], by_alias=True).decode()


class DemoRooms:
    """All rooms. A room exists while it has a member or a listener.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rooms: dict[str, DemoRoom] = {}
        self._clock = clock

    def join(self, room_name: str, request: JoinRequest) -> Member:
        """Add a member. Raises `HTTPException` (429) when the house or the room is full."""
        room = self._open(room_name)
        room.forget_silent(self._clock())
        if len(room.members) >= MEMBERS_MAX:
            raise HTTPException(429, f"The room is full: {MEMBERS_MAX} people are in it.")
        public = PublicMember(member_id=secrets.token_hex(8), **request.model_dump())
        member = Member(public, secrets.token_urlsafe(16), self._clock())
        room.members[public.member_id] = member
        room.announce()
        return member

    def update(self, room_name: str, member_id: str, token: str, presence: Presence) -> None:
        """Take a heartbeat. Raises `HTTPException` (404) for anyone but a present member."""
        room, member = self._find(room_name, member_id, token)
        member.seen_at = self._clock()
        public = member.public.model_copy(update={name: getattr(presence, name) for name in Presence.model_fields})
        if public != member.public:
            member.public = public
            room.announce()

    def leave(self, room_name: str, member_id: str, token: str) -> None:
        """Remove a member. Raises `HTTPException` (404) for anyone but a present member."""
        room, _ = self._find(room_name, member_id, token)
        del room.members[member_id]
        room.announce()
        self._close_if_empty(room_name)

    def check_listener(self, room_name: str) -> None:
        """Raise `HTTPException` (429) when `listen` would exceed a bound."""
        if self._open(room_name).listeners >= LISTENERS_MAX:
            raise HTTPException(429, "Too many pages are watching this room.")

    async def listen(self, room_name: str) -> AsyncIterator[str]:
        """Yield server-sent events until the caller stops: the whole list, so a slow reader skips, never queues."""
        room = self._open(room_name)
        room.listeners += 1
        try:
            sent = None
            while True:
                room.forget_silent(self._clock())
                changed = room.changed
                if (members := room.to_json()) != sent:
                    sent = members
                    yield f"event: members\ndata: {members}\n\n"
                else:
                    yield ": still here\n\n"
                try:
                    async with asyncio.timeout(LISTENER_TICK):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            room.listeners -= 1
            self._close_if_empty(room_name)

    def _open(self, room_name: str) -> DemoRoom:
        if room_name not in self.rooms:
            if len(self.rooms) >= ROOMS_MAX:
                self._forget_abandoned()
            if len(self.rooms) >= ROOMS_MAX:
                raise HTTPException(429, f"All {ROOMS_MAX} demo rooms are taken.")
            self.rooms[room_name] = DemoRoom()
        return self.rooms[room_name]

    def _forget_abandoned(self) -> None:
        for name, room in list(self.rooms.items()):
            room.forget_silent(self._clock())
            self._close_if_empty(name)

    def _find(self, room_name: str, member_id: str, token: str) -> tuple[DemoRoom, Member]:
        room = self.rooms.get(room_name)
        member = room.members.get(member_id) if room else None
        if room is None or member is None or not hmac.compare_digest(member.token.encode(), token.encode()):
            raise HTTPException(404, "You are not in this room.")
        return room, member

    def _close_if_empty(self, room_name: str) -> None:
        room = self.rooms.get(room_name)
        if room is not None and not room.members and not room.listeners:
            del self.rooms[room_name]


async def _only_own_pages(sec_fetch_site: Annotated[str, Header()] = "none") -> None:
    """Refuse requests that a page of another origin makes a visitor's browser send. Raises `HTTPException` (403)."""
    if sec_fetch_site not in ("same-origin", "none"):
        raise HTTPException(403, "Only the page of this server may use its rooms.")


RoomName = Annotated[str, Path(min_length=1, max_length=64)]
MemberToken = Annotated[str, Header(max_length=64)]


def demo_router(rooms: DemoRooms | None = None) -> APIRouter:
    """Build the routes around `rooms`; without it, around an empty house of their own."""
    house = rooms or DemoRooms()
    router = APIRouter(prefix="/demo/rooms/{room}", include_in_schema=False, dependencies=[Depends(_only_own_pages)])

    @router.post("/members", status_code=201)
    async def join(room: RoomName, request: JoinRequest) -> dict[str, str]:
        member = house.join(room, request)
        return {"memberId": member.public.member_id, "token": member.token}

    @router.put("/members/{member_id}", status_code=204)
    async def update(room: RoomName, member_id: str, member_token: MemberToken, presence: Presence) -> None:
        house.update(room, member_id, member_token, presence)

    @router.delete("/members/{member_id}", status_code=204)
    async def leave(room: RoomName, member_id: str, member_token: MemberToken) -> None:
        house.leave(room, member_id, member_token)

    @router.get("/events")
    async def events(room: RoomName) -> StreamingResponse:
        house.check_listener(room)
        return StreamingResponse(
            house.listen(room), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    return router
