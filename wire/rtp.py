"""RTP packets: fixed header, CSRCs, header extensions, padding (RFC 3550 §5.1, RFC 8285).

Bytes to values and back. Which extension id means what is the session's business (`a=extmap`), as is whether a payload
type or SSRC is known; sequence numbers and timestamps stay as they are on the wire.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |V=2|P|X|  CC   |M|     PT      |       sequence number         |
    |                           timestamp                           |
    |                             SSRC                              |
    |                      CSRC (CC times 32 bit)                   |
    |  profile: 0xBEDE or 0x100_    |    extension length in words  |
    |  elements                                     | zero padding  |
    |  payload                                      | padding, count|
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from wire.errors import RtpError

HEADER_BYTES = 12

_ONE_BYTE_PROFILE = 0xBEDE
_TWO_BYTE_PROFILE = 0x1000  # its low four bits are "appbits", to be ignored (RFC 8285 §4.3)

_FIXED = struct.Struct("!BBHII")
_EXTENSION = struct.Struct("!HH")
_WORD = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class HeaderExtension:
    """One element: the wire's `id` (1..14 in the one-byte form, 1..255 in the two-byte form) and its data."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One packet. `payload` is without padding; `padding_bytes` counts the count byte too, 0 for none."""

    payload_type: int
    seq: int
    timestamp: int
    ssrc: int
    payload: bytes = b""
    marker: bool = False
    csrcs: tuple[int, ...] = ()
    extensions: tuple[HeaderExtension, ...] = ()
    padding_bytes: int = 0

    def extension(self, extension_id: int) -> bytes | None:
        """The data of the element with this id, or None."""
        for element in self.extensions:
            if element.id == extension_id:
                return element.data
        return None

    def serialize(self) -> bytes:
        """The packet as bytes.

        Raises:
            RtpError: a field does not fit its place in the header.
        """
        if not 0 <= self.payload_type <= 127:
            raise RtpError(f"payload type {self.payload_type} is not 0..127")
        if len(self.csrcs) > 15:
            raise RtpError(f"{len(self.csrcs)} CSRCs, 15 fit")
        if not 0 <= self.padding_bytes <= 255:
            raise RtpError(f"padding of {self.padding_bytes} bytes, 255 fit")
        first = 2 << 6 | bool(self.padding_bytes) << 5 | bool(self.extensions) << 4 | len(self.csrcs)
        second = self.marker << 7 | self.payload_type
        try:
            parts = [_FIXED.pack(first, second, self.seq, self.timestamp, self.ssrc)]
            parts += [_WORD.pack(csrc) for csrc in self.csrcs]
        except struct.error as error:
            raise RtpError(f"a header field is out of range: {error}") from None
        if self.extensions:
            parts.append(serialize_extensions(self.extensions))
        parts.append(self.payload)
        if self.padding_bytes:
            parts.append(bytes(self.padding_bytes - 1) + bytes([self.padding_bytes]))
        return b"".join(parts)


def parse(data: bytes) -> RtpPacket:
    """Read one packet.

    A broken extension block loses the elements from the broken one on, never the packet (RX-4).

    Args:
        data: a whole datagram, decrypted.

    Raises:
        RtpError: version, CSRC count, extension length or padding do not agree with the size (RX-1).
    """
    if len(data) < HEADER_BYTES:
        raise RtpError(f"{len(data)} bytes, a header has {HEADER_BYTES}")
    first, second, seq, timestamp, ssrc = _FIXED.unpack_from(data)
    if first >> 6 != 2:
        raise RtpError(f"version {first >> 6}")
    position = HEADER_BYTES + 4 * (first & 0x0F)
    if position > len(data):
        raise RtpError(f"{first & 0x0F} CSRCs run past the end")
    csrcs = tuple(_WORD.unpack_from(data, at)[0] for at in range(HEADER_BYTES, position, 4))

    extensions: tuple[HeaderExtension, ...] = ()
    if first & 0x10:
        if position + _EXTENSION.size > len(data):
            raise RtpError("the extension header runs past the end")
        profile, words = _EXTENSION.unpack_from(data, position)
        start = position + _EXTENSION.size
        position = start + 4 * words
        if position > len(data):
            raise RtpError(f"an extension of {words} words runs past the end")
        extensions = parse_extensions(profile, data[start:position])

    padding_bytes = 0
    if first & 0x20:
        padding_bytes = data[-1] if position < len(data) else 0
        if not 1 <= padding_bytes <= len(data) - position:
            raise RtpError(f"padding of {padding_bytes} bytes in {len(data) - position}")
    return RtpPacket(
        payload_type=second & 0x7F,
        seq=seq,
        timestamp=timestamp,
        ssrc=ssrc,
        payload=data[position : len(data) - padding_bytes],
        marker=second >= 0x80,
        csrcs=csrcs,
        extensions=extensions,
        padding_bytes=padding_bytes,
    )


def parse_extensions(profile: int, block: bytes) -> tuple[HeaderExtension, ...]:
    """The elements of an extension block, in order; of an id given twice the first counts.

    Reading ends quietly at the first element that is broken or reserved (RFC 8285 §4.2: id 15, or id 0 with a length).
    Blocks of other profiles than RFC 8285's have no elements.
    """
    if profile == _ONE_BYTE_PROFILE:
        elements = _one_byte_elements(block)
    elif profile & 0xFFF0 == _TWO_BYTE_PROFILE:
        elements = _two_byte_elements(block)
    else:
        return ()
    return tuple(HeaderExtension(element_id, data) for element_id, data in elements.items())


def _one_byte_elements(block: bytes) -> dict[int, bytes]:
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(block):
        head = block[position]
        position += 1
        if head == 0:
            continue
        element_id, length = head >> 4, (head & 0x0F) + 1
        if element_id in (0, 15) or position + length > len(block):
            break
        elements.setdefault(element_id, block[position : position + length])
        position += length
    return elements


def _two_byte_elements(block: bytes) -> dict[int, bytes]:
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(block):
        element_id = block[position]
        position += 1
        if element_id == 0:
            continue
        if position == len(block) or position + 1 + block[position] > len(block):
            break
        length = block[position]
        position += 1
        elements.setdefault(element_id, block[position : position + length])
        position += length
    return elements


def serialize_extensions(elements: Sequence[HeaderExtension]) -> bytes:
    """An extension block with its profile and length: the one-byte form where every element fits it.

    Raises:
        RtpError: an id is not 1..255, or an element or the whole is too long.
    """
    if any(not 1 <= element.id <= 255 for element in elements):
        raise RtpError("an extension id is not 1..255")
    if any(len(element.data) > 255 for element in elements):
        raise RtpError("an extension element is longer than 255 bytes")
    if all(element.id <= 14 and 1 <= len(element.data) <= 16 for element in elements):
        profile = _ONE_BYTE_PROFILE
        block = b"".join(bytes([element.id << 4 | len(element.data) - 1]) + element.data for element in elements)
    else:
        profile = _TWO_BYTE_PROFILE
        block = b"".join(bytes([element.id, len(element.data)]) + element.data for element in elements)
    words = -(-len(block) // 4)
    if words > 0xFFFF:
        raise RtpError(f"extensions of {len(block)} bytes")
    return _EXTENSION.pack(profile, words) + block.ljust(4 * words, b"\0")
