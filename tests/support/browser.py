"""Headless Chromium for tests: start it, open pages, and ask their peer connections what arrives.

Every page records its `RTCPeerConnection`s in `window.peerConnections`, so that a test looks at media the way any
page could (`getStats`), without help from the page under test. What it is told of a link's rate is ours, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from socket import AF_INET
from typing import Any, TypeVar

import psutil
from playwright.async_api import Browser, Page, async_playwright, expect

EXECUTABLE = "/usr/bin/chromium"

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream=fps=15",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# Chromium's first guess of the link, in kbit/s, lets it send all layers from the start. The guess of 300 that it has of
# its own grows within seconds, or much more slowly on a busy machine.
RECORD_PEER_CONNECTIONS = """
window.peerConnections = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...args) { super(...args); window.peerConnections.push(this); }
  setRemoteDescription({ type, sdp }) {
    const start = "$&a=fmtp:$1 x-google-start-bitrate=3000\\r\\n";
    return super.setRemoteDescription({ type, sdp: sdp.replaceAll(/a=rtpmap:(\\d+) VP8.*\\r\\n/g, start) });
  }
};
"""

STATS = """
async () => {
  const entries = [];
  for (const connection of window.peerConnections) {
    if (connection.connectionState === "closed") continue;
    for (const entry of (await connection.getStats()).values()) entries.push(entry);
  }
  return entries;
}
"""

T = TypeVar("T")

expect.set_options(timeout=20_000)  # as patient as `until`; Playwright's own 5 s are short for a busy machine


def only_loopback() -> bool:
    """Whether this machine, or network namespace, has no other IPv4 address than loopback's."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    addresses = [
        a.address for name, of in psutil.net_if_addrs().items() if name in up for a in of if a.family == AF_INET
    ]
    return all(ip_address(address).is_loopback for address in addresses)


def loopback_flags() -> list[str]:
    """Chromium gathers no candidate on loopback, and needs none: from any other interface it reaches 127.0.0.1 too.

    Only where there is no other it has to be told.
    """
    return ["--allow-loopback-in-peer-connection"] if only_loopback() else []


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """Run one browser; its processes are gone when the block ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=EXECUTABLE, args=[*FLAGS, *loopback_flags(), *flags], handle_sigint=False
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_page(browser: Browser, url: str, **context_options: Any) -> AsyncIterator[Page]:
    """Open a page as a new visitor: own cookies, own storage. A script error in it fails the test."""
    context = await browser.new_context(**context_options)
    await context.grant_permissions(["camera", "microphone", "clipboard-read", "clipboard-write"])
    await context.add_init_script(RECORD_PEER_CONNECTIONS)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert errors == []


async def until(
    what: str, condition: Callable[[], Awaitable[T | None]], *, within: float = 20.0, every: float = 0.2
) -> T:
    """Ask until the answer is true, and give it. After `within` seconds fail with what was waited for."""
    deadline = time.monotonic() + within
    while True:
        if answer := await condition():
            return answer
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}; last answer: {answer!r}"
        await asyncio.sleep(every)


async def stats(page: Page, kind: str) -> list[dict[str, Any]]:
    """All entries of one type (`inbound-rtp`, `outbound-rtp`, ...) over the page's open peer connections."""
    entries: list[dict[str, Any]] = await page.evaluate(STATS)
    return [entry for entry in entries if entry["type"] == kind]


async def inbound(page: Page) -> dict[str, dict[str, Any]]:
    """What arrives, by the received track's id."""
    return {entry["trackIdentifier"]: entry for entry in await stats(page, "inbound-rtp")}


async def frames_advance(page: Page, *, tracks: int = 1, frames: int = 5, within: float = 20.0) -> None:
    """Wait until `tracks` video tracks each decoded `frames` more pictures than when asked."""
    before = await inbound(page)

    async def advanced() -> bool:
        now = [(entry, before.get(key, {})) for key, entry in (await inbound(page)).items() if entry["kind"] == "video"]
        grown = [new["framesDecoded"] - old.get("framesDecoded", 0) for new, old in now]
        return sum(growth >= frames for growth in grown) >= tracks

    await until(f"{frames} more frames on {tracks} tracks", advanced, within=within)


async def audio_is_heard(page: Page, *, tracks: int = 1, within: float = 20.0) -> None:
    """Wait until the energy of `tracks` audio tracks has grown."""
    before = await inbound(page)

    async def heard() -> bool:
        now = [(entry, before.get(key, {})) for key, entry in (await inbound(page)).items() if entry["kind"] == "audio"]
        return sum(new["totalAudioEnergy"] > old.get("totalAudioEnergy", 0) for new, old in now) >= tracks

    await until(f"sound on {tracks} tracks", heard, within=within)
