"""Peer connections of TCP allocations: which exist, whose they are, what each waits for (RFC 6062).

    Connect ────────────▶ CONNECTING ──connected──▶ WAITING ──ConnectionBind──▶ JOINED ──either side ends──▶ gone
    a permitted peer ───────────────────────────────▲  │
                              │ refused, 30 s: 447     │ 30 s                       the allocation ends: all gone

Bytes never come here: once `JOINED`, the sockets' side carries them both ways (`ports.PeerSockets`).
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from turn.allocation import FiveTuple
from turn.auth import Authenticated
from turn.errors import StunRefusal
from wire.stun import Message, TransportAddress

PEER_TIMEOUT = 30.0  # §5.2, §5.3: for a peer to answer, and for a client to claim a connection


class ConnectionState(Enum):
    """What a peer connection waits for."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A Connect that is answered when the peer has answered."""

    message: Message
    auth: Authenticated


@dataclass(slots=True)
class PeerConnection:
    """One TCP connection between a relayed address and a peer."""

    number: int
    """CONNECTION-ID: random, so that nobody can guess another's (TC6)."""
    owner: FiveTuple
    """The allocation's."""
    username: str
    """Who may claim it."""
    peer: TransportAddress
    state: ConnectionState
    deadline: float
    request: ConnectRequest | None = field(default=None, repr=False)


class PeerConnections:
    """All of one server.

    Args:
        total_max: at once.
        allocation_max: of one allocation at once.
        random_number: the next CONNECTION-ID to try, 32 bits.
    """

    def __init__(self, total_max: int, allocation_max: int, random_number: Callable[[], int]) -> None:
        self._total_max = total_max
        self._allocation_max = allocation_max
        self._random_number = random_number
        self._connections: dict[int, PeerConnection] = {}
        self._unclaimed: OrderedDict[int, PeerConnection] = OrderedDict()
        """By deadline: all timeouts are equal, and what gets a new one moves to the end."""
        self._per_owner: Counter[FiveTuple] = Counter()

    def __len__(self) -> int:
        return len(self._connections)

    def get(self, number: int) -> PeerConnection | None:
        """Return the connection of that number."""
        return self._connections.get(number)

    def of(self, owner: FiveTuple) -> list[PeerConnection]:
        """Return those of one allocation."""
        if owner not in self._per_owner:
            return []
        return [connection for connection in self._connections.values() if connection.owner == owner]

    def begin(
        self, owner: FiveTuple, username: str, peer: TransportAddress, request: ConnectRequest, now: float
    ) -> PeerConnection:
        """A Connect: the peer is about to be called.

        Raises:
            StunRefusal: 446 when there is a connection with that peer, 508 when there are enough.
        """
        if any(connection.peer == peer for connection in self.of(owner)):
            raise StunRefusal(446)
        connection = self._add(owner, username, peer, ConnectionState.CONNECTING, request, now)
        if connection is None:
            raise StunRefusal(508)
        return connection

    def accepted(self, owner: FiveTuple, username: str, peer: TransportAddress, now: float) -> PeerConnection | None:
        """A peer has called; None when there are enough."""
        return self._add(owner, username, peer, ConnectionState.WAITING, None, now)

    def connected(self, connection: PeerConnection, now: float) -> ConnectRequest | None:
        """The peer has answered; returns the request that can be answered now."""
        request, connection.request = connection.request, None
        connection.state, connection.deadline = ConnectionState.WAITING, now + PEER_TIMEOUT
        self._unclaimed.move_to_end(connection.number)
        return request

    def claim(self, number: int, username: str) -> PeerConnection:
        """A ConnectionBind: from now on it belongs to the connection on which that came.

        Raises:
            StunRefusal: 400 for one that does not exist, is another user's, or is claimed already (TC4).
        """
        connection = self._connections.get(number)
        if connection is None or connection.state is not ConnectionState.WAITING or connection.username != username:
            raise StunRefusal(400)
        connection.state, connection.deadline = ConnectionState.JOINED, math.inf
        del self._unclaimed[number]
        return connection

    def remove(self, connection: PeerConnection) -> None:
        """It is gone."""
        del self._connections[connection.number]
        self._unclaimed.pop(connection.number, None)
        self._per_owner[connection.owner] -= 1
        if not self._per_owner[connection.owner]:
            del self._per_owner[connection.owner]

    def expired(self, now: float) -> Iterator[PeerConnection]:
        """Iterate over those whose time is over; remove each."""
        while self._unclaimed and (connection := next(iter(self._unclaimed.values()))).deadline <= now:
            yield connection

    def next_timeout(self) -> float | None:
        """When the next one's time is over."""
        soonest = next(iter(self._unclaimed.values()), None)
        return None if soonest is None else soonest.deadline

    def _add(
        self,
        owner: FiveTuple,
        username: str,
        peer: TransportAddress,
        state: ConnectionState,
        request: ConnectRequest | None,
        now: float,
    ) -> PeerConnection | None:
        if len(self._connections) >= self._total_max or self._per_owner[owner] >= self._allocation_max:
            if not self._per_owner[owner]:
                del self._per_owner[owner]
            return None
        number = self._random_number()
        while number in self._connections:
            number = self._random_number()
        connection = PeerConnection(number, owner, username, peer, state, now + PEER_TIMEOUT, request)
        self._connections[number] = self._unclaimed[number] = connection
        self._per_owner[owner] += 1
        return connection
