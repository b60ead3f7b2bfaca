"""`make bench`: build the ceiling loop, install the peers where missing, run every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadtest.peers.debian import ensure_installed

HERE = Path(__file__).parent
PEERS = ("janus", "turnserver", "node", "npm")
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True"


def main() -> int:
    """Run every `bench_*.py` with its defaults, also after one that failed. Returns the first failure.

    Each saves its page as it goes, so what was measured is kept when it is cut short.
    """
    ensure_installed(*PEERS)
    print("» building the ceiling loop", flush=True)
    loops = [str(path) for path in sorted(HERE.glob("_*/*.pyx"))]
    cythonize = str(Path(sys.executable).parent / "cythonize")
    subprocess.run([cythonize, "-q", "-i", "-3", "-X", DIRECTIVES, *loops], check=True, cwd=HERE.parent)
    failure = 0
    for path in sorted(HERE.glob("bench_*.py")):
        print(f"» {path.stem}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False).returncode
        if code:
            print(f"» {path.stem} failed with code {code}", flush=True)
        failure = failure or code
    return failure


if __name__ == "__main__":
    sys.exit(main())
