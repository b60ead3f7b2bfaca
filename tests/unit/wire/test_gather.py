"""Interrupt moderation: a thread waits for packets to gather when that is worth a timer, and never longer than told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turn.settings import TurnSettings
from wire._batch.gather import Gathering

LONGEST = TurnSettings().gather_us_max
"""The default, of which the documentation says from what load on it is felt."""


def steady(pps: int, *, longest: int = LONGEST, seconds: float = 0.1) -> list[int]:
    """The waits of a thread that gets `pps` evenly spaced packets and does nothing but wait and take them."""
    gathering = Gathering(longest)
    now, taken, waits = 0, 0, []
    while now < seconds * 1e6:
        arrived = now * pps // 1_000_000
        wait = gathering.wait(arrived - taken, now)
        taken = arrived
        waits.append(wait)
        now += wait or max(1, 1_000_000 // pps)
    return waits


class TestRate:
    @pytest.mark.parametrize("pps", [1, 50, 300, 2500, 3900])
    def test_below_two_packets_in_the_time_nothing_waits(self, pps: int) -> None:
        assert set(steady(pps)) == {0}

    @pytest.mark.parametrize("pps", [4_500, 12_000, 20_000, 50_000])
    def test_above_it_each_round_waits_as_long_as_allowed(self, pps: int) -> None:
        waits = steady(pps)
        assert set(waits) == {0, LONGEST}
        assert waits[-1] == LONGEST

    def test_at_high_rates_it_stops_at_a_full_batch(self) -> None:
        assert 25 <= steady(1_000_000)[-1] <= 35

    def test_it_ends_with_the_load(self) -> None:
        gathering = Gathering(LONGEST)
        for now in range(0, 20_000, 200):
            busy = gathering.wait(10, now)
        assert busy == LONGEST
        assert gathering.wait(1, 1_000_000) == 0

    def test_a_burst_after_silence_does_not_begin_it(self) -> None:
        """A key frame of a lone call: twenty packets at once."""
        gathering = Gathering(LONGEST)
        gathering.wait(1, 0)
        assert gathering.wait(20, 500_000) == 0


@given(
    longest=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 1_000_000)), max_size=200),
)
def test_no_wait_is_longer_than_told(longest: int, steps: list[tuple[int, int]]) -> None:
    gathering = Gathering(longest)
    now = 0
    for received, passed in steps:
        now += passed
        assert 0 <= gathering.wait(received, now) <= longest
