"""CPU per relayed packet and memory per allocation: our TURN server beside coturn in the same run.

Method. Hosts and pinning as in `bench_forward`. Every allocation has one peer, a UDP socket on the client host; clients
come from many addresses of it. Half of the packets go up (client to peer), half come down. 160 B payloads go one by
one, evenly spaced and shared evenly among allocations, as calls do: each wakes the server, so this is the dearest way
for packets to come. 1,100 B payloads go in frames of ten, each frame in one GSO train, as video does. With channels,
ChannelData both ways; with indications, Send up and Data down. Server CPU is the scheduler's account of all its
threads. Memory is the growth of resident memory from the first allocation to the last.

    python -m benchmarks.bench_turn [--rounds N] [--only CASE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks import hosts, machine
from benchmarks.bench_forward import table
from benchmarks.hosts import CLIENT_HOST, SERVER_HOST
from benchmarks.servers import APP_ID, APP_SECRET, Torpor, _Process
from loadtest.turn_client import TurnClient

SOL_UDP, UDP_SEGMENT = 17, 103
# Clients come from many addresses: a server may limit what a single one does, and challenges are limited by ours.
SOURCES_NETWORK, SOURCES, SOURCES_COUNT = "10.87.87.128/25", ("10.87.87", 128), 120
FRAME_PACKETS = 10


@dataclass(frozen=True, slots=True)
class Case:
    """`allocations` that relay `pps` packets a second in all."""

    allocations: int
    payload_bytes: int
    channels: bool
    pps: int

    @property
    def name(self) -> str:
        return f"{self.allocations} × {self.payload_bytes} B {'channels' if self.channels else 'indications'}"


CASES = [
    Case(allocations, payload_bytes, channels, 20_000)
    for channels in (True, False)
    for payload_bytes in (160, 1100)
    for allocations in (1, 10, 200)
]


class TurnServer(Protocol):
    """A TURN server under measurement."""

    name: str

    async def start(self) -> None:
        """Start and wait until it answers."""

    async def credentials(self) -> tuple[str, str]:
        """A user name and its password."""

    def cpu_ns(self) -> int:
        """CPU time so far."""

    def resident_bytes(self) -> int:
        """Resident memory."""

    async def stop(self) -> None:
        """End the process."""


class Coturn(_Process):
    """Debian's coturn with one relay thread, long-term credentials, nothing else switched on."""

    name = "coturn"

    async def start(self) -> None:
        self.spawn(
            [
                "turnserver", "-n", "--no-cli", "--no-tls", "--no-dtls", "-L", SERVER_HOST, "-E", SERVER_HOST,
                "-a", "-u", "load:secret", "-r", "bench", "-m", "1", "--no-stdout-log", "-l", "/dev/null",
                "--pidfile", "/dev/null", "--userdb", "/dev/null",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        await asyncio.sleep(1)

    async def credentials(self) -> tuple[str, str]:
        return "load", "secret"


class TorporTurn(Torpor):
    """`torpor serve` with one relay thread, a credential from its HTTP API, the private client host allowed."""

    def __init__(self) -> None:
        super().__init__(
            environment={
                "TORPOR_TURN_KEY_ID": APP_ID,
                "TORPOR_TURN_KEY_TOKEN": APP_SECRET,
                "TORPOR_TURN_THREADS": "1",
                "TORPOR_TURN_ALLOW_PEERS": CLIENT_HOST,
                "TORPOR_TURN_ALLOCATIONS_PER_USER": "1000",
            }
        )

    async def credentials(self) -> tuple[str, str]:
        url = f"http://{SERVER_HOST}:8787/v1/turn/keys/{APP_ID}/credentials/generate"
        answer = (await self._http.post(url)).json()["iceServers"]
        return answer["username"], answer["credential"]


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    relayed: int
    expected: int
    cpu_ns: int
    kib_per_allocation: float

    @property
    def cpu_s_per_million(self) -> float:
        """CPU-seconds per million packets that arrived."""
        return self.cpu_ns / max(1, self.relayed) / 1000

    @property
    def loss(self) -> float:
        """Share of packets that did not arrive."""
        return 1 - self.relayed / max(1, self.expected)


class Pair:
    """A client with its allocation, and its peer."""

    def __init__(self, client: TurnClient, case: Case) -> None:
        self.client = client
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind((CLIENT_HOST, 0))
        relayed = client.allocate()
        payload = bytes(case.payload_bytes)
        address = self.peer.getsockname()
        if case.channels:
            up = client.channel_data(client.bind_channel(address), payload)
        else:
            client.permit(CLIENT_HOST)
            up = client.send_indication(address, payload)
        self.peer.connect(relayed)
        count = 1 if case.payload_bytes < 500 else FRAME_PACKETS
        self.packets = count
        self.up, self.up_size = up * count, len(up)
        self.down, self.down_size = payload * count, len(payload)
        for sock in (client.socket, self.peer):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)

    def send(self, *, up: bool) -> None:
        sock, data, size = (self.client.socket, self.up, self.up_size) if up else (self.peer, self.down, self.down_size)
        if self.packets == 1:
            sock.send(data)
        else:
            sock.sendmsg([data], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))])

    def close(self) -> None:
        self.client.close()
        self.peer.close()


async def measure(make: Callable[[], TurnServer], case: Case, seconds: float) -> Result:
    """Start a server, allocate, relay, count."""
    server = make()
    await server.start()
    pairs: list[Pair] = []
    try:
        username, password = await server.credentials()

        def allocate() -> None:
            source = f"{SOURCES[0]}.{SOURCES[1] + len(pairs) % SOURCES_COUNT}"
            client = TurnClient((SERVER_HOST, 3478), username, password, host=source)
            pairs.append(Pair(client, case))

        await asyncio.to_thread(allocate)
        memory = server.resident_bytes()
        for _ in range(case.allocations - 1):
            await asyncio.to_thread(allocate)
        kib = (server.resident_bytes() - memory) / max(1, case.allocations - 1) / 1024
        return relay(server, pairs, case, seconds, kib)
    finally:
        for pair in pairs:
            pair.close()
        await server.stop()


def relay(server: TurnServer, pairs: list[Pair], case: Case, seconds: float, kib: float) -> Result:
    epoll = select.epoll()
    sockets = {}
    for pair in pairs:
        for sock in (pair.client.socket, pair.peer):
            sockets[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLIN)
    buffer = bytearray(65535)
    received = 0

    def drain(timeout: float) -> None:
        nonlocal received
        for fd, _ in epoll.poll(timeout):
            sock = sockets[fd]
            try:
                while True:
                    if sock.recv_into(buffer) > case.payload_bytes - 1:
                        received += 1
            except (BlockingIOError, ConnectionRefusedError):
                pass

    per_turn = pairs[0].packets
    interval = per_turn / case.pps

    def phase(duration: float) -> int:
        turns = int(duration / interval)
        begun = time.perf_counter()
        for turn in range(turns):
            due = begun + turn * interval
            drain(0)
            while (wait := due - time.perf_counter()) > 0:
                drain(wait if wait > 0.001 else 0)
            pairs[turn // 2 % len(pairs)].send(up=turn % 2 == 0)
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            drain(0.05)
        return turns * per_turn

    phase(0.5)
    received = 0
    cpu = server.cpu_ns()
    expected = phase(seconds)
    epoll.close()
    return Result(received, expected, server.cpu_ns() - cpu, kib)


async def measure_all(options: argparse.Namespace) -> None:
    rows = [["case", "server", "loss", "CPU s per million packets", "× coturn", "KiB per allocation"]]
    servers: list[Callable[[], TurnServer]] = [Coturn, TorporTurn]
    for case in (case for case in CASES if options.only in case.name):
        runs: dict[str, list[Result]] = {}
        for _ in range(options.rounds):
            for make in servers:
                name = "coturn" if make is Coturn else "torpor"
                result = await measure(make, case, 2.0)
                runs.setdefault(name, []).append(result)
                print(f"{case.name:26} {name:7} {result.cpu_s_per_million:6.2f} s  loss {result.loss:.2%}", flush=True)
        peer = statistics.median(r.cpu_s_per_million for r in runs["coturn"])
        for name, results in runs.items():
            values = [r.cpu_s_per_million for r in results]
            median = statistics.median(values)
            rows.append(
                [
                    case.name,
                    name,
                    f"{statistics.median(r.loss for r in results):.2%}",
                    f"{median:.2f} ({min(values):.2f}–{max(values):.2f})",
                    f"{median / peer:.2f}",
                    f"{statistics.median(r.kib_per_allocation for r in results):.1f}"
                    if case.allocations >= 200
                    else "",
                ]
            )
    print(machine.save("turn", "Relaying", "make bench", f"{__doc__}\n\n{table(rows)}"))


def main() -> int:
    """Make the test hosts, measure on the client host."""
    parser = argparse.ArgumentParser(description="CPU per relayed packet beside coturn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    if not hosts.inside():
        return hosts.on_client_host("benchmarks.bench_turn", sys.argv[1:])
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    subprocess.run(["ip", "route", "add", "local", SOURCES_NETWORK, "dev", "lo"], check=True)
    asyncio.run(measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
