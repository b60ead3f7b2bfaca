"""What the threads tell Python: records in byte rings, one pair per thread, and one eventfd for all.

Datagrams of strangers have a ring of their own, so that a flood of them cannot displace what transports own.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from sfu._dataplane.graph cimport DROP_UPCALL_FULL, RID_MAX, Stream, Thread, UpcallRing
from sfu._dataplane.machine cimport exchange_int, load_u32, store_u32
from sfu._dataplane.ops cimport count_drop, signal_fd
from wire._batch.udp cimport Address, received

# Kinds; 0 fills the end of a ring that a record did not fit. `plane.pyi` names them.
cdef enum Upcall:
    UP_SKIP
    UP_STUN
    UP_DTLS
    UP_STREAM_STARTED
    UP_TRACK_STALLED
    UP_TRACK_RESUMED
    UP_KEYFRAME_MISSING
    UP_BYE

cdef enum:
    UPCALL_DATA_MAX = 2048

cdef struct UpcallRecord:
    uint32_t size               # with data, multiple of 8
    uint32_t data_size
    uint64_t id                 # transport or track
    int64_t received
    int kind
    int socket_index
    uint32_t ssrc
    char rid[RID_MAX + 1]
    Address source


cdef inline UpcallRecord *upcall_begin(Thread *t, UpcallRing *ring, uint32_t data_size) noexcept nogil:
    """Room for a record, zeroed, or NULL (counted): the ring is full."""
    cdef uint32_t size = (<uint32_t>sizeof(UpcallRecord) + data_size + 7) & ~<uint32_t>7
    cdef uint32_t at = ring.head & (ring.capacity - 1)
    cdef uint32_t free_ = ring.capacity - (ring.head - load_u32(&ring.tail))
    cdef uint32_t rest = ring.capacity - at
    cdef UpcallRecord *record
    if size > free_ or (size > rest and rest + size > free_):
        count_drop(t, DROP_UPCALL_FULL)
        return NULL
    if size > rest:
        (<uint32_t *>(ring.bytes + at))[0] = 0  # size 0: go on at the start
        store_u32(&ring.head, ring.head + rest)
        at = 0
    record = <UpcallRecord *>(ring.bytes + at)
    memset(record, 0, sizeof(UpcallRecord))
    record.size = size
    record.data_size = data_size
    return record


cdef inline void upcall_commit(Thread *t, UpcallRing *ring, UpcallRecord *record) noexcept nogil:
    store_u32(&ring.head, ring.head + record.size)
    t.upcalls_made = 1


cdef inline void upcall_datagram(Thread *t, UpcallRing *ring, int kind, uint64_t transport, int socket_index, const Address *source, const uint8_t *data, int size, int64_t received) noexcept nogil:
    cdef UpcallRecord *record = upcall_begin(t, ring, <uint32_t>size)
    if record == NULL:
        return
    record.kind = kind
    record.id = transport
    record.socket_index = socket_index
    record.received = received
    record.source = source[0]
    memcpy(<uint8_t *>record + sizeof(UpcallRecord), data, size)
    upcall_commit(t, ring, record)


cdef inline void upcall_stream(Thread *t, int kind, Stream *s, uint32_t ssrc) noexcept nogil:
    """An event of a track, or of one of its layers."""
    cdef UpcallRecord *record = upcall_begin(t, &t.owned, 0)
    if record == NULL:
        return
    record.kind = kind
    record.id = s.track.id
    record.ssrc = ssrc
    memcpy(record.rid, s.rid, RID_MAX + 1)
    upcall_commit(t, &t.owned, record)


cdef inline void upcall_signal(Thread *t) noexcept nogil:
    """Once per batch: make the eventfd readable if it is not already."""
    if t.upcalls_made:
        t.upcalls_made = 0
        if exchange_int(&t.plane.upcall_pending, 1) == 0:
            signal_fd(t.plane.upcall_fd)
