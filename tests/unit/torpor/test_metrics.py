"""Prometheus text exposition, format 0.0.4."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.metrics import Family, Histogram, HttpMetrics, counter, gauge, histogram, render

LINE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="(\\.|[^"\\\n])*",?)+\})? \S+\Z')


class TestFormat:
    def test_help_and_type_come_before_samples_and_the_last_line_ends(self) -> None:
        text = render([counter("a_total", "What it is.", 3), gauge("b", "Other.", {"x": 1.5, "a": 2}, "kind")])
        assert text == (
            "# HELP a_total What it is.\n# TYPE a_total counter\na_total 3\n"
            '# HELP b Other.\n# TYPE b gauge\nb{kind="a"} 2\nb{kind="x"} 1.5\n'
        )

    def test_help_escapes_backslash_and_line_feed_and_labels_quotes_too(self) -> None:
        text = render([gauge("a", 'one\\two\n"three"', {'x\\"\n': 1}, "k")])
        assert '# HELP a one\\\\two\\n"three"\n' in text
        assert 'a{k="x\\\\\\"\\n"} 1\n' in text

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (2**60, repr(float(2**60))),
            (1e-9, "1e-09"),
            (float("inf"), "+Inf"),
            (float("-inf"), "-Inf"),
            (float("nan"), "NaN"),
        ],
    )
    def test_numbers(self, value: float, text: str) -> None:
        assert render([gauge("a", "A.", value)]).splitlines()[-1] == f"a {text}"

    @given(st.text(), st.dictionaries(st.text(), st.floats(), max_size=3))
    def test_whatever_the_labels_hold_every_line_is_one_sample(self, text: str, values: dict[str, float]) -> None:
        lines = render([gauge("a", text, values, "k")]).split("\n")
        assert lines.pop() == ""
        assert len(lines) == 2 + len(values)
        assert all(LINE.match(line) for line in lines[2:])


class TestHistograms:
    def test_buckets_add_up_and_end_at_infinity(self) -> None:
        family = histogram("h", "H.", (0.1, 1.0), (3, 0, 2), 7.5)
        assert render([family]).splitlines()[2:] == [
            'h_bucket{le="0.1"} 3',
            'h_bucket{le="1"} 3',
            'h_bucket{le="+Inf"} 5',
            "h_sum 7.5",
            "h_count 5",
        ]

    def test_an_unknown_sum_is_left_out(self) -> None:
        assert "_sum" not in render([histogram("h", "H.", (1.0,), (1, 1), None)])

    def test_a_bound_belongs_to_its_bucket(self) -> None:
        seconds = Histogram((0.1, 1.0))
        for value in (0.0, 0.1, 0.11, 1.0, 1.01):
            seconds.observe(value)
        assert seconds.counts == [2, 2, 1]
        assert seconds.total == pytest.approx(2.22)

    def test_counts_must_match_the_bounds(self) -> None:
        with pytest.raises(ValueError, match=r"shorter|longer"):
            histogram("h", "H.", (1.0,), (1,), None)


class TestHttpMetrics:
    def test_requests_are_counted_by_route_method_and_status(self) -> None:
        metrics = HttpMetrics()
        for status in (200, 200, 404):
            metrics.record(route="/a/{id}", method="GET", status=status, seconds=0.2)
        text = render(metrics.collect())
        assert 'torpor_http_requests_total{route="/a/{id}",method="GET",status="200"} 2\n' in text
        assert 'torpor_http_requests_total{route="/a/{id}",method="GET",status="404"} 1\n' in text
        assert 'torpor_http_request_seconds_count{route="/a/{id}"} 3\n' in text

    def test_invented_methods_share_one_label(self) -> None:
        metrics = HttpMetrics()
        for method in ("BREW", "WHEN"):
            metrics.record(route="unmatched", method=method, status=405, seconds=0)
        families: list[Family] = list(metrics.collect())
        assert families[0].samples == [("", (("route", "unmatched"), ("method", "other"), ("status", "405")), 2.0)]
