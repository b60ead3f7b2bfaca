"""The loop of a forwarding thread, and the locks by which Python changes the graph between its batches."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from sfu._dataplane.cache cimport CACHED_PACKET_MAX, cache_copy
from sfu._dataplane.egress cimport flush, log2_bucket
from sfu._dataplane.graph cimport (
    CROSS_KEYFRAME, CROSS_LAYERS, CROSS_PACKET, DROP_MALFORMED, DROP_RING_GONE, DROP_TRUNCATED, PARCEL_SLOTS,
    RING_SLOTS, CrossEntry, CrossRing, Job, Parcel, ParcelRing, PlaneState, Stream, Thread, Transport, c_read,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from sfu._dataplane.ingress cimport receive_datagram
from sfu._dataplane.jobs cimport add_job, new_job, run_jobs
from sfu._dataplane.keyframes cimport need_keyframe
from sfu._dataplane.machine cimport clock_us, fence, load_int, load_u32, store_int, store_u32
from sfu._dataplane.ops cimport count_drop, unschedule
from sfu._dataplane.packet cimport parse_rtp
from sfu._dataplane.reception cimport choose_again
from sfu._dataplane.sockets cimport near_index
from sfu._dataplane.tables cimport table_get
from sfu._dataplane.timers cimport transport_tick
from sfu._dataplane.upcalls cimport upcall_signal
from wire._batch.exchange cimport find_address
from wire._batch.inbox cimport Slot, inbox_doze, inbox_heard, inbox_peek, inbox_release, inbox_rise
from wire._batch.udp cimport BATCH, Datagram, receive_batch, received

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int fd, epoll_event *events, int count, int timeout_ms)

cdef enum:
    TICKS_MAX = 256             # transports whose timers run between two batches
    HELD_RETRY_MS = 2           # a full socket buffer is tried again


# -- locks -------------------------------------------------------------------------------------------------------------

cdef inline void lock_graph(PlaneState *plane) noexcept nogil:
    """Python's side: every thread is between two datagrams when this returns. Call without the GIL."""
    cdef int i
    store_int(&plane.writers, 1)
    pthread_mutex_lock(&plane.turnstile)
    for i in range(plane.thread_count):
        pthread_mutex_lock(&plane.threads[i].lock)


cdef inline void unlock_graph(PlaneState *plane) noexcept nogil:
    cdef int i
    for i in range(plane.thread_count):
        pthread_mutex_unlock(&plane.threads[i].lock)
    store_int(&plane.writers, 0)
    pthread_mutex_unlock(&plane.turnstile)


cdef inline void let_writer_in(Thread *t) noexcept nogil:
    """Between two datagrams: nothing of the graph is in hand, so Python may change it. The turnstile makes it fair."""
    run_jobs(t)
    flush(t)
    pthread_mutex_unlock(&t.lock)
    pthread_mutex_lock(&t.plane.turnstile)
    pthread_mutex_unlock(&t.plane.turnstile)
    pthread_mutex_lock(&t.lock)
    t.now = clock_us()


# -- sources of work ---------------------------------------------------------------------------------------------------

cdef inline int drain_sockets(Thread *t) noexcept nogil:
    """One batch from each socket. Returns the datagrams taken."""
    cdef Datagram d
    cdef int i, n, k, at, size, total = 0
    for k in range(t.plane.address_count):
        n = receive_batch(&t.receiver, t.sockets[k].fd)
        if n == 0:
            continue
        t.now = clock_us()
        t.counters.batches += 1
        t.counters.batch_fill[log2_bucket(<uint64_t>n, 15)] += 1
        total += n
        for i in range(n):
            received(&t.receiver, i, &d)
            if d.truncated:
                count_drop(t, DROP_TRUNCATED)
                continue
            at = 0
            while at < d.size:
                size = d.segment_size if d.size - at > d.segment_size else d.size - at
                t.counters.datagrams_in += 1
                t.counters.bytes_in += <uint64_t>size
                receive_datagram(t, t.index * t.plane.address_count + k, d.source, d.data + at, size)
                at += size
            if load_int(&t.plane.writers):
                let_writer_in(t)
        run_jobs(t)
    return total


cdef inline void take_crossed_packet(Thread *t, const CrossEntry *entry, Stream *s) noexcept nogil:
    """CACHE-1: copy from the publisher's cache, or find the packet gone."""
    cdef Job *job = new_job(t)
    cdef uint8_t *data = t.scratch + t.job_count * CACHED_PACKET_MAX
    cdef int size = cache_copy(&s.cache, entry.ext_seq, data, t.now) if s.cache.pages != NULL else -1
    if size < 0:
        count_drop(t, DROP_RING_GONE)
        return
    if not parse_rtp(&job.view, data, size, s.track.ids):
        count_drop(t, DROP_MALFORMED)
        return
    job.ext_seq = entry.ext_seq
    job.received = entry.received
    job.epoch = entry.epoch
    job.keyframe = entry.keyframe
    job.padding_only = entry.padding_only
    job.vp8 = entry.vp8
    add_job(t, s)


cdef inline int drain_ring(Thread *t, CrossRing *ring) noexcept nogil:
    cdef uint32_t head = load_u32(&ring.head)
    cdef int taken = <int>(head - ring.tail)
    cdef CrossEntry *entry
    cdef Stream *s
    while ring.tail != head:
        entry = &ring.entries[ring.tail & (RING_SLOTS - 1)]
        s = <Stream *>table_get(&t.plane.streams, entry.stream)
        if s != NULL:
            if entry.kind == CROSS_PACKET:
                take_crossed_packet(t, entry, s)
            elif entry.kind == CROSS_KEYFRAME:
                need_keyframe(t, s)
            elif entry.kind == CROSS_LAYERS:
                choose_again(t, s.track)
        store_u32(&ring.tail, ring.tail + 1)
    return taken


cdef inline int drain_parcels(Thread *t, ParcelRing *ring) noexcept nogil:
    cdef uint32_t head = load_u32(&ring.head)
    cdef int taken = <int>(head - ring.tail)
    cdef Parcel *parcel
    while ring.tail != head:
        parcel = &ring.entries[ring.tail & (PARCEL_SLOTS - 1)]
        receive_datagram(t, parcel.socket_index, &parcel.source, parcel.data, parcel.size)
        # Jobs point into the parcel: forward before its slot is given back.
        run_jobs(t)
        store_u32(&ring.tail, ring.tail + 1)
    return taken


cdef inline int drain_inbox(Thread *t) noexcept nogil:
    """One batch from another plane of this process: as `drain_sockets`, without a system call."""
    cdef Slot *slot
    cdef int n = 0, address
    if t.inbox == NULL or inbox_peek(t.inbox, 0) == NULL:
        return 0
    t.now = clock_us()
    while n < BATCH:
        slot = inbox_peek(t.inbox, <uint64_t>n)
        if slot == NULL:
            break
        n += 1
        t.counters.in_memory_in += 1
        address = find_address(t.plane.near, &slot.to)
        if address < 0 or slot.thread >= t.plane.far.threads:
            count_drop(t, DROP_MALFORMED)
            continue
        receive_datagram(t, near_index(t.plane, t.index, address, slot.thread), &slot.source, slot.data, slot.size)
        if load_int(&t.plane.writers):
            let_writer_in(t)
    # Jobs point into the slots: forward before they are given back.
    run_jobs(t)
    inbox_release(t.inbox, <uint64_t>n)
    return n


cdef inline int drain_crossings(Thread *t) noexcept nogil:
    cdef int i, n = t.plane.thread_count, taken = 0
    for i in range(n):
        if i != t.index:
            taken += drain_ring(t, t.plane.rings[i * n + t.index])
            taken += drain_parcels(t, t.plane.parcels[i * n + t.index])
    run_jobs(t)
    return taken


cdef inline bint crossings_wait(Thread *t) noexcept nogil:
    cdef int i, n = t.plane.thread_count
    for i in range(n):
        if i != t.index:
            if load_u32(&t.plane.rings[i * n + t.index].head) != t.plane.rings[i * n + t.index].tail:
                return True
            if load_u32(&t.plane.parcels[i * n + t.index].head) != t.plane.parcels[i * n + t.index].tail:
                return True
    return False


cdef inline void run_timers(Thread *t) noexcept nogil:
    cdef Transport *transport
    cdef int i
    for i in range(TICKS_MAX):
        if t.heap_count == 0 or t.heap[0].deadline > t.now:
            return
        transport = t.heap[0]
        unschedule(t, transport)
        transport_tick(t, transport)


# -- the loop ----------------------------------------------------------------------------------------------------------

cdef inline int sleep_ms(Thread *t) noexcept nogil:
    """Until the next deadline, rounded up; -1: for ever."""
    cdef int64_t left
    if t.sender.held_count:
        return HELD_RETRY_MS
    if t.heap_count == 0:
        return -1
    left = t.heap[0].deadline - clock_us()
    if left <= 0:
        return 0
    return <int>((left + 999) // 1000) if left < 60000000 else 60000


cdef inline void run_thread(Thread *t) noexcept nogil:
    """Forward until the plane stops. Holds the thread's lock but while it sleeps or lets Python in."""
    cdef epoll_event events[8]
    cdef uint64_t ignored
    cdef int timeout, work, ready, i
    pthread_mutex_lock(&t.lock)
    while not load_int(&t.plane.stopping):
        t.now = clock_us()
        work = drain_crossings(t)
        work += drain_inbox(t)
        work += drain_sockets(t)
        t.now = clock_us()
        run_timers(t)
        flush(t)
        upcall_signal(t)
        if load_int(&t.plane.writers):
            let_writer_in(t)
        if work >= BATCH:
            continue
        timeout = sleep_ms(t)
        store_int(&t.sleeping, 1)
        fence()
        if crossings_wait(t) or load_int(&t.plane.stopping) or (t.inbox != NULL and not inbox_doze(t.inbox)):
            timeout = 0
        pthread_mutex_unlock(&t.lock)
        ready = epoll_wait(t.epoll_fd, events, 8, timeout)
        store_int(&t.sleeping, 0)
        if t.inbox != NULL:
            inbox_rise(t.inbox)
        for i in range(ready):
            if events[i].data.u32 == <uint32_t>t.wake_fd:
                c_read(t.wake_fd, &ignored, sizeof(ignored))
            elif t.inbox != NULL and events[i].data.u32 == <uint32_t>t.inbox.wake_fd:
                inbox_heard(t.inbox)
        t.counters.wakeups += 1
        pthread_mutex_lock(&t.lock)
    pthread_mutex_unlock(&t.lock)
