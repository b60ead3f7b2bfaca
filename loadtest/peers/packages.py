"""npm packages of the room servers compared, installed when first asked for; `pip install torpor` needs none of it.

They go into `npm/node_modules` beside this file, exactly as `npm/package-lock.json` says; later calls only look.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path

from loadtest.peers.debian import NotInstalled, ensure_installed

NPM = Path(__file__).parent / "npm"
INSTALL_TIMEOUT = 600.0
_STAMP = NPM / "node_modules" / ".torpor-lock"
_MACHINES = {"x86_64": ("x64", "64"), "aarch64": ("arm64", "arm64")}
"""How esbuild and workerd call a machine in the names of their packages."""


class PeerUnavailable(Exception):
    """A server to compare with cannot be had on this machine; the text says what is missing."""


def install() -> Path:
    """Return the folder `npm`, with its packages installed by lock file and the room for workerd bundled.

    Raises:
        PeerUnavailable: no node or npm, a machine that workerd is not built for, or npm failed.
    """
    try:
        ensure_installed("node", "npm")
    except NotInstalled as error:
        raise PeerUnavailable(str(error)) from error
    wanted = hashlib.sha256((NPM / "package-lock.json").read_bytes()).hexdigest()
    with (NPM / "package.json").open() as lock:  # two runs may start at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _STAMP.exists() or _STAMP.read_text() != wanted:
            _run(["npm", "ci", "--silent", "--no-audit", "--no-fund"])
            _STAMP.write_text(wanted)
        _run(
            [
                str(_binary("@esbuild/linux-{0}", "esbuild")),
                "load_room.js",
                "--bundle",
                "--format=esm",
                "--conditions=workerd,worker,browser",
                "--external:cloudflare:workers",
                "--log-level=warning",
                "--outfile=node_modules/.torpor/load_room.js",
            ]
        )
    return NPM


def workerd() -> Path:
    """Return the program itself, as npm ships it: no script of the package is run, nothing else is downloaded."""
    install()
    return _binary("@cloudflare/workerd-linux-{1}", "workerd")


def version(package: str) -> str:
    """Return the version of an npm package in the lock file."""
    lock = json.loads((NPM / "package-lock.json").read_text())
    return str(lock["packages"][f"node_modules/{package}"]["version"])


def _binary(package: str, program: str) -> Path:
    names = _MACHINES.get(platform.machine())
    if names is None or os.uname().sysname != "Linux":
        raise PeerUnavailable(f"npm has no {program} for {os.uname().sysname} on {platform.machine()}")
    return NPM / "node_modules" / package.format(*names) / "bin" / program


def _run(command: list[str]) -> None:
    try:
        subprocess.run(  # noqa: S603  # fixed words
            command, cwd=NPM, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        raise PeerUnavailable(
            f"{Path(command[0]).name} failed: {error.stderr.strip() or error.stdout.strip()}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable(f"{Path(command[0]).name} took over {INSTALL_TIMEOUT:g} s") from error
