"""docs/design/turn-coverage.md says what is so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/design/turn-coverage.md").read_text()
TESTS = (
    "unit/turn/test_*.py",
    "unit/wire/test_stun.py",
    "scenario/test_turn*.py",
    "interop/*turn*.py",
    "fuzz/test_fuzz_stun.py",
    "fuzz/test_fuzz_turn.py",
)


@cache
def said_by_tests() -> dict[str, str]:
    """Test names, and what each says it shows: its name, its docstring and its class's."""
    found = {}
    for pattern in TESTS:
        for path in (ROOT / "tests").glob(pattern):
            found |= dict(_tests_in(ast.parse(path.read_text()), ""))
    return found


def _tests_in(node: ast.Module | ast.ClassDef, context: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _tests_in(child, ast.get_docstring(child) or "")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name.startswith("test_"):
            words = child.name.upper().replace("_", " ")
            yield child.name, f"{words} {ast.get_docstring(child) or ''} {context}"


def rows(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[3:] if "|" in line]


def ids() -> set[str]:
    ranges = re.findall(r"\b([A-Z]{1,2})1–\1(\d+)\b", PAGE)
    return {f"{kind}{number}" for kind, last in ranges for number in range(1, int(last) + 1)}


def test_every_rule_has_a_test_or_a_reason_and_none_has_both() -> None:
    cited = {rule for text in said_by_tests().values() for rule in re.findall(r"\b[A-Z]{1,2}\d+\b", text)} & ids()
    excused = {rule for rule, reason in rows("Without a test here, and why") if reason}
    assert len(ids()) == 157
    assert not ids() - cited - excused
    assert not cited & excused
    assert not excused - ids()


def test_every_hole_has_tests_that_exist() -> None:
    for hole, named in rows("Holes of other servers"):
        names = re.findall(r"`(test_\w+)`", named)
        assert names or named.startswith("none: "), hole
        assert not set(names) - said_by_tests().keys(), hole
