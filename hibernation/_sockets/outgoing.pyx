"""What leaves: frames written at once, queued where the socket is full, shared where many receive the same."""

import zlib

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hibernation._sockets.buffers cimport (
    Entry, Partial, Shared, partial_free, queue_at, queue_drop_data, queue_free, queue_new, queue_push, queue_written,
    shared_bytes, shared_new, shared_release,
)
from hibernation._sockets.frames cimport BINARY, CLOSE, MAX_SERVER_HEADER, TEXT, write_header
from hibernation._sockets.layout cimport (
    ANSWERED, BROKEN, CLOSING, CONNECTING, DEAD, DEFLATE, DETACHED, LINGERING, NO_ROW, NOTIFY, OPEN, PAUSED, PINGED, RELEASED,
    SHUT, TOLD, WRITING, Group, Row, has_tag,
)
from hibernation._sockets.rows cimport Rows
from hibernation._sockets.system cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, close, iovec, msghdr, send as send_bytes, sendmsg, shutdown

# What became of a frame given to `send`.
SENT = 0
QUEUED = 1
DROPPED = 2
GONE = 3

cdef enum:
    _SENT = 0
    _QUEUED = 1
    _DROPPED = 2
    _GONE = 3
    _FAILED = 2
    _CLOSED = 1
    _WRITABLE = 3
    MAX_IOVECS = 16
    SMALL_FRAME = 1024


cdef class Outgoing(Rows):
    def __cinit__(self, **_):
        self._events = []

    def send(self, uint64_t handle, message):
        cdef Row *row = self._find_or_null(handle)
        cdef Py_ssize_t size
        cdef const char *data
        cdef uint8_t opcode
        cdef bint compressed = False
        if isinstance(message, str):
            opcode = TEXT
            data = PyUnicode_AsUTF8AndSize(message, &size)
        elif isinstance(message, bytes):
            opcode = BINARY
            data = PyBytes_AS_STRING(message)
            size = PyBytes_GET_SIZE(message)
        else:
            raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
        if row == NULL:
            return GONE
        if row.flags & DEFLATE and <uint64_t>size >= self.deflate_bytes:
            message = _deflate(data, size)
            data = PyBytes_AS_STRING(message)
            size = PyBytes_GET_SIZE(message)
            compressed = True
        return self._send(row, <uint32_t>handle, opcode, compressed, <const uint8_t *>data, size)

    def broadcast(self, rows, message):
        cdef Shared *plain = _encode(message, False)
        cdef Shared *packed = NULL
        cdef Row *row
        cdef uint64_t handle
        cdef uint32_t reached = 0
        try:
            for handle in rows:
                row = self._find_or_null(handle)
                if row != NULL:
                    if row.flags & DEFLATE and packed == NULL and plain.size >= self.deflate_bytes:
                        packed = _encode(message, True)
                    reached += self._offer(
                        row, <uint32_t>handle, packed if row.flags & DEFLATE and packed != NULL else plain
                    ) <= _QUEUED
        finally:
            shared_release(plain)
            if packed != NULL:
                shared_release(packed)
        return reached

    def broadcast_group(self, uint32_t group, message, bytes tag=None, without=frozenset()):
        cdef uint32_t index = self._group(group).head
        cdef Shared *plain = _encode(message, False)
        cdef Shared *packed = NULL
        cdef Row *row
        cdef uint32_t reached = 0
        cdef bint some_stay_out = bool(without)
        try:
            while index != NO_ROW:
                row = self._row(index)
                if (tag is None or has_tag(row.labels, <const uint8_t *>PyBytes_AS_STRING(tag), PyBytes_GET_SIZE(tag))) \
                        and not (some_stay_out and self._handle(row, index) in without):
                    if row.flags & DEFLATE and packed == NULL and plain.size >= self.deflate_bytes:
                        packed = _encode(message, True)
                    reached += self._offer(
                        row, index, packed if row.flags & DEFLATE and packed != NULL else plain
                    ) <= _QUEUED
                index = row.group_next
        finally:
            shared_release(plain)
            if packed != NULL:
                shared_release(packed)
        return reached

    def cork(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        self.uncork()
        if row != NULL and row.state == OPEN:
            self._corking = row
            self._corking_index = <uint32_t>handle

    def uncork(self):
        self._uncork()
        self._corking = NULL

    def buffered(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        cdef uint64_t size = 0
        if row != NULL:
            size = (row.queue.size if row.queue != NULL else 0) + (self._corked if row == self._corking else 0)
        return size

    cdef bint _write_now(
        self, Row *row, const void *head, uint64_t head_size, const void *body, uint64_t body_size, uint64_t *written
    ) noexcept:
        """Give two pieces to the socket; `written` is what it took. False: the connection is broken.

        To a socket that is being read, or that `cork` was called for, they are given when that is over.
        """
        cdef uint8_t[SMALL_FRAME] small
        cdef iovec[2] parts
        cdef msghdr message
        cdef ssize_t count
        if row == self._corking:
            if self._corked + head_size + body_size > CORK_BYTES:
                self._uncork()
            if row.flags & BROKEN:
                return False
            if row.queue != NULL:
                return True  # none of it
            if head_size + body_size <= CORK_BYTES:
                memcpy(self._cork + self._corked, head, head_size)
                if body_size:
                    memcpy(self._cork + self._corked + head_size, body, body_size)
                self._corked += head_size + body_size
                written[0] = head_size + body_size
                return True
        if body_size and head_size + body_size <= SMALL_FRAME:  # copying is cheaper than a list of pieces
            memcpy(small, head, head_size)
            memcpy(small + head_size, body, body_size)
            head = small
            head_size += body_size
            body_size = 0
        if body_size == 0:
            count = send_bytes(row.fd, head, head_size, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            parts[0].iov_base = <void *>head
            parts[0].iov_len = head_size
            parts[1].iov_base = <void *>body
            parts[1].iov_len = body_size
            memset(&message, 0, sizeof(message))
            message.msg_iov = parts
            message.msg_iovlen = 2
            count = sendmsg(row.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count < 0 and errno != EAGAIN and errno != EINTR:
            row.flags |= BROKEN
            return False
        written[0] = count if count > 0 else 0
        self._counters.bytes_sent += written[0]
        return True

    cdef void _uncork(self) noexcept:
        """Write what has gathered for one socket."""
        cdef Row *row = self._corking
        cdef uint64_t size = self._corked
        cdef uint64_t written = 0
        cdef Shared *frame
        if size == 0:
            return
        self._corked = 0
        self._corking = NULL
        if self._write_now(row, self._cork, size, NULL, 0, &written) and written < size:
            frame = shared_new(size - written, False)
            if frame == NULL:
                row.flags |= BROKEN
            else:
                memcpy(shared_bytes(frame), self._cork + written, size - written)
                self._enqueue(row, self._corking_index, frame, 0)
                shared_release(frame)
        self._corking = row

    cdef int _send(
        self, Row *row, uint32_t index, uint8_t opcode, bint compressed, const uint8_t *data, uint64_t size
    ) except -1:
        """Write one frame from the caller's bytes; copy only what the socket does not take."""
        cdef uint8_t[MAX_SERVER_HEADER] header
        cdef uint64_t written = 0
        cdef Shared *frame
        cdef int result
        cdef uint32_t head = write_header(header, opcode, compressed, size)
        if row.state > OPEN or row.flags & BROKEN:
            return _GONE
        if row.queue == NULL and row.state == OPEN:
            if not self._write_now(row, header, head, data, size, &written):
                return _GONE
        elif opcode < CLOSE and not self._admit(row, index, head + size):
            return _DROPPED
        self._counters.messages_sent += opcode < CLOSE
        if written == head + size:
            return _SENT
        frame = shared_new(head + size, opcode < CLOSE)
        if frame == NULL:
            raise MemoryError
        memcpy(shared_bytes(frame), header, head)
        memcpy(shared_bytes(frame) + head, data, size)
        result = self._enqueue(row, index, frame, written)
        shared_release(frame)
        return result

    cdef int _offer(self, Row *row, uint32_t index, Shared *frame) noexcept:
        """Write one encoded frame; a socket that does not take all of it shares the frame with the others."""
        cdef uint64_t written = 0
        if row.state > OPEN or row.flags & BROKEN:
            return _GONE
        if row.queue == NULL and row.state == OPEN:
            if not self._write_now(row, shared_bytes(frame), frame.size, NULL, 0, &written):
                return _GONE
        elif frame.data_frame and not self._admit(row, index, frame.size):
            return _DROPPED
        self._counters.messages_sent += frame.data_frame
        if written == frame.size:
            return _SENT
        return self._enqueue(row, index, frame, written)

    cdef bint _admit(self, Row *row, uint32_t index, uint64_t size) noexcept:
        """May one more data frame wait? If not, the group's policy is applied. An empty queue takes a frame of any size."""
        cdef Group *group = &self._groups[row.group]
        cdef uint32_t dropped
        if row.queue == NULL or (
            row.queue.size + size <= group.queue_limit
            and self._counters.outbound_bytes + size <= self.max_outbound_bytes
        ):
            return True
        self._counters.dropped_frames += 1
        if group.close_slow:
            self._counters.closed_slow += 1
            self._counters.outbound_bytes -= row.queue.size
            dropped = queue_drop_data(row.queue)
            self._counters.outbound_bytes += row.queue.size
            self._counters.dropped_frames += dropped
            self._say_close(row, index, 1013, b"too slow", 8)
        return False

    cdef int _enqueue(self, Row *row, uint32_t index, Shared *frame, uint64_t offset) noexcept:
        cdef Shared *place
        if row.queue == NULL:
            row.queue = queue_new()
            if row.queue != NULL and not row.flags & (ANSWERED | BROKEN):  # the HTTP answer comes first, whenever it comes
                place = shared_new(0, False)
                if place != NULL:
                    queue_push(row.queue, place, 0)
                    shared_release(place)
        if row.queue == NULL or not queue_push(row.queue, frame, offset):
            row.flags |= BROKEN
            return _GONE
        self._counters.outbound_bytes += frame.size - offset
        if row.flags & ANSWERED and not row.flags & WRITING:
            row.flags |= WRITING
            if not row.flags & DETACHED:
                self._watch(row, index)
        return _QUEUED

    cdef int _flush(self, Row *row, uint32_t index) except -1:
        """Write what waits, as much as the socket takes."""
        cdef iovec[MAX_IOVECS] parts
        cdef msghdr message
        cdef Entry *entry
        cdef ssize_t written
        cdef uint32_t i, count
        while row.queue != NULL and not row.flags & BROKEN:
            count = min(row.queue.count, <uint32_t>MAX_IOVECS)
            for i in range(count):
                entry = queue_at(row.queue, i)
                parts[i].iov_base = shared_bytes(entry.frame) + entry.offset
                parts[i].iov_len = entry.frame.size - entry.offset
            memset(&message, 0, sizeof(message))
            message.msg_iov = parts
            message.msg_iovlen = count
            written = sendmsg(row.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if written < 0:
                if errno == EAGAIN or errno == EINTR:
                    return 0
                row.flags |= BROKEN
                break
            self._counters.bytes_sent += written
            self._counters.outbound_bytes -= written
            queue_written(row.queue, written)
            row.last_seen = self._now  # the peer's side made room, so it lives
            row.flags &= ~<uint16_t>PINGED
            if row.queue.count == 0:
                self._drop_queue(row)
        if row.flags & WRITING:
            row.flags &= ~<uint16_t>WRITING
            if not row.flags & DETACHED:
                self._watch(row, index)
        if row.flags & NOTIFY and not row.flags & RELEASED:
            row.flags &= ~<uint16_t>NOTIFY
            self._events.append((_WRITABLE, self._handle(row, index), None, None))
        if row.state == LINGERING:
            self._shut(row)
        return 0

    def notify_writable(self, uint64_t handle):
        cdef Row *row = self._find_or_null(handle)
        if row == NULL or row.queue == NULL:
            return False
        row.flags |= NOTIFY
        return True

    # Endings

    cdef int _say_close(self, Row *row, uint32_t index, uint32_t code, const uint8_t *reason, uint32_t size) noexcept:
        """Queue a close frame behind everything sent before, and wait for the peer's; code 0 means none."""
        cdef Shared *frame = shared_new(2 + (2 + size if code else 0), False)
        cdef uint8_t *out
        if frame == NULL:
            row.flags |= BROKEN
            return -1
        out = shared_bytes(frame)
        write_header(out, CLOSE, False, frame.size - 2)
        if code:
            out[2] = <uint8_t>(code >> 8)
            out[3] = <uint8_t>(code & 0xFF)
            memcpy(out + 4, reason, size)
        self._offer(row, index, frame)
        shared_release(frame)
        row.state = CLOSING
        self._limit_patience(row, index)
        return 0

    cdef int _tell_end(self, Row *row, uint32_t index, int kind, uint32_t code, str reason) except -1:
        if not row.flags & TOLD:
            row.flags |= TOLD
            self._events.append((kind, self._handle(row, index), code, reason))
        return 0

    cdef int _linger(self, Row *row, uint32_t index) noexcept:
        """All is said: flush, end our side, and throw away what still comes until the peer ends or time is up."""
        if row == self._corking:
            self._uncork()
        row.state = LINGERING
        row.flags &= ~<uint16_t>PAUSED
        self._drop_partial(row)
        if row.queue == NULL or row.flags & BROKEN:
            self._shut(row)
        self._watch(row, index)
        self._limit_patience(row, index)
        return 0

    cdef void _shut(self, Row *row) noexcept:
        if not row.flags & SHUT:
            row.flags |= SHUT
            shutdown(row.fd, SHUT_WR)

    cdef int _fail(self, Row *row, uint32_t index, uint32_t code, str reason) except -1:
        """The peer broke a rule: say so, tell the object, hang up (RFC 6455 §7.1.7)."""
        cdef bytes text = reason.encode()
        self._counters.protocol_errors += 1
        if row.state == OPEN:
            self._say_close(row, index, code, <const uint8_t *>PyBytes_AS_STRING(text), len(text))
        self._tell_end(row, index, _FAILED, code, reason)
        return self._linger(row, index)

    cdef int _lose(self, Row *row, uint32_t index) except -1:
        """The connection is gone. 1006, unless its end was told before."""
        if row.state != LINGERING:
            self._counters.lost += 1
            self._tell_end(row, index, _CLOSED, 1006, "")
        self._hang_up(row)
        if row.flags & RELEASED:
            self._free(row, index)
        return 0

    cdef void _hang_up(self, Row *row) noexcept:
        """Close the descriptor. The row stays for `release`; the caller frees it when that has happened."""
        if row == self._corking:
            self._uncork()
            self._corking = NULL
        if row.fd >= 0:
            self._detach(row)
            close(row.fd)
            row.fd = -1
        if row.queue != NULL:
            self._drop_queue(row)
        self._drop_partial(row)
        self._unschedule(row)
        row.state = DEAD

    cdef void _drop_queue(self, Row *row) noexcept:
        self._counters.outbound_bytes -= row.queue.size
        queue_free(row.queue)
        row.queue = NULL

    cdef void _drop_partial(self, Row *row) noexcept:
        if row.partial != NULL:
            self._counters.inbound_bytes -= sizeof(Partial) + row.partial.capacity
            partial_free(row.partial)
            row.partial = NULL


cdef bytes _deflate(const char *data, Py_ssize_t size):
    """permessage-deflate without context takeover (RFC 7692 §7.2.1)."""
    packer = zlib.compressobj(wbits=-15, memLevel=8)
    cdef bytes packed = packer.compress(PyBytes_FromStringAndSize(data, size)) + packer.flush(zlib.Z_SYNC_FLUSH)
    return packed[:PyBytes_GET_SIZE(packed) - 4]


cdef Shared *_encode(message, bint compressed) except NULL:
    """One data frame, header and payload, with one reference."""
    cdef uint8_t[MAX_SERVER_HEADER] header
    cdef Py_ssize_t size
    cdef const char *data
    cdef uint8_t opcode
    cdef uint32_t head
    cdef Shared *frame
    if isinstance(message, str):
        opcode = TEXT
        data = PyUnicode_AsUTF8AndSize(message, &size)
    elif isinstance(message, bytes):
        opcode = BINARY
        data = PyBytes_AS_STRING(message)
        size = PyBytes_GET_SIZE(message)
    else:
        raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
    if compressed:
        packed = _deflate(data, size)
        data = PyBytes_AS_STRING(packed)
        size = PyBytes_GET_SIZE(packed)
    head = write_header(header, opcode, compressed, size)
    frame = shared_new(head + size, True)
    if frame == NULL:
        raise MemoryError
    memcpy(shared_bytes(frame), header, head)
    memcpy(shared_bytes(frame) + head, data, size)
    return frame
