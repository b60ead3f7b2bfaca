"""Durations in logarithmic buckets."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import BUCKETS, Histogram, bounds, bucket_of

TIMES = st.lists(st.floats(min_value=1e-4, max_value=100), min_size=1, max_size=200)


def of(times: list[float]) -> Histogram:
    histogram = Histogram()
    for seconds in times:
        histogram.record(seconds)
    return histogram


@given(TIMES, TIMES)
def test_merging_is_as_if_all_had_been_recorded_in_one(left: list[float], right: list[float]) -> None:
    merged = of(left)
    merged.merge(of(right))
    together = of(left + right)
    assert list(merged.items()) == list(together.items())
    assert (merged.count, merged.max) == (together.count, together.max)
    assert merged.sum == pytest.approx(together.sum)


@given(TIMES, st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_its_bucket_of_the_true_one(times: list[float], share: float) -> None:
    true = sorted(times)[max(1, math.ceil(share * len(times))) - 1]
    assert of(times).quantile(share) == pytest.approx(true, rel=1 / 16)


@given(st.lists(st.floats(min_value=0, max_value=5000), max_size=50))
def test_json_brings_back_an_equal_histogram(times: list[float]) -> None:
    histogram = of(times)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


@given(st.integers(min_value=16, max_value=2**27 - 1))
def test_a_duration_lies_within_the_bounds_of_its_bucket(us: int) -> None:
    low, high = bounds(bucket_of(us))
    assert low <= us / 1e6 * (1 + 1e-9)
    assert us / 1e6 < high * (1 + 1e-9)


def test_an_empty_one_has_no_quantile_and_merges_as_nothing() -> None:
    assert math.isnan(Histogram().quantile(0.5))
    some = of([0.25])
    some.merge(Histogram())
    assert some == of([0.25])


def test_several_equal_durations_count_as_if_they_came_one_by_one() -> None:
    histogram = Histogram()
    histogram.record(0.25, 3)
    assert histogram == of([0.25] * 3)


@pytest.mark.parametrize("bucket", [-1, BUCKETS])
def test_a_bucket_that_does_not_exist_is_refused(bucket: int) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Histogram.from_json({"counts": {str(bucket): 1}, "sum": 0, "max": 0})
