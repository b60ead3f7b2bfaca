"""CPU per relayed packet and memory per allocation: our TURN server beside coturn and a bare relay in the same run.

Method. Hosts and pinning as in `bench_forward`. Every allocation has one peer, a UDP socket on the client host; clients
come from many addresses of it. Half of the packets go up (client to peer), half come down. 160 B payloads go one by
one, evenly spaced and shared evenly among allocations, as calls do: each wakes the server, so this is the dearest way
for packets to come. 1,100 B payloads go in frames of ten, each frame in one GSO train, as video does. With channels,
ChannelData both ways; with indications, Send up and Data down. Server CPU is the scheduler's account of all its
threads. Memory is the growth of resident memory from the first allocation to the last. The ceiling is a loop of epoll,
recvmsg and sendmsg over connected sockets (`_ceiling/relay.pyx`): what the kernel asks for packets that come like this.

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

from benchmarks import machine
from benchmarks.bench_forward import table
from benchmarks.servers import Torpor, _Process
from loadtest.peers import hosts
from loadtest.peers.coturn import CoturnServer
from loadtest.peers.hosts import CLIENT_HOST, SERVER_HOST
from loadtest.turn_client import TurnClient

SOL_UDP, UDP_SEGMENT = 17, 103
# Clients come from many addresses: a server may limit what a single one does, and challenges are limited by ours.
SOURCES_NETWORK, SOURCES, SOURCES_COUNT = "10.87.87.128/25", ("10.87.87", 128), 120
FRAME_PACKETS = 10
CHANNEL_HEAD_BYTES = 4
INDICATION_HEAD_BYTES = 36  # header, XOR-PEER-ADDRESS of IPv4, DATA's own head


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


class RelayServer(Protocol):
    """A server under measurement."""

    name: str

    async def start(self) -> None:
        """Start and wait until it answers."""

    async def open_pair(self, case: Case, index: int) -> Pair:
        """A client with its allocation, and its peer."""

    async def ready(self) -> None:
        """Called once when all pairs are open."""

    def cpu_ns(self) -> int:
        """CPU time so far."""

    def resident_bytes(self) -> int:
        """Resident memory."""

    async def stop(self) -> None:
        """End the process."""


class Pair:
    """Two connected sockets and what they send: `up` to the server's client side, `down` to the relayed address."""

    def __init__(self, case: Case, client: socket.socket, peer: socket.socket, up: bytes) -> None:
        self.sockets = client, peer
        payload = bytes(case.payload_bytes)
        self.packets = 1 if case.payload_bytes < 500 else FRAME_PACKETS
        self._trains = (up * self.packets, len(up)), (payload * self.packets, len(payload))
        for sock in self.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)

    def send(self, *, up: bool) -> None:
        sock, (data, size) = self.sockets[not up], self._trains[not up]
        if self.packets == 1:
            sock.send(data)
        else:
            sock.sendmsg([data], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))])

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class AllocatedPair(Pair):
    """One made by TURN."""

    def __init__(self, case: Case, client: TurnClient) -> None:
        peer = udp_socket()
        relayed = client.allocate()
        address = peer.getsockname()
        if case.channels:
            up = client.channel_data(client.bind_channel(address), bytes(case.payload_bytes))
        else:
            client.permit(CLIENT_HOST)
            up = client.send_indication(address, bytes(case.payload_bytes))
        peer.connect(relayed)
        super().__init__(case, client.socket, peer, up)
        self._client = client

    def close(self) -> None:
        self._client.close()
        super().close()


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((CLIENT_HOST, 0))
    return sock


async def allocate(credentials: tuple[str, str], case: Case, index: int) -> Pair:
    source = f"{SOURCES[0]}.{SOURCES[1] + index % SOURCES_COUNT}"
    client = TurnClient((SERVER_HOST, 3478), *credentials, host=source)
    return await asyncio.to_thread(AllocatedPair, case, client)


class Ceiling(_Process):
    """The bare relay."""

    name = "ceiling"

    async def start(self) -> None:
        """Nothing: it is started with the first pair, when the head is known."""

    async def open_pair(self, case: Case, index: int) -> Pair:
        head = bytes(CHANNEL_HEAD_BYTES if case.channels else INDICATION_HEAD_BYTES)
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.relay_ceiling", SERVER_HOST, head.hex()]
            self.spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        sockets = udp_socket(), udp_socket()
        print(*(word for sock in sockets for word in sock.getsockname()), file=self.process.stdin, flush=True)
        for sock, port in zip(sockets, self.process.stdout.readline().split(), strict=True):
            sock.connect((SERVER_HOST, int(port)))
        return Pair(case, *sockets, head + bytes(case.payload_bytes))

    async def ready(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)


class Coturn(CoturnServer):
    """Debian's coturn with one relay thread, long-term credentials, nothing else switched on."""

    def __init__(self) -> None:
        super().__init__(host=SERVER_HOST, loopback_peers=False, core=0, netns=hosts.SERVER_NAMESPACE)

    async def open_pair(self, case: Case, index: int) -> Pair:
        return await allocate((self.username, self.password), case, index)

    async def ready(self) -> None:
        """Nothing to do."""


class TorporTurn(Torpor):
    """Ours, with credentials from its HTTP API."""

    def __init__(self) -> None:
        super().__init__(environment={"TORPOR_TURN_ALLOW_PEERS": CLIENT_HOST})
        self._credentials: tuple[str, str] | None = None

    async def open_pair(self, case: Case, index: int) -> Pair:
        if self._credentials is None:
            url = f"{self.url}/v1/turn/keys/{self.turn_key_id}/credentials/generate"
            headers = {"authorization": f"Bearer {self.turn_key_token}"}
            answer = (await self._http.post(url, headers=headers)).json()["iceServers"]
            self._credentials = answer["username"], answer["credential"]
        return await allocate(self._credentials, case, index)


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


async def measure(make: Callable[[], RelayServer], case: Case, seconds: float) -> Result:
    """Start a server, open the pairs, relay, count."""
    server = make()
    await server.start()
    pairs: list[Pair] = []
    try:
        pairs.append(await server.open_pair(case, 0))
        memory = server.resident_bytes()
        while len(pairs) < case.allocations:
            pairs.append(await server.open_pair(case, len(pairs)))
        kib = (server.resident_bytes() - memory) / max(1, case.allocations - 1) / 1024
        await server.ready()
        return relay(server, pairs, case, seconds, kib)
    finally:
        for pair in pairs:
            pair.close()
        await server.stop()


def relay(server: RelayServer, pairs: list[Pair], case: Case, seconds: float, kib: float) -> Result:
    epoll = select.epoll()
    sockets = {}
    for pair in pairs:
        for sock in pair.sockets:
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
    rows = [["case", "server", "loss", "CPU s per million packets", "× coturn", "× ceiling", "KiB per allocation"]]
    servers: list[type[RelayServer]] = [Ceiling, Coturn, TorporTurn]
    for case in (case for case in CASES if options.only in case.name):
        runs: dict[str, list[Result]] = {}
        for _ in range(options.rounds):
            for make in servers:
                result = await measure(make, case, 2.0)
                runs.setdefault(make.name, []).append(result)
                print(
                    f"{case.name:26} {make.name:7} {result.cpu_s_per_million:6.2f} s  loss {result.loss:.2%}",
                    flush=True,
                )
        medians = {name: statistics.median(r.cpu_s_per_million for r in results) for name, results in runs.items()}
        for name, results in runs.items():
            values = [r.cpu_s_per_million for r in results]
            rows.append(
                [
                    case.name,
                    name,
                    f"{statistics.median(r.loss for r in results):.2%}",
                    f"{medians[name]:.2f} ({min(values):.2f}–{max(values):.2f})",
                    f"{medians[name] / medians['coturn']:.2f}",
                    f"{medians[name] / medians['ceiling']:.2f}",
                    f"{statistics.median(r.kib_per_allocation for r in results):.1f}"
                    if case.allocations >= 200 and name != "ceiling"
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
