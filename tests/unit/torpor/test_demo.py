"""The demo page's member list: a room that says who is there, and every bound."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from partykit_compat.testing import Client, TestRooms, serve_rooms
from torpor import demo

CAMERA = {"sessionId": "a" * 32, "trackName": "video-1", "kind": "video", "source": "camera"}
NOTHING = {"tracks": [], "muted": False, "cameraOff": False}


@pytest.fixture
async def rooms() -> AsyncIterator[TestRooms]:
    async with serve_rooms({demo.PARTY: demo.DemoRoom}) as rooms:
        yield rooms


async def join(rooms: TestRooms, name: str, *, room: str = "den", **options: Any) -> tuple[Client, str]:
    client = await rooms.connect(room, party=demo.PARTY, query={"name": name}, **options)
    return client, json.loads(await client.recv())["you"]


async def listed(client: Client) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads(await client.recv())["members"]
    return members


async def test_members_see_who_comes_what_they_show_and_who_leaves(rooms: TestRooms) -> None:
    ada, ada_id = await join(rooms, " Ada ")
    assert await listed(ada) == [{"memberId": ada_id, "name": "Ada", **NOTHING}]
    bob, bob_id = await join(rooms, "Bob")
    for client in (ada, bob):
        assert [one["memberId"] for one in await listed(client)] == [ada_id, bob_id]
    await bob.send(json.dumps({"tracks": [CAMERA], "muted": True, "unknown": 1}))
    for client in (ada, bob):
        assert (await listed(client))[1] == {
            "memberId": bob_id, "name": "Bob", "tracks": [CAMERA], "muted": True, "cameraOff": False
        }  # fmt: skip
    await bob.close()
    assert [one["name"] for one in await listed(ada)] == ["Ada"]


async def test_rooms_are_apart_and_nobody_hears_what_is_no_news(rooms: TestRooms) -> None:
    ada, _ = await join(rooms, "Ada")
    await join(rooms, "Bob", room="burrow")
    assert len(await listed(ada)) == 1
    await ada.send(json.dumps(NOTHING))
    await ada.send("ping")
    assert await ada.recv() == "pong"


async def test_the_list_outlives_sleep_and_a_ping_does_not_end_it(rooms: TestRooms) -> None:
    ada, ada_id = await join(rooms, "Ada")
    await listed(ada)
    assert await rooms.sleep("den", party=demo.PARTY)
    await ada.send("ping")
    assert await ada.recv() == "pong"
    assert not rooms.is_awake("den", party=demo.PARTY)
    bob, bob_id = await join(rooms, "Bob")
    assert [one["memberId"] for one in await listed(bob)] == [ada_id, bob_id]


async def test_a_page_that_comes_back_takes_its_own_place_and_its_secret_stays_its_own(rooms: TestRooms) -> None:
    before, first_id = await join(rooms, "Ada", id="secret")
    await listed(before)
    after, second_id = await join(rooms, "Ada", id="secret")
    members = await listed(after)
    assert ([one["memberId"] for one in members], second_id) == ([first_id], first_id)
    assert "secret" not in json.dumps(members)
    assert (await before.closed())[0] == 4000


@pytest.mark.parametrize("name", ["", "  ", "x" * 41])
async def test_a_name_that_is_none_is_refused(rooms: TestRooms, name: str) -> None:
    client = await rooms.connect("den", party=demo.PARTY, query={"name": name})
    assert await client.closed() == (4400, "A name has 1 to 40 characters.")


@pytest.mark.parametrize(
    "presence",
    [
        "",
        "[]",
        "{",
        b"\xff",
        json.dumps({"tracks": [CAMERA] * 9}),
        json.dumps({"tracks": [CAMERA | {"kind": "smell"}]}),
    ],
)
async def test_a_presence_that_is_none_ends_its_sender_alone(rooms: TestRooms, presence: str | bytes) -> None:
    ada, ada_id = await join(rooms, "Ada")
    bob, _ = await join(rooms, "Bob")
    await bob.send(presence)
    await rooms.settle()
    await bob.closed()
    assert bob.websocket.close_code == 4400
    assert [[one["memberId"] for one in await listed(ada)] for _ in range(3)][-1] == [ada_id]


async def test_a_full_room_says_so_and_has_place_again_when_one_leaves(
    rooms: TestRooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MEMBERS_MAX", 3)
    members = [(await join(rooms, f"member {number}"))[0] for number in range(demo.MEMBERS_MAX)]
    refused = await rooms.connect("den", party=demo.PARTY, query={"name": "Ada"})
    assert await refused.closed() == (4503, "The room is full: 3 people are in it.")
    await members[0].close()
    _, ada_id = await join(rooms, "Ada")
    assert ada_id
