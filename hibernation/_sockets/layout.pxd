"""One row per socket, one group per object.

Rows live in slabs that never move, are found by index and linked by index: into the list of their group, and into the
slot of the timer wheel that looks at them next. `handle = generation << 32 | index`, so a handle kept too long finds
nothing instead of a stranger.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from hibernation._sockets.buffers cimport Partial, Queue, Shared

cdef enum:
    SLAB_BITS = 10
    SLAB_ROWS = 1 << SLAB_BITS
    NO_ROW = 0x7FFFFFFF
    NO_SLOT = 0xFFFF
    BELL = 0  # no handle: generations begin with 1

cdef enum RowState:
    FREE = 0
    CONNECTING = 1  # upgrade undecided: sends queue behind the place of the HTTP answer, nothing is read
    OPEN = 2
    CLOSING = 3  # our close frame is sent or queued; messages still arrive
    LINGERING = 4  # closed for the object; we flush, shut down our side and wait for the peer's end
    DEAD = 5  # descriptor closed; the row waits for `release`

cdef enum RowFlag:
    PAUSED = 1  # nothing is read
    HELD = 2  # auto-responses go to Python, behind frames that wait there
    DEFLATE = 4  # permessage-deflate was agreed
    WRITING = 8  # epoll watches for room to write
    DETACHED = 16  # out of epoll: paused and hung up
    PINGED = 32  # our ping is unanswered
    NOTIFY = 64  # report when the outgoing queue is empty
    RELEASED = 128  # the manager has let go
    SHUT = 256  # our side of the connection is shut down
    BROKEN = 512  # writing failed; reading will say why
    TOLD = 1024  # the end was reported
    ANSWERED = 2048  # the HTTP answer is written or queued: from here on we read

ctypedef struct Row:
    double last_seen  # when the last byte arrived
    double last_message  # when the last message arrived, auto-answered ones included
    double auto_response_at  # 0: never
    double deadline  # CLOSING, LINGERING: when patience ends; OPEN: when the unanswered ping was sent
    Partial *partial
    Queue *queue
    uint8_t *labels  # tags and the opaque description, see `labels_new`
    uint8_t *attachment  # uint32 size, bytes
    int fd
    uint32_t generation
    uint32_t group
    uint32_t group_next
    uint32_t group_previous
    uint32_t wheel_next
    uint32_t wheel_previous
    uint32_t lingered  # bytes thrown away while LINGERING
    uint16_t slot
    uint16_t flags
    uint8_t state

ctypedef struct Rule:
    uint8_t *request
    uint8_t *tag  # blob; NULL: all rows of the group
    Shared *response  # encoded, header and all
    uint32_t size  # of the request, in bytes
    uint8_t opcode  # of the request
    uint8_t prefix  # 1: the request need only be the message's beginning
    uint8_t response_opcode
    uint8_t response_header  # bytes before the payload of `response`

ctypedef struct Group:
    uint32_t head
    uint32_t count
    uint32_t rule_count
    uint8_t used
    uint8_t held  # as HELD, for all rows
    uint8_t close_slow  # policy when the queue is full: 1 closes with 1013, 0 drops the newest frame
    uint64_t queue_limit  # bytes
    Rule *rules


cdef inline uint8_t *blob_new(const uint8_t *data, uint32_t size) noexcept nogil:
    """A copy of `data` behind its size."""
    cdef uint8_t *blob = <uint8_t *>malloc(4 + <uint64_t>size)
    if blob != NULL:
        memcpy(blob, &size, 4)
        memcpy(blob + 4, data, size)
    return blob


cdef inline uint32_t blob_size(const uint8_t *blob) noexcept nogil:
    cdef uint32_t size
    memcpy(&size, blob, 4)
    return size


cdef inline bint has_tag(const uint8_t *labels, const uint8_t *tag, uint32_t size) noexcept nogil:
    """Does a label blob (count, then per tag a 16-bit size and the bytes) hold this tag?"""
    cdef uint32_t count, i
    cdef uint16_t length
    if labels == NULL:
        return False
    count = labels[4]
    labels += 5
    for i in range(count):
        memcpy(&length, labels, 2)
        if length == size and memcmp(labels + 2, tag, size) == 0:
            return True
        labels += 2 + length
    return False


cdef inline Rule *match_rule(Group *group, const uint8_t *labels, uint8_t opcode, const uint8_t *data, uint64_t size) noexcept nogil:
    """The first rule that fits a message of a row with these labels."""
    cdef uint32_t i
    cdef Rule *rule
    for i in range(group.rule_count):
        rule = &group.rules[i]
        if rule.opcode != opcode or size < rule.size or (size > rule.size and not rule.prefix):
            continue
        if rule.size and memcmp(rule.request, data, rule.size) != 0:
            continue
        if rule.tag == NULL or has_tag(labels, rule.tag + 4, blob_size(rule.tag)):
            return rule
    return NULL
