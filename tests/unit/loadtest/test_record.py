"""Records, and the numbers that are read from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest import record as records
from loadtest.record import RecordError, rounded, show
from tests.unit.loadtest.records import record


def test_numbers_are_rates_over_the_measured_time() -> None:
    numbers = {number.key: number for number in records.numbers(record(server_cpu=0.4899))}
    assert numbers["sent"].value == 100
    assert numbers["delivered"].value == 4899
    assert numbers["lost"].value == 4
    assert numbers["undelivered"].value == 10
    assert numbers["delivery_p99"].value == pytest.approx(0.001, rel=1 / 16)
    assert numbers["cpu_per_delivery"].value == pytest.approx(100e-6)
    assert numbers["bytes_per_connection"].value == pytest.approx(20_000)


def test_the_coming_of_users_is_not_in_the_servers_share() -> None:
    made = record(server_cpu=0.2)
    for sample in made["samples"]:
        if not sample["measured"]:
            sample["server_cpu"] = 1.0
    assert {n.key: n.value for n in records.numbers(made)}["server_cpu"] == pytest.approx(0.2)


def test_a_written_record_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(rounded(record())))
    again = records.load(path)
    assert [n.key for n in records.numbers(again)] == [n.key for n in records.numbers(record())]


@pytest.mark.parametrize("text", ["", "[]", '{"profile": "rooms"}', '{"profile": 1, "figures": {}, "format": 99}'])
def test_what_is_no_record_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"other\.json"):
        records.load(path)
    with pytest.raises(RecordError, match="No such file"):
        records.load(tmp_path / "missing.json")


def test_numbers_are_shown_with_their_units() -> None:
    assert show(0.0123, "ms") == "12.3 ms"
    assert show(2.5, "ms") == "2.50 s"
    assert show(0.0312, "percent") == "3.120 %"
    assert show(1100, "bytes") == "1.1 KiB"
    assert show(12_345, "rate") == "12,345/s"
    assert show(float("nan"), "ms") == "–"


def test_rounding_keeps_six_digits_and_says_null_for_what_is_not_a_number() -> None:
    assert rounded({"a": [1.23456789, float("nan")], "b": 3, "c": "x"}) == {"a": [1.23457, None], "b": 3, "c": "x"}
