"""Media and relays of an engine: `loadtest.media` behind operations, its counters as figures.

The media client is started when the first user needs it. Its counters only grow; a report takes what was added since
the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from loadtest.engine.rooms import RoomFailed
from loadtest.figures import Figures
from loadtest.histogram import Histogram

if TYPE_CHECKING:
    from loadtest.engine.server import Engine
    from loadtest.media.client import MediaClient
    from loadtest.media.figures import Mergeable, PublicationFigures, SubscriptionFigures
    from loadtest.media.target import MediaTarget, Publication, Subscription
    from loadtest.media.turn import TurnFigures, TurnRelay


class Media:
    """All publications, subscriptions and relays of an engine, by number."""

    def __init__(self) -> None:
        from loadtest.media.figures import PublicationFigures, SubscriptionFigures

        self._client: MediaClient | None = None
        self._starting = asyncio.Lock()
        self._targets: dict[str, MediaTarget] = {}
        self._publications: dict[int, Publication] = {}
        self._subscriptions: dict[int, tuple[str, Subscription]] = {}
        """With the prefix of its figures: what real browsers receive is kept apart."""
        self._relays: dict[int, TurnRelay] = {}
        self._next = 1
        self._ended_publications = PublicationFigures()
        self._ended_subscriptions = {prefix: SubscriptionFigures() for prefix in ("subscribe", "browser")}
        self._ended_relays: TurnFigures | None = None
        self._reported = Figures()

    def register(self, engine: Engine) -> None:
        """Offer the operations on an engine, and have it ask for figures."""
        engine.register("media.publish", self.publish)
        engine.register("media.subscribe", self.subscribe)
        engine.register("media.check", self.check)
        engine.register("media.leave", self.leave)
        engine.register("turn.open", self.open_relay)
        engine.register("turn.echo", self.echo)
        engine.add_source(self.take)

    async def publish(self, target: Mapping[str, str], source: Mapping[str, Any]) -> tuple[int, dict[str, Any], float]:
        """Join as a publisher; its number, its reference for subscribers, and the seconds it took.

        Args:
            target: see `_target`.
            source: fields of `MediaSource`.
        """
        from loadtest.media.source import MediaSource

        publication = await (await self._target(target)).publish(MediaSource(**source))
        number = self._number()
        self._publications[number] = publication
        return number, publication.ref.to_json(), publication.join_seconds

    async def subscribe(
        self, target: Mapping[str, str], refs: list[dict[str, Any]], rid: str, verify: bool, within: float
    ) -> tuple[int, float, float]:
        """Join as a subscriber; its number, seconds to join and seconds until every track has brought a frame."""
        from loadtest.media.target import PublicationRef

        wanted = [PublicationRef.from_json(ref) for ref in refs]
        subscription = await (await self._target(target)).subscribe(wanted, rid=rid, verify=verify)
        number = self._number()
        self._subscriptions[number] = "browser" if target["kind"] == "chromium" else "subscribe", subscription
        return number, subscription.join_seconds, await subscription.wait_for_media(within)

    async def check(self, number: int) -> None:
        """Raise when a publication or subscription has ended by itself."""
        session = self._publications.get(number) or self._subscriptions.get(number, (None, None))[1]
        if session is None:
            raise RoomFailed("left already")
        if session.failure:
            raise RoomFailed(session.failure)

    async def leave(self, number: int) -> None:
        """End a publication, subscription or relay; what it counted stays."""
        if (publication := self._publications.pop(number, None)) is not None:
            await publication.leave()
            self._ended_publications = self._ended_publications.merge(publication.figures())
        elif (found := self._subscriptions.pop(number, None)) is not None:
            prefix, subscription = found
            await subscription.leave()
            self._ended_subscriptions[prefix] = self._ended_subscriptions[prefix].merge(subscription.figures())
        elif (relay := self._relays.pop(number, None)) is not None:
            await relay.close()
            figures = relay.figures()
            self._ended_relays = figures if self._ended_relays is None else self._ended_relays.merge(figures)

    async def open_relay(self, server: Mapping[str, Any]) -> tuple[int, float]:
        """Allocate a relay with a channel to an echoing peer; its number and the seconds the allocation took."""
        from loadtest.media.turn import TurnServer, open_relay

        relay = await open_relay(TurnServer(**await turn_server(server)))
        number = self._number()
        self._relays[number] = relay
        return number, relay.allocate_seconds

    async def echo(self, number: int, seconds: float, pps: float, size: int) -> None:
        """Send through a relay on a schedule; what comes back is counted."""
        await self._relays[number].echo(seconds=seconds, pps=pps, size=size)

    def take(self) -> Figures:
        """What was added to the counters since the last call."""
        current = Figures()
        publications: PublicationFigures = self._ended_publications
        for publication in self._publications.values():
            publications = publications.merge(publication.figures())
        subscriptions: dict[str, SubscriptionFigures] = dict(self._ended_subscriptions)
        for prefix, subscription in self._subscriptions.values():
            subscriptions[prefix] = subscriptions[prefix].merge(subscription.figures())
        flatten("publish", publications, current)
        for prefix, figures in subscriptions.items():
            flatten(prefix, figures, current)
        relays = self._ended_relays
        for relay in self._relays.values():
            relays = relay.figures() if relays is None else relays.merge(relay.figures())
        if relays is not None:
            flatten("turn", relays, current)
        if self._client is not None:
            flatten("plane", self._client.figures(), current)
        added = subtract(current, self._reported)
        self._reported = current
        return added

    async def leave_all(self) -> None:
        """End all publications, subscriptions and relays; one that cannot end in order is forgotten."""
        for number in [*self._publications, *self._subscriptions, *self._relays]:
            with contextlib.suppress(Exception):
                await self.leave(number)

    async def aclose(self) -> None:
        """Leave everything, and free the client."""
        await self.leave_all()
        for target in self._targets.values():
            await target.close()
        if self._client is not None:
            await self._client.__aexit__(None, None, None)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    async def _target(self, wanted: Mapping[str, str]) -> MediaTarget:
        """The server that `{"kind": "torpor" | "chromium" | "janus", "url": ..., ...}` describes; made once."""
        from loadtest.media.client import MediaClient

        key = repr(sorted(wanted.items()))
        async with self._starting:
            if self._client is None:
                client = MediaClient(host=local_address(wanted["url"]))
                self._client = await client.__aenter__()
            if key not in self._targets:
                self._targets[key] = await _make_target(self._client, wanted)
            return self._targets[key]


async def _make_target(client: MediaClient, wanted: Mapping[str, str]) -> MediaTarget:
    if wanted["kind"] == "torpor":
        from loadtest.media.torpor import TorporTarget

        return TorporTarget(client, wanted["url"], wanted["app_id"], wanted["app_secret"])
    if wanted["kind"] == "chromium":
        from loadtest.media.chromium import ChromiumTarget

        return ChromiumTarget(wanted["url"], wanted["app_id"], wanted["app_secret"])
    if wanted["kind"] == "janus":
        from loadtest.media.janus import JanusTarget

        return JanusTarget(client, wanted["url"])
    raise RoomFailed(f"no media on a target of the kind {wanted['kind']!r}")


async def turn_server(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `TurnServer`: as given, or by a credential asked for over HTTP where `key_id` names a TURN key."""
    if "key_id" not in wanted:
        return dict(wanted)
    address = f"{wanted['url']}/v1/turn/keys/{wanted['key_id']}/credentials/generate-ice-servers"
    headers = {"authorization": f"Bearer {wanted['key_token']}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), raise_for_status=True) as http,
            http.post(address, headers=headers, json={"ttl": 3600}) as response,
        ):
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RoomFailed(f"no TURN credential: {str(error) or type(error).__name__}") from error
    transport = wanted.get("transport", "udp")
    for server in answer["iceServers"]:
        for url in [server["urls"]] if isinstance(server["urls"], str) else server["urls"]:
            scheme, _, rest = url.partition(":")
            place, _, query = rest.partition("?")
            used = "tls" if scheme == "turns" else query.removeprefix("transport=") or "udp"
            if scheme.startswith("turn") and used == transport:
                host, _, port = place.rpartition(":")
                return {
                    "host": host.strip("[]"),
                    "port": int(port),
                    "username": server["username"],
                    "password": server["credential"],
                    "transport": transport,
                }
    raise RoomFailed(f"the server offers no TURN over {transport}")


def flatten(prefix: str, figures: Mergeable, into: Figures) -> None:
    """Write counters and histograms of a dataclass under `prefix.field`, inner ones under `prefix.field.field`."""
    for item in fields(figures):  # type: ignore[arg-type]  # subclasses are dataclasses
        value = getattr(figures, item.name)
        name = f"{prefix}.{item.name}"
        if isinstance(value, Histogram):
            into.time(name).merge(value)
        elif isinstance(value, (int, float)):
            into.add(name, value)
        else:
            flatten(name, value, into)


def subtract(current: Figures, before: Figures) -> Figures:
    """What was added to growing figures. A maximum cannot be subtracted: the histogram keeps that of all time."""
    added = Figures()
    for name, amount in current.counters.items():
        if difference := amount - before.count(name):
            added.counters[name] = difference
    for name, histogram in current.times.items():
        earlier = before.times.get(name)
        since = histogram if earlier is None else histogram.minus(earlier)
        if since.count:
            added.times[name] = since
    return added


def local_address(url: str) -> str:
    """Our address on the way to a server."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(host, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        ours: str = probe.getsockname()[0]
        return ours
