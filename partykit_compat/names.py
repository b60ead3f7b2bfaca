"""How a class becomes a path segment, and which requests name a room."""

from __future__ import annotations

import re
from typing import NamedTuple

_PARTY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # also the name of a folder

MAX_ROOM_BYTES = 1024
"""Bytes of a room's name as the path has it: an object does not know a longer name of itself."""


def party_name(name: str) -> str:
    """Return the URL form of a class or binding name: `ChatRoom2` is `chat-room2`, `MY_ROOM` is `my-room`.

    All capitals are lowered, `_` becomes `-`. Otherwise each capital gets a `-` before it and is lowered, a leading `-`
    goes, `_` becomes `-`, one trailing `-` goes.
    """
    if name == name.upper() and name != name.lower():
        return name.lower().replace("_", "-")
    spread = re.sub(r"[A-Z]", lambda capital: "-" + capital.group().lower(), name)
    return spread.removeprefix("-").replace("_", "-").removesuffix("-")


def is_party_name(name: str) -> bool:
    """Return whether a party may be called so in a URL."""
    return _PARTY.fullmatch(name) is not None


class RoomAddress(NamedTuple):
    """Party and room as the path names them, still percent-encoded."""

    party: str
    room: str


def parse_path(raw_path: str, prefix: str = "parties") -> RoomAddress | None:
    """Return the room that `/parties/<party>/<room>[/rest]` or `/party/<room>[/rest]` names, or None.

    The path is taken as it was sent, so a room may be called `a%2Fb`. Empty leading segments are ignored, as clients
    with a trailing `/` in their host write them.

    Args:
        prefix: one segment or several, such as `api/v1`.
    """
    segments = raw_path.lstrip("/").split("/")
    before = prefix.strip("/").split("/")
    if segments[: len(before)] == before:
        party, room = [*segments[len(before) : len(before) + 2], "", ""][:2]
        return RoomAddress(party, room) if party and room else None
    if segments[0] == "party" and len(segments) > 1 and segments[1]:
        return RoomAddress("main", segments[1])
    return None
