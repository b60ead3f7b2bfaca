"""Stops code that holds the loop up: a handler or hook that computes or blocks without an `await`.

All rooms share one thread, so one that never gives it back stands in everybody's way. While such code can run, a timer
sends the main thread a signal now and then, whose handler runs between two instructions of whatever is at work. Finds
it the same step of the application's code too often, then that is ended by an exception: a handler's object is reset.

Nothing is done per event or per step, and nothing at all while no object is in memory. Only Python code can be stopped,
and calls that a signal interrupts, such as `time.sleep` and waiting for a lock: a call into C that computes is waited
for.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn

from objects._ticks.ticker import Ticker
from objects.errors import EventTimeout
from objects.instance import Aborted, Instance
from objects.scope import current_scope

log = logging.getLogger("torpor.objects")

SIGNAL = signal.SIGURG
"""Ignored by default, and of no other use here."""
TICKS = 4
"""Within the limit. Counted and not timed: a process that was stopped and goes on gets one for all that it missed."""

_in_hook: ContextVar[bool] = ContextVar("_in_hook", default=False)

_RUNTIME = frozenset(
    {"objects", "hibernation", "partykit_compat", "torpor", "sfu", "turn", "wire", "asyncio", "logging", "signal"}
)
"""Packages that are never interrupted in the middle: what they were doing is others' business, too."""

_LOOP = frozenset({"_run", "_run_once", "run_forever", "run_until_complete", "run"})
"""What calls callbacks."""


class Watchdog:
    """Watches the running loop; on the main thread only.

    Args:
        limit: seconds that a step may take. It is ended after one to one and a quarter of it.
        any_awake: whether objects are in memory.
    """

    def __init__(self, limit: float, any_awake: Callable[[], bool]) -> None:
        self._limit = limit
        self._any_awake = any_awake
        self._hooks = 0
        self._loop = asyncio.get_running_loop()
        self._step: FrameType | None = None
        self._ticks = 0
        self._turned = False
        self._previous: Any = signal.signal(SIGNAL, self._tick)
        self._ticker = Ticker(SIGNAL)
        self._watching = False

    @staticmethod
    def possible() -> bool:
        """Return whether this is the main thread, the only one whose code a signal interrupts."""
        return threading.current_thread() is threading.main_thread()

    def watch(self) -> None:
        """Look out while an object is awake; to be called when one wakes."""
        if not self._watching:
            self._watching = True
            self._ticker.start(self._limit / TICKS)

    @contextmanager
    def watching_hook(self) -> Iterator[None]:
        """Look out for the code that runs in here, which belongs to no object.

        Raises:
            EventTimeout: it held the loop up for too long.
        """
        self.watch()
        self._hooks += 1
        before = _in_hook.set(True)
        try:
            yield
        except Aborted as error:
            raise EventTimeout(str(error)) from None
        finally:
            _in_hook.reset(before)
            self._hooks -= 1

    def stop(self) -> None:
        """Watch no longer."""
        self._ticker.stop()
        self._step = None
        signal.signal(SIGNAL, self._previous)

    def _tick(self, _: int, frame: FrameType | None) -> None:
        scope = current_scope.get()
        ours = scope is not None or _in_hook.get()
        frames = _users_frames(frame) if ours else []
        if not frames:
            self._step = None
            if not ours and not self._hooks and not self._any_awake():
                self._watching = False
                self._ticker.stop()
            return
        if frames[-1] is not self._step or self._turned:  # no step is taken twice without the loop between them
            self._step, self._ticks, self._turned = frames[-1], 0, False
            self._loop.call_soon(self._turn)
            return
        self._ticks += 1
        if self._ticks != TICKS:  # above it: what is to end is waited for already
            return
        instance = None if scope is None else scope.instance
        if frames[0] is frame:
            self._end(instance, frame)
        else:
            self._end_when_back(instance, frames)

    def _turn(self) -> None:
        self._turned = True

    def _end_when_back(self, instance: Instance | None, frames: list[FrameType]) -> None:
        """The runtime is at work for code that is to end: it ends with the next line that it comes to by itself."""
        step = frames[-1]
        watching, before = True, sys.gettrace()

        def back(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal watching
            if not watching:  # a coroutine's frame that goes on after its step
                return None
            if event == "line":
                watching = False
                self._end(instance, frame)  # raising from here ends the tracing, too
            if event == "return" and frame is step:  # the loop has its thread back
                watching = False
                sys.settrace(before)
            return back

        for frame in frames:
            frame.f_trace = back
        sys.settrace(lambda *_: None)

    def _end(self, instance: Instance | None, frame: FrameType) -> NoReturn:
        where = f"{frame.f_code.co_name} in {frame.f_code.co_filename}, line {frame.f_lineno}"
        self._step = None
        error = EventTimeout(f"code held the server up for over {self._limit:g} s, last in {where}")
        if instance is None:
            log.error("a hook is ended: %s", error)
        else:
            log.error("%s is reset: %s", instance.object_id.key, error)
            # Between two instructions of its own code: as if it had called `ctx.abort` there.
            instance.break_(error)
        raise Aborted(str(error))


def _users_frames(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of an object's code in the loop's present callback, the innermost first.

    What the standard library does is its caller's doing: part of an object's code, or of the runtime.
    """
    found: list[FrameType] = []
    library: list[FrameType] = []
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "asyncio" and frame.f_code.co_name in _LOOP:
            break
        if package in _RUNTIME:
            library.clear()
        else:
            library.append(frame)
            if package not in sys.stdlib_module_names:
                found += library
                library.clear()
        frame = frame.f_back
    return found
