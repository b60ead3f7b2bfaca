"""Reports of one run, and of several side by side."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from loadtest import report
from tests.unit.loadtest.records import record


def svgs(page: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", page, re.DOTALL)


def test_a_page_needs_nothing_from_elsewhere_and_its_plots_are_well_formed() -> None:
    page = report.html([record()])
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert len(svgs(page)) >= 5
    for svg in svgs(page):
        ElementTree.fromstring(svg)


def test_text_from_servers_is_escaped() -> None:
    assert "&lt;closed&gt; by the server" in report.html([record()])


def test_an_invalid_run_says_so_and_why() -> None:
    page = report.html([record(invalid=("an engine's event loop used more than 90% of a core",))])
    assert "INVALID" in page
    assert "used more than 90% of a core" in page
    assert "(INVALID)" in report.table([record(invalid=("x",))])


def test_a_server_that_died_is_named() -> None:
    page = report.html([record(died="the server under test ended 3 s into the run")])
    assert "server died" in page
    assert "ended 3 s into the run" in page


def test_rounds_of_a_target_are_shown_by_median_and_range() -> None:
    runs = [record(server_cpu=share) for share in (0.1, 0.9, 0.2)]
    (row,) = [row for row in report.rows(report.by_target(runs)) if row.title == "server CPU"]
    assert row.cells[0] == pytest.approx((0.2, 0.1, 0.9))
    assert row.text(0) == "20.0 % of a core (10.0 – 90.0)"


def test_targets_stand_side_by_side_and_the_better_one_is_marked() -> None:
    runs = [record("torpor", delay=0.001), record("workerd", delay=0.004)]
    (row,) = [row for row in report.rows(report.by_target(runs)) if row.title == "delivery delay, p50"]
    assert row.best == 0
    page = report.html(runs)
    assert "torpor and workerd" in page
    assert "class=best" in page
    assert "torpor" in report.table(runs).splitlines()[0]


def test_one_target_at_two_commits_is_two_targets() -> None:
    before, after = record(), record()
    before["machine"], after["machine"] = {**before["machine"], "commit": "aaa"}, {**after["machine"], "commit": "bbb"}
    assert list(report.by_target([before, after])) == ["torpor aaa", "torpor bbb"]
