"""TCP allocations: what a Connect, a peer's call and a ConnectionBind may do (RFC 6062; TC1 to TC6)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.turn_harness import (
    PEER,
    PEER_V6,
    RELAY_IPV4,
    SERVER,
    TCP_RELAY,
    UDP_RELAY,
    Client,
    Harness,
    address,
    code,
    ips,
    relayed,
)
from turn.allocation import CloseReason, Transport
from turn.events import AllocationClosed, PeerJoined
from turn.policy import PeerPolicy
from wire import stun
from wire.stun import Attr, Message, MessageClass, Method, TransportAddress

OTHER_PEER = address("8.8.4.4", 6000)
_transactions = (number.to_bytes(12, "little") for number in itertools.count(1 << 60))


class TcpClient(Client):
    """Over TCP, with a TCP allocation to ask for."""

    def __init__(self, harness: Harness, user: str = "alice", **options: Any) -> None:
        super().__init__(harness, user, **{"transport": Transport.TCP, **options})

    def allocate(self, *attributes: tuple[int, bytes], **changes: Any) -> Message:
        return self.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, TCP_RELAY), *attributes, **changes)

    def connect(self, peer: TransportAddress | None) -> Message | None:
        """Answered now, or None: later."""
        if not self.nonce:
            self.learn_nonce()
        transaction_id = next(_transactions)
        attributes = [] if peer is None else [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, transaction_id))]
        return self.send(self.build(Method.CONNECT, *attributes, transaction_id=transaction_id))

    def bind_connection(self, number: int | None, **changes: Any) -> Message:
        attributes = [] if number is None else [(int(Attr.CONNECTION_ID), stun.uint32(number))]
        return self.request(Method.CONNECTION_BIND, *attributes, **changes)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(tcp_relays=True)
    yield harness
    harness.close()


@pytest.fixture
def client(harness: Harness) -> TcpClient:
    client = TcpClient(harness)
    assert code(client.allocate()) == 0
    return client


def connected(harness: Harness, client: TcpClient, peer: TransportAddress = PEER) -> int:
    """A connection with `peer`, waiting to be claimed."""
    assert client.connect(peer) is None
    number = next(n for n, called in harness.peers.called.items() if called == peer)
    harness.server.receive_peer_connected(number, harness.now)
    ((to, data),) = harness.server.messages_to_send()
    assert to == client.five_tuple
    answer = stun.parse(data)
    assert answer.uint(Attr.CONNECTION_ID) == number
    return number


def called(harness: Harness, client: TcpClient, peer: TransportAddress = PEER) -> int | None:
    handle = harness.server._allocations[client.five_tuple].relays[0].handle
    return harness.server.receive_peer(handle, peer, harness.now)


def sent(harness: Harness) -> list[Message]:
    return [stun.parse(data) for _, data in harness.server.messages_to_send()]


class TestAllocate:
    """RFC 6062 §5.1."""

    def test_tc1_a_client_over_tcp_gets_a_listening_address(self, harness: Harness) -> None:
        client = TcpClient(harness)
        answer = client.allocate()
        assert code(answer) == 0
        (address,) = relayed(answer)
        assert harness.peers.relays == {1: address}
        assert address.ip == RELAY_IPV4

    def test_tc1_over_udp_it_is_400(self, harness: Harness) -> None:
        assert code(TcpClient(harness, transport=Transport.UDP).allocate()) == 400

    def test_tc1_over_tls_it_is_given(self, harness: Harness) -> None:
        assert code(TcpClient(harness, transport=Transport.TLS).allocate()) == 0

    @pytest.mark.parametrize(
        "attribute",
        [(Attr.EVEN_PORT, b"\0"), (Attr.RESERVATION_TOKEN, bytes(8)), (Attr.DONT_FRAGMENT, b"")],
        ids=["even-port", "token", "dont-fragment"],
    )
    def test_tc1_what_only_datagrams_have_is_400(self, harness: Harness, attribute: tuple[int, bytes]) -> None:
        assert code(TcpClient(harness).allocate(attribute)) == 400
        assert not harness.peers.relays

    def test_tc1_where_it_is_off_it_is_442(self) -> None:
        harness = Harness()
        assert code(TcpClient(harness).allocate()) == 442
        harness.close()

    def test_a18_no_port_is_508_and_keeps_nothing(self, harness: Harness) -> None:
        harness.peers.full = True
        assert code(TcpClient(harness).allocate()) == 508
        assert harness.server.live_counts()["users"] == 0

    def test_its_port_is_not_a_port_that_datagrams_may_reach(self, harness: Harness, client: TcpClient) -> None:
        (relay,) = harness.peers.relays.values()
        assert not harness.policy.check_endpoint(relay)


class TestConnect:
    """RFC 6062 §5.2."""

    def test_tc2_it_is_answered_when_the_peer_has_answered(self, harness: Harness, client: TcpClient) -> None:
        assert connected(harness, client) in harness.peers.called

    def test_tc2_it_needs_no_permission(self, harness: Harness, client: TcpClient) -> None:
        assert client.connect(PEER) is None

    def test_tc2_without_an_allocation_it_is_437(self, harness: Harness) -> None:
        assert code(TcpClient(harness).connect(PEER)) == 437

    def test_tc2_on_an_allocation_of_datagrams_it_is_437(self, harness: Harness) -> None:
        client = TcpClient(harness)
        assert code(client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY))) == 0
        assert code(client.connect(PEER)) == 437

    @pytest.mark.parametrize("peer", [None, address("8.8.4.4", 0)])
    def test_tc2_without_a_peer_it_is_400(self, client: TcpClient, peer: TransportAddress | None) -> None:
        assert code(client.connect(peer)) == 400

    def test_tc2_of_the_other_family_it_is_443(self, client: TcpClient) -> None:
        assert code(client.connect(PEER_V6)) == 443

    @pytest.mark.parametrize(
        "peer",
        [address("127.0.0.1", 80), address("10.0.0.1", 80), address("169.254.169.254", 80), address("8.8.4.4", 53)],
    )
    def test_tc2_the_filter_of_datagrams_holds(
        self, harness: Harness, client: TcpClient, peer: TransportAddress
    ) -> None:
        assert code(client.connect(peer)) == 403
        assert not harness.peers.called

    def test_tc2_x8_of_our_own_addresses_only_tcp_relays_can_be_called(self) -> None:
        """A port that datagrams may reach, such as the media side's, is another program's over TCP."""
        media = TransportAddress(RELAY_IPV4, 8787)
        harness = Harness(tcp_relays=True, policy={"allowed_endpoints": [media]})
        client, other, datagrams = TcpClient(harness), TcpClient(harness), Client(harness)
        client.allocate()
        (over_tcp,), (over_udp,) = relayed(other.allocate()), relayed(datagrams.allocate())
        assert code(client.connect(media)) == 403
        assert code(client.connect(TransportAddress(RELAY_IPV4, SERVER.port))) == 403
        assert code(client.connect(over_udp)) == 403
        assert client.connect(over_tcp) is None
        harness.close()

    def test_tc2_twice_to_one_peer_is_446_while_calling_and_after(self, harness: Harness, client: TcpClient) -> None:
        assert client.connect(PEER) is None
        assert code(client.connect(PEER)) == 446
        assert client.connect(OTHER_PEER) is None
        number = connected(harness, client, address("8.8.4.4", 7000))
        assert code(TcpClient(harness).bind_connection(number)) == 0
        assert code(client.connect(address("8.8.4.4", 7000))) == 446

    def test_tc2_a_refusal_is_447(self, harness: Harness, client: TcpClient) -> None:
        client.connect(PEER)
        (number,) = harness.peers.called
        harness.server.receive_peer_closed(number, harness.now)
        (answer,) = sent(harness)
        assert code(answer) == 447
        assert harness.server.live_counts()["peer_connections"] == 0
        assert client.connect(PEER) is None

    def test_tc2_silence_is_447_after_30_s(self, harness: Harness, client: TcpClient) -> None:
        client.connect(PEER)
        (number,) = harness.peers.called
        harness.advance(29.9)
        assert sent(harness) == []
        harness.advance(0.2)
        assert [code(answer) for answer in sent(harness)] == [447]
        assert harness.peers.closed == [number]

    def test_x14_too_many_are_508(self) -> None:
        harness = Harness(tcp_relays=True, peer_connections_per_allocation=2, peer_connections_max=3)
        one, two = TcpClient(harness), TcpClient(harness)
        one.allocate()
        two.allocate()
        for port in (1, 2):
            assert one.connect(address("8.8.4.4", port)) is None
        assert code(one.connect(PEER)) == 508
        assert two.connect(PEER) is None
        assert code(two.connect(OTHER_PEER)) == 508
        harness.close()

    def test_x15_new_peers_are_limited(self) -> None:
        harness = Harness(tcp_relays=True, new_peers_per_s=1.0, new_peers_burst=2.0)
        client = TcpClient(harness)
        client.allocate()
        answers = [client.connect(address("8.8.4.4", port)) for port in range(1, 4)]
        assert [answer and code(answer) for answer in answers] == [None, None, 508]
        harness.close()


class TestPeersThatCall:
    """RFC 6062 §5.3."""

    def test_tc3_with_a_permission_the_client_is_told(self, harness: Harness, client: TcpClient) -> None:
        client.permit(PEER)
        number = called(harness, client)
        (attempt,) = sent(harness)
        assert (attempt.method, attempt.message_class) == (Method.CONNECTION_ATTEMPT, MessageClass.INDICATION)
        assert attempt.address(Attr.XOR_PEER_ADDRESS) == PEER
        assert attempt.uint(Attr.CONNECTION_ID) == number

    def test_tc3_without_one_it_is_hung_up(self, harness: Harness, client: TcpClient) -> None:
        assert called(harness, client) is None
        assert sent(harness) == []

    def test_tc3_p1_a_permission_that_has_ended_is_none(self, harness: Harness, client: TcpClient) -> None:
        client.permit(PEER)
        harness.advance(301)
        assert called(harness, client) is None

    def test_tc5_one_that_nobody_claims_is_closed_after_30_s(self, harness: Harness, client: TcpClient) -> None:
        client.permit(PEER)
        number = called(harness, client)
        harness.advance(31)
        assert harness.peers.closed == [number]
        assert harness.server.live_counts()["peer_connections"] == 0

    def test_tc5_each_has_its_own_30_s(self, harness: Harness, client: TcpClient) -> None:
        """One that was claimed, or is older, hides no other."""
        claimed = connected(harness, client)
        TcpClient(harness).bind_connection(claimed)
        harness.advance(10)
        second = connected(harness, client, OTHER_PEER)
        harness.advance(29)
        assert harness.peers.closed == []
        harness.advance(2)
        assert harness.peers.closed == [second]

    def test_x14_too_many_are_hung_up(self, client: TcpClient) -> None:
        client.harness.server._tcp._connections._allocation_max = 1
        client.permit(PEER)
        assert called(client.harness, client) is not None
        assert called(client.harness, client, OTHER_PEER) is None

    @pytest.mark.parametrize("peer", [address("8.8.8.8", 53), address(str(RELAY_IPV4), 6000)], ids=["port", "ours"])
    def test_tc3_the_filter_of_connects_holds(
        self, harness: Harness, client: TcpClient, peer: TransportAddress
    ) -> None:
        """X8, X9: a permission names an address only; this is a port that is denied, or no relay's."""
        assert code(client.permit(peer)) == 0
        assert called(harness, client, peer) is None
        assert harness.server.counters["peers_not_permitted"] == 1

    def test_tc3_x8_another_tcp_relay_may_call(self, harness: Harness, client: TcpClient) -> None:
        other = TcpClient(harness)
        (relay,) = relayed(other.allocate())
        assert code(client.permit(relay)) == 0
        assert called(harness, client, relay) is not None


class TestConnectionBind:
    """RFC 6062 §5.4."""

    def test_tc4_a_fresh_connection_of_the_user_joins(self, harness: Harness, client: TcpClient) -> None:
        number = connected(harness, client)
        harness.server.events_received()
        data = TcpClient(harness)
        assert code(data.bind_connection(number)) == 0
        assert harness.server.events_received() == [PeerJoined(data.five_tuple, number)]

    def test_tc4_the_nonce_of_the_control_connection_will_do(self, harness: Harness, client: TcpClient) -> None:
        """As coturn's client has it, which does not ask again; any other connection's will not."""
        number = connected(harness, client)
        data, stranger = TcpClient(harness), TcpClient(harness)
        stranger.learn_nonce()
        data.nonce = stranger.nonce
        assert code(data.bind_connection(number)) == 438
        data.nonce = client.nonce
        assert code(data.bind_connection(number)) == 0

    def test_tc4_whatever_is_wrong_is_400(self, harness: Harness, client: TcpClient) -> None:
        number = connected(harness, client)
        with_allocation = TcpClient(harness)
        with_allocation.allocate()
        assert code(TcpClient(harness).bind_connection(number ^ 1)) == 400
        assert code(TcpClient(harness).bind_connection(None)) == 400
        assert code(TcpClient(harness, "bob").bind_connection(number)) == 400
        assert code(TcpClient(harness, transport=Transport.UDP).bind_connection(number)) == 400
        assert code(client.bind_connection(number)) == 400
        assert code(with_allocation.bind_connection(number)) == 400
        assert code(TcpClient(harness).bind_connection(number)) == 0
        assert code(TcpClient(harness).bind_connection(number)) == 400  # once only

    def test_tc4_one_that_is_still_calling_cannot_be_claimed(self, harness: Harness, client: TcpClient) -> None:
        client.connect(PEER)
        (number,) = harness.peers.called
        assert code(TcpClient(harness).bind_connection(number)) == 400

    @pytest.mark.parametrize("well_formed", [True, False])
    def test_tc4_s8_without_credentials_it_is_401(self, harness: Harness, client: TcpClient, well_formed: bool) -> None:
        number = stun.uint32(connected(harness, client)) if well_formed else b"12"
        request = stun.serialize(
            Method.CONNECTION_BIND, MessageClass.REQUEST, bytes(range(12)), [(Attr.CONNECTION_ID, number)]
        )
        assert code(TcpClient(harness).send(request)) == 401

    def test_tc6_numbers_cannot_be_guessed(self, harness: Harness, client: TcpClient) -> None:
        numbers = [connected(harness, client, address("8.8.4.4", port)) for port in range(1, 9)]
        assert len({abs(a - b) for a, b in itertools.pairwise(numbers)}) == 7
        assert max(numbers) > 1 << 24


class TestEnds:
    def test_tc5_with_the_allocation_every_connection_ends(self, harness: Harness, client: TcpClient) -> None:
        waiting = connected(harness, client)
        joined = connected(harness, client, OTHER_PEER)
        TcpClient(harness).bind_connection(joined)
        client.connect(address("8.8.4.4", 7000))
        client.refresh(0)
        assert {waiting, joined} < set(harness.peers.closed)
        assert len(harness.peers.closed) == 3
        assert harness.peers.relays == {}
        (closed,) = [e for e in harness.server.events_received() if isinstance(e, AllocationClosed)]
        assert closed.reason is CloseReason.DELETED
        assert closed.usage.bytes_to_client == 2

    def test_tc5_also_when_it_is_revoked_or_its_control_connection_ends(self, harness: Harness) -> None:
        for end in (
            lambda client: harness.server.revoke("alice"),
            lambda client: harness.server.receive_disconnect(client.five_tuple, harness.now),
        ):
            client = TcpClient(harness)
            client.allocate()
            number = connected(harness, client)
            end(client)
            assert number in harness.peers.closed
            harness.peers.called.clear()

    def test_d5_a_policy_that_now_denies_the_peer_ends_it(self, harness: Harness, client: TcpClient) -> None:
        number = connected(harness, client)
        client.permit(PEER)
        harness.server.reload_policy(PeerPolicy(denied=["8.8.4.4"], relay_addresses=[RELAY_IPV4]), harness.now)
        assert harness.peers.closed == [number]
        assert called(harness, client) is None

    def test_a_peer_that_left_can_be_called_again(self, harness: Harness, client: TcpClient) -> None:
        number = connected(harness, client)
        harness.server.receive_peer_closed(number, harness.now)
        assert sent(harness) == []
        assert client.connect(PEER) is None


class TestData:
    """TC6: no datagrams on a TCP allocation."""

    def test_tc6_no_channel_can_be_bound(self, client: TcpClient) -> None:
        assert code(client.bind(0x4000, PEER)) == 400

    def test_tc6_a_send_indication_goes_nowhere(self, client: TcpClient) -> None:
        client.permit(PEER)
        assert type(client.send_indication(PEER, b"x")).__name__ == "Dropped"

    def test_p2_a_permission_is_for_an_address_not_a_port(self, harness: Harness, client: TcpClient) -> None:
        client.permit(PEER)
        assert called(harness, client, OTHER_PEER) is not None
        assert (
            not harness.server._allocations[client.five_tuple]
            .relays[0]
            .permissions.covers(ips("8.8.8.8")[0], harness.now)
        )
