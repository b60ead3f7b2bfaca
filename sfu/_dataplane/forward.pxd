"""One packet to one subscriber, and the change of a subscriber's source (FWD-1 to FWD-4, SW-1 to SW-4).

Runs in the thread that owns the subscriber's transport. `forward` is the hot path: per subscriber one header, one
memcpy, one srtp_protect; no allocation.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from sfu._dataplane.cache cimport CACHED_PACKET_MAX, cache_copy
from sfu._dataplane.egress cimport next_transport_seq, reachable, room, send_rtp, send_time
from sfu._dataplane.graph cimport (
    DROP_BLOCKED, DROP_DUPLICATE, DROP_LATE, KEY_LATE, KEY_NONE, NO_PAYLOAD_TYPE, RECENT_SOURCES, SRTP_TRAILER_MAX,
    Fanout, Forwarder, Job, Source, SourceClock, Stream, Thread, Track,
)
from sfu._dataplane.keyframe cimport C_VP8
from sfu._dataplane.keyframes cimport KEYFRAME_RETRY, want_keyframe
from sfu._dataplane.ledger cimport Sent, ledger_find, ledger_sent
from sfu._dataplane.machine cimport load_i64, next_random, prefetch
from sfu._dataplane.ops cimport clock_read, count_drop, list_add, list_remove, schedule
from sfu._dataplane.packet cimport RTP_GROWTH_MAX, OutFields, parse_rtp, write_packet, write_padding_packet
from sfu._dataplane.sequence cimport map_drop, map_forward, map_switch
from sfu._dataplane.tables cimport table_get
from sfu._dataplane.vp8 cimport vp8_map, vp8_read, vp8_switch

cdef enum:
    LATE_MAX = 1000                 # out numbers behind the newest that a late packet may still take (FWD-4)
    MAPPING_DRIFT_MAX = 2000000     # us between two clocks' answers above which arrival time is trusted instead
    RESUME_DRIFT_MAX = 200000       # us, the same after a pause of one source (SW-7)
    STEP_BACK_MAX = 50000           # us a new source may lie behind and still be joined with one frame's step (SW-2)
    FRAME_STEP = 33000              # us
    CATCH_UP_MAX = 200              # packets between the first of a key frame that is late and the newest (SW-4)
    BUDGET_WINDOW = 1000000         # us
    LEDGER_SLOTS_MAX = 8192


cdef inline int64_t ticks_to_us(int64_t ticks, uint32_t clock_rate) noexcept nogil:
    return ticks * 1000000 // clock_rate


cdef inline int64_t us_to_ticks(int64_t us, uint32_t clock_rate) noexcept nogil:
    return us * clock_rate // 1000000


# -- which layer -----------------------------------------------------------------------------------------------------

cdef inline bint same_rid(const char *a, const char *b) noexcept nogil:
    while a[0] and a[0] == b[0]:
        a += 1
        b += 1
    return a[0] == b[0]


cdef inline Stream *choose_layer(const Source *source) noexcept nogil:
    """The wished layer if it is alive or no other may stand in for it; else the next live one, best to worst and round.

    Without a wish, or with one for a layer that there is not, that is the best live one. None alive: the wished one.
    """
    cdef Track *track = source.track
    cdef Stream *wished = NULL
    cdef Stream *s
    cdef int i, first = 0
    if track.layer_count == 1:
        return track.layers[0]
    for i in range(track.layer_count):
        if source.rid[0] and same_rid(source.rid, track.layers[i].rid):
            wished = track.layers[i]
            first = i
    if wished != NULL and not source.fallback:
        return wished
    for i in range(track.layer_count):
        s = track.layers[(first + i) % track.layer_count]
        if s.alive:
            return s
    return wished


# -- linking: lists of this thread only ----------------------------------------------------------------------------

cdef inline void unlink_stream(Thread *t, Forwarder *f, Stream *s) noexcept nogil:
    """Leave a stream's list unless the other source of `f` still needs it."""
    if s != NULL and f.current.stream != s and f.next.stream != s:
        list_remove(&s.fanout[t.index].forwarders, f)


cdef inline void set_next_stream(Thread *t, Forwarder *f, Stream *s) noexcept nogil:
    """Wait for `s` (NULL: for nothing)."""
    cdef Stream *old = f.next.stream
    f.next.stream = s
    f.skipped_keyframe = 0
    if old != s:
        f.waited_until = 0
    if s != NULL:
        list_add(&s.fanout[t.index].forwarders, f)
    if old != s:
        unlink_stream(t, f, old)


cdef inline void drop_source(Thread *t, Forwarder *f, Source *source) noexcept nogil:
    """Forget `current` or `next`, with its list entries."""
    cdef Stream *s = source.stream
    cdef Track *track = source.track
    source.stream = NULL
    source.track = NULL
    unlink_stream(t, f, s)
    if track != NULL and f.current.track != track and f.next.track != track:
        list_remove(&track.members[t.index], f)


cdef inline void choose_source(Thread *t, Forwarder *f) noexcept nogil:
    """Set what `f` waits for, after a wish, a start, a death of a layer, or a resume (LAY-1)."""
    cdef Stream *s
    if f.next.track == NULL:
        # Nothing asked for: is the layer in use still the one to use?
        if f.current.track == NULL:
            return
        s = choose_layer(&f.current)
        if s == f.current.stream or s == NULL:
            return
        f.next = f.current
        f.next.stream = NULL
    else:
        s = choose_layer(&f.next)
        if s != NULL and s == f.current.stream and f.next.track == f.current.track:
            # Already playing: take over the wish and the payload types.
            set_next_stream(t, f, NULL)
            f.current.rid = f.next.rid
            f.current.fallback = f.next.fallback
            f.current.payload_types = f.next.payload_types
            f.current.rtx_payload_types = f.next.rtx_payload_types
            f.next.track = NULL
            return
    set_next_stream(t, f, s)
    if s != NULL and not s.alive and not f.next.fallback:
        # Only this layer is wanted, and nothing comes of it: no other of the track plays until it does.
        if f.current.track == f.next.track:
            drop_source(t, f, &f.current)
        return
    if s != NULL and f.video and not f.paused and f.srtp != NULL and reachable(f.transport):
        want_keyframe(t, s)


cdef inline void restart_forwarder(Thread *t, Forwarder *f) noexcept nogil:
    """Begin anew on the same source, at a key frame (resume, new keys): numbers and timestamps continue."""
    if f.next.track == NULL:
        if f.current.track == NULL:
            return
        f.next = f.current
    drop_source(t, f, &f.current)
    choose_source(t, f)


# -- switching -------------------------------------------------------------------------------------------------------

cdef inline bint capture_step(Thread *t, Forwarder *f, Stream *to, uint32_t timestamp, int64_t *step) noexcept nogil:
    """SW-2: us between the last packet sent and this one by both layers' sender reports. False: not comparable."""
    cdef Stream *from_ = <Stream *>table_get(&t.plane.streams, f.last_stream)
    cdef SourceClock old, new
    cdef int64_t ntp_us
    if from_ == NULL or from_.track.transport != to.track.transport or from_.clock_rate == 0:
        return False
    if not clock_read(&from_.clock, &old) or not clock_read(&to.clock, &new):
        return False
    ntp_us = <int64_t>(<double><int64_t>(new.ntp - old.ntp) * 1e6 / 4294967296.0)
    step[0] = (
        ntp_us
        + ticks_to_us(<int32_t>(timestamp - new.timestamp), to.clock_rate)
        - ticks_to_us(<int32_t>(f.last_source_timestamp - old.timestamp), from_.clock_rate)
    )
    return True


cdef inline bint join_timestamps(Thread *t, Forwarder *f, Stream *s, const Job *job) noexcept nogil:
    """SW-2: set the offset so that out timestamps go on. False: let this key frame go by and ask for another."""
    cdef uint32_t rate = s.clock_rate if s.clock_rate else 90000
    cdef uint32_t source = job.view.timestamp
    cdef int64_t elapsed = job.received - f.last_sent
    cdef int64_t step = elapsed, ticks
    if not f.started:
        f.timestamp_offset = <uint32_t>next_random(&t.random)
        return True
    if f.last_stream == s.id and f.last_clock_rate == rate:
        step = ticks_to_us(<int32_t>(source + f.timestamp_offset - f.last_timestamp), rate)
        if step - elapsed > RESUME_DRIFT_MAX or elapsed - step > RESUME_DRIFT_MAX:
            step = elapsed
    elif capture_step(t, f, s, source, &step):
        if step - elapsed > MAPPING_DRIFT_MAX or elapsed - step > MAPPING_DRIFT_MAX:
            step = elapsed
    if step <= 0:
        if step >= -STEP_BACK_MAX or not f.video:
            step = FRAME_STEP
        elif not f.skipped_keyframe:
            f.skipped_keyframe = 1
            return False
        else:
            step = 0
    ticks = us_to_ticks(step, rate)
    if ticks < 1:
        ticks = 1
    f.timestamp_offset = f.last_timestamp + <uint32_t>ticks - source
    return True


cdef inline bint switch_source(Thread *t, Forwarder *f, Stream *s, const Job *job) noexcept nogil:
    """SW-1 to SW-3: the first packet of the new source is here. False: not yet."""
    cdef Source old
    if f.video and not job.keyframe:
        return False
    if job.padding_only:
        return False
    if job.keyframe == KEY_LATE and load_i64(&s.cache.highest) - job.ext_seq > CATCH_UP_MAX:
        want_keyframe(t, s)
        return False
    if not join_timestamps(t, f, s, job):
        want_keyframe(t, s)
        return False
    if f.next.stream == s and f.next.track != NULL:
        old = f.current
        f.current = f.next
        f.next.track = NULL
        f.next.stream = NULL
        unlink_stream(t, f, old.stream)
        if old.track != NULL and old.track != f.current.track:
            list_remove(&old.track.members[t.index], f)
    f.current.epoch = job.epoch
    f.skipped_keyframe = 0
    f.waited_until = 0
    map_switch(&f.map, job.ext_seq, f.video and f.started and not f.last_marker)
    f.stay = <uint8_t>(f.stay + 1)
    f.recent[f.stay & (RECENT_SOURCES - 1)] = s.id
    vp8_switch(&f.vp8)
    f.last_stream = s.id
    f.last_clock_rate = s.clock_rate if s.clock_rate else 90000
    return True


cdef inline void await_keyframe(Thread *t, Forwarder *f, Stream *s) noexcept nogil:
    """The source that `f` waits for sends, but no key frame: book the wait, and ask anew when nobody asks any more.

    Asking ends at the first packet of a key frame, which may be lost between threads as the request may be, and after
    30 s (KF-2).
    """
    if f.waited_until == 0:
        f.waited_until = t.now
    elif t.now - f.waited_until >= KEYFRAME_RETRY:
        f.waited_until = t.now
        t.counters.keyframe_wait_seconds += 1
        if load_i64(&s.need_since) == 0:
            want_keyframe(t, s)


# -- one packet --------------------------------------------------------------------------------------------------------

cdef inline void book_media(Forwarder *f, int64_t now, uint64_t size) noexcept nogil:
    """CACHE-6: what the resend budget is measured against."""
    if now - f.budget_since >= BUDGET_WINDOW:
        roll_budget(f, now)
    f.media_now += size


cdef inline void roll_budget(Forwarder *f, int64_t now) noexcept nogil:
    cdef bint adjacent = now - f.budget_since < 2 * BUDGET_WINDOW
    f.media_before = f.media_now if adjacent else 0
    f.resent_before = f.resent_now if adjacent else 0
    f.media_now = 0
    f.resent_now = 0
    f.budget_since = now


cdef inline void forward(Thread *t, Stream *s, Forwarder *f, const Job *job) noexcept nogil:
    cdef int64_t out
    cdef int size
    cdef bint filler, late
    cdef uint8_t payload_type
    cdef uint8_t *packet
    cdef OutFields fields
    cdef Sent *entry
    if f.paused or f.srtp == NULL or not reachable(f.transport):
        return
    if f.current.stream != s or f.current.epoch != job.epoch:
        if f.next.stream != s and f.current.stream != s:
            return
        if f.current.stream == s and f.next.stream != s and <int32_t>(job.epoch - f.current.epoch) < 0:
            return
        if not switch_source(t, f, s, job):
            if f.video:
                await_keyframe(t, f, s)
            return
    payload_type = f.current.payload_types[job.view.payload_type]
    filler = job.padding_only or payload_type == NO_PAYLOAD_TYPE
    if filler:
        out = map_drop(&f.map, job.ext_seq)
        if out < 0:
            return
        payload_type = f.ledger.entries[f.ledger.highest & (f.ledger.slots - 1)].payload_type
    else:
        out = map_forward(&f.map, job.ext_seq)
        if out < 0:
            count_drop(t, DROP_LATE)
            return
    late = f.started and out <= f.last_out
    if late:
        entry = ledger_find(&f.ledger, out)
        if entry != NULL:
            count_drop(t, DROP_DUPLICATE)
            return
        if f.last_out - out >= LATE_MAX:
            count_drop(t, DROP_LATE)
            return
    fields.payload_type = payload_type
    fields.marker = job.view.marker
    fields.seq = <uint16_t>out
    fields.timestamp = job.view.timestamp + f.timestamp_offset
    fields.ssrc = f.ssrc
    fields.osn = -1
    entry = ledger_sent(&f.ledger, out, job.ext_seq, t.now, filler)
    entry.payload_type = payload_type
    entry.timestamp = fields.timestamp
    entry.stay = f.stay
    if job.vp8.fields and not filler:
        vp8_map(&f.vp8, &job.vp8, late, &entry.vp8)
    fields.vp8 = entry.vp8
    if f.blocked:
        if f.video and job.view.timestamp == f.last_source_timestamp and not late:
            # The frame is cut already (IO-2): the rest would cost the link and show nothing.
            note_sent(f, job, out, fields.timestamp, t.now)
            entry.transport_seq = 0
            entry.send_time = -2
            count_drop(t, DROP_BLOCKED)
            return
        f.blocked = 0
    fields.transport_seq = next_transport_seq(f.transport, f.template.out_id)
    fields.send_time = send_time(t, f.template.out_id)
    entry.transport_seq = <uint16_t>fields.transport_seq
    entry.send_time = fields.send_time
    packet = room(t, <uint32_t>job.view.size + RTP_GROWTH_MAX + SRTP_TRAILER_MAX)
    if filler:
        size = write_padding_packet(packet, &job.view, &f.template, &fields)
    else:
        size = write_packet(packet, &job.view, &f.template, &fields)
    if not late:
        note_sent(f, job, out, fields.timestamp, t.now)
    if not send_rtp(t, f, packet, size, job.received):
        return
    f.packets += 1
    f.bytes += <uint64_t>size
    f.payload_bytes += <uint64_t>job.view.payload_size
    book_media(f, t.now, <uint64_t>size)
    t.counters.forwarded += 1


cdef inline void note_sent(Forwarder *f, const Job *job, int64_t out, uint32_t timestamp, int64_t now) noexcept nogil:
    """The newest packet: what the next one, a switch and the sender reports go on from."""
    f.last_out = out
    f.last_sent = now
    f.last_marker = job.view.marker
    f.last_timestamp = timestamp
    f.last_source_timestamp = job.view.timestamp
    f.started = 1
    if f.report_at == 0:
        f.report_at = now   # first SR at once (RTCP-1)


cdef inline void catch_up(Thread *t, Stream *s, Forwarder *f, const Job *first) noexcept nogil:
    """SW-4: `f` has begun with `first`, which was late. What of the key frame came before it follows from the cache."""
    cdef uint8_t data[CACHED_PACKET_MAX]
    cdef Job job = first[0]
    cdef int64_t last = load_i64(&s.cache.highest)
    cdef int size
    job.keyframe = KEY_NONE
    while s.cache.pages != NULL and job.ext_seq < last:
        job.ext_seq += 1
        size = cache_copy(&s.cache, job.ext_seq, data, t.now)
        if size < 0 or not parse_rtp(&job.view, data, size, s.track.ids):
            continue
        job.padding_only = job.view.payload_size == 0
        job.vp8.fields = 0
        if s.codec == C_VP8:
            vp8_read(data + job.view.header_size, job.view.payload_size, &job.vp8)
        forward(t, s, f, &job)


cdef inline void forward_jobs(Thread *t, Stream *s) noexcept nogil:
    """Every job of one stream to every subscriber of this thread: subscriber by subscriber, so that trains form."""
    cdef Fanout *fanout = &s.fanout[t.index]
    cdef Forwarder *f
    cdef int i = 0, at
    while i < fanout.forwarders.count:
        f = fanout.forwarders.items[i]
        if i + 1 < fanout.forwarders.count:
            prefetch(fanout.forwarders.items[i + 1])
        at = fanout.first_job
        while at >= 0:
            forward(t, s, f, &t.jobs[at])
            if t.jobs[at].keyframe == KEY_LATE and f.current.stream == s and f.map.first == t.jobs[at].ext_seq:
                catch_up(t, s, f, &t.jobs[at])
            at = t.jobs[at].next
        if f.report_at == t.now or (f.ledger.crowded and f.ledger.slots < LEDGER_SLOTS_MAX):
            schedule(t, f.transport, t.now)
        # A switch may have taken `f` off this list (never another one): then its place holds a new one.
        if i < fanout.forwarders.count and fanout.forwarders.items[i] == f:
            i += 1
