"""Nothing acknowledged is lost: a server is killed with SIGKILL at random moments, again and again, on one folder."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 50
ROOT = Path(__file__).parent.parent.parent


class Launcher:
    """Starts servers one after the other and hears what they say."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.objects.crash_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def start(self, mode: str, folder: Path) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([mode, str(folder)]) + "\n")
        self._process.stdin.flush()
        pid: int = next(line["pid"] for line in self.lines() if "pid" in line)
        return pid

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            yield json.loads(text)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def kill_rounds(folder: Path, rounds: int, seed: int) -> tuple[int, int]:
    chance = random.Random(seed)
    acknowledged: dict[str, set[int]] = {}
    launcher = Launcher()
    try:
        for _ in range(rounds):
            pid = launcher.start("load", folder)
            # From "has just opened its files" to "in full swing".
            acks_before = chance.choice([0, 0, 1, 5, 30])
            for line in launcher.lines() if acks_before else ():
                assert "ended" not in line, "the server ended by itself"
                name, number = line["ack"]
                acknowledged.setdefault(name, set()).add(number)
                acks_before -= 1
                if not acks_before:
                    break
            time.sleep(chance.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            for line in launcher.lines():
                if "ended" in line:
                    assert os.WTERMSIG(line["ended"]) == signal.SIGKILL
                    break
                name, number = line["ack"]
                acknowledged.setdefault(name, set()).add(number)
        state: dict[str, set[str]] = {}
        launcher.start("check", folder)
        for line in launcher.lines():
            if "ended" in line:
                assert line["ended"] == 0, "the server could not start again, or found a torn batch"
                break
            state |= {name: set(keys) for name, keys in line["state"].items()}
    finally:
        launcher.close()
    alarms = 0
    for name, numbers in acknowledged.items():
        keys = state[name]
        lost = [n for n in numbers if f"op{n}" not in keys]
        assert not lost, f"{len(lost)} of {len(numbers)} acknowledged writes of object {name} are lost"
    for name, keys in state.items():
        # Set in one batch with their keys, acknowledged or not: every alarm that is in the file has run.
        wanted = {key.removeprefix("alarm") for key in keys if key.startswith("alarm")}
        never = [n for n in wanted if f"ran{n}" not in keys]
        assert not never, f"{len(never)} alarms of object {name} never ran"
        alarms += len(wanted)
    return sum(map(len, acknowledged.values())), alarms


@pytest.mark.timeout(600)
def test_nothing_acknowledged_and_no_alarm_is_lost_over_50_kills(tmp_path: Path) -> None:
    writes, alarms = kill_rounds(tmp_path / "data", ROUNDS, seed=1)
    assert writes > ROUNDS
    assert alarms > ROUNDS


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif("TORPOR_KILL_ROUNDS" not in os.environ, reason="set TORPOR_KILL_ROUNDS=500 for the long run")
def test_nothing_acknowledged_and_no_alarm_is_lost_over_many_kills(tmp_path: Path) -> None:
    writes, alarms = kill_rounds(tmp_path / "data", int(os.environ["TORPOR_KILL_ROUNDS"]), seed=2)
    assert writes > 0
    assert alarms > 0
