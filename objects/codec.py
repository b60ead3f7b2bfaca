"""Values to bytes and back, safely: what storage, attachments and calls between objects are written in.

Carries `None`, `bool`, `int` of any size, `float`, `str`, `bytes`, `list`, `tuple`, `dict`, `set`, `frozenset`,
`datetime` and exceptions. Identity is kept inside one value: two references to one list are one list again, and cycles
through lists, dicts and sets work. Instances of other classes are refused, subclasses of the above included: decoding
never runs code that the bytes name. Nothing here is Python's pickle, and hostile bytes can only raise `DecodeError`.

Format: one version byte, then one item: a tag byte and its payload. Numbers are LEB128 varints. Every item takes at
least one byte, so that the memory a decoder uses is bounded by the length of its input.

A caller that has more to say (functions and stubs in `rpc`) passes hooks: the encoder asks `reference` for every value
that is not plain data, and writes the number it answers; the decoder hands that number to `resolve`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

from objects.errors import DecodeError, LimitExceeded, NotSerializable
from objects.failures import describe_error, rebuild_error

VERSION = 1
MAX_DEPTH = 200
"""Levels of containers inside containers."""

Reference = Callable[[object], "int | None"]
Resolve = Callable[[int], object]

_NONE, _TRUE, _FALSE, _INT, _FLOAT, _STR, _BYTES = b"NTFIDSB"
_LIST, _TUPLE, _DICT, _SET, _FROZENSET, _DATETIME, _ERROR = b"LUMEZWX"
_SAME, _REFERENCE = b"RC"

_DOUBLE = struct.Struct(">d")
_EPOCH = datetime(1, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


def encode(value: object, *, limit: int | None = None, reference: Reference | None = None) -> bytes:
    """Return `value` as bytes.

    Args:
        limit: the most bytes that may come out.
        reference: number of a value that travels by reference, or None to refuse it.

    Raises:
        NotSerializable: of a type that is not carried, nested deeper than `MAX_DEPTH`, or a cycle through a tuple.
        LimitExceeded: more than `limit` bytes.
    """
    encoder = _Encoder(reference)
    encoder.write(value, 0)
    if limit is not None and len(encoder.out) > limit:
        raise LimitExceeded("serialized value in bytes", limit, len(encoder.out))
    return bytes(encoder.out)


def decode(data: bytes, *, resolve: Resolve | None = None) -> object:
    """Return the value that `encode` was given.

    Args:
        resolve: what a reference's number stands for; without it references are an error.

    Raises:
        DecodeError: not written by `encode`, or cut, or more bytes follow.
    """
    if not data or data[0] != VERSION:
        raise DecodeError("unknown format version")
    decoder = _Decoder(data, resolve)
    value = decoder.read(0)
    if decoder.at != len(data):
        raise DecodeError(f"{len(data) - decoder.at} bytes after the value")
    return value


class _Encoder:
    def __init__(self, reference: Reference | None) -> None:
        self.out = bytearray((VERSION,))
        self._reference = reference
        # Containers already written, by identity. A tuple is numbered when it is complete: a decoder cannot make it
        # before its items. The values themselves are kept alive by whoever called.
        self._seen: dict[int, int] = {}
        self._unfinished: set[int] = set()

    def write(self, value: object, depth: int) -> None:
        kind = type(value)
        out = self.out
        if value is None:
            out.append(_NONE)
        elif kind is bool:
            out.append(_TRUE if value else _FALSE)
        elif kind is int:
            self._int(value)  # type: ignore[arg-type]  # narrowed by `kind`
        elif kind is str:
            self._blob(_STR, value.encode("utf-8", "surrogatepass"))  # type: ignore[attr-defined]  # narrowed by `kind`
        elif kind is bytes or kind is bytearray or kind is memoryview:
            self._blob(_BYTES, bytes(value))  # type: ignore[call-overload]  # narrowed by `kind`
        elif kind is float:
            out.append(_FLOAT)
            out += _DOUBLE.pack(value)
        elif kind is datetime:
            self._datetime(value)  # type: ignore[arg-type]  # narrowed by `kind`
        elif kind in (list, dict, set, tuple, frozenset):
            self._container(value, depth)
        elif self._reference is not None and (number := self._reference(value)) is not None:
            out.append(_REFERENCE)
            self._varint(number)
        elif isinstance(value, Exception):
            name, message = describe_error(value)
            out.append(_ERROR)
            self._text(name)
            self._text(message)
        else:
            raise NotSerializable(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored or sent")

    def _container(self, value: object, depth: int) -> None:
        identity = id(value)
        if (seen := self._seen.get(identity)) is not None:
            self.out.append(_SAME)
            self._varint(seen)
            return
        if identity in self._unfinished:
            raise NotSerializable("a cycle that passes through a tuple or frozenset cannot be stored or sent")
        if depth >= MAX_DEPTH:
            raise NotSerializable(f"nested deeper than {MAX_DEPTH} levels")
        depth += 1
        if isinstance(value, tuple | frozenset):
            self._unfinished.add(identity)
            self._items(_TUPLE if isinstance(value, tuple) else _FROZENSET, value, depth)
            self._unfinished.remove(identity)
            self._seen[identity] = len(self._seen)
            return
        self._seen[identity] = len(self._seen)
        if isinstance(value, dict):
            self.out.append(_DICT)
            self._varint(len(value))
            for key, item in value.items():
                self.write(key, depth)
                self.write(item, depth)
        else:
            assert isinstance(value, list | set)
            self._items(_LIST if isinstance(value, list) else _SET, value, depth)

    def _items(
        self, tag: int, items: list[object] | set[object] | tuple[object, ...] | frozenset[object], depth: int
    ) -> None:
        self.out.append(tag)
        self._varint(len(items))
        for item in items:
            self.write(item, depth)

    def _int(self, value: int) -> None:
        # Sign in the lowest bit, as many bytes as it takes.
        self.out.append(_INT)
        self._varint(value << 1 if value >= 0 else (-value << 1) - 1)

    def _datetime(self, value: datetime) -> None:
        offset = value.utcoffset()
        flags = value.fold | (0 if offset is None else 2)
        self.out.append(_DATETIME)
        self.out.append(flags)
        self._varint((value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND)
        if offset is not None:
            self._int(offset // _MICROSECOND)

    def _text(self, text: str) -> None:
        self._blob(_STR, text.encode("utf-8", "surrogatepass"))

    def _blob(self, tag: int, data: bytes) -> None:
        self.out.append(tag)
        self._varint(len(data))
        self.out += data

    def _varint(self, value: int) -> None:
        out = self.out
        if value < 0x80:
            out.append(value)
        elif value < 1 << 63:
            while value >= 0x80:
                out.append(value & 0x7F | 0x80)
                value >>= 7
            out.append(value)
        else:
            # Shifting a number of megabytes seven bits at a time would be quadratic: 0xFF, length in bytes, bytes.
            raw = value.to_bytes((value.bit_length() + 7) // 8, "little")
            out += b"\xff" * 9
            self._varint(len(raw))
            out += raw


class _Decoder:
    def __init__(self, data: bytes, resolve: Resolve | None) -> None:
        self.at = 1
        self._data = data
        self._resolve = resolve
        self._seen: list[object] = []

    def read(self, depth: int) -> object:
        tag = self._byte()
        if tag == _STR:
            return self._str()
        if tag == _INT:
            return self._int()
        if tag == _NONE:
            return None
        if tag == _TRUE:
            return True
        if tag == _FALSE:
            return False
        if tag == _BYTES:
            return self._take(self._varint())
        if tag == _FLOAT:
            return _DOUBLE.unpack(self._take(8))[0]
        if tag == _DATETIME:
            return self._datetime()
        if tag == _SAME:
            number = self._varint()
            if number >= len(self._seen):
                raise DecodeError("reference to an item that has not come yet")
            return self._seen[number]
        if tag == _REFERENCE:
            number = self._varint()
            if self._resolve is None:
                raise DecodeError("references are not allowed here")
            return self._resolve(number)
        if tag == _ERROR:
            return self._error()
        return self._container(tag, depth)

    def _container(self, tag: int, depth: int) -> object:
        if depth >= MAX_DEPTH:
            raise DecodeError(f"nested deeper than {MAX_DEPTH} levels")
        depth += 1
        count = self._varint()
        if count > len(self._data) - self.at:
            raise DecodeError("more items announced than bytes left")
        if tag == _LIST:
            items: list[object] = []
            self._seen.append(items)
            items.extend(self._items(count, depth))
            return items
        if tag == _DICT:
            mapping: dict[object, object] = {}
            self._seen.append(mapping)
            for _ in range(count):
                key = self._hashable(self.read(depth))
                mapping[key] = self.read(depth)
            return mapping
        if tag == _SET:
            members: set[object] = set()
            self._seen.append(members)
            for item in self._items(count, depth):
                members.add(self._hashable(item))
            return members
        if tag == _TUPLE:
            row = tuple(self._items(count, depth))
            self._seen.append(row)
            return row
        if tag == _FROZENSET:
            frozen = frozenset(self._hashable(item) for item in self._items(count, depth))
            self._seen.append(frozen)
            return frozen
        raise DecodeError(f"unknown tag {tag:#04x}")

    def _items(self, count: int, depth: int) -> Iterator[object]:
        for _ in range(count):
            yield self.read(depth)

    @staticmethod
    def _hashable(value: object) -> object:
        try:
            hash(value)
        except TypeError:
            raise DecodeError(f"a {type(value).__name__} as a key or member of a set") from None
        return value

    def _int(self) -> int:
        raw = self._varint()
        return -(raw + 1 >> 1) if raw & 1 else raw >> 1

    def _str(self) -> str:
        try:
            return self._take(self._varint()).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise DecodeError("text is not UTF-8") from None

    def _datetime(self) -> datetime:
        flags = self._byte()
        if flags > 3:
            raise DecodeError("unknown flags of a datetime")
        try:
            value = _EPOCH + timedelta(microseconds=self._varint())
            if flags & 2:
                if self._byte() != _INT:
                    raise DecodeError("a datetime's offset must be a number")
                value = value.replace(tzinfo=timezone(timedelta(microseconds=self._int())))
            return value.replace(fold=flags & 1)
        except (OverflowError, ValueError) as error:
            raise DecodeError(f"datetime out of range: {error}") from None

    def _error(self) -> Exception:
        if self._byte() != _STR:
            raise DecodeError("an error's type must be text")
        name = self._str()
        if self._byte() != _STR:
            raise DecodeError("an error's message must be text")
        return rebuild_error(name, self._str())

    def _varint(self) -> int:
        value = self._short_varint()
        return value if value >= 0 else int.from_bytes(self._take(self._short_varint()), "little")

    def _short_varint(self) -> int:
        """Return a number below 2^63, or -1 where the mark of a longer one stands."""
        value = shift = 0
        for _ in range(9):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        if value != (1 << 63) - 1:
            raise DecodeError("a number runs over nine bytes")
        return -1

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise DecodeError("cut short")
        self.at += 1
        return self._data[self.at - 1]

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self.at:
            raise DecodeError("cut short")
        self.at += count
        return self._data[self.at - count : self.at]
