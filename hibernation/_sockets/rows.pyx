"""Where rows live: slabs, groups, what a row remembers for its owner, epoll registration, the timer wheel.

The lowest of three layers; knows no frame. `Outgoing` (outgoing.pyx) writes, `SocketTable` (table.pyx) reads and ends.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.math cimport INFINITY
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from hibernation._sockets.buffers cimport partial_free, queue_free, shared_bytes, shared_new, shared_release
from hibernation._sockets.frames cimport BINARY, MAX_SERVER_HEADER, TEXT, write_header
from hibernation._sockets.layout cimport (
    ANSWERED, BELL, CLOSING, CONNECTING, DETACHED, FREE, LINGERING, NO_ROW, NO_SLOT, OPEN, PAUSED, PINGED, SLAB_BITS, SLAB_ROWS,
    WRITING, Group, Row, Rule, blob_new, blob_size, has_tag,
)
from hibernation._sockets.system cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
    close, epoll_create1, epoll_ctl, epoll_event, eventfd, eventfd_write,
)

cdef extern from *:
    int __builtin_ctzll(unsigned long long) nogil

cdef object _READY_STATES = (3, 0, 1, 2, 3, 3)  # by RowState, as the WebSocket API numbers them


cdef class Rows:
    def __cinit__(
        self, *, max_sockets=1_000_000, max_frame_bytes=1 << 20, max_message_bytes=1 << 20, max_inbound_bytes=256 << 20,
        max_outbound_bytes=256 << 20, queue_bytes=1 << 20, deflate_bytes=1024, double tick=0.5,
        double close_timeout=5.0, double message_timeout=30.0, double ping_interval=20.0, double ping_timeout=20.0,
        double idle_timeout=0.0,
    ):
        if not 0 < max_sockets < NO_ROW or tick <= 0:
            raise ValueError("max_sockets and tick must be positive")
        self._epoll = self._bell = -1
        self.max_sockets = max_sockets
        self.max_frame_bytes = max_frame_bytes
        self.max_message_bytes = max_message_bytes
        self.max_inbound_bytes = max_inbound_bytes
        self.max_outbound_bytes = max_outbound_bytes
        self.queue_bytes = queue_bytes
        self.deflate_bytes = deflate_bytes
        self.tick = tick
        self.close_timeout = close_timeout
        self.message_timeout = message_timeout
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.idle_timeout = idle_timeout
        self._free_row = NO_ROW
        self._told = UINT64_MAX
        cdef uint32_t i
        for i in range(<uint32_t>WHEEL_SLOTS + 1):
            self._wheel[i] = NO_ROW
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        self._bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = BELL
        if self._epoll < 0 or self._bell < 0 or epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._bell, &event) != 0:
            raise OSError(errno, "epoll_create1, eventfd")
        self._owners = []
        self.add_group()  # group 0: sockets of no object

    def __dealloc__(self):
        cdef uint32_t i
        cdef Row *row
        for i in range(self._slab_count * SLAB_ROWS):
            row = self._row(i)
            if row.state != FREE:
                if row.partial != NULL:
                    partial_free(row.partial)
                if row.queue != NULL:
                    queue_free(row.queue)
                if row.fd >= 0:
                    close(row.fd)
                free(row.labels)
                free(row.attachment)
        for i in range(self._slab_count):
            free(self._slabs[i])
        free(self._slabs)
        for i in range(self._group_capacity):
            if self._groups[i].used:
                self._clear_rules(&self._groups[i])
        free(self._groups)
        if self._bell >= 0:
            close(self._bell)
        if self._epoll >= 0:
            close(self._epoll)

    def fileno(self):
        return self._epoll

    def counters(self):
        cdef Counters *c = &self._counters
        return {
            "rows": c.rows, "groups": c.groups - 1, "inbound_bytes": c.inbound_bytes,
            "outbound_bytes": c.outbound_bytes, "accepted": c.accepted, "bytes_received": c.bytes_received,
            "bytes_sent": c.bytes_sent, "messages_received": c.messages_received, "messages_sent": c.messages_sent,
            "auto_responses": c.auto_responses, "pings_received": c.pings_received, "pings_sent": c.pings_sent,
            "dropped_frames": c.dropped_frames, "closed_slow": c.closed_slow, "closed_by_peer": c.closed_by_peer,
            "lost": c.lost, "protocol_errors": c.protocol_errors, "timeouts": c.timeouts,
        }

    cdef inline Row *_row(self, uint32_t index) noexcept:
        return &self._slabs[index >> SLAB_BITS][index & (SLAB_ROWS - 1)]

    cdef Row *_find_or_null(self, uint64_t handle) noexcept:
        cdef uint32_t index = <uint32_t>handle
        cdef Row *row
        if index >= self._slab_count * SLAB_ROWS:
            return NULL
        row = self._row(index)
        if row.state == FREE or row.generation != <uint32_t>(handle >> 32):
            return NULL
        return row

    cdef Row *_find(self, uint64_t handle) except NULL:
        cdef Row *row = self._find_or_null(handle)
        if row == NULL:
            raise KeyError(handle)
        return row

    cdef inline uint64_t _handle(self, Row *row, uint32_t index) noexcept:
        return (<uint64_t>row.generation << 32) | index

    cdef int _grow(self) except -1:
        """Add a slab of free rows."""
        cdef Row **slabs = <Row **>realloc(self._slabs, (self._slab_count + 1) * sizeof(Row *))
        if slabs == NULL:
            raise MemoryError
        self._slabs = slabs
        slabs[self._slab_count] = <Row *>calloc(SLAB_ROWS, sizeof(Row))
        if slabs[self._slab_count] == NULL:
            raise MemoryError
        cdef uint32_t first = self._slab_count * SLAB_ROWS
        cdef uint32_t i
        self._slab_count += 1
        for i in range(<uint32_t>SLAB_ROWS):  # the first of the slab ends up first in the free list
            self._row(first + SLAB_ROWS - 1 - i).generation = 1  # so that no handle is 0
            self._row(first + SLAB_ROWS - 1 - i).wheel_next = self._free_row
            self._free_row = first + SLAB_ROWS - 1 - i
        return 0

    cdef Row *_take_row(self, int fd) except NULL:
        """A row for a connection that is still CONNECTING, of no object and not watched yet."""
        cdef Row *row
        cdef uint32_t index, generation
        if self._counters.rows >= self.max_sockets:
            raise OverflowError("the socket table is full")
        if self._free_row == NO_ROW:
            self._grow()
        index = self._free_row
        row = self._row(index)
        self._free_row = row.wheel_next
        generation = row.generation
        memset(row, 0, sizeof(Row))
        row.generation = generation
        row.fd = fd
        row.state = CONNECTING
        row.flags = DETACHED
        row.slot = NO_SLOT
        row.last_seen = row.last_message = self._now
        self._join(row, index, 0)
        self._counters.rows += 1
        self._counters.accepted += 1
        return row

    cdef int _watch(self, Row *row, uint32_t index) noexcept:
        """Tell epoll what this row waits for. A row that cannot be watched is left to the timer."""
        cdef epoll_event event
        event.events = 0
        event.data.u64 = self._handle(row, index)
        if not row.flags & ANSWERED:
            event.events |= EPOLLRDHUP  # nothing is read yet, but a client that leaves is noticed
        elif not row.flags & PAUSED:
            event.events |= EPOLLIN
        if row.flags & WRITING:
            event.events |= EPOLLOUT
        cdef int result = epoll_ctl(
            self._epoll, EPOLL_CTL_ADD if row.flags & DETACHED else EPOLL_CTL_MOD, row.fd, &event
        )
        if result == 0:
            row.flags &= ~<uint16_t>DETACHED
        return result

    cdef void _detach(self, Row *row) noexcept:
        cdef epoll_event event
        if not row.flags & DETACHED:
            epoll_ctl(self._epoll, EPOLL_CTL_DEL, row.fd, &event)
            row.flags |= DETACHED

    cdef void _free(self, Row *row, uint32_t index) noexcept:
        free(row.labels)
        free(row.attachment)
        row.labels = row.attachment = NULL
        row.state = FREE
        row.generation += 1
        row.wheel_next = self._free_row
        self._free_row = index
        self._counters.rows -= 1

    # What a row remembers for its owner

    def label(self, uint64_t handle, tags, bytes info):
        cdef Row *row = self._find(handle)
        if len(tags) > 255 or any(len(tag) > 65535 for tag in tags):
            raise ValueError("too many tags, or one too long")
        packed = bytes([len(tags)]) + b"".join(len(tag).to_bytes(2, "little") + tag for tag in tags) + info
        free(row.labels)
        row.labels = blob_new(<const uint8_t *>PyBytes_AS_STRING(packed), <uint32_t>PyBytes_GET_SIZE(packed))
        if row.labels == NULL:
            raise MemoryError

    def labels(self, uint64_t handle):
        cdef Row *row = self._find(handle)
        if row.labels == NULL:
            return [], b""
        packed = PyBytes_FromStringAndSize(<const char *>row.labels + 4, blob_size(row.labels))
        tags = []
        at = 1
        for _ in range(packed[0]):
            size = int.from_bytes(packed[at:at + 2], "little")
            tags.append(packed[at + 2:at + 2 + size])
            at += 2 + size
        return tags, packed[at:]

    def attach(self, uint64_t handle, bytes value):
        cdef Row *row = self._find(handle)
        cdef uint8_t *blob = NULL
        if value is not None:
            blob = blob_new(<const uint8_t *>PyBytes_AS_STRING(value), <uint32_t>PyBytes_GET_SIZE(value))
            if blob == NULL:
                raise MemoryError
        free(row.attachment)
        row.attachment = blob

    def attachment(self, uint64_t handle):
        cdef Row *row = self._find(handle)
        if row.attachment == NULL:
            return None
        return PyBytes_FromStringAndSize(<const char *>row.attachment + 4, blob_size(row.attachment))

    def ready_state(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        return 3 if row == NULL else _READY_STATES[row.state]

    def group(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        return 0 if row == NULL else row.group

    def owner(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        return None if row == NULL else self._owners[row.group]

    def handles(self):
        cdef uint32_t i
        return [
            self._handle(self._row(i), i) for i in range(self._slab_count * SLAB_ROWS) if self._row(i).state != FREE
        ]

    def last_seen(self, uint64_t handle):
        return self._find(handle).last_seen

    def auto_response_at(self, uint64_t handle):
        cdef double at = self._find(handle).auto_response_at
        return at if at else None

    # Groups

    cdef Group *_group(self, uint32_t group) except NULL:
        if group >= self._group_capacity or not self._groups[group].used:
            raise KeyError(group)
        return &self._groups[group]

    cdef void _join(self, Row *row, uint32_t index, uint32_t group) noexcept:
        """Make the row the newest of a group that exists."""
        cdef Group *members = &self._groups[group]
        row.group = group
        row.group_previous = NO_ROW
        row.group_next = members.head
        if members.head != NO_ROW:
            self._row(members.head).group_previous = index
        members.head = index
        members.count += 1

    cdef void _leave(self, Row *row) noexcept:
        cdef Group *members = &self._groups[row.group]
        if row.group_previous == NO_ROW:
            members.head = row.group_next
        else:
            self._row(row.group_previous).group_next = row.group_next
        if row.group_next != NO_ROW:
            self._row(row.group_next).group_previous = row.group_previous
        members.count -= 1

    def assign(self, uint64_t handle, uint32_t group):
        cdef Row *row = self._find(handle)
        self._group(group)
        self._leave(row)
        self._join(row, <uint32_t>handle, group)

    def add_group(self, owner=None):
        cdef uint32_t i
        cdef uint32_t capacity
        cdef Group *groups
        for i in range(self._free_group, self._group_capacity):
            if not self._groups[i].used:
                break
        else:
            capacity = 2 * self._group_capacity if self._group_capacity else 16
            self._owners.extend([None] * <Py_ssize_t>(capacity - len(self._owners)))
            groups = <Group *>realloc(self._groups, capacity * sizeof(Group))
            if groups == NULL:
                raise MemoryError
            memset(groups + self._group_capacity, 0, (capacity - self._group_capacity) * sizeof(Group))
            i = self._group_capacity
            self._groups = groups
            self._group_capacity = capacity
        self._owners[i] = owner
        self._free_group = i + 1
        memset(&self._groups[i], 0, sizeof(Group))
        self._groups[i].used = 1
        self._groups[i].head = NO_ROW
        self._groups[i].close_slow = 1
        self._groups[i].queue_limit = self.queue_bytes
        self._counters.groups += 1
        return i

    def remove_group(self, uint32_t group):
        cdef Group *members = self._group(group)
        if members.count or group == 0:
            raise ValueError("the group still has sockets")
        self._clear_rules(members)
        members.used = 0
        self._owners[group] = None
        self._free_group = min(self._free_group, group)
        self._counters.groups -= 1

    def set_slow_policy(self, uint32_t group, uint64_t queue_bytes, bint close):
        cdef Group *members = self._group(group)
        members.queue_limit = queue_bytes
        members.close_slow = close

    cdef void _clear_rules(self, Group *group) noexcept:
        cdef uint32_t i
        for i in range(group.rule_count):
            free(group.rules[i].request)
            free(group.rules[i].tag)
            if group.rules[i].response != NULL:
                shared_release(group.rules[i].response)
        free(group.rules)
        group.rules = NULL
        group.rule_count = 0

    def hold_group(self, uint32_t group, bint held):
        self._group(group).held = held

    def set_auto_responses(self, uint32_t group, rules):
        cdef Group *members = self._group(group)
        cdef Rule *rule
        cdef uint8_t[MAX_SERVER_HEADER] header
        cdef bytes request, response, tag
        encoded = [
            (isinstance(asked, str), asked.encode() if isinstance(asked, str) else asked, prefix, label,
             isinstance(answer, str), answer.encode() if isinstance(answer, str) else answer)
            for asked, answer, prefix, label in rules
        ]
        self._clear_rules(members)
        if not encoded:
            return
        members.rules = <Rule *>calloc(len(encoded), sizeof(Rule))
        if members.rules == NULL:
            raise MemoryError
        for asks_text, request, prefix, tag, answers_text, response in encoded:
            rule = &members.rules[members.rule_count]
            members.rule_count += 1
            rule.size = <uint32_t>PyBytes_GET_SIZE(request)
            rule.opcode = TEXT if asks_text else BINARY
            rule.prefix = bool(prefix)
            rule.response_opcode = TEXT if answers_text else BINARY
            rule.response_header = write_header(header, rule.response_opcode, False, PyBytes_GET_SIZE(response))
            rule.request = <uint8_t *>malloc(rule.size + 1)
            rule.response = shared_new(rule.response_header + PyBytes_GET_SIZE(response), True)
            if tag is not None:
                rule.tag = blob_new(<const uint8_t *>PyBytes_AS_STRING(tag), <uint32_t>PyBytes_GET_SIZE(tag))
            if rule.request == NULL or rule.response == NULL or (tag is not None and rule.tag == NULL):
                self._clear_rules(members)
                raise MemoryError
            memcpy(rule.request, PyBytes_AS_STRING(request), rule.size)
            memcpy(shared_bytes(rule.response), header, rule.response_header)
            memcpy(shared_bytes(rule.response) + rule.response_header, PyBytes_AS_STRING(response),
                   PyBytes_GET_SIZE(response))

    def rows(self, uint32_t group, bytes tag=None):
        cdef uint32_t index = self._group(group).head
        cdef Row *row
        found = []
        while index != NO_ROW:
            row = self._row(index)
            if tag is None or has_tag(row.labels, <const uint8_t *>PyBytes_AS_STRING(tag), PyBytes_GET_SIZE(tag)):
                found.append(self._handle(row, index))
            index = row.group_next
        found.reverse()
        return found

    def count(self, uint32_t group, bytes tag=None):
        cdef Group *members = self._group(group)
        cdef uint32_t index = members.head
        cdef uint32_t total = 0
        cdef Row *row
        if tag is None:
            return members.count
        while index != NO_ROW:
            row = self._row(index)
            total += has_tag(row.labels, <const uint8_t *>PyBytes_AS_STRING(tag), PyBytes_GET_SIZE(tag))
            index = row.group_next
        return total

    # The timer wheel: each row that waits for a time is in the slot that looks at it next, never later than due by more
    # than a tick. Receiving moves no row: a deadline that went further away is noticed when its old slot comes up. Slots
    # without rows are never looked at: the shell is asked to come when the next one that has some is due.

    cdef double _due(self, Row *row) noexcept:
        cdef double due = INFINITY
        if not row.flags & ANSWERED:
            return due
        if row.state == CLOSING or row.state == LINGERING:
            return row.deadline
        if row.state != OPEN:
            return due
        if self.ping_interval > 0:
            due = row.deadline + self.ping_timeout if row.flags & PINGED else row.last_seen + self.ping_interval
        if self.idle_timeout > 0:
            due = min(due, row.last_message + self.idle_timeout)
        if row.partial != NULL and self.message_timeout > 0:
            due = min(due, row.partial.since + self.message_timeout)
        return due

    cdef void _schedule(self, Row *row, uint32_t index) noexcept:
        cdef double due = self._due(row)
        cdef uint64_t at
        if due == INFINITY:
            self._unschedule(row)
            return
        at = <uint64_t>(due / self.tick) + 1
        at = max(self._wheel_at + 1, min(at, self._wheel_at + WHEEL_SLOTS - 1))
        self._chain(row, index, <uint16_t>(at % WHEEL_SLOTS))
        if at < self._told and not self._driven:
            self._ring()

    cdef void _limit_patience(self, Row *row, uint32_t index) noexcept:
        """Give a row that is CLOSING or LINGERING `close_timeout` from now on.

        Where now is not known, as in `close`, which may come hours after the last event, it is when the bell is heard.
        """
        row.deadline = self._now + self.close_timeout
        if self._driven or not row.flags & ANSWERED:  # `open` and `refuse` come back to the latter
            self._schedule(row, index)
        else:
            self._chain(row, index, UNTIMED)
            self._ring()

    cdef void _chain(self, Row *row, uint32_t index, uint16_t slot) noexcept:
        if slot == row.slot:
            return
        self._unschedule(row)
        row.slot = slot
        row.wheel_previous = NO_ROW
        row.wheel_next = self._wheel[slot]
        if row.wheel_next != NO_ROW:
            self._row(row.wheel_next).wheel_previous = index
        self._wheel[slot] = index
        if slot < UNTIMED:
            self._filled[slot >> 6] |= <uint64_t>1 << (slot & 63)
            self._scheduled += 1

    cdef void _unschedule(self, Row *row) noexcept:
        cdef uint16_t slot = row.slot
        if slot == NO_SLOT:
            return
        if row.wheel_previous == NO_ROW:
            self._wheel[slot] = row.wheel_next
        else:
            self._row(row.wheel_previous).wheel_next = row.wheel_next
        if row.wheel_next != NO_ROW:
            self._row(row.wheel_next).wheel_previous = row.wheel_previous
        row.slot = NO_SLOT
        if slot < UNTIMED:
            if self._wheel[slot] == NO_ROW:
                self._filled[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
            self._scheduled -= 1

    cdef void _advance(self, double now) noexcept:
        """Time never goes back, an empty wheel turns freely, and what waited to know the time gets it."""
        cdef uint32_t index
        cdef Row *row
        self._now = max(now, self._now)
        if self._scheduled == 0:
            self._wheel_at = <uint64_t>(self._now / self.tick)
        while self._wheel[UNTIMED] != NO_ROW:
            index = self._wheel[UNTIMED]
            row = self._row(index)
            row.deadline = self._now + self.close_timeout
            self._schedule(row, index)

    cdef uint64_t _next_filled(self) noexcept:
        """The next tick whose slot has rows."""
        cdef uint64_t at = self._wheel_at + 1
        cdef uint64_t word
        while at < self._wheel_at + WHEEL_SLOTS:
            word = self._filled[at % WHEEL_SLOTS >> 6] >> (at & 63)
            if word:
                return at + <uint64_t>__builtin_ctzll(word)
            at += 64 - (at & 63)
        return UINT64_MAX

    cdef void _ring(self) noexcept:
        if not self._rung:
            self._rung = True
            eventfd_write(self._bell, 1)

    def next_timeout(self):
        self._told = self._next_filled() if self._scheduled else UINT64_MAX
        return self._told * self.tick if self._scheduled else None
