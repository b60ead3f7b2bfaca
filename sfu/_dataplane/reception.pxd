"""One decrypted packet of a layer: numbered, its losses noted, cached, and made a job (sections 5 to 8)."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove

from sfu._dataplane.binding cimport restart_stream
from sfu._dataplane.cache cimport cache_has, cache_init, cache_store
from sfu._dataplane.forward cimport choose_source
from sfu._dataplane.graph cimport (
    CROSS_LAYERS, DROP_DUPLICATE, DROP_EMPTY, DROP_JUMP, DROP_MALFORMED, DROP_NO_MEMORY, DROP_PADDING,
    DROP_PAYLOAD_TYPE, DROP_PROBE, DROP_STALE, KEY_FIRST, KEY_LATE, KEY_NONE, Job, PayloadType, Stream, Thread, Track,
    Transport,
)
from sfu._dataplane.jobs cimport add_job
from sfu._dataplane.keyframe cimport C_OPAQUE, C_VP8, keyframe_start
from sfu._dataplane.keyframes cimport keyframe_arrived, need_keyframe
from sfu._dataplane.loss cimport loss_receive
from sfu._dataplane.machine cimport add_i64, load_int, read16, store_i64, write16, write32
from sfu._dataplane.ops cimport consumers, count_drop, cross_request, schedule
from sfu._dataplane.packet cimport RtpView, parse_rtp
from sfu._dataplane.sequence cimport nearest, unwrap
from sfu._dataplane.upcalls cimport UP_STREAM_STARTED, UP_TRACK_RESUMED, upcall_stream
from sfu._dataplane.vp8 cimport vp8_read

cdef enum:
    RTX_AHEAD_MAX = 1000        # numbers a repair may be ahead of the highest original
    RTX_BEHIND_MAX = 10000
    REPORT_INTERVAL_VIDEO = 1000000
    REPORT_INTERVAL_AUDIO = 5000000
    CACHE_SLOTS_VIDEO = 256     # at first; timers grow it
    CACHE_BYTES_VIDEO = 327680  # 1280 a slot
    CACHE_AGE_VIDEO = 2000000   # us
    CACHE_SLOTS_AUDIO = 64
    CACHE_BYTES_AUDIO = 8192
    CACHE_AGE_AUDIO = 1000000
    GROWTH_DELAY = 10000        # us


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
    """A layer that someone consumes is cached; the pages come with the first consumer's first packet.

    Where there are several threads the first pages are granted in any case: they are the way to the others.
    """
    cdef bint video = s.track.video
    cdef int64_t size = CACHE_BYTES_VIDEO if video else CACHE_BYTES_AUDIO
    if add_i64(&t.plane.cache_bytes, size) > t.plane.cache_bytes_max and t.plane.thread_count == 1:
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


cdef inline bint starts_keyframe(const Stream *s, const RtpView *view, const uint8_t *data) noexcept nogil:
    """Opaque: the next frame answers our request, as far as can be told."""
    if s.codec == C_OPAQUE:
        return view.timestamp != s.last_timestamp
    return keyframe_start(s.codec, data + view.header_size, view.payload_size)


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
    job.padding_only = view.payload_size == 0
    if not recovered and not job.padding_only:
        # A layer that its encoder has stopped still lends its SSRCs to probes: padding, or old packets again as RTX.
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
    if job.padding_only:
        count_drop(t, DROP_PADDING if view.padding_size else DROP_EMPTY)
    s.packets += 1
    s.bytes += <uint64_t>size
    s.rate_bytes += <uint64_t>size
    job.keyframe = KEY_NONE
    if s.track.video and not job.padding_only and ext_seq > s.last_keyframe and starts_keyframe(s, view, data):
        job.keyframe = KEY_LATE if ext_seq < s.unwrapper.highest else KEY_FIRST
    if not recovered:
        s.last_timestamp = view.timestamp
    if job.keyframe:
        keyframe_arrived(s, ext_seq, view.timestamp)
    if not wanted:
        return
    if s.cache.pages == NULL:
        ensure_cache(t, s)
    if s.cache.pages != NULL:
        if cache_has(&s.cache, ext_seq):
            count_drop(t, DROP_DUPLICATE)
            return
        cache_store(&s.cache, ext_seq, data, size, t.now)
        if s.cache.crowded and t.now >= s.grow_after:
            schedule(t, from_, t.now + GROWTH_DELAY)
    job.ext_seq = ext_seq
    job.received = t.now
    job.epoch = s.epoch
    job.vp8.fields = 0
    if kind.codec == C_VP8:
        vp8_read(data + view.header_size, view.payload_size, &job.vp8)
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
