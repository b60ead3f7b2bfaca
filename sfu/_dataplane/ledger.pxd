"""What one subscriber stream sent lately, by out ext_seq, and which NACKs may be answered (CACHE-2, CACHE-3)."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free

from sfu._dataplane.sequence cimport nearest
from sfu._dataplane.vp8 cimport Vp8Numbers

cdef enum:
    RESENDS_MAX = 5
    RESEND_AGE_MAX = 2000000        # us since first sent
    RESEND_SPACING_MIN = 5000       # us
    ASK_UNKNOWN = -1
    ASK_SUPPRESSED = -2
    ASK_PADDING = -3

cdef struct Sent:
    int64_t out_seq         # -1: empty
    int64_t source_seq
    int64_t last_sent
    uint32_t first_sent     # low 32 bits of us
    uint32_t timestamp      # as sent
    int32_t send_time       # abs-send-time as sent, -1: none
    uint16_t transport_seq  # transport-cc number as sent
    Vp8Numbers vp8          # as sent, none when they went as they came
    uint8_t payload_type    # as sent
    uint8_t stay            # which source it came from: `Forwarder.stay` of that time
    uint8_t resends
    uint8_t padding

cdef struct Ledger:
    int64_t highest         # -1 before the first
    int slots               # power of two
    bint crowded            # at the present rate entries will be overwritten before RESEND_AGE_MAX: grow
    Sent *entries


cdef inline bint ledger_init(Ledger *l, int slots) noexcept nogil:
    cdef int i
    l.highest = -1
    l.slots = slots
    l.crowded = False
    l.entries = <Sent *>calloc(slots, sizeof(Sent))
    if l.entries == NULL:
        return False
    for i in range(slots):
        l.entries[i].out_seq = -1
    return True


cdef inline void ledger_destroy(Ledger *l) noexcept nogil:
    free(l.entries)
    l.entries = NULL


cdef inline Sent *ledger_slot(Ledger *l, int64_t out_seq) noexcept nogil:
    return &l.entries[out_seq & (l.slots - 1)]


cdef inline Sent *ledger_find(Ledger *l, int64_t out_seq) noexcept nogil:
    """NULL: not sent, or forgotten."""
    cdef Sent *entry = ledger_slot(l, out_seq)
    return entry if entry.out_seq == out_seq else NULL


cdef inline Sent *ledger_sent(Ledger *l, int64_t out_seq, int64_t source_seq, int64_t now, bint padding) noexcept nogil:
    """Note a first send; the caller fills the as-sent fields it needs for a resend."""
    cdef Sent *entry = ledger_slot(l, out_seq)
    cdef Sent *older = ledger_slot(l, out_seq + (l.slots >> 1))
    if older.out_seq >= 0 and <uint32_t>now - older.first_sent < <uint32_t>RESEND_AGE_MAX // 2:
        l.crowded = True
    entry.out_seq = out_seq
    entry.source_seq = source_seq
    entry.last_sent = now
    entry.first_sent = <uint32_t>now
    entry.resends = 0
    entry.vp8.fields = 0
    entry.padding = padding
    if out_seq > l.highest:
        l.highest = out_seq
    return entry


cdef inline bint ledger_grow(Ledger *l, int slots) noexcept nogil:
    """Double up (off the packet path). False when memory is short: nothing changed."""
    cdef Ledger larger
    cdef int i
    l.crowded = False
    if not ledger_init(&larger, slots):
        return False
    for i in range(l.slots):
        if l.entries[i].out_seq >= 0:
            larger.entries[l.entries[i].out_seq & (slots - 1)] = l.entries[i]
    larger.highest = l.highest
    free(l.entries)
    l[0] = larger
    return True


cdef inline int64_t resend_spacing(int64_t rtt) noexcept nogil:
    """rtx.min_spacing: min(0.9 RTT, RTT - 5 ms), at least 5 ms."""
    cdef int64_t spacing = rtt * 9 // 10
    if rtt - RESEND_SPACING_MIN < spacing:
        spacing = rtt - RESEND_SPACING_MIN
    return spacing if spacing > RESEND_SPACING_MIN else RESEND_SPACING_MIN


cdef inline int ledger_ask(Ledger *l, uint16_t seq, int64_t now, int64_t rtt, Sent **found) noexcept nogil:
    """CACHE-3 for one NACKed number. 0: resend `found` (it counts as resent), else ASK_*."""
    cdef Sent *entry
    found[0] = NULL
    if l.highest < 0:
        return ASK_UNKNOWN
    entry = ledger_find(l, nearest(l.highest, seq))
    if entry == NULL or <uint32_t>now - entry.first_sent >= <uint32_t>RESEND_AGE_MAX:
        return ASK_UNKNOWN
    if entry.padding:
        return ASK_PADDING
    if entry.resends >= RESENDS_MAX or now - entry.last_sent < resend_spacing(rtt):
        return ASK_SUPPRESSED
    entry.resends += 1
    entry.last_sent = now
    found[0] = entry
    return 0
