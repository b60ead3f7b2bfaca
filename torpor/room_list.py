"""`torpor rooms`: ask a running server which rooms it has, and print them as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from torpor.config import Settings
from torpor.errors import ServerUnreachable

TIMEOUT = 10.0
HEAD = ("PARTY", "ROOM", "CONNECTIONS", "STATE", "AWAKE FOR")


def ask(settings: Settings, url: str | None) -> Mapping[str, Any]:
    """Return what `GET /v1/rooms` answers.

    Args:
        settings: those of the server: address and token.
        url: the server's, if it is not where the settings say.

    Raises:
        ServerUnreachable: it does not answer, or not with a list.
    """
    if (token := settings.rooms_admin_token) is None:
        raise ServerUnreachable("nobody may list the rooms: set rooms.admin_token, for the server too")
    base = (url or server_url(settings)).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ServerUnreachable(f"{base} is not an http:// or https:// address")
    request = Request(f"{base}/v1/rooms", headers={"authorization": f"Bearer {token.value}"})  # noqa: S310  checked
    try:
        # No proxy of the environment: the token is for this server alone.
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT) as response:
            answer: Mapping[str, Any] = json.load(response)
            return answer
    except HTTPError as error:
        with error:
            reason = "the token is not the server's" if error.code == 401 else f"status {error.code}"
        raise ServerUnreachable(f"{base}: {reason}") from error
    except URLError as error:
        raise ServerUnreachable(f"{base}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise ServerUnreachable(f"{base}: {error}") from error


def server_url(settings: Settings) -> str:
    """Where a server with these settings is found from its own machine."""
    scheme = "https" if settings.http.tls_certificate else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


def table(answer: Mapping[str, Any]) -> str:
    """Return the rooms as aligned columns, one line each."""
    rows = [HEAD, *(_row(room) for room in answer["rooms"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if (more := answer["total"] - len(answer["rooms"])) > 0:
        lines.append(f"and {more} more")
    return "\n".join(lines)


def _row(room: Mapping[str, Any]) -> tuple[str, ...]:
    reasons = ", ".join(f"{kind} {count}" for kind, count in sorted(room["awakeFor"].items()))
    if room["state"] == "awake" and not reasons:
        reasons = "about to leave memory"
    return room["party"], room["room"] or room["id"], str(room["connections"]), room["state"], reasons
