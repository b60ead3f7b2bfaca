"""The code of docs/rooms.md runs as it stands there: its room, and the test that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from partykit_compat.testing import serve_rooms

PAGE = Path(__file__).parents[2] / "docs" / "rooms.md"


def code() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "board"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


async def test_the_test_on_the_page_passes() -> None:
    await code()["test_notes_outlive_sleep_and_go_after_an_hour"]()


async def test_the_room_on_the_page_does_what_it_says() -> None:
    async with serve_rooms(code()["Board"]) as rooms:
        stranger = await rooms.connect("private-1")
        assert await stranger.closed() == (4401, "a key is needed")
        ada = await rooms.connect("news", id="ada")
        reader = await rooms.connect("news", id="bob", query={"read": "1"})
        assert json.loads(await ada.recv()) == {"notes": [], "writers": 1}
        assert json.loads(await reader.recv()) == {"notes": [], "writers": 1}
        await reader.send("not heard")
        await ada.send("hello")
        for client in (ada, reader):
            assert json.loads(await client.recv()) == {"who": "ada", "text": "hello", "written": 1}
        await rooms.advance(3_660)
        for client in (ada, reader):
            assert json.loads(await client.recv()) == {"notes": []}
        assert (await rooms.fetch("news", "/tick", method="POST")).status == 200
