"""How a room message travels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.dialects import BROADCAST, DIALECTS, HEADER_LENGTH, LoadMessage, compose, decompose, room_url

NUMBERS = st.integers(min_value=0, max_value=2**32 - 1)


@given(NUMBERS, NUMBERS, st.integers(min_value=0, max_value=2**63), st.integers(min_value=0, max_value=500))
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_load_message_survives_its_envelope(name: str, sender: int, sequence: int, sent_ns: int, size: int) -> None:
    text = compose(BROADCAST, sender, sequence, sent_ns, size)
    assert len(text) == max(size, HEADER_LENGTH)
    message = DIALECTS[name].unwrap(DIALECTS[name].wrap(text))
    assert message is not None
    assert decompose(message) == LoadMessage(BROADCAST, sender, sequence, sent_ns)


@given(st.binary(max_size=80))
def test_anything_else_is_no_load_message_and_no_error(data: bytes) -> None:
    found = decompose(data)
    assert found is None or len(data) >= HEADER_LENGTH
    for dialect in DIALECTS.values():
        dialect.unwrap(data)
        dialect.answer(data)
        dialect.joined(data)


def test_socket_io_joins_its_namespace_and_answers_heartbeats() -> None:
    dialect = DIALECTS["socket.io"]
    assert dialect.answer(b'0{"sid":"x","pingInterval":25000}') == b"40"
    assert dialect.joined(b'40{"sid":"y"}')
    assert dialect.answer(b"2") == b"3"
    assert dialect.unwrap(b"2") is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:1", "ws://host:1/parties/main/a%2Fb"),
        ("https://host/base/", "wss://host/base/parties/main/a%2Fb"),
        ("ws://[::1]:5", "ws://[::1]:5/parties/main/a%2Fb"),
    ],
)
def test_a_room_has_an_address(url: str, expected: str) -> None:
    assert room_url(url, "/parties/main/{room}", "a/b") == expected


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        room_url(url, "/{room}", "a")
