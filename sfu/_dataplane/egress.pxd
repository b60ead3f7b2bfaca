"""What leaves: protected RTP and RTCP into the thread's sender, and the flush at the end of a batch.

Runs in the thread that owns the destination transport. Allocates nothing (libsrtp does once per new out SSRC).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from sfu._dataplane.graph cimport DROP_PROTECT, Forwarder, Thread, Transport
from sfu._dataplane.machine cimport clock_us
from sfu._dataplane.ops cimport count_drop
from sfu._dataplane.packet cimport X_ABS_SEND_TIME, X_TRANSPORT_CC
from wire._batch.udp cimport received, sender_commit, sender_flush, sender_room

cdef extern from *:
    int leading_zeros "__builtin_clzll"(unsigned long long v) noexcept nogil


cdef inline int log2_bucket(uint64_t value, int last) noexcept nogil:
    """i such that value < 2**i, at most `last`."""
    cdef int bits = 64 - leading_zeros(value) if value else 0
    return bits if bits < last else last


cdef inline void flush(Thread *t) noexcept nogil:
    """Send what the batch queued; books the time since receipt (IO-4)."""
    cdef int i
    cdef int64_t now
    if t.sender.count == 0 and t.sender.held_count == 0:
        return
    now = clock_us()
    for i in range(t.sender.count):
        if t.sender.trains[i].tag:
            t.counters.latency[log2_bucket(<uint64_t>(now - t.sender.trains[i].tag), 31)] += t.sender.trains[i].segments
    sender_flush(&t.sender)


cdef inline uint8_t *room(Thread *t, uint32_t size) noexcept nogil:
    """`size` bytes to write one datagram into; flushes when the arena is full."""
    cdef uint8_t *p = sender_room(&t.sender, size)
    if p == NULL:
        flush(t)
        p = sender_room(&t.sender, size)
    return p


cdef inline int32_t abs_send_time(int64_t now) noexcept nogil:
    """24 bit, 6.18 fixed-point seconds."""
    return <int32_t>(((<uint64_t>now << 18) // 1000000) & 0xFFFFFF)


cdef inline bint reachable(const Transport *to) noexcept nogil:
    return to.sending and to.socket != NULL


cdef inline bint send_rtp(Thread *t, Forwarder *f, uint8_t *packet, int size, int64_t received) noexcept nogil:
    """Protect what was written at `room` and queue it. False: libsrtp refused (counted)."""
    cdef Transport *to = f.transport
    if t.plane.protect(f.srtp, packet, &size) != 0:
        count_drop(t, DROP_PROTECT)
        return False
    sender_commit(&t.sender, to.socket, &to.selected, <uint32_t>size, not f.video, received, &f.blocked)
    to.packets_out += 1
    to.bytes_out += <uint64_t>size
    return True


cdef inline void send_rtcp(Thread *t, Transport *to, void *srtp, uint8_t *compound, int size) noexcept nogil:
    """Protect the compound written at `room` (SRTCP_TRAILER_MAX bytes more) and queue it. Never dropped for a full buffer."""
    if srtp == NULL or not reachable(to):
        return
    if t.plane.protect_rtcp(srtp, compound, &size) != 0:
        count_drop(t, DROP_PROTECT)
        return
    sender_commit(&t.sender, to.socket, &to.selected, <uint32_t>size, True, 0, NULL)
    to.packets_out += 1
    to.bytes_out += <uint64_t>size
    t.counters.rtcp_out += 1


cdef inline int32_t next_transport_seq(Transport *to, const uint8_t *out_id) noexcept nogil:
    """The fresh transport-wide number of the next packet, -1 when the extension was not negotiated."""
    if out_id[X_TRANSPORT_CC] == 0:
        return -1
    to.transport_seq += 1
    return to.transport_seq


cdef inline int32_t send_time(Thread *t, const uint8_t *out_id) noexcept nogil:
    return abs_send_time(t.now) if out_id[X_ABS_SEND_TIME] else -1
