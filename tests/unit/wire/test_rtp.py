from __future__ import annotations

import struct

import pytest
from aiortc import rtp as aiortc_rtp
from hypothesis import given
from hypothesis import strategies as st

from wire import rtp
from wire.errors import RtpError
from wire.rtp import HeaderExtension, RtpPacket

uint16 = st.integers(0, 0xFFFF)
uint32 = st.integers(0, 0xFFFFFFFF)

one_byte_elements = st.builds(HeaderExtension, st.integers(1, 14), st.binary(min_size=1, max_size=16))
any_elements = st.builds(HeaderExtension, st.integers(1, 255), st.binary(max_size=255))


def distinct(elements: st.SearchStrategy[HeaderExtension]) -> st.SearchStrategy[tuple[HeaderExtension, ...]]:
    return st.lists(elements, max_size=6, unique_by=lambda element: element.id).map(tuple)


packets = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    seq=uint16,
    timestamp=uint32,
    ssrc=uint32,
    payload=st.binary(max_size=64),
    marker=st.booleans(),
    csrcs=st.lists(uint32, max_size=15).map(tuple),
    extensions=distinct(one_byte_elements) | distinct(any_elements),
    padding_bytes=st.integers(0, 255),
)


def header(first: int = 0x80, second: int = 96) -> bytes:
    return struct.pack("!BBHII", first, second, 7, 90_000, 0xDECAFBAD)


class TestFixedHeader:
    """RFC 3550 §5.1."""

    def test_a_packet_of_known_bytes_reads_as_its_fields(self) -> None:
        data = bytes.fromhex("a1e0 0102 00000003 00000004 00000005") + b"payload" + bytes([0, 0, 3])
        assert rtp.parse(data) == RtpPacket(
            payload_type=96,
            seq=0x0102,
            timestamp=3,
            ssrc=4,
            payload=b"payload",
            marker=True,
            csrcs=(5,),
            padding_bytes=3,
        )

    @given(packets)
    def test_serialize_and_parse_are_inverse(self, packet: RtpPacket) -> None:
        assert rtp.parse(packet.serialize()) == packet

    @given(packets)
    def test_an_independent_parser_reads_the_same(self, packet: RtpPacket) -> None:
        other = aiortc_rtp.RtpPacket.parse(packet.serialize())
        assert (other.payload_type, other.sequence_number, other.timestamp) == (
            packet.payload_type,
            packet.seq,
            packet.timestamp,
        )
        assert (other.ssrc, other.marker, tuple(other.csrc)) == (packet.ssrc, packet.marker, packet.csrcs)
        assert (other.payload, other.padding_size) == (packet.payload, packet.padding_bytes)

    @given(distinct(one_byte_elements) | distinct(any_elements))
    def test_an_independent_parser_reads_the_same_extensions(self, elements: tuple[HeaderExtension, ...]) -> None:
        block = rtp.serialize_extensions(elements)
        profile = int.from_bytes(block[:2])
        other = aiortc_rtp.unpack_header_extensions(profile, block[4:])
        assert other == [(element.id, element.data) for element in elements]

    @pytest.mark.parametrize(
        "packet",
        [
            RtpPacket(128, 0, 0, 0),
            RtpPacket(0, 0x10000, 0, 0),
            RtpPacket(0, 0, -1, 0),
            RtpPacket(0, 0, 0, 1 << 32),
            RtpPacket(0, 0, 0, 0, csrcs=(1,) * 16),
            RtpPacket(0, 0, 0, 0, csrcs=(-1,)),
            RtpPacket(0, 0, 0, 0, padding_bytes=256),
            RtpPacket(0, 0, 0, 0, extensions=(HeaderExtension(0, b"x"),)),
            RtpPacket(0, 0, 0, 0, extensions=(HeaderExtension(256, b"x"),)),
            RtpPacket(0, 0, 0, 0, extensions=(HeaderExtension(1, bytes(256)),)),
            RtpPacket(0, 0, 0, 0, extensions=(HeaderExtension(1, bytes(255)),) * 1100),
        ],
    )
    def test_values_that_do_not_fit_are_refused(self, packet: RtpPacket) -> None:
        with pytest.raises(RtpError):
            packet.serialize()


class TestMalformedPackets:
    """RX-1 and row 4 of the robustness table."""

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(header()[:11], id="shorter than a header"),
            pytest.param(header(0x40), id="version 1"),
            pytest.param(header(0xC0), id="version 3"),
            pytest.param(header(0x8F) + bytes(8), id="fifteen CSRCs in 20 bytes"),
            pytest.param(header(0x90), id="extension flag without extension header"),
            pytest.param(header(0x90) + b"\xbe\xde\x00", id="extension header cut"),
            pytest.param(header(0x90) + b"\xbe\xde\xff\xff" + bytes(100), id="extension of 65535 words"),
            pytest.param(header(0xA0), id="padding flag without a byte to count it"),
            pytest.param(header(0xA0) + b"payload\x00", id="padding of zero"),
            pytest.param(header(0xA0) + b"payload\x09", id="padding longer than the rest"),
            pytest.param(header(0xB0) + b"\xbe\xde\x00\x01\x00\x00\x00\x04", id="padding that would eat the extension"),
        ],
    )
    def test_is_refused(self, data: bytes) -> None:
        with pytest.raises(RtpError):
            rtp.parse(data)

    def test_a_header_alone_is_an_empty_packet(self) -> None:
        assert rtp.parse(header()).payload == b""

    def test_padding_may_be_all_there_is(self) -> None:
        packet = rtp.parse(header(0xA0) + bytes([0, 0, 3]))
        assert (packet.payload, packet.padding_bytes) == (b"", 3)

    def test_the_largest_datagram_is_read(self) -> None:
        assert len(rtp.parse(header() + bytes(65_507 - 12)).payload) == 65_495


class TestHeaderExtensions:
    """RFC 8285 §4.2, §4.3; RX-4 and row 5 of the robustness table."""

    ONE_BYTE = 0xBEDE
    TWO_BYTE = 0x1000

    @staticmethod
    def read(profile: int, block: bytes) -> list[tuple[int, bytes]]:
        return [(element.id, element.data) for element in rtp.parse_extensions(profile, block)]

    def test_padding_between_one_byte_elements_is_passed_over(self) -> None:
        assert self.read(self.ONE_BYTE, b"\x10a\x00\x00\x21bc\x00") == [(1, b"a"), (2, b"bc")]

    def test_padding_between_two_byte_elements_is_passed_over(self) -> None:
        assert self.read(self.TWO_BYTE, b"\x10\x01a\x00\x00\x21\x02bc") == [(16, b"a"), (33, b"bc")]

    def test_application_bits_of_the_two_byte_form_are_ignored(self) -> None:
        assert self.read(self.TWO_BYTE | 0xF, b"\x10\x01a\x00") == [(16, b"a")]

    def test_two_byte_elements_may_be_empty(self) -> None:
        assert self.read(self.TWO_BYTE, b"\x05\x00\x06\x01x") == [(5, b""), (6, b"x")]

    @pytest.mark.parametrize("reserved", [0xF0, 0xF3, 0x02], ids=["id 15", "id 15 with length", "id 0 with length"])
    def test_a_reserved_one_byte_id_ends_the_block(self, reserved: int) -> None:
        assert self.read(self.ONE_BYTE, b"\x10a" + bytes([reserved]) + b"abcd\x20b") == [(1, b"a")]

    def test_a_one_byte_element_past_the_block_is_left_out(self) -> None:
        assert self.read(self.ONE_BYTE, b"\x10a\x2fb") == [(1, b"a")]

    @pytest.mark.parametrize("cut", [b"\x02\x02x", b"\x02"], ids=["data cut", "length cut"])
    def test_a_two_byte_element_past_the_block_is_left_out(self, cut: bytes) -> None:
        assert self.read(self.TWO_BYTE, b"\x01\x01a" + cut) == [(1, b"a")]

    def test_of_an_id_given_twice_the_first_counts(self) -> None:
        assert self.read(self.ONE_BYTE, b"\x10a\x10b\x20c") == [(1, b"a"), (2, b"c")]

    def test_another_profile_has_no_elements(self) -> None:
        assert self.read(0x2000, b"\x10a\x00\x00") == []

    def test_a_broken_block_costs_the_extensions_and_not_the_packet(self) -> None:
        packet = rtp.parse(header(0x90) + b"\xbe\xde\x00\x01\x1f\x00\x00\x00" + b"payload")
        assert (packet.extensions, packet.payload) == ((), b"payload")

    def test_the_one_byte_form_is_kept_while_all_elements_fit_it(self) -> None:
        fitting = [HeaderExtension(14, bytes(16)), HeaderExtension(1, b"x")]
        assert rtp.serialize_extensions(fitting)[:2] == b"\xbe\xde"

    @pytest.mark.parametrize(
        "element", [HeaderExtension(15, b"x"), HeaderExtension(1, b""), HeaderExtension(1, bytes(17))]
    )
    def test_one_element_that_does_not_fit_makes_all_two_byte(self, element: HeaderExtension) -> None:
        block = rtp.serialize_extensions([HeaderExtension(2, b"y"), element])
        assert block[:2] == b"\x10\x00"
        assert len(block) % 4 == 0

    def test_an_element_is_found_by_its_id(self) -> None:
        packet = RtpPacket(0, 0, 0, 0, extensions=(HeaderExtension(3, b"three"),))
        assert (packet.extension(3), packet.extension(4)) == (b"three", None)
