"""What happens by the clock, transport by transport: NACKs, reports, transport-wide feedback, liveness, growth.

A transport with nothing pending is in no heap and costs nothing. Runs in the owner's thread between batches; growth of
caches and ledgers is the only place here that allocates.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from sfu._dataplane.cache cimport Pages, cache_free_retired, cache_grow
from sfu._dataplane.egress cimport reachable, room, send_rtcp
from sfu._dataplane.forward cimport LEDGER_SLOTS_MAX, us_to_ticks
from sfu._dataplane.graph cimport (
    ALIVE, CROSS_LAYERS, SRTCP_TRAILER_MAX, Forwarder, SourceClock, Stream, Thread, Track, Transport,
    pthread_mutex_trylock, pthread_mutex_unlock,
)
from sfu._dataplane.ingress cimport TWCC_INTERVAL, TWCC_MIN, TWCC_PACKETS
from sfu._dataplane.keyframes cimport begin_compound, keyframe_tick, need_keyframe, write_own_cname
from sfu._dataplane.ledger cimport ledger_grow
from sfu._dataplane.loss cimport MISSING_MAX, loss_clear, loss_discard_before, loss_due
from sfu._dataplane.machine cimport add_i64, load_int, next_random, wall_ntp
from sfu._dataplane.ops cimport clock_read, consumers, cross_request, schedule
from sfu._dataplane.reception cimport REPORT_INTERVAL_AUDIO, REPORT_INTERVAL_VIDEO, choose_again
from sfu._dataplane.rtcp cimport (
    COMPOUND_MAX, ReportBlock, write_cname, write_nack, write_receiver_report, write_sender_report,
)
from sfu._dataplane.twcc cimport twcc_write
from sfu._dataplane.upcalls cimport UP_TRACK_STALLED, upcall_stream

cdef enum:
    NACK_SCAN = 10000           # us between two scans of a stream
    NACK_RTT_DEFAULT = 100000
    REPORT_TOGETHER = 200000    # reports due within this join the datagram at hand
    REPORT_BLOCKS_MAX = 31
    GROWTH_INTERVAL = 10000     # us
    GROWTH_REFUSED = 1000000    # us before asking again when the plane's total is used up
    CACHE_SLOTS_MAX = 8192


cdef inline int64_t earlier(int64_t a, int64_t b) noexcept nogil:
    """The earlier of two deadlines of which 0 means never."""
    if a == 0 or (b != 0 and b < a):
        return b
    return a


cdef inline int64_t report_interval(Thread *t, bint video) noexcept nogil:
    """RFC 3550 6.2: randomised, 1.0 to 1.5 times."""
    cdef int64_t base = REPORT_INTERVAL_VIDEO if video else REPORT_INTERVAL_AUDIO
    return base + <int64_t>(next_random(&t.random) % <uint64_t>(base // 2))


# -- upstream --------------------------------------------------------------------------------------------------------

cdef inline void send_nacks(Thread *t, Stream *s, const int64_t *due, int count) noexcept nogil:
    cdef Transport *to = s.track.transport
    cdef uint8_t *out
    cdef int size, taken, done = 0
    while done < count and reachable(to):
        out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
        size = begin_compound(out, to)
        size += write_nack(out + size, to.rtcp_ssrc, s.ssrc, due + done, count - done, &taken)
        send_rtcp(t, to, to.srtp_rtcp, out, size)
        done += taken
        t.counters.nacks_out += 1
    s.nacks_sent += <uint64_t>count


cdef inline int64_t nack_tick(Thread *t, Stream *s) noexcept nogil:
    """NACK-2 to NACK-6. Returns when to look again, 0: never."""
    cdef int64_t due[MISSING_MAX]
    cdef int64_t lost[MISSING_MAX]
    cdef int64_t next_at = 0
    cdef int count, lost_count = 0
    if s.nack_at == 0 or t.now < s.nack_at:
        return s.nack_at
    if not s.nack or consumers(s) == 0:
        loss_clear(&s.loss)
        s.nack_at = 0
        return 0
    if s.last_keyframe >= 0 and keyframe_complete(s):
        loss_discard_before(&s.loss, s.last_keyframe)
    count = loss_due(&s.loss, t.now, s.rtt if s.rtt else NACK_RTT_DEFAULT, due, lost, &lost_count, &next_at)
    if count:
        send_nacks(t, s, due, count)
    if lost_count:
        s.lost += <uint64_t>lost_count
        need_keyframe(t, s)     # SHLD-3: through the throttle
    if next_at and next_at < t.now + NACK_SCAN:
        next_at = t.now + NACK_SCAN
    s.nack_at = next_at
    return next_at


cdef inline bint keyframe_complete(Stream *s) noexcept nogil:
    """NACK-4: a frame after the newest key frame has begun, and nothing from its start on is missing."""
    cdef int i
    if s.last_timestamp == s.keyframe_timestamp:
        return False
    for i in range(s.loss.count):
        if not s.loss.entries[i].gone and s.loss.entries[i].ext_seq >= s.last_keyframe:
            return False
    return True


cdef inline void fill_block(Thread *t, Stream *s, ReportBlock *b) noexcept nogil:
    """RTCP-4: clamped, never wrapped."""
    cdef int64_t expected = s.unwrapper.highest - s.first_seq + 1
    cdef int64_t lost = expected - <int64_t>s.received
    cdef int64_t expected_now = expected - <int64_t>s.expected_before
    cdef int64_t lost_now = expected_now - <int64_t>(s.received - s.received_before)
    b.ssrc = s.ssrc
    b.fraction_lost = 0
    if expected_now > 0 and lost_now > 0:
        b.fraction_lost = <uint8_t>((lost_now << 8) // expected_now) if lost_now < expected_now else 255
    if lost < 0:
        lost = 0
    b.cumulative = <int>(lost if lost < 0x7FFFFF else 0x7FFFFF)
    b.highest = <uint32_t>(s.unwrapper.highest - 65536)
    b.jitter = <uint32_t>s.jitter
    b.last_sr = 0
    b.delay = 0
    if s.clock.received:
        b.last_sr = <uint32_t>(s.clock.ntp >> 16)
        b.delay = <uint32_t>(((t.now - s.clock.received) << 16) // 1000000)
    s.expected_before = <uint64_t>expected
    s.received_before = s.received


cdef inline void send_receiver_report(Thread *t, Transport *to) noexcept nogil:
    """All streams that are due or nearly so, in one compound."""
    cdef ReportBlock blocks[REPORT_BLOCKS_MAX]
    cdef uint8_t *out
    cdef Stream *s
    cdef int i, j, count = 0, size
    for i in range(to.track_count):
        for j in range(to.tracks[i].layer_count):
            s = to.tracks[i].layers[j]
            if s.report_at == 0 or s.report_at > t.now + REPORT_TOGETHER or count == REPORT_BLOCKS_MAX:
                continue
            if not s.alive or s.ssrc == 0 or s.first_seq < 0:
                s.report_at = 0     # begins again with the next packet
                continue
            fill_block(t, s, &blocks[count])
            count += 1
            s.report_at = t.now + report_interval(t, s.track.video)
    if count == 0 or not reachable(to):
        return
    out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
    size = write_receiver_report(out, to.rtcp_ssrc, blocks, count)
    size += write_own_cname(out + size, to)
    send_rtcp(t, to, to.srtp_rtcp, out, size)


cdef inline int64_t twcc_tick(Thread *t, Transport *to) noexcept nogil:
    """TCC-2: each 100 ms while packets come; earlier for a burst or at the end of a frame."""
    cdef uint8_t *out
    cdef int size, head
    cdef int64_t since
    if to.twcc == NULL or to.twcc.pending == 0:
        return 0
    since = t.now - to.twcc_at
    if since < TWCC_MIN or (since < TWCC_INTERVAL and to.twcc.pending <= TWCC_PACKETS):
        return to.twcc_at + (TWCC_INTERVAL if to.twcc.pending <= TWCC_PACKETS else TWCC_MIN)
    to.twcc_at = t.now
    while to.twcc_media_ssrc and reachable(to):
        out = room(t, COMPOUND_MAX + 200 + SRTCP_TRAILER_MAX)
        head = begin_compound(out, to)
        size = twcc_write(to.twcc, out + head, to.rtcp_ssrc, to.twcc_media_ssrc)
        if size == 0:
            break
        send_rtcp(t, to, to.srtp_rtcp, out, head + size)
    to.twcc.pending = 0
    return 0


# -- liveness and growth -----------------------------------------------------------------------------------------

cdef inline void free_retired(Thread *t, Stream *s) noexcept nogil:
    """Old pages go when no other thread is inside a batch at this moment; else at the next tick."""
    cdef int i = 0, locked = 0
    while locked < t.plane.thread_count:
        if locked != t.index and pthread_mutex_trylock(&t.plane.threads[locked].lock) != 0:
            break
        locked += 1
    if locked == t.plane.thread_count:
        s.cache_bytes -= cache_release(t, s)
    for i in range(locked):
        if i != t.index:
            pthread_mutex_unlock(&t.plane.threads[i].lock)


cdef inline uint64_t cache_release(Thread *t, Stream *s) noexcept nogil:
    cdef uint64_t freed = cache_free_retired(&s.cache)
    add_i64(&t.plane.cache_bytes, -<int64_t>freed)
    return freed


cdef inline void grow_cache(Thread *t, Stream *s) noexcept nogil:
    """Double the pages when packets are overwritten before their age, within the plane's total."""
    cdef Pages *p = <Pages *>s.cache.pages
    cdef uint64_t bytes
    if s.cache.retired != NULL:
        free_retired(t, s)
    if p == NULL or not s.cache.crowded or s.cache.retired != NULL or t.now < s.grow_after:
        return
    bytes = 2 * p.bytes
    if p.slot_count >= CACHE_SLOTS_MAX or add_i64(&t.plane.cache_bytes, <int64_t>bytes) > t.plane.cache_bytes_max:
        if p.slot_count < CACHE_SLOTS_MAX:
            add_i64(&t.plane.cache_bytes, -<int64_t>bytes)
        s.cache.crowded = False
        s.grow_after = t.now + GROWTH_REFUSED
        return
    if cache_grow(&s.cache, 2 * p.slot_count, bytes):
        s.cache_bytes += bytes
        free_retired(t, s)
    else:
        add_i64(&t.plane.cache_bytes, -<int64_t>bytes)


cdef inline void layer_died(Thread *t, Stream *s) noexcept nogil:
    """LAY-1: its subscribers move on at once."""
    cdef Track *track = s.track
    cdef int i
    s.alive = 0
    if track.layer_count == 1:
        return
    for i in range(t.plane.thread_count):
        if i == t.index:
            choose_again(t, track)
        elif load_int(&track.members[i].count):
            cross_request(t, i, CROSS_LAYERS, s.id)


cdef inline int64_t stream_tick(Thread *t, Stream *s) noexcept nogil:
    cdef int64_t next_at = keyframe_tick(t, s)
    next_at = earlier(next_at, nack_tick(t, s))
    if s.cache.crowded or s.cache.retired != NULL:
        grow_cache(t, s)
        if s.cache.retired != NULL:
            next_at = earlier(next_at, t.now + GROWTH_INTERVAL)
    if t.now - s.rate_since >= 1000000:
        s.bitrate = <double>s.rate_bytes * 8e6 / <double>(t.now - s.rate_since)
        s.rate_since = t.now
        s.rate_bytes = 0
    if s.alive:
        if t.now - s.last_packet >= ALIVE:
            layer_died(t, s)
        else:
            next_at = earlier(next_at, s.last_packet + ALIVE)
    if s.report_at:
        next_at = earlier(next_at, s.report_at)
    return next_at


cdef inline int64_t stall_tick(Thread *t, Track *track) noexcept nogil:
    cdef int64_t last = 0
    cdef int i
    for i in range(track.layer_count):
        if track.layers[i].last_packet > last:
            last = track.layers[i].last_packet
    if last == 0 or track.stalled:
        return 0
    if t.now - last < t.plane.stall_after:
        return last + t.plane.stall_after
    track.stalled = 1
    for i in range(track.layer_count):
        track.layers[i].alive = 0       # the next packet announces it again
    upcall_stream(t, UP_TRACK_STALLED, track.layers[0], 0)
    return 0


# -- downstream ------------------------------------------------------------------------------------------------------

cdef inline void send_sender_report(Thread *t, Forwarder *f) noexcept nogil:
    """RTCP-2: in the publisher's clock once its first report is in, else in ours."""
    cdef Stream *s = f.current.stream
    cdef SourceClock clock
    cdef uint64_t ntp
    cdef int64_t elapsed
    cdef uint32_t timestamp, rate
    cdef bint foreign
    cdef uint8_t *out
    cdef int size
    if s == NULL or f.srtp == NULL or not reachable(f.transport):
        return
    rate = f.last_clock_rate
    foreign = clock_read(&s.clock, &clock)
    if foreign:
        elapsed = t.now - clock.received if t.now > clock.received else 0
        ntp = clock.ntp + (<uint64_t>((elapsed << 16) // 1000000) << 16)
        timestamp = clock.timestamp + <uint32_t>us_to_ticks(elapsed, rate) + f.timestamp_offset
    else:
        ntp = wall_ntp()
        timestamp = f.last_timestamp + <uint32_t>us_to_ticks(t.now - f.last_sent, rate)
    if foreign == f.report_foreign and f.last_report_ntp:
        if ntp <= f.last_report_ntp or <int>(timestamp - f.last_report_timestamp) < 0:
            return
    f.report_foreign = foreign
    f.last_report_ntp = ntp
    f.last_report_timestamp = timestamp
    f.reports[f.report_next].middle_ntp = <uint32_t>(ntp >> 16)
    f.reports[f.report_next].at = t.now
    f.report_next = (f.report_next + 1) & 7
    out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
    size = write_sender_report(out, f.ssrc, ntp, timestamp, <uint32_t>f.packets, <uint32_t>f.payload_bytes)
    size += write_cname(out + size, f.ssrc, f.cname)
    send_rtcp(t, f.transport, f.srtp, out, size)
    if f.rtx_ssrc and f.answered:
        out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
        size = write_sender_report(out, f.rtx_ssrc, ntp, timestamp, <uint32_t>f.answered, <uint32_t>f.rtx_bytes)
        size += write_cname(out + size, f.rtx_ssrc, f.cname)
        send_rtcp(t, f.transport, f.srtp, out, size)


cdef inline int64_t forwarder_tick(Thread *t, Forwarder *f) noexcept nogil:
    if f.ledger.crowded and f.ledger.slots < LEDGER_SLOTS_MAX:
        ledger_grow(&f.ledger, 2 * f.ledger.slots)
    if f.report_at == 0:
        return 0
    if t.now - f.last_sent > 2 * REPORT_INTERVAL_AUDIO:
        f.report_at = 0     # silent: begins again with the next packet
        return 0
    if f.report_at <= t.now + REPORT_TOGETHER:
        send_sender_report(t, f)
        f.report_at = t.now + report_interval(t, f.video)
    return f.report_at


cdef inline void transport_tick(Thread *t, Transport *transport) noexcept nogil:
    """Everything that is due, then the next deadline."""
    cdef Track *track
    cdef int64_t next_at = twcc_tick(t, transport), report_at = 0
    cdef int i, j
    for i in range(transport.track_count):
        track = transport.tracks[i]
        for j in range(track.layer_count):
            next_at = earlier(next_at, stream_tick(t, track.layers[j]))
            report_at = earlier(report_at, track.layers[j].report_at)
        next_at = earlier(next_at, stall_tick(t, track))
    if report_at and report_at <= t.now:
        send_receiver_report(t, transport)
        for i in range(transport.track_count):
            for j in range(transport.tracks[i].layer_count):
                next_at = earlier(next_at, transport.tracks[i].layers[j].report_at)
    for i in range(transport.forwarder_count):
        next_at = earlier(next_at, forwarder_tick(t, transport.forwarders[i]))
    if next_at:
        schedule(t, transport, next_at if next_at > t.now else t.now + 1000)
