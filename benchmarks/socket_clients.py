"""The clients of `bench_sockets`: plain sockets of one process, watched by one epoll, that count bytes, not frames."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

ROOMS = 25
"""Rooms that echo connections are spread over: an object takes 5,000 events a second."""

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(text: str) -> bytes:
    """A client's frame of a short text."""
    body = text.encode()
    mask = b"\x11\x22\x33\x44"
    return b"\x81" + bytes([0x80 | len(body)]) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))


def connect(server: Any, rooms: Iterable[str]) -> list[socket.socket]:
    """Open a WebSocket for each room named, one after the other, so that none is refused."""
    clients = []
    for room in rooms:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(UPGRADE.format(path=server.room_path.format(room=room)).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            piece = client.recv(4096)
            assert piece, f"{server.name} closed: {answer!r}"
            answer += piece
        assert answer.startswith(b"HTTP/1.1 101"), answer
        clients.append(client)
    return clients


def close(clients: Iterable[socket.socket]) -> None:
    """Cut them."""
    for client in clients:
        client.close()


def echo(server: Any, text: str, reply_bytes: int, *, batch: int, messages: int, connections: int = 50) -> float:
    """Server CPU in µs per message and reply; each connection has `batch` messages under way, sent at once."""
    clients = connect(server, [f"echo{n % ROOMS}" for n in range(connections)])
    data, due = masked(text) * batch, reply_bytes * batch
    epoll = select.epoll()
    by_fd = {client.fileno(): client for client in clients}
    pending = dict.fromkeys(by_fd, 0)
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def go(rounds: int) -> None:
        left = dict.fromkeys(by_fd, rounds)
        for fd, client in by_fd.items():
            pending[fd] = due
            client.sendall(data)
        running = len(by_fd)
        while running:
            for fd, _ in epoll.poll():
                pending[fd] -= len(by_fd[fd].recv(65536))
                if pending[fd] <= 0:
                    left[fd] -= 1
                    if left[fd] > 0:
                        pending[fd] += due
                        by_fd[fd].send(data)
                    elif left[fd] == 0:
                        running -= 1

    rounds = max(1, messages // batch // len(clients))
    go(max(1, rounds // 10))
    before = server.cpu_ns()
    go(rounds)
    spent = server.cpu_ns() - before
    epoll.close()
    close(clients)
    return spent / (rounds * batch * len(clients)) / 1000


def broadcast(server: Any, sender: socket.socket, receivers: Sequence[socket.socket], text: str, rounds: int) -> float:
    """Server CPU in µs per receiver and message; the next message goes when all have the last one."""
    by_fd = {client.fileno(): client for client in receivers}
    epoll = select.epoll(len(by_fd))
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def run(count: int) -> None:
        for _ in range(count):
            sender.sendall(masked(text))
            due = (2 + len(text)) * len(by_fd)
            while due:
                for fd, _ in epoll.poll(maxevents=len(by_fd)):
                    due -= len(by_fd[fd].recv(65536))

    run(max(1, rounds // 10))
    before = server.cpu_ns()
    run(rounds)
    spent = server.cpu_ns() - before
    epoll.close()
    return spent / (rounds * len(by_fd)) / 1000


def idle(server: Any, count: int, per_room: int, rest: float, seconds: float) -> tuple[float, float]:
    """Resident bytes per connection of `count`, and CPU in ms per second, when all have rested for `rest` seconds."""
    warm = connect(server, [f"warm{n // per_room}" for n in range(200)])
    time.sleep(rest)
    before = server.resident_bytes()
    clients = connect(server, [f"idle{n // per_room}" for n in range(count)])
    time.sleep(rest)
    grown = server.resident_bytes() - before
    cpu = server.cpu_ns()
    time.sleep(seconds)
    cpu = server.cpu_ns() - cpu
    close([*warm, *clients])
    return grown / count, cpu / seconds / 1e6


def round_trips(clients: Sequence[socket.socket], text: str) -> list[float]:
    """Seconds from a message to its echo, one connection after the other."""
    data, times = masked(text), []
    for client in clients:
        begun = time.perf_counter()
        client.sendall(data)
        assert client.recv(4096)
        times.append(time.perf_counter() - begun)
    return sorted(times)


def first_writes(clients: Sequence[socket.socket], text: str) -> float:
    """Acknowledged durable writes per second, one of each connection: the first of a room makes its files."""
    data, begun = masked(text), time.perf_counter()
    for client in clients:
        client.sendall(data)
    for client in clients:
        assert len(client.recv(4096)) == 2 + len(text)
    return len(clients) / (time.perf_counter() - begun)


def writes(clients: Sequence[socket.socket], text: str, seconds: float) -> float:
    """Acknowledged durable writes per second; each connection has one under way."""
    data, due = masked(text), 2 + len(text)
    by_fd = {client.fileno(): client for client in clients}
    epoll = select.epoll(len(by_fd))
    for fd, client in by_fd.items():
        epoll.register(fd, select.EPOLLIN)
        client.sendall(data)
    acknowledged, begun, end = 0, time.perf_counter(), time.perf_counter() + seconds
    under_way = len(by_fd)
    elapsed = seconds
    while under_way:
        for fd, _ in epoll.poll():
            answer = by_fd[fd].recv(4096)
            assert len(answer) == due, answer
            now = time.perf_counter()
            if now < end:
                acknowledged += 1
                by_fd[fd].send(data)
                elapsed = now - begun
            else:
                under_way -= 1
    epoll.close()
    return acknowledged / elapsed


def disk() -> str:
    """What the disk under temporary files does: its file system, and appends of 4 KiB made durable one by one."""
    with tempfile.NamedTemporaryFile(prefix="torpor-bench-") as file:
        times: deque[float] = deque()
        end = time.perf_counter() + 2
        while (begun := time.perf_counter()) < end:
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
        ordered = sorted(times)
        median, p99 = ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000
        return (
            f"{machine.file_system(Path(file.name))}; one writer that appends 4 KiB and calls fdatasync: "
            f"{len(ordered) / 2:.0f}/s, median {median:.2f} ms, p99 {p99:.2f} ms"
        )
