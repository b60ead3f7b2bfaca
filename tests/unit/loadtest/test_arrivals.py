"""Transport-wide feedback of the media client, read by `wire.transport_cc`, which knows nothing of it."""

from __future__ import annotations

import random

import pytest

from loadtest._media.core import ArrivalLog
from wire import rtcp
from wire.transport_cc import TransportFeedback


def reports(log: ArrivalLog) -> list[TransportFeedback]:
    found = []
    while data := log.write(1, 2):
        assert len(data) <= 1200
        (packet,) = rtcp.parse(data)
        assert isinstance(packet, TransportFeedback)
        found.append(packet)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_arrived_is_reported_once_with_its_time(seed: int) -> None:
    rng = random.Random(seed)
    log = ArrivalLog()
    now, number = 10_000_000, rng.choice([0, 65_000])
    told: dict[int, int] = {}
    expected: dict[int, int] = {}
    counts = []
    for _ in range(30):
        for _ in range(rng.randint(0, 300)):
            number += 1
            now += rng.choice([0, 200, 3000, 100_000])
            if rng.random() < 0.8:
                log.record(number & 0xFFFF, now)
                expected[number & 0xFFFF] = now
        for report in reports(log):
            counts.append(report.feedback_count)
            for seq, ticks in report.arrivals:
                assert seq not in told
                told[seq] = report.arrival_us(ticks)
    assert told.keys() == expected.keys()
    assert all(0 <= expected[seq] - told[seq] < 250 for seq in told)
    assert counts == [i & 0xFF for i in range(len(counts))]


def test_losses_between_arrivals_are_told() -> None:
    log = ArrivalLog()
    for seq in (65_534, 1, 3):
        log.record(seq, 1_000_000)
    (report,) = reports(log)
    assert [seq for seq, _ in report.arrivals] == [65_534, 1, 3]
    assert report.lost == (65_535, 0, 2)


def test_silence_and_duplicates_are_not_reported() -> None:
    log = ArrivalLog()
    assert reports(log) == []
    log.record(5, 1_000_000)
    assert len(reports(log)) == 1
    log.record(5, 1_000_100)
    log.record(4, 1_000_100)
    assert reports(log) == []


def test_a_pause_of_minutes_and_a_jump_of_numbers_begin_anew() -> None:
    log = ArrivalLog()
    log.record(10, 1_000_000)
    log.record(11, 200_000_000)
    log.record(20_000, 201_000_000)
    assert [seq for report in reports(log) for seq, _ in report.arrivals][-1] == 20_000
