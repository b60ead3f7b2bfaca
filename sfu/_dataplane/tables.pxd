"""Hash tables of the plane: ids to objects, SSRCs to streams, remote addresses to transports.

Open addressing with linear probing, power-of-two growth at three quarters full, backward-shift deletion. Hashes are
seeded, because peers choose the keys. Growing allocates: only Python's thread or a rare path (a new SSRC) inserts.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from sfu._dataplane.machine cimport mix64
from wire._batch.udp cimport Address, same_address

cdef struct IdEntry:
    uint64_t key            # 0: empty
    void *value
    int64_t extra           # the user's

cdef struct IdTable:
    IdEntry *entries        # NULL while empty
    uint32_t capacity
    uint32_t count
    uint64_t seed


cdef inline IdEntry *table_find(const IdTable *t, uint64_t key) noexcept nogil:
    """NULL when the key is not there."""
    cdef uint32_t i
    if t.count == 0:
        return NULL
    i = <uint32_t>mix64(key ^ t.seed) & (t.capacity - 1)
    while t.entries[i].key:
        if t.entries[i].key == key:
            return &t.entries[i]
        i = (i + 1) & (t.capacity - 1)
    return NULL


cdef inline void *table_get(const IdTable *t, uint64_t key) noexcept nogil:
    cdef IdEntry *entry = table_find(t, key)
    return NULL if entry == NULL else entry.value


cdef inline bint table_grow(IdTable *t) noexcept nogil:
    cdef IdEntry *old = t.entries
    cdef uint32_t old_capacity = t.capacity
    cdef uint32_t capacity = 2 * old_capacity if old_capacity else 8
    cdef IdEntry *new = <IdEntry *>calloc(capacity, sizeof(IdEntry))
    cdef uint32_t i, at
    if new == NULL:
        return False
    for i in range(old_capacity):
        if old[i].key:
            at = <uint32_t>mix64(old[i].key ^ t.seed) & (capacity - 1)
            while new[at].key:
                at = (at + 1) & (capacity - 1)
            new[at] = old[i]
    free(old)
    t.entries = new
    t.capacity = capacity
    return True


cdef inline IdEntry *table_put(IdTable *t, uint64_t key, void *value, int64_t extra) noexcept nogil:
    """Insert or replace. NULL: memory is short."""
    cdef IdEntry *entry = table_find(t, key)
    cdef uint32_t i
    if entry == NULL:
        if 4 * (t.count + 1) > 3 * t.capacity and not table_grow(t):
            return NULL
        i = <uint32_t>mix64(key ^ t.seed) & (t.capacity - 1)
        while t.entries[i].key:
            i = (i + 1) & (t.capacity - 1)
        entry = &t.entries[i]
        t.count += 1
    entry.key = key
    entry.value = value
    entry.extra = extra
    return entry


cdef inline void table_delete(IdTable *t, uint64_t key) noexcept nogil:
    cdef IdEntry *entry = table_find(t, key)
    cdef uint32_t hole, i, home
    if entry == NULL:
        return
    hole = <uint32_t>(entry - t.entries)
    i = hole
    while True:
        i = (i + 1) & (t.capacity - 1)
        if t.entries[i].key == 0:
            break
        home = <uint32_t>mix64(t.entries[i].key ^ t.seed) & (t.capacity - 1)
        if ((i - home) & (t.capacity - 1)) >= ((i - hole) & (t.capacity - 1)):
            t.entries[hole] = t.entries[i]
            hole = i
    t.entries[hole].key = 0
    t.count -= 1


cdef inline void table_free(IdTable *t) noexcept nogil:
    free(t.entries)
    t.entries = NULL
    t.capacity = 0
    t.count = 0


# -- remote tuples: (socket index, remote address) to transport ------------------------------------------------------

cdef struct TupleEntry:
    void *value             # NULL: empty
    int socket_index
    Address remote

cdef struct TupleTable:
    TupleEntry *entries
    uint32_t capacity
    uint32_t count
    uint64_t seed


cdef inline uint64_t hash_address(uint64_t seed, const Address *a, bint with_port) noexcept nogil:
    cdef uint64_t words[4]
    words[0] = words[1] = words[2] = words[3] = 0
    memcpy(words, a.raw, a.length)
    if not with_port:
        (<uint8_t *>words)[2] = 0
        (<uint8_t *>words)[3] = 0
    return mix64(mix64(mix64(mix64(words[0] ^ seed) + words[1]) + words[2]) + words[3])


cdef inline uint32_t tuple_home(const TupleTable *t, int socket_index, const Address *remote, uint32_t capacity) noexcept nogil:
    return <uint32_t>(hash_address(t.seed, remote, True) + <uint64_t>socket_index * <uint64_t>0x9E3779B97F4A7C15) & (capacity - 1)


cdef inline TupleEntry *tuple_find(const TupleTable *t, int socket_index, const Address *remote) noexcept nogil:
    """NULL: no transport owns it."""
    cdef uint32_t i
    if t.count == 0:
        return NULL
    i = tuple_home(t, socket_index, remote, t.capacity)
    while t.entries[i].value != NULL:
        if t.entries[i].socket_index == socket_index and same_address(&t.entries[i].remote, remote):
            return &t.entries[i]
        i = (i + 1) & (t.capacity - 1)
    return NULL


cdef inline bint tuple_grow(TupleTable *t) noexcept nogil:
    cdef TupleEntry *old = t.entries
    cdef uint32_t old_capacity = t.capacity
    cdef uint32_t capacity = 2 * old_capacity if old_capacity else 64
    cdef TupleEntry *new = <TupleEntry *>calloc(capacity, sizeof(TupleEntry))
    cdef uint32_t i, at
    if new == NULL:
        return False
    for i in range(old_capacity):
        if old[i].value != NULL:
            at = tuple_home(t, old[i].socket_index, &old[i].remote, capacity)
            while new[at].value != NULL:
                at = (at + 1) & (capacity - 1)
            new[at] = old[i]
    free(old)
    t.entries = new
    t.capacity = capacity
    return True


cdef inline bint tuple_put(TupleTable *t, int socket_index, const Address *remote, void *value) noexcept nogil:
    cdef TupleEntry *entry = tuple_find(t, socket_index, remote)
    cdef uint32_t i
    if entry == NULL:
        if 4 * (t.count + 1) > 3 * t.capacity and not tuple_grow(t):
            return False
        i = tuple_home(t, socket_index, remote, t.capacity)
        while t.entries[i].value != NULL:
            i = (i + 1) & (t.capacity - 1)
        entry = &t.entries[i]
        t.count += 1
    entry.value = value
    entry.socket_index = socket_index
    entry.remote = remote[0]
    return True


cdef inline void tuple_delete(TupleTable *t, int socket_index, const Address *remote) noexcept nogil:
    cdef TupleEntry *entry = tuple_find(t, socket_index, remote)
    cdef uint32_t hole, i, home
    if entry == NULL:
        return
    hole = <uint32_t>(entry - t.entries)
    i = hole
    while True:
        i = (i + 1) & (t.capacity - 1)
        if t.entries[i].value == NULL:
            break
        home = tuple_home(t, t.entries[i].socket_index, &t.entries[i].remote, t.capacity)
        if ((i - home) & (t.capacity - 1)) >= ((i - hole) & (t.capacity - 1)):
            t.entries[hole] = t.entries[i]
            hole = i
    t.entries[hole].value = NULL
    t.count -= 1


# -- strangers: a token bucket per remote address -----------------------------------------------------------------

cdef enum:
    BUCKET_SETS = 1024
    BUCKET_WAYS = 4

cdef struct Bucket:
    uint64_t address        # seeded hash of the address, 0: empty
    int64_t refilled
    int64_t tokens_us       # budget left, in us of the refill time; 1 token costs 1 s / rate


cdef inline bint bucket_take(Bucket *buckets, uint64_t seed, const Address *from_, bint with_port, int64_t rate, int64_t now) noexcept nogil:
    """Whether one more datagram of this address is within `rate` per second. A full set forgets its oldest.

    `with_port`: of this port of it. Relays of ours share an address, and whoever has one has proven who he is.
    """
    cdef uint64_t key = hash_address(seed, from_, with_port) | 1
    cdef Bucket *set_ = buckets + BUCKET_WAYS * (<uint32_t>(key >> 32) & (BUCKET_SETS - 1))
    cdef Bucket *b = set_
    cdef int i
    if rate <= 0:
        return False
    for i in range(BUCKET_WAYS):
        if set_[i].address == key:
            b = &set_[i]
            break
        if set_[i].refilled < b.refilled:
            b = &set_[i]
    if b.address != key:
        b.address = key
        b.tokens_us = 1000000
    else:
        b.tokens_us += now - b.refilled
        if b.tokens_us > 1000000:
            b.tokens_us = 1000000
    b.refilled = now
    if b.tokens_us < 1000000 // rate:
        return False
    b.tokens_us -= 1000000 // rate
    return True
