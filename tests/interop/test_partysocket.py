"""The real partysocket, unmodified, in Node and in Chromium: what its users rely on. Numbers: the party contract's."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from tests.scenario.test_party import Parties
from tests.support.browser import chromium, open_page
from tests.support.bundle import bundle
from tests.support.rooms import Gateway, gateway, until
from tests.support.tools import needs_partysocket

SUPPORT = Path(__file__).parent.parent / "support"

pytestmark = needs_partysocket


class Client:
    """Something that runs partysocket for us."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.events: list[dict[str, Any]] = []

    async def tell(self, command: str, **rest: Any) -> None:
        raise NotImplementedError

    async def _event(self) -> dict[str, Any]:
        raise NotImplementedError

    async def next(self, kind: str) -> dict[str, Any]:
        """The next event of a kind; those before it are kept in `events`."""
        async with asyncio.timeout(30):
            while True:
                self.events.append(await self._event())
                if self.events[-1]["type"] == kind:
                    return self.events[-1]


class Node(Client):
    """A process of Node."""

    def __init__(self, process: asyncio.subprocess.Process, host: str) -> None:
        super().__init__(host)
        self._process = process

    async def tell(self, command: str, **rest: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **rest}).encode() + b"\n")
        await self._process.stdin.drain()

    async def _event(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the client ended"
        event: dict[str, Any] = json.loads(line)
        return event


class Tab(Client):
    """A page of Chromium, from the server's origin."""

    def __init__(self, page: Page, host: str) -> None:
        super().__init__(host)
        self._page = page
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def load(self) -> None:
        await self._page.expose_function("say", self._said.put_nowait)
        await self._page.evaluate(bundle("partysocket_harness").read_text())

    async def tell(self, command: str, **rest: Any) -> None:
        await self._page.evaluate("command => window.tell(command)", {"command": command, **rest})

    async def _event(self) -> dict[str, Any]:
        return await self._said.get()


@asynccontextmanager
async def node(host: str) -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        "node", "--experimental-websocket", "--no-warnings", str(SUPPORT / "partysocket_client.mjs"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=64 * 2**20,
    )  # fmt: skip
    try:
        yield Node(process, host)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def tab(host: str) -> AsyncIterator[Client]:
    async with chromium() as browser, open_page(browser, f"http://{host}/") as page:
        client = Tab(page, host)
        await client.load()
        yield client


@pytest.fixture(params=["node", pytest.param("chromium", marks=[pytest.mark.browser, pytest.mark.slow])])
async def room(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Gateway, Parties, Client]]:
    parties = Parties(tmp_path / "data")
    run = node if request.param == "node" else tab
    async with (
        gateway(clock=parties.clock, side=parties, application=parties) as running,
        run(f"127.0.0.1:{running.port}") as client,
    ):
        yield running, parties, client


Setup = tuple[Gateway, Parties, Client]


async def test_41_what_was_sent_before_the_open_arrives_first_and_in_order(room: Setup) -> None:
    _, _, client = room
    options = {"host": client.host, "room": "my room", "id": "me"}
    await client.tell("open", name="a", options=options, early=["one", "two", "who"])
    assert [(await client.next("message"))["data"] for _ in range(2)] == ["one", "two"]
    name, connection_id, uri, *_ = json.loads((await client.next("message"))["data"])
    assert (name, connection_id) == ("my%20room", "me")
    assert uri.endswith("/parties/main/my%20room?_pk=me")


async def test_42_a_reconnect_keeps_the_id_and_gets_broadcasts(room: Setup) -> None:
    _, parties, client = room
    await client.tell("open", name="a", options={"host": client.host, "room": "r", "id": "me"})
    await client.next("open")
    await client.tell("reconnect", name="a", code=4321)
    assert (await client.next("open"))["id"] == "me"
    await until(lambda: ("close", "me", 4321, "", True, False) in parties.env["log"])
    await client.tell("send", name="a", message="who")
    assert json.loads((await client.next("message"))["data"])[4] == ["me"]
    await client.tell("send", name="a", message="to all but nobody")
    assert (await client.next("message"))["data"] == "for the others"


async def test_34_the_protocols_option_works(room: Setup) -> None:
    _, _, client = room
    await client.tell("open", name="a", options={"host": client.host, "room": "r", "protocols": ["p2"]}, early=["hi"])
    assert (await client.next("message"))["data"] == "hi"


async def test_a_hibernating_room_is_invisible_to_the_client(room: Setup) -> None:
    _, parties, client = room
    await client.tell("open", name="a", options={"host": client.host, "room": "r", "party": "sleeper"}, early=["count"])
    assert (await client.next("message"))["data"] == "count 1"
    await parties.sleep()
    assert parties.host.awake() == {}
    await client.tell("send", name="a", message="count")
    assert (await client.next("message"))["data"] == "count 1"
    assert [event["type"] for event in client.events] == ["open", "message", "message"]


async def test_a_close_of_the_server_arrives_with_its_code_and_the_client_comes_back(room: Setup) -> None:
    running, _, client = room
    options = {"host": client.host, "room": "r", "minReconnectionDelay": 10}
    await client.tell("open", name="a", options=options)
    await client.next("open")
    await running.service.drain()
    closed = await client.next("close")
    assert (closed["code"], closed["reason"]) == (1012, "service restart")
    await client.next("open")


async def test_fetch_reaches_on_request(room: Setup) -> None:
    _, _, client = room
    await client.tell("fetch", options={"host": client.host, "room": "r", "path": "sub"}, init={"method": "POST"})
    response = await client.next("response")
    assert response["status"] == 200
    name, method, url, _ = json.loads(response["text"])
    assert (name, method) == ("r", "POST")
    assert url.endswith("/parties/main/r/sub")


async def test_06_22_the_same_id_twice_and_a_query(room: Setup) -> None:
    _, _, client = room
    options = {"host": client.host, "room": "r", "id": "twin", "query": {"tags": "red", "none": None}}
    await client.tell("open", name="a", options=options)
    await client.next("open")
    await client.tell("open", name="b", options=options)
    await client.next("open")
    await client.tell("send", name="a", message="to all but nobody")
    assert {(await client.next("message"))["name"] for _ in range(2)} == {"a", "b"}
    await client.tell("close", name="a")
    await client.next("close")
    await client.tell("send", name="b", message="who")
    _, connection_id, uri, tags, listed = json.loads((await client.next("message"))["data"])
    assert (connection_id, tags, listed) == ("twin", ["twin", "red"], ["twin"])
    assert "none=" not in uri


async def test_27_a_close_code_of_the_room_reaches_the_page(room: Setup) -> None:
    _, _, client = room
    await client.tell("open", name="a", options={"host": client.host, "room": "r", "query": {"do": "kick"}})
    assert (await client.next("message"))["data"] == "first"
    closed = await client.next("close")
    assert (closed["code"], closed["reason"]) == (4001, "kicked")
    await client.tell("close", name="a")


async def test_a_refusal_by_close_tells_the_page_why(room: Setup) -> None:
    _, _, client = room
    await client.tell("open", name="a", options={"host": client.host, "room": "shut"})
    closed = await client.next("close")
    assert (closed["code"], closed["reason"]) == (4403, "closed")
    await client.tell("close", name="a")


async def test_four_full_rooms_hear_everything_in_one_order(room: Setup) -> None:
    _, _, client = room
    rooms, clients, senders, messages = ["a", "b", "c", "d"], 100, 5, 5
    async with AsyncExitStack() as stack:
        crowds = [client]
        if isinstance(client, Tab):  # Chromium opens 255 WebSockets at most: two browsers with half of each room
            crowds.append(await stack.enter_async_context(tab(client.host)))
        expected, each = senders * messages, clients // len(crowds)
        for one in crowds:
            await one.tell("gather", host=client.host, rooms=rooms, clients=each, expected=expected)
        for one in crowds:
            await one.next("gathered")
        await client.tell("speak", rooms=rooms, senders=senders, messages=messages)
        heard: dict[str, list[list[str]]] = defaultdict(list)
        for one in crowds:
            for listener in (await one.next("heard"))["heard"]:
                heard[listener["room"]].append(listener["mine"])
    for name in rooms:
        assert len(heard[name]) == clients
        assert all(mine == heard[name][0] for mine in heard[name])
        said = [tuple(map(int, message.removeprefix(f"{name} ").split())) for message in heard[name][0]]
        assert sorted(said) == list(itertools.product(range(senders), range(messages)))
        for sender in range(senders):
            assert [count for who, count in said if who == sender] == list(range(messages))
