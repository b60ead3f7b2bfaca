"""Peers that Debian packages: installed when first wanted."""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = {
    "chromium": "chromium",
    "ip": "iproute2",
    "janus": "janus",
    "node": "nodejs",
    "npm": "npm",
    "turnserver": "coturn",
}
"""Program to the package it is in."""


class NotInstalled(RuntimeError):
    """A program is missing and could not be installed; the message has the command that would do it."""


def ensure_installed(*programs: str) -> None:
    """Have these programs on the path: by `apt-get install`, as root, for those that are missing.

    Raises:
        NotInstalled: not root, no apt-get, or it failed.
    """
    missing = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"missing: run {' '.join(command)}")
    print(f"» {' '.join(command)}", flush=True)  # noqa: T201 (a minute of silence needs a word)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for attempt in (command, ["apt-get", "update", "-qq"], command):
        done = subprocess.run(attempt, env=environment, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
        if done.returncode == 0 and attempt is command:
            return
    raise NotInstalled(f"failed: {' '.join(command)}")
