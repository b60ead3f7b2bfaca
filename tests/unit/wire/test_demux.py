import pytest

from wire.demux import Protocol, demux


def expected(first: int) -> Protocol:
    if first <= 3:
        return Protocol.STUN
    if 20 <= first <= 63:
        return Protocol.DTLS
    if 64 <= first <= 79:
        return Protocol.CHANNEL_DATA
    if 128 <= first <= 191:
        return Protocol.RTP
    return Protocol.UNKNOWN


class TestFirstByte:
    """RFC 7983 §7, rule DMX-1."""

    @pytest.mark.parametrize("first", range(256))
    def test_each_first_byte_reaches_its_parser_and_no_other(self, first: int) -> None:
        datagram = bytes([first, 0]) + bytes.fromhex("0000 2112a442") + bytes(32)
        assert demux(datagram) is expected(first)

    def test_stun_needs_the_cookie(self) -> None:
        assert demux(b"\x00\x01\x00\x00\x21\x12\xa4\x43" + bytes(12)) is Protocol.UNKNOWN

    @pytest.mark.parametrize(
        ("start", "smallest", "protocol"),
        [
            (bytes.fromhex("00010000 2112a442"), 20, Protocol.STUN),
            (b"\x16\xfe\xfd", 13, Protocol.DTLS),
            (b"\x40\x00", 4, Protocol.CHANNEL_DATA),
            (b"\x80\x60", 12, Protocol.RTP),
            (b"\x80\xc8", 8, Protocol.RTCP),
        ],
    )
    def test_a_datagram_below_the_smallest_size_of_its_protocol_is_unknown(
        self, start: bytes, smallest: int, protocol: Protocol
    ) -> None:
        assert demux(start.ljust(smallest, b"\0")) is protocol
        assert all(demux(start.ljust(smallest, b"\0")[:size]) is Protocol.UNKNOWN for size in range(smallest))


class TestRtcp:
    """RFC 5761 §4, rule DMX-2: the second byte decides, never trial parsing."""

    @pytest.mark.parametrize("second", range(256))
    def test_rtcp_is_packet_type_192_to_223(self, second: int) -> None:
        datagram = bytes([0x80, second]) + bytes(30)
        assert demux(datagram) is (Protocol.RTCP if 192 <= second <= 223 else Protocol.RTP)
