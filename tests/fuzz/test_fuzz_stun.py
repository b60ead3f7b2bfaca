"""Any bytes: `parse` raises `StunError` or gives a message whose readers raise only `StunAttributeError` (S12)."""

from collections.abc import Callable
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import stun_vectors as vectors
from wire import stun
from wire.errors import StunAttributeError, StunError
from wire.stun import Attr, Message

VECTORS = [
    vectors.REQUEST,
    vectors.RESPONSE_IPV4,
    vectors.RESPONSE_IPV6,
    vectors.LONG_TERM_REQUEST,
    vectors.LONG_TERM_SHA256_REQUEST,
]

READERS: list[Callable[[Message], object]] = [
    lambda m: m.error(),
    lambda m: m.unknown_required(frozenset()),
    lambda m: m.check_integrity(b"key"),
    lambda m: m.check_integrity_sha256(b"key"),
    *(lambda m, a=a: m.address(a) for a in Attr),  # type: ignore[misc]
    *(lambda m, a=a: m.text(a) for a in Attr),  # type: ignore[misc]
    *(lambda m, a=a: m.uint(a) for a in Attr),  # type: ignore[misc]
]


def read_everything(data: bytes) -> None:
    try:
        message = stun.parse(data)
    except StunError:
        return
    assert sum(4 + len(value) for _, value in message.attributes) <= len(data) - stun.HEADER_BYTES
    for read in READERS:
        with suppress(StunAttributeError):
            read(message)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x00\x01\xff\xff\x21\x12\xa4\x42" + bytes(12))
def test_any_bytes(data: bytes) -> None:
    read_everything(data)


@given(st.binary(min_size=1, max_size=400))
def test_any_body_behind_a_right_header(body: bytes) -> None:
    body += bytes(-len(body) % 4)
    read_everything(b"\x00\x03" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(range(12)) + body)


@given(st.sampled_from(VECTORS), st.data())
def test_published_messages_with_a_few_changed_bytes(vector: bytes, data: st.DataObject) -> None:
    changed = bytearray(vector)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    read_everything(bytes(changed))
    read_everything(bytes(changed)[: data.draw(st.integers(0, len(changed)))])
