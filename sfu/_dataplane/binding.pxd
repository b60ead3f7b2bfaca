"""SSRC to layer (DMX-4): what is known of a transport's incoming SSRCs, how it is learnt, and how a layer begins anew."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp

from sfu._dataplane.cache cimport cache_clear
from sfu._dataplane.graph cimport (
    BOUND_MEDIA, BOUND_ORPHAN, BOUND_RETIRED, BOUND_RTX, RID_MAX, Stream, Thread, Track, Transport,
)
from sfu._dataplane.keyframes cimport need_keyframe
from sfu._dataplane.loss cimport loss_restart
from sfu._dataplane.ops cimport consumers
from sfu._dataplane.packet cimport X_MID, X_REPAIRED_RID, X_RID, Element, RtpView, find_element
from sfu._dataplane.tables cimport IdEntry, table_delete, table_find, table_put

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t v)


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
