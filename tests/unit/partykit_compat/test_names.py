"""Class names as URLs, and paths as rooms."""

from __future__ import annotations

import pytest

from partykit_compat.names import RoomAddress, parse_path, party_name


@pytest.mark.parametrize(
    ("name", "party"),
    [
        ("MyServer", "my-server"),
        ("ChatRoom2", "chat-room2"),
        ("HTMLThing", "h-t-m-l-thing"),
        ("MY_ROOM", "my-room"),
        ("My_Room", "my--room"),
        ("Main", "main"),
        ("main", "main"),
        ("chat_", "chat"),
    ],
)
def test_08_a_class_name_in_its_url_form(name: str, party: str) -> None:
    assert party_name(name) == party


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/parties/main/r", ("main", "r")),
        ("/parties/main/r/rest/of/it", ("main", "r")),
        ("/parties/main/a%2Fb", ("main", "a%2Fb")),
        ("//parties/main/r", ("main", "r")),
        ("/party/r", ("main", "r")),
        ("/party/r/rest", ("main", "r")),
        ("/parties/main", None),
        ("/parties/main/", None),
        ("/parties//r", None),
        ("/parties", None),
        ("/party", None),
        ("/party/", None),
        ("/", None),
        ("", None),
        ("/partiesx/main/r", None),
    ],
)
def test_a_path_names_a_room_or_none(path: str, address: tuple[str, str] | None) -> None:
    assert parse_path(path) == (None if address is None else RoomAddress(*address))


def test_a_prefix_may_have_several_segments() -> None:
    assert parse_path("/api/v1/main/r", "api/v1") == RoomAddress("main", "r")
    assert parse_path("/parties/main/r", "api/v1") is None
