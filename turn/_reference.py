"""The relay plane in plain Python, without sockets: what `_relay` does per packet, readable (RFC 8656 §11, §12).

One test class runs on both, and the core's tests use this one. A packet that does not pass is a counter with a reason.
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from turn.allocation import FiveTuple, Transport
from turn.channel import CHANNEL_MAX, CHANNEL_MAX_RFC5766
from turn.limits import SourceLimiter, TokenBucket
from turn.settings import TurnSettings
from turn.usage import RelayUsage
from wire import stun
from wire.errors import StunError
from wire.stun import Attr, IPAddress, Message, MessageClass, Method, TransportAddress

# Comprehension-required attributes that do no harm in a Send indication or a Binding request.
_KNOWN = frozenset(
    {
        Attr.XOR_PEER_ADDRESS, Attr.DATA, Attr.DONT_FRAGMENT, Attr.USERNAME, Attr.REALM, Attr.NONCE, Attr.USERHASH,
        Attr.PASSWORD_ALGORITHM, Attr.PRIORITY, Attr.USE_CANDIDATE,
    }
)  # fmt: skip
DATAGRAM_BYTES_MAX = 65507


class ToPeer(NamedTuple):
    """A datagram leaves the relay."""

    handle: int
    peer: TransportAddress
    payload: bytes
    dont_fragment: bool


class ToClient(NamedTuple):
    """A message goes to the client: ChannelData, a Data indication, or the answer to a Binding request."""

    data: bytes


class ToControl(NamedTuple):
    """A message for `TurnServer`."""

    data: bytes


class Dropped(NamedTuple):
    """Nothing happens but a counter."""

    reason: str


Outcome = ToPeer | ToClient | ToControl | Dropped


@dataclass(slots=True)
class _Row:
    """One relay."""

    local: TransportAddress
    five_tuple: FiveTuple | None = None
    identity: str = ""
    permissions: dict[IPAddress, float] = field(default_factory=dict)
    channels: dict[int, tuple[TransportAddress, float]] = field(default_factory=dict)
    rates: tuple[list[TokenBucket], list[TokenBucket]] = ([], [])
    """Of bytes and of packets, up and down."""
    usage: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


class ReferencePlane:
    """See `turn.ports.RelayPlane` for the commands. `from_client` and `from_peer` are the data path."""

    def __init__(self, settings: TurnSettings) -> None:
        self.counters: Counter[str] = Counter()
        self.refused_ports: set[int] = set()
        """Ports that `open_relay` reports as taken."""
        self._settings = settings
        self._rows: dict[int, _Row] = {}
        self._by_client: dict[FiveTuple, list[int]] = {}
        self._restricted: dict[IPAddress, set[int]] = {}
        self._denied_ports: frozenset[int] = frozenset({0})
        self._next_handle = 1
        self._bindings = SourceLimiter(settings.bindings_per_s, settings.bindings_per_s)
        self._requests = SourceLimiter(settings.requests_per_s, settings.requests_per_s)
        self._totals = [_bucket(settings.total_bps_max), _bucket(settings.total_bps_max)]
        self._users: dict[str, list[TokenBucket]] = {}

    # Commands.

    def open_relay(self, local: TransportAddress) -> int | None:
        """See `RelayPlane`."""
        if local.port in self.refused_ports or any(row.local == local for row in self._rows.values()):
            return None
        handle = self._next_handle
        self._next_handle += 1
        self._rows[handle] = _Row(local)
        return handle

    def close_relay(self, handle: int) -> RelayUsage:
        """See `RelayPlane`."""
        row = self._rows.pop(handle)
        if row.five_tuple is not None:
            handles = self._by_client[row.five_tuple]
            handles.remove(handle)
            if not handles:
                del self._by_client[row.five_tuple]
            if not any(other.identity == row.identity for other in self._rows.values()):
                self._users.pop(row.identity, None)
        return RelayUsage(*row.usage)

    def usage(self, handle: int) -> RelayUsage:
        """See `RelayPlane`."""
        return RelayUsage(*self._rows[handle].usage)

    def start_relay(self, handle: int, five_tuple: FiveTuple, identity: str) -> None:
        """See `RelayPlane`."""
        row = self._rows[handle]
        row.five_tuple = five_tuple
        row.identity = identity
        bps, pps = self._settings.allocation_bps_max, self._settings.allocation_pps_max
        row.rates = ([_bucket(bps), _packet_bucket(pps)], [_bucket(bps), _packet_bucket(pps)])
        self._users.setdefault(identity, [_bucket(self._settings.user_bps_max) for _ in range(2)])
        self._by_client.setdefault(five_tuple, []).append(handle)

    def permit(self, handle: int, ip: IPAddress, expires_at: float) -> None:
        """See `RelayPlane`."""
        self._rows[handle].permissions[ip] = expires_at

    def forbid(self, handle: int, ip: IPAddress) -> None:
        """See `RelayPlane`."""
        self._rows[handle].permissions.pop(ip, None)

    def bind_channel(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None:
        """See `RelayPlane`."""
        row = self._rows[handle]
        row.channels = {n: (p, t) for n, (p, t) in row.channels.items() if p != peer}
        row.channels[number] = (peer, expires_at)

    def deny_peer_ports(self, ports: frozenset[int]) -> None:
        """See `RelayPlane`."""
        self._denied_ports = ports

    def restrict_address(self, ip: IPAddress) -> None:
        """See `RelayPlane`."""
        self._restricted.setdefault(ip, set())

    def allow_port(self, address: TransportAddress) -> None:
        """See `RelayPlane`."""
        if address.ip in self._restricted:
            self._restricted[address.ip].add(address.port)

    def deny_port(self, address: TransportAddress) -> None:
        """See `RelayPlane`."""
        if address.ip in self._restricted:
            self._restricted[address.ip].discard(address.port)

    def live_counts(self) -> dict[str, int]:
        """Live objects by kind."""
        return {"relays": len(self._rows), "clients": len(self._by_client), "users": len(self._users)}

    # The data path.

    def from_client(self, five_tuple: FiveTuple, data: bytes, now: float) -> Outcome:
        """What becomes of one datagram, or one message of a stream, from a client."""
        if len(data) < 4 or not (data[0] <= 3 or 0x40 <= data[0] <= 0x7F):
            return self._drop("unknown_protocol")
        if data[0] >= 0x40:
            return self._channel_data(five_tuple, data, now)
        try:
            message = stun.parse(data)
        except StunError:
            return self._drop("malformed")
        if (message.method, message.message_class) == (Method.SEND, MessageClass.INDICATION):
            return self._send(five_tuple, message, now)
        if message.message_class != MessageClass.REQUEST:
            return self._drop("ignored")
        limited = five_tuple.transport is Transport.UDP
        if message.method == Method.BINDING and not message.unknown_required(_KNOWN):
            if limited and not self._bindings.take(five_tuple.client.ip, now):
                return self._drop("binding_limited")
            mapped = stun.xor_address(five_tuple.client, message.transaction_id)
            return ToClient(stun.success_response(message, [(Attr.XOR_MAPPED_ADDRESS, mapped)]))
        if limited and not self._requests.take(five_tuple.client.ip, now):
            return self._drop("request_limited")
        return ToControl(data)

    def from_peer(self, handle: int, source: TransportAddress, payload: bytes, now: float) -> Outcome:
        """What becomes of one datagram that arrived at a relay."""
        row = self._rows[handle]
        if row.five_tuple is None:
            return self._drop("no_allocation")
        if now >= row.permissions.get(source.ip, now):
            return self._drop("no_permission")
        if not self._reachable(source):
            return self._drop("denied_port")
        if not self._within_rate(row, 1, len(payload), now):
            return self._drop("rate_limited")
        streaming = row.five_tuple.transport is not Transport.UDP
        for number, (peer, expires_at) in row.channels.items():
            if peer == source and now < expires_at:
                padding = bytes(-len(payload) % 4) if streaming else b""
                message = number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload + padding
                break
        else:
            transaction_id = secrets.token_bytes(12)
            attributes = [
                (Attr.XOR_PEER_ADDRESS, stun.xor_address(source, transaction_id)),
                (Attr.DATA, payload),
            ]
            try:
                message = stun.serialize(Method.DATA, MessageClass.INDICATION, transaction_id, attributes)
            except ValueError:
                return self._drop("too_big")
        if not streaming and len(message) > DATAGRAM_BYTES_MAX:
            return self._drop("too_big")
        row.usage[2] += len(payload)
        row.usage[3] += 1
        return ToClient(message)

    def _channel_data(self, five_tuple: FiveTuple, data: bytes, now: float) -> Outcome:
        number = int.from_bytes(data[:2], "big")
        length = int.from_bytes(data[2:4], "big")
        highest = CHANNEL_MAX_RFC5766 if self._settings.rfc5766_channel_numbers else CHANNEL_MAX
        if number > highest or length > len(data) - 4:
            return self._drop("malformed")
        if five_tuple not in self._by_client:
            return self._drop("no_allocation")
        for handle in self._by_client[five_tuple]:
            peer, expires_at = self._rows[handle].channels.get(number, (None, 0.0))
            if peer is not None and now < expires_at:
                return self._to_peer(handle, peer, data[4 : 4 + length], False, now)
        return self._drop("unbound_channel")

    def _send(self, five_tuple: FiveTuple, message: Message, now: float) -> Outcome:
        value, payload = message.get(Attr.XOR_PEER_ADDRESS), message.get(Attr.DATA)
        peer = None if value is None else stun.parse_xor_address(value, message.transaction_id)
        if payload is None or peer is None:
            return self._drop("malformed")
        if message.unknown_required(_KNOWN):
            return self._drop("unknown_attribute")
        if five_tuple not in self._by_client:
            return self._drop("no_allocation")
        for handle in self._by_client[five_tuple]:
            if self._rows[handle].local.ip.version == peer.ip.version:
                # H2: meaningless unless both sides are IPv4
                ipv4 = peer.ip.version == 4 and five_tuple.client.ip.version == 4
                return self._to_peer(handle, peer, payload, ipv4 and Attr.DONT_FRAGMENT in message, now)
        return self._drop("no_permission")

    def _to_peer(self, handle: int, peer: TransportAddress, payload: bytes, dont_fragment: bool, now: float) -> Outcome:
        row = self._rows[handle]
        if now >= row.permissions.get(peer.ip, now):
            return self._drop("no_permission")
        if not self._reachable(peer):
            return self._drop("denied_port")
        if len(payload) > DATAGRAM_BYTES_MAX:
            return self._drop("too_big")
        if not self._within_rate(row, 0, len(payload), now):
            return self._drop("rate_limited")
        row.usage[0] += len(payload)
        row.usage[1] += 1
        return ToPeer(handle, peer, payload, dont_fragment)

    def _reachable(self, peer: TransportAddress) -> bool:
        allowed = self._restricted.get(peer.ip)
        return peer.port not in self._denied_ports if allowed is None else peer.port in allowed

    def _within_rate(self, row: _Row, direction: int, size: int, now: float) -> bool:
        own, packets = row.rates[direction]
        buckets = (own, self._users[row.identity][direction], self._totals[direction])
        return packets.take(1, now) and all(bucket.take(size, now) for bucket in buckets)

    def _drop(self, reason: str) -> Dropped:
        self.counters[reason] += 1
        return Dropped(reason)


def _bucket(bits_per_second: int) -> TokenBucket:
    rate = bits_per_second / 8
    return TokenBucket(rate, max(rate / 10, 65536.0), 0.0)


def _packet_bucket(packets_per_second: int) -> TokenBucket:
    return TokenBucket(packets_per_second, max(packets_per_second / 10, 64.0), 0.0)
