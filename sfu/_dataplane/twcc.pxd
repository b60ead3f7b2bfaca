"""Transport-wide feedback towards a publisher (TCC-1, TCC-2; draft-holmer-rmcat-transport-wide-cc-extensions-01).

Remembers when each number arrived and writes RTCP PT 205 FMT 15. One log per receiving transport, 16 KiB.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from sfu._dataplane.machine cimport write16, write24, write32
from sfu._dataplane.sequence cimport nearest

cdef enum:
    TWCC_WINDOW = 2048          # numbers remembered
    TWCC_LATE = 500000          # us behind the newest arrival that a late number still reopens what was reported
    TWCC_TICK = 250             # us per delta unit
    TWCC_REFERENCE = 64000      # us per unit of the reference time
    TWCC_STATUSES_MAX = 400     # per packet: 20 + at most 2 bytes each of chunk share and delta stays below 1200

cdef struct TwccLog:
    int64_t highest             # -1 before the first
    int64_t next                # first number of the next feedback
    int64_t last_arrival
    int pending                 # arrivals since the last feedback
    uint8_t feedback_count
    int64_t arrivals[TWCC_WINDOW]   # us, 0: not received


cdef inline void twcc_init(TwccLog *log) noexcept nogil:
    memset(log, 0, sizeof(TwccLog))
    log.highest = -1


cdef inline void twcc_record(TwccLog *log, uint16_t seq, int64_t now) noexcept nogil:
    """TCC-1: an authenticated packet carried `seq`. Duplicates and numbers beyond the window are ignored."""
    cdef int64_t number, n
    if log.highest < 0:
        number = 65536 + seq
        log.highest = number
        log.next = number
    else:
        number = nearest(log.highest, seq)
        if number <= log.highest - TWCC_WINDOW:
            return
        if number > log.highest:
            if number - log.highest >= TWCC_WINDOW:
                memset(log.arrivals, 0, sizeof(log.arrivals))
                log.next = number
            else:
                n = log.highest + 1
                while n < number:
                    log.arrivals[n & (TWCC_WINDOW - 1)] = 0
                    n += 1
            log.highest = number
            if log.next <= log.highest - TWCC_WINDOW:
                log.next = log.highest - TWCC_WINDOW + 1
        elif log.arrivals[number & (TWCC_WINDOW - 1)]:
            return
        elif number < log.next:
            if now - log.last_arrival > TWCC_LATE:
                return
            log.next = number
    log.arrivals[number & (TWCC_WINDOW - 1)] = now
    log.last_arrival = now
    log.pending += 1


cdef inline int twcc_symbol(int64_t arrival, int64_t delta) noexcept nogil:
    """0 not received, 1 small delta, 2 large or negative delta."""
    if arrival == 0:
        return 0
    return 1 if 0 <= delta <= 255 else 2


cdef inline int twcc_chunk(const uint8_t *symbols, int count, uint16_t *chunk) noexcept nogil:
    """Encode the longest prefix that one chunk can hold; returns how many symbols it took."""
    cdef int run = 1, i, n
    cdef bint small = True
    cdef uint16_t bits = 0
    while run < count and run < 8191 and symbols[run] == symbols[0]:
        run += 1
    if run >= 14 or run == count or (run >= 7 and symbols[0] == 2):
        chunk[0] = <uint16_t>((symbols[0] << 13) | run)
        return run
    n = 14 if count > 14 else count
    for i in range(n):
        if symbols[i] == 2:
            small = False
    if small:
        for i in range(n):
            bits |= <uint16_t>(symbols[i] << (13 - i))
        chunk[0] = 0x8000 | bits
        return n
    n = 7 if count > 7 else count
    for i in range(n):
        bits |= <uint16_t>(symbols[i] << (12 - 2 * i))
    chunk[0] = 0xC000 | bits
    return n


cdef inline int twcc_write(TwccLog *log, uint8_t *out, uint32_t sender_ssrc, uint32_t media_ssrc) noexcept nogil:
    """One feedback packet at `out` (1300 bytes free). Returns its size, 0 when there is nothing to tell; call until 0."""
    cdef uint8_t symbols[TWCC_STATUSES_MAX]
    cdef int32_t deltas[TWCC_STATUSES_MAX]
    cdef int64_t base = log.next, n, at = 0, arrival, delta, reference
    cdef int count = 0, used = 0, taken, i
    cdef uint16_t chunk = 0
    cdef uint8_t *p
    if log.pending == 0 or log.highest < 0:
        return 0
    n = base
    while n <= log.highest and log.arrivals[n & (TWCC_WINDOW - 1)] == 0:
        n += 1
    if n > log.highest:
        log.pending = 0
        return 0
    if n - base >= TWCC_STATUSES_MAX:
        base = n    # a long silent stretch says nothing that a missing report does not
    reference = log.arrivals[n & (TWCC_WINDOW - 1)] // TWCC_REFERENCE
    at = reference * (TWCC_REFERENCE // TWCC_TICK)
    n = base
    while n <= log.highest and count < TWCC_STATUSES_MAX:
        arrival = log.arrivals[n & (TWCC_WINDOW - 1)]
        delta = 0
        if arrival:
            delta = arrival // TWCC_TICK - at
            if delta < -32768 or delta > 32767:
                break
            at += delta
        symbols[count] = <uint8_t>twcc_symbol(arrival, delta)
        deltas[count] = <int32_t>delta
        count += 1
        n += 1
    while count and symbols[count - 1] == 0:
        count -= 1      # trailing losses are told when something later arrives
    if n > log.highest:
        log.next = log.highest + 1
        log.pending = 0
    else:
        log.next = base + count
    write32(out + 4, sender_ssrc)
    write32(out + 8, media_ssrc)
    write16(out + 12, <uint32_t>base & 0xFFFF)
    write16(out + 14, <uint32_t>count)
    write24(out + 16, <uint32_t>reference & 0xFFFFFF)
    out[19] = log.feedback_count
    log.feedback_count += 1
    p = out + 20
    while used < count:
        taken = twcc_chunk(symbols + used, count - used, &chunk)
        write16(p, chunk)
        p += 2
        used += taken
    for i in range(count):
        if symbols[i] == 1:
            p[0] = <uint8_t>deltas[i]
            p += 1
        elif symbols[i] == 2:
            write16(p, <uint32_t>deltas[i] & 0xFFFF)
            p += 2
    used = <int>(p - out) & 3
    out[0] = 0x80 | 15
    if used:
        out[0] |= 0x20
        for i in range(4 - used):
            p[i] = 0
        p[3 - used] = <uint8_t>(4 - used)
        p += 4 - used
    out[1] = 205
    write16(out + 2, <uint32_t>((p - out) >> 2) - 1)
    return <int>(p - out)
