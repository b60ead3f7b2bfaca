"""`make bench`: build the ceiling loop, install the peers where missing, run every benchmark, one after the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PEERS = {"janus": "janus", "coturn": "turnserver"}
"""Debian package to the program in it."""
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True"


def main() -> int:
    """Run every `bench_*.py` with its defaults. Returns the first failure."""
    if missing := [package for package, program in PEERS.items() if shutil.which(program) is None]:
        print(f"» apt-get install {' '.join(missing)} (the peers)", flush=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
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
