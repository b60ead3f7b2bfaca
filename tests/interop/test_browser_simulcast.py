"""Simulcast from a bare `RTCPeerConnection` in Chromium, pulled by another page (specs/realtime-api.md §8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
import pytest_asyncio
from aiortc.codecs.vpx import VpxPayloadDescriptor
from playwright.async_api import Browser, Page

from tests.support.aiortc_peer import AiortcPeer, loopback_only, open_peer
from tests.support.browser import chromium, frames_advance, inbound, open_page, stats, until
from tests.support.server import Server, running_server

__all__ = ["loopback_only"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("loopback_only"),
]

# Chromium sends three layers of a picture of this size, and only two of anything smaller.
WIDTHS = {"f": 960, "h": 480, "q": 240}

# The session API by hand: no client library between the browser and the server.
RAW_CLIENT = """
async () => {
  const call = async (method, path, body) => {
    const response = await fetch(`/partytracks/sessions/${path}`, { method, body: body && JSON.stringify(body) });
    const answer = await response.json();
    for (const item of [answer, ...(answer.tracks ?? [])]) if (item.errorCode) throw new Error(JSON.stringify(answer));
    return answer;
  };
  const { sessionId } = await call("POST", "new");
  const connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  const description = () => ({ type: connection.localDescription.type, sdp: connection.localDescription.sdp });
  let sender;
  window.raw = {
    async publish(trackName) {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 960, height: 540 } });
      const transceiver = connection.addTransceiver(stream.getVideoTracks()[0], {
        direction: "sendonly",
        sendEncodings: [
          { rid: "f", maxBitrate: 900000 },
          { rid: "h", maxBitrate: 300000, scaleResolutionDownBy: 2 },
          { rid: "q", maxBitrate: 100000, scaleResolutionDownBy: 4 },
        ],
      });
      sender = transceiver.sender;
      await connection.setLocalDescription(await connection.createOffer());
      const tracks = [{ location: "local", mid: transceiver.mid, trackName }];
      const answer = await call("POST", `${sessionId}/tracks/new`, { sessionDescription: description(), tracks });
      await connection.setRemoteDescription(answer.sessionDescription);
      return { sessionId, trackName };
    },
    async setActive(rid, active) {
      const parameters = sender.getParameters();
      parameters.encodings.find((encoding) => encoding.rid === rid).active = active;
      await sender.setParameters(parameters);
    },
    async pull(address, simulcast) {
      const track = { location: "remote", ...address, ...(simulcast && { simulcast }) };
      const offer = await call("POST", `${sessionId}/tracks/new`, { tracks: [track] });
      const arrived = new Promise((resolve) => (connection.ontrack = resolve));
      await connection.setRemoteDescription(offer.sessionDescription);
      await connection.setLocalDescription(await connection.createAnswer());
      await call("PUT", `${sessionId}/renegotiate`, { sessionDescription: description() });
      const video = Object.assign(document.createElement("video"), { autoplay: true, muted: true });
      video.srcObject = new MediaStream([(await arrived).track]);
      document.body.append(video);
      this.pulled = { ...address, location: "remote", mid: offer.tracks[0].mid };
    },
    prefer: (simulcast) => call("PUT", `${sessionId}/tracks/update`, { tracks: [{ ...raw.pulled, simulcast }] }),
  };
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def pages(browser: Browser, server: Server) -> AsyncIterator[tuple[Page, Page]]:
    """A publisher and a subscriber, each with a session of its own."""
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(open_page(browser, f"{server.url}/healthz")) for _ in range(2)]
        for page in pair:
            await page.evaluate(RAW_CLIENT)
        yield pair[0], pair[1]


async def publish(page: Page) -> dict[str, str]:
    address: dict[str, str] = await page.evaluate("raw.publish('camera')")
    return address


async def pull(page: Page, address: dict[str, str], simulcast: dict[str, str] | None = None) -> None:
    await page.evaluate("([address, simulcast]) => raw.pull(address, simulcast)", [address, simulcast])


async def width_is(page: Page, width: int) -> None:
    async def arrived() -> bool:
        return [entry.get("frameWidth") for entry in (await inbound(page)).values()] == [width]

    await until(f"a picture {width} wide", arrived, within=30)


async def frames_sent(page: Page, rid: str) -> int:
    """Of one layer, as Chromium counts; its packets have padding among them."""
    return sum(entry["framesSent"] for entry in await stats(page, "outbound-rtp") if entry["rid"] == rid)


@dataclass(frozen=True)
class Publisher:
    """What an `AiortcPeer` needs to know of the peer that it pulls from."""

    session_id: str


async def total(page: Page, figure: str) -> int:
    return sum(entry[figure] for entry in (await inbound(page)).values())


async def test_each_layer_arrives_when_preferred_and_switching_leaves_no_gap(pages: tuple[Page, Page]) -> None:
    """Realtime API §2: `packetsLost` stays as it is when layers switch."""
    publisher, subscriber = pages
    await pull(subscriber, await publish(publisher), {"preferredRid": "q"})
    await width_is(subscriber, WIDTHS["q"])
    for rid in ("f", "h", "q", "f"):
        await subscriber.evaluate("(rid) => raw.prefer({ preferredRid: rid })", rid)
        await width_is(subscriber, WIDTHS[rid])
        await frames_advance(subscriber)
    assert await total(subscriber, "packetsLost") == 0


@pytest.mark.timeout(240)
async def test_the_picture_numbers_of_vp8_go_on_over_a_switch(pages: tuple[Page, Page], server: Server) -> None:
    """COD-1. Chromium numbers each layer for itself; where numbers jump, its decoder waits for frames that never were,
    shows nothing, and after seconds asks for a key frame.

    How soon Chromium sends a layer is its own affair: it leaves out or thins what its guess of the link does not hold.
    What it sends has to arrive.
    """
    publisher, _ = pages
    address = await publish(publisher)
    async with open_peer(server) as subscriber:
        (pulled,) = await subscriber.pull(cast("AiortcPeer", Publisher(address["sessionId"])), "camera")
        for rid in ("f", "q", "f"):
            before = len(subscriber.packets_received(pulled))
            frames = await frames_sent(publisher, rid)
            track = {"location": "remote", **address, "mid": pulled.mid, "simulcast": {"preferredRid": rid}}
            await subscriber.api.call("PUT", f"/sessions/{subscriber.session_id}/tracks/update", {"tracks": [track]})

            async def enough(rid: str = rid, before: int = before, frames: int = frames) -> bool:
                arrived = len(subscriber.packets_received(pulled)) - before
                sent = await frames_sent(publisher, rid) - frames
                assert arrived >= 60 or sent < 120, f"{sent} frames of layer {rid} sent, {arrived} packets arrived"
                return arrived >= 60

            await until(f"Chromium to send layer {rid}", enough, within=60)
        packets = subscriber.packets_by_number(pulled).values()
    pictures = [VpxPayloadDescriptor.parse(packet.payload)[0] for packet in packets if packet.payload]
    assert {(b.picture_id - a.picture_id) % 2**15 for a, b in pairwise(pictures)} == {0, 1}
    assert {(b.tl0picidx - a.tl0picidx) % 2**8 for a, b in pairwise(pictures)} == {0, 1}


async def test_without_a_preference_the_best_layer_that_fits_arrives(pages: tuple[Page, Page]) -> None:
    publisher, subscriber = pages
    await pull(subscriber, await publish(publisher))
    await frames_advance(subscriber)
    await width_is(subscriber, WIDTHS["f"])


async def test_a_layer_that_stops_gives_way_to_another_and_returns(pages: tuple[Page, Page]) -> None:
    """§8: `ridNotAvailable: asciibetical`."""
    publisher, subscriber = pages
    policy: dict[str, Any] = {"preferredRid": "h", "ridNotAvailable": "asciibetical"}
    await pull(subscriber, await publish(publisher), policy)
    await width_is(subscriber, WIDTHS["h"])
    await publisher.evaluate("raw.setActive('h', false)")
    await width_is(subscriber, WIDTHS["q"])
    await frames_advance(subscriber)
    await publisher.evaluate("raw.setActive('h', true)")
    await width_is(subscriber, WIDTHS["h"])
    await frames_advance(subscriber)


async def test_a_pinned_layer_that_stops_is_waited_for(pages: tuple[Page, Page]) -> None:
    """§8: `ridNotAvailable: none`."""
    publisher, subscriber = pages
    await pull(subscriber, await publish(publisher), {"preferredRid": "h"})
    await width_is(subscriber, WIDTHS["h"])
    await publisher.evaluate("raw.setActive('h', false)")
    await asyncio.sleep(3)  # the layer is dead after 2 s
    before = await total(subscriber, "packetsReceived")
    await asyncio.sleep(1)
    assert await total(subscriber, "packetsReceived") == before
    await publisher.evaluate("raw.setActive('h', true)")
    await frames_advance(subscriber)
    await width_is(subscriber, WIDTHS["h"])
