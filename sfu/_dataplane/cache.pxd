"""The packet cache of one publisher layer (CACHE-1): decrypted packets by ext_seq, bounded by number, bytes and age.

A slot table (`ext_seq` modulo its size) points into a byte ring that packets enter in order of arrival; a packet lives
until the ring comes round to its bytes, its slot gets another number, or it is too old.

One thread writes, every thread may read, nobody locks: a reader copies and then checks that neither the slot's version
nor the ring's reserved head has moved over what it copied. So a reader sees a packet or "gone", never half of each.
`Pages` is what readers see; growing publishes new pages, and the old ones stay readable until `cache_free_retired`.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from sfu._dataplane.machine cimport fence, load_i64, load_u32, load_u64, store_i64, store_u32, store_u64

cdef enum:
    CACHED_PACKET_MAX = 1500    # bytes

cdef extern from *:
    """
    #define torpor_load_pages(p) ((void *)__atomic_load_n(p, __ATOMIC_ACQUIRE))
    #define torpor_store_pages(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    """
    void *load_pointer "torpor_load_pages"(void **p) noexcept nogil
    void store_pointer "torpor_store_pages"(void **p, void *v) noexcept nogil

cdef struct CacheSlot:
    int64_t ext_seq         # -1: empty
    int64_t arrived
    uint64_t offset         # of its first byte, counted since the ring began
    uint32_t version        # odd while being written
    uint16_t length

cdef struct Pages:
    uint64_t head           # bytes ever reserved in the ring
    uint64_t bytes
    uint32_t slot_count     # power of two
    CacheSlot *slots
    uint8_t *ring
    Pages *next_retired

cdef struct Cache:
    void *pages             # Pages *, published to readers
    int64_t highest         # -1: empty
    int64_t age_max
    Pages *retired
    bint crowded            # at the present rate packets will be overwritten before `age_max`: grow


cdef inline Pages *pages_new(uint32_t slot_count, uint64_t bytes) noexcept nogil:
    """NULL when memory is short."""
    cdef Pages *p = <Pages *>calloc(1, sizeof(Pages))
    cdef uint32_t i
    if p == NULL:
        return NULL
    p.slot_count = slot_count
    p.bytes = bytes
    p.slots = <CacheSlot *>calloc(slot_count, sizeof(CacheSlot))
    p.ring = <uint8_t *>malloc(bytes)
    if p.slots == NULL or p.ring == NULL:
        pages_free(p)
        return NULL
    for i in range(slot_count):
        p.slots[i].ext_seq = -1
    return p


cdef inline void pages_free(Pages *p) noexcept nogil:
    free(p.slots)
    free(p.ring)
    free(p)


cdef inline bint cache_init(Cache *c, uint32_t slot_count, uint64_t bytes, int64_t age_max) noexcept nogil:
    c.pages = pages_new(slot_count, bytes)
    c.highest = -1
    c.age_max = age_max
    c.retired = NULL
    c.crowded = False
    return c.pages != NULL


cdef inline uint64_t cache_free_retired(Cache *c) noexcept nogil:
    """Only when no other thread can still be inside a copy. Returns the bytes given back."""
    cdef Pages *p
    cdef uint64_t freed = 0
    while c.retired != NULL:
        p = c.retired
        c.retired = p.next_retired
        freed += p.bytes
        pages_free(p)
    return freed


cdef inline void cache_destroy(Cache *c) noexcept nogil:
    cache_free_retired(c)
    if c.pages != NULL:
        pages_free(<Pages *>c.pages)
    c.pages = NULL


cdef inline void cache_clear(Cache *c) noexcept nogil:
    """Forget everything (writer's thread)."""
    cdef Pages *p = <Pages *>c.pages
    cdef uint32_t i
    if p == NULL:
        return
    for i in range(p.slot_count):
        store_u32(&p.slots[i].version, p.slots[i].version + 1)
        fence()
        store_i64(&p.slots[i].ext_seq, -1)
        store_u32(&p.slots[i].version, p.slots[i].version + 1)
    c.highest = -1


cdef inline bint slot_alive(const Pages *p, const CacheSlot *slot) noexcept nogil:
    return slot.ext_seq >= 0 and p.head - slot.offset <= p.bytes


cdef inline void ring_write(Pages *p, uint64_t offset, const uint8_t *data, uint64_t size) noexcept nogil:
    cdef uint64_t at = offset % p.bytes
    cdef uint64_t first = p.bytes - at
    if size <= first:
        memcpy(p.ring + at, data, size)
    else:
        memcpy(p.ring + at, data, first)
        memcpy(p.ring, data + first, size - first)


cdef inline void ring_read(const Pages *p, uint64_t offset, uint8_t *out, uint64_t size) noexcept nogil:
    cdef uint64_t at = offset % p.bytes
    cdef uint64_t first = p.bytes - at
    if size <= first:
        memcpy(out, p.ring + at, size)
    else:
        memcpy(out, p.ring + at, first)
        memcpy(out + first, p.ring, size - first)


cdef inline void pages_put(Pages *p, int64_t ext_seq, const uint8_t *data, int size, int64_t arrived) noexcept nogil:
    cdef CacheSlot *slot = &p.slots[ext_seq & (p.slot_count - 1)]
    cdef uint64_t offset = p.head
    store_u32(&slot.version, slot.version + 1)
    store_u64(&p.head, offset + <uint64_t>size)
    fence()
    slot.ext_seq = ext_seq
    slot.arrived = arrived
    slot.offset = offset
    slot.length = <uint16_t>size
    ring_write(p, offset, data, <uint64_t>size)
    store_u32(&slot.version, slot.version + 1)


cdef inline bint cache_has(const Cache *c, int64_t ext_seq) noexcept nogil:
    """Writer's thread only."""
    cdef Pages *p = <Pages *>c.pages
    cdef CacheSlot *slot = &p.slots[ext_seq & (p.slot_count - 1)]
    return slot.ext_seq == ext_seq and slot_alive(p, slot)


cdef inline bint cache_store(Cache *c, int64_t ext_seq, const uint8_t *data, int size, int64_t now) noexcept nogil:
    """False: too large, too far back, or already there. Writer's thread only; allocates nothing."""
    cdef Pages *p = <Pages *>c.pages
    cdef CacheSlot *slot = &p.slots[ext_seq & (p.slot_count - 1)]
    if size > CACHED_PACKET_MAX or <uint64_t>size > p.bytes:
        return False
    if ext_seq <= c.highest - <int64_t>p.slot_count:
        return False
    if slot.ext_seq == ext_seq and slot_alive(p, slot):
        return False
    # What is half a table old should be half the age old; looking there leaves half a table's time to grow.
    slot = &p.slots[(ext_seq + (p.slot_count >> 1)) & (p.slot_count - 1)]
    if slot.ext_seq >= 0 and 2 * (now - slot.arrived) < c.age_max:
        c.crowded = True
    pages_put(p, ext_seq, data, size, now)
    if ext_seq > c.highest:
        c.highest = ext_seq
    return True


cdef inline int cache_copy(Cache *c, int64_t ext_seq, uint8_t *out, int64_t now) noexcept nogil:
    """Copy a packet to `out` (CACHED_PACKET_MAX bytes). Any thread. -1: not there, too old, or overwritten meanwhile."""
    cdef Pages *p = <Pages *>load_pointer(&c.pages)
    cdef CacheSlot *slot = &p.slots[ext_seq & (p.slot_count - 1)]
    cdef uint32_t version = load_u32(&slot.version)
    cdef uint64_t offset = slot.offset
    cdef int length = slot.length
    if version & 1 or slot.ext_seq != ext_seq or now - slot.arrived > c.age_max or length > CACHED_PACKET_MAX:
        return -1
    ring_read(p, offset, out, <uint64_t>length)
    fence()
    if load_u32(&slot.version) != version or load_u64(&p.head) - offset > p.bytes:
        return -1
    return length


cdef inline bint cache_grow(Cache *c, uint32_t slot_count, uint64_t bytes) noexcept nogil:
    """Move to larger pages (writer's thread, off the packet path). False when memory is short: nothing changed.

    The old pages are retired, not freed: readers may be inside them.
    """
    cdef Pages *old = <Pages *>c.pages
    cdef Pages *new = pages_new(slot_count, bytes)
    cdef uint8_t packet[CACHED_PACKET_MAX]
    cdef CacheSlot *slot
    cdef int64_t ext_seq
    c.crowded = False
    if new == NULL:
        return False
    ext_seq = c.highest - <int64_t>old.slot_count + 1
    while ext_seq <= c.highest and c.highest >= 0:
        if ext_seq >= 0:
            slot = &old.slots[ext_seq & (old.slot_count - 1)]
            if slot.ext_seq == ext_seq and slot_alive(old, slot):
                ring_read(old, slot.offset, packet, slot.length)
                pages_put(new, ext_seq, packet, slot.length, slot.arrived)
        ext_seq += 1
    old.next_retired = c.retired
    c.retired = old
    store_pointer(&c.pages, new)
    return True


cdef inline uint64_t cache_bytes_used(const Cache *c) noexcept nogil:
    cdef Pages *p = <Pages *>c.pages
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(p.slot_count):
        if slot_alive(p, &p.slots[i]) and p.slots[i].ext_seq > c.highest - <int64_t>p.slot_count:
            total += p.slots[i].length
    return total
