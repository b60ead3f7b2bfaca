"""What a result must say about where it was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS_VARIABLE = "TORPOR_BENCHMARK_RESULTS"
"""Of the environment: another folder for pages than `benchmarks/results`."""
RESULTS = Path(os.environ.get(RESULTS_VARIABLE, ROOT / "benchmarks" / "results"))


def commit() -> str:
    """Short hash of HEAD, with `+` when the tree differs from it."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def describe() -> str:
    """CPU, cores, kernel, Python: one line."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def save(name: str, title: str, command: str, body: str) -> Path:
    """Write a dated result page and return its path."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{date}-{commit().rstrip('+')}-{name}.md"
    path.parent.mkdir(exist_ok=True)
    facts = [f"- date: {date}", f"- commit: {commit()}", f"- machine: {describe()}", f"- command: `{command}`"]
    path.write_text("\n".join([f"# {title}", "", *facts, "", body, ""]))
    return path


def file_system(path: Path) -> str:
    """Type and device of the file system that holds `path`."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    device, _, kind = max(
        (mount for mount in mounts if path.resolve().is_relative_to(mount[1])), key=lambda mount: len(mount[1])
    )
    return f"{kind} on {device}"
