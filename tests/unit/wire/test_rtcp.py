from __future__ import annotations

import struct

import pytest
from aiortc import rtp as aiortc_rtp
from hypothesis import given
from hypothesis import strategies as st

from wire import rtcp
from wire.errors import RtcpError
from wire.rtcp import (
    Bye,
    ExtendedReport,
    FullIntraRequest,
    LastReceiverReport,
    Nack,
    PictureLossIndication,
    ReceiverEstimatedMaxBitrate,
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    SourceDescription,
)

uint8 = st.integers(0, 0xFF)
uint16 = st.integers(0, 0xFFFF)
uint32 = st.integers(0, 0xFFFFFFFF)
uint64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)

report_blocks = st.builds(ReportBlock, uint32, uint8, st.integers(-0x800000, 0x7FFFFF), uint32, uint32, uint32, uint32)
reports = st.lists(report_blocks, max_size=31).map(tuple)
items = st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=255)), max_size=4).map(tuple)

packets: st.SearchStrategy[RtcpPacket] = st.one_of(
    st.builds(SenderReport, uint32, uint64, uint32, uint32, uint32, reports),
    st.builds(ReceiverReport, uint32, reports),
    st.builds(SourceDescription, st.lists(st.tuples(uint32, items), max_size=31).map(tuple)),
    st.builds(Bye, st.lists(uint32, max_size=31).map(tuple), st.binary(max_size=255)),
    st.builds(PictureLossIndication, uint32, uint32),
    st.builds(FullIntraRequest, uint32, st.lists(st.tuples(uint32, uint8), max_size=20).map(tuple)),
    st.builds(
        ReceiverEstimatedMaxBitrate,
        uint32,
        st.builds(lambda mantissa, exponent: mantissa << exponent, st.integers(0, 0x3FFFF), st.integers(0, 45)),
        st.lists(uint32, max_size=255).map(tuple),
    ),
    st.builds(
        ExtendedReport,
        uint32,
        st.none() | uint64,
        st.lists(st.builds(LastReceiverReport, uint32, uint32, uint32), max_size=20).map(tuple),
    ),
)


def one(data: bytes) -> RtcpPacket:
    (packet,) = rtcp.parse(data)
    return packet


class TestRoundTrip:
    @given(st.lists(packets, min_size=1, max_size=5))
    def test_serialize_and_parse_are_inverse_for_a_compound(self, compound: list[RtcpPacket]) -> None:
        assert rtcp.parse(rtcp.serialize(compound)) == tuple(compound)

    @given(report_blocks)
    def test_an_independent_parser_reads_the_same_sender_report(self, block: ReportBlock) -> None:
        data = SenderReport(1, 2 << 32 | 3, 4, 5, 6, (block,)).serialize()
        (other,) = aiortc_rtp.RtcpPacket.parse(data)
        assert isinstance(other, aiortc_rtp.RtcpSrPacket)
        info = other.sender_info
        assert (other.ssrc, info.ntp_timestamp, info.rtp_timestamp) == (1, 2 << 32 | 3, 4)
        assert (info.packet_count, info.octet_count) == (5, 6)
        read = other.reports[0]
        assert (read.ssrc, read.fraction_lost, read.packets_lost, read.highest_sequence) == (
            block.ssrc,
            block.fraction_lost,
            block.cumulative_lost,
            block.highest_seq,
        )
        assert (read.jitter, read.lsr, read.dlsr) == (
            block.jitter_ticks,
            block.last_sr,
            block.delay_since_last_sr,
        )

    def test_an_independent_parser_reads_cname_and_bye(self) -> None:
        description, bye = aiortc_rtp.RtcpPacket.parse(
            rtcp.serialize([SourceDescription.of_cname(9, "someone"), Bye((9, 10))])
        )
        assert isinstance(description, aiortc_rtp.RtcpSdesPacket)
        assert [(c.ssrc, c.items) for c in description.chunks] == [(9, [(1, b"someone")])]
        assert isinstance(bye, aiortc_rtp.RtcpByePacket)
        assert bye.sources == [9, 10]


class TestReports:
    """RFC 3550 §6.4; RTCP-4."""

    @pytest.mark.parametrize(("lost", "on_the_wire"), [(-(1 << 23) - 9, -(1 << 23)), ((1 << 23) + 9, (1 << 23) - 1)])
    def test_cumulative_loss_is_clamped_and_never_wraps(self, lost: int, on_the_wire: int) -> None:
        report = one(ReceiverReport(1, (ReportBlock(2, 255, lost, 3),)).serialize())
        assert isinstance(report, ReceiverReport)
        assert (report.reports[0].cumulative_lost, report.reports[0].fraction_lost) == (on_the_wire, 255)

    def test_a_profile_specific_tail_is_passed_over(self) -> None:
        plain = ReceiverReport(1, (ReportBlock(2, 3, 4, 5),))
        data = plain.serialize() + b"tail"
        assert one(data[:2] + struct.pack("!H", len(data) // 4 - 1) + data[4:]) == plain

    def test_more_than_31_blocks_do_not_fit(self) -> None:
        with pytest.raises(RtcpError):
            ReceiverReport(1, (ReportBlock(2, 0, 0, 0),) * 32).serialize()

    @pytest.mark.parametrize(
        "packet",
        [
            SenderReport(1 << 32, 0, 0, 0, 0),
            SenderReport(0, 1 << 64, 0, 0, 0),
            ReceiverReport(1, (ReportBlock(2, 256, 0, 0),)),
            SourceDescription(((1, ((1, bytes(256)),)),)),
            Bye((1,), bytes(256)),
            Nack(1, 2, (1 << 16,)),
            PictureLossIndication(-1, 2),
            FullIntraRequest(1, ((2, 256),)),
            ReceiverEstimatedMaxBitrate(1, -1, ()),
            ReceiverEstimatedMaxBitrate(1, 1 << 63, ()),
            ReceiverEstimatedMaxBitrate(1, 1, (1,) * 256),
            ExtendedReport(1, 1 << 64),
        ],
    )
    def test_values_that_do_not_fit_are_refused(self, packet: RtcpPacket) -> None:
        with pytest.raises(RtcpError):
            packet.serialize()


class TestNack:
    """RFC 4585 §6.2.1; NACK-4."""

    def test_seventeen_neighbours_share_one_item_over_the_wrap(self) -> None:
        seqs = tuple((65_530 + index) & 0xFFFF for index in range(17))
        data = Nack(1, 2, seqs).serialize()
        assert data == struct.pack("!BBHIIHH", 0x81, 205, 3, 1, 2, 65_530, 0xFFFF)
        assert one(data) == Nack(1, 2, seqs)

    @given(st.sets(uint16, max_size=200))
    def test_exactly_the_named_seqs_arrive(self, seqs: set[int]) -> None:
        read = one(Nack(1, 2, tuple(sorted(seqs))).serialize())
        assert read == Nack(1, 2, tuple(sorted(seqs)))

    @given(st.sets(uint16, min_size=1, max_size=200))
    def test_an_independent_parser_reads_the_same_seqs(self, seqs: set[int]) -> None:
        (other,) = aiortc_rtp.RtcpPacket.parse(Nack(1, 2, tuple(sorted(seqs))).serialize())
        assert isinstance(other, aiortc_rtp.RtcpRtpfbPacket)
        assert (other.ssrc, other.media_ssrc, other.lost) == (1, 2, sorted(seqs))

    def test_253_items_fit_one_datagram_and_one_more_is_refused(self) -> None:
        apart = tuple(range(0, 17 * 254, 17))
        assert len(Nack(1, 2, apart[:253]).serialize()) < 1200
        with pytest.raises(RtcpError):
            Nack(1, 2, apart).serialize()

    def test_a_full_hostile_nack_is_read_whole(self) -> None:
        """Row 9 of the robustness table: 253 items with all bits, 4301 seqs."""
        data = struct.pack("!BBHII", 0x81, 205, 2 + 253, 1, 2) + struct.pack("!HH", 5, 0xFFFF) * 253
        read = one(data)
        assert isinstance(read, Nack)
        assert len(read.seqs) == 4301


class TestReceiverEstimatedMaxBitrate:
    """draft-alvestrand-rmcat-remb §2.2; row 13 of the robustness table."""

    def test_known_bytes(self) -> None:
        data = bytes.fromhex("8fce0005 00000001 00000000 52454d42 010a0200 00000002".replace(" ", ""))
        assert one(data) == ReceiverEstimatedMaxBitrate(1, 0x20200 << 2, (2,))

    def test_what_does_not_fit_18_bits_is_rounded_down(self) -> None:
        read = one(ReceiverEstimatedMaxBitrate(1, (1 << 40) + 1, ()).serialize())
        assert read == ReceiverEstimatedMaxBitrate(1, 1 << 40, ())

    def test_an_overflowing_mantissa_is_clamped(self) -> None:
        data = struct.pack("!BBHII4sI", 0x8F, 206, 4, 1, 0, b"REMB", 63 << 18 | 0x3FFFF)
        assert one(data) == ReceiverEstimatedMaxBitrate(1, (1 << 63) - 1, ())

    def test_zero_is_a_bitrate(self) -> None:
        assert one(ReceiverEstimatedMaxBitrate(1, 0, (2,)).serialize()) == ReceiverEstimatedMaxBitrate(1, 0, (2,))

    def test_other_application_layer_feedback_is_passed_over(self) -> None:
        assert rtcp.parse(struct.pack("!BBHII4sI", 0x8F, 206, 4, 1, 0, b"ABCD", 0)) == ()


class TestExtendedReport:
    """RFC 3611 §4.4, §4.5."""

    def test_blocks_of_other_types_are_passed_over(self) -> None:
        known = ExtendedReport(1, 2).serialize()[8:]
        body = struct.pack("!IBxHI", 1, 7, 1, 99) + known
        assert one(struct.pack("!BBH", 0x80, 207, len(body) // 4) + body) == ExtendedReport(1, 2)

    def test_a_block_past_the_end_costs_the_packet(self) -> None:
        assert rtcp.parse(struct.pack("!BBHIBxH", 0x80, 207, 2, 1, 5, 3)) == ()


class TestTolerance:
    """RTCP-5 and row 11 of the robustness table: what is whole is read, the rest is dropped."""

    PLI = PictureLossIndication(1, 2)

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param(struct.pack("!BBHI4s", 0x80, 204, 2, 1, b"name"), id="APP"),
            pytest.param(struct.pack("!BBH", 0x80, 222, 0), id="unknown type"),
            pytest.param(struct.pack("!BBHII", 0x9E, 205, 2, 1, 2), id="unknown feedback format"),
            pytest.param(struct.pack("!BBH", 0x80, 200, 0), id="sender report of zero length"),
            pytest.param(struct.pack("!BBHI", 0x9F, 201, 1, 1), id="31 blocks claimed, none there"),
            pytest.param(struct.pack("!BBHI", 0x9F, 203, 1, 1), id="31 sources claimed, one there"),
            pytest.param(struct.pack("!BBHI", 0x81, 205, 1, 1), id="NACK without media source"),
            pytest.param(struct.pack("!BBHIBB2s", 0x81, 202, 2, 1, 1, 200, b"ab"), id="item past the chunk"),
            pytest.param(struct.pack("!BBHI", 0xA0, 201, 1, 0), id="padding of zero"),
            pytest.param(struct.pack("!BBHI", 0xA0, 201, 1, 5), id="padding longer than the packet"),
        ],
    )
    def test_a_bad_packet_is_passed_over_by_its_length(self, bad: bytes) -> None:
        assert rtcp.parse(bad + self.PLI.serialize()) == (self.PLI,)

    @pytest.mark.parametrize(
        "rest",
        [
            pytest.param(b"\x80", id="cut header"),
            pytest.param(struct.pack("!BBHII", 0x81, 206, 3, 1, 2), id="length past the end"),
            pytest.param(struct.pack("!BBHII", 0x41, 206, 2, 1, 2), id="version 1"),
        ],
    )
    def test_after_a_broken_frame_the_rest_is_dropped(self, rest: bytes) -> None:
        assert rtcp.parse(self.PLI.serialize() + rest) == (self.PLI,)

    @pytest.mark.parametrize("data", [b"", b"\x80\xc8\x00", b"\x00\xc8\x00\x00", b"\x80\xc8\x00\x01"])
    def test_what_is_not_rtcp_at_all_is_an_error(self, data: bytes) -> None:
        with pytest.raises(RtcpError):
            rtcp.parse(data)

    def test_a_description_of_500_items_is_read(self) -> None:
        chunk = (1, ((2, b""),) * 500)
        assert one(SourceDescription((chunk,)).serialize()) == SourceDescription((chunk,))

    def test_padding_of_the_last_packet_is_removed(self) -> None:
        data = Bye((1,)).serialize()
        padded = bytes([data[0] | 0x20]) + data[1:2] + struct.pack("!H", 2) + data[4:] + b"\0\0\0\4"
        assert one(padded) == Bye((1,))

    def test_items_after_an_odd_padding_are_cut_to_whole_ones(self) -> None:
        data = Nack(1, 2, (3, 40)).serialize()
        assert one(bytes([data[0] | 0x20]) + data[1:-1] + b"\x02") == Nack(1, 2, (3,))

    def test_cname_is_found_by_source(self) -> None:
        description = SourceDescription(((1, ((2, b"name"),)), (3, ((1, b"cname"),))))
        assert (description.cname(3), description.cname(1)) == ("cname", None)
