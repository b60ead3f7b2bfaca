"""Named loads and their parameters."""

from __future__ import annotations

import pytest

from loadtest.profiles import NAMES, ProfileError, describe, profile


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_has_users_and_a_description(name: str) -> None:
    made = profile(name, {})
    assert made.total >= 1
    assert made.parameters["duration"] > 0
    assert made.text in describe(name)


def test_the_idle_sea_is_15000_connections_in_150_rooms_of_which_one_in_a_hundred_does_anything() -> None:
    made = profile("idle-sea", {})
    assert made.users == {"Visitor": 150, "Sleeper": 14_850}
    assert made.parameters["rooms"] == 150


def test_parameters_of_the_command_line_replace_defaults() -> None:
    made = profile("rooms", {"rooms": 3, "members": 4, "rate": 0.5, "relays": None})
    assert made.users == {"Talker": 12}
    assert made.parameters["rate"] == 0.5


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("meting", {}, "no profile 'meting'; there are rooms, "),
        ("meeting", {"rooms": 5.0}, "meeting has no --rooms; it has --duration"),
        ("rooms", {"rooms": 0.0}, "--rooms must be at least 1"),
        ("rooms", {"rooms": float("nan")}, "--rooms must be at least 1"),
        ("idle-sea", {"active": 2.0}, "--active is a share"),
        ("livestream", {"height": 200.0}, "--height is 180, 360 or 720"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(ProfileError) as error:
        profile(name, given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
