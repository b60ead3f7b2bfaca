"""HTTP for objects: the only module here that knows Starlette.

@app.api_route("/rooms/{name}")
async def room(request: Request) -> Response:
    return await fetch(rooms.get_by_name(request.path_params["name"]), request)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from objects.errors import Disconnected, ObjectError, Overloaded
from objects.http import HttpRequest, HttpResponse
from objects.namespace import ObjectStub

log = logging.getLogger("torpor.objects")

# They belong to one connection (RFC 9110 §7.6.1), and framing is the server's business.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)


async def fetch(stub: ObjectStub, request: Request) -> Response:
    """Hand a request to an object's `fetch` handler and return its response; bodies are streamed both ways.

    An overloaded object answers 503 with `Retry-After`, one that was reset under way 503, an exception in its handler
    500 without details: those are in the log. A client that leaves in the middle of its body is `Disconnected` to
    whoever reads that, and no error of ours.
    """
    try:
        return to_response(await stub.fetch(to_request(request)))
    except Overloaded:
        return Response("The object is overloaded.", 503, {"retry-after": "1"}, "text/plain")
    except Disconnected:
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
    return HttpRequest(url, request.method, headers, _pieces(request), client)


def to_response(response: HttpResponse) -> Response:
    """Return an object's response for Starlette to send."""
    sent: Response
    if isinstance(response.body, bytes):
        sent = Response(response.body, response.status)
    else:
        sent = StreamingResponse(response.stream(), response.status)
    # Exactly the object's headers: repeated ones stay repeated.
    sent.raw_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers
        if name.lower() not in _HOP_BY_HOP and name.lower() != "content-length"
    ]
    if isinstance(response.body, bytes):
        sent.raw_headers.append((b"content-length", str(len(response.body)).encode()))
    return sent


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise Disconnected("the client left in the middle of its body") from None
