"""Whether a run counts."""

from __future__ import annotations

import pytest

from loadtest.figures import Figures
from loadtest.verdict import BUSY_SHARE, CPU_BUSY, LAG_MAX, judge


def samples(key: str, *values: float) -> list[dict[str, float]]:
    return [{key: value} for value in values]


def test_a_generator_with_room_is_valid() -> None:
    figures = Figures()
    for _ in range(1000):
        figures.record("engine.loop_lag", LAG_MAX / 10)
    verdict = judge(samples("engine_cpu", *[CPU_BUSY - 0.1] * 30), figures)
    assert verdict.valid
    assert str(verdict) == "valid"


@pytest.mark.parametrize("key", ["locust_cpu", "engine_cpu", "plane_cpu"])
def test_a_process_without_cpu_to_spare_makes_a_run_invalid(key: str) -> None:
    busy = int(20 * BUSY_SHARE) + 1
    verdict = judge(samples(key, *[1.0] * busy, *[0.1] * (20 - busy)), Figures())
    assert not verdict.valid
    assert f"in {busy} of 20 seconds" in str(verdict)


def test_a_moment_of_saturation_is_forgiven() -> None:
    busy = int(20 * BUSY_SHARE)
    assert judge(samples("engine_cpu", *[1.0] * busy, *[0.1] * (20 - busy)), Figures()).valid


@pytest.mark.parametrize("name", ["engine.loop_lag", "engine.send_lag", "plane.send_lag", "turn.send_lag"])
def test_lag_at_the_99th_percentile_makes_a_run_invalid(name: str) -> None:
    figures = Figures()
    for index in range(100):
        figures.record(name, LAG_MAX * 2 if index < 2 else 0.001)
    verdict = judge(samples("engine_cpu", 0.1), figures)
    assert not verdict.valid
    assert "p99" in verdict.reasons[0]


def test_datagrams_that_the_client_dropped_are_no_loss_of_the_server() -> None:
    figures = Figures()
    figures.add("plane.received", 10_000)
    figures.add("plane.dropped_receiving", 20)
    assert "client itself" in str(judge(samples("plane_cpu", 0.1), figures))


def test_a_run_without_samples_or_engine_does_not_count() -> None:
    assert "nothing was measured" in str(judge([], Figures()))
    assert judge(samples("engine_cpu", 0.1), Figures(), "an engine ended").reasons == ("an engine ended",)
