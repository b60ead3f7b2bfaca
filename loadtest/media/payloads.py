"""Encoded frames to RTP payloads and back: VP8 (RFC 7741), H.264 (RFC 6184), Opus (RFC 7587).

One payload of each frame has room for the sender's clock, where no server and no decoder looks: VP8 reads nothing
behind its last partition, H.264 skips unknown SEI messages (Annex D), and an Opus decoder accepts any padding (RFC
6716 §3.2.5). The room is `TAIL_BYTES` at the end of a payload whose `clock` is set: `MAGIC`, nine bytes of seven
bits each with the top bit set (so that H.264 needs no emulation prevention), and 0x80, which for H.264 is the end
of the NAL unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PAYLOAD_BYTES_MAX: Final = 1100
"""With header, extensions, RTX and SRTP well below the 1200 bytes that WebRTC assumes a path to carry."""

MAGIC: Final = b"\xf1tORp\x97"
TAIL_BYTES: Final = len(MAGIC) + 9 + 1
BLANK_TAIL: Final = MAGIC + b"\x80" * 9 + b"\x80"

_START_CODE = re.compile(rb"\x00\x00\x00?\x01")
_FU_A, _STAP_A, _SEI, _AUD = 28, 24, 6, 9
_USER_DATA = 5  # SEI payload type user_data_unregistered, which begins with a UUID
_UUID_START = b"torpor-clk"


@dataclass(frozen=True, slots=True)
class Payload:
    """What one RTP packet carries."""

    data: bytes
    clock: bool = False
    """Whether the last `TAIL_BYTES` are room for the sender's clock."""


def pack_clock(time_us: int) -> bytes:
    """The tail that carries `time_us` (63 bits)."""
    return MAGIC + bytes(0x80 | time_us >> 7 * (8 - i) & 0x7F for i in range(9)) + b"\x80"


def unpack_clock(payload: bytes) -> int | None:
    """The clock at the end of a payload, or None."""
    tail = payload[-TAIL_BYTES:]
    if len(tail) < TAIL_BYTES or not tail.startswith(MAGIC):
        return None
    value = 0
    for byte in tail[len(MAGIC) : -1]:
        value = value << 7 | byte & 0x7F
    return value


def packetize_vp8(frame: bytes) -> list[Payload]:
    """Equal parts, each behind a descriptor with a 15-bit PictureID of 0 that the sender fills in (bytes 2 and 3)."""
    parts = list(_split(frame + BLANK_TAIL, PAYLOAD_BYTES_MAX - 4))
    # §4.2: X=1 and, on the first packet, S=1 of partition 0; then I=1; then the PictureID with M=1.
    return [
        Payload((b"\x90" if i == 0 else b"\x80") + b"\x80\x80\x00" + part, clock=i == len(parts) - 1)
        for i, part in enumerate(parts)
    ]


def packetize_h264(access_unit: bytes) -> list[Payload]:
    """Parameter sets together as STAP-A, an SEI with the clock, then the slices, as FU-A where too large (mode 1)."""
    units = [unit for unit in split_annex_b(access_unit) if unit[0] & 31 != _AUD]
    leading = [unit for unit in units if unit[0] & 31 in (7, 8)]
    payloads = []
    if leading:
        payloads.append(Payload(bytes([0x60 | _STAP_A]) + b"".join(len(u).to_bytes(2, "big") + u for u in leading)))
    uuid_and_clock = _UUID_START + BLANK_TAIL[:-1]
    sei = bytes([_SEI, _USER_DATA, len(uuid_and_clock)]) + uuid_and_clock + BLANK_TAIL[-1:]
    payloads.append(Payload(sei, clock=True))
    for unit in units:
        if unit[0] & 31 in (7, 8, _SEI):
            continue
        if len(unit) <= PAYLOAD_BYTES_MAX:
            payloads.append(Payload(unit))
            continue
        parts = list(_split(unit[1:], PAYLOAD_BYTES_MAX - 2))
        for i, part in enumerate(parts):
            header = unit[0] & 31 | (0x80 if i == 0 else 0) | (0x40 if i == len(parts) - 1 else 0)
            payloads.append(Payload(bytes([unit[0] & 0xE0 | _FU_A, header]) + part))
    return payloads


def packetize_opus(packet: bytes) -> list[Payload]:
    """One packet, rewritten as code 3 with the clock as padding (RFC 6716 §3.2.5).

    Raises:
        ValueError: not of code 0; our encoder makes no other.
    """
    if packet[0] & 3:
        raise ValueError("an Opus packet of several frames")
    return [Payload(bytes([packet[0] | 3, 0x41, TAIL_BYTES]) + packet[1:] + BLANK_TAIL, clock=True)]


def assemble_vp8(payloads: Sequence[bytes]) -> bytes:
    """The frame that whole, ordered payloads make; any descriptor of RFC 7741 §4.2. The clock's tail stays on it.

    Raises:
        ValueError: a payload too short for its descriptor.
    """
    frame = b""
    for payload in payloads:
        try:
            size = 1
            if payload[0] & 0x80:
                size, flags = 2, payload[1]
                if flags & 0x80:
                    size += 2 if payload[size] & 0x80 else 1
                size += bool(flags & 0x40) + bool(flags & 0x30)
        except IndexError:
            raise ValueError("VP8 descriptor cut short") from None
        frame += payload[size:]
    return frame


def assemble_h264(payloads: Sequence[bytes]) -> bytes:
    """The access unit that whole, ordered payloads make, in Annex B form.

    Raises:
        ValueError: a payload cut short, or of another packetization mode.
    """
    units: list[bytes] = []
    for payload in payloads:
        kind = payload[0] & 31 if payload else 0
        if 1 <= kind <= 23:
            units.append(payload)
        elif kind == _STAP_A:
            at = 1
            while at + 2 <= len(payload):
                size = int.from_bytes(payload[at : at + 2], "big")
                units.append(payload[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == _FU_A and len(payload) > 2:
            if payload[1] & 0x80:
                units.append(bytes([payload[0] & 0xE0 | payload[1] & 31]))
            if not units:
                raise ValueError("FU-A without its start")
            units[-1] += payload[2:]
        else:
            raise ValueError(f"H.264 payload of type {kind}")
    return b"".join(b"\x00\x00\x00\x01" + unit for unit in units)


def split_annex_b(access_unit: bytes) -> list[bytes]:
    """The NAL units between the start codes, trailing zeros taken off."""
    return [unit.rstrip(b"\x00") for unit in _START_CODE.split(access_unit) if unit.strip(b"\x00")]


def _split(data: bytes, size_max: int) -> Iterator[bytes]:
    """Parts of one size (the last may be shorter): the kernel sends those as one train."""
    count = -(-len(data) // size_max)
    size = -(-len(data) // count)
    for start in range(0, len(data), size):
        yield data[start : start + size]
