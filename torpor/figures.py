"""All figures of the process in one place, as metric families."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torpor
from sfu.service import Sfu, SfuStats
from torpor.metrics import LAG_BOUNDS, Family, Histogram, HttpMetrics, Sample, counter, gauge, histogram
from torpor.rooms import Rooms, RoomStats
from turn.service import TurnService, TurnStats

LAG_INTERVAL = 0.5
LAG_REST = 300.0
"""Without anybody collecting for this long, the event loop's lag is not measured: an idle server is not woken."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Figures:
    """Counts what belongs to no package, and collects the rest when asked.

    Args:
        sfu: the media side, if this node has one.
        turn: the TURN server, if this node has one.
        rooms: the room side, if this node has one.
    """

    def __init__(self, sfu: Sfu | None, turn: TurnService | None = None, rooms: Rooms | None = None) -> None:
        self._sfu = sfu
        self._turn = turn
        self._rooms = rooms
        self._started_at = time.time()
        self.http = HttpMetrics()
        self.lag = Histogram(LAG_BOUNDS)
        self._wanted = asyncio.Event()
        self._collected_at = -LAG_REST
        self.event_listeners = 0
        self.event_listeners_dropped = 0

    def collect(self) -> Iterator[Family]:
        """Everything, now."""
        self._collected_at = time.monotonic()
        self._wanted.set()
        yield Family("torpor_info", "gauge", "Version.", [("", (("version", torpor.__version__),), 1)])
        yield gauge("torpor_start_time_seconds", "Start of the process, seconds since 1970.", self._started_at)
        yield gauge("torpor_resident_bytes", "Resident memory.", resident_bytes())
        yield counter("torpor_cpu_seconds_total", "User and system time of all threads.", time.process_time())
        yield from self.http.collect()
        lag = list(self.lag.samples())
        yield Family("torpor_event_loop_lag_seconds", "histogram", "How late the event loop woke a sleeper.", lag)
        yield gauge("torpor_event_listeners", "Listeners of app events.", self.event_listeners)
        yield counter(
            "torpor_event_listeners_dropped_total", "Listeners dropped for being slow.", self.event_listeners_dropped
        )
        if self._sfu is not None:
            yield from media_families(self._sfu.stats())
        if self._turn is not None:
            yield from turn_families(self._turn.stats())
        if self._rooms is not None:
            yield from room_families(self._rooms.stats())

    async def measure_lag(self) -> None:
        """Observe the event loop's lag while somebody collects figures, until cancelled."""
        while True:
            if time.monotonic() - self._collected_at > LAG_REST:
                self._wanted.clear()
                await self._wanted.wait()
            due = time.monotonic() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.lag.observe(max(0.0, time.monotonic() - due))


MEDIA_COUNTERS: Mapping[str, str] = {
    "datagrams_in": "UDP datagrams received.",
    "bytes_in": "UDP payload bytes received.",
    "rtp_in": "RTP packets received.",
    "rtcp_in": "RTCP packets received.",
    "stun_in": "STUN messages received.",
    "dtls_in": "DTLS records received.",
    "forwarded": "RTP packets sent to subscribers, first time.",
    "resent": "RTP packets sent again for a subscriber's NACK.",
    "rtcp_out": "RTCP packets sent.",
    "nacks_out": "Packets asked of publishers again.",
    "keyframe_requests_out": "Key frames asked of publishers.",
    "keyframe_wait_seconds": "Whole seconds that subscriptions waited for a key frame of a layer that sends.",
    "crossed": "Packets handed from one forwarding thread to another.",
    "batches": "Receive calls that returned datagrams.",
    "wakeups": "Times a forwarding thread woke.",
    "in_memory_in": "Datagrams received from relays of this process, in memory.",
    "in_memory_out": "Datagrams sent to relays of this process, in memory.",
    "datagrams_out": "UDP datagrams sent.",
    "bytes_out": "UDP payload bytes sent.",
    "send_calls": "Send calls.",
    "gso_trains": "Sends of several datagrams as one (UDP GSO).",
    "gso_datagrams": "Datagrams in those.",
    "gso_refused": "Sockets that refused UDP GSO.",
    "send_held": "Datagrams held back while a socket was full.",
}

MEDIA_GAUGES: Mapping[str, str] = {
    "cache_bytes": "Packets kept for repair.",
    "transports": "Transports of the media plane.",
    "tracks": "Tracks received by the media plane.",
    "forwarders": "Tracks sent to a subscriber by the media plane.",
}


def media_families(stats: SfuStats) -> Iterator[Family]:
    """The media plane's counters under metric names: `rtp_in` becomes `torpor_media_rtp_in_total`."""
    drops = {name.removeprefix("drop_"): n for name, n in stats.counters.items() if name.startswith("drop_")}
    for name, value in stats.counters.items():
        if name in MEDIA_GAUGES:
            yield gauge(f"torpor_media_{name}", MEDIA_GAUGES[name], value)
        elif not name.startswith("drop_"):
            yield counter(f"torpor_media_{name}_total", MEDIA_COUNTERS.get(name, name), value)
    yield counter("torpor_media_drops_total", "Packets dropped, by reason.", drops, "reason")
    yield gauge("torpor_media_live", "Live objects by kind.", stats.live, "kind")
    yield _powers_of_two(
        "torpor_media_forward_seconds", "From a packet's arrival to its departure.", stats.latency_histogram, 1e-6
    )
    yield _powers_of_two("torpor_media_batch_datagrams", "Datagrams per receive call.", stats.batch_histogram, 1.0)


TURN_COUNTERS: Mapping[str, str] = {
    "datagrams_received": "UDP datagrams received from clients and peers.",
    "datagrams_sent": "UDP datagrams sent to clients and peers.",
    "bytes_sent": "UDP payload bytes sent.",
    "send_calls": "Send calls.",
    "trains": "Sends of several datagrams as one (UDP GSO).",
    "stream_reads": "Reads of TCP and TLS clients by relay threads.",
    "stream_writes": "Writes to TCP and TLS clients by relay threads.",
    "rounds": "Times a relay thread woke.",
    "gathered": "Times a relay thread let packets gather before it took them.",
    "in_memory_received": "Datagrams received from the media side of this process, in memory.",
    "in_memory_sent": "Datagrams sent to the media side of this process, in memory.",
}

_DIRECTIONS = (("from_client", 0), ("to_client", 2))
"""Name, and the place of its bytes in a `RelayUsage`; its packets follow."""


def turn_families(stats: TurnStats) -> Iterator[Family]:
    """The TURN server's figures. Labels by key and custom identifier are bounded by `turn.usage`."""
    plane = {name.removeprefix("plane_"): n for name, n in stats.counters.items() if name.startswith("plane_")}
    for name, text in TURN_COUNTERS.items():
        yield counter(f"torpor_turn_{name}_total", text, plane.get(name, 0))
    drops = {name.removeprefix("dropped_"): count for name, count in plane.items() if name not in TURN_COUNTERS}
    yield counter("torpor_turn_drops_total", "Datagrams and messages dropped, by reason.", drops, "reason")
    control: dict[str, dict[str, float]] = {"requests": {}, "connections": {}, "events": {}}
    for name, count in stats.counters.items():
        group, _, rest = name.partition("_")
        if group in control:
            control[group][rest] = count
        elif group != "plane":
            control["events"][name] = count
    yield counter("torpor_turn_requests_total", "Requests that are not data, by result.", control["requests"], "result")
    yield counter("torpor_turn_connections_total", "TCP and TLS connections.", control["connections"], "event")
    yield counter("torpor_turn_events_total", "What else happened, by event.", control["events"], "event")
    live = {kind.removeprefix("turn_"): count for kind, count in stats.live.items()}
    yield gauge("torpor_turn_live", "Live objects by kind.", live, "kind")
    for offset, unit in enumerate(("bytes", "packets")):
        text = f"Relayed payload {unit}, by key and custom identifier of the credential."
        samples: list[Sample] = []
        for party, usage in sorted(stats.usage.items()):
            labels = (("key", party.key_id), ("custom_identifier", party.identifier))
            samples += [("", (*labels, ("direction", name)), usage[at + offset]) for name, at in _DIRECTIONS]
        yield Family(f"torpor_turn_relayed_{unit}_total", "counter", text, samples)


ROOM_SOCKET_COUNTERS: Mapping[str, str] = {
    "accepted": "WebSockets taken over.",
    "bytes_received": "Bytes received on WebSockets.",
    "bytes_sent": "Bytes sent on WebSockets.",
    "messages_received": "WebSocket messages received.",
    "messages_sent": "WebSocket messages sent.",
    "auto_responses": "Messages answered without waking a room.",
    "dropped_frames": "Messages lost to slow clients.",
}

_ENDS = ("closed_by_peer", "lost", "closed_slow", "protocol_errors", "timeouts", "overloaded", "flooded")
_ROOM_EVENTS = ("fetches", "connects", "messages", "calls", "alarms")
_ROOM_FAULTS = ("errors", "resets", "overloads")
_ROOM_ROWS = ("rows_read", "rows_written")
_ROOM_TOTALS = (
    ("requests", "requests", "Requests as they are charged: twenty WebSocket messages are one."),
    ("hibernations", "hibernations", "Times a room left memory."),
    ("active_s", "active_seconds", "Seconds that rooms were busy."),
    ("idle_s", "idle_seconds", "Seconds that rooms were in memory with nothing to do, not charged."),
    ("hibernated_s", "hibernated_seconds", "Seconds that rooms with WebSockets were out of memory."),
    ("gb_seconds", "gigabyte_seconds", "Memory over time as it is charged: 128 MB while busy."),
)


def room_families(stats: RoomStats) -> Iterator[Family]:
    """The rooms' figures, by party where a class is what matters."""
    live = {kind.removeprefix("room_").removeprefix("rooms_"): count for kind, count in stats.live.items()}
    yield gauge("torpor_rooms_live", "What is held now, by kind.", live, "kind")
    for name in ("inbound_bytes", "outbound_bytes"):
        yield gauge(f"torpor_rooms_socket_{name}", "Memory of WebSocket buffers.", stats.sockets[name])
    for name, text in ROOM_SOCKET_COUNTERS.items():
        yield counter(f"torpor_rooms_socket_{name}_total", text, stats.sockets[name])
    ends = {name: stats.sockets[name] for name in _ENDS}
    yield counter("torpor_rooms_socket_ends_total", "WebSockets that ended otherwise than by a room.", ends, "reason")
    yield counter("torpor_rooms_refused_total", "Handshakes refused, by the setting they met.", stats.refused, "limit")
    for prefix, text, label, names in (
        ("events", "Events that rooms handled.", "kind", _ROOM_EVENTS),
        ("faults", "Handlers that raised, rooms reset, events refused as overload.", "kind", _ROOM_FAULTS),
        ("storage", "Rows of storage read and written.", "kind", _ROOM_ROWS),
    ):
        samples: list[Sample] = [
            ("", (("party", party), (label, name)), numbers[name])
            for party, numbers in stats.parties.items()
            for name in names
        ]
        yield Family(f"torpor_rooms_{prefix}_total", "counter", text, samples)
    for name, family, text in _ROOM_TOTALS:
        totals = {party: numbers[name] for party, numbers in stats.parties.items()}
        yield counter(f"torpor_rooms_{family}_total", text, totals, "party")
    wakes: list[Sample] = [
        ("", (("party", party), ("cause", name.removeprefix("wakes_"))), count)
        for party, numbers in stats.parties.items()
        for name, count in numbers.items()
        if name.startswith("wakes_")
    ]
    yield Family("torpor_rooms_wakes_total", "counter", "Rooms that came into memory, by what woke them.", wakes)


def _powers_of_two(name: str, text: str, counts: Sequence[int], unit: float) -> Family:
    """Bucket `i` counts what was below 2**i units; the last also what was above. The plane keeps no sum."""
    return histogram(name, text, [2**i * unit for i in range(len(counts) - 1)], counts, None)


def resident_bytes() -> int:
    """Resident memory of the process."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
