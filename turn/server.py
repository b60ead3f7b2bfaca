"""TurnServer: requests in, answers and relay decisions out (RFC 8656, RFC 6062, RFC 8489 §9). No sockets, no clock.

    server.receive_message(data, five_tuple, now)     # one STUN request of a client
    server.receive_disconnect(five_tuple, now)        # a TCP or TLS connection ended
    server.receive_peer_...                           # a TCP relay's peer called, answered or left (RFC 6062)
    server.handle_timeout(now)
    server.messages_to_send(); server.events_received(); server.next_timeout()

Decisions go to the `RelayPlane` at once, so that what a reply promises is already so when it leaves. The data itself
(Send, Data, ChannelData) never comes here: the plane has the tables it needs.

Here a request is judged by who asks and whether it came before. What it does is elsewhere: `allocations`, `admission`,
`tcp_relays`. A row id of the rule table stands beside each check.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable

from turn.admission import PeerAdmission
from turn.allocation import Allocation, CloseReason, FiveTuple, Transport
from turn.allocations import Allocations, Redirect
from turn.auth import Authenticated, Authenticator
from turn.connections import PeerConnection
from turn.errors import StunRefusal
from turn.events import CredentialWanted, Event, PeerJoined
from turn.limits import SourceLimiter
from turn.lookup import LookupPending, WaitingRoom
from turn.policy import PeerPolicy
from turn.ports import PeerSockets, RelayPlane
from turn.relaypool import RelayAddress, RelayPool
from turn.settings import TurnSettings
from turn.tcp_relays import TcpRelays
from turn.transactions import Transactions
from turn.usage import RelayUsage
from wire import stun
from wire.errors import StunAttributeError, StunError
from wire.stun import Attr, AttributeList, Message, MessageClass, Method, TransportAddress

logger = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 4096
"""None of ours comes near it; bounds what a request that waits can hold (S12)."""
_SMALLEST_ALLOCATE_BYTES = 28  # X10: header and REQUESTED-TRANSPORT

_KNOWN_REQUIRED = frozenset(
    {
        Attr.MAPPED_ADDRESS,
        Attr.USERNAME,
        Attr.ERROR_CODE,
        Attr.UNKNOWN_ATTRIBUTES,
        Attr.CHANNEL_NUMBER,
        Attr.LIFETIME,
        Attr.XOR_PEER_ADDRESS,
        Attr.DATA,
        Attr.REALM,
        Attr.NONCE,
        Attr.XOR_RELAYED_ADDRESS,
        Attr.REQUESTED_ADDRESS_FAMILY,
        Attr.EVEN_PORT,
        Attr.REQUESTED_TRANSPORT,
        Attr.DONT_FRAGMENT,
        Attr.PASSWORD_ALGORITHM,
        Attr.USERHASH,
        Attr.XOR_MAPPED_ADDRESS,
        Attr.RESERVATION_TOKEN,
        Attr.PRIORITY,
        Attr.USE_CANDIDATE,
        Attr.CONNECTION_ID,
    }
)
Handler = Callable[[Message, FiveTuple, Authenticated, float], AttributeList]


class TurnServer:
    """All allocations of one server. Single-threaded; one instance per process."""

    def __init__(
        self,
        settings: TurnSettings,
        authenticator: Authenticator,
        policy: PeerPolicy,
        plane: RelayPlane,
        relay_addresses: list[RelayAddress],
        *,
        tcp: PeerSockets | None = None,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Build.

        Args:
            settings: checked ones.
            authenticator: who may ask.
            policy: which peers may be reached.
            plane: of datagrams.
            relay_addresses: where relays are bound; the first of each family is used.
            tcp: of TCP relays; without it they are refused with 442.
            token_bytes: random bytes, for reservations and connections.
        """
        self.counters: Counter[str] = Counter()
        self._authenticator = authenticator
        self._pool = RelayPool(
            relay_addresses,
            plane,
            policy,
            permissions_max=settings.permissions_max,
            token_bytes=token_bytes,
            tcp=tcp,
        )
        self._tcp = TcpRelays(tcp, self._pool, settings, self.counters, lambda: int.from_bytes(token_bytes(4), "big"))
        self._allocations = Allocations(
            settings,
            authenticator.seconds_left,
            self._pool,
            self._tcp,
            lambda event: self._events.append(event),
        )
        self._admission = PeerAdmission(settings, policy, plane, self._pool, self._allocations)
        # One per method; nothing else is answered (S2).
        self._handlers: dict[int, Handler] = {
            Method.ALLOCATE: self._allocations.allocate,
            Method.REFRESH: self._allocations.refresh,
            Method.CREATE_PERMISSION: self._admission.create_permission,
            Method.CHANNEL_BIND: self._admission.channel_bind,
        }
        if self._tcp.offered:
            self._handlers |= {Method.CONNECT: self._connect, Method.CONNECTION_BIND: self._connection_bind}
        self._transactions = Transactions()
        self._error_limiter = SourceLimiter(settings.errors_per_s, settings.errors_burst)
        self._waiting = WaitingRoom()
        self._to_send: list[tuple[FiveTuple, bytes]] = []
        self._events: list[Event] = []

    # Inputs.

    def receive_message(self, data: bytes, five_tuple: FiveTuple, now: float) -> None:
        """Handle one STUN message that is not data. At most one answer; anything unclear is dropped and counted.

        Args:
            data: one datagram, or one message cut out of the stream.
            five_tuple: how it came; an IPv4-mapped address must have become IPv4 (V3).
            now: monotonic clock, in seconds.
        """
        try:
            if len(data) > REQUEST_BYTES_MAX:
                raise StunError("too large")
            message = stun.parse(data)
        except StunError:
            self.counters["malformed"] += 1
            return
        if message.message_class != MessageClass.REQUEST:
            # A Binding indication keeps a NAT open and needs nothing (S13); the others are no business of a server.
            self.counters["ignored"] += 1
            return
        answer = self._answer(message, five_tuple, now)
        if answer is not None:
            self._to_send.append((five_tuple, answer))

    def receive_disconnect(self, five_tuple: FiveTuple, now: float) -> None:
        """The client's TCP or TLS connection is gone, and its allocation with it (T3)."""
        self._waiting.forget(five_tuple)
        if (allocation := self._allocations.get(five_tuple)) is not None:
            self._allocations.close(allocation, CloseReason.DISCONNECTED)

    def receive_peer_connected(self, number: int, now: float) -> None:
        """The peer that `PeerSockets.connect` called has answered."""
        if (answered := self._tcp.answered(number, now)) is None:
            return
        connection, request = answered
        key, sha256_key = _signing_keys(request.auth)
        attributes = [(int(Attr.CONNECTION_ID), stun.uint32(number))]
        answer = stun.success_response(request.message, attributes, key=key, sha256_key=sha256_key)
        self.counters["accepted"] += 1
        self._to_send.append((connection.owner, answer))

    def receive_peer_closed(self, number: int, now: float) -> None:
        """A peer did not answer, or its connection ended."""
        if (connection := self._tcp.left(number)) is not None:
            self._connect_failed(connection, now)

    def receive_peer(self, handle: int, peer: TransportAddress, now: float) -> int | None:
        """A peer called a relayed address (RFC 6062 §5.3): the connection's number, or None to hang up at once (TC3).

        Args:
            handle: the listening socket's.
            peer: who calls.
            now: monotonic clock, in seconds.
        """
        if (call := self._tcp.called(handle, peer, now)) is None:
            return None
        connection, attempt = call
        self._to_send.append((connection.owner, attempt))
        return connection.number

    def receive_credential(self, username: str, now: float) -> None:
        """The look-up of `username` is over and its result known to the credential source: answer who waited (E6)."""
        for message, five_tuple in self._waiting.take(username):
            if (answer := self._answer(message, five_tuple, now)) is not None:
                self._to_send.append((five_tuple, answer))

    def handle_timeout(self, now: float) -> None:
        """End what has expired. Call when `next_timeout` has come; earlier or later does no harm."""
        self._allocations.handle_timeout(now)
        self._pool.handle_timeout(now)
        for connection in self._tcp.expired(now):
            self._connect_failed(connection, now)
        for message, waiter in self._waiting.take_expired(now):
            if (answer := self._refuse(message, waiter, StunRefusal(500), None, now)) is not None:
                self._to_send.append((waiter, answer))
        self._transactions.handle_timeout(now)

    def revoke(self, username: str) -> None:
        """End every allocation of `username` now."""
        for allocation in [a for a in self._allocations if a.username == username]:
            self._allocations.close(allocation, CloseReason.REVOKED)

    def reload_policy(self, policy: PeerPolicy, now: float) -> None:
        """Put another filter in force; what it denies stops at once (D5)."""
        self._admission.change_policy(policy, now)
        for allocation in self._allocations:
            for connection in self._tcp.denied(allocation, policy):
                self._connect_failed(connection, now)

    def drain(self, redirect: Redirect | None = None) -> None:
        """Take no new allocations: 300 to `redirect`, else 508. Those that live go on (R1 to R3)."""
        self._allocations.drain(redirect)

    def close(self) -> None:
        """End everything. Idempotent."""
        self._allocations.close_all()
        self._pool.release_reservations()
        self._waiting.clear()
        self._transactions.clear()

    # Outputs.

    def messages_to_send(self) -> list[tuple[FiveTuple, bytes]]:
        """The answers since asked last."""
        messages, self._to_send = self._to_send, []
        return messages

    def events_received(self) -> list[Event]:
        """What happened since asked last."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        parts = (self._allocations, self._pool, self._tcp, self._waiting, self._transactions)
        return min((due for part in parts if (due := part.next_timeout()) is not None), default=None)

    def has_allocation(self, five_tuple: FiveTuple) -> bool:
        """Whether this client holds one; a connection without is closed after a while (T2)."""
        return five_tuple in self._allocations

    def allocations(self) -> list[tuple[Allocation, RelayUsage]]:
        """Those that live, with what each has carried so far."""
        return [(allocation, self._allocations.usage(allocation)) for allocation in self._allocations]

    def waiting(self) -> set[FiveTuple]:
        """Clients whose requests wait for a look-up."""
        return self._waiting.five_tuples() if self._waiting else set()

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind; all 0 after `close`."""
        return self._allocations.live_counts() | {
            "lookups": len(self._waiting),
            "reservations": self._pool.reservations(),
            "transactions": len(self._transactions),
            "peer_connections": len(self._tcp),
        }

    # Requests.

    def _answer(self, message: Message, five_tuple: FiveTuple, now: float) -> bytes | None:
        if message.method == Method.BINDING:
            return self._answer_binding(message, five_tuple, now)
        handler = self._handlers.get(message.method)
        over_udp = five_tuple.transport is Transport.UDP
        if handler is None or (
            over_udp and message.method == Method.ALLOCATE and len(message.raw) < _SMALLEST_ALLOCATE_BYTES
        ):
            self.counters["ignored"] += 1
            return None
        if over_udp and (answer := self._transactions.answer(five_tuple, message.transaction_id, now)) is not None:
            self.counters["retransmissions"] += 1
            return answer

        auth: Authenticated | None = None
        try:
            allocation = self._allocations.get(five_tuple)
            auth = self._authenticator.authenticate(
                message, five_tuple, allocation, now, also=self._tcp.control_of(message)
            )
            if unknown := message.unknown_required(_KNOWN_REQUIRED):
                raise StunRefusal(420, [(Attr.UNKNOWN_ATTRIBUTES, stun.unknown_attributes(unknown))])
            if message.method not in (Method.ALLOCATE, Method.CONNECTION_BIND):
                if allocation is None:
                    raise StunRefusal(437)  # G1
                if allocation.username != auth.credential.username:
                    raise StunRefusal(441)  # G2
            attributes = handler(message, five_tuple, auth, now)
        except _AnsweredLater:
            return None
        except StunAttributeError:
            answer = self._refuse(message, five_tuple, StunRefusal(400), auth, now)
        except StunRefusal as refusal:
            answer = self._refuse(message, five_tuple, refusal, auth, now)
        except LookupPending as pending:
            return self._park(pending.username, message, five_tuple, now)
        except (OSError, MemoryError) as error:
            # The machine is out of something; the handler has given back what it took (A24, X20).
            logger.error("a request failed: %s", type(error).__name__)
            answer = self._refuse(message, five_tuple, StunRefusal(500), auth, now)
        else:
            key, sha256_key = _signing_keys(auth)
            answer = stun.success_response(message, attributes, key=key, sha256_key=sha256_key)
            self.counters["accepted"] += 1
        if over_udp and auth is not None and answer is not None:
            self._transactions.remember(five_tuple, message.transaction_id, answer, now)
        return answer

    def _park(self, username: str, message: Message, five_tuple: FiveTuple, now: float) -> bytes | None:
        first = self._waiting.park(username, message, five_tuple, now)
        if first is None:
            return self._refuse(message, five_tuple, StunRefusal(500), None, now)
        if first:
            self._events.append(CredentialWanted(username))
        return None

    def _refuse(
        self, message: Message, five_tuple: FiveTuple, refusal: StunRefusal, auth: Authenticated | None, now: float
    ) -> bytes | None:
        self.counters[f"refused_{refusal.code}"] += 1
        unproven = auth is None and five_tuple.transport is Transport.UDP
        if unproven and not self._error_limiter.take(five_tuple.client.ip, now):
            self.counters["errors_suppressed"] += 1  # X11
            return None
        key, sha256_key = _signing_keys(auth)
        return stun.error_response(message, refusal.code, "", refusal.attributes, key=key, sha256_key=sha256_key)

    def _answer_binding(self, message: Message, five_tuple: FiveTuple, now: float) -> bytes | None:
        """S13: no authentication, no state. Over UDP the plane has answered already, but for the odd ones."""
        if unknown := message.unknown_required(_KNOWN_REQUIRED):
            refusal = StunRefusal(420, [(Attr.UNKNOWN_ATTRIBUTES, stun.unknown_attributes(unknown))])
            return self._refuse(message, five_tuple, refusal, None, now)
        mapped = stun.xor_address(five_tuple.client, message.transaction_id)
        return stun.success_response(message, [(Attr.XOR_MAPPED_ADDRESS, mapped)])

    def _connect(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> AttributeList:
        """RFC 6062 §5.2. Answered when the peer has answered."""
        self._tcp.connect(self._allocations[five_tuple], message, auth, now)
        raise _AnsweredLater

    def _connection_bind(
        self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float
    ) -> AttributeList:
        """RFC 6062 §5.4, on a connection of its own (TC4)."""
        if five_tuple.transport is Transport.UDP or five_tuple in self._allocations:
            raise StunRefusal(400)
        connection = self._tcp.bind(message, auth)
        self._events.append(PeerJoined(five_tuple, connection.number))
        return [(Attr.CONNECTION_ID, stun.uint32(connection.number))]

    def _connect_failed(self, connection: PeerConnection, now: float) -> None:
        """A connection with a peer is gone; answer the Connect that still waits for it, if any."""
        request = connection.request
        if request is not None:
            refusal = StunRefusal(447)
            answer = self._refuse(request.message, connection.owner, refusal, request.auth, now)
            if answer is not None:
                self._to_send.append((connection.owner, answer))


class _AnsweredLater(Exception):
    """The handler keeps the request."""


def _signing_keys(auth: Authenticated | None) -> tuple[bytes | None, bytes | None]:
    """I8: SHA-1 or SHA-256, as the request chose; replies to strangers are not signed."""
    if auth is None:
        return None, None
    return (None, auth.key) if auth.sha256 else (auth.key, None)
