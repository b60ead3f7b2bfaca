"""Whatever a caller sends as a body: a shape, or an error that names the field; never anything else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sfu.errors import DecodingError, InvalidParams
from sfu.gateway import is_local_name
from sfu.schemas import REQUESTS, Schema, parse, serialize

KEYS = [
    *("tracks", "sessionDescription", "type", "sdp", "location", "mid", "trackName", "sessionId", "kind", "force"),
    *("autoDiscover", "bidirectionalMediaStream", "simulcast", "preferredRid", "priorityOrdering", "ridNotAvailable"),
]
WORDS = ["local", "remote", "offer", "answer", "audio", "video", "none", "asciibetical", "0", "", "\ud800"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=20,
)
shapes = st.sampled_from(REQUESTS)


def parsed(shape: type[Schema], body: bytes) -> Schema | None:
    try:
        return parse(shape, body)
    except (DecodingError, InvalidParams) as error:
        where = error.description.partition(":")[0]
        assert where == "body" or all(step.partition("[")[0] in KEYS for step in where.split("."))
        return None


@given(shapes, values)
def test_any_json(shape: type[Schema], value: Any) -> None:
    if (result := parsed(shape, json.dumps(value).encode())) is not None:
        # What was taken means the same when it is sent again.
        assert parse(shape, serialize(result)) == result


@given(shapes, st.binary(max_size=300))
def test_any_bytes(shape: type[Schema], body: bytes) -> None:
    parsed(shape, body)


@given(shapes, values, st.data())
def test_any_json_with_one_byte_changed(shape: type[Schema], value: Any, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value).encode())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))
    parsed(shape, bytes(body))


@given(st.text(max_size=60))
def test_any_host_header(host: str) -> None:
    assert is_local_name(host) in (True, False)
