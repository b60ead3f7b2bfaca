"""What a relay thread does: sockets in, decisions of `decide.pxd`, batches out (RFC 8656 §11, §12). No GIL from start to join.

One round: `epoll_wait` → take the shard's lock → for each ready socket `recvmmsg` → decide per datagram →
write it into the send arena → `sendmmsg` with trains → release the lock. Commands run between two rounds. What is not
data goes up to Python through a bounded queue and an eventfd.

Clients over TCP and TLS (`stream.pxd`, `tls.pxd`): one read per ready socket and round, and one write for all that a
round has for a client. Whatever is not data goes back to Python with the socket.

Peers in this process: with an exchange, what goes to an address that the other side bound is put into an inbox there,
and what comes from there is decided as if it had arrived at the relay's socket. Nothing else differs: permissions,
limits, accounts and drops are those of every peer.
"""

from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from turn._relay.decide cimport decide_client, decide_peer
from turn._relay.stream cimport (
    FOREIGN, MSG_DONTWAIT, Stream, append, next_message, put_back, waiting, write_out, write_or_keep,
)
from turn._relay.table cimport (
    CLIENT_QUEUE_FULL, CONTROL_QUEUE_FULL, DROP, IGNORED, NO_ALLOCATION, STREAM, TO_CLIENT, TO_CONTROL, TO_PEER, TOO_BIG, TRUNCATED,
    Client, Outcome, Relay, Shard, Worker, atomic_load, pthread_mutex_lock, pthread_mutex_unlock, relay_at, stream_client,
)
from turn._relay.tls cimport OPENED_END, RECORD_MAX, TlsFunctions, tls_open, tls_seal
from wire._batch.exchange cimport Side, find_address
from wire._batch.gather cimport Gather, gather_init, gather_sleep, gather_wait, nanosleep, timespec
from wire._batch.inbox cimport (
    SLOT_BYTES, Inbox, Slot, inbox_doze, inbox_heard, inbox_peek, inbox_release, inbox_rise,
)
from wire._batch.udp cimport (
    BATCH, Address, Datagram, Receiver, Sender, Socket, receive_batch, received, sender_commit, sender_flush, sender_room,
    sendto, setsockopt, sockaddr,
)

cdef extern from "time.h" nogil:
    int clock_gettime(int clock, timespec *out) noexcept
    enum: CLOCK_MONOTONIC

cdef extern from "unistd.h" nogil:
    ssize_t read(int fd, void *out, size_t size) noexcept
    ssize_t write(int fd, const void *data, size_t size) noexcept

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *out, size_t size, int flags) noexcept
    int shutdown(int fd, int how) noexcept
    enum: SHUT_RDWR

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) noexcept
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event) noexcept
    int epoll_wait(int epfd, epoll_event *events, int maximum, int timeout) noexcept
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLET, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC

cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set) noexcept
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) noexcept
    enum: SIG_SETMASK

cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t

cdef enum:
    EVENTS = 64
    UPCALLS = 128               # control messages waiting for Python, per thread
    UPCALL_SIZE = 2048          # no control message comes near
    RECEIVES_PER_EVENT = 4      # fairness between sockets of one round
    INBOX_BATCH = 256           # as many as a socket may have of one
    STREAM_READ_BYTES = 64 * 1024

cdef extern from *:
    """
    #define LISTENER_MARK (1ull << 63)
    #define WAKE_MARK (1ull << 62)
    #define INBOX_MARK (WAKE_MARK | 1)
    #define STREAM_MARK (1ull << 61)
    """
    uint64_t LISTENER_MARK, WAKE_MARK, INBOX_MARK, STREAM_MARK

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
    TlsFunctions openssl
    bint record_per_message     # of data over TLS
    pthread_t thread
    bint started
    Receiver *receiver
    Sender sender
    Upcall *upcalls             # ring, under the shard's lock
    uint32_t upcall_head
    uint32_t upcall_count
    bint told                   # Python knows that it has something to fetch
    uint8_t *scratch            # STREAM_READ_BYTES
    uint64_t stream_reads
    uint64_t stream_writes
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


cdef inline void send_alone(Engine *e, Socket *socket, const Address *to, const uint8_t *data, int size, bint dont_fragment) noexcept nogil:
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


cdef inline void send_batched(Engine *e, Socket *socket, const Address *to, const uint8_t *data, int size) noexcept nogil:
    cdef uint8_t *room = sender_room(&e.sender, size)
    if room == NULL:
        sender_flush(&e.sender)
        room = sender_room(&e.sender, size)
    memcpy(room, data, size)
    sender_commit(&e.sender, socket, to, size, False, 0, NULL)


cdef inline void queue_stream(Engine *e, Client *client, const Outcome *o) noexcept nogil:
    """Whole messages or none (T4)."""
    cdef Stream *stream = client.stream
    cdef uint8_t zeros[4]
    cdef uint32_t size = waiting(&stream.out)
    memset(zeros, 0, 4)
    if size + o.head_size + o.payload_size + o.padding > e.stream_queue_max:
        e.worker.shard.counters[<int>CLIENT_QUEUE_FULL] += 1
        return
    if not (
        append(&stream.out, o.head, o.head_size)
        and append(&stream.out, o.payload, o.payload_size)
        and append(&stream.out, zeros, o.padding)
    ):
        stream.out.size = stream.out.at + size
        e.worker.shard.counters[<int>CLIENT_QUEUE_FULL] += 1
        return
    if stream.fd < 0 or stream.returned:
        if not stream.dirty:
            e.receipts += 1  # counts twice: it wakes Python as well
        mark_dirty(e, stream)
    elif not stream.ready and not stream.watched & EPOLLOUT:
        stream.ready = True
        stream.next_ready = e.worker.shard.ready
        e.worker.shard.ready = stream


cdef inline void mark_dirty(Engine *e, Stream *stream) noexcept nogil:
    """There is something for Python. It is told at the end of the round; after a command, by the caller."""
    if not stream.dirty and not stream.paused:
        stream.dirty = True
        stream.next_dirty = e.worker.shard.dirty
        e.worker.shard.dirty = stream
        e.told = False


cdef inline void watch_stream(Engine *e, Stream *stream, uint32_t events) noexcept nogil:
    if events != stream.watched:
        stream.watched = events
        watch_again(e, stream.fd, events, STREAM_MARK | stream.number)


cdef inline void watch_again(Engine *e, int fd, uint32_t events, uint64_t mark) noexcept nogil:
    """Edge-triggered sockets tell once; this makes them tell again if there is more."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = mark
    epoll_ctl(e.epoll, EPOLL_CTL_MOD, fd, &event)


cdef inline void give_back(Engine *e, Stream *stream) noexcept nogil:
    """Something that a relay thread does not handle: a request, foreign bytes, the end. Python takes the socket back."""
    cdef epoll_event event
    if not stream.returned:
        epoll_ctl(e.epoll, EPOLL_CTL_DEL, stream.fd, &event)
        stream.returned = True
        stream.paused = False
        mark_dirty(e, stream)


cdef inline void write_stream(Engine *e, Stream *stream) noexcept nogil:
    """What waits for the client, as far as its socket has room."""
    cdef bint written
    cdef uint32_t left
    e.stream_writes += 1
    if stream.tls.ssl == NULL:
        written = write_out(stream.fd, &stream.out)
        left = waiting(&stream.out)
    else:
        written = write_sealed(e, stream)
        left = waiting(&stream.records)
    if not written:
        give_back(e, stream)
        return
    watch_stream(e, stream, (stream.watched & ~<uint32_t>EPOLLOUT) | (<uint32_t>EPOLLOUT if left else 0))


cdef inline bint write_sealed(Engine *e, Stream *stream) noexcept nogil:
    """Nothing is sealed before the records of earlier messages have left, so that what waits keeps its limit."""
    if not write_out(stream.fd, &stream.records):
        return False
    while waiting(&stream.out) and not waiting(&stream.records):
        if not (tls_seal(&e.openssl, &stream.tls, &stream.out, e.record_per_message) and write_records(e, stream)):
            return False
    return True


cdef inline bint write_records(Engine *e, Stream *stream) noexcept nogil:
    """All that the session has for the wire."""
    cdef int n
    while True:
        n = e.openssl.take(stream.tls.outgoing, e.scratch, STREAM_READ_BYTES)
        if n <= 0:
            return True
        if not write_or_keep(stream.fd, e.scratch, <uint32_t>n, &stream.records):
            return False


cdef inline void write_streams(Engine *e) noexcept nogil:
    cdef Stream *stream
    while e.worker.shard.ready != NULL:
        stream = e.worker.shard.ready
        e.worker.shard.ready = stream.next_ready
        stream.ready = False
        if not stream.returned:
            write_stream(e, stream)


cdef inline bint feed_stream(Engine *e, Client *client, const uint8_t *data, int size, double now) noexcept nogil:
    """What a client said: data is relayed. False: something else was among it, and the stream goes back from there on."""
    cdef Stream *stream = client.stream
    cdef const uint8_t *message = NULL
    cdef Outcome o
    cdef int found, at = 0
    while True:
        found = next_message(stream, data, size, &at, &message, now)
        if found == 0:
            return True
        if found != FOREIGN:
            decide_client(&e.worker.shard, STREAM, &client.address, message, found, now, &o)
            if o.kind == TO_PEER:
                carry_out(e, STREAM, &client.address, &o)
            if o.kind != TO_CONTROL:
                continue
        if put_back(stream, message, max(found, 0), data + at, size - at):
            give_back(e, stream)
        else:
            abandon(e, stream)
        return False


cdef inline void feed_sealed(Engine *e, Client *client, int size, double now) noexcept nogil:
    """Records of a client, in `scratch`. What is not opened here, the session keeps for Python."""
    cdef Stream *stream = client.stream
    cdef int n
    if e.openssl.put(stream.tls.incoming, e.scratch, size) != size:
        e.openssl.clear_errors()
        abandon(e, stream)
        return
    while True:
        n = tls_open(&e.openssl, &stream.tls, e.scratch, STREAM_READ_BYTES)
        if n <= 0 or not feed_stream(e, client, e.scratch, n, now):
            break
    if not write_records(e, stream):  # a client that takes new keys wants ours to be new as well (RFC 8446 §4.6.3)
        abandon(e, stream)
    elif n == OPENED_END or waiting(&stream.records) > e.stream_queue_max:
        give_back(e, stream)  # of the latter kind, Python cuts off one that goes on asking and never reads
    elif waiting(&stream.records) and not stream.returned:
        watch_stream(e, stream, stream.watched | <uint32_t>EPOLLOUT)


cdef inline void abandon(Engine *e, Stream *stream) noexcept nogil:
    """Bytes were lost: what follows has no meaning. Python will see the end."""
    shutdown(stream.fd, SHUT_RDWR)
    give_back(e, stream)


cdef inline void read_stream(Engine *e, Client *client, bint ending, double now) noexcept nogil:
    """One read, for fairness. `ending`: the end of what the client says has arrived, and may be behind it."""
    cdef Stream *stream = client.stream
    cdef bint sealed = stream.tls.ssl != NULL
    cdef ssize_t n, room = RECORD_MAX if sealed else STREAM_READ_BYTES  # a session keeps a buffer as large as the largest read
    n = recv(stream.fd, e.scratch, room, MSG_DONTWAIT)
    if n < 0 and (errno == EAGAIN or errno == EINTR):
        return
    e.stream_reads += 1
    e.receipts += 1
    if n <= 0:
        give_back(e, stream)
    elif not sealed:
        feed_stream(e, client, e.scratch, <int>n, now)
    else:
        feed_sealed(e, client, <int>n, now)
    if not stream.returned and (n == room or ending):
        watch_again(e, stream.fd, stream.watched, STREAM_MARK | stream.number)


cdef inline void serve_stream(Engine *e, uint32_t number, uint32_t events, double now) noexcept nogil:
    cdef Client *client = stream_client(&e.worker.shard, number)
    # Python may have taken it back since the event.
    if client == NULL or client.stream.fd < 0 or client.stream.returned:
        return
    if client.stream.watched & EPOLLOUT and events & EPOLLOUT:
        write_stream(e, client.stream)
    if not client.stream.returned and events & ~<uint32_t>EPOLLOUT:
        read_stream(e, client, (events & ~<uint32_t>(EPOLLIN | EPOLLOUT)) != 0, now)


cdef inline void queue_upcall(Engine *e, uint32_t listener, const Address *source, const Outcome *o) noexcept nogil:
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


cdef inline void carry_out(Engine *e, uint32_t listener, const Address *source, const Outcome *o) noexcept nogil:
    """Do what was decided."""
    cdef Client *client
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


cdef inline void send_to_client(Engine *e, Client *client, const Outcome *o) noexcept nogil:
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


cdef inline void send_near(Engine *e, const Outcome *o) noexcept nogil:
    """To a peer in this process. It takes no more than a slot holds, and nothing empty; DF means nothing in memory."""
    if o.payload_size > SLOT_BYTES:
        e.worker.shard.counters[<int>TOO_BIG] += 1
    elif o.payload_size == 0:
        e.worker.shard.counters[<int>IGNORED] += 1
    else:
        send_batched(e, &o.relay.near, &o.peer, o.payload, o.payload_size)


cdef inline void drain_inbox(Engine *e, double now) noexcept nogil:
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


cdef inline void drain_socket(Engine *e, int fd, uint64_t mark, int listener, Relay *relay, double now) noexcept nogil:
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
    else:
        watch_again(e, fd, EPOLLIN | EPOLLET, mark)


cdef inline void *run(void *argument) noexcept nogil:
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
            elif mark & STREAM_MARK:
                serve_stream(e, <uint32_t>mark, events[i].events, now)
            elif mark & LISTENER_MARK:
                drain_socket(e, e.listeners[mark & 0xFFFF].fd, mark, mark & 0xFFFF, NULL, now)
            else:
                # The relay may have been closed since the event: its generation has moved on then.
                slot = mark & 0xFFFFFF
                if e.generations[slot] == mark >> 24 and e.relays[slot] != NULL:
                    drain_socket(e, e.relays[slot].socket.fd, mark, 0, e.relays[slot], now)
        if e.inbox != NULL:
            drain_inbox(e, now)
        sender_flush(&e.sender)
        write_streams(e)
        notify = not e.told
        e.told = True
        pthread_mutex_unlock(&e.worker.lock)
        if notify:
            counter = 1
            write(e.notify, &counter, 8)
        while atomic_load(&e.worker.waiting):
            nanosleep(&pause, NULL)
    return NULL
