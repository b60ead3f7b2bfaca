"""Whose code the watchdog may interrupt: never the runtime's, nor what the standard library does for it."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from objects.watchdog import _users_frames


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
