"""Start order, drain, stop order.

    bind TCP ─► start media ─► start TURN ─► load and start rooms ─► accept HTTP ─► serving
                                                │ first SIGTERM or SIGINT
                                                ▼
                          draining: /healthz 503, everything else goes on, for `shutdown.delay`
                                                ▼
           stop accepting, new relays too ─► end event streams ─► finish requests, at most `shutdown.timeout`
                                                │
                                                ▼
                          close rooms: WebSockets with 1012, then what their handlers wrote is made durable
                                                ▼
                          close media: its goodbyes still pass the relays ─► close TURN ─► exit 0

A second signal at any time exits at once with 128 + its number. SIGHUP reads certificates and peer policy again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from partykit_compat import Server
from sfu.service import Sfu, SfuSettings
from torpor.addresses import announced_addresses
from torpor.app import build_app
from torpor.config import Settings
from torpor.demo import PARTY, DemoRoom
from torpor.errors import SettingError, StartRefused
from torpor.figures import Figures
from torpor.health import Health
from torpor.http import HttpServer, listen
from torpor.parties import load_parties
from torpor.relay import media_exchange, media_threads, start_turn
from torpor.rooms import Rooms
from turn.errors import ConfigurationError
from turn.service import TurnService

logger = logging.getLogger("torpor")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

RELAY_GOODBYE = 0.05
"""Relays stay this long after the media side has said goodbye through them."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What is served: TCP for HTTP, UDP for media, UDP and TCP for TURN. `None`: not served."""

    http: int
    media: int | None = None
    turn: int | None = None


Announce = Callable[[Ports], None]


async def serve(settings: Settings, announce: Announce, read_again: Callable[[], Settings]) -> None:
    """Run until a signal stops it.

    Args:
        settings: checked ones.
        announce: called once connections are accepted.
        read_again: the settings as they are now in file and environment, for SIGHUP; may raise `SettingError`.

    Raises:
        StartRefused: unsafe settings, or an address that cannot be bound.
    """
    if reason := settings.refusal():
        raise StartRefused(reason)
    with _listening(settings) as listener:
        http_port = listener.getsockname()[1]
        async with _planes(settings, http_port) as (sfu, turn), _rooms(settings) as rooms:
            health, figures = Health(), Figures(sfu, turn, rooms)
            app = build_app(settings, sfu, turn, rooms, health=health, figures=figures)
            ports = Ports(http_port, sfu.port if sfu else None, turn.port if turn else None)

            def stop_accepting() -> None:
                health.stop()
                if turn is not None:
                    turn.drain()

            server = HttpServer(
                app,
                settings,
                on_start=lambda: announce(ports),
                on_stop=stop_accepting,
                upgrades=rooms.protocol() if rooms else None,
            )

            def reload() -> None:
                _reload_certificates(server, turn)
                if turn is not None:
                    _reload_peers(turn, read_again)

            async with _background(figures.measure_lag()), _signals(settings.shutdown.delay, health, server, reload):
                await server.serve(sockets=[listener])
    logger.info("stopped")


def _listening(settings: Settings) -> socket.socket:
    try:
        return listen(settings.http)
    except OSError as error:
        raise StartRefused(f"cannot listen on {settings.http.host}, TCP port {settings.http.port}: {error}") from error


@asynccontextmanager
async def _planes(settings: Settings, http_port: int) -> AsyncIterator[tuple[Sfu | None, TurnService | None]]:
    """The media side and TURN from start to close; `None` for what is disabled. Nothing is left of them afterwards."""
    media_end, relay_end = media_exchange(settings)
    sfu = Sfu(media_settings(settings, http_port), exchange=media_end) if settings.media.enabled else None
    turn = None
    try:
        if sfu is not None:
            await _start_media(settings, sfu)
        if settings.turn_enabled:
            turn = await start_turn(settings, sfu, relay_end)
        yield sfu, turn
    finally:
        if sfu is not None:
            await sfu.close()
        if turn is not None:
            if turn.live_counts()["turn_allocations"]:
                await asyncio.sleep(RELAY_GOODBYE)
            await turn.close()
        live = (sfu.live_counts() if sfu else {}) | (turn.live_counts() if turn else {})
        if left := {kind: count for kind, count in live.items() if count}:
            logger.error("left behind", extra=left)


@asynccontextmanager
async def _rooms(settings: Settings) -> AsyncIterator[Rooms | None]:
    """The room side from start to close; `None` without parties, of which the demo page has one."""
    demo: dict[str, type[Server]] = {PARTY: DemoRoom} if settings.demo_enabled else {}
    if not settings.parties and not demo:
        yield None
        return
    with ExitStack() as stack:
        if not settings.parties:  # the demo's stores nothing: several servers may run in one place
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="torpor-")))
            settings = replace(settings, rooms=replace(settings.rooms, folder=folder))
        async with _running(Rooms(settings, {**demo, **load_parties(settings.parties)})) as rooms:
            yield rooms


@asynccontextmanager
async def _running(rooms: Rooms) -> AsyncIterator[Rooms]:
    try:
        await rooms.start()
        yield rooms
    finally:
        await rooms.close()
        if left := {kind: count for kind, count in rooms.live_counts().items() if count}:
            logger.error("left behind", extra=left)


async def _start_media(settings: Settings, sfu: Sfu) -> None:
    try:
        await sfu.start()
    except OSError as error:
        where = ", ".join(settings.media_addresses)
        raise StartRefused(f"cannot listen on {where}, UDP port {sfu.settings.port}: {error}") from error
    candidates = ", ".join(sfu.settings.announced_addresses)
    logger.info("media", extra={"udp_port": sfu.port, "announced": candidates, "threads": sfu.settings.threads})


def media_settings(settings: Settings, http_port: int) -> SfuSettings:
    """What the media side needs of the settings.

    Raises:
        StartRefused: there is no address to tell clients.
    """
    return SfuSettings(
        listen_addresses=settings.media_addresses,
        announced_addresses=announced_addresses(settings.media_addresses, settings.media.announced_addresses),
        port=http_port if settings.media.port is None else settings.media.port,
        threads=media_threads(settings),
        sessions_max=settings.media.sessions_max,
        event_queue_max=settings.events.queue_max,
    )


@asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _signals(delay: float, health: Health, server: HttpServer, reload: Callable[[], None]) -> AsyncIterator[None]:
    """While inside, the first signal drains and then stops the server; the next one ends the process."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    def receive(number: signal.Signals) -> None:
        if health.draining:
            os._exit(128 + number)
        logger.info("draining", extra={"signal": number.name, "delay": delay})
        health.drain()
        loop.call_later(delay, stop)

    for number in SIGNALS:
        loop.add_signal_handler(number, receive, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (*SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _reload_certificates(server: HttpServer, turn: TurnService | None) -> None:
    for where, reload in (("http", server.reload_certificate), ("turn", turn.reload_certificate if turn else None)):
        if reload is None:
            continue
        try:
            reload()
        except (OSError, ConfigurationError) as error:  # an ssl.SSLError is an OSError
            logger.error("certificates", extra={"where": where, "kept": "old", "reason": str(error)})
        else:
            logger.info("certificates", extra={"where": where, "kept": "new"})


def _reload_peers(turn: TurnService, read_again: Callable[[], Settings]) -> None:
    try:
        own = read_again().turn
        turn.reload_peers(allow=own.allow_peers, deny=own.deny_peers, allow_loopback=own.allow_loopback_peers)
    except (SettingError, ConfigurationError) as error:
        logger.error("peers", extra={"kept": "old", "reason": str(error)})
    else:
        logger.info("peers", extra={"kept": "new"})
