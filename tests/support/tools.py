"""Programs that tests need beside Python: without one, tests are skipped on a developer's machine and fail under CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NODE_MODULES = Path(__file__).parent / "node_modules"


def needs(what: str, present: bool) -> pytest.MarkDecorator:
    """Mark tests that need something; with `CI` set they run all the same, so that a broken set-up cannot hide."""
    return pytest.mark.skipif(not present and not os.environ.get("CI"), reason=f"needs {what}")


needs_partysocket = needs(
    "node, and partysocket from tests/support/install.sh",
    shutil.which("node") is not None and (NODE_MODULES / "partysocket").exists(),
)
needs_coturn = needs("coturn's turnutils_uclient", shutil.which("turnutils_uclient") is not None)
