"""Fields of the writing layer of the socket table; `outgoing.pyx` says what it does."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hibernation._sockets.buffers cimport Shared
from hibernation._sockets.layout cimport Row
from hibernation._sockets.rows cimport Rows

cdef enum:
    CORK_BYTES = 16384

cdef class Outgoing(Rows):
    cdef list _events  # what happened since the last `process` or `handle_timeout`
    cdef uint8_t[CORK_BYTES] _cork  # answers to messages of one read: they leave in one write
    cdef uint64_t _corked  # bytes in it
    cdef Row *_corking  # whose they are; NULL while none gather
    cdef uint32_t _corking_index

    cdef int _send(self, Row *row, uint32_t index, uint8_t opcode, bint compressed, const uint8_t *data,
                   uint64_t size) except -1
    cdef int _offer(self, Row *row, uint32_t index, Shared *frame) noexcept
    cdef bint _write_now(self, Row *row, const void *head, uint64_t head_size, const void *body, uint64_t body_size,
                         uint64_t *written) noexcept
    cdef void _uncork(self) noexcept
    cdef int _enqueue(self, Row *row, uint32_t index, Shared *frame, uint64_t offset) noexcept
    cdef bint _admit(self, Row *row, uint32_t index, uint64_t size) noexcept
    cdef int _flush(self, Row *row, uint32_t index) except -1
    cdef void _drop_queue(self, Row *row) noexcept

    cdef int _say_close(self, Row *row, uint32_t index, uint32_t code, const uint8_t *reason, uint32_t size) noexcept
    cdef int _tell_end(self, Row *row, uint32_t index, int kind, uint32_t code, str reason) except -1
    cdef int _linger(self, Row *row, uint32_t index) noexcept
    cdef void _shut(self, Row *row) noexcept
    cdef int _fail(self, Row *row, uint32_t index, uint32_t code, str reason) except -1
    cdef int _lose(self, Row *row, uint32_t index) except -1
    cdef void _hang_up(self, Row *row) noexcept
    cdef void _drop_partial(self, Row *row) noexcept
