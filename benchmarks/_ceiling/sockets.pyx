"""A bare epoll loop over TCP: what the machine allows a WebSocket server that reads no frame.

Each first packet of a connection is answered with a fixed 101, each later one with a fixed reply; in fan-out mode a
packet is sent to every connection but its sender instead. No parsing, no state per connection, no timers, one thread.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdlib cimport calloc, free

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN
        EPOLL_CTL_ADD

    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
        SOCK_NONBLOCK

    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    int accept4(int fd, void *address, void *length, int flags)

cdef extern from "unistd.h" nogil:
    int close(int fd)


def serve(int listener, bytes answer, bytes reply, bint fan_out):
    """Run until killed.

    Args:
        listener: a listening TCP socket, non-blocking.
        answer: what a connection's first packet gets.
        reply: one WebSocket frame, sent per packet (or to all but the sender in fan-out mode).
    """
    cdef epoll_event[256] events
    cdef epoll_event event
    cdef char[16384] buffer
    cdef char *greeted = <char *>calloc(1 << 20, 1)
    cdef const char *reply_bytes = reply
    cdef const char *answer_bytes = answer
    cdef size_t reply_size = len(reply)
    cdef size_t answer_size = len(answer)
    cdef int epoll = epoll_create1(0)
    cdef int count, i, fd, other, highest = 0
    cdef ssize_t size
    if greeted == NULL or epoll < 0:
        raise MemoryError
    event.events = EPOLLIN
    event.data.fd = listener
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)
    with nogil:
        while True:
            count = epoll_wait(epoll, events, 256, -1)
            for i in range(count):
                fd = events[i].data.fd
                if fd == listener:
                    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)
                    if fd >= 0:
                        event.events = EPOLLIN
                        event.data.fd = fd
                        greeted[fd] = 0
                        highest = max(highest, fd)
                        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)
                    continue
                size = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT)
                if size <= 0:
                    if size == 0 or errno != EAGAIN:
                        greeted[fd] = 0
                        close(fd)
                    continue
                if not greeted[fd]:
                    greeted[fd] = 1
                    send(fd, answer_bytes, answer_size, MSG_DONTWAIT | MSG_NOSIGNAL)
                elif not fan_out:
                    send(fd, reply_bytes, reply_size, MSG_DONTWAIT | MSG_NOSIGNAL)
                else:
                    for other in range(highest + 1):
                        if greeted[other] and other != fd:
                            send(other, reply_bytes, reply_size, MSG_DONTWAIT | MSG_NOSIGNAL)
