"""uvicorn, with the bounds it does not have and a shutdown in our order.

`HttpProtocol` bounds what a peer may make us hold outside a handler: connections, bytes and time of a request head,
answers that are not read. `HttpServer` leaves signals to `lifespan.py` and ends long answers before it waits for
short ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from torpor.config import HttpSettings, Settings
from torpor.edge import envelope

SEND_TIMEOUT = 10.0
"""A peer that takes nothing of an answer for this long is cut off."""

BACKLOG = 2048

PIPELINE_MAX = 16
"""Requests a connection may have sent ahead of its answers. No browser sends any."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. The head of each request is bounded in bytes and time, an unread answer in time.

    A body is the handler's business.

    Args:
        limits: the bounds.
        args, options: as uvicorn passes them.
    """

    def __init__(self, *args: Any, limits: HttpSettings, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Accept, unless too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections_max:
            transport.abort()
        else:
            self._start_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers with the connection."""
        self._end_head()
        self._end_send()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; 431 when a head is larger than allowed.

        What arrives in one read is at most 256 KiB, so a head is measured after its read, not byte by byte.
        """
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.header_max_bytes and not self.transport.is_closing():
            self._refuse(431, "headers_too_large", "the request head is too large")

    def on_message_begin(self) -> None:
        """A head begins, maybe in the segment that ended the request before."""
        if self._head_timer is None:
            self._start_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole: its handler starts, or waits for those of earlier requests."""
        self._end_head()
        if len(self.pipeline) >= PIPELINE_MAX:
            self.transport.abort()
            raise OverflowError("too many requests without waiting for answers")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole: what comes next is a head."""
        super().on_message_complete()
        self._in_head = True

    def pause_writing(self) -> None:
        """The peer does not read: it has some time to begin again."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._end_send()
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; without this, what it leaves here would wait for the garbage collector."""
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]  # as uvicorn does at the end; it holds our methods

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; at once if its peer does not even read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Not HTTP: answer in the API's envelope and close."""
        self._refuse(400, "decoding_error", msg)

    def _start_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._limits.header_timeout, self.transport.abort)

    def _end_head(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_send(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _refuse(self, status: int, code: str, description: str) -> None:
        if self.transport.is_closing():
            return
        body = envelope(code, description)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


class DatedState(ServerState):
    """uvicorn's state, whose `Date` header is made when an answer needs it and not by a clock that never rests."""

    def __init__(self) -> None:
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer."""
        now = int(time.time())
        if now != self._second:
            self._second, self._headers = now, [(b"date", formatdate(now, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Ours is made anew."""


class HttpServer(uvicorn.Server):
    """uvicorn's server inside our process: no signal handlers of its own, and no wakes while nothing happens.

    Args:
        app: what it serves.
        settings: limits, TLS, proxies, how long to drain.
        on_start: called once connections are accepted.
        on_stop: called once they are not any more, before requests in flight are waited for.
        upgrades: protocol class that takes over from a request for a WebSocket; without it such a request is answered
            like any other.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
        upgrades: type[asyncio.Protocol] | None = None,
    ) -> None:
        http = settings.http
        config = uvicorn.Config(
            app,
            # A class to uvicorn's type, a callable that makes instances to uvicorn.
            http=cast(type[asyncio.Protocol], functools.partial(HttpProtocol, limits=http)),
            ws=upgrades or "none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(http.trusted_proxies),
            forwarded_allow_ips=list(http.trusted_proxies) or None,
            ssl_certfile=http.tls_certificate,
            ssl_keyfile=http.tls_key,
            backlog=BACKLOG,
            timeout_keep_alive=http.keep_alive_timeout,
            timeout_graceful_shutdown=settings.shutdown.timeout,
        )
        self._stop = asyncio.Event()
        super().__init__(config)
        self.server_state = DatedState()
        self._on_start = on_start
        self._on_stop = on_stop

    def reload_certificate(self) -> None:
        """Read certificate and key again; connections that are open go on.

        Raises:
            OSError, ssl.SSLError: the files cannot be used; the old ones stay in force.
        """
        certificate, key = self.config.ssl_certfile, self.config.ssl_keyfile
        if isinstance(self.config.ssl, ssl.SSLContext) and certificate is not None:
            # A context that refused a key would have the new certificate with the old one: tried on another one first.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.config.ssl):
                context.load_cert_chain(certificate, key)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: `lifespan.py` decides."""
        yield

    @property
    def should_exit(self) -> bool:
        """Set it to stop."""
        return self._stop.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._stop.set()

    async def main_loop(self) -> None:
        """Return when it is to stop."""
        await self._stop.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers that never end by themselves, then drain and close."""
        self._on_stop()
        await super().shutdown(sockets)


def listen(settings: HttpSettings) -> socket.socket:
    """The listening TCP socket; connections wait in its backlog until the server accepts.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
