"""RTCP: reports, source descriptions and feedback (RFC 3550 §6, 3611, 4585, 5104, REMB).

Bytes to values and back; `parse` takes a whole compound (or, RFC 5506, a single packet). It is tolerant (RTCP-5):
packets of other types and broken packets are passed over by their length, what is whole is returned. Intervals,
statistics and round trips are the business of those who send and receive. Transport-wide feedback has a module of its
own, `wire.transport_cc`, and is parsed from here.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |V=2|P|count/FMT|  packet type  |   length in words, minus one  |
    |  body                                                         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from wire.errors import RtcpError
from wire.transport_cc import TransportFeedback

NACK_ITEMS_MAX = 253
"""Items of one NACK packet, so that it fits one datagram (NACK-4)."""

_HEADER = struct.Struct("!BBH")
_WORD = struct.Struct("!I")
_TWO_WORDS = struct.Struct("!II")
_SENDER_INFO = struct.Struct("!IQIII")
_REPORT_BLOCK = struct.Struct("!IIIIII")
_NACK_ITEM = struct.Struct("!HH")
_FIR_ENTRY = struct.Struct("!IB3x")
_XR_BLOCK = struct.Struct("!BxH")
_DLRR_ITEM = struct.Struct("!III")

_CNAME = 1
_RRTR, _DLRR = 4, 5
_BITRATE_MAX_BPS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """Reception of one source (RFC 3550 §6.4.1)."""

    ssrc: int
    fraction_lost: int
    """Of the last interval, in 1/256."""
    cumulative_lost: int
    """Signed: duplicates make it negative. Clamped to 24 bits when serialized, never wrapped (RTCP-4)."""
    highest_seq: int
    """Extended: cycles in the upper half."""
    jitter_ticks: int = 0
    last_sr: int = 0
    """Middle 32 bits of the NTP time of the last sender report, 0 for none."""
    delay_since_last_sr: int = 0
    """In 1/65536 s."""

    def _serialize(self) -> bytes:
        lost = max(-0x800000, min(0x7FFFFF, self.cumulative_lost)) & 0xFFFFFF
        return _REPORT_BLOCK.pack(
            self.ssrc,
            self.fraction_lost << 24 | lost,
            self.highest_seq,
            self.jitter_ticks,
            self.last_sr,
            self.delay_since_last_sr,
        )


@dataclass(frozen=True, slots=True)
class SenderReport:
    """SR (RFC 3550 §6.4.1). `ntp` is the 64-bit NTP time at which the media clock showed `rtp_timestamp`."""

    ssrc: int
    ntp: int
    rtp_timestamp: int
    packet_count: int
    octet_count: int
    reports: tuple[ReportBlock, ...] = ()

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            info = _SENDER_INFO.pack(self.ssrc, self.ntp, self.rtp_timestamp, self.packet_count, self.octet_count)
            return _packet(200, len(self.reports), info + b"".join(r._serialize() for r in self.reports))


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    """RR (RFC 3550 §6.4.2)."""

    ssrc: int
    reports: tuple[ReportBlock, ...] = ()

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            return _packet(
                201, len(self.reports), _WORD.pack(self.ssrc) + b"".join(r._serialize() for r in self.reports)
            )


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """SDES (RFC 3550 §6.5): per chunk an SSRC and its (type, text) items."""

    chunks: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]

    @classmethod
    def of_cname(cls, ssrc: int, cname: str) -> SourceDescription:
        """The one chunk that each compound needs."""
        return cls(((ssrc, ((_CNAME, cname.encode()),)),))

    def cname(self, ssrc: int) -> str | None:
        """The canonical name given for `ssrc`."""
        for chunk_ssrc, items in self.chunks:
            for item_type, text in items:
                if chunk_ssrc == ssrc and item_type == _CNAME:
                    return text.decode(errors="replace")
        return None

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            body = b""
            for ssrc, items in self.chunks:
                chunk = _WORD.pack(ssrc) + b"".join(bytes([kind, len(text)]) + text for kind, text in items)
                body += _pad_to_word(chunk + b"\0")
            return _packet(202, len(self.chunks), body)


@dataclass(frozen=True, slots=True)
class Bye:
    """BYE (RFC 3550 §6.6): these sources have ended."""

    ssrcs: tuple[int, ...]
    reason: bytes = b""

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            reason = _pad_to_word(bytes([len(self.reason)]) + self.reason) if self.reason else b""
            return _packet(203, len(self.ssrcs), b"".join(map(_WORD.pack, self.ssrcs)) + reason)


@dataclass(frozen=True, slots=True)
class Nack:
    """Generic NACK (RFC 4585 §6.2.1): the 16-bit `seqs` are missing. Their order is not kept on the wire."""

    sender_ssrc: int
    media_ssrc: int
    seqs: tuple[int, ...]

    def serialize(self) -> bytes:
        """Pack each seq with the 16 that follow it. Ascending (over the wrap) `seqs` pack best.

        Raises:
            RtcpError: more than 253 items, or a field out of range.
        """
        items: list[tuple[int, int]] = []
        for seq in self.seqs:
            distance = (seq - items[-1][0]) & 0xFFFF if items else 0
            if items and 1 <= distance <= 16:
                items[-1] = (items[-1][0], items[-1][1] | 1 << (distance - 1))
            else:
                items.append((seq, 0))
        if len(items) > NACK_ITEMS_MAX:
            raise RtcpError(f"{len(items)} NACK items, {NACK_ITEMS_MAX} fit")
        with _ranges_checked():
            body = _TWO_WORDS.pack(self.sender_ssrc, self.media_ssrc)
            return _packet(205, 1, body + b"".join(_NACK_ITEM.pack(*item) for item in items))


@dataclass(frozen=True, slots=True)
class PictureLossIndication:
    """PLI (RFC 4585 §6.3.1): send a key frame."""

    sender_ssrc: int
    media_ssrc: int

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            return _packet(206, 1, _TWO_WORDS.pack(self.sender_ssrc, self.media_ssrc))


@dataclass(frozen=True, slots=True)
class FullIntraRequest:
    """FIR (RFC 5104 §4.3.1): (media ssrc, 8-bit command number) entries; the same number is the same request."""

    sender_ssrc: int
    entries: tuple[tuple[int, int], ...]

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            body = _TWO_WORDS.pack(self.sender_ssrc, 0)
            return _packet(206, 4, body + b"".join(_FIR_ENTRY.pack(*entry) for entry in self.entries))


@dataclass(frozen=True, slots=True)
class ReceiverEstimatedMaxBitrate:
    """REMB (draft-alvestrand-rmcat-remb-03): the sum over `ssrcs` that the receiver's link takes."""

    sender_ssrc: int
    bitrate_bps: int
    """Up to 2^63 - 1; serializing keeps 18 significant bits, rounded down."""
    ssrcs: tuple[int, ...]

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        if not 0 <= self.bitrate_bps <= _BITRATE_MAX_BPS:
            raise RtcpError(f"a bitrate of {self.bitrate_bps} bit/s")
        exponent = max(0, self.bitrate_bps.bit_length() - 18)
        with _ranges_checked():
            body = _TWO_WORDS.pack(self.sender_ssrc, 0) + b"REMB"
            body += _WORD.pack(len(self.ssrcs) << 24 | exponent << 18 | self.bitrate_bps >> exponent)
            return _packet(206, 15, body + b"".join(map(_WORD.pack, self.ssrcs)))


@dataclass(frozen=True, slots=True)
class LastReceiverReport:
    """One item of a DLRR block (RFC 3611 §4.5): the answer to a reference time."""

    ssrc: int
    last_rr: int
    """Middle 32 bits of the reference time."""
    delay_since_last_rr: int
    """In 1/65536 s."""


@dataclass(frozen=True, slots=True)
class ExtendedReport:
    """XR (RFC 3611) as far as round trips need it: RRTR (`reference_time`, 64-bit NTP) and DLRR."""

    ssrc: int
    reference_time: int | None = None
    answers: tuple[LastReceiverReport, ...] = ()

    def serialize(self) -> bytes:
        """Raises `RtcpError` when a field is out of range."""
        with _ranges_checked():
            body = _WORD.pack(self.ssrc)
            if self.reference_time is not None:
                body += _XR_BLOCK.pack(_RRTR, 2) + self.reference_time.to_bytes(8)
            if self.answers:
                body += _XR_BLOCK.pack(_DLRR, 3 * len(self.answers))
                body += b"".join(_DLRR_ITEM.pack(a.ssrc, a.last_rr, a.delay_since_last_rr) for a in self.answers)
            return _packet(207, 0, body)


RtcpPacket = (
    SenderReport
    | ReceiverReport
    | SourceDescription
    | Bye
    | Nack
    | PictureLossIndication
    | FullIntraRequest
    | ReceiverEstimatedMaxBitrate
    | TransportFeedback
    | ExtendedReport
)


def serialize(packets: Iterable[RtcpPacket]) -> bytes:
    """A compound of `packets`, in their order."""
    return b"".join(packet.serialize() for packet in packets)


def parse(data: bytes) -> tuple[RtcpPacket, ...]:
    """Read the packets of a compound, passing over unknown and broken ones (RTCP-5).

    Args:
        data: a whole datagram, decrypted.

    Raises:
        RtcpError: not even the first header holds: too short, not version 2, or a length past the end.
    """
    if not data:
        raise RtcpError("empty")
    packets: list[RtcpPacket] = []
    position = 0
    while position < len(data):
        try:
            packet_type, count, body, position = _frame(data, position)
        except RtcpError:
            if position == 0:
                raise
            break
        with suppress(RtcpError):
            packets += _parse_body(packet_type, count, body)
    return tuple(packets)


def _frame(data: bytes, position: int) -> tuple[int, int, bytes | None, int]:
    """Type, count or FMT, body (None when its padding is wrong) and where the next packet begins."""
    if position + _HEADER.size > len(data):
        raise RtcpError(f"{len(data) - position} bytes, a header has {_HEADER.size}")
    first, packet_type, words = _HEADER.unpack_from(data, position)
    start, end = position + _HEADER.size, position + _HEADER.size + 4 * words
    if first >> 6 != 2:
        raise RtcpError(f"version {first >> 6}")
    if end > len(data):
        raise RtcpError(f"a length of {words} words runs past the end")
    body: bytes | None = data[start:end]
    if first & 0x20:
        padding_bytes = data[end - 1]
        # RFC 3550 wants a multiple of four here; libwebrtc pads transport-wide feedback by one to three bytes.
        body = data[start : end - padding_bytes] if 1 <= padding_bytes <= end - start else None
    return packet_type, first & 0x1F, body, end


def _parse_body(packet_type: int, count: int, body: bytes | None) -> Iterator[RtcpPacket]:
    """The packet of this type, or nothing when the type is not one of ours."""
    if body is None:
        raise RtcpError("wrong padding")
    match packet_type, count:
        case 200, _:
            yield _parse_sender_report(count, body)
        case 201, _:
            _need(body, 4)
            yield ReceiverReport(_WORD.unpack_from(body)[0], _parse_reports(count, body[4:]))
        case 202, _:
            yield _parse_source_description(count, body)
        case 203, _:
            _need(body, 4 * count)
            reason = body[4 * count :]
            text = reason[1 : 1 + reason[0]] if reason else b""
            yield Bye(tuple(_words(body[: 4 * count])), text)
        case 205, 1:
            sender_ssrc, media_ssrc = _parse_feedback_head(body)
            yield Nack(sender_ssrc, media_ssrc, tuple(_nacked_seqs(body[8:])))
        case 205, 15:
            sender_ssrc, media_ssrc = _parse_feedback_head(body)
            yield TransportFeedback.parse(sender_ssrc, media_ssrc, body[8:])
        case 206, 1:
            yield PictureLossIndication(*_parse_feedback_head(body))
        case 206, 4:
            sender_ssrc, _ = _parse_feedback_head(body)
            yield FullIntraRequest(sender_ssrc, tuple(_whole_items(_FIR_ENTRY, body[8:])))
        case 206, 15 if body[8:12] == b"REMB":
            yield _parse_bitrate(body)
        case 207, _:
            yield _parse_extended_report(body)


def _parse_sender_report(count: int, body: bytes) -> SenderReport:
    _need(body, _SENDER_INFO.size)
    ssrc, ntp, rtp_timestamp, packets, octets = _SENDER_INFO.unpack_from(body)
    return SenderReport(ssrc, ntp, rtp_timestamp, packets, octets, _parse_reports(count, body[_SENDER_INFO.size :]))


def _parse_reports(count: int, blocks: bytes) -> tuple[ReportBlock, ...]:
    _need(blocks, count * _REPORT_BLOCK.size)
    reports = []
    for ssrc, loss, highest_seq, jitter, last_sr, delay in _REPORT_BLOCK.iter_unpack(
        blocks[: count * _REPORT_BLOCK.size]
    ):
        lost = loss & 0xFFFFFF
        lost -= (lost & 0x800000) << 1
        reports.append(ReportBlock(ssrc, loss >> 24, lost, highest_seq, jitter, last_sr, delay))
    return tuple(reports)


def _parse_source_description(count: int, body: bytes) -> SourceDescription:
    chunks = []
    position = 0
    for _ in range(count):
        _need(body, position + 4)
        ssrc = _WORD.unpack_from(body, position)[0]
        position += 4
        items: list[tuple[int, bytes]] = []
        while position < len(body) and body[position]:
            _need(body, position + 2)
            end = position + 2 + body[position + 1]
            _need(body, end)
            items.append((body[position], body[position + 2 : end]))
            position = end
        position = (position // 4 + 1) * 4  # at least one zero byte ends the items, more fill the word
        chunks.append((ssrc, tuple(items)))
    return SourceDescription(tuple(chunks))


def _nacked_seqs(items: bytes) -> Iterator[int]:
    for seq, following in _whole_items(_NACK_ITEM, items):
        yield seq
        yield from ((seq + 1 + bit) & 0xFFFF for bit in range(16) if following >> bit & 1)


def _parse_bitrate(body: bytes) -> ReceiverEstimatedMaxBitrate:
    _need(body, 16)
    sender_ssrc, _ = _parse_feedback_head(body)
    (word,) = _WORD.unpack_from(body, 12)
    bitrate_bps = min((word & 0x3FFFF) << (word >> 18 & 0x3F), _BITRATE_MAX_BPS)
    _need(body, 16 + 4 * (word >> 24))
    return ReceiverEstimatedMaxBitrate(sender_ssrc, bitrate_bps, tuple(_words(body[16 : 16 + 4 * (word >> 24)])))


def _parse_extended_report(body: bytes) -> ExtendedReport:
    _need(body, 4)
    reference_time: int | None = None
    answers: list[LastReceiverReport] = []
    position = 4
    while position + _XR_BLOCK.size <= len(body):
        block_type, words = _XR_BLOCK.unpack_from(body, position)
        start, position = position + 4, position + 4 + 4 * words
        _need(body, position)
        if block_type == _RRTR and words == 2:
            reference_time = int.from_bytes(body[start:position])
        elif block_type == _DLRR and words % 3 == 0:
            answers += (LastReceiverReport(*item) for item in _DLRR_ITEM.iter_unpack(body[start:position]))
    return ExtendedReport(_WORD.unpack_from(body)[0], reference_time, tuple(answers))


def _parse_feedback_head(body: bytes) -> tuple[int, int]:
    _need(body, 8)
    sender_ssrc, media_ssrc = _TWO_WORDS.unpack_from(body)
    return sender_ssrc, media_ssrc


def _whole_items(item: struct.Struct, data: bytes) -> Iterator[tuple[int, int]]:
    return item.iter_unpack(data[: len(data) - len(data) % item.size])


def _words(data: bytes) -> Iterator[int]:
    return (word for (word,) in _WORD.iter_unpack(data))


def _need(body: bytes, size: int) -> None:
    if len(body) < size:
        raise RtcpError(f"{len(body)} bytes where {size} are claimed")


def _packet(packet_type: int, count: int, body: bytes) -> bytes:
    if count > 31:
        raise RtcpError(f"a count of {count}, 31 fit")
    return _HEADER.pack(2 << 6 | count, packet_type, len(body) // 4) + body


def _pad_to_word(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@contextmanager
def _ranges_checked() -> Iterator[None]:
    """Turn the errors of packing a value that does not fit into ours."""
    try:
        yield
    except RtcpError:
        raise
    except (struct.error, OverflowError, ValueError) as error:
        raise RtcpError(f"a field is out of range: {error}") from None
