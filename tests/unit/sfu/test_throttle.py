"""Limits of realtime-api.md section 1: 50 calls a second, per session."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sfu.throttle import CallThrottle

A, B = ("app", "a"), ("app", "b")


def test_a_burst_of_the_whole_rate_passes_and_the_next_call_does_not() -> None:
    throttle = CallThrottle(50)
    assert [throttle.admit(A, now=100.0) for _ in range(51)] == [True] * 50 + [False]


def test_one_call_is_given_back_each_fiftieth_of_a_second() -> None:
    throttle = CallThrottle(50)
    for _ in range(50):
        throttle.admit(A, now=0.0)
    assert throttle.admit(A, now=0.021)
    assert not throttle.admit(A, now=0.022)
    assert throttle.admit(A, now=0.041)


def test_sessions_do_not_share_an_allowance() -> None:
    throttle = CallThrottle(1)
    assert throttle.admit(A, now=0.0)
    assert not throttle.admit(A, now=0.5)
    assert throttle.admit(B, now=0.5)


def test_keys_are_forgotten_once_their_allowance_is_whole() -> None:
    throttle = CallThrottle(50)
    for i in range(1000):
        throttle.admit(("app", str(i)), now=0.0)
    throttle.admit(A, now=2.0)
    assert len(throttle) == 1


@given(st.lists(st.floats(0, 0.2), max_size=200), st.integers(1, 60))
def test_no_second_ever_holds_more_than_twice_the_rate(gaps: list[float], rate: int) -> None:
    throttle, now, admitted = CallThrottle(rate), 0.0, []
    for gap in gaps:
        now += gap
        if throttle.admit(A, now=now):
            admitted.append(now)
    for start in admitted:
        assert sum(start <= at < start + 1.0 for at in admitted) <= 2 * rate
