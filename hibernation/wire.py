"""Values as bytes, for a link between the process of the sockets and a process of objects.

A value is None, a bool, a 64-bit int, a float, str, bytes, or a tuple of values; on the wire a tag byte, then fixed
numbers big-endian, or a 32-bit size and the body. A message is a value behind its 32-bit size. Nothing else can be
written, so nothing else can be read: no code, no classes. Dataclasses of the ports go as tuples of their fields.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Union

from hibernation.errors import LinkError
from objects.ids import ObjectId
from objects.ports import (
    AutoResponse,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionFailed,
    MessageReceived,
    UpgradeAccepted,
    UpgradeAnswer,
    UpgradeRefused,
    UpgradeRequest,
)

Value = Union[None, bool, int, float, str, bytes, "tuple[Value, ...]"]

MAX_MESSAGE_BYTES = 64 << 20
MAX_DEPTH = 16

_NONE, _FALSE, _TRUE, _INT, _FLOAT, _STR, _BYTES, _TUPLE = b"nftidsbl"


def serialize(value: Value) -> bytes:
    """Return the message that holds `value`.

    Raises:
        LinkError: the message would be over 64 MiB.
    """
    out = bytearray(4)
    _write(out, value)
    size = len(out) - 4
    if size > MAX_MESSAGE_BYTES:
        raise LinkError(f"a message of {size} bytes")
    struct.pack_into("!I", out, 0, size)
    return bytes(out)


class MessageReader:
    """Takes a stream apart into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> list[Value]:
        """Return the values of the messages that `data` completes.

        Raises:
            LinkError: the stream is not ours; give it up.
        """
        self._buffer += data
        values: list[Value] = []
        at = 0
        while len(self._buffer) - at >= 4:
            (size,) = struct.unpack_from("!I", self._buffer, at)
            if size > MAX_MESSAGE_BYTES:
                raise LinkError(f"a message of {size} bytes")
            if len(self._buffer) - at - 4 < size:
                break
            values.append(parse(bytes(self._buffer[at + 4 : at + 4 + size])))
            at += 4 + size
        del self._buffer[:at]
        return values


def parse(body: bytes) -> Value:
    """Return the value of one message without its size.

    Raises:
        LinkError: anything but what `serialize` writes.
    """
    try:
        value, end = _read(body, 0, 0)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise LinkError(f"a message that cannot be read: {error}") from error
    if end != len(body):
        raise LinkError("a message with something behind it")
    return value


def _write(out: bytearray, value: Value) -> None:
    if value is None or value is True or value is False:
        out.append(_NONE if value is None else _TRUE if value else _FALSE)
    elif isinstance(value, int):
        out += struct.pack("!Bq", _INT, value)
    elif isinstance(value, float):
        out += struct.pack("!Bd", _FLOAT, value)
    elif isinstance(value, tuple):
        out += struct.pack("!BI", _TUPLE, len(value))
        for item in value:
            _write(out, item)
    else:
        body = value.encode() if isinstance(value, str) else value
        out += struct.pack("!BI", _STR if isinstance(value, str) else _BYTES, len(body))
        out += body


def _read(body: bytes, at: int, depth: int) -> tuple[Value, int]:
    tag = body[at]
    at += 1
    if tag == _NONE:
        return None, at
    if tag in (_TRUE, _FALSE):
        return tag == _TRUE, at
    if tag == _INT:
        return struct.unpack_from("!q", body, at)[0], at + 8
    if tag == _FLOAT:
        return struct.unpack_from("!d", body, at)[0], at + 8
    (size,) = struct.unpack_from("!I", body, at)
    at += 4
    if size > len(body) - at:
        raise LinkError("a size beyond the message")
    if tag == _TUPLE:
        if depth >= MAX_DEPTH:
            raise LinkError("tuples too deep")
        items = []
        for _ in range(size):
            item, at = _read(body, at, depth + 1)
            items.append(item)
        return tuple(items), at
    if tag == _STR:
        return body[at : at + size].decode(), at + size
    if tag == _BYTES:
        return body[at : at + size], at + size
    raise LinkError(f"an unknown tag {tag}")


# Unpacking raises TypeError, ValueError, KeyError or IndexError when the other side is not what it should be; the ends
# turn that into `LinkError`.


def pack_id(object_id: ObjectId) -> Value:
    """An object's identity."""
    return object_id.namespace, object_id.digest, object_id.name


def unpack_id(packed: Any) -> ObjectId:
    """What `pack_id` packed."""
    return ObjectId(*packed)


def pack_request(request: UpgradeRequest) -> Value:
    """An upgrade."""
    return request.connection_id, request.url, request.headers, request.protocols, request.client


def unpack_request(packed: Any) -> UpgradeRequest:
    """What `pack_request` packed."""
    return UpgradeRequest(*packed)


def pack_answer(answer: UpgradeAnswer) -> Value:
    """An object's decision."""
    if isinstance(answer, UpgradeAccepted):
        return True, answer.protocol, answer.headers
    return False, answer.status, answer.headers, answer.body


def unpack_answer(packed: Any) -> UpgradeAnswer:
    """What `pack_answer` packed."""
    return UpgradeAccepted(*packed[1:]) if packed[0] else UpgradeRefused(*packed[1:])


def pack_event(event: ConnectionEvent) -> Value:
    """An event of a connection."""
    if isinstance(event, MessageReceived):
        return "message", event.connection_id, event.data
    if isinstance(event, ConnectionFailed):
        return "failed", event.connection_id, event.message
    return "closed", event.connection_id, event.code, event.reason, event.was_clean


def unpack_event(packed: Any) -> ConnectionEvent:
    """What `pack_event` packed."""
    kinds: dict[str, Any] = {"message": MessageReceived, "failed": ConnectionFailed, "closed": ConnectionClosed}
    event: ConnectionEvent = kinds[packed[0]](*packed[1:])
    return event


def pack_rules(rules: Sequence[AutoResponse]) -> Value:
    """Auto-response rules."""
    return tuple((rule.request, rule.response, rule.match, rule.tag) for rule in rules)


def unpack_rules(packed: Any) -> tuple[AutoResponse, ...]:
    """What `pack_rules` packed."""
    return tuple(AutoResponse(*rule) for rule in packed)
