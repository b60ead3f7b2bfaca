"""HTTP requests and responses as plain values: what `fetch` handlers take and return.

They know no web framework (`fetch` translates) and can cross a process boundary: a body is bytes, or an asynchronous
iterator of bytes that is consumed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as shortly
from typing import Any

from objects.errors import LimitExceeded, UsageError

MAX_BODY_BYTES = 32 * 1024 * 1024
"""The most that `HttpRequest.read` and `HttpResponse.read` gather in memory."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

Headers = tuple[tuple[str, str], ...]
Body = bytes | AsyncIterable[bytes]


class _Message:
    body: Body
    headers: Headers

    def header(self, name: str, default: str | None = None) -> str | None:
        """Return the first header of this name, whatever its case."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), default)

    async def stream(self) -> AsyncIterator[bytes]:
        """Iterate over the body's pieces as they come; once."""
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
        else:
            async for chunk in self.body:
                yield chunk

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            LimitExceeded: more than 32 MiB.
        """
        parts, size = [], 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise LimitExceeded("a body read into memory, in bytes", MAX_BODY_BYTES)
            parts.append(chunk)
        return b"".join(parts)

    async def text(self) -> str:
        """Return the whole body as UTF-8 text; bytes that are none become U+FFFD."""
        return (await self.read()).decode("utf-8", "replace")

    async def json(self) -> Any:
        """Return the whole body parsed as JSON."""
        return json.loads(await self.read())


@dataclass(frozen=True, slots=True)
class HttpRequest(_Message):
    """A request to an object."""

    url: str
    method: str = "GET"
    headers: Headers = ()
    """Names in lower case when the request came from a network."""
    body: Body = b""
    client: str | None = None
    """Address of whoever sent it, if it came from a network."""


@dataclass(frozen=True, slots=True)
class HttpResponse(_Message):
    """The answer of an object."""

    body: Body = b""
    status: int = 200
    headers: Headers = field(default=())

    @classmethod
    def of(
        cls, content: object, status: int = 200, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> HttpResponse:
        """Return a response with text, bytes, or anything else as JSON.

        Raises:
            UsageError: a status outside 200 to 599.
        """
        if not 200 <= status <= 599:
            raise UsageError(f"an HTTP status is 200 to 599, not {status}")
        given = tuple(headers.items() if isinstance(headers, Mapping) else headers)
        if isinstance(content, bytes):
            kind, body = "application/octet-stream", content
        elif isinstance(content, str):
            kind, body = "text/plain; charset=utf-8", content.encode()
        else:
            kind, body = "application/json", json.dumps(content, separators=(",", ":")).encode()
        if not any(name.lower() == "content-type" for name, _ in given):
            given = (("content-type", kind), *given)
        return cls(body, status, given)


def is_token(text: str) -> bool:
    """Return whether HTTP allows `text` as a name: of a header, of a subprotocol (RFC 9110 §5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def check_response(answer: object, source: str) -> HttpResponse:
    """Return what `source`, a method of user code, answered, if it can be sent.

    Raises:
        UsageError: it is no `HttpResponse`, or one with a status, header or body that HTTP does not have.
    """
    if not isinstance(answer, HttpResponse):
        raise UsageError(f"{source} returned {shortly(answer)} ({type(answer).__name__}), not an HttpResponse")
    if problem := _problem(answer):
        raise UsageError(f"{source} returned an HttpResponse with {problem}")
    return answer


def check_request(request: HttpRequest, source: str) -> HttpRequest:
    """Return a request that `source` made, if it can be passed on.

    Raises:
        UsageError: its method, URL or headers are not text.
    """
    texts: list[Any] = [request.method, request.url]
    try:
        texts += [text for name, value in request.headers for text in (name, value)]
        for text in texts:
            str.encode(text)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} returned an HttpRequest with what is no text: {error}") from error
    return request


def _problem(response: Any) -> str | None:
    if not isinstance(response.status, int) or not 200 <= response.status <= 599:
        return f"the status {shortly(response.status)}, which is not 200 to 599"
    if not isinstance(response.body, bytes | AsyncIterable):
        return f"a body of type {type(response.body).__name__}, neither bytes nor an asynchronous iterable of them"
    if not isinstance(response.headers, tuple | list):
        return f"headers of type {type(response.headers).__name__}, not a tuple of pairs"
    return next((problem for header in response.headers if (problem := _header_problem(header))), None)


def _header_problem(header: object) -> str | None:
    """RFC 9110 §5.1, §5.5."""
    match header:
        case (str() as name, str() as value):
            if not is_token(name):
                return f"the header name {shortly(name)}"
            if not _VALUE.fullmatch(value):
                return f"a line break, a control character or text beyond Latin-1 in its header {name!r}"
            return None
    return f"the header {shortly(header)}, not a pair of str"
