"""The fields that are looked at for each message; what changes them is Python, in the classes that derive from these."""

cdef class EventRate:
    cdef double _since  # when the window under way began
    cdef Py_ssize_t _count  # events in it
    cdef Py_ssize_t _most

    cpdef bint admit(self, double now) except -1

cdef class Spare:
    cdef public object loop
    cdef public object task
    cdef public object handed  # a future, done when the task may not be lent any more

cdef class FirstStep:
    cdef public bint ready
    cdef public Spare _spare

    cdef object _take(self, object context, object code, object first, object second)

cdef class Sender:
    cdef public object connection_id
    cdef public bint failed
    cdef public bint stands_alone
    cdef public bint _closing
    cdef public bint _has_been_open
    cdef public object _output  # the gate
    cdef public object _pass_on  # the connections side's `send`

cdef class ShortWay:
    cdef public bint _running
    cdef public bint _stepping
    cdef public Py_ssize_t _begun
    cdef public Py_ssize_t _unstarted
    cdef public double _last_event
    cdef public double _step_began
    cdef public double _steps_s
    cdef public EventRate _rate
    cdef public FirstStep _first_steps
    cdef public dict _sockets
    cdef public object _context
    cdef public object _now
    cdef public object input
    cdef public object output
    cdef public object meter
    cdef public object object
