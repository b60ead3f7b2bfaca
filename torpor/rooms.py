"""The room side of the server, assembled: classes, objects and their storage, WebSockets that hibernate.

    uvicorn ──upgrade──▶ UpgradeProtocol ──▶ PartyRoutes ──▶ Upgrade.hand_to ──▶ SocketTable
    uvicorn ──request──▶ RoomRoutes ───────▶ PartyRoutes ──▶ ObjectHost ◀── Dispatcher ◀──┘

Start: lock and open the data folder, fire alarms, drive sockets. Stop, after HTTP has stopped: close WebSockets with
1012, wait for their handlers, let every object finish and write, give the folder back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hibernation._sockets.table import SocketTable
from hibernation.dispatcher import Dispatcher
from hibernation.endpoint import HandshakeSettings, UpgradeProtocol, websocket_protocol
from hibernation.manager import HibernationManager, SlowPolicy
from hibernation.service import SocketService
from objects.clock import SystemClock
from objects.embedded import LocalDrivers
from objects.errors import ObjectError
from objects.host import ObjectHost
from objects.limits import Limits
from partykit_compat import PartyRoutes, Server
from torpor.addresses import Networks
from torpor.config import Settings
from torpor.errors import StartRefused

logger = logging.getLogger("torpor.rooms")

SECRET_BYTES = 32
CLOSED_POLL = 0.02


@dataclass(frozen=True, slots=True)
class RoomStatus:
    """A room with an instance in memory or with connections."""

    party: str
    name: str | None
    """As the path has it; None if it is not known, as of an object without a name."""
    id: str
    connections: int
    awake: bool
    reasons: Mapping[str, int]
    """What keeps it in memory, by kind; nothing, and awake: it is about to leave."""


@dataclass(frozen=True, slots=True)
class RoomStats:
    """Figures for `/metrics`."""

    live: Mapping[str, int]
    """Zero each when nobody is there: what is held now, by kind."""
    sockets: Mapping[str, int]
    """Totals of the socket table."""
    refused: Mapping[str, int]
    """Upgrades refused, by the limit that they met: a setting's name."""
    parties: Mapping[str, Mapping[str, float]]
    """Totals by party, as `objects.metering.Meter.numbers`."""


class Rooms:
    """One server's rooms.

    Args:
        settings: checked ones.
        classes: party name to class.

    Raises:
        StartRefused: the data folder cannot be used, or another server uses it.
    """

    def __init__(self, settings: Settings, classes: Mapping[str, type[Server]]) -> None:
        rooms = settings.rooms
        self._settings = settings
        clock = SystemClock()
        table = SocketTable(
            max_sockets=rooms.connections_max,
            max_frame_bytes=rooms.message_max_bytes,
            max_message_bytes=rooms.message_max_bytes,
            queue_bytes=rooms.queue_max_bytes,
            message_timeout=rooms.message_timeout,
            ping_interval=rooms.ping_interval,
            idle_timeout=rooms.silence_timeout,
        )
        slow = SlowPolicy(rooms.queue_max_bytes, rooms.slow_clients)
        self._manager = HibernationManager(
            table,
            clock,
            slow=slow,
            max_connections=rooms.connections_per_room,
            max_per_address=rooms.connections_per_address,
        )
        try:
            self._drivers = LocalDrivers(rooms.folder, connections=self._manager, clock=clock)
        except ObjectError as error:
            raise StartRefused(f"rooms: {error}") from error
        try:
            secret = identity_secret(rooms.folder)
        except BaseException:
            self._drivers.close()
            raise
        limits = Limits(
            idle_s=rooms.idle_timeout,
            instances=rooms.awake_max,
            database_bytes=rooms.storage_max_bytes,
            stop_s=settings.shutdown.timeout,
            blocking_s=rooms.blocking_timeout or None,
        )
        self._host = ObjectHost(self._drivers.ports, secret=secret, limits=limits)
        self.routes = PartyRoutes(self._host, classes, env=room_environment(os.environ))
        self._dispatcher = Dispatcher(self._manager, self._host, messages_per_second=rooms.messages_per_second)
        self._service = SocketService(self._manager, self._dispatcher)
        self.parties = tuple(classes)

    def protocol(self) -> type[UpgradeProtocol]:
        """What takes over from a request for a WebSocket."""
        handshake = HandshakeSettings(
            rate_per_address=self._settings.rooms.handshakes_per_second,
            trusted_proxies=Networks(self._settings.http.trusted_proxies),
            deflate=self._settings.rooms.compression,
        )
        return websocket_protocol(self._service, handshake)

    async def start(self) -> None:
        """Begin to fire alarms, run crons and serve sockets, on the running loop."""
        self._host.start()
        self._service.start()
        await self.routes.start()
        if self._settings.parties:  # else it is the demo page's alone
            folder = self._settings.rooms.folder.resolve()
            logger.info("rooms", extra={"parties": ", ".join(self.parties), "folder": str(folder)})

    async def close(self) -> None:
        """Close every WebSocket, let handlers finish, make everything durable; when no request can come any more."""
        if self._service.started:
            table, rooms = self._service.table, self._settings.rooms
            await self._service.drain(over=table.counters()["rows"] // rooms.closes_per_second)
            try:
                async with asyncio.timeout(self._settings.shutdown.timeout):
                    while table.counters()["rows"]:  # noqa: ASYNC110  a last row tells nobody that it is the last
                        await asyncio.sleep(CLOSED_POLL)
            except TimeoutError:
                logger.warning("cut", extra={"connections": table.counters()["rows"]})
            await self._host.stop()
            self._service.stop()
        self._drivers.close()

    def statuses(self) -> Iterator[RoomStatus]:
        """Iterate over the rooms that are in memory or have connections."""
        awake = self._host.awake()
        for object_id, connections in self._manager.objects():
            if object_id.namespace not in self.parties:  # the crons' own
                continue
            reasons = awake.get(object_id.key)
            yield RoomStatus(
                object_id.namespace,
                object_id.name,
                str(object_id),
                connections,
                reasons is not None,
                reasons or {},
            )

    def live_counts(self) -> dict[str, int]:
        """What is held now, by kind; all zero after `close`."""
        counts = self._manager.counters()
        return {
            "rooms_awake": len(self._host.awake()),
            "rooms": counts["objects"],
            "room_connections": self._service.table.counters()["rows"],
            "room_upgrades": counts["upgrades"],
            "room_deliveries": self._dispatcher.lines,
        }

    def stats(self) -> RoomStats:
        """Figures, now."""
        totals = self._service.table.counters()
        ends = {"overloaded": self._dispatcher.overloaded, "flooded": self._dispatcher.flooded}
        return RoomStats(self.live_counts(), totals | ends, self._manager.refused, self._host.usage())


def identity_secret(folder: Path) -> bytes:
    """Return the secret that room ids are made with, made at the first start: with another, names lead to other rooms.

    Call while the folder is locked.

    Raises:
        StartRefused: the file is damaged, or cannot be read or written.
    """
    path = folder / "secret"
    try:
        return _read_secret(path) if path.exists() else _make_secret(path)
    except OSError as error:
        raise StartRefused(f"rooms: {path}: {error.strerror}") from error


def _make_secret(path: Path) -> bytes:
    secret = secrets.token_bytes(SECRET_BYTES)
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret.hex())
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return secret


def _read_secret(path: Path) -> bytes:
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise StartRefused(f"rooms: {path} is damaged: put the file from a backup back, or the rooms lose their data")
    return secret


def room_environment(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return what rooms get as `env`: the process's environment without the server's own settings and secrets."""
    return MappingProxyType({name: value for name, value in environment.items() if not name.startswith("TORPOR_")})
