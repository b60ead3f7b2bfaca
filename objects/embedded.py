"""The default drivers: one process, one data folder, no services.

    <folder>/lock                                 held while a server runs: a second one refuses to start
    <folder>/boot                                 start counter; the upper half of every fencing epoch
    <folder>/alarms.sqlite                        `alarmstore`
    <folder>/objects/<namespace>/<aa>/<id>.sqlite(-wal)

The folder's name is the id's first byte, of a hash: a million objects are four thousand files a folder. Fewer objects
a folder would make a folder for nearly each of them, which costs as much as its file.

Commits arrive from the loop as "this file's log has something new". One thread takes all that have gathered, flushes
them, reports, and takes the next lot: the more objects write at once, the more share a flush. From `GROUP` files on one
`syncfs` flushes them all together.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import itertools
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from objects import history
from objects.alarmstore import SqliteAlarmStore
from objects.clock import SystemClock
from objects.errors import Fenced, StorageCorrupt, StorageError, StorageLocked
from objects.ids import ObjectId, ObjectKey
from objects.ports import Claim, Clock, Connections, LoadedFile, Ports
from objects.sqlite import connect

log = logging.getLogger("torpor.objects")

GROUP = 8
"""Files in one lot from which one `syncfs` replaces a flush for each."""
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Size of a log from which it is folded into its file while the object runs."""

_Settled = Callable[[Exception | None], None]


class DataFolder:
    """The folder that one running server owns.

    Raises:
        StorageLocked: another process runs on it.
        StorageError: it cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"data folder {root}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StorageLocked(f"data folder {root} is in use by another process") from error
        self.boot = self._count_start()

    def object_path(self, object_id: ObjectId) -> Path:
        """Return where the object's file is, or will be."""
        name = str(object_id)
        return self.root / "objects" / object_id.namespace / name[:2] / f"{name}.sqlite"

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def _count_start(self) -> int:
        counter = self.root / "boot"
        boot = int(counter.read_text()) + 1 if counter.exists() else 1
        part = self.root / "boot.part"
        part.write_text(str(boot))
        _sync(part)
        part.replace(counter)
        _sync(self.root)
        return boot


class LocalPlacement:
    """Everything runs here: the folder's lock keeps others out, so a claim cannot be lost while we live."""

    def __init__(self, folder: DataFolder) -> None:
        self._epochs = itertools.count(folder.boot << 32)
        self._claimed: dict[ObjectKey, Claim] = {}

    async def claim(self, object_id: ObjectId) -> Claim:
        """Become the owner.

        Raises:
            Fenced: claimed and not released, in this process.
        """
        if object_id.key in self._claimed:
            raise Fenced(f"{object_id.key} is running already")
        claim = self._claimed[object_id.key] = Claim(object_id, next(self._epochs))
        return claim

    def holds(self, claim: Claim) -> bool:
        """Return whether it has not been released."""
        return self._claimed.get(claim.object_id.key) == claim

    async def release(self, claim: Claim) -> None:
        """Give the object up."""
        if self.holds(claim):
            del self._claimed[claim.object_id.key]


class LocalEngine:
    """One SQLite file per object in a `DataFolder`, flushed in groups by a thread of its own."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._flusher = ThreadPoolExecutor(1, "torpor-flush")
        self._workers = ThreadPoolExecutor(4, "torpor-storage")
        self._root = os.open(folder.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._waiting: list[tuple[Path, _Settled]] = []
        self._flushing = False
        self._unborn: set[Path] = set()
        self._checkpointing: set[Path] = set()

    @property
    def workers(self) -> ThreadPoolExecutor:
        """Where files are opened and closed."""
        return self._workers

    def exists(self, object_id: ObjectId) -> bool:
        """Return whether the object has a file."""
        return self._folder.object_path(object_id).exists()

    async def load(self, claim: Claim) -> LoadedFile:
        """Make the file ready; see `StorageEngine.load`."""
        path = self._folder.object_path(claim.object_id)
        restored = False
        if path.exists() or path.with_suffix(".restore").exists():
            restored = await asyncio.get_running_loop().run_in_executor(self._workers, _prepare, path)
        if not path.exists():
            self._unborn.add(path)
        return LoadedFile(path, restored)

    def commit(self, claim: Claim, seq: int, alarm_at_ms: int | None, settled: _Settled) -> None:
        """Flush the object's log with the next lot; see `StorageEngine.commit`."""
        self._waiting.append((self._folder.object_path(claim.object_id), settled))
        if not self._flushing:
            self._flush_next()

    async def unload(self, claim: Claim) -> None:
        """Forget what is remembered of the file; closing it has folded its log."""
        self._unborn.discard(self._folder.object_path(claim.object_id))

    def mark(self, claim: Claim, bookmark: str, settled: _Settled) -> None:
        """Keep the committed state as a restore point; see `StorageEngine.mark`."""
        path = self._folder.object_path(claim.object_id)
        loop = asyncio.get_running_loop()
        try:
            reader = history.pin(path)
        except (OSError, sqlite3.Error) as error:
            failure = _explain(path, error)
            loop.call_soon(lambda: settled(failure))
            return
        future = loop.run_in_executor(self._workers, history.keep, path, bookmark, reader)

        def done(future: asyncio.Future[None]) -> None:
            error = future.exception()
            settled(None if error is None else _explain(path, error))

        future.add_done_callback(done)

    async def bookmarks(self, object_id: ObjectId) -> list[str]:
        """Return the restore points that are kept, oldest first."""
        path = self._folder.object_path(object_id)
        return await asyncio.get_running_loop().run_in_executor(self._workers, history.list_bookmarks, path)

    async def settle_restore(self, claim: Claim) -> None:
        """Forget that the file was restored; see `StorageEngine.settle_restore`."""
        path = self._folder.object_path(claim.object_id)
        await asyncio.get_running_loop().run_in_executor(self._workers, history.settle_restore, path)

    async def restore_next(self, claim: Claim, bookmark: str, undo: str) -> None:
        """Restore at the next load; see `StorageEngine.restore_next`."""
        path = self._folder.object_path(claim.object_id)
        await asyncio.get_running_loop().run_in_executor(self._workers, history.order_restore, path, bookmark, undo)

    def close(self) -> None:
        """End the threads; everything handed over is durable when this returns."""
        self._flusher.shutdown()
        self._workers.shutdown()
        os.close(self._root)

    def _flush_next(self) -> None:
        lot, self._waiting = self._waiting, []
        self._flushing = bool(lot)
        if not lot:
            return
        paths = {path for path, _ in lot}
        # A new file needs more than its log flushed: its first page, and the folders that name it. Its page cannot be
        # flushed through a descriptor of ours: closing that would drop the locks SQLite holds on the file.
        everything = len(paths) >= GROUP or not paths.isdisjoint(self._unborn)
        future = asyncio.get_running_loop().run_in_executor(self._flusher, self._flush, paths, everything)

        def done(future: asyncio.Future[dict[Path, Exception]]) -> None:
            failed = future.result()
            self._unborn -= paths - failed.keys()
            self._flush_next()
            for path, settled in lot:
                try:
                    settled(failed.get(path))
                except Exception:  # one object's trouble is not that of the others in the lot
                    log.exception("%s: after a commit", path.name)

        future.add_done_callback(done)

    def _flush(self, paths: set[Path], everything: bool) -> dict[Path, Exception]:
        failed: dict[Path, Exception] = {}
        if everything and (number := _sync_file_system(self._root)) != 0:
            error = StorageError(f"flushing the data folder: {os.strerror(number)}")
            return dict.fromkeys(paths, error)
        for path in paths:
            try:
                if not everything:
                    _sync_log(path)
                self._checkpoint_if_long(path)
            except OSError as failure:
                failed[path] = _explain(path, failure)
        return failed

    def _checkpoint_if_long(self, path: Path) -> None:
        if path in self._checkpointing:
            return
        try:
            size = _log(path).stat().st_size
        except FileNotFoundError:
            return
        if size > CHECKPOINT_BYTES:
            self._checkpointing.add(path)
            self._workers.submit(self._checkpoint, path)

    def _checkpoint(self, path: Path) -> None:
        try:
            with closing(connect(path, 5.0)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error:
            # The log goes on growing and the next flush tries again; a damaged file shows in the object's own use.
            return
        finally:
            self._checkpointing.discard(path)


class LocalDrivers:
    """Everything a host needs, from one data folder.

    Args:
        connections: where WebSockets live; None for a host without them.

    Raises:
        StorageError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, root: Path, *, connections: Connections | None = None, clock: Clock | None = None) -> None:
        self._folder = DataFolder(root)
        try:
            self._alarms = SqliteAlarmStore(root / "alarms.sqlite")
        except StorageError:
            self._folder.close()
            raise
        self._engine = LocalEngine(self._folder)
        self.ports = Ports(
            placement=LocalPlacement(self._folder),
            storage=self._engine,
            alarms=self._alarms,
            clock=clock or SystemClock(),
            connections=connections,
        )

    def close(self) -> None:
        """Finish what is under way and let another process have the folder; after `ObjectHost.stop`."""
        self._engine.close()
        self._alarms.close()
        self._folder.close()


def _prepare(path: Path) -> bool:
    try:
        log = _log(path)
        if log.exists() and log.stat().st_size > 0:
            # Left by a crash, maybe not flushed. Folding it in flushes it, so that nobody is told what a power cut
            # could still undo.
            with closing(connect(path, 5.0)) as connection:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    raise StorageLocked(f"{path.name} is in use by another process")
        history.apply_restore(path)
        return history.was_restored(path)
    except (OSError, sqlite3.Error) as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: BaseException) -> StorageError:
    if isinstance(error, StorageError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageCorrupt(f"{path.name}: {error}")
    if code == sqlite3.SQLITE_BUSY:
        return StorageLocked(f"{path.name}: {error}")
    return StorageError(f"{path.name}: {error}")


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _sync_log(path: Path) -> None:
    try:
        descriptor = os.open(_log(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Folded into the file meanwhile, which flushed it.
        return
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_syncfs() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int,)
    function.restype = ctypes.c_int
    return lambda descriptor: int(function(descriptor))


_syncfs = _load_syncfs()


def _sync_file_system(descriptor: int) -> int:
    """Flush everything on the file system of `descriptor`; return 0 or the error number."""
    if _syncfs is None:
        os.sync()
        return 0
    return 0 if _syncfs(descriptor) == 0 else ctypes.get_errno()
