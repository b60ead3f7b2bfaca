"""Chromium against sessions: what its SDP engine accepts, and what it then plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from sfu import negotiation
from sfu.messages import Location, SessionDescription, SessionId, TrackRequest, TracksResult
from sfu.service import Sfu
from sfu.settings import SfuSettings
from tests.support.browser import chromium

pytestmark = pytest.mark.browser

APP = "app"

HELPERS = """
window.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
window.fired = [];
pc.ontrack = (event) => {
  fired.push(event.transceiver.mid);
  const element = document.createElement("video");
  element.muted = true; element.autoplay = true;
  element.srcObject = new MediaStream([event.track]);
  document.body.append(element);
};
window.offer = async () => { await pc.setLocalDescription(); return pc.localDescription.sdp; };
window.answer = async (sdp) => {
  fired.length = 0;
  await pc.setRemoteDescription({type: "offer", sdp});
  await pc.setLocalDescription();
  return pc.localDescription.sdp;
};
window.accept = (sdp) => pc.setRemoteDescription({type: "answer", sdp});
window.decoded = async (mid) => {
  const transceiver = pc.getTransceivers().find((t) => t.mid === mid);
  for (const s of (await transceiver.receiver.getStats()).values())
    if (s.type === "inbound-rtp") return s.framesDecoded ?? s.packetsReceived ?? 0;
  return 0;
};
window.camera = async (encodings) => {
  const stream = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 480}, audio: true});
  window.camera_transceiver = pc.addTransceiver(stream.getVideoTracks()[0], {direction: "sendonly", sendEncodings: encodings});
  pc.addTransceiver(stream.getAudioTracks()[0], {direction: "sendonly"});
};
undefined;
"""  # noqa: E501  # JavaScript


class Tab:
    """A page with one peer connection, and its session."""

    def __init__(self, page: Page, sfu: Sfu, session_id: SessionId) -> None:
        self.page = page
        self.sfu = sfu
        self.id = session_id

    @classmethod
    async def open(cls, browser: Browser, sfu: Sfu) -> Tab:
        page = await browser.new_page()
        # A secure context without a server: getUserMedia asks for one.
        await page.route("**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        await page.goto("https://torpor.test/")
        await page.evaluate(HELPERS)
        return cls(page, sfu, (await sfu.create_session(APP))[0])

    async def call(self, name: str, *arguments: object) -> Any:
        return await self.page.evaluate(f"(args) => {name}(...args)", list(arguments))

    async def publish(self, encodings: list[dict[str, Any]]) -> TracksResult:
        await self.call("camera", encodings)
        offer = await self.call("offer")
        result = await self.sfu.add_tracks(
            APP,
            self.id,
            tracks=[TrackRequest(Location.LOCAL, "0", "camera"), TrackRequest(Location.LOCAL, "1", "mic")],
            offer=SessionDescription("offer", offer),
        )
        assert result.session_description is not None
        await self.call("accept", result.session_description.sdp)
        return result

    async def pull(self, publisher: Tab, *names: str) -> list[str]:
        """The new mids, each of which fired a `track` event in this negotiation (realtime-api.md 10.4)."""
        requests = [TrackRequest(Location.REMOTE, session_id=publisher.id, track_name=name) for name in names]
        result = await self.sfu.add_tracks(APP, self.id, tracks=requests, offer=None)
        assert [item.error_code for item in result.tracks] == [None] * len(names)
        assert result.session_description is not None
        answer = await self.call("answer", result.session_description.sdp)
        await self.sfu.renegotiate(APP, self.id, SessionDescription("answer", answer))
        mids = [item.mid or "" for item in result.tracks]
        assert await self.page.evaluate("fired") == mids
        return mids

    async def close(self, mid: str, how: str) -> None:
        if how == "force":
            await self.sfu.close_tracks(APP, self.id, mids=[mid], force=True, offer=None)
            return
        if how == "stop":
            await self.page.evaluate("(mid) => pc.getTransceivers().find((t) => t.mid === mid).stop()", mid)
        offer = SessionDescription("offer", await self.call("offer"))
        result = await self.sfu.close_tracks(APP, self.id, mids=[mid], force=False, offer=offer)
        assert result.session_description is not None
        await self.call("accept", result.session_description.sdp)

    async def plays(self, mid: str) -> None:
        """More frames are decoded than before."""
        before = await self.call("decoded", mid)
        async with asyncio.timeout(15):
            while await self.call("decoded", mid) <= before + 3:  # noqa: ASYNC110  # getStats has no event
                await asyncio.sleep(0.1)


@pytest.fixture
async def sfu() -> AsyncIterator[Sfu]:
    sfu = Sfu(SfuSettings())
    await sfu.start()
    yield sfu
    await sfu.close()
    assert set(sfu.live_counts().values()) == {0}


async def test_simulcast_camera_and_microphone_reach_another_tab(sfu: Sfu) -> None:
    """SDP-4: Chromium sends every layer once MID and RID are in the answer."""
    async with chromium() as browser:
        alice, bob = await Tab.open(browser, sfu), await Tab.open(browser, sfu)
        await alice.publish([{"rid": "h"}, {"rid": "l", "scaleResolutionDownBy": 2}])
        camera, mic = await bob.pull(alice, "camera", "mic")
        await bob.plays(camera)
        await bob.plays(mic)
        layers = sfu.session_stats(APP, alice.id).tracks[0].layers
        assert [layer["rid"] for layer in layers] == ["h", "l"]


@pytest.mark.parametrize("how", ["force", "offer", "stop"])
async def test_add_and_remove_cycles_reuse_sections(sfu: Sfu, how: str) -> None:
    """SDP-7: 20 cycles; each pull fires `track`, the last one plays, sections stay few."""
    async with chromium() as browser:
        alice, bob = await Tab.open(browser, sfu), await Tab.open(browser, sfu)
        await alice.publish([{}])
        await bob.pull(alice, "mic")
        for _ in range(20):
            (mid,) = await bob.pull(alice, "camera")
            await bob.close(mid, how)
        (mid,) = await bob.pull(alice, "camera")
        await bob.plays(mid)
        assert await bob.page.evaluate("pc.remoteDescription.sdp.split('m=').length - 1") <= 3


async def test_bundle_carrier_may_be_stopped(sfu: Sfu) -> None:
    """Rule 10: the first section goes to port 0, the others play on."""
    async with chromium() as browser:
        alice, bob = await Tab.open(browser, sfu), await Tab.open(browser, sfu)
        await alice.publish([{}])
        first, second = await bob.pull(alice, "camera", "mic")
        await bob.plays(second)
        await bob.close(first, "stop")
        await bob.plays(second)
        (third,) = await bob.pull(alice, "camera")
        await bob.plays(third)


async def test_oldest_is_stopped_each_time(sfu: Sfu, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDP-7 when each stop ends the section that carries the transport: the number of sections stays bounded."""
    monkeypatch.setattr(negotiation, "SECTIONS_KEPT", 4)
    async with chromium() as browser:
        alice, bob = await Tab.open(browser, sfu), await Tab.open(browser, sfu)
        await alice.publish([{}])
        mids = await bob.pull(alice, "camera")
        for _ in range(8):
            mids += await bob.pull(alice, "camera")
            await bob.close(mids.pop(0), "stop")
        await bob.plays(mids[0])
        assert await bob.page.evaluate("pc.remoteDescription.sdp.split('m=').length - 1") <= 4
