"""What comes in: RFC 7983 demultiplexing, SRTP, transport-wide numbers; the rest is `reception` and `feedback`.

Runs in the thread that owns the transport; a datagram that came to another thread's socket is handed over as a parcel.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from sfu._dataplane.binding cimport bind, learn_ssrc
from sfu._dataplane.feedback cimport receive_rtcp
from sfu._dataplane.graph cimport (
    BOUND_NOTHING, BOUND_RETIRED, BOUND_RTCP, BOUND_RTX, DROP_AUTHENTICATION, DROP_FIRST_BYTE, DROP_MALFORMED,
    DROP_NO_KEYS, DROP_NO_MEMORY, DROP_OVERSIZE, DROP_PARCEL_FULL, DROP_REPLAY, DROP_RETIRED_SSRC, DROP_SHORT,
    DROP_STRANGER, DROP_STUN_BUDGET, DROP_UNBOUND, PARCEL_SLOTS, Job, Parcel, ParcelRing, Stream, Thread, Transport,
)
from sfu._dataplane.jobs cimport new_job
from sfu._dataplane.machine cimport load_u32, read16, read32, store_u32
from sfu._dataplane.ops cimport count_drop, schedule, wake
from sfu._dataplane.packet cimport RTP_SIZE_MAX, X_TRANSPORT_CC, Element, RtpView, find_element, parse_rtp
from sfu._dataplane.reception cimport receive_media, receive_rtx
from sfu._dataplane.sockets cimport is_near
from sfu._dataplane.tables cimport IdEntry, TupleEntry, bucket_take, table_find, tuple_find
from sfu._dataplane.twcc cimport TwccLog, twcc_init, twcc_record
from sfu._dataplane.upcalls cimport UPCALL_DATA_MAX, UP_DTLS, UP_STUN, upcall_datagram
from wire._batch.udp cimport Address

cdef enum:
    SRTP_AUTH_FAIL = 7          # srtp_err_status_t
    SRTP_REPLAY_FAIL = 9
    SRTP_REPLAY_OLD = 10
    TWCC_INTERVAL = 100000      # us (TCC-2)
    TWCC_EARLY = 50000          # us, on a marker
    TWCC_PACKETS = 100
    TWCC_MIN = 50000


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
    elif not bucket_take(t.buckets, t.plane.seed, source, is_near(t.plane, socket_index), t.plane.stun_rate, t.now):
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
