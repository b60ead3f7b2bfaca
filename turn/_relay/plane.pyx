"""The relay plane: `RelayTable` with sockets and threads (`engine.pxd`). Commands of Python, between two rounds."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from turn._relay.decide cimport decide_client
from turn._relay.engine cimport (
    EPOLLET, EPOLLIN, EPOLLRDHUP, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, INBOX_MARK, LISTENER_MARK, STREAM_MARK,
    STREAM_READ_BYTES, UPCALLS, WAKE_MARK, Engine, Upcall, carry_out, epoll_create1, epoll_ctl, epoll_event,
    mark_dirty, monotonic, pthread_t, read, run, write, write_stream,
)
from turn._relay.stream cimport Buffer, Stream, Tls, append, consume, waiting
from turn._relay.table cimport (
    STREAM, TO_CONTROL, TO_PEER, Client, Outcome, Relay, RelayTable, Shard, forget_if_idle, stream_address,
    stream_client,
)
from turn._relay.tls cimport TlsFunctions, tls_transfer
from wire._batch.exchange cimport End
from wire._batch.udp cimport (
    AF_INET, AF_INET6, MSG_DONTWAIT, Address, Receiver, Socket, enable_gro, format_address, parse_address,
    receiver_destroy, receiver_init, sender_destroy, sender_flush, sender_init, sendto, setsockopt, sockaddr,
)

cdef extern from "sys/socket.h" nogil:
    int c_socket "socket"(int family, int kind, int protocol) noexcept
    int c_bind "bind"(int fd, const sockaddr *address, unsigned int size) noexcept
    enum: SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_RCVBUF, SO_SNDBUF

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IPPROTO_IPV6, IPV6_V6ONLY, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int initial, int flags) noexcept
    enum: EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "unistd.h" nogil:
    int close(int fd) noexcept

cdef extern from "pthread.h" nogil:
    int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *) noexcept nogil, void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept

cdef enum:
    ARENA_BYTES = 512 * 1024
    LISTENER_BUFFER_BYTES = 4 * 1024 * 1024
    RECEIVE_MESSAGES = 64       # handed to Python per call
    GATHER_US_MAX = 1000


from turn.tls import function_address

cdef TlsFunctions openssl
openssl.read = <tls_transfer><uintptr_t>function_address("SSL_read")
openssl.write = <tls_transfer><uintptr_t>function_address("SSL_write")
openssl.take = <tls_transfer><uintptr_t>function_address("BIO_read")
openssl.put = <tls_transfer><uintptr_t>function_address("BIO_write")
openssl.get_error = <int (*)(void *, int) noexcept nogil><uintptr_t>function_address("SSL_get_error")
openssl.clear_errors = <void (*)() noexcept nogil><uintptr_t>function_address("ERR_clear_error")


@cython.no_gc  # no cycle leads through it; the collector would clear `exchange` before the threads have ended
cdef class Plane(RelayTable):
    cdef Engine *engines
    cdef int notify
    cdef uint32_t stream_queue_max
    cdef int gather_us
    cdef bint record_per_message
    cdef bint running
    cdef End exchange           # with another plane, or None; outlives the threads
    cdef bint joined            # and it has our inboxes open
    cdef dict lent              # TLS sessions, by worker and connection: kept while a thread uses them

    def __cinit__(
        self, *, int relays_max, int workers=1, uint32_t stream_queue_bytes=262144, int gather_us=0,
        bint tls_record_per_message=False, End exchange=None, **_,
    ):
        cdef int i
        if not 0 <= gather_us <= GATHER_US_MAX:
            raise ValueError(f"gather_us {gather_us}")
        self.gather_us = gather_us
        self.notify = -1
        if exchange is not None and exchange.threads != workers:
            raise ValueError(f"an exchange for {exchange.threads} threads")
        self.exchange = exchange
        self.lent = {}
        self.stream_queue_max = stream_queue_bytes
        self.record_per_message = tls_record_per_message
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
            e.openssl = openssl
            e.record_per_message = self.record_per_message
            e.gather_us = self.gather_us
            e.listener_count = <int>len(listeners[i])
            e.listeners = <Socket *>calloc(e.listener_count + 1, sizeof(Socket))
            e.receiver = <Receiver *>calloc(1, sizeof(Receiver))
            e.upcalls = <Upcall *>calloc(UPCALLS, sizeof(Upcall))
            e.scratch = <uint8_t *>malloc(STREAM_READ_BYTES)
            if e.listeners == NULL or e.receiver == NULL or e.upcalls == NULL or e.scratch == NULL:
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
                self.watch(e, fd, LISTENER_MARK | <uint64_t>k, EPOLLIN | EPOLLET)
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
            free(e.scratch)
            e.listeners = NULL
            e.upcalls = NULL
            e.scratch = NULL
            e.upcall_count = 0
        if self.joined:
            self.exchange.detach()
            self.joined = False
        if self.notify >= 0:
            close(self.notify)
            self.notify = -1

    cdef int watch(self, Engine *e, int fd, uint64_t mark, uint32_t events=EPOLLIN) except -1:
        cdef epoll_event event
        event.events = events
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
        self.watch(&self.engines[worker], relay.socket.fd, relay.handle, EPOLLIN | EPOLLET)

    def close_relay(self, uint64_t handle):
        cdef int fd = self.find(handle).socket.fd
        usage = RelayTable.close_relay(self, handle)
        if fd >= 0:
            close(fd)
        return usage

    def receive(self):
        """What waits for Python, at most 64 control messages per worker of it; call again until there are none.

        ([(worker, listener, host, port, message)], [(connection, messages for it, whether to take its socket back)])
        """
        cdef int i
        cdef Upcall *u
        cdef Engine *e
        cdef Stream *stream
        cdef uint64_t counter
        read(self.notify, &counter, 8)
        out, streams = [], []
        for i in range(self.worker_count):
            e = &self.engines[i]
            with nogil:
                self.lock(i)
            for _ in range(<int>min(e.upcall_count, <uint32_t>RECEIVE_MESSAGES)):
                u = &e.upcalls[e.upcall_head]
                out.append((i, u.listener, *format_address(&u.source), PyBytes_FromStringAndSize(<char *>u.data, u.size)))
                e.upcall_head = (e.upcall_head + 1) % UPCALLS
                e.upcall_count -= 1
            while e.worker.shard.dirty != NULL:
                stream = e.worker.shard.dirty
                e.worker.shard.dirty = stream.next_dirty
                stream.dirty = False
                if stream.returned:
                    streams.append((stream.number, b"", True))
                elif stream.fd < 0 and not stream.paused:
                    streams.append((stream.number, taken(&stream.out), False))
            self.unlock(i)
        return out, streams

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

    def pause_stream(self, int worker, uint32_t connection, bint paused):
        """While paused, messages wait in the client's buffer and are dropped beyond its limit (T4)."""
        cdef Client *client
        with nogil:
            self.lock(worker)
        client = stream_client(&self.workers[worker].shard, connection)
        if client != NULL:
            client.stream.paused = paused
            if waiting(&client.stream.out):
                mark_dirty(&self.engines[worker], client.stream)
        self.unlock(worker)
        if not paused:
            self.tell()

    def adopt_stream(self, int worker, uint32_t connection, int fd, session):
        """Let the relay thread read and write the socket from now on. False: the connection has no relay here."""
        cdef Engine *e = &self.engines[worker]
        cdef Client *client
        cdef Stream *stream
        cdef epoll_event event
        cdef bint adopted = False
        cdef void *ssl = NULL
        cdef void *incoming = NULL
        cdef void *outgoing = NULL
        if session is not None:
            lent = session.lend()
            ssl, incoming, outgoing = <void *><uintptr_t>lent[0], <void *><uintptr_t>lent[1], <void *><uintptr_t>lent[2]
        with nogil:
            self.lock(worker)
        client = stream_client(&self.workers[worker].shard, connection)
        if client != NULL and client.stream.fd < 0:
            stream = client.stream
            event.events = EPOLLIN | EPOLLRDHUP | EPOLLET  # level-triggered ones cost another look after each read
            event.data.u64 = STREAM_MARK | connection
            if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &event) == 0:
                adopted = True
                stream.fd = fd
                stream.tls.ssl, stream.tls.incoming, stream.tls.outgoing = ssl, incoming, outgoing
                stream.returned = stream.paused = False
                stream.watched = event.events
                if waiting(&stream.out):
                    write_stream(e, stream)
        self.unlock(worker)
        if adopted:
            self.lent[worker, connection] = session
            self.tell()
        return adopted

    def release_stream(self, int worker, uint32_t connection):
        """Take the socket back: (what the client said and Python is to cut, unsent bytes)."""
        cdef Engine *e = &self.engines[worker]
        cdef Shard *s = &self.workers[worker].shard
        cdef Client *client
        cdef Stream *stream
        cdef epoll_event event
        with nogil:
            self.lock(worker)
        client = stream_client(s, connection)
        if client == NULL or client.stream.fd < 0:
            self.unlock(worker)
            raise KeyError("not adopted")
        stream = client.stream
        if not stream.returned:
            epoll_ctl(e.epoll, EPOLL_CTL_DEL, stream.fd, &event)
        stream.fd = -1
        stream.returned = stream.paused = False
        left = taken(&stream.rest), taken(&stream.out if stream.tls.ssl == NULL else &stream.records)
        memset(&stream.tls, 0, sizeof(Tls))
        if waiting(&stream.out):
            mark_dirty(e, stream)
        forget_if_idle(s, client)
        self.unlock(worker)
        del self.lent[worker, connection]
        self.tell()
        return left

    def stalled_streams(self, double seconds):
        """Adopted connections whose last message has been unfinished for longer."""
        cdef int i
        cdef uint32_t k
        cdef Shard *s
        cdef Client *client
        cdef double before = monotonic() - seconds
        found = []
        for i in range(self.worker_count):
            s = &self.workers[i].shard
            with nogil:
                self.lock(i)
            for k in range(s.bucket_mask + 1):
                client = s.buckets[k]
                while client != NULL:
                    if (
                        client.stream != NULL and client.stream.fd >= 0 and not client.stream.returned
                        and waiting(&client.stream.rest) and client.stream.since < before
                    ):
                        found.append(client.stream.number)
                    client = client.next
            self.unlock(i)
        return found

    cdef void tell(self) noexcept:
        """Python itself has put something into a list: it looks there in a turn of its own."""
        cdef uint64_t one = 1
        write(self.notify, &one, 8)

    def counters(self):
        """Drops by reason, and what the threads did."""
        cdef int i
        cdef Engine *e
        found = RelayTable.counters(self)
        sums = {"rounds": 0, "gathered": 0, "datagrams_received": 0, "send_calls": 0, "datagrams_sent": 0, "bytes_sent": 0, "trains": 0,
                "stream_reads": 0, "stream_writes": 0,
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
            sums["stream_reads"] += e.stream_reads
            sums["stream_writes"] += e.stream_writes
            sums["in_memory_received"] += e.in_memory
            sums["in_memory_sent"] += e.sender.counters.in_memory
            sums["dropped_inbox_full"] += e.sender.counters.dropped_inbox_full
            sums["dropped_inbox_closed"] += e.sender.counters.dropped_inbox_closed
        return {**found, **sums}


cdef tuple stream_key(uint32_t connection):
    return f"0.0.{connection >> 24}.{connection >> 16 & 255}", connection & 0xFFFF


cdef bytes taken(Buffer *b):
    cdef bytes data
    if b.at == b.size:
        return b""
    data = PyBytes_FromStringAndSize(<char *>b.data + b.at, b.size - b.at)
    consume(b, b.size - b.at)
    return data


cdef void grow_buffers(int fd) noexcept:
    cdef int size = LISTENER_BUFFER_BYTES
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(int))
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(int))
