"""Two test hosts in network namespaces, joined by a veth pair: servers on one, clients on the other.

Loopback alone would not do for every server: libnice (Janus) gathers no loopback candidates. Needs root and iproute2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SERVER_HOST, CLIENT_HOST = "10.87.87.1", "10.87.87.2"
SERVER_HOST_V6, CLIENT_HOST_V6 = "fd87:8787::1", "fd87:8787::2"
SERVER_NAMESPACE, CLIENT_NAMESPACE = "torpor-test-server", "torpor-test-client"
SERVER_DEVICE, CLIENT_DEVICE = "test-s", "test-c"
_INSIDE = "TORPOR_ON_CLIENT_HOST"


@contextmanager
def both_hosts() -> Iterator[None]:
    """Make both hosts, and remove them at the end. One such pair at a time on a machine."""
    _remove()
    try:
        for name in (SERVER_NAMESPACE, CLIENT_NAMESPACE):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        server, client = (SERVER_DEVICE, "netns", SERVER_NAMESPACE), (CLIENT_DEVICE, "netns", CLIENT_NAMESPACE)
        _ip("link", "add", *server, "type", "veth", "peer", "name", *client)
        for name, device, addresses in (
            (SERVER_NAMESPACE, SERVER_DEVICE, (f"{SERVER_HOST}/24", f"{SERVER_HOST_V6}/64")),
            (CLIENT_NAMESPACE, CLIENT_DEVICE, (f"{CLIENT_HOST}/24", f"{CLIENT_HOST_V6}/64")),
        ):
            for address in addresses:
                flags = ("nodad",) if ":" in address else ()
                _ip("-n", name, "address", "add", address, "dev", device, *flags)
            _ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        _remove()


def on_client_host(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module` on the client host and return its exit code; the module calls `inside` to know."""
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)  # noqa: T201 (a command's answer)
        return 2
    with both_hosts():
        return _run_module(module, arguments).returncode


def run_on_client_host(module: str, arguments: Sequence[str] = ()) -> tuple[int, str]:
    """The same, with what it printed to both outputs."""
    with both_hosts():
        done = _run_module(module, arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout


def _run_module(module: str, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    command = ["ip", "netns", "exec", CLIENT_NAMESPACE, sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False, **options)  # noqa: S603 (ourselves)


def inside() -> bool:
    """Whether this process runs on the client host already."""
    return _INSIDE in os.environ


def server_command(command: list[str], *, core: int | None = 0) -> list[str]:
    """`command` on the server host, pinned to one core."""
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    return ["ip", "netns", "exec", SERVER_NAMESPACE, *pinned, *command]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)  # noqa: S603, S607 (our own words)


def _remove() -> None:
    for name in (SERVER_NAMESPACE, CLIENT_NAMESPACE):
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)  # noqa: S603, S607
