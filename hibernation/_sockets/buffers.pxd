"""What a row owns only while something is unfinished: an outgoing queue, an incoming frame in pieces.

`Shared` is one encoded frame. It belongs to all the queues that still have to write it and is freed with the last of
them, so a broadcast to slow receivers costs one copy of the payload however many they are.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from hibernation._sockets.frames cimport MAX_CONTROL, MAX_HEADER

ctypedef struct Shared:
    uint32_t refs
    uint32_t data_frame  # 1: a data frame, which a policy may drop; 0: control frame or HTTP answer
    uint64_t size  # bytes that follow this header

ctypedef struct Entry:
    Shared *frame
    uint64_t offset  # bytes already written

ctypedef struct Queue:
    uint32_t head
    uint32_t count
    uint32_t capacity  # a power of two
    uint64_t size  # unwritten bytes over all entries
    Entry *entries

ctypedef struct Partial:
    double since  # when the oldest unfinished piece arrived
    uint64_t remaining  # payload bytes of the current frame still to come
    uint64_t size  # message bytes so far
    uint64_t capacity
    uint8_t *message
    uint32_t phase  # payload bytes of the current frame already unmasked, modulo 4
    uint8_t header[MAX_HEADER]
    uint8_t header_size  # bytes of an incomplete header; 0 when a frame is under way or none has begun
    uint8_t in_frame
    uint8_t opcode  # of the current frame
    uint8_t fin
    uint8_t mask[4]
    uint8_t message_opcode  # TEXT or BINARY while a message is under way, else 0
    uint8_t compressed
    uint8_t control_size
    uint8_t control[MAX_CONTROL]


cdef inline Shared *shared_new(uint64_t size, bint data_frame) noexcept nogil:
    """An encoded frame with one reference, its bytes unset; NULL when memory is out."""
    cdef Shared *frame = <Shared *>malloc(sizeof(Shared) + size)
    if frame != NULL:
        frame.refs = 1
        frame.data_frame = data_frame
        frame.size = size
    return frame


cdef inline uint8_t *shared_bytes(Shared *frame) noexcept nogil:
    return <uint8_t *>frame + sizeof(Shared)


cdef inline void shared_release(Shared *frame) noexcept nogil:
    frame.refs -= 1
    if frame.refs == 0:
        free(frame)


cdef inline Queue *queue_new() noexcept nogil:
    cdef Queue *queue = <Queue *>calloc(1, sizeof(Queue))
    if queue == NULL:
        return NULL
    queue.entries = <Entry *>calloc(4, sizeof(Entry))
    if queue.entries == NULL:
        free(queue)
        return NULL
    queue.capacity = 4
    return queue


cdef inline Entry *queue_at(Queue *queue, uint32_t i) noexcept nogil:
    return &queue.entries[(queue.head + i) & (queue.capacity - 1)]


cdef inline bint queue_push(Queue *queue, Shared *frame, uint64_t offset) noexcept nogil:
    """Append a frame and take a reference to it; False when memory is out."""
    cdef Entry *entries
    cdef Entry *entry
    cdef uint32_t i
    if queue.count == queue.capacity:
        entries = <Entry *>malloc(2 * queue.capacity * sizeof(Entry))
        if entries == NULL:
            return False
        for i in range(queue.count):
            entries[i] = queue_at(queue, i)[0]
        free(queue.entries)
        queue.entries = entries
        queue.head = 0
        queue.capacity *= 2
    entry = queue_at(queue, queue.count)
    entry.frame = frame
    entry.offset = offset
    frame.refs += 1
    queue.count += 1
    queue.size += frame.size - offset
    return True


cdef inline void queue_written(Queue *queue, uint64_t count) noexcept nogil:
    """Forget the first `count` unwritten bytes."""
    cdef Entry *entry
    cdef uint64_t left
    queue.size -= count
    while count:
        entry = queue_at(queue, 0)
        left = entry.frame.size - entry.offset
        if count < left:
            entry.offset += count
            return
        count -= left
        shared_release(entry.frame)
        queue.head = (queue.head + 1) & (queue.capacity - 1)
        queue.count -= 1


cdef inline uint32_t queue_drop_data(Queue *queue) noexcept nogil:
    """Drop every data frame of which nothing was written yet; returns how many."""
    cdef uint32_t kept = 0
    cdef uint32_t i
    cdef uint32_t dropped
    cdef Entry entry
    for i in range(queue.count):
        entry = queue_at(queue, i)[0]
        if entry.offset == 0 and entry.frame.data_frame:
            queue.size -= entry.frame.size
            shared_release(entry.frame)
        else:
            queue_at(queue, kept)[0] = entry
            kept += 1
    dropped = queue.count - kept
    queue.count = kept
    return dropped


cdef inline void queue_free(Queue *queue) noexcept nogil:
    cdef uint32_t i
    for i in range(queue.count):
        shared_release(queue_at(queue, i).frame)
    free(queue.entries)
    free(queue)


cdef inline bint partial_reserve(Partial *partial, uint64_t size) noexcept nogil:
    """Make room for `size` message bytes in all, growing by doubling; False when memory is out."""
    cdef uint64_t capacity = partial.capacity if partial.capacity else 512
    cdef uint8_t *grown
    if size <= partial.capacity:
        return True
    while capacity < size:
        capacity *= 2
    grown = <uint8_t *>realloc(partial.message, capacity)
    if grown == NULL:
        return False
    partial.message = grown
    partial.capacity = capacity
    return True


cdef inline void partial_free(Partial *partial) noexcept nogil:
    free(partial.message)
    free(partial)
