"""Damaged messages: both planes decide alike, the server answers at most once, streams stay framed (S12)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import stun_vectors as vectors
from tests.support.turn_harness import PEER, RELAY_IPV4, TCP_RELAY, UDP_RELAY, Client, Harness
from tests.unit.turn.test_relay import CLIENT, Compiled, Reference, channel, send
from turn.allocation import Transport
from turn.errors import StreamError
from turn.framing import StreamFramer
from wire import stun
from wire.stun import Attr, MessageClass, Method

TID = bytes(range(1, 13))
SEEDS = [
    vectors.REQUEST,
    vectors.LONG_TERM_REQUEST,
    vectors.LONG_TERM_SHA256_REQUEST,
    send(PEER, b"hello"),
    send(PEER, b"hello!!", (Attr.DONT_FRAGMENT, b""), (Attr.MESSAGE_INTEGRITY, bytes(20)), with_fingerprint=True),
    channel(0x4000, b"hello"),
    stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, [], with_fingerprint=True),
    stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)]),
    stun.serialize(Method.CONNECT, MessageClass.REQUEST, TID, [(Attr.XOR_PEER_ADDRESS, stun.xor_address(PEER, TID))]),
    stun.serialize(Method.CONNECTION_BIND, MessageClass.REQUEST, TID, [(Attr.CONNECTION_ID, stun.uint32(1))]),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with a few bytes changed, inserted or cut; half of them with the length mended."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 2)):
            case 0 if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case 1:
                data[at:at] = draw(st.binary(max_size=8))
            case 2:
                del data[at : at + draw(st.integers(0, 8))]
    if len(data) >= 4 and draw(st.booleans()):
        data += bytes(-len(data) % 4)
        data[2:4] = max(0, len(data) - (20 if data[0] <= 3 else 4)).to_bytes(2, "big")
    return bytes(data)


@pytest.fixture(scope="module")
def planes() -> list[Reference | Compiled]:
    made: list[Reference | Compiled] = []
    for kind in (Reference, Compiled):
        tables = kind(requests_per_s=0, bindings_per_s=0)
        handle = tables.open(RELAY_IPV4, CLIENT)
        tables.permit(handle, PEER, 1e9)
        tables.bind(handle, 0x4000, PEER, 1e9)
        made.append(tables)
    return made


@given(damaged())
@settings(max_examples=500)
def test_both_planes_decide_alike(planes: list[Reference | Compiled], data: bytes) -> None:
    assert planes[0].client(CLIENT, data) == planes[1].client(CLIENT, data)


@given(damaged())
def test_the_server_answers_at_most_once(data: bytes) -> None:
    harness = Harness()
    client = Client(harness)
    harness.receive(data, client.five_tuple)
    assert harness.server.live_counts()["allocations"] == 0


@given(st.lists(damaged(), max_size=4), st.integers(1, 50))
def test_a_stream_of_damaged_messages_ends_or_stays_framed(messages: list[bytes], step: int) -> None:
    stream = b"".join(messages)
    framer = StreamFramer()
    found: list[bytes] = []
    with suppress(StreamError):
        for at in range(0, len(stream), step):
            framer.receive_data(stream[at : at + step], 0.0)
            found += framer.messages_received()
    found += framer.messages_received()
    assert stream.startswith(b"".join(found))


ATTRIBUTES = st.lists(
    st.tuples(
        st.sampled_from([Attr.XOR_PEER_ADDRESS, Attr.CONNECTION_ID, Attr.LIFETIME, Attr.CHANNEL_NUMBER, Attr.DATA]),
        st.binary(max_size=24) | st.just(stun.xor_address(PEER, TID)),
    ),
    max_size=4,
)


@given(st.lists(st.tuples(st.sampled_from([Method.CONNECT, Method.CONNECTION_BIND]), ATTRIBUTES), max_size=6))
def test_tc2_tc4_whatever_a_user_asks_of_a_tcp_relay_nothing_is_left(
    requests: list[tuple[Method, list[tuple[int, bytes]]]],
) -> None:
    """Signed, so that it passes the checks of strangers and meets the handlers of RFC 6062."""
    harness = Harness(tcp_relays=True)
    client = Client(harness, transport=Transport.TCP)
    assert not client.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, TCP_RELAY)).error()
    for number, (method, attributes) in enumerate(requests):
        signed = client.build(method, *attributes, transaction_id=TID if number % 2 else None)
        harness.receive(signed, client.five_tuple)
    assert len(harness.peers.called) <= len(requests)
    harness.close()
