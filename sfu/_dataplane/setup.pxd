"""Allocating and freeing a plane's threads: rings, buffers, heaps. Holds the GIL; no thread runs meanwhile."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from sfu._dataplane.cache cimport CACHED_PACKET_MAX
from sfu._dataplane.graph cimport (
    JOBS_MAX, CrossRing, ParcelRing, PlaneState, Thread, Transport, pthread_mutex_destroy, pthread_mutex_init,
)
from sfu._dataplane.tables cimport BUCKET_SETS, BUCKET_WAYS, Bucket, table_free
from wire._batch.udp cimport receiver_destroy, receiver_init, sender_destroy, sender_init

cdef enum:
    ARENA_BYTES = 524288        # stays in a core's L2 cache
    BYTES_PER_UPCALL = 256      # ring bytes per configured slot: a STUN check with its record
    UPCALL_BYTES_MIN = 65536


cdef inline int make_threads(PlaneState *state, int threads, int addresses, int max_transports, int upcall_slots) except -1:
    """Everything but the descriptors. On failure `free_state` takes back what was made.

    Raises:
        MemoryError
    """
    cdef int i
    cdef uint32_t ring = UPCALL_BYTES_MIN
    while ring < <uint32_t>upcall_slots * BYTES_PER_UPCALL // <uint32_t>threads:
        ring *= 2
    state.threads = <Thread *>calloc(threads, sizeof(Thread))
    state.rings = <CrossRing **>calloc(threads * threads, sizeof(CrossRing *))
    state.parcels = <ParcelRing **>calloc(threads * threads, sizeof(ParcelRing *))
    if state.threads == NULL or state.rings == NULL or state.parcels == NULL:
        raise MemoryError
    state.address_count = addresses
    for i in range(threads):
        state.thread_count = i + 1
        make_thread(state, i, max_transports, ring)
    for i in range(threads * threads):
        if i // threads != i % threads:
            state.rings[i] = <CrossRing *>calloc(1, sizeof(CrossRing))
            state.parcels[i] = <ParcelRing *>calloc(1, sizeof(ParcelRing))
            if state.rings[i] == NULL or state.parcels[i] == NULL:
                raise MemoryError
    return 0


cdef inline int make_thread(PlaneState *state, int index, int max_transports, uint32_t ring) except -1:
    cdef Thread *t = &state.threads[index]
    t.plane = state
    t.index = index
    t.wake_fd = -1
    t.epoll_fd = -1
    pthread_mutex_init(&t.lock, NULL)
    t.owned.capacity = ring
    t.strangers.capacity = ring // 4
    t.owned.bytes = <uint8_t *>malloc(ring)
    t.strangers.bytes = <uint8_t *>malloc(ring // 4)
    t.scratch = <uint8_t *>malloc(JOBS_MAX * CACHED_PACKET_MAX)
    t.heap = <Transport **>calloc(max_transports + 1, sizeof(Transport *))
    t.buckets = <Bucket *>calloc(BUCKET_SETS * BUCKET_WAYS, sizeof(Bucket))
    if t.owned.bytes == NULL or t.strangers.bytes == NULL or t.scratch == NULL or t.heap == NULL or t.buckets == NULL:
        raise MemoryError
    if not receiver_init(&t.receiver) or not sender_init(&t.sender, ARENA_BYTES):
        raise MemoryError
    return 0


cdef inline void free_state(PlaneState *state) noexcept:
    """After the threads have ended and the transports are gone. Descriptors are the caller's."""
    cdef Thread *t
    cdef int i
    for i in range(state.thread_count):
        t = &state.threads[i]
        receiver_destroy(&t.receiver)
        sender_destroy(&t.sender)
        free(t.owned.bytes)
        free(t.strangers.bytes)
        free(t.scratch)
        free(t.heap)
        free(t.buckets)
        pthread_mutex_destroy(&t.lock)
    for i in range(state.thread_count * state.thread_count):
        if state.rings != NULL:
            free(state.rings[i])
        if state.parcels != NULL:
            free(state.parcels[i])
    free(state.rings)
    free(state.parcels)
    free(state.threads)
    free(state.near_sockets)
    free(state.tuples.entries)
    table_free(&state.streams)
    pthread_mutex_destroy(&state.turnstile)
    free(state)
