"""What crosses the link between sockets and objects: exactly what was written, or `LinkError`."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernation.errors import LinkError
from hibernation.wire import MessageReader, parse, serialize
from tests.support.sockets import chunks

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(max_size=30),
        st.binary(max_size=30),
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=20,
)


@given(st.lists(values, max_size=4), st.lists(st.integers(1, 40), max_size=5))
def test_values_arrive_as_they_were_in_pieces_of_any_size(items: list[object], cuts: list[int]) -> None:
    reader = MessageReader()
    data = b"".join(serialize(item) for item in items)  # type: ignore[arg-type]
    got = [value for piece in chunks(data, cuts) for value in reader.receive_data(piece)]
    assert got == items
    assert [type(value) for value in got] == [type(item) for item in items]


@given(st.binary(max_size=60))
def test_anything_else_is_a_link_error(body: bytes) -> None:
    try:
        value = parse(body)
    except LinkError:
        return
    assert serialize(value)[4:] == body or value != value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"?",
        b"i\0",
        b"s" + struct.pack("!I", 5) + b"abc",
        b"s" + struct.pack("!I", 1) + b"\xff",
        b"l" + struct.pack("!I", 0xFFFFFFFF),
        b"l\0\0\0\1" * 40 + b"n",
        b"nn",
    ],
    ids=["empty", "tag", "short int", "short text", "not UTF-8", "huge tuple", "too deep", "something behind"],
)
def test_malformed_messages_are_refused(body: bytes) -> None:
    with pytest.raises(LinkError):
        parse(body)


def test_a_huge_message_is_refused_by_its_size_alone() -> None:
    with pytest.raises(LinkError):
        MessageReader().receive_data(b"\xff\xff\xff\xff")
