"""Handshakes and connections per address, IPv6 by /64; messages per connection; all in bounded memory."""

from __future__ import annotations

from hibernation.admission import AddressCounts, HandshakeRate, MessageRate, client_address


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


def test_messages_are_counted_by_connection_and_second() -> None:
    rate = MessageRate(2)
    assert [rate.admit(1, 10.0) for _ in range(3)] == [True, True, False]
    assert rate.admit(2, 10.9)
    assert not rate.admit(1, 10.9)
    assert rate.admit(1, 11.0)
    assert len(rate._counts) == 1  # whoever was silent since is forgotten


def test_an_address_with_all_its_connections_is_full_until_one_ends() -> None:
    counts = AddressCounts(2)
    counts.add("2001:db8::1")
    counts.add("2001:db8::2")
    assert counts.is_full("2001:db8::3")
    assert not counts.is_full("192.0.2.1")
    assert not counts.is_full(None)
    counts.remove("2001:db8::2")
    assert not counts.is_full("2001:db8::3")
    counts.remove("2001:db8::1")
    assert len(counts) == 0


def test_no_limit_counts_nothing() -> None:
    counts = AddressCounts(0)
    counts.add("192.0.2.1")
    counts.remove("192.0.2.1")
    assert (len(counts), counts.is_full("192.0.2.1")) == (0, False)
