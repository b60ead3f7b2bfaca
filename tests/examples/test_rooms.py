"""Each example room does what its docstring says: on a server started with its command, or with the test client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from partykit_compat.testing import serve_rooms
from tests.support.server import Server, running_server

ROOMS = Path(__file__).parents[2] / "examples" / "rooms"
NO_MEDIA = ("--media-enabled", "false", "--turn-enabled", "false")
SECRET = "m" * 32

pytestmark = pytest.mark.slow


@asynccontextmanager
async def serving(name: str, folder: Path, **environment: str) -> AsyncIterator[Server]:
    flags = (*NO_MEDIA, "--rooms-folder", str(folder), str(ROOMS / name))
    async with running_server(*flags, environment=environment) as server:
        yield server


def client(server: Server, room: str) -> connect:
    return connect(f"ws://127.0.0.1:{server.port}/parties/{room}")


async def heard(websocket: ClientConnection) -> Any:
    """The next message, decoded."""
    async with asyncio.timeout(20):
        return json.loads(await websocket.recv())


def code_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_chat_shows_newcomers_what_was_said_also_after_a_restart(tmp_path: Path) -> None:
    async with (
        serving("chat.py", tmp_path) as server,
        client(server, "main/lobby?name=Ada") as ada,
        client(server, "main/lobby") as other,
    ):
        assert await heard(ada) == await heard(other) == {"type": "history", "said": []}
        await ada.send("hello")
        said = {"type": "said", "name": "Ada", "text": "hello"}
        assert await heard(ada) == await heard(other) == said
        await other.send("x" * 2_001)
        assert (await heard(other))["type"] == "refused"
    async with serving("chat.py", tmp_path) as server, client(server, "main/lobby") as late:
        assert await heard(late) == {"type": "history", "said": [{"name": "Ada", "text": "hello"}]}


async def test_chat_keeps_the_last_50_and_names_over_hibernation() -> None:
    async with serve_rooms(code_of("chat").Chat) as rooms:
        ada = await rooms.connect("lobby", query={"name": "Ada"})
        await ada.recv()
        for number in range(60):
            await ada.send(str(number))
            await ada.recv()
        assert await rooms.sleep("lobby")
        late = await rooms.connect("lobby")
        said = json.loads(await late.recv())["said"]
        assert said == [{"name": "Ada", "text": str(number)} for number in range(10, 60)]


async def test_cursors_move_and_leave(tmp_path: Path) -> None:
    async with serving("cursors.py", tmp_path) as server, client(server, "main/board?_pk=a") as first:
        assert await heard(first) == {"type": "here", "you": "a", "cursors": {}}
        await first.send('{"x": 0.5, "y": 0.25}')
        for nonsense in ("", "{", "[]", "null", '{"x": 2, "y": 0}', '{"x": "NaN", "y": 0}', b"\xff"):
            await first.send(nonsense)
        async with client(server, "main/board?_pk=b") as second:
            assert await heard(second) == {"type": "here", "you": "b", "cursors": {"a": {"x": 0.5, "y": 0.25}}}
            await second.send('{"x": 0, "y": 1}')
            assert await heard(first) == {"type": "moved", "id": "b", "x": 0.0, "y": 1.0}
        assert await heard(first) == {"type": "left", "id": "b"}


async def test_cursors_stay_where_they_are_while_the_room_hibernates() -> None:
    async with serve_rooms(code_of("cursors").Cursors) as rooms:
        first = await rooms.connect("board", id="a")
        await first.send('{"x": 0.5, "y": 0.25}')
        await rooms.advance(60)
        assert not rooms.is_awake("board")
        second = await rooms.connect("board", id="b")
        assert json.loads(await second.recv())["cursors"] == {"a": {"x": 0.5, "y": 0.25}}


async def test_a_poll_counts_votes_and_shows_them(tmp_path: Path) -> None:
    poll = {"question": "Tea?", "options": ["yes", "no"], "seconds": 60}
    async with serving("poll.py", tmp_path) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/parties/main/tea")).status_code == 404
        assert (await http.post("/parties/main/tea", json={"vote": "yes"})).status_code == 400
        assert (await http.post("/parties/main/tea", content="{")).status_code == 400
        async with client(server, "main/tea") as watcher:
            assert await heard(watcher) is None
            assert (await http.post("/parties/main/tea", json=poll)).status_code == 200
            assert (await heard(watcher))["votes"] == {"yes": 0, "no": 0}
            assert (await http.post("/parties/main/tea", json={"vote": "yes"})).json()["votes"]["yes"] == 1
            assert (await heard(watcher))["votes"] == {"yes": 1, "no": 0}
        assert (await http.post("/parties/main/tea", json={"vote": "maybe"})).status_code == 400
        assert (await http.post("/parties/main/tea", json=poll)).status_code == 400


async def test_a_poll_closes_when_its_alarm_comes_even_after_a_restart(tmp_path: Path) -> None:
    poll = json.dumps({"question": "Tea?", "options": ["yes"], "seconds": 60}).encode()
    code = code_of("poll").Poll
    async with serve_rooms(code, folder=tmp_path) as rooms:
        assert (await rooms.fetch("tea", method="POST", body=poll)).status == 200
    async with serve_rooms(code, folder=tmp_path) as rooms:
        assert (await (await rooms.fetch("tea")).json())["open"] is True
        assert await rooms.run_alarm()
        assert (await (await rooms.fetch("tea")).json())["open"] is False
        late = await rooms.fetch("tea", method="POST", body=b'{"vote": "yes"}')
        assert late.status == 400


async def test_only_members_get_in_and_by_their_own_name(tmp_path: Path) -> None:
    sign = code_of("members").sign
    soon, past = int(time.time()) + 600, int(time.time()) - 1
    good = sign("ada", "board", soon, SECRET)
    async with serving("members.py", tmp_path, MEMBERS_SECRET=SECRET) as server:
        async with client(server, f"main/board?token={good}&_pk=admin") as ada:
            await ada.send("hello")
            assert await ada.recv() == "ada: hello"
        for token in (
            "",
            "ada",
            f"ada.{soon}.",
            good.replace("ada", "bob"),
            sign("ada", "board", past, SECRET),
            sign("ada", "elsewhere", soon, SECRET),
            sign("ada", "board", soon, "x" * 32),
            "%C3%A4" + good,
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with client(server, f"main/board?token={token}"):
                    pass
            assert refused.value.response.status_code == 401


async def test_the_lobby_knows_who_sits_where(tmp_path: Path) -> None:
    async with serving("lobby.py", tmp_path) as server, client(server, "lobby/all") as lobby:
        assert await heard(lobby) == {}
        async with client(server, "main/one"), client(server, "main/one"):
            assert await heard(lobby) == {"one": 1}
            assert await heard(lobby) == {"one": 2}
            async with client(server, "main/two"):
                assert await heard(lobby) == {"one": 2, "two": 1}
            assert await heard(lobby) == {"one": 2}
