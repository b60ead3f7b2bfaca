"""Messages between a Locust process and its engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.protocol import MESSAGE_MAX, Decoder, ProtocolError, encode

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4), max_size=8)


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(messages: list[dict[str, Any]], size: int) -> None:
    messages = [{key: value % 2**53 if isinstance(value, int) else value for key, value in m.items()} for m in messages]
    stream = b"".join(encode(message) for message in messages)
    decoder = Decoder()
    found = [m for at in range(0, len(stream), size) for m in decoder.feed(stream[at : at + size])]
    assert found == messages


def test_an_endless_message_is_refused_before_it_is_collected() -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        list(Decoder().feed((MESSAGE_MAX + 1).to_bytes(4, "little")))


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b""])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(len(body).to_bytes(4, "little") + body))
