"""Stops code of an object that holds the loop up: a handler that computes or blocks without an `await`.

All rooms share one thread, so one that never gives it back stands in everybody's way. A thread asks the loop for a sign
of life; if none comes it sends the main thread a signal, whose handler runs between two instructions of the code that
is in the way. Whose it is, the context says. That code is ended by an exception, and its object reset.

Nothing is done per event or per step. Only Python code can be stopped, and calls that a signal interrupts, such as
`time.sleep` and waiting for a lock: a call into C that computes is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from objects.errors import EventTimeout
from objects.instance import Aborted, Instance
from objects.scope import current_scope

log = logging.getLogger("torpor.objects")

SIGNAL = signal.SIGURG
"""Ignored by default, and of no other use here."""
CONFIRM_S = 0.25
"""The same step has to be seen twice, so far apart: a process that was stopped and goes on is not at fault."""

_RUNTIME = frozenset(
    {"objects", "hibernation", "partykit_compat", "torpor", "sfu", "turn", "wire", "asyncio", "logging", "signal"}
)
"""Packages that are never interrupted in the middle: what they were doing is others' business, too."""

_LOOP = frozenset({"_run", "_run_once", "run_forever", "run_until_complete", "run"})
"""What calls callbacks."""


class Watchdog:
    """Watches the running loop, from its own thread; on the main thread only.

    Args:
        limit: seconds without a sign of life.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._seen = threading.Event()
        self._stopped = threading.Event()
        self._suspect: FrameType | None = None
        self._main = threading.get_ident()
        self._previous: Any = signal.signal(SIGNAL, self._interrupt)
        self._thread = threading.Thread(target=self._watch, name="torpor-watchdog", daemon=True)
        self._thread.start()

    @staticmethod
    def possible() -> bool:
        """Return whether this is the main thread, the only one whose code a signal interrupts."""
        return threading.current_thread() is threading.main_thread()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        self._seen.set()
        self._thread.join()
        signal.signal(SIGNAL, self._previous)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._seen.clear()
            try:
                self._loop.call_soon_threadsafe(self._seen.set)
            except RuntimeError:  # the loop is closed
                return
            self._seen.wait(self._limit)
            while not self._seen.wait(CONFIRM_S) and not self._stopped.is_set():
                signal.pthread_kill(self._main, SIGNAL)
            self._suspect = None
            self._stopped.wait(self._limit / 2)

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        scope = current_scope.get()
        frames = _users_frames(frame)
        if scope is None or not frames or self._seen.is_set():
            return
        if frames[-1] is not self._suspect:  # no step is taken twice without the loop between them
            self._suspect = frames[-1]
            return
        self._suspect = None
        if frames[0] is frame:
            self._end(scope.instance, frame)
        else:
            self._end_when_back(scope.instance, frames)

    def _end_when_back(self, instance: Instance, frames: list[FrameType]) -> None:
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

    def _end(self, instance: Instance, frame: FrameType) -> NoReturn:
        where = f"{frame.f_code.co_name} in {frame.f_code.co_filename}, line {frame.f_lineno}"
        error = EventTimeout(f"code held the server up for over {self._limit:g} s, last in {where}")
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
