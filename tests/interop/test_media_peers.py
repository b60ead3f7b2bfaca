"""The load tests' media client and TURN client against servers that are not ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.media.figures import SubscriptionFigures
from loadtest.media.turn import TurnFigures
from loadtest.peers import hosts
from loadtest.peers.debian import ensure_installed

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    ensure_installed("ip", "janus", "turnserver")
    code, printed = hosts.run_on_client_host("tests.support.media_peers")
    assert code == 0, printed
    return json.loads(printed.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("index", [0, 1], ids=["vp8", "h264"])
def test_janus_forwards_pictures_whole(seen: dict[str, Any], index: int) -> None:
    figures = SubscriptionFigures.from_json(seen["janus"][index])
    assert (figures.tracks, figures.silent_tracks) == (4, 0)
    assert figures.video.lost_after_repair == figures.audio.lost_after_repair == 0
    assert figures.pictures.checked > 60
    assert figures.pictures.wrong == 0
    assert figures.video.delay.count > 60


@pytest.mark.parametrize("index", [0, 1], ids=["ipv4", "ipv6"])
def test_coturn_relays_what_we_send(seen: dict[str, Any], index: int) -> None:
    for value in seen["coturn"][index]:
        figures = TurnFigures.from_json(value)
        assert (figures.sent, figures.echoed, figures.failures) == (50, 50, 0)
