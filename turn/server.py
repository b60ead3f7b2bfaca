"""TurnServer: requests in, answers and relay decisions out (RFC 8656, RFC 6062, RFC 8489 §9). No sockets, no clock.

    server.receive_message(data, five_tuple, now)     # one STUN request of a client
    server.receive_disconnect(five_tuple, now)        # a TCP or TLS connection ended
    server.receive_peer_...                           # a TCP relay's peer called, answered or left (RFC 6062)
    server.handle_timeout(now)
    server.messages_to_send(); server.events_received(); server.next_timeout()

Decisions go to the `RelayPlane` at once, so that what a reply promises is already so when it leaves. The data itself
(Send, Data, ChannelData) never comes here: the plane has the tables it needs. Each handler keeps the order of its RFC
section; a row id of the rule table stands beside each check.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from typing import ClassVar

from turn.allocation import LIFETIME_DEFAULT, Allocation, CloseReason, FiveTuple, Relay, Transport
from turn.auth import Authenticated, Authenticator
from turn.channel import CHANNEL_LIFETIME, CHANNEL_MAX, CHANNEL_MAX_RFC5766, CHANNEL_MIN, BindResult, ChannelTable
from turn.connections import PeerConnection
from turn.errors import StunRefusal
from turn.events import AllocationClosed, AllocationCreated, CredentialWanted, Event, PeerJoined
from turn.expiries import ExpiryQueue
from turn.limits import Quota, SourceLimiter, TokenBucket, network_of
from turn.lookup import LookupPending, WaitingRoom
from turn.permission import PERMISSION_LIFETIME
from turn.policy import PeerPolicy, Verdict
from turn.ports import PeerSockets, RelayPlane
from turn.relaypool import RelayAddress, RelayPool
from turn.settings import TurnSettings
from turn.tcp_relays import TcpRelays
from turn.usage import RelayUsage, add
from wire import stun
from wire.errors import StunAttributeError, StunError
from wire.stun import Attr, IPAddress, Message, MessageClass, Method, TransportAddress

logger = logging.getLogger(__name__)

TRANSACTION_LIFETIME = 40.0  # S14
TRANSACTIONS_MAX = 8192
REQUEST_BYTES_MAX = 4096
"""None of ours comes near it; bounds what a request that waits can hold (S12)."""
_SMALLEST_ALLOCATE_BYTES = 28  # X10: header and REQUESTED-TRANSPORT
_UDP_PROTOCOL, _TCP_PROTOCOL = 17, 6
_FAMILIES = {1: 4, 2: 6}

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
# V2 (RFC 8656 §21.4): a tunnel's endpoint would turn one packet of ours into two.
_TUNNEL_CLIENTS = (ip_network("2002::/16"), ip_network("2001::/32"))

Attributes = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where new clients are sent instead (R1)."""

    servers: tuple[TransportAddress, ...]
    domain: str = ""
    """Certificate name, for clients over TLS."""


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
        self._settings = settings
        self._authenticator = authenticator
        self._policy = policy
        self._plane = plane
        self._pool = RelayPool(
            relay_addresses,
            plane,
            policy,
            permissions_max=settings.permissions_max,
            token_bytes=token_bytes,
            tcp=tcp,
        )
        self._tcp = TcpRelays(tcp, self._pool, settings, self.counters, lambda: int.from_bytes(token_bytes(4), "big"))
        self._handlers = self._HANDLERS | self._TCP_HANDLERS if self._tcp.offered else self._HANDLERS
        self._allocations: dict[FiveTuple, Allocation] = {}
        self._expiries = ExpiryQueue()
        self._transactions: OrderedDict[tuple[FiveTuple, bytes], tuple[float, bytes]] = OrderedDict()
        self._user_quota = Quota(settings.allocations_per_user)
        self._source_quota = Quota(settings.allocations_per_source)
        self._error_limiter = SourceLimiter(settings.errors_per_s, settings.errors_burst)
        self._waiting = WaitingRoom()
        self._redirect: Redirect | None = None
        self._draining = False
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
            self._close(allocation, CloseReason.DISCONNECTED)

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
        for allocation in self._expiries.due(now):
            self._expire(allocation, now)
        self._pool.handle_timeout(now)
        for connection in self._tcp.expired(now):
            self._connect_failed(connection, now)
        for message, waiter in self._waiting.take_expired(now):
            if (answer := self._refuse(message, waiter, StunRefusal(500), None, now)) is not None:
                self._to_send.append((waiter, answer))
        while self._transactions and next(iter(self._transactions.values()))[0] <= now:
            self._transactions.popitem(last=False)

    def revoke(self, username: str) -> None:
        """End every allocation of `username` now."""
        for allocation in [a for a in self._allocations.values() if a.username == username]:
            self._close(allocation, CloseReason.REVOKED)

    def reload_policy(self, policy: PeerPolicy, now: float) -> None:
        """Put another filter in force; what it denies stops at once (D5)."""
        self._policy = policy
        self._pool.change_policy(policy)
        for allocation in self._allocations.values():
            for relay in allocation.relays:
                self._pool.announce(relay)
        for allocation in self._allocations.values():
            for relay in allocation.relays:
                for ip in relay.permissions.live(now):
                    if policy.check(ip) is Verdict.DENIED:
                        relay.permissions.remove(ip)
                        if not relay.tcp:
                            self._plane.forbid(relay.handle, ip)
            for connection in self._tcp.denied(allocation, policy):
                self._connect_failed(connection, now)

    def drain(self, redirect: Redirect | None = None) -> None:
        """Take no new allocations: 300 to `redirect`, else 508. Those that live go on (R1 to R3)."""
        self._draining = True
        self._redirect = redirect

    def close(self) -> None:
        """End everything. Idempotent."""
        for allocation in list(self._allocations.values()):
            self._close(allocation, CloseReason.SHUTDOWN)
        self._pool.release_reservations()
        self._waiting.clear()
        self._expiries.clear()
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
        times = []
        parts = (self._expiries, self._pool, self._waiting, self._tcp)
        times += [due for part in parts if (due := part.next_timeout()) is not None]
        if self._transactions:
            times.append(next(iter(self._transactions.values()))[0])
        return min(times, default=None)

    def has_allocation(self, five_tuple: FiveTuple) -> bool:
        """Whether this client holds one; a connection without is closed after a while (T2)."""
        return five_tuple in self._allocations

    def allocations(self) -> list[tuple[Allocation, RelayUsage]]:
        """Those that live, with what each has carried so far."""
        return [
            (allocation, add(allocation.carried, *map(self._pool.usage, allocation.relays)))
            for allocation in self._allocations.values()
        ]

    def waiting(self) -> set[FiveTuple]:
        """Clients whose requests wait for a look-up."""
        return self._waiting.five_tuples() if self._waiting else set()

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind; all 0 after `close`."""
        return {
            "lookups": len(self._waiting),
            "allocations": len(self._allocations),
            "relays": sum(len(a.relays) for a in self._allocations.values()) + self._pool.reservations(),
            "reservations": self._pool.reservations(),
            "transactions": len(self._transactions),
            "peer_connections": len(self._tcp),
            "users": len(self._user_quota),
            "sources": len(self._source_quota),
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
        transaction = (five_tuple, message.transaction_id)
        if over_udp and (known := self._transactions.get(transaction)) is not None and now < known[0]:
            self.counters["retransmissions"] += 1
            return known[1]

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
            attributes = handler(self, message, five_tuple, auth, now)
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
            if len(self._transactions) >= TRANSACTIONS_MAX:
                self._transactions.popitem(last=False)
            self._transactions[transaction] = (now + TRANSACTION_LIFETIME, answer)
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

    def _allocate(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> Attributes:
        """RFC 8656 §7.2."""
        if five_tuple in self._allocations:
            raise StunRefusal(437)  # A2
        transport = message.uint(Attr.REQUESTED_TRANSPORT)
        if transport is None:
            raise StunRefusal(400)  # A3
        tcp = transport >> 24 == _TCP_PROTOCOL and self._tcp.offered
        if not tcp and transport >> 24 != _UDP_PROTOCOL:
            raise StunRefusal(442)  # A4, TC1
        if Attr.MOBILITY_TICKET in message:
            raise StunRefusal(405)  # M1
        token = message.get(Attr.RESERVATION_TOKEN)
        even_port = message.uint(Attr.EVEN_PORT, 1)
        requested = message.uint(Attr.REQUESTED_ADDRESS_FAMILY)
        additional = message.uint(Attr.ADDITIONAL_ADDRESS_FAMILY)
        lifetime = message.uint(Attr.LIFETIME)
        reserve = even_port is not None and even_port >= 0x80
        if tcp and (
            five_tuple.transport is Transport.UDP
            or token is not None
            or even_port is not None
            or additional is not None
            or Attr.DONT_FRAGMENT in message
        ):
            raise StunRefusal(400)  # TC1; and one address, for a client learns of its peers' calls by one
        if token is not None:
            if len(token) != 8 or even_port is not None or requested is not None or additional is not None:
                raise StunRefusal(400)  # A6
            if not self._pool.is_reserved(token, auth.credential.username, now):
                raise StunRefusal(508)  # A7, A16
        if requested is not None and additional is not None:
            raise StunRefusal(400)  # A8
        if additional is not None and (additional >> 24 == 1 or reserve):
            raise StunRefusal(400)  # A11
        for family in (requested, additional):
            if family is not None and family >> 24 not in _FAMILIES:
                raise StunRefusal(440)  # A9
        first = 4 if requested is None else _FAMILIES[requested >> 24]
        if token is None and additional is None and not self._pool.has_family(first):
            raise StunRefusal(440)  # A9, A10

        seconds_left = self._authenticator.seconds_left(auth.credential)
        ends_at = None
        if seconds_left is not None:
            grace = 0.0 if auth.credential.strict_expiry else self._settings.session_max
            ends_at = now + max(seconds_left, grace)
        expires_at = self._expiry(lifetime, ends_at, now)
        identity = auth.credential.quota_identity or f"{auth.credential.username}|{five_tuple.client.ip}"
        network = network_of(five_tuple.client.ip)

        with ExitStack() as undo:  # A24: whatever was taken is given back unless everything succeeds
            if not self._user_quota.take(identity):
                raise StunRefusal(486)  # A17
            undo.callback(self._user_quota.release, identity)
            if not self._source_quota.take(network):
                raise StunRefusal(486)  # X13
            undo.callback(self._source_quota.release, network)
            if len(self._allocations) >= self._settings.allocations_max:
                raise StunRefusal(508)  # A18
            self._check_admission(five_tuple)
            answer: Attributes = []
            relays: list[Relay] = []
            if token is not None:
                relays.append(self._pool.claim(undo, token, expires_at))
            else:
                for version in (first,) if additional is None else (4, 6):
                    try:
                        relays.append(
                            self._pool.open(
                                undo, version, expires_at, even=even_port is not None, pair=reserve, tcp=tcp
                            )
                        )
                    except StunRefusal as refusal:  # A13
                        if additional is None or (version == 6 and not relays):
                            raise
                        head = bytes((1 if version == 4 else 2, 0))
                        answer.append((Attr.ADDRESS_ERROR_CODE, head + stun.error_code(refusal.code)[2:]))
                if reserve:
                    held = self._pool.reserve(undo, relays[0], auth.credential.username, identity, now)
                    answer.append((Attr.RESERVATION_TOKEN, held))
            allocation = Allocation(
                five_tuple,
                auth.credential,
                identity,
                relays,
                ChannelTable(self._settings.channels_max),
                TokenBucket(self._settings.new_peers_per_s, self._settings.new_peers_burst, now),
                ends_at,
            )
            for relay in relays:
                self._pool.start(relay, five_tuple, identity)
            undo.pop_all()

        self._allocations[five_tuple] = allocation
        if tcp:
            self._tcp.opened(allocation)
        self._expiries.schedule(allocation)
        for relay in relays:
            self._pool.announce(relay)
        relayed = tuple(relay.external for relay in relays)
        self._events.append(AllocationCreated(five_tuple, allocation.username, relayed))
        return [
            *((Attr.XOR_RELAYED_ADDRESS, stun.xor_address(address, message.transaction_id)) for address in relayed),
            (Attr.LIFETIME, stun.uint32(round(expires_at - now))),
            (Attr.XOR_MAPPED_ADDRESS, stun.xor_address(five_tuple.client, message.transaction_id)),
            *answer,
        ]

    def _refresh(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> Attributes:
        """RFC 8656 §8.2."""
        allocation = self._allocations[five_tuple]
        lifetime = message.uint(Attr.LIFETIME)
        family = message.uint(Attr.REQUESTED_ADDRESS_FAMILY)
        relays = [r for r in allocation.relays if family is None or r.version == _FAMILIES.get(family >> 24)]
        if not relays:
            raise StunRefusal(443)  # RF3
        if lifetime == 0:
            if len(relays) == len(allocation.relays):
                self._close(allocation, CloseReason.DELETED)
            else:
                self._drop(allocation, relays)
            return [(Attr.LIFETIME, stun.uint32(0))]  # RF1
        expires_at = self._expiry(lifetime, allocation.ends_at, now)
        for relay in relays:
            relay.expires_at = expires_at
        self._expiries.schedule(allocation)
        return [(Attr.LIFETIME, stun.uint32(round(expires_at - now)))]  # RF2

    def _create_permission(
        self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float
    ) -> Attributes:
        """RFC 8656 §10.2. All addresses or none (P3)."""
        allocation = self._allocations[five_tuple]
        values = message.get_all(Attr.XOR_PEER_ADDRESS)
        peers = [stun.parse_xor_address(value, message.transaction_id) for value in values]
        addresses = [peer.ip for peer in peers if peer is not None]
        if not peers or len(addresses) != len(peers):
            raise StunRefusal(400)
        for relay, ips in self._admit_peers(allocation, addresses, now):
            for ip in ips:
                self._permit(relay, ip, now + PERMISSION_LIFETIME)
        return []

    def _channel_bind(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> Attributes:
        """RFC 8656 §12.2."""
        allocation = self._allocations[five_tuple]
        number = message.uint(Attr.CHANNEL_NUMBER)
        peer = message.address(Attr.XOR_PEER_ADDRESS)
        if allocation.tcp:
            raise StunRefusal(400)  # TC6
        highest = CHANNEL_MAX_RFC5766 if self._settings.rfc5766_channel_numbers else CHANNEL_MAX
        if number is None or peer is None or peer.port == 0 or not CHANNEL_MIN <= number >> 16 <= highest:
            raise StunRefusal(400)  # C1, C2; the lower half is reserved and ignored
        number >>= 16
        bindable = allocation.channels.check(number, peer, now)
        if bindable is BindResult.CLASH:
            raise StunRefusal(400)
        if allocation.relay_for(peer.ip) is not None and not self._policy.check_endpoint(peer):
            raise StunRefusal(403)
        if bindable is BindResult.FULL:
            raise StunRefusal(508)
        for relay, (ip, *_) in self._admit_peers(allocation, [peer.ip], now):
            binding = allocation.channels.bind(number, peer, now)
            self._plane.bind_channel(relay.handle, number, peer, binding.expires_at)
            extended = self._settings.channel_extends_permission  # P6
            self._permit(relay, ip, now + (CHANNEL_LIFETIME if extended else PERMISSION_LIFETIME))  # C3
        return []

    def _connect(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> Attributes:
        """RFC 6062 §5.2. Answered when the peer has answered."""
        self._tcp.connect(self._allocations[five_tuple], message, auth, now)
        raise _AnsweredLater

    def _connection_bind(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> Attributes:
        """RFC 6062 §5.4, on a connection of its own (TC4)."""
        if five_tuple.transport is Transport.UDP or five_tuple in self._allocations:
            raise StunRefusal(400)
        connection = self._tcp.bind(message, auth)
        self._events.append(PeerJoined(five_tuple, connection.number))
        return [(Attr.CONNECTION_ID, stun.uint32(connection.number))]

    # One per method; nothing else is answered (S2).
    _HANDLERS: ClassVar[dict[int, Callable[[TurnServer, Message, FiveTuple, Authenticated, float], Attributes]]] = {
        Method.ALLOCATE: _allocate,
        Method.REFRESH: _refresh,
        Method.CREATE_PERMISSION: _create_permission,
        Method.CHANNEL_BIND: _channel_bind,
    }
    _TCP_HANDLERS: ClassVar = {Method.CONNECT: _connect, Method.CONNECTION_BIND: _connection_bind}

    # Steps that requests share.

    def _check_admission(self, five_tuple: FiveTuple) -> None:
        client = five_tuple.client.ip
        if any(client in network for network in _TUNNEL_CLIENTS):
            raise StunRefusal(403)  # A19, V2
        if not self._draining:
            return
        if self._redirect is not None:
            for server in self._redirect.servers:
                if server.ip.version == client.version:
                    attributes = [(Attr.ALTERNATE_SERVER, stun.plain_address(server))]
                    if five_tuple.transport is Transport.TLS and self._redirect.domain:
                        attributes.append((Attr.ALTERNATE_DOMAIN, self._redirect.domain.encode()))
                    raise StunRefusal(300, attributes)
        raise StunRefusal(508)

    def _expiry(self, lifetime: int | None, ends_at: float | None, now: float) -> float:
        """A21: the lifetime asked for, within [600 s, maximum], and never beyond the credential's."""
        granted = max(LIFETIME_DEFAULT, min(lifetime or LIFETIME_DEFAULT, self._settings.lifetime_max))
        return now + granted if ends_at is None else min(now + granted, max(ends_at, now))

    def _admit_peers(
        self, allocation: Allocation, ips: list[IPAddress], now: float
    ) -> list[tuple[Relay, list[IPAddress]]]:
        """P3: the addresses by relay, after every check; nothing is changed when one fails."""
        by_version: dict[int, list[IPAddress]] = {}
        for ip in ips:
            if allocation.relay_for(ip) is None:
                raise StunRefusal(443)
            by_version.setdefault(ip.version, []).append(ip)
        if any(self._policy.check(ip) is Verdict.DENIED for ip in ips):
            raise StunRefusal(403)
        admitted = [(relay, by_version[relay.version]) for relay in allocation.relays if relay.version in by_version]
        new = [relay.permissions.new_among(addresses, now) for relay, addresses in admitted]
        if not all(relay.permissions.has_room(n, now) for (relay, _), n in zip(admitted, new, strict=True)):
            raise StunRefusal(508)  # X14
        if not allocation.new_peers.take(sum(new), now):
            raise StunRefusal(508)  # X15
        return admitted

    def _permit(self, relay: Relay, ip: IPAddress, expires_at: float) -> None:
        expires_at = relay.permissions.install(ip, expires_at)
        if not relay.tcp:
            self._plane.permit(relay.handle, ip, expires_at)

    def _connect_failed(self, connection: PeerConnection, now: float) -> None:
        """A connection with a peer is gone; answer the Connect that still waits for it, if any."""
        request = connection.request
        if request is not None:
            refusal = StunRefusal(447)
            answer = self._refuse(request.message, connection.owner, refusal, request.auth, now)
            if answer is not None:
                self._to_send.append((connection.owner, answer))

    # Ends.

    def _expire(self, allocation: Allocation, now: float) -> None:
        expired = [relay for relay in allocation.relays if relay.expires_at <= now]
        if len(expired) == len(allocation.relays):
            ended = allocation.ends_at is not None and allocation.ends_at <= now
            self._close(allocation, CloseReason.CREDENTIAL_ENDED if ended else CloseReason.EXPIRED)
            return
        self._drop(allocation, expired)
        self._expiries.schedule(allocation)

    def _drop(self, allocation: Allocation, relays: list[Relay]) -> None:
        """Close some of its relays; at least one stays."""
        for relay in relays:
            allocation.relays.remove(relay)
            allocation.channels.forget_family(relay.version)
            allocation.carried = add(allocation.carried, self._pool.close(relay))

    def _close(self, allocation: Allocation, reason: CloseReason) -> None:
        del self._allocations[allocation.five_tuple]
        self._expiries.forget(allocation)
        if allocation.tcp:
            self._tcp.closed(allocation)
        usage = add(allocation.carried, *(self._pool.close(relay) for relay in allocation.relays))
        self._user_quota.release(allocation.quota_identity)
        self._source_quota.release(network_of(allocation.five_tuple.client.ip))
        self._events.append(AllocationClosed(allocation.five_tuple, allocation.username, reason, usage))


class _AnsweredLater(Exception):
    """The handler keeps the request."""


def _signing_keys(auth: Authenticated | None) -> tuple[bytes | None, bytes | None]:
    """I8: SHA-1 or SHA-256, as the request chose; replies to strangers are not signed."""
    if auth is None:
        return None, None
    return (None, auth.key) if auth.sha256 else (auth.key, None)
