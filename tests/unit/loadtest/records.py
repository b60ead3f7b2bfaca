"""Records of runs that never were, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from loadtest.figures import Figures
from loadtest.profiles import profile
from loadtest.record import describe_run


def record(
    name: str = "torpor",
    *,
    delay: float = 0.001,
    server_cpu: float = 0.5,
    invalid: tuple[str, ...] = (),
    died: str = "",
) -> dict[str, Any]:
    """Ten seconds of 100 messages a second to 49 others each."""
    figures = Figures()
    for counter, amount in {
        "rooms.sent": 1000,
        "rooms.expected": 49_000,
        "rooms.delivered": 48_990,
        "rooms.delivered_here": 48_990,
        "rooms.lost": 4,
    }.items():
        figures.add(counter, amount)
    figures.time("rooms.delivery").record(delay, 48_990)
    figures.record("engine.loop_lag", 0.001)
    samples = [
        {
            "at": float(second),
            "measured": second > 2,
            "users": 500,
            "connections": 500,
            "locust_cpu": 0.1,
            "engine_cpu": 0.3,
            "plane_cpu": 0.0,
            "counters": {"rooms.delivered": 4899.0},
            "times": {"rooms.delivery": {"p50": delay, "p95": delay, "p99": None}},
            "server_cpu": server_cpu,
            "server_resident": 60_000_000,
        }
        for second in range(1, 13)
    ]
    made = describe_run(
        profile=profile("rooms", {"rooms": 10, "members": 50, "duration": 10}),
        started_at=1_790_000_000.0,
        measured_seconds=10.0,
        figures=figures,
        samples=samples,
        entries=[
            {"type": "WS", "name": "send", "requests": 1000, "failures": 1, "p50_ms": 0, "p95_ms": 1, "p99_ms": 2}
        ],
        failures=[{"type": "WS", "name": "connection", "reason": "<closed> by the server", "times": 1}],
        invalid=invalid,
        target_died=died,
        workers=0,
    )
    made["target"] = {"name": name, "version": "1.0", "url": "http://127.0.0.1:1"}
    made["server_before"] = {"resident": 50_000_000}
    return made
