"""Rules within their limits; replies that wait for a gate."""

from __future__ import annotations

import pytest

from hibernation.autoresponse import MAX_KEPT_REPLIES, Holds, table_rules
from objects.errors import LimitExceeded
from objects.ports import AutoResponse, ConnectionId

A, B = ConnectionId(1), ConnectionId(2)


def test_rules_become_the_tables() -> None:
    rules = [AutoResponse("a", b"b"), AutoResponse(b"c", "d", match="prefix", tag="ü")]
    assert table_rules(rules) == [("a", b"b", False, None), (b"c", "d", True, "ü".encode())]


@pytest.mark.parametrize(
    "rules",
    [
        [AutoResponse("a", "b")] * 17,
        [AutoResponse("é" * 1025, "b")],
        [AutoResponse("a", b"b" * 2049)],
    ],
    ids=["17 rules", "request of 2,050 bytes", "response of 2,049 bytes"],
)
def test_rules_beyond_the_limits_are_refused(rules: list[AutoResponse]) -> None:
    with pytest.raises(LimitExceeded):
        table_rules(rules)


def test_rules_at_the_limits_are_accepted() -> None:
    assert len(table_rules([AutoResponse("é" * 1024, b"b" * 2048)] * 16)) == 16


def test_a_connection_is_held_as_often_as_it_was_asked() -> None:
    holds = Holds()
    assert [holds.hold(A), holds.hold(A)] == [True, False]
    assert [holds.release(A), holds.holds(A), holds.release(A), holds.holds(A)] == [False, True, True, False]
    assert not holds.release(A)


def test_a_hold_of_the_object_holds_every_connection() -> None:
    holds = Holds()
    holds.hold(None)
    holds.hold(A)
    holds.keep(A, "a")
    holds.keep(B, "b")
    holds.release(None)
    assert holds.free_replies() == [(B, ["b"])]
    assert holds.clear() == [A]
    assert holds.free_replies() == [(A, ["a"])]
    assert holds.free_replies() == []


def test_replies_kept_are_bounded_and_go_with_the_connection() -> None:
    holds = Holds()
    holds.hold(A)
    kept = [holds.keep(A, "x") for _ in range(MAX_KEPT_REPLIES + 1)]
    assert kept.count(True) == MAX_KEPT_REPLIES
    holds.forget(A)
    assert holds.free_replies() == []
    assert not holds.holds(A)
