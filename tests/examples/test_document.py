"""The document example, frame by frame, by the numbers of the party contract (docs/design/party-coverage.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Doc, Text

from partykit_compat.testing import Client, TestRooms, serve_rooms
from tests.examples.test_rooms import code_of

example = code_of("document")

STEP_1_EMPTY = bytes.fromhex("00000100")
NOTHING_MISSING = bytes.fromhex("0001020000")
HI = bytes.fromhex("00020c01010500040101740268 6900".replace(" ", ""))
PRESENT = bytes.fromhex("010b010501077b2275223a317d")
ABSENT = bytes.fromhex("01080105 01046e756c6c".replace(" ", ""))


@asynccontextmanager
async def documents(folder: Path | None = None) -> AsyncIterator[TestRooms]:
    async with serve_rooms(example.Document, folder=folder) as rooms:
        yield rooms


async def joined(rooms: TestRooms, first: bytes = STEP_1_EMPTY, **query: str) -> Client:
    client = await rooms.connect("notes", query=query)
    assert await client.recv() == first
    return client


async def hears_nothing(client: Client) -> None:
    """Nothing is on its way: the answer to a question comes next."""
    await client.send(STEP_1_EMPTY)
    answer = await client.recv()
    assert isinstance(answer, bytes)
    assert answer[:2] == b"\x00\x01", answer


def text_of(step_2: str | bytes) -> str:
    assert isinstance(step_2, bytes)
    reader = example.Reader(step_2)
    assert (reader.uint(), reader.uint()) == (0, 1)
    document: Doc[Text] = Doc()
    document.apply_update(reader.bytes())
    return str(document.get("t", type=Text))


async def test_43_an_empty_document_says_so_and_has_nothing_to_give() -> None:
    async with documents() as rooms:
        client = await joined(rooms)
        await client.send(STEP_1_EMPTY)
        assert await client.recv() == NOTHING_MISSING


async def test_44_an_update_goes_to_all_its_sender_included_and_a_repeat_to_nobody() -> None:
    async with documents() as rooms:
        one, other = await joined(rooms), await joined(rooms)
        await one.send(HI)
        assert await one.recv() == await other.recv() == HI
        await one.send(HI)
        await hears_nothing(one)
        await hears_nothing(other)


async def test_45_awareness_is_echoed_and_its_end_is_told_with_the_same_clock() -> None:
    async with documents() as rooms:
        one, other = await joined(rooms), await joined(rooms)
        await one.send(PRESENT)
        assert await one.recv() == await other.recv() == PRESENT
        late = await joined(rooms)
        assert await late.recv() == PRESENT
        await one.close()
        assert await other.recv() == await late.recv() == ABSENT


async def test_45_awareness_outlives_hibernation_and_its_end_may_wake_the_room() -> None:
    async with documents() as rooms:
        one, other = await joined(rooms), await joined(rooms)
        await one.send(PRESENT)
        assert await one.recv() == await other.recv() == PRESENT
        assert await rooms.sleep("notes")
        await one.close()
        assert await other.recv() == STEP_1_EMPTY  # a room that wakes asks for what it may have lost
        assert await other.recv() == ABSENT


async def test_45_a_client_that_came_back_stays_when_its_old_connection_ends() -> None:
    async with documents() as rooms:
        old, other = await joined(rooms), await joined(rooms)
        await old.send(PRESENT)
        assert await other.recv() == PRESENT
        new = await joined(rooms)
        assert await new.recv() == PRESENT
        renewed = PRESENT.replace(b"\x05\x01\x07", b"\x05\x02\x07")
        await new.send(renewed)
        assert await other.recv() == renewed
        await old.close()
        await hears_nothing(other)


async def test_46_a_reader_changes_nothing_and_stays() -> None:
    async with documents() as rooms:
        reader, other = await joined(rooms, mode="view"), await joined(rooms)
        await reader.send(HI)
        await hears_nothing(reader)
        await hears_nothing(other)
        await reader.send(PRESENT)
        assert await reader.recv() == await other.recv() == PRESENT


async def test_49_three_updates_are_one_row_that_outlives_the_server(tmp_path: Path) -> None:
    async with documents(tmp_path) as rooms:
        client = await joined(rooms)
        document: Doc[Text] = Doc()
        updates: list[bytes] = []
        document.observe(lambda event: updates.append(event.update))
        text = document.get("t", type=Text)
        for word in ("one ", "two ", "three"):
            text += word
        for update in updates:
            await client.send(b"\x00\x02" + example.sized(update))
            await client.recv()
        await rooms.advance(example.SAVE_AFTER_S + 1)
        await client.close()
    async with documents(tmp_path) as rooms:
        late = await rooms.connect("notes")
        await late.recv()
        await late.send(STEP_1_EMPTY)
        assert text_of(await late.recv()) == "one two three"


async def test_a_room_stays_awake_until_a_change_is_stored() -> None:
    async with documents() as rooms:
        client = await joined(rooms)
        await client.send(HI)
        await client.recv()
        await rooms.advance(60)
        assert not rooms.is_awake("notes")
        late = await rooms.connect("notes")
        await late.recv()
        await late.send(STEP_1_EMPTY)
        assert text_of(await late.recv()) == "hi"


async def test_50_awareness_is_answered_also_when_it_is_old_and_never_ends_by_time() -> None:
    async with documents() as rooms:
        client = await joined(rooms)
        for _ in range(2):
            await client.send(PRESENT)
            assert await client.recv() == PRESENT
        await rooms.advance(60)
        late = await rooms.connect("notes")
        assert await late.recv() == STEP_1_EMPTY
        assert await late.recv() == PRESENT


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\x00\x02\x05\xff",
        b"\x00\x02\x02\xff\xff",
        b"\x00\x00\x02\xff\xff",
        b"\x09\x01",
        b"\xff" * 1_000,
        b"\x01\x03\x01\x05\x01",
        "text",
        "y-pk-batch#{",
        'y-pk-batch#{"type":"start","size":-1}',
    ],
)
async def test_what_is_malformed_is_not_answered(frame: str | bytes) -> None:
    async with documents() as rooms:
        client = await joined(rooms)
        await client.send(frame)
        await hears_nothing(client)


@given(st.binary(max_size=200))
def test_awareness_is_read_or_malformed(body: bytes) -> None:
    with suppress(example.Malformed):
        example.read_awareness(body)


async def test_a_document_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MAX_DOCUMENT_BYTES", 8)
    async with documents() as rooms:
        client = await joined(rooms)
        await client.send(HI)
        async with asyncio.timeout(5):
            assert await client.closed() == (1009, "the document is full")
