"""docs/operations.md says what the code does: each setting with its default, each metric."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from objects.limits import Limits
from sfu.gateway import SESSIONS_PER_ADDRESS_PER_S
from sfu.service import SfuStats
from tests.support.fake_sfu import FakeSfu
from torpor.config import EventSettings, Settings
from torpor.figures import MEDIA_COUNTERS, MEDIA_GAUGES, Figures, media_families, room_families, turn_families
from torpor.http import PIPELINE_MAX, SEND_TIMEOUT
from torpor.rooms import RoomStats
from torpor.sources import Setting, all_settings
from turn.service import TurnSettings, TurnStats
from turn.usage import OTHERS, ROWS_MAX

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def row(setting: Setting) -> str:
    """The line of the settings table."""
    default = getattr(getattr(Settings(), setting.section), setting.name)
    if isinstance(default, tuple):
        shown = ", ".join(default) or "none"
    elif isinstance(default, dict):
        shown = "none"
    elif isinstance(default, bool):
        shown = str(default).lower()
    else:
        shown = "absent" if default is None else str(default)
    return f"| `{setting.key}` | {shown} | {setting.text} |"


@pytest.mark.parametrize("setting", list(all_settings()), ids=lambda setting: setting.key)
def test_every_setting_is_there_with_its_default(setting: Setting) -> None:
    assert row(setting) in PAGE


def test_no_setting_is_there_that_does_not_exist() -> None:
    rows = {line for line in PAGE.splitlines() if line.startswith("| `") and "." in line.split("`")[1]}
    assert rows == {row(setting) for setting in all_settings()}


def test_every_metric_is_there() -> None:
    counters = dict.fromkeys((*MEDIA_COUNTERS, *MEDIA_GAUGES, "drop_replay"), 0)
    families = [
        *Figures(FakeSfu()).collect(),  # type: ignore[arg-type]
        *media_families(SfuStats(counters, {}, (0,), (0,))),
        *turn_families(TurnStats({}, {}, {})),
        *room_families(RoomStats({}, defaultdict(int), {}, {})),
    ]
    assert [family.name for family in families if f"`{family.name}`" not in PAGE] == []


def test_the_limits_it_names_are_those_in_force() -> None:
    text = " ".join(PAGE.split())
    assert f"| an answer that is not read | {SEND_TIMEOUT:g} s |" in text
    assert f"a comment comes every {EventSettings().heartbeat:g} s" in text
    assert f"{SESSIONS_PER_ADDRESS_PER_S:g} a second per address" in text
    queue = Limits()
    waiting = f"{queue.queued_events}, {queue.queued_bytes >> 20} MiB, {queue.queue_age_s:g} s"
    assert f"| events that wait for a room | {waiting} |" in text
    assert f"| requests ahead of their answers on a connection | {PIPELINE_MAX} |" in text
    turn = TurnSettings()
    peers = f"{turn.permissions_max} at once, {turn.new_peers_per_s:g} new ones a second, {turn.new_peers_burst:g}"
    assert f"| peers of a relay | {peers} in a burst |" in text
    unused = f"{turn.idle_connection_timeout:g} s; an unfinished message {turn.frame_timeout:g} s"
    assert f"| a TURN connection without a relay | {unused} |" in text
    assert f"slow TURN client over TCP | {turn.stream_queue_bytes // 1024} KiB |" in text
    assert f"the first {ROWS_MAX:,} pairs get a label of their own, later ones share `{OTHERS}`" in text
