"""Streams per core of the load tests' media client, beside a plain `aiortc.RTCPeerConnection`, in the same run.

Method. One server on core 0, one publisher of Opus and VP8 (pre-encoded) beside it. Each client is a process of its own
on core 1 that holds N subscriptions of both tracks; a stream is one track of one subscription. CPU is the scheduler's
account of the whole client process while media flows, joins not included. Streams per core: streams x seconds / CPU
seconds. A run counts only if every stream had all its packets. Clients take turns, `--rounds` times. `aiortc` is what
its documentation shows, tracks consumed by `MediaBlackhole`, and so decodes; `aiortc, no decoder` is the same with the
decoders replaced by nothing, which isolates the transport.

    python -m benchmarks.bench_media_client [--seconds S] [--rounds N] [--height 180|360|720]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from benchmarks import machine
from benchmarks.bench_forward import table
from loadtest.media.client import MediaClient
from loadtest.media.source import MediaSource
from loadtest.media.target import PublicationRef
from loadtest.media.torpor import TorporTarget
from loadtest.peers.process import process_cpu_ns
from loadtest.peers.torpor import TorporServer

CLIENTS = {"media client": 100, "aiortc": 3, "aiortc, no decoder": 6}
"""Name to subscriptions held: what a core carries with room to spare, so that nobody is measured while saturated."""
TRACKS = 2
LOSS_MAX = 0.001


async def light(server: dict[str, Any], ref: PublicationRef, count: int) -> Callable[[], Awaitable[tuple[int, int]]]:
    """Ours; returns a way to ask for (packets expected, received) so far."""
    client = await MediaClient().__aenter__()
    target = TorporTarget(client, server["url"], server["app_id"], server["app_secret"])
    subscriptions = [await target.subscribe([ref]) for _ in range(count)]
    for subscription in subscriptions:
        await subscription.wait_for_media()

    async def packets() -> tuple[int, int]:
        figures = [f for s in subscriptions for f in (s.figures().audio, s.figures().video)]
        return sum(f.expected for f in figures), sum(f.packets + f.padding for f in figures)

    return packets


async def aiortc_peers(
    server: dict[str, Any], ref: PublicationRef, count: int
) -> Callable[[], Awaitable[tuple[int, int]]]:
    """Plain peer connections, as its documentation shows."""
    from aiortc import RTCPeerConnection, RTCSessionDescription
    from aiortc.contrib.media import MediaBlackhole

    connections = []
    base = f"{server['url']}/v1/apps/{server['app_id']}"
    headers = {"authorization": f"Bearer {server['app_secret']}"}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as http:
        for _ in range(count):
            connection, sink = RTCPeerConnection(), MediaBlackhole()
            connection.on("track", sink.addTrack)
            session = (await http.post("/sessions/new")).json()["sessionId"]
            tracks = [{"location": "remote", "sessionId": ref.session, "trackName": name} for name in ref.tracks]
            pulled = (await http.post(f"/sessions/{session}/tracks/new", json={"tracks": tracks})).json()
            await connection.setRemoteDescription(RTCSessionDescription(**pulled["sessionDescription"]))
            await connection.setLocalDescription(await connection.createAnswer())
            answer = {"type": "answer", "sdp": connection.localDescription.sdp}
            await http.put(f"/sessions/{session}/renegotiate", json={"sessionDescription": answer})
            await sink.start()
            connections.append((connection, sink))

    async def packets() -> tuple[int, int]:
        received = lost = 0
        for connection, _ in connections:
            for report in (await connection.getStats()).values():
                if report.type == "inbound-rtp":
                    received += report.packetsReceived
                    lost += report.packetsLost
        return received + lost, received

    return packets


def take_decoders_out() -> None:
    """Make aiortc decode nothing; everything below stays."""
    from aiortc import rtcrtpreceiver

    class Nothing:
        def decode(self, _: Any) -> list[Any]:
            return []

    rtcrtpreceiver.get_decoder = lambda _: Nothing()


async def run_client(arguments: dict[str, Any]) -> None:
    """In the client's process: join, say so, and at each line on stdin print the packets so far."""
    name, ref = arguments["name"], PublicationRef.from_json(arguments["ref"])
    if name == "aiortc, no decoder":
        take_decoders_out()
    join = light if name == "media client" else aiortc_peers
    packets = await join(arguments["server"], ref, arguments["count"])
    print("joined", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await packets()), flush=True)
    os._exit(0)  # what is measured is over; aiortc's threads would keep us


async def measure(name: str, server: TorporServer, ref: PublicationRef, seconds: float) -> float:
    """Streams per core of one client."""
    count = CLIENTS[name]
    facts = {"url": server.url, "app_id": server.app_id, "app_secret": server.app_secret}
    arguments = json.dumps({"name": name, "server": facts, "ref": ref.to_json(), "count": count})
    core = str((os.cpu_count() or 1) - 1)
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", core, sys.executable, "-m", "benchmarks.bench_media_client", "--client", arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=machine.ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def packets() -> tuple[int, int]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        expected, received = json.loads(await process.stdout.readline())
        return expected, received

    try:
        if await process.stdout.readline() != b"joined\n":
            raise RuntimeError(f"{name} did not join")
        await asyncio.sleep(2)
        before, cpu = await packets(), process_cpu_ns(process.pid)
        await asyncio.sleep(seconds)
        after, cpu = await packets(), process_cpu_ns(process.pid) - cpu
    finally:
        process.stdin.close()
        await process.wait()
    expected, received = after[0] - before[0], after[1] - before[1]
    share = cpu / 1e9 / seconds
    print(
        f"{name:18} {count:4} subscriptions  {received / seconds:8.0f} packets/s  CPU {share:.1%} of a core"
        f"  {cpu / max(1, received) / 1000:.2f} µs/packet",
        flush=True,
    )
    if received < (1 - LOSS_MAX) * expected or share > 0.9:
        print(f"  not counted: {expected - received} packets missing, or saturated", flush=True)
        return float("nan")
    return count * TRACKS / share


async def measure_all(options: argparse.Namespace) -> None:
    server = TorporServer(core=0)
    await server.start()
    os.sched_setaffinity(0, {0})
    rates: dict[str, list[float]] = {name: [] for name in CLIENTS}
    try:
        async with MediaClient() as client:
            target = TorporTarget(client, server.url, server.app_id, server.app_secret)
            publication = await target.publish(MediaSource(height=options.height))
            for _ in range(options.rounds):
                for name in CLIENTS:
                    rates[name].append(await measure(name, server, publication.ref, options.seconds))
            await target.close()
    finally:
        await server.stop()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [["client", "subscriptions held", "streams per core, median (range)", "media client is"]]
    for name, values in rates.items():
        spread = f"{medians[name]:,.0f} ({min(values):,.0f}–{max(values):,.0f})"
        rows.append([name, str(CLIENTS[name]), spread, f"{medians['media client'] / medians[name]:.1f}×"])
    command = " ".join(["python -m benchmarks.bench_media_client", *sys.argv[1:]])
    title = f"Opus and VP8 {options.height}p, {options.seconds:g} s a run"
    body = f"{__doc__}\n\n## {title}\n\n{table(rows)}"
    print(table(rows))
    print(machine.save("media-client", "The media client", command, body))


def main() -> int:
    """Measure, or be one of the clients."""
    parser = argparse.ArgumentParser(description="streams per core of the media client beside aiortc")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--height", type=int, default=360, choices=(180, 360, 720))
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asyncio.run(run_client(json.loads(options.client)) if options.client else measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
