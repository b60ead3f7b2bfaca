"""Every behaviour of the objects contract has a test that is named after it, or a reason why not.

W: WebSockets that hibernate, G: gates, S: storage, A: alarms. A name may hold several ids, and a range: `w08_to_w12`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

BEHAVIOURS = {f"{area}{n:02}" for area, count in (("w", 34), ("g", 4), ("s", 7), ("a", 8)) for n in range(1, count + 1)}

WITHOUT_A_TEST: dict[str, str] = {}
"""Id to reason."""

_NAME = re.compile(r"def (test_\w+)\(")
_ID = re.compile(r"(?<=_)([wgsa])(\d\d)(?:_to_\1(\d\d))?(?=_|$)")


def named(test: str) -> Iterator[str]:
    """Iterate over the ids in a test's name."""
    for area, first, last in _ID.findall(test):
        for n in range(int(first), int(last or first) + 1):
            yield f"{area}{n:02}"


def test_each_behaviour_is_a_test_or_has_a_reason() -> None:
    tests = Path(__file__).parent
    found = {
        behaviour
        for pattern in ("scenario/test_objects_*.py", "scenario/test_hibernation*.py", "unit/objects/test_*.py")
        for file in tests.glob(pattern)
        for test in _NAME.findall(file.read_text())
        for behaviour in named(test)
    }
    assert found - BEHAVIOURS == set(), "no such behaviour"
    assert BEHAVIOURS - found == WITHOUT_A_TEST.keys()
    assert all(WITHOUT_A_TEST.values())


def test_names_are_read_as_they_are_meant() -> None:
    assert list(named("test_w08_to_w10_and_g01")) == ["w08", "w09", "w10", "g01"]
    assert list(named("test_a_w1_row12")) == []
