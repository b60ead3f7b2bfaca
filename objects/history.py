"""Restore points of one object: whole copies of its file beside it, named by bookmarks that sort by time.

    3f….sqlite                    the object
    3f….at-<bookmark>.sqlite      a restore point; empty if the object had no file then
    3f….restore                   "at the next load put <bookmark> in place, keep what was there as <undo>"
    3f….restored                  that was done, and the alarm store has not been told of the alarms in it yet

Everything here blocks, and runs in a worker thread. Each step can be cut off by a crash and done again.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from objects.errors import StorageCorrupt, UsageError
from objects.sqlite import connect

RETENTION_MS = 30 * 24 * 3600 * 1000
"""Restore points older than 30 days are removed when a new one is made."""
MAX_POINTS = 100
"""Restore points of one object; the oldest go first."""


def bookmark_name(unix_ms: int, epoch: int, seq: int) -> str:
    """Return a bookmark: sorts by time, then by the owner's epoch and the batch within it."""
    return f"{unix_ms:013d}-{epoch:016x}-{seq:010d}"


def bookmark_ms(bookmark: str) -> int:
    """Return the time a bookmark was made (Unix ms)."""
    return int(bookmark.partition("-")[0])


def pin(path: Path) -> sqlite3.Connection | None:
    """Return a reader that sees the file as it is committed now, whatever is written later; None without a file.

    Quick: takes a read lock, copies nothing.
    """
    if not path.exists():
        return None
    reader = connect(path, 5.0)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        reader.close()
        raise
    return reader


def keep(path: Path, bookmark: str, reader: sqlite3.Connection | None) -> None:
    """Copy what `reader` sees to the restore point `bookmark`, durably; then drop restore points that are too old."""
    target = _point(path, bookmark)
    part = target.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    if reader is None:
        part.touch(mode=0o600)
    else:
        with closing(reader), closing(sqlite3.connect(part)) as copy:
            reader.backup(copy)
    _sync(part)
    part.replace(target)
    _sync(path.parent)
    _prune(path, bookmark_ms(bookmark))


def list_bookmarks(path: Path) -> list[str]:
    """Return the bookmarks of the restore points that are kept, oldest first."""
    start = f"{path.stem}.at-"
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(start) and name.endswith(".sqlite")]
    except FileNotFoundError:
        return []
    return sorted(name.removeprefix(start).removesuffix(".sqlite") for name in names)


def order_restore(path: Path, bookmark: str, undo: str) -> None:
    """Note, durably, what the next load has to put in place.

    Raises:
        UsageError: no such restore point.
    """
    if bookmark not in list_bookmarks(path):
        raise UsageError(f"no restore point {bookmark!r}")
    order = path.with_suffix(".restore")
    part = path.with_suffix(".restore-part")
    part.write_text(json.dumps({"bookmark": bookmark, "undo": undo}))
    _sync(part)
    part.replace(order)
    _sync(path.parent)


def apply_restore(path: Path) -> None:
    """Put in place what `order_restore` noted, if anything; the file must not be open and must have no log.

    Raises:
        StorageCorrupt: the restore point is gone; the order is dropped and the file stays as it is.
    """
    order = path.with_suffix(".restore")
    if not order.exists():
        return
    wanted = json.loads(order.read_text())
    source = _point(path, wanted["bookmark"])
    if not source.exists():
        order.unlink()
        raise StorageCorrupt(f"restore point {wanted['bookmark']} is gone")
    if not _point(path, wanted["undo"]).exists():
        keep(path, wanted["undo"], pin(path))
    path.with_suffix(".restored").touch(mode=0o600)
    if source.stat().st_size == 0:
        path.unlink(missing_ok=True)
    else:
        part = path.with_suffix(".restoring")
        shutil.copyfile(source, part)
        with closing(sqlite3.connect(part)) as restored:
            restored.execute("PRAGMA journal_mode = WAL")
        _sync(part)
        part.replace(path)
    _sync(path.parent)
    order.unlink()
    _sync(path.parent)


def was_restored(path: Path) -> bool:
    """Return whether the file was restored and `settle_restore` has not been called since."""
    return path.with_suffix(".restored").exists()


def settle_restore(path: Path) -> None:
    """Forget that the file was restored."""
    path.with_suffix(".restored").unlink(missing_ok=True)
    _sync(path.parent)


def _point(path: Path, bookmark: str) -> Path:
    return path.with_name(f"{path.stem}.at-{bookmark}.sqlite")


def _prune(path: Path, now_ms: int) -> None:
    points = list_bookmarks(path)
    for bookmark in points[:-MAX_POINTS]:
        _point(path, bookmark).unlink(missing_ok=True)
    for bookmark in points[-MAX_POINTS:]:
        if bookmark_ms(bookmark) < now_ms - RETENTION_MS:
            _point(path, bookmark).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
