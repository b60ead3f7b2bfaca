"""Permissions: which peer addresses may talk through a relay (RFC 8656 §9; rules P1 to P5).

A permission covers an IP address; ports are ignored. It is renewed by CreatePermission and ChannelBind only, never by
data. The relay plane holds the same table and enforces it per packet; this one decides what a request may change.
"""

from __future__ import annotations

from collections.abc import Iterable

from wire.stun import IPAddress

PERMISSION_LIFETIME = 300.0  # §9: not negotiable


class PermissionTable:
    """The permissions of one relay: at most `size_max` live ones, expired ones give way (X14)."""

    __slots__ = ("_expiries", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._expiries: dict[IPAddress, float] = {}
        self._size_max = size_max

    def covers(self, ip: IPAddress, now: float) -> bool:
        """Whether `ip` may send and be sent to."""
        return now < self._expiries.get(ip, now)

    def live(self, now: float) -> list[IPAddress]:
        """The addresses that are permitted."""
        return [ip for ip, expires_at in self._expiries.items() if now < expires_at]

    def new_among(self, ips: Iterable[IPAddress], now: float) -> int:
        """How many different addresses of `ips` have no live permission yet."""
        return len({ip for ip in ips if not self.covers(ip, now)})

    def has_room(self, count: int, now: float) -> bool:
        """Whether `count` new addresses fit; forgets the expired ones."""
        self._expiries = {ip: expires_at for ip, expires_at in self._expiries.items() if now < expires_at}
        return len(self._expiries) + count <= self._size_max

    def install(self, ip: IPAddress, expires_at: float) -> float:
        """Permit `ip` until `expires_at`, or as long as it already was if that is later. Returns the time in force."""
        expires_at = max(expires_at, self._expiries.get(ip, expires_at))
        self._expiries[ip] = expires_at
        return expires_at

    def remove(self, ip: IPAddress) -> None:
        """End the permission now: the policy changed (D5)."""
        self._expiries.pop(ip, None)
