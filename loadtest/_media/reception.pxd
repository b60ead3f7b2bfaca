"""One received stream: numbers in order, what is missing and when to ask for it, frames as a decoder would take them.

A playhead follows the numbers that are there, without a jitter buffer. It waits at a hole until the repair comes, until
the hole is given up, or until a whole newer key frame makes it pointless. A frame is decodable when nothing is missing in
it and nothing was given up since the last key frame. Numbers are unwrapped; times are microseconds, passed in.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from loadtest._media.histogram cimport Buckets, buckets_record

cdef enum:
    WINDOW = 2048               # numbers remembered
    MISSING_MAX = 512           # a larger gap is a new beginning
    FIRST_DELAY = 10000         # us before the first NACK: reordering repairs itself
    RETRIES = 10
    RETRY_MIN = 20000
    RETRY_MAX = 400000
    GIVE_UP_VIDEO = 2000000
    GIVE_UP_AUDIO = 200000
    ROUND_TRIP_DEFAULT = 100000
    PLI_INTERVAL = 1000000
    FREEZE_EXTRA = 150000
    FREEZE_FRAMES_MIN = 10      # before an average means something
    DELAY_MAX = 60000000        # a clock from elsewhere

cdef enum:                      # of a number in the window
    HERE = 1
    END = 2                     # last packet of its frame (the marker)
    KEY = 4                     # first packet of a key frame
    EMPTY = 8                   # padding only
    GONE = 16                   # given up

cdef enum:                      # what `reception_take` says
    STALE = 0                   # a duplicate, or too late
    NEW = 1

cdef struct Missing:
    int64_t number
    int64_t found
    int64_t asked
    int tries

cdef struct Reception:
    bint video
    bint asks                   # NACK is negotiated
    bint has_rtx
    uint32_t clock_rate
    int64_t first               # -1 before the first packet
    int64_t highest
    int64_t next                # the playhead: everything below it is played or given up
    int64_t key_start           # of the newest key frame that the playhead has not reached, or -1
    uint8_t state[WINDOW]
    Missing missing[MISSING_MAX]
    int missing_count
    bint damaged                # the frame at the playhead
    bint key                    # the same
    bint waiting                # for a key frame
    int64_t pli_at              # last one sent, or the beginning
    int64_t round_trip
    int64_t first_frame_at
    int64_t last_frame_at
    double gap_average
    double jitter               # in clock ticks
    int64_t last_transit
    uint32_t last_sr
    int64_t last_sr_at
    int64_t reported_expected
    int64_t reported_lost
    # Figures
    uint64_t packets
    uint64_t bytes
    uint64_t padding
    uint64_t skipped            # numbers of gaps too large to ask for
    uint64_t given_up
    uint64_t recovered
    uint64_t reordered
    uint64_t duplicates
    uint64_t nacks
    uint64_t plis
    uint64_t frames
    uint64_t keyframes
    uint64_t broken
    uint64_t freezes
    int64_t freeze_time
    Buckets delay
    Buckets jitters


cdef inline void reception_init(Reception *r, bint video, bint asks, bint has_rtx, uint32_t clock_rate) noexcept nogil:
    memset(r, 0, sizeof(Reception))
    r.video = video
    r.asks = asks
    r.has_rtx = has_rtx
    r.clock_rate = clock_rate
    r.first = -1
    r.highest = -1
    r.key_start = -1
    r.waiting = video
    r.round_trip = ROUND_TRIP_DEFAULT
    r.last_transit = 0


cdef inline int64_t nearest(int64_t reference, uint16_t seq) noexcept nogil:
    """The number with these low 16 bits that is closest to `reference`."""
    cdef int delta = <int>((<uint32_t>seq - <uint32_t>(reference & 0xFFFF)) & 0xFFFF)
    return reference + (delta if delta < 32768 else delta - 65536)


cdef inline void reception_lose(Reception *r, int at) noexcept nogil:
    """Give up the entry at `at` and take it out."""
    r.state[r.missing[at].number & (WINDOW - 1)] = GONE
    r.given_up += 1
    r.missing_count -= 1
    memmove(&r.missing[at], &r.missing[at + 1], (r.missing_count - at) * sizeof(Missing))


cdef inline void reception_lose_before(Reception *r, int64_t number) noexcept nogil:
    while r.missing_count and r.missing[0].number < number:
        reception_lose(r, 0)


cdef inline int reception_find(const Reception *r, int64_t number) noexcept nogil:
    cdef int low = 0, high = r.missing_count, middle
    while low < high:
        middle = (low + high) >> 1
        if r.missing[middle].number < number:
            low = middle + 1
        else:
            high = middle
    return low if low < r.missing_count and r.missing[low].number == number else -1


cdef inline void reception_restart(Reception *r, int64_t number) noexcept nogil:
    """A gap that nobody repairs: everything before `number` is over."""
    r.skipped += number - r.highest - 1
    reception_lose_before(r, number)
    memset(r.state, 0, sizeof(r.state))
    r.next = number
    r.key_start = -1
    r.damaged = True


cdef inline void reception_advance(Reception *r, int64_t number, int64_t now) noexcept nogil:
    """`number` is the new highest; what lies between is missing."""
    cdef int64_t gap = number - r.highest - 1
    cdef int64_t n = r.highest + 1
    cdef Missing *m
    if gap > MISSING_MAX:
        reception_restart(r, number)
        r.highest = number
        return
    while r.missing_count + gap > MISSING_MAX:
        reception_lose(r, 0)
    if number - r.next >= WINDOW:
        reception_lose_before(r, number - WINDOW + 1)
        reception_play(r, now)
    while n < number:
        r.state[n & (WINDOW - 1)] = 0
        m = &r.missing[r.missing_count]
        m.number = n
        m.found = now
        m.asked = 0
        m.tries = 0
        r.missing_count += 1
        n += 1
    r.highest = number


cdef inline bint reception_fill(Reception *r, int64_t number, bint repaired, int64_t now) noexcept nogil:
    """A number below the highest came after all. False: it is here already, or was given up."""
    cdef int at
    cdef Missing *m
    cdef int64_t sample
    if number < r.next or r.state[number & (WINDOW - 1)] != 0:
        r.duplicates += 1
        return False
    at = reception_find(r, number)
    if at < 0:
        r.duplicates += 1
        return False
    m = &r.missing[at]
    if repaired or (m.tries and not r.has_rtx):
        r.recovered += 1
        if m.tries == 1:    # Karn: a second request would leave open which one was answered
            sample = now - m.asked
            r.round_trip += (sample - r.round_trip) // 4
    else:
        r.reordered += 1
    r.missing_count -= 1
    memmove(&r.missing[at], &r.missing[at + 1], (r.missing_count - at) * sizeof(Missing))
    return True


cdef inline int reception_take(
    Reception *r, uint16_t seq, uint32_t timestamp, int flags, uint32_t size, bint repaired, int64_t now
) noexcept nogil:
    """A packet: `flags` of END, KEY and EMPTY; `size` of its payload; `repaired` when it came as RTX."""
    cdef int64_t number, transit, difference
    if r.highest < 0:
        if repaired:
            return STALE
        number = 65536 + seq
        r.first = number
        r.next = number
        r.pli_at = now      # whoever joins need not ask: the server does
        r.highest = number
    else:
        number = nearest(r.highest, seq)
        if number > r.highest:
            if repaired and r.asks and number - r.highest > 1:
                return STALE    # nobody can have asked for it
            reception_advance(r, number, now)
        elif not reception_fill(r, number, repaired, now):
            return STALE
    r.state[number & (WINDOW - 1)] = <uint8_t>(HERE | flags)
    if flags & EMPTY:
        r.padding += 1
    else:
        r.packets += 1
        r.bytes += size
        if not repaired:
            # RFC 3550 A.8, over the low 32 bits, where both clocks wrap.
            transit = <int32_t><uint32_t>(<uint64_t>(now * r.clock_rate // 1000000) - timestamp)
            if r.packets > 1:
                difference = <int32_t><uint32_t>(transit - r.last_transit)
                r.jitter += ((-difference if difference < 0 else difference) - r.jitter) / 16
            r.last_transit = transit
    if flags & KEY and number >= r.next and number > r.key_start:
        r.key_start = number
    if r.key_start > r.next and r.missing_count:
        reception_try_key(r)
    reception_play(r, now)
    return NEW


cdef inline void reception_try_key(Reception *r) noexcept nogil:
    """A whole key frame beyond the hole: a decoder goes on there."""
    cdef int64_t n = r.key_start
    cdef uint8_t state
    while n <= r.highest:
        state = r.state[n & (WINDOW - 1)]
        if state == 0 or state & GONE:
            return
        if state & END:
            reception_lose_before(r, r.key_start)
            return
        n += 1


cdef inline void reception_play(Reception *r, int64_t now) noexcept nogil:
    """Move the playhead over what is there or given up."""
    cdef uint8_t state
    while r.next <= r.highest:
        state = r.state[r.next & (WINDOW - 1)]
        if state == 0:
            return
        r.next += 1
        if state & GONE:
            r.damaged = True
        elif state & EMPTY:
            pass
        elif not r.video:
            r.damaged = False
            reception_show(r, now)
        else:
            if state & KEY:
                r.key = True
                r.damaged = False
            if state & END:
                reception_end_frame(r, now)


cdef inline void reception_end_frame(Reception *r, int64_t now) noexcept nogil:
    if r.damaged:
        r.waiting = True
    elif r.key:
        r.waiting = False
        r.keyframes += 1
    if not r.waiting:
        reception_show(r, now)
    elif r.frames:
        r.broken += 1
    r.damaged = False
    r.key = False


cdef inline int64_t freeze_limit(const Reception *r) noexcept nogil:
    """W3C webrtc-stats, freezeCount: max(3 x average, average + 150 ms)."""
    cdef double extra = r.gap_average + FREEZE_EXTRA
    return <int64_t>(3 * r.gap_average if 3 * r.gap_average > extra else extra)


cdef inline void reception_show(Reception *r, int64_t now) noexcept nogil:
    """A decodable frame is whole."""
    cdef int64_t gap = now - r.last_frame_at
    r.frames += 1
    if r.frames == 1:
        r.first_frame_at = now
    elif r.video:
        if r.frames > FREEZE_FRAMES_MIN and gap > freeze_limit(r):
            r.freezes += 1
            r.freeze_time += gap
        elif r.frames == 2:
            r.gap_average = gap
        else:
            r.gap_average += (gap - r.gap_average) / 30
    r.last_frame_at = now


cdef inline void reception_clock(Reception *r, int64_t sent_at, int64_t now) noexcept nogil:
    """The sender's clock came with a packet."""
    if 0 <= now - sent_at <= DELAY_MAX:
        buckets_record(&r.delay, now - sent_at)


cdef inline int64_t retry_interval(int tries, int64_t round_trip) noexcept nogil:
    """us to wait after the `tries`-th request: the round trip, a quarter more each time, within limits."""
    cdef double wait = <double>round_trip
    cdef int i
    for i in range(tries - 1):
        wait *= 1.25
    return RETRY_MIN if wait < RETRY_MIN else RETRY_MAX if wait > RETRY_MAX else <int64_t>wait


cdef inline int reception_due(Reception *r, int64_t now, int64_t *numbers, int64_t *next_at) noexcept nogil:
    """Give up what is too old; fill `numbers` (MISSING_MAX) with what to ask for now. `next_at`: call again then, 0: never."""
    cdef int at = 0, count = 0
    cdef int64_t when, end
    cdef int64_t give_up = GIVE_UP_VIDEO if r.video else GIVE_UP_AUDIO
    cdef bint lost = False
    cdef Missing *m
    next_at[0] = 0
    while at < r.missing_count:
        m = &r.missing[at]
        end = m.found + give_up
        when = end
        if r.asks:
            when = m.found + FIRST_DELAY if m.tries == 0 else m.asked + retry_interval(m.tries, r.round_trip)
        if now >= end or (now >= when and m.tries >= RETRIES):
            reception_lose(r, at)
            lost = True
            continue
        if now >= when:
            m.tries += 1
            m.asked = now
            numbers[count] = m.number
            count += 1
            when = now + retry_interval(m.tries, r.round_trip)
        if when > end:
            when = end
        if next_at[0] == 0 or when < next_at[0]:
            next_at[0] = when
        at += 1
    r.nacks += count
    if lost:
        reception_play(r, now)
    return count


cdef inline bint reception_wants_key(Reception *r, int64_t now) noexcept nogil:
    """Whether a PLI is due; counts it as sent."""
    if not r.video or not r.waiting or r.highest < 0 or now - r.pli_at < PLI_INTERVAL:
        return False
    r.pli_at = now
    r.plis += 1
    return True
