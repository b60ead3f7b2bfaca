"""Simulcast from a bare `RTCPeerConnection` in Chromium, pulled by another page (specs/realtime-api.md §8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.browser import chromium, frames_advance, inbound, open_page, until
from tests.support.server import Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

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


async def packets_lost(page: Page) -> int:
    return sum(entry["packetsLost"] for entry in (await inbound(page)).values())


async def test_each_layer_arrives_when_preferred_and_switching_leaves_no_gap(pages: tuple[Page, Page]) -> None:
    """Realtime API §2: `packetsLost` stays as it is when layers switch."""
    publisher, subscriber = pages
    await pull(subscriber, await publish(publisher), {"preferredRid": "q"})
    await width_is(subscriber, WIDTHS["q"])
    for rid in ("f", "h", "q", "f"):
        await subscriber.evaluate("(rid) => raw.prefer({ preferredRid: rid })", rid)
        await width_is(subscriber, WIDTHS[rid])
        await frames_advance(subscriber)
    assert await packets_lost(subscriber) == 0


async def test_without_a_preference_the_best_layer_that_fits_arrives(pages: tuple[Page, Page]) -> None:
    publisher, subscriber = pages
    await pull(subscriber, await publish(publisher))
    await frames_advance(subscriber)
    await width_is(subscriber, WIDTHS["f"])


async def test_a_layer_that_stops_gives_way_to_the_next_and_returns(pages: tuple[Page, Page]) -> None:
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
