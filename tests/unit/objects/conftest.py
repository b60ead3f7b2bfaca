import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.objects.fakes import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    threads = set(threading.enumerate())
    world = World(tmp_path / "data")
    yield world
    await world.stop()
    left = [t.name for t in threading.enumerate() if t not in threads and t.name.startswith("torpor")]
    assert not left
