"""Fields of the lowest layer of the socket table; `rows.pyx` says what it does."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from hibernation._sockets.layout cimport Group, Row

cdef enum:
    WHEEL_SLOTS = 512
    WHEEL_WORDS = 8  # of 64 slots
    UNTIMED = WHEEL_SLOTS  # the list behind the wheel's: rows whose time counts from the next `now`

ctypedef struct Counters:
    uint64_t rows
    uint64_t groups
    uint64_t inbound_bytes
    uint64_t outbound_bytes
    uint64_t accepted
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t messages_received
    uint64_t messages_sent
    uint64_t auto_responses
    uint64_t pings_received
    uint64_t pings_sent
    uint64_t dropped_frames
    uint64_t closed_slow
    uint64_t closed_by_peer
    uint64_t lost
    uint64_t protocol_errors
    uint64_t timeouts

cdef class Rows:
    cdef int _epoll
    cdef int _bell  # an eventfd in it: rung when the shell has to ask `next_timeout` again
    cdef bint _rung
    cdef double _now  # of the latest call that was given it
    cdef bint _driven  # inside `process` or `handle_timeout`: `_now` is now
    cdef Counters _counters

    cdef Row **_slabs
    cdef uint32_t _slab_count
    cdef uint32_t _free_row  # first of the free list, linked by `wheel_next`
    cdef Group *_groups
    cdef uint32_t _group_capacity
    cdef list _owners  # by group
    cdef uint32_t _free_group  # no free group has a lower number

    cdef uint32_t[WHEEL_SLOTS + 1] _wheel
    cdef uint64_t[WHEEL_WORDS] _filled  # a bit for each slot of the wheel that has rows
    cdef uint64_t _wheel_at  # the tick handled last
    cdef uint64_t _told  # the tick that `next_timeout` returned last
    cdef uint32_t _scheduled  # rows in the wheel, without those that are untimed

    cdef readonly uint32_t max_sockets
    cdef readonly uint64_t max_frame_bytes
    cdef readonly uint64_t max_message_bytes
    cdef readonly uint64_t max_inbound_bytes
    cdef readonly uint64_t max_outbound_bytes
    cdef readonly uint64_t queue_bytes
    cdef readonly uint64_t deflate_bytes
    cdef readonly double tick
    cdef readonly double close_timeout
    cdef readonly double message_timeout
    cdef readonly double ping_interval
    cdef readonly double ping_timeout
    cdef readonly double idle_timeout

    cdef Row *_row(self, uint32_t index) noexcept
    cdef Row *_find(self, uint64_t handle) except NULL
    cdef Row *_find_or_null(self, uint64_t handle) noexcept
    cdef uint64_t _handle(self, Row *row, uint32_t index) noexcept
    cdef int _grow(self) except -1
    cdef Row *_take_row(self, int fd) except NULL
    cdef void _free(self, Row *row, uint32_t index) noexcept
    cdef int _watch(self, Row *row, uint32_t index) noexcept
    cdef void _detach(self, Row *row) noexcept

    cdef Group *_group(self, uint32_t group) except NULL
    cdef void _join(self, Row *row, uint32_t index, uint32_t group) noexcept
    cdef void _leave(self, Row *row) noexcept
    cdef void _clear_rules(self, Group *group) noexcept

    cdef void _advance(self, double now) noexcept
    cdef double _due(self, Row *row) noexcept
    cdef void _schedule(self, Row *row, uint32_t index) noexcept
    cdef void _unschedule(self, Row *row) noexcept
    cdef void _chain(self, Row *row, uint32_t index, uint16_t slot) noexcept
    cdef void _limit_patience(self, Row *row, uint32_t index) noexcept
    cdef uint64_t _next_filled(self) noexcept
    cdef void _ring(self) noexcept
