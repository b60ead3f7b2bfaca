"""What a subscriber stream sent, and which NACKs it answers, in both implementations."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dual import CORES, TICK, on_both_cores, rtts, ticks

UNKNOWN, SUPPRESSED, PADDING = -1, -2, -3


@on_both_cores
class TestResendLedger:
    """CACHE-2, CACHE-3."""

    def test_a_number_leads_back_to_its_source(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(70_000, 123_456, 0.0)
        assert ledger.ask(70_000 & 0xFFFF, 1.0, 0.1) == 123_456

    @pytest.mark.parametrize("seq", [69_999, 70_001, 70_000 + 32_768])
    def test_a_number_never_sent_is_unknown(self, core: ModuleType, seq: int) -> None:
        ledger = core.ResendLedger()
        ledger.sent(70_000, 1, 0.0)
        assert ledger.ask(seq & 0xFFFF, 1.0, 0.1) == UNKNOWN

    def test_before_anything_was_sent_all_is_unknown(self, core: ModuleType) -> None:
        assert core.ResendLedger().ask(0, 0.0, 0.1) == UNKNOWN

    def test_numbers_are_found_over_the_wrap(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        for out in range(65_530, 65_540):
            ledger.sent(out, out + 1, 0.0)
        assert [ledger.ask(out & 0xFFFF, 1.0, 0.1) for out in range(65_530, 65_540)] == list(range(65_531, 65_541))

    def test_cache_3_the_same_nack_five_times_in_50_ms_gets_one_answer(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 0.0)
        assert [ledger.ask(500, 1.0 + n * 0.0125, 0.1) for n in range(5)] == [1] + [SUPPRESSED] * 4
        assert ledger.ask(500, 1.0 + 0.095, 0.1) == 1

    def test_the_original_counts_as_sent(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 1.0)
        assert [ledger.ask(500, at, 0.1) for at in (1.0, 1.08, 1.0901)] == [SUPPRESSED, SUPPRESSED, 1]

    def test_the_spacing_is_never_below_5_ms(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 1.0)
        assert [ledger.ask(500, at, 0.0) for at in (1.004, 1.0051)] == [SUPPRESSED, 1]

    def test_five_resends_are_all_there_are(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 0.0)
        assert [ledger.ask(500, 0.1 * n, 0.02) for n in range(1, 8)] == [1] * 5 + [SUPPRESSED] * 2

    def test_after_2_s_it_is_too_late(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 1.0)
        assert (ledger.ask(500, 3.0 - TICK, 0.1), ledger.ask(500, 3.0, 0.1)) == (1, UNKNOWN)

    def test_resending_does_not_prolong_the_2_s(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 1.0)
        ledger.ask(500, 2.9, 0.1)
        assert ledger.ask(500, 3.0 + TICK, 0.0) == UNKNOWN

    def test_cache_2_padding_is_told_apart(self, core: ModuleType) -> None:
        ledger = core.ResendLedger()
        ledger.sent(500, 1, 0.0, padding=True)
        assert ledger.ask(500, 1.0, 0.1) == PADDING

    def test_as_many_as_slots_are_remembered(self, core: ModuleType) -> None:
        ledger = core.ResendLedger(4)
        for out in range(10, 15):
            ledger.sent(out, out, 0.0)
        assert [ledger.ask(out, 1.0, 0.1) for out in range(10, 15)] == [UNKNOWN, 11, 12, 13, 14]


events = st.lists(
    st.tuples(st.booleans(), st.integers(-7, 3), st.booleans(), ticks.map(lambda n: n // 8)), max_size=100
)


@settings(max_examples=200)
@given(events=events, rtt=rtts, start=st.integers(8, 1 << 40))
def test_both_answer_the_same(events: list[tuple[bool, int, bool, int]], rtt: float, start: int) -> None:
    slots = 8
    a, b = ledgers = [core.ResendLedger(slots) for core in CORES.values()]
    highest = start
    sent: set[int] = set()
    now = 0.0
    for is_send, step, padding, passed in events:
        now += passed * TICK
        number = highest + step
        if is_send and number not in sent:  # an out number is given to one packet only (FWD-2)
            highest = max(highest, number)
            sent.add(number)
            for ledger in ledgers:
                ledger.sent(number, number + 1000, now, padding=padding)
        elif number > highest - slots:
            assert a.ask(number & 0xFFFF, now, rtt) == b.ask(number & 0xFFFF, now, rtt)
