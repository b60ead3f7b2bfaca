"""Which protocol a datagram speaks, by its first bytes (RFC 7983, RFC 9443, RFC 5761; rules DMX-1 and DMX-2).

The data planes repeat this decision in Cython; this is the reference they are tested against.
"""

from __future__ import annotations

from enum import IntEnum

_COOKIE = b"\x21\x12\xa4\x42"


class Protocol(IntEnum):
    """What a datagram is handed to. `UNKNOWN` is dropped and counted."""

    UNKNOWN = 0
    STUN = 1
    DTLS = 2
    CHANNEL_DATA = 3
    RTP = 4
    RTCP = 5


def demux(data: bytes) -> Protocol:
    """The protocol of a datagram, by first byte, minimal size and, for STUN, the cookie.

    A claim to be parsed, not a proof: the parser behind it still checks everything. `CHANNEL_DATA` means something
    only on a TURN port (RFC 8656 §12); elsewhere treat it as `UNKNOWN`.
    """
    size = len(data)
    if size < 4:
        return Protocol.UNKNOWN
    first = data[0]
    if 128 <= first <= 191:
        # RFC 5761 §4: payload types 64..95 are not used for RTP, so the second byte decides alone.
        if 192 <= data[1] <= 223:
            return Protocol.RTCP if size >= 8 else Protocol.UNKNOWN
        return Protocol.RTP if size >= 12 else Protocol.UNKNOWN
    if first <= 3:
        return Protocol.STUN if size >= 20 and data[4:8] == _COOKIE else Protocol.UNKNOWN
    if 20 <= first <= 63:
        return Protocol.DTLS if size >= 13 else Protocol.UNKNOWN
    if 64 <= first <= 79:
        return Protocol.CHANNEL_DATA
    return Protocol.UNKNOWN
