"""The demo page's member list: join, heartbeat, leave, events, and every bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from torpor import demo
from torpor.demo import DemoRooms, JoinRequest, Presence, TrackAddress, demo_router

CAMERA = TrackAddress(session_id="a" * 32, track_name="video-1", kind="video", source="camera")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def house(clock: Clock) -> DemoRooms:
    return DemoRooms(clock)


def members(event: str) -> list[dict[str, Any]]:
    name, data = event.strip().split("\n")
    assert name == "event: members"
    result: list[dict[str, Any]] = json.loads(data.removeprefix("data: "))
    return result


async def drain(events: AsyncIterator[str]) -> None:
    async for _ in events:
        pass


async def next_event(events: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(events), 5)


class TestMembership:
    def test_joining_gives_an_id_that_others_see_and_a_token_that_they_do_not(self, house: DemoRooms) -> None:
        member = house.join("den", JoinRequest(name="Ada", tracks=[CAMERA]))
        listed = json.loads(house.rooms["den"].to_json())
        assert listed == [
            {
                "memberId": member.public.member_id,
                "name": "Ada",
                "tracks": [{"sessionId": "a" * 32, "trackName": "video-1", "kind": "video", "source": "camera"}],
                "muted": False,
                "cameraOff": False,
            }
        ]
        assert member.token not in house.rooms["den"].to_json()

    def test_rooms_are_apart(self, house: DemoRooms) -> None:
        house.join("den", JoinRequest(name="Ada"))
        house.join("burrow", JoinRequest(name="Bob"))
        assert [m["name"] for m in json.loads(house.rooms["burrow"].to_json())] == ["Bob"]

    def test_an_update_replaces_the_presence_and_keeps_the_name(self, house: DemoRooms) -> None:
        ada = house.join("den", JoinRequest(name="Ada"))
        house.update("den", ada.public.member_id, ada.token, Presence(tracks=[CAMERA], muted=True))
        (listed,) = json.loads(house.rooms["den"].to_json())
        assert (listed["name"], listed["muted"], len(listed["tracks"])) == ("Ada", True, 1)

    def test_leaving_the_last_member_forgets_the_room(self, house: DemoRooms) -> None:
        ada = house.join("den", JoinRequest(name="Ada"))
        house.leave("den", ada.public.member_id, ada.token)
        assert house.rooms == {}

    @pytest.mark.parametrize("what", ["room", "member", "token"])
    def test_only_the_member_with_its_token_may_update_or_leave(self, house: DemoRooms, what: str) -> None:
        ada = house.join("den", JoinRequest(name="Ada"))
        address = {"room": "den", "member": ada.public.member_id, "token": ada.token} | {what: "other-é"}
        with pytest.raises(HTTPException) as updating:
            house.update(*address.values(), Presence(muted=True))
        with pytest.raises(HTTPException) as leaving:
            house.leave(*address.values())
        assert (updating.value.status_code, leaving.value.status_code) == (404, 404)
        assert not ada.public.muted

    def test_a_member_silent_for_more_than_15_s_is_forgotten(self, house: DemoRooms, clock: Clock) -> None:
        ada = house.join("den", JoinRequest(name="Ada"))
        bob = house.join("den", JoinRequest(name="Bob"))
        clock.now += 10
        house.update("den", bob.public.member_id, bob.token, Presence())
        clock.now += 5.1
        house.join("den", JoinRequest(name="Cleo"))
        assert [m["name"] for m in json.loads(house.rooms["den"].to_json())] == ["Bob", "Cleo"]
        with pytest.raises(HTTPException, match="not in this room"):
            house.update("den", ada.public.member_id, ada.token, Presence())


class TestBounds:
    def test_a_full_room_refuses_in_words(self, house: DemoRooms) -> None:
        for number in range(demo.MEMBERS_MAX):
            house.join("den", JoinRequest(name=f"member {number}"))
        with pytest.raises(HTTPException, match="room is full") as refused:
            house.join("den", JoinRequest(name="one more"))
        assert refused.value.status_code == 429

    def test_a_full_house_refuses_until_a_room_is_abandoned(self, house: DemoRooms, clock: Clock) -> None:
        for number in range(demo.ROOMS_MAX):
            house.join(f"room {number}", JoinRequest(name="Ada"))
        with pytest.raises(HTTPException, match="rooms are taken") as refused:
            house.join("one more", JoinRequest(name="Bob"))
        assert refused.value.status_code == 429
        clock.now += demo.HEARTBEAT_TIMEOUT + 0.1
        house.join("one more", JoinRequest(name="Bob"))
        assert list(house.rooms) == ["one more"]

    async def test_listeners_of_a_room_are_bounded(self, house: DemoRooms) -> None:
        streams = [house.listen("den") for _ in range(demo.LISTENERS_MAX)]
        for stream in streams:
            await next_event(stream)
        with pytest.raises(HTTPException) as refused:
            house.check_listener("den")
        assert refused.value.status_code == 429
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert house.rooms == {}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": ""},
            {"name": "   "},
            {"name": "x" * 41},
            {"name": "Ada", "tracks": [CAMERA.model_dump()] * (demo.TRACKS_MAX + 1)},
            {"name": "Ada", "tracks": [CAMERA.model_dump() | {"session_id": "../../etc"}]},
            {"name": "Ada", "tracks": [CAMERA.model_dump() | {"track_name": "x" * 129}]},
            {"name": "Ada", "tracks": [CAMERA.model_dump() | {"kind": "smell"}]},
        ],
    )
    def test_fields_are_bounded(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="validation error"):
            JoinRequest.model_validate(wrong)


class TestEvents:
    async def test_a_listener_gets_the_list_at_once_and_again_on_each_change(self, house: DemoRooms) -> None:
        events = house.listen("den")
        assert members(await next_event(events)) == []
        ada = house.join("den", JoinRequest(name="Ada"))
        assert [m["name"] for m in members(await next_event(events))] == ["Ada"]
        house.update("den", ada.public.member_id, ada.token, Presence(camera_off=True))
        assert [m["cameraOff"] for m in members(await next_event(events))] == [True]
        house.leave("den", ada.public.member_id, ada.token)
        assert members(await next_event(events)) == []

    async def test_a_slow_listener_gets_the_last_state_alone(self, house: DemoRooms) -> None:
        events = house.listen("den")
        await next_event(events)
        for name in ("Ada", "Bob", "Cleo"):
            house.join("den", JoinRequest(name=name))
        assert [m["name"] for m in members(await next_event(events))] == ["Ada", "Bob", "Cleo"]

    async def test_a_heartbeat_without_news_is_not_announced(
        self, house: DemoRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "LISTENER_TICK", 0.01)
        ada = house.join("den", JoinRequest(name="Ada"))
        events = house.listen("den")
        await next_event(events)
        house.update("den", ada.public.member_id, ada.token, Presence())
        assert (await next_event(events)).startswith(": ")

    async def test_a_listener_sees_silent_members_go(
        self, house: DemoRooms, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "LISTENER_TICK", 0.01)
        house.join("den", JoinRequest(name="Ada"))
        events = house.listen("den")
        await next_event(events)
        clock.now += demo.HEARTBEAT_TIMEOUT + 0.1
        assert members(await next_event(events)) == []

    async def test_a_listener_that_goes_leaves_nothing_behind(self, house: DemoRooms) -> None:
        listening = asyncio.create_task(drain(house.listen("den")))
        await asyncio.sleep(0)
        assert house.rooms["den"].listeners == 1
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert house.rooms == {}


class TestRoutes:
    @pytest.fixture
    async def client(self, house: DemoRooms) -> AsyncIterator[httpx.AsyncClient]:
        app = FastAPI()
        app.include_router(demo_router(house))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client:
            yield client

    async def test_join_heartbeat_and_leave_over_http(self, client: httpx.AsyncClient, house: DemoRooms) -> None:
        joined = await client.post("/demo/rooms/the%20den/members", json={"name": "Ada"})
        assert joined.status_code == 201
        url = f"/demo/rooms/the%20den/members/{joined.json()['memberId']}"
        token = {"member-token": joined.json()["token"]}
        presence = {"tracks": [CAMERA.model_dump(by_alias=True)], "cameraOff": True}
        assert (await client.put(url, json=presence, headers=token)).status_code == 204
        (ada,) = house.rooms["the den"].members.values()
        assert (ada.public.tracks, ada.public.camera_off) == ([CAMERA], True)
        assert (await client.delete(url, headers=token)).status_code == 204
        assert (await client.put(url, json=presence, headers=token)).status_code == 404

    async def test_a_bad_name_is_refused(self, client: httpx.AsyncClient, house: DemoRooms) -> None:
        assert (await client.post("/demo/rooms/den/members", json={"name": "x" * 41})).status_code == 422
        assert (await client.post(f"/demo/rooms/{'x' * 65}/members", json={"name": "Ada"})).status_code == 422
        assert house.rooms == {}

    async def test_the_event_stream_is_uncached_server_sent_events(self, house: DemoRooms) -> None:
        """Answered by hand: httpx's transport reads an answer to its end, and this one has none."""
        house.join("den", JoinRequest(name="Ada"))
        app = FastAPI()
        app.include_router(demo_router(house))
        sent: list[Any] = []
        body_sent = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                body_sent.set()

        async def receive() -> Any:
            await asyncio.Event().wait()

        path = "/demo/rooms/den/events"
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
        answering = asyncio.create_task(app(scope, receive, send))
        await asyncio.wait_for(body_sent.wait(), 5)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        headers = dict(sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"cache-control"] == b"no-store"
        assert [m["name"] for m in members(sent[1]["body"].decode())] == ["Ada"]
        assert house.rooms["den"].listeners == 0

    async def test_pages_of_other_origins_are_refused(self, client: httpx.AsyncClient, house: DemoRooms) -> None:
        foreign = {"sec-fetch-site": "cross-site"}
        joined = await client.post("/demo/rooms/den/members", json={"name": "Eve"}, headers=foreign)
        assert (joined.status_code, house.rooms) == (403, {})
        assert (await client.get("/demo/rooms/den/events", headers=foreign)).status_code == 403
