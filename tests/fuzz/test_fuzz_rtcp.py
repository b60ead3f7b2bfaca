"""Any bytes at all: values or `RtcpError`, and whatever was read can be written, and reads the same."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from wire import rtcp
from wire.errors import RtcpError

framed = st.builds(
    lambda first, packet_type, body, more: (
        bytes([first & 0x3F | 0x80, packet_type]) + (len(body) // 4).to_bytes(2) + body[: len(body) // 4 * 4] + more
    ),
    st.sampled_from([0x81, 0x84, 0x8F, 0xAF]) | st.integers(0, 255),
    st.integers(200, 207),
    st.binary(max_size=120)
    | st.binary(max_size=20).map(lambda body: bytes(8) + b"REMB" + body)
    | st.binary(max_size=40).map(lambda body: bytes(10) + b"\x00\x08" + body),
    st.binary(max_size=20),
)


@settings(max_examples=1000)
@given(st.binary(max_size=100) | framed)
def test_rtcp(data: bytes) -> None:
    with suppress(RtcpError):
        for packet in rtcp.parse(data):
            (again,) = rtcp.parse(packet.serialize())
            if isinstance(packet, rtcp.Nack):  # the same seqs, though perhaps packed in another order
                assert isinstance(again, rtcp.Nack)
                assert set(again.seqs) == set(packet.seqs)
            elif isinstance(packet, rtcp.ReceiverEstimatedMaxBitrate):  # a clamped one loses its low bits
                assert isinstance(again, rtcp.ReceiverEstimatedMaxBitrate)
                assert 0 <= packet.bitrate_bps - again.bitrate_bps < 1 << 45
            else:
                assert again == packet
