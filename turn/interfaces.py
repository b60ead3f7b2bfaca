"""The addresses of this machine, from the kernel's tables: peers must not reach them through us (X5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from wire.stun import IPAddress


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
