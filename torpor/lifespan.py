"""Start order, drain, stop order.

    bind TCP ─► start media ─► accept HTTP ─► serving
                                                │ first SIGTERM or SIGINT
                                                ▼
                          draining: /healthz 503, everything else goes on, for `shutdown.delay`
                                                ▼
           stop accepting ─► end event streams ─► finish requests, at most `shutdown.timeout` ─► close media ─► exit 0

A second signal at any time exits at once with 128 + its number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

from sfu.service import Sfu, SfuSettings
from torpor.addresses import announced_addresses
from torpor.app import build_app
from torpor.config import Settings
from torpor.errors import StartRefused
from torpor.figures import Figures
from torpor.health import Health
from torpor.http import HttpServer, listen

logger = logging.getLogger("torpor")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

Announce = Callable[[int, int | None], None]
"""Told the TCP and the UDP port (`None` without media) that are served."""


async def serve(settings: Settings, announce: Announce) -> None:
    """Run until a signal stops it.

    Args:
        settings: checked ones.
        announce: called once connections are accepted.

    Raises:
        StartRefused: unsafe settings, or an address that cannot be bound.
    """
    if reason := settings.refusal():
        raise StartRefused(reason)
    with _listening(settings) as listener:
        http_port = listener.getsockname()[1]
        async with _media(settings, http_port) as sfu:
            health, figures = Health(), Figures(sfu)
            app = build_app(settings, sfu, health=health, figures=figures)
            media_port = None if sfu is None else sfu.port
            server = HttpServer(app, settings, on_start=lambda: announce(http_port, media_port), on_stop=health.stop)
            async with _background(figures.measure_lag()), _signals(settings.shutdown.delay, health, server):
                await server.serve(sockets=[listener])
    logger.info("stopped")


def _listening(settings: Settings) -> socket.socket:
    try:
        return listen(settings.http)
    except OSError as error:
        raise StartRefused(f"cannot listen on {settings.http.host}, TCP port {settings.http.port}: {error}") from error


@asynccontextmanager
async def _media(settings: Settings, http_port: int) -> AsyncIterator[Sfu | None]:
    """The media side from start to close, or nothing when it is disabled."""
    if not settings.media.enabled:
        yield None
        return
    sfu = Sfu(media_settings(settings, http_port))
    try:
        try:
            await sfu.start()
        except OSError as error:
            where = ", ".join(settings.media_addresses)
            raise StartRefused(f"cannot listen on {where}, UDP port {sfu.settings.port}: {error}") from error
        candidates = ", ".join(sfu.settings.announced_addresses)
        logger.info("media", extra={"udp_port": sfu.port, "announced": candidates, "threads": sfu.settings.threads})
        yield sfu
    finally:
        await sfu.close()


def media_settings(settings: Settings, http_port: int) -> SfuSettings:
    """What the media side needs of the settings.

    Raises:
        StartRefused: there is no address to tell clients.
    """
    return SfuSettings(
        listen_addresses=settings.media_addresses,
        announced_addresses=announced_addresses(settings.media_addresses, settings.media.announced_addresses),
        port=http_port if settings.media.port is None else settings.media.port,
        threads=settings.media.threads or len(os.sched_getaffinity(0)),
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
async def _signals(delay: float, health: Health, server: HttpServer) -> AsyncIterator[None]:
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
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
