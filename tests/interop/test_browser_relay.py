"""Chromium behind a firewall: it may use nothing but a relay of ours, and still is in the call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.support.browser import audio_is_heard, chromium, frames_advance, open_page, stats, until
from tests.support.certificates import make_certificate, public_key_hash
from tests.support.server import Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TRANSPORTS = {
    "udp": ("turn:", "?transport=udp"),
    "tcp": ("turn:", "?transport=tcp"),
    "tls": ("turns:", "?transport=tcp"),
}

# As a page that sets `iceTransportPolicy` itself; the url is one of those that the server handed out.
RELAY_ONLY = """
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration, ...rest) {
    const [scheme, transport] = %s;
    const iceServers = configuration.iceServers
      .map((server) => ({
        ...server,
        urls: server.urls.filter((url) => url.startsWith(scheme) && url.endsWith(transport)),
      }))
      .filter((server) => server.urls.length > 0);
    super({ ...configuration, iceServers, iceTransportPolicy: "relay" }, ...rest);
  }
};
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["in-memory", "network"])
async def setting(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Server, Browser]]:
    """A server with TURN over UDP, TCP and TLS, and a browser that trusts its certificate.

    Once with packets between relay and media side staying in the process, as by default, and once without.
    """
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    flags = ["--turn-tls-certificate", str(certificate), "--turn-tls-key", str(key), "--turn-public-host", "localhost"]
    if request.param == "network":
        flags += ["--turn-media-in-memory", "false"]
    async with (
        running_server(*flags) as server,
        chromium(f"--ignore-certificate-errors-spki-list={public_key_hash(certificate)}") as browser,
    ):
        yield server, browser
        passed = [await total(server, f"torpor_turn_in_memory_{way}_total") for way in ("sent", "received")]
        assert [count > 500 for count in passed] == [request.param == "in-memory"] * 2
        assert request.param == "in-memory" or passed == [0, 0]


@asynccontextmanager
async def joined(browser: Browser, server: Server, room: str, name: str, transport: str = "") -> AsyncIterator[Page]:
    """A person in a room; with `transport` by a relay only."""
    async with open_page(browser, server.url) as page:
        if transport:
            await page.add_init_script(RELAY_ONLY % json.dumps(TRANSPORTS[transport]))
            await page.reload()
        await page.get_by_label("Room", exact=True).fill(room)
        await page.get_by_label("Your name").fill(name)
        await page.get_by_role("radio", name="A test picture").check(force=True)
        await page.get_by_role("button", name="Join").click()
        yield page


async def path_in_use(page: Page) -> dict[str, Any]:
    """The local candidate that media goes by."""

    async def selected() -> dict[str, Any] | None:
        pairs = {pair["id"]: pair for pair in await stats(page, "candidate-pair")}
        for transport in await stats(page, "transport"):
            if (pair := pairs.get(transport.get("selectedCandidatePairId", ""))) is not None:
                candidates = {entry["id"]: entry for entry in await stats(page, "local-candidate")}
                return candidates.get(pair["localCandidateId"])
        return None

    return await until("a selected candidate", selected)


async def total(server: Server, name: str) -> float:
    """A metric, all labels together."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


async def relayed_bytes(server: Server) -> float:
    """Payload that passed relays so far, both ways."""
    return await total(server, "torpor_turn_relayed_bytes_total")


async def allocations(server: Server) -> float:
    """Relays that live."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith('torpor_turn_live{kind="allocations"'))


class TestRelayOnly:
    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_a_relayed_person_and_a_direct_one_see_and_hear_each_other(
        self, setting: tuple[Server, Browser], transport: str
    ) -> None:
        server, browser = setting
        async with AsyncExitStack() as stack:
            ada = await stack.enter_async_context(joined(browser, server, transport, "Ada", transport))
            bob = await stack.enter_async_context(joined(browser, server, transport, "Bob"))
            for page in (ada, bob):
                await frames_advance(page)
                await audio_is_heard(page)
            candidate = await path_in_use(ada)
            assert (candidate["candidateType"], candidate["relayProtocol"]) == ("relay", transport)
            assert (await path_in_use(bob))["candidateType"] != "relay"
            before = await relayed_bytes(server)
            await frames_advance(ada, frames=20)
            assert await relayed_bytes(server) > before
            await expect(ada.get_by_role("status")).to_have_text("Connected")

    async def test_two_relayed_people_meet(self, setting: tuple[Server, Browser]) -> None:
        server, browser = setting
        async with AsyncExitStack() as stack:
            ada = await stack.enter_async_context(joined(browser, server, "both", "Ada", "tls"))
            bob = await stack.enter_async_context(joined(browser, server, "both", "Bob", "udp"))
            for page in (ada, bob):
                await frames_advance(page)
                await audio_is_heard(page)

    async def test_a_relay_over_tcp_ends_with_its_page(self, setting: tuple[Server, Browser]) -> None:
        """T3. One over UDP may stay for its ten minutes: a page that is torn down has no time to say goodbye."""
        _, browser = setting
        async with running_server() as server:
            async with joined(browser, server, "ends", "Ada", "tcp") as ada:
                assert (await path_in_use(ada))["candidateType"] == "relay"
                assert await allocations(server) > 0

            async def gone() -> bool:
                return await allocations(server) == 0

            await until("the end of the relay", gone)
