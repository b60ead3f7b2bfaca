"""Requests other than Allocate: what is answered, what is dropped, who may change what."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.turn_harness import (
    PEER,
    PEER_V6,
    RELAY_IPV6,
    SERVER,
    UDP_RELAY,
    Client,
    Harness,
    address,
    code,
    lifetime,
    relayed,
)
from turn._reference import Dropped, ToClient, ToPeer
from turn.allocation import FiveTuple, Transport
from turn.policy import PeerPolicy
from turn.server import REQUEST_BYTES_MAX
from wire import stun
from wire.stun import Attr, MessageClass, Method, TransportAddress

IPV4, IPV6 = stun.uint32(1 << 24), stun.uint32(2 << 24)
TID = bytes(range(1, 13))
ALLOWED_CLASSES = {
    Method.BINDING: MessageClass.REQUEST,
    Method.ALLOCATE: MessageClass.REQUEST,
    Method.REFRESH: MessageClass.REQUEST,
    Method.CREATE_PERMISSION: MessageClass.REQUEST,
    Method.CHANNEL_BIND: MessageClass.REQUEST,
}


def udp(host: str = "9.9.9.9", port: int = 4000) -> FiveTuple:
    return FiveTuple(Transport.UDP, address(host, port), SERVER)


class TestWireFormat:
    @pytest.mark.parametrize("message_class", MessageClass)
    @pytest.mark.parametrize("method", [*Method, 0x000, 0x002, 0x005, 0x00D, 0xFFF])
    def test_s2_only_requests_of_the_served_methods_are_answered(self, method: int, message_class: int) -> None:
        data = stun.serialize(method, message_class, TID, [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)])
        answered = Harness().receive(data, udp()) is not None
        assert answered is (method in ALLOWED_CLASSES and message_class == MessageClass.REQUEST)

    @pytest.mark.parametrize(
        "data", [b"", b"\0", b"\0\1\0\0" + bytes(16), b"\0\3\0\4\x21\x12\xa4\x42" + bytes(range(12)), b"\xff" * 40]
    )
    def test_s1_s11_what_is_not_stun_is_dropped_and_counted(self, data: bytes) -> None:
        harness = Harness()
        assert harness.receive(data, udp()) is None
        assert harness.server.counters["malformed"] == 1

    def test_s12_a_request_of_any_size_that_none_needs_is_dropped(self) -> None:
        harness = Harness()
        client = Client(harness)
        filler = (0x8999, bytes(REQUEST_BYTES_MAX - 400))
        assert code(client.allocate(filler)) == 0
        assert client.send(client.build(Method.REFRESH, filler, (0x8999, bytes(400)))) is None
        assert harness.server.counters["malformed"] == 1

    def test_s4_of_a_repeated_attribute_the_first_counts(self) -> None:
        client = Client(Harness())
        answer = client.allocate((Attr.LIFETIME, stun.uint32(1200)), (Attr.LIFETIME, stun.uint32(3000)))
        assert lifetime(answer) == 1200

    def test_s5_an_attribute_appended_behind_the_integrity_is_not_obeyed(self) -> None:
        """coturn ab762f33: LIFETIME=0 behind the HMAC of a valid Refresh must not delete the allocation."""
        harness = Harness()
        client = Client(harness)
        client.allocate()
        genuine = client.build(Method.REFRESH)
        tail = b"\0\x0d\0\4" + bytes(4)
        tampered = genuine[:2] + (len(genuine) - 20 + len(tail)).to_bytes(2, "big") + genuine[4:] + tail
        answer = client.send(tampered)
        assert code(answer) == 0
        assert answer is not None
        assert lifetime(answer) == 600
        assert harness.server.has_allocation(client.five_tuple)

    def test_s6_unknown_required_attributes_are_listed_in_a_420(self) -> None:
        answer = Client(Harness()).allocate((0x7FFE, b""), (0x0077, b"x"), (0x9999, b""))
        assert code(answer) == 420
        assert answer.get(Attr.UNKNOWN_ATTRIBUTES) == b"\x7f\xfe\x00\x77"
        assert answer.has_integrity

    def test_s6_strangers_are_challenged_before_their_attributes_are_judged(self) -> None:
        data = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, [(0x7FFE, b"123456")])
        answer = Harness().receive(data, udp())
        assert answer is not None
        assert code(stun.parse(answer)) == 401

    @pytest.mark.parametrize("value", [b"", b"\0\0\0", b"\0\0\0\0\0"])
    def test_s8_fixed_size_attributes_of_the_wrong_size_are_400(self, value: bytes) -> None:
        client = Client(Harness())
        assert code(client.allocate((Attr.LIFETIME, value))) == 400
        client.allocate()
        for method, attribute in (
            (Method.REFRESH, Attr.LIFETIME),
            (Method.REFRESH, Attr.REQUESTED_ADDRESS_FAMILY),
            (Method.CHANNEL_BIND, Attr.CHANNEL_NUMBER),
            (Method.CHANNEL_BIND, Attr.XOR_PEER_ADDRESS),
            (Method.CREATE_PERMISSION, Attr.XOR_PEER_ADDRESS),
        ):
            assert code(client.request(method, (attribute, value))) == 400

    def test_s10_an_unknown_address_family_is_400(self) -> None:
        client = Client(Harness())
        client.allocate()
        assert code(client.request(Method.CREATE_PERMISSION, (Attr.XOR_PEER_ADDRESS, b"\0\3" + bytes(6)))) == 400

    def test_i4_the_answer_has_a_fingerprint_iff_the_request_had_one(self) -> None:
        client = Client(Harness())
        client.learn_nonce()
        for fingerprint in (True, False):
            assert client.refresh(fingerprint=fingerprint).has_fingerprint is fingerprint

    @given(st.binary(max_size=120))
    @settings(max_examples=60)
    def test_s12_any_bytes_give_at_most_one_answer(self, data: bytes) -> None:
        """CVE-2026-40613: misaligned reads; here no field is read but byte by byte."""
        Harness().receive(data, udp())

    @given(
        st.sampled_from(list(Method)),
        st.lists(st.tuples(st.sampled_from(list(Attr)), st.binary(max_size=24)), max_size=6),
    )
    @settings(max_examples=150)
    def test_s12_any_attributes_from_a_user_give_at_most_one_answer(
        self, method: Method, attributes: list[tuple[int, bytes]]
    ) -> None:
        client = Client(Harness(ipv6=True))
        client.learn_nonce()
        client.allocate()
        client.send(client.build(method, *attributes))
        client.harness.close()

    def test_reply_padding_is_zero(self) -> None:
        """CVE-2020-4067: padding leaked earlier memory."""
        challenge = Client(Harness()).learn_nonce()
        at = 20
        while at < len(challenge.raw):
            size = int.from_bytes(challenge.raw[at + 2 : at + 4], "big")
            padded = size + 3 & ~3
            assert not any(challenge.raw[at + 4 + size : at + 4 + padded])
            at += 4 + padded


class TestBinding:
    """S13."""

    @pytest.mark.parametrize("host", ["9.9.9.9", "2620:fe::7"])
    @pytest.mark.parametrize("transport", Transport)
    def test_s13_the_mapped_address_comes_back_without_credentials_or_state(
        self, host: str, transport: Transport
    ) -> None:
        harness = Harness()
        five_tuple = FiveTuple(transport, address(host, 777), SERVER)
        answer = harness.receive(stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, []), five_tuple)
        assert answer is not None
        message = stun.parse(answer)
        assert message.address(Attr.XOR_MAPPED_ADDRESS) == address(host, 777)
        assert len(message.attributes) == 1
        assert not any(harness.server.live_counts().values())

    def test_s13_an_indication_is_not_answered(self) -> None:
        data = stun.serialize(Method.BINDING, MessageClass.INDICATION, TID, [])
        assert Harness().receive(data, udp()) is None

    def test_s6_an_unknown_required_attribute_is_420(self) -> None:
        data = stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, [(0x7FFE, b"")])
        answer = Harness().receive(data, udp())
        assert answer is not None
        assert code(stun.parse(answer)) == 420


class TestOwnership:
    @pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
    def test_g1_without_an_allocation_requests_are_437(self, method: Method) -> None:
        assert code(Client(Harness()).request(method)) == 437

    @pytest.mark.parametrize("method", [Method.CONNECT, Method.CONNECTION_BIND])
    def test_g1_tcp_relay_methods_are_not_served(self, method: Method) -> None:
        client = Client(Harness())
        client.learn_nonce()
        assert client.send(client.build(method)) is None

    def test_g1_data_without_an_allocation_is_dropped(self) -> None:
        client = Client(Harness())
        assert client.send_indication(PEER, b"x") == Dropped("no_allocation")
        assert client.channel_data(0x4000, b"x") == Dropped("no_allocation")

    def test_g2_x18_another_user_on_the_five_tuple_is_441_and_changes_nothing(self) -> None:
        harness = Harness()
        alice = Client(harness)
        alice.allocate()
        bob = Client(harness, "bob")
        bob.five_tuple = alice.five_tuple
        assert code(bob.refresh(0)) == 441
        assert code(bob.permit(PEER)) == 441
        assert code(bob.bind(0x4000, PEER)) == 441
        assert harness.server.has_allocation(alice.five_tuple)
        assert alice.send_indication(PEER, b"x") == Dropped("no_permission")

    def test_g4_equal_addresses_on_another_transport_are_another_allocation(self) -> None:
        harness = Harness()
        clients = [Client(harness, port=5555, transport=transport) for transport in Transport]
        assert [code(client.allocate()) for client in clients] == [0, 0, 0]
        assert len(harness.server._allocations) == 3

    def test_g5_nothing_tells_the_software(self) -> None:
        client = Client(Harness())
        assert Attr.SOFTWARE not in client.learn_nonce()
        assert Attr.SOFTWARE not in client.allocate()
        assert Attr.SOFTWARE not in client.refresh()


class TestRefresh:
    """RFC 8656 §8.2."""

    def test_rf1_lifetime_zero_ends_everything_before_the_answer(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        client.bind(0x4000, PEER)
        answer = client.refresh(0)
        assert code(answer) == 0
        assert lifetime(answer) == 0
        assert client.channel_data(0x4000, b"x") == Dropped("no_allocation")
        assert harness.plane.live_counts()["relays"] == 0
        assert code(client.refresh(600)) == 437
        harness.close()

    def test_rf2_the_timer_starts_again(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        harness.advance(599)
        assert lifetime(client.refresh()) == 600
        harness.advance(599)
        assert harness.server.has_allocation(client.five_tuple)
        harness.advance(2)
        assert not harness.server.has_allocation(client.five_tuple)

    def test_rf3_another_family_is_443(self) -> None:
        client = Client(Harness(ipv6=True))
        client.allocate()
        assert code(client.refresh(600, (Attr.REQUESTED_ADDRESS_FAMILY, IPV6))) == 443
        assert code(client.refresh(600, (Attr.REQUESTED_ADDRESS_FAMILY, stun.uint32(9 << 24)))) == 443
        assert code(client.refresh(600, (Attr.REQUESTED_ADDRESS_FAMILY, IPV4))) == 0

    def test_rf3_half_of_a_dual_allocation_can_be_deleted_or_expire(self) -> None:
        harness = Harness(ipv6=True)
        client = Client(harness)
        client.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))
        client.permit(PEER, PEER_V6)
        client.bind(0x4000, PEER_V6)
        assert code(client.refresh(0, (Attr.REQUESTED_ADDRESS_FAMILY, IPV6))) == 0
        assert isinstance(client.send_indication(PEER, b"x"), ToPeer)
        assert client.send_indication(PEER_V6, b"x") == Dropped("no_permission")
        assert code(client.bind(0x4000, PEER)) == 0
        other = Client(harness)
        other.allocate((Attr.ADDITIONAL_ADDRESS_FAMILY, IPV6))
        assert code(other.refresh(3600, (Attr.REQUESTED_ADDRESS_FAMILY, IPV6))) == 0
        harness.advance(601)
        other.nonce = b""
        assert code(other.permit(PEER_V6)) == 0
        assert code(other.permit(PEER)) == 443
        harness.close()


class TestCreatePermission:
    """RFC 8656 §9, §10."""

    def test_p1_a_permission_lives_300_s_whatever_flows(self) -> None:
        client = Client(Harness())
        client.allocate()
        client.permit(PEER)
        for _ in range(299):
            client.harness.advance(1)
            assert isinstance(client.peer_sends(PEER, b"x"), ToClient)
            assert isinstance(client.send_indication(PEER, b"x"), ToPeer)
        client.harness.advance(2)
        assert client.peer_sends(PEER, b"x") == Dropped("no_permission")
        assert client.send_indication(PEER, b"x") == Dropped("no_permission")

    def test_p1_a_second_request_renews_it(self) -> None:
        client = Client(Harness())
        client.allocate()
        client.permit(PEER)
        client.harness.advance(200)
        client.permit(PEER)
        client.harness.advance(299)
        assert isinstance(client.peer_sends(PEER, b"x"), ToClient)

    def test_p2_p4_any_port_of_the_address_passes_and_no_other_address(self) -> None:
        client = Client(Harness())
        client.allocate()
        client.permit(TransportAddress(PEER.ip, 1))
        for port in (1024, 5000, 65535):
            assert isinstance(client.peer_sends(TransportAddress(PEER.ip, port), b"x"), ToClient)
        assert client.peer_sends(address("8.8.4.5", 5000), b"x") == Dropped("no_permission")

    def test_p3_no_address_is_400(self) -> None:
        client = Client(Harness())
        client.allocate()
        assert code(client.permit()) == 400

    def test_p3_v1_another_family_is_443(self) -> None:
        client = Client(Harness(ipv6=True))
        client.allocate()
        assert code(client.permit(PEER_V6)) == 443
        client = Client(Harness(ipv6=True))
        client.allocate((Attr.REQUESTED_ADDRESS_FAMILY, IPV6))
        assert code(client.permit(PEER)) == 443

    @pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "0.0.0.0", "224.0.0.1"])
    def test_p3_a_denied_address_is_403_and_the_allocation_lives(self, host: str) -> None:
        """§18: browsers ask for every private candidate."""
        client = Client(Harness())
        client.allocate()
        assert code(client.permit(address(host, 5000))) == 403
        assert code(client.bind(0x4000, address(host, 5000))) == 403
        assert code(client.refresh()) == 0

    @pytest.mark.parametrize("bad", ["10.0.0.5", "2620:fe::9"])
    def test_p3_one_bad_address_installs_none(self, bad: str) -> None:
        client = Client(Harness())
        client.allocate()
        assert code(client.permit(PEER, address(bad, 1))) in (403, 443)
        assert client.send_indication(PEER, b"x") == Dropped("no_permission")

    def test_p4_all_addresses_of_a_request_are_installed(self) -> None:
        client = Client(Harness())
        client.allocate()
        peers = [address(f"8.8.4.{n}", 5000) for n in range(1, 11)]
        assert code(client.permit(*peers)) == 0
        assert all(isinstance(client.send_indication(peer, b"x"), ToPeer) for peer in peers)

    def test_x14_permissions_are_capped_and_expired_ones_make_room(self) -> None:
        client = Client(Harness(permissions_max=3, new_peers_per_s=0))
        client.allocate((Attr.LIFETIME, stun.uint32(3600)))
        peers = [address(f"8.8.4.{n}", 5000) for n in range(1, 6)]
        assert code(client.permit(*peers[:2])) == 0
        assert code(client.permit(*peers[2:4])) == 508
        assert code(client.permit(peers[2])) == 0
        assert code(client.permit(peers[3])) == 508
        assert code(client.permit(*peers[:3])) == 0
        client.harness.advance(301)
        assert code(client.permit(peers[3])) == 0

    def test_x15_new_peers_are_rate_limited_and_known_ones_are_not(self) -> None:
        client = Client(Harness(permissions_max=1000, new_peers_per_s=5, new_peers_burst=32))
        client.allocate()
        peers = [address(f"8.8.{n >> 8}.{n & 255}", 5000) for n in range(1, 100)]
        assert code(client.permit(*peers[:32])) == 0
        assert code(client.permit(peers[32])) == 508
        assert code(client.permit(*peers[:32])) == 0
        client.harness.advance(1)
        assert code(client.permit(*peers[32:37])) == 0
        assert code(client.permit(peers[37])) == 508

    def test_p5_permissions_of_two_allocations_are_independent(self) -> None:
        harness = Harness()
        one, two = Client(harness), Client(harness)
        one.allocate()
        two.allocate()
        one.permit(PEER)
        assert two.peer_sends(PEER, b"x") == Dropped("no_permission")
        one.refresh(0)
        one.allocate()
        assert one.send_indication(PEER, b"x") == Dropped("no_permission")

    def test_d5_a_reloaded_policy_stops_a_peer_at_once(self) -> None:
        harness = Harness()
        client = Client(harness)
        client.allocate()
        client.bind(0x4000, PEER)
        other = address("8.8.4.5", 5000)
        client.permit(other)
        harness.server.reload_policy(PeerPolicy(denied=["8.8.4.4"]), harness.now)
        assert client.channel_data(0x4000, b"x") == Dropped("no_permission")
        assert client.peer_sends(PEER, b"x") == Dropped("no_permission")
        assert isinstance(client.send_indication(other, b"x"), ToPeer)
        assert code(client.permit(PEER)) == 403


class TestChannelBind:
    """RFC 8656 §12."""

    def bound(self, **options: bool) -> Client:
        client = Client(Harness(**options))
        client.allocate((Attr.LIFETIME, stun.uint32(3600)))
        return client

    @pytest.mark.parametrize("number", [0, 0x3FFF, 0x5000, 0x7FFF, 0x8000, 0xFFFF])
    def test_c1_numbers_outside_the_range_are_400(self, number: int) -> None:
        assert code(self.bound().bind(number, PEER)) == 400

    @pytest.mark.parametrize(("number", "expected"), [(0x4000, 0), (0x4FFF, 0), (0x7FFF, 0), (0x8000, 400)])
    def test_c1_old_numbers_with_the_switch(self, number: int, expected: int) -> None:
        client = self.bound(rfc5766_channel_numbers=True)
        assert code(client.bind(number, PEER)) == expected
        if not expected:
            assert isinstance(client.channel_data(number, b"x"), ToPeer)

    @pytest.mark.parametrize(
        "attributes", [[(Attr.CHANNEL_NUMBER, b"\x40\0\0\0")], [(Attr.XOR_PEER_ADDRESS, bytes(8))]]
    )
    def test_c2_a_missing_attribute_is_400(self, attributes: list[tuple[int, bytes]]) -> None:
        assert code(self.bound().request(Method.CHANNEL_BIND, *attributes)) == 400

    def test_c2_number_and_peer_are_paired_one_to_one(self) -> None:
        client = self.bound()
        other = TransportAddress(PEER.ip, PEER.port + 1)
        assert code(client.bind(0x4000, PEER)) == 0
        assert code(client.bind(0x4000, other)) == 400
        assert code(client.bind(0x4001, PEER)) == 400
        assert code(client.bind(0x4001, other)) == 0
        assert code(client.bind(0x4000, PEER)) == 0

    def test_c2_family_policy_cap_and_port_zero(self) -> None:
        client = Client(Harness(channels_max=1))
        client.allocate()
        assert code(client.bind(0x4000, PEER_V6)) == 443
        assert code(client.bind(0x4000, address("10.0.0.1", 5000))) == 403
        assert code(client.bind(0x4000, TransportAddress(PEER.ip, 53))) == 403
        assert code(client.bind(0x4000, TransportAddress(PEER.ip, 0))) == 400
        assert code(client.bind(0x4000, PEER)) == 0
        assert code(client.bind(0x4001, address("8.8.4.5", 5000))) == 508

    def test_c2_a_refused_bind_installs_no_permission(self) -> None:
        client = Client(Harness(channels_max=1))
        client.allocate()
        client.bind(0x4000, PEER)
        other = address("8.8.4.5", 5000)
        client.bind(0x4001, other)
        assert client.send_indication(other, b"x") == Dropped("no_permission")

    def test_the_reserved_half_of_channel_number_is_ignored(self) -> None:
        client = self.bound()
        transaction_id = os.urandom(12)
        answer = client.request(
            Method.CHANNEL_BIND,
            (Attr.CHANNEL_NUMBER, b"\x40\x00\xff\xff"),
            (Attr.XOR_PEER_ADDRESS, stun.xor_address(PEER, transaction_id)),
            transaction_id=transaction_id,
        )
        assert code(answer) == 0

    def test_c3_binding_permits_the_address_and_lives_600_s(self) -> None:
        client = self.bound()
        client.bind(0x4000, PEER)
        assert isinstance(client.send_indication(PEER, b"x"), ToPeer)
        client.harness.advance(599)
        assert isinstance(client.channel_data(0x4000, b"x"), ToPeer)
        client.harness.advance(2)
        assert client.channel_data(0x4000, b"x") == Dropped("unbound_channel")

    def test_c3_data_does_not_extend_it_and_binding_again_does(self) -> None:
        client = self.bound()
        client.bind(0x4000, PEER)
        for _ in range(5):
            client.harness.advance(100)
            client.channel_data(0x4000, b"x")
        client.bind(0x4000, PEER)
        client.harness.advance(599)
        assert isinstance(client.channel_data(0x4000, b"x"), ToPeer)

    def test_c4_after_expiry_number_and_peer_are_free(self) -> None:
        client = self.bound()
        other = address("8.8.4.5", 5000)
        client.bind(0x4000, PEER)
        client.harness.advance(601)
        client.nonce = b""
        assert code(client.bind(0x4000, other)) == 0
        assert code(client.bind(0x4001, PEER)) == 0
        assert client.channel_data(0x4000, b"x") == ToPeer(1, other, b"x", False)

    def test_c9_a_channel_means_nothing_in_another_allocation(self) -> None:
        harness = Harness()
        one, two = Client(harness), Client(harness)
        one.allocate()
        two.allocate()
        one.bind(0x4000, PEER)
        assert two.channel_data(0x4000, b"x") == Dropped("unbound_channel")

    def test_p6_a_bound_channel_keeps_its_peer_permitted(self) -> None:
        client = self.bound()
        client.bind(0x4000, PEER)
        client.harness.advance(500)
        assert isinstance(client.peer_sends(PEER, b"x"), ToClient)
        assert isinstance(client.channel_data(0x4000, b"x"), ToPeer)

    def test_c8_without_that_switch_the_permission_ends_first_and_the_channel_is_mute(self) -> None:
        client = self.bound(channel_extends_permission=False)
        client.bind(0x4000, PEER)
        client.harness.advance(301)
        assert client.channel_data(0x4000, b"x") == Dropped("no_permission")
        assert client.peer_sends(PEER, b"x") == Dropped("no_permission")
        client.permit(PEER)
        assert isinstance(client.channel_data(0x4000, b"x"), ToPeer)


class TestAbuse:
    def test_x10_a_challenge_is_at_most_four_times_the_smallest_request(self) -> None:
        harness = Harness()
        for with_fingerprint in (False, True):
            request = stun.serialize(
                Method.ALLOCATE,
                MessageClass.REQUEST,
                TID,
                [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)],
                with_fingerprint=with_fingerprint,
            )
            answer = harness.receive(request, udp())
            assert answer is not None
            assert len(answer) <= 4 * len(request)

    def test_x10_an_allocate_too_small_to_be_one_is_dropped(self) -> None:
        assert Harness().receive(stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, []), udp()) is None

    def test_x10_the_smallest_refresh_is_not_amplified_beyond_what_the_limit_allows(self) -> None:
        harness = Harness()
        request = stun.serialize(Method.REFRESH, MessageClass.REQUEST, TID, [])
        answers = [harness.receive(request, udp()) for _ in range(50)]
        assert sum(len(answer) for answer in answers if answer) <= 4 * 50 * len(request)

    def test_x11_errors_to_strangers_are_limited_per_source_over_udp_only(self) -> None:
        harness = Harness(errors_per_s=10, errors_burst=20)
        request = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)])
        answers = [harness.receive(request, udp(port=n)) for n in range(1, 41)]
        assert sum(answer is not None for answer in answers) == 20
        assert harness.receive(request, udp("8.8.8.8")) is not None
        tcp = udp()._replace(transport=Transport.TCP)
        assert all(harness.receive(request, tcp) for _ in range(40))
        harness.advance(1)
        answers = [harness.receive(request, udp()) for _ in range(40)]
        assert sum(answer is not None for answer in answers) == 10

    def test_x11_one_ipv6_network_is_one_source(self) -> None:
        harness = Harness(errors_per_s=10, errors_burst=20)
        request = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)])
        answers = [harness.receive(request, udp(f"2620:fe::{n:x}")) for n in range(1, 41)]
        assert sum(answer is not None for answer in answers) == 20

    def test_x8_two_clients_of_one_server_meet_and_nothing_else_of_ours_is_reached(self) -> None:
        harness = Harness()
        one, two = Client(harness), Client(harness)
        (relay_one,) = relayed(one.allocate())
        (relay_two,) = relayed(two.allocate())
        assert code(one.permit(relay_two)) == 0
        assert code(two.permit(relay_one)) == 0
        sent = one.send_indication(relay_two, b"hello")
        assert isinstance(sent, ToPeer)
        assert isinstance(two.peer_sends(relay_one, sent.payload), ToClient)
        for port in (3478, 22, relay_two.port - 1):
            assert one.send_indication(TransportAddress(relay_two.ip, port), b"x") == Dropped("denied_port")
            assert code(one.bind(0x4000, TransportAddress(relay_two.ip, port))) == 403
        assert code(one.bind(0x4000, relay_two)) == 0
        two.refresh(0)
        assert one.channel_data(0x4000, b"x") == Dropped("denied_port")

    def test_t3_a_closed_connection_takes_its_allocation_along(self) -> None:
        harness = Harness()
        client = Client(harness, transport=Transport.TCP)
        client.allocate()
        harness.server.receive_disconnect(client.five_tuple, harness.now)
        assert not harness.server.has_allocation(client.five_tuple)
        harness.close()

    def test_v1_every_pair_of_client_and_relay_family_relays(self) -> None:
        harness = Harness(ipv6=True)
        for host in ("9.9.9.9", "2620:fe::7"):
            for family, peer in ((IPV4, PEER), (IPV6, PEER_V6)):
                client = Client(harness, host=host)
                (relay,) = relayed(client.allocate((Attr.REQUESTED_ADDRESS_FAMILY, family)))
                assert (relay.ip == RELAY_IPV6) is (family == IPV6)
                client.bind(0x4000, peer)
                assert isinstance(client.channel_data(0x4000, b"up"), ToPeer)
                assert client.peer_sends(peer, b"down") == ToClient(b"\x40\x00\x00\x04down")
