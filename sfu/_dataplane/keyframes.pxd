"""Key frame requests towards publishers: merged and rate-limited per layer (KF-1 to KF-3).

A need stays until the first packet of a key frame comes; asking repeats each second (or 2 RTT) and stops after 30 s.
A subscriber that gets packets of the layer, but has seen no key frame, has a need again (`await_keyframe`).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from sfu._dataplane.egress cimport reachable, room, send_rtcp
from sfu._dataplane.graph cimport CROSS_KEYFRAME, SRTCP_TRAILER_MAX, Stream, Thread, Transport
from sfu._dataplane.machine cimport store_i64
from sfu._dataplane.ops cimport cross_request, schedule
from sfu._dataplane.rtcp cimport COMPOUND_MAX, write_cname, write_fir, write_pli, write_receiver_report
from sfu._dataplane.upcalls cimport UP_KEYFRAME_MISSING, upcall_stream

cdef enum:
    KEYFRAME_INTERVAL = 500000      # us between two requests of a layer
    KEYFRAME_RETRY = 1000000
    KEYFRAME_GIVE_UP = 30000000

cdef extern from "stdio.h" nogil:
    int snprintf(char *out, size_t size, const char *format, ...)


cdef inline int write_own_cname(uint8_t *out, Transport *to) noexcept nogil:
    """SDES of our reports on a transport; the name tells nothing but our SSRC."""
    cdef char cname[16]
    snprintf(cname, sizeof(cname), "%08x", to.rtcp_ssrc)
    return write_cname(out, to.rtcp_ssrc, cname)


cdef inline int begin_compound(uint8_t *out, Transport *to) noexcept nogil:
    """RTCP-1: what a compound of feedback starts with, an empty RR and our CNAME. Returns its size."""
    cdef int size = write_receiver_report(out, to.rtcp_ssrc, NULL, 0)
    return size + write_own_cname(out + size, to)


cdef inline void send_keyframe_request(Thread *t, Stream *s) noexcept nogil:
    cdef Transport *to = s.track.transport
    cdef uint8_t *out
    cdef int size
    s.asked_at = t.now
    s.ask_pending = 0
    if s.ssrc == 0 or not (s.asks_pli or s.asks_fir) or not reachable(to):
        return
    out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
    size = begin_compound(out, to)
    if s.asks_pli:
        size += write_pli(out + size, to.rtcp_ssrc, s.ssrc)
    else:
        size += write_fir(out + size, to.rtcp_ssrc, s.ssrc, s.fir_number)
    s.keyframe_requests += 1
    t.counters.keyframe_requests_out += 1
    send_rtcp(t, to, to.srtp_rtcp, out, size)


cdef inline int64_t keyframe_retry(Stream *s) noexcept nogil:
    return 2 * s.rtt if 2 * s.rtt > KEYFRAME_RETRY else KEYFRAME_RETRY


cdef inline void need_keyframe(Thread *t, Stream *s) noexcept nogil:
    """Ask now, or when the hold of 500 ms ends. In the thread that owns the publisher."""
    if not s.track.video:
        return
    if s.need_since == 0:
        store_i64(&s.need_since, t.now)
        s.fir_number += 1
    if s.asked_at == 0 or t.now - s.asked_at >= KEYFRAME_INTERVAL:
        send_keyframe_request(t, s)
        schedule(t, s.track.transport, t.now + keyframe_retry(s))
    else:
        s.ask_pending = 1
        schedule(t, s.track.transport, s.asked_at + KEYFRAME_INTERVAL)


cdef inline void want_keyframe(Thread *t, Stream *s) noexcept nogil:
    """Ask from whatever thread a subscriber lives in."""
    cdef int owner = s.track.transport.owner
    if owner == t.index:
        need_keyframe(t, s)
    elif owner >= 0:
        cross_request(t, owner, CROSS_KEYFRAME, s.id)


cdef inline void keyframe_arrived(Stream *s, int64_t ext_seq, uint32_t timestamp) noexcept nogil:
    """Its first packet is in; the rest arrives or is being NACKed (KF-2)."""
    store_i64(&s.need_since, 0)
    s.ask_pending = 0
    s.keyframes += 1
    s.last_keyframe = ext_seq
    s.keyframe_timestamp = timestamp


cdef inline int64_t keyframe_tick(Thread *t, Stream *s) noexcept nogil:
    """Repeat or give up. Returns when to look again, 0: never."""
    if s.need_since == 0:
        return 0
    if s.ask_pending:
        if t.now - s.asked_at >= KEYFRAME_INTERVAL:
            send_keyframe_request(t, s)
            return t.now + keyframe_retry(s)
        return s.asked_at + KEYFRAME_INTERVAL
    if t.now - s.need_since >= KEYFRAME_GIVE_UP:
        store_i64(&s.need_since, 0)
        upcall_stream(t, UP_KEYFRAME_MISSING, s, s.ssrc)
        return 0
    if t.now - s.asked_at >= keyframe_retry(s):
        send_keyframe_request(t, s)
        return t.now + keyframe_retry(s)
    return s.asked_at + keyframe_retry(s)
