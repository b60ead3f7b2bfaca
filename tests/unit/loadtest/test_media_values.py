"""Sources, references and figures: plain values that cross processes."""

from __future__ import annotations

import json

import pytest

from loadtest._media.core import bucket_of as compiled_bucket_of
from loadtest._media.core import squared_error
from loadtest.histogram import Histogram, bucket_of
from loadtest.media.figures import PublicationFigures, ReceiveFigures, SubscriptionFigures
from loadtest.media.source import MediaSource
from loadtest.media.target import PublicationRef


def test_the_plane_counts_in_the_same_buckets() -> None:
    for us in (*range(3000), *(2**n + d for n in range(2, 40) for d in (-1, 0, 1))):
        assert compiled_bucket_of(us) == bucket_of(us)


def test_simulcast_layers_are_those_at_and_below_the_height() -> None:
    assert MediaSource(height=720, simulcast=True).rids == ("f", "h", "q")
    assert MediaSource(height=360, simulcast=True).rids == ("h", "q")
    assert MediaSource(height=720).rids == ()
    assert MediaSource(video=None, simulcast=True).rids == ()


def test_sources_of_nothing_or_of_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="without audio and video"):
        MediaSource(audio=False, video=None)
    with pytest.raises(ValueError, match="height 100"):
        MediaSource(height=100)


def test_references_survive_json() -> None:
    ref = PublicationRef("session", ("audio-1", "video-2"))
    assert PublicationRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref


def test_figures_add_up_and_survive_json() -> None:
    delay = Histogram()
    delay.record(0.02)
    one = SubscriptionFigures(subscriptions=1, tracks=2, video=ReceiveFigures(packets=7, delay=delay))
    both = one.merge(one).merge(SubscriptionFigures())
    assert (both.subscriptions, both.tracks, both.video.packets, both.video.delay.count) == (2, 4, 14, 2)
    assert delay.count == 1, "merging leaves its parts alone"
    assert SubscriptionFigures.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert PublicationFigures.from_json(PublicationFigures().to_json()) == PublicationFigures()


def test_squared_error_is_that_of_the_pictures_and_bounds_are_checked() -> None:
    assert squared_error(b"\0\0\xff\0\0\xff", 3, b"\0\0\2\0", 2, 2, 1) == 1.0
    assert squared_error(bytes(8), 4, bytes(8), 4, 2, 1) == 0.0
    for width, height, row_step in ((5, 2, 1), (4, 3, 1), (4, 2, 0)):
        with pytest.raises(ValueError, match="planes"):
            squared_error(bytes(8), 4, bytes(8), width, height, row_step)
