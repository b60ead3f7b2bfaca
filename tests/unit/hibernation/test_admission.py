"""Handshakes per address: a bucket each, IPv6 by /64, in bounded memory."""

from __future__ import annotations

from hibernation.admission import HandshakeRate, client_address


def test_a_burst_is_admitted_then_the_rate() -> None:
    rate = HandshakeRate(2.0, 3)
    assert [rate.admit("192.0.2.1", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert rate.admit("192.0.2.2", 10.0)
    assert not rate.admit("192.0.2.1", 10.4)
    assert rate.admit("192.0.2.1", 10.6)
    assert [rate.admit("192.0.2.1", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_one_ipv6_network_is_one_address() -> None:
    rate = HandshakeRate(1.0, 1)
    assert rate.admit("2001:db8::1", 0.0)
    assert not rate.admit("2001:db8::ffff%eth0", 0.0)
    assert rate.admit("2001:db8:0:1::1", 0.0)


def test_a_mapped_address_is_its_ipv4_address() -> None:
    rate = HandshakeRate(1.0, 1)
    assert rate.admit("::ffff:192.0.2.1", 0.0)
    assert not rate.admit("192.0.2.1", 0.0)
    assert rate.admit("::ffff:192.0.2.2", 0.0)


def test_no_rate_admits_everything() -> None:
    rate = HandshakeRate(0.0, 1)
    assert all(rate.admit("192.0.2.1", 0.0) for _ in range(100))


def test_memory_is_bounded_and_the_longest_unused_is_forgiven_first() -> None:
    rate = HandshakeRate(0.001, 1, max_addresses=2)
    assert rate.admit("a", 0.0)
    assert rate.admit("b", 0.0)
    assert not rate.admit("a", 0.0)
    assert rate.admit("c", 0.0)  # forgets b
    assert not rate.admit("a", 0.0)
    assert rate.admit("b", 0.0)


def test_only_trusted_proxies_say_who_the_client_is() -> None:
    ours = {"10.0.0.1", "10.0.0.2"}
    assert client_address("203.0.113.9", ["198.51.100.1"], ours) == "203.0.113.9"
    assert client_address("10.0.0.1", ["198.51.100.1"], ours) == "198.51.100.1"
    assert client_address("10.0.0.1", ["6.6.6.6, 198.51.100.1", " 10.0.0.2"], ours) == "198.51.100.1"
    assert client_address("10.0.0.1", [], ours) == "10.0.0.1"
    assert client_address("10.0.0.1", [" , "], ours) == "10.0.0.1"
