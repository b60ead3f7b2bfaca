from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turn.interfaces import parse_fib_trie, parse_if_inet6
from turn.limits import Pace, Quota, SourceLimiter, TokenBucket, network_of
from turn.relayports import PortPool


class TestPace:
    """X16, for streams."""

    def test_what_is_too_fast_waits(self) -> None:
        pace = Pace(8000)
        assert pace.charge(500, 10.0) == pytest.approx(0.5)
        assert pace.charge(500, 10.0) == pytest.approx(1.0)
        assert pace.charge(100, 20.0) == pytest.approx(0.1)

    def test_0_is_no_limit(self) -> None:
        assert Pace(0).charge(1 << 40, 0.0) == 0


class TestTokenBucket:
    def test_burst_then_rate(self) -> None:
        bucket = TokenBucket(10.0, 20.0, 0.0)
        assert sum(bucket.take(1, 0.0) for _ in range(30)) == 20
        assert sum(bucket.take(1, 1.0) for _ in range(30)) == 10
        assert sum(bucket.take(1, 100.0) for _ in range(30)) == 20

    def test_all_or_none(self) -> None:
        bucket = TokenBucket(1.0, 5.0, 0.0)
        assert not bucket.take(6, 0.0)
        assert bucket.take(5, 0.0)

    def test_a_rate_of_zero_is_no_limit(self) -> None:
        assert all(TokenBucket(0, 0, 0.0).take(1000, 0.0) for _ in range(100))

    def test_time_that_goes_backwards_gives_nothing(self) -> None:
        bucket = TokenBucket(10.0, 10.0, 100.0)
        assert bucket.take(10, 100.0)
        assert not bucket.take(1, 50.0)


class TestSourceLimiter:
    @given(st.lists(st.ip_addresses(), max_size=50))
    def test_the_table_never_grows(self, sources: list[object]) -> None:
        limiter = SourceLimiter(1.0, 1.0)
        size = len(limiter._slots)
        for source in sources:
            limiter.take(source, 0.0)  # type: ignore[arg-type]
        assert len(limiter._slots) == size

    def test_ipv6_sources_count_by_network(self) -> None:
        limiter = SourceLimiter(1.0, 1.0)
        assert limiter.take(ip_address("2620:fe::1"), 0.0)
        assert not limiter.take(ip_address("2620:fe::2"), 0.0)


def test_one_source_is_an_ipv4_address_or_an_ipv6_network() -> None:
    networks = [network_of(ip_address(host)) for host in ("8.8.8.8", "8.8.8.9", "2620:fe::1", "2620:fe::2")]
    assert networks[0] != networks[1]
    assert networks[2] == networks[3]
    assert network_of(ip_address("0.0.0.1")) != network_of(ip_address("::1:0:0:0:0"))


class TestQuota:
    def test_each_key_has_its_own_and_empty_ones_are_forgotten(self) -> None:
        quota = Quota(2)
        assert [quota.take("a"), quota.take("a"), quota.take("a"), quota.take("b")] == [True, True, False, True]
        assert len(quota) == 2
        for key in ("a", "a", "b"):
            quota.release(key)
        assert len(quota) == 0
        assert quota.take("a")


class TestPortPool:
    def test_every_port_is_found_before_the_pool_is_empty(self) -> None:
        pool = PortPool(50000, 50099)
        ports = set()
        while (port := next(pool.candidates(), None)) is not None:
            pool.take(port)
            ports.add(port)
        assert ports == set(range(50000, 50100))
        assert len(pool) == 0

    def test_pairs_are_even_with_a_free_neighbour_inside_the_range(self) -> None:
        pool = PortPool(50001, 50005)
        pool.take(50003)
        assert set(pool.candidates(pair=True)) == {50004}
        assert set(pool.candidates(even=True)) == {50002, 50004}


FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 172.17.0.2
        /32 host LOCAL
"""
IF_INET6 = (
    "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000004200fffe110002 02 40 20 80   eth0\n"
)


class TestInterfaces:
    """X5."""

    def test_ipv4(self) -> None:
        assert parse_fib_trie(FIB_TRIE) == {ip_address("127.0.0.1"), ip_address("172.17.0.2")}

    def test_ipv6(self) -> None:
        assert parse_if_inet6(IF_INET6) == {ip_address("::1"), ip_address("fe80::42:ff:fe11:2")}

    @pytest.mark.parametrize("parse", [parse_fib_trie, parse_if_inet6])
    def test_nothing(self, parse: object) -> None:
        assert callable(parse)
        assert parse("") == set()
