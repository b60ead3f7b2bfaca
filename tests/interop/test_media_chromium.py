"""Real Chromium mixed with light clients: each sees the other's media."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.media.chromium import ChromiumTarget
from loadtest.media.client import MediaClient
from loadtest.media.source import MediaSource
from loadtest.media.torpor import TorporTarget
from tests.support.server import running_server

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_chromium_plays_what_the_light_client_sends_and_the_other_way_round(codec: str) -> None:
    source = MediaSource(video=codec)  # type: ignore[arg-type]
    async with running_server() as server, MediaClient() as client:
        access = (server.url, server.app_id, server.app_secret)
        light, browsers = TorporTarget(client, *access), ChromiumTarget(*access)
        try:
            light_publication = await light.publish(source)
            browser_publication = await browsers.publish(source)
            refs = [light_publication.ref, browser_publication.ref]
            watching = await browsers.subscribe(refs)
            counting = await light.subscribe(refs)
            await watching.wait_for_media()
            await counting.wait_for_media()
            await asyncio.sleep(2.5)
            await watching.leave()
            seen, counted = watching.figures(), counting.figures()
            sent = browser_publication.figures()
        finally:
            await browsers.close()
            await light.close()
    assert (seen.tracks, seen.silent_tracks, counted.silent_tracks) == (4, 0, 0)
    assert seen.video.frames > 60, "two tracks of 30 frames/s for two seconds"
    assert seen.video.broken == 0
    assert counted.video.frames > 60
    assert counted.video.lost_after_repair == seen.video.lost_after_repair == 0
    assert counted.audio.packets > 100
    assert sent.video.frames > 30
    assert sent.video.packets > 0
