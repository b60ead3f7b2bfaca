"""Whose code the watchdog may interrupt: never the runtime's, nor what the standard library does for it; and its timer,
which stands still while no object is in memory."""

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import pytest

from objects._ticks.ticker import Ticker
from objects.watchdog import SIGNAL, Watchdog, _users_frames


def _calls(module: str, inner: Callable[[], list[FrameType]]) -> Callable[[], list[FrameType]]:
    """A function of `module` that calls `inner`."""
    scope = {"__name__": module, "inner": inner}
    exec("def _run():\n    return inner()", scope)
    call: Callable[[], list[FrameType]] = scope["_run"]  # type: ignore[assignment]
    return call


def _frames() -> list[FrameType]:
    return _users_frames(sys._getframe(1))


@pytest.mark.parametrize(
    ("stack", "users"),
    [
        (["objects.instance", "room"], ["room"]),
        (["objects.instance", "room", "objects.kv"], ["room"]),
        (["objects.instance", "room", "threading"], ["threading", "room"]),
        (["objects.instance", "room", "objects.storage", "contextlib"], ["room"]),
        (["objects.instance", "room", "logging", "traceback"], ["room"]),
        (["objects.instance", "room", "objects.storage", "contextlib", "room"], ["room", "room"]),
        (["objects.commits", "contextlib"], []),
        (["hibernation.service", "concurrent.futures.thread"], []),
    ],
)
def test_frames_of_an_object_s_code(stack: list[str], users: list[str]) -> None:
    call = _frames
    for module in reversed(["asyncio.events", *stack]):
        call = _calls(module, call)
    assert [str(frame.f_globals["__name__"]) for frame in call()] == users


def test_a_ticker_ticks_until_it_is_stopped() -> None:
    ticks: list[int] = []

    def wait_for(count: int) -> None:
        end = time.monotonic() + 20
        while len(ticks) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    previous = signal.signal(SIGNAL, lambda *_: ticks.append(1))
    try:
        ticker = Ticker(SIGNAL)
        ticker.start(0.001)
        wait_for(3)
        ticker.stop()
        seen = len(ticks)
        time.sleep(0.05)
        assert len(ticks) == seen
        ticker.start(0.001)
        wait_for(seen + 1)
        del ticker
        seen = len(ticks)
        time.sleep(0.05)
        assert len(ticks) == seen
    finally:
        signal.signal(SIGNAL, previous)


@pytest.mark.parametrize("period", [0, -1, float("nan"), 86_401])
def test_a_period_that_is_none(period: float) -> None:
    with pytest.raises(ValueError, match="period"):
        Ticker(SIGNAL).start(period)


async def test_nothing_ticks_while_no_object_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Spy:
        def __init__(self, signum: int) -> None:
            pass

        def start(self, period_s: float) -> None:
            calls.append(f"every {period_s:g} s")

        def stop(self) -> None:
            calls.append("never")

    monkeypatch.setattr("objects.watchdog.Ticker", Spy)
    awake = True
    watchdog = Watchdog(2.0, lambda: awake)
    try:
        assert calls == []
        watchdog.watch()
        watchdog.watch()
        signal.raise_signal(SIGNAL)
        assert calls == ["every 0.5 s"]
        awake = False
        with watchdog.watching_hook():
            signal.raise_signal(SIGNAL)
        assert calls == ["every 0.5 s"]
        signal.raise_signal(SIGNAL)
        assert calls == ["every 0.5 s", "never"]
        watchdog.watch()
        assert calls == ["every 0.5 s", "never", "every 0.5 s"]
    finally:
        watchdog.stop()
