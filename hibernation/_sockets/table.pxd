"""Fields of the socket table's reading layer; the contract of the whole is in `table.pyi`."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hibernation._sockets.buffers cimport Partial
from hibernation._sockets.frames cimport Header
from hibernation._sockets.layout cimport Row
from hibernation._sockets.outgoing cimport Outgoing

cdef enum:
    RECEIVE_BYTES = 16384  # of the shared buffer; bounds how many messages one socket hands over at once
    DIRECT_BYTES = 262144  # most that is read at once straight into a message under way
    EPOLL_BATCH = 128

cdef class SocketTable(Outgoing):
    cdef uint8_t *_buffer  # RECEIVE_BYTES, shared by all rows
    cdef uint32_t _rotation  # which ready socket goes first

    cdef int _answer(self, Row *row, uint32_t index, bytes response) except -1
    cdef int _look(self) except -1
    cdef int _turn_wheel(self) except -1
    cdef void _excuse(self, Row *row) noexcept
    cdef int _attend(self, Row *row, uint32_t index) except -1
    cdef list _take_events(self)

    cdef int _receive(self, Row *row, uint32_t index) except -1
    cdef int _consume(self, Row *row, uint32_t index, uint8_t *data, uint64_t size) except -1
    cdef bint _begin_frame(self, Row *row, uint32_t index, Header *header) except -1
    cdef int _whole_frame(self, Row *row, uint32_t index, Header *header, uint8_t *data) except -1
    cdef int _end_pieces(self, Row *row, uint32_t index) except -1
    cdef bint _append(self, Row *row, uint32_t index, const uint8_t *data, uint64_t size) except -1
    cdef int _end_message(self, Row *row, uint32_t index) except -1
    cdef int _deliver(self, Row *row, uint32_t index, uint8_t opcode, bint compressed, const uint8_t *data,
                      uint64_t size) except -1
    cdef int _control(self, Row *row, uint32_t index, uint8_t opcode, const uint8_t *data, uint32_t size) except -1
    cdef Partial *_partial(self, Row *row, uint32_t index) noexcept
    cdef bint _reserve(self, Row *row, uint64_t size) noexcept
    cdef void _settle_partial(self, Row *row) noexcept
