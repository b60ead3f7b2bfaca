import itertools
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from tests.support.turn_harness import (
    PEER,
    PEER_V6,
    RELAY_IPV4,
    RELAY_IPV6,
    UDP_RELAY,
    Client,
    Harness,
    code,
    lifetime,
    relayed,
)
from turn._reference import Dropped, ToPeer
from turn.allocation import CloseReason, Transport
from turn.allocations import Redirect
from turn.errors import ConfigurationError
from turn.events import AllocationClosed, AllocationCreated
from turn.relaypool import RESERVATIONS_PER_IDENTITY
from turn.relayports import PortPool
from wire import stun
from wire.stun import Attr, MessageClass, Method, TransportAddress

IPV4 = stun.uint32(1 << 24)
IPV6 = stun.uint32(2 << 24)
RESERVE = b"\x80"


class TestChecksInOrder:
    """RFC 8656 §7.2, rows A1 to A19."""

    def test_a1_no_credentials_are_challenged(self) -> None:
        assert code(Client(Harness()).learn_nonce()) == 401

    def test_a2_a_second_allocation_on_the_five_tuple_is_437(self) -> None:
        client = Client(Harness())
        assert code(client.allocate()) == 0
        assert code(client.allocate()) == 437

    def test_a3_requested_transport_missing_is_400(self) -> None:
        assert code(Client(Harness()).request(Method.ALLOCATE, (Attr.LIFETIME, stun.uint32(600)))) == 400

    @pytest.mark.parametrize("value", [b"", b"\x11", b"\x11\0\0", b"\x11\0\0\0\0"])
    def test_a3_requested_transport_malformed_is_400(self, value: bytes) -> None:
        assert code(Client(Harness()).request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, value))) == 400

    @pytest.mark.parametrize("protocol", [0, 6, 16, 18, 255])
    def test_a4_tc1_transports_other_than_udp_are_442(self, protocol: int) -> None:
        request = (Attr.REQUESTED_TRANSPORT, stun.uint32(protocol << 24))
        assert code(Client(Harness()).request(Method.ALLOCATE, request)) == 442

    def test_a5_dont_fragment_is_accepted(self) -> None:
        assert code(Client(Harness()).allocate((Attr.DONT_FRAGMENT, b""))) == 0

    @pytest.mark.parametrize(
        "other",
        [(Attr.EVEN_PORT, b"\0"), (Attr.REQUESTED_ADDRESS_FAMILY, IPV4), (Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6)],
    )
    def test_a6_a_token_excludes_other_wishes(self, other: tuple[int, bytes]) -> None:
        assert code(Client(Harness(ipv6=True)).allocate((Attr.RESERVATION_TOKEN, bytes(8)), other)) == 400

    def test_a7_an_unknown_token_is_508(self) -> None:
        assert code(Client(Harness()).allocate((Attr.RESERVATION_TOKEN, bytes(8)))) == 508

    def test_a7_a_used_token_is_508(self) -> None:
        harness = Harness()
        token = Client(harness).allocate((Attr.EVEN_PORT, RESERVE)).get(Attr.RESERVATION_TOKEN) or b""
        assert code(Client(harness).allocate((Attr.RESERVATION_TOKEN, token))) == 0
        assert code(Client(harness).allocate((Attr.RESERVATION_TOKEN, token))) == 508

    def test_a8_both_family_attributes_are_400(self) -> None:
        client = Client(Harness(ipv6=True))
        assert (
            code(client.allocate((Attr.REQUESTED_ADDRESS_FAMILY, IPV4), (Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))) == 400
        )

    @pytest.mark.parametrize("family", [0, 2, 3, 255])
    def test_a9_a_family_that_is_unknown_or_not_served_is_440(self, family: int) -> None:
        assert code(Client(Harness()).allocate((Attr.REQUESTED_ADDRESS_FAMILY, stun.uint32(family << 24)))) == 440

    @pytest.mark.parametrize("host", ["9.9.9.9", "2620:fe::77"])
    def test_a10_without_a_wish_the_relay_is_ipv4_whatever_the_client_uses(self, host: str) -> None:
        assert relayed(Client(Harness(ipv6=True), host=host).allocate())[0].ip == RELAY_IPV4

    def test_a9_ipv6_is_given_when_asked_for(self) -> None:
        answer = Client(Harness(ipv6=True)).allocate((Attr.REQUESTED_ADDRESS_FAMILY, IPV6))
        assert [relay.ip for relay in relayed(answer)] == [RELAY_IPV6]

    def test_a11_an_additional_ipv4_relay_is_400(self) -> None:
        assert code(Client(Harness(ipv6=True)).allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV4))) == 400

    def test_a11_an_additional_relay_and_a_reservation_are_400(self) -> None:
        client = Client(Harness(ipv6=True))
        assert code(client.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6), (Attr.EVEN_PORT, RESERVE))) == 400

    def test_a12_a_dual_allocation_has_two_relayed_addresses(self) -> None:
        client = Client(Harness(ipv6=True))
        answer = client.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))
        assert [relay.ip for relay in relayed(answer)] == [RELAY_IPV4, RELAY_IPV6]
        assert code(client.permit(PEER, PEER_V6)) == 0
        assert isinstance(client.send_indication(PEER, b"x"), ToPeer)
        assert isinstance(client.send_indication(PEER_V6, b"x"), ToPeer)

    def test_a13_only_one_family_obtainable_is_a_success_with_address_error_code(self) -> None:
        answer = Client(Harness()).allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))
        assert len(relayed(answer)) == 1
        assert answer.get(Attr.ADDRESS_ERROR_CODE) == bytes((2, 0, 4, 40))

    def test_a13_either_family_may_be_the_one(self) -> None:
        harness = Harness(ipv6=True, ports=(50000, 50000))
        harness.pools[0].take(50000)
        answer = Client(harness).allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))
        assert [relay.ip for relay in relayed(answer)] == [RELAY_IPV6]
        assert answer.get(Attr.ADDRESS_ERROR_CODE) == bytes((1, 0, 5, 8))
        assert code(Client(harness).allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))) == 508
        harness.close()

    def test_a14_even_port_is_even_and_its_neighbour_stays_free(self) -> None:
        """GHSA-847g-qmc6-6m4r leaked a port each time."""
        harness = Harness(ports=(50000, 50003))
        free = len(harness.pools[0])
        for _ in range(1000):
            harness.advance(1)
            client = Client(harness)
            (relay,) = relayed(client.allocate((Attr.EVEN_PORT, b"\0")))
            assert relay.port % 2 == 0
            assert len(harness.pools[0]) == free - 1
            client.refresh(0)
            assert len(harness.pools[0]) == free

    def test_a15_a_reservation_holds_the_next_port_for_thirty_seconds(self) -> None:
        harness = Harness(ports=(50000, 50001))
        answer = Client(harness).allocate((Attr.EVEN_PORT, RESERVE))
        assert len(answer.get(Attr.RESERVATION_TOKEN) or b"") == 8
        assert relayed(answer)[0].port == 50000
        assert code(Client(harness).allocate()) == 508
        harness.advance(29)
        assert code(Client(harness).allocate()) == 508
        harness.advance(2)
        assert relayed(Client(harness).allocate())[0].port == 50001

    def test_a15_x13_nobody_hoards_ports_by_reserving_them(self) -> None:
        harness = Harness()
        client, other = Client(harness), Client(harness, "bob")
        asked = []
        for _ in range(RESERVATIONS_PER_IDENTITY + 1):
            asked.append(code(client.allocate((Attr.EVEN_PORT, RESERVE))))
            client.refresh(0)
        assert asked == [0] * RESERVATIONS_PER_IDENTITY + [508]
        assert code(other.allocate((Attr.EVEN_PORT, RESERVE))) == 0
        harness.advance(31)
        assert code(client.allocate((Attr.EVEN_PORT, RESERVE))) == 0
        harness.close()

    @pytest.mark.parametrize("transport", Transport)
    def test_a16_a_token_works_from_another_five_tuple_of_the_same_user_only(self, transport: Transport) -> None:
        harness = Harness()
        first = Client(harness).allocate((Attr.EVEN_PORT, RESERVE))
        token = (Attr.RESERVATION_TOKEN, first.get(Attr.RESERVATION_TOKEN) or b"")
        assert code(Client(harness, "bob", transport=transport).allocate(token)) == 508
        answer = Client(harness, transport=transport).allocate(token)
        assert relayed(answer)[0].port == relayed(first)[0].port + 1
        assert Attr.RESERVATION_TOKEN not in answer

    def test_a17_the_user_quota_is_486_and_counts_the_user_not_the_address(self) -> None:
        harness = Harness(allocations_per_user=2)
        clients = [Client(harness, host=f"9.9.9.{n}") for n in range(1, 4)]
        assert [code(client.allocate()) for client in clients] == [0, 0, 486]
        assert code(Client(harness, "bob").allocate()) == 0
        clients[0].refresh(0)
        assert code(clients[2].allocate()) == 0

    def test_x13_the_source_quota_is_486(self) -> None:
        harness = Harness(allocations_per_source=2)
        assert [code(Client(harness).allocate()) for _ in range(3)] == [0, 0, 486]
        assert code(Client(harness, host="9.9.9.8").allocate()) == 0

    def test_x13_one_ipv6_network_is_one_source(self) -> None:
        harness = Harness(allocations_per_source=2)
        hosts = ["2620:fe::1", "2620:fe::2", "2620:fe::3", "2620:fe:0:1::1"]
        clients = [Client(harness, host=host) for host in hosts]
        assert [code(client.allocate()) for client in clients] == [0, 0, 486, 0]
        clients[0].refresh(0)
        assert code(clients[2].allocate()) == 0
        harness.close()

    def test_a18_no_port_left_is_508(self) -> None:
        harness = Harness(ports=(50000, 50000))
        assert code(Client(harness).allocate((Attr.EVEN_PORT, RESERVE))) == 508
        assert code(Client(harness).allocate()) == 0
        assert code(Client(harness).allocate()) == 508

    def test_a18_the_total_quota_is_508(self) -> None:
        harness = Harness(allocations_max=2)
        assert [code(Client(harness).allocate()) for _ in range(3)] == [0, 0, 508]

    @pytest.mark.parametrize("host", ["2002:808:808::1", "2001:0:1::1"])
    def test_a19_v2_clients_inside_tunnels_are_403(self, host: str) -> None:
        assert code(Client(Harness(), host=host).allocate()) == 403

    @pytest.mark.parametrize("value", [b"", b"\0\0"])
    def test_s8_even_port_of_the_wrong_size_is_400(self, value: bytes) -> None:
        assert code(Client(Harness()).allocate((Attr.EVEN_PORT, value))) == 400

    @pytest.mark.parametrize("size", [0, 7, 9])
    def test_s8_a_token_of_the_wrong_size_is_400(self, size: int) -> None:
        assert code(Client(Harness()).allocate((Attr.RESERVATION_TOKEN, bytes(size)))) == 400

    def test_m1_mobility_is_refused_with_405(self) -> None:
        assert code(Client(Harness()).allocate((Attr.MOBILITY_TICKET, b""))) == 405

    def test_clients_of_old_drafts_get_a_single_ipv4_relay(self) -> None:
        """§18: 0x8032 and 0x8033 were the dual-allocation attributes of coturn 4.6."""
        answer = Client(Harness(ipv6=True)).allocate((0x8032, IPV6))
        assert [relay.ip for relay in relayed(answer)] == [RELAY_IPV4]


class TestSuccess:
    def test_a20_the_answer_has_relay_lifetime_mapped_address_and_integrity(self) -> None:
        client = Client(Harness())
        answer = client.allocate()
        assert answer.message_class == MessageClass.SUCCESS
        assert relayed(answer)[0].ip == RELAY_IPV4
        assert lifetime(answer) == 600
        assert answer.address(Attr.XOR_MAPPED_ADDRESS) == client.five_tuple.client
        assert answer.has_integrity
        assert Attr.SOFTWARE not in answer

    @pytest.mark.parametrize(
        ("asked", "granted"), [(None, 600), (60, 600), (0, 600), (1200, 1200), (10**6, 3600), (2**32 - 1, 3600)]
    )
    def test_a21_lifetimes(self, asked: int | None, granted: int) -> None:
        client = Client(Harness())
        attributes = [] if asked is None else [(int(Attr.LIFETIME), stun.uint32(asked))]
        assert lifetime(client.allocate(*attributes)) == granted
        assert lifetime(client.refresh(asked)) == (0 if asked == 0 else granted)

    def test_a22_ports_are_spread_over_the_whole_range_without_order(self) -> None:
        pool = PortPool(49152, 65535)
        ports = []
        for _ in range(1000):
            port = next(pool.candidates())
            pool.take(port)
            ports.append(port)
        assert len(set(ports)) == 1000
        assert min(ports) < 49152 + 1000
        assert max(ports) > 65535 - 1000
        rises = sum(a < b for a, b in itertools.pairwise(ports))
        assert 400 < rises < 600
        runs = sum((a < b) != (b < c) for a, b, c in zip(ports, ports[1:], ports[2:], strict=False))
        assert 560 < runs < 770  # two thirds for a random order

    def test_a22_privileged_ports_are_refused_at_start(self) -> None:
        for first, last in ((1023, 2000), (2000, 1999), (49152, 65536)):
            with pytest.raises(ConfigurationError):
                PortPool(first, last)

    def test_a22_a_port_held_by_another_process_is_skipped(self) -> None:
        harness = Harness(ports=(50000, 50001))
        harness.plane.refused_ports = {50000}
        assert relayed(Client(harness).allocate())[0].port == 50001
        assert code(Client(harness).allocate()) == 508

    def test_a23_behind_nat_the_external_address_is_told_and_the_local_one_bound(self) -> None:
        harness = Harness(external="198.51.101.7")
        client = Client(harness)
        (relay,) = relayed(client.allocate())
        assert relay.ip == ip_address("198.51.101.7")
        (row,) = harness.plane._rows.values()
        assert row.local == TransportAddress(RELAY_IPV4, relay.port)

    def test_created_and_closed_are_reported(self) -> None:
        harness = Harness()
        client = Client(harness)
        relay = tuple(relayed(client.allocate()))
        assert harness.server.events_received() == [AllocationCreated(client.five_tuple, "alice", relay)]
        client.permit(PEER)
        client.send_indication(PEER, b"12345")
        client.peer_sends(PEER, b"123")
        client.refresh(0)
        (closed,) = harness.server.events_received()
        assert isinstance(closed, AllocationClosed)
        assert closed.reason is CloseReason.DELETED
        assert closed.usage == (5, 1, 3, 1)


class TestFailureGivesEverythingBack:
    """A24."""

    @pytest.mark.parametrize("failing", ["open_relay", "start_relay"])
    @pytest.mark.parametrize("call", [1, 2])
    def test_a24_a_plane_that_fails_leaves_nothing_behind(
        self, failing: str, call: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        harness = Harness(ipv6=True)
        calls = 0
        original: Callable[..., Any] = getattr(harness.plane, failing)

        def fail(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError("no descriptors")
            return original(*args)

        monkeypatch.setattr(harness.plane, failing, fail)
        client = Client(harness)
        client.learn_nonce()
        assert code(client.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))) == 500
        counts = harness.server.live_counts()
        assert counts["allocations"] == counts["users"] == counts["sources"] == counts["relays"] == 0
        assert not harness.plane.live_counts()["relays"]
        assert all(len(pool) == 65535 - 49152 + 1 for pool in harness.pools)
        assert code(client.allocate()) == 0

    def test_a24_a_refused_reservation_gives_the_first_port_back(self) -> None:
        harness = Harness(ports=(50000, 50001))
        harness.plane.refused_ports = {50001}
        assert code(Client(harness).allocate((Attr.EVEN_PORT, RESERVE))) == 508
        assert len(harness.pools[0]) == 2
        harness.close()

    def test_a24_a_claim_that_fails_keeps_the_reservation(self) -> None:
        harness = Harness(allocations_max=1, ports=(50000, 50001))
        holder = Client(harness)
        token = holder.allocate((Attr.EVEN_PORT, RESERVE)).get(Attr.RESERVATION_TOKEN) or b""
        assert code(Client(harness).allocate((Attr.RESERVATION_TOKEN, token))) == 508
        holder.refresh(0)
        assert code(Client(harness).allocate((Attr.RESERVATION_TOKEN, token))) == 0

    def test_every_exit_path_releases_the_quotas_once(self) -> None:
        harness = Harness(allocations_per_user=1, allocations_per_source=1)
        for end in ("delete", "expire", "disconnect", "revoke"):
            client = Client(harness, transport=Transport.TCP)
            assert code(client.allocate()) == 0, end
            match end:
                case "delete":
                    client.refresh(0)
                case "expire":
                    harness.advance(601)
                case "disconnect":
                    harness.server.receive_disconnect(client.five_tuple, harness.now)
                    harness.server.receive_disconnect(client.five_tuple, harness.now)
                case "revoke":
                    harness.server.revoke("alice")
        harness.close()


class TestRetransmission:
    """S14."""

    def test_s14_the_same_transaction_gives_the_same_answer_and_one_port(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.learn_nonce()
        request = client.build(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
        first = harness.receive(request, client.five_tuple)
        assert first is not None
        assert harness.receive(request, client.five_tuple) == first
        assert harness.server.live_counts()["relays"] == 1

    def test_s14_a_deletion_sent_again_is_still_a_success(self) -> None:
        client = Client(Harness())
        client.allocate()
        request = client.build(Method.REFRESH, (Attr.LIFETIME, stun.uint32(0)))
        assert code(client.send(request)) == 0
        assert code(client.send(request)) == 0
        assert code(client.refresh(0)) == 437

    def test_s14_after_forty_seconds_the_transaction_is_forgotten(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.learn_nonce()
        request = client.build(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
        assert code(client.send(request)) == 0
        harness.advance(41)
        assert code(client.send(request)) == 437
        assert harness.server.live_counts()["transactions"] == 1

    def test_another_client_cannot_fetch_the_answer(self) -> None:
        harness = Harness()
        client, other = Client(harness), Client(harness)
        client.learn_nonce()
        request = client.build(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))
        client.send(request)
        assert code(other.send(request)) == 438


class TestExpiry:
    def test_g7_rf4_an_allocation_ends_with_its_lifetime_whatever_flows_and_whatever_the_wall_clock_does(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        client.permit(PEER)
        for second in range(600):
            harness.unix_time = 1.8e9 + (86400 if second % 2 else -86400)
            harness.advance(1)
            client.send_indication(PEER, b"x")
        assert harness.server.has_allocation(client.five_tuple) is False
        harness.advance(5)
        assert client.send_indication(PEER, b"x") == Dropped("no_allocation")
        harness.close()

    def test_refreshing_often_keeps_the_timer_queue_short(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        for n in range(500):
            harness.advance(1)
            assert code(client.refresh(600 if n % 2 else 3600)) in (0, 438)
        assert len(harness.server._allocations._expiries) < 10

    def test_x14_allocations_that_come_and_go_leave_no_timers(self) -> None:
        harness = Harness()
        client = Client(harness)
        for _ in range(500):
            assert code(client.allocate((Attr.LIFETIME, stun.uint32(3600)))) == 0
            assert code(client.refresh(0)) == 0
        staying = [Client(harness, host=f"9.9.8.{n}") for n in range(50)]
        for one in staying:
            assert code(one.allocate()) == 0
        assert len(harness.server._allocations._expiries) < 200
        harness.advance(601)
        assert harness.server.live_counts()["allocations"] == 0
        harness.close()


class TestRedirect:
    ALTERNATE = stun.plain_address(("198.41.0.200", 3478))

    def redirected(self, host: str, transport: Transport, **options: Any) -> stun.Message:
        harness = Harness()
        redirect = Redirect((TransportAddress(ip_address("198.41.0.200"), 3478),), **options)
        harness.server.drain(redirect)
        return Client(harness, host=host, transport=transport).allocate()

    def test_r1_draining_sends_new_clients_to_a_server_of_their_family(self) -> None:
        answer = self.redirected("9.9.9.9", Transport.UDP, domain="turn.example")
        assert code(answer) == 300
        assert answer.get(Attr.ALTERNATE_SERVER) == self.ALTERNATE
        assert Attr.ALTERNATE_DOMAIN not in answer
        assert answer.has_integrity

    def test_r1_over_tls_the_certificate_name_comes_along(self) -> None:
        answer = self.redirected("9.9.9.9", Transport.TLS, domain="turn.example")
        assert answer.get(Attr.ALTERNATE_DOMAIN) == b"turn.example"

    def test_r1_another_family_is_not_redirected(self) -> None:
        assert code(self.redirected("2620:fe::77", Transport.UDP)) == 508

    def test_r2_r3_those_that_live_go_on(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        harness.server.drain()
        assert code(Client(harness).allocate()) == 508
        assert [code(client.refresh(600)), code(client.permit(PEER)), code(client.bind(0x4000, PEER))] == [0, 0, 0]
