"""Sequence numbers: 16 bit to 64 bit on arrival (RX-2), source to out on forwarding (FWD-2, SHLD-4).

Both are O(1) in time and memory. Ext seqs are non-negative int64.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    int popcount64 "__builtin_popcountll"(unsigned long long v) noexcept nogil

cdef enum:
    MAP_WORDS = 64          # of 64 source numbers each; must exceed MAP_WINDOW / 64 + 1
    MAP_WINDOW = 2048       # source numbers that a late packet may be behind the highest

cdef struct Unwrapper:
    int64_t highest         # -1 before the first packet
    int bad_seq             # where a jump expects its second packet, -1: no jump seen
    int max_dropout
    int max_misorder
    bint resynced

cdef struct OutMap:
    # One bit per source number of the window: dropped on purpose. Out = source - offset - (dropped up to it).
    int64_t first           # first source number of the current source, -1 before any
    int64_t highest         # highest source number mapped or dropped
    int64_t offset          # at `first`
    int64_t out_start
    uint32_t drops          # since `first`
    uint64_t dropped[MAP_WORDS]
    uint32_t drops_before[MAP_WORDS]    # drops since `first` before this word


cdef inline void unwrapper_init(Unwrapper *u, int max_dropout, int max_misorder) noexcept nogil:
    u.highest = -1
    u.bad_seq = -1
    u.max_dropout = max_dropout
    u.max_misorder = max_misorder
    u.resynced = False


cdef inline int64_t unwrap(Unwrapper *u, uint16_t seq) noexcept nogil:
    """RFC 3550 A.1 without probation. -1: first packet after a jump, dropped until a second one confirms it."""
    cdef uint16_t delta
    if u.highest < 0:
        u.highest = 65536 + seq
        return u.highest
    delta = <uint16_t>(seq - <uint16_t>u.highest)
    if delta < u.max_dropout:
        u.highest += delta
        return u.highest
    if delta <= 65536 - u.max_misorder:
        if seq == u.bad_seq:
            u.highest = (((u.highest >> 16) + 1) << 16) + seq
            u.bad_seq = -1
            u.resynced = True
            return u.highest
        u.bad_seq = (seq + 1) & 0xFFFF
        return -1
    return u.highest - (65536 - delta)


cdef inline int64_t nearest(int64_t reference, uint16_t seq) noexcept nogil:
    """The number with these low 16 bits that is closest to `reference`; may be negative."""
    cdef int delta = <int>((<uint32_t>seq - <uint32_t>(reference & 0xFFFF)) & 0xFFFF)
    return reference + (delta if delta < 32768 else delta - 65536)


cdef inline void map_init(OutMap *m, int64_t out_start) noexcept nogil:
    memset(m, 0, sizeof(OutMap))
    m.first = -1
    m.highest = -1
    m.out_start = out_start


cdef inline void map_begin(OutMap *m, int64_t ext_seq, int64_t out_seq) noexcept nogil:
    m.first = ext_seq
    m.highest = ext_seq - 1
    m.offset = ext_seq - out_seq
    m.drops = 0
    m.dropped[(ext_seq >> 6) & (MAP_WORDS - 1)] = 0
    m.drops_before[(ext_seq >> 6) & (MAP_WORDS - 1)] = 0


cdef inline int64_t map_next_out(const OutMap *m) noexcept nogil:
    """The out number that highest + 1 would get."""
    if m.first < 0:
        return m.out_start
    return m.highest + 1 - m.offset - m.drops


cdef inline void map_advance(OutMap *m, int64_t ext_seq) noexcept nogil:
    cdef int64_t word = m.highest >> 6
    cdef int64_t last = ext_seq >> 6
    if last - word > MAP_WORDS:
        word = last - MAP_WORDS
    while word < last:
        word += 1
        m.dropped[word & (MAP_WORDS - 1)] = 0
        m.drops_before[word & (MAP_WORDS - 1)] = m.drops
    m.highest = ext_seq


cdef inline int64_t map_late(const OutMap *m, int64_t ext_seq) noexcept nogil:
    """Out number reserved for a source number at or below the highest, -1 when dropped, too old or of an older source."""
    cdef int64_t index
    cdef uint64_t word
    cdef int bit = ext_seq & 63
    if ext_seq < m.first or ext_seq <= m.highest - MAP_WINDOW:
        return -1
    index = (ext_seq >> 6) & (MAP_WORDS - 1)
    word = m.dropped[index]
    if word & (<uint64_t>1 << bit):
        return -1
    return ext_seq - m.offset - m.drops_before[index] - popcount64(word & ((<uint64_t>1 << bit) - 1))


cdef inline int64_t map_forward(OutMap *m, int64_t ext_seq) noexcept nogil:
    """FWD-2 for a packet that is forwarded. -1: it must be dropped."""
    if m.first < 0:
        map_begin(m, ext_seq, m.out_start)
    if ext_seq > m.highest:
        map_advance(m, ext_seq)
        return ext_seq - m.offset - m.drops
    return map_late(m, ext_seq)


cdef inline int64_t map_drop(OutMap *m, int64_t ext_seq) noexcept nogil:
    """FWD-2 for a packet that is not. Returns the out number already reserved for it, or -1."""
    if m.first < 0:
        return -1
    if ext_seq > m.highest:
        map_advance(m, ext_seq)
        m.dropped[(ext_seq >> 6) & (MAP_WORDS - 1)] |= <uint64_t>1 << (ext_seq & 63)
        m.drops += 1
        return -1
    return map_late(m, ext_seq)


cdef inline void map_switch(OutMap *m, int64_t ext_seq, bint skip) noexcept nogil:
    """SW-3: another source begins at `ext_seq`."""
    cdef int64_t next_out = map_next_out(m)
    map_begin(m, ext_seq, next_out + (1 if skip and next_out != m.out_start else 0))
