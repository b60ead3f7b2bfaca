"""Any bytes, in any pieces, into the socket table: never a crash, one end, known codes, nothing kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hibernation._sockets.table import CLOSED, FAILED, MESSAGE, REPLY, SocketTable
from tests.support.sockets import Peer, chunks, drain, frame

LIMIT = 5_000

noise = st.binary(max_size=300)
frames = st.builds(
    frame,
    st.integers(0, 15),
    st.one_of(st.binary(max_size=200), st.sampled_from([b"ping", b"\xff\xfe", b"x" * LIMIT, b"x" * (LIMIT + 1)])),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0x40, 0x70]),
    mask=st.one_of(st.binary(min_size=4, max_size=4), st.none()),
)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(frames, frames, noise), max_size=12).map(b"".join),
    st.lists(st.integers(1, 700), max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_whatever_a_client_sends(data: bytes, cuts: list[int], deflate: bool, hangs_up: bool) -> None:
    table = SocketTable(max_message_bytes=LIMIT, max_frame_bytes=LIMIT)
    group = table.add_group()
    table.set_auto_responses(group, [("ping", "pong", False, None), (b"\xff", b"", True, None)])
    peer = Peer(table, group=group, deflate=deflate)
    events = [event for piece in chunks(data, cuts) for event in peer.write(piece)]
    if hangs_up:
        peer.close()
        events += drain(table)
    ends = [event for event in events if event[0] in (CLOSED, FAILED)]
    assert len(ends) <= 1
    assert events[-1:] == ends or not ends, "something after the end"
    if ends:
        assert isinstance(ends[0][2], int)
        assert ends[0][0] == CLOSED or ends[0][2] in (1002, 1007, 1009)
    elif hangs_up:
        raise AssertionError("a lost client was not reported")
    assert {event[0] for event in events} <= {MESSAGE, CLOSED, FAILED, REPLY}
    assert all(len(event[2]) <= LIMIT for event in events if isinstance(event[2], str | bytes))
    # One frame or message in pieces, at twice its size, and its bookkeeping.
    assert table.counters()["inbound_bytes"] <= 2 * LIMIT + 1_000
    table.abort(peer.handle)
    table.release(peer.handle)
    counters = table.counters()
    assert (counters["rows"], counters["inbound_bytes"], counters["outbound_bytes"]) == (0, 0, 0)
    peer.close()
