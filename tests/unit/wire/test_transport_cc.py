from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import rtcp, transport_cc
from wire.errors import RtcpError
from wire.transport_cc import TransportFeedback


def parse(control: bytes) -> TransportFeedback:
    return TransportFeedback.parse(1, 2, control)


def head(status_count: int, base_seq: int = 0) -> bytes:
    return struct.pack("!HHI", base_seq, status_count, 0)


class TestFormat:
    """draft-holmer-rmcat-transport-wide-cc-01 §3.1."""

    def test_a_packet_as_libwebrtc_sends_it(self) -> None:
        """With the padding bit, and padding that is no multiple of four."""
        data = bytes.fromhex("afcd0005 fa17fa17 43032fa0 00990001 3de80217 20019401")
        assert rtcp.parse(data) == (
            TransportFeedback(
                sender_ssrc=0xFA17FA17,
                media_ssrc=0x43032FA0,
                base_seq=153,
                status_count=1,
                reference_time=0x3DE802,
                feedback_count=0x17,
                arrivals=((153, 0x94),),
            ),
        )

    def test_a_one_bit_vector(self) -> None:
        read = parse(head(14) + struct.pack("!H", 0b10_10000000000001) + b"\x01\x02")
        assert read.arrivals == ((0, 1), (13, 3))

    def test_a_two_bit_vector_with_a_delta_back_in_time(self) -> None:
        read = parse(head(7) + struct.pack("!H", 0b11_01_00_10_00_00_00_00) + struct.pack("!Bh", 9, -4))
        assert read.arrivals == ((0, 9), (2, 5))

    def test_what_a_chunk_covers_beyond_the_count_is_ignored(self) -> None:
        read = parse(head(2, base_seq=0xFFFF) + struct.pack("!H", 0b10_11111111111111) + b"\x01\x01")
        assert (read.arrivals, read.lost) == (((0xFFFF, 1), (0, 2)), ())

    def test_a_negative_reference_time(self) -> None:
        read = parse(struct.pack("!HHIHB", 0, 1, 0xFFFFFF05, 1 << 13 | 1, 4))
        assert (read.reference_time, read.feedback_count) == (-1, 5)
        assert read.arrival_us(4) == -63_000

    def test_all_lost(self) -> None:
        assert parse(head(20) + struct.pack("!H", 20)).lost == tuple(range(20))

    def test_a_claim_of_65535_lost_packets_makes_no_list(self) -> None:
        """Row 12 of the robustness table."""
        read = parse(head(0xFFFF) + struct.pack("!H", 0x1FFF) * 8 + struct.pack("!H", 7))
        assert (read.arrivals, read.status_count) == ((), 0xFFFF)

    @pytest.mark.parametrize(
        "control",
        [
            pytest.param(b"\0" * 7, id="head cut"),
            pytest.param(head(1), id="no chunk"),
            pytest.param(head(1) + b"\x20", id="chunk cut"),
            pytest.param(head(1) + struct.pack("!H", 0x2000) * 9, id="run of length zero"),
            pytest.param(head(2) + struct.pack("!H", 0x2002) + b"\1", id="small delta missing"),
            pytest.param(head(1) + struct.pack("!H", 0x4001) + b"\1", id="large delta cut"),
            pytest.param(head(0xFFFF) + struct.pack("!H", 0x3FFF) * 9 + b"\1" * 99, id="65535 arrivals, 99 deltas"),
            pytest.param(head(1) + struct.pack("!H", 0x6001) + b"\1\1", id="reserved symbol in a run"),
            pytest.param(head(1) + struct.pack("!H", 0xF000) + b"\1\1", id="reserved symbol in a vector"),
        ],
    )
    def test_a_broken_packet_is_refused_whole(self, control: bytes) -> None:
        with pytest.raises(RtcpError):
            parse(control)

    def test_a_broken_packet_is_passed_over_in_a_compound(self) -> None:
        pli = rtcp.PictureLossIndication(1, 2)
        broken = struct.pack("!BBHII", 0x8F, 205, 4, 1, 2) + head(1)
        assert rtcp.parse(broken + pli.serialize()) == (pli,)


class TestBuild:
    """TCC-1, TCC-2."""

    @given(
        start=st.integers(0, 1 << 40),
        clock_us=st.integers(0, 1 << 50),
        steps=st.lists(
            st.tuples(st.integers(1, 40) | st.integers(1, 40_000), st.integers(-20_000, 9_000_000)), min_size=1
        ),
        lost_before=st.integers(0, 50),
    )
    def test_every_arrival_is_told_once_within_250_us_and_every_gap_as_lost(
        self, start: int, clock_us: int, steps: list[tuple[int, int]], lost_before: int
    ) -> None:
        arrivals = []
        ext_seq, at_us = start, clock_us
        for gap, delay_us in steps:
            arrivals.append((ext_seq, at_us))
            ext_seq, at_us = ext_seq + gap, max(0, at_us + delay_us)
        reports = transport_cc.build(1, 2, 254, arrivals, base_seq=start - lost_before)
        read = [packet for report in reports for packet in rtcp.parse(report.serialize())]
        assert read == reports

        told = [(seq, report.arrival_us(ticks)) for report in reports for seq, ticks in report.arrivals]
        wrap_us = transport_cc.TICK_US << 32
        assert [seq for seq, _ in told] == [ext & 0xFFFF for ext, _ in arrivals]
        assert all((at - told_us) % wrap_us < 250 for (_, at), (_, told_us) in zip(arrivals, told, strict=True))
        assert [report.feedback_count for report in reports] == [(254 + i) & 0xFF for i in range(len(reports))]
        for report in reports:
            assert len(report.lost) == report.status_count - len(report.arrivals)

    def test_the_seqs_of_the_spec_example(self) -> None:
        """TCC-2: 65500..30 with losses, over the wrap."""
        arrivals = [(ext, ext * 1000) for ext in range(65_500, 65_567) if ext % 5]
        (report,) = transport_cc.build(1, 2, 0, arrivals, base_seq=65_500)
        assert report.lost == tuple(ext & 0xFFFF for ext in range(65_500, 65_567) if not ext % 5)

    def test_a_delay_beyond_8_seconds_starts_another_packet(self) -> None:
        reports = transport_cc.build(1, 2, 0, [(10, 0), (12, 9_000_000)], base_seq=10)
        assert [(report.base_seq, report.status_count) for report in reports] == [(10, 1), (11, 2)]

    def test_nothing_to_tell_makes_no_packet(self) -> None:
        assert transport_cc.build(1, 2, 0, [], base_seq=10) == []

    def test_long_runs_stay_short_on_the_wire(self) -> None:
        arrivals = [(ext, ext * 250) for ext in range(8000)]
        (report,) = transport_cc.build(1, 2, 0, arrivals, base_seq=0)
        assert len(report.serialize()) == 20 + 2 + 8000 + 2

    @pytest.mark.parametrize(
        "feedback",
        [
            TransportFeedback(1, 2, 0, 1, 0, 0, ((0, 0x8000),)),
            TransportFeedback(1, 2, 0, 1, 0, 0, ((1, 0),)),
            TransportFeedback(1, 2, 0, 0x10000, 0, 0, ()),
            TransportFeedback(1 << 32, 2, 0, 1, 0, 0, ()),
        ],
    )
    def test_values_that_do_not_fit_are_refused(self, feedback: TransportFeedback) -> None:
        with pytest.raises(RtcpError):
            feedback.serialize()
