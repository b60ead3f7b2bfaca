"""Upcall records as the tuples that `Plane.drain` gives. Python's side of the rings; holds the GIL."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from sfu._dataplane.graph cimport UpcallRing
from sfu._dataplane.machine cimport load_u32, store_u32
from sfu._dataplane.upcalls cimport (
    UP_BYE, UP_DTLS, UP_KEYFRAME_MISSING, UP_STREAM_STARTED, UP_STUN, UpcallRecord,
)
from wire._batch.udp cimport format_address


cdef inline tuple upcall_tuple(UpcallRecord *record):
    if record.kind == UP_STUN or record.kind == UP_DTLS:
        host, port = format_address(&record.source)
        data = PyBytes_FromStringAndSize(<char *>record + sizeof(UpcallRecord), record.data_size)
        return (record.kind, record.id, (record.socket_index, host, port), data, record.received / 1e6)
    if record.kind == UP_STREAM_STARTED:
        return (record.kind, record.id, record.rid.decode(), record.ssrc)
    if record.kind == UP_KEYFRAME_MISSING:
        return (record.kind, record.id, record.rid.decode())
    if record.kind == UP_BYE:
        return (record.kind, record.id, record.ssrc)
    return (record.kind, record.id)


cdef inline int deliver_ring(UpcallRing *ring, list out, int limit) except -1:
    """Append what the ring holds to `out` until that has `limit` elements."""
    cdef UpcallRecord *record
    cdef uint32_t head = load_u32(&ring.head)
    cdef uint32_t at
    while ring.tail != head and len(out) < limit:
        at = ring.tail & (ring.capacity - 1)
        record = <UpcallRecord *>(ring.bytes + at)
        if record.size == 0:
            store_u32(&ring.tail, ring.tail + ring.capacity - at)
            continue
        out.append(upcall_tuple(record))
        store_u32(&ring.tail, ring.tail + record.size)
    return 0
