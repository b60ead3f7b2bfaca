"""Makes the inboxes of two planes, and lets Python and tests use them. The planes' threads use `inbox.pxd`."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free
from libc.stdint cimport uint8_t

from wire._batch.address cimport format_address, parse_address
from wire._batch.inbox cimport (
    INBOX_SLOTS, POSTED, SLOT_BYTES, Slot, inbox_doze, inbox_peek, inbox_post, inbox_release, inbox_wake, store_flag,
)

CAPACITY = INBOX_SLOTS
DATAGRAM_BYTES_MAX = SLOT_BYTES
THREADS_MAX = 256


cdef class Exchange:
    def __cinit__(self, int threads, int far_threads):
        cdef int side, i
        for side, count in enumerate((threads, far_threads)):
            if not 1 <= count <= THREADS_MAX:
                raise ValueError(f"{count} threads")
            self.sides[side].inboxes = <Inbox *>calloc(count, sizeof(Inbox))
            if self.sides[side].inboxes == NULL:
                raise MemoryError
            self.sides[side].threads = count
            for i in range(count):
                self.sides[side].inboxes[i].wake_fd = -1
            for i in range(count):
                self.sides[side].inboxes[i].slots = <Slot *>calloc(INBOX_SLOTS, sizeof(Slot))
                if self.sides[side].inboxes[i].slots == NULL:
                    raise MemoryError
                self.sides[side].inboxes[i].wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __dealloc__(self):
        cdef int side, i
        for side in range(2):
            if self.sides[side].inboxes == NULL:
                continue
            for i in range(self.sides[side].threads):
                free(self.sides[side].inboxes[i].slots)
                if self.sides[side].inboxes[i].wake_fd >= 0:
                    os.close(self.sides[side].inboxes[i].wake_fd)
            free(self.sides[side].inboxes)

    def ends(self):
        return End(self, 0), End(self, 1)


@cython.no_gc  # no cycle leads through it; the collector would take the memory from under a plane that nobody closed
cdef class End:
    def __cinit__(self, Exchange exchange not None, int side):
        if not 0 <= side <= 1:
            raise ValueError(f"side {side}")
        self.exchange = exchange
        self.own = &exchange.sides[side]
        self.far = &exchange.sides[1 - side]

    @property
    def threads(self):
        return self.own.threads

    def bind(self, addresses):
        cdef Address parsed[END_ADDRESSES_MAX]
        cdef int i
        if len(addresses) > END_ADDRESSES_MAX:
            raise ValueError(f"{len(addresses)} addresses; at most {END_ADDRESSES_MAX}")
        if self.own.attached or self.far.attached:
            raise ValueError("in use")
        for i, (host, port) in enumerate(addresses):
            parse_address(&parsed[i], host, port)
        for i in range(<int>len(addresses)):
            self.own.addresses[i] = parsed[i]
        self.own.address_count = <int>len(addresses)

    cdef int attach(self) except -1:
        """From now on this side receives. What was left from before is gone. Before its threads start."""
        cdef int i
        if self.own.attached:
            raise ValueError("this end is in use")
        self.own.attached = True
        for i in range(self.own.threads):
            while inbox_peek(&self.own.inboxes[i], 0) != NULL:
                inbox_release(&self.own.inboxes[i], 1)
            store_flag(&self.own.inboxes[i].sleeping, 0)
            store_flag(&self.own.inboxes[i].open, 1)
        return 0

    cdef void detach(self) noexcept:
        """After the threads ended. What is sent from now on is dropped by its senders, as closed."""
        cdef int i
        for i in range(self.own.threads):
            store_flag(&self.own.inboxes[i].open, 0)
        self.own.attached = False

    # As the planes do it, for tests.

    def open(self):
        self.attach()

    def close(self):
        self.detach()

    def post(self, int thread, int far_thread, source, to, bytes data):
        source_host, source_port = source
        host, port = to
        cdef Address from_, destination
        cdef const uint8_t *bytes_ = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef int size = <int>len(data), result
        cdef Inbox *inbox
        if not 0 <= far_thread < self.far.threads or not 0 <= thread < self.own.threads:
            raise ValueError("no such thread")
        if size > SLOT_BYTES:
            raise ValueError(f"{size} bytes; at most {SLOT_BYTES}")
        parse_address(&from_, source_host, source_port)
        parse_address(&destination, host, port)
        inbox = &self.far.inboxes[far_thread]
        with nogil:
            result = inbox_post(inbox, thread, &from_, &destination, bytes_, size)
            if result == POSTED:
                inbox_wake(inbox)
        return ("posted", "full", "closed")[result]

    def take(self, int thread, int limit=INBOX_SLOTS):
        cdef Inbox *inbox
        cdef Slot *slot
        if not 0 <= thread < self.own.threads:
            raise ValueError("no such thread")
        inbox = &self.own.inboxes[thread]
        out = []
        while len(out) < limit:
            with nogil:
                slot = inbox_peek(inbox, 0)
            if slot == NULL:
                break
            out.append((
                slot.thread, format_address(&slot.source), format_address(&slot.to),
                PyBytes_FromStringAndSize(<char *>slot.data, slot.size),
            ))
            with nogil:
                inbox_release(inbox, 1)
        return out

    def doze(self, int thread):
        return inbox_doze(&self.own.inboxes[thread])

    def wake_fileno(self, int thread):
        return self.own.inboxes[thread].wake_fd
