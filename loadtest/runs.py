"""One run: a target is started, Locust put to work on it in a process of its own, the record read, everything ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest import record
from loadtest.peers.targets import Target
from loadtest.profiles import PARAMETERS, Profile
from loadtest.record import PROGRESS_VARIABLE

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
STOP_TIMEOUT: Final = 30.0
"""Seconds for Locust to end after SIGINT; then SIGKILL."""
OVERTIME: Final = 240.0
"""Seconds beyond a profile's own after which a run counts as hung."""
_OUTPUT_BYTES: Final = 4000
_INSIDE_INTERVAL: Final = 3.0

Progress = Callable[[Mapping[str, Any]], None]


class RunFailed(RuntimeError):
    """There is no record: Locust refused to start, broke, or hung. The message ends with what it printed."""


async def run(
    target: Target, profile: Profile, *, client_cores: str, processes: int, command: str, progress: Progress
) -> dict[str, Any]:
    """Make one run.

    Args:
        client_cores: list of cores for Locust and its engines, as `taskset` takes it; empty: all.
        processes: Locust workers; 1: no workers, one process does it all.
        command: how all this was started, for the record.
        progress: called with every sample as it is taken.

    Raises:
        RunFailed: see there.
        StartFailed: the target did not start.
    """
    before: dict[str, Any] = {}
    if target.server is not None:
        await target.server.start()
        before = {"resident": target.server.resident_bytes()}
    try:
        with tempfile.TemporaryDirectory(prefix="torpor-load-") as folder:
            path = Path(folder) / "record.json"
            words = locust_command(target, profile, path, processes)
            pinned = ["taskset", "--cpu-list", client_cores] if client_cores else []
            inside: list[dict[str, float]] = []
            asking = asyncio.create_task(_ask_inside(target, inside))
            try:
                await _locust([*pinned, *words], target.environment, profile, Path(folder) / "output", progress)
            finally:
                asking.cancel()
            if not path.exists():
                raise RunFailed(f"Locust left no record:\n{_tail(Path(folder) / 'output')}")
            made = record.load(path)
        made["target"] = {
            "name": target.name,
            "version": target.server.version if target.server is not None else "",
            "url": target.url,
        }
        made["server_before"] = before
        made["server_samples"] = inside
        made["command"] = command
        if target.server is not None and (code := target.server.exit_code) is not None:
            made["target_died"] = f"{made['target_died'] or 'the server under test ended'} (exit code {code})"
        return made
    finally:
        if target.server is not None:
            await target.server.stop()


def locust_command(target: Target, profile: Profile, path: Path, processes: int) -> list[str]:
    """Locust's command line for a run."""
    words = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    words += ["--loglevel", "WARNING", "--host", target.url, "--profile", profile.name, "--record", str(path)]
    for name, value in profile.parameters.items():
        words += [PARAMETERS[name].flag, f"{value:g}"]
    if target.server is not None:
        words += ["--server-pid", str(target.server.pid)]
    if processes > 1:
        words += ["--processes", str(processes)]
    return [*words, *target.options]


async def _locust(
    words: Sequence[str], secrets: Mapping[str, str], profile: Profile, output: Path, progress: Progress
) -> None:
    reading, writing = os.pipe()
    with output.open("wb") as printed:
        process = await asyncio.create_subprocess_exec(
            *words,
            env={**os.environ, **secrets, PROGRESS_VARIABLE: str(writing)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=[writing],
            start_new_session=True,  # Ctrl-C is passed on once, not twice
        )
    os.close(writing)
    lines = asyncio.create_task(_read_progress(reading, progress))
    limit = profile.total / float(profile.parameters["spawn_rate"]) + float(profile.parameters["duration"]) + OVERTIME
    limit += float(profile.parameters["quiet"])
    try:
        async with asyncio.timeout(limit):
            await process.wait()
    except TimeoutError:
        raise RunFailed(f"Locust did not end within {limit:.0f} s:\n{_tail(output)}") from None
    finally:
        await _end(process)
        lines.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lines


async def _ask_inside(target: Target, samples: list[dict[str, float]]) -> None:
    """Have a server tell of itself every now and then; seldom enough to cost nothing."""
    began = time.monotonic()
    while target.server is not None:
        if found := await target.server.inside():
            samples.append({"at": time.monotonic() - began, **found})
        await asyncio.sleep(_INSIDE_INTERVAL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Locust, its workers and their engines: in order if they can, and none stays behind."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _read_progress(descriptor: int, progress: Progress) -> None:
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        async for line in reader:
            with contextlib.suppress(ValueError):
                progress(json.loads(line))
    finally:
        transport.close()


def _tail(output: Path) -> str:
    return output.read_bytes()[-_OUTPUT_BYTES:].decode(errors="replace").strip()


class Bar:
    """The progress of a run on a terminal: one line that is drawn over; a line every ten seconds elsewhere.

    Args:
        title: of the run.
        profile: what it does.
    """

    _WIDTH = 28
    _EVERY = 10.0

    def __init__(self, title: str, profile: Profile) -> None:
        self._title = title
        self._profile = profile
        self._full_at: float | None = 0.0 if profile.measured_from_start else None
        self._drawn_at = -self._EVERY
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._show(f"{title}: starting")

    def __call__(self, sample: Mapping[str, Any]) -> None:
        """Draw a sample."""
        at, users = float(sample["at"]), int(sample["users"])
        if self._full_at is None and sample["measured"]:
            self._full_at = at
        duration = float(self._profile.parameters["duration"])
        done = 0.0 if self._full_at is None else min(1.0, (at - self._full_at + 1) / duration)
        filled = round(done * self._WIDTH)
        bar = "█" * filled + "░" * (self._WIDTH - filled)
        phase = f"{users:,} of {self._profile.total:,} users" if self._full_at is None else f"{done:4.0%}"
        self._show(f"{self._title} {bar} {phase}{summary(sample)}")

    def end(self, word: str) -> None:
        """Say how it ended."""
        self._drawn_at = -self._EVERY
        self._show(f"{self._title}: {word}")
        if self._terminal:
            sys.stderr.write("\n")

    def _show(self, text: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{text[:200]}")
        elif time.monotonic() - self._drawn_at >= self._EVERY:
            self._drawn_at = time.monotonic()
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def summary(sample: Mapping[str, Any]) -> str:
    """What happens right now, in a few words."""
    counters, times = sample["counters"], sample["times"]
    words = []
    for name, word, key in (
        ("rooms.delivered", "deliveries/s", "rooms.delivery"),
        ("subscribe.video.packets", "packets/s", "subscribe.video.delay"),
        ("subscribe.audio.packets", "packets/s", "subscribe.audio.delay"),
        ("turn.echoed", "echoes/s", "turn.round_trip"),
    ):
        if counters.get(name):
            p99 = times.get(key, {}).get("p99")
            words.append(f"{counters[name]:,.0f} {word}" + (f", p99 {p99 * 1000:.1f} ms" if p99 else ""))
            break
    if "server_cpu" in sample:
        words.append(f"server {sample['server_cpu']:.0%} CPU, {sample['server_resident'] / 1024**2:,.0f} MiB")
    if sample.get("failures"):
        words.append(f"{sample['failures']} failures")
    return "".join(f"  {word}" for word in words)
