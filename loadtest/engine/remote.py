"""The Locust side of an engine: starts it, and lets greenlets wait for its answers.

Imported in Locust processes only: gevent has patched `socket` and `subprocess` there.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.event import AsyncResult, Event

from loadtest.engine.protocol import Decoder, encode
from loadtest.figures import Figures

CALL_TIMEOUT: Final = 60.0
"""Seconds after which an engine that says nothing counts as gone; operations have limits of their own below that."""
STOP_TIMEOUT: Final = 10.0
_READ_BYTES: Final = 256 * 1024


class EngineGone(Exception):
    """The engine has ended, so nothing can be measured any more."""


class CallFailed(Exception):
    """What was asked did not work; the message is the reason."""


class RemoteEngine:
    """An engine process, started at once.

    Args:
        on_report: called with what was counted since the last report, and the engine's own load.
        on_gone: called once if the engine ends by itself.
        core: pins the engine to one core; None leaves that to the kernel.
    """

    def __init__(
        self,
        on_report: Callable[[Figures, dict[str, Any]], None],
        on_gone: Callable[[], None],
        core: int | None = None,
    ) -> None:
        self._on_report = on_report
        self._on_gone = on_gone
        self._numbers = itertools.count(1)
        self._waiting: dict[int, AsyncResult[Any]] = {}
        self._calls: list[tuple[int, str, tuple[Any, ...], float]] = []
        self._ended: dict[int, Callable[[str], None]] = {}
        self._ended_early: dict[int, str] = {}
        self._flush = Event()
        self._closing = False
        ours, theirs = socket.socketpair()
        # Numbers of connections are unique in a test, so that receivers tell senders of different engines apart.
        first_number = secrets.randbelow(2**11) << 20
        pin = [] if core is None else ["taskset", "--cpu-list", str(core)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*pin, sys.executable, "-m", "loadtest.engine", str(theirs.fileno()), str(first_number)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._socket = ours
        self._helpers = [gevent.spawn(self._read), gevent.spawn(self._write)]

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    def call(self, operation: str, *arguments: Any, within: float = CALL_TIMEOUT) -> Any:
        """Have an operation done, and wait for its value.

        Raises:
            CallFailed: it did not work.
            EngineGone: the engine has ended, or says nothing for `within` seconds.
        """
        if self._closing or self._process.poll() is not None:
            raise EngineGone("the engine has ended")
        number = next(self._numbers)
        waiting: AsyncResult[Any] = AsyncResult()
        self._waiting[number] = waiting
        self._calls.append((number, operation, arguments, time.monotonic()))
        self._flush.set()
        try:
            return waiting.get(timeout=within)
        except gevent.Timeout:
            raise EngineGone(f"no answer to {operation} within {within:g} s") from None
        finally:
            self._waiting.pop(number, None)

    def watch(self, connection: int, ended: Callable[[str], None]) -> None:
        """Call `ended` with the reason when a connection ends by itself; at once if it has already."""
        if (reason := self._ended_early.pop(connection, None)) is not None:
            ended(reason)
        else:
            self._ended[connection] = ended

    def unwatch(self, connection: int) -> None:
        """Not any more."""
        self._ended.pop(connection, None)

    def close(self) -> None:
        """End the engine: it leaves everything and exits. Idempotent."""
        if self._closing:
            return
        self._closing = True
        gevent.killall(self._helpers)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self) -> None:
        while True:
            self._flush.wait()
            self._flush.clear()
            gevent.sleep(0)  # all greenlets that are ready now get their calls into this batch
            calls, self._calls = self._calls, []
            if calls:
                with contextlib.suppress(OSError):
                    self._socket.sendall(encode({"calls": calls}))

    def _read(self) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                for message in decoder.feed(data):
                    self._take(message)
        if not self._closing:
            for waiting in list(self._waiting.values()):
                waiting.set_exception(EngineGone("the engine has ended"))
            self._on_gone()

    def _take(self, message: dict[str, Any]) -> None:
        for number, error, value in message.get("answers", ()):
            if (waiting := self._waiting.get(number)) is None:
                continue
            if error is None:
                waiting.set(value)
            else:
                waiting.set_exception(CallFailed(error))
        for connection, reason in message.get("ended", ()):
            if (ended := self._ended.pop(connection, None)) is not None:
                ended(reason)
            else:
                # Whoever opened it has not been told its number yet.
                self._ended_early[connection] = reason
        if "figures" in message:
            self._on_report(Figures.from_json(message["figures"]), message["load"])
