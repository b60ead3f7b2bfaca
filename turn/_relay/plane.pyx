"""Relay threads: sockets in, decisions of `table.pxd`, batches out (RFC 8656 §11, §12). No GIL from start to join.

One round of a thread: `epoll_wait` → take the shard's lock → for each ready socket `recvmmsg` → decide per datagram →
write it into the send arena → `sendmmsg` with trains → release the lock. Commands run between two rounds. What is not
data goes up to Python through a bounded queue and an eventfd; what goes to a TCP or TLS client waits in that client's
bounded buffer until Python fetches it.

Peers in this process: with an exchange, what goes to an address that the other side bound is put into an inbox there,
and what comes from there is decided as if it had arrived at the relay's socket. Nothing else differs: permissions,
limits, accounts and drops are those of every peer.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EMSGSIZE, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from turn._relay.packet cimport be16, put16
from turn._relay.table cimport (
    CLIENT_QUEUE_FULL, CONTROL_QUEUE_FULL, DROP, IGNORED, NO_ALLOCATION, STREAM, TO_CLIENT, TO_CONTROL, TO_PEER, TOO_BIG, TRUNCATED,
    Client, Outcome, Relay, RelayTable, Shard, Worker, atomic_load, client_link, decide_client, decide_peer,
    relay_at, pthread_mutex_lock, pthread_mutex_unlock,
)
from wire._batch.exchange cimport End, Side, find_address
from wire._batch.gather cimport Gather, gather_init, gather_sleep, gather_wait, nanosleep, timespec
from wire._batch.inbox cimport (
    SLOT_BYTES, Inbox, Slot, inbox_doze, inbox_heard, inbox_peek, inbox_release, inbox_rise,
)
from wire._batch.udp cimport (
    AF_INET, AF_INET6, BATCH, MSG_DONTWAIT, Address, Datagram, Receiver, Sender, Socket, enable_gro, format_address,
    parse_address, receive_batch, received, receiver_destroy, receiver_init, sender_commit, sender_destroy, sender_flush,
    sender_init, sender_room, sendto, setsockopt, sockaddr,
)

cdef extern from "time.h" nogil:
    int clock_gettime(int clock, timespec *out) noexcept
    enum: CLOCK_MONOTONIC

cdef extern from "unistd.h" nogil:
    int close(int fd) noexcept
    ssize_t read(int fd, void *out, size_t size) noexcept
    ssize_t write(int fd, const void *data, size_t size) noexcept

cdef extern from "sys/socket.h" nogil:
    int c_socket "socket"(int family, int kind, int protocol) noexcept
    int c_bind "bind"(int fd, const sockaddr *address, unsigned int size) noexcept
    enum: SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_RCVBUF, SO_SNDBUF

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_IP, IPPROTO_IPV6, IPV6_V6ONLY, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int initial, int flags) noexcept
    enum: EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) noexcept
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event) noexcept
    int epoll_wait(int epfd, epoll_event *events, int maximum, int timeout) noexcept
    enum: EPOLLIN, EPOLL_CTL_ADD, EPOLL_CLOEXEC

cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set) noexcept
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) noexcept
    enum: SIG_SETMASK

cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *) noexcept nogil, void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept

cdef enum:
    EVENTS = 64
    UPCALLS = 128               # control messages waiting for Python, per thread
    UPCALL_SIZE = 2048          # no control message comes near
    RECEIVES_PER_EVENT = 4      # fairness between sockets of one round
    INBOX_BATCH = 256           # as many as a socket may have of one
    ARENA_BYTES = 512 * 1024
    LISTENER_BUFFER_BYTES = 4 * 1024 * 1024
    RECEIVE_MESSAGES = 64       # handed to Python per call
    GATHER_US_MAX = 1000
    OUT_KEEP_BYTES = 16 * 1024  # a stream client's buffer above this is freed once empty

cdef uint64_t LISTENER_MARK = <uint64_t>1 << 63
cdef uint64_t WAKE_MARK = <uint64_t>1 << 62
cdef uint64_t INBOX_MARK = WAKE_MARK | 1

cdef struct Upcall:
    Address source
    uint32_t listener
    uint32_t size
    uint8_t data[UPCALL_SIZE]

cdef struct Engine:
    Worker *worker
    Relay **relays              # the table's, with its generations
    uint32_t *generations
    Socket *listeners
    int listener_count
    int epoll
    int wake
    int notify                  # the plane's eventfd towards Python
    int stop
    uint32_t stream_queue_max
    pthread_t thread
    bint started
    Receiver *receiver
    Sender sender
    Upcall *upcalls             # ring, under the shard's lock
    uint32_t upcall_head
    uint32_t upcall_count
    bint told                   # Python has something to fetch
    Inbox *inbox                # from another plane of this process, or NULL
    Side *far                   # that plane
    uint64_t rounds
    uint64_t received
    uint64_t in_memory          # datagrams from the inbox
    Gather gather
    int64_t gather_us           # its longest wait
    int64_t receipts            # receive calls' messages and the inbox's datagrams, since the last wait
    uint64_t gathered           # rounds that waited


cdef inline double monotonic() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef void send_alone(Engine *e, Socket *socket, const Address *to, const uint8_t *data, int size, bint dont_fragment) noexcept nogil:
    """An empty datagram, which a train cannot carry, or one with DF (D2, D3). Keeps the order."""
    cdef int on = IP_PMTUDISC_DO, off = IP_PMTUDISC_DONT
    sender_flush(&e.sender)
    if dont_fragment:
        setsockopt(socket.fd, IPPROTO_IP, IP_MTU_DISCOVER, &on, sizeof(int))
    e.sender.counters.calls += 1
    if sendto(socket.fd, data, size, MSG_DONTWAIT, <const sockaddr *>to.raw, to.length) >= 0:
        e.sender.counters.datagrams += 1
        e.sender.counters.bytes += size
    elif errno == EMSGSIZE:
        e.worker.shard.counters[<int>TOO_BIG] += 1
    elif errno == EAGAIN:
        e.sender.counters.dropped_blocked += 1
    else:
        e.sender.counters.dropped_error += 1
    if dont_fragment:
        setsockopt(socket.fd, IPPROTO_IP, IP_MTU_DISCOVER, &off, sizeof(int))


cdef void send_batched(Engine *e, Socket *socket, const Address *to, const uint8_t *data, int size) noexcept nogil:
    cdef uint8_t *room = sender_room(&e.sender, size)
    if room == NULL:
        sender_flush(&e.sender)
        room = sender_room(&e.sender, size)
    memcpy(room, data, size)
    sender_commit(&e.sender, socket, to, size, False, 0, NULL)


cdef void queue_stream(Engine *e, Client *client, const Outcome *o) noexcept nogil:
    """Whole messages or none (T4). The buffer grows up to the limit and is Python's to empty."""
    cdef uint32_t need = o.head_size + o.payload_size + o.padding, capacity
    cdef void *grown
    cdef uint8_t *at
    if client.out_size + need > e.stream_queue_max:
        e.worker.shard.counters[<int>CLIENT_QUEUE_FULL] += 1
        return
    if client.out_size + need > client.out_capacity:
        capacity = client.out_capacity if client.out_capacity else 4096
        while capacity < client.out_size + need:
            capacity *= 2
        grown = realloc(client.out, capacity)
        if grown == NULL:
            e.worker.shard.counters[<int>CLIENT_QUEUE_FULL] += 1
            return
        client.out = <uint8_t *>grown
        client.out_capacity = capacity
    at = client.out + client.out_size
    memcpy(at, o.head, o.head_size)
    if o.payload_size:
        memcpy(at + o.head_size, o.payload, o.payload_size)
    memset(at + o.head_size + o.payload_size, 0, o.padding)
    client.out_size += need
    e.receipts += 1  # counts twice: it wakes Python as well
    mark_dirty(e, client)


cdef inline void mark_dirty(Engine *e, Client *client) noexcept nogil:
    if not client.dirty and not client.paused:
        client.dirty = True
        client.next_dirty = e.worker.shard.dirty
        e.worker.shard.dirty = client
        e.told = False


cdef void queue_upcall(Engine *e, uint32_t listener, const Address *source, const Outcome *o) noexcept nogil:
    cdef Upcall *u
    if e.upcall_count == UPCALLS or o.payload_size > UPCALL_SIZE:
        e.worker.shard.counters[<int>CONTROL_QUEUE_FULL] += 1
        return
    u = &e.upcalls[(e.upcall_head + e.upcall_count) % UPCALLS]
    e.upcall_count += 1
    u.source = source[0]
    u.listener = listener
    u.size = o.payload_size
    memcpy(u.data, o.payload, o.payload_size)
    e.told = False


cdef void carry_out(Engine *e, uint32_t listener, const Address *source, const Outcome *o) noexcept nogil:
    """Do what was decided."""
    cdef Client *client
    cdef uint8_t tail[4]
    if o.kind == TO_PEER:
        if e.far != NULL and find_address(e.far, &o.peer) >= 0:
            send_near(e, o)
        elif o.payload_size == 0 or o.dont_fragment:
            send_alone(e, &o.relay.socket, &o.peer, o.payload, o.payload_size, o.dont_fragment)
        else:
            send_batched(e, &o.relay.socket, &o.peer, o.payload, o.payload_size)
    elif o.kind == TO_CLIENT and o.relay == NULL:
        send_batched(e, &e.listeners[listener], source, o.head, o.head_size)
    elif o.kind == TO_CLIENT:
        client = o.relay.client
        if client.listener == STREAM:
            queue_stream(e, client, o)
        else:
            send_to_client(e, client, o)
    elif o.kind == TO_CONTROL:
        queue_upcall(e, listener, source, o)


cdef void send_to_client(Engine *e, Client *client, const Outcome *o) noexcept nogil:
    cdef int size = o.head_size + o.payload_size + o.padding
    cdef uint8_t *room = sender_room(&e.sender, size)
    if room == NULL:
        sender_flush(&e.sender)
        room = sender_room(&e.sender, size)
    memcpy(room, o.head, o.head_size)
    if o.payload_size:
        memcpy(room + o.head_size, o.payload, o.payload_size)
    memset(room + o.head_size + o.payload_size, 0, o.padding)
    sender_commit(&e.sender, &e.listeners[client.listener], &client.address, size, False, 0, NULL)


cdef void send_near(Engine *e, const Outcome *o) noexcept nogil:
    """To a peer in this process. It takes no more than a slot holds, and nothing empty; DF means nothing in memory."""
    if o.payload_size > SLOT_BYTES:
        e.worker.shard.counters[<int>TOO_BIG] += 1
    elif o.payload_size == 0:
        e.worker.shard.counters[<int>IGNORED] += 1
    else:
        send_batched(e, &o.relay.near, &o.peer, o.payload, o.payload_size)


cdef void drain_inbox(Engine *e, double now) noexcept nogil:
    """What peers in this process sent to relays of this thread, at most a batch."""
    cdef Shard *s = &e.worker.shard
    cdef Relay *relay
    cdef Slot *slot
    cdef Outcome o
    cdef int i
    o.dont_fragment = False
    for i in range(INBOX_BATCH):
        slot = inbox_peek(e.inbox, 0)
        if slot == NULL:
            break
        e.in_memory += 1
        e.receipts += 1
        relay = relay_at(s, &slot.to)
        if relay == NULL:
            s.counters[<int>NO_ALLOCATION] += 1
        else:
            decide_peer(s, relay, &slot.source, slot.data, slot.size, now, &o)
            if o.kind != DROP:
                carry_out(e, 0, &slot.source, &o)
        inbox_release(e.inbox, 1)


cdef void drain_socket(Engine *e, int fd, int listener, Relay *relay, double now) noexcept nogil:
    """Everything that waits on one socket, up to a fair share. `relay` NULL: a listener."""
    cdef Shard *s = &e.worker.shard
    cdef Datagram d
    cdef Outcome o
    cdef int i, n, at, size, turns
    o.dont_fragment = False
    for turns in range(RECEIVES_PER_EVENT):
        n = receive_batch(e.receiver, fd)
        e.received += n
        e.receipts += n
        for i in range(n):
            received(e.receiver, i, &d)
            if d.truncated:
                s.counters[<int>TRUNCATED] += 1  # D7
                continue
            at = 0
            while True:
                size = d.segment_size if d.size - at > d.segment_size else d.size - at
                if relay == NULL:
                    decide_client(s, listener, d.source, d.data + at, size, now, &o)
                else:
                    decide_peer(s, relay, d.source, d.data + at, size, now, &o)
                if o.kind != DROP:
                    carry_out(e, listener, d.source, &o)
                at += size
                if at >= d.size:
                    break
        if n < BATCH:
            break


cdef void *run(void *argument) noexcept nogil:
    cdef Engine *e = <Engine *>argument
    cdef epoll_event events[EVENTS]
    cdef sigset_t signals
    cdef timespec pause
    cdef uint64_t mark, counter
    cdef uint64_t slot
    cdef int i, n, timeout
    cdef bint notify
    cdef double now
    cdef int64_t wait
    gather_init(&e.gather, e.gather_us)
    sigfillset(&signals)
    pthread_sigmask(SIG_SETMASK, &signals, NULL)
    pause.tv_sec = 0
    pause.tv_nsec = 20000
    while not atomic_load(&e.stop):
        wait = gather_wait(&e.gather, e.receipts, <int64_t>(monotonic() * 1e6))
        e.receipts = n = 0
        if wait:
            gather_sleep(wait)
            e.gathered += 1
            n = epoll_wait(e.epoll, events, EVENTS, 0)
        if n == 0:
            timeout = 0 if e.inbox != NULL and not inbox_doze(e.inbox) else -1
            n = epoll_wait(e.epoll, events, EVENTS, timeout)
            if e.inbox != NULL:
                inbox_rise(e.inbox)
        pthread_mutex_lock(&e.worker.lock)
        now = monotonic()
        e.rounds += 1
        for i in range(n):
            mark = events[i].data.u64
            if mark == WAKE_MARK:
                read(e.wake, &counter, 8)
            elif mark == INBOX_MARK:
                inbox_heard(e.inbox)
            elif mark & LISTENER_MARK:
                drain_socket(e, e.listeners[mark & 0xFFFF].fd, mark & 0xFFFF, NULL, now)
            else:
                # The relay may have been closed since the event: its generation has moved on then.
                slot = mark & 0xFFFFFF
                if e.generations[slot] == mark >> 24 and e.relays[slot] != NULL:
                    drain_socket(e, e.relays[slot].socket.fd, 0, e.relays[slot], now)
        if e.inbox != NULL:
            drain_inbox(e, now)
        sender_flush(&e.sender)
        notify = not e.told
        e.told = True
        pthread_mutex_unlock(&e.worker.lock)
        if notify:
            counter = 1
            write(e.notify, &counter, 8)
        while atomic_load(&e.worker.waiting):
            nanosleep(&pause, NULL)
    return NULL


@cython.no_gc  # no cycle leads through it; the collector would clear `exchange` before the threads have ended
cdef class Plane(RelayTable):
    cdef Engine *engines
    cdef int notify
    cdef uint32_t stream_queue_max
    cdef int gather_us
    cdef bint running
    cdef End exchange           # with another plane, or None; outlives the threads
    cdef bint joined            # and it has our inboxes open

    def __cinit__(
        self, *, int relays_max, int workers=1, uint32_t stream_queue_bytes=262144, int gather_us=0, End exchange=None,
        **_,
    ):
        cdef int i
        if not 0 <= gather_us <= GATHER_US_MAX:
            raise ValueError(f"gather_us {gather_us}")
        self.gather_us = gather_us
        self.notify = -1
        if exchange is not None and exchange.threads != workers:
            raise ValueError(f"an exchange for {exchange.threads} threads")
        self.exchange = exchange
        self.stream_queue_max = stream_queue_bytes
        self.engines = <Engine *>calloc(workers, sizeof(Engine))
        if self.engines == NULL:
            raise MemoryError
        for i in range(workers):
            self.engines[i].epoll = self.engines[i].wake = -1
            self.engines[i].told = True
        self.notify = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.notify < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.engines != NULL:
            self.stop_threads()
            free(self.engines)

    def fileno(self):
        return self.notify

    def start(self, listeners):
        """`listeners`: per worker, its socket descriptor of each listen address."""
        cdef int i, k, fd
        cdef Engine *e
        if self.running:
            raise RuntimeError("started already")
        if len(listeners) != self.worker_count:
            raise ValueError("a list of listeners per worker")
        self.running = True
        if self.exchange is not None:
            self.exchange.attach()
            self.joined = True
        for i in range(self.worker_count):
            e = &self.engines[i]
            e.worker = &self.workers[i]
            e.relays = self.relays
            e.generations = self.generations
            e.notify = self.notify
            e.stream_queue_max = self.stream_queue_max
            e.gather_us = self.gather_us
            e.listener_count = <int>len(listeners[i])
            e.listeners = <Socket *>calloc(e.listener_count + 1, sizeof(Socket))
            e.receiver = <Receiver *>calloc(1, sizeof(Receiver))
            e.upcalls = <Upcall *>calloc(UPCALLS, sizeof(Upcall))
            if e.listeners == NULL or e.receiver == NULL or e.upcalls == NULL:
                raise MemoryError
            if not receiver_init(e.receiver) or not sender_init(&e.sender, ARENA_BYTES):
                raise MemoryError
            e.epoll = epoll_create1(EPOLL_CLOEXEC)
            e.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            if e.epoll < 0 or e.wake < 0:
                raise OSError(errno, os.strerror(errno))
            self.watch(e, e.wake, WAKE_MARK)
            if self.exchange is not None:
                e.inbox = &self.exchange.own.inboxes[i]
                e.far = self.exchange.far
                self.watch(e, e.inbox.wake_fd, INBOX_MARK)
            for k in range(e.listener_count):
                fd = listeners[i][k]
                grow_buffers(fd)
                enable_gro(fd)
                e.listeners[k].fd = fd
                e.listeners[k].gso = True
                self.watch(e, fd, LISTENER_MARK | <uint64_t>k)
            if pthread_create(&e.thread, NULL, run, e) != 0:
                raise OSError(errno, "a relay thread cannot be started")
            e.started = True

    def close(self):
        self.stop_threads()

    cdef void stop_threads(self):
        cdef int i
        cdef uint64_t one = 1
        cdef Engine *e
        for i in range(self.capacity):
            if self.relays[i] != NULL and self.relays[i].socket.fd >= 0:
                self.close_relay(self.relays[i].handle)
        for i in range(self.worker_count):
            e = &self.engines[i]
            if e.started:
                e.stop = 1
                write(e.wake, &one, 8)
                with nogil:
                    pthread_join(e.thread, NULL)
                e.started = False
            e.inbox = NULL
            if e.epoll >= 0:
                close(e.epoll)
            if e.wake >= 0:
                close(e.wake)
            e.epoll = e.wake = -1
            if e.receiver != NULL:
                receiver_destroy(e.receiver)
                free(e.receiver)
                e.receiver = NULL
                sender_destroy(&e.sender)
            free(e.listeners)
            free(e.upcalls)
            e.listeners = NULL
            e.upcalls = NULL
            e.upcall_count = 0
        if self.joined:
            self.exchange.detach()
            self.joined = False
        if self.notify >= 0:
            close(self.notify)
            self.notify = -1

    cdef int watch(self, Engine *e, int fd, uint64_t mark) except -1:
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = mark
        if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    def open_relay(self, str host, int port):
        cdef Address local
        cdef int fd, off = IP_PMTUDISC_DONT, on = 1
        cdef Relay *relay
        parse_address(&local, host, port)
        if self.free_count == 0:
            return None
        fd = c_socket(AF_INET if local.length == 16 else AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            return None
        if local.length == 16:
            setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &off, sizeof(int))
        else:
            off = IPV6_PMTUDISC_DONT
            setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(int))
            setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &off, sizeof(int))
        if c_bind(fd, <const sockaddr *>local.raw, local.length) != 0:
            close(fd)
            return None
        enable_gro(fd)
        relay = self.new_relay(&local)
        relay.socket.fd = fd
        relay.socket.gso = True
        return relay.handle

    def start_relay(self, uint64_t handle, int worker, uint32_t listener, str host, int port, uint64_t user):
        cdef Relay *relay = self.find(handle)
        if self.exchange is not None:
            relay.near.fd = -1
            relay.near.local = relay.local
            relay.near.thread = worker
            # Always to the same thread, so that packets keep their order and the peer's owner is where they come.
            relay.near.inbox = &self.exchange.far.inboxes[(handle & 0xFFFFFF) % <uint64_t>self.exchange.far.threads]
        RelayTable.start_relay(self, handle, worker, listener, host, port, user)
        self.watch(&self.engines[worker], relay.socket.fd, relay.handle)

    def close_relay(self, uint64_t handle):
        cdef int fd = self.find(handle).socket.fd
        usage = RelayTable.close_relay(self, handle)
        if fd >= 0:
            close(fd)
        return usage

    def receive(self):
        """Control messages: (worker, listener, host, port, data), at most 64 per worker; call again until empty."""
        cdef int i
        cdef Upcall *u
        cdef Engine *e
        cdef uint64_t counter
        read(self.notify, &counter, 8)
        out = []
        for i in range(self.worker_count):
            e = &self.engines[i]
            with nogil:
                self.lock(i)
            for _ in range(<int>min(e.upcall_count, <uint32_t>RECEIVE_MESSAGES)):
                u = &e.upcalls[e.upcall_head]
                out.append((i, u.listener, *format_address(&u.source), PyBytes_FromStringAndSize(<char *>u.data, u.size)))
                e.upcall_head = (e.upcall_head + 1) % UPCALLS
                e.upcall_count -= 1
            self.unlock(i)
        return out

    def send_to_client(self, int worker, uint32_t listener, str host, int port, bytes data):
        """An answer to a UDP client, at once, from the socket that was asked."""
        cdef Address to
        cdef Engine *e = &self.engines[worker]
        parse_address(&to, host, port)
        if not 0 <= worker < self.worker_count or listener >= <uint32_t>e.listener_count:
            raise ValueError("no such listener")
        sendto(e.listeners[listener].fd, PyBytes_AS_STRING(data), len(data), MSG_DONTWAIT, <const sockaddr *>to.raw, to.length)

    # Stream clients. Their key is a number of ours in place of an address.

    def start_stream_relay(self, uint64_t handle, int worker, uint32_t connection, uint64_t user):
        """Let the relay serve a TCP or TLS connection; data for it is fetched with `take_output`."""
        cdef Relay *relay = self.find(handle)
        self.start_relay(handle, worker, STREAM, *stream_key(connection), user)

    def receive_stream(self, int worker, uint32_t connection, list messages):
        """Whole messages from a connection, padding included. Returns those that are control messages."""
        cdef Engine *e = &self.engines[worker]
        cdef Shard *s = &self.workers[worker].shard
        cdef Address source
        cdef Outcome o
        cdef bytes message
        cdef double now = monotonic()
        control = []
        stream_address(&source, connection)
        with nogil:
            self.lock(worker)
        try:
            for message in messages:
                decide_client(s, STREAM, &source, <const uint8_t *>PyBytes_AS_STRING(message), <int>len(message), now, &o)
                if o.kind == TO_CONTROL:
                    control.append(message)
                elif o.kind == TO_PEER:
                    carry_out(e, STREAM, &source, &o)
            with nogil:
                sender_flush(&e.sender)
        finally:
            self.unlock(worker)
        return control

    def take_output(self):
        """(connection, whole messages) of every stream client that has something and is not paused."""
        cdef int i
        cdef Shard *s
        cdef Client *client
        out = []
        for i in range(self.worker_count):
            s = &self.workers[i].shard
            with nogil:
                self.lock(i)
            while s.dirty != NULL:
                client = s.dirty
                s.dirty = client.next_dirty
                client.dirty = False
                out.append((stream_number(&client.address), PyBytes_FromStringAndSize(<char *>client.out, client.out_size)))
                client.out_size = 0
                if client.out_capacity > OUT_KEEP_BYTES:
                    free(client.out)
                    client.out = NULL
                    client.out_capacity = 0
            self.unlock(i)
        return out

    def pause_stream(self, int worker, uint32_t connection, bint paused):
        """While paused, messages wait in the client's buffer and are dropped beyond its limit (T4)."""
        cdef Address key
        cdef Client *client
        cdef uint64_t one = 1
        stream_address(&key, connection)
        with nogil:
            self.lock(worker)
        client = client_link(&self.workers[worker].shard, STREAM, &key)[0]
        if client != NULL:
            client.paused = paused
            if not paused and client.out_size:
                mark_dirty(&self.engines[worker], client)
                write(self.notify, &one, 8)
        self.unlock(worker)

    def counters(self):
        """Drops by reason, and what the threads did."""
        cdef int i
        cdef Engine *e
        found = RelayTable.counters(self)
        sums = {"rounds": 0, "gathered": 0, "datagrams_received": 0, "send_calls": 0, "datagrams_sent": 0, "bytes_sent": 0, "trains": 0,
                "dropped_blocked": 0, "dropped_error": 0, "in_memory_received": 0, "in_memory_sent": 0,
                "dropped_inbox_full": 0, "dropped_inbox_closed": 0}
        for i in range(self.worker_count):
            e = &self.engines[i]
            sums["rounds"] += e.rounds
            sums["gathered"] += e.gathered
            sums["datagrams_received"] += e.received
            sums["send_calls"] += e.sender.counters.calls
            sums["datagrams_sent"] += e.sender.counters.datagrams
            sums["bytes_sent"] += e.sender.counters.bytes
            sums["trains"] += e.sender.counters.trains
            sums["dropped_blocked"] += e.sender.counters.dropped_blocked
            sums["dropped_error"] += e.sender.counters.dropped_error
            sums["in_memory_received"] += e.in_memory
            sums["in_memory_sent"] += e.sender.counters.in_memory
            sums["dropped_inbox_full"] += e.sender.counters.dropped_inbox_full
            sums["dropped_inbox_closed"] += e.sender.counters.dropped_inbox_closed
        return {**found, **sums}


cdef tuple stream_key(uint32_t connection):
    return f"0.0.{connection >> 24}.{connection >> 16 & 255}", connection & 0xFFFF


cdef void stream_address(Address *out, uint32_t connection) noexcept:
    """`stream_key` parsed."""
    memset(out, 0, sizeof(Address))
    (<uint16_t *>out.raw)[0] = AF_INET
    put16(out.raw + 2, connection & 0xFFFF)
    put16(out.raw + 6, connection >> 16)
    out.length = 16


cdef uint32_t stream_number(const Address *key) noexcept:
    return (<uint32_t>be16(key.raw + 6) << 16) | be16(key.raw + 2)


cdef void grow_buffers(int fd) noexcept:
    cdef int size = LISTENER_BUFFER_BYTES
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(int))
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(int))
