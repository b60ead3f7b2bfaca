"""The demo page in Chromium: what a person with two tabs sees and hears."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, WebSocketRoute, expect
from websockets.asyncio.client import connect

from tests.support.browser import audio_is_heard, chromium, frames_advance, inbound, open_page, stats, until
from tests.support.server import Server, running_server

ABOVE_ZERO = re.compile(r"[1-9]\d* kbit/s|\d+\.\d Mbit/s")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def pages(browser: Browser, server: Server, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Page, Page]]:
    """Ada and Bob in a room of this test's own, both as test pictures, seeing each other's tile."""
    async with AsyncExitStack() as stack:
        ada, bob = [await stack.enter_async_context(open_page(browser, server.url)) for _ in range(2)]
        await join(ada, request.node.name, "Ada")
        await join(bob, request.node.name, "Bob")
        await expect(tile(ada, "Bob")).to_be_visible()
        await expect(tile(bob, "Ada")).to_be_visible()
        yield ada, bob


async def join(page: Page, room: str, name: str, *, source: str = "A test picture") -> None:
    await page.get_by_label("Room", exact=True).fill(room[:64])
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("radio", name=source).check(force=True)
    await page.get_by_role("button", name="Join").click()


def tile(page: Page, name: str) -> Locator:
    return page.get_by_role("figure", name=name, exact=True)


async def press(page: Page, button: str) -> None:
    await page.get_by_role("button", name=button, exact=True).click()


class TestPeople:
    async def test_two_people_see_and_hear_each_other(self, pages: tuple[Page, Page]) -> None:
        for page in pages:
            await frames_advance(page)
            await audio_is_heard(page)
            await expect(page.get_by_role("status")).to_have_text("Connected")

    async def test_two_tabs_of_one_browser_are_offered_the_same_room(self, browser: Browser, server: Server) -> None:
        async with await browser.new_context() as person:
            rooms = []
            for _ in range(2):
                tab = await person.new_page()
                await tab.goto(server.url)
                rooms.append(await tab.get_by_label("Room", exact=True).input_value())
            assert rooms[0] == rooms[1] != ""

    async def test_a_camera_and_a_microphone_arrive_as_well(self, browser: Browser, server: Server) -> None:
        async with open_page(browser, server.url) as ada, open_page(browser, server.url) as bob:
            await join(ada, "camera", "Ada", source="My camera")
            await join(bob, "camera", "Bob")
            await frames_advance(bob)
            await audio_is_heard(bob)
            await expect(ada.locator("#notice")).to_be_hidden()

    async def test_the_panel_shows_what_flows(self, pages: tuple[Page, Page]) -> None:
        ada, _ = pages
        await ada.locator("#stats summary").click()
        await expect(ada.locator("[data-stat=codecs]")).to_contain_text("opus")
        await expect(ada.locator("[data-stat=sent]")).to_have_text(ABOVE_ZERO)
        await expect(ada.locator("[data-stat=received]")).to_have_text(ABOVE_ZERO)
        await expect(ada.locator("[data-stat=rtt]")).to_contain_text("ms")

    async def test_leaving_removes_the_tile_and_shows_the_lobby(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await press(ada, "Leave")
        await expect(ada.get_by_role("button", name="Join")).to_be_visible()
        await expect(tile(bob, "Ada")).to_have_count(0)
        await expect(bob.get_by_text("Nobody else is here yet")).to_be_visible()

    async def test_a_reload_joins_again_by_itself(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await frames_advance(bob)
        await ada.reload()
        await expect(tile(ada, "Bob")).to_be_visible()
        await frames_advance(ada)
        await expect(tile(bob, "Ada")).to_have_count(1)
        await frames_advance(bob)

    async def test_a_name_is_text_and_nothing_else(self, pages: tuple[Page, Page], browser: Browser) -> None:
        ada, _ = pages
        name = "<img src=x onerror=alert(1)>"
        async with open_page(browser, ada.url) as eve:
            await join(eve, await ada.locator("#room-title").inner_text(), name)
            await expect(tile(ada, name)).to_be_visible()
            assert await ada.locator("#tiles img").count() == 0


class TestButtons:
    async def test_muting_is_seen_by_the_others_and_keeps_the_track_alive(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await audio_is_heard(bob)
        await press(ada, "Mute")
        await expect(tile(bob, "Ada").get_by_role("img", name="muted")).to_be_visible()
        before = await sound(bob)

        async def silent_packets_arrive() -> bool:
            return (await sound(bob))["packetsReceived"] > before["packetsReceived"] + 25

        await until("packets of silence", silent_packets_arrive)
        await press(ada, "Mute")
        await expect(tile(bob, "Ada").get_by_role("img", name="muted")).to_be_hidden()
        await audio_is_heard(bob)

    async def test_a_camera_turned_off_shows_the_initial_and_comes_back(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await frames_advance(bob)
        await press(ada, "Camera off")
        await expect(tile(bob, "Ada").get_by_text("A", exact=True)).to_be_visible()
        await press(ada, "Camera off")
        await expect(tile(bob, "Ada").get_by_text("A", exact=True)).to_be_hidden()
        await frames_advance(bob, frames=20)

    async def test_a_shared_screen_is_a_tile_of_its_own(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await press(ada, "Share")
        await expect(tile(bob, "Ada’s screen")).to_be_visible()
        await frames_advance(bob, tracks=2)
        await press(ada, "Share")
        await expect(tile(bob, "Ada’s screen")).to_have_count(0)
        await expect(tile(ada, "Your screen")).to_have_count(0)
        await frames_advance(bob)

    async def test_saving_data_gets_the_smallest_layer(self, pages: tuple[Page, Page]) -> None:
        """Realtime API §8: the preferred layer is what arrives; half of 640 pixels here."""
        ada, _ = pages
        await frames_advance(ada)
        await press(ada, "Save data")

        async def small() -> bool:
            return [video["frameWidth"] for video in await videos(ada)] == [320]

        await until("the small picture", small, within=30)
        await frames_advance(ada)

    async def test_the_keyboard_is_enough(self, browser: Browser, server: Server) -> None:
        async with open_page(browser, server.url) as page:
            await expect(page.get_by_label("Your name")).to_be_focused()
            await page.keyboard.type("Ada")
            await page.keyboard.press("Enter")
            await expect(tile(page, "Ada (you)")).to_be_visible()
            await page.keyboard.press("m")
            await expect(page.get_by_role("button", name="Mute")).to_have_attribute("aria-pressed", "true")
            await page.get_by_role("button", name="Leave").focus()
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("button", name="Join")).to_be_focused()


class TestTrouble:
    async def test_without_permission_a_test_picture_is_sent_and_the_reason_said(self, server: Server) -> None:
        async with (
            chromium("--use-fake-ui-for-media-stream=deny") as browser,
            open_page(browser, server.url) as ada,
            open_page(browser, server.url) as bob,
        ):
            await join(ada, "denied", "Ada", source="My camera")
            await expect(ada.get_by_role("alert")).to_contain_text("not allowed to use your camera")
            await join(bob, "denied", "Bob")
            await frames_advance(bob)

    async def test_held_back_sound_is_a_press_away_and_the_picture_plays_meanwhile(self, server: Server) -> None:
        """A tab that a browser restores joins again, but nobody has touched it yet, and so it must be silent."""
        restored = {"room": "silence", "name": "Bob", "source": "synthetic"}
        async with (
            chromium("--autoplay-policy=document-user-activation-required") as browser,
            open_page(browser, server.url) as ada,
            open_page(browser, server.url) as bob,
        ):
            await join(ada, "silence", "Ada")
            await bob.add_init_script(f"sessionStorage.setItem('torpor.call', '{json.dumps(restored)}')")
            await bob.add_init_script(LOG_REFUSED_PLAY)
            # Whatever Playwright evaluates counts as a gesture, so nothing may be asked of the page before.
            async with bob.expect_console_message(lambda message: message.text == "NotAllowedError"):
                await bob.reload()
            await expect(bob.locator("#unblock")).to_be_visible()
            await frames_advance(bob)
            await bob.locator("#unblock").click()
            await expect(bob.locator("#unblock")).to_be_hidden()
            aloud = "!document.querySelector('.tile:not(.mine) video').muted"
            await until("a tile that is not muted", lambda: bob.evaluate(aloud))

    async def test_a_refusal_is_shown_in_words(self, browser: Browser, server: Server) -> None:
        url = server.url.replace("http", "ws") + "/parties/torpor-demo/crowd?name=member"
        async with AsyncExitStack() as stack:
            page = await stack.enter_async_context(open_page(browser, server.url))
            for _ in range(24):
                # Without a limit: at 16 unread messages it stops to read, and waits 10 s for the answer to its close.
                await (await stack.enter_async_context(connect(url, max_queue=None))).recv()
            await join(page, "crowd", "Ada")
            await expect(page.get_by_role("alert")).to_have_text("The room is full: 24 people are in it.")

    async def test_a_silent_server_is_named_and_joining_works_once_it_answers(
        self, browser: Browser, server: Server
    ) -> None:
        async with open_page(browser, server.url) as page:
            answers = False

            async def answer(socket: WebSocketRoute) -> None:
                if answers:
                    socket.connect_to_server()
                else:
                    await socket.close(code=3000)

            await page.route_web_socket("**/parties/torpor-demo/**", answer)
            await join(page, "silence", "Ada")
            await expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it running?")
            answers = True
            await press(page, "Join")
            await expect(page.get_by_role("status")).to_have_text("Connected")

    async def test_an_api_that_fails_for_a_while_is_named_and_asked_again(self, pages: tuple[Page, Page]) -> None:
        """The session lives on meanwhile: nothing is connected anew."""
        ada, _ = pages
        await frames_advance(ada)
        await ada.route("**/tracks/update", lambda route: route.fulfill(status=503, body="busy"))
        await press(ada, "Save data")
        await expect(ada.get_by_role("status")).to_have_text("The server does not answer")
        await ada.unroute_all()
        await expect(ada.get_by_role("status")).to_have_text("Connected")
        assert await ada.evaluate("peerConnections.length") == 1

    async def test_a_lost_session_is_replaced_without_the_persons_doing(self, pages: tuple[Page, Page]) -> None:
        ada, bob = pages
        await frames_advance(bob)
        await ada.evaluate(BREAK_TRANSPORT)
        for page in pages:
            await frames_advance(page)
            await audio_is_heard(page)
        await expect(ada.get_by_role("status")).to_have_text("Connected")

    async def test_a_restarted_server_finds_everybody_again(self, browser: Browser) -> None:
        async with AsyncExitStack() as stack:
            async with running_server() as server:
                pages = [await stack.enter_async_context(open_page(browser, server.url)) for _ in range(2)]
                for page, name in zip(pages, ("Ada", "Bob"), strict=True):
                    await join(page, "restart", name)
                for page in pages:
                    await frames_advance(page)
            for page in pages:
                await expect(page.get_by_role("status")).to_have_text("The server does not answer")
            async with running_server("--http-port", server.url.rpartition(":")[2]):
                for page in pages:
                    await frames_advance(page, within=30)
                    await audio_is_heard(page)
                    await expect(page.get_by_role("status")).to_have_text("Connected")
                await stack.aclose()


LOG_REFUSED_PLAY = """
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {
  const started = play.call(this);
  started.catch(({ name }) => console.log(name));
  return started;
};
"""

# Gone from one moment to the next; closing does not fire the event that a failure does.
BREAK_TRANSPORT = """
() => window.peerConnections.forEach((connection) => {
  connection.close();
  connection.dispatchEvent(new Event("connectionstatechange"));
})
"""


class TestClient:
    """`web/realtime.js` by itself, in the page's origin."""

    async def test_pulling_and_closing_20_times_does_not_grow_the_description(self, pages: tuple[Page, Page]) -> None:
        """Realtime API §4: closed media sections are used again; §0.10: whichever carried the BUNDLE tag."""
        _, bob = pages
        await frames_advance(bob)
        sections = await bob.evaluate(PULL_AND_CLOSE, {"address": await address_of_camera(bob), "rounds": 20})
        assert len(sections) == 21
        assert max(sections) <= 3
        await frames_advance(bob, tracks=2)


# A second client in the page, so that the page's own tracks are left alone. Each round pulls a track and closes the one
# before it, so that every media section is freed in turn, the one with the BUNDLE tag included.
PULL_AND_CLOSE = """
async ({ address, rounds }) => {
  const { RealtimeClient } = await import("/realtime.js");
  const client = new RealtimeClient();
  const sections = [];
  let pulled = null;
  for (let round = 0; round <= rounds; round++) {
    const before = pulled;
    pulled = client.pull(address);
    await new Promise((resolve) => pulled.addEventListener("track", resolve, { once: true }));
    sections.push(client.peerConnection.remoteDescription.sdp.match(/^m=/gm).length);
    before?.close();
  }
  const video = Object.assign(document.createElement("video"), { autoplay: true, muted: true });
  video.srcObject = new MediaStream([pulled.track]);
  document.body.append(video);
  return sections;
}
"""


async def address_of_camera(page: Page) -> dict[str, str]:
    """The address under which the other one's camera is listed."""
    room = await page.locator("#room-title").inner_text()
    listed: list[dict[str, Any]] = await page.evaluate(
        """(room) => new Promise((resolve) => {
          const path = `/parties/torpor-demo/${encodeURIComponent(room)}?name=me`;
          const socket = new WebSocket(location.origin.replace("http", "ws") + path);
          socket.addEventListener("message", ({ data }) => {
            if (!JSON.parse(data).members) return;
            socket.close();
            resolve(JSON.parse(data).members);
          });
        })""",
        room,
    )
    (ada,) = [member for member in listed if member["name"] == "Ada"]
    (camera,) = [track for track in ada["tracks"] if track["source"] == "camera"]
    return {"sessionId": camera["sessionId"], "trackName": camera["trackName"]}


async def videos(page: Page) -> list[dict[str, Any]]:
    return [entry for entry in (await inbound(page)).values() if entry["kind"] == "video"]


async def sound(page: Page) -> dict[str, Any]:
    (entry,) = [entry for entry in await stats(page, "inbound-rtp") if entry["kind"] == "audio"]
    return entry
