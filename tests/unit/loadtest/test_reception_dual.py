"""The media client's reception: compiled and plain, side by side over bad networks, and rule by rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from loadtest._media.core import Reception
from tests.support.reception_twin import EMPTY, END, KEY, ReceptionTwin

MS = 1000
FRAME = 33 * MS


@pytest.fixture(params=[Reception, ReceptionTwin], ids=["compiled", "plain"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def video(make: Callable[..., Any], *, asks: bool = True, has_rtx: bool = True) -> Any:
    return make(True, asks, has_rtx, 90_000)


def packet(index: int, *, key: bool = False) -> tuple[int, int]:
    """Number and flags of packet `index` of a stream with frames of three packets."""
    return index, (END if index % 3 == 2 else 0) | (KEY if key and index % 3 == 0 else 0)


class TestRules:
    def test_a_gap_is_asked_for_after_10_ms_and_repaired(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        for seq, flags in (packet(0, key=True), packet(1), packet(2), packet(5)):
            assert stream.take(seq, 0, flags, 100, False, 0)
        assert stream.due(9 * MS) == ([], 10 * MS)
        assert stream.due(10 * MS) == ([3, 4], 110 * MS)
        assert stream.take(3, 0, 0, 100, True, 40 * MS)
        assert stream.take(4, 0, 0, 100, True, 40 * MS)
        figures = stream.figures()
        assert (figures["recovered"], figures["given_up"], figures["nacks"], figures["frames"]) == (2, 0, 2, 2)
        assert figures["round_trip"] < 100 * MS

    def test_what_is_merely_late_is_reordered_and_not_lost(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        for seq in (0, 2, 1):
            assert stream.take(*packet(seq, key=True)[:1], 0, packet(seq, key=True)[1], 100, False, seq * MS)
        assert stream.due(50 * MS) == ([], 0)
        assert stream.figures()["reordered"] == 1
        assert stream.figures()["frames"] == 1

    def test_after_ten_requests_a_number_is_given_up_and_a_key_frame_wanted(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        for index in (0, 1, 2, 4, 5):
            seq, flags = packet(index, key=index == 0)
            stream.take(seq, 0, flags, 100, False, 0)
        asked, now = 0, 10 * MS
        while now:
            numbers, following = stream.due(now)
            asked += len(numbers)
            now = following
        assert asked <= 10
        figures = stream.figures()
        assert (figures["given_up"], figures["frames"], figures["broken"]) == (1, 1, 1)
        assert stream.wants_key(3000 * MS)
        assert not stream.wants_key(3001 * MS), "once a second"

    def test_without_nack_audio_is_given_up_after_200_ms(self, make: Callable[..., Any]) -> None:
        stream = make(False, False, False, 48_000)
        stream.take(0, 0, 0, 80, False, 0)
        stream.take(2, 1920, 0, 80, False, 40 * MS)
        assert stream.due(50 * MS) == ([], 240 * MS)
        assert stream.figures()["frames"] == 1
        assert stream.due(240 * MS) == ([], 0)
        assert (stream.figures()["frames"], stream.figures()["given_up"]) == (2, 1)

    def test_a_whole_newer_key_frame_makes_older_holes_pointless(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        for index in (0, 1, 2, 4, 5):
            seq, flags = packet(index, key=index == 0)
            stream.take(seq, 0, flags, 100, False, 0)
        for index in (6, 7, 8):
            seq, flags = packet(index, key=True)
            stream.take(seq, 0, flags, 100, False, FRAME)
        assert stream.due(FRAME + 20 * MS) == ([], 0)
        figures = stream.figures()
        assert (figures["given_up"], figures["frames"], figures["keyframes"], figures["broken"]) == (1, 2, 2, 1)

    def test_a_pause_is_a_freeze_and_slowness_is_not(self, make: Callable[..., Any]) -> None:
        """W3C webrtc-stats: longer than max(3 × average, average + 150 ms)."""
        stream = video(make)
        now = 0
        for index in range(60):
            now += FRAME if index != 40 else 500 * MS
            stream.take(index, 0, END | KEY, 100, False, now)
        assert (stream.figures()["freezes"], stream.figures()["freeze_time"]) == (1, 500 * MS)
        slow = video(make)
        for index in range(60):
            slow.take(index, 0, END | KEY, 100, False, index * 400 * MS)
        assert slow.figures()["freezes"] == 0

    def test_duplicates_and_padding_are_no_frames(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        stream.take(0, 0, END | KEY, 100, False, 0)
        assert not stream.take(0, 0, END | KEY, 100, False, 0)
        assert not stream.take(0, 0, END | KEY, 100, True, 0)
        assert stream.take(1, 0, EMPTY | END, 0, False, 0)
        assert stream.take(2, 0, END, 100, False, 0)
        figures = stream.figures()
        assert (figures["duplicates"], figures["packets"], figures["frames"]) == (2, 2, 2)

    def test_a_gap_too_large_to_ask_for_is_a_new_beginning(self, make: Callable[..., Any]) -> None:
        stream = video(make)
        stream.take(65_000, 0, END | KEY, 100, False, 0)
        stream.take(600, 0, END, 100, False, FRAME)
        assert stream.due(1000 * MS) == ([], 0)
        stream.take(601, 0, END | KEY, 100, False, 2 * FRAME)
        figures = stream.figures()
        assert (figures["skipped"], figures["broken"], figures["frames"]) == (1135, 1, 2)


@pytest.mark.parametrize("seed", range(40))
def test_both_forms_agree_over_bad_networks(seed: int) -> None:
    """Loss, bursts of it, reordering, duplicates, repairs that come late or never; numbers that wrap."""
    rng = random.Random(seed)
    is_video, asks, has_rtx = rng.random() < 0.7, rng.random() < 0.8, rng.random() < 0.7
    pair = [make(is_video, asks, has_rtx, 90_000) for make in (Reception, ReceptionTwin)]
    loss, spread = rng.choice([0.0, 0.02, 0.2, 0.5]), rng.choice([0, 2 * MS, 40 * MS])
    base = rng.choice([0, 65_000])
    arrivals: list[tuple[int, int, bool]] = []
    flags: dict[int, int] = {}
    frame_left, now, lost_until = 0, 0, 0
    for index in range(1500):
        start = frame_left == 0
        if start:
            frame_left = rng.randint(1, 8) if is_video else 1
            now += FRAME
        frame_left -= 1
        flags[index] = (END if frame_left == 0 else 0) | (KEY if (start and rng.random() < 0.05) or index == 0 else 0)
        if rng.random() < 0.01:
            flags[index] = EMPTY
        if rng.random() < 0.002:
            lost_until = index + rng.choice([5, 50, 600])
        if index and (index < lost_until or rng.random() < loss):
            continue
        arrivals.append((now + rng.randint(0, spread), index, False))
        if rng.random() < 0.01:
            arrivals.append((now + rng.randint(0, 60 * MS), index, False))
    arrivals.sort()
    clock = 0
    while arrivals:
        at, index, repaired = arrivals.pop(0)
        clock = max(clock, at)
        seq = (base + index) & 0xFFFF
        taken = [r.take(seq, index * 3000, flags[index], 100, repaired, clock) for r in pair]
        assert taken[0] == taken[1], (clock, index, repaired)
        if rng.random() < 0.5:
            continue
        due = [r.due(clock) for r in pair]
        assert due[0] == due[1], (clock, index)
        assert pair[0].wants_key(clock) == pair[1].wants_key(clock)
        for number in due[0][0]:
            missing = (number - base) & 0xFFFF
            if missing in flags and rng.random() < 0.7:
                arrivals.append((clock + rng.randint(5 * MS, 300 * MS), missing, has_rtx))
        arrivals.sort()
    end = clock + 3000 * MS
    assert pair[0].due(end) == pair[1].due(end)
    assert pair[0].figures() == pair[1].figures()
    assert pair[0].figures()["missing"] == 0
