import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objects.commits import Commits
from objects.errors import UsageError
from objects.kv import KeyValues, Range
from objects.metering import Meter
from objects.sql import split
from objects.sqlite import Database, OpenFiles

keys = st.text(st.sampled_from("aAé\0\x7f\uffff\U0001f600\ud800"), max_size=4)
bounds = st.none() | keys


class Writing:
    """The part of `Commits` that keys and values use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reading(self) -> None: ...

    def writing(self, size: int, *, confirmed: bool = True) -> None:
        self._database.begin()


@contextmanager
def key_values() -> Iterator[KeyValues]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as closer:
        database = Database(Path(folder) / "x.sqlite", OpenFiles(10, closer), 1 << 30, _raise)
        try:
            yield KeyValues(database, cast(Commits, Writing(database)), Meter())
        finally:
            database.close()()


def _raise(error: Exception) -> None:
    raise error


class TestAgainstADict:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(["put", "delete"]), keys, st.integers()), max_size=15),
        st.lists(st.tuples(bounds, bounds, bounds, bounds, st.booleans(), st.none() | st.integers(1, 5)), max_size=5),
    )
    def test_it_is_a_sorted_dict(self, changes: list[Any], lists: list[Any]) -> None:
        model: dict[str, int] = {}
        with key_values() as kv:
            for action, key, value in changes:
                if action == "put":
                    kv.put(key, value)
                    model[key] = value
                else:
                    assert kv.delete(key) is (model.pop(key, None) is not None)
                assert kv.get(key) == model.get(key)
            for start, after, end, prefix, reverse, limit in lists:
                if start is not None and after is not None:
                    after = None
                wanted = Range(start, after, end, prefix, reverse, limit)
                assert list(kv.select(wanted).items()) == expected(model, wanted)


def expected(model: dict[str, int], wanted: Range) -> list[tuple[str, int]]:
    def raw(key: str) -> bytes:
        return key.encode("utf-8", "surrogatepass")

    chosen = [
        key
        for key in sorted(model, key=raw, reverse=wanted.reverse)
        if (wanted.start is None or raw(key) >= raw(wanted.start))
        and (wanted.start_after is None or raw(key) > raw(wanted.start_after))
        and (wanted.end is None or raw(key) < raw(wanted.end))
        and (wanted.prefix is None or key.startswith(wanted.prefix))
    ]
    return [(key, model[key]) for key in chosen[: wanted.limit]]


class TestSplittingSql:
    @given(st.lists(st.sampled_from(["SELECT 1", "SELECT ';'", "SELECT 1 -- ;\n", "/* ; */ SELECT 2", 'SELECT "a;b"'])))
    def test_statements_are_told_apart(self, statements: list[str]) -> None:
        assert len(split(";".join(statements))) == len(statements)

    def test_a_trigger_is_one_statement(self) -> None:
        trigger = "CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1; SELECT 2; END;"
        assert split(f"SELECT 0;{trigger} SELECT 3") == ["SELECT 0;", trigger, "SELECT 3"]

    @pytest.mark.parametrize("text", ["", ";", " ;; ", "-- only a comment", "/* ; */", "/* open"])
    def test_nothing(self, text: str) -> None:
        assert split(text) == []


def test_a_range_that_contradicts_itself() -> None:
    with pytest.raises(UsageError):
        Range(start="a", start_after="a")
    with pytest.raises(UsageError):
        Range(limit=0)
