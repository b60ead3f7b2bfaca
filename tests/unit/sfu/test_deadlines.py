from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sfu.deadlines import Deadlines


def test_keys_come_up_in_time_and_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.schedule("b", 2.0)
    deadlines.schedule("a", 1.0)
    deadlines.schedule("c", None)
    assert deadlines.next() == 1.0
    assert deadlines.due(0.9) == []
    assert deadlines.due(2.0) == ["a", "b"]
    assert deadlines.due(9.0) == []
    assert deadlines.next() is None


def test_later_deadline_waits_for_the_earlier_one() -> None:
    """Postponing costs nothing: the key comes up early and says its new time."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.schedule("a", 1.0)
    for at in range(2, 100):
        deadlines.schedule("a", float(at))
    assert len(deadlines._heap) == 1
    assert deadlines.due(1.0) == ["a"]


def test_earlier_deadline_replaces_the_later_one() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.schedule("a", 5.0)
    deadlines.schedule("a", 1.0)
    assert deadlines.due(1.0) == ["a"]
    assert deadlines.due(5.0) == []


def test_discarded_key_never_comes_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.schedule("a", 1.0)
    deadlines.discard("a")
    deadlines.discard("a")
    assert deadlines.next() is None
    assert len(deadlines) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 50)), max_size=60),
    st.lists(st.integers(0, 60), max_size=10),
)
def test_no_key_is_late_or_lost(scheduled: list[tuple[str, int]], times: list[int]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    earliest: dict[str, int] = {}
    for key, at in scheduled:
        deadlines.schedule(key, at)
        earliest[key] = min(at, earliest.get(key, at))
    for now in sorted(times):
        due = {key for key, at in earliest.items() if at <= now}
        assert set(deadlines.due(now)) == due
        earliest = {key: at for key, at in earliest.items() if key not in due}
        assert deadlines.next() == min(earliest.values(), default=None)
