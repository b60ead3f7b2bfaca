"""Any bytes at all: a value or `RtpError`, and whatever was read can be written."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from wire import rtp
from wire.errors import RtpError

headers = st.binary(min_size=11, max_size=60).map(lambda data: bytes([data[0] & 0x3F | 0x80]) + data[1:])
with_extensions = st.builds(
    lambda profile, block, rest: (
        b"\x90" + bytes(11) + profile + (len(block) // 4).to_bytes(2) + block[: len(block) // 4 * 4] + rest
    ),
    st.sampled_from([b"\xbe\xde", b"\x10\x00", b"\x10\x0f"]) | st.binary(min_size=2, max_size=2),
    st.binary(max_size=80),
    st.binary(max_size=20),
)


@settings(max_examples=500)
@given(st.binary(max_size=100) | headers | with_extensions)
def test_rtp(data: bytes) -> None:
    with suppress(RtpError):
        packet = rtp.parse(data)
        assert rtp.parse(packet.serialize()) == packet
