"""Sequence numbers on arrival and on the way out, in both implementations."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, on_both_cores

seqs = st.integers(0, 0xFFFF)


@on_both_cores
class TestSequenceUnwrapper:
    """RX-2, RFC 3550 A.1."""

    def test_the_first_packet_starts_in_the_second_cycle_so_that_older_ones_are_not_negative(
        self, core: ModuleType
    ) -> None:
        unwrapper = core.SequenceUnwrapper()
        assert [unwrapper.receive(seq) for seq in (0, 65_535, 1)] == [65_536, 65_535, 65_537]

    def test_rx_2_a_wrap_with_one_loss_leaves_exactly_that_one_missing(self, core: ModuleType) -> None:
        unwrapper = core.SequenceUnwrapper()
        sent = [seq & 0xFFFF for seq in range(65_530, 65_542) if seq != 65_534]
        received = [unwrapper.receive(seq) for seq in sent]
        assert received[-1] - received[0] == 11
        assert set(range(received[0], received[-1] + 1)) - set(received) == {65_536 + 65_534}

    @pytest.mark.parametrize(("ahead", "accepted"), [(2999, True), (3000, False)])
    def test_up_to_3000_ahead_is_loss_and_more_is_a_jump(self, core: ModuleType, ahead: int, accepted: bool) -> None:
        unwrapper = core.SequenceUnwrapper()
        first = unwrapper.receive(65_000)
        assert unwrapper.receive((65_000 + ahead) & 0xFFFF) == (first + ahead if accepted else -1)

    @pytest.mark.parametrize(("behind", "accepted"), [(1499, True), (1500, False)])
    def test_less_than_1500_behind_is_reordering_and_more_is_a_jump(
        self, core: ModuleType, behind: int, accepted: bool
    ) -> None:
        unwrapper = core.SequenceUnwrapper()
        first = unwrapper.receive(100)
        assert unwrapper.receive((100 - behind) & 0xFFFF) == (first - behind if accepted else -1)

    def test_limits_are_parameters(self, core: ModuleType) -> None:
        unwrapper = core.SequenceUnwrapper(10, 5)
        first = unwrapper.receive(100)
        assert [unwrapper.receive(seq) for seq in (110, 95, 109, 105)] == [-1, -1, first + 9, first + 5]

    def test_a_second_packet_in_a_row_after_a_jump_resyncs_into_the_next_cycle(self, core: ModuleType) -> None:
        unwrapper = core.SequenceUnwrapper()
        unwrapper.receive(40_000)
        assert unwrapper.receive(5000) == -1
        assert not unwrapper.take_resync()
        assert unwrapper.receive(5001) == (2 << 16) + 5001
        assert unwrapper.take_resync()
        assert not unwrapper.take_resync()
        assert unwrapper.receive(5002) == (2 << 16) + 5002

    def test_scattered_strays_never_resync(self, core: ModuleType) -> None:
        unwrapper = core.SequenceUnwrapper()
        first = unwrapper.receive(100)
        assert [unwrapper.receive(seq) for seq in (20_000, 30_000, 20_002, 101)] == [-1, -1, -1, first + 1]
        assert not unwrapper.take_resync()

    @given(start=seqs, steps=st.lists(st.integers(-1499, 2999)))
    def test_within_the_limits_every_number_is_told_exactly(
        self, core: ModuleType, start: int, steps: list[int]
    ) -> None:
        unwrapper = core.SequenceUnwrapper()
        highest = unwrapper.receive(start)
        for step in steps:
            assert unwrapper.receive((highest + step) & 0xFFFF) == highest + step
            highest = max(highest, highest + step)

    @given(st.lists(seqs | st.integers(0, 20), min_size=1, max_size=80))
    def test_whatever_comes_a_number_keeps_its_low_bits_and_the_highest_never_falls_back(
        self, core: ModuleType, received: list[int]
    ) -> None:
        unwrapper = core.SequenceUnwrapper()
        highest = 0
        for seq in received:
            ext_seq = unwrapper.receive(seq)
            if ext_seq != -1:
                assert ext_seq & 0xFFFF == seq
                assert ext_seq > highest - 1500
                highest = max(highest, ext_seq)


jumpy_seqs = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, -1, 3000, -1500, 20_000]), st.integers(-3, 3)))


@given(first=seqs, steps=jumpy_seqs)
def test_both_unwrap_the_same(first: int, steps: list[tuple[int, int]]) -> None:
    unwrappers = [core.SequenceUnwrapper() for core in CORES.values()]
    seq = first
    for step, jitter in [(0, 0), *steps]:
        seq = (seq + step + jitter) & 0xFFFF
        a, b = ((unwrapper.receive(seq), unwrapper.take_resync()) for unwrapper in unwrappers)
        assert a == b


@on_both_cores
class TestSequenceMap:
    """FWD-2, SW-3, SHLD-4."""

    def test_numbers_go_on_from_the_start_given(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        assert [out.map(ext) for ext in (70_000, 70_001, 70_002)] == [1000, 1001, 1002]

    def test_a_dropped_packet_leaves_no_hole(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        assert [out.map(10), out.drop(11), out.drop(12), out.map(13)] == [1000, -1, -1, 1001]

    def test_an_upstream_hole_stays_and_its_repair_gets_the_reserved_number(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        assert [out.map(ext) for ext in (10, 13, 11)] == [1000, 1003, 1001]

    def test_shld_4_a_repair_between_drops_uses_the_offset_of_its_place(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        assert [out.map(10), out.drop(11), out.map(13), out.drop(14), out.map(15)] == [1000, -1, 1002, -1, 1003]
        assert out.map(12) == 1001

    def test_a_repair_that_would_have_been_dropped_tells_the_slot_to_fill(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10)
        out.map(12)
        assert out.drop(11) == 1001

    def test_what_was_dropped_stays_dropped(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10)
        out.drop(11)
        out.map(12)
        assert (out.map(11), out.drop(11)) == (-1, -1)

    def test_packets_from_before_the_first_are_dropped(self, core: ModuleType) -> None:
        out = core.SequenceMap(1)
        out.map(10)
        assert [out.map(9), out.drop(9), out.map(0)] == [-1, -1, -1]

    def test_drops_before_the_first_leave_no_trace(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        assert [out.drop(10), out.drop(12), out.map(14)] == [-1, -1, 1000]

    def test_2048_numbers_are_remembered(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10_000)
        out.map(12_048)
        assert [out.map(10_000), out.map(10_001)] == [-1, 1001]

    def test_a_switch_goes_on_by_one(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10)
        out.switch(5000, False)
        assert [out.map(5000), out.map(5001)] == [1001, 1002]

    def test_sw_3_a_switch_inside_a_frame_skips_one(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10)
        out.switch(5000, True)
        assert out.map(5000) == 1002

    def test_sw_3_a_switch_does_not_count_packets_dropped_at_the_end(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(10)
        out.drop(11)
        out.switch(5000, False)
        assert out.map(5000) == 1001

    def test_sw_3_what_is_older_than_the_switch_is_dropped(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(4990)
        out.switch(5000, False)
        out.map(5000)
        assert [out.map(4999), out.drop(4999), out.map(4990)] == [-1, -1, -1]

    def test_a_switch_may_go_to_lower_source_numbers(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.map(90_000)
        out.switch(70_000, False)
        assert [out.map(70_001), out.map(70_000)] == [1002, 1001]

    def test_switches_before_the_first_packet_do_not_move_the_start(self, core: ModuleType) -> None:
        out = core.SequenceMap(1000)
        out.switch(50, True)
        out.switch(70, True)
        assert [out.map(60), out.map(70)] == [-1, 1000]


# A script is a list of stays on a source: how far its numbers lie from the last ones, whether the frame before it was
# cut, and the arrivals, each relative to the highest number so far.
arrivals = st.lists(
    st.integers(1, 1) | st.integers(-30, 8) | st.sampled_from([70, 130, 2047, 2100, 2999, -200, -2047, -2048]),
    max_size=120,
)
stays = st.lists(st.tuples(st.integers(-5000, 5000), st.booleans(), arrivals), min_size=1, max_size=5)


class Playback:
    """Plays a script into a map and compares each answer with the definition of FWD-2."""

    def __init__(self, core: ModuleType, out_start: int, seed: int) -> None:
        self.map = core.SequenceMap(out_start)
        self.seed = seed
        self.next_out = self.out_start = out_start
        self.highest = 1 << 20

    def is_wanted(self, ext_seq: int) -> bool:
        """A decision that a packet keeps: about two in three are forwarded."""
        return random.Random(ext_seq * 1_000_003 + self.seed).random() < 0.67

    def ask(self, ext_seq: int) -> int:
        out: int = self.map.map(ext_seq) if self.is_wanted(ext_seq) else self.map.drop(ext_seq)
        return out

    def play_stay(self, jump: int, cut: bool, steps: Sequence[int]) -> None:
        first = self.highest = self.highest + jump
        self.map.switch(first, cut)
        out_first = self.next_out + (cut and self.next_out != self.out_start)
        self.highest = first - 1
        dropped: list[int] = []
        answers: dict[int, int] = {}
        for step in steps:
            ext_seq = self.highest + step
            answer = self.ask(ext_seq)
            if ext_seq > self.highest:
                self.highest = ext_seq
                if not self.is_wanted(ext_seq):
                    dropped.append(ext_seq)
            dropped_before = bisect_left(dropped, ext_seq)
            is_dropped = dropped[dropped_before : dropped_before + 1] == [ext_seq]
            if ext_seq < first or ext_seq <= self.highest - 2048 or is_dropped:
                assert answer == -1
            else:
                assert answer == out_first + (ext_seq - first) - dropped_before
                assert answers.setdefault(ext_seq, answer) == answer

        outs = [answers[ext_seq] for ext_seq in sorted(answers)]
        assert all(a < b for a, b in pairwise([self.next_out - 1, *outs])), "monotonic, and so injective over all stays"
        recent = [ext_seq for ext_seq in answers if ext_seq > self.highest - 2048]
        assert [self.ask(ext_seq) for ext_seq in recent] == [answers[ext_seq] for ext_seq in recent], "a second pass"
        self.next_out = out_first + (self.highest + 1 - first) - len(dropped)


@on_both_cores
class TestForwardingMapProperties:
    """FWD-2 and FWD-4 as a model check: injective, monotonic per stay, the same at a second pass."""

    @settings(max_examples=150)
    @given(script=stays, seed=st.integers(0, 1000), out_start=st.integers(1, 32_767))
    def test_fwd_4_for_any_loss_reordering_duplication_drops_and_switches(
        self, core: ModuleType, script: Sequence[tuple[int, bool, list[int]]], seed: int, out_start: int
    ) -> None:
        playback = Playback(core, out_start, seed)
        for stay in script:
            playback.play_stay(*stay)

    def test_fwd_4_over_a_long_run(self, core: ModuleType) -> None:
        rng = random.Random(7)
        playback = Playback(core, out_start=9, seed=3)
        packets = 20_000 if core is CORES["reference"] else 200_000
        while packets > 0:
            length = rng.randint(1, 4000)
            packets -= length
            steps = rng.choices((1, 2, 3, -1, -5, -60), weights=(70, 8, 2, 10, 7, 3), k=length)
            playback.play_stay(rng.randint(-5000, 5000), rng.random() < 0.5, steps)


operations = st.lists(
    st.tuples(
        st.sampled_from(["map"] * 6 + ["drop"] * 3 + ["switch"]),
        st.integers(-40, 40) | st.sampled_from([64, 128, 2048, 2999, -2047, -2048, 10_000]),
        st.booleans(),
    ),
    max_size=150,
)


@settings(max_examples=200)
@given(operations=operations, out_start=st.integers(0, 1 << 40))
def test_both_map_the_same(operations: list[tuple[str, int, bool]], out_start: int) -> None:
    a, b = (core.SequenceMap(out_start) for core in CORES.values())
    highest = 1 << 20
    for name, step, skip in operations:
        ext_seq = highest + step
        if name == "switch":
            a.switch(ext_seq, skip)
            b.switch(ext_seq, skip)
            highest = ext_seq
        else:
            assert getattr(a, name)(ext_seq) == getattr(b, name)(ext_seq)
            highest = max(highest, ext_seq)
