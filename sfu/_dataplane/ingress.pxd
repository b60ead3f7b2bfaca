"""What comes in: RFC 7983 demultiplexing, SRTP, SSRC to stream (DMX-4), reception (RX, RTX-1), and the jobs it makes.

Runs in the thread that owns the transport; a datagram that came to another thread's socket is handed over as a parcel.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memmove

from sfu._dataplane.cache cimport cache_clear, cache_has, cache_init, cache_store
from sfu._dataplane.feedback cimport receive_rtcp
from sfu._dataplane.forward cimport choose_source, forward_jobs
from sfu._dataplane.graph cimport (
    BOUND_MEDIA, BOUND_NOTHING, BOUND_ORPHAN, BOUND_RETIRED, BOUND_RTCP, BOUND_RTX, CROSS_LAYERS, CROSS_PACKET, DROP_AUTHENTICATION,
    DROP_DUPLICATE, DROP_EMPTY, DROP_FIRST_BYTE, DROP_JUMP, DROP_MALFORMED, DROP_NO_KEYS, DROP_NO_MEMORY, DROP_OVERSIZE,
    DROP_PADDING, DROP_PARCEL_FULL, DROP_PAYLOAD_TYPE, DROP_PROBE, DROP_REPLAY, DROP_RETIRED_SSRC, DROP_RING_FULL,
    DROP_SHORT, DROP_STALE, DROP_STRANGER, DROP_STUN_BUDGET, DROP_UNBOUND, JOBS_MAX, PARCEL_SLOTS, RID_MAX,
    SRTP_TRAILER_MAX, CrossEntry, Fanout, Job, Parcel, ParcelRing, PayloadType, Stream, Thread, Track, Transport,
    consumers, count_drop, cross_begin, cross_commit, cross_request, schedule, wake,
)
from sfu._dataplane.keyframe cimport keyframe_start
from sfu._dataplane.keyframes cimport keyframe_arrived, need_keyframe
from sfu._dataplane.loss cimport loss_receive, loss_restart
from sfu._dataplane.machine cimport add_i64, load_int, load_u32, read16, read32, store_i64, store_u32, write16, write32
from sfu._dataplane.packet cimport (
    RTP_SIZE_MAX, X_MID, X_REPAIRED_RID, X_RID, X_TRANSPORT_CC, Element, RtpView, find_element, parse_rtp,
)
from sfu._dataplane.sequence cimport nearest, unwrap
from sfu._dataplane.tables cimport (
    IdEntry, TupleEntry, bucket_take, table_delete, table_find, table_put, tuple_find,
)
from sfu._dataplane.twcc cimport TwccLog, twcc_init, twcc_record
from sfu._dataplane.upcalls cimport (
    UP_DTLS, UP_STREAM_STARTED, UP_STUN, UP_TRACK_RESUMED, UPCALL_DATA_MAX, upcall_datagram, upcall_stream,
)
from wire._batch.udp cimport Address

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t v)

cdef enum:
    SRTP_AUTH_FAIL = 7          # srtp_err_status_t
    SRTP_REPLAY_FAIL = 9
    SRTP_REPLAY_OLD = 10
    RTX_AHEAD_MAX = 1000        # numbers a repair may be ahead of the highest original
    RTX_BEHIND_MAX = 10000
    TWCC_INTERVAL = 100000      # us (TCC-2)
    TWCC_EARLY = 50000          # us, on a marker
    TWCC_PACKETS = 100
    TWCC_MIN = 50000
    REPORT_INTERVAL_VIDEO = 1000000
    REPORT_INTERVAL_AUDIO = 5000000
    CACHE_SLOTS_VIDEO = 256     # at first; timers grow it
    CACHE_BYTES_VIDEO = 262144
    CACHE_AGE_VIDEO = 2000000   # us
    CACHE_SLOTS_AUDIO = 64
    CACHE_BYTES_AUDIO = 8192
    CACHE_AGE_AUDIO = 1000000
    GROWTH_DELAY = 50000        # us


# -- jobs --------------------------------------------------------------------------------------------------------------

cdef inline void cross_jobs(Thread *t, Stream *s) noexcept nogil:
    """Tell every other thread that has subscribers of `s`; it copies the packets from the cache."""
    cdef int to, at
    cdef CrossEntry *entry
    cdef Job *job
    for to in range(t.plane.thread_count):
        if to == t.index or load_int(&s.fanout[to].forwarders.count) == 0:
            continue
        at = s.fanout[t.index].first_job
        while at >= 0:
            job = &t.jobs[at]
            entry = cross_begin(t, to)
            if entry == NULL:
                count_drop(t, DROP_RING_FULL)
                break
            entry.kind = CROSS_PACKET
            entry.stream = s.id
            entry.ext_seq = job.ext_seq
            entry.received = job.received
            entry.epoch = job.epoch
            entry.keyframe = job.keyframe
            entry.frame_start = job.frame_start
            entry.padding_only = job.padding_only
            cross_commit(t, to)
            t.counters.crossed += 1
            at = job.next
        wake(&t.plane.threads[to])


cdef inline void run_jobs(Thread *t) noexcept nogil:
    """Forward what the batch decrypted so far."""
    cdef int i
    cdef Stream *s
    for i in range(t.touched_count):
        s = t.touched[i]
        if t.plane.thread_count > 1 and s.track.transport.owner == t.index:
            cross_jobs(t, s)
        forward_jobs(t, s)
        s.fanout[t.index].first_job = -1
    t.job_count = 0
    t.touched_count = 0


cdef inline Job *new_job(Thread *t) noexcept nogil:
    """The next job; what is queued goes first when all are taken."""
    if t.job_count == JOBS_MAX:
        run_jobs(t)
    return &t.jobs[t.job_count]


cdef inline void add_job(Thread *t, Stream *s) noexcept nogil:
    """Queue the job of `new_job` for `s`."""
    cdef Fanout *fanout = &s.fanout[t.index]
    t.jobs[t.job_count].next = -1
    if fanout.first_job < 0:
        fanout.first_job = t.job_count
        t.touched[t.touched_count] = s
        t.touched_count += 1
    else:
        t.jobs[fanout.last_job].next = t.job_count
    fanout.last_job = t.job_count
    t.job_count += 1


# -- SSRC to stream (DMX-4) ------------------------------------------------------------------------------------------

cdef inline void forget_ssrc(Thread *t, Transport *from_, uint32_t ssrc) noexcept nogil:
    cdef IdEntry *entry = table_find(&from_.incoming, <uint64_t>ssrc + 1)
    cdef Stream *s
    if entry == NULL:
        return
    s = <Stream *>entry.value
    if s != NULL and s.ssrc == ssrc:
        s.ssrc = 0
    if s != NULL and s.rtx_ssrc == ssrc:
        s.rtx_ssrc = 0
    table_delete(&from_.incoming, <uint64_t>ssrc + 1)
    t.plane.remove_stream(from_.srtp_in, htonl(ssrc))


cdef inline IdEntry *learn_ssrc(Thread *t, Transport *from_, uint32_t ssrc, Stream *s, int binding) noexcept nogil:
    """Note an authenticated SSRC; the one learnt first goes when the table is full (SRTP-2). NULL: memory is short."""
    cdef int limit = t.plane.max_streams_per_transport
    cdef uint32_t *place
    if from_.learnt_ring == NULL:
        from_.learnt_ring = <uint32_t *>malloc(limit * sizeof(uint32_t))
        if from_.learnt_ring == NULL:
            return NULL
    place = &from_.learnt_ring[from_.learnt % limit]
    if from_.learnt >= <uint64_t>limit:
        forget_ssrc(t, from_, place[0])
    place[0] = ssrc
    from_.learnt += 1
    return table_put(&from_.incoming, <uint64_t>ssrc + 1, s, binding)


cdef inline void restart_stream(Thread *t, Stream *s) noexcept nogil:
    """Numbers begin anew (RX-2, DMX-4): nothing missing, nothing cached, subscribers join at a key frame."""
    s.epoch += 1
    loss_restart(&s.loss)
    if s.cache.pages != NULL:
        cache_clear(&s.cache)
    s.nack_at = 0
    s.first_seq = -1
    s.received = 0
    s.expected_before = 0
    s.received_before = 0
    s.jitter = 0
    s.last_transit = 0
    s.last_keyframe = -1
    if consumers(s):
        need_keyframe(t, s)


cdef inline void retire_ssrc(Transport *from_, uint32_t ssrc) noexcept nogil:
    cdef IdEntry *entry = table_find(&from_.incoming, <uint64_t>ssrc + 1)
    if entry != NULL:
        entry.value = NULL
        entry.extra = BOUND_RETIRED


cdef inline void bind_media(Thread *t, Transport *from_, Stream *s, uint32_t ssrc) noexcept nogil:
    """A new SSRC for this layer replaces the old one."""
    if s.ssrc == ssrc:
        return
    if s.ssrc:
        retire_ssrc(from_, s.ssrc)
        if s.unwrapper.highest >= 0:
            # Stay above everything numbered before: the next cycle.
            s.unwrapper.highest = ((s.unwrapper.highest >> 16) + 1) << 16
            s.unwrapper.bad_seq = -1
            s.rebound = 1
            restart_stream(t, s)
    s.ssrc = ssrc
    s.clock.received = 0


cdef inline Track *track_by_mid(Transport *from_, const uint8_t *mid, int length) noexcept nogil:
    cdef int i
    for i in range(from_.track_count):
        if from_.tracks[i].mid_length == length and memcmp(from_.tracks[i].mid, mid, length) == 0:
            return from_.tracks[i]
    return NULL


cdef inline Track *track_by_payload_type(Transport *from_, int payload_type) noexcept nogil:
    """RFC 9143 9.2: only if exactly one section negotiated it."""
    cdef Track *found = NULL
    cdef int i
    for i in range(from_.track_count):
        if from_.tracks[i].payload_types[payload_type].known:
            if found != NULL:
                return NULL
            found = from_.tracks[i]
    return found


cdef inline Stream *layer_by_rid(Track *track, const uint8_t *rid, int length) noexcept nogil:
    cdef int i
    for i in range(track.layer_count):
        if length <= RID_MAX and track.layers[i].rid[length] == 0 and memcmp(track.layers[i].rid, rid, length) == 0:
            return track.layers[i]
    return NULL


cdef inline void bind(Thread *t, Transport *from_, const RtpView *view, IdEntry *entry) noexcept nogil:
    """Find the layer an SSRC belongs to, by MID and RID or repaired RID, else by its payload type."""
    cdef const Element *mid = find_element(view, X_MID)
    cdef const Element *rid = find_element(view, X_RID)
    cdef const Element *repaired = find_element(view, X_REPAIRED_RID)
    cdef Track *track
    cdef Stream *s = NULL
    cdef bint rtx
    if view.ssrc == 0:
        return      # a probe before any media: it only feeds transport-wide feedback (RX-3)
    if mid != NULL:
        track = track_by_mid(from_, view.data + mid.offset, mid.length)
    elif entry.extra == BOUND_ORPHAN:
        return
    else:
        track = track_by_payload_type(from_, view.payload_type)
    if track == NULL or not track.payload_types[view.payload_type].known:
        return
    rtx = track.payload_types[view.payload_type].apt >= 0
    if not rtx and rid != NULL and track.layers[0].rid[0]:
        s = layer_by_rid(track, view.data + rid.offset, rid.length)
    elif rtx and repaired != NULL and track.layers[0].rid[0]:
        s = layer_by_rid(track, view.data + repaired.offset, repaired.length)
    elif track.layer_count == 1:
        s = track.layers[0]
    if s == NULL or (mid == NULL and not rtx and s.ssrc and s.alive):
        return  # a payload type alone does not take a layer from an SSRC that is live
    entry.value = s
    entry.extra = BOUND_RTX if rtx else BOUND_MEDIA
    if rtx:
        if s.rtx_ssrc and s.rtx_ssrc != view.ssrc:
            retire_ssrc(from_, s.rtx_ssrc)
        s.rtx_ssrc = view.ssrc
    else:
        bind_media(t, from_, s, view.ssrc)


# -- one packet of a layer -------------------------------------------------------------------------------------------

cdef inline void count_reception(Thread *t, Stream *s, const RtpView *view, int64_t ext_seq, int size) noexcept nogil:
    """RTCP-4: what receiver reports are made of; originals only."""
    cdef int64_t transit
    cdef double d
    if s.first_seq < 0:
        s.first_seq = ext_seq
    s.received += 1
    if s.clock_rate:
        transit = t.now * s.clock_rate // 1000000 - <int64_t>view.timestamp
        if s.last_transit:
            d = <double><int32_t>(<uint32_t>transit - <uint32_t>s.last_transit)
            s.jitter += ((d if d >= 0 else -d) - s.jitter) / 16
        s.last_transit = transit


cdef inline void announce(Thread *t, Stream *s) noexcept nogil:
    """A layer came (back) to life: let every thread choose again, and tell Python of a first or a resumed one."""
    cdef Track *track = s.track
    cdef int i
    if not s.started:
        s.started = 1
        upcall_stream(t, UP_STREAM_STARTED, s, s.ssrc)
    if track.stalled:
        track.stalled = 0
        upcall_stream(t, UP_TRACK_RESUMED, s, s.ssrc)
    s.alive = 1
    for i in range(t.plane.thread_count):
        if load_int(&track.members[i].count) == 0:
            continue
        if i == t.index:
            choose_again(t, track)
        else:
            cross_request(t, i, CROSS_LAYERS, s.id)


cdef inline void choose_again(Thread *t, Track *track) noexcept nogil:
    """The set of live layers changed: this thread's subscribers of the track."""
    cdef int i
    for i in range(track.members[t.index].count):
        choose_source(t, track.members[t.index].items[i])


cdef inline void ensure_cache(Thread *t, Stream *s) noexcept nogil:
    """A layer that someone consumes is cached; the pages come with the first consumer's first packet."""
    cdef bint video = s.track.video
    cdef int64_t size = CACHE_BYTES_VIDEO if video else CACHE_BYTES_AUDIO
    if add_i64(&t.plane.cache_bytes, size) > t.plane.cache_bytes_max:
        add_i64(&t.plane.cache_bytes, -size)
        return
    if cache_init(
        &s.cache,
        CACHE_SLOTS_VIDEO if video else CACHE_SLOTS_AUDIO,
        <uint64_t>size,
        CACHE_AGE_VIDEO if video else CACHE_AGE_AUDIO,
    ):
        s.cache_bytes = <uint64_t>size
    else:
        add_i64(&t.plane.cache_bytes, -size)
        count_drop(t, DROP_NO_MEMORY)


cdef inline void receive_media(Thread *t, Stream *s, Job *job, uint8_t *data, int size, bint recovered) noexcept nogil:
    """A packet of a layer, original or recovered: number it, note losses, cache it, make it a job (sections 5 to 8)."""
    cdef Transport *from_ = s.track.transport
    cdef RtpView *view = &job.view
    cdef PayloadType *kind = &s.track.payload_types[view.payload_type]
    cdef int64_t ext_seq
    cdef bint wanted
    if not kind.known or kind.apt >= 0:
        count_drop(t, DROP_PAYLOAD_TYPE)
        return
    if recovered:
        ext_seq = nearest(s.unwrapper.highest, view.seq)
        if s.unwrapper.highest < 0 or ext_seq - s.unwrapper.highest > RTX_AHEAD_MAX or s.unwrapper.highest - ext_seq > RTX_BEHIND_MAX or ext_seq < s.first_seq:
            count_drop(t, DROP_STALE)
            return
    else:
        if s.rebound:
            s.rebound = 0
            s.unwrapper.highest |= view.seq
        ext_seq = unwrap(&s.unwrapper, view.seq)
        if ext_seq < 0:
            count_drop(t, DROP_JUMP)
            return
        if s.unwrapper.resynced:
            s.unwrapper.resynced = False
            restart_stream(t, s)
        s.codec = kind.codec
        s.clock_rate = kind.clock_rate
        s.nack = kind.nack
        s.asks_pli = kind.pli
        s.asks_fir = kind.fir
        count_reception(t, s, view, ext_seq, size)
    store_i64(&s.last_packet, t.now)
    if not s.alive:
        announce(t, s)
    wanted = consumers(s) != 0
    if s.report_at == 0:
        s.report_at = t.now + (REPORT_INTERVAL_VIDEO if s.track.video else REPORT_INTERVAL_AUDIO)
        schedule(t, from_, t.now + (t.plane.stall_after if t.plane.stall_after < 1000000 else 1000000))
    if loss_receive(&s.loss, ext_seq, t.now, recovered):
        if wanted:
            need_keyframe(t, s)
    if s.loss.first_try_rtt:
        s.rtt = (s.rtt + 3 * s.loss.first_try_rtt) // 4 if s.rtt else s.loss.first_try_rtt
        s.loss.first_try_rtt = 0
    if s.loss.alive and s.nack and wanted and s.nack_at == 0:
        s.nack_at = t.now + s.loss.first_delay
        schedule(t, from_, s.nack_at)
    job.padding_only = view.payload_size == 0
    if job.padding_only:
        count_drop(t, DROP_PADDING if view.padding_size else DROP_EMPTY)
    s.packets += 1
    s.bytes += <uint64_t>size
    s.rate_bytes += <uint64_t>size
    job.frame_start = view.timestamp != s.last_timestamp
    if not recovered:
        s.last_timestamp = view.timestamp
    job.keyframe = s.track.video and not job.padding_only and keyframe_start(s.codec, data + view.header_size, view.payload_size)
    if job.keyframe:
        keyframe_arrived(s, ext_seq, view.timestamp)
    elif s.track.video and s.codec == 0 and job.frame_start and not job.padding_only:
        keyframe_arrived(s, ext_seq, view.timestamp)    # opaque: our request is answered by the next frame, as far as can be told
    if not wanted:
        return
    if s.cache.pages == NULL:
        ensure_cache(t, s)
    if s.cache.pages != NULL:
        if cache_has(&s.cache, ext_seq):
            count_drop(t, DROP_DUPLICATE)
            return
        cache_store(&s.cache, ext_seq, data, size, t.now)
        if s.cache.crowded:
            schedule(t, from_, t.now + GROWTH_DELAY)
    job.ext_seq = ext_seq
    job.received = t.now
    job.epoch = s.epoch
    add_job(t, s)


cdef inline void receive_rtx(Thread *t, Stream *s, Job *job, uint8_t *data, int size) noexcept nogil:
    """RTX-1: restore the original in place, two bytes further on, and take it as a recovered packet."""
    cdef RtpView *view = &job.view
    cdef int apt = s.track.payload_types[view.payload_type].apt
    cdef uint16_t osn
    if view.payload_size < 2:
        count_drop(t, DROP_PROBE)
        return
    if apt < 0 or s.ssrc == 0:
        count_drop(t, DROP_PAYLOAD_TYPE)
        return
    osn = read16(data + view.header_size)
    memmove(data + 2, data, view.header_size)
    data += 2
    size -= 2 + view.padding_size
    data[0] &= 0xDF
    data[1] = <uint8_t>((view.marker << 7) | apt)
    write16(data + 2, osn)
    write32(data + 8, s.ssrc)
    if not parse_rtp(view, data, size, s.track.ids):
        count_drop(t, DROP_MALFORMED)
        return
    receive_media(t, s, job, data, size, True)


cdef inline void note_transport_seq(Thread *t, Transport *from_, const RtpView *view) noexcept nogil:
    """TCC-1, TCC-2: record the arrival and see that feedback goes in time."""
    cdef const Element *e = find_element(view, X_TRANSPORT_CC)
    cdef int64_t at
    if e == NULL or e.length != 2:
        return
    if from_.twcc == NULL:
        from_.twcc = <TwccLog *>malloc(sizeof(TwccLog))
        if from_.twcc == NULL:
            count_drop(t, DROP_NO_MEMORY)
            return
        twcc_init(from_.twcc)
        from_.twcc_at = t.now
    twcc_record(from_.twcc, read16(view.data + e.offset), t.now)
    at = from_.twcc_at + TWCC_INTERVAL
    if from_.twcc.pending > TWCC_PACKETS or (view.marker and t.now - from_.twcc_at >= TWCC_EARLY):
        at = from_.twcc_at + TWCC_MIN
    schedule(t, from_, at if at > t.now else t.now)


cdef inline void srtp_failed(Thread *t, Transport *from_, int error) noexcept nogil:
    if error == SRTP_AUTH_FAIL:
        from_.authentication_failures += 1
        count_drop(t, DROP_AUTHENTICATION)
    elif error == SRTP_REPLAY_FAIL or error == SRTP_REPLAY_OLD:
        from_.replays += 1
        count_drop(t, DROP_REPLAY)
    else:
        count_drop(t, DROP_MALFORMED)


cdef inline void receive_srtp(Thread *t, Transport *from_, uint8_t *data, int size) noexcept nogil:
    """An RTP packet of a transport this thread owns, still protected."""
    cdef uint32_t ssrc = read32(data + 8)
    cdef IdEntry *entry
    cdef Job *job
    cdef int error
    if from_.srtp_in == NULL:
        count_drop(t, DROP_NO_KEYS)
        return
    if size > RTP_SIZE_MAX:
        count_drop(t, DROP_OVERSIZE)
        return
    error = t.plane.unprotect(from_.srtp_in, data, &size)
    if error:
        srtp_failed(t, from_, error)
        return
    from_.packets_in += 1
    from_.bytes_in += <uint64_t>size
    t.counters.rtp_in += 1
    entry = table_find(&from_.incoming, <uint64_t>ssrc + 1)
    if entry == NULL:
        entry = learn_ssrc(t, from_, ssrc, NULL, BOUND_NOTHING)
        if entry == NULL:
            count_drop(t, DROP_NO_MEMORY)
            return
    job = new_job(t)
    if not parse_rtp(&job.view, data, size, from_.ids):
        count_drop(t, DROP_MALFORMED)
        return
    note_transport_seq(t, from_, &job.view)
    if entry.value == NULL or entry.extra == BOUND_RTCP:
        if entry.extra == BOUND_RETIRED:
            count_drop(t, DROP_RETIRED_SSRC)
            return
        bind(t, from_, &job.view, entry)
        if entry.value == NULL:
            count_drop(t, DROP_UNBOUND)
            return
    if entry.extra == BOUND_RTX:
        receive_rtx(t, <Stream *>entry.value, job, data, size)
    else:
        from_.twcc_media_ssrc = ssrc
        receive_media(t, <Stream *>entry.value, job, data, size, False)


cdef inline void receive_srtcp(Thread *t, Transport *from_, uint8_t *data, int size) noexcept nogil:
    cdef uint32_t ssrc = read32(data + 4)
    cdef int error
    if from_.srtp_in == NULL:
        count_drop(t, DROP_NO_KEYS)
        return
    error = t.plane.unprotect_rtcp(from_.srtp_in, data, &size)
    if error:
        srtp_failed(t, from_, error)
        return
    from_.packets_in += 1
    from_.bytes_in += <uint64_t>size
    t.counters.rtcp_in += 1
    if table_find(&from_.incoming, <uint64_t>ssrc + 1) == NULL and learn_ssrc(t, from_, ssrc, NULL, BOUND_RTCP) == NULL:
        count_drop(t, DROP_NO_MEMORY)
        return
    receive_rtcp(t, from_, data, size)


# -- demultiplexing (DMX-1 to DMX-3) -------------------------------------------------------------------------------

cdef inline void hand_over(Thread *t, int owner, int socket_index, const Address *source, const uint8_t *data, int size) noexcept nogil:
    """A datagram of a transport that another thread owns: copied into its parcel ring."""
    cdef ParcelRing *ring = t.plane.parcels[t.index * t.plane.thread_count + owner]
    cdef Parcel *parcel
    if size > <int>sizeof(parcel.data):
        count_drop(t, DROP_OVERSIZE)
        return
    if ring.head - load_u32(&ring.tail) == PARCEL_SLOTS:
        count_drop(t, DROP_PARCEL_FULL)
        return
    parcel = &ring.entries[ring.head & (PARCEL_SLOTS - 1)]
    parcel.size = size
    parcel.socket_index = socket_index
    parcel.received = t.now
    parcel.source = source[0]
    memcpy(parcel.data, data, size)
    store_u32(&ring.head, ring.head + 1)
    wake(&t.plane.threads[owner])


cdef inline void receive_stun(Thread *t, int socket_index, const Address *source, const uint8_t *data, int size, Transport *from_) noexcept nogil:
    if size < 20 or read32(data + 4) != 0x2112A442:
        count_drop(t, DROP_FIRST_BYTE)
    elif size > UPCALL_DATA_MAX:
        count_drop(t, DROP_OVERSIZE)
    elif from_ != NULL:
        t.counters.stun_in += 1
        upcall_datagram(t, &t.owned, UP_STUN, from_.id, socket_index, source, data, size, t.now)
    elif not bucket_take(t.buckets, t.plane.seed, source, t.plane.stun_rate, t.now):
        count_drop(t, DROP_STUN_BUDGET)
    else:
        t.counters.stun_in += 1
        upcall_datagram(t, &t.strangers, UP_STUN, 0, socket_index, source, data, size, t.now)


cdef inline void receive_datagram(Thread *t, int socket_index, const Address *source, uint8_t *data, int size) noexcept nogil:
    """DMX-1 by first byte; media and DTLS only from tuples that a transport owns."""
    cdef TupleEntry *owned
    cdef Transport *from_ = NULL
    cdef uint8_t first
    if size < 2:
        count_drop(t, DROP_SHORT)
        return
    first = data[0]
    owned = tuple_find(&t.plane.tuples, socket_index, source)
    if owned != NULL:
        from_ = <Transport *>owned.value
    if first <= 3:
        receive_stun(t, socket_index, source, data, size, from_)
        return
    if not (20 <= first <= 63 or 128 <= first <= 191):
        count_drop(t, DROP_FIRST_BYTE)
        return
    if size < 12 and (first < 128 or size < 8 or not 192 <= data[1] <= 223) or (first < 128 and size < 13):
        count_drop(t, DROP_SHORT)
        return
    if from_ == NULL:
        count_drop(t, DROP_STRANGER)
        return
    if first < 128:
        if size > UPCALL_DATA_MAX:
            count_drop(t, DROP_OVERSIZE)
            return
        t.counters.dtls_in += 1
        upcall_datagram(t, &t.owned, UP_DTLS, from_.id, socket_index, source, data, size, t.now)
        return
    if from_.owner < 0:
        count_drop(t, DROP_NO_KEYS)
    elif from_.owner != t.index:
        hand_over(t, from_.owner, socket_index, source, data, size)
    elif 192 <= data[1] <= 223:
        receive_srtcp(t, from_, data, size)
    else:
        receive_srtp(t, from_, data, size)
