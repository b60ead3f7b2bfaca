"""Torpor, or whatever else speaks the sessions API: publish and pull over HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from loadtest.media import sessions
from loadtest.media.client import MediaClient
from loadtest.media.sdp import Sending
from loadtest.media.source import MediaSource
from loadtest.media.target import MediaFailed, MediaTarget, Publication, PublicationRef, Subscription


class SessionsApi:
    """The sessions API of one app (docs/openapi.json); whose peers they are does not matter here.

    Args:
        url: the server's, such as `http://127.0.0.1:8787`.
        app_id, app_secret: of an app it serves.
    """

    def __init__(self, url: str, app_id: str, app_secret: str) -> None:
        self._url = f"{url}/v1/apps/{app_id}"
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"authorization": f"Bearer {app_secret}"},
            timeout=aiohttp.ClientTimeout(total=30),
        )

    async def publish(self, offer: str, sections: Sequence[tuple[str, str]]) -> tuple[str, PublicationRef]:
        """A new session that publishes `sections` (kind, mid) of `offer`: the answer, and its name for subscribers."""
        session = (await self._call("POST", "/sessions/new"))["sessionId"]
        names = [f"{kind}-{secrets.token_hex(8)}" for kind, _ in sections]
        tracks = [
            {"location": "local", "mid": mid, "trackName": name} for (_, mid), name in zip(sections, names, strict=True)
        ]
        body = {"sessionDescription": {"type": "offer", "sdp": offer}, "tracks": tracks}
        answer = await self._call("POST", f"/sessions/{session}/tracks/new", body)
        return answer["sessionDescription"]["sdp"], PublicationRef(session, tuple(names))

    async def pull(self, refs: Sequence[PublicationRef], rid: str) -> tuple[str, str]:
        """A new session that pulls all tracks of `refs`: its id, and the server's offer."""
        session = (await self._call("POST", "/sessions/new"))["sessionId"]
        tracks: list[dict[str, Any]] = [
            {"location": "remote", "sessionId": ref.session, "trackName": name} for ref in refs for name in ref.tracks
        ]
        for track in tracks:
            if rid and track["trackName"].startswith("video"):
                track["simulcast"] = {"preferredRid": rid}
        pulled = await self._call("POST", f"/sessions/{session}/tracks/new", {"tracks": tracks})
        if failed := [track for track in pulled["tracks"] if "errorCode" in track]:
            reason = failed[0].get("errorDescription", "")
            raise MediaFailed(f"{len(failed)} of {len(tracks)} tracks: {failed[0]['errorCode']} {reason}".rstrip())
        return session, pulled["sessionDescription"]["sdp"]

    async def answer(self, session: str, sdp: str) -> None:
        """Answer a pull's offer."""
        body = {"sessionDescription": {"type": "answer", "sdp": sdp}}
        await self._call("PUT", f"/sessions/{session}/renegotiate", body)

    async def close(self) -> None:
        """Free its connections. Sessions end with their transports."""
        await self._http.close()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            async with self._http.request(method, self._url + path, json=body) as response:
                answer: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise MediaFailed(f"{method} {path}: {type(error).__name__} {error}") from error
        if response.status >= 300 or "errorCode" in answer:
            reason = f"{answer.get('errorCode', '')} {answer.get('errorDescription', '')}"
            raise MediaFailed(f"{method} {path.rpartition('/')[2]}: {response.status} {reason}".rstrip())
        return answer


class TorporTarget(MediaTarget):
    """An app of the sessions API, and light peers.

    Args:
        url, app_id, app_secret: as for `SessionsApi`.
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
        self._api = SessionsApi(url, app_id, app_secret)
        self._joined: set[Publication | Subscription] = set()

    async def publish(self, source: MediaSource) -> Publication:
        """Join as a publisher; returns when the transport is up and media flows. Raises `MediaFailed`."""

        async def exchange(offer: str, sendings: Sequence[Sending]) -> tuple[str, PublicationRef]:
            return await self._api.publish(offer, [(sending.kind, sending.mid) for sending in sendings])

        made = await sessions.publish(
            self._client, source, exchange, redirect=self._redirect, on_leave=lambda: self._left(made)
        )
        self._joined.add(made)
        return made

    async def subscribe(self, refs: Sequence[PublicationRef], *, rid: str = "", verify: bool = False) -> Subscription:
        """Join as a subscriber to all tracks of `refs`; returns when the transport is up. Raises `MediaFailed`."""
        begun = time.monotonic()
        session, offer = await self._api.pull(refs, rid)
        made = await sessions.subscribe(
            self._client,
            begun,
            offer,
            lambda answer: self._api.answer(session, answer),
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
        await self._api.close()

    async def _left(self, session: Publication | Subscription) -> None:
        """close_notify has told the server."""
        self._joined.discard(session)
