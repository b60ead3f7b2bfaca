"""The real partysocket, unmodified, under Node: what its users rely on. Numbers are those of the party contract."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenario.test_party import Parties
from tests.support.rooms import Gateway, gateway, until

SUPPORT = Path(__file__).parent.parent / "support"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (SUPPORT / "node_modules" / "partysocket").exists(),
    reason="needs node, and partysocket from tests/support/install.sh",
)


class Node:
    """The client process."""

    def __init__(self, process: asyncio.subprocess.Process, host: str) -> None:
        self._process = process
        self.host = host
        self.events: list[dict[str, Any]] = []

    async def tell(self, command: str, **rest: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **rest}).encode() + b"\n")
        await self._process.stdin.drain()

    async def next(self, kind: str) -> dict[str, Any]:
        """The next event of a kind; those before it are kept in `events`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            while line := await self._process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["type"] == kind:
                    return self.events[-1]
        raise AssertionError("the client ended")


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[tuple[Gateway, Parties, Node]]:
    parties = Parties(tmp_path / "data")
    async with gateway(clock=parties.clock, side=parties, application=parties) as running:
        process = await asyncio.create_subprocess_exec(
            "node", "--experimental-websocket", "--no-warnings", str(SUPPORT / "partysocket_client.mjs"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            yield running, parties, Node(process, f"127.0.0.1:{running.port}")
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


Setup = tuple[Gateway, Parties, Node]


async def test_41_what_was_sent_before_the_open_arrives_first_and_in_order(room: Setup) -> None:
    _, _, node = room
    options = {"host": node.host, "room": "my room", "id": "me"}
    await node.tell("open", name="a", options=options, early=["one", "two", "who"])
    assert [(await node.next("message"))["data"] for _ in range(2)] == ["one", "two"]
    name, connection_id, uri, *_ = json.loads((await node.next("message"))["data"])
    assert (name, connection_id) == ("my%20room", "me")
    assert uri.endswith("/parties/main/my%20room?_pk=me")


async def test_42_a_reconnect_keeps_the_id_and_gets_broadcasts(room: Setup) -> None:
    _, parties, node = room
    await node.tell("open", name="a", options={"host": node.host, "room": "r", "id": "me"})
    await node.next("open")
    await node.tell("reconnect", name="a", code=4321)
    assert (await node.next("open"))["id"] == "me"
    await until(lambda: ("close", "me", 4321, "", True, False) in parties.env["log"])
    await node.tell("send", name="a", message="who")
    assert json.loads((await node.next("message"))["data"])[4] == ["me"]
    await node.tell("send", name="a", message="to all but nobody")
    assert (await node.next("message"))["data"] == "for the others"


async def test_34_the_protocols_option_works(room: Setup) -> None:
    _, _, node = room
    await node.tell("open", name="a", options={"host": node.host, "room": "r", "protocols": ["p2"]}, early=["hi"])
    assert (await node.next("message"))["data"] == "hi"


async def test_a_hibernating_room_is_invisible_to_the_client(room: Setup) -> None:
    _, parties, node = room
    await node.tell("open", name="a", options={"host": node.host, "room": "r", "party": "sleeper"}, early=["count"])
    assert (await node.next("message"))["data"] == "count 1"
    await parties.sleep()
    assert parties.host.awake() == {}
    await node.tell("send", name="a", message="count")
    assert (await node.next("message"))["data"] == "count 1"
    assert [event["type"] for event in node.events] == ["open", "message", "message"]


async def test_a_close_of_the_server_arrives_with_its_code_and_the_client_comes_back(room: Setup) -> None:
    running, _, node = room
    options = {"host": node.host, "room": "r", "minReconnectionDelay": 10}
    await node.tell("open", name="a", options=options)
    await node.next("open")
    await running.service.drain()
    closed = await node.next("close")
    assert (closed["code"], closed["reason"]) == (1012, "service restart")
    await node.next("open")


async def test_fetch_reaches_on_request(room: Setup) -> None:
    _, _, node = room
    await node.tell("fetch", options={"host": node.host, "room": "r", "path": "sub"}, init={"method": "POST"})
    response = await node.next("response")
    assert response["status"] == 200
    name, method, url, _ = json.loads(response["text"])
    assert (name, method) == ("r", "POST")
    assert url.endswith("/parties/main/r/sub")
