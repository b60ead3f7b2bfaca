"""When a receiving thread should wait a little before it takes what came: interrupt moderation.

Packets that come evenly spaced wake a thread each, and a wake with its system calls costs more than all that is done
to the packet. Above a certain rate it is cheaper to sleep for a fixed short time and then take several. Below it, when
less than GATHER_MIN would come in that time, nothing waits: a lone call has no delay added. What counts is what one
receive call sees, so a train of segments is one: it is gathered already.

The wait is bounded by `longest` and is the most that is added to a packet's way; on average it is half of it.
Memory: the struct is its thread's. Nothing is allocated.
"""

from libc.stdint cimport int64_t

cdef extern from "time.h" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *request, timespec *rest) noexcept

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long value, ...) noexcept
    enum: PR_SET_TIMERSLACK

cdef enum:
    GATHER_MIN = 2              # datagrams that must be expected in a wait for it to be worth its timer
    GATHER_ENOUGH = 32          # a batch this large gains nothing by growing
    GATHER_WINDOW = 2000        # us over which the rate is measured

cdef struct Gather:
    int64_t longest             # us, 0: never wait
    int64_t since               # us: start of the window
    int64_t count               # datagrams in it so far
    int64_t wait                # us, as the window before says


cdef inline void gather_init(Gather *g, int64_t longest) noexcept nogil:
    """In the thread itself: the kernel would else lengthen each wait by 50 us to merge timers."""
    g.longest = longest
    g.since = g.count = g.wait = 0
    if longest:
        prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


cdef inline int64_t gather_wait(Gather *g, int64_t received, int64_t now) noexcept nogil:
    """How long to wait before the next receive, in us; 0: not at all.

    `received`: datagrams or trains since the last call; `now` in us.
    """
    cdef int64_t passed = now - g.since
    if g.longest == 0:
        return 0
    g.count += received
    if passed >= GATHER_WINDOW:
        # The time in which GATHER_ENOUGH come, at most `longest`, if enough come in that to be worth it.
        g.wait = g.longest
        if g.count * g.wait > GATHER_ENOUGH * passed:
            g.wait = GATHER_ENOUGH * passed // g.count
        if g.count * g.wait < GATHER_MIN * passed:
            g.wait = 0
        g.since = now
        g.count = 0
    return g.wait


cdef inline void gather_sleep(int64_t wait) noexcept nogil:
    cdef timespec t
    t.tv_sec = 0
    t.tv_nsec = wait * 1000
    nanosleep(&t, NULL)
