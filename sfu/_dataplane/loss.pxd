"""The upstream NACK generator of one stream (section 7, RFC 4585 6.2.1): what is missing, when to ask, when to give up.

Missing numbers are kept ascending in a fixed array; arrival marks an entry, the next scan squeezes marked ones out.
So a packet costs a binary search at most, and a scan is linear in what is missing. Allocates once, on the first gap.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

cdef enum:
    MISSING_MAX = 1000
    GAP_MAX = 10000             # numbers; a larger gap, or an older entry, is not worth asking for
    EARLY_MAX = 32              # recovered packets ahead of the highest original
    RETRIES_VIDEO = 10
    RETRIES_AUDIO = 5
    GIVE_UP_VIDEO = 2000000     # us
    GIVE_UP_AUDIO = 200000      # us
    RETRY_MIN = 20000           # us
    RETRY_MAX = 400000          # us

cdef struct Missing:
    int64_t ext_seq
    int64_t found
    int64_t asked               # last time, 0: never
    uint8_t tries
    uint8_t gone                # arrived, or given up

cdef struct LossList:
    int64_t highest             # -1 before the first packet
    int64_t first_delay
    int count                   # entries, gone ones included
    int alive
    bint video
    Missing *entries            # NULL until something is missing
    int early_count
    int64_t early[EARLY_MAX]
    int64_t first_try_rtt       # us from a first request to the repair, 0: none since taken (NACK-3)
    int64_t repaired            # total


cdef inline void loss_init(LossList *l, bint video, int64_t first_delay) noexcept nogil:
    l.highest = -1
    l.first_delay = first_delay
    l.count = 0
    l.alive = 0
    l.video = video
    l.entries = NULL
    l.early_count = 0
    l.first_try_rtt = 0
    l.repaired = 0


cdef inline void loss_destroy(LossList *l) noexcept nogil:
    free(l.entries)
    l.entries = NULL


cdef inline void loss_clear(LossList *l) noexcept nogil:
    """Nothing is asked for any more (mute, close, overflow)."""
    l.count = 0
    l.alive = 0
    l.early_count = 0


cdef inline void loss_restart(LossList *l) noexcept nogil:
    """The numbers start anew (resync)."""
    loss_clear(l)
    l.highest = -1


cdef inline int loss_find(const LossList *l, int64_t ext_seq) noexcept nogil:
    """Index of the first entry at or above `ext_seq`."""
    cdef int low = 0, high = l.count, middle
    while low < high:
        middle = (low + high) >> 1
        if l.entries[middle].ext_seq < ext_seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline bint loss_arrived(LossList *l, int64_t ext_seq, int64_t now) noexcept nogil:
    cdef int i = loss_find(l, ext_seq)
    if i == l.count or l.entries[i].ext_seq != ext_seq or l.entries[i].gone:
        return False
    l.entries[i].gone = 1
    l.alive -= 1
    if l.entries[i].tries == 1:
        l.first_try_rtt = now - l.entries[i].asked
    if l.entries[i].tries:
        l.repaired += 1
    return True


cdef inline void loss_squeeze(LossList *l) noexcept nogil:
    cdef int i, kept = 0
    for i in range(l.count):
        if not l.entries[i].gone:
            if kept != i:
                l.entries[kept] = l.entries[i]
            kept += 1
    l.count = kept


cdef inline bint loss_take_early(LossList *l, int64_t ext_seq) noexcept nogil:
    cdef int i
    for i in range(l.early_count):
        if l.early[i] == ext_seq:
            l.early_count -= 1
            l.early[i] = l.early[l.early_count]
            return True
    return False


cdef inline void loss_forget_early(LossList *l) noexcept nogil:
    cdef int i = 0
    while i < l.early_count:
        if l.early[i] <= l.highest:
            l.early_count -= 1
            l.early[i] = l.early[l.early_count]
        else:
            i += 1


cdef inline void loss_discard_before(LossList *l, int64_t ext_seq) noexcept nogil:
    """NACK-4: older entries are not worth asking for."""
    cdef int i
    for i in range(loss_find(l, ext_seq)):
        if not l.entries[i].gone:
            l.entries[i].gone = 1
            l.alive -= 1


cdef inline bint loss_receive(LossList *l, int64_t ext_seq, int64_t now, bint recovered) noexcept nogil:
    """NACK-1. True when the list overflowed: it is empty now and a keyframe must be asked for."""
    cdef int64_t seq, gap
    cdef Missing *entry
    if l.highest < 0:
        if not recovered:
            l.highest = ext_seq
        return False
    if ext_seq <= l.highest:
        if l.alive:
            loss_arrived(l, ext_seq, now)
        return False
    if recovered:
        if l.early_count < EARLY_MAX and not loss_is_early(l, ext_seq):
            l.early[l.early_count] = ext_seq
            l.early_count += 1
        return False
    gap = ext_seq - l.highest - 1
    seq = l.highest + 1
    l.highest = ext_seq
    if gap == 0:
        if l.early_count:
            loss_forget_early(l)
        return False
    if l.count:
        loss_discard_before(l, ext_seq - GAP_MAX)
        loss_squeeze(l)
    if gap > GAP_MAX or l.count + gap - loss_early_below(l, ext_seq) > MISSING_MAX:
        l.count = 0
        l.alive = 0
        loss_forget_early(l)
        return True
    if l.entries == NULL:
        l.entries = <Missing *>malloc(MISSING_MAX * sizeof(Missing))
        if l.entries == NULL:
            return True
    while seq < ext_seq:
        if l.early_count == 0 or not loss_take_early(l, seq):
            entry = &l.entries[l.count]
            entry.ext_seq = seq
            entry.found = now
            entry.asked = 0
            entry.tries = 0
            entry.gone = 0
            l.count += 1
            l.alive += 1
        seq += 1
    if l.early_count:
        loss_forget_early(l)
    return False


cdef inline bint loss_is_early(const LossList *l, int64_t ext_seq) noexcept nogil:
    cdef int i
    for i in range(l.early_count):
        if l.early[i] == ext_seq:
            return True
    return False


cdef inline int loss_early_below(const LossList *l, int64_t ext_seq) noexcept nogil:
    cdef int i, n = 0
    for i in range(l.early_count):
        if l.early[i] < ext_seq:
            n += 1
    return n


cdef inline int64_t retry_interval(int tries, int64_t rtt) noexcept nogil:
    """us to wait after the `tries`-th request: clamp(RTT x 1.25^(n-1), 20 ms, 400 ms)."""
    cdef double wait = <double>rtt
    cdef int i
    for i in range(tries - 1):
        wait *= 1.25
    if wait < RETRY_MIN:
        return RETRY_MIN
    if wait > RETRY_MAX:
        return RETRY_MAX
    return <int64_t>wait


cdef inline int loss_due(LossList *l, int64_t now, int64_t rtt, int64_t *due, int64_t *lost, int *lost_count, int64_t *next_at) noexcept nogil:
    """NACK-2. Fills `due` and `lost` (MISSING_MAX each), returns how many are due.

    `next_at` becomes the earliest time at which one of the rest is due or given up, or 0 when nothing is missing.
    """
    cdef int i, n = 0
    cdef int limit = RETRIES_VIDEO if l.video else RETRIES_AUDIO
    cdef int64_t give_up = GIVE_UP_VIDEO if l.video else GIVE_UP_AUDIO
    cdef int64_t at, end
    cdef Missing *entry
    lost_count[0] = 0
    next_at[0] = 0
    for i in range(l.count):
        entry = &l.entries[i]
        if entry.gone:
            continue
        end = entry.found + give_up
        at = entry.found + l.first_delay if entry.tries == 0 else entry.asked + retry_interval(entry.tries, rtt)
        if now >= end or (now >= at and entry.tries >= limit):
            entry.gone = 1
            l.alive -= 1
            lost[lost_count[0]] = entry.ext_seq
            lost_count[0] += 1
            continue
        if now >= at:
            entry.tries += 1
            entry.asked = now
            due[n] = entry.ext_seq
            n += 1
            at = now + retry_interval(entry.tries, rtt)
        if at > end:
            at = end
        if next_at[0] == 0 or at < next_at[0]:
            next_at[0] = at
    loss_squeeze(l)
    return n
