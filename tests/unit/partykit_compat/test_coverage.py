"""Every behaviour of the party contract has a test that is named after its number, or a reason why not, never both."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "design" / "party-coverage.md"
BEHAVIOURS = set(range(1, 51))


def covered() -> set[int]:
    files = [
        *Path(__file__).parent.glob("test_*.py"),
        *(ROOT / "tests" / "scenario").glob("test_party*.py"),
        ROOT / "tests" / "interop" / "test_partysocket.py",
        ROOT / "tests" / "interop" / "test_yjs.py",
        ROOT / "tests" / "examples" / "test_document.py",
    ]
    names = [name for file in files for name in re.findall(r"def test((?:_\d\d)+)_", file.read_text())]
    return {int(number) for name in names for number in name.strip("_").split("_")}


def excused() -> set[int]:
    rows = PAGE.read_text().partition("## Without a test")[2]
    return {int(number) for number in re.findall(r"^\| (\d+) \| \S", rows, re.MULTILINE)}


def test_each_behaviour_has_a_test_or_a_reason() -> None:
    assert covered() | excused() == BEHAVIOURS


def test_what_has_a_test_needs_no_reason() -> None:
    assert covered() & excused() == set()
