"""CPU per relayed packet, added delay and memory per allocation: our TURN server beside coturn and a bare relay.

Method. Hosts and pinning as in `bench_forward`. All servers of a case run at once and take turns, `--rounds` times, for
0.7 s each, so that whatever else the machine does hits all of them; the table shows medians and ranges. Every
allocation has one peer, a UDP socket on the client host; clients come from many addresses of it. Half of the packets go
up (client to peer), half come down. 160 B payloads go one by one, evenly spaced and shared evenly among allocations, as
calls do: the dearest way for packets to come. 1,100 B payloads go in frames of ten, each frame in one GSO train, as
video does. With channels, ChannelData both ways; with indications, Send up and Data down. Server CPU is the scheduler's
account of all its threads, receiving on the far end of the veth pair included. Delay is from the sender's call to the
receiver's read, the client process's own time included: compare, do not add up. Memory is the growth of resident memory
from the first allocation to the last.

The ceiling is a loop of epoll, recvmsg and sendmsg over connected sockets (`_ceiling/relay.pyx`) without tables,
permissions or accounts; `ceiling, 500 µs` sleeps so long after each round, as a relay thread of ours does under load.
`torpor, 0 µs` never waits for packets to gather (`turn.gather_us_max = 0`).

    python -m benchmarks.bench_turn [--rounds N] [--only CASE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.bench_forward import table
from benchmarks.relays import (
    SMALL_BYTES,
    SOURCES_NETWORK,
    Case,
    Ceiling,
    Coturn,
    Pair,
    RelayServer,
    TorporTurn,
    make_certificate,
)
from loadtest.peers import hosts

SECONDS, WARM_UP, SETTLE = 0.7, 0.2, 0.1
GATHER_US = 500

CASES = [
    Case(1, 160, True, 100),  # a lone call
    *(Case(allocations, 160, True, 20_000) for allocations in (1, 10, 200)),
    Case(60, 160, True, 30_000),  # busy ones
    Case(500, 160, True, 25_000),  # calls: 50 packets a second
    *(Case(allocations, 1100, True, 20_000) for allocations in (1, 10, 200)),
    *(Case(allocations, payload, False, 20_000) for payload in (160, 1100) for allocations in (1, 10, 200)),
    *(
        Case(allocations, payload, True, 20_000, transport)
        for transport in ("tcp", "tls")
        for payload in (160, 1100)
        for allocations in (1, 60)
    ),
]


def servers(case: Case, certificate: tuple[Path, Path]) -> list[RelayServer]:
    """Who takes turns."""
    if case.transport != "udp":
        return [Coturn(certificate), TorporTurn(certificate)]
    if case.payload_bytes < SMALL_BYTES and case.channels:
        return [Ceiling(), Ceiling(GATHER_US), Coturn(), TorporTurn(), TorporTurn(gather_us=0)]
    return [Ceiling(), Coturn(), TorporTurn()]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of a server measured."""

    received: int
    expected: int
    cpu_ns: int
    delays_us: list[float]

    @property
    def cpu_s_per_million(self) -> float:
        """CPU-seconds per million packets that arrived."""
        return self.cpu_ns / max(1, self.received) / 1000

    @property
    def loss(self) -> float:
        """Share of packets that did not arrive."""
        return 1 - self.received / max(1, self.expected)

    def delay_us(self, quantile: float) -> float:
        """A quantile of all delays."""
        values = sorted(self.delays_us)
        return values[min(len(values) - 1, int(quantile * len(values)))] if values else float("nan")


class Stand:
    """A server with its pairs of a case, ready to take turns."""

    def __init__(self, server: RelayServer, case: Case) -> None:
        self.server = server
        self.case = case
        self.turns: list[Turn] = []
        self.kib_per_allocation = 0.0
        self._pairs: list[Pair] = []
        self._epoll = select.epoll()
        self._owners: dict[int, tuple[Pair, int]] = {}
        self._buffer = bytearray(1 << 18)
        self._stamps: list[tuple[int, list[int]]] = []

    async def open(self) -> None:
        """Start the server, make the pairs."""
        await self.server.start()
        self._pairs.append(await self.server.open_pair(self.case, 0))
        memory = self.server.resident_bytes()
        while len(self._pairs) < self.case.allocations:
            self._pairs.append(await self.server.open_pair(self.case, len(self._pairs)))
        self.kib_per_allocation = (self.server.resident_bytes() - memory) / max(1, self.case.allocations - 1) / 1024
        await self.server.ready()
        for pair in self._pairs:
            for side, sock in enumerate(pair.sockets):
                self._owners[sock.fileno()] = pair, side
                self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._run(WARM_UP)

    def take_turn(self) -> Turn:
        """Offer the load for SECONDS."""
        cpu = self.server.cpu_ns()
        expected = self._run(SECONDS)
        cpu = self.server.cpu_ns() - cpu
        delays = [(at - stamp) / 1000 for at, stamps in self._stamps for stamp in stamps]
        turn = Turn(len(delays), expected, cpu, delays)
        self.turns.append(turn)
        return turn

    def _drain(self, timeout: float) -> None:
        for fd, _ in self._epoll.poll(timeout):
            pair, side = self._owners[fd]
            if stamps := pair.receive(pair.sockets[side], self._buffer):
                self._stamps.append((time.perf_counter_ns(), stamps))

    def _run(self, seconds: float) -> int:
        """Returns how many packets were sent."""
        self._stamps = []
        per_send = self.case.packets
        interval = per_send / self.case.pps
        sends = int(seconds / interval)
        begun = time.perf_counter()
        for number in range(sends):
            due = begun + number * interval
            self._drain(0)
            while (wait := due - time.perf_counter()) > 0:
                self._drain(wait if wait > 0.001 else 0)
            self._pairs[number // 2 % len(self._pairs)].send(time.perf_counter_ns(), up=number % 2 == 0)
        end = time.perf_counter() + SETTLE
        while (wait := end - time.perf_counter()) > 0:
            self._drain(wait)
        return sends * per_send

    async def close(self) -> None:
        """Release everything."""
        for pair in self._pairs:
            pair.close()
        self._epoll.close()
        await self.server.stop()


async def measure(case: Case, rounds: int, certificate: tuple[Path, Path]) -> list[Stand]:
    """All servers of a case, taking turns."""
    stands = [Stand(server, case) for server in servers(case, certificate)]
    try:
        for stand in stands:
            await stand.open()
        gc.disable()
        for number in range(rounds):
            for stand in stands:
                turn = stand.take_turn()
                print(
                    f"{case.name:40} {stand.server.name:16} round {number + 1}: {turn.cpu_s_per_million:6.2f} s"
                    f"  loss {turn.loss:.2%}  p50 {turn.delay_us(0.5):.0f} p99 {turn.delay_us(0.99):.0f} µs",
                    flush=True,
                )
    finally:
        gc.enable()
        for stand in stands:
            await stand.close()
    return stands


def rows_of(case: Case, stands: list[Stand]) -> list[list[str]]:
    """A line for each server."""

    def median(stand: Stand, figure: Callable[[Turn], float]) -> float:
        return statistics.median(map(figure, stand.turns))

    cpu = {stand.server.name: median(stand, lambda t: t.cpu_s_per_million) for stand in stands}
    rows = []
    for stand in stands:
        name = stand.server.name
        values = [turn.cpu_s_per_million for turn in stand.turns]
        delays = " / ".join(f"{median(stand, lambda t, q=q: t.delay_us(q)):.0f}" for q in (0.5, 0.99))  # type: ignore[misc]
        rows.append(
            [
                case.name,
                name,
                f"{median(stand, lambda t: t.loss):.2%}",
                f"{cpu[name]:.2f} ({min(values):.2f}–{max(values):.2f})",
                f"{cpu[name] / cpu['coturn']:.2f}",
                f"{cpu[name] / cpu['ceiling']:.2f}" if "ceiling" in cpu else "",
                delays,
                f"{stand.kib_per_allocation:.1f}" if case.allocations >= 60 and "ceiling" not in name else "",
            ]
        )
    return rows


async def measure_all(options: argparse.Namespace) -> None:
    """Every case whose name contains what was asked for; the page is written anew after each."""
    rows = [["case", "server", "loss", "CPU s per million", "× coturn", "× ceiling", "p50 / p99 µs", "KiB/allocation"]]
    command = " ".join(["python -m benchmarks.bench_turn", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        for case in (case for case in CASES if options.only in case.name):
            rows += rows_of(case, await measure(case, options.rounds, certificate))
            path = machine.save("turn", "Relaying", command, f"{__doc__}\n\n{table(rows)}")
    print(table(rows))
    print(path)


def main() -> int:
    """Make the test hosts, measure on the client host."""
    parser = argparse.ArgumentParser(description="CPU per relayed packet beside coturn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    if not any(options.only in case.name for case in CASES):
        parser.error("no such case: " + "; ".join(case.name for case in CASES))
    if not hosts.inside():
        return hosts.on_client_host("benchmarks.bench_turn", sys.argv[1:])
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    subprocess.run(["ip", "route", "add", "local", SOURCES_NETWORK, "dev", "lo"], check=True)
    asyncio.run(measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
