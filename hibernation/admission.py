"""What one client may do: handshakes and connections by address, messages by connection; all in bounded memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class HandshakeRate:
    """Admits handshakes, per IPv4 address or IPv6 /64.

    Args:
        rate: handshakes per second and address in the long run; 0 admits everything.
        burst: handshakes an address may begin at once.
        max_addresses: buckets kept; the one unused for longest goes first, which only ever forgives its address.
    """

    def __init__(self, rate: float, burst: int, *, max_addresses: int = 65_536) -> None:
        self._rate = rate
        self._burst = burst
        self._max_addresses = max_addresses
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, address: str, now: float) -> bool:
        """Take one token of the address; False if it has none."""
        if self._rate <= 0:
            return True
        key = network_of(address)
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= self._max_addresses:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        self._buckets.move_to_end(key)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._rate)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class MessageRate:
    """Counts each connection's messages within the running second; only connections that sent in it are remembered.

    Args:
        per_second: messages admitted; a burst over the change of a second may be twice that.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._since = 0.0
        self._counts: dict[int, int] = {}

    def admit(self, connection: int, now: float) -> bool:
        """Count one message; False if it is one too many."""
        if not 0 <= now - self._since < 1:
            self._since = now
            self._counts.clear()
        count = self._counts[connection] = self._counts.get(connection, 0) + 1
        return count <= self._per_second


class AddressCounts:
    """How many connections and handshakes each address has, per IPv4 address or IPv6 /64; remembers only these.

    Args:
        most: connections of an address; 0 counts nothing and admits everything.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def is_full(self, address: str | None) -> bool:
        """Whether the address has all it may have."""
        return bool(self.most) and address is not None and self._counts.get(network_of(address), 0) >= self.most

    def add(self, address: str | None) -> None:
        """One more."""
        if self.most and address is not None:
            key = network_of(address)
            self._counts[key] = self._counts.get(key, 0) + 1

    def remove(self, address: str | None) -> None:
        """One less."""
        if not self.most or address is None:
            return
        key = network_of(address)
        left = self._counts.pop(key) - 1
        if left:
            self._counts[key] = left


def client_address(peer: str, forwarded_for: Iterable[str], trusted: Container[str]) -> str:
    """Return who the client is, as far as those we trust say.

    Args:
        peer: address of the other end of the connection.
        forwarded_for: values of `X-Forwarded-For`, in order; each proxy has put its own peer at the end.
        trusted: addresses of our proxies; what anybody else writes there is not read.
    """
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",") if hop.strip()]
    while peer in trusted and hops:
        peer = hops.pop()
    return peer


def network_of(address: str) -> str:
    """Return who is counted together: one IPv6 customer has a /64 at least."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a Unix socket's peer
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
