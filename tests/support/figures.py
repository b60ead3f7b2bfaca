"""What a server says about itself at `/metrics`, as numbers."""

from __future__ import annotations

import asyncio
import time

import httpx

from tests.support.server import Server

_MEDIA_STATE = ("torpor_media_live{", "torpor_media_transports", "torpor_media_tracks", "torpor_media_forwarders")


async def figures(server: Server) -> dict[str, float]:
    """Every sample by its name and labels, as written."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{server.url}/metrics")).text
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def drops(sampled: dict[str, float], reason: str) -> float:
    """Packets dropped for this reason so far."""
    return sampled[f'torpor_media_drops_total{{reason="{reason}"}}']


async def assert_no_media_state_left(server: Server, *, within: float = 5.0) -> None:
    """Once its peers have said goodbye, no session, transport, track or forwarder, and no cached byte, stays."""
    deadline = time.monotonic() + within
    while True:
        sampled = await figures(server)
        left = {name: value for name, value in sampled.items() if name.startswith(_MEDIA_STATE) and value}
        if not left and not sampled["torpor_media_cache_bytes"]:
            return
        assert time.monotonic() < deadline, f"still there: {left}, cache {sampled['torpor_media_cache_bytes']}"
        await asyncio.sleep(0.1)
