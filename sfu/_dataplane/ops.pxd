"""Small operations on the graph that every part needs: lists, deadlines, waking, crossing, the source clock."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc

from sfu._dataplane.graph cimport (
    DROP_RING_FULL, RING_SLOTS, CrossEntry, CrossRing, Forwarder, ForwarderList, SourceClock, Stream, Thread, Transport,
    c_write,
)
from sfu._dataplane.machine cimport exchange_int, fence, load_int, load_u32, store_int, store_u32


cdef inline void count_drop(Thread *t, int reason) noexcept nogil:
    t.counters.drops[reason] += 1


# -- lists -----------------------------------------------------------------------------------------------------------

cdef inline bint list_add(ForwarderList *l, Forwarder *f) noexcept nogil:
    """No duplicates. False: memory is short."""
    cdef Forwarder **larger
    cdef int i
    for i in range(l.count):
        if l.items[i] == f:
            return True
    if l.count == l.capacity:
        larger = <Forwarder **>realloc(l.items, (2 * l.capacity + 4) * sizeof(Forwarder *))
        if larger == NULL:
            return False
        l.items = larger
        l.capacity = 2 * l.capacity + 4
    l.items[l.count] = f
    store_int(&l.count, l.count + 1)
    return True


cdef inline void list_remove(ForwarderList *l, Forwarder *f) noexcept nogil:
    cdef int i
    for i in range(l.count):
        if l.items[i] == f:
            l.items[i] = l.items[l.count - 1]
            store_int(&l.count, l.count - 1)
            return


cdef inline int consumers(Stream *s) noexcept nogil:
    """Forwarders of all threads that this layer feeds or that wait for it."""
    cdef int i, n = 0
    for i in range(s.track.thread_count):
        n += load_int(&s.fanout[i].forwarders.count)
    return n


# -- deadlines: a binary heap of transports per thread -------------------------------------------------------------

cdef inline void heap_place(Thread *t, int at, Transport *transport) noexcept nogil:
    t.heap[at] = transport
    transport.heap_index = at


cdef inline void heap_up(Thread *t, int at) noexcept nogil:
    cdef Transport *transport = t.heap[at]
    cdef int parent
    while at:
        parent = (at - 1) >> 1
        if t.heap[parent].deadline <= transport.deadline:
            break
        heap_place(t, at, t.heap[parent])
        at = parent
    heap_place(t, at, transport)


cdef inline void heap_down(Thread *t, int at) noexcept nogil:
    cdef Transport *transport = t.heap[at]
    cdef int child
    while True:
        child = 2 * at + 1
        if child >= t.heap_count:
            break
        if child + 1 < t.heap_count and t.heap[child + 1].deadline < t.heap[child].deadline:
            child += 1
        if transport.deadline <= t.heap[child].deadline:
            break
        heap_place(t, at, t.heap[child])
        at = child
    heap_place(t, at, transport)


cdef inline void unschedule(Thread *t, Transport *transport) noexcept nogil:
    cdef int at = transport.heap_index
    cdef Transport *last
    if at < 0:
        return
    transport.heap_index = -1
    t.heap_count -= 1
    if at < t.heap_count:
        last = t.heap[t.heap_count]
        heap_place(t, at, last)
        heap_up(t, at)
        heap_down(t, last.heap_index)


cdef inline void schedule(Thread *t, Transport *transport, int64_t at) noexcept nogil:
    """Let the transport's timers run at `at` or before. The heap has room for every transport of the plane."""
    if transport.heap_index < 0:
        transport.deadline = at
        t.heap_count += 1
        heap_place(t, t.heap_count - 1, transport)
        heap_up(t, t.heap_count - 1)
    elif at < transport.deadline:
        transport.deadline = at
        heap_up(t, transport.heap_index)


# -- waking and crossing -----------------------------------------------------------------------------------------

cdef inline void signal_fd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    c_write(fd, &one, sizeof(one))


cdef inline void wake(Thread *t) noexcept nogil:
    """Only a thread that sleeps, or is about to, costs a system call."""
    fence()
    if load_int(&t.sleeping) and exchange_int(&t.sleeping, 0):
        signal_fd(t.wake_fd)


cdef inline CrossEntry *cross_begin(Thread *from_, int to, uint32_t slots) noexcept nogil:
    """The next free entry towards another thread, or NULL when `slots` are taken. Publish with `cross_commit`."""
    cdef CrossRing *ring = from_.plane.rings[from_.index * from_.plane.thread_count + to]
    if ring.head - load_u32(&ring.tail) >= slots:
        return NULL
    return &ring.entries[ring.head & (RING_SLOTS - 1)]


cdef inline void cross_commit(Thread *from_, int to) noexcept nogil:
    cdef CrossRing *ring = from_.plane.rings[from_.index * from_.plane.thread_count + to]
    store_u32(&ring.head, ring.head + 1)


cdef inline bint cross_request(Thread *from_, int to, uint8_t kind, uint64_t stream) noexcept nogil:
    """Send a CROSS_KEYFRAME or CROSS_LAYERS. False: the ring is full."""
    cdef CrossEntry *entry = cross_begin(from_, to, RING_SLOTS)
    if entry == NULL:
        count_drop(from_, DROP_RING_FULL)
        return False
    entry.kind = kind
    entry.stream = stream
    cross_commit(from_, to)
    wake(&from_.plane.threads[to])
    return True


# -- the source clock, read by every thread ------------------------------------------------------------------------

cdef inline void clock_write(SourceClock *c, uint64_t ntp, uint32_t timestamp, int64_t received) noexcept nogil:
    store_u32(&c.version, c.version + 1)
    fence()
    c.ntp = ntp
    c.timestamp = timestamp
    c.received = received
    fence()
    store_u32(&c.version, c.version + 1)


cdef inline bint clock_read(SourceClock *c, SourceClock *out) noexcept nogil:
    """False: no sender report yet (or one is being written just now)."""
    cdef uint32_t version = load_u32(&c.version)
    if version & 1:
        return False
    out.ntp = c.ntp
    out.timestamp = c.timestamp
    out.received = c.received
    fence()
    return load_u32(&c.version) == version and out.received != 0
