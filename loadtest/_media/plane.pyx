"""The plane as Python sees it. See the package docstring."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from loadtest._media.arrivals cimport arrivals_init
from loadtest._media.graph cimport (
    ARENA_BYTES, DIRECT, FEEDBACK, FEEDBACK_INTERVAL, MAGIC_BYTES, MEDIA, RELAYED, REPAIR, REPORT, REPORT_INTERVAL,
    SEND, STREAMS_MAX, TRAILER, Incoming, Peer, State, free_clip, free_dead, free_peer, srtp_function,
)
from loadtest._media.heap cimport heap_reserve, timer_arm, timer_cancel, timer_init
from loadtest._media.histogram cimport buckets_json
from loadtest._media.loop cimport loop
from loadtest._media.machine cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, add_int, c_close, c_write, epoll_create1,
    epoll_ctl, epoll_event, eventfd, now_us, pause_us, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_trylock, pthread_mutex_unlock,
)
from loadtest._media.reception cimport FREEZE_FRAMES_MIN, Reception, freeze_limit, reception_init
from loadtest._media.sending cimport CLOCK_BYTES, EXTENSIONS_MAX, PACKET_MAX, Clip, Extensions, Outgoing, outgoing_init
from wire._batch.udp cimport (
    Receiver, Sender, enable_gro, parse_address, receiver_destroy, receiver_init, sender_destroy, sender_init,
)

from loadtest._media import srtp

UPCALL_DIRECT, UPCALL_RELAYED, UPCALL_MEDIA = DIRECT, RELAYED, MEDIA


cdef class Plane:
    """All peers of a process and the thread that serves them. Methods may be called from any thread but the plane's own.

    Call `run` in a thread of its own; it returns after `stop`.
    """

    cdef State s

    def __cinit__(self, int upcall_fd, *, bytes magic, int tail_bytes):
        self.s.epoll_fd = -1
        self.s.wake_fd = -1
        pthread_mutex_init(&self.s.lock, NULL)
        if len(magic) != MAGIC_BYTES or tail_bytes < MAGIC_BYTES + CLOCK_BYTES:
            raise ValueError(f"a tail of {tail_bytes} bytes with {len(magic)} of magic")
        self.s.upcall_fd = upcall_fd
        self.s.receiver = <Receiver *>calloc(1, sizeof(Receiver))
        self.s.sender = <Sender *>calloc(1, sizeof(Sender))
        if self.s.receiver == NULL or self.s.sender == NULL:
            raise MemoryError
        if not receiver_init(self.s.receiver) or not sender_init(self.s.sender, ARENA_BYTES):
            raise MemoryError
        self.s.protect = <srtp_function><uintptr_t>srtp.function_address("srtp_protect")
        self.s.unprotect = <srtp_function><uintptr_t>srtp.function_address("srtp_unprotect")
        self.s.protect_rtcp = <srtp_function><uintptr_t>srtp.function_address("srtp_protect_rtcp")
        self.s.unprotect_rtcp = <srtp_function><uintptr_t>srtp.function_address("srtp_unprotect_rtcp")
        memcpy(self.s.magic, <const uint8_t *>magic, MAGIC_BYTES)
        self.s.tail_bytes = tail_bytes
        self.s.epoll_fd = epoll_create1(0)
        self.s.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.s.epoll_fd < 0 or self.s.wake_fd < 0:
            raise OSError("no descriptors left")
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = NULL
        epoll_ctl(self.s.epoll_fd, EPOLL_CTL_ADD, self.s.wake_fd, &event)
        self.s.started = now_us()

    def __dealloc__(self):
        cdef int i
        for i in range(self.s.peer_count):
            if self.s.peers[i] != NULL:
                free_peer(self.s.peers[i])
        free_dead(&self.s)
        free(self.s.peers)
        for i in range(self.s.clip_count):
            free_clip(self.s.clips[i])
        free(self.s.clips)
        free(self.s.heap.items)
        if self.s.receiver != NULL:
            receiver_destroy(self.s.receiver)
        if self.s.sender != NULL:
            sender_destroy(self.s.sender)
        free(self.s.receiver)
        free(self.s.sender)
        if self.s.epoll_fd >= 0:
            c_close(self.s.epoll_fd)
        if self.s.wake_fd >= 0:
            c_close(self.s.wake_fd)
        pthread_mutex_destroy(&self.s.lock)

    # What Python calls

    def run(self):
        """Serve until `stop`; releases the GIL for all that time."""
        with nogil:
            loop(&self.s)

    def stop(self):
        """Make `run` return."""
        self.acquire()
        self.s.stopping = 1
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
        grown = <Clip **>calloc(self.s.clip_count + 1, sizeof(Clip *))
        if grown == NULL:
            self.release()
            free_clip(c)
            raise MemoryError
        memcpy(grown, self.s.clips, self.s.clip_count * sizeof(Clip *))
        free(self.s.clips)
        self.s.clips = grown
        grown[self.s.clip_count] = c
        self.s.clip_count += 1
        self.release()
        return self.s.clip_count - 1

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
            for i in range(self.s.peer_count):
                if self.s.peers[i] == NULL:
                    break
            else:
                i = self.s.peer_count
                grown = <Peer **>calloc(2 * i + 16, sizeof(Peer *))
                if grown == NULL:
                    raise MemoryError
                memcpy(grown, self.s.peers, i * sizeof(Peer *))
                free(self.s.peers)
                self.s.peers = grown
                self.s.peer_count = 2 * i + 16
            p.id = i
            self.s.peers[i] = p
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
            if epoll_ctl(self.s.epoll_fd, EPOLL_CTL_ADD, p.socket.fd, &event) != 0:
                raise OSError("epoll_ctl")
            # Spread over the interval, so that peers that joined together do not report together.
            timer_arm(&self.s.heap, &p.report, now_us() + REPORT_INTERVAL // 2 + p.ssrc % (REPORT_INTERVAL // 2))
            if p.transport_cc_id:
                timer_arm(&self.s.heap, &p.feedback, now_us() + FEEDBACK_INTERVAL)
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
            if not 0 <= clip < self.s.clip_count or not 0 <= frame < self.s.clips[clip].frame_count:
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
            o.clip = self.s.clips[clip]
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
            timer_arm(&self.s.heap, &o.timer, o.started)
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
            epoll_ctl(self.s.epoll_fd, EPOLL_CTL_DEL, p.socket.fd, &event)
            timer_cancel(&self.s.heap, &p.report)
            timer_cancel(&self.s.heap, &p.feedback)
            for i in range(p.outgoing_count):
                timer_cancel(&self.s.heap, &p.outgoing[i].timer)
            for i in range(p.incoming_count):
                timer_cancel(&self.s.heap, &p.incoming[i].timer)
            self.s.timer_count -= 2 + p.outgoing_count + p.incoming_count
            self.s.peers[peer] = NULL
            p.closed = True
            p.next_dead = self.s.dead
            self.s.dead = p
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
            peers = sum(1 for i in range(self.s.peer_count) if self.s.peers[i] != NULL)
            return {
                "seconds": (now_us() - self.s.started) / 1e6,
                "cpu_seconds": self.s.cpu_time / 1e6,
                "sent": self.s.sender.counters.datagrams,
                "received": self.s.datagrams_received,
                "dropped_sending": self.s.sender.counters.dropped_blocked + self.s.sender.counters.dropped_error,
                "upcalls_lost": self.s.upcalls_lost,
                "schedules_dropped": self.s.schedules_dropped,
                "peers": peers,
                "timers": self.s.timer_count,
                "lag": buckets_json(&self.s.lag),
            }
        finally:
            self.release()

    # Under the lock, with the GIL

    cdef void acquire(self):
        # Never waits for the GIL while it holds the lock: the thread would wait for whatever Python is doing.
        add_int(&self.s.wanted, 1)
        while pthread_mutex_trylock(&self.s.lock) != 0:
            with nogil:
                pause_us()
        add_int(&self.s.wanted, -1)

    cdef void release(self) noexcept:
        pthread_mutex_unlock(&self.s.lock)

    cdef void wake(self) noexcept:
        cdef uint64_t one = 1
        c_write(self.s.wake_fd, &one, sizeof(one))

    cdef Peer *find(self, int peer) except NULL:
        if not 0 <= peer < self.s.peer_count or self.s.peers[peer] == NULL:
            raise ValueError(f"no peer {peer}")
        return self.s.peers[peer]

    cdef int reserve_timers(self, int more) except -1:
        if not heap_reserve(&self.s.heap, self.s.timer_count + more):
            raise MemoryError
        self.s.timer_count += more
        return 0


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
