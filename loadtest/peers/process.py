"""A server's process: started, waited for, measured, stopped.

Whatever happens to us, no server stays behind: it gets SIGTERM when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

START_TIMEOUT = 30.0
"""Seconds to answer after its start."""
STOP_TIMEOUT = 10.0
"""Seconds to end after SIGTERM; then SIGKILL."""
_POLL = 0.05
_LOG_BYTES = 4096

Dialect = Literal["text", "socket.io"]


class StartFailed(RuntimeError):
    """A server ended instead of answering, or did not answer in time; the message ends with what it printed last."""


class RoomPeer(Protocol):
    """A server of load rooms, as the room users need it."""

    name: str
    url: str
    """`http://host:port`, without a slash at its end."""
    dialect: Dialect
    """How messages travel: `text` is one WebSocket text frame a message."""
    room_path: str
    """Path of a room with `{room}` in it, such as `/parties/main/{room}`."""

    async def start(self) -> None:
        """Start the process and wait until it answers."""

    async def stop(self) -> None:
        """End the process."""


class ServerProcess:
    """One server process. Subclasses, or callers, say what to run and when it answers.

    Args:
        name: short, as tables show it.
        command: program and arguments.
        answers: true once the server takes requests; asked again and again. May raise OSError for "not yet".
        core: pins it to one core; None leaves that to the kernel.
        netns: network namespace to run it in, made by somebody else; needs root.
        environment: its whole environment; None: ours.
        folder: its working directory; None: a fresh one, removed at the end.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str] = (),
        answers: Callable[[], Awaitable[bool]] | None = None,
        *,
        core: int | None = None,
        netns: str | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.core = core
        self.netns = netns
        self.environment = environment
        self.folder = folder
        self.version = ""
        """Of the server program; a subclass fills it in `start`."""
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int:
        """Of the server itself: the commands around it replace themselves by it."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._process is None else self._process.poll()

    def cpu_ns(self) -> int:
        """CPU time so far of all its threads and child processes, in ns (soft interrupts served there included)."""
        return sum(process_cpu_ns(pid) for pid in process_tree(self.pid))

    def resident_bytes(self) -> int:
        """Resident memory now, its child processes included."""
        return sum(resident_bytes(pid) for pid in process_tree(self.pid))

    async def inside(self) -> dict[str, float]:
        """What the server says of itself while it is under load; servers that say nothing have nothing here."""
        return {}

    async def start(self) -> None:
        """Spawn, and wait until it answers.

        Raises:
            StartFailed: it ended, or does not answer within `START_TIMEOUT`; no process is left then.
        """
        self.spawn()
        try:
            await self.wait_until_it_answers()
        except BaseException:
            await self.stop()
            raise

    def spawn(self, **options: Any) -> None:
        """Start the process without waiting. Call from the main thread: the server is bound to the caller's life.

        Args:
            options: further arguments of `subprocess.Popen`, such as `stdin`.
        """
        assert self._process is None, "started already"
        if self.folder is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix=f"torpor-{self.name.replace('.', '')}-")
            self.folder = Path(self._own_folder.name)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        options = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log, **options}
        self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's
            [*self._prefix(), *self.command],
            cwd=self.folder,
            env=None if self.environment is None else dict(self.environment),
            start_new_session=True,  # Ctrl-C is ours to handle: figures are read before servers end
            **options,
        )

    def _prefix(self) -> Iterator[str]:
        if self.netns is not None:
            yield from ("ip", "netns", "exec", self.netns)
        if shutil.which("setpriv"):
            yield from ("setpriv", "--pdeathsig", "TERM")
        if self.core is not None:
            yield from ("taskset", "--cpu-list", str(self.core))

    async def wait_until_it_answers(self) -> None:
        """Return once `answers` says so.

        Raises:
            StartFailed: it ended, or took longer than `START_TIMEOUT`.
        """
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while asyncio.get_running_loop().time() < deadline:
            if (code := self.exit_code) is not None:
                raise StartFailed(f"{self.name} ended with code {code}:\n{self.printed()}")
            with contextlib.suppress(OSError):
                if self._answers is None or await self._answers():
                    return
            await asyncio.sleep(_POLL)
        raise StartFailed(f"{self.name} did not answer within {START_TIMEOUT:g} s:\n{self.printed()}")

    def printed(self) -> str:
        """The end of what it wrote to standard output and error."""
        if self._log is None:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace").strip()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_TIMEOUT`, for it and its children. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            self._signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, STOP_TIMEOUT)
            self._signal(process, signal.SIGKILL)
            process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._own_folder is not None:
            self._own_folder.cleanup()
            self._own_folder = self.folder = None

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def process_tree(pid: int) -> Iterator[int]:
    """A process and all processes below it, as far as they live."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from process_tree(int(child))


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, in ns; 0 when it is gone.

    The scheduler's own account; threads that have ended are not in it.
    """
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def free_port(host: str = "127.0.0.1", *, udp: bool = False) -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
