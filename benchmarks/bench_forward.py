"""CPU per forwarded packet, and added latency: Torpor beside a bare forwarding loop and Janus, in the same run.

Method. Two test hosts (network namespaces, one veth pair). The server is pinned to core 0, the clients to core 1; same
clients for every server. Publishers send VP8-shaped frames of ten packets, each frame in one GSO train, AES-128-GCM
where the server offers it. Server CPU is the scheduler's account of all its threads, divided by the packets that
subscribers received. Servers take turns, `--rounds` times; the table shows medians and ranges. The offered load is the
same for ceiling and Torpor; Janus gets one that it holds on one core, so that its figure is CPU and not loss.

    python -m benchmarks.bench_forward [--quick] [--rounds N] [--only CASE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.load import Meter, Publisher, Run, run
from benchmarks.servers import Ceiling, Janus, Server, Torpor
from loadtest.media.peer import MediaPeer
from loadtest.peers import hosts


@dataclass(frozen=True, slots=True)
class Case:
    """`publishers` tracks, each forwarded to `fan_out` subscribers, at `pps` forwarded packets a second."""

    publishers: int
    fan_out: int
    packet_bytes: int
    pps: float
    peer_pps: float

    @property
    def name(self) -> str:
        shape = f"1→{self.fan_out}" if self.publishers == 1 else f"{self.publishers}×{self.fan_out}"
        return f"{shape} {self.packet_bytes} B"


# `peer_pps`: the load for Janus, within what it holds on one core here, so that its figure is CPU and not loss.
CASES = [
    Case(1, 1, 1100, 20_000, 20_000),
    Case(1, 1, 80, 20_000, 20_000),
    Case(1, 20, 1100, 100_000, 30_000),
    Case(1, 20, 80, 100_000, 30_000),
    Case(1, 100, 1100, 250_000, 30_000),
    Case(1, 100, 80, 250_000, 30_000),
    Case(20, 19, 1100, 200_000, 30_000),
    Case(20, 19, 80, 200_000, 30_000),
]
JOINING_MAX = 16
"""Subscribers that join at a time: a join by Janus takes a second, whoever else joins."""
SERVERS: list[Callable[[], Server]] = [Ceiling, Torpor, Janus]


async def measure(make: Callable[[], Server], case: Case, pps: float, seconds: float) -> Run:
    """Start a server, connect everyone, warm up, run."""
    server = make()
    await server.start()
    peers = []
    try:
        sources = [await server.publish(ssrc) for ssrc in range(1, case.publishers + 1)]
        publishers = [Publisher(peer, index + 1, case.packet_bytes) for index, peer in enumerate(sources)]
        for publisher in publishers:
            publisher.send(*publisher.frame())  # a track that has sent nothing yet cannot be pulled
        gate = asyncio.Semaphore(JOINING_MAX)

        async def subscribe(source: MediaPeer) -> MediaPeer:
            async with gate:
                return await server.subscribe(source)

        subscribers = await asyncio.gather(*(subscribe(source) for source in sources for _ in range(case.fan_out)))
        peers = [*sources, *subscribers]
        await server.ready()
        meter = Meter(list(subscribers), case.packet_bytes)

        def once(rate: float, duration: float) -> Run:
            return run(
                server,
                publishers,
                fan_out=case.fan_out,
                pps=rate,
                seconds=duration,
                meter=meter,
            )

        once(pps / 4, 1.0)
        return once(pps, seconds)
    finally:
        for peer in peers:
            peer.close()
        await server.stop()


async def highest(make: Callable[[], Server], case: Case, seconds: float) -> tuple[float, Run]:
    """The highest offered load with less than 0.5 % loss, by steps of a quarter; and a run at half of it."""
    best = 0.0
    rate = case.peer_pps
    while rate < 2_000_000:
        result = await measure(make, case, rate, seconds)
        if result.loss > 0.005:
            break
        best, rate = rate, rate * 1.25
    return best, await measure(make, case, (best or case.peer_pps) / 2, seconds)


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


async def measure_all(options: argparse.Namespace) -> None:
    seconds = 2.0 if options.quick else 4.0
    cases = [case for case in CASES if not options.only or options.only in case.name]
    rows = [["case", "server", "offered pps", "loss", "CPU ns/packet", "× ceiling", "p50 / p99 µs"]]
    for case in cases:
        runs: dict[str, list[Run]] = {}
        for round_number in range(options.rounds):
            for make in SERVERS:
                pps = case.peer_pps if make is Janus else case.pps
                result = await measure(make, case, pps, seconds)
                name = make().name if make is not Janus else "janus"
                runs.setdefault(name, []).append(result)
                print(
                    f"{case.name:14} {name:8} round {round_number + 1}: {result.ns_per_packet:7.0f} ns/packet"
                    f"  loss {result.loss:.2%}  p50 {result.latency_us(0.5):.0f} p99 {result.latency_us(0.99):.0f} µs",
                    flush=True,
                )
        ceiling = statistics.median(r.ns_per_packet for r in runs["ceiling"])
        for name, results in runs.items():
            median = statistics.median(r.ns_per_packet for r in results)
            spread = f"{min(r.ns_per_packet for r in results):.0f}–{max(r.ns_per_packet for r in results):.0f}"
            rows.append(
                [
                    case.name,
                    name,
                    f"{results[0].offered_pps:,.0f}",
                    f"{statistics.median(r.loss for r in results):.2%}",
                    f"{median:.0f} ({spread})",
                    f"{median / ceiling:.2f}",
                    " / ".join(f"{statistics.median(r.latency_us(q) for r in results):.0f}" for q in (0.5, 0.99)),
                ]
            )
    body = "## CPU per forwarded packet\n\n" + table(rows)
    command = " ".join(["python -m benchmarks.bench_forward", *sys.argv[1:]])
    print(machine.save("forward", "Forwarding", command, f"{__doc__}\n\n{body}"), flush=True)
    if not options.only:
        best_rows = [["server", "highest pps below 0.5 % loss", "p50 µs at half of it", "p99 µs at half of it"]]
        for make in SERVERS:
            best, half = await highest(make, next(c for c in CASES if c.name == "1→100 1100 B"), seconds)
            name = "janus" if make is Janus else make().name
            best_rows.append([name, f"{best:,.0f}", f"{half.latency_us(0.5):.0f}", f"{half.latency_us(0.99):.0f}"])
            print("highest", best_rows[-1], flush=True)
        body += "\n\n## 1→100, 1,100 B: highest rate on one core, delay at half of it\n\n" + table(best_rows)
        body += "\n\nDelays are from the publisher's send call to the subscriber's read, clients' own time included."
        machine.save("forward", "Forwarding", command, f"{__doc__}\n\n{body}")


def main() -> int:
    """Build the ceiling, make the test hosts, measure on the client host."""
    parser = argparse.ArgumentParser(description="CPU per forwarded packet beside a ceiling and a peer")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    if not hosts.inside():
        return hosts.on_client_host("benchmarks.bench_forward", sys.argv[1:])
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    asyncio.run(measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
