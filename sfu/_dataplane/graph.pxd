"""The graph that Python changes and the threads run: plane, threads, transports, tracks, streams, forwarders.

Who may touch what (the theory is in `__init__.py`):

* `Thread` and what hangs on it: that thread, holding its `lock`.
* `Transport`, its `Track`s, `Stream`s (all but the fields below) and `Forwarder`s: the thread that owns the transport.
* read by every thread: a stream's `cache`, `clock`, `alive`, `codec`, `clock_rate`, `need_since`; `fanout[t].count`.
* `fanout[t]`, `members[t]`: thread t, because they list forwarders that t owns.
* everything: Python's thread, while it holds all locks. Only then is anything linked, unlinked or freed.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from sfu._dataplane.cache cimport Cache
from sfu._dataplane.ledger cimport Ledger
from sfu._dataplane.loss cimport LossList
from sfu._dataplane.packet cimport HeaderTemplate, RtpView
from sfu._dataplane.sequence cimport OutMap, Unwrapper
from sfu._dataplane.tables cimport Bucket, IdTable, TupleTable
from sfu._dataplane.twcc cimport TwccLog
from sfu._dataplane.vp8 cimport Vp8Map, Vp8Numbers
from wire._batch.exchange cimport Side
from wire._batch.inbox cimport Inbox
from wire._batch.udp cimport Address, Receiver, Sender, Socket

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "unistd.h" nogil:
    ssize_t c_write "write"(int fd, const void *data, size_t size)
    ssize_t c_read "read"(int fd, void *data, size_t size)

cdef enum:
    THREADS_MAX = 64
    ADDRESSES_MAX = 16
    TUPLES_MAX = 16
    LAYERS_MAX = 8
    RID_MAX = 16
    CNAME_MAX = 64
    JOBS_MAX = 128              # packets between receipt and forwarding
    RING_SLOTS = 2048           # packets and requests on the way from one thread to another
    RING_PACKETS = 1792         # of packets at most: a request that is lost may be missed for ever
    PARCEL_SLOTS = 64           # datagrams on the way to their owner
    RECENT_SOURCES = 8
    NO_PAYLOAD_TYPE = 255
    SRTP_TRAILER_MAX = 144      # SRTP_MAX_TRAILER_LEN of libsrtp
    SRTCP_TRAILER_MAX = 148
    ALIVE = 2000000             # us without a packet after which a layer is dead (LAY-1)

# Reasons for a drop; names in DROP_NAMES of plane.pyx.
cdef enum Drop:
    DROP_FIRST_BYTE
    DROP_SHORT
    DROP_TRUNCATED
    DROP_STRANGER
    DROP_STUN_BUDGET
    DROP_UPCALL_FULL
    DROP_NO_KEYS
    DROP_OVERSIZE
    DROP_MALFORMED
    DROP_AUTHENTICATION
    DROP_REPLAY
    DROP_PAYLOAD_TYPE
    DROP_UNBOUND
    DROP_RETIRED_SSRC
    DROP_EMPTY
    DROP_PADDING
    DROP_PROBE
    DROP_JUMP
    DROP_STALE
    DROP_DUPLICATE
    DROP_RTCP_MALFORMED
    DROP_RTCP_FOREIGN
    DROP_NACK_BUDGET
    DROP_PARCEL_FULL
    DROP_RING_FULL
    DROP_RING_GONE
    DROP_LATE
    DROP_BLOCKED
    DROP_PROTECT
    DROP_NO_MEMORY
    DROP_COUNT

cdef enum Key:
    KEY_NONE
    KEY_FIRST
    KEY_LATE                    # what follows it came before it

ctypedef int (*srtp_function)(void *session, void *packet, int *size) noexcept nogil

ctypedef int (*srtp_remove_function)(void *session, unsigned int ssrc) noexcept nogil

cdef struct Transport
cdef struct Track
cdef struct Stream
cdef struct Forwarder
cdef struct Thread
cdef struct PlaneState

cdef struct PayloadType:
    uint8_t known
    uint8_t codec
    uint8_t nack
    uint8_t pli
    uint8_t fir
    int apt                     # payload type it repairs, -1: not RTX
    uint32_t clock_rate

cdef struct ForwarderList:
    Forwarder **items
    int count
    int capacity

cdef struct Job:
    # One decrypted packet to be forwarded by this thread.
    RtpView view
    int64_t ext_seq
    int64_t received            # us
    uint32_t epoch              # of the stream
    uint8_t keyframe            # KEY_*: first packet of a key frame that is newer than all before it
    uint8_t padding_only
    Vp8Numbers vp8
    int next                    # of the same stream, -1: last

cdef struct Fanout:
    # What one thread knows of a stream: its forwarders that are fed by it or wait for it, and the jobs at hand.
    ForwarderList forwarders
    int first_job
    int last_job

cdef struct SourceClock:
    # Last sender report (NTP and RTP of one instant), readable by every thread: version odd while being written.
    uint32_t version
    uint32_t timestamp
    uint64_t ntp
    int64_t received

cdef struct Stream:
    uint64_t id
    Track *track
    int layer
    char rid[RID_MAX + 1]
    uint32_t ssrc               # 0: not bound
    uint32_t rtx_ssrc
    uint32_t epoch              # grows when sequence numbers or SSRC start anew
    uint32_t clock_rate
    Unwrapper unwrapper
    LossList loss
    Cache cache
    uint64_t cache_bytes
    int64_t grow_after          # us: the cache was refused growth before
    SourceClock clock
    int64_t last_packet         # us, 0: never
    uint32_t last_timestamp
    uint8_t started
    uint8_t alive               # packets in the last 2 s; written by the owner before it tells the others
    uint8_t rebound             # a new SSRC: its first packet sets the number
    uint8_t nack                # the publisher takes NACK for what it sends now
    uint8_t asks_pli
    uint8_t asks_fir
    uint8_t codec
    # receiver report, from original packets only (SHLD-2)
    int64_t first_seq
    uint64_t received
    uint64_t expected_before
    uint64_t received_before
    double jitter
    int64_t last_transit
    int64_t report_at
    # keyframe requests (KF-1, KF-2)
    int64_t asked_at            # us, 0: never
    int64_t need_since          # us, 0: no need
    uint8_t ask_pending
    uint8_t fir_number
    int64_t last_keyframe       # ext_seq of its first packet, -1: none
    uint32_t keyframe_timestamp
    int64_t nack_at             # us, 0: nothing missing
    int64_t rtt                 # us towards the publisher (NACK-3)
    # figures
    uint64_t packets
    uint64_t bytes
    uint64_t nacks_sent
    uint64_t lost
    uint64_t keyframes
    uint64_t keyframe_requests
    int64_t rate_since
    uint64_t rate_bytes
    double bitrate
    Fanout *fanout              # per thread

cdef struct Track:
    uint64_t id
    Transport *transport
    int thread_count            # of the plane
    uint8_t video
    uint8_t mid_length
    uint8_t mid[32]
    uint8_t ids[256]            # wire id to X_*
    PayloadType payload_types[128]
    int layer_count
    Stream *layers[LAYERS_MAX]
    uint8_t stalled
    ForwarderList *members      # per thread: forwarders that have it as source or as next source

cdef struct Source:
    Track *track                # NULL: none
    Stream *stream              # NULL: none chosen (yet)
    uint32_t epoch
    char rid[RID_MAX + 1]
    uint8_t fallback            # another layer may stand in for `rid`
    uint8_t payload_types[128]
    uint8_t rtx_payload_types[128]

cdef struct SentReport:
    uint32_t middle_ntp
    int64_t at

cdef struct Forwarder:
    Transport *transport
    uint64_t id
    void *srtp                  # media, RTX and SR of this stream; NULL before keys
    uint32_t ssrc
    uint32_t rtx_ssrc
    uint32_t timestamp_offset   # out = source + offset, modulo 2**32
    uint32_t last_timestamp     # out
    uint32_t last_source_timestamp
    int64_t last_sent           # us
    int64_t last_out
    uint16_t rtx_seq
    uint8_t video
    uint8_t paused
    uint8_t started             # something was sent
    uint8_t last_marker
    uint8_t skipped_keyframe    # SW-2: one was let go by, the next is taken
    int64_t waited_until        # us: the wait for a key frame is booked up to here, 0: no packet without one yet
    int blocked                 # a train of it was dropped: wait for the next frame
    uint32_t last_clock_rate
    uint64_t last_stream        # id of the stream that `timestamp_offset` belongs to
    HeaderTemplate template
    OutMap map
    Source current
    Source next
    Ledger ledger
    uint64_t recent[RECENT_SOURCES]     # ids of the last streams that fed it, by `stay`
    uint8_t stay                # changes of source so far, modulo 2**8
    Vp8Map vp8
    char cname[CNAME_MAX + 1]
    # sender reports (RTCP-1 to RTCP-3)
    int64_t report_at           # us, 0: nothing to report yet
    SentReport reports[8]
    uint8_t report_next
    uint64_t last_report_ntp
    uint32_t last_report_timestamp
    uint8_t report_foreign      # the last one was in the publisher's clock
    int64_t rtt                 # us, 0: unknown
    # keyframe requests of the subscriber (KF-4)
    int64_t asked_at[3]
    int64_t ignore_before       # out ext_seq: NACKs below are void after a PLI (CACHE-4), 0: none
    # resend budget (CACHE-6): bytes in the running second and the one before
    int64_t budget_since
    uint64_t media_now
    uint64_t media_before
    uint64_t resent_now
    uint64_t resent_before
    # figures
    uint64_t packets
    uint64_t bytes
    uint64_t payload_bytes      # RFC 3550 6.4.1 octet count
    uint64_t nacks_in
    uint64_t answered
    uint64_t suppressed
    uint64_t missed
    uint64_t rtx_bytes
    uint64_t plis_in
    uint8_t fraction_lost

cdef struct TupleSlot:
    int socket_index
    Address remote

cdef struct Transport:
    uint64_t id
    int owner                   # thread index, -1 before the first selected tuple
    uint8_t sending
    Socket *socket              # of the owner, bound to the selected tuple's local address; NULL before
    Address selected
    int selected_socket
    TupleSlot tuples[TUPLES_MAX]
    int tuple_count
    int profile                 # 0: no keys
    uint8_t send_key[64]
    int send_key_size
    void *srtp_in
    void *srtp_rtcp             # our reports and feedback
    uint32_t rtcp_ssrc
    IdTable incoming            # ssrc + 1 to Stream *, `extra` Binding | order of learning << 8
    IdTable outgoing            # ssrc + 1 to Forwarder *, `extra` 1 for RTX
    uint64_t learnt             # SSRCs learnt so far
    uint32_t *learnt_ring       # of max_streams_per_transport, NULL before the first
    uint8_t ids[256]            # union of its tracks' extension ids
    Track **tracks
    int track_count
    Forwarder **forwarders
    int forwarder_count
    TwccLog *twcc
    int64_t twcc_at
    uint32_t twcc_media_ssrc
    uint16_t transport_seq      # fresh transport-wide number of what we send
    int64_t nack_window         # us: start of the current 100 ms
    int nack_items
    int64_t deadline            # us, 0: not in the heap
    int heap_index              # -1: not in the heap
    # figures
    uint64_t packets_in
    uint64_t bytes_in
    uint64_t packets_out
    uint64_t bytes_out
    uint64_t authentication_failures
    uint64_t replays

# How an incoming SSRC is bound.
cdef enum Binding:
    BOUND_MEDIA
    BOUND_RTX
    BOUND_NOTHING               # authenticated, belongs to no section (yet): probes
    BOUND_RETIRED               # its layer has a newer SSRC
    BOUND_RTCP                  # only ever reported
    BOUND_ORPHAN                # its track was removed: only a MID binds it again

# What crosses between threads.
cdef enum Crossing:
    CROSS_PACKET
    CROSS_KEYFRAME              # a forwarder wants one of `stream`
    CROSS_LAYERS                # the layers of track `stream` changed: choose again

cdef struct CrossEntry:
    uint64_t stream             # id
    int64_t ext_seq
    int64_t received
    uint32_t epoch
    uint8_t kind
    uint8_t keyframe
    uint8_t padding_only
    Vp8Numbers vp8

cdef struct CrossRing:
    # Single producer, single consumer.
    uint32_t head               # written by the producer
    uint32_t tail               # written by the consumer
    CrossEntry entries[RING_SLOTS]

cdef struct Parcel:
    int size
    int socket_index
    int64_t received
    Address source
    uint8_t data[2048]

cdef struct ParcelRing:
    uint32_t head
    uint32_t tail
    Parcel entries[PARCEL_SLOTS]

cdef struct UpcallRing:
    # Records of different length, single producer (its thread), single consumer (Python).
    uint32_t head
    uint32_t tail
    uint32_t capacity           # bytes, power of two
    uint8_t *bytes

cdef struct Counters:
    uint64_t datagrams_in
    uint64_t bytes_in
    uint64_t in_memory_in       # datagrams from another plane of this process; not in the two above
    uint64_t rtp_in
    uint64_t rtcp_in
    uint64_t stun_in
    uint64_t dtls_in
    uint64_t forwarded
    uint64_t resent
    uint64_t rtcp_out
    uint64_t nacks_out
    uint64_t keyframe_requests_out
    uint64_t keyframe_wait_seconds      # of all subscribers together
    uint64_t crossed
    uint64_t batches
    uint64_t wakeups
    uint64_t drops[64]
    uint64_t latency[32]
    uint64_t batch_fill[16]

cdef struct Thread:
    PlaneState *plane
    int index
    pthread_mutex_t lock
    int wake_fd
    int epoll_fd
    int sleeping
    int64_t now                 # us, of the batch at hand
    uint64_t random
    Socket sockets[ADDRESSES_MAX]
    Receiver receiver
    Sender sender
    int job_count
    Job jobs[JOBS_MAX]
    Stream *touched[JOBS_MAX]   # streams with jobs, in order of arrival
    int touched_count
    uint8_t *scratch            # JOBS_MAX slots for packets of other threads' streams
    Transport **heap            # by deadline
    int heap_count
    int heap_capacity
    UpcallRing owned
    UpcallRing strangers
    Bucket *buckets
    Counters counters
    int upcalls_made            # since Python was signalled last
    Inbox *inbox                # from another plane of this process, or NULL

cdef struct PlaneState:
    int thread_count
    int address_count
    Thread *threads
    Side *near                  # of the exchange with another plane, or NULL
    Side *far
    Socket *near_sockets        # [(thread * near.address_count + address) * far.threads + far thread]
    CrossRing **rings           # [from * thread_count + to], NULL on the diagonal
    ParcelRing **parcels        # same
    TupleTable tuples           # (socket index, remote) to Transport *
    IdTable streams             # id to Stream *
    pthread_mutex_t turnstile   # held by Python while it waits for and holds the locks: threads queue behind it
    int writers                 # Python wants the locks
    int stopping
    int upcall_fd
    int upcall_pending
    int max_streams_per_transport
    int64_t cache_bytes
    int64_t cache_bytes_max
    int64_t stun_rate
    int64_t stall_after
    uint64_t seed
    srtp_function protect
    srtp_function unprotect
    srtp_function protect_rtcp
    srtp_function unprotect_rtcp
    srtp_remove_function remove_stream
