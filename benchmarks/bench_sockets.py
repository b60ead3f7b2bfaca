"""WebSockets: bytes per idle connection, CPU per echo, per auto-response and per broadcast delivery; peers beside us.

Method. Each server is a process on core 0, the driver one on core 1, over loopback TCP; same driver and bytes for all,
64-byte text messages, no compression, uvloop for all that take a loop. CPU is the scheduler's account of the server's
process, soft interrupts included, divided by messages, so the driver's speed does not matter. `epoll` is a bare C loop
that parses nothing and keeps nothing per connection (`_ceiling/sockets.pyx`): the floor that system calls set. "sparse"
gives each connection one message at a time, "dense" sixteen in one segment. Idle memory is resident memory of the
server with all connected less that before, after a warm-up; kernel memory is not in it. Servers take turns.

    python -m benchmarks.bench_sockets [--quick] [--idle N] [--rounds N]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import select
import socket
import statistics
import subprocess
import sys
import time

from benchmarks import machine
from benchmarks.bench_forward import table
from benchmarks.socket_servers import FRAME, PAYLOAD

ECHO_CONNECTIONS = 50
RECEIVERS = 500
DENSE = 16


def masked(text: str) -> bytes:
    """A client's frame."""
    body = text.encode()
    mask = b"\x11\x22\x33\x44"
    return b"\x81" + bytes([0x80 | len(body)]) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))


class Server:
    """A server process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.socket_servers", name], stdout=subprocess.PIPE, cwd=machine.ROOT
        )
        os.sched_setaffinity(self._process.pid, {0})
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def connect(self, count: int, path: str = "/") -> list[socket.socket]:
        """Open WebSockets, one after the other, so that none is refused."""
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        clients = []
        for _ in range(count):
            for attempt in range(20):
                try:
                    client = socket.create_connection(("127.0.0.1", self.port))
                    break
                except ConnectionRefusedError:  # it has printed its port and is about to listen
                    time.sleep(0.05 * attempt)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 101"), answer
            clients.append(client)
        return clients

    def cpu_ns(self) -> int:
        """CPU so far."""
        return machine.process_cpu_ns(self._process.pid)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return machine.resident_bytes(self._process.pid)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def echo(server: Server, path: str, batch: int, messages: int, reply_bytes: int = len(FRAME)) -> float:
    """CPU in µs per message and reply."""
    clients = server.connect(ECHO_CONNECTIONS, path)
    data = masked(PAYLOAD) * batch
    epoll = select.epoll()
    by_fd = {client.fileno(): client for client in clients}
    pending = dict.fromkeys(by_fd, 0)

    def go(rounds: int) -> None:
        left = dict.fromkeys(by_fd, rounds)
        for fd, client in by_fd.items():
            pending[fd] = reply_bytes
            client.sendall(data)
        running = len(by_fd)
        while running:
            for fd, _ in epoll.poll():
                pending[fd] -= len(by_fd[fd].recv(65536))
                if pending[fd] <= 0:
                    left[fd] -= 1
                    if left[fd] > 0:
                        pending[fd] += reply_bytes
                        by_fd[fd].send(data)
                    elif left[fd] == 0:
                        running -= 1

    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    rounds = max(1, messages // batch // len(clients))
    go(max(1, rounds // 10))
    before = server.cpu_ns()
    go(rounds)
    spent = server.cpu_ns() - before
    epoll.close()
    for client in clients:
        client.close()
    return spent / (rounds * batch * len(clients)) / 1000


def broadcast(server: Server, rounds: int) -> float:
    """CPU in µs per receiver and message."""
    sender, *receivers = server.connect(RECEIVERS + 1)
    go = masked("go")
    epoll = select.epoll()
    by_fd = {client.fileno(): client for client in receivers}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def run(count: int) -> None:
        for _ in range(count):
            sender.sendall(go)
            due = len(FRAME) * len(receivers)
            while due:
                for fd, _ in epoll.poll():
                    due -= len(by_fd[fd].recv(65536))

    run(max(1, rounds // 10))
    before = server.cpu_ns()
    run(rounds)
    spent = server.cpu_ns() - before
    epoll.close()
    for client in [sender, *receivers]:
        client.close()
    return spent / (rounds * len(receivers)) / 1000


def idle(server: Server, count: int) -> tuple[float, float]:
    """Resident bytes per idle connection; CPU of the process in ms per second while all are idle."""
    warm = server.connect(200)
    time.sleep(0.3)
    before = server.resident_bytes()
    clients = server.connect(count)
    time.sleep(1.0)
    grown = server.resident_bytes() - before
    cpu = server.cpu_ns()
    time.sleep(2.0)
    cpu = server.cpu_ns() - cpu
    for client in [*warm, *clients]:
        client.close()
    return grown / count, cpu / 2e6


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--idle", type=int, default=5000, help="idle connections (default 5000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default 3)")
    options, _ = parser.parse_known_args()
    os.sched_setaffinity(0, {1})
    messages = 20_000 if options.quick else 60_000
    peers = ["torpor", "uvicorn", "websockets"] + (["picows"] if importlib.util.find_spec("picows") else [])

    results: dict[tuple[str, str], list[float]] = {}
    for round_number in range(options.rounds):
        for name in ["epoll", "epoll-fan-out", *peers]:
            server = Server(name)
            try:
                figures: dict[str, float] = {}
                if name == "epoll-fan-out":
                    figures["broadcast"] = broadcast(server, messages // RECEIVERS)
                else:
                    figures["sparse"] = echo(server, "/", 1, messages)
                    if name != "epoll":  # it answers a segment, not a message
                        figures["dense"] = echo(server, "/", DENSE, messages, len(FRAME) * DENSE)
                        figures["broadcast"] = broadcast(server, messages // RECEIVERS)
                    if name == "torpor":
                        figures["auto sparse"] = echo(server, "/auto", 1, messages)
                        figures["auto dense"] = echo(server, "/auto", DENSE, messages, len(FRAME) * DENSE)
            finally:
                server.close()
            label = "epoll" if name == "epoll-fan-out" else name
            for figure, value in figures.items():
                results.setdefault((label, figure), []).append(value)
            print(round_number, name, {figure: round(value, 2) for figure, value in figures.items()}, flush=True)

    rows = [["server", "echo, sparse", "echo, dense", "broadcast, per receiver"]]
    for label, kind in [("epoll", ""), ("torpor", "auto "), *((peer, "") for peer in peers)]:
        cells = [
            results.get((label, figure))
            for figure in (f"{kind}sparse", f"{kind}dense", "broadcast" if not kind else "none")
        ]
        rows.append([f"{label} {'auto-response' if kind else ''}".strip(), *(spread(c) if c else "" for c in cells)])
    memory = [["server", "idle connections", "bytes each", "CPU ms per s"]]
    for name in ["epoll", *peers]:
        server = Server(name)
        try:
            count = min(options.idle, 18_000)
            each, cpu = idle(server, count)
        finally:
            server.close()
        memory.append([name, str(count), f"{each:.0f}", f"{cpu:.1f}"])
        print(memory[-1], flush=True)
    body = f"CPU in µs per message, median (range) of {options.rounds} turns.\n\n{table(rows)}\n\n{table(memory)}"
    print(body)
    command = "python -m benchmarks.bench_sockets " + " ".join(sys.argv[1:])
    print(machine.save("sockets", "WebSockets: echo, auto-response, broadcast, idle memory", command.strip(), body))


if __name__ == "__main__":
    main()
