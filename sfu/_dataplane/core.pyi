"""The parts of the plane that hold no socket, for tests: each has a twin of the same name in `sfu._reference`.

All sequence numbers named `ext_seq` are unwrapped to 64 bit; times are seconds, passed in.
"""

from collections.abc import Mapping

class SequenceUnwrapper:
    """RFC 3550 A.1 with max_dropout 3000 and max_misorder 1500 (RX-2), without probation.

    Numbers never go back at a resync: they go on in the cycle after the highest one, `((highest >> 16) + 1 << 16) + seq`.
    """

    def __init__(self, max_dropout: int = 3000, max_misorder: int = 1500) -> None: ...
    def receive(self, seq: int) -> int:
        """The unwrapped number; -1: dropped after a jump (wait for a second one). The first packet starts at 2**16 + seq."""

    def take_resync(self) -> bool:
        """Whether the stream restarted since asked last: NACK list, cache and jitter must be reset."""

class SequenceMap:
    """Source to out sequence numbers (FWD-2): dropped packets leave no hole, upstream holes stay, 2048 sources back."""

    def __init__(self, out_start: int) -> None: ...
    def map(self, ext_seq: int) -> int:
        """The out ext_seq for a forwarded packet, or -1 when it must be dropped (in a dropped range, or too old)."""

    def drop(self, ext_seq: int) -> int:
        """Record that `ext_seq` is not forwarded. Returns -1, or the out number already reserved for it (then a
        padding-only packet fills the slot)."""

    def switch(self, ext_seq: int, skip: bool) -> None:
        """Another source begins at `ext_seq`: out continues at last + 1, or + 2 when the last frame was cut (SW-3).
        Everything older of the new source is dropped. Before the first `map` it has no effect but that: `out_start` stands."""

class PacketCache:
    """Decrypted packets of one stream by ext_seq (CACHE-1), bounded by slots (a power of two), bytes and age."""

    def __init__(self, slots: int, bytes_max: int, age_max: float) -> None: ...
    def store(self, ext_seq: int, packet: bytes, now: float) -> bool:
        """False when the packet is above 1500 B (or `bytes_max`), at or below highest - `slots`, or already there.

        Beyond `bytes_max` the packets stored first go first."""

    def fetch(self, ext_seq: int, now: float) -> bytes | None: ...
    @property
    def bytes_used(self) -> int:
        """Bytes of the packets kept, whatever their age."""

class LossDetector:
    """The upstream NACK generator of one stream (section 7)."""

    def __init__(self, *, video: bool, first_delay: float = 0.005) -> None: ...
    def receive(self, ext_seq: int, now: float, *, recovered: bool = False) -> bool:
        """True when the list overflowed and a keyframe must be asked for (NACK-1). A recovered packet never moves the
        highest number (RTX-3), and is not listed when the highest passes it later.

        Overflow: more than 1000 missing with the new gap, or a gap above 10,000. The list is emptied, nothing of it is LOST."""

    def due(self, now: float, rtt: float) -> list[int]:
        """The ext_seqs to NACK now, ascending; each call counts as having sent them.

        After the n-th request an entry waits clamp(rtt x 1.25^(n-1), 20 ms, 400 ms); it is given up when that has passed
        after the last try, or 2 s (audio 200 ms) after it was found missing."""

    def take_lost(self) -> list[int]:
        """Given up since asked last, each once (NACK-2)."""

    def discard_before(self, ext_seq: int) -> None:
        """A complete newer keyframe is in (NACK-4)."""

    def missing(self) -> list[int]: ...

class ResendLedger:
    """What one subscriber stream sent, by out ext_seq, and whether a NACK for it may be answered (CACHE-2, -3).

    It remembers the newest `slots` (a power of two) out numbers.
    """

    def __init__(self, slots: int = 2048) -> None: ...
    def sent(self, out_seq: int, source_seq: int, now: float, *, padding: bool = False) -> None: ...
    def ask(self, seq: int, now: float, rtt: float) -> int:
        """For a NACKed 16-bit `seq`: the source ext_seq to resend, -1 unknown or too old, -2 suppressed, -3 padding.

        Too old: first sent 2 s ago or more. Suppressed: 5 resends done, or less than max(min(0.9 rtt, rtt - 5 ms), 5 ms)
        since it was sent last. A number given counts as resent."""

class ArrivalLog:
    """When each transport-wide number of a peer arrived, and what to tell it (TCC-1, TCC-2). Reaches 2048 numbers back.

    Duplicates are ignored. A late number opens again what was reported from it on, within 500 ms of the last arrival;
    after that it is ignored.
    """

    def receive(self, seq: int, now: float) -> None:
        """An authenticated packet carried this 16-bit number. `now` is positive."""

    def feedback(self, sender_ssrc: int, media_ssrc: int) -> list[bytes]:
        """RTCP packets on all numbers since the last ones, up to the highest; none when nothing arrived since.

        A stretch of 400 or more that did not arrive is left out."""

class Vp8Rewriter:
    """The running numbers of one subscriber's VP8 stream over changes of source (COD-1): each goes on by one.

    Numbers are (PictureID, TL0PICIDX, KEYIDX, whether the PictureID has 15 bits); -1: not to be written. A stream has 7
    bits until a source with another width follows, then 15 for good. A number that the stream never had begins as it comes.
    """

    def switch(self) -> None:
        """The next packet is the first of another source."""

    def number(self, payload: bytes, *, late: bool = False) -> tuple[int, int, int, bool]:
        """What to write into this payload, none before the second source. `late`: older than one numbered before."""

def write_vp8(payload: bytes, numbers: tuple[int, int, int, bool]) -> bytes:
    """The payload under other numbers, one byte longer if its PictureID gets wider; unchanged where it is cut off."""

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
    """One forwarded packet (EXT-1, RTX-2): header, the subscriber's extensions under the subscriber's ids, payload.

    None when `packet` is not valid RTP (RX-1). `marker` -1 keeps it. With `rtx_osn` >= 0 padding is removed and the
    OSN goes before the payload. Elements: MID first, then transport-cc, abs-send-time, then the copied ones in the
    packet's order; one-byte form when every id is 1..14 and every length 1..16, else two-byte; CSRCs are kept. Of a
    repeated element the first counts; one-byte id 15 ends the block (RFC 8285 4.2); nothing to write: no extension.
    Copied: audio levels, playout delay, orientation, capture time, content type, colour space, dependency descriptor.
    """

def is_keyframe_start(codec: int, payload: bytes) -> bool:
    """Section 13's table; a truncated payload (and any below 2 bytes) is not a keyframe."""
