"""Print what happens to an app's sessions and tracks, as it happens.

    torpor serve &
    python examples/record_events.py

Every line is one server-sent event of `GET /v1/apps/{appId}/events`: its name and its JSON. Without arguments it
follows the development app, which a server on loopback serves by default.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator

import httpx

from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET

SILENCE_LIMIT = 60.0
"""The server sends a comment at least every 15 s unless told otherwise; longer silence means that it is gone."""


def parse(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Turn the lines of a `text/event-stream` into (event, data); comments and ids are passed over."""
    name, data = "message", ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and data:
            yield name, data
            name, data = "message", ""


def main() -> None:
    """Follow the events until the server ends them, or `--count` have come."""
    parser = argparse.ArgumentParser(description="Print the events of an app's sessions and tracks.")
    parser.add_argument("--server", default="http://127.0.0.1:8787")
    parser.add_argument("--app-id", default=os.environ.get("TORPOR_APP_ID", DEVELOPMENT_APP_ID))
    parser.add_argument("--count", type=int, default=0, help="stop after this many; 0: never")
    options = parser.parse_args()
    secret = os.environ.get("TORPOR_APP_SECRET", DEVELOPMENT_APP_SECRET)

    url = f"{options.server}/v1/apps/{options.app_id}/events"
    timeout = httpx.Timeout(10, read=SILENCE_LIMIT)
    with httpx.stream("GET", url, headers={"authorization": f"Bearer {secret}"}, timeout=timeout) as response:
        response.raise_for_status()
        print(f"following {url}", flush=True)
        for number, (name, data) in enumerate(parse(response.iter_lines()), 1):
            print(f"{name:20} {data}", flush=True)
            if number == options.count:
                break


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
