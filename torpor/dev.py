"""`torpor dev`: serve, and serve anew when a Python file under the working directory is saved.

The server is a process of its own, so that every start is a clean one: SIGTERM closes WebSockets with 1012, clients
come back by themselves, storage stays. Files are found by looking at them twice a second, which needs no library and
works on every file system. A server that does not start, as after half an edit, is tried again at the next save.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

POLL = 0.5
"""Seconds between two looks."""
FILES_MAX = 10_000
"""Files that are looked at; those beyond are not."""
SKIPPED = {"node_modules", "__pycache__", "venv", "site-packages"}

Snapshot = Mapping[str, int]


def develop(arguments: Sequence[str], root: Path) -> int:
    """Serve until a signal stops it; returns the exit code.

    Args:
        arguments: for `torpor serve`.
        root: folder whose Python files are watched.
    """
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda number, frame: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    command = [sys.executable, "-m", "torpor", "serve", *arguments]
    sys.stderr.write(f"watching *.py in {root}\n")
    try:
        while not stopped.is_set():
            seen = snapshot(root)
            # A group of its own: Ctrl-C reaches only us, and the server gets exactly one signal.
            server = subprocess.Popen(command, process_group=0)  # noqa: S603  ourselves
            try:
                if (changed := wait_for_change(root, seen, stopped.wait)) is not None:
                    sys.stderr.write(f"{changed} was saved\n")
            finally:
                end(server)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def end(server: subprocess.Popen[bytes]) -> None:
    """Stop a server, if it runs, and wait for its end."""
    if server.poll() is None:
        server.terminate()
    server.wait()


def wait_for_change(root: Path, seen: Snapshot, stopped: Callable[[float], bool]) -> str | None:
    """Wait until a file is saved, made or deleted; returns its path below `root`, or None when stopped.

    Args:
        stopped: waits for the seconds given; returns whether to stop.
    """
    while not stopped(POLL):
        now = snapshot(root)
        if now != seen:
            return min(path for path, _ in now.items() ^ seen.items())
    return None


def snapshot(root: Path) -> Snapshot:
    """Return when each Python file under `root` was last written, in ns, by its path below it."""
    found: dict[str, int] = {}
    for path in _python_files(root):
        try:
            found[str(path.relative_to(root))] = path.stat().st_mtime_ns
        except FileNotFoundError:  # deleted meanwhile
            continue
        if len(found) == FILES_MAX:
            break
    return found


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        yield from (Path(folder, name) for name in files if name.endswith(".py"))
