"""`make bench`: build the ceiling loop, install the peers where missing, run every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadtest.peers.debian import ensure_installed

HERE = Path(__file__).parent
PEERS = ("janus", "turnserver")
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True"


def main() -> int:
    """Run every `bench_*.py` with its defaults. Returns the first failure."""
    ensure_installed(*PEERS)
    print("» building the ceiling loop", flush=True)
    loops = [str(path) for path in sorted(HERE.glob("_*/*.pyx"))]
    cythonize = str(Path(sys.executable).parent / "cythonize")
    subprocess.run([cythonize, "-q", "-i", "-3", "-X", DIRECTIVES, *loops], check=True, cwd=HERE.parent)
    for path in sorted(HERE.glob("bench_*.py")):
        print(f"» {path.stem}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
