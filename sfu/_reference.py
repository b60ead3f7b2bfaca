"""The socketless parts of the data plane in plain Python: the oracle that `_dataplane` is tested against.

The contract of each name is in `_dataplane/core.pyi`, the rule ids are the specification's. Here clearness goes before
speed, and memory is bounded only as far as the rules ask for it. Nothing in the product imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from wire import rtp, transport_cc
from wire.errors import RtpError
from wire.rtp import HeaderExtension

UNKNOWN, SUPPRESSED, PADDING = -1, -2, -3


class SequenceUnwrapper:
    """16-bit sequence numbers to 64 bit, after RFC 3550 A.1 without its probation (RX-2)."""

    def __init__(self, max_dropout: int = 3000, max_misorder: int = 1500) -> None:
        self._max_dropout = max_dropout
        self._max_misorder = max_misorder
        self._highest: int | None = None
        self._after_jump: int | None = None
        self._resynced = False

    def receive(self, seq: int) -> int:
        """The unwrapped number, or -1 for a packet that jumped."""
        if self._highest is None:
            self._highest = (1 << 16) + seq
            return self._highest
        ahead = (seq - self._highest) & 0xFFFF
        if ahead < self._max_dropout:
            self._highest += ahead
            return self._highest
        if ahead > (1 << 16) - self._max_misorder:
            return self._highest + ahead - (1 << 16)
        if seq != self._after_jump:
            self._after_jump = (seq + 1) & 0xFFFF
            return -1
        # A second one in a row: the source restarted. Going on in the next cycle keeps the numbers from coming back.
        self._highest = ((self._highest >> 16) + 1 << 16) + seq
        self._after_jump = None
        self._resynced = True
        return self._highest

    def take_resync(self) -> bool:
        """Whether the source restarted since asked last."""
        resynced, self._resynced = self._resynced, False
        return resynced


class SequenceMap:
    """What became of each of the last 2048 source numbers: an out number (given or reserved), or dropped (FWD-2)."""

    WINDOW = 2048

    def __init__(self, out_start: int) -> None:
        self._next_out = self._out_start = out_start
        self._highest: int | None = None
        self._outs: dict[int, int] = {}

    def map(self, ext_seq: int) -> int:
        """The out number of a packet to forward, or -1."""
        if self._highest is None:
            self._highest = ext_seq - 1
        if ext_seq > self._highest:
            self._reserve_through(ext_seq)
        return self._outs.get(ext_seq, -1)

    def drop(self, ext_seq: int) -> int:
        """Leave out a packet; -1, or the out number that a later packet's arrival has reserved for it."""
        if self._highest is None:
            return -1  # nothing went out: no hole to close
        if ext_seq > self._highest:
            self._reserve_through(ext_seq - 1)
            self._keep(ext_seq, -1)
        return self._outs.get(ext_seq, -1)

    def switch(self, ext_seq: int, skip: bool) -> None:
        """Go on with another source, whose first number is `ext_seq`."""
        self._outs.clear()
        self._highest = ext_seq - 1
        if skip and self._next_out != self._out_start:
            self._next_out += 1

    def _reserve_through(self, ext_seq: int) -> None:
        assert self._highest is not None
        for number in range(self._highest + 1, ext_seq + 1):
            self._keep(number, self._next_out)
            self._next_out += 1

    def _keep(self, ext_seq: int, out: int) -> None:
        self._outs[ext_seq] = out
        self._outs.pop(ext_seq - self.WINDOW, None)
        self._highest = ext_seq


class PacketCache:
    """Decrypted packets by number: of the last `slots` numbers, the last `bytes_max` bytes stored (CACHE-1)."""

    PACKET_BYTES_MAX = 1500

    def __init__(self, slots: int, bytes_max: int, age_max: float) -> None:
        self._slots = slots
        self._bytes_max = bytes_max
        self._age_max = age_max
        self._highest = -1
        self._bytes_stored = 0  # ever
        self._packets: dict[int, tuple[int, bytes, float]] = {}  # number to (bytes stored before it, packet, when)

    @property
    def bytes_used(self) -> int:
        """Bytes of the packets kept."""
        return sum(len(packet) for _, packet, _ in self._packets.values())

    def store(self, ext_seq: int, packet: bytes, now: float) -> bool:
        """Whether the packet was taken in."""
        if len(packet) > min(self.PACKET_BYTES_MAX, self._bytes_max):
            return False
        if ext_seq <= self._highest - self._slots or ext_seq in self._packets:
            return False
        self._packets[ext_seq] = (self._bytes_stored, packet, now)
        self._bytes_stored += len(packet)
        self._highest = max(self._highest, ext_seq)
        self._packets = {
            number: entry
            for number, entry in self._packets.items()
            if number > self._highest - self._slots and entry[0] >= self._bytes_stored - self._bytes_max
        }
        return True

    def fetch(self, ext_seq: int, now: float) -> bytes | None:
        """The packet, if it is there and no older than `age_max`."""
        _, packet, stored_at = self._packets.get(ext_seq, (0, None, 0.0))
        return packet if now - stored_at <= self._age_max else None


@dataclass
class _Missing:
    found_at: float
    asked_at: float = 0.0
    tries: int = 0


class LossDetector:
    """Which packets of a publisher's stream to ask for, and when (NACK-1, NACK-2, NACK-6, RTX-3)."""

    MISSING_MAX = 1000
    GAP_MAX = 10_000

    def __init__(self, *, video: bool, first_delay: float = 0.005) -> None:
        self._tries_max = 10 if video else 5
        self._age_max = 2.0 if video else 0.2
        self._first_delay = first_delay
        self._highest: int | None = None
        self._missing: dict[int, _Missing] = {}
        self._recovered_ahead: set[int] = set()
        self._lost: list[int] = []

    def receive(self, ext_seq: int, now: float, *, recovered: bool = False) -> bool:
        """Note an arrival; whether too much is missing, so that a key frame must repair it."""
        self._missing.pop(ext_seq, None)
        if recovered:
            if self._highest is not None and ext_seq > self._highest:
                self._recovered_ahead.add(ext_seq)
            return False
        if self._highest is None:
            self._highest = ext_seq
        if ext_seq <= self._highest:
            return False
        gap = range(self._highest + 1, ext_seq)
        self._highest = ext_seq
        if gap:
            self.discard_before(ext_seq - self.GAP_MAX)
        found = {} if len(gap) > self.GAP_MAX else {n: _Missing(now) for n in gap if n not in self._recovered_ahead}
        self._recovered_ahead = {n for n in self._recovered_ahead if n > ext_seq}
        if len(gap) > self.GAP_MAX or len(self._missing) + len(found) > self.MISSING_MAX:
            self._missing.clear()
            return True
        self._missing |= found
        return False

    def due(self, now: float, rtt: float) -> list[int]:
        """The numbers to ask for now; those given up are LOST."""
        asked = []
        for ext_seq, entry in list(self._missing.items()):
            if entry.tries == 0:
                ready = now - entry.found_at >= self._first_delay
            else:
                wait = min(max(rtt * 1.25 ** (entry.tries - 1), 0.020), 0.400)
                ready = now - entry.asked_at >= wait
            if now - entry.found_at >= self._age_max or (ready and entry.tries == self._tries_max):
                del self._missing[ext_seq]
                self._lost.append(ext_seq)
            elif ready:
                entry.tries += 1
                entry.asked_at = now
                asked.append(ext_seq)
        return asked

    def take_lost(self) -> list[int]:
        """Those given up since asked last."""
        lost, self._lost = self._lost, []
        return lost

    def discard_before(self, ext_seq: int) -> None:
        """Ask no more for what a complete key frame made useless (NACK-4)."""
        self._missing = {n: entry for n, entry in self._missing.items() if n >= ext_seq}

    def missing(self) -> list[int]:
        """The numbers not here and not given up."""
        return list(self._missing)


@dataclass
class _Sent:
    source_seq: int
    first_at: float
    last_at: float
    padding: bool
    resends: int = 0


class ResendLedger:
    """What went out under which number, and whether a NACK for it is to be answered (CACHE-2, CACHE-3)."""

    AGE_MAX = 2.0
    RESENDS_MAX = 5

    def __init__(self, slots: int = 2048) -> None:
        self._slots = slots
        self._highest = -1
        self._sent: dict[int, _Sent] = {}

    def sent(self, out_seq: int, source_seq: int, now: float, *, padding: bool = False) -> None:
        """Note the first sending of `out_seq`."""
        self._highest = max(self._highest, out_seq)
        self._sent[out_seq] = _Sent(source_seq, now, now, padding)
        self._sent = {n: entry for n, entry in self._sent.items() if n > self._highest - self._slots}

    def ask(self, seq: int, now: float, rtt: float) -> int:
        """The source number to send again, or why not."""
        entry = self._sent.get(self._highest - ((self._highest - seq) & 0xFFFF))
        if entry is None or now - entry.first_at >= self.AGE_MAX:
            return UNKNOWN
        if entry.padding:
            return PADDING
        spacing = max(min(0.9 * rtt, rtt - 0.005), 0.005)
        if entry.resends == self.RESENDS_MAX or now - entry.last_at < spacing:
            return SUPPRESSED
        entry.resends += 1
        entry.last_at = now
        return entry.source_seq


class ArrivalLog:
    """When each transport-wide number arrived, and what is to be told of it (TCC-1, TCC-2)."""

    WINDOW = 2048
    LATE_MAX = 0.5
    SILENT_STRETCH = 400

    def __init__(self) -> None:
        self._highest = -1
        self._next = 0
        self._arrivals: dict[int, float] = {}
        self._last_at = 0.0
        self._has_news = False
        self._feedback_count = 0

    def receive(self, seq: int, now: float) -> None:
        """Note the arrival of a 16-bit number."""
        if self._highest < 0:
            self._highest = self._next = number = (1 << 16) + seq
        else:
            number = self._highest + ((seq - self._highest + 0x8000) & 0xFFFF) - 0x8000
        if number <= self._highest - self.WINDOW or number in self._arrivals:
            return
        if number >= self._highest + self.WINDOW:
            self._next = number
        elif number < self._next:
            if now - self._last_at > self.LATE_MAX:
                return
            self._next = number
        self._highest = max(self._highest, number)
        self._arrivals[number] = self._last_at = now
        self._arrivals = {n: at for n, at in self._arrivals.items() if n > self._highest - self.WINDOW}
        self._next = max(self._next, self._highest - self.WINDOW + 1)
        self._has_news = True

    def feedback(self, sender_ssrc: int, media_ssrc: int) -> list[bytes]:
        """The reports due."""
        if not self._has_news:
            return []
        stretches: list[tuple[int, list[tuple[int, int]]]] = []  # first number to report on, and its arrivals
        last = self._next - 1
        for number in range(self._next, self._highest + 1):
            if number in self._arrivals:
                silent = number - last > self.SILENT_STRETCH
                if silent or not stretches:
                    stretches.append((number if silent else last + 1, []))
                stretches[-1][1].append((number, round(self._arrivals[number] * 1e6)))
                last = number
        packets: list[bytes] = []
        for base, arrivals in stretches:
            reports = transport_cc.build(sender_ssrc, media_ssrc, self._feedback_count, arrivals, base_seq=base)
            packets += (report.serialize() for report in reports)
            self._feedback_count = (self._feedback_count + len(reports)) & 0xFF
        self._next = last + 1
        self._has_news = False
        return packets


class Extension(IntEnum):
    """Header extensions the plane knows: the EXT_* of `plane.pyi`."""

    MID = 1
    RID = 2
    REPAIRED_RID = 3
    TRANSPORT_CC = 4
    ABS_SEND_TIME = 5
    AUDIO_LEVEL = 6
    CSRC_AUDIO_LEVEL = 7
    PLAYOUT_DELAY = 8
    VIDEO_ORIENTATION = 9
    ABS_CAPTURE_TIME = 10
    VIDEO_CONTENT_TYPE = 11
    COLOR_SPACE = 12
    DEPENDENCY_DESCRIPTOR = 13


_COPIED = frozenset(Extension) - {
    Extension.MID,
    Extension.RID,
    Extension.REPAIRED_RID,
    Extension.TRANSPORT_CC,
    Extension.ABS_SEND_TIME,
}


def rewrite(
    packet: bytes,
    *,
    payload_type: int,
    seq: int,
    timestamp: int,
    ssrc: int,
    marker: int = -1,
    extensions_in: Mapping[int, int],
    extensions_out: Mapping[int, int],
    mid: bytes,
    transport_seq: int = -1,
    send_time: int = -1,
    rtx_osn: int = -1,
) -> bytes | None:
    """A forwarded packet under the subscriber's header (EXT-1, RTX-2), or None for one that is not RTP (RX-1)."""
    try:
        source = rtp.parse(packet)
    except RtpError:
        return None
    own: list[tuple[int, bytes]] = []
    if mid:
        own.append((Extension.MID, mid))
    if transport_seq >= 0:
        own.append((Extension.TRANSPORT_CC, transport_seq.to_bytes(2)))
    if send_time >= 0:
        own.append((Extension.ABS_SEND_TIME, send_time.to_bytes(3)))
    arrived = [(extensions_in.get(element.id, 0), element.data) for element in source.extensions]
    copied = [(kind, data) for kind, data in arrived if kind in _COPIED]
    out = replace(
        source,
        payload_type=payload_type,
        seq=seq,
        timestamp=timestamp,
        ssrc=ssrc,
        marker=source.marker if marker < 0 else bool(marker),
        extensions=tuple(
            HeaderExtension(extensions_out[kind], data) for kind, data in own + copied if kind in extensions_out
        ),
    )
    if rtx_osn >= 0:
        return replace(out, payload=rtx_osn.to_bytes(2) + source.payload, padding_bytes=0).serialize()
    if not source.padding_bytes:
        return out.serialize()
    # Padding travels as it is, whatever its bytes.
    header = replace(out, payload=b"", padding_bytes=0).serialize()
    return bytes([header[0] | 0x20]) + header[1:] + packet[-len(source.payload) - source.padding_bytes :]


@dataclass(frozen=True)
class _Vp8Descriptor:
    """RFC 7741 §4.2. Numbers that are not there are None."""

    first: int
    present: int
    picture: int | None
    wide: bool
    tl0: int | None
    temporal: int | None  # the byte of TID, Y and KEYIDX
    rest: bytes

    @property
    def numbers(self) -> dict[str, int]:
        key = self.temporal & 0x1F if self.temporal is not None and self.present & 0x10 else None
        found = {"picture": self.picture, "tl0": self.tl0, "key": key}
        return {name: number for name, number in found.items() if number is not None}

    def serialize(self) -> bytes:
        out = bytes([self.first, self.present])
        if self.picture is not None:
            out += (0x8000 | self.picture).to_bytes(2) if self.wide else bytes([self.picture])
        return out + bytes(byte for byte in (self.tl0, self.temporal) if byte is not None) + self.rest


def _vp8_descriptor(payload: bytes) -> _Vp8Descriptor | None:
    """None for one without the bytes that numbers are in, and for a truncated one."""
    try:
        if not payload[0] & 0x80:
            return None
        present, position = payload[1], 2
        picture = tl0 = temporal = None
        wide = False
        if present & 0x80:
            wide = payload[2] & 0x80 != 0
            picture = int.from_bytes((payload[2] & 0x7F, payload[3])) if wide else payload[2]
            position += 2 if wide else 1
        if present & 0x40:
            tl0 = payload[position]
            position += 1
        if present & 0x30:
            temporal = payload[position]
            position += 1
    except IndexError:
        return None
    return _Vp8Descriptor(payload[0], present, picture, wide, tl0, temporal, payload[position:])


Vp8Numbers = tuple[int, int, int, bool]
"""What to write: PictureID, TL0PICIDX and KEYIDX, each -1 for as it is, and whether the PictureID has 15 bits."""


class Vp8Rewriter:
    """PictureID, TL0PICIDX and KEYIDX of a stream that goes on over changes of source (COD-1)."""

    def __init__(self) -> None:
        self._rewriting = False
        self._wide = False
        self._came: dict[str, int] = {}  # the present source's numbers, of the newest packet that had each
        self._went: dict[str, int] = {}  # the same as sent, whatever the source

    def switch(self) -> None:
        """The next packet is the first of another source."""
        if not self._rewriting:
            self._went = self._came
            self._rewriting = bool(self._went)
        self._came = {}

    def number(self, payload: bytes, *, late: bool = False) -> Vp8Numbers:
        """What to write into this payload; nothing as long as numbers go out as they come."""
        descriptor = _vp8_descriptor(payload)
        numbers = descriptor.numbers if descriptor is not None else {}
        if descriptor is None or not numbers:
            return (-1, -1, -1, False)
        if not self._rewriting:
            if not late:
                self._came, self._wide = numbers, descriptor.wide
            return (-1, -1, -1, False)
        wide = self._wide or descriptor.wide
        moduli = {"picture": 1 << (15 if descriptor.wide else 7), "tl0": 1 << 8, "key": 1 << 5}
        out_moduli = {**moduli, "picture": 1 << (15 if wide else 7)}
        sent: dict[str, int] = {}
        for name, number in numbers.items():
            newest = self._came.setdefault(name, number - 1)
            half = moduli[name] // 2
            steps = (number - newest + half) % moduli[name] - half
            sent[name] = (self._went.setdefault(name, number - 1) + steps) % out_moduli[name]
        if not late:
            self._wide = wide
            self._came |= numbers
            self._went |= sent
        return (sent.get("picture", -1), sent.get("tl0", -1), sent.get("key", -1), wide)


def write_vp8(payload: bytes, numbers: Vp8Numbers) -> bytes:
    """The payload under other numbers, unless its descriptor is cut off or has a number that these lack."""
    picture, tl0, key, wide = numbers
    descriptor = _vp8_descriptor(payload)
    given = {"picture": picture, "tl0": tl0, "key": key}
    if descriptor is None or any(given[name] < 0 for name in descriptor.numbers):
        return payload
    out = descriptor
    if out.picture is not None:
        out = replace(out, picture=picture, wide=wide)
    if out.tl0 is not None:
        out = replace(out, tl0=tl0)
    if out.temporal is not None and "key" in out.numbers:
        out = replace(out, temporal=out.temporal & 0xE0 | key)
    return out.serialize()


class Codec(IntEnum):
    """How to read a payload: the CODEC_* of `plane.pyi`."""

    OPAQUE = 0
    OPUS = 1
    VP8 = 2
    VP9 = 3
    H264 = 4
    H265 = 5
    AV1 = 6


def is_keyframe_start(codec: int, payload: bytes) -> bool:
    """Whether a key frame begins with this payload; a truncated one does not tell."""
    if len(payload) < 2:
        return False
    try:
        match codec:
            case Codec.VP8:
                return _vp8_keyframe(payload)
            case Codec.VP9:
                return _vp9_keyframe(payload)
            case Codec.H264:
                return any(nal_type in (5, 7) for nal_type in _h264_starts(payload))
            case Codec.H265:
                return any(nal_type in (*range(16, 22), 32, 33, 34) for nal_type in _h265_starts(payload))
            case Codec.AV1:
                return payload[0] & 0x80 == 0 and payload[0] & 0x08 != 0
    except IndexError:
        pass
    return False


def _vp8_keyframe(payload: bytes) -> bool:
    """RFC 7741 §4.2: start of partition 0 (S, PID), and P clear in the frame header after the descriptor."""
    starts, partition = payload[0] & 0x10, payload[0] & 0x07
    position = 1
    if payload[0] & 0x80:
        present = payload[1]
        position = 2
        if present & 0x80:
            position += 2 if payload[position] & 0x80 else 1
        if present & 0x40:
            position += 1
        if present & 0x30:
            position += 1
    return bool(starts) and partition == 0 and payload[position] & 0x01 == 0


def _vp9_keyframe(payload: bytes) -> bool:
    """RFC 9628 §4.2: start of a frame (B), not predicted from another (P), and the lowest spatial layer."""
    first = payload[0]
    position = 1
    if first & 0x80:
        position += 2 if payload[position] & 0x80 else 1
    spatial_layer = 0
    if first & 0x20:
        spatial_layer = payload[position] >> 1 & 0x07
        position += 1
    return bool(first & 0x08) and not first & 0x40 and spatial_layer == 0 and position < len(payload)


def _h264_starts(payload: bytes) -> Iterator[int]:
    """RFC 6184 §5: types of the NAL units that begin in this payload."""
    nal_type = payload[0] & 0x1F
    if nal_type == 24:  # STAP-A
        yield from (unit[0] & 0x1F for unit in _aggregated(payload[1:]))
    elif nal_type != 28:
        yield nal_type
    elif payload[1] & 0x80:  # FU-A, its first fragment
        yield payload[1] & 0x1F


def _h265_starts(payload: bytes) -> Iterator[int]:
    """RFC 7798 §4.4: types of the NAL units that begin in this payload."""
    nal_type = payload[0] >> 1 & 0x3F
    if nal_type == 48:  # aggregation packet
        yield from (unit[0] >> 1 & 0x3F for unit in _aggregated(payload[2:]))
    elif nal_type != 49:
        yield nal_type
    elif payload[2] & 0x80:  # fragmentation unit, the first
        yield payload[2] & 0x3F


def _aggregated(units: bytes) -> Iterator[bytes]:
    """NAL units, each after its 16-bit size, up to the first that is empty or cut."""
    while len(units) > 2:
        size = int.from_bytes(units[:2])
        if not 1 <= size <= len(units) - 2:
            return
        yield units[2 : 2 + size]
        units = units[2 + size :]
