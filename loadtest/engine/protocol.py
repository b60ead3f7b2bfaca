"""Messages between a Locust process and its engine: JSON behind a length of four bytes, batched by whoever sends.

To the engine: `{"calls": [[id, operation, arguments, sent_at], ...]}`. From it: `{"answers": [[id, error, value], ...],
"figures": {...}, "ended": [[connection, reason], ...]}`, every key optional. `sent_at` is the monotonic clock in
seconds, which processes of one machine share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

LENGTH_BYTES: Final = 4
MESSAGE_MAX: Final = 64 * 1024 * 1024
"""Larger ones are a fault, not a batch."""


class ProtocolError(Exception):
    """The other side sent what is no message."""


def encode(message: dict[str, Any]) -> bytes:
    """A message as it travels."""
    body = orjson.dumps(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take what arrived; yields every message that is complete now.

        Raises:
            ProtocolError: a length beyond `MESSAGE_MAX`, or a body that is no JSON object.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= LENGTH_BYTES:
                length = int.from_bytes(self._buffer[at : at + LENGTH_BYTES], "little")
                if length > MESSAGE_MAX:
                    raise ProtocolError(f"a message of {length} bytes")
                if len(self._buffer) - at - LENGTH_BYTES < length:
                    break
                begin = at + LENGTH_BYTES
                at = begin + length
                yield _parse(bytes(self._buffer[begin:at]))
        finally:
            del self._buffer[:at]


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a message is an object, not {type(message).__name__}")
    return message
