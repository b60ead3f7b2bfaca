"""The thread: sleep until a socket or a timer asks, serve all of them, flush, tell what it cost."""

from libc.stdint cimport int64_t, uint64_t

from loadtest._media.egress cimport send_burst
from loadtest._media.feedback cimport repair, report, send_feedback
from loadtest._media.graph cimport EVENTS, REPAIR, REPORT, SEND, Incoming, Peer, State, free_dead
from loadtest._media.heap cimport Timer
from loadtest._media.ingress cimport receive
from loadtest._media.machine cimport (
    CLOCK_THREAD_CPUTIME_ID, c_read, clock_us, epoll_event, epoll_wait, get_int, now_us, pause_us, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from loadtest._media.sending cimport Outgoing
from wire._batch.udp cimport sender_flush


cdef inline int sleep_ms(State *s) noexcept nogil:
    cdef int64_t left
    if s.heap.count == 0:
        return 1000
    left = s.heap.items[0].due - now_us()
    return 0 if left <= 0 else <int>((left + 999) // 1000) if left < 1000000 else 1000


cdef inline void run_due(State *s) noexcept nogil:
    cdef int64_t now = now_us()
    cdef Timer *t
    while s.heap.count and s.heap.items[0].due <= now:
        t = s.heap.items[0]
        if t.kind == SEND:
            send_burst(s, <Outgoing *>t.owner, now)
        elif t.kind == REPAIR:
            repair(s, <Incoming *>t.owner, now)
        elif t.kind == REPORT:
            report(s, <Peer *>t.owner, now)
        else:
            send_feedback(s, <Peer *>t.owner, now)


cdef inline void loop(State *s) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int i, ready = 0
    cdef uint64_t token
    cdef Peer *p
    pthread_mutex_lock(&s.lock)
    while not s.stopping:
        for i in range(ready):
            p = <Peer *>events[i].data.ptr
            if p == NULL:
                c_read(s.wake_fd, &token, sizeof(token))
            elif not p.closed:
                receive(s, p)
        run_due(s)
        sender_flush(s.sender)
        free_dead(s)
        s.cpu_time = clock_us(CLOCK_THREAD_CPUTIME_ID)
        i = sleep_ms(s)
        pthread_mutex_unlock(&s.lock)
        if get_int(&s.wanted):
            pause_us()      # a mutex is not fair
        ready = epoll_wait(s.epoll_fd, events, EVENTS, i)
        pthread_mutex_lock(&s.lock)
    pthread_mutex_unlock(&s.lock)
