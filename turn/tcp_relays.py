"""TCP relays: what a Connect, a peer's call and a ConnectionBind may do (RFC 6062). No sockets, no clock.

Part of `TurnServer`, which knows allocations and answers. `connections.py` keeps which connections with peers there
are; `ports.PeerSockets` does what is decided here. A row id of the rule table stands beside each check.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator

from turn.allocation import Allocation, FiveTuple
from turn.auth import Authenticated
from turn.connections import ConnectRequest, PeerConnection, PeerConnections
from turn.errors import StunRefusal
from turn.policy import PeerPolicy, Verdict
from turn.ports import PeerSockets
from turn.relaypool import RelayPool
from turn.settings import TurnSettings
from wire import stun
from wire.stun import Attr, Message, MessageClass, Method, TransportAddress


class TcpRelays:
    """All of one server.

    Args:
        sockets: theirs; without them none is offered.
        pool: which of our own addresses may be called.
        settings: how many connections there may be.
        counters: where calls that are hung up are counted.
        random_number: the next CONNECTION-ID to try, 32 bits (TC6).
    """

    def __init__(
        self,
        sockets: PeerSockets | None,
        pool: RelayPool,
        settings: TurnSettings,
        counters: Counter[str],
        random_number: Callable[[], int],
    ) -> None:
        self._sockets = sockets
        self._pool = pool
        self._counters = counters
        self._connections = PeerConnections(
            settings.peer_connections_max, settings.peer_connections_per_allocation, random_number
        )
        self._allocations: dict[int, Allocation] = {}

    @property
    def offered(self) -> bool:
        """Whether a client may have one."""
        return self._sockets is not None

    def __len__(self) -> int:
        """Connections with peers."""
        return len(self._connections)

    def next_timeout(self) -> float | None:
        """When `expired` has something."""
        return self._connections.next_timeout()

    # Allocations.

    def opened(self, allocation: Allocation) -> None:
        """Peers may call it from now on."""
        self._allocations[allocation.relays[0].handle] = allocation

    def closed(self, allocation: Allocation) -> None:
        """End its connections; Connects that wait get no answer (TC5)."""
        del self._allocations[allocation.relays[0].handle]
        for connection in self._connections.of(allocation.five_tuple):
            self._hang_up(connection)

    # Requests.

    def connect(self, allocation: Allocation, message: Message, auth: Authenticated, now: float) -> None:
        """RFC 6062 §5.2. Needs no permission, but what one needs (TC2); to be answered when the peer has answered."""
        if self._sockets is None or not allocation.tcp:
            raise StunRefusal(437)
        peer = message.address(Attr.XOR_PEER_ADDRESS)
        if peer is None or peer.port == 0:
            raise StunRefusal(400)
        if (relay := allocation.relay_for(peer.ip)) is None:
            raise StunRefusal(443)
        if not self._pool.may_connect(peer):
            raise StunRefusal(403)
        if not allocation.new_peers.take(1, now):
            raise StunRefusal(508)  # X15: a relay is no port scanner
        request = ConnectRequest(message, auth)
        connection = self._connections.begin(allocation.five_tuple, auth.credential.username, peer, request, now)
        self._sockets.connect(relay.handle, connection.number, peer)

    def bind(self, message: Message, auth: Authenticated) -> PeerConnection:
        """RFC 6062 §5.4: the connection that is claimed."""
        number = message.uint(Attr.CONNECTION_ID)
        if number is None:
            raise StunRefusal(400)
        return self._connections.claim(number, auth.credential.username)

    def control_of(self, message: Message) -> FiveTuple | None:
        """Clients such as coturn's send a ConnectionBind with the nonce of their control connection."""
        number = message.get(Attr.CONNECTION_ID) if message.method == Method.CONNECTION_BIND else None
        if number is None:
            return None
        connection = self._connections.get(int.from_bytes(number, "big"))  # its size is judged after authentication
        return None if connection is None else connection.owner

    # Peers.

    def called(self, handle: int, peer: TransportAddress, now: float) -> tuple[PeerConnection, bytes] | None:
        """A peer called (§5.3): its connection and the ConnectionAttempt; None: hang up at once (TC3)."""
        allocation = self._allocations.get(handle)
        if (
            allocation is None
            or not allocation.relays[0].permissions.covers(peer.ip, now)
            or not self._pool.may_connect(peer)
        ):
            self._counters["peers_not_permitted"] += 1
            return None
        connection = self._connections.accepted(allocation.five_tuple, allocation.username, peer, now)
        if connection is None:
            self._counters["peers_over_limit"] += 1
            return None
        transaction_id = secrets.token_bytes(12)
        attributes = [
            (int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, transaction_id)),
            (int(Attr.CONNECTION_ID), stun.uint32(connection.number)),
        ]
        attempt = stun.serialize(Method.CONNECTION_ATTEMPT, MessageClass.INDICATION, transaction_id, attributes)
        return connection, attempt

    def answered(self, number: int, now: float) -> tuple[PeerConnection, ConnectRequest] | None:
        """A peer that was called has answered: its connection, and the request to answer now."""
        connection = self._connections.get(number)
        if connection is None or (request := self._connections.connected(connection, now)) is None:
            return None
        return connection, request

    # Ends. A Connect that still waits for what is gone has failed: its `request` is to be answered.

    def left(self, number: int) -> PeerConnection | None:
        """A peer did not answer, or its connection ended: what was known of it."""
        if (connection := self._connections.get(number)) is not None:
            self._connections.remove(connection)
        return connection

    def expired(self, now: float) -> Iterator[PeerConnection]:
        """End those whose time is over, and iterate over them (TC2, TC5)."""
        for connection in self._connections.expired(now):
            self._hang_up(connection)
            yield connection

    def denied(self, allocation: Allocation, policy: PeerPolicy) -> Iterator[PeerConnection]:
        """End those of the allocation with peers that `policy` denies, and iterate over them."""
        for connection in self._connections.of(allocation.five_tuple):
            if policy.check(connection.peer.ip) is Verdict.DENIED:
                self._hang_up(connection)
                yield connection

    def _hang_up(self, connection: PeerConnection) -> None:
        assert self._sockets is not None
        self._sockets.close_connection(connection.number)
        self._connections.remove(connection)
