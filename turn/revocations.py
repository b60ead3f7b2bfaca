"""Credentials that were revoked before they expired: in memory and, with a file, across restarts.

Only digests are kept: a name may hold a custom identifier. The file is append-only, one `expiry digest` per line,
synced before a revocation is confirmed; it is rewritten without the expired ones when it is loaded, and after a write
that failed, which may have left half a line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


class Revocations:
    """Who is revoked until when. Entries end with the credential they name, so that the set is as small as can be."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._until: dict[str, float] = {}
        self._unsaved = False
        """The last write failed: the file lacks some, and may end in half a line."""

    def load(self, unix_time: float) -> None:
        """Read the file, if there is one, and drop what has expired from it.

        A line that was cut off by a crash was never confirmed to anybody, and is ignored.

        Raises:
            OSError: the file is there but cannot be read or rewritten.
        """
        if self._path is None or not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            expiry, _, digest = line.partition(" ")
            if expiry.isdecimal() and len(digest) == 64:
                self._until[digest] = float(expiry)
        self._forget(unix_time)
        self._rewrite(self._path)

    def add(self, username: str, expires_at: float, unix_time: float) -> None:
        """Revoke `username`; in force at once, and on disk when this returns.

        Raises:
            OSError: the file cannot be written; the revocation is in force until a restart, or until
                the next is added, which writes both.
        """
        self._forget(unix_time)
        digest = _digest(username)
        if expires_at <= unix_time or (digest in self._until and not self._unsaved):
            return
        self._until[digest] = expires_at
        if self._path is None:
            return
        whole, self._unsaved = self._unsaved, True
        if whole:
            self._rewrite(self._path)
        else:
            _write(self._path, os.O_APPEND, [_line(digest, expires_at)])
        self._unsaved = False

    def __contains__(self, username: str) -> bool:
        return bool(self._until) and _digest(username) in self._until

    def __len__(self) -> int:
        return len(self._until)

    def _rewrite(self, path: Path) -> None:
        fresh = path.with_name(path.name + ".new")
        _write(fresh, os.O_TRUNC, (_line(digest, until) for digest, until in self._until.items()))
        fresh.replace(path)

    def _forget(self, unix_time: float) -> None:
        self._until = {digest: until for digest, until in self._until.items() if until > unix_time}


def _digest(username: str) -> str:
    return hashlib.sha256(username.encode()).hexdigest()


def _line(digest: str, until: float) -> str:
    return f"{until:.0f} {digest}\n"


def _write(path: Path, how: int, lines: Iterable[str]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
