"""Whatever the bytes, decoding answers a value or raises `DecodeError`."""

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from objects.codec import decode, encode
from objects.errors import DecodeError, NotSerializable

# Random bytes seldom get past the first tag; tags and small numbers do.
likely = st.lists(st.sampled_from(b"NTFIDSBLUMEZWXRC\x00\x01\x02\x7f\x80\xff"), max_size=60).map(bytes)


@settings(max_examples=500)
@given(st.binary(max_size=200) | likely)
def test_only_decode_error_escapes(data: bytes) -> None:
    with suppress(DecodeError):
        decode(b"\x01" + data)


@settings(max_examples=300)
@given(likely)
def test_what_decodes_can_be_encoded_again(data: bytes) -> None:
    try:
        value = decode(b"\x01" + data)
    except DecodeError:
        return
    # A container that holds a tuple that holds the container can be spelled, but not by our encoder.
    with suppress(NotSerializable):
        assert encode(decode(encode(value))) == encode(value)


@settings(max_examples=300)
@given(st.lists(st.integers() | st.text() | st.datetimes() | st.sets(st.integers())), st.data())
def test_a_changed_byte_never_escapes_the_codec(value: list[object], data: st.DataObject) -> None:
    encoded = bytearray(encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        decode(bytes(encoded))
