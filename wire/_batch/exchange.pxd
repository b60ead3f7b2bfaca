from wire._batch.address cimport Address, same_address
from wire._batch.inbox cimport Inbox

cdef enum:
    END_ADDRESSES_MAX = 16

cdef struct Side:
    Inbox *inboxes              # by thread
    int threads
    Address addresses[END_ADDRESSES_MAX]
    int address_count
    bint attached

cdef class Exchange:
    cdef Side sides[2]

cdef class End:
    cdef Exchange exchange      # owns the memory of both sides
    cdef Side *own
    cdef Side *far

    cdef int attach(self) except -1
    cdef void detach(self) noexcept


cdef inline bint same_bound(const Address *a, const Address *b) noexcept nogil:
    # Ports differ more often than anything else.
    return a.raw[3] == b.raw[3] and a.raw[2] == b.raw[2] and same_address(a, b)


cdef inline int find_address(const Side *side, const Address *address) noexcept nogil:
    """Which of the side's addresses this is, -1: none."""
    cdef int i
    for i in range(side.address_count):
        if same_bound(&side.addresses[i], address):
            return i
    return -1
