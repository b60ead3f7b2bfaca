"""Profiles: named loads. Each says which users there are and how many, how they come, and what is measured.

A profile's parameters are flags of `locust` and of `torpor load` alike: `--rooms 20 --members 10`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Part = Literal["rooms", "media", "turn"]
Numbers = Mapping[str, float]


class ProfileError(ValueError):
    """A profile that does not exist, or a parameter that it does not have or that makes no sense."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number of a profile."""

    name: str
    text: str
    least: float = 0

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


PARAMETERS: Final = {
    parameter.name: parameter
    for parameter in (
        Parameter("duration", "seconds that are measured, once all users are there", 1),
        Parameter("quiet", "seconds between the last one's coming and the first that is measured", 0),
        Parameter("spawn_rate", "users that come a second", 0.1),
        Parameter("rooms", "rooms", 1),
        Parameter("members", "connections of each room", 1),
        Parameter("rate", "messages a second in each room, by all its members together", 0),
        Parameter("size", "bytes of a message or packet", 33),
        Parameter("active", "share of connections that do anything, 0 to 1", 0),
        Parameter("think", "seconds between two actions of an active connection, on average", 0.1),
        Parameter("publishers", "publishers or speakers", 1),
        Parameter("subscribers", "subscribers or listeners", 0),
        Parameter("height", "of the video: 180, 360 or 720", 180),
        Parameter("browsers", "real Chromium pages among the subscribers (need playwright)", 0),
        Parameter("verify", "every so manieth subscriber decodes pictures and compares them; 0: none", 0),
        Parameter("relays", "TURN relays", 1),
        Parameter("pps", "packets a second through each relay", 1),
    )
}


@dataclass(frozen=True, slots=True)
class Profile:
    """A load with its parameters filled in."""

    name: str
    part: Part
    text: str
    parameters: Mapping[str, Any]
    users: Mapping[str, int]
    """User class of the locustfile to how many."""
    shape: Literal["constant", "ramp", "spike", "none"] = "constant"
    """How they come: `loadtest.shapes`; `none` leaves that to Locust's own options."""

    @property
    def measured_from_start(self) -> bool:
        """Whether the coming of users is part of what is measured."""
        return self.shape != "constant"

    @property
    def total(self) -> int:
        """Users in all."""
        return sum(self.users.values())

    @classmethod
    def of_locustfile(cls, options: Any) -> Profile:
        """For a locustfile without profiles: parameters are flags its author added, users and time Locust's own."""
        rooms = int(getattr(options, "rooms", None) or 1)
        return cls("locustfile", "rooms", "users of a locustfile", {"rooms": rooms}, {}, "none")


@dataclass(frozen=True, slots=True)
class _Definition:
    part: Part
    text: str
    defaults: Numbers
    users: Callable[[Numbers], dict[str, int]]
    shape: Literal["constant", "ramp", "spike"] = "constant"


def _everybody(p: Numbers) -> int:
    return int(p["rooms"] * p["members"])


def _idle_sea(p: Numbers) -> dict[str, int]:
    total = _everybody(p)
    active = round(total * p["active"])
    return {"Visitor": active, "Sleeper": total - active}


_STREAM = {"duration": 30, "quiet": 2, "spawn_rate": 20, "verify": 0}
_ROOM = {"duration": 30, "quiet": 2, "spawn_rate": 500, "size": 64}
_DEFINITIONS: Final[dict[str, _Definition]] = {
    "rooms": _Definition(
        "rooms",
        "rooms whose members all talk: every message goes to everybody else in its room",
        {**_ROOM, "rooms": 50, "members": 100, "rate": 4},
        lambda p: {"Talker": _everybody(p)},
    ),
    "ramp": _Definition(
        "rooms",
        "as `rooms`, but connections come evenly over the whole duration",
        {**_ROOM, "rooms": 20, "members": 50, "rate": 4},
        lambda p: {"Talker": _everybody(p)},
        "ramp",
    ),
    "spike": _Definition(
        "rooms",
        "as `rooms`, but four of five connections come at once after a third of the duration, and leave after two",
        {**_ROOM, "rooms": 20, "members": 50, "rate": 4},
        lambda p: {"Talker": _everybody(p)},
        "spike",
    ),
    "idle-sea": _Definition(
        "rooms",
        "many connections in rooms that hibernate; a small share wakes its room from time to time and talks",
        {**_ROOM, "duration": 60, "quiet": 12, "spawn_rate": 1000}
        | {"rooms": 150, "members": 100, "active": 0.01, "think": 60},
        _idle_sea,
    ),
    "api": _Definition(
        "rooms",
        "HTTP requests to rooms, echoes and writes that the answer waits for",
        {**_ROOM, "rooms": 20, "members": 5, "think": 1},
        lambda p: {"Caller": _everybody(p)},
    ),
    "meeting": _Definition(
        "media",
        "everybody publishes audio and video and sees everybody else",
        {"duration": 30, "quiet": 2, "spawn_rate": 5, "publishers": 10, "height": 360},
        lambda p: {"Participant": int(p["publishers"])},
    ),
    "livestream": _Definition(
        "media",
        "few publish, many watch",
        {**_STREAM, "publishers": 1, "subscribers": 200, "height": 720, "browsers": 0},
        lambda p: {
            "Broadcaster": int(p["publishers"]),
            "Viewer": int(p["subscribers"]),
            "BrowserViewer": int(p["browsers"]),
        },
    ),
    "audio-room": _Definition(
        "media",
        "speakers who hear each other, listeners who hear them all; no video",
        {**_STREAM, "publishers": 5, "subscribers": 100},
        lambda p: {"Speaker": int(p["publishers"]), "Listener": int(p["subscribers"])},
    ),
    "relay": _Definition(
        "turn",
        "calls through TURN: every relay carries packets to a peer that echoes them",
        {"duration": 30, "quiet": 2, "spawn_rate": 50, "relays": 50, "pps": 50, "size": 160},
        lambda p: {"RelayedCall": int(p["relays"])},
    ),
}

NAMES: Final = tuple(_DEFINITIONS)
DEFAULT: Final = "rooms"


def names_of(part: str) -> list[str]:
    """Profiles of a part: rooms, media or turn."""
    return [name for name, definition in _DEFINITIONS.items() if definition.part == part]


def describe(name: str) -> str:
    """One line for help."""
    definition = _DEFINITIONS[name]
    defaults = ", ".join(f"{key} {value:g}" for key, value in definition.defaults.items())
    return f"{definition.text} ({defaults})"


def profile(name: str, given: Mapping[str, float | None]) -> Profile:
    """A profile with parameters of the command line over its defaults.

    Args:
        given: parameter to number; None counts as not given.

    Raises:
        ProfileError: no such profile; a parameter it does not have; a number out of range.
    """
    if name not in _DEFINITIONS:
        raise ProfileError(f"no profile {name!r}; there are {', '.join(NAMES)}")
    definition = _DEFINITIONS[name]
    numbers: dict[str, float] = dict(definition.defaults)
    for key, value in given.items():
        if value is None:
            continue
        if key not in numbers:
            flags = ", ".join(PARAMETERS[known].flag for known in numbers)
            raise ProfileError(f"profile {name} has no {PARAMETERS[key].flag}; it has {flags}")
        if not value >= PARAMETERS[key].least:
            raise ProfileError(f"{PARAMETERS[key].flag} must be at least {PARAMETERS[key].least:g}, not {value:g}")
        numbers[key] = value
    if numbers.get("active", 0) > 1:
        raise ProfileError("--active is a share, at most 1")
    if "height" in numbers and numbers["height"] not in (180, 360, 720):
        raise ProfileError("--height is 180, 360 or 720")
    fractional = {"duration", "quiet", "spawn_rate", "rate", "active", "think", "pps"}
    parameters = {key: value if key in fractional else int(value) for key, value in numbers.items()}
    users = {kind: count for kind, count in definition.users(numbers).items() if count}
    return Profile(name, definition.part, definition.text, parameters, users, definition.shape)
