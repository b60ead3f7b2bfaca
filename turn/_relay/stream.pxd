"""A TCP or TLS client's bytes, without its meaning: messages cut out of what it sends, whole messages queued for it (T1, T4).

Who has the socket? At first, and whenever something else than data comes, Python does. In between a relay thread has it
(`fd` ≥ 0), and the client's TLS session (`tls`) with it: it reads, and what it cannot handle goes back to Python with the
socket (`returned`).

Memory: a stream is malloc'ed with its client, and its buffers only as long as something is in them: at most an
unfinished message (64 KiB) and a read behind it, what is queued for the client within its limit, and of that once more
in records that its socket did not take. All of it is under the shard's lock.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from turn._relay.packet cimport STUN_HEADER, be16

cdef extern from "sys/socket.h" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags) noexcept
    enum: MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    FRAME_HEADER = 4            # of ChannelData; a STUN message's length is within as many
    FOREIGN = -1
    KEEP_BYTES = 4096           # a buffer above this is freed once empty

cdef struct Buffer:             # bytes from `at` to `size`
    uint8_t *data
    uint32_t at
    uint32_t size
    uint32_t capacity

cdef struct Tls:                # a session, Python's; see `tls.pxd`
    void *ssl                   # NULL: the stream is plain
    void *incoming              # memory BIO of records to open
    void *outgoing              # of records to send

cdef struct Stream:
    uint32_t number             # the connection's
    int fd                      # the relay thread has the socket; -1: Python has
    Tls tls
    bint returned               # Python is to take the socket back
    uint32_t watched            # epoll events
    bint paused                 # Python has the socket, and it takes no more
    bint dirty                  # in the shard's list of streams that have something for Python
    Stream *next_dirty
    bint ready                  # in its list of streams to be written to at the end of the round
    Stream *next_ready
    Buffer out                  # messages for the client
    Buffer rest                 # an unfinished message; of a stream that was `returned`, all that Python is to cut
    uint32_t need               # bytes of the unfinished message, FRAME_HEADER while that is not known
    double since                # when it began to arrive
    Buffer records              # of TLS, that the socket did not take


cdef inline uint32_t waiting(const Buffer *b) noexcept nogil:
    return b.size - b.at


cdef inline bint append(Buffer *b, const void *data, uint32_t size) noexcept nogil:
    """False when memory is short; nothing is changed then."""
    cdef uint32_t capacity = b.capacity if b.capacity else 1024
    cdef void *grown
    if b.at and b.size + size > b.capacity:
        memmove(b.data, b.data + b.at, b.size - b.at)
        b.size -= b.at
        b.at = 0
    if b.size + size > b.capacity:
        while capacity < b.size + size:
            capacity *= 2
        grown = realloc(b.data, capacity)
        if grown == NULL:
            return False
        b.data = <uint8_t *>grown
        b.capacity = capacity
    if size:
        memcpy(b.data + b.size, data, size)
    b.size += size
    return True


cdef inline void consume(Buffer *b, uint32_t size) noexcept nogil:
    b.at += size
    if b.at == b.size:
        b.at = b.size = 0
        if b.capacity > KEEP_BYTES:
            release(b)


cdef inline void release(Buffer *b) noexcept nogil:
    free(b.data)
    b.data = NULL
    b.at = b.size = b.capacity = 0


cdef inline void stream_free(Stream *s) noexcept nogil:
    if s != NULL:
        release(&s.out)
        release(&s.rest)
        release(&s.records)
        free(s)


cdef inline bint write_out(int fd, Buffer *b) noexcept nogil:
    """As much as the socket takes. False: the connection is broken."""
    cdef ssize_t n
    if b.at == b.size:
        return True
    n = send(fd, b.data + b.at, b.size - b.at, MSG_DONTWAIT | MSG_NOSIGNAL)
    if n < 0:
        return errno == EAGAIN or errno == EINTR
    consume(b, <uint32_t>n)
    return True


cdef inline bint write_or_keep(int fd, const void *data, uint32_t size, Buffer *kept) noexcept nogil:
    """To the socket, behind what was kept; what it does not take is kept. False: the connection is broken, or memory short."""
    cdef ssize_t n = 0
    if not waiting(kept):
        n = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                return False
            n = 0
    return <uint32_t>n == size or append(kept, <const uint8_t *>data + n, size - <uint32_t>n)


cdef inline int message_size(const uint8_t *p) noexcept nogil:
    """Bytes of the message with these four at its front, padding included, or FOREIGN; as `turn.framing`."""
    if 3 < p[0] < 0x40 or p[0] > 0x7F:
        return FOREIGN
    if p[0] <= 3:
        return STUN_HEADER + be16(p + 2)
    return FRAME_HEADER + ((be16(p + 2) + 3) & ~3)


cdef inline bint keep(Stream *s, const uint8_t *data, int size, uint32_t need, double now) noexcept nogil:
    """The beginning of a message that has not arrived."""
    s.need = need
    s.since = now
    return append(&s.rest, data, size)


cdef inline int next_message(Stream *s, const uint8_t *data, int size, int *at, const uint8_t **message, double now) noexcept nogil:
    """The next whole message of what was kept and of `data` from `at` on.

    Returns its size; `message` is valid until the next call. 0: none is whole, and what is left was kept. FOREIGN: what
    follows begins no message, or memory is short; nothing of it was taken.
    """
    cdef int found
    cdef uint32_t piece
    if s.rest.size and s.rest.at == s.rest.size:  # the last message came out of it
        consume(&s.rest, 0)
    if s.rest.size == 0:
        message[0] = data + at[0]
        if at[0] == size:
            return 0
        if size - at[0] >= FRAME_HEADER:
            found = message_size(message[0])
            if found == FOREIGN or found <= size - at[0]:
                at[0] += max(found, 0)
                return found
        elif 3 < message[0][0] < 0x40 or message[0][0] > 0x7F:
            return FOREIGN
        else:
            found = FRAME_HEADER
        if not keep(s, message[0], size - at[0], found, now):
            return FOREIGN
        at[0] = size
        return 0
    while True:
        piece = min(s.need - s.rest.size, <uint32_t>(size - at[0]))
        if not append(&s.rest, data + at[0], piece):
            return FOREIGN
        at[0] += piece
        if s.rest.size < s.need:
            return 0
        found = message_size(s.rest.data)
        if found == FOREIGN:
            return FOREIGN
        if <uint32_t>found == s.need:
            s.rest.at = s.rest.size
            message[0] = s.rest.data
            return found
        s.need = found


cdef inline bint put_back(Stream *s, const uint8_t *message, int message_bytes, const uint8_t *data, int size) noexcept nogil:
    """Keep for Python: the message that `next_message` gave last, if any, and `data` behind it. False: memory is short."""
    if s.rest.at:  # it is still there
        s.rest.at = 0
    elif message_bytes and not append(&s.rest, message, message_bytes):
        return False
    return append(&s.rest, data, size)
