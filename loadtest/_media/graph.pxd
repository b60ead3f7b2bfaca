"""The plane's memory: peers, their streams, and the state that one mutex guards.

Ownership: the state owns clips, peers and streams; sockets and SRTP sessions are the caller's, who may free them once
the peer was removed. A removed peer's own memory goes at the end of the thread's next round, because events that name
it may have been fetched before.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free

from loadtest._media.arrivals cimport Arrivals
from loadtest._media.heap cimport Heap, Timer
from loadtest._media.histogram cimport Buckets
from loadtest._media.machine cimport pthread_mutex_t
from loadtest._media.reception cimport MISSING_MAX, Reception
from loadtest._media.sending cimport Clip, Outgoing
from wire._batch.udp cimport Address, Receiver, Sender, Socket

cdef enum:
    ARENA_BYTES = 524288
    EVENTS = 256
    STREAMS_MAX = 512           # of one peer, each way
    TRAILER = 32                # room for SRTP's tag and SRTCP's index
    CHANNEL_HEAD = 4
    CONTROL_MAX = 2048          # bytes of a datagram handed up; larger ones are no STUN and no DTLS flight of ours
    REPORT_INTERVAL = 1000000
    FEEDBACK_INTERVAL = 100000
    RTCP_MAX = 1300
    MAGIC_BYTES = 6

cdef enum:                      # kinds of timers
    SEND = 0
    REPAIR = 1
    REPORT = 2
    FEEDBACK = 3

cdef enum:                      # kinds of what is handed up
    DIRECT = 0
    RELAYED = 1
    MEDIA = 2

ctypedef int (*srtp_function)(void *session, void *packet, int *size) noexcept nogil

cdef struct Incoming:
    Timer timer                 # the next NACK or giving up
    Peer *peer
    int index                   # among the peer's
    uint32_t ssrc
    int codec
    bint hand_up
    Reception reception

cdef struct Peer:
    int id
    bint closed
    Peer *next_dead
    Socket socket
    Address to
    uint16_t channel            # TURN channel that leads to the server, 0: none
    void *sending               # SRTP sessions
    void *receiving
    uint32_t ssrc               # ours in reports and feedback
    int transport_cc_id         # of received packets, 0: none
    uint16_t transport_seq      # of the next packet sent
    int outgoing_count
    int incoming_count
    Outgoing **outgoing
    Incoming **incoming
    uint32_t *ssrcs             # of `incoming`, beside each other for the look-up
    uint32_t *rtx_ssrcs
    Timer report
    Timer feedback
    Arrivals arrivals
    uint64_t sent
    uint64_t received
    uint64_t unknown            # of no stream
    uint64_t refused            # by SRTP: damaged or repeated
    uint64_t feedback_received  # transport-wide

cdef struct State:
    pthread_mutex_t lock        # over all of this
    int wanted                  # threads that wait for it
    int stopping
    int epoll_fd
    int wake_fd
    int upcall_fd
    Heap heap
    int timer_count             # that the heap has room for
    Receiver *receiver
    Sender *sender
    Peer **peers                # by id, NULL: free
    int peer_count              # slots
    Peer *dead                  # removed, memory still to be freed
    Clip **clips
    int clip_count
    srtp_function protect
    srtp_function unprotect
    srtp_function protect_rtcp
    srtp_function unprotect_rtcp
    uint8_t magic[MAGIC_BYTES]  # before the clock in a payload's tail
    uint32_t tail_bytes
    int64_t numbers[MISSING_MAX]    # scratch of `repair`
    int64_t cpu_time
    int64_t started
    uint64_t datagrams_received
    uint64_t upcalls_lost
    uint64_t schedules_dropped
    Buckets lag


cdef inline void free_clip(Clip *c) noexcept nogil:
    free(c.first_packet)
    free(c.is_key)
    free(c.offset)
    free(c.has_clock)
    free(c.data)
    free(c)


cdef inline void free_peer(Peer *p) noexcept nogil:
    cdef int i
    for i in range(p.outgoing_count):
        free(p.outgoing[i])
    for i in range(p.incoming_count):
        free(p.incoming[i])
    free(p.outgoing)
    free(p.incoming)
    free(p.ssrcs)
    free(p.rtx_ssrcs)
    free(p)


cdef inline void free_dead(State *s) noexcept nogil:
    cdef Peer *p
    while s.dead != NULL:
        p = s.dead
        s.dead = p.next_dead
        free_peer(p)
