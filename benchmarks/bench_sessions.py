"""Joining: sessions per second, CPU per join, memory per idle connected session; Torpor beside Janus in the same run.

Method. Hosts and pinning as in `bench_forward`. A join is everything a publisher of one video track does: create the
session, offer and answer, connectivity check, DTLS handshake. `--concurrent` joins are under way at a time. The client
is one Python process on the other core, so joins per second are bounded by it and by waits on either side (a first
ClientHello that comes too early for Janus costs OpenSSL's timer of a second): CPU per join is the server's own figure.
Memory is resident memory after all have joined, less that before, divided by the sessions; nothing is sent meanwhile.

    python -m benchmarks.bench_sessions [--sessions N] [--concurrent N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable

from benchmarks import machine
from benchmarks.bench_forward import table
from benchmarks.servers import Janus, Server, Torpor
from loadtest.media.peer import MediaPeer
from loadtest.peers import hosts


async def measure(make: Callable[[], Server], sessions: int, concurrent: int) -> list[str]:
    """One row of the table."""
    server = make()
    await server.start()
    peers: list[MediaPeer] = []
    durations: list[float] = []
    gate = asyncio.Semaphore(concurrent)

    async def join(ssrc: int) -> None:
        async with gate:
            begun = time.perf_counter()
            peers.append(await server.publish(ssrc))
            durations.append(time.perf_counter() - begun)

    try:
        # The first joins pay for caches, pools and lazy imports: they are not what a session costs.
        await asyncio.gather(*(join(ssrc) for ssrc in range(1, 51)))
        durations.clear()
        memory, cpu, begun = server.resident_bytes(), server.cpu_ns(), time.perf_counter()
        await asyncio.gather(*(join(ssrc) for ssrc in range(51, 51 + sessions)))
        elapsed = time.perf_counter() - begun
        cpu_ms = (server.cpu_ns() - cpu) / sessions / 1e6
        await asyncio.sleep(1)
        kib = (server.resident_bytes() - memory) / sessions / 1024
        durations.sort()
        p50, p99 = durations[len(durations) // 2], durations[int(len(durations) * 0.99)]
        row = [server.name, f"{sessions / elapsed:.0f}", f"{cpu_ms:.2f}", f"{kib:.1f}"]
        row.append(f"{p50 * 1000:.0f} / {p99 * 1000:.0f}")
        print(row, flush=True)
        return row
    finally:
        for peer in peers:
            peer.close()
        await server.stop()


async def measure_all(options: argparse.Namespace) -> None:
    head = ["server", "joins/s", "server CPU ms/join", "KiB per idle session", "join p50 / p99 ms"]
    servers: list[Callable[[], Server]] = [Torpor, Janus]
    rows = [head, *[await measure(make, options.sessions, options.concurrent) for make in servers]]
    title = f"{options.sessions} sessions, {options.concurrent} joining at a time"
    print(machine.save("sessions", "Joining", "make bench", f"{__doc__}\n\n## {title}\n\n{table(rows)}"))


def main() -> int:
    """Make the test hosts, measure on the client host."""
    parser = argparse.ArgumentParser(description="joins per second and memory per session")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--concurrent", type=int, default=16)
    options = parser.parse_args()
    if not hosts.inside():
        return hosts.on_client_host("benchmarks.bench_sessions", sys.argv[1:])
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    asyncio.run(measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
