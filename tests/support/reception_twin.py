"""One received stream in plain Python: the twin of `loadtest/_media/reception.pxd`, written from its rules.

Sets and dictionaries without windows; whoever compares keeps within the windows of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

END, KEY, EMPTY = 2, 4, 8
MISSING_MAX, WINDOW = 512, 2048
FIRST_DELAY, RETRIES, RETRY_MIN, RETRY_MAX = 10_000, 10, 20_000, 400_000
GIVE_UP = {True: 2_000_000, False: 200_000}
PLI_INTERVAL = 1_000_000


@dataclass
class Missing:
    found: int
    asked: int = 0
    tries: int = 0


@dataclass
class ReceptionTwin:
    """Same constructor and methods as `core.Reception`."""

    video: bool
    asks: bool
    has_rtx: bool
    clock_rate: int
    first: int | None = None
    highest: int = -1
    head: int = 0
    here: dict[int, int] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    missing: dict[int, Missing] = field(default_factory=dict)
    key_start: int = -1
    damaged: bool = False
    key: bool = False
    pli_at: int = 0
    round_trip: int = 100_000
    shown: list[int] = field(default_factory=list)
    gap_average: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def __post_init__(self) -> None:
        self.waiting = self.video

    def take(self, seq: int, timestamp: int, flags: int, size: int, repaired: bool, now: int) -> bool:
        if self.first is None:
            if repaired:
                return False
            number = self.first = self.head = self.highest = 65536 + seq
            self.pli_at = now
        else:
            number = self.highest + (seq - self.highest + 32768) % 65536 - 32768
            if number > self.highest:
                if repaired and self.asks and number > self.highest + 1:
                    return False
                self.advance(number, now)
            elif not self.fill(number, repaired, now):
                return False
        self.here[number] = flags
        self.counts["packets"] += not flags & EMPTY
        if flags & KEY:
            self.key_start = max(self.key_start, number)
        if self.key_start > self.head and self.missing and self.has_whole_frame(self.key_start):
            for lost in [n for n in self.missing if n < self.key_start]:
                self.lose(lost)
        self.play(now)
        return True

    def advance(self, number: int, now: int) -> None:
        gap = number - self.highest - 1
        if gap > MISSING_MAX:
            self.counts["skipped"] += gap
            for lost in list(self.missing):
                self.lose(lost)
            self.here.clear()
            self.gone.clear()
            self.head, self.key_start, self.damaged = number, -1, True
        else:
            while len(self.missing) + gap > MISSING_MAX:
                self.lose(min(self.missing))
            if number - self.head >= WINDOW:
                for lost in [n for n in self.missing if n < number - WINDOW + 1]:
                    self.lose(lost)
                self.play(now)
            self.missing |= {n: Missing(now) for n in range(self.highest + 1, number)}
        self.highest = number

    def fill(self, number: int, repaired: bool, now: int) -> bool:
        entry = self.missing.pop(number, None)
        if entry is None:
            self.counts["duplicates"] += 1
            return False
        if repaired or (entry.tries and not self.has_rtx):
            self.counts["recovered"] += 1
            if entry.tries == 1:
                self.round_trip += int((now - entry.asked - self.round_trip) / 4)
        else:
            self.counts["reordered"] += 1
        return True

    def has_whole_frame(self, number: int) -> bool:
        while number in self.here:
            if self.here[number] & END:
                return True
            number += 1
        return False

    def lose(self, number: int) -> None:
        del self.missing[number]
        self.gone.add(number)
        self.counts["given_up"] += 1

    def play(self, now: int) -> None:
        while self.head in self.here or self.head in self.gone:
            flags = self.here.get(self.head)
            self.head += 1
            if flags is None:
                self.damaged = True
            elif flags & EMPTY:
                continue
            elif not self.video:
                self.show(now)
            else:
                if flags & KEY:
                    self.key, self.damaged = True, False
                if flags & END:
                    self.end_frame(now)

    def end_frame(self, now: int) -> None:
        if self.damaged:
            self.waiting = True
        elif self.key:
            self.waiting = False
            self.counts["keyframes"] += 1
        if not self.waiting:
            self.show(now)
        elif self.shown:
            self.counts["broken"] += 1
        self.damaged = self.key = False

    def show(self, now: int) -> None:
        self.shown.append(now)
        self.counts["frames"] += 1
        if not self.video or len(self.shown) == 1:
            return
        gap = now - self.shown[-2]
        if len(self.shown) > 10 and gap > int(max(3 * self.gap_average, self.gap_average + 150_000)):
            self.counts["freezes"] += 1
            self.counts["freeze_time"] += gap
        elif len(self.shown) == 2:
            self.gap_average = gap
        else:
            self.gap_average += (gap - self.gap_average) / 30

    def due(self, now: int) -> tuple[list[int], int]:
        ask, later, lost = [], [], []
        for number, entry in sorted(self.missing.items()):
            end = entry.found + GIVE_UP[self.video]
            when = end
            if self.asks:
                wait = min(max(self.round_trip * 1.25 ** (entry.tries - 1), RETRY_MIN), RETRY_MAX)
                when = entry.found + FIRST_DELAY if entry.tries == 0 else entry.asked + int(wait)
            if now >= end or (now >= when and entry.tries >= RETRIES):
                lost.append(number)
                continue
            if now >= when:
                entry.tries += 1
                entry.asked = now
                ask.append(number & 0xFFFF)
                when = now + int(min(max(self.round_trip * 1.25 ** (entry.tries - 1), RETRY_MIN), RETRY_MAX))
            later.append(min(when, end))
        for number in lost:
            self.lose(number)
        self.counts["nacks"] += len(ask)
        if lost:
            self.play(now)
        return ask, min(later, default=0)

    def wants_key(self, now: int) -> bool:
        if not self.video or not self.waiting or self.first is None or now - self.pli_at < PLI_INTERVAL:
            return False
        self.pli_at = now
        return True

    def figures(self) -> dict[str, int]:
        return {**self.counts, "round_trip": self.round_trip, "missing": len(self.missing)}


COUNTS = (
    "packets",
    "given_up",
    "skipped",
    "recovered",
    "reordered",
    "duplicates",
    "nacks",
    "frames",
    "keyframes",
    "broken",
    "freezes",
    "freeze_time",
)
