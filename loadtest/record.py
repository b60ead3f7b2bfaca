"""A run's record: the JSON that everything about a run is in, and that reports and comparisons are made from.

`describe_run` makes it, `load` reads and checks it, `numbers` is what its table shows.
"""

from __future__ import annotations

import datetime
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from loadtest import machine
from loadtest.figures import Figures
from loadtest.histogram import Histogram
from loadtest.profiles import Profile

FORMAT: Final = 1
"""Changes when a record of before could not be read any more."""
PROGRESS_VARIABLE: Final = "LOADTEST_PROGRESS_FD"
"""Names an inherited file descriptor that gets every sample as a line of JSON; `torpor load` draws with it."""
Unit = Literal["count", "rate", "ms", "percent", "bytes", "core", "us", "mbit", "s"]


class RecordError(ValueError):
    """A file that is no record of a run."""


def describe_run(
    *,
    profile: Profile,
    started_at: float,
    measured_seconds: float,
    figures: Figures,
    samples: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    invalid: Sequence[str],
    target_died: str,
    workers: int,
) -> dict[str, Any]:
    """A record of a run that has just ended on this machine."""
    return {
        "format": FORMAT,
        "profile": profile.name,
        "part": profile.part,
        "text": profile.text,
        "parameters": dict(profile.parameters),
        "users": dict(profile.users),
        "target": {"name": "", "version": "", "url": ""},
        "started_at": datetime.datetime.fromtimestamp(started_at, datetime.UTC).isoformat(timespec="seconds"),
        "measured_seconds": measured_seconds,
        "valid": not invalid,
        "invalid": list(invalid),
        "target_died": target_died,
        "workers": workers,
        "command": shlex.join(["locust", *sys.argv[1:]]),
        "machine": machine.describe(),
        "figures": figures.to_json(),
        "samples": list(samples),
        "entries": list(entries),
        "failures": list(failures),
    }


def load(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        RecordError: the file cannot be read, or is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path}: not JSON") from error
    if not isinstance(record, dict) or "figures" not in record or "profile" not in record:
        raise RecordError(f"{path}: no record of a load test")
    if record.get("format") != FORMAT:
        raise RecordError(f"{path}: format {record.get('format')}, this version reads {FORMAT}")
    return record


def rounded(value: Any) -> Any:
    """The same with six significant digits, which is more than was measured, and NaN as null."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Number:
    """One line of a run's table."""

    key: str
    title: str
    value: float
    unit: Unit
    better: Literal["less", "more", ""] = ""
    """Which way is good, where that makes sense at equal load."""

    def __str__(self) -> str:
        return show(self.value, self.unit)


def show(value: float, unit: Unit) -> str:
    """A number with its unit, as people read it."""
    if math.isnan(value):
        return "–"
    if unit == "ms":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.2f} s"
    scaled, digits, suffix = {
        "count": (value, 0, ""),
        "rate": (value, 0 if value >= 100 else 1, "/s"),
        "percent": (value * 100, 1 if value >= 0.1 or value == 0 else 3, " %"),
        "bytes": (value / 1024**2, 1, " MiB"),
        "core": (value * 100, 1, " % of a core"),
        "us": (value * 1e6, 2, " µs"),
        "mbit": (value / 1e6, 1, " Mbit/s"),
        "s": (value, 1, " s"),
    }[unit]
    if unit == "bytes" and value < 1024**2:
        return f"{value / 1024:.1f} KiB" if value >= 1024 else f"{value:.0f} B"
    return f"{scaled:,.{digits}f}{suffix}"


def numbers(record: Mapping[str, Any]) -> list[Number]:
    """What a run's table shows, of all that it measured."""
    reader = _Reader(record)
    lines = [*reader.room_lines(), *reader.media_lines(), *reader.relay_lines(), *reader.server_lines()]
    return [line for line in lines if not math.isnan(line.value)]


class _Reader:
    """Turns a record's figures into lines."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.figures = Figures.from_json(record["figures"])
        self.seconds = max(1e-9, float(record["measured_seconds"]))
        self.samples = [sample for sample in record["samples"] if sample["measured"]]
        self.all_samples = record["samples"]
        self.base = record.get("server_before", {})
        begins = self.samples[0]["at"] if self.samples else math.inf
        self.server_samples = [sample for sample in record.get("server_samples", ()) if sample["at"] >= begins]

    def rate(self, name: str) -> float:
        return self.figures.count(name) / self.seconds

    def quantiles(self, key: str, name: str, title: str, shares: Sequence[float] = (0.5, 0.95, 0.99)) -> list[Number]:
        histogram = self.figures.times.get(name)
        if histogram is None or not histogram.count:
            return []
        return [
            Number(f"{key}_p{share * 100:g}", f"{title}, p{share * 100:g}", histogram.quantile(share), "ms", "less")
            for share in shares
        ]

    def mean(self, key: str) -> float:
        values = [float(sample[key]) for sample in self.samples if key in sample]
        return sum(values) / len(values) if values else math.nan

    def room_lines(self) -> list[Number]:
        count = self.figures.count
        lines: list[Number] = []
        if missing := count("users.missing"):
            lines.append(Number("users_missing", "users that could not join", missing, "count", "less"))
        if connections := max((sample.get("connections", 0) for sample in self.all_samples), default=0):
            lines.append(Number("connections", "connections", connections, "count"))
        lines += self.quantiles("connect", "rooms.connect", "connecting", (0.5, 0.99))
        if count("rooms.sent"):
            expected, arrived = count("rooms.expected"), count("rooms.delivered_here")
            lines += [
                Number("sent", "messages sent", self.rate("rooms.sent"), "rate"),
                Number("delivered", "deliveries", self.rate("rooms.delivered"), "rate"),
                *self.quantiles("delivery", "rooms.delivery", "delivery delay"),
                Number("lost", "messages lost (holes)", count("rooms.lost"), "count", "less"),
                Number("undelivered", "sent but not delivered at the end", max(0, expected - arrived), "count", "less"),
                Number("reordered", "messages reordered", count("rooms.reordered"), "count", "less"),
            ]
        for name, title in (
            ("echo", "echo"),
            ("wake", "wake-up and echo"),
            ("write", "write and answer"),
            ("ping", "ping"),
            ("http", "HTTP request"),
        ):
            lines += self.quantiles(name, f"rooms.{name}", title)
        if lines:
            lines.append(
                Number("connections_lost", "connections lost", count("rooms.connections_lost"), "count", "less")
            )
        return lines

    def media_lines(self) -> list[Number]:
        lines: list[Number] = []
        count = self.figures.count
        lines += self.quantiles("publish_join", "publish.join_seconds", "publisher's join", (0.5, 0.99))
        lines += self.quantiles("subscribe_join", "subscribe.join_seconds", "subscriber's join", (0.5, 0.99))
        for kind in ("video", "audio"):
            at = f"subscribe.{kind}"
            if not count(f"{at}.packets"):
                continue
            expected = max(1.0, count(f"{at}.expected"))
            lines += [
                Number(f"{kind}_packets", f"{kind} packets received", self.rate(f"{at}.packets"), "rate"),
                Number(f"{kind}_bitrate", f"{kind} received", self.rate(f"{at}.bytes") * 8, "mbit"),
                *self.quantiles(f"{kind}_delay", f"{at}.delay", f"{kind} end-to-end delay"),
                *self.quantiles(f"{kind}_first_frame", f"{at}.first_frame", f"first {kind} frame", (0.5, 0.99)),
                Number(
                    f"{kind}_lost_before",
                    f"{kind} lost before repair",
                    count(f"{at}.lost_before_repair") / expected,
                    "percent",
                    "less",
                ),
                Number(
                    f"{kind}_lost_after",
                    f"{kind} lost after repair",
                    count(f"{at}.lost_after_repair") / expected,
                    "percent",
                    "less",
                ),
                Number(f"{kind}_nacks", f"{kind} NACKs sent", count(f"{at}.nacks_sent"), "count", "less"),
            ]
        if count("subscribe.video.packets"):
            lines += [
                Number("frames", "video frames decodable", self.rate("subscribe.video.frames"), "rate"),
                Number("freezes", "freezes", count("subscribe.video.freezes"), "count", "less"),
                Number("plis", "key frames asked for", count("subscribe.video.plis_sent"), "count"),
                Number(
                    "publisher_nacks", "NACKs at publishers", count("publish.video.nacks_received"), "count", "less"
                ),
            ]
        if count("browser.video.packets"):
            lines += [
                Number("browser_frames", "frames shown by browsers", self.rate("browser.video.frames"), "rate"),
                Number("browser_freezes", "freezes in browsers", count("browser.video.freezes"), "count", "less"),
                *self.quantiles("browser_join", "browser.join_seconds", "a browser's join", (0.5,)),
            ]
        if count("subscribe.pictures.checked"):
            lines += [
                Number("pictures", "pictures verified", count("subscribe.pictures.checked"), "count"),
                Number("pictures_wrong", "pictures wrong", count("subscribe.pictures.wrong"), "count", "less"),
            ]
        return lines

    def relay_lines(self) -> list[Number]:
        count = self.figures.count
        if not count("turn.sent"):
            return []
        return [
            Number("relayed", "packets relayed, both ways", 2 * self.rate("turn.echoed"), "rate"),
            *self.quantiles("relay_round_trip", "turn.round_trip", "round trip through the relay"),
            *self.quantiles("allocate", "turn.allocate_seconds", "allocation", (0.5, 0.99)),
            Number("relay_lost", "packets lost", count("turn.lost") / max(1.0, count("turn.sent")), "percent", "less"),
        ]

    def server_lines(self) -> list[Number]:
        if not any("server_cpu" in sample for sample in self.samples):
            return []
        cpu = self.mean("server_cpu")
        resident = max(sample.get("server_resident", 0) for sample in self.samples)
        lines = [
            Number("server_cpu", "server CPU", cpu, "core", "less"),
            Number("server_resident", "server memory", resident, "bytes", "less"),
        ]
        for key, title, events in (
            ("cpu_per_delivery", "server CPU per delivery", self.rate("rooms.delivered")),
            (
                "cpu_per_packet",
                "server CPU per packet delivered",
                self.rate("subscribe.video.packets") + self.rate("subscribe.audio.packets"),
            ),
            ("cpu_per_relayed", "server CPU per relayed packet", 2 * self.rate("turn.echoed")),
        ):
            if events > 1:
                lines.append(Number(key, title, cpu / events, "us", "less"))
        awake, rooms = ([sample.get(kind, 0) for sample in self.server_samples] for kind in ("awake", "rooms"))
        if sum(rooms):
            lines.append(Number("awake", "share of rooms awake", sum(awake) / sum(rooms), "percent"))
        connections = max((sample.get("connections", 0) for sample in self.samples), default=0)
        before = self.base.get("resident")
        if connections >= 100 and before:
            each = (resident - before) / connections
            lines.append(Number("bytes_per_connection", "server memory per connection", each, "bytes", "less"))
        return lines


def generator_numbers(record: Mapping[str, Any]) -> list[Number]:
    """How the load generator itself did: what validity was judged by."""
    reader = _Reader(record)
    samples = reader.samples or [{}]
    lines = [
        Number(f"{key}_max", f"{title}, most in a second", max(float(s.get(key, 0)) for s in samples), "core")
        for key, title in (
            ("locust_cpu", "Locust process CPU"),
            ("engine_cpu", "engine CPU"),
            ("plane_cpu", "media thread CPU"),
        )
        if any(s.get(key) for s in samples)
    ]
    for name, title in (
        ("engine.loop_lag", "engine loop lag, p99"),
        ("engine.call_lag", "from a user's call to the engine, p99"),
        ("engine.send_lag", "send lag, p99"),
        ("plane.send_lag", "media send lag, p99"),
        ("turn.send_lag", "relay send lag, p99"),
    ):
        lag: Histogram | None = reader.figures.times.get(name)
        if lag is not None and lag.count:
            lines.append(Number(name, title, lag.quantile(0.99), "ms", "less"))
    return lines
