"""The plane: peers, their streams, and the thread that serves them all. See the package docstring.

Ownership: the plane owns clips, peers and streams; sockets and SRTP sessions are the caller's, who may free them once
`remove_peer` has returned. A removed peer's memory goes at the end of the thread's next round, because events that name
it may have been fetched before. Everything else happens under the one mutex.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from loadtest._media.arrivals cimport FEEDBACK_MAX, Arrivals, arrivals_init, arrivals_record, arrivals_write
from loadtest._media.frames cimport payload_flags
from loadtest._media.heap cimport Heap, Timer, heap_reserve, timer_arm, timer_cancel, timer_init
from loadtest._media.histogram cimport Buckets, buckets_json, buckets_record
from loadtest._media.machine cimport (
    CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, add_int,
    c_close, c_read, c_write, clock_us, epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd, get_int, now_us,
    pause_us, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_trylock,
    pthread_mutex_unlock,
    read16, read32, wall_ntp, write16, write32, write64,
)
from loadtest._media.reception cimport (
    EMPTY, END, MISSING_MAX, NEW, FIRST_DELAY, FREEZE_FRAMES_MIN, Reception, freeze_limit, nearest, reception_clock,
    reception_due, reception_init, reception_take, reception_wants_key,
)
from loadtest._media.rtcp cimport (
    BLOCKS_MAX, FMT_FIR, FMT_NACK, FMT_PLI, FMT_TRANSPORT_CC, RTCP_PSFB, RTCP_RR, RTCP_RTPFB, RTCP_SR, ReportBlock,
    RtcpPacket, next_packet, write_cname, write_nack, write_pli, write_receiver_report, write_sender_report,
)
from loadtest._media.sending cimport (
    BEHIND_MAX, BURST, BURST_INTERVAL, CLOCK_BYTES, EXTENSIONS_MAX, PACKET_MAX, Clip, Extensions, Outgoing, Sent,
    frame_due, outgoing_find, outgoing_init, outgoing_next, outgoing_write, read_clock,
)
from wire._batch.udp cimport (
    Address, Datagram, Receiver, Sender, Socket, enable_gro, parse_address, receive_batch, received, receiver_destroy,
    receiver_init, sender_commit, sender_destroy, sender_flush, sender_init, sender_room,
)

from loadtest._media import srtp
from loadtest.media.payloads import MAGIC, TAIL_BYTES

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

UPCALL_DIRECT, UPCALL_RELAYED, UPCALL_MEDIA = DIRECT, RELAYED, MEDIA

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

cdef class Plane:
    """All peers of a process and the thread that serves them. Methods may be called from any thread but the plane's own.

    Call `run` in a thread of its own; it returns after `stop`.
    """

    cdef:
        pthread_mutex_t lock
        int wanted              # threads that wait for the lock
        int stopping
        int epoll_fd
        int wake_fd
        int upcall_fd
        Heap heap
        int timer_count
        Receiver *receiver
        Sender *sender
        Peer **peers
        int peer_count          # slots
        Peer *dead
        Clip **clips
        int clip_count
        srtp_function protect
        srtp_function unprotect
        srtp_function protect_rtcp
        srtp_function unprotect_rtcp
        uint8_t magic[MAGIC_BYTES]
        int64_t numbers[MISSING_MAX]
        int64_t cpu_time
        int64_t started
        uint64_t datagrams_received
        uint64_t upcalls_lost
        uint64_t schedules_dropped
        Buckets lag
        uint32_t tail_bytes

    def __cinit__(self, int upcall_fd):
        self.epoll_fd = -1
        self.wake_fd = -1
        pthread_mutex_init(&self.lock, NULL)
        self.upcall_fd = upcall_fd
        self.receiver = <Receiver *>calloc(1, sizeof(Receiver))
        self.sender = <Sender *>calloc(1, sizeof(Sender))
        if self.receiver == NULL or self.sender == NULL:
            raise MemoryError
        if not receiver_init(self.receiver) or not sender_init(self.sender, ARENA_BYTES):
            raise MemoryError
        self.protect = <srtp_function><uintptr_t>srtp.function_address("srtp_protect")
        self.unprotect = <srtp_function><uintptr_t>srtp.function_address("srtp_unprotect")
        self.protect_rtcp = <srtp_function><uintptr_t>srtp.function_address("srtp_protect_rtcp")
        self.unprotect_rtcp = <srtp_function><uintptr_t>srtp.function_address("srtp_unprotect_rtcp")
        memcpy(self.magic, <const uint8_t *><bytes>MAGIC, MAGIC_BYTES)
        self.tail_bytes = TAIL_BYTES
        self.epoll_fd = epoll_create1(0)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.epoll_fd < 0 or self.wake_fd < 0:
            raise OSError("no descriptors left")
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = NULL
        epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.wake_fd, &event)
        self.started = now_us()

    def __dealloc__(self):
        cdef int i
        for i in range(self.peer_count):
            if self.peers[i] != NULL:
                free_peer(self.peers[i])
        self.free_dead()
        free(self.peers)
        for i in range(self.clip_count):
            free_clip(self.clips[i])
        free(self.clips)
        free(self.heap.items)
        if self.receiver != NULL:
            receiver_destroy(self.receiver)
        if self.sender != NULL:
            sender_destroy(self.sender)
        free(self.receiver)
        free(self.sender)
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)
        if self.wake_fd >= 0:
            c_close(self.wake_fd)
        pthread_mutex_destroy(&self.lock)

    # What Python calls

    def run(self):
        """Serve until `stop`; releases the GIL for all that time."""
        with nogil:
            self.loop()

    def stop(self):
        """Make `run` return."""
        self.acquire()
        self.stopping = 1
        self.release()
        self.wake()

    def add_clip(self, list frames, object keyframes, int frames_per_second, int clock_rate, bint has_picture_id):
        """Copy a clip: for each frame a list of (payload, has_clock). Returns its id; it stays until the plane goes."""
        cdef int packets = sum(len(frame) for frame in frames)
        cdef int i = 0, number = 0
        cdef uint32_t at = 0
        cdef size_t size = sum(len(payload) for frame in frames for payload, _ in frame)
        cdef bytes data
        cdef Clip *c = <Clip *>calloc(1, sizeof(Clip))
        cdef Clip **grown
        if c == NULL:
            raise MemoryError
        c.frame_count = len(frames)
        c.frames_per_second = frames_per_second
        c.clock_rate = clock_rate
        c.has_picture_id = has_picture_id
        c.first_packet = <uint32_t *>malloc((c.frame_count + 1) * sizeof(uint32_t))
        c.is_key = <uint8_t *>calloc(c.frame_count + 1, 1)
        c.offset = <uint32_t *>malloc((packets + 1) * sizeof(uint32_t))
        c.has_clock = <uint8_t *>calloc(packets + 1, 1)
        c.data = <uint8_t *>malloc(size + 1)
        if c.first_packet == NULL or c.is_key == NULL or c.offset == NULL or c.has_clock == NULL or c.data == NULL:
            free_clip(c)
            raise MemoryError
        for number in range(c.frame_count):
            c.first_packet[number] = i
            c.is_key[number] = number in keyframes
            for data, has_clock in frames[number]:
                if not 0 < len(data) <= PACKET_MAX - 12 - EXTENSIONS_MAX - 2 - TRAILER:
                    free_clip(c)
                    raise ValueError(f"payload of {len(data)} bytes")
                c.offset[i] = at
                c.has_clock[i] = has_clock
                memcpy(c.data + at, <const uint8_t *>data, len(data))
                at += len(data)
                i += 1
        c.first_packet[c.frame_count] = i
        c.offset[i] = at
        self.acquire()
        grown = <Clip **>calloc(self.clip_count + 1, sizeof(Clip *))
        if grown == NULL:
            self.release()
            free_clip(c)
            raise MemoryError
        memcpy(grown, self.clips, self.clip_count * sizeof(Clip *))
        free(self.clips)
        self.clips = grown
        grown[self.clip_count] = c
        self.clip_count += 1
        self.release()
        return self.clip_count - 1

    def add_peer(self, int fd, str host, int port, *, int channel, uintptr_t sending, uintptr_t receiving, uint32_t ssrc, int transport_cc_id):
        """Take over a connected peer; add its streams, then `start_peer`.

        Args:
            host, port: where packets go: the server, or the TURN server when `channel` is not 0.
            sending, receiving: SRTP sessions (`srtp.create_session`).
            ssrc: ours in RTCP.
            transport_cc_id: the extension whose numbers we report back, 0 for none.
        """
        cdef Peer *p = <Peer *>calloc(1, sizeof(Peer))
        cdef Peer **grown
        cdef int i
        if p == NULL:
            raise MemoryError
        p.outgoing = <Outgoing **>calloc(STREAMS_MAX, sizeof(Outgoing *))
        p.incoming = <Incoming **>calloc(STREAMS_MAX, sizeof(Incoming *))
        p.ssrcs = <uint32_t *>calloc(STREAMS_MAX, sizeof(uint32_t))
        p.rtx_ssrcs = <uint32_t *>calloc(STREAMS_MAX, sizeof(uint32_t))
        if p.outgoing == NULL or p.incoming == NULL or p.ssrcs == NULL or p.rtx_ssrcs == NULL:
            free_peer(p)
            raise MemoryError
        try:
            parse_address(&p.to, host, port)
        except ValueError:
            free_peer(p)
            raise
        p.socket.fd = fd
        p.socket.gso = True
        p.channel = channel
        p.sending = <void *>sending
        p.receiving = <void *>receiving
        p.ssrc = ssrc
        p.transport_cc_id = transport_cc_id
        arrivals_init(&p.arrivals)
        timer_init(&p.report, REPORT, p)
        timer_init(&p.feedback, FEEDBACK, p)
        enable_gro(fd)
        self.acquire()
        try:
            self.reserve_timers(2)
            for i in range(self.peer_count):
                if self.peers[i] == NULL:
                    break
            else:
                i = self.peer_count
                grown = <Peer **>calloc(2 * i + 16, sizeof(Peer *))
                if grown == NULL:
                    raise MemoryError
                memcpy(grown, self.peers, i * sizeof(Peer *))
                free(self.peers)
                self.peers = grown
                self.peer_count = 2 * i + 16
            p.id = i
            self.peers[i] = p
        except BaseException:
            self.release()
            free_peer(p)
            raise
        self.release()
        return i

    def start_peer(self, int peer):
        """Read its socket and report from now on: call once, when its streams are known."""
        cdef epoll_event event
        cdef Peer *p
        self.acquire()
        try:
            p = self.find(peer)
            event.events = EPOLLIN
            event.data.ptr = p
            if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, p.socket.fd, &event) != 0:
                raise OSError("epoll_ctl")
            # Spread over the interval, so that peers that joined together do not report together.
            timer_arm(&self.heap, &p.report, now_us() + REPORT_INTERVAL // 2 + p.ssrc % (REPORT_INTERVAL // 2))
            if p.transport_cc_id:
                timer_arm(&self.heap, &p.feedback, now_us() + FEEDBACK_INTERVAL)
        finally:
            self.release()
        self.wake()

    def add_outgoing(
        self, int peer, int clip, *, uint32_t ssrc, int payload_type, uint32_t rtx_ssrc, int rtx_payload_type,
        tuple extensions, tuple rtx_extensions, int first_seq, uint32_t timestamp, int frame, int64_t delay_us
    ):
        """Begin to send a clip `delay_us` from now, from its `frame` on (a key frame).

        Args:
            rtx_ssrc: 0 without RTX: then NACKs are answered by the same bytes again.
            extensions, rtx_extensions: (block with its head, place of the transport-wide number in it or -1).
        """
        cdef Outgoing *o
        cdef Peer *p
        self.acquire()
        try:
            p = self.find(peer)
            if not 0 <= clip < self.clip_count or not 0 <= frame < self.clips[clip].frame_count:
                raise ValueError(f"no frame {frame} of clip {clip}")
            if p.outgoing_count == STREAMS_MAX:
                raise ValueError("too many streams")
            self.reserve_timers(1)
            o = <Outgoing *>malloc(sizeof(Outgoing))
            if o == NULL:
                raise MemoryError
            outgoing_init(o)
            try:
                set_extensions(&o.extensions, extensions)
                set_extensions(&o.rtx_extensions, rtx_extensions)
            except ValueError:
                free(o)
                raise
            timer_init(&o.timer, SEND, o)
            o.peer = p
            o.clip = self.clips[clip]
            o.ssrc = ssrc
            o.payload_type = payload_type
            o.rtx_ssrc = rtx_ssrc
            o.rtx_payload_type = rtx_payload_type
            o.number = 65536 + first_seq
            o.rtx_seq = first_seq
            o.timestamp = timestamp
            o.frame = frame
            o.started = now_us() + delay_us
            p.outgoing[p.outgoing_count] = o
            p.outgoing_count += 1
            timer_arm(&self.heap, &o.timer, o.started)
        finally:
            self.release()
        self.wake()

    def add_incoming(
        self, int peer, *, uint32_t ssrc, uint32_t rtx_ssrc, int codec, int clock_rate, bint asks, bint hand_up
    ):
        """Count what arrives under `ssrc`. `codec` as in `frames.pxd`; `hand_up`: pass media to Python, too."""
        cdef Incoming *i
        cdef Peer *p
        self.acquire()
        try:
            p = self.find(peer)
            if p.incoming_count == STREAMS_MAX:
                raise ValueError("too many streams")
            self.reserve_timers(1)
            i = <Incoming *>malloc(sizeof(Incoming))
            if i == NULL:
                raise MemoryError
            timer_init(&i.timer, REPAIR, i)
            i.peer = p
            i.index = p.incoming_count
            i.ssrc = ssrc
            i.codec = codec
            i.hand_up = hand_up
            reception_init(&i.reception, codec != 0, asks, rtx_ssrc != 0, clock_rate)
            p.incoming[p.incoming_count] = i
            p.ssrcs[p.incoming_count] = ssrc
            p.rtx_ssrcs[p.incoming_count] = rtx_ssrc
            p.incoming_count += 1
        finally:
            self.release()

    def remove_peer(self, int peer):
        """Stop serving it; afterwards nothing of the caller's is used any more."""
        cdef epoll_event event
        cdef Peer *p
        cdef int i
        self.acquire()
        try:
            p = self.find(peer)
            epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, p.socket.fd, &event)
            timer_cancel(&self.heap, &p.report)
            timer_cancel(&self.heap, &p.feedback)
            for i in range(p.outgoing_count):
                timer_cancel(&self.heap, &p.outgoing[i].timer)
            for i in range(p.incoming_count):
                timer_cancel(&self.heap, &p.incoming[i].timer)
            self.timer_count -= 2 + p.outgoing_count + p.incoming_count
            self.peers[peer] = NULL
            p.closed = True
            p.next_dead = self.dead
            self.dead = p
        finally:
            self.release()
        self.wake()

    def outgoing_figures(self, int peer):
        """One dictionary per stream, in the order they were added."""
        cdef Peer *p
        cdef int i
        self.acquire()
        try:
            p = self.find(peer)
            return [outgoing_dict(p.outgoing[i]) for i in range(p.outgoing_count)]
        finally:
            self.release()

    def incoming_figures(self, int peer):
        """One dictionary per stream, in the order they were added."""
        cdef Incoming *copy = <Incoming *>malloc(sizeof(Incoming))
        cdef Peer *p
        cdef int i = 0
        if copy == NULL:
            raise MemoryError
        figures = []
        try:
            while True:
                # Copied under the lock, told without it: the thread must not be late for our sake.
                self.acquire()
                try:
                    p = self.find(peer)
                    if i == p.incoming_count:
                        return figures
                    copy[0] = p.incoming[i][0]
                finally:
                    self.release()
                figures.append(incoming_dict(copy))
                i += 1
        finally:
            free(copy)

    def peer_figures(self, int peer):
        """sent, received, unknown, refused (by SRTP), feedback_received (transport-wide): of one transport."""
        cdef Peer *p
        self.acquire()
        try:
            p = self.find(peer)
            return {
                "sent": p.sent, "received": p.received, "unknown": p.unknown, "refused": p.refused,
                "feedback_received": p.feedback_received,
            }
        finally:
            self.release()

    def silent(self, int peer):
        """How many of a peer's incoming streams have not brought a whole frame yet."""
        cdef Peer *p
        cdef int i, count = 0
        self.acquire()
        try:
            p = self.find(peer)
            for i in range(p.incoming_count):
                count += p.incoming[i].reception.frames == 0
            return count
        finally:
            self.release()

    def figures(self):
        """The plane's own: times in seconds, datagrams, what was dropped, and how late bursts left."""
        cdef int i
        self.acquire()
        try:
            peers = sum(1 for i in range(self.peer_count) if self.peers[i] != NULL)
            return {
                "seconds": (now_us() - self.started) / 1e6,
                "cpu_seconds": self.cpu_time / 1e6,
                "sent": self.sender.counters.datagrams,
                "received": self.datagrams_received,
                "dropped_sending": self.sender.counters.dropped_blocked + self.sender.counters.dropped_error,
                "upcalls_lost": self.upcalls_lost,
                "schedules_dropped": self.schedules_dropped,
                "peers": peers,
                "timers": self.timer_count,
                "lag": buckets_json(&self.lag),
            }
        finally:
            self.release()

    # Under the lock, with the GIL

    cdef void acquire(self):
        # Never waits for the GIL while it holds the lock: the thread would wait for whatever Python is doing.
        add_int(&self.wanted, 1)
        while pthread_mutex_trylock(&self.lock) != 0:
            with nogil:
                pause_us()
        add_int(&self.wanted, -1)

    cdef void release(self) noexcept:
        pthread_mutex_unlock(&self.lock)

    cdef void wake(self) noexcept:
        cdef uint64_t one = 1
        c_write(self.wake_fd, &one, sizeof(one))

    cdef Peer *find(self, int peer) except NULL:
        if not 0 <= peer < self.peer_count or self.peers[peer] == NULL:
            raise ValueError(f"no peer {peer}")
        return self.peers[peer]

    cdef int reserve_timers(self, int more) except -1:
        if not heap_reserve(&self.heap, self.timer_count + more):
            raise MemoryError
        self.timer_count += more
        return 0

    # The thread, without the GIL

    cdef void loop(self) noexcept nogil:
        cdef epoll_event events[EVENTS]
        cdef int i, ready = 0
        cdef uint64_t token
        cdef Peer *p
        pthread_mutex_lock(&self.lock)
        while not self.stopping:
            for i in range(ready):
                p = <Peer *>events[i].data.ptr
                if p == NULL:
                    c_read(self.wake_fd, &token, sizeof(token))
                elif not p.closed:
                    self.receive(p)
            self.run_due()
            sender_flush(self.sender)
            self.free_dead()
            self.cpu_time = clock_us(CLOCK_THREAD_CPUTIME_ID)
            i = self.sleep_ms()
            pthread_mutex_unlock(&self.lock)
            if get_int(&self.wanted):
                pause_us()      # a mutex is not fair
            ready = epoll_wait(self.epoll_fd, events, EVENTS, i)
            pthread_mutex_lock(&self.lock)
        pthread_mutex_unlock(&self.lock)

    cdef int sleep_ms(self) noexcept nogil:
        cdef int64_t left
        if self.heap.count == 0:
            return 1000
        left = self.heap.items[0].due - now_us()
        return 0 if left <= 0 else <int>((left + 999) // 1000) if left < 1000000 else 1000

    cdef void free_dead(self) noexcept nogil:
        cdef Peer *p
        while self.dead != NULL:
            p = self.dead
            self.dead = p.next_dead
            free_peer(p)

    cdef void run_due(self) noexcept nogil:
        cdef int64_t now = now_us()
        cdef Timer *t
        while self.heap.count and self.heap.items[0].due <= now:
            t = self.heap.items[0]
            if t.kind == SEND:
                self.send_burst(<Outgoing *>t.owner, now)
            elif t.kind == REPAIR:
                self.repair(<Incoming *>t.owner, now)
            elif t.kind == REPORT:
                self.report(<Peer *>t.owner, now)
            else:
                self.send_feedback(<Peer *>t.owner, now)

    # Sending

    cdef uint8_t *room(self, Peer *p) noexcept nogil:
        """Where a packet of at most PACKET_MAX bytes for this peer is to be written."""
        cdef uint8_t *at = sender_room(self.sender, CHANNEL_HEAD + PACKET_MAX + TRAILER)
        if at == NULL:
            sender_flush(self.sender)
            at = sender_room(self.sender, CHANNEL_HEAD + PACKET_MAX + TRAILER)
        return at + (CHANNEL_HEAD if p.channel else 0)

    cdef void commit(self, Peer *p, uint8_t *at, int size) noexcept nogil:
        if p.channel:
            write16(at - CHANNEL_HEAD, p.channel)
            write16(at - 2, <uint32_t>size)
            size += CHANNEL_HEAD
        sender_commit(self.sender, &p.socket, &p.to, <uint32_t>size, False, 0, NULL)
        p.sent += 1

    cdef void send_rtp(self, Outgoing *o, const Sent *e, bint as_rtx) noexcept nogil:
        cdef Peer *p = <Peer *>o.peer
        cdef uint8_t *at = self.room(p)
        cdef uint16_t transport_seq = e.transport_seq
        cdef int size
        if as_rtx:
            transport_seq = p.transport_seq
            p.transport_seq += 1
        size = outgoing_write(o, e, as_rtx, transport_seq, at)
        if as_rtx:
            o.rtx_seq += 1
        if self.protect(p.sending, at, &size) == 0:
            self.commit(p, at, size)

    cdef void send_rtcp(self, Peer *p, uint8_t *at, int size) noexcept nogil:
        """A compound written at `room`."""
        if self.protect_rtcp(p.sending, at, &size) == 0:
            self.commit(p, at, size)

    cdef void send_burst(self, Outgoing *o, int64_t now) noexcept nogil:
        cdef Peer *p = <Peer *>o.peer
        cdef int64_t due = o.timer.due
        cdef Sent *e = NULL
        cdef int i
        buckets_record(&self.lag, now - due)
        if now - due > BEHIND_MAX:
            o.started += now - due
            self.schedules_dropped += 1
        for i in range(BURST):
            e = outgoing_next(o, now)
            e.transport_seq = p.transport_seq
            p.transport_seq += 1
            self.send_rtp(o, e, False)
            if e.marker:
                break
        if e.marker:
            timer_arm(&self.heap, &o.timer, frame_due(o, o.frames))
        else:
            timer_arm(&self.heap, &o.timer, due + BURST_INTERVAL)

    # Receiving

    cdef void receive(self, Peer *p) noexcept nogil:
        cdef Datagram d
        cdef int i, at, size
        cdef int count = receive_batch(self.receiver, p.socket.fd)
        cdef int64_t now = now_us()
        for i in range(count):
            received(self.receiver, i, &d)
            if d.truncated:
                continue
            at = 0
            while at < d.size:
                size = d.size - at if d.size - at < d.segment_size else d.segment_size
                self.take(p, d.data + at, size, now)
                at += size

    cdef void take(self, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
        """One datagram (RFC 7983)."""
        cdef int kind = DIRECT
        self.datagrams_received += 1
        p.received += 1
        if size >= 4 and 64 <= data[0] <= 79:
            if p.channel == 0 or read16(data) != p.channel or <int>read16(data + 2) + 4 > size:
                return
            kind = RELAYED
            size = read16(data + 2)
            data += 4
        if size < 12:
            return
        if data[0] & 0xC0 == 0x80:
            if 192 <= data[1] <= 223:
                self.take_rtcp(p, data, size, now)
            else:
                self.take_rtp(p, data, size, now)
        else:
            self.hand_up(p, kind, data, size)

    cdef void hand_up(self, Peer *p, int kind, const uint8_t *data, int size) noexcept nogil:
        """To Python: eight bytes of kind and peer before the datagram."""
        cdef uint8_t message[8 + CONTROL_MAX]
        if size > CONTROL_MAX:
            return
        write32(message, <uint32_t>kind)
        write32(message + 4, <uint32_t>p.id)
        memcpy(message + 8, data, size)
        if c_write(self.upcall_fd, message, 8 + size) < 0:
            self.upcalls_lost += 1

    cdef void take_rtp(self, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
        cdef int at = 12 + 4 * (data[0] & 15), end, i, words
        cdef uint32_t ssrc
        cdef bint rtx = False
        if self.unprotect(p.receiving, data, &size) != 0:
            p.refused += 1
            return
        if at > size:
            return
        if data[0] & 0x10:
            if at + 4 > size:
                return
            words = read16(data + at + 2)
            if at + 4 + 4 * words > size:
                return
            if p.transport_cc_id:
                self.note_arrival(p, data + at, words, now)
            at += 4 + 4 * words
        end = size
        if data[0] & 0x20:
            end -= data[size - 1]
            if end < at:
                return
        ssrc = read32(data + 8)
        for i in range(p.incoming_count):
            if p.ssrcs[i] == ssrc:
                break
            if p.rtx_ssrcs[i] == ssrc:
                rtx = True
                break
        else:
            p.unknown += 1
            return
        if rtx:
            if end - at < 2:
                return      # a probe
            self.take_media(p.incoming[i], read16(data + at), data, at + 2, end, True, now)
        else:
            self.take_media(p.incoming[i], read16(data + 2), data, at, end, False, now)

    cdef void note_arrival(self, Peer *p, const uint8_t *block, int words, int64_t now) noexcept nogil:
        """The transport-wide number, from either form of extensions (RFC 8285)."""
        cdef const uint8_t *at = block + 4
        cdef const uint8_t *end = at + 4 * words
        cdef uint16_t form = read16(block)
        cdef int number, length
        while at < end:
            if at[0] == 0:
                at += 1
                continue
            if form == 0xBEDE:
                number = at[0] >> 4
                length = (at[0] & 15) + 1
                at += 1
                if number == 15:
                    return
            elif form & 0xFFF0 == 0x1000:
                if at + 2 > end:
                    return
                number = at[0]
                length = at[1]
                at += 2
            else:
                return
            if at + length > end:
                return
            if number == p.transport_cc_id and length >= 2:
                arrivals_record(&p.arrivals, read16(at), now)
                return
            at += length

    cdef void take_media(self, Incoming *i, uint16_t seq, uint8_t *data, int at, int end, bint repaired, int64_t now) noexcept nogil:
        cdef Reception *r = &i.reception
        cdef int flags = payload_flags(i.codec, data + at, end - at)
        cdef uint32_t tail = self.tail_bytes
        cdef const uint8_t *clock
        if data[1] & 0x80:
            flags |= END
        if reception_take(r, seq, read32(data + 4), flags, end - at, repaired, now) != NEW:
            return
        if not flags & EMPTY:
            clock = data + end - tail
            if <uint32_t>(end - at) >= tail and memcmp(clock, self.magic, MAGIC_BYTES) == 0:
                reception_clock(r, read_clock(clock + MAGIC_BYTES), now)
            if i.hand_up:
                self.hand_up_media(i, seq, data, at, end)
        if r.missing_count and i.timer.place < 0:
            timer_arm(&self.heap, &i.timer, now + FIRST_DELAY)
        if r.waiting and reception_wants_key(r, now):
            self.ask_key(i)

    cdef void hand_up_media(self, Incoming *i, uint16_t seq, const uint8_t *data, int at, int end) noexcept nogil:
        """As kind MEDIA: stream, seq, marker, timestamp, payload."""
        cdef uint8_t message[CONTROL_MAX]
        if end - at > CONTROL_MAX - 12:
            return
        write16(message, <uint32_t>i.index)
        write16(message + 2, seq)
        message[4] = data[1] >> 7
        memset(message + 5, 0, 3)
        memcpy(message + 8, data + 4, 4)
        memcpy(message + 12, data + at, end - at)
        self.hand_up(i.peer, MEDIA, message, 12 + end - at)

    # Repair and reports

    cdef void repair(self, Incoming *i, int64_t now) noexcept nogil:
        cdef Reception *r = &i.reception
        cdef int64_t next_at = 0
        cdef int count = reception_due(r, now, self.numbers, &next_at)
        cdef int done = 0, taken = 0, size
        cdef uint8_t *at
        while done < count:
            at = self.room(i.peer)
            size = write_receiver_report(at, i.peer.ssrc, NULL, 0)
            size += write_nack(at + size, i.peer.ssrc, i.ssrc, self.numbers + done, count - done, &taken)
            done += taken
            self.send_rtcp(i.peer, at, size)
        if r.waiting and reception_wants_key(r, now):
            self.ask_key(i)
        if next_at:
            timer_arm(&self.heap, &i.timer, next_at if next_at > now else now + 1000)
        else:
            timer_cancel(&self.heap, &i.timer)

    cdef void ask_key(self, Incoming *i) noexcept nogil:
        cdef uint8_t *at = self.room(i.peer)
        cdef int size = write_receiver_report(at, i.peer.ssrc, NULL, 0)
        size += write_pli(at + size, i.peer.ssrc, i.ssrc)
        self.send_rtcp(i.peer, at, size)

    cdef void send_feedback(self, Peer *p, int64_t now) noexcept nogil:
        cdef uint8_t *at
        cdef int size
        timer_arm(&self.heap, &p.feedback, now + FEEDBACK_INTERVAL)
        while p.incoming_count:
            at = self.room(p)
            size = arrivals_write(&p.arrivals, at, p.ssrc, p.ssrcs[0])
            if size == 0:
                return
            self.send_rtcp(p, at, size)

    cdef void report(self, Peer *p, int64_t now) noexcept nogil:
        """Once a second: sender reports, then receiver reports, and the CNAME."""
        cdef ReportBlock blocks[BLOCKS_MAX]
        cdef uint8_t *at
        cdef int i, count = 0, size = 0
        cdef Outgoing *o
        timer_arm(&self.heap, &p.report, now + REPORT_INTERVAL)
        at = self.room(p)
        for i in range(p.outgoing_count):
            o = p.outgoing[i]
            if o.packets == 0:
                continue
            if size > RTCP_MAX - 64:
                self.send_rtcp(p, at, size)
                at = self.room(p)
                size = 0
            size += write_sender_report(
                at + size, o.ssrc, wall_ntp(), o.timestamp + <uint32_t>((now - o.started) * o.clip.clock_rate // 1000000),
                <uint32_t>o.packets, <uint32_t>o.bytes,
            )
            size += write_cname(at + size, o.ssrc)
        for i in range(p.incoming_count):
            if p.incoming[i].reception.highest < 0:
                continue
            report_block(p.incoming[i], &blocks[count], now)
            count += 1
            if count == BLOCKS_MAX:
                if size:
                    self.send_rtcp(p, at, size)
                    at = self.room(p)
                size = write_receiver_report(at, p.ssrc, blocks, count)
                size += write_cname(at + size, p.ssrc)
                count = 0
            if p.incoming[i].reception.waiting and reception_wants_key(&p.incoming[i].reception, now):
                self.ask_key_later(p.incoming[i], &at, &size)
        if count:
            if size + 24 * count > RTCP_MAX - 64:
                self.send_rtcp(p, at, size)
                at = self.room(p)
                size = 0
            size += write_receiver_report(at + size, p.ssrc, blocks, count)
            size += write_cname(at + size, p.ssrc)
        if size:
            self.send_rtcp(p, at, size)

    cdef void ask_key_later(self, Incoming *i, uint8_t **at, int *size) noexcept nogil:
        """A PLI within the compound that is being written; sent before it when nothing is written yet."""
        if size[0] == 0:
            self.ask_key(i)
            at[0] = self.room(i.peer)
        elif size[0] < RTCP_MAX - 64:
            size[0] += write_pli(at[0] + size[0], i.peer.ssrc, i.ssrc)

    cdef void take_rtcp(self, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
        cdef const uint8_t *at = data
        cdef RtcpPacket packet
        cdef int entry
        if self.unprotect_rtcp(p.receiving, data, &size) != 0:
            p.refused += 1
            return
        while next_packet(&at, data + size, &packet):
            if packet.kind == RTCP_SR and packet.size >= 28:
                self.take_sender_report(p, &packet, now)
                self.take_blocks(p, packet.data + 28, (packet.size - 28) // 24)
            elif packet.kind == RTCP_RR and packet.size >= 8:
                self.take_blocks(p, packet.data + 8, (packet.size - 8) // 24)
            elif packet.kind == RTCP_RTPFB and packet.count == FMT_NACK and packet.size >= 16:
                self.answer_nack(p, &packet)
            elif packet.kind == RTCP_RTPFB and packet.count == FMT_TRANSPORT_CC:
                p.feedback_received += 1
            elif packet.kind == RTCP_PSFB and packet.count == FMT_PLI and packet.size >= 12:
                self.answer_key(p, read32(packet.data + 8))
            elif packet.kind == RTCP_PSFB and packet.count == FMT_FIR:
                entry = 12
                while entry + 8 <= packet.size:
                    self.answer_key(p, read32(packet.data + entry))
                    entry += 8

    cdef void take_sender_report(self, Peer *p, const RtcpPacket *packet, int64_t now) noexcept nogil:
        cdef uint32_t ssrc = read32(packet.data + 4)
        cdef int i
        for i in range(p.incoming_count):
            if p.ssrcs[i] == ssrc:
                p.incoming[i].reception.last_sr = read32(packet.data + 10)  # the middle of the NTP time
                p.incoming[i].reception.last_sr_at = now

    cdef Outgoing *find_outgoing(self, Peer *p, uint32_t ssrc) noexcept nogil:
        cdef int i
        for i in range(p.outgoing_count):
            if p.outgoing[i].ssrc == ssrc:
                return p.outgoing[i]
        return NULL

    cdef void take_blocks(self, Peer *p, const uint8_t *block, int count) noexcept nogil:
        cdef uint32_t wall = <uint32_t>(wall_ntp() >> 16)
        cdef uint32_t round_trip
        cdef Outgoing *o
        cdef int i, lost
        for i in range(count):
            o = self.find_outgoing(p, read32(block))
            if o != NULL:
                o.reports += 1
                lost = <int>(read32(block + 4) & 0xFFFFFF)
                o.reported_lost = lost - 0x1000000 if lost & 0x800000 else lost
                if read32(block + 16):
                    round_trip = wall - read32(block + 16) - read32(block + 20)
                    if round_trip < 60 * 65536:
                        buckets_record(&o.round_trip, <int64_t>round_trip * 1000000 // 65536)
            block += 24

    cdef void answer_nack(self, Peer *p, const RtcpPacket *packet) noexcept nogil:
        cdef Outgoing *o = self.find_outgoing(p, read32(packet.data + 8))
        cdef const uint8_t *item = packet.data + 12
        cdef const uint8_t *end = packet.data + packet.size
        cdef uint32_t mask
        cdef int64_t number
        cdef int bit
        if o == NULL:
            return
        while item + 4 <= end:
            number = nearest(o.number, <uint16_t>read16(item))
            mask = 1 | (<uint32_t>read16(item + 2) << 1)
            for bit in range(17):
                if mask & (<uint32_t>1 << bit):
                    o.nacks += 1
                    self.resend(o, number + bit)
            item += 4

    cdef void resend(self, Outgoing *o, int64_t number) noexcept nogil:
        cdef Sent *e = outgoing_find(o, number)
        if e != NULL:
            o.resent += 1
            self.send_rtp(o, e, o.rtx_ssrc != 0)

    cdef void answer_key(self, Peer *p, uint32_t ssrc) noexcept nogil:
        cdef Outgoing *o = self.find_outgoing(p, ssrc)
        if o != NULL:
            o.plis += 1
            o.key_wanted = True


cdef void report_block(Incoming *i, ReportBlock *b, int64_t now) noexcept nogil:
    """RFC 3550 A.3; loss is before repair (what came by itself), as SHLD-2 has it."""
    cdef Reception *r = &i.reception
    cdef int64_t expected = r.highest - r.first + 1
    cdef int64_t lost = expected - <int64_t>(r.packets + r.padding - r.recovered)
    cdef int64_t interval = expected - r.reported_expected
    cdef int64_t fraction = ((lost - r.reported_lost) * 256 // interval) if interval > 0 else 0
    r.reported_expected = expected
    r.reported_lost = lost
    b.ssrc = i.ssrc
    b.fraction_lost = <uint8_t>(0 if fraction < 0 else 255 if fraction > 255 else fraction)
    b.cumulative = <int>(-0x800000 if lost < -0x800000 else 0x7FFFFF if lost > 0x7FFFFF else lost)
    b.highest = <uint32_t>(r.highest - 65536)
    b.jitter = <uint32_t>r.jitter
    b.last_sr = r.last_sr
    b.delay = <uint32_t>((now - r.last_sr_at) * 65536 // 1000000) if r.last_sr else 0
    buckets_record(&r.jitters, <int64_t>(r.jitter * 1000000 / r.clock_rate))


cdef void free_clip(Clip *c) noexcept nogil:
    free(c.first_packet)
    free(c.is_key)
    free(c.offset)
    free(c.has_clock)
    free(c.data)
    free(c)


cdef void free_peer(Peer *p) noexcept nogil:
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


cdef int set_extensions(Extensions *x, tuple given) except -1:
    cdef bytes block = given[0]
    if len(block) > EXTENSIONS_MAX or len(block) % 4 or given[1] > len(block) - 2:
        raise ValueError(f"header extensions of {len(block)} bytes")
    memcpy(x.block, <const uint8_t *>block, len(block))
    x.size = len(block)
    x.transport_cc_at = given[1]
    return 0


cdef dict outgoing_dict(const Outgoing *o):
    return {
        "packets": o.packets, "bytes": o.bytes, "frames": o.frames_sent, "keyframes": o.keyframes,
        "nacks_received": o.nacks, "resent": o.resent, "plis_received": o.plis, "reports_received": o.reports,
        "reported_lost": o.reported_lost, "round_trip": buckets_json(&o.round_trip),
    }


cdef dict incoming_dict(const Incoming *i):
    cdef const Reception *r = &i.reception
    cdef int64_t still = now_us() - r.last_frame_at
    # A stream that stands still now is frozen, though no frame has ended that yet.
    cdef bint frozen = r.video and r.frames > FREEZE_FRAMES_MIN and still > freeze_limit(r)
    cdef uint64_t unasked = r.skipped
    return {
        "packets": r.packets, "bytes": r.bytes, "padding": r.padding,
        "expected": 0 if r.highest < 0 else r.highest - r.first + 1,
        "lost_before_repair": r.given_up + r.recovered + unasked, "lost_after_repair": r.given_up + unasked,
        "recovered": r.recovered, "reordered": r.reordered, "duplicates": r.duplicates,
        "nacks_sent": r.nacks, "plis_sent": r.plis, "frames": r.frames, "keyframes": r.keyframes, "broken": r.broken,
        "freezes": r.freezes + frozen, "freeze_seconds": (r.freeze_time + (still if frozen else 0)) / 1e6,
        "delay": buckets_json(&r.delay), "jitter": buckets_json(&r.jitters),
        "first_frame_at": r.first_frame_at / 1e6,
    }
