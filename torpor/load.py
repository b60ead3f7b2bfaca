"""`torpor load`, handed on to `loadtest`, which not every installation has what it needs for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from torpor.errors import StartRefused

NEEDED = ("locust", "picows", "httpx", "av")
"""Packages of the extra `load`."""


def load(arguments: Sequence[str]) -> int:
    """Run a load test; returns the exit code.

    Raises:
        StartRefused: the extra `load` is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StartRefused(f"load tests need more: pip install 'torpor[load]' (missing: {', '.join(missing)})")
    from loadtest.command import main

    return main(arguments)
