"""Load tests as users run them: Locust as a process of its own, against a server of ours. Timings are not judged."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtest.figures import Figures
from loadtest.profiles import NAMES
from loadtest.verdict import EXIT_INVALID
from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
ROOM = "torpor.load_room:LoadRoom"
SMALL = {
    "rooms": "--rooms 4 --members 5 --rate 8",
    "ramp": "--rooms 4 --members 5 --rate 8",
    "spike": "--rooms 4 --members 5 --rate 8",
    "idle-sea": "--rooms 4 --members 25 --active 0.1 --think 0.5",
    "api": "--rooms 4 --members 5 --think 0.2",
    "meeting": "--publishers 3 --height 180",
    "livestream": "--subscribers 4 --height 180",
    "audio-room": "--publishers 2 --subscribers 3",
    "relay": "--relays 4",
}
COUNTS = (0, EXIT_INVALID)
"""Exit codes of a run in order: whether this machine had room for the generator is no question of a test."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def settings(folder: Path) -> dict[str, str]:
    return {
        "TORPOR_ROOMS_FOLDER": str(folder / "rooms"),
        "TORPOR_ROOMS_HANDSHAKES_PER_SECOND": "0",
        "TORPOR_TURN_ALLOW_LOOPBACK_PEERS": "true",
    }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(ROOM, environment=settings(tmp_path)) as running:
        yield running


async def locust(*arguments: str, file: Path = LOCUSTFILE) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip


async def ended(process: Process, within: float = 60) -> tuple[int, str]:
    """Exit code, and all that was printed; nothing of it is left running."""
    below = psutil.Process(process.pid).children(recursive=True)
    try:
        async with asyncio.timeout(within):
            out, error = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, 10)
    assert not alive
    return process.returncode, (out + error).decode()


async def children(process: Process, count: int) -> list[psutil.Process]:
    """Its processes below it, once there are so many and all members of the small rooms have joined."""
    async with asyncio.timeout(60):
        while True:
            found = psutil.Process(process.pid).children(recursive=True)
            if len(found) >= count and sum(map(connections, found)) >= 4 * 5:
                return found
            await asyncio.sleep(0.1)


def connections(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):  # one that ends meanwhile
        return sum(found.status == psutil.CONN_ESTABLISHED for found in process.net_connections("tcp"))
    return 0


async def run(server: Server, folder: Path, profile: str, *more: str) -> dict[str, Any]:
    path = folder / "record.json"
    words = ["--profile", profile, "--duration", "2", "--quiet", "0", *SMALL[profile].split(), "--host", server.url]
    code, printed = await ended(await locust(*words, "--record", str(path), *more))
    assert code in COUNTS, printed
    assert "Traceback" not in printed, printed
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["failures"] == []
    return record


@pytest.mark.parametrize("profile", NAMES)
async def test_every_profile_runs_against_our_server_without_a_failure(
    server: Server, tmp_path: Path, profile: str
) -> None:
    record = await run(server, tmp_path, profile, "--server-pid", str(server.pid))
    figures = Figures.from_json(record["figures"])
    assert record["samples"]
    assert all("engine_cpu" in sample and "server_cpu" in sample for sample in record["samples"])
    assert figures.times["engine.loop_lag"].count > 10
    if record["part"] == "rooms":
        assert figures.count("rooms.lost") == 0
        if profile not in ("ramp", "spike"):  # where people leave while others talk
            assert figures.count("rooms.delivered_here") == figures.count("rooms.expected")
    if profile in ("rooms", "ramp", "spike", "idle-sea"):
        assert figures.times["rooms.delivery"].count == figures.count("rooms.delivered") > 0
    if profile == "api":
        assert {"rooms.echo", "rooms.write", "rooms.http"} <= set(figures.times)
    if profile in ("meeting", "livestream"):
        assert figures.count("subscribe.video.frames") > 0
        assert figures.times["subscribe.video.first_frame"].count > 0
    if record["part"] == "media":
        assert figures.count("subscribe.audio.packets") > 0
        assert figures.times["subscribe.audio.delay"].count > 0
    if record["part"] == "turn":
        assert figures.count("turn.echoed") > 0
        assert figures.times["turn.allocate_seconds"].count == 4


COMING = """
from locust.dispatch import UsersDispatcher
from locust.runners import WorkerNode
from loadtest import locustfile, profiles

chosen = profiles.profile("livestream", {"publishers": 2, "subscribers": 9, "browsers": 3})
locustfile.deal(chosen, vars(locustfile))
dispatcher = UsersDispatcher([WorkerNode("only")], [vars(locustfile)[name] for name in chosen.users])
for users in (2, chosen.total):
    dispatcher.new_dispatch(users, spawn_rate=1000)
    *_, dealt = dispatcher
    print(sorted(name for name, count in dealt["only"].items() for _ in range(count)))
"""


async def test_publishers_come_before_those_who_wait_for_them() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", COMING, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    _, printed = await ended(process)
    publishers, everybody = (json.loads(line.replace("'", '"')) for line in printed.splitlines())
    assert publishers == ["Broadcaster"] * 2
    assert everybody == ["Broadcaster"] * 2 + ["BrowserViewer"] * 3 + ["Viewer"] * 9


async def test_two_processes_add_up_to_one_run(server: Server, tmp_path: Path) -> None:
    words = ["--processes", "2", "--rooms", "3", "--duration", "3"]  # rooms with members in both
    record = await run(server, tmp_path, "rooms", *words)
    figures = Figures.from_json(record["figures"])
    assert record["workers"] == 2
    assert max(sample["connections"] for sample in record["samples"]) == 15
    sent, delivered = figures.count("rooms.sent"), figures.count("rooms.delivered")
    # Each engine knows of its own connections alone, so it expects fewer than what arrives in all.
    assert figures.count("rooms.delivered_here") < delivered
    assert figures.times["rooms.delivery"].count == delivered
    assert delivered == pytest.approx(sent * 4, rel=0.25)  # reports of two processes, cut a second apart
    assert figures.count("rooms.lost") == 0


async def test_workers_on_their_own_do_what_their_master_was_told(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["--profile", "livestream", "--duration", "2", "--quiet", "0", *SMALL["livestream"].split()]
    words += ["--host", server.url, "--record", str(path)]
    master = await locust("--master", "--master-bind-port", port, "--expect-workers", "2", *words)
    workers = [await locust("--worker", "--master-port", port) for _ in range(2)]  # publisher and viewers in either
    (code, printed), *rest = await asyncio.gather(*map(ended, (master, *workers)))
    assert code in COUNTS, printed
    assert not any("Traceback" in text for text in (printed, *(text for _, text in rest)))
    record = json.loads(path.read_text())
    assert (record["workers"], record["failures"]) == (2, [])
    assert Figures.from_json(record["figures"]).times["subscribe.video.first_frame"].count == 4


async def test_a_master_may_be_quicker_than_its_workers_locustfile(server: Server, tmp_path: Path) -> None:
    path, file = tmp_path / "record.json", tmp_path / "slow.py"
    file.write_text(
        "import gevent\nfrom locust import events\nfrom locust.runners import WorkerRunner\n"
        "@events.init.add_listener\n"
        "def slow(environment, **_):\n"
        "    if isinstance(environment.runner, WorkerRunner):\n"
        "        gevent.sleep(0.2)\n"
        "from loadtest.locustfile import *\n"
    )
    words = ["--processes", "2", "--profile", "rooms", "--duration", "5", "--quiet", "0", *SMALL["rooms"].split()]
    code, printed = await ended(await locust(*words, "--host", server.url, "--record", str(path), file=file))
    assert code in COUNTS, printed
    assert "Traceback" not in printed, printed
    record = json.loads(path.read_text())
    assert (record["workers"], record["failures"]) == (2, [])
    assert Figures.from_json(record["figures"]).count("rooms.delivered") > 0


async def test_a_saturated_generator_makes_the_run_invalid(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    words = ["--profile", "rooms", *SMALL["rooms"].split(), "--quiet", "0", "--duration", "2", "--host", server.url]
    code, printed = await ended(await locust(*words, "--burn", "1", "--record", str(path)))
    assert code == EXIT_INVALID
    assert "this run does not count. INVALID: " in printed
    record = json.loads(path.read_text())
    assert not record["valid"]
    assert any("woke late" in reason or "of a core" in reason for reason in record["invalid"])


async def test_a_server_that_dies_is_reported_and_ends_the_run(tmp_path: Path) -> None:
    server = Server([ROOM], settings(tmp_path))
    await server.start()
    path = tmp_path / "record.json"
    words = ["--profile", "rooms", *SMALL["rooms"].split(), "--quiet", "0", "--duration", "60", "--host", server.url]
    process = await locust(*words, "--server-pid", str(server.pid), "--record", str(path))
    await children(process, 1)
    await server.kill()
    code, printed = await ended(process, within=30)
    assert code == 1
    assert "the server under test ended" in printed
    record = json.loads(path.read_text())
    assert "the server under test ended" in record["target_died"]
    assert {"connection", "reconnect"} & {failure["name"] for failure in record["failures"]}


async def test_ctrl_c_ends_everything(server: Server) -> None:
    words = ["--profile", "rooms", *SMALL["rooms"].split(), "--quiet", "0", "--duration", "60", "--host", server.url]
    process = await locust(*words, "--processes", "2")
    started = await children(process, 4)  # two workers, an engine each
    process.send_signal(signal.SIGINT)
    await ended(process, within=60)
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, 10)
    assert not alive


async def test_an_engine_that_is_killed_makes_the_run_invalid_and_ends_it(server: Server) -> None:
    words = ["--profile", "rooms", *SMALL["rooms"].split(), "--quiet", "0", "--duration", "60", "--host", server.url]
    process = await locust(*words)
    (engine,) = await children(process, 1)
    engine.kill()
    code, printed = await ended(process, within=30)
    assert code == EXIT_INVALID
    assert "an engine ended in the middle of the run" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--profile", "nothing", "--host", "http://127.0.0.1:1"], "no profile 'nothing'; there are rooms"),
        (["--host", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
        ([], "no address: give --host"),
    ],
)
async def test_wrong_usage_is_one_clear_line(arguments: list[str], line: str) -> None:
    code, printed = await ended(await locust(*arguments, "--loglevel", "WARNING"))
    assert code == 2
    (said,) = printed.splitlines()
    assert line in said


async def test_the_examples_locustfile_runs_against_the_chat(tmp_path: Path) -> None:
    page = tmp_path / "chat.html"
    async with running_server(str(ROOT / "examples" / "rooms" / "chat.py"), environment=settings(tmp_path)) as server:
        words = ["--host", server.url, "-u", "12", "-r", "12", "-t", "3s", "--report", str(page)]
        code, printed = await ended(await locust(*words, file=ROOT / "examples" / "load" / "locustfile.py"))
    assert code in COUNTS, printed
    assert "0(0.00%)" in next(line for line in printed.splitlines() if line.split()[:2] == ["WS", "talk"])
    assert page.read_text().startswith("<!doctype html>")


async def test_torpor_load_starts_a_server_and_writes_a_report(tmp_path: Path) -> None:
    small = [*SMALL["rooms"].split(), "--quiet", "0", "--duration", "2"]
    words = ["load", "rooms", *small, "--rounds", "2", "--out", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "torpor", *words, "--server-core", "none", stdout=PIPE, stderr=PIPE
    )
    code, printed = await ended(process)
    assert code in COUNTS, printed
    (folder,) = [Path(entry) for entry in glob.glob(f"{tmp_path}/*-rooms-torpor")]
    assert sorted(os.listdir(folder)) == ["report.html", "torpor-1.json", "torpor-2.json"]
    record = json.loads((folder / "torpor-1.json").read_text())
    assert record["command"].startswith("torpor load rooms --rooms 4")
    assert record["machine"]["kernel"]
    assert isinstance(record["machine"]["gso"], bool)
    assert record["target"]["version"]
    assert "delivery delay, p99" in printed
    assert "100%" in printed or "done" in printed


async def test_torpor_load_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    words = ["load", "rooms", *SMALL["rooms"].split(), "--quiet", "0", "--duration", "60", "--out", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "torpor", *words, stdout=PIPE, stderr=PIPE, env={**os.environ}
    )
    started = await children(process, 3)  # server, Locust, engine
    process.send_signal(signal.SIGINT)
    code, printed = await ended(process, within=60)
    assert code == 130
    assert "interrupted" in printed
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, 10)
    assert not alive
