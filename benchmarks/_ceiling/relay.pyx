"""A bare relay: what the machine allows when there is nothing but system calls and one copy.

A pair of connected sockets for each allocation. Per wake of a socket: one `recvmsg` (UDP_GRO), the head of each segment
taken off or put on, one `sendmsg` (UDP_SEGMENT when there are several). No tables, no permissions, no statistics.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

cdef extern from * nogil:
    """
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif

    #include <sys/prctl.h>
    #include <time.h>
    static void sleep_precisely(void) { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }
    static void sleep_us(int us) { struct timespec t = {0, us * 1000}; nanosleep(&t, NULL); }

    static inline void put_segment_size(struct msghdr *header, void *control, uint16_t size) {
        header->msg_control = control;
        header->msg_controllen = CMSG_SPACE(sizeof(uint16_t));
        struct cmsghdr *item = CMSG_FIRSTHDR(header);
        item->cmsg_level = SOL_UDP;
        item->cmsg_type = UDP_SEGMENT;
        item->cmsg_len = CMSG_LEN(sizeof(uint16_t));
        memcpy(CMSG_DATA(item), &size, sizeof(size));
    }

    static inline int get_segment_size(struct msghdr *header, int whole) {
        for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item; item = CMSG_NXTHDR(header, item))
            if (item->cmsg_level == SOL_UDP && item->cmsg_type == UDP_GRO) {
                int size;
                memcpy(&size, CMSG_DATA(item), sizeof(size));
                return size;
            }
        return whole;
    }

    static inline void watch(int epoll, int fd, uint32_t mark) {
        struct epoll_event event = {EPOLLIN, {.u32 = mark}};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }

    static inline uint32_t mark_of(const struct epoll_event *event) { return event->data.u32; }
    """
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    struct epoll_event:
        pass
    int MSG_DONTWAIT
    int epoll_create1(int flags)
    int epoll_wait(int epoll, epoll_event *events, int maximum, int timeout_ms)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    void put_segment_size(msghdr *header, void *control, uint16_t size)
    int get_segment_size(msghdr *header, int whole)
    void watch(int epoll, int fd, uint32_t mark)
    void sleep_precisely()
    void sleep_us(int us)
    uint32_t mark_of(const epoll_event *event)

cdef enum:
    EVENTS = 64
    BUFFER_BYTES = 131072
    HEAD_BYTES_MAX = 64
    TRAIN_BYTES_MAX = 65000


def relay(list sockets, bytes head, int gather_us) -> None:
    """Relay until the process is ended.

    Args:
        sockets: descriptors with UDP_GRO on, in pairs: towards the client, towards the peer; connected.
        head: what stands before each payload on the client's side, at most 64 bytes.
        gather_us: after a round sleep so long, so that packets gather; 0: never.
    """
    cdef int count = len(sockets), head_size = len(head), i
    cdef int *fds = <int *>calloc(count, sizeof(int))
    cdef uint8_t[HEAD_BYTES_MAX] head_copy
    cdef const char *source = head
    cdef int epoll = epoll_create1(0)
    memcpy(head_copy, source, min(head_size, <int>HEAD_BYTES_MAX))
    for i in range(count):
        fds[i] = sockets[i]
        watch(epoll, fds[i], i)
    with nogil:
        run(epoll, fds, head_copy, head_size, gather_us)


cdef void run(int epoll, int *fds, uint8_t *head, int head_size, int gather_us) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef uint8_t *incoming = <uint8_t *>calloc(1, BUFFER_BYTES)
    cdef uint8_t *outgoing = <uint8_t *>calloc(1, BUFFER_BYTES)
    cdef int ready, i
    cdef uint32_t mark
    sleep_precisely()
    while True:
        ready = 0
        if gather_us:
            sleep_us(gather_us)
            ready = epoll_wait(epoll, events, EVENTS, 0)
        if ready == 0:
            ready = epoll_wait(epoll, events, EVENTS, -1)
        for i in range(ready):
            mark = mark_of(&events[i])
            while relay_one(fds[mark], fds[mark ^ 1], mark & 1, incoming, outgoing, head, head_size) and gather_us:
                pass


cdef bint relay_one(int source, int destination, bint down, uint8_t *incoming, uint8_t *outgoing, uint8_t *head, int head_size) noexcept nogil:
    """What one receive call gives. False: nothing."""
    cdef uint8_t control[64]
    cdef iovec vector
    cdef msghdr message
    cdef int whole, segment, at = 0, size, first = 0, total = 0
    memset(&message, 0, sizeof(message))
    vector.iov_base = incoming
    vector.iov_len = BUFFER_BYTES
    message.msg_iov = &vector
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = sizeof(control)
    whole = <int>recvmsg(source, &message, MSG_DONTWAIT)
    if whole <= 0:
        return False
    segment = get_segment_size(&message, whole)
    while at < whole:
        size = segment if whole - at > segment else whole - at
        if down:
            memcpy(outgoing + total, head, head_size)
            memcpy(outgoing + total + head_size, incoming + at, size)
            size += head_size
        else:
            size -= head_size
            memcpy(outgoing + total, incoming + at + head_size, size)
        total += size
        first = first if first else size
        at += segment
        if at >= whole or total + first > TRAIN_BYTES_MAX:
            memset(&message, 0, sizeof(message))
            vector.iov_base = outgoing
            vector.iov_len = total
            message.msg_iov = &vector
            message.msg_iovlen = 1
            if total > first:
                put_segment_size(&message, control, <uint16_t>first)
            sendmsg(destination, &message, MSG_DONTWAIT)
            total = first = 0
    return True
