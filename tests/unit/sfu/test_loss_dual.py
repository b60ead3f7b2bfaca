"""The upstream NACK generator, in both implementations."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, TICK, on_both_cores, rtts, ticks


def requests(detector: object, until: float, rtt: float, since: float = 0.0) -> list[tuple[int, float]]:
    """What `detector` asks for when looked at each millisecond: (number, time in milliseconds)."""
    asked = []
    for at_ms in range(round(since * 1000), round(until * 1000) + 1):
        asked += [(number, at_ms) for number in detector.due(at_ms / 1000 + 1e-6, rtt)]  # type: ignore[attr-defined]
    return asked


@on_both_cores
class TestWhatIsMissing:
    """NACK-1, NACK-4, RTX-3."""

    def test_a_gap_is_listed(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        for number in (10, 11, 15):
            detector.receive(number, 0.0)
        assert detector.missing() == [12, 13, 14]

    def test_an_arrival_by_any_way_ends_it(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        for number in (10, 14, 12):
            detector.receive(number, 0.0)
        detector.receive(13, 0.0, recovered=True)
        assert detector.missing() == [11]

    def test_nothing_is_missing_before_the_first_packet(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(100_000, 0.0)
        detector.receive(99_990, 0.0)
        assert detector.missing() == []

    def test_rtx_3_a_recovered_packet_never_moves_the_highest(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(9, 0.0)
        detector.receive(12, 0.0, recovered=True)
        assert detector.missing() == []
        detector.receive(13, 0.0)
        assert detector.missing() == [10, 11]

    def test_a_recovered_packet_does_not_begin_a_stream(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(5, 0.0, recovered=True)
        detector.receive(10, 0.0)
        assert detector.missing() == []

    def test_nack_1_a_thousand_missing_are_listed(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        assert not detector.receive(1011, 0.0)
        assert len(detector.missing()) == 1000

    def test_nack_1_one_more_empties_the_list_and_asks_for_a_key_frame(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        assert detector.receive(12 + 1001, 0.0)
        assert (detector.missing(), detector.due(1.0, 0.1), detector.take_lost()) == ([], [], [])
        assert not detector.receive(12 + 1003, 0.0)
        assert detector.missing() == [12 + 1002]

    def test_what_was_recovered_ahead_survives_an_overflow_below_it(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(3000, 0.0, recovered=True)
        assert detector.receive(2999, 0.0)
        detector.receive(3001, 0.0)
        assert detector.missing() == []

    def test_nack_4_a_newer_key_frame_ends_the_search_for_what_is_older(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(20, 0.0)
        detector.discard_before(15)
        assert (detector.missing(), detector.take_lost()) == ([15, 16, 17, 18, 19], [])


@on_both_cores
class TestWhenToAsk:
    """NACK-2, NACK-6."""

    def test_nack_2_requests_spread_by_a_quarter_and_end_with_one_loss(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        asked = requests(detector, until=3.0, rtt=0.060)
        assert {number for number, _ in asked} == {11}
        expected_ms = [5.0]
        for n in range(9):
            expected_ms.append(expected_ms[-1] + min(60 * 1.25**n, 400))
        assert [at for _, at in asked] == pytest.approx(expected_ms, abs=10)
        assert [round(at) for _, at in asked[:4]] == pytest.approx([5, 65, 140, 234], abs=3)
        assert (detector.take_lost(), detector.take_lost(), detector.missing()) == ([11], [], [])

    def test_nothing_is_asked_within_the_first_delay(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True, first_delay=4 * TICK)
        detector.receive(10, 1.0)
        detector.receive(12, 1.0)
        assert [detector.due(1.0 + n * TICK, 1.0) for n in range(6)] == [[], [], [], [], [11], []]

    def test_a_reordered_packet_costs_no_request(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        detector.receive(11, 0.004)
        assert detector.due(1.0, 0.1) == []

    @pytest.mark.parametrize(("rtt", "interval_ms"), [(0.0, 20), (5.0, 400)])
    def test_waits_stay_between_20_and_400_ms(self, core: ModuleType, rtt: float, interval_ms: int) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        times = [at for _, at in requests(detector, until=1.0, rtt=rtt)]
        assert times[1] - times[0] == pytest.approx(interval_ms, abs=1)

    def test_video_is_asked_for_at_most_ten_times(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        assert len(requests(detector, until=3.0, rtt=0.0)) == 10
        assert detector.take_lost() == [11]

    def test_video_is_given_up_2_s_after_it_was_found_missing(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        requests(detector, until=1.999, rtt=5.0)
        assert detector.take_lost() == []
        assert detector.due(2.0, 5.0) == []
        assert detector.take_lost() == [11]

    def test_nack_6_audio_is_asked_for_five_times_in_200_ms(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=False)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        assert len(requests(detector, until=0.3, rtt=0.0)) == 5
        assert detector.take_lost() == [11]

    def test_nack_6_audio_is_given_up_after_200_ms(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=False)
        detector.receive(10, 0.0)
        detector.receive(12, 0.0)
        assert len(requests(detector, until=1.0, rtt=0.3)) == 1
        assert detector.take_lost() == [11]

    def test_numbers_are_asked_ascending(self, core: ModuleType) -> None:
        detector = core.LossDetector(video=True)
        for number in (65_530, 65_545, 65_538):
            detector.receive(number, 0.0)
        asked = detector.due(0.1, 0.1)
        assert asked == sorted(asked) == [n for n in range(65_531, 65_545) if n != 65_538]

    def test_under_30_percent_loss_nearly_all_arrive_within_5_rtt_and_the_list_stays_short(
        self, core: ModuleType
    ) -> None:
        """NACK-6's test: 500 packets per second, RTT 50 ms, both directions of repair lossy."""
        rng = random.Random(1)
        detector = core.LossDetector(video=True)
        rtt, packets = 0.050, 10_000
        arrived: dict[int, float] = {}
        on_the_way: list[tuple[float, int]] = []
        for at_ms in range(packets * 2 + 300):
            now = at_ms / 1000
            if at_ms % 2 == 0 and at_ms < packets * 2 and rng.random() >= 0.3:
                arrived[at_ms // 2] = now
                detector.receive(at_ms // 2, now)
            while on_the_way and on_the_way[0][0] <= now:
                number = on_the_way.pop(0)[1]
                arrived.setdefault(number, now)
                detector.receive(number, now, recovered=True)
            if at_ms % 10 == 0:
                on_the_way += [(now + rtt, number) for number in detector.due(now, rtt) if rng.random() >= 0.3]
                assert len(detector.missing()) <= 1000
        in_time = [number for number, at in arrived.items() if at - number * 0.002 <= 5 * rtt]
        assert len(in_time) >= 0.99 * packets


events = st.lists(
    st.tuples(
        st.sampled_from(["receive"] * 8 + ["recovered"] * 3 + ["due"] * 4 + ["discard"]),
        st.sampled_from([1, 1, 2]) | st.integers(-40, 20) | st.sampled_from([600, 999, 1000, 1001, 1002, 10_002]),
        ticks,
    ),
    max_size=120,
)


@settings(max_examples=300)
@given(events=events, video=st.booleans(), first_delay=st.integers(0, 3), rtt=rtts)
def test_both_ask_for_the_same(events: list[tuple[str, int, int]], video: bool, first_delay: int, rtt: float) -> None:
    detectors = [core.LossDetector(video=video, first_delay=first_delay * TICK) for core in CORES.values()]
    highest = 1 << 16
    now = 0.0
    for name, step, passed in events:
        now += passed * TICK
        number = highest + step
        match name:
            case "receive":
                a, b = (detector.receive(number, now) for detector in detectors)
                highest = max(highest, number)
            case "recovered":
                number = min(number, highest + 20)
                a, b = (detector.receive(number, now, recovered=True) for detector in detectors)
            case "due":
                a, b = (detector.due(now, rtt) for detector in detectors)
            case _:
                a, b = (detector.discard_before(number) for detector in detectors)
        assert a == b
        a, b = ((detector.missing(), detector.take_lost()) for detector in detectors)
        assert a == b
        assert len(a[0]) <= 1000
