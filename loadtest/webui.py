"""A tab "Load" in Locust's web UI: delays by the exact histograms, losses, and how the generator itself does.

It is at `/load`, among Locust's other tabs; `/` leads there. The figures are also at `/load/figures.json`, and
`/load/report` is the report of the run so far.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request
from locust.env import Environment

from loadtest import record, report
from loadtest.observer import Observer

_KEY = "load"


def extend(environment: Environment, observer: Observer) -> None:
    """Add the tab to a web UI."""
    web_ui = environment.web_ui
    assert web_ui is not None
    assert web_ui.app is not None
    pages = Blueprint("load", __name__)

    @pages.before_app_request
    def to_the_tab() -> Any:
        return redirect("/load") if request.path == "/" and request.method == "GET" else None

    @pages.route("/load")
    @web_ui.auth_required_if_enabled
    def page() -> str:
        web_ui.update_template_args()
        extra = {
            "extended_tabs": [{"title": "Load", "key": _KEY}],
            "extended_tables": [
                {
                    "key": _KEY,
                    "structure": [
                        {"key": "title", "title": "Measured"},
                        {"key": "value", "title": observer.profile.name},
                    ],
                }
            ],
            "extended_csv_files": [
                {"href": "/load/figures.json", "title": "Download figures (JSON)"},
                {"href": "/load/report", "title": "Open report"},
            ],
        }
        return render_template("index.html", template_args={**web_ui.template_args, **extra})

    @pages.route("/load/figures.json")
    @web_ui.auth_required_if_enabled
    def figures() -> Response:
        return jsonify(observer.to_json())

    @pages.route("/load/report")
    @web_ui.auth_required_if_enabled
    def page_of_the_run() -> str:
        return report.html([observer.to_json()])

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        if request.path == "/stats/requests" and response.is_json:
            content = {**(response.json or {}), "extended_stats": [{"key": _KEY, "data": rows(observer.to_json())}]}
            response.set_data(json.dumps(content))
        return response

    web_ui.app.register_blueprint(pages)


def rows(run: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the tab."""
    verdict = "the generator has room" if run["valid"] else "INVALID: " + "; ".join(run["invalid"])
    lines = [("verdict", verdict)] + [
        (number.title, str(number)) for number in (*record.numbers(run), *record.generator_numbers(run))
    ]
    return [{"title": title, "safe_name": title, "value": value} for title, value in lines]
