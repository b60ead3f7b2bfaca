"""Addresses: as settings name them, and those of this machine, which peers must not reach through us (X5)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from turn.errors import ConfigurationError
from wire.stun import IPAddress, TransportAddress


def parse_fib_trie(text: str) -> set[IPAddress]:
    """The IPv4 addresses in `/proc/net/fib_trie`: leaves (`|-- address`) followed by a `/32 host LOCAL` line."""
    found: set[IPAddress] = set()
    leaf = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("|-- "):
            leaf = stripped[4:]
        elif stripped == "/32 host LOCAL":
            found.add(IPv4Address(leaf))
    return found


def parse_if_inet6(text: str) -> set[IPAddress]:
    """The IPv6 addresses in `/proc/net/if_inet6`: the first column, 32 hex digits."""
    return {IPv6Address(int(line.split()[0], 16)) for line in text.splitlines() if line.strip()}


def machine_addresses() -> set[IPAddress]:
    """Those of all interfaces, of both families."""
    found: set[IPAddress] = set()
    for path, parse in (("/proc/net/fib_trie", parse_fib_trie), ("/proc/net/if_inet6", parse_if_inet6)):
        try:
            found |= parse(Path(path).read_text())
        except FileNotFoundError:  # a kernel without the family
            continue
    return found


def expand(hosts: Sequence[str], machine: set[IPAddress]) -> list[IPAddress]:
    """The addresses to bind: a wildcard becomes every address of its family but loopback and link-local (T9).

    Raises:
        ConfigurationError: not an address, or this machine has none of the family.
    """
    found: dict[IPAddress, None] = {}
    for host in hosts:
        ip = parse_address("listen_addresses and relay_addresses", host)
        if not ip.is_unspecified:
            found[ip] = None
            continue
        own = [m for m in machine if m.version == ip.version and not m.is_loopback and not m.is_link_local]
        if not own:
            raise ConfigurationError(f"{host}: this machine has no such address")
        found |= dict.fromkeys(sorted(own, key=int))
    return list(found)


def parse_address(setting: str, text: str) -> IPAddress:
    """An IP address.

    Raises:
        ConfigurationError: it is none; names the setting.
    """
    try:
        return ip_address(text)
    except ValueError:
        raise ConfigurationError(f"{setting}: not an IP address: {text!r}") from None


def parse_endpoint(text: str) -> TransportAddress:
    """`address:port`, an IPv6 address in brackets.

    Raises:
        ConfigurationError: it is not.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"allow_endpoints: not address:port: {text!r}")
    return TransportAddress(parse_address("allow_endpoints", host.strip("[]")), int(port))
