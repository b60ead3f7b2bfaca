"""Room: a room as PartyKit's classes know it, for code that comes from there; the same things as on `Server` itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from objects.ports import Frame
from objects.storage import Storage
from partykit_compat.connection import Connection

if TYPE_CHECKING:
    from partykit_compat.parties import PartyNamespace
    from partykit_compat.server import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoomContext:
    """What is around a room."""

    parties: Mapping[str, PartyNamespace]


class Room:
    """One room: `server.room`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def id(self) -> str:
        """The room, as the path has it: `Server.name`."""
        return self._server.name

    @property
    def name(self) -> str:
        """Its party."""
        return self._server.ctx.id.namespace

    @property
    def internal_id(self) -> str:
        """The object's id: 64 hex digits."""
        return str(self._server.ctx.id)

    @property
    def env(self) -> Any:
        """What the server gives to all rooms."""
        return self._server.env

    @property
    def storage(self) -> Storage:
        """Its storage."""
        return self._server.ctx.storage

    @property
    def context(self) -> RoomContext:
        """Other rooms: `room.context.parties["lobby"].get("all")`."""
        return RoomContext(self._server.parties)

    def broadcast(self, message: Frame, without: Iterable[str] = ()) -> None:
        """See `Server.broadcast`."""
        self._server.broadcast(message, without)

    def get_connection(self, connection_id: str) -> Connection | None:
        """See `Server.get_connection`."""
        return self._server.get_connection(connection_id)

    def get_connections(self, tag: str | None = None) -> Iterator[Connection]:
        """See `Server.get_connections`."""
        return self._server.get_connections(tag)

    def block_concurrency_while(self, run: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Let no other event begin until `run` has ended; see `ObjectState.block_concurrency_while`."""
        return self._server.ctx.block_concurrency_while(run)
