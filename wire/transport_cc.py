"""Transport-wide feedback: which packets of a transport arrived, and when (draft-holmer-rmcat-transport-wide-cc-01).

RTCP type 205, FMT 15. All arrival times in one packet hang on its reference time: a packet's time is that of the one
before plus a delta in ticks of 250 µs, so neighbours may lie at most ±8.19 s apart.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |      base sequence number     |      packet status count      |
    |     reference time, signed, in 64 ms          | feedback count|
    |  chunks: 0 SS LLLLLLLLLLLLL (run) or 1 0 S*14 or 1 1 SS*7     |
    |  deltas: 8 bit unsigned or 16 bit signed      | zero padding  |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wire.errors import RtcpError

TICK_US = 250
"""Resolution of arrival times, in microseconds."""

_TICKS_PER_REFERENCE = 256  # 64 ms
_RUN_MAX = 0x1FFF
_ABSENT, _SMALL, _LARGE = 0, 1, 2

_HEAD = struct.Struct("!HHI")
_CHUNK = struct.Struct("!H")
_LARGE_DELTA = struct.Struct("!h")


@dataclass(frozen=True, slots=True)
class TransportFeedback:
    """One report on the packets `base_seq`, `base_seq` + 1 ... (16 bit, wrapping), `status_count` of them.

    Those named in `arrivals` came, the others did not. Its size is bounded by the bytes on the wire, whatever count
    they claim.
    """

    sender_ssrc: int
    media_ssrc: int
    base_seq: int
    status_count: int
    reference_time: int
    """Signed 24 bit, in units of 64 ms."""
    feedback_count: int
    """8 bit, one more for each report sent."""
    arrivals: tuple[tuple[int, int], ...]
    """(seq, ticks of 250 µs since the reference time) of each packet that arrived, in the order of `base_seq` on."""

    @property
    def lost(self) -> tuple[int, ...]:
        """The seqs reported as not arrived (they may be reported again)."""
        arrived = {seq for seq, _ in self.arrivals}
        seqs = ((self.base_seq + index) & 0xFFFF for index in range(self.status_count))
        return tuple(seq for seq in seqs if seq not in arrived)

    def arrival_us(self, ticks: int) -> int:
        """An element of `arrivals` in microseconds on the receiver's clock (which wraps after 12 days)."""
        return (self.reference_time * _TICKS_PER_REFERENCE + ticks) * TICK_US

    @classmethod
    def parse(cls, sender_ssrc: int, media_ssrc: int, control: bytes) -> TransportFeedback:
        """Read what follows the two SSRCs.

        Raises:
            RtcpError: chunks or deltas end early, a run of length zero, or a reserved symbol. Nothing is salvaged: a
                wrong delta would shift all later times.
        """
        if len(control) < _HEAD.size:
            raise RtcpError(f"{len(control)} bytes of transport-wide feedback")
        base_seq, status_count, word = _HEAD.unpack_from(control)
        position = _HEAD.size
        received: list[tuple[int, int]] = []  # index and symbol
        index = 0
        while index < status_count:
            if position + _CHUNK.size > len(control):
                raise RtcpError(f"chunks for {index} of {status_count} statuses")
            (chunk,) = _CHUNK.unpack_from(control, position)
            position += _CHUNK.size
            covered = _parse_chunk(chunk, index, status_count, received)
            # Each received packet needs a byte of delta: a short packet cannot make a long list.
            if not covered or len(received) > len(control) - position:
                raise RtcpError("chunks promise more than the packet holds")
            index += covered

        ticks = 0
        arrivals: list[tuple[int, int]] = []
        for index, symbol in received:
            size = symbol  # one byte for a small delta, two for a large one
            if position + size > len(control):
                raise RtcpError(f"deltas for {len(arrivals)} of {len(received)} packets")
            ticks += control[position] if symbol == _SMALL else _LARGE_DELTA.unpack_from(control, position)[0]
            position += size
            arrivals.append(((base_seq + index) & 0xFFFF, ticks))
        reference_time = (word >> 8) - ((word >> 31) << 24)
        return cls(sender_ssrc, media_ssrc, base_seq, status_count, reference_time, word & 0xFF, tuple(arrivals))

    def serialize(self) -> bytes:
        """The packet, RTCP header included.

        Raises:
            RtcpError: a delta beyond ±8.19 s (`build` splits there), or a field out of range.
        """
        symbols = [_ABSENT] * self.status_count
        deltas = bytearray()
        previous = 0
        try:
            for seq, ticks in self.arrivals:
                delta, previous = ticks - previous, ticks
                small = 0 <= delta <= 0xFF
                symbols[(seq - self.base_seq) & 0xFFFF] = _SMALL if small else _LARGE
                deltas += bytes([delta]) if small else _LARGE_DELTA.pack(delta)
            reference = (self.reference_time & 0xFFFFFF) << 8 | self.feedback_count
            control = _HEAD.pack(self.base_seq, self.status_count, reference)
            control += b"".join(map(_CHUNK.pack, _chunks(symbols))) + deltas
            control += bytes(-len(control) % 4)
            head = struct.pack("!BBHII", 2 << 6 | 15, 205, 2 + len(control) // 4, self.sender_ssrc, self.media_ssrc)
        except (struct.error, IndexError) as error:
            raise RtcpError(f"a field is out of range: {error}") from None
        return head + control


def build(
    sender_ssrc: int, media_ssrc: int, feedback_count: int, arrivals: Sequence[tuple[int, int]], *, base_seq: int
) -> list[TransportFeedback]:
    """Report `arrivals`, in as many packets as the spread of their times asks for (TCC-1).

    Args:
        feedback_count: that of the first packet; each further one counts one up.
        arrivals: (unwrapped seq, arrival in microseconds), ascending by seq, without duplicates; at least one.
        base_seq: unwrapped; first seq to report on, so that losses before the first arrival are told too. At most the
            first arrival's.
    """
    reports: list[TransportFeedback] = []
    base = base_seq
    start = 0
    while start < len(arrivals):
        reference_time = arrivals[start][1] // TICK_US // _TICKS_PER_REFERENCE
        times: list[tuple[int, int]] = []
        previous = 0
        for ext_seq, arrival_us in arrivals[start:]:
            ticks = arrival_us // TICK_US - reference_time * _TICKS_PER_REFERENCE
            if not -0x8000 <= ticks - previous <= 0x7FFF or ext_seq - base >= 0x8000:
                break
            times.append((ext_seq & 0xFFFF, ticks))
            previous = ticks
        if not times:  # a hole of half the seq space before the next arrival: nobody waits for what is below it
            base = arrivals[start][0]
            continue
        start += len(times)
        highest = arrivals[start - 1][0]
        reports.append(
            TransportFeedback(
                sender_ssrc,
                media_ssrc,
                base & 0xFFFF,
                highest - base + 1,
                _signed_24_bit(reference_time),
                (feedback_count + len(reports)) & 0xFF,
                tuple(times),
            )
        )
        base = highest + 1
    return reports


def _parse_chunk(chunk: int, index: int, status_count: int, received: list[tuple[int, int]]) -> int:
    """Append the (index, symbol) pairs of those received; return how many statuses the chunk covers."""
    if not chunk >> 15:
        symbol, length = chunk >> 13 & 3, chunk & _RUN_MAX
        symbols = [symbol] * min(length, status_count - index) if symbol else []
    elif chunk >> 14 & 1:
        symbols, length = [chunk >> shift & 3 for shift in range(12, -1, -2)], 7
    else:
        symbols, length = [chunk >> shift & 1 for shift in range(13, -1, -1)], 14
    for offset, symbol in enumerate(symbols[: status_count - index]):
        if symbol > _LARGE:
            raise RtcpError("reserved status symbol")
        if symbol != _ABSENT:
            received.append((index + offset, symbol))
    return length


def _chunks(symbols: Sequence[int]) -> Iterator[int]:
    """The status chunks: a run where it covers at least as much as a vector would, else the densest vector."""
    index = 0
    while index < len(symbols):
        symbol = symbols[index]
        run = 1
        while run < _RUN_MAX and index + run < len(symbols) and symbols[index + run] == symbol:
            run += 1
        window = symbols[index : index + 14]
        one_bit = _LARGE not in window
        if run >= (14 if one_bit else 7) or index + run == len(symbols):
            yield symbol << 13 | run
            index += run
        elif one_bit:
            yield 2 << 14 | sum(value << 13 - offset for offset, value in enumerate(window))
            index += 14
        else:
            yield 3 << 14 | sum(value << 12 - 2 * offset for offset, value in enumerate(window[:7]))
            index += 7


def _signed_24_bit(value: int) -> int:
    value &= 0xFFFFFF
    return value - 0x1000000 if value & 0x800000 else value
