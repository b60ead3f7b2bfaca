"""The pages of `web/`, served at `/` as they are in the package: no build step, no third-party host.

The content security policy is the strictest that ES modules, same-origin fetch and WebSockets, and WebRTC need.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

CONTENT_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.(html|js|css|svg)\Z")

HEADERS: Mapping[str, str] = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data: blob:",
            "media-src 'self' blob: mediastream:",
            "font-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "permissions-policy": "camera=(self), microphone=(self), display-capture=(self)",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Revalidated each time, so that a page and its modules are always of one version; the ETag makes that cheap.
    "cache-control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """`/` and every file beside it."""
    names = sorted(file.name for file in files("torpor.web").iterdir() if FILE_NAME.match(file.name))
    return [Route(path, _serve, methods=["GET"]) for path in ("/", *(f"/{name}" for name in names))]


async def _serve(request: Request) -> Response:
    """The file, or 304 when the browser has it."""
    name = request.scope["path"].removeprefix("/") or "index.html"
    if not (match := FILE_NAME.match(name)) or not (source := files("torpor.web") / name).is_file():
        raise HTTPException(404)
    content = source.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=CONTENT_TYPES[match[1]])
