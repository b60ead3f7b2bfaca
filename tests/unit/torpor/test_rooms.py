"""Rooms assembled, without a server: settings, the folder, bodies, the list and its table."""

from __future__ import annotations

import asyncio
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from objects.errors import EventTimeout
from partykit_compat import Server
from sfu.errors import SfuError
from sfu.routes import BodyLimits
from torpor.addresses import Networks
from torpor.app import on_sfu_error
from torpor.config import HttpSettings, RoomSettings, Secret, Settings
from torpor.dev import snapshot, wait_for_change
from torpor.errors import ServerUnreachable, SettingError, StartRefused
from torpor.figures import room_families
from torpor.metrics import render
from torpor.room_list import ask, server_url, table
from torpor.room_routes import bounded, rooms_router
from torpor.rooms import Rooms, RoomStatus, identity_secret, room_environment
from torpor.sources import describe, load

TOKEN = "t" * 32


class TestSettings:
    def read(self, tmp_path: Path, text: str) -> Settings:
        file = tmp_path / "torpor.toml"
        file.write_text(text)
        return load(file=file, environment={}, flags={})

    def test_parties_are_a_table_of_the_file(self, tmp_path: Path) -> None:
        settings = self.read(tmp_path, '[parties]\nmain = "app:Chat"\nlobby-2 = "rooms/lobby.py:Lobby"\n')
        assert dict(settings.parties) == {"main": "app:Chat", "lobby-2": "rooms/lobby.py:Lobby"}
        again = self.read(tmp_path, describe(settings, apps=()))
        assert again.parties == settings.parties

    def test_those_of_the_command_line_take_their_place(self, tmp_path: Path) -> None:
        file = tmp_path / "torpor.toml"
        file.write_text('[parties]\nmain = "app:Chat"\n')
        settings = load(file=file, environment={}, flags={}, parties={"other": "app:Other"})
        assert dict(settings.parties) == {"other": "app:Other"}

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("[parties]\nmain = 1\n", "parties.main"),
            ('[parties]\nmain = "app"\n', "parties.main"),
            ('[parties]\nMain = "app:Chat"\n', "parties.Main"),
            ('[rooms]\nallowed_origins = ["example.org"]\n', "rooms.allowed_origins"),
            ('[rooms]\nadmin_token = "short"\n', "rooms.admin_token"),
            ("[rooms]\nblocking_timeout = 0.09\n", "rooms.blocking_timeout"),
            ("[rooms]\nblocking_timeout = -1\n", "rooms.blocking_timeout"),
        ],
    )
    def test_what_cannot_work_is_refused(self, tmp_path: Path, text: str, key: str) -> None:
        with pytest.raises(SettingError) as caught:
            self.read(tmp_path, text)
        assert caught.value.key == key

    def test_outside_of_development_nobody_lists_rooms_without_a_token(self) -> None:
        public = HttpSettings(host="0.0.0.0")
        apps = {"app": Secret("s" * 32)}
        assert Settings().rooms_admin_token is not None
        assert Settings(http=public, configured_apps=apps).rooms_admin_token is None
        given = Settings(http=public, configured_apps=apps, rooms=RoomSettings(admin_token=Secret(TOKEN)))
        assert given.rooms_admin_token == Secret(TOKEN)

    def test_rooms_do_not_get_the_servers_secrets(self) -> None:
        assert dict(room_environment({"TORPOR_APP_SECRET": "x", "MINE": "y"})) == {"MINE": "y"}


class TestFolder:
    def test_the_secret_is_made_once_and_readable_for_its_owner_only(self, tmp_path: Path) -> None:
        first = identity_secret(tmp_path)
        assert len(first) == 32
        assert identity_secret(tmp_path) == first
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["secret"]

    @pytest.mark.parametrize("damaged", ["", "xyz", "00" * 16])
    def test_a_damaged_one_is_refused_rather_than_replaced(self, tmp_path: Path, damaged: str) -> None:
        (tmp_path / "secret").write_text(damaged)
        with pytest.raises(StartRefused, match="damaged"):
            identity_secret(tmp_path)
        assert (tmp_path / "secret").read_text() == damaged

    async def test_rooms_start_and_stop_with_nothing_left(self, tmp_path: Path) -> None:
        before = set(threading.enumerate())
        settings = Settings(rooms=RoomSettings(folder=tmp_path / "data"), parties={"main": "a:B"})
        rooms = Rooms(settings, {"main": Server})
        await rooms.start()
        with pytest.raises(StartRefused, match="in use"):
            Rooms(settings, {"main": Server})
        await rooms.close()
        assert set(rooms.live_counts().values()) == {0}
        again = Rooms(settings, {"main": Server})
        assert 'torpor_rooms_events_total{party="main",kind="connects"} 0' in render(room_families(again.stats()))
        await again.close()
        started = set(threading.enumerate()) - before
        assert [thread.name for thread in started if thread.name.startswith("torpor")] == []

    def test_a_start_that_fails_gives_the_folder_back(self, tmp_path: Path) -> None:
        settings = Settings(rooms=RoomSettings(folder=tmp_path))
        (tmp_path / "secret").write_text("damaged")
        for _ in range(2):
            with pytest.raises(StartRefused, match="damaged"):
                Rooms(settings, {"main": Server})

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        settings = Settings(rooms=RoomSettings(folder=tmp_path / "file" / "data"))
        with pytest.raises(StartRefused, match="data folder"):
            Rooms(settings, {"main": Server})


class Blocks(Server):
    async def block(self) -> str:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251  the fault under test
        return "through"


class TestBlocking:
    @pytest.mark.parametrize("limit", [0.0, 0.1])
    async def test_the_limit_for_code_that_holds_the_server_up_can_be_taken_away(
        self, tmp_path: Path, limit: float
    ) -> None:
        room_settings = RoomSettings(folder=tmp_path / "data", blocking_timeout=limit)
        rooms = Rooms(Settings(rooms=room_settings), {"main": Blocks})
        await rooms.start()
        try:
            call = rooms.routes.parties["main"].get("r").block()
            if limit:
                with pytest.raises(EventTimeout):
                    await call
            else:
                assert await call == "through"
        finally:
            await rooms.close()


class TestBodies:
    @staticmethod
    def receiving(messages: list[dict[str, Any]], **limits: Any) -> Any:
        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else await asyncio.Event().wait()  # type: ignore[return-value]

        return bounded(receive, BodyLimits(**{"max_bytes": 10, "timeout": 60.0, **limits}))

    async def test_one_that_grows_too_large_ends_as_if_the_client_had_left(self) -> None:
        piece = {"type": "http.request", "body": b"123456", "more_body": True}
        receive = self.receiving([dict(piece), dict(piece)])
        assert await receive() == piece
        assert await receive() == {"type": "http.disconnect"}

    async def test_so_does_one_that_does_not_come(self) -> None:
        assert await self.receiving([], timeout=0.01)() == {"type": "http.disconnect"}

    async def test_a_whole_one_leaves_all_the_time_for_the_answer(self) -> None:
        receive = self.receiving([{"type": "http.request", "body": b"1234567890", "more_body": False}], timeout=0.05)
        assert (await receive())["body"] == b"1234567890"
        with pytest.raises(TimeoutError):  # ours, not that of the body
            async with asyncio.timeout(0.2):
                await receive()


def statuses() -> Iterator[RoomStatus]:
    yield RoomStatus("main", "r", "ab", 2, True, {"event": 1, "task": 2})
    yield RoomStatus("main", "q", "cd", 0, True, {})
    yield RoomStatus("other", None, "ef", 1, False, {})


class TestList:
    @pytest.fixture
    def client(self) -> httpx.AsyncClient:
        app = FastAPI()
        app.add_exception_handler(SfuError, on_sfu_error)
        app.include_router(rooms_router(statuses, Secret(TOKEN)))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")

    async def test_only_the_token_may_see_it(self, client: httpx.AsyncClient) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            response = await client.get("/v1/rooms", headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"

    async def test_it_says_how_many_more_there_are(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/rooms?limit=2", headers={"authorization": f"Bearer {TOKEN}"})
        answer = response.json()
        assert [room["room"] for room in answer["rooms"]] == ["r", "q"]
        assert answer["total"] == 3
        assert table(answer).splitlines() == [
            "PARTY  ROOM  CONNECTIONS  STATE  AWAKE FOR",
            "main   r     2            awake  event 1, task 2",
            "main   q     0            awake  about to leave memory",
            "and 1 more",
        ]

    def test_a_server_that_is_not_there_is_one_line(self) -> None:
        with pytest.raises(ServerUnreachable, match=r"http://127.0.0.1:9: .*refused"):
            ask(Settings(), "http://127.0.0.1:9/")
        with pytest.raises(ServerUnreachable, match="is not an http"):
            ask(Settings(), "file:///etc/passwd")
        public = Settings(http=HttpSettings(host="0.0.0.0"), configured_apps={"app": Secret("s" * 32)})
        with pytest.raises(ServerUnreachable, match="admin_token"):
            ask(public, None)

    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("127.0.0.1", "http://127.0.0.1:8787"),
            ("0.0.0.0", "http://127.0.0.1:8787"),
            ("::", "http://[::1]:8787"),
            ("192.0.2.1", "http://192.0.2.1:8787"),
        ],
    )
    def test_it_is_sought_where_the_settings_say(self, host: str, url: str) -> None:
        assert server_url(Settings(http=HttpSettings(host=host))) == url


class TestWatching:
    def test_python_files_are_seen_and_nothing_of_others(self, tmp_path: Path) -> None:
        for name in ("a.py", "sub/b.py", "c.txt", ".hidden/d.py", "node_modules/e.py", "__pycache__/f.py"):
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text("")
        assert set(snapshot(tmp_path)) == {"a.py", "sub/b.py"}

    def test_a_change_is_named_and_a_stop_ends_the_wait(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text("")
        seen = snapshot(tmp_path)
        looks = iter([False, False, True])

        def stopped(seconds: float) -> bool:
            return next(looks)

        assert wait_for_change(tmp_path, seen, stopped) is None
        (tmp_path / "b.py").write_text("")
        assert wait_for_change(tmp_path, seen, lambda seconds: False) == "b.py"
        (tmp_path / "b.py").unlink()
        (tmp_path / "a.py").unlink()
        assert wait_for_change(tmp_path, seen, lambda seconds: False) == "a.py"


def test_a_proxy_is_known_by_its_address_or_network() -> None:
    proxies = Networks(("127.0.0.1", "10.0.0.0/8", "2001:db8::/32"))
    assert all(address in proxies for address in ("127.0.0.1", "10.1.2.3", "2001:db8::7"))
    assert not any(address in proxies for address in ("127.0.0.2", "11.0.0.1", "::1", "a socket", ""))
