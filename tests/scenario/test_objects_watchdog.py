"""Code that does not give the loop back is stopped, its object alone is reset, and everybody else goes on."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from objects import codec
from objects.embedded import LocalDrivers
from objects.errors import EventTimeout, ObjectReset
from objects.host import ObjectHost
from objects.limits import Limits
from objects.namespace import ObjectNamespace
from objects.state import DurableObject, ObjectState


class Rude(DurableObject):
    def __init__(self, ctx: ObjectState, env: Any) -> None:
        super().__init__(ctx, env)
        if ctx.id.name == "in the constructor" and not env:
            env.append("constructing")
            time.sleep(60)

    async def sleep(self) -> None:
        time.sleep(60)  # noqa: ASYNC251  # what is tested

    async def compute(self) -> None:
        await asyncio.sleep(0)
        while True:
            try:
                while True:
                    pass
            except Exception:  # what stops it is no Exception
                pass

    async def write_for_ever(self) -> None:
        n = 0
        while True:
            n += 1
            self.ctx.storage.kv.put("n", n)

    async def wait_for_a_thread(self) -> None:
        threading.Event().wait()

    async def wait_for_its_own_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), asyncio.get_running_loop()).result()

    async def write_in_a_method_of_one_line(self) -> None:
        while self._write() is None:
            pass

    def _write(self) -> None:
        return self.ctx.storage.kv.put("n", [1] * 10_000)

    async def encode_much(self) -> str:
        return self._encode_much()

    def _encode_much(self) -> str:
        return codec.encode([0] * 1_500_000, limit=2**30) and "done"

    async def written(self) -> Any:
        return await self.ctx.storage.get("n")

    async def busy_but_polite(self) -> str:
        end = time.monotonic() + 0.8
        while time.monotonic() < end:  # noqa: ASYNC110  # what is tested
            await asyncio.sleep(0)
        return "done"


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[ObjectNamespace]:
    drivers = LocalDrivers(tmp_path)
    host = ObjectHost(drivers.ports, secret=b"0123456789abcdef", limits=Limits(blocking_s=0.2))
    namespace = host.register("rude", Rude, [])
    host.start()
    yield namespace
    await host.stop()
    drivers.close()


@pytest.mark.parametrize(
    "method",
    [
        "sleep",
        "compute",
        "write_for_ever",
        "write_in_a_method_of_one_line",
        "wait_for_a_thread",
        "wait_for_its_own_loop",
    ],
)
async def test_a_handler_that_blocks_is_stopped_and_its_object_reset(rooms: ObjectNamespace, method: str) -> None:
    other, rude = rooms.get_by_name("other"), rooms.get_by_name("rude")
    async with asyncio.timeout(20):
        assert await other.written() is None
        blocked = getattr(rude, method)()
        with pytest.raises(EventTimeout, match="held the server up for over 0"):
            await blocked
        assert await other.written() is None
        assert await rude.written() is None  # a new instance; what was not committed is gone
    assert rooms.meter.resets == 1


async def test_a_constructor_that_blocks_fails_and_the_next_start_is_clean(rooms: ObjectNamespace) -> None:
    stub = rooms.get_by_name("in the constructor")
    async with asyncio.timeout(20):
        with pytest.raises((EventTimeout, ObjectReset), match="held the server up"):
            await stub.written()
        assert await stub.written() is None


async def test_much_work_with_awaits_is_left_alone(rooms: ObjectNamespace) -> None:
    assert await rooms.get_by_name("a").busy_but_polite() == "done"
    assert rooms.meter.resets == 0


async def test_what_the_runtime_does_for_a_handler_ends_in_peace_and_nothing_is_traced_after_it(
    rooms: ObjectNamespace,
) -> None:
    before = sys.gettrace()
    with contextlib.suppress(EventTimeout):
        await rooms.get_by_name("a").encode_much()
    assert sys.gettrace() is before
    assert await rooms.get_by_name("b").busy_but_polite() == "done"
