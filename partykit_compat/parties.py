"""Parties as rooms and hooks see each other: names of parties to rooms, rooms to stubs, a stub to methods and `fetch`.

lobby = self.parties["lobby"].get("all")
await lobby.seat(self.name, 3)                        # the method `seat` of that room's class, after its `on_start`
response = await lobby.fetch("/tables", method="GET")  # its `on_request`; the hooks before the room are not run
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from objects import codec
from objects.http import HttpRequest, HttpResponse
from objects.instance import Instance
from objects.namespace import ObjectNamespace, ObjectStub
from objects.rpc import MAX_CALL_BYTES, RpcPromise, TravelsAsItself, Work


class Starts(Protocol):
    """What a stub needs of a room: see `Server`."""

    async def _ensure_started(self, props: Any = None) -> None: ...


class PartyStub(TravelsAsItself):
    """Another room; it wakes with the first call. Its attributes are the public methods of the room's class.

    Attributes:
        party: its party.
        name: the room, as the path has it.
    """

    def __init__(self, party: str, name: str, stub: ObjectStub) -> None:
        self.party = party
        self.name = name
        self._stub = stub

    def __repr__(self) -> str:
        return f"<PartyStub {self.party}/{self.name}>"

    def __getattr__(self, name: str) -> RpcPromise:
        if name.startswith("_"):
            raise AttributeError(name)
        return RpcPromise(self, (name,))

    async def fetch(
        self,
        path: str = "",
        *,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> HttpResponse:
        """Send an HTTP request to the room's `on_request`.

        Raises:
            ValueError: a path that does not start with `/`.
            ObjectError: the room was overloaded or reset.
        """
        if path and not path.startswith("/"):
            raise ValueError("Path must start with /")
        url = f"http://room.internal/parties/{self.party}/{self.name}{path}"
        return await self._stub.fetch(HttpRequest(url, method, tuple(headers), body))

    def submit(self, work: Work, reply: asyncio.Future[Any], size: int, *, pipelined: bool = False) -> None:
        """Run a call on the room, after its `on_start`; see `objects.rpc.Receiver`."""

        async def started(instance: Instance | None, room: Starts) -> Any:
            await room._ensure_started()
            return await work(instance, room)

        self._stub.submit(started, reply, size, pipelined=pipelined)


class PartyNamespace:
    """The rooms of one party, for other rooms and for hooks."""

    def __init__(self, party: str, namespace: ObjectNamespace) -> None:
        self.party = party
        self._namespace = namespace

    def get(self, name: str) -> PartyStub:
        """Return a stub of a room, without doing anything."""
        return PartyStub(self.party, name, self._namespace.get_by_name(name))

    async def start(self, name: str, props: Any = None) -> PartyStub:
        """See `get_server_by_name`."""
        stub = self._namespace.get_by_name(name)
        data = codec.encode(props, limit=MAX_CALL_BYTES)
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def start(instance: Instance | None, room: Starts) -> None:
            await room._ensure_started(codec.decode(data))

        stub.submit(start, reply, len(data))
        await reply
        return PartyStub(self.party, name, stub)


async def get_server_by_name(party: PartyNamespace, name: str, *, props: Any = None) -> PartyStub:
    """Wake a room, wait for its `on_start`, and return a stub of it.

    Args:
        party: one of `self.parties`, `lobby.parties` or `PartyRoutes.parties`.
        name: the room, as the path has it.
        props: what its `on_start` finds in `self.props`, if this is what starts it: a copy. Not stored.

    Raises:
        NotSerializable: props of a type that `objects.codec` does not carry.
        Exception: what `on_start` raised; the next event tries it again.
        ObjectError: the room was overloaded or reset.
    """
    return await party.start(name, props)


@dataclass(frozen=True, slots=True)
class Lobby:
    """Where a request is going, for the hooks that run without a room."""

    party: str
    name: str | None
    """The room, as the path has it; None for `on_fetch` and `on_cron`."""
    parties: Mapping[str, PartyNamespace]
    env: Any = None
    """As the rooms' `self.env`."""


@dataclass(frozen=True, slots=True)
class PartyContext:
    """What `PartyRoutes` gives to the constructor of every room."""

    env: Any = None
    parties: Mapping[str, PartyNamespace] = field(default_factory=dict)
