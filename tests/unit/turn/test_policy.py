from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.turn_harness import address
from turn.errors import ConfigurationError
from turn.policy import DENIED_IPV4, DENIED_IPV6, NEVER_ALLOWED, PeerPolicy, Verdict, canonical_forms, parse_range

ALLOWED, DENIED, RESTRICTED = Verdict.ALLOWED, Verdict.DENIED, Verdict.RESTRICTED


def check(host: str, **options: Any) -> Verdict:
    return PeerPolicy(**options).check(ip_address(host))


def encodings(ipv4: str) -> list[str]:
    """Every way to hide an IPv4 address in an IPv6 one that we know of (X1)."""
    number = int(IPv4Address(ipv4))
    return [
        ipv4,
        f"::ffff:{ipv4}",
        f"::{ipv4}",
        str(IPv6Address((0x0064FF9B << 96) | number)),
        str(IPv6Address((0x0064FF9B0001 << 80) | number)),
        str(IPv6Address((0x2002 << 112) | (number << 80) | 1)),
    ]


class TestDefaults:
    """X1 to X4. CVE-2020-26262, CVE-2026-27624, GHSA-w4hf-cr3w-6h79."""

    @pytest.mark.parametrize("ipv4", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "0.0.0.0", "127.255.255.254"])
    def test_x1_every_encoding_of_a_denied_address_is_denied(self, ipv4: str) -> None:
        assert [check(host) for host in encodings(ipv4)] == [DENIED] * 6

    @pytest.mark.parametrize("network", DENIED_IPV4 + DENIED_IPV6)
    def test_x2_x3_first_and_last_address_of_each_range_are_denied(self, network: str) -> None:
        r = parse_range(network)
        kind = IPv4Address if r.version == 4 else IPv6Address
        assert check(str(kind(r.first))) is DENIED
        assert check(str(kind(r.last))) is DENIED

    @pytest.mark.parametrize(
        "host",
        ["1.0.0.0", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255", "2620:fe::9"],
    )
    def test_x2_x3_neighbours_outside_are_allowed(self, host: str) -> None:
        assert check(host) is ALLOWED

    @pytest.mark.parametrize(
        "host", ["168.63.129.16", "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"]
    )
    def test_x4_metadata_and_platform_hosts(self, host: str) -> None:
        assert check(host) is DENIED

    @pytest.mark.parametrize("host", ["2002:808:808::1", "2001:0:1::1", "2001::"])
    def test_v2_tunnels_are_denied(self, host: str) -> None:
        assert check(host) is DENIED

    def test_x5_our_own_addresses_are_denied_in_every_encoding(self) -> None:
        own = [ip_address("198.41.0.4"), ip_address("2620:fe::fe")]
        assert {check(host, own_addresses=own) for host in [*encodings("198.41.0.4"), "2620:fe::fe"]} == {DENIED}


class TestAllowed:
    """X6, X7."""

    def test_x6_the_most_specific_range_wins(self) -> None:
        options = {"allowed": ["10.1.0.0/16"], "denied": ["10.1.2.0/24"]}
        assert check("10.1.1.1", **options) is ALLOWED
        assert check("10.1.2.1", **options) is DENIED
        assert check("10.2.0.1", **options) is DENIED
        assert check("10.1.2.3", allowed=["10.1.2.3"], denied=["10.1.2.0/24"]) is ALLOWED

    def test_x6_a_wide_range_lifts_nothing_narrower(self) -> None:
        for host in ("10.0.0.1", "127.0.0.1", "192.168.1.1", "0.0.0.1"):
            assert check(host, allowed=["0.0.0.0/0"]) is DENIED

    @pytest.mark.parametrize("network", [*NEVER_ALLOWED, "2002:a00::/24", "0.0.0.0", "2001::1"])
    def test_x6_what_can_never_be_lifted_stops_the_start(self, network: str) -> None:
        with pytest.raises(ConfigurationError):
            PeerPolicy(allowed=[network], allow_loopback=True)

    @pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1", "::1"])
    def test_x6_loopback_needs_its_own_flag(self, network: str) -> None:
        with pytest.raises(ConfigurationError):
            PeerPolicy(allowed=[network])
        assert check("127.0.0.1", allow_loopback=True) is ALLOWED
        assert check("::1", allow_loopback=True) is ALLOWED
        assert check("::ffff:127.0.0.1", allow_loopback=True) is ALLOWED
        assert check("10.0.0.1", allow_loopback=True) is DENIED

    @pytest.mark.parametrize(
        "text", ["10.0.0.1/8", "10.0.0/8", "x", "", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "1.2.3.4/33"]
    )
    def test_x6_a_malformed_range_stops_the_start(self, text: str) -> None:
        for option in ("allowed", "denied"):
            with pytest.raises(ConfigurationError):
                PeerPolicy(**{option: [text]})  # type: ignore[arg-type]

    def test_x7_a_range_that_is_not_aligned_compares_as_one_number(self) -> None:
        """coturn 6c13608c compared byte by byte."""
        denied = ["2620:fe::100-2620:fe::200"]
        assert check("2620:fe::1ff", denied=denied) is DENIED
        assert check("2620:fe::100", denied=denied) is DENIED
        assert check("2620:fe::200", denied=denied) is DENIED
        assert check("2620:fe::ff", denied=denied) is ALLOWED
        assert check("2620:fe::201", denied=denied) is ALLOWED

    @given(st.ip_addresses(v=6), st.ip_addresses(v=6), st.ip_addresses(v=6))
    def test_x7_for_any_range(self, a: IPv6Address, b: IPv6Address, ip: IPv6Address) -> None:
        first, last = min(a, b), max(a, b)
        assert (ip in parse_range(f"{first}-{last}")) is (first <= ip <= last)

    @given(st.ip_addresses(v=4))
    def test_x1_a_hidden_address_is_never_more_welcome_than_a_plain_one(self, ip: IPv4Address) -> None:
        policy = PeerPolicy()
        if policy.check(ip) is DENIED:
            assert all(policy.check(ip_address(host)) is DENIED for host in encodings(str(ip)))

    def test_canonical_forms_list_the_address_and_what_it_hides(self) -> None:
        for host in encodings("10.0.0.5")[1:]:
            assert canonical_forms(ip_address(host)) == (ip_address(host), ip_address("10.0.0.5"))
        assert canonical_forms(ip_address("2620:fe::9")) == (ip_address("2620:fe::9"),)


class TestRestricted:
    """X8: our own relay addresses, and the endpoints beside us."""

    RELAY = ip_address("198.41.0.10")

    def policy(self) -> PeerPolicy:
        return PeerPolicy(
            relay_addresses=[self.RELAY],
            own_addresses=[self.RELAY, ip_address("10.0.0.9")],
            allowed_endpoints=[address("10.0.0.9", 8787), address("198.41.0.10", 8787)],
        )

    def test_x8_only_live_relayed_ports_of_our_relay_address_pass(self) -> None:
        policy, relay = self.policy(), address("198.41.0.10", 50000)
        assert policy.check(self.RELAY) is RESTRICTED
        assert not policy.check_endpoint(relay)
        policy.relay_opened(relay)
        assert policy.check_endpoint(relay)
        assert not policy.check_endpoint(address("198.41.0.10", 50001))
        assert not policy.check_endpoint(address("198.41.0.10", 3478))
        policy.relay_closed(relay)
        assert not policy.check_endpoint(relay)

    def test_x8_hidden_in_ipv6_it_is_denied(self) -> None:
        policy = self.policy()
        assert {policy.check(ip_address(host)) for host in encodings("198.41.0.10")[1:]} == {DENIED}

    def test_an_allowed_endpoint_is_one_port_of_a_denied_address(self) -> None:
        policy = self.policy()
        assert policy.check_endpoint(address("10.0.0.9", 8787))
        assert not policy.check_endpoint(address("10.0.0.9", 8788))
        assert policy.check(ip_address("10.0.0.8")) is DENIED

    def test_a_closed_relay_does_not_take_an_allowed_endpoint_with_it(self) -> None:
        policy, endpoint = self.policy(), address("198.41.0.10", 8787)
        policy.relay_opened(endpoint)
        policy.relay_closed(endpoint)
        assert policy.check_endpoint(endpoint)


class TestPorts:
    """X9."""

    @pytest.mark.parametrize("port", [0, 17, 19, 53, 111, 123, 137, 161, 389, 1900, 11211])
    def test_x9_reflectors_are_never_reached(self, port: int) -> None:
        assert not PeerPolicy().check_endpoint(address("9.9.9.9", port))

    def test_x9_a_least_port(self) -> None:
        policy = PeerPolicy(min_port=1024, denied_ports=())
        assert not policy.check_endpoint(address("9.9.9.9", 1023))
        assert policy.check_endpoint(address("9.9.9.9", 1024))
        assert not PeerPolicy(denied_ports=()).check_endpoint(address("9.9.9.9", 0))
