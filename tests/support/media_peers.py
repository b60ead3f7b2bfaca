"""`python -m tests.support.media_peers`, on the client's test host: our clients against Janus and against coturn.

Prints one line of JSON with what it saw.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from loadtest.media.client import MediaClient
from loadtest.media.janus import JanusTarget
from loadtest.media.source import MediaSource
from loadtest.media.turn import open_relay
from loadtest.peers import hosts
from loadtest.peers.coturn import CoturnServer
from loadtest.peers.janus import JanusServer


async def through_janus(source: MediaSource) -> dict[str, Any]:
    """Two publications, one subscription to both."""
    async with MediaClient(host=hosts.CLIENT_HOST) as client:
        target = JanusTarget(client, JANUS.url)
        publications = [await target.publish(source) for _ in range(2)]
        subscription = await target.subscribe([p.ref for p in publications], verify=True)
        await subscription.wait_for_media()
        await asyncio.sleep(2.0)
        await subscription.leave()
        await target.close()
        return subscription.figures().to_json()


async def through_coturn(host: str) -> list[dict[str, Any]]:
    """A relay of each transport it serves."""
    coturn = CoturnServer(host=host, netns=hosts.SERVER_NAMESPACE)
    await coturn.start()
    found = []
    try:
        for transport in ("udp", "tcp"):
            relay = await open_relay(coturn.server(transport))
            await relay.echo(seconds=0.5, pps=100)
            await asyncio.sleep(0.1)
            found.append(relay.figures().to_json())
            await relay.close()
    finally:
        await coturn.stop()
    return found


JANUS = JanusServer(core=None)


async def main() -> None:
    await JANUS.start()
    try:
        janus = [await through_janus(s) for s in (MediaSource(), MediaSource(video="H264"))]
    finally:
        await JANUS.stop()
    coturn = [await through_coturn(host) for host in (hosts.SERVER_HOST, hosts.SERVER_HOST_V6)]
    print(json.dumps({"version": JANUS.version, "janus": janus, "coturn": coturn}))


if __name__ == "__main__":
    asyncio.run(main())
