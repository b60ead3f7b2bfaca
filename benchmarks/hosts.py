"""Two test hosts in network namespaces, joined by a veth pair: servers on one, clients on the other.

Loopback alone would not do: libnice (Janus) gathers no loopback candidates. Needs root and iproute2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SERVER_HOST, CLIENT_HOST = "10.87.87.1", "10.87.87.2"
SERVER_NAMESPACE, CLIENT_NAMESPACE = "torpor-bench-server", "torpor-bench-client"
_INSIDE = "BENCH_ON_CLIENT_HOST"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def namespaces() -> Iterator[None]:
    """Make both hosts, and remove them at the end."""
    for name in (SERVER_NAMESPACE, CLIENT_NAMESPACE):
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
    try:
        for name in (SERVER_NAMESPACE, CLIENT_NAMESPACE):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip(
            "link",
            "add",
            "bench-s",
            "netns",
            SERVER_NAMESPACE,
            "type",
            "veth",
            "peer",
            "name",
            "bench-c",
            "netns",
            CLIENT_NAMESPACE,
        )
        for name, device, host in (
            (SERVER_NAMESPACE, "bench-s", SERVER_HOST),
            (CLIENT_NAMESPACE, "bench-c", CLIENT_HOST),
        ):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in (SERVER_NAMESPACE, CLIENT_NAMESPACE):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def on_client_host(module: str, arguments: list[str]) -> int:
    """Run `python -m module` on the client host and return its exit code; the module calls `inside` to know."""
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    with namespaces():
        return subprocess.run(
            ["ip", "netns", "exec", CLIENT_NAMESPACE, sys.executable, "-m", module, *arguments],
            env={**os.environ, _INSIDE: "1"},
            check=False,
        ).returncode


def inside() -> bool:
    """Whether this process runs on the client host already."""
    return _INSIDE in os.environ


def server_command(command: list[str], *, core: int | None = 0) -> list[str]:
    """`command` on the server host, pinned to one core."""
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    return ["ip", "netns", "exec", SERVER_NAMESPACE, *pinned, *command]
