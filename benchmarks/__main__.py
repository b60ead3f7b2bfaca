"""`make bench`: build the ceiling loop, install the peers where missing, run every benchmark, one after the other."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import RESULTS_VARIABLE
from loadtest.peers.debian import ensure_installed

HERE = Path(__file__).parent
PEERS = ("janus", "turnserver", "node", "npm")
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True"
QUICK = {
    "bench_forward": ["--quick", "--rounds", "1"],
    "bench_media_client": ["--seconds", "2", "--rounds", "1"],
    "bench_relayed_media": ["--rounds", "1"],
    "bench_sessions": ["--sessions", "100"],
    "bench_sockets": ["--quick", "--rounds", "1"],
    "bench_turn": ["--rounds", "1"],
}


def main() -> int:
    """Run every `bench_*.py` with its defaults, also after one that failed. Returns the first failure.

    Each saves its page as it goes, so what was measured is kept when it is cut short.
    """
    names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="speed beside a ceiling and peers")
    parser.add_argument("names", nargs="*", metavar="bench_NAME", help="some instead of all: " + ", ".join(names))
    parser.add_argument("--quick", action="store_true", help="one short round each: shows that they run, keeps no page")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    ensure_installed(*PEERS)
    print("» building the ceiling loop", flush=True)
    loops = [str(path) for path in sorted(HERE.glob("_*/*.pyx"))]
    cythonize = str(Path(sys.executable).parent / "cythonize")
    subprocess.run([cythonize, "-q", "-i", "-3", "-X", DIRECTIVES, *loops], check=True, cwd=HERE.parent)
    with tempfile.TemporaryDirectory(prefix="torpor-bench-") as folder:
        environment = {**os.environ, RESULTS_VARIABLE: folder} if options.quick else None
        return run(options.names or names, quick=options.quick, environment=environment)


def run(names: list[str], *, quick: bool, environment: dict[str, str] | None) -> int:
    """Run these; the first failure's exit code, or 0."""
    failure = 0
    for name in names:
        print(f"» {name}", flush=True)
        words = [sys.executable, "-m", f"benchmarks.{name}", *(QUICK.get(name, []) if quick else [])]
        code = subprocess.run(words, check=False, env=environment).returncode
        if code:
            print(f"» {name} failed with code {code}", flush=True)
        failure = failure or code
    return failure


if __name__ == "__main__":
    sys.exit(main())
