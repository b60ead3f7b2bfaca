"""Torpor, or whatever else speaks the sessions API: publish and pull over HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from loadtest.media import sessions
from loadtest.media.client import MediaClient
from loadtest.media.sdp import Sending
from loadtest.media.source import MediaSource
from loadtest.media.target import MediaFailed, MediaTarget, Publication, PublicationRef, Subscription


class TorporTarget(MediaTarget):
    """The sessions API of one app (docs/openapi.json).

    Args:
        url: the server's, such as `http://127.0.0.1:8787`.
        app_id, app_secret: of an app it serves.
        redirect: changes a server's description before it is read; for tests with a path that loses packets.
    """

    name = "torpor"

    def __init__(
        self,
        client: MediaClient,
        url: str,
        app_id: str,
        app_secret: str,
        *,
        redirect: Callable[[str], str] | None = None,
    ) -> None:
        self._client = client
        self._redirect = redirect
        self._http = httpx.AsyncClient(
            base_url=f"{url}/v1/apps/{app_id}",
            headers={"authorization": f"Bearer {app_secret}"},
            timeout=30,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )
        self._joined: set[Publication | Subscription] = set()

    async def publish(self, source: MediaSource) -> Publication:
        """Join as a publisher; returns when the transport is up and media flows. Raises `MediaFailed`."""

        async def exchange(offer: str, sendings: Sequence[Sending]) -> tuple[str, PublicationRef]:
            session = (await self._call("POST", "/sessions/new"))["sessionId"]
            names = [f"{sending.kind}-{secrets.token_hex(8)}" for sending in sendings]
            tracks = [
                {"location": "local", "mid": sending.mid, "trackName": name}
                for sending, name in zip(sendings, names, strict=True)
            ]
            body = {"sessionDescription": {"type": "offer", "sdp": offer}, "tracks": tracks}
            answer = await self._call("POST", f"/sessions/{session}/tracks/new", body)
            return answer["sessionDescription"]["sdp"], PublicationRef(session, tuple(names))

        made = await sessions.publish(
            self._client, source, exchange, redirect=self._redirect, on_leave=lambda: self._left(made)
        )
        self._joined.add(made)
        return made

    async def subscribe(self, refs: Sequence[PublicationRef], *, rid: str = "", verify: bool = False) -> Subscription:
        """Join as a subscriber to all tracks of `refs`; returns when the transport is up. Raises `MediaFailed`."""
        begun = time.monotonic()
        session = (await self._call("POST", "/sessions/new"))["sessionId"]
        tracks: list[dict[str, Any]] = [
            {"location": "remote", "sessionId": ref.session, "trackName": name} for ref in refs for name in ref.tracks
        ]
        if rid:
            for track in tracks:
                if track["trackName"].startswith("video"):
                    track["simulcast"] = {"preferredRid": rid}
        pulled = await self._call("POST", f"/sessions/{session}/tracks/new", {"tracks": tracks})
        if failed := [track for track in pulled["tracks"] if "errorCode" in track]:
            reason = failed[0].get("errorDescription", "")
            raise MediaFailed(f"{len(failed)} of {len(tracks)} tracks: {failed[0]['errorCode']} {reason}".rstrip())

        async def exchange(answer: str) -> None:
            body = {"sessionDescription": {"type": "answer", "sdp": answer}}
            await self._call("PUT", f"/sessions/{session}/renegotiate", body)

        made = await sessions.subscribe(
            self._client,
            begun,
            pulled["sessionDescription"]["sdp"],
            exchange,
            verify=verify,
            redirect=self._redirect,
            on_leave=lambda: self._left(made),
        )
        self._joined.add(made)
        return made

    async def close(self) -> None:
        """Leave everything that is still joined, and free the target."""
        for session in list(self._joined):
            await session.leave()
        await self._http.aclose()

    async def _left(self, session: Publication | Subscription) -> None:
        """close_notify has told the server."""
        self._joined.discard(session)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json=body)
            answer: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MediaFailed(f"{method} {path}: {type(error).__name__} {error}") from error
        if response.status_code >= 300 or "errorCode" in answer:
            reason = f"{answer.get('errorCode', '')} {answer.get('errorDescription', '')}"
            raise MediaFailed(f"{method} {path.rpartition('/')[2]}: {response.status_code} {reason}".rstrip())
        return answer
