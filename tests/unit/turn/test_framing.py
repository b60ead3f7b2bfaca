import pytest
from hypothesis import given
from hypothesis import strategies as st

from turn._relay.table import RelayTable
from turn.errors import StreamError
from turn.framing import StreamFramer, split
from wire import stun
from wire.stun import MessageClass, Method

TID = bytes(range(1, 13))


def channel(payload: bytes, number: int = 0x4000) -> bytes:
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload + bytes(-len(payload) % 4)


def request(*attributes: tuple[int, bytes]) -> bytes:
    return stun.serialize(Method.ALLOCATE, MessageClass.REQUEST, TID, attributes)


MESSAGES = st.one_of(
    st.builds(channel, st.binary(max_size=30), st.integers(0x4000, 0x7FFF)),
    st.builds(request, st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=20))),
)


class TestSegmentation:
    """T1, C7: RFC 8489 §6.2.2, RFC 8656 §12.5."""

    @given(st.lists(MESSAGES, max_size=8), st.data())
    def test_t1_any_segmentation_gives_the_same_messages(self, messages: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(messages)
        framer = StreamFramer()
        found = []
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            framer.receive_data(stream[:cut], 0.0)
            found += framer.messages_received()
            stream = stream[cut:]
        assert found == messages
        assert framer.partial_since is None

    def test_c7_lengths_zero_to_nine_in_one_segment_and_byte_by_byte(self) -> None:
        messages = [channel(b"x" * size) for size in range(10)]
        whole, bytewise = StreamFramer(), StreamFramer()
        whole.receive_data(b"".join(messages), 0.0)
        for byte in b"".join(messages):
            bytewise.receive_data(bytes([byte]), 0.0)
        assert whole.messages_received() == bytewise.messages_received() == messages
        assert split(b"".join(messages)) == messages


class TestRelayThreads:
    """T1, S12: what relay threads cut is what `StreamFramer` cuts."""

    @given(st.lists(st.one_of(MESSAGES, st.binary(max_size=40), st.just(b"\x40\0\xff\xff")), max_size=8), st.data())
    def test_t1_s12_any_bytes_in_any_pieces_are_cut_alike(self, parts: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(parts)
        framer, broken = StreamFramer(), False
        try:
            framer.receive_data(stream, 0.0)
        except StreamError:
            broken = True
        messages = framer.messages_received()
        held = framer.held  # behind a ConnectionBind it asks first, which relay threads leave to it
        pieces, rest = [], stream
        while rest:
            cut = data.draw(st.integers(1, len(rest)))
            pieces.append(rest[:cut])
            rest = rest[cut:]
        found, foreign, left = RelayTable(relays_max=1).cut(pieces)
        whole = b"".join(found)
        assert stream.startswith(whole)
        if held:
            assert found[: len(messages)] == messages
        else:
            assert (found, foreign) == (messages, broken)
        if not foreign:
            assert whole + left == stream
        else:
            assert stream[len(whole) :].startswith(left)
            assert 4 <= left[0] < 0x40 or left[0] >= 0x80

    def test_t1_a_message_of_the_greatest_length_byte_by_byte(self) -> None:
        stream = channel(bytes(0xFFFF)) + b"\0\1\xff\xff" + bytes(16 + 0xFFFF) + channel(b"x")
        found, foreign, left = RelayTable(relays_max=1).cut(bytes([byte]) for byte in stream)
        assert [len(message) for message in found] == [4 + 0x10000, 20 + 0xFFFF, 8]
        assert not foreign
        assert left == b""


class TestForeignBytes:
    """T2."""

    @pytest.mark.parametrize("first", [*range(4, 0x40), *range(0x80, 0x100)])
    def test_t2_a_byte_that_starts_no_message_breaks_the_stream(self, first: int) -> None:
        framer = StreamFramer()
        with pytest.raises(StreamError):
            framer.receive_data(channel(b"ok") + bytes([first]) + b"rest of it", 0.0)
        assert framer.messages_received() == [channel(b"ok")]

    def test_t2_numbers_beyond_ours_keep_the_framing(self) -> None:
        framer = StreamFramer()
        messages = [channel(b"abc", 0x5000), channel(b"defgh", 0x7FFF), request()]
        framer.receive_data(b"".join(messages), 0.0)
        assert framer.messages_received() == messages

    @pytest.mark.parametrize(
        "opening", [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n"]
    )
    def test_t8_other_protocols_never_become_a_message(self, opening: bytes) -> None:
        """X21, CVE-2020-6061: no HTTP here, and no PROXY header from just anybody."""
        framer = StreamFramer()
        try:
            framer.receive_data(opening, 5.0)
        except StreamError:
            return
        assert framer.messages_received() == []
        assert framer.partial_since == 5.0


class TestPartial:
    def test_t2_the_age_of_an_unfinished_message_counts_from_its_first_byte(self) -> None:
        framer = StreamFramer()
        assert framer.partial_since is None
        framer.receive_data(request()[:3], 1.0)
        framer.receive_data(request()[3:10], 2.0)
        assert framer.partial_since == 1.0
        framer.receive_data(request()[10:] + b"\0", 3.0)
        assert framer.partial_since == 3.0
        framer.receive_data(request()[1:], 4.0)
        assert framer.partial_since is None
        assert framer.messages_received() == [request(), request()]

    def test_at_most_one_message_is_held(self) -> None:
        framer = StreamFramer()
        for piece in [b"\x40\0\xff\xff", *[b"\x40\0\0\0" * 250] * 60]:
            framer.receive_data(piece, 0.0)
        assert framer.messages_received() == []
        framer.receive_data(b"\x40\0\0\0" * 250 * 10, 0.0)
        assert len(framer.messages_received()) > 1
        assert framer.partial_since is None


class TestConnectionBind:
    """RFC 6062 §5.4: what is behind the request may be a peer's bytes."""

    BIND = stun.serialize(Method.CONNECTION_BIND, MessageClass.REQUEST, TID, [])

    def test_tc4_nothing_behind_it_is_cut(self) -> None:
        framer = StreamFramer()
        framer.receive_data(channel(b"x") + self.BIND + b"\xff\xffbytes of a peer", 0.0)
        assert framer.messages_received() == [channel(b"x"), self.BIND]
        assert framer.held
        framer.receive_data(b", and more", 1.0)
        assert framer.messages_received() == []
        assert framer.partial_since is None
        assert framer.take_rest() == b"\xff\xffbytes of a peer, and more"

    def test_tc4_after_a_refusal_it_is(self) -> None:
        framer = StreamFramer()
        framer.receive_data(self.BIND + channel(b"y") + self.BIND + b"\x40", 0.0)
        assert framer.messages_received() == [self.BIND]
        framer.resume(1.0)
        assert framer.messages_received() == [channel(b"y"), self.BIND]
        framer.resume(2.0)
        assert framer.messages_received() == []
        assert framer.partial_since == 2.0

    def test_tc4_foreign_bytes_behind_a_refused_one_are_foreign(self) -> None:
        framer = StreamFramer()
        framer.receive_data(self.BIND + b"\xff", 0.0)
        with pytest.raises(StreamError):
            framer.resume(0.0)

    def test_t2_more_than_a_client_has_use_for_are_foreign(self) -> None:
        """Each ends a batch: many in one read would hold everybody else up."""
        framer = StreamFramer()
        framer.receive_data(self.BIND * 100, 0.0)
        for _ in range(15):
            framer.resume(0.0)
        with pytest.raises(StreamError):
            framer.resume(0.0)
        assert framer.messages_received() == [self.BIND] * 16
