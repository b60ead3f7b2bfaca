"""HTTP for objects: the only module here that knows Starlette.

@app.api_route("/rooms/{name}")
async def room(request: Request) -> Response:
    return await fetch(rooms.get_by_name(request.path_params["name"]), request)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from objects.errors import Disconnected, ObjectError, Overloaded
from objects.http import HttpRequest, HttpResponse
from objects.namespace import ObjectStub

log = logging.getLogger("torpor.objects")

# They belong to one connection (RFC 9110 §7.6.1), and framing is the server's business.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)

_INBOUND = "torpor.inbound"  # in a scope: what its response must share with the reader of its body


async def fetch(stub: ObjectStub, request: Request | HttpRequest) -> Response:
    """Hand a request to an object's `fetch` handler and return its response; bodies are streamed both ways.

    An overloaded object answers 503 with `Retry-After`, one that was reset under way 503, an exception in its handler
    500 without details: those are in the log. A client that leaves in the middle of its body is `Disconnected` to
    whoever reads that, and no error of ours.
    """
    try:
        plain = to_request(request) if isinstance(request, Request) else request
        return to_response(await stub.fetch(plain))
    except Overloaded:
        return Response("The object is overloaded.", 503, {"retry-after": "1"}, "text/plain")
    except Disconnected as error:
        log.debug("%s: fetch ended: %s", stub.id.key, error)
        return Response("The object is not available.", 503, {"retry-after": "1"}, "text/plain")
    except ObjectError as error:
        log.error("%s: fetch failed: %s", stub.id.key, error)
    except Exception:
        log.exception("%s: fetch handler raised", stub.id.key)
    return Response("The object failed to answer.", 500, media_type="text/plain")


def to_request(request: Request) -> HttpRequest:
    """Return a request as objects see it: the path exactly as it was sent, header names in lower case."""
    scope = request.scope
    host = request.headers.get("host", "localhost")
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    url = f"{scope['scheme']}://{host}{raw_path.decode('latin-1')}"
    if query:
        url += f"?{query.decode('latin-1')}"
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    client = None if request.client is None else request.client.host
    inbound = scope[_INBOUND] = _Inbound(request.receive)
    return HttpRequest(url, request.method, headers, inbound.pieces(), client)


def to_response(response: HttpResponse) -> Response:
    """Return an object's response for Starlette to send."""
    sent: Response
    if isinstance(response.body, bytes):
        sent = Response(response.body, response.status)
    else:
        sent = _Streamed(response.stream(), response.status)
    # Exactly the object's headers: repeated ones stay repeated.
    sent.raw_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers
        if name.lower() not in _HOP_BY_HOP and name.lower() != "content-length"
    ]
    if isinstance(response.body, bytes):
        sent.raw_headers.append((b"content-length", str(len(response.body)).encode()))
    return sent


class _Inbound:
    """A request's messages for two who want them: its reader, and the response, which ends when the client has left.

    A response that streams would otherwise take pieces of a body that is still being read. What it meets of the body it
    keeps for the reader, one message at most, and looks no further until that is taken.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._turn = asyncio.Lock()
        self._kept: Message | None = None
        self.gone = False
        """Whether the client was seen to have left."""
        self._whole = False
        self._taken = asyncio.Event()

    async def read(self) -> Message:
        """Return the next message, for the reader of the body."""
        if self._kept is None:
            async with self._turn:
                if self._kept is None:
                    return await self._next()
        message, self._kept = self._kept, None
        self._taken.set()
        return message

    async def left(self) -> Message:
        """Return when the client has left."""
        while True:
            async with self._turn:
                message = await self._next()
                if message["type"] == "http.disconnect":
                    return message
                self._kept = message
                self._taken.clear()
            if not self._whole:
                await self._taken.wait()

    async def _next(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self._whole = not message.get("more_body", False)
        return message

    async def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the body."""
        more = True
        while more:
            message = await self.read()
            if message["type"] == "http.disconnect":
                raise Disconnected("the client left in the middle of its body")
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                yield piece


class _Streamed(StreamingResponse):
    """A response in pieces, while the request's body may still be read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inbound: _Inbound | None = scope.get(_INBOUND)
        try:
            await super().__call__(scope, receive if inbound is None else inbound.left, send)
        except Disconnected:
            if inbound is None or not inbound.gone:
                raise
