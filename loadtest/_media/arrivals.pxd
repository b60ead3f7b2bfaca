"""Transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01): when which number arrived, as RTCP.

Two-bit status chunks throughout: a few bytes more than the densest form, and one rule.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from loadtest._media.machine cimport write16, write32
from loadtest._media.reception cimport nearest
from loadtest._media.rtcp cimport FMT_TRANSPORT_CC, RTCP_RTPFB, rtcp_head

cdef enum:
    ARRIVALS_WINDOW = 2048
    STATUSES_MAX = 392          # of one packet: 20 + 2 per 7 + at most 2 each stays below 1200 bytes
    FEEDBACK_MAX = 1200
    TICK = 250                  # us per unit of a delta
    REFERENCE = 64000           # us per unit of the reference time

cdef struct Arrivals:
    int64_t highest             # -1 before the first
    int64_t next                # first number of the next report
    uint8_t reports
    int64_t times[ARRIVALS_WINDOW]  # us, 0: not arrived


cdef inline void arrivals_init(Arrivals *a) noexcept nogil:
    memset(a, 0, sizeof(Arrivals))
    a.highest = -1


cdef inline void arrivals_record(Arrivals *a, uint16_t seq, int64_t now) noexcept nogil:
    """A packet carried `seq`. What was reported already as missing stays so."""
    cdef int64_t number
    if a.highest < 0:
        a.highest = 65536 + seq
        a.next = a.highest
    number = nearest(a.highest, seq)
    if number < a.next:
        return
    if number - a.highest >= ARRIVALS_WINDOW:
        memset(a.times, 0, sizeof(a.times))
        a.highest = number
        a.next = number
    while a.highest < number:
        a.highest += 1
        a.times[a.highest & (ARRIVALS_WINDOW - 1)] = 0
    if a.next <= a.highest - ARRIVALS_WINDOW:
        a.next = a.highest - ARRIVALS_WINDOW + 1
    a.times[number & (ARRIVALS_WINDOW - 1)] = now


cdef inline int arrivals_write(Arrivals *a, uint8_t *out, uint32_t sender, uint32_t media) noexcept nogil:
    """One report at `out` (FEEDBACK_MAX bytes). Returns its size, 0 when there is nothing to tell; call until 0."""
    cdef int64_t n = a.next, time, delta, at
    cdef int count = 0, i, size
    cdef uint8_t symbol
    cdef uint16_t chunk = 0
    cdef uint8_t symbols[STATUSES_MAX]
    cdef int deltas[STATUSES_MAX]
    cdef uint8_t *p
    if a.highest < 0:
        return 0
    while n <= a.highest and a.times[n & (ARRIVALS_WINDOW - 1)] == 0:
        n += 1
    if n > a.highest:
        return 0
    if n - a.next >= STATUSES_MAX:
        a.next = n
    at = a.times[n & (ARRIVALS_WINDOW - 1)] // REFERENCE
    write32(out + 16, (<uint32_t>(at & 0xFFFFFF) << 8) | a.reports)
    at *= REFERENCE // TICK
    n = a.next
    while n <= a.highest and count < STATUSES_MAX:
        time = a.times[n & (ARRIVALS_WINDOW - 1)]
        delta = time // TICK - at if time else 0
        if not -32768 <= delta <= 32767:
            break
        at += delta
        symbols[count] = 0 if time == 0 else 1 if 0 <= delta <= 255 else 2
        deltas[count] = <int>delta
        count += 1
        n += 1
    write32(out + 4, sender)
    write32(out + 8, media)
    write16(out + 12, <uint32_t>a.next & 0xFFFF)
    write16(out + 14, <uint32_t>count)
    a.next = n
    a.reports += 1
    p = out + 20
    for i in range(0, (count + 6) // 7 * 7):
        symbol = symbols[i] if i < count else 0
        chunk = <uint16_t>(chunk << 2) | symbol
        if i % 7 == 6:
            write16(p, 0xC000 | (chunk & 0x3FFF))
            p += 2
            chunk = 0
    for i in range(count):
        if symbols[i] == 1:
            p[0] = <uint8_t>deltas[i]
            p += 1
        elif symbols[i] == 2:
            write16(p, <uint32_t>deltas[i] & 0xFFFF)
            p += 2
    while (p - out) & 3:
        p[0] = 0
        p += 1
    size = <int>(p - out)
    rtcp_head(out, FMT_TRANSPORT_CC, RTCP_RTPFB, size)
    return size
