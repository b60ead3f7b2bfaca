"""Which peers a client may reach through us: one compiled check for every path (rules X1 to X9, V2).

CreatePermission, ChannelBind and each relayed packet ask the same `PeerPolicy`. Addresses are reduced to every form
they can hide (IPv4 inside IPv6), ranges are compared as integers, and what is denied by default is whatever could
lead back into the host or its network.

An address is *restricted* when only some of its ports may be reached: our own relay addresses (only the relayed ports
that live at that moment, so that two clients of this server can meet, but no allocation is made through an
allocation) and the addresses of `allowed_endpoints` (the SFU beside us).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from turn.errors import ConfigurationError
from wire.stun import IPAddress, TransportAddress

# X2, X4: 168.63.129.16 is a cloud platform's host inside public space.
DENIED_IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
)
# X3
DENIED_IPV6 = (
    "::/128",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "64:ff9b:1::/48",
)
# X6: no setting lifts these. Tunnels would send one packet of ours as two (RFC 8656 §21.4).
NEVER_ALLOWED = ("0.0.0.0/8", "::/128", "2002::/16", "2001::/32")
LOOPBACK = ("127.0.0.0/8", "::1/128")
# X9: reflection and infrastructure services.
DENIED_PORTS = frozenset({0, 17, 19, 53, 111, 123, 137, 161, 389, 1900, 11211})

_MAPPED = ip_network("::ffff:0:0/96")
_COMPATIBLE = ip_network("::/96")  # but :: and ::1, which are themselves
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
_SIX_TO_FOUR = ip_network("2002::/16")


class AddressRange(NamedTuple):
    """An inclusive range of one family, compared as integers of 32 or 128 bits (X7)."""

    version: int
    first: int
    last: int

    def __contains__(self, ip: object) -> bool:
        assert isinstance(ip, IPv4Address | IPv6Address)
        return ip.version == self.version and self.first <= int(ip) <= self.last

    @property
    def size(self) -> int:
        """Number of addresses; the smaller range is the more specific one."""
        return self.last - self.first + 1


def parse_range(text: str) -> AddressRange:
    """`10.0.0.0/8`, `2001:db8::1` or `192.0.2.1-192.0.2.9`.

    Raises:
        ConfigurationError: anything else; a host address with bits behind the prefix too (X6).
    """
    try:
        if match := re.fullmatch(r"([^-]+)-([^-]+)", text):
            first, last = ip_address(match[1].strip()), ip_address(match[2].strip())
            if first.version != last.version or int(first) > int(last):
                raise ValueError("not a range")
            return AddressRange(first.version, int(first), int(last))
        network = ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f"not an address range: {text!r} ({error})") from None
    return AddressRange(network.version, int(network.network_address), int(network.broadcast_address))


def canonical_forms(ip: IPAddress) -> tuple[IPAddress, ...]:
    """The address and the IPv4 address that it carries, if any (X1): each must pass the filter."""
    if ip.version == 4:
        return (ip,)
    assert isinstance(ip, IPv6Address)
    number = int(ip)
    if ip in _SIX_TO_FOUR:
        return (ip, IPv4Address(number >> 80 & 0xFFFFFFFF))
    if ip in _MAPPED or (ip in _COMPATIBLE and number > 1) or any(ip in network for network in _NAT64):
        return (ip, IPv4Address(number & 0xFFFFFFFF))
    return (ip,)


class Verdict(Enum):
    """What the policy says about an address."""

    ALLOWED = "allowed"
    DENIED = "denied"
    RESTRICTED = "restricted"
    """Only the ports of `PeerPolicy.restricted_ports` may be reached."""


class PeerPolicy:
    """The compiled filter. Immutable but for the live ports of restricted addresses."""

    def __init__(
        self,
        *,
        allowed: Iterable[str] = (),
        denied: Iterable[str] = (),
        allow_loopback: bool = False,
        own_addresses: Iterable[IPAddress] = (),
        relay_addresses: Iterable[IPAddress] = (),
        allowed_endpoints: Iterable[TransportAddress] = (),
        denied_ports: Collection[int] = DENIED_PORTS,
        min_port: int = 1,
    ) -> None:
        """Compile.

        Args:
            allowed: ranges that lift a denial; of two ranges that match, the smaller wins.
            denied: ranges denied besides the built-in ones.
            allow_loopback: whether loopback peers are allowed.
            own_addresses: of this host: interfaces, listeners, external addresses, back ends. Denied (X5).
            relay_addresses: restricted to live relayed ports (X8).
            allowed_endpoints: reachable although their address may be denied, this port only.
            denied_ports: peer ports never reached, whatever the address.
            min_port: peer ports below are denied too.

        Raises:
            ConfigurationError: a range is malformed, or lifts what can never be lifted.
        """
        never = [parse_range(text) for text in NEVER_ALLOWED]
        loopback = [parse_range(text) for text in LOOPBACK]
        own = [
            AddressRange(ip.version, int(ip), int(ip))
            for ip in own_addresses
            if not (allow_loopback and ip.is_loopback)
        ]
        self._allowed = [parse_range(text) for text in allowed]
        for text, lifted in zip(allowed, self._allowed, strict=True):
            if any(_within(lifted, forbidden) for forbidden in never):
                raise ConfigurationError(f"{text} can never be an allowed peer")
            if not allow_loopback and any(_within(lifted, forbidden) for forbidden in loopback):
                raise ConfigurationError(f"{text} is loopback: it needs allow_loopback_peers")
        built_in = [parse_range(text) for text in (*DENIED_IPV4, *DENIED_IPV6)]
        self._denied = [r for r in built_in if not (allow_loopback and r in loopback)]
        self._denied += [parse_range(text) for text in denied] + own
        self._never = never if allow_loopback else never + loopback
        self._restricted: dict[IPAddress, set[int]] = {ip: set() for ip in relay_addresses}
        self._endpoints = frozenset(allowed_endpoints)
        for endpoint in self._endpoints:
            self._restricted.setdefault(endpoint.ip, set()).add(endpoint.port)
        self.denied_ports = frozenset(denied_ports) | frozenset(range(max(1, min_port))) | {0}

    @property
    def endpoints(self) -> frozenset[TransportAddress]:
        """The allowed endpoints."""
        return self._endpoints

    def check(self, ip: IPAddress) -> Verdict:
        """Whether a permission for `ip` may exist."""
        if ip in self._restricted:
            return Verdict.RESTRICTED
        forms = canonical_forms(ip)
        if any(form in self._restricted for form in forms) or not all(map(self._passes, forms)):
            return Verdict.DENIED
        return Verdict.ALLOWED

    def check_endpoint(self, peer: TransportAddress) -> bool:
        """Whether a packet may go to `peer`, port included."""
        verdict = self.check(peer.ip)
        if verdict is Verdict.RESTRICTED:
            return peer.port in self._restricted[peer.ip]
        return verdict is Verdict.ALLOWED and peer.port not in self.denied_ports

    def _passes(self, ip: IPAddress) -> bool:
        version, number = ip.version, int(ip)

        def sizes(ranges: list[AddressRange]) -> Iterator[int]:
            return (r.size for r in ranges if r.version == version and r.first <= number <= r.last)

        if any(sizes(self._never)):
            return False
        denial = min(sizes(self._denied), default=None)
        return denial is None or any(size <= denial for size in sizes(self._allowed))

    def restricted_ports(self, ip: IPAddress) -> frozenset[int] | None:
        """The ports of a restricted address that may be reached now; None when `ip` is not restricted."""
        ports = self._restricted.get(ip)
        return None if ports is None else frozenset(ports)

    def relay_opened(self, relay: TransportAddress) -> None:
        """`relay` became a live relayed address, as peers know it."""
        if (ports := self._restricted.get(relay.ip)) is not None:
            ports.add(relay.port)

    def relay_closed(self, relay: TransportAddress) -> None:
        """`relay` is gone."""
        if (ports := self._restricted.get(relay.ip)) is not None and relay not in self._endpoints:
            ports.discard(relay.port)


def _within(inner: AddressRange, outer: AddressRange) -> bool:
    return inner.version == outer.version and outer.first <= inner.first and inner.last <= outer.last
