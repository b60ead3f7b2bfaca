"""`torpor load` as far as it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest import options
from tests.unit.loadtest.records import record
from torpor.cli import run
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET
from torpor.load import NEEDED


def test_without_the_extra_it_says_in_one_line_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in NEEDED else object())
    assert run(["load", "rooms"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "torpor: load tests need more: pip install 'torpor[load]' (missing: locust, picows, httpx, av)"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rooms", "--profile", "nothing"], "no profile 'nothing'"),
        (["rooms", "--profile", "meeting"], "profile meeting is for media; rooms has rooms"),
        (["rooms", "--target", "janus"], "no target 'janus' for rooms: torpor, workerd, socketio, or an address"),
        (["rooms", "--target", "ftp://x"], "no http:// or ws:// address"),
        (["rooms", "--server-core", "999"], "--server-core is one of"),
        (["rooms", "--rounds", "0"], "at least 1"),
        (["--compare", "missing.json"], "No such file"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_records_are_put_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, delay in zip(paths, (0.004, 0.001), strict=True):
        path.write_text(json.dumps(record(delay=delay)))
    assert run(["load", "--compare", *map(str, paths), "--out", str(tmp_path), "--name", "both"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed.splitlines()[0]
    assert "after" in printed.splitlines()[0]
    (page,) = tmp_path.glob("*-both/report.html")
    assert "before and after" in page.read_text()


def test_the_development_credentials_are_those_of_the_server() -> None:
    assert options.DEVELOPMENT["app_id"] == DEVELOPMENT_APP_ID
    assert options.DEVELOPMENT["app_secret"] == DEVELOPMENT_APP_SECRET
