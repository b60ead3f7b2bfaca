"""Datagrams that stay in the process: one bounded queue per receiving thread, any number of senders, no lock.

For two planes of one process whose clients are each other's peers: what one sends to an address of the other is put
into an inbox of the other instead of going through the network. It carries what a socket would tell: source and
destination. `exchange` makes the inboxes; the planes see them as one more ingress and, behind `udp.Socket`, one more
egress.

A slot's `turn` says whose it is (Vyukov's bounded queue): in lap n of the ring 2n is free, 2n + 1 full. A sender takes
the next position by compare-and-swap, fills the slot and publishes it; the receiver, alone, looks at full slots in
order and gives them back. A sender that is interrupted between the two delays what came after it, and loses nothing.

Memory: the slots belong to the `Exchange`, which outlives both planes' threads. `Slot.data` is the sender's from
`inbox_claim` to `inbox_publish`, then the receiver's until `inbox_release`. Nothing is allocated per datagram.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wire._batch.address cimport Address

cdef extern from *:
    """
    #include <stdint.h>
    #include <unistd.h>
    #define inbox_load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define inbox_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    #define inbox_exchange(p, v) __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL)
    #define inbox_add(p, v) __atomic_add_fetch(p, v, __ATOMIC_RELAXED)
    #define inbox_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    static inline int inbox_swap(uint64_t *at, uint64_t *expected, uint64_t desired) {
        return __atomic_compare_exchange_n(at, expected, desired, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    uint64_t load_u64 "inbox_load"(const uint64_t *p) noexcept nogil
    void store_u64 "inbox_store"(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t add_u64 "inbox_add"(uint64_t *p, uint64_t v) noexcept nogil
    int load_flag "inbox_load"(const int *p) noexcept nogil
    void store_flag "inbox_store"(int *p, int v) noexcept nogil
    int exchange_flag "inbox_exchange"(int *p, int v) noexcept nogil
    bint swap_u64 "inbox_swap"(uint64_t *at, uint64_t *expected, uint64_t desired) noexcept nogil
    void full_fence "inbox_fence"() noexcept nogil
    ssize_t write_fd "write"(int fd, const void *data, size_t size) noexcept nogil
    ssize_t read_fd "read"(int fd, void *data, size_t size) noexcept nogil

cdef enum:
    INBOX_SLOTS = 2048          # a power of two; 4 MiB, of which only what was ever used is resident
    INBOX_BITS = 11
    SLOT_BYTES = 2048           # what the media side takes in one datagram; above it there is the network

cdef enum Posting:
    POSTED
    INBOX_FULL
    INBOX_CLOSED                # nobody receives: not started, or stopped

cdef struct Slot:
    uint64_t turn
    Address source
    Address to
    uint16_t thread             # of the sending plane: where an answer belongs
    uint16_t size
    uint8_t data[SLOT_BYTES]

cdef struct Inbox:
    uint64_t head               # senders'
    uint8_t apart[56]           # a cache line of its own
    uint64_t tail               # the receiver's
    Slot *slots
    int open                    # somebody receives
    int sleeping                # the receiver waits in epoll, or is about to
    int wake_fd                 # an eventfd for that epoll
    uint8_t end[32]


cdef inline Slot *inbox_claim(Inbox *b) noexcept nogil:
    """The next slot to fill, or NULL: it is full. Publish it soon."""
    cdef uint64_t at = load_u64(&b.head), turn, free_
    cdef Slot *slot
    while True:
        slot = &b.slots[at & (INBOX_SLOTS - 1)]
        turn = load_u64(&slot.turn)
        free_ = (at >> INBOX_BITS) << 1
        if turn == free_:
            if swap_u64(&b.head, &at, at + 1):
                return slot
        elif turn < free_:
            return NULL
        else:
            at = load_u64(&b.head)


cdef inline void inbox_publish(Slot *slot) noexcept nogil:
    store_u64(&slot.turn, slot.turn + 1)


cdef inline void inbox_wake(Inbox *b) noexcept nogil:
    """After publishing. Only a receiver that sleeps costs a system call."""
    cdef uint64_t one = 1
    full_fence()
    if load_flag(&b.sleeping) and exchange_flag(&b.sleeping, 0):
        write_fd(b.wake_fd, &one, sizeof(one))


cdef inline Slot *inbox_peek(Inbox *b, uint64_t ahead) noexcept nogil:
    """The slot `ahead` of the oldest, or NULL: not there yet. The receiver's; valid until released."""
    cdef uint64_t at = b.tail + ahead
    cdef Slot *slot = &b.slots[at & (INBOX_SLOTS - 1)]
    return slot if load_u64(&slot.turn) == ((at >> INBOX_BITS) << 1) + 1 else NULL


cdef inline void inbox_release(Inbox *b, uint64_t count) noexcept nogil:
    """Give the oldest `count` slots back; all were peeked at."""
    cdef Slot *slot
    while count:
        slot = &b.slots[b.tail & (INBOX_SLOTS - 1)]
        b.tail += 1
        store_u64(&slot.turn, slot.turn + 1)
        count -= 1


cdef inline bint inbox_doze(Inbox *b) noexcept nogil:
    """Before the receiver sleeps in epoll. False: there is something; do not sleep."""
    store_flag(&b.sleeping, 1)
    full_fence()
    return inbox_peek(b, 0) == NULL


cdef inline void inbox_rise(Inbox *b) noexcept nogil:
    """After the sleep."""
    store_flag(&b.sleeping, 0)


cdef inline void inbox_heard(Inbox *b) noexcept nogil:
    """Its `wake_fd` was readable: make it unreadable."""
    cdef uint64_t ignored
    read_fd(b.wake_fd, &ignored, sizeof(ignored))


cdef inline Posting inbox_post(Inbox *b, int thread, const Address *source, const Address *to, const uint8_t *data, uint32_t size) noexcept nogil:
    """One datagram of at most SLOT_BYTES, copied. Wakes nobody: see `inbox_wake`."""
    cdef Slot *slot
    if not load_flag(&b.open):
        return INBOX_CLOSED
    slot = inbox_claim(b)
    if slot == NULL:
        return INBOX_FULL
    slot.source = source[0]
    slot.to = to[0]
    slot.thread = <uint16_t>thread
    slot.size = <uint16_t>size
    memcpy(slot.data, data, size)
    inbox_publish(slot)
    return POSTED
