"""Media to subscribers behind relays of the same server: packets that stay in memory against a way through the network.

Method. As in `bench_forward`, one publisher and its subscribers, frames of ten packets (video) or one (sound). They are
reached directly, or only through TURN over UDP with a channel, and then the server hands packets to its own relays in
memory, as by default, or through the network stack (`turn.media_in_memory = false`). All three servers run at once and
take turns, `--rounds` times; the table shows medians and ranges. CPU is per packet that a subscriber received,
forwarding and relaying together.

    python -m benchmarks.bench_relayed_media [--rounds N]
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
from benchmarks.bench_forward import table
from benchmarks.load import Meter, Publisher, Run, run
from benchmarks.servers import Torpor
from loadtest.media.peer import MediaPeer
from loadtest.media.relay import RelayedPeer
from loadtest.media.turn_server import TurnServer
from loadtest.peers import hosts
from loadtest.peers.hosts import CLIENT_HOST

SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """`pps` packets a second to all `fan_out` subscribers together."""

    fan_out: int
    packet_bytes: int
    packets: int
    """In a frame."""
    pps: float

    @property
    def name(self) -> str:
        return f"1→{self.fan_out} {self.packet_bytes} B, frames of {self.packets}"


CASES = [Case(20, 1100, 10, 40_000), Case(100, 1100, 10, 60_000), Case(20, 160, 1, 20_000)]


class RelayedTorpor(Torpor):
    """One whose subscribers come through its own TURN server."""

    def __init__(self, name: str, port: int, *, in_memory: bool) -> None:
        turn_port = port - 8787 + 3478
        environment = {"TORPOR_TURN_PORT": str(turn_port), "TORPOR_TURN_MEDIA_IN_MEMORY": str(in_memory).lower()}
        super().__init__(environment=environment, port=port)
        self.name = name
        self.turn_port = turn_port
        self._credentials: tuple[str, str] | None = None

    async def start(self) -> None:
        await super().start()
        url = f"{self.url}/v1/turn/keys/{self.turn_key_id}/credentials/generate"
        headers = {"authorization": f"Bearer {self.turn_key_token}"}
        answer = (await self._http.post(url, headers=headers)).json()["iceServers"]
        self._credentials = answer["username"], answer["credential"]

    def make_subscriber(self) -> MediaPeer:
        assert self._credentials is not None
        return RelayedPeer(TurnServer(self.host, self.turn_port, *self._credentials), host=CLIENT_HOST)


class DirectTorpor(Torpor):
    """One whose subscribers come by themselves."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(environment={"TORPOR_TURN_PORT": str(port - 8787 + 3478)}, port=port)
        self.name = name


class Stand:
    """A server with its publisher and subscribers, ready to take turns."""

    def __init__(self, server: Torpor, case: Case) -> None:
        self.server = server
        self.case = case
        self.runs: list[Run] = []
        self._peers: list[MediaPeer] = []

    async def open(self) -> None:
        """Start the server, connect everyone, warm up."""
        await self.server.start()
        source = await self.server.publish(1)
        self._peers.append(source)
        self._publisher = Publisher(source, 1, self.case.packet_bytes, self.case.packets)
        self._publisher.send(*self._publisher.frame())  # a track that has sent nothing yet cannot be pulled
        subscribers = [await self.server.subscribe(source) for _ in range(self.case.fan_out)]
        self._peers += subscribers
        self._meter = Meter(subscribers, self.case.packet_bytes)
        self._run(self.case.pps / 4, 0.5)

    def keep_alive(self) -> None:
        """Consent ends after 30 s without a check (RFC 7675), and others have their turns."""
        for peer in self._peers:
            peer.check()

    def take_turn(self) -> Run:
        """Offer the load."""
        self.runs.append(self._run(self.case.pps, SECONDS))
        return self.runs[-1]

    def _run(self, pps: float, seconds: float) -> Run:
        return run(
            self.server, [self._publisher], fan_out=self.case.fan_out, pps=pps, seconds=seconds, meter=self._meter
        )

    async def close(self) -> None:
        """End it."""
        for peer in self._peers:
            peer.close()
        await self.server.stop()


async def measure(case: Case, rounds: int) -> list[Stand]:
    """Three servers in turns."""
    stands = [
        Stand(server, case)
        for server in (
            DirectTorpor("direct", 8787),
            RelayedTorpor("relayed, in memory", 9787, in_memory=True),
            RelayedTorpor("relayed, by network", 10787, in_memory=False),
        )
    ]
    try:
        for stand in stands:
            await stand.open()
            for other in stands:
                other.keep_alive()
        for number in range(rounds):
            for stand in stands:
                for other in stands:
                    other.keep_alive()
                result = stand.take_turn()
                print(
                    f"{case.name:28} {stand.server.name:20} round {number + 1}: {result.ns_per_packet:6.0f} ns"
                    f"  loss {result.loss:.2%}  p50 {result.latency_us(0.5):.0f} p99 {result.latency_us(0.99):.0f} µs",
                    flush=True,
                )
    finally:
        for stand in stands:
            await stand.close()
    return stands


def rows_of(case: Case, stands: list[Stand]) -> list[list[str]]:
    """A line for each server."""

    def median(stand: Stand, figure: Callable[[Run], float]) -> float:
        return statistics.median(map(figure, stand.runs))

    network = median(stands[-1], lambda r: r.ns_per_packet)
    rows = []
    for stand in stands:
        values = [result.ns_per_packet for result in stand.runs]
        cpu = statistics.median(values)
        rows.append(
            [
                case.name,
                stand.server.name,
                f"{case.pps:,.0f}",
                f"{median(stand, lambda r: r.loss):.2%}",
                f"{cpu:.0f} ({min(values):.0f}–{max(values):.0f})",
                f"{cpu / network:.2f}",
                " / ".join(f"{median(stand, lambda r, q=q: r.latency_us(q)):.0f}" for q in (0.5, 0.99)),  # type: ignore[misc]
            ]
        )
    return rows


async def measure_all(options: argparse.Namespace) -> None:
    """Every case."""
    rows = [["case", "subscribers", "pps", "loss", "CPU ns/packet", "× by network", "p50 / p99 µs"]]
    for case in CASES:
        rows += rows_of(case, await measure(case, options.rounds))
    command = " ".join(["python -m benchmarks.bench_relayed_media", *sys.argv[1:]])
    print(table(rows))
    print(machine.save("relayed-media", "Relayed media", command, f"{__doc__}\n\n{table(rows)}"))


def main() -> int:
    """Make the test hosts, measure on the client host."""
    parser = argparse.ArgumentParser(description="CPU per packet to relayed subscribers, in memory and by network")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not hosts.inside():
        return hosts.on_client_host("benchmarks.bench_relayed_media", sys.argv[1:])
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    asyncio.run(measure_all(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
