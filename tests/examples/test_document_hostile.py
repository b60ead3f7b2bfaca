"""Frames that are made to harm the document example: it lives in the process of all rooms, and pycrdt is not Python."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Array, Doc, Map, Text, XmlElement, XmlFragment

from partykit_compat.testing import Client, TestRooms, serve_rooms
from tests.examples.test_document import STEP_1_EMPTY, example, text_of

PANICS = bytes.fromhex(
    "0104f9edc6efce91ba0bffffffff5d2701016d03617272000800f9edc6efce91ba0b5d017c3f80000087f9edc6efce91ba0b5e012800f9"
    "edc6efce91ba0b5f017a017c4000000000"
)
"""An update of a client whose clock is near its end."""


def real_updates() -> list[bytes]:
    """What editors send: text, lists, maps, XML, formats and deletions."""
    updates: list[bytes] = []
    document: Doc = Doc()
    document.observe(lambda event: updates.append(event.update))
    text, array, record = document.get("u", type=Text), document.get("a", type=Array), document.get("m", type=Map)
    for number in range(5):
        text += f"héllo {number}"
        array.append(number)
        record[f"k{number}"] = [1, {"x": None, "y": 1.5}]
    del text[0:3]
    del array[0]
    record["nested"] = Array([1, Map({"z": 2})])
    document.get("x", type=XmlFragment).children.append(XmlElement("p", {"a": "b"}))
    text.format(1, 4, {"bold": True})
    return [*updates, document.get_update()]


UPDATES = real_updates()
HOSTILE_LENGTHS = [example.uint(2**bits) for bits in (14, 28, 31, 32, 53)] + [b"\xff" * 9 + b"\x01"]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A sync frame around a real update or state vector that was damaged in one to three places."""
    step = draw(st.sampled_from([example.STEP_1, example.STEP_2, example.UPDATE]))
    body = bytearray(draw(st.sampled_from([*UPDATES, b"\0", b"\1\5\3"])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["flip", "cut", "insert", "length", "remove"])):
            case "flip" if at < len(body):
                body[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del body[at:]
            case "insert":
                body[at:at] = draw(st.binary(min_size=1, max_size=5))
            case "length":
                body[at:at] = draw(st.sampled_from(HOSTILE_LENGTHS))
            case _:
                del body[at : at + 2]
    size = draw(st.sampled_from([example.uint(len(body))] * 8 + HOSTILE_LENGTHS))
    return bytes([example.SYNC, step]) + size + bytes(body)


async def edits(rooms: TestRooms, word: str) -> None:
    """A new client writes a word and another one reads it: the room works."""
    document: Doc = Doc()
    document.get("t", type=Text).insert(0, word)
    writer = await rooms.connect("notes")
    await writer.send(bytes([example.SYNC, example.UPDATE]) + example.sized(document.get_update()))
    await rooms.settle()
    reader = await rooms.connect("notes")
    await reader.send(STEP_1_EMPTY)
    assert word in text_of(await answer_of(reader))
    await writer.close()
    await reader.close()


async def answer_of(client: Client) -> str | bytes:
    while True:
        message = await client.recv()
        if message[:2] == bytes([example.SYNC, example.STEP_2]):
            return message


async def survives(sent: list[bytes]) -> None:
    async with serve_rooms(example.Document, message_max_bytes=4 << 20) as rooms:
        for number, frame in enumerate(sent):
            client = await rooms.connect("notes")
            await client.send(frame)
            await rooms.settle()
            await client.close()
            if number == len(sent) - 1:
                await edits(rooms, "alive")
        assert await rooms.sleep("notes")
        await edits(rooms, "awake again")


@settings(max_examples=25, deadline=None)
@given(sent=st.lists(frames(), min_size=1, max_size=10))
def test_damaged_frames_leave_a_room_that_works(sent: list[bytes]) -> None:
    asyncio.run(survives(sent))


def test_real_updates_pass_the_check() -> None:
    for update in UPDATES:
        example.check_update(update)


async def test_a_panic_of_pycrdt_harms_nobody() -> None:
    document: Doc = Doc()
    document.get("t", type=Text).insert(0, "text")
    document.observe(lambda event: None)
    with pytest.raises(BaseException) as panic:
        document.apply_update(PANICS)
    assert not isinstance(panic.value, Exception), "pycrdt panics no more: find another update, or drop the guard"
    example.check_update(PANICS)
    await survives([bytes([example.SYNC, example.UPDATE]) + example.sized(PANICS)] * 3)


async def test_updates_that_wait_for_others_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MAX_WAITING_BYTES", 100_000)
    updates: list[bytes] = []
    document: Doc = Doc()
    document.observe(lambda event: updates.append(event.update))
    text = document.get("t", type=Text)
    for number in range(30):
        text += f"{number:05}" * 2_000
    async with serve_rooms(example.Document) as rooms:
        client = await rooms.connect("notes")
        assert await client.recv() == STEP_1_EMPTY
        for update in updates[1:]:  # all but the first, which the others need
            await client.send(bytes([example.SYNC, example.UPDATE]) + example.sized(update))
        assert [await client.recv() for _ in range(2)] == [STEP_1_EMPTY] * 2  # the room has let go, and asks again
        await client.send(bytes([example.SYNC, example.STEP_2]) + example.sized(document.get_update()))
        await rooms.settle()
        reader = await rooms.connect("notes")
        await reader.send(STEP_1_EMPTY)
        assert text_of(await answer_of(reader)) == str(text)


async def test_batches_of_all_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    start = 'y-pk-batch#{"type":"start","id":"x","size":%d}'
    monkeypatch.setattr(example, "MAX_BATCHES_BYTES", 2_000_000)
    async with serve_rooms(example.Document) as rooms:
        first, second = await rooms.connect("notes"), await rooms.connect("notes")
        for _ in range(3):  # a batch begun anew takes the place of the last
            await first.send(start % 1_500_000)
        await rooms.settle()
        await second.send(start % 600_000)
        assert (await second.closed())[0] == 1013
        await edits(rooms, "alive")


# ── what ends a process, in one of its own ──────────────────────────────────────────────────────────────────────────

HEAD = b"\1\1\1\0"  # one client with one item: client 1, clock 0
ROOT = b"\1\1t"  # child of the root type "t"


def deep_values(tag: bytes) -> bytes:
    return HEAD + b"\x08" + ROOT + b"\1" + tag * 200_000 + b"\x7e\0"


def deep_types(depth: int) -> bytes:
    nested = b"".join(b"\x07\0\1" + example.uint(number) + b"\1" for number in range(depth - 1))
    return b"\1" + example.uint(depth) + b"\1\0\x07" + ROOT + b"\1" + nested + b"\0"


def promised(count: bytes) -> dict[str, bytes]:
    return {
        "clients": count,
        "items": b"\1" + count + b"\1\0\4\1\1t\1a\0",
        "array": HEAD + b"\x08" + ROOT + b"\1\x75" + count,
        "maps": HEAD + b"\x08" + ROOT + b"\1" + (b"\x76" + count + b"\1a") * 20,
        "text": HEAD + b"\4" + ROOT + count + b"a",
    }


def killers() -> list[bytes]:
    update = partial(bytes.__add__, bytes([example.SYNC, example.UPDATE]))
    found = [update(example.sized(deep_values(tag))) for tag in (b"\x75\1", b"\x76\1\1a")]
    for bits in (26, 27, 28, 29, 30):
        found += [update(example.sized(body)) for body in promised(example.uint(2**bits)).values()]
        found.append(bytes([example.SYNC, example.STEP_1]) + example.sized(example.uint(2**bits)))
    found += [update(example.sized(deep_types(120_000))), update(example.sized(b"\0\1\1\1\0\1"))]  # and its deletion
    return found


def test_frames_that_would_end_the_process_do_not() -> None:
    code = (
        "import asyncio, resource; from tests.examples import test_document_hostile as t;"
        "asyncio.run(t.survives(t.killers()));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert int(ran.stdout) < 400  # MiB, with all of Python's
