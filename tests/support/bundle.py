"""Bundle the npm clients of `package.json`, unmodified, into a script that a page can load."""

from __future__ import annotations

import subprocess
from pathlib import Path

SUPPORT = Path(__file__).parent
ESBUILD = SUPPORT / "node_modules" / ".bin" / "esbuild"


def bundle(entry: str) -> Path:
    """Bundle `tests/support/{entry}.js` with what it imports; returns the script, in `tests/support/dist`."""
    target = SUPPORT / "dist" / f"{entry}.js"
    command = [ESBUILD, f"{entry}.js", "--bundle", "--format=iife", "--log-level=warning", f"--outfile={target}"]
    subprocess.run(command, cwd=SUPPORT, check=True, timeout=60)
    return target
