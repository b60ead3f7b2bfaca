"""Ids that clients ask for, and tags."""

from __future__ import annotations

import pytest

from partykit_compat.connection import connection_id_of
from partykit_compat.server import Server, check_tags


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h/parties/main/r?_pk=one&_pk=two", "one"),
        ("ws://h/parties/main/r?x=1&_pk=a%20b", "a b"),
        ("ws://h/parties/main/r?_pk=&x=1", None),
        ("ws://h/parties/main/r", None),
        ("ws://[/parties/main/r?_pk=one", "one"),
        ("ws://h/parties/main/r?x=1#?_pk=two", None),
    ],
)
def test_the_first_pk_names_the_connection(url: str, expected: str | None) -> None:
    given = connection_id_of(url)
    if expected is None:
        assert len(given) == 21
        assert given != connection_id_of(url)
    else:
        assert given == expected


def test_the_id_is_the_first_tag_and_duplicates_go() -> None:
    assert check_tags("me", ["red", "me", "red", "blue"]) == ["me", "red", "blue"]
    assert check_tags("me", [f"t{i}" for i in range(9)])[0] == "me"


def test_one_tag_is_no_collection_of_tags() -> None:
    with pytest.raises(TypeError, match="collection"):
        check_tags("me", "red")
    with pytest.raises(TypeError, match="a tag is a str"):
        check_tags("me", [1])  # type: ignore[list-item]


def test_one_subprotocol_is_no_sequence_of_them() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.protocols"):
        type("Wrong", (Server,), {"protocols": "p1"})


@pytest.mark.parametrize("tags", [[f"t{i}" for i in range(10)], ["x" * 257], [""]])
def test_tags_beyond_the_limits_are_refused(tags: list[str]) -> None:
    with pytest.raises(ValueError):
        check_tags("me", tags)
