"""Which addresses clients are told to send media to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

from torpor.errors import StartRefused

# Documentation networks (RFC 5737, RFC 3849): never local, so the default route decides. Nothing is sent there.
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def announced_addresses(
    bound: Sequence[str], configured: Sequence[str], *, setting: str = "media.announced_addresses"
) -> tuple[str, ...]:
    """The configured addresses, else those bound; in place of `0.0.0.0` and `::`, this machine's own.

    Args:
        bound, configured: IP addresses.
        setting: what an operator should set where the machine cannot tell.

    Raises:
        StartRefused: all addresses are bound and this machine has no route that would tell one.
    """
    if configured:
        return tuple(configured)
    return tuple(
        _own_address(address, setting) if ipaddress.ip_address(address).is_unspecified else address for address in bound
    )


def _own_address(wildcard: str, setting: str) -> str:
    """The address from which this machine reaches others, by its routing table."""
    family = socket.AF_INET6 if ":" in wildcard else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[family], 9))
        except OSError as error:
            raise StartRefused(
                f"bound to {wildcard}, and no route tells which address clients reach: set {setting}"
            ) from error
        return str(probe.getsockname()[0])


class Networks:
    """Addresses and networks that an address may be in, as `address in networks`.

    Args:
        entries: checked ones: IP addresses, or networks in CIDR notation.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(entry) for entry in entries]

    def __contains__(self, address: object) -> bool:
        try:
            parsed = ipaddress.ip_address(str(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)
