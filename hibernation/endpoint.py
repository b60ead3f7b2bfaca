"""The handshake, as a WebSocket protocol class for uvicorn: `uvicorn.Config(ws=websocket_protocol(service))`.

`websockets`' sans-I/O `ServerProtocol` judges the request; the ASGI application decides, and nothing is read meanwhile.
On a decision the descriptor leaves the event loop's transport for the socket table (`dup`, then the transport is
dropped, which does not end the connection), and only a row is left:

    application calls                                     client gets
    ─────────────────                                     ───────────
    scope["extensions"]["torpor.upgrade"].hand_to(id)     what the object decides: 101, or an HTTP answer
    ….close(4001, "reason")                               101, then that close frame (an HTTP answer never reaches
                                                          a browser's code, a close code does)
    websocket.accept                                      101; a plain ASGI WebSocket, see `asgi.py`
    websocket.close, websocket.http.response.*            an HTTP answer

Under TLS there is no descriptor to park: the transport stays with the event loop and is joined to the table by a socket
pair (`_Relay`). Everything works the same, at the cost of two transports per connection; where idle connections are
many, let TLS end in front. Limits: size of the head (`websockets`: 128 lines of 8 KiB), time to decide, handshakes per
address. uvicorn itself reads the head; its own limits on that belong to whoever runs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Literal, cast
from urllib.parse import unquote

from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Origin

from hibernation._sockets.table import Event
from hibernation.admission import HandshakeRate, client_address
from hibernation.asgi import AsgiWebSocket
from hibernation.service import SocketService
from objects.ids import ObjectId
from objects.ports import ConnectionId, UpgradeAccepted, UpgradeAnswer, UpgradeRefused, UpgradeRequest

logger = logging.getLogger(__name__)

MAX_REASON_BYTES = 123
"""Of a close frame (RFC 6455 §5.5)."""

UPGRADE_EXTENSION = "torpor.upgrade"
"""In `scope["extensions"]`: the `Upgrade`."""

Headers = Sequence[tuple[str, str]]

_FAILED = UpgradeRefused(500, body=b"Internal Server Error\n")


@dataclass(frozen=True, slots=True)
class HandshakeSettings:
    """Limits and offers of the handshake."""

    decision_timeout: float = 30.0
    """Seconds the application, or the object it hands to, has for its decision; then 503."""
    rate_per_address: float = 100.0
    """Handshakes per second; beyond it 429. 0: no limit."""
    burst_per_address: int = 1000
    trusted_proxies: Container[str] = frozenset()
    """Addresses whose `X-Forwarded-For` is believed, for that rate and for what objects are told."""
    deflate: bool = False
    """Agree to permessage-deflate, without context takeover (a context would cost each idle connection 300 KB)."""
    allowed_origins: tuple[str, ...] | None = None
    """Values of `Origin` that may connect (else 403); requests without one may. None: all."""


class Upgrade:
    """One handshake, for the application to decide; each method decides it, and the first one counts.

    Attributes:
        url: as the client asked for it, path never decoded.
        headers: names in lower case.
        protocols: offered subprotocols, in order of preference.
        client: the peer's address, or None.
    """

    def __init__(
        self, protocol: UpgradeProtocol, url: str, headers: tuple[tuple[str, str], ...], protocols: tuple[str, ...]
    ) -> None:
        self.url = url
        self.headers = headers
        self.protocols = protocols
        self.client = protocol.client[0] if protocol.client else None
        self._protocol = protocol
        self._service = protocol.service
        self._connecting: asyncio.Task[UpgradeAccepted | UpgradeRefused] | None = None
        self._gone = False

    async def hand_to(self, object_id: ObjectId, *, refuse_with_close: bool = False) -> None:
        """Let an object decide, and give it the connection if it accepts. Returns when the client has its answer.

        A client that leaves meanwhile cancels the object's handler; if that had accepted already, the object is told
        of the end like of any other.

        Args:
            refuse_with_close: let a refusal of the object be 101 and a close (see `closing`) instead of an HTTP answer.

        Raises:
            RuntimeError: decided before, or the service has no dispatcher.
        """
        dispatcher, manager, table = self._service.dispatcher, self._service.manager, self._service.table
        if dispatcher is None:
            raise RuntimeError("the service serves no objects")
        if not manager.admit(self.client):
            self._protocol.refuse(429, b"Too many connections from this address\n")
            return
        handle = None
        try:
            handle = await self._protocol.park()
        finally:
            if handle is None:
                manager.leave(self.client)
        if handle is None:
            return
        connection_id = ConnectionId(handle)
        request = UpgradeRequest(connection_id, self.url, self.headers, self.protocols, self.client)
        self._service.owners[handle] = self
        manager.begin(request)
        self._connecting = asyncio.ensure_future(dispatcher.waker.connect(object_id, request))
        answer: UpgradeAnswer = UpgradeRefused(503, body=b"No decision in time\n")
        try:
            answer = await self._connecting
        except asyncio.CancelledError:
            if not self._gone:
                self._connecting.cancel()
                raise
        except Exception:
            logger.exception("the upgrade of %s failed", object_id.key)
            answer = _FAILED
        finally:
            del self._service.owners[handle]
            try:
                head = self._serialize(answer)
            except ValueError as error:
                logger.error("%s answered an upgrade with what cannot be sent: %s", object_id.key, error)
                answer, head = _FAILED, self._serialize(_FAILED)
            protocol = answer.protocol if isinstance(answer, UpgradeAccepted) else None
            accepted = manager.answered(connection_id, protocol) is not None
            if self._gone:
                if accepted:
                    dispatcher.closed(connection_id, 1006, "")
                else:
                    manager.forget(connection_id)
            elif isinstance(answer, UpgradeAccepted) and accepted:
                table.open(handle, head, self._service.now())
            else:
                if isinstance(answer, UpgradeAccepted):
                    logger.error("%s answered 101 without accepting the connection", object_id.key)
                    answer, head = _FAILED, self._serialize(_FAILED)
                manager.unlist(connection_id)
                if refuse_with_close:
                    table.open(handle, self._protocol.switching(None, ()), self._service.now())
                    AsgiWebSocket(self._service, handle).abandon(*closing(answer.status, answer.body))
                else:
                    table.refuse(handle, head)

    def _serialize(self, answer: UpgradeAnswer) -> bytes:
        if isinstance(answer, UpgradeAccepted):
            return self._protocol.switching(answer.protocol, answer.headers)
        return http_answer(answer.status, answer.headers, answer.body)

    async def close(self, code: int, reason: str = "") -> None:
        """Accept, then close at once with `code`: the way to tell a browser's code why.

        Raises:
            RuntimeError: decided before.
            ValueError: a code or reason that may not be sent.
        """
        websocket = await self._protocol.accept(None, ())
        if websocket is not None:
            websocket.abandon(code, reason)

    def receive(self, event: Event) -> None:
        """Take the only event a row can have before its answer: the client has left."""
        self._gone = True
        if self._connecting is not None:
            self._connecting.cancel()


class UpgradeProtocol(asyncio.Protocol):
    """What uvicorn makes for a request with `Upgrade: websocket`; see `websocket_protocol`.

    Args:
        config: uvicorn's, of which only the application and its root path are used.
        server_state: uvicorn's: open connections and running tasks.
        app_state: the lifespan's state, copied into the scope.
    """

    service: ClassVar[SocketService]
    settings: ClassVar[HandshakeSettings]
    rate: ClassVar[HandshakeRate]

    # uvicorn's objects, whose types are not imported: only `routes.py` and assembly know the server.
    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        self.client: tuple[str, int] | None = None
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_event_loop()
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._deflate = False
        self._decided = False
        self._connect_told = False
        self._websocket: AsgiWebSocket | None = None
        self._http: tuple[int, Headers, list[bytes]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # ── from the transport ──────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stop reading: what the client sends from here on is for the table."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        self._state.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.client = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) >= 2 else None

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone: dropped by `park`, or with the client, whose application is stopped then."""
        self._state.connections.discard(self)
        self._transport = None
        if not self._decided and self._task is not None:
            self._decided = True
            self._task.cancel()

    def shutdown(self) -> None:
        """Answer 503: uvicorn is stopping."""
        self._answer(http_answer(503, [("retry-after", "3")], b"Service restart\n"))

    def data_received(self, data: bytes) -> None:
        """Take the request that uvicorn read; it comes whole, once."""
        if self._task is not None or self._decided:
            return
        handshake = self._handshake()
        handshake.receive_data(data)
        request = next((event for event in handshake.events_received() if isinstance(event, Request)), None)
        if request is None:
            self._answer(b"".join(handshake.data_to_send()) or http_answer(400, [], b"Bad Request\n"))
            return
        if self.client is not None:
            forwarded = request.headers.get_all("X-Forwarded-For")
            address = client_address(self.client[0], forwarded, self.settings.trusted_proxies)
            self.client = address, self.client[1] if address == self.client[0] else 0
            if not self.rate.admit(address, self._loop.time()):
                self.service.manager.refused["handshakes_per_second"] += 1
                self._answer(http_answer(429, [("retry-after", "1")], b"Too many handshakes\n"))
                return
        response = handshake.accept(request)
        if response.status_code != 101:
            self._answer(response.serialize())
            return
        self._response = response
        self._deflate = any(
            isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits == 15
            for extension in handshake.extensions
        )
        if handshake.extensions and not self._deflate:  # a smaller window than zlib is called with here
            del response.headers["Sec-WebSocket-Extensions"]
        self._deadline = self._loop.call_later(self.settings.decision_timeout, self._too_late)
        self._task = self._loop.create_task(self._run(self._scope(request)))
        self._state.tasks.add(self._task)
        self._task.add_done_callback(self._state.tasks.discard)

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def park(self) -> int | None:
        """Move the connection into the table, undecided; returns its row, or None when it could not be moved.

        Raises:
            RuntimeError: decided before.
        """
        if self._decided:
            raise RuntimeError("the upgrade has been decided")
        self._decided = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        if transport.get_write_buffer_size():  # the answer to an earlier request on this connection
            self._refuse_on(transport, http_answer(503, [], b"Read the previous answer first\n"))
            return None
        descriptor = -1
        try:
            if transport.get_extra_info("ssl_object") is None:
                descriptor = os.dup(transport.get_extra_info("socket").fileno())
                handle = self.service.table.adopt(descriptor, self.service.now(), deflate=self._deflate)
                transport.abort()
            else:
                ours, theirs = socket.socketpair()
                descriptor = ours.detach()
                os.set_blocking(descriptor, False)
                handle = self.service.table.adopt(descriptor, self.service.now(), deflate=self._deflate)
                descriptor = -1
                await _Relay.join(self._loop, transport, theirs)
        except (OverflowError, OSError) as error:
            self.service.manager.refused["connections_max"] += 1
            if descriptor >= 0:
                os.close(descriptor)
            logger.warning("a connection could not be parked: %s", error)
            self._refuse_on(transport, http_answer(503, [("retry-after", "3")], b"No room\n"))
            return None
        self._state.connections.discard(self)
        return handle

    async def accept(self, protocol: str | None, headers: Headers) -> AsgiWebSocket | None:
        """Answer 101 and keep the connection for plain ASGI; None if the client has left."""
        handle = await self.park()
        if handle is None:
            return None
        websocket = AsgiWebSocket(self.service, handle)
        self.service.table.open(handle, self.switching(protocol, headers), self.service.now())
        return websocket

    def switching(self, protocol: str | None, headers: Headers) -> bytes:
        """Return the 101 answer.

        Raises:
            ValueError: a header that would end its line.
        """
        assert self._response is not None
        if protocol is not None:
            headers = [*headers, ("Sec-WebSocket-Protocol", protocol)]
        for name, value in headers:
            _check_header(name, value)
            self._response.headers[name] = value
        return self._response.serialize()

    def refuse(self, status: int, body: bytes) -> None:
        """Answer with a status that may change by itself, unless decided before."""
        self._answer(http_answer(status, [("retry-after", "5")], body))

    def _answer(self, answer: bytes) -> None:
        """Decide with an HTTP answer, unless decided before."""
        if not self._decided:
            self._decided = True
            if self._transport is not None:
                self._refuse_on(self._transport, answer)

    def _refuse_on(self, transport: asyncio.Transport, answer: bytes) -> None:
        transport.write(answer)
        transport.close()

    def _too_late(self) -> None:
        if self._task is not None and self._websocket is None:
            self._task.cancel()
            self._answer(http_answer(503, [("retry-after", "3")], b"No decision in time\n"))

    def _handshake(self) -> ServerProtocol:
        origins = self.settings.allowed_origins
        return ServerProtocol(
            origins=None if origins is None else [None, *(Origin(origin) for origin in origins)],
            extensions=[
                ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)
            ]
            if self.settings.deflate
            else None,
            logger=logger,
        )

    # ── the application ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, scope: dict[str, Any]) -> None:
        try:
            await self._config.loaded_app(scope, self._receive, self._send)
        except OSError:
            logger.debug("the application met a closed WebSocket", exc_info=True)
        except Exception:
            logger.exception("the application failed in a WebSocket")
            self._answer(http_answer(500, [], b"Internal Server Error\n"))
            if self._websocket is not None:
                self._websocket.close(1011, "internal error")
        else:
            self._answer(http_answer(500, [], b"Internal Server Error\n"))
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            if self._websocket is not None:
                self._websocket.abandon()

    async def _receive(self) -> dict[str, Any]:
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        if self._websocket is not None:
            return await self._websocket.next_message()
        return {"type": "websocket.disconnect", "code": 1006, "reason": ""}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if self._websocket is not None:
            await self._send_open(kind, message)
        elif kind == "websocket.accept":
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]
            self._websocket = await self.accept(message.get("subprotocol"), headers)
            if self._websocket is None:
                raise OSError("the client has left")
        elif kind == "websocket.close":
            self._answer(http_answer(403, [], b""))
        elif kind == "websocket.http.response.start":
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]
            self._http = (message["status"], headers, [])
        elif kind == "websocket.http.response.body" and self._http is not None:
            status, head, body = self._http
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._answer(http_answer(status, head, b"".join(body)))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r} before the upgrade is decided")

    async def _send_open(self, kind: str, message: dict[str, Any]) -> None:
        assert self._websocket is not None
        if kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            await self._websocket.send(text if text is not None else bytes(data or b""))
        elif kind == "websocket.close":
            self._websocket.close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r} on an open WebSocket")

    def _scope(self, request: Request) -> dict[str, Any]:
        assert self._transport is not None
        scheme: Literal["ws", "wss"] = "wss" if self._transport.get_extra_info("ssl_object") is not None else "ws"
        raw_path, _, query = request.path.partition("?")
        headers = tuple((name.lower(), value) for name, value in request.headers.raw_items())
        host = next((value for name, value in headers if name == "host"), "localhost")
        protocols = tuple(
            token.strip()
            for value in request.headers.get_all("Sec-WebSocket-Protocol")
            for token in value.split(",")
            if token.strip()
        )
        sockname = self._transport.get_extra_info("sockname")
        root_path: str = self._config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": scheme,
            "server": sockname[:2] if isinstance(sockname, tuple) else (str(sockname), None),
            "client": self.client,
            "root_path": root_path,
            "path": root_path + unquote(raw_path),
            "raw_path": (root_path + raw_path).encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "subprotocols": list(protocols),
            "state": self._app_state.copy(),
            "extensions": {
                "websocket.http.response": {},
                UPGRADE_EXTENSION: Upgrade(self, f"{scheme}://{host}{request.path}", headers, protocols),
            },
        }


class _Relay(asyncio.Protocol):
    """One half of the joint between a TLS transport and the table: what one side reads, the other writes."""

    def __init__(self) -> None:
        self._other: asyncio.Transport | None = None

    @classmethod
    async def join(cls, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, inner: socket.socket) -> None:
        """Couple `transport` and the socket `inner`, each with the other's backpressure; ends pass on, too."""
        inner.setblocking(False)
        outer_half, inner_half = cls(), cls()
        inner_half._other = transport
        inner_transport, _ = await loop.create_connection(lambda: inner_half, sock=inner)
        outer_half._other = inner_transport
        transport.set_protocol(outer_half)
        if transport.is_closing():
            inner_transport.close()
        else:
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self._other is not None:
            self._other.write(data)

    def pause_writing(self) -> None:
        """This side is full: the other must not read."""
        if self._other is not None and not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._other is not None and not self._other.is_closing():
            self._other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of one side is the end of the other, after what was written to it."""
        if self._other is not None:
            self._other.close()
            self._other = None


def websocket_protocol(service: SocketService, settings: HandshakeSettings | None = None) -> type[UpgradeProtocol]:
    """Return the protocol class to give to `uvicorn.Config(ws=...)`, bound to a service that has been started."""
    settings = settings or HandshakeSettings()
    rate = HandshakeRate(settings.rate_per_address, settings.burst_per_address)
    return type("BoundUpgradeProtocol", (UpgradeProtocol,), {"service": service, "settings": settings, "rate": rate})


def closing(status: int, body: bytes) -> tuple[int, str]:
    """Return the close code and reason that stand for a refusal: 4000 plus the status, and the body's beginning."""
    return 4000 + status, body[:MAX_REASON_BYTES].decode("utf-8", "ignore").strip()


def http_answer(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """Serialize an HTTP answer after which the connection ends.

    Raises:
        ValueError: a header that would end its line.
    """
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}"]
    names = set()
    for name, value in headers:
        _check_header(name, value)
        if name.lower() not in ("content-length", "connection", "transfer-encoding"):
            names.add(name.lower())
            lines.append(f"{name}: {value}")
    if body and "content-type" not in names:
        lines.append("content-type: text/plain; charset=utf-8")
    lines += [f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def _check_header(name: str, value: str) -> None:
    if any(mark in name + value for mark in "\r\n\0"):
        raise ValueError(f"header {name!r} holds a line break")
