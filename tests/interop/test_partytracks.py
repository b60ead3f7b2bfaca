"""The npm client partytracks 0.0.54, unmodified, in Chromium, through the gateway (specs/realtime-api.md §10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.browser import audio_is_heard, chromium, frames_advance, inbound, open_page, until
from tests.support.bundle import bundle
from tests.support.server import Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SIMULCAST = [
    {"rid": "f", "maxBitrate": 900_000},
    {"rid": "h", "maxBitrate": 300_000, "scaleResolutionDownBy": 2},
    {"rid": "q", "maxBitrate": 100_000, "scaleResolutionDownBy": 4},
]
# Chromium sends three layers of a picture of this size, and only two of anything smaller.
WIDTHS = {"f": 960, "h": 480, "q": 240}


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
    """Two visitors with partytracks loaded, on a bare page of the server's own origin, each with a voice.

    The voice is more than scenery: when a page closes its last track, Chromium refuses the offer that partytracks makes
    then ("max-bundle configured but session description has no BUNDLE group"), and that connection is stuck.
    """
    script = bundle("partytracks_harness").read_text()
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(open_page(browser, f"{server.url}/healthz")) for _ in range(2)]
        for page in pair:
            await page.evaluate(script)
            await push(page, "voice", "audio")
        yield pair[0], pair[1]


async def call(page: Page, function: str, *arguments: Any) -> Any:
    return await page.evaluate("([name, ...args]) => window.harness[name](...args)", [function, *arguments])


async def push(page: Page, name: str, kind: str, encodings: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    await call(page, "push", name, kind, encodings)
    return await address(page, name)


async def address(page: Page, name: str, *, other_than: dict[str, Any] | None = None) -> dict[str, Any]:
    """What to tell others about a push, once partytracks has seen media leave."""

    async def known() -> dict[str, Any] | None:
        found: dict[str, Any] | None = await call(page, "address", name)
        return found if found and (other_than is None or found["sessionId"] != other_than["sessionId"]) else None

    return await until(f"the address of {name}", known)


async def video_width(page: Page) -> int:
    return max((entry.get("frameWidth", 0) for entry in (await inbound(page)).values()), default=0)


async def test_what_one_pushes_the_other_sees_and_hears(pages: tuple[Page, Page]) -> None:
    for page, other in (pages, pages[::-1]):
        await call(page, "pull", "their voice", await address(other, "voice"))
        await call(page, "pull", "their video", await push(other, "video", "video"))
    for page in pages:
        await frames_advance(page)
        await audio_is_heard(page)


async def test_an_address_holds_what_a_pull_needs_and_no_more(pages: tuple[Page, Page]) -> None:
    """§10.3: extra keys of our result would travel to every other user and come back in pulls."""
    found = await push(pages[0], "video", "video")
    assert set(found) == {"trackName", "sessionId", "location"}
    assert found["location"] == "remote"


async def test_tracks_pushed_and_pulled_in_one_turn_share_requests(pages: tuple[Page, Page]) -> None:
    ada, bob = pages
    await ada.evaluate("Promise.all(['one', 'two', 'three'].map((name) => harness.push(name, 'video')))")
    addresses = [await address(ada, name) for name in ("one", "two", "three")]
    await bob.evaluate("(all) => all.forEach((one, index) => harness.pull(index, one))", addresses)
    await frames_advance(bob, tracks=3)
    assert [len(answer["tracks"]) for answer in await call(bob, "answers", "tracks/new")] == [1, 3]


async def test_a_closed_pull_and_push_give_way_to_new_ones(pages: tuple[Page, Page]) -> None:
    """§10.6: the close is an offer, and needs an answer; the same peer connections go on."""
    ada, bob = pages
    await call(bob, "pull", "first", await push(ada, "first", "video"))
    await frames_advance(bob)
    await call(bob, "close", "first")
    await call(ada, "close", "first")
    for page in pages:

        async def closed(page: Page = page) -> bool:
            return bool(await call(page, "answers", "tracks/close")) and await call(page, "signalingState") == "stable"

        await until("the answer to the close", closed)
        (answer,) = await call(page, "answers", "tracks/close")
        assert answer["sessionDescription"]["type"] == "answer"
        assert "errorCode" not in answer["tracks"][0]
    await call(bob, "pull", "second", await push(ada, "second", "video"))
    await frames_advance(bob)


async def test_closing_the_section_that_carries_the_bundle_group_leaves_the_others(pages: tuple[Page, Page]) -> None:
    """§2, §10.6: Chromium builds its transport anew when its own offer ends that section, here the voice's."""
    ada, bob = pages
    video = await push(ada, "video", "video")
    await call(bob, "pull", "video", video)
    await frames_advance(bob)
    await call(ada, "close", "voice")
    await until("the answer to the close", lambda: call(ada, "answers", "tracks/close"))
    await frames_advance(bob, frames=30)
    assert await address(ada, "video") == video


async def test_a_publisher_whose_transport_broke_is_seen_again_at_its_new_address(pages: tuple[Page, Page]) -> None:
    """§10.5: a new session, the same track name, no word about the old session."""
    ada, bob = pages
    old = await push(ada, "video", "video")
    await call(bob, "pull", "video", old)
    await frames_advance(bob)
    await call(ada, "breakTransport")
    new = await address(ada, "video", other_than=old)
    assert new["trackName"] == old["trackName"]
    await call(bob, "repull", "video", new)
    await frames_advance(bob)


async def test_a_subscriber_whose_transport_broke_pulls_everything_again(pages: tuple[Page, Page]) -> None:
    ada, bob = pages
    await call(bob, "pull", "video", await push(ada, "video", "video"))
    await call(bob, "pull", "audio", await address(ada, "voice"))
    await frames_advance(bob)
    before = await call(bob, "pulledTrack", "video")
    await call(bob, "breakTransport")

    async def pulled_again() -> bool:
        return await call(bob, "pulledTrack", "video") not in (None, before)

    await until("another track", pulled_again)
    await frames_advance(bob)
    await audio_is_heard(bob)


async def test_the_preferred_layer_is_what_arrives(pages: tuple[Page, Page]) -> None:
    """§8, §10.2: `preferredRid` at the pull, then by updates beside the queue; "" leaves the choice to the server."""
    ada, bob = pages
    await call(bob, "pull", "video", await push(ada, "video", "video", SIMULCAST), "q")
    for rid in ("q", "h", "f", "q"):
        await call(bob, "prefer", "video", rid)

        async def arrived(width: int = WIDTHS[rid]) -> bool:
            return await video_width(bob) == width

        await until(f"layer {rid}", arrived, within=30)
        await frames_advance(bob)
    await call(bob, "prefer", "video", "")
    await frames_advance(bob)
    updates = await call(bob, "answers", "tracks/update")
    assert len(updates) >= 5
    assert not any("errorCode" in item for answer in updates for item in [answer, *answer["tracks"]])
