"""Batched UDP without the GIL: `recvmmsg` with UDP_GRO in, `sendmmsg` with trains of equal segments (UDP_SEGMENT) out.

A `Socket` may also be an inbox of this process (`inbox.pxd`): what is queued for it is put there at the flush. When it
is full its thread gets the core a few times, which on a busy machine is all it lacked; then datagrams are dropped.

The system call path is the cost of small datagrams, so both directions move many per call. A *train* is a run of
datagrams of one length to one destination (a shorter last one closes it) that the kernel cuts up by itself.

Memory: a `Receiver` and a `Sender` own their buffers from init to destroy. What `receive_batch` gives is valid until
the next call; bytes written at `sender_room` are the caller's until `sender_commit`. Nothing is allocated in between.
Threads: each belongs to one thread; file descriptors may be shared.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from wire._batch.address cimport AF_INET, AF_INET6, Address, format_address, normalize_address, parse_address, same_address
from wire._batch.inbox cimport (
    INBOX_CLOSED, INBOX_FULL, POSTED, SLOT_BYTES, Inbox, Posting, inbox_post, inbox_wake,
)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/types.h>
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <arpa/inet.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    """

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        pass
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout) noexcept
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags) noexcept
    ssize_t sendmsg(int fd, const msghdr *message, int flags) noexcept
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *to, unsigned int to_size) noexcept
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size) noexcept
    cmsghdr *CMSG_FIRSTHDR(msghdr *message) noexcept
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *cmsg) noexcept
    uint8_t *CMSG_DATA(cmsghdr *cmsg) noexcept
    size_t CMSG_LEN(size_t size) noexcept
    size_t CMSG_SPACE(size_t size) noexcept
    enum: MSG_DONTWAIT, MSG_TRUNC, SOL_UDP, UDP_SEGMENT, UDP_GRO

cdef extern from "sched.h" nogil:
    int sched_yield() noexcept

cdef enum:
    BATCH = 64                  # datagrams per receive call, messages per send call
    SEGMENTS_MAX = 64           # per train
    TRAIN_BYTES_MAX = 65507
    SEGMENT_SIZE_MAX = 1452     # larger datagrams go alone, so that one cannot turn trains off for its socket
    DATAGRAM_MAX = 65536
    CONTROL_SIZE = 64
    TRAINS_MAX = 256
    HELD_MAX = 64               # kept datagrams waiting for a full socket buffer
    HELD_SIZE = 1500
    YIELDS_MAX = 16             # per flush, to receivers of this process that are behind

cdef struct Datagram:
    uint8_t *data
    int size
    int segment_size            # of each but the last; equal to `size` when not coalesced
    Address *source
    bint truncated

cdef struct Receiver:
    mmsghdr messages[BATCH]
    iovec vectors[BATCH]
    Address sources[BATCH]
    uint8_t control[BATCH][CONTROL_SIZE]
    uint8_t *buffer             # BATCH x DATAGRAM_MAX
    int used                    # messages whose lengths the kernel has overwritten

cdef struct Socket:
    int fd
    bint gso
    uint64_t gso_refused        # trains the kernel would not take; the first turns `gso` off
    # A socket without a descriptor, when `inbox` is set: what is sent goes there, in memory, as from `local`.
    Inbox *inbox
    Address local
    int thread                  # of ours: where an answer belongs

cdef struct Train:
    Address to
    Socket *socket
    int *blocked                # set to 1 when the train was dropped for a full socket buffer, or NULL
    int64_t tag                 # the caller's (time of receipt)
    uint32_t offset             # in the arena
    uint32_t size
    uint16_t segment_size
    uint16_t segments
    uint8_t keep                # hold it back instead of dropping it when the socket buffer is full
    uint8_t closed              # its last segment is shorter

cdef struct SendCounters:
    uint64_t calls
    uint64_t datagrams
    uint64_t bytes
    uint64_t trains             # of two or more
    uint64_t train_datagrams
    uint64_t dropped_blocked    # socket buffer full
    uint64_t held
    uint64_t dropped_error      # unreachable and the like
    uint64_t in_memory          # datagrams put into an inbox; not in those above
    uint64_t dropped_inbox_full
    uint64_t dropped_inbox_closed

cdef struct Held:
    Address to
    Socket *socket
    int size
    uint8_t data[HELD_SIZE]

cdef struct Sender:
    uint8_t *arena
    uint32_t capacity
    uint32_t used
    int count
    Train trains[TRAINS_MAX]
    mmsghdr messages[BATCH]
    iovec vectors[BATCH]
    int train_of[BATCH]
    uint8_t control[BATCH][CONTROL_SIZE]
    int held_count
    Held *held
    SendCounters counters


cdef inline bint receiver_init(Receiver *r) noexcept nogil:
    cdef int i
    memset(r, 0, sizeof(Receiver))
    r.buffer = <uint8_t *>malloc(<size_t>BATCH * DATAGRAM_MAX)
    if r.buffer == NULL:
        return False
    for i in range(BATCH):
        r.vectors[i].iov_base = r.buffer + <size_t>i * DATAGRAM_MAX
        r.vectors[i].iov_len = DATAGRAM_MAX
        r.messages[i].msg_hdr.msg_iov = &r.vectors[i]
        r.messages[i].msg_hdr.msg_iovlen = 1
        r.messages[i].msg_hdr.msg_name = r.sources[i].raw
        r.messages[i].msg_hdr.msg_control = r.control[i]
    r.used = BATCH
    return True


cdef inline void receiver_destroy(Receiver *r) noexcept nogil:
    free(r.buffer)
    r.buffer = NULL


cdef inline int receive_batch(Receiver *r, int fd) noexcept nogil:
    """Take what waits, at most BATCH datagrams, never blocking. Returns their number; 0 also on an error of the socket."""
    cdef int i, n
    for i in range(r.used):
        r.messages[i].msg_hdr.msg_namelen = sizeof(r.sources[i].raw)
        r.messages[i].msg_hdr.msg_controllen = CONTROL_SIZE
    n = recvmmsg(fd, r.messages, BATCH, MSG_DONTWAIT, NULL)
    # One more than were filled may have been touched.
    r.used = min(n + 1, <int>BATCH) if n > 0 else 1
    return n if n > 0 else 0


cdef inline void received(Receiver *r, int i, Datagram *d) noexcept nogil:
    """The i-th datagram of the last batch; with `segment_size` < `size` several, coalesced by the kernel (UDP_GRO)."""
    cdef msghdr *m = &r.messages[i].msg_hdr
    cdef cmsghdr *c
    cdef int segment = 0
    d.data = <uint8_t *>r.vectors[i].iov_base
    d.size = <int>r.messages[i].msg_len
    d.truncated = (m.msg_flags & MSG_TRUNC) != 0
    normalize_address(&r.sources[i], m.msg_namelen)
    d.source = &r.sources[i]
    if m.msg_controllen:
        c = CMSG_FIRSTHDR(m)
        while c != NULL:
            if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
                memcpy(&segment, CMSG_DATA(c), sizeof(int))
            c = CMSG_NXTHDR(m, c)
    d.segment_size = segment if 0 < segment < d.size else d.size


cdef inline bint enable_gro(int fd) noexcept nogil:
    cdef int on = 1
    return setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(int)) == 0


cdef inline bint sender_init(Sender *s, uint32_t capacity) noexcept nogil:
    """`capacity`: arena bytes, at least TRAIN_BYTES_MAX. False when memory is short."""
    memset(s, 0, sizeof(Sender))
    s.arena = <uint8_t *>malloc(capacity)
    s.held = <Held *>malloc(HELD_MAX * sizeof(Held))
    s.capacity = capacity
    if s.arena == NULL or s.held == NULL:
        sender_destroy(s)
        return False
    return True


cdef inline void sender_destroy(Sender *s) noexcept nogil:
    free(s.arena)
    free(s.held)
    s.arena = NULL
    s.held = NULL


cdef inline uint8_t *sender_room(Sender *s, uint32_t size) noexcept nogil:
    """Where the next datagram of at most `size` bytes is to be written, or NULL: flush first."""
    if s.used + size > s.capacity or s.count == TRAINS_MAX:
        return NULL
    return s.arena + s.used


cdef inline void sender_commit(Sender *s, Socket *socket, const Address *to, uint32_t size, bint keep, int64_t tag, int *blocked) noexcept nogil:
    """Queue the datagram written at `sender_room`. It joins the last train when destination and length allow."""
    cdef Train *t
    if s.count:
        t = &s.trains[s.count - 1]
        if (
            not t.closed
            and t.socket == socket
            and size <= t.segment_size
            and t.segments < SEGMENTS_MAX
            and t.size + size <= TRAIN_BYTES_MAX
            and t.segment_size <= SEGMENT_SIZE_MAX
            and t.blocked == blocked
            and t.keep == keep
            and same_address(&t.to, to)
        ):
            t.size += size
            t.segments += 1
            t.closed = size < t.segment_size
            s.used += size
            return
    t = &s.trains[s.count]
    s.count += 1
    t.to = to[0]
    t.socket = socket
    t.blocked = blocked
    t.tag = tag
    t.offset = s.used
    t.size = size
    t.segment_size = <uint16_t>size
    t.segments = 1
    t.keep = keep
    t.closed = False
    s.used += size


cdef inline void prepare_message(Sender *s, int slot, Train *t, uint32_t offset, uint32_t size, bint gso) noexcept nogil:
    cdef msghdr *m = &s.messages[slot].msg_hdr
    cdef cmsghdr *c
    s.vectors[slot].iov_base = s.arena + offset
    s.vectors[slot].iov_len = size
    m.msg_name = t.to.raw
    m.msg_namelen = t.to.length
    m.msg_iov = &s.vectors[slot]
    m.msg_iovlen = 1
    m.msg_flags = 0
    m.msg_control = NULL
    m.msg_controllen = 0
    if gso:
        m.msg_control = s.control[slot]
        m.msg_controllen = CMSG_SPACE(sizeof(uint16_t))
        c = CMSG_FIRSTHDR(m)
        c.cmsg_level = SOL_UDP
        c.cmsg_type = UDP_SEGMENT
        c.cmsg_len = CMSG_LEN(sizeof(uint16_t))
        memcpy(CMSG_DATA(c), &t.segment_size, sizeof(uint16_t))


cdef inline void hold_or_drop(Sender *s, Train *t, uint32_t offset, uint32_t size) noexcept nogil:
    """IO-2 on a full socket buffer: what must be kept waits for the next flush, the rest goes, and its owner is told."""
    cdef Held *h
    cdef uint32_t piece, end = offset + size
    if not t.keep:
        s.counters.dropped_blocked += (size + t.segment_size - 1) // t.segment_size
        if t.blocked != NULL:
            t.blocked[0] = 1
        return
    while offset < end:
        piece = t.segment_size if end - offset > t.segment_size else end - offset
        if s.held_count == HELD_MAX or piece > HELD_SIZE:
            s.counters.dropped_blocked += 1
        else:
            h = &s.held[s.held_count]
            s.held_count += 1
            h.to = t.to
            h.socket = t.socket
            h.size = <int>piece
            memcpy(h.data, s.arena + offset, piece)
            s.counters.held += 1
        offset += piece


cdef inline bint send_singly(Sender *s, Train *t, uint32_t offset, uint32_t size) noexcept nogil:
    """A refused train, datagram by datagram. True when the socket buffer filled up: the rest was held or dropped."""
    cdef uint32_t piece, end = offset + size
    while offset < end:
        piece = t.segment_size if end - offset > t.segment_size else end - offset
        s.counters.calls += 1
        if sendto(t.socket.fd, s.arena + offset, piece, MSG_DONTWAIT, <const sockaddr *>t.to.raw, t.to.length) >= 0:
            s.counters.datagrams += 1
            s.counters.bytes += piece
        elif errno == EAGAIN or errno == ENOBUFS:
            hold_or_drop(s, t, offset, end - offset)
            return True
        elif errno != EINTR:
            s.counters.dropped_error += 1
        else:
            continue
        offset += piece
    return False


cdef inline void count_sent(Sender *s, Train *t, uint32_t size) noexcept nogil:
    cdef uint64_t n = (size + t.segment_size - 1) // t.segment_size
    s.counters.datagrams += n
    s.counters.bytes += size
    if n > 1:
        s.counters.trains += 1
        s.counters.train_datagrams += n


cdef inline bint send_run(Sender *s, Socket *socket, int count) noexcept nogil:
    """Send the first `count` prepared messages, all of one socket. True when its buffer filled up."""
    cdef int at = 0, n
    cdef Train *t
    cdef bint blocked = False
    cdef uint32_t offset, size
    while at < count:
        t = &s.trains[s.train_of[at]]
        offset = <uint32_t>(<uint8_t *>s.vectors[at].iov_base - s.arena)
        size = <uint32_t>s.vectors[at].iov_len
        if blocked:
            hold_or_drop(s, t, offset, size)
            at += 1
            continue
        if not socket.gso and s.messages[at].msg_hdr.msg_control != NULL:
            blocked = send_singly(s, t, offset, size)
            at += 1
            continue
        s.counters.calls += 1
        if count - at == 1 and s.messages[at].msg_hdr.msg_control == NULL:
            # Lone packets are the dearest: spare them what the vector call costs.
            n = sendto(socket.fd, s.arena + offset, size, MSG_DONTWAIT, <const sockaddr *>t.to.raw, t.to.length) >= 0
        else:
            n = sendmmsg(socket.fd, &s.messages[at], count - at, MSG_DONTWAIT)
        if n > 0:
            while n > 0:
                count_sent(s, &s.trains[s.train_of[at]], <uint32_t>s.vectors[at].iov_len)
                at += 1
                n -= 1
            continue
        if errno == EINTR:
            continue
        if errno == EAGAIN or errno == ENOBUFS:
            blocked = True
        elif s.messages[at].msg_hdr.msg_control != NULL and (errno == EINVAL or errno == EIO or errno == EMSGSIZE):
            socket.gso = False
            socket.gso_refused += 1
        else:
            s.counters.dropped_error += (size + t.segment_size - 1) // t.segment_size
            at += 1
    return blocked


cdef inline Posting post(Socket *socket, const Address *to, const uint8_t *data, uint32_t size, int *yields) noexcept nogil:
    """Into the inbox that the socket is. A full one is given the chance to run, which on a busy core it did not have."""
    cdef Posting posting = inbox_post(socket.inbox, socket.thread, &socket.local, to, data, size)
    while posting == INBOX_FULL and yields[0]:
        yields[0] -= 1
        inbox_wake(socket.inbox)
        sched_yield()
        posting = inbox_post(socket.inbox, socket.thread, &socket.local, to, data, size)
    return posting


cdef inline void deliver(Sender *s, Train *t, int *yields) noexcept nogil:
    """A train into the inbox that is its socket: datagram by datagram, as they would have arrived."""
    cdef uint32_t piece, offset = t.offset, end = t.offset + t.size
    cdef Posting posting
    while offset < end:
        piece = t.segment_size if end - offset > t.segment_size else end - offset
        if piece > SLOT_BYTES:
            s.counters.dropped_error += 1
        else:
            posting = post(t.socket, &t.to, s.arena + offset, piece, yields)
            if posting == POSTED:
                s.counters.in_memory += 1
            elif posting == INBOX_CLOSED:
                s.counters.dropped_inbox_closed += 1
            elif t.keep:
                hold_or_drop(s, t, offset, end - offset)
                return
            else:
                s.counters.dropped_inbox_full += 1
                if t.blocked != NULL:
                    t.blocked[0] = 1
        offset += piece


cdef inline bint deliver_held(Sender *s, Held *h) noexcept nogil:
    """False: the inbox is still full."""
    cdef Posting posting = inbox_post(h.socket.inbox, h.socket.thread, &h.socket.local, &h.to, h.data, <uint32_t>h.size)
    if posting == INBOX_FULL:
        return False
    if posting == POSTED:
        s.counters.in_memory += 1
        inbox_wake(h.socket.inbox)
    else:
        s.counters.dropped_inbox_closed += 1
    return True


cdef inline void send_held(Sender *s) noexcept nogil:
    """What a full buffer kept back goes first; it is tried once per flush, never in a loop."""
    cdef int i, left = 0
    cdef Held *h
    for i in range(s.held_count):
        h = &s.held[i]
        if h.socket.inbox != NULL:
            if left or not deliver_held(s, h):
                if left != i:
                    s.held[left] = h[0]
                left += 1
            continue
        s.counters.calls += 1
        if left == 0 and sendto(h.socket.fd, h.data, h.size, MSG_DONTWAIT, <const sockaddr *>h.to.raw, h.to.length) >= 0:
            s.counters.datagrams += 1
            s.counters.bytes += h.size
        elif left or errno == EAGAIN or errno == ENOBUFS:
            if left != i:
                s.held[left] = h[0]
            left += 1
        else:
            s.counters.dropped_error += 1
    s.held_count = left


cdef inline void sender_flush(Sender *s) noexcept nogil:
    """Send everything queued, in order, and empty the arena. Never blocks, never spins (IO-2)."""
    cdef int i, slot = 0
    cdef Train *t
    cdef Socket *socket = NULL
    cdef uint32_t offset, piece, end
    cdef bint posted = False
    cdef int yields = YIELDS_MAX
    if s.held_count:
        send_held(s)
    for i in range(s.count):
        t = &s.trains[i]
        if t.socket.inbox != NULL:
            deliver(s, t, &yields)
            posted = True
            continue
        if t.socket != socket and slot:
            send_run(s, socket, slot)
            slot = 0
        socket = t.socket
        offset = t.offset
        end = t.offset + t.size
        while offset < end:
            piece = end - offset
            if t.segments > 1 and not socket.gso and piece > t.segment_size:
                piece = t.segment_size
            prepare_message(s, slot, t, offset, piece, piece > t.segment_size)
            s.train_of[slot] = i
            slot += 1
            offset += piece
            if slot == BATCH:
                send_run(s, socket, slot)
                slot = 0
    if slot:
        send_run(s, socket, slot)
    if posted:
        # Once everything is there: a receiver on the same core would only push us aside.
        for i in range(s.count):
            if s.trains[i].socket.inbox != NULL:
                inbox_wake(s.trains[i].socket.inbox)
    s.count = 0
    s.used = 0
