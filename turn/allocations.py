"""Which allocations there are: what Allocate and Refresh do, and how each ends (RFC 8656 §7, §8). No sockets, no clock.

Part of `TurnServer`, which knows who asks. Each handler keeps the order of its RFC section; a row id of the rule table
stands beside each check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network

from turn.allocation import LIFETIME_DEFAULT, Allocation, CloseReason, FiveTuple, Relay, Transport
from turn.auth import Authenticated
from turn.channel import ChannelTable
from turn.credentials import Credential
from turn.errors import StunRefusal
from turn.events import AllocationClosed, AllocationCreated
from turn.expiries import ExpiryQueue
from turn.limits import Quota, TokenBucket, network_of
from turn.relaypool import RelayPool
from turn.settings import TurnSettings
from turn.tcp_relays import TcpRelays
from turn.usage import RelayUsage, add
from wire import stun
from wire.stun import Attr, AttributeList, Message, TransportAddress

_UDP_PROTOCOL, _TCP_PROTOCOL = 17, 6
_FAMILIES = {1: 4, 2: 6}
# V2 (RFC 8656 §21.4): a tunnel's endpoint would turn one packet of ours into two.
_TUNNEL_CLIENTS = (ip_network("2002::/16"), ip_network("2001::/32"))


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where new clients are sent instead (R1)."""

    servers: tuple[TransportAddress, ...]
    domain: str = ""
    """Certificate name, for clients over TLS."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What an Allocate asks for, once it is known not to contradict itself."""

    tcp: bool
    token: bytes | None
    versions: tuple[int, ...]
    """IP versions; of two, one will do (A13)."""
    even: bool
    reserve: bool
    lifetime: int | None

    @classmethod
    def read(cls, message: Message, transport: Transport, tcp_offered: bool) -> _Wish:
        """Rows A3 to A11, but for what depends on what is there.

        Raises:
            StunRefusal: it cannot be granted to anybody.
            StunAttributeError: an attribute of the wrong size.
        """
        protocol = message.uint(Attr.REQUESTED_TRANSPORT)
        if protocol is None:
            raise StunRefusal(400)  # A3
        tcp = protocol >> 24 == _TCP_PROTOCOL and tcp_offered
        if not tcp and protocol >> 24 != _UDP_PROTOCOL:
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
            transport is Transport.UDP
            or token is not None
            or even_port is not None
            or additional is not None
            or Attr.DONT_FRAGMENT in message
        ):
            raise StunRefusal(400)  # TC1; and one address, for a client learns of its peers' calls by one
        if token is not None and (
            len(token) != 8 or even_port is not None or requested is not None or additional is not None
        ):
            raise StunRefusal(400)  # A6
        if requested is not None and additional is not None:
            raise StunRefusal(400)  # A8
        if additional is not None and (additional >> 24 == 1 or reserve):
            raise StunRefusal(400)  # A11
        for family in (requested, additional):
            if family is not None and family >> 24 not in _FAMILIES:
                raise StunRefusal(440)  # A9
        if additional is not None:
            versions: tuple[int, ...] = (4, 6)
        else:
            versions = (4 if requested is None else _FAMILIES[requested >> 24],)  # A10
        return cls(tcp, token, versions, even_port is not None, reserve, lifetime)


class Allocations:
    """All of one server.

    Args:
        settings: how many there may be, and for how long.
        seconds_left: of a credential; None: for ever.
        pool: of relayed addresses.
        tcp: told of those that reach peers over TCP.
        report: told of each that begins and ends.
    """

    def __init__(
        self,
        settings: TurnSettings,
        seconds_left: Callable[[Credential], float | None],
        pool: RelayPool,
        tcp: TcpRelays,
        report: Callable[[AllocationCreated | AllocationClosed], None],
    ) -> None:
        self._settings = settings
        self._seconds_left = seconds_left
        self._pool = pool
        self._tcp = tcp
        self._report = report
        self._live: dict[FiveTuple, Allocation] = {}
        self._expiries = ExpiryQueue()
        self._per_user = Quota(settings.allocations_per_user)
        self._per_source = Quota(settings.allocations_per_source)
        self._redirect: Redirect | None = None
        self._draining = False

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._live.values())

    def __contains__(self, five_tuple: FiveTuple) -> bool:
        return five_tuple in self._live

    def __getitem__(self, five_tuple: FiveTuple) -> Allocation:
        return self._live[five_tuple]

    def get(self, five_tuple: FiveTuple) -> Allocation | None:
        """Return what is on that 5-tuple."""
        return self._live.get(five_tuple)

    def usage(self, allocation: Allocation) -> RelayUsage:
        """Return what it has carried so far."""
        return add(allocation.carried, *map(self._pool.usage, allocation.relays))

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind."""
        return {
            "allocations": len(self._live),
            "relays": sum(len(a.relays) for a in self._live.values()) + self._pool.reservations(),
            "users": len(self._per_user),
            "sources": len(self._per_source),
        }

    # Requests.

    def allocate(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> AttributeList:
        """RFC 8656 §7.2."""
        if five_tuple in self._live:
            raise StunRefusal(437)  # A2
        wish = _Wish.read(message, five_tuple.transport, self._tcp.offered)
        username = auth.credential.username
        if wish.token is not None:
            if not self._pool.is_reserved(wish.token, username, now):
                raise StunRefusal(508)  # A7, A16
        elif not any(map(self._pool.has_family, wish.versions)):
            raise StunRefusal(440)  # A9, A10

        seconds_left = self._seconds_left(auth.credential)
        ends_at = None
        if seconds_left is not None:
            grace = 0.0 if auth.credential.strict_expiry else self._settings.session_max
            ends_at = now + max(seconds_left, grace)
        expires_at = self._expiry(wish.lifetime, ends_at, now)
        identity = auth.credential.quota_identity or f"{username}|{five_tuple.client.ip}"
        network = network_of(five_tuple.client.ip)

        with ExitStack() as undo:  # A24: whatever was taken is given back unless everything succeeds
            if not self._per_user.take(identity):
                raise StunRefusal(486)  # A17
            undo.callback(self._per_user.release, identity)
            if not self._per_source.take(network):
                raise StunRefusal(486)  # X13
            undo.callback(self._per_source.release, network)
            if len(self._live) >= self._settings.allocations_max:
                raise StunRefusal(508)  # A18
            self._check_admission(five_tuple)
            relays, told = self._open(undo, wish, expires_at)
            if wish.reserve:
                held = self._pool.reserve(undo, relays[0], username, identity, now)
                told.append((Attr.RESERVATION_TOKEN, held))
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

        self._live[five_tuple] = allocation
        if wish.tcp:
            self._tcp.opened(allocation)
        self._expiries.schedule(allocation)
        for relay in relays:
            self._pool.announce(relay)
        relayed = tuple(relay.external for relay in relays)
        self._report(AllocationCreated(five_tuple, allocation.username, relayed))
        return [
            *((Attr.XOR_RELAYED_ADDRESS, stun.xor_address(address, message.transaction_id)) for address in relayed),
            (Attr.LIFETIME, stun.uint32(round(expires_at - now))),
            (Attr.XOR_MAPPED_ADDRESS, stun.xor_address(five_tuple.client, message.transaction_id)),
            *told,
        ]

    def refresh(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> AttributeList:
        """RFC 8656 §8.2."""
        allocation = self._live[five_tuple]
        lifetime = message.uint(Attr.LIFETIME)
        family = message.uint(Attr.REQUESTED_ADDRESS_FAMILY)
        relays = [r for r in allocation.relays if family is None or r.version == _FAMILIES.get(family >> 24)]
        if not relays:
            raise StunRefusal(443)  # RF3
        if lifetime == 0:
            if len(relays) == len(allocation.relays):
                self.close(allocation, CloseReason.DELETED)
            else:
                self._drop(allocation, relays)
            return [(Attr.LIFETIME, stun.uint32(0))]  # RF1
        expires_at = self._expiry(lifetime, allocation.ends_at, now)
        for relay in relays:
            relay.expires_at = expires_at
        self._expiries.schedule(allocation)
        return [(Attr.LIFETIME, stun.uint32(round(expires_at - now)))]  # RF2

    def drain(self, redirect: Redirect | None) -> None:
        """Grant no more: 300 to `redirect`, else 508 (R1 to R3)."""
        self._draining = True
        self._redirect = redirect

    def _open(self, undo: ExitStack, wish: _Wish, expires_at: float) -> tuple[list[Relay], list[tuple[int, bytes]]]:
        """The relays, and what the client is told about one that could not be had."""
        if wish.token is not None:
            return [self._pool.claim(undo, wish.token, expires_at)], []
        relays: list[Relay] = []
        failures: list[tuple[int, StunRefusal]] = []
        for version in wish.versions:
            try:
                relays.append(
                    self._pool.open(undo, version, expires_at, even=wish.even, pair=wish.reserve, tcp=wish.tcp)
                )
            except StunRefusal as refusal:
                failures.append((version, refusal))
        if not relays:
            raise failures[-1][1]
        return (
            relays,
            [  # A13
                (Attr.ADDRESS_ERROR_CODE, bytes((1 if version == 4 else 2, 0)) + stun.error_code(refusal.code)[2:])
                for version, refusal in failures
            ],
        )

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

    # Ends.

    def handle_timeout(self, now: float) -> None:
        """End what has expired."""
        for allocation in self._expiries.due(now):
            expired = [relay for relay in allocation.relays if relay.expires_at <= now]
            if len(expired) == len(allocation.relays):
                ended = allocation.ends_at is not None and allocation.ends_at <= now
                self.close(allocation, CloseReason.CREDENTIAL_ENDED if ended else CloseReason.EXPIRED)
            else:
                self._drop(allocation, expired)
                self._expiries.schedule(allocation)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        return self._expiries.next_timeout()

    def close(self, allocation: Allocation, reason: CloseReason) -> None:
        """End it: nothing passes once this returned."""
        del self._live[allocation.five_tuple]
        self._expiries.forget(allocation)
        if allocation.tcp:
            self._tcp.closed(allocation)
        usage = add(allocation.carried, *(self._pool.close(relay) for relay in allocation.relays))
        self._per_user.release(allocation.quota_identity)
        self._per_source.release(network_of(allocation.five_tuple.client.ip))
        self._report(AllocationClosed(allocation.five_tuple, allocation.username, reason, usage))

    def close_all(self) -> None:
        """End all of them."""
        for allocation in list(self._live.values()):
            self.close(allocation, CloseReason.SHUTDOWN)
        self._expiries.clear()

    def _drop(self, allocation: Allocation, relays: list[Relay]) -> None:
        """Close some of its relays; at least one stays."""
        for relay in relays:
            allocation.relays.remove(relay)
            allocation.channels.forget_family(relay.version)
            allocation.carried = add(allocation.carried, self._pool.close(relay))
