"""The data path, on the plain-Python plane and on the compiled tables: one class, both must agree."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.turn_harness import PEER, PEER_V6, RELAY_IPV4, RELAY_IPV6, SERVER, address
from turn._reference import Dropped, Outcome, ReferencePlane, ToClient, ToControl, ToPeer
from turn._relay.table import RelayTable
from turn.allocation import FiveTuple, Transport
from turn.settings import TurnSettings
from wire import stun
from wire.stun import Attr, IPAddress, MessageClass, Method, TransportAddress

CLIENT = address("9.9.9.9", 4000)
CLIENT_V6 = address("2620:fe::77", 4000)
TID = bytes(range(1, 13))
STREAM = 0x7FFFFFFF
Result = tuple[Any, ...]


class Tables(Protocol):
    """What the tests need of either."""

    def open(
        self, ip: IPAddress, client: TransportAddress, transport: Transport = Transport.UDP, user: str = "u"
    ) -> int: ...
    def close(self, handle: int) -> tuple[int, ...]: ...
    def permit(self, handle: int, peer: TransportAddress, expires_at: float) -> None: ...
    def forbid(self, handle: int, peer: TransportAddress) -> None: ...
    def bind(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None: ...
    def restrict(self, peer: TransportAddress, allowed: bool | None = None) -> None: ...
    def deny_ports(self, *ports: int) -> None: ...
    def client(
        self, source: TransportAddress, data: bytes, now: float = 0.0, transport: Transport = Transport.UDP
    ) -> Result: ...
    def peer(self, handle: int, source: TransportAddress, payload: bytes, now: float = 0.0) -> Result: ...
    def counts(self) -> dict[str, int]: ...


def five_tuple(client: TransportAddress, transport: Transport) -> FiveTuple:
    return FiveTuple(transport, client, SERVER)


def normalized(message: bytes) -> Result:
    """Transaction ids of Data indications are random: compare what they carry."""
    if message[0] >= 0x40:
        return ("channel", message)
    parsed = stun.parse(message)
    if parsed.method == Method.DATA:
        assert parsed.message_class == MessageClass.INDICATION
        assert not parsed.has_integrity
        assert len(parsed.attributes) == 2
        return ("data", parsed.address(Attr.XOR_PEER_ADDRESS), parsed.get(Attr.DATA))
    return ("reply", message)


class Reference:
    def __init__(self, **options: Any) -> None:
        self.plane = ReferencePlane(TurnSettings(**options))
        self.port = 50000

    def open(
        self, ip: IPAddress, client: TransportAddress, transport: Transport = Transport.UDP, user: str = "u"
    ) -> int:
        self.port += 1
        handle = self.plane.open_relay(TransportAddress(ip, self.port))
        assert handle is not None
        self.plane.start_relay(handle, five_tuple(client, transport), user)
        return handle

    def close(self, handle: int) -> tuple[int, ...]:
        return tuple(self.plane.close_relay(handle))

    def permit(self, handle: int, peer: TransportAddress, expires_at: float) -> None:
        self.plane.permit(handle, peer.ip, expires_at)

    def forbid(self, handle: int, peer: TransportAddress) -> None:
        self.plane.forbid(handle, peer.ip)

    def bind(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None:
        self.plane.bind_channel(handle, number, peer, expires_at)

    def restrict(self, peer: TransportAddress, allowed: bool | None = None) -> None:
        if allowed is None:
            self.plane.restrict_address(peer.ip)
        elif allowed:
            self.plane.allow_port(peer)
        else:
            self.plane.deny_port(peer)

    def deny_ports(self, *ports: int) -> None:
        self.plane.deny_peer_ports(frozenset(ports))

    def client(
        self, source: TransportAddress, data: bytes, now: float = 0.0, transport: Transport = Transport.UDP
    ) -> Result:
        return self._result(self.plane.from_client(five_tuple(source, transport), data, now))

    def peer(self, handle: int, source: TransportAddress, payload: bytes, now: float = 0.0) -> Result:
        return self._result(self.plane.from_peer(handle, source, payload, now))

    def _result(self, outcome: Outcome) -> Result:
        match outcome:
            case ToPeer(_, peer, payload, dont_fragment):
                return ("peer", peer, payload, dont_fragment)
            case ToClient(data):
                return normalized(data)
            case ToControl(data):
                return ("control", data)
            case Dropped(reason):
                return ("drop", reason)

    def counts(self) -> dict[str, int]:
        return self.plane.live_counts()


class Compiled:
    def __init__(self, **options: Any) -> None:
        chosen = TurnSettings(**options)
        self.table = RelayTable(
            relays_max=64,
            channel_max=0x7FFF if chosen.rfc5766_channel_numbers else 0x4FFF,
            allocation_bps=chosen.allocation_bps_max,
            user_bps=chosen.user_bps_max,
            total_bps=chosen.total_bps_max,
            allocation_pps=chosen.allocation_pps_max,
            bindings_per_s=chosen.bindings_per_s,
            requests_per_s=chosen.requests_per_s,
        )
        self.port = 50000

    def listener(self, transport: Transport) -> int:
        return 0 if transport is Transport.UDP else STREAM

    def open(
        self, ip: IPAddress, client: TransportAddress, transport: Transport = Transport.UDP, user: str = "u"
    ) -> int:
        self.port += 1
        handle = self.table.add_relay(str(ip), self.port)
        self.table.start_relay(handle, 0, self.listener(transport), str(client.ip), client.port, sum(user.encode()))
        return handle

    def close(self, handle: int) -> tuple[int, ...]:
        return self.table.close_relay(handle)

    def permit(self, handle: int, peer: TransportAddress, expires_at: float) -> None:
        self.table.permit(handle, str(peer.ip), expires_at)

    def forbid(self, handle: int, peer: TransportAddress) -> None:
        self.table.forbid(handle, str(peer.ip))

    def bind(self, handle: int, number: int, peer: TransportAddress, expires_at: float) -> None:
        self.table.bind_channel(handle, number, str(peer.ip), peer.port, expires_at)

    def restrict(self, peer: TransportAddress, allowed: bool | None = None) -> None:
        if allowed is None:
            self.table.restrict_address(str(peer.ip))
        else:
            self.table.set_port(str(peer.ip), peer.port, allowed)

    def deny_ports(self, *ports: int) -> None:
        self.table.deny_peer_ports(frozenset(ports))

    def client(
        self, source: TransportAddress, data: bytes, now: float = 0.0, transport: Transport = Transport.UDP
    ) -> Result:
        return self._result(self.table.from_client(self.listener(transport), str(source.ip), source.port, data, now))

    def peer(self, handle: int, source: TransportAddress, payload: bytes, now: float = 0.0) -> Result:
        return self._result(self.table.from_peer(handle, str(source.ip), source.port, payload, now))

    def _result(self, outcome: tuple[Any, ...]) -> Result:
        match outcome:
            case ("peer", _, host, port, payload, dont_fragment):
                return ("peer", address(host, port), payload, dont_fragment)
            case ("client", data):
                return normalized(data)
        return outcome

    def counts(self) -> dict[str, int]:
        return self.table.live_counts()


KINDS = (Reference, Compiled)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def tables(kind: Any) -> Tables:
    made: Tables = kind()
    return made


def send(peer: TransportAddress, payload: bytes, *more: tuple[int, bytes], with_fingerprint: bool = False) -> bytes:
    attributes = [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, TID)), (int(Attr.DATA), payload), *more]
    return stun.serialize(Method.SEND, MessageClass.INDICATION, TID, attributes, with_fingerprint=with_fingerprint)


def channel(number: int, payload: bytes, length: int | None = None) -> bytes:
    return number.to_bytes(2, "big") + (len(payload) if length is None else length).to_bytes(2, "big") + payload


def channel_result(number: int, payload: bytes) -> Result:
    return ("channel", channel(number, payload))


class TestSend:
    """RFC 8656 §11: D1 to D3."""

    def test_d2_a_valid_indication_is_one_datagram_with_exactly_its_payload(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        for payload in (b"", b"x", b"12345", bytes(1200)):
            assert tables.client(CLIENT, send(PEER, payload)) == ("peer", PEER, payload, False)

    def test_g3_indications_are_never_authenticated(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        attributes = [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(PEER, TID)), (int(Attr.DATA), b"x")]
        for key in (None, b"wrong"):
            data = stun.serialize(Method.SEND, MessageClass.INDICATION, TID, attributes, key=key)
            assert tables.client(CLIENT, data) == ("peer", PEER, b"x", False)

    def test_d1_without_permission(self, tables: Tables) -> None:
        tables.open(RELAY_IPV4, CLIENT)
        assert tables.client(CLIENT, send(PEER, b"x")) == ("drop", "no_permission")

    def test_d1_without_data_or_peer(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        for attributes in (
            [],
            [(Attr.DATA, b"x")],
            [(Attr.XOR_PEER_ADDRESS, stun.xor_address(PEER, TID))],
            [(Attr.XOR_PEER_ADDRESS, b"\0\1\0\0"), (Attr.DATA, b"x")],
            [(Attr.XOR_PEER_ADDRESS, b"\0\3" + bytes(6)), (Attr.DATA, b"x")],
        ):
            data = stun.serialize(Method.SEND, MessageClass.INDICATION, TID, attributes)
            assert tables.client(CLIENT, data) == ("drop", "malformed")

    def test_d1_with_an_unknown_required_attribute(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        assert tables.client(CLIENT, send(PEER, b"x", (0x7FFE, b""))) == ("drop", "unknown_attribute")
        assert tables.client(CLIENT, send(PEER, b"x", (0x9FFE, b""))) == ("peer", PEER, b"x", False)

    def test_d1_of_the_wrong_family(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 300.0)
        assert tables.client(CLIENT, send(PEER_V6, b"x")) == ("drop", "no_permission")

    def test_s4_s5_first_attribute_counts_and_nothing_behind_the_integrity(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        assert tables.client(CLIENT, send(PEER, b"one", (Attr.DATA, b"two"))) == ("peer", PEER, b"one", False)
        data = stun.serialize(
            Method.SEND,
            MessageClass.INDICATION,
            TID,
            [
                (Attr.XOR_PEER_ADDRESS, stun.xor_address(PEER, TID)),
                (Attr.MESSAGE_INTEGRITY, bytes(20)),
                (Attr.DATA, b"x"),
            ],
        )
        assert tables.client(CLIENT, data) == ("drop", "malformed")

    def test_i4_a_wrong_fingerprint_is_dropped(self, tables: Tables) -> None:
        tables.permit(tables.open(RELAY_IPV4, CLIENT), PEER, 300.0)
        data = send(PEER, b"x", with_fingerprint=True)
        assert tables.client(CLIENT, data) == ("peer", PEER, b"x", False)
        assert tables.client(CLIENT, data[:-1] + bytes([data[-1] ^ 1])) == ("drop", "malformed")

    def test_d3_h2_dont_fragment_counts_between_ipv4_and_ipv4_only(self, tables: Tables) -> None:
        flag = (Attr.DONT_FRAGMENT, b"")
        for client, relay, peer, expected in (
            (CLIENT, RELAY_IPV4, PEER, True),
            (CLIENT_V6, RELAY_IPV4, PEER, False),
            (address("9.9.9.9", 4001), RELAY_IPV6, PEER_V6, False),
        ):
            tables.permit(tables.open(relay, client), peer, 300.0)
            assert tables.client(client, send(peer, b"x", flag)) == ("peer", peer, b"x", expected)


class TestFromPeers:
    """D4, C6, C7, P1, P2."""

    def test_d4_without_a_channel_a_data_indication(self, tables: Tables) -> None:
        for relay, client, peer in ((RELAY_IPV4, CLIENT, PEER), (RELAY_IPV6, CLIENT_V6, PEER_V6)):
            handle = tables.open(relay, client)
            tables.permit(handle, peer, 300.0)
            for payload in (b"", b"x", b"12345", bytes(1200)):
                assert tables.peer(handle, peer, payload) == ("data", peer, payload)

    def test_c6_from_the_bound_port_channel_data_and_from_another_an_indication(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        tables.bind(handle, 0x4001, PEER, 600.0)
        other = TransportAddress(PEER.ip, PEER.port + 1)
        assert tables.peer(handle, PEER, b"hello") == channel_result(0x4001, b"hello")
        assert tables.peer(handle, other, b"hello") == ("data", other, b"hello")

    def test_p1_permission_and_channel_end_to_the_second(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 300.0)
        tables.bind(handle, 0x4001, PEER, 200.0)
        assert tables.peer(handle, PEER, b"x", 199.9) == channel_result(0x4001, b"x")
        assert tables.peer(handle, PEER, b"x", 200.0) == ("data", PEER, b"x")
        assert tables.peer(handle, PEER, b"x", 299.9) == ("data", PEER, b"x")
        assert tables.peer(handle, PEER, b"x", 300.0) == ("drop", "no_permission")

    def test_p2_strangers(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 300.0)
        assert tables.peer(handle, address("8.8.4.5", 5000), b"x") == ("drop", "no_permission")
        assert tables.peer(handle, PEER_V6, b"x") == ("drop", "no_permission")

    @pytest.mark.parametrize("size", range(10))
    def test_c7_streams_are_padded_and_datagrams_are_not(self, tables: Tables, size: int) -> None:
        payload = b"x" * size
        for client, transport, padding in (
            (CLIENT, Transport.UDP, b""),
            (address("0.0.0.0", 7), Transport.TCP, bytes(-size % 4)),
        ):
            handle = tables.open(RELAY_IPV4, client, transport)
            tables.permit(handle, PEER, 600.0)
            tables.bind(handle, 0x4001, PEER, 600.0)
            assert tables.peer(handle, PEER, payload) == ("channel", channel(0x4001, payload) + padding)

    def test_what_does_not_fit_into_a_datagram_any_more_is_dropped(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        assert tables.peer(handle, PEER, bytes(65468)) == ("data", PEER, bytes(65468))
        assert tables.peer(handle, PEER, bytes(65469)) == ("drop", "too_big")
        tables.bind(handle, 0x4001, PEER, 600.0)
        assert tables.peer(handle, PEER, bytes(65503)) == channel_result(0x4001, bytes(65503))
        assert tables.peer(handle, PEER, bytes(65504)) == ("drop", "too_big")


class TestChannelData:
    """RFC 8656 §12: C1, C5, C8, C9."""

    def bound(self, tables: Tables) -> int:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        tables.bind(handle, 0x4000, PEER, 600.0)
        return handle

    def test_payload_goes_to_the_bound_peer(self, tables: Tables) -> None:
        self.bound(tables)
        for payload in (b"", b"x", bytes(1200)):
            assert tables.client(CLIENT, channel(0x4000, payload)) == ("peer", PEER, payload, False)

    def test_c5_unbound_numbers_and_lengths_beyond_the_datagram(self, tables: Tables) -> None:
        self.bound(tables)
        assert tables.client(CLIENT, channel(0x4001, b"x")) == ("drop", "unbound_channel")
        assert tables.client(CLIENT, channel(0x4000, b"x", 2)) == ("drop", "malformed")
        assert tables.client(CLIENT, channel(0x5000, b"x")) == ("drop", "malformed")
        assert tables.client(CLIENT, b"\x40\0\0") == ("drop", "unknown_protocol")

    def test_c5_bytes_beyond_the_length_are_padding(self, tables: Tables) -> None:
        self.bound(tables)
        assert tables.client(CLIENT, channel(0x4000, b"abc\0", 3)) == ("peer", PEER, b"abc", False)

    def test_c1_old_numbers_with_the_switch(self, kind: Any) -> None:
        tables: Tables = kind(rfc5766_channel_numbers=True)
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        tables.bind(handle, 0x7FFF, PEER, 600.0)
        assert tables.client(CLIENT, channel(0x7FFF, b"x")) == ("peer", PEER, b"x", False)

    def test_c8_d5_without_the_permission_the_channel_is_mute(self, tables: Tables) -> None:
        handle = self.bound(tables)
        tables.forbid(handle, PEER)
        assert tables.client(CLIENT, channel(0x4000, b"x")) == ("drop", "no_permission")

    def test_c9_another_client_has_other_channels(self, tables: Tables) -> None:
        self.bound(tables)
        other = address("9.9.9.9", 4001)
        assert tables.client(other, channel(0x4000, b"x")) == ("drop", "no_allocation")
        tables.open(RELAY_IPV4, other)
        assert tables.client(other, channel(0x4000, b"x")) == ("drop", "unbound_channel")

    def test_c4_binding_again_replaces_number_and_peer(self, tables: Tables) -> None:
        handle = self.bound(tables)
        other = TransportAddress(PEER.ip, 6000)
        tables.bind(handle, 0x4000, other, 600.0)
        assert tables.client(CLIENT, channel(0x4000, b"x")) == ("peer", other, b"x", False)
        tables.bind(handle, 0x4002, other, 600.0)
        assert tables.client(CLIENT, channel(0x4000, b"x")) == ("drop", "unbound_channel")
        assert tables.peer(handle, PEER, b"x") == ("data", PEER, b"x")

    def test_many_channels_and_permissions(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        peers = [address(f"8.8.4.{n}", 5000 + n) for n in range(1, 65)]
        for n, peer in enumerate(peers):
            tables.permit(handle, peer, 600.0)
            tables.bind(handle, 0x4000 + n, peer, 600.0)
        for n, peer in enumerate(peers):
            assert tables.client(CLIENT, channel(0x4000 + n, b"x")) == ("peer", peer, b"x", False)
            assert tables.peer(handle, peer, b"y") == channel_result(0x4000 + n, b"y")


class TestControl:
    """S9, S13, X12, X19."""

    @pytest.mark.parametrize("first", range(256))
    def test_s9_first_byte_decides(self, tables: Tables, first: int) -> None:
        result = tables.client(CLIENT, bytes([first, 3]) + bytes.fromhex("0000 2112a442") + TID)
        if first == 0:
            assert result[0] == "control"
        elif first <= 3:
            assert result[0] in ("control", "drop")
        elif 0x40 <= first <= 0x4F:
            assert result == ("drop", "no_allocation")
        elif 0x50 <= first <= 0x7F:
            assert result == ("drop", "malformed")
        else:
            assert result == ("drop", "unknown_protocol")

    @pytest.mark.parametrize("with_fingerprint", [False, True])
    @pytest.mark.parametrize("client", [CLIENT, CLIENT_V6])
    def test_s13_binding_is_answered_on_the_spot(
        self, tables: Tables, client: TransportAddress, with_fingerprint: bool
    ) -> None:
        request = stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, [], with_fingerprint=with_fingerprint)
        expected = stun.success_response(
            stun.parse(request), [(Attr.XOR_MAPPED_ADDRESS, stun.xor_address(client, TID))]
        )
        assert tables.client(client, request) == ("reply", expected)

    def test_binding_with_an_unknown_attribute_goes_up(self, tables: Tables) -> None:
        request = stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, [(0x7FFE, b"")])
        assert tables.client(CLIENT, request) == ("control", request)

    def test_x12_binding_has_a_limit_per_source(self, kind: Any) -> None:
        tables: Tables = kind(bindings_per_s=10)
        request = stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, [])
        results = [tables.client(TransportAddress(CLIENT.ip, n), request, 1.0)[0] for n in range(1, 31)]
        assert results.count("reply") == 10
        assert tables.client(address("8.8.8.8", 1), request, 1.0)[0] == "reply"
        assert tables.client(CLIENT, request, 1.2)[0] == "reply"

    def test_x19_requests_have_a_limit_per_source_and_streams_have_not(self, kind: Any) -> None:
        tables: Tables = kind(requests_per_s=50)
        request = stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, [])
        results = [tables.client(CLIENT, request, 1.0) for _ in range(60)]
        assert results.count(("drop", "request_limited")) == 10
        key = address("0.0.0.0", 7)
        assert all(tables.client(key, request, 1.0, Transport.TCP)[0] == "control" for _ in range(60))


class TestReachability:
    """X8, X9 per packet."""

    def test_x9_denied_ports(self, tables: Tables) -> None:
        tables.deny_ports(0, 53)
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 300.0)
        for port, expected in ((53, ("drop", "denied_port")), (0, ("drop", "denied_port"))):
            assert tables.client(CLIENT, send(TransportAddress(PEER.ip, port), b"x")) == expected
        assert tables.peer(handle, TransportAddress(PEER.ip, 53), b"x") == ("drop", "denied_port")
        assert tables.client(CLIENT, send(PEER, b"x"))[0] == "peer"

    @pytest.mark.parametrize("restrict_first", [True, False])
    def test_x8_a_restricted_address_passes_on_allowed_ports(self, tables: Tables, restrict_first: bool) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        if restrict_first:
            tables.restrict(PEER)
        tables.permit(handle, PEER, 300.0)
        if not restrict_first:
            tables.restrict(PEER)
        assert tables.client(CLIENT, send(PEER, b"x")) == ("drop", "denied_port")
        tables.restrict(PEER, True)
        assert tables.client(CLIENT, send(PEER, b"x")) == ("peer", PEER, b"x", False)
        assert tables.peer(handle, PEER, b"x") == ("data", PEER, b"x")
        tables.restrict(PEER, False)
        assert tables.client(CLIENT, send(PEER, b"x")) == ("drop", "denied_port")


class TestBandwidth:
    """X16: each direction, per allocation, per user, in total; ±5 % of the cap."""

    @pytest.mark.parametrize("limit", ["allocation_bps_max", "user_bps_max", "total_bps_max"])
    def test_x16_throughput_is_what_the_cap_says(self, kind: Any, limit: str) -> None:
        tables: Tables = kind(**{limit: 8_000_000})
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        tables.bind(handle, 0x4000, PEER, 600.0)
        for direction in ("up", "down"):
            passed = 0
            for n in range(40_000):  # 4 MB/s offered for 10 s
                now = 1.0 + n / 4000
                if direction == "up":
                    result = tables.client(CLIENT, channel(0x4000, bytes(1000)), now)
                else:
                    result = tables.peer(handle, PEER, bytes(1000), now)
                passed += result[0] != "drop"
            assert 0.95 < passed / 10_000 < 1.05

    def test_x16_packets_are_limited_whatever_their_size(self, kind: Any) -> None:
        tables: Tables = kind(allocation_pps_max=500)
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 600.0)
        tables.bind(handle, 0x4000, PEER, 600.0)
        up = down = 0
        for n in range(20_000):  # 2,000 a second for 10 s
            now = 1.0 + n / 2000
            up += tables.client(CLIENT, channel(0x4000, b"x"), now)[0] != "drop"
            down += tables.peer(handle, PEER, b"", now)[0] != "drop"
        assert 0.95 < up / 5000 < 1.05
        assert 0.95 < down / 5000 < 1.05
        assert tables.client(CLIENT, channel(0x4000, b"x"), 11.0) == ("drop", "rate_limited")

    def test_x16_users_do_not_share_and_their_allocations_do(self, kind: Any) -> None:
        tables: Tables = kind(user_bps_max=8_000_000)
        passed = {}
        for user, port in (("a", 1), ("a", 2), ("b", 3)):
            client = TransportAddress(CLIENT.ip, port)
            handle = tables.open(RELAY_IPV4, client, user=user)
            tables.permit(handle, PEER, 600.0)
            passed[port] = sum(tables.client(client, send(PEER, bytes(1000)), 1.0)[0] == "peer" for _ in range(200))
        assert passed == {1: 100, 2: 0, 3: 100}


class TestLife:
    def test_dual_allocations_relay_by_family_and_end_half_by_half(self, tables: Tables) -> None:
        one, two = tables.open(RELAY_IPV4, CLIENT), tables.open(RELAY_IPV6, CLIENT)
        tables.permit(one, PEER, 300.0)
        tables.permit(two, PEER_V6, 300.0)
        assert tables.client(CLIENT, send(PEER, b"4")) == ("peer", PEER, b"4", False)
        assert tables.client(CLIENT, send(PEER_V6, b"6")) == ("peer", PEER_V6, b"6", False)
        assert tables.close(one) == (1, 1, 0, 0)
        assert tables.client(CLIENT, send(PEER, b"4")) == ("drop", "no_permission")
        assert tables.client(CLIENT, send(PEER_V6, b"6"))[0] == "peer"
        assert tables.close(two) == (2, 2, 0, 0)
        assert tables.client(CLIENT, send(PEER, b"4")) == ("drop", "no_allocation")
        assert not any(tables.counts().values())

    def test_usage_counts_payload_only(self, tables: Tables) -> None:
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 300.0)
        tables.client(CLIENT, send(PEER, bytes(100)))
        tables.peer(handle, PEER, bytes(30))
        tables.peer(handle, PEER, bytes(40))
        assert tables.close(handle) == (100, 1, 70, 2)

    def test_many_clients_come_and_go(self, tables: Tables) -> None:
        for _ in range(3):
            handles = [tables.open(RELAY_IPV4, address("9.9.9.9", n), user=str(n % 7)) for n in range(1, 61)]
            for handle in handles[::2] + handles[1::2]:
                tables.close(handle)
        assert not any(tables.counts().values())


def test_a_handle_that_was_closed_is_refused_even_when_its_slot_lives_again() -> None:
    table = RelayTable(relays_max=1)
    first = table.add_relay("198.41.0.10", 50000)
    with pytest.raises(MemoryError):
        table.add_relay("198.41.0.10", 50001)
    table.close_relay(first)
    second = table.add_relay("198.41.0.10", 50000)
    assert second != first
    with pytest.raises(KeyError):
        table.close_relay(first)
    with pytest.raises(KeyError):
        table.permit(1 << 60, "8.8.4.4", 1.0)
    assert table.live_counts()["relays"] == 1


PEERS = [PEER, TransportAddress(PEER.ip, 5001), address("8.8.4.5", 5000), TransportAddress(PEER.ip, 53), PEER_V6]
CLIENTS = [CLIENT, TransportAddress(CLIENT.ip, 4001), CLIENT_V6]
STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([RELAY_IPV4, RELAY_IPV6]), st.sampled_from(CLIENTS)),
    st.tuples(st.just("close"), st.integers(0, 9)),
    st.tuples(st.just("permit"), st.integers(0, 9), st.sampled_from(PEERS), st.integers(0, 20)),
    st.tuples(st.just("forbid"), st.integers(0, 9), st.sampled_from(PEERS)),
    st.tuples(
        st.just("bind"), st.integers(0, 9), st.integers(0x4000, 0x4003), st.sampled_from(PEERS), st.integers(0, 20)
    ),
    st.tuples(st.just("restrict"), st.sampled_from(PEERS), st.sampled_from([None, True, False])),
    st.tuples(
        st.just("client"), st.sampled_from(CLIENTS), st.builds(send, st.sampled_from(PEERS), st.binary(max_size=9))
    ),
    st.tuples(
        st.just("client"),
        st.sampled_from(CLIENTS),
        st.builds(channel, st.integers(0x3FFF, 0x5001), st.binary(max_size=9)),
    ),
    st.tuples(st.just("client"), st.sampled_from(CLIENTS), st.binary(max_size=40)),
    st.tuples(st.just("peer"), st.integers(0, 9), st.sampled_from(PEERS), st.binary(max_size=9)),
    st.tuples(st.just("wait"), st.integers(1, 5)),
)


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_both_planes_agree_on_any_sequence(steps: list[Any]) -> None:
    both: list[Tables] = [Reference(requests_per_s=5), Compiled(requests_per_s=5)]
    for made in both:
        made.deny_ports(0, 53)
    handles: list[list[int]] = [[], []]
    held: set[tuple[Any, Any]] = set()
    keys: list[tuple[Any, Any]] = []
    now = 100.0
    for step in steps:
        match step:
            case ("open", ip, client) if (ip, client) not in held and len(keys) < 10:
                for made, mine in zip(both, handles, strict=True):
                    mine.append(made.open(ip, client))
                keys.append((ip, client))
                held.add((ip, client))
            case ("close", n) if n < len(keys):
                usage = [made.close(mine.pop(n)) for made, mine in zip(both, handles, strict=True)]
                held.discard(keys.pop(n))
                assert usage[0] == usage[1]
            case ("permit", n, peer, seconds) if n < len(keys) and keys[n][0].version == peer.ip.version:
                for made, mine in zip(both, handles, strict=True):
                    made.permit(mine[n], peer, now + seconds)
            case ("forbid", n, peer) if n < len(keys):
                for made, mine in zip(both, handles, strict=True):
                    made.forbid(mine[n], peer)
            case ("bind", n, number, peer, seconds) if n < len(keys):
                for made, mine in zip(both, handles, strict=True):
                    made.bind(mine[n], number, peer, now + seconds)
            case ("restrict", peer, allowed):
                for made in both:
                    made.restrict(peer, allowed)
            case ("client", client, data):
                results = [made.client(client, data, now) for made in both]
                assert results[0] == results[1]
            case ("peer", n, source, payload) if n < len(keys):
                results = [made.peer(mine[n], source, payload, now) for made, mine in zip(both, handles, strict=True)]
                assert results[0] == results[1]
            case ("wait", seconds):
                now += seconds
        assert both[0].counts() == both[1].counts()
