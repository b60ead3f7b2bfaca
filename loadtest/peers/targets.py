"""Targets by name, as the command line has them, and what Locust must be told of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from loadtest.peers.coturn import CoturnServer
from loadtest.peers.hosts import CLIENT_HOST, SERVER_HOST, SERVER_NAMESPACE
from loadtest.peers.janus import JanusServer
from loadtest.peers.process import ServerProcess
from loadtest.peers.socketio import SocketIoServer
from loadtest.peers.torpor import TorporServer
from loadtest.peers.workerd import WorkerdServer

TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "rooms": ("torpor", "workerd", "socketio"),
    "media": ("torpor", "janus"),
    "turn": ("torpor", "coturn"),
}
"""Those that can be started here; an address is a target too."""
NEEDS_HOSTS: Final = frozenset({"janus"})
"""Targets that serve on test hosts only (`hosts`); what they are compared with then does so too."""


class TargetError(ValueError):
    """No such target for this part."""


@dataclass(slots=True)
class Target:
    """One server under load and how Locust is told of it."""

    name: str
    url: str
    server: ServerProcess | None = None
    """None for an address: it runs already, and its CPU and memory are not known."""
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Secrets go this way: others can read a command line."""


def target(part: str, name: str, *, core: int | None, on_hosts: bool) -> Target:
    """A target, not started.

    Args:
        part: rooms, media or turn.
        name: one of `TARGETS[part]`, or an `http(s)://` or `ws(s)://` address.
        core: what the server is pinned to.
        on_hosts: on the server's test host, else on loopback.

    Raises:
        TargetError: neither.
    """
    if "://" in name:
        if urlsplit(name).scheme not in ("http", "https", "ws", "wss") or not urlsplit(name).hostname:
            raise TargetError(f"{name!r} is no http:// or ws:// address")
        kind = ["--media-kind", "janus"] if part == "media" and name.startswith("ws") else []
        return Target(name, name.rstrip("/"), options=kind)
    if name not in TARGETS[part]:
        raise TargetError(f"no target {name!r} for {part}: {', '.join(TARGETS[part])}, or an address")
    netns = SERVER_NAMESPACE if on_hosts else None
    host = SERVER_HOST if on_hosts else "127.0.0.1"
    if name == "torpor":
        peers = {"TORPOR_TURN_ALLOW_PEERS": CLIENT_HOST} if on_hosts else {}
        torpor = TorporServer(host=host, core=core, netns=netns, environment=peers)
        secrets = {
            "TORPOR_APP_ID": torpor.app_id,
            "TORPOR_APP_SECRET": torpor.app_secret,
            "TORPOR_TURN_KEY_ID": torpor.turn_key_id,
            "TORPOR_TURN_KEY_TOKEN": torpor.turn_key_token,
        }
        return Target(name, torpor.url, torpor, environment=secrets)
    if name == "workerd":
        workerd = WorkerdServer(core=core)
        return Target(name, workerd.url, workerd)
    if name == "socketio":
        node = SocketIoServer(core=core)
        return Target(name, node.url, node, ["--dialect", node.dialect, "--room-path", node.room_path])
    if name == "janus":
        janus = JanusServer(core=core)
        return Target(name, janus.url, janus, ["--media-kind", "janus"])
    coturn = CoturnServer(host=host, core=core, netns=netns)
    options = ["--turn-server", f"{coturn.host}:{coturn.port}", "--turn-username", coturn.username]
    secret = {"LOADTEST_TURN_PASSWORD": coturn.password}
    return Target(name, f"http://{coturn.host}:{coturn.port}", coturn, options, secret)
