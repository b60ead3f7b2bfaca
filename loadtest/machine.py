"""Where a run was made: what a report must say so that its figures mean anything."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_SOL_UDP, _UDP_SEGMENT = 17, 103


def describe() -> dict[str, Any]:
    """Machine, kernel, commit, versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "gso": gso(),
        "commit": commit(),
        "versions": versions(),
    }


def commit() -> str:
    """Short hash of HEAD, with `+` when tracked files differ from it; `unknown` outside a repository."""
    with suppress(OSError):
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=7"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.strip() or "unknown"
    return "unknown"


def versions() -> dict[str, str]:
    """Of what takes part in a measurement."""
    found = {"python": platform.python_version()}
    for package in ("torpor", "locust", "gevent", "uvloop", "picows", "websockets", "pylibsrtp"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def gso() -> bool:
    """Whether the kernel sends several datagrams as one (UDP GSO): without, media figures are worse."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(_SOL_UDP, _UDP_SEGMENT, 1200)
        except OSError:
            return False
    return True


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
