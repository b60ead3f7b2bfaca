"""Rooms and WebSockets: CPU per message, memory and CPU of idle connections, waking, durable writes; peers beside us.

Method. Each server is a process on core 0, the clients are one on the last core, over loopback TCP; same clients and
bytes for all, text of 64 bytes, no compression, no pings, uvloop for all that take a loop. `torpor` is `torpor serve`
with the load room, `workerd` the same room as a hibernating partyserver class; the others have no rooms. CPU is the
scheduler's account of the server's process, soft interrupts included, divided by messages, so the clients' speed does
not matter. `epoll` is a bare C loop that parses nothing and keeps nothing per connection (`_ceiling/sockets.pyx`): the
floor that system calls set; in "broadcast" it sends to one socket after the other. Servers take turns; × is the median
over the bare loop's.

- *echo, sparse*: 50 connections in 25 rooms, one message under way each; *dense*: sixteen in one segment.
- *auto-response*: as sparse; `ping` is answered `pong` without the room (on workerd and Torpor only).
- *broadcast*: one room, per receiver, the next message when all have the last one.
- *idle*: resident memory with all connected less that before, after a warm-up of 200; 12 s later, when rooms hibernate.
  Rooms of 1,000, and of 100, where more of it is the rooms'. Kernel memory is not in it.
- *wake*: one connection each in 1,000 rooms that have been idle for 12 s; a message to one after the other, time to its
  echo; *awake* is the same once more.
- *durable writes*: acknowledged when on disk. One room with 16 connections, then 1,000 rooms with one each, every
  connection with one write under way. The first write of a room makes its files, and is counted apart.

    python -m benchmarks.bench_sockets [--quick] [--rounds N] [--idle N] [--only PART,...] [--servers NAME,...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import machine, socket_clients
from benchmarks.bench_forward import table
from benchmarks.socket_servers import PAYLOAD, make
from loadtest.peers import packages

SERVERS = ("epoll", "torpor", "workerd", "picows", "uvicorn", "websockets")
ROOM_SERVERS = ("torpor", "workerd")
DENSE = 16
RECEIVERS = (2_000, 5_000)
WAKING_ROOMS = 1_000
REST = 12.0
"""Seconds until the rooms of both servers that have some have hibernated: ten, and a little."""

Figures = dict[tuple[str, str], list[float]]
"""Server and measure to one value a turn."""


@contextmanager
def running(name: str) -> Iterator[Any]:
    """A started server, on core 0."""
    server = make(name)
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


class Bench:
    """Measures part after part; the page on disk always holds what there is so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.servers = [name for name in SERVERS if name in options.servers]
        self.figures: Figures = {}
        self.notes: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        if "workerd" in self.servers:
            try:
                packages.install()
            except packages.PeerUnavailable as missing:
                self.servers.remove("workerd")
                self.notes["workerd"] = f"workerd is not among them: {missing}."

    def note(self, server: Any, measure: str, value: float) -> None:
        """Keep a value."""
        label = server.name.split("-")[0]
        if server.version:
            self.versions[label] = server.version
        self.figures.setdefault((label, measure), []).append(value)
        print(f"{label:12} {measure:24} {value:12.2f}", flush=True)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def messages(self) -> None:
        """CPU per echo and per auto-response."""
        count = 15_000 if self.options.quick else 50_000
        for _ in range(self.options.rounds):
            for name in self.servers:
                with running(name) as server:
                    value = socket_clients.echo(server, PAYLOAD, 66, batch=1, messages=count)
                    self.note(server, "echo, sparse", value)
                    if name == "epoll":  # it answers a segment, whatever is in it
                        continue
                    value = socket_clients.echo(server, PAYLOAD, 66, batch=DENSE, messages=count)
                    self.note(server, "echo, dense", value)
                    if name in ROOM_SERVERS:
                        value = socket_clients.echo(server, "ping", 6, batch=1, messages=count)
                        self.note(server, "auto-response", value)
            if "epoll" in self.servers:
                with running("epoll-pong") as server:
                    value = socket_clients.echo(server, "ping", 6, batch=1, messages=count)
                    self.note(server, "auto-response", value)
            self.save()

    def broadcasts(self) -> None:
        """CPU per delivery of one message to all in a room."""
        deliveries = 60_000 if self.options.quick else 150_000
        for _ in range(self.options.rounds):
            for name in self.servers:
                with running("epoll-fan-out" if name == "epoll" else name) as server:
                    clients = socket_clients.connect(server, ["room"])
                    for receivers in RECEIVERS:
                        clients += socket_clients.connect(server, ["room"] * (1 + receivers - len(clients)))
                        sender, *others = clients
                        value = socket_clients.broadcast(server, sender, others, "b" * 64, deliveries // receivers)
                        self.note(server, f"broadcast to {receivers}", value)
                    socket_clients.close(clients)
            self.save()

    def idle(self) -> None:
        """What a connection costs that does nothing."""
        count = 2_000 if self.options.quick else self.options.idle
        for name in self.servers:
            for room in (1_000, 100) if name in ROOM_SERVERS else (1_000,):
                with running(name) as server:
                    try:
                        each, cpu = socket_clients.idle(server, count, room, REST if name in ROOM_SERVERS else 2.0, 5.0)
                    except (AssertionError, OSError) as error:  # a peer's limit is no reason to measure nobody else
                        print(f"{name} does not hold {count}: {error}", flush=True)
                        continue
                    self.note(server, f"bytes each of {count} in rooms of {room}", each)
                    self.note(server, f"CPU ms per s, rooms of {room}", cpu)
            self.save()

    def waking(self) -> None:
        """How long a message takes that wakes its room."""
        rooms = 200 if self.options.quick else WAKING_ROOMS
        for name in self.room_servers():
            with running(name) as server:
                clients = socket_clients.connect(server, [f"wake{n}" for n in range(rooms)])
                time.sleep(REST)
                asleep = socket_clients.round_trips(clients, PAYLOAD)
                awake = socket_clients.round_trips(clients, PAYLOAD)
                socket_clients.close(clients)
                for label, times in (("asleep", asleep), ("awake", awake)):
                    self.note(server, f"{label} p50 ms", times[len(times) // 2] * 1000)
                    self.note(server, f"{label} p99 ms", times[int(len(times) * 0.99)] * 1000)
            self.save()

    def durable(self) -> None:
        """Acknowledged writes per second."""
        seconds = 2.0  # more would be over what one room takes: 50,000 events in ten seconds
        self.notes["disk"] = socket_clients.disk()
        for _ in range(self.options.rounds):
            for name in self.room_servers():
                with running(name) as server:
                    for label, rooms in (
                        ("one room", ["one"] * 16),
                        ("1,000 rooms", [f"many{n}" for n in range(1000)]),
                    ):
                        clients = socket_clients.connect(server, rooms)
                        self.note(server, f"first writes/s, {label}", socket_clients.first_writes(clients, "w" * 64))
                        self.note(server, f"writes/s, {label}", socket_clients.writes(clients, "w" * 64, seconds))
                        socket_clients.close(clients)
            self.save()

    def room_servers(self) -> list[str]:
        """Those with rooms."""
        return [name for name in self.servers if name in ROOM_SERVERS]

    # ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write the page."""
        command = " ".join(["python -m benchmarks.bench_sockets", *sys.argv[1:]])
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        parts = [__doc__ or "", f"Versions: {versions}." if versions else ""]
        parts.append(self.notes.get("workerd", ""))
        parts.append(f"CPU in µs per message, median (range) of {self.options.rounds} turns.")
        measures = ["echo, sparse", "echo, dense", "auto-response", *(f"broadcast to {count}" for count in RECEIVERS)]
        parts.append(self._table(measures, ratio=True))
        parts.append(self._table([name for name in self._measures() if "bytes" in name or "CPU ms" in name]))
        parts.append(self._table([name for name in self._measures() if "sleep" in name or "awake" in name]))
        parts.append(self._table([name for name in self._measures() if "writes" in name]))
        if "disk" in self.notes:
            parts.append(f"Disk of temporary files, where both keep their rooms: {self.notes['disk']}.")
        self.page = machine.save("sockets", "Rooms and WebSockets", command, "\n\n".join(filter(None, parts)))

    def _measures(self) -> list[str]:
        return list(dict.fromkeys(measure for _, measure in self.figures))

    def _table(self, measures: Sequence[str], *, ratio: bool = False) -> str:
        measures = [measure for measure in measures if measure in self._measures()]
        if not measures:
            return ""
        rows = [["server", *measures]]
        for name in self.servers:
            cells = []
            for measure in measures:
                values, floor = self.figures.get((name, measure)), self.figures.get(("epoll", measure))
                cell = spread(values) if values else ""
                if ratio and values and floor and name != "epoll":
                    cell += f", {statistics.median(values) / statistics.median(floor):.2f} ×"
                cells.append(cell)
            if any(cells):
                rows.append([name, *cells])
        return table(rows)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[Bench], None]] = {
        "messages": Bench.messages,
        "broadcasts": Bench.broadcasts,
        "idle": Bench.idle,
        "waking": Bench.waking,
        "durable": Bench.durable,
    }
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--quick", action="store_true", help="fewer messages and connections: an indication")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default 3)")
    parser.add_argument("--idle", type=int, default=15_000, help="idle connections (default 15000)")
    parser.add_argument("--only", type=names, default=list(parts), help=f"parts, of {','.join(parts)}")
    parser.add_argument("--servers", type=names, default=list(SERVERS), help=f"of {','.join(SERVERS)}")
    options = parser.parse_args()
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench, begun = Bench(options), time.monotonic()
    for name, part in parts.items():
        if name in options.only:
            print(f"» {name}, after {time.monotonic() - begun:.0f} s", flush=True)
            part(bench)
    print(bench.page.read_text())
    print(f"{bench.page}, after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
