"""What candidates say when nobody said what they should."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from torpor.addresses import announced_addresses
from torpor.errors import StartRefused


def test_configured_addresses_are_announced_as_they_are() -> None:
    assert announced_addresses(("0.0.0.0", "10.0.0.1"), ("203.0.113.7",)) == ("203.0.113.7",)


def test_bound_addresses_are_announced_as_they_are() -> None:
    assert announced_addresses(("127.0.0.1", "::1"), ()) == ("127.0.0.1", "::1")


def test_all_addresses_become_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", FakeProbe)
    assert announced_addresses(("0.0.0.0", "::", "10.0.0.1"), ()) == ("198.51.100.1", "2001:db8::7", "10.0.0.1")


def test_without_a_route_the_operator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProbe, "has_route", False)
    monkeypatch.setattr(socket, "socket", FakeProbe)
    with pytest.raises(StartRefused, match=r"media\.announced_addresses"):
        announced_addresses(("0.0.0.0",), ())


class FakeProbe:
    """A UDP socket of a machine with two addresses."""

    has_route = True

    def __init__(self, family: int, kind: int) -> None:
        assert kind == socket.SOCK_DGRAM
        self._own = "2001:db8::7" if family == socket.AF_INET6 else "198.51.100.1"

    def __enter__(self) -> FakeProbe:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def connect(self, address: tuple[str, int]) -> None:
        assert not ipaddress.ip_address(address[0]).is_loopback
        if not self.has_route:
            raise OSError("Network is unreachable")

    def getsockname(self) -> tuple[str, int]:
        return (self._own, 50000)
