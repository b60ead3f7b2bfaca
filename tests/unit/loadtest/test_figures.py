"""Figures: what engines count, workers report and records keep."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.media import subtract
from loadtest.figures import Figures

NAMES = st.sampled_from(["rooms.sent", "rooms.delivered", "turn.lost"])
EVENTS = st.lists(st.tuples(NAMES, st.integers(min_value=1, max_value=1000)), max_size=60)


def counted(events: list[tuple[str, int]]) -> Figures:
    figures = Figures()
    for name, amount in events:
        figures.add(name, amount)
        figures.record(f"{name}.time", amount / 1000)
    return figures


@given(st.lists(EVENTS, max_size=6))
def test_processes_added_up_are_as_one_process_that_counted_all(processes: list[list[tuple[str, int]]]) -> None:
    merged = Figures()
    for events in processes:
        merged.merge(Figures.from_json(json.loads(json.dumps(counted(events).to_json()))))
    together = counted([event for events in processes for event in events])
    assert merged.counters == together.counters
    assert {name: list(h.items()) for name, h in merged.times.items()} == {
        name: list(h.items()) for name, h in together.times.items()
    }


@given(EVENTS, EVENTS)
def test_what_was_added_since_a_report_is_the_difference(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    added = subtract(counted(before + after), counted(before))
    assert added.counters == counted(after).counters
    assert {name: list(h.items()) for name, h in added.times.items()} == {
        name: list(h.items()) for name, h in counted(after).times.items()
    }


def test_taking_leaves_nothing_behind() -> None:
    figures = counted([("rooms.sent", 3)])
    assert figures.take().count("rooms.sent") == 3
    assert not figures
    assert figures.count("rooms.sent") == 0


@pytest.mark.parametrize("data", [{}, {"counters": [], "times": {}}, {"counters": {"a": None}, "times": {}}])
def test_what_are_no_figures_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not figures"):
        Figures.from_json(data)
