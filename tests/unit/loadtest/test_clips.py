"""Clips: encoded once, cached whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.media import clips


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "torpor" / "clips"


def test_the_cache_gives_back_what_was_encoded(cache: Path) -> None:
    made = clips.video_clip.__wrapped__("VP8", 180)
    assert clips._cached("VP8", 180) == made
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"nonsense", b'{"sizes": [9], "keyframes": []}\n12345678'])
def test_a_damaged_cache_counts_as_absent(cache: Path, damage: bytes) -> None:
    cache.mkdir(parents=True)
    clips._path("VP8", 180).write_bytes(damage)
    assert clips._cached("VP8", 180) is None


def test_content_that_differs_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clips._path("VP8", 180)
    monkeypatch.setattr(clips, "KEYFRAME_EVERY", 30)
    assert clips._path("VP8", 180) != before


@pytest.mark.parametrize("number", [0, 1, 2, 127, 128, 239])
@pytest.mark.parametrize("height", [180, 360, 720])
def test_a_picture_says_its_number(number: int, height: int) -> None:
    luma, u, v = clips.draw(number, height)
    width = clips.width_of(height)
    assert (len(luma), len(u), len(v)) == (width * height, width * height // 4, width * height // 4)
    assert clips.read_number(luma, width, height) == number
