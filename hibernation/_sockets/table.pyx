"""The socket table: every server-side WebSocket after its handshake, one epoll, one shared receive buffer.

Not a loop and not a clock: the shell watches `fileno()`, calls `process(now)` when it is readable and
`handle_timeout(now)` at `next_timeout()`, which it asks again after each of the two. Both return what happened; nothing
calls back. One thread, GIL held.

    CONNECTING --open--> OPEN --close--> CLOSING --peer's close frame--> LINGERING --peer's end--> DEAD --release--> free
                           |--peer's close frame, echoed at once-----------^
                           |--rule broken, close frame sent----------------^

A row is about 100 bytes. While something is unfinished it also owns a `Queue` (frames the socket would not take) or a
`Partial` (a frame or message in pieces); both are freed with their last byte. Messages longer than `deflate_bytes` are
compressed with Python's zlib, which every CPython links; frames, masks, pings and auto-responses never leave this file.
"""

import zlib

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from hibernation._sockets.buffers cimport Partial, Shared, partial_reserve, shared_bytes, shared_new, shared_release
from hibernation._sockets.frames cimport (
    BINARY, CLOSE, CONTINUATION, MAX_CONTROL, MAX_HEADER, PING, PONG, TEXT, Header, close_code_is_valid, parse_header,
    unmask,
)
from hibernation._sockets.layout cimport (
    ANSWERED, BELL, CLOSING, CONNECTING, DEAD, DEFLATE, DETACHED, HELD, LINGERING, NO_ROW, NO_SLOT, OPEN, PAUSED, PINGED, RELEASED,
    TOLD, WRITING, Group, Row, Rule, match_rule,
)
from hibernation._sockets.outgoing cimport Outgoing
from hibernation._sockets.rows cimport WHEEL_SLOTS
from hibernation._sockets.system cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, MSG_DONTWAIT, epoll_event, epoll_wait, eventfd_read, recv,
)

# Kinds of event, first in each tuple `process` returns; see table.pyi.
MESSAGE = 0
CLOSED = 1
FAILED = 2
WRITABLE = 3
REPLY = 4
Event = tuple

cdef enum:
    _CLOSED = 1
    MAX_EVENTS = 4096  # after so many the remaining ready sockets wait for the next `process`
    MAX_LINGER_BYTES = 1048576


cdef inline str _text(const uint8_t *data, uint64_t size):
    return PyUnicode_DecodeUTF8(<const char *>data, <Py_ssize_t>size, NULL)


cdef inline bytes _bytes(const uint8_t *data, uint64_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>size)


cdef class SocketTable(Outgoing):
    def __cinit__(self, **_):
        self._buffer = <uint8_t *>malloc(RECEIVE_BYTES)
        if self._buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._buffer)

    def adopt(self, int fd, double now, *, bint deflate=False):
        cdef Row *row
        cdef uint32_t index
        self._advance(now)
        row = self._take_row(fd)
        index = self._groups[0].head  # it has just joined the group of no object
        if deflate:
            row.flags |= DEFLATE
        if self._watch(row, index) != 0:
            self._leave(row)
            self._free(row, index)
            raise OSError(errno, "epoll_ctl")
        return self._handle(row, index)

    def open(self, uint64_t handle, bytes response, double now):
        cdef Row *row = self._find_or_null(handle)
        self._advance(now)
        if row == NULL or row.flags & ANSWERED or row.state > CLOSING:
            return
        if row.state == CONNECTING:
            row.state = OPEN
        row.last_seen = row.last_message = self._now
        row.deadline = self._now + self.close_timeout
        self._answer(row, <uint32_t>handle, response)
        self._schedule(row, <uint32_t>handle)

    def refuse(self, uint64_t handle, bytes response):
        cdef Row *row = self._find_or_null(handle)
        if row == NULL or row.flags & ANSWERED:
            return
        if row.state != DEAD:
            if row.queue != NULL:
                self._drop_queue(row)
            row.flags |= TOLD
            self._answer(row, <uint32_t>handle, response)
            self._linger(row, <uint32_t>handle)
        self.release(handle)

    cdef int _answer(self, Row *row, uint32_t index, bytes response) except -1:
        """Write the HTTP answer, before every frame that was sent meanwhile."""
        cdef uint64_t size = PyBytes_GET_SIZE(response)
        cdef Shared *frame = shared_new(size, False)
        if frame == NULL:
            raise MemoryError
        memcpy(shared_bytes(frame), PyBytes_AS_STRING(response), size)
        row.flags |= ANSWERED
        if row.queue != NULL:  # its first entry keeps the place, see `_enqueue`
            shared_release(row.queue.entries[row.queue.head].frame)
            row.queue.entries[row.queue.head].frame = frame
            row.queue.size += size
            self._counters.outbound_bytes += size
        else:
            self._enqueue(row, index, frame, 0)
            shared_release(frame)
        self._flush(row, index)
        row.flags |= WRITING if row.queue != NULL else 0
        self._watch(row, index)
        return 0

    def release(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        if row == NULL or row.flags & RELEASED:
            return
        row.flags |= RELEASED | TOLD
        self._leave(row)
        row.group = 0  # of a row in no list; its rules are read no more
        if row.state != DEAD and row.state != LINGERING:
            self._hang_up(row)
        if row.state == DEAD:
            self._free(row, <uint32_t>handle)

    def abort(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        if row != NULL and row.state != DEAD:
            row.flags |= TOLD
            self._hang_up(row)
            if row.flags & RELEASED:
                self._free(row, <uint32_t>handle)

    def close(self, uint64_t handle, uint32_t code=0, str reason=""):
        cdef Row *row = self._find_or_null(handle)
        cdef bytes text = reason.encode()
        if code and (not 1000 <= code <= 4999 or code in (1004, 1005, 1006, 1015)):
            raise ValueError(f"Invalid WebSocket close code: {code}.")
        if len(text) > MAX_CONTROL - 2:
            raise ValueError("a close reason has at most 123 bytes")
        if text and not code:
            raise ValueError("a close reason needs a code")
        if row != NULL and row.state <= OPEN:
            self._say_close(row, <uint32_t>handle, code, <const uint8_t *>PyBytes_AS_STRING(text), len(text))

    def pause(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        if row != NULL and row.state <= CLOSING and not row.flags & PAUSED:
            row.flags |= PAUSED
            if row.flags & ANSWERED:
                self._watch(row, <uint32_t>handle)

    def resume(self, uint64_t handle, double now):
        cdef Row *row = self._find_or_null(handle)
        self._advance(now)
        if row != NULL and row.flags & PAUSED:
            row.flags &= ~<uint16_t>PAUSED
            self._excuse(row)
            if row.flags & ANSWERED and row.state <= LINGERING:
                self._watch(row, <uint32_t>handle)

    def hold(self, uint64_t handle, bint held):
        cdef Row *row = self._find_or_null(handle)
        if row != NULL:
            row.flags = row.flags | HELD if held else row.flags & ~<uint16_t>HELD

    def process(self, double now):
        self._advance(now)
        self._driven = True
        try:
            self._look()
        finally:
            self._driven = False
        return self._take_events()

    cdef int _look(self) except -1:
        """Serve what is ready, once per socket."""
        cdef epoll_event[EPOLL_BATCH] ready
        cdef int count, i
        cdef uint64_t rings
        cdef uint64_t handle
        cdef uint32_t index, what
        cdef Row *row
        count = epoll_wait(self._epoll, ready, EPOLL_BATCH, 0)
        self._rotation += 1
        for i in range(count):
            if len(self._events) >= MAX_EVENTS:
                break
            handle = ready[(i + self._rotation) % count].data.u64
            what = ready[(i + self._rotation) % count].events
            if handle == BELL:
                eventfd_read(self._bell, &rings)
                self._rung = False
                continue
            row = self._find_or_null(handle)
            if row == NULL or row.fd < 0:
                continue
            index = <uint32_t>handle
            if not row.flags & ANSWERED:
                self._lose(row, index)
                continue
            if what & EPOLLOUT:
                self._flush(row, index)
                if row.fd < 0:
                    continue
            if row.flags & PAUSED:
                if what & (EPOLLHUP | EPOLLERR):
                    self._detach(row)  # reported without end otherwise; `resume` reads what is left
            elif what & (EPOLLIN | EPOLLHUP | EPOLLERR):
                self._receive(row, index)
        return 0

    cdef list _take_events(self):
        events = self._events
        if events:
            self._events = []
            return events
        return []

    def handle_timeout(self, double now):
        self._advance(now)
        self._driven = True
        try:
            self._turn_wheel()
        finally:
            self._driven = False
        return self._take_events()

    cdef int _turn_wheel(self) except -1:
        """Look at the rows of every slot that has come up."""
        cdef uint64_t target
        cdef uint32_t index, following
        cdef Row *row
        target = <uint64_t>(self._now / self.tick)
        if target > self._wheel_at + WHEEL_SLOTS:
            self._wheel_at = target - WHEEL_SLOTS
        while self._wheel_at < target:
            self._wheel_at += 1
            index = self._wheel[self._wheel_at % WHEEL_SLOTS]
            self._wheel[self._wheel_at % WHEEL_SLOTS] = NO_ROW
            self._filled[self._wheel_at % WHEEL_SLOTS >> 6] &= ~(<uint64_t>1 << (self._wheel_at & 63))
            # Unchain the slot first: looking at a row may put it, or free it, anywhere.
            row = NULL
            following = index
            while following != NO_ROW:
                row = self._row(following)
                row.slot = NO_SLOT
                self._scheduled -= 1
                following = row.wheel_next
            while index != NO_ROW:
                row = self._row(index)
                following = row.wheel_next
                self._attend(row, index)
                index = following
        return 0

    cdef void _excuse(self, Row *row) noexcept:
        """Its silence up to now is ours: we did not read."""
        row.last_seen = row.last_message = self._now
        row.flags &= ~<uint16_t>PINGED
        if row.partial != NULL:
            row.partial.since = self._now

    cdef int _attend(self, Row *row, uint32_t index) except -1:
        """Do what is due for one row, and put it back into the wheel."""
        if row.state == CLOSING and self._now >= row.deadline:
            self._counters.timeouts += 1
            self._lose(row, index)
            return 0
        if row.state == LINGERING and self._now >= row.deadline:
            self._hang_up(row)
            if row.flags & RELEASED:
                self._free(row, index)
            return 0
        if row.state == OPEN:
            if row.flags & PAUSED:
                self._excuse(row)
            elif row.partial != NULL and self.message_timeout > 0 and (
                self._now >= row.partial.since + self.message_timeout
            ):
                self._counters.timeouts += 1
                return self._fail(row, index, 1008, "the message took too long")
            elif row.flags & PINGED and self._now >= row.deadline + self.ping_timeout:
                self._counters.timeouts += 1
                self._say_close(row, index, 1011, b"keepalive ping timeout", 22)
                self._tell_end(row, index, _CLOSED, 1006, "")
                return self._linger(row, index)
            elif self.idle_timeout > 0 and self._now >= row.last_message + self.idle_timeout:
                self._counters.timeouts += 1
                self._say_close(row, index, 1001, b"idle timeout", 12)
            elif self.ping_interval > 0 and not row.flags & PINGED and self._now >= row.last_seen + self.ping_interval:
                row.flags |= PINGED
                row.deadline = self._now
                self._counters.pings_sent += 1
                if row.queue == NULL:  # a full socket shows signs of life by emptying
                    self._send(row, index, PING, False, NULL, 0)
        self._schedule(row, index)
        return 0

    # Incoming

    cdef int _receive(self, Row *row, uint32_t index) except -1:
        """Read once from a socket: into the message under way if much of a frame is missing, else into the shared buffer."""
        cdef Partial *partial = row.partial
        cdef uint64_t room
        cdef ssize_t count
        cdef bint direct = partial != NULL and partial.in_frame and partial.opcode < CLOSE and (
            partial.remaining > RECEIVE_BYTES
        )
        if direct:
            # Twice what has come, at most: a peer must send memory's worth before it gets memory.
            room = min(partial.remaining, min(max(partial.size, <uint64_t>RECEIVE_BYTES), <uint64_t>DIRECT_BYTES))
            if not self._reserve(row, partial.size + room):
                return self._fail(row, index, 1013, "out of receive buffers")
            count = recv(row.fd, partial.message + partial.size, room, MSG_DONTWAIT)
        else:
            count = recv(row.fd, self._buffer, RECEIVE_BYTES, MSG_DONTWAIT)
        if count < 0:
            return 0 if errno == EAGAIN or errno == EINTR else self._lose(row, index)
        if count == 0:
            return self._lose(row, index)
        self._counters.bytes_received += count
        row.last_seen = self._now
        row.flags &= ~<uint16_t>PINGED
        if row.state == LINGERING:
            row.lingered += count
            if row.lingered > MAX_LINGER_BYTES:
                return self._lose(row, index)
            return 0
        if direct:
            unmask(partial.message + partial.size, count, partial.mask, partial.phase)
            partial.size += count
            partial.remaining -= count
            partial.phase = (partial.phase + <uint32_t>count) & 3
            return self._end_pieces(row, index) if partial.remaining == 0 else 0
        self._corking = row
        self._corking_index = index
        try:
            return self._consume(row, index, self._buffer, count)
        finally:
            self._uncork()
            self._corking = NULL

    cdef int _consume(self, Row *row, uint32_t index, uint8_t *data, uint64_t size) except -1:
        """Take `size` bytes apart into frames; unmasks them in place."""
        cdef Header header
        cdef Partial *partial
        cdef uint64_t take
        cdef uint32_t used, have
        while size and (row.state == OPEN or row.state == CLOSING):
            partial = row.partial
            if partial != NULL and partial.in_frame:
                take = min(partial.remaining, size)
                unmask(data, take, partial.mask, partial.phase)
                partial.phase = (partial.phase + <uint32_t>take) & 3
                partial.remaining -= take
                if partial.opcode >= CLOSE:
                    memcpy(partial.control + partial.control_size, data, take)
                    partial.control_size += <uint8_t>take
                elif not self._append(row, index, data, take):
                    return 0
                data += take
                size -= take
                if partial.remaining == 0:
                    self._end_pieces(row, index)
                continue
            if partial != NULL and partial.header_size:
                have = partial.header_size
                take = min(<uint64_t>(MAX_HEADER - have), size)
                memcpy(partial.header + have, data, take)
                used = parse_header(partial.header, have + <uint32_t>take, &header)
                if used == 0:
                    partial.header_size = <uint8_t>(have + take)
                    return 0
                used -= have
                partial.header_size = 0
            else:
                used = parse_header(data, <uint32_t>size, &header)
                if used == 0:
                    partial = self._partial(row, index)
                    if partial == NULL:
                        return self._fail(row, index, 1013, "out of receive buffers")
                    memcpy(partial.header, data, size)
                    partial.header_size = <uint8_t>size
                    return 0
            data += used
            size -= used
            if not self._begin_frame(row, index, &header):
                return 0
            if header.length <= size:
                unmask(data, header.length, header.mask, 0)
                self._whole_frame(row, index, &header, data)
                data += header.length
                size -= header.length
                self._settle_partial(row)
            else:
                partial = self._partial(row, index)
                if partial == NULL:
                    return self._fail(row, index, 1013, "out of receive buffers")
                partial.in_frame = 1
                partial.opcode = header.opcode
                partial.fin = header.fin
                partial.remaining = header.length
                partial.phase = 0
                memcpy(partial.mask, header.mask, 4)
                if header.opcode == TEXT or header.opcode == BINARY:
                    partial.message_opcode = header.opcode
                    partial.compressed = header.rsv == 0x40
        return 0

    cdef bint _begin_frame(self, Row *row, uint32_t index, Header *header) except -1:
        """Judge a header (RFC 6455 §5.2, §5.4, §5.5; RFC 7692 §6 for RSV1); False when it failed the connection."""
        cdef Partial *partial = row.partial
        cdef bint under_way = partial != NULL and partial.message_opcode
        cdef uint64_t so_far = partial.size if under_way else 0
        cdef str wrong = None
        if header.opcode > BINARY and not CLOSE <= header.opcode <= PONG:
            wrong = "invalid opcode"
        elif not header.masked:
            wrong = "incorrect masking"
        elif header.opcode >= CLOSE:
            if header.length > MAX_CONTROL:
                wrong = "control frame too long"
            elif not header.fin:
                wrong = "fragmented control frame"
            elif header.rsv:
                wrong = "reserved bits must be 0"
        elif header.length > self.max_frame_bytes or header.length > self.max_message_bytes - so_far:
            self._fail(
                row, index, 1009,
                f"Message is too large: {so_far + header.length} > {min(self.max_frame_bytes, self.max_message_bytes)}",
            )
            return False
        elif header.rsv and not (header.rsv == 0x40 and header.opcode != CONTINUATION and row.flags & DEFLATE):
            wrong = "reserved bits must be 0"
        elif header.opcode == CONTINUATION and not under_way:
            wrong = "unexpected continuation frame"
        elif header.opcode != CONTINUATION and under_way:
            wrong = "expected a continuation frame"
        if wrong is not None:
            self._fail(row, index, 1002, wrong)
            return False
        return True

    cdef int _end_pieces(self, Row *row, uint32_t index) except -1:
        """The last piece of a frame has come."""
        cdef Partial *partial = row.partial
        cdef uint32_t size = partial.control_size
        partial.in_frame = 0
        partial.control_size = 0
        if partial.opcode >= CLOSE:
            self._control(row, index, partial.opcode, partial.control, size)
        elif partial.fin:
            self._end_message(row, index)
        self._settle_partial(row)
        return 0

    cdef bint _append(self, Row *row, uint32_t index, const uint8_t *data, uint64_t size) except -1:
        cdef Partial *partial = row.partial
        if size == 0:  # an empty first piece: there is no buffer yet, and none is needed
            return True
        if not self._reserve(row, partial.size + size):
            self._fail(row, index, 1013, "out of receive buffers")
            return False
        memcpy(partial.message + partial.size, data, size)
        partial.size += size
        return True

    cdef int _whole_frame(self, Row *row, uint32_t index, Header *header, uint8_t *data) except -1:
        """A frame whose payload is all there, unmasked."""
        cdef Partial *partial
        cdef bint compressed = header.rsv == 0x40
        if header.opcode >= CLOSE:
            return self._control(row, index, header.opcode, data, <uint32_t>header.length)
        if header.opcode != CONTINUATION and header.fin:
            return self._deliver(row, index, header.opcode, compressed, data, header.length)
        if header.opcode != CONTINUATION:
            partial = self._partial(row, index)
            if partial == NULL:
                return self._fail(row, index, 1013, "out of receive buffers")
            partial.message_opcode = header.opcode
            partial.compressed = compressed
        if self._append(row, index, data, header.length) and header.fin:
            return self._end_message(row, index)
        return 0

    cdef int _end_message(self, Row *row, uint32_t index) except -1:
        cdef Partial *partial = row.partial
        cdef uint8_t opcode = partial.message_opcode
        # Out of the row while it is delivered: a failure there drops the row's own.
        cdef uint8_t *message = partial.message
        cdef uint64_t size = partial.size
        self._counters.inbound_bytes -= partial.capacity
        partial.message = NULL
        partial.size = partial.capacity = 0
        partial.message_opcode = 0
        try:
            return self._deliver(row, index, opcode, partial.compressed, message, size)
        finally:
            free(message)

    cdef int _deliver(
        self, Row *row, uint32_t index, uint8_t opcode, bint compressed, const uint8_t *data, uint64_t size
    ) except -1:
        """One whole message: answered by a rule of the object, or made a Python value and reported."""
        cdef Rule *rule
        cdef bytes inflated
        self._counters.messages_received += 1
        row.last_message = self._now
        if compressed:
            inflater = zlib.decompressobj(-15)
            try:
                inflated = inflater.decompress(_bytes(data, size) + b"\x00\x00\xff\xff", self.max_message_bytes + 1)
            except zlib.error:
                return self._fail(row, index, 1002, "decompression failed")
            if <uint64_t>PyBytes_GET_SIZE(inflated) > self.max_message_bytes:
                return self._fail(row, index, 1009, f"Message is too large: over {self.max_message_bytes}")
            data = <const uint8_t *>PyBytes_AS_STRING(inflated)
            size = PyBytes_GET_SIZE(inflated)
        rule = match_rule(&self._groups[row.group], row.labels, opcode, data, size)
        if rule != NULL:
            row.auto_response_at = self._now
            self._counters.auto_responses += 1
            if row.state != OPEN:
                return 0
            if not row.flags & HELD and not self._groups[row.group].held:
                self._offer(row, index, rule.response)
                return 0
            data = shared_bytes(rule.response) + rule.response_header
            size = rule.response.size - rule.response_header
            self._events.append((
                REPLY, self._handle(row, index),
                _text(data, size) if rule.response_opcode == TEXT else _bytes(data, size), None,
            ))
            return 0
        if opcode == BINARY:
            value = _bytes(data, size)
        else:
            try:
                value = _text(data, size)
            except UnicodeDecodeError:
                return self._fail(row, index, 1007, "invalid UTF-8")
        self._events.append((MESSAGE, self._handle(row, index), value, None))
        return 0

    cdef int _control(self, Row *row, uint32_t index, uint8_t opcode, const uint8_t *data, uint32_t size) except -1:
        cdef uint32_t code
        if opcode == PING:
            self._counters.pings_received += 1
            # A peer that asks without reading gets the latest answers only (§5.5.3 allows it).
            if row.state == OPEN and (row.queue == NULL or row.queue.size < RECEIVE_BYTES):
                self._send(row, index, PONG, False, data, size)
            return 0
        if opcode == PONG:
            return 0
        if size == 0:
            code = 1005
            reason = ""
        elif size == 1:
            return self._fail(row, index, 1002, "invalid close frame")
        else:
            code = (<uint32_t>data[0] << 8) | data[1]
            try:
                reason = _text(data + 2, size - 2)
            except UnicodeDecodeError:
                return self._fail(row, index, 1007, "invalid UTF-8")
            if not close_code_is_valid(code):
                return self._fail(row, index, 1002, "invalid status code")
        self._counters.closed_by_peer += 1
        if row.state == OPEN:
            self._say_close(row, index, 0 if size == 0 else code, data + 2, size - 2 if size else 0)
        self._tell_end(row, index, _CLOSED, code, reason)
        self._linger(row, index)
        return 0

    cdef Partial *_partial(self, Row *row, uint32_t index) noexcept:
        """The row's incoming pieces, made now if there are none; NULL when the table's share of memory is used up."""
        if row.partial == NULL:
            if self._counters.inbound_bytes + sizeof(Partial) > self.max_inbound_bytes:
                return NULL
            row.partial = <Partial *>calloc(1, sizeof(Partial))
            if row.partial == NULL:
                return NULL
            row.partial.since = self._now
            self._counters.inbound_bytes += sizeof(Partial)
            self._schedule(row, index)
        return row.partial

    cdef bint _reserve(self, Row *row, uint64_t size) noexcept:
        cdef Partial *partial = row.partial
        cdef uint64_t before = partial.capacity
        if size <= before:
            return True
        if self._counters.inbound_bytes + size - before > self.max_inbound_bytes or not partial_reserve(partial, size):
            return False
        self._counters.inbound_bytes += partial.capacity - before
        return True

    cdef void _settle_partial(self, Row *row) noexcept:
        """Free the row's pieces if nothing is under way any more."""
        cdef Partial *partial = row.partial
        if partial != NULL and not (partial.in_frame or partial.header_size or partial.message_opcode):
            self._drop_partial(row)
