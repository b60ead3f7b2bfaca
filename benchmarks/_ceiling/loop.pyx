"""A bare forwarder: what the machine allows when there is nothing but crypto, copies and system calls.

Per batch: one `recvmmsg` (UDP_GRO), `srtp_unprotect` once per packet; then for each destination, for each packet of the
batch: copy, patch sequence number and SSRC, `srtp_protect`, one GSO train per destination, trains sent by `sendmmsg`.
No tables, no cache, no RTCP, no extensions, no statistics.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from * nogil:
    """
    #define _GNU_SOURCE
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <sys/socket.h>
    #include <poll.h>
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif

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
    """
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int AF_INET
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int MSG_DONTWAIT
    void put_segment_size(msghdr *header, void *control, uint16_t size)
    int get_segment_size(msghdr *header, int whole)
    uint16_t htons(uint16_t value)

ctypedef int (*srtp_call)(void *context, void *packet, int *size) noexcept nogil

cdef enum:
    RECEIVE_SLOTS = 16
    RECEIVE_BYTES = 65536
    BATCH_PACKETS = 256
    TRAIN_PACKETS = 40
    SEND_SLOTS = 32
    TRAIN_BYTES = 61440
    TRAILER_BYTES = 64

cdef struct Out:
    void *context
    uint32_t ssrc
    uint16_t seq
    sockaddr_in address


def forward(int fd, list sources, unprotect: int, protect: int) -> None:
    """Forward until the process is ended.

    Args:
        fd: bound UDP socket with UDP_GRO on.
        sources: per publisher, whose SSRC is its index + 1: (receive context, [(send context, ssrc, IPv4 as the
            network-order integer, port)]). Contexts are addresses of libsrtp sessions that the caller keeps alive.
        unprotect: address of `srtp_unprotect`; protect: of `srtp_protect`.
    """
    cdef int count = len(sources), i, j
    cdef void **receive = <void **>calloc(count, sizeof(void *))
    cdef Out **outs = <Out **>calloc(count, sizeof(Out *))
    cdef int *out_counts = <int *>calloc(count, sizeof(int))
    for i in range(count):
        receive[i] = <void *><uintptr_t>sources[i][0]
        out_counts[i] = len(sources[i][1])
        outs[i] = <Out *>calloc(max(1, out_counts[i]), sizeof(Out))
        for j in range(out_counts[i]):
            outs[i][j].context = <void *><uintptr_t>sources[i][1][j][0]
            outs[i][j].ssrc = sources[i][1][j][1]
            outs[i][j].address.sin_family = AF_INET
            outs[i][j].address.sin_addr.s_addr = sources[i][1][j][2]
            outs[i][j].address.sin_port = htons(sources[i][1][j][3])
    cdef srtp_call open_packet = <srtp_call><uintptr_t>unprotect
    cdef srtp_call seal_packet = <srtp_call><uintptr_t>protect
    with nogil:
        run(fd, count, receive, outs, out_counts, open_packet, seal_packet)


cdef void run(
    int fd, int count, void **receive, Out **outs, int *out_counts, srtp_call open_packet, srtp_call seal_packet
) noexcept nogil:
    cdef uint8_t *in_buffer = <uint8_t *>calloc(RECEIVE_SLOTS, RECEIVE_BYTES)
    cdef uint8_t *out_buffer = <uint8_t *>calloc(SEND_SLOTS, TRAIN_BYTES + TRAILER_BYTES)
    cdef mmsghdr in_messages[RECEIVE_SLOTS]
    cdef iovec in_vectors[RECEIVE_SLOTS]
    cdef uint8_t in_control[RECEIVE_SLOTS][64]
    cdef mmsghdr out_messages[SEND_SLOTS]
    cdef iovec out_vectors[SEND_SLOTS]
    cdef uint8_t out_control[SEND_SLOTS][64]
    cdef uint8_t *packets[BATCH_PACKETS]
    cdef int sizes[BATCH_PACKETS]
    cdef int owners[BATCH_PACKETS]
    cdef pollfd waiting
    cdef int received, i, source, segment, offset, whole, total, first, size
    cdef uint32_t ssrc
    waiting.fd = fd
    waiting.events = POLLIN
    while True:
        for i in range(RECEIVE_SLOTS):
            memset(&in_messages[i], 0, sizeof(mmsghdr))
            in_vectors[i].iov_base = in_buffer + i * RECEIVE_BYTES
            in_vectors[i].iov_len = RECEIVE_BYTES
            in_messages[i].msg_hdr.msg_iov = &in_vectors[i]
            in_messages[i].msg_hdr.msg_iovlen = 1
            in_messages[i].msg_hdr.msg_control = in_control[i]
            in_messages[i].msg_hdr.msg_controllen = 64
        received = recvmmsg(fd, in_messages, RECEIVE_SLOTS, MSG_DONTWAIT, NULL)
        if received <= 0:
            poll(&waiting, 1, 1000)
            continue
        total = 0
        for i in range(received):
            whole = <int>in_messages[i].msg_len
            segment = get_segment_size(&in_messages[i].msg_hdr, whole)
            offset = 0
            while offset < whole and total < BATCH_PACKETS:
                size = segment if whole - offset > segment else whole - offset
                packets[total] = in_buffer + i * RECEIVE_BYTES + offset
                offset += size
                if size < 12:
                    continue
                ssrc = (packets[total][8] << 24) | (packets[total][9] << 16) | (packets[total][10] << 8) | packets[total][11]
                if ssrc == 0 or ssrc > <uint32_t>count:
                    continue
                if open_packet(receive[ssrc - 1], packets[total], &size) != 0:
                    continue
                sizes[total] = size
                owners[total] = <int>ssrc - 1
                total += 1
        # Runs of one source: a frame that arrived together leaves together.
        first = 0
        while first < total:
            i = first
            while i < total and owners[i] == owners[first] and i - first < TRAIN_PACKETS:
                i += 1
            source = owners[first]
            fan_out(fd, outs[source], out_counts[source], packets + first, sizes + first, i - first,
                    out_buffer, out_messages, out_vectors, <uint8_t *>out_control, seal_packet)
            first = i


cdef void fan_out(
    int fd, Out *outs, int out_count, uint8_t **packets, int *sizes, int packet_count, uint8_t *out_buffer,
    mmsghdr *messages, iovec *vectors, uint8_t *control, srtp_call seal_packet,
) noexcept nogil:
    cdef int slot = 0, i, j, size, done, sent, first_size
    cdef uint8_t *at
    cdef uint8_t *start
    for i in range(out_count):
        start = at = out_buffer + slot * (TRAIN_BYTES + TRAILER_BYTES)
        first_size = 0
        for j in range(packet_count):
            memcpy(at, packets[j], sizes[j])
            outs[i].seq += 1
            at[2] = outs[i].seq >> 8
            at[3] = outs[i].seq & 0xFF
            at[8] = outs[i].ssrc >> 24
            at[9] = (outs[i].ssrc >> 16) & 0xFF
            at[10] = (outs[i].ssrc >> 8) & 0xFF
            at[11] = outs[i].ssrc & 0xFF
            size = sizes[j]
            seal_packet(outs[i].context, at, &size)
            if j == 0:
                first_size = size
            at += size
        memset(&messages[slot], 0, sizeof(mmsghdr))
        vectors[slot].iov_base = start
        vectors[slot].iov_len = at - start
        messages[slot].msg_hdr.msg_iov = &vectors[slot]
        messages[slot].msg_hdr.msg_iovlen = 1
        messages[slot].msg_hdr.msg_name = &outs[i].address
        messages[slot].msg_hdr.msg_namelen = sizeof(sockaddr_in)
        if packet_count > 1:
            put_segment_size(&messages[slot].msg_hdr, control + slot * 64, first_size)
        slot += 1
        if slot == SEND_SLOTS or i == out_count - 1:
            done = 0
            while done < slot:
                sent = sendmmsg(fd, messages + done, slot - done, 0)
                done += sent if sent > 0 else 1
            slot = 0
