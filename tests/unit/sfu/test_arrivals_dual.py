"""Transport-wide feedback towards a publisher, in both implementations."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, TICK, on_both_cores
from wire import rtcp
from wire.transport_cc import TransportFeedback

MILLISECOND = 0.001


def reports(log: Any) -> list[TransportFeedback]:
    """What `log` has to tell, as an independent parser reads it."""
    found = []
    for packet in log.feedback(7, 9):
        (report,) = rtcp.parse(packet)
        assert isinstance(report, TransportFeedback)
        assert (report.sender_ssrc, report.media_ssrc) == (7, 9)
        found.append(report)
    return found


def statuses(found: list[TransportFeedback]) -> list[tuple[int, int | None]]:
    """Each number reported on, with its time in units of 250 µs, or None."""
    told: list[tuple[int, int | None]] = []
    for report in found:
        times = {seq: report.arrival_us(ticks) // 250 for seq, ticks in report.arrivals}
        numbers = ((report.base_seq + index) & 0xFFFF for index in range(report.status_count))
        told += ((seq, times.get(seq)) for seq in numbers)
    return told


@on_both_cores
class TestArrivalLog:
    """TCC-1, TCC-2."""

    def test_nothing_arrived_nothing_is_told(self, core: ModuleType) -> None:
        assert reports(core.ArrivalLog()) == []

    def test_tcc_2_losses_and_reordering_over_the_wrap(self, core: ModuleType) -> None:
        """65500..30 with losses and reordering: statuses match, times within 250 µs."""
        log = core.ArrivalLog()
        arrived = {}
        order = [n for n in range(65_500, 65_567) if n % 7]
        order[10], order[11] = order[11], order[10]
        for index, number in enumerate(order):
            arrived[number & 0xFFFF] = at = 100.0 + index * 0.00333
            log.receive(number & 0xFFFF, at)
        (report,) = reports(log)
        assert {seq for seq, _ in report.arrivals} == set(arrived)
        assert set(report.lost) == {n & 0xFFFF for n in range(65_501, 65_566) if n % 7 == 0}
        for seq, ticks in report.arrivals:
            assert abs(report.arrival_us(ticks) - arrived[seq] * 1e6) <= 250

    def test_each_number_is_told_once(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(2, 1.0)
        assert len(statuses(reports(log))) == 2
        assert reports(log) == []
        log.receive(3, 1.0)
        assert [seq for seq, _ in statuses(reports(log))] == [3]

    def test_losses_before_an_arrival_are_told_with_it(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        reports(log)
        log.receive(4, 1.0)
        assert statuses(reports(log)) == [(2, None), (3, None), (4, 4000)]

    def test_a_duplicate_changes_nothing(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(1, 2.0)
        assert statuses(reports(log)) == [(1, 4000)]
        log.receive(1, 2.0)
        assert reports(log) == []

    def test_tcc_2_a_packet_reported_lost_is_told_when_it_comes_late(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(3, 1.0)
        reports(log)
        log.receive(2, 1.25)
        assert (2, 5000) in statuses(reports(log))

    def test_a_packet_more_than_500_ms_late_is_not(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(3, 1.0)
        reports(log)
        log.receive(2, 1.75)
        assert reports(log) == []

    def test_tcc_1_a_silence_of_more_than_8_seconds_starts_another_packet(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(2, 10.0)
        first, second = reports(log)
        assert (first.base_seq, second.base_seq) == (1, 2)
        assert second.feedback_count == first.feedback_count + 1

    def test_the_feedback_count_counts_packets_and_wraps(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        counts = []
        for number in range(300):
            log.receive(number, 1.0 + number * MILLISECOND)
            counts += [report.feedback_count for report in reports(log)]
        assert counts == [n & 0xFF for n in range(300)]

    def test_a_jump_beyond_the_window_begins_anew(self, core: ModuleType) -> None:
        log = core.ArrivalLog()
        log.receive(1, 1.0)
        log.receive(5000, 1.0)
        assert statuses(reports(log)) == [(5000, 4000)]


def test_the_plane_keeps_each_packet_below_1200_bytes() -> None:
    """The twin splits by time alone."""
    log = CORES["dataplane"].ArrivalLog()
    for number in range(0, 2048, 2):
        log.receive(number, 1.0 + (number * 37 % 100) * 0.07)
    packets = log.feedback(7, 9)
    assert max(map(len, packets)) <= 1200
    assert sum(len(report.arrivals) for packet in packets for report in rtcp.parse(packet)) == 1024  # type: ignore[union-attr]


steps = st.lists(
    st.tuples(
        st.just(1) | st.integers(-20, 40) | st.sampled_from([-2049, -2048, -2047, 400, 401, 402, 2047, 2048, 2049]),
        st.integers(0, 3) | st.sampled_from([31, 32, 33, 524, 525, 576]),
        st.booleans() | st.just(False),
    ),
    max_size=150,
)


@settings(max_examples=200)
@given(first=st.integers(0, 0xFFFF), steps=steps)
def test_both_tell_the_same(first: int, steps: list[tuple[int, int, bool]]) -> None:
    a, b = logs = [core.ArrivalLog() for core in CORES.values()]
    highest, now = first, 1.0
    for step, passed, is_due in [(0, 0, False), *steps, (1, 0, True)]:
        now += passed * TICK
        number = highest + step
        for log in logs:
            log.receive(number & 0xFFFF, now)
        highest = max(highest, number)
        if is_due:
            assert statuses(reports(a)) == statuses(reports(b))
