"""The packet cache, in both implementations."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, TICK, on_both_cores, ticks


@on_both_cores
class TestPacketCache:
    """CACHE-1."""

    def test_a_packet_is_given_back_as_it_came(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        assert cache.store(70_000, b"packet", 1.0)
        assert cache.fetch(70_000, 1.5) == b"packet"

    def test_an_unknown_number_gives_nothing(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        cache.store(70_000, b"packet", 1.0)
        assert [cache.fetch(number, 1.0) for number in (69_999, 70_001, 70_008, 69_992)] == [None] * 4

    def test_a_packet_is_kept_for_age_max_and_not_longer(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        cache.store(5, b"packet", 1.0)
        assert (cache.fetch(5, 3.0 - TICK), cache.fetch(5, 3.0 + TICK)) == (b"packet", None)

    @pytest.mark.parametrize(("size", "stored"), [(1500, True), (1501, False)])
    def test_packets_above_1500_bytes_are_not_kept(self, core: ModuleType, size: int, stored: bool) -> None:
        assert core.PacketCache(8, 10_000, 2.0).store(5, bytes(size), 1.0) is stored

    def test_a_packet_above_the_whole_budget_is_not_kept(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 100, 2.0)
        assert (cache.store(5, bytes(101), 1.0), cache.bytes_used) == (False, 0)

    def test_a_second_one_of_a_number_changes_nothing(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        cache.store(5, b"first", 1.0)
        assert (cache.store(5, b"second", 1.0), cache.fetch(5, 1.0), cache.bytes_used) == (False, b"first", 5)

    def test_late_packets_are_kept_within_the_slots(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        cache.store(20, b"highest", 1.0)
        assert [cache.store(number, b"late", 1.0) for number in (13, 12)] == [True, False]

    def test_the_oldest_slot_is_reused(self, core: ModuleType) -> None:
        cache = core.PacketCache(4, 10_000, 2.0)
        for number in range(10, 15):
            cache.store(number, bytes([number]), 1.0)
        assert [cache.fetch(number, 1.0) for number in range(10, 15)] == [None, b"\x0b", b"\x0c", b"\x0d", b"\x0e"]
        assert cache.bytes_used == 4

    def test_beyond_the_budget_the_packets_stored_first_go_first(self, core: ModuleType) -> None:
        cache = core.PacketCache(16, 250, 2.0)
        cache.store(10, bytes(100), 1.0)
        cache.store(12, bytes(100), 1.0)
        cache.store(11, bytes(100), 1.0)
        assert [cache.fetch(number, 1.0) is not None for number in (10, 11, 12)] == [False, True, True]
        assert cache.bytes_used == 200

    def test_rtx_3_a_repair_newer_than_any_original_is_kept(self, core: ModuleType) -> None:
        cache = core.PacketCache(8, 10_000, 2.0)
        cache.store(9, b"original", 1.0)
        cache.store(12, b"repair", 1.0)
        cache.store(10, b"late", 1.0)
        assert [cache.fetch(number, 1.0) for number in (9, 10, 12)] == [b"original", b"late", b"repair"]


steps = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 2]) | st.integers(-9, 20),
        st.integers(0, 60) | st.sampled_from([0, 1500, 1501]),
        ticks,
    ),
    max_size=80,
)


@settings(max_examples=200)
@given(
    steps=steps,
    slots=st.sampled_from([1, 2, 4, 8, 16]),
    bytes_max=st.integers(1, 400) | st.just(3200),
    age_ticks=st.integers(1, 200),
)
def test_both_keep_the_same_packets(
    steps: list[tuple[int, int, int]], slots: int, bytes_max: int, age_ticks: int
) -> None:
    a, b = caches = [core.PacketCache(slots, bytes_max, age_ticks * TICK) for core in CORES.values()]
    highest = 1 << 16
    now = 0.0
    for index, (step, size, passed) in enumerate(steps):
        now += passed * TICK
        packet = (bytes([index]) * size)[:size]
        number = highest + step
        taken = [cache.store(number, packet, now) for cache in caches]
        assert taken[0] == taken[1]
        highest = max(highest, number) if taken[0] else highest
        for number in range(highest - slots + 1, highest + 2):
            assert a.fetch(number, now) == b.fetch(number, now)
        assert a.bytes_used == b.bytes_used <= bytes_max
