"""Class Plane: Python's hands on the graph. The per-packet code is in the `.pxd` files; start with `worker.pxd`.

Each method that changes the graph does so between `lock_graph` and `unlock_graph`: every thread is then between two
datagrams. What may fail or take long (sessions, allocation, parsing of arguments) comes before the lock.
"""

import os
import secrets
import select
import socket
import threading

from sfu._dataplane import srtp

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from sfu._dataplane cimport graph, keyframe, packet, tables, upcalls
from sfu._dataplane.cache cimport CACHED_PACKET_MAX, cache_clear
from sfu._dataplane.forward cimport choose_source, drop_source, restart_forwarder
from sfu._dataplane.graph cimport (
    ADDRESSES_MAX, BOUND_MEDIA, BOUND_NOTHING, BOUND_ORPHAN, BOUND_RTX, CNAME_MAX, DROP_COUNT, JOBS_MAX, LAYERS_MAX,
    NO_PAYLOAD_TYPE, RID_MAX, THREADS_MAX, TUPLES_MAX, Counters, CrossRing, Forwarder, ForwarderList, ParcelRing,
    PlaneState, Source, Stream, Thread, Track, Transport, c_read, list_add, list_remove, pthread_mutex_destroy,
    pthread_mutex_init, schedule, signal_fd, unschedule, wake,
)
from sfu._dataplane.ingress cimport bind_media
from sfu._dataplane.keyframes cimport want_keyframe
from sfu._dataplane.ledger cimport ledger_init
from sfu._dataplane.link cimport (
    forwarder_free, home, relocate, remove_forwarder_links, remove_track_links, remove_tuple, remove_tuples, stream_new,
    track_free,
)
from sfu._dataplane.loss cimport loss_init
from sfu._dataplane.machine cimport clock_us, exchange_int, fence, load_u32, store_int, store_u32
from sfu._dataplane.packet cimport MID_LENGTH_MAX, X_COUNT, finish_template
from sfu._dataplane.sequence cimport map_init
from sfu._dataplane.worker cimport lock_graph, run_thread, unlock_graph
from wire._batch.udp cimport (
    Address, enable_gro, format_address, parse_address, receiver_destroy, receiver_init, same_address, sender_destroy,
    sender_init,
)

STUN = upcalls.UP_STUN
DTLS = upcalls.UP_DTLS
STREAM_STARTED = upcalls.UP_STREAM_STARTED
TRACK_STALLED = upcalls.UP_TRACK_STALLED
TRACK_RESUMED = upcalls.UP_TRACK_RESUMED
KEYFRAME_MISSING = upcalls.UP_KEYFRAME_MISSING
BYE = upcalls.UP_BYE

EXT_MID = packet.X_MID
EXT_RID = packet.X_RID
EXT_REPAIRED_RID = packet.X_REPAIRED_RID
EXT_TRANSPORT_CC = packet.X_TRANSPORT_CC
EXT_ABS_SEND_TIME = packet.X_ABS_SEND_TIME
EXT_AUDIO_LEVEL = packet.X_AUDIO_LEVEL
EXT_CSRC_AUDIO_LEVEL = packet.X_CSRC_AUDIO_LEVEL
EXT_PLAYOUT_DELAY = packet.X_PLAYOUT_DELAY
EXT_VIDEO_ORIENTATION = packet.X_VIDEO_ORIENTATION
EXT_ABS_CAPTURE_TIME = packet.X_ABS_CAPTURE_TIME
EXT_VIDEO_CONTENT_TYPE = packet.X_VIDEO_CONTENT_TYPE
EXT_COLOR_SPACE = packet.X_COLOR_SPACE
EXT_DEPENDENCY_DESCRIPTOR = packet.X_DEPENDENCY_DESCRIPTOR

CODEC_OPAQUE = keyframe.C_OPAQUE
CODEC_OPUS = keyframe.C_OPUS
CODEC_VP8 = keyframe.C_VP8
CODEC_VP9 = keyframe.C_VP9
CODEC_H264 = keyframe.C_H264
CODEC_H265 = keyframe.C_H265
CODEC_AV1 = keyframe.C_AV1

# In the order of graph.Drop.
DROP_NAMES = (
    "first_byte", "short", "truncated", "stranger", "stun_budget", "upcall_full", "no_keys", "oversize", "malformed",
    "authentication", "replay", "payload_type", "unbound", "retired_ssrc", "empty", "padding", "probe", "jump", "stale",
    "duplicate", "rtcp_malformed", "rtcp_foreign", "nack_budget", "parcel_full", "ring_full", "ring_gone", "late",
    "blocked", "protect", "no_memory",
)

IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_OMIT = 5           # an ICMP message, which anyone can forge, must not change what we may send
SOCKET_BUFFER = 8 * 1024 * 1024
ARENA_BYTES = 512 * 1024
BYTES_PER_UPCALL = 256      # ring bytes per configured slot: a STUN check with its record
LEDGER_SLOTS_VIDEO = 256    # at first; timers grow it
LEDGER_SLOTS_AUDIO = 64


def bind_sockets(addresses, port, threads):
    """One socket per thread and address, all on one port; threads share an address by SO_REUSEPORT."""
    for attempt in range(16):
        chosen = port or free_port(addresses[0])
        made = []
        try:
            for _ in range(threads):
                for address in addresses:
                    made.append(bound_socket(address, chosen))
            return made, chosen
        except OSError:
            for sock in made:
                sock.close()
            if port or attempt == 15:
                raise


def free_port(address):
    # Without SO_REUSEPORT the system does not offer a port that another plane of this user already shares.
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def bound_socket(address, port):
    cdef bint v6 = ":" in address
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_OMIT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_OMIT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


cdef void fill_payload_types(uint8_t *out, mapping) except *:
    memset(out, NO_PAYLOAD_TYPE, 128)
    for from_, to in mapping.items():
        if not (0 <= from_ < 128 and 0 <= to < 128):
            raise ValueError(f"payload type {from_} to {to}")
        out[<int>from_] = to


cdef void fill_rid(char *out, str rid) except *:
    cdef bytes text = rid.encode()
    if len(text) > RID_MAX:
        raise ValueError(f"rid of {len(text)} bytes, at most {RID_MAX}")
    memset(out, 0, RID_MAX + 1)
    memcpy(out, PyBytes_AS_STRING(text), len(text))


cdef class Plane:
    cdef PlaneState *state
    cdef list sockets
    cdef list workers
    cdef object poller
    cdef int bound_port
    cdef uint64_t last_id
    cdef int max_transports
    cdef int max_tuples
    cdef dict transports        # id to address of the C struct
    cdef dict tracks
    cdef dict forwarders
    cdef dict used_ssrcs        # transport id to SSRCs it ever sent (SRTP-4)
    cdef bint closed

    def __init__(
        self,
        addresses,
        port,
        *,
        threads=1,
        gso=True,
        max_transports=20_000,
        max_streams_per_transport=1024,
        max_tuples_per_transport=8,
        cache_bytes_max=512 * 1024 * 1024,
        upcall_slots=8192,
        stun_per_address_per_s=50,
        stall_after=2.0,
    ):
        self.closed = True
        self.sockets = []
        self.workers = []
        self.transports = {}
        self.tracks = {}
        self.forwarders = {}
        self.used_ssrcs = {}
        if not 1 <= threads <= THREADS_MAX or not 1 <= len(addresses) <= ADDRESSES_MAX:
            raise ValueError(f"{threads} threads, {len(addresses)} addresses")
        if not 1 <= max_tuples_per_transport <= TUPLES_MAX:
            raise ValueError(f"max_tuples_per_transport {max_tuples_per_transport}")
        self.max_transports = max_transports
        self.max_tuples = max_tuples_per_transport
        self.state = <PlaneState *>calloc(1, sizeof(PlaneState))
        if self.state == NULL:
            raise MemoryError
        self.state.upcall_fd = -1
        self.closed = False
        try:
            self.sockets, self.bound_port = bind_sockets(addresses, port, threads)
            self.state.max_streams_per_transport = max_streams_per_transport
            self.state.cache_bytes_max = cache_bytes_max
            self.state.stun_rate = stun_per_address_per_s
            self.state.stall_after = <int64_t>(stall_after * 1e6)
            self.state.seed = secrets.randbits(64)
            self.state.tuples.seed = secrets.randbits(64)
            self.state.streams.seed = secrets.randbits(64)
            self.state.protect = <graph.srtp_function><uintptr_t>srtp.function_address("srtp_protect")
            self.state.unprotect = <graph.srtp_function><uintptr_t>srtp.function_address("srtp_unprotect")
            self.state.protect_rtcp = <graph.srtp_function><uintptr_t>srtp.function_address("srtp_protect_rtcp")
            self.state.unprotect_rtcp = <graph.srtp_function><uintptr_t>srtp.function_address("srtp_unprotect_rtcp")
            self.state.remove_stream = <graph.srtp_remove_function><uintptr_t>srtp.function_address("srtp_remove_stream")
            self.state.upcall_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            pthread_mutex_init(&self.state.turnstile, NULL)
            self._make_threads(threads, len(addresses), gso, upcall_slots)
        except BaseException:
            self.close()
            raise

    cdef int _make_threads(self, int threads, int addresses, bint gso, int upcall_slots) except -1:
        cdef PlaneState *state = self.state
        cdef Thread *t
        cdef int i, k
        cdef uint32_t ring = 65536
        while ring < <uint32_t>upcall_slots * BYTES_PER_UPCALL // <uint32_t>threads:
            ring *= 2
        state.threads = <Thread *>calloc(threads, sizeof(Thread))
        state.rings = <CrossRing **>calloc(threads * threads, sizeof(CrossRing *))
        state.parcels = <ParcelRing **>calloc(threads * threads, sizeof(ParcelRing *))
        if state.threads == NULL or state.rings == NULL or state.parcels == NULL:
            raise MemoryError
        state.address_count = addresses
        for i in range(threads):
            t = &state.threads[i]
            t.plane = state
            t.index = i
            t.wake_fd = t.epoll_fd = -1
            t.random = secrets.randbits(64)
            pthread_mutex_init(&t.lock, NULL)
            state.thread_count = i + 1
            t.owned.capacity = ring
            t.strangers.capacity = ring // 4
            t.owned.bytes = <uint8_t *>malloc(ring)
            t.strangers.bytes = <uint8_t *>malloc(ring // 4)
            t.scratch = <uint8_t *>malloc(JOBS_MAX * CACHED_PACKET_MAX)
            t.heap = <Transport **>calloc(self.max_transports + 1, sizeof(Transport *))
            t.buckets = <tables.Bucket *>calloc(tables.BUCKET_SETS * tables.BUCKET_WAYS, sizeof(tables.Bucket))
            if t.owned.bytes == NULL or t.strangers.bytes == NULL or t.scratch == NULL or t.heap == NULL or t.buckets == NULL:
                raise MemoryError
            if not receiver_init(&t.receiver) or not sender_init(&t.sender, ARENA_BYTES):
                raise MemoryError
            t.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            poller = select.epoll()
            t.epoll_fd = os.dup(poller.fileno())
            os.set_inheritable(t.epoll_fd, False)
            poller.close()
            with_epoll = select.epoll.fromfd(os.dup(t.epoll_fd))
            with_epoll.register(t.wake_fd, select.EPOLLIN)
            for k in range(addresses):
                t.sockets[k].fd = self.sockets[i * addresses + k].fileno()
                t.sockets[k].gso = gso
                enable_gro(t.sockets[k].fd)
                with_epoll.register(t.sockets[k].fd, select.EPOLLIN)
            with_epoll.close()
        for i in range(threads * threads):
            if i // threads != i % threads:
                state.rings[i] = <CrossRing *>calloc(1, sizeof(CrossRing))
                state.parcels[i] = <ParcelRing *>calloc(1, sizeof(ParcelRing))
                if state.rings[i] == NULL or state.parcels[i] == NULL:
                    raise MemoryError
        return 0

    @property
    def port(self):
        return self.bound_port

    def start(self):
        if self.workers or self.closed:
            raise RuntimeError("a plane starts once")
        for i in range(self.state.thread_count):
            worker = threading.Thread(target=self._run, args=(i,), name=f"forwarding-{i}", daemon=True)
            self.workers.append(worker)
            worker.start()

    def _run(self, int index):
        cdef Thread *t = &self.state.threads[index]
        with nogil:
            run_thread(t)

    def close(self):
        cdef int i
        if self.closed:
            return
        self.closed = True
        store_int(&self.state.stopping, 1)
        for i in range(self.state.thread_count):
            if self.state.threads[i].wake_fd >= 0:
                signal_fd(self.state.threads[i].wake_fd)
        for worker in self.workers:
            worker.join()
        for transport in list(self.transports):
            self.remove_transport(transport)
        for sock in self.sockets:
            sock.close()
        self._free()

    cdef void _free(self):
        cdef PlaneState *state = self.state
        cdef Thread *t
        cdef int i
        for i in range(state.thread_count):
            t = &state.threads[i]
            receiver_destroy(&t.receiver)
            sender_destroy(&t.sender)
            free(t.owned.bytes)
            free(t.strangers.bytes)
            free(t.scratch)
            free(t.heap)
            free(t.buckets)
            pthread_mutex_destroy(&t.lock)
            if t.wake_fd >= 0:
                os.close(t.wake_fd)
            if t.epoll_fd >= 0:
                os.close(t.epoll_fd)
        for i in range(state.thread_count * state.thread_count):
            if state.rings != NULL:
                free(state.rings[i])
            if state.parcels != NULL:
                free(state.parcels[i])
        free(state.rings)
        free(state.parcels)
        free(state.threads)
        free(state.tuples.entries)
        tables.table_free(&state.streams)
        if state.upcall_fd >= 0:
            os.close(state.upcall_fd)
        pthread_mutex_destroy(&state.turnstile)
        free(state)
        self.state = NULL

    def __dealloc__(self):
        if self.state != NULL and not self.closed:
            self.close()

    # -- helpers -------------------------------------------------------------------------------------------------------

    cdef void _lock(self):
        cdef int i
        with nogil:
            lock_graph(self.state)
            for i in range(self.state.thread_count):
                self.state.threads[i].now = clock_us()

    cdef void _unlock(self):
        cdef int i
        unlock_graph(self.state)
        for i in range(self.state.thread_count):
            if self.state.threads[i].heap_count or self.state.threads[i].sender.count:
                wake(&self.state.threads[i])

    cdef Transport *_transport(self, transport) except NULL:
        return <Transport *><uintptr_t>self.transports[transport]

    cdef Track *_track(self, track) except NULL:
        return <Track *><uintptr_t>self.tracks[track]

    cdef Forwarder *_forwarder(self, forwarder) except NULL:
        return <Forwarder *><uintptr_t>self.forwarders[forwarder]

    cdef uint64_t _new_id(self):
        self.last_id += 1
        return self.last_id

    cdef int _parse_path(self, path, Address *out) except -1:
        """The socket index of a path; fills the remote address."""
        index, host, port = path
        if not 0 <= index < len(self.sockets):
            raise ValueError(f"socket {index}")
        parse_address(out, host, port)
        return index

    # -- upcalls -------------------------------------------------------------------------------------------------------

    def fileno(self):
        return self.state.upcall_fd

    def drain(self, limit=256):
        cdef int i
        cdef uint64_t ignored
        out = []
        if self.closed:
            return out
        c_read(self.state.upcall_fd, &ignored, sizeof(ignored))
        store_int(&self.state.upcall_pending, 0)
        fence()
        for i in range(self.state.thread_count):
            self._drain_ring(&self.state.threads[i].owned, out, limit)
        for i in range(self.state.thread_count):
            self._drain_ring(&self.state.threads[i].strangers, out, limit)
        if len(out) >= limit and exchange_int(&self.state.upcall_pending, 1) == 0:
            signal_fd(self.state.upcall_fd)
        return out

    cdef int _drain_ring(self, upcalls.UpcallRing *ring, list out, int limit) except -1:
        cdef upcalls.UpcallRecord *record
        cdef uint32_t head = load_u32(&ring.head)
        cdef uint32_t at
        while ring.tail != head and len(out) < limit:
            at = ring.tail & (ring.capacity - 1)
            record = <upcalls.UpcallRecord *>(ring.bytes + at)
            if record.size == 0:
                store_u32(&ring.tail, ring.tail + ring.capacity - at)
                continue
            out.append(self._upcall(record))
            store_u32(&ring.tail, ring.tail + record.size)
        return 0

    cdef tuple _upcall(self, upcalls.UpcallRecord *record):
        if record.kind == upcalls.UP_STUN or record.kind == upcalls.UP_DTLS:
            host, port = format_address(&record.source)
            data = PyBytes_FromStringAndSize(<char *>record + sizeof(upcalls.UpcallRecord), record.data_size)
            return (record.kind, record.id, (record.socket_index, host, port), data, record.received / 1e6)
        if record.kind == upcalls.UP_STREAM_STARTED:
            return (record.kind, record.id, record.rid.decode(), record.ssrc)
        if record.kind == upcalls.UP_KEYFRAME_MISSING:
            return (record.kind, record.id, record.rid.decode())
        if record.kind == upcalls.UP_BYE:
            return (record.kind, record.id, record.ssrc)
        return (record.kind, record.id)

    def send_datagram(self, bytes data, path):
        index, host, port = path
        if not 0 <= index < len(self.sockets):
            raise ValueError(f"socket {index}")
        try:
            self.sockets[index].sendto(data, (host, port))
        except OSError:
            return False    # full buffer, or no route: the peer retransmits
        return True

    # -- transports ----------------------------------------------------------------------------------------------------

    def add_transport(self):
        cdef Transport *transport
        if len(self.transports) >= self.max_transports:
            raise OverflowError(f"{self.max_transports} transports")
        transport = <Transport *>calloc(1, sizeof(Transport))
        if transport == NULL:
            raise MemoryError
        transport.id = self._new_id()
        transport.owner = -1
        transport.heap_index = -1
        transport.sending = True
        transport.rtcp_ssrc = secrets.randbelow(0xFFFFFFFE) + 1
        transport.transport_seq = secrets.randbelow(0x8000)
        transport.incoming.seed = secrets.randbits(64)
        transport.outgoing.seed = secrets.randbits(64)
        self.transports[transport.id] = <uintptr_t>transport
        self.used_ssrcs[transport.id] = {transport.rtcp_ssrc}
        return transport.id

    def remove_transport(self, transport):
        cdef Transport *t = self._transport(transport)
        cdef int i
        for i in range(t.forwarder_count):
            del self.forwarders[t.forwarders[i].id]
        for i in range(t.track_count):
            del self.tracks[t.tracks[i].id]
        del self.transports[transport]
        del self.used_ssrcs[transport]
        self._lock()
        remove_tuples(self.state, t)
        for i in range(t.forwarder_count):
            remove_forwarder_links(self.state, t.forwarders[i])
        for i in range(t.track_count):
            remove_track_links(self.state, t.tracks[i])
        if t.owner >= 0:
            unschedule(&self.state.threads[t.owner], t)
        self._unlock()
        for i in range(t.forwarder_count):
            srtp.destroy_session(<uintptr_t>t.forwarders[i].srtp)
            forwarder_free(t.forwarders[i])
        for i in range(t.track_count):
            track_free(self.state, t.tracks[i])
        srtp.destroy_session(<uintptr_t>t.srtp_in)
        srtp.destroy_session(<uintptr_t>t.srtp_rtcp)
        tables.table_free(&t.incoming)
        tables.table_free(&t.outgoing)
        free(t.tracks)
        free(t.forwarders)
        free(t.learnt_ring)
        free(t.twcc)
        memset(t.send_key, 0, sizeof(t.send_key))
        free(t)

    def add_tuple(self, transport, path):
        cdef Transport *t = self._transport(transport)
        cdef Address remote
        cdef int index = self._parse_path(path, &remote)
        self._lock()
        self._add_tuple(t, index, &remote)
        self._unlock()

    cdef int _add_tuple(self, Transport *t, int index, Address *remote) noexcept:
        """Under the lock: own the tuple, taking it from whoever had it; the oldest unselected makes room."""
        cdef tables.TupleEntry *entry = tables.tuple_find(&self.state.tuples, index, remote)
        cdef int i
        if entry != NULL:
            if entry.value == t:
                return 0
            remove_tuple(self.state, <Transport *>entry.value, index, remote)
        if t.tuple_count >= self.max_tuples:
            for i in range(t.tuple_count):
                if t.tuples[i].socket_index != t.selected_socket or not same_address(&t.tuples[i].remote, &t.selected):
                    remove_tuple(self.state, t, t.tuples[i].socket_index, &t.tuples[i].remote)
                    break
        if t.tuple_count < TUPLES_MAX and tables.tuple_put(&self.state.tuples, index, remote, t):
            t.tuples[t.tuple_count].socket_index = index
            t.tuples[t.tuple_count].remote = remote[0]
            t.tuple_count += 1
        return 0

    def select_tuple(self, transport, path):
        cdef Transport *t = self._transport(transport)
        cdef Address remote
        cdef int index = self._parse_path(path, &remote)
        cdef bint first = t.owner < 0
        self._lock()
        self._add_tuple(t, index, &remote)
        t.selected = remote
        t.selected_socket = index
        if first:
            relocate(self.state, t, index // self.state.address_count)
        t.socket = &self.state.threads[t.owner].sockets[index % self.state.address_count]
        if first:
            self._restart(t)
        self._unlock()

    cdef void _restart(self, Transport *t) noexcept:
        """Under the lock: it can be sent to from now on, so its forwarders begin, at key frames."""
        cdef int i
        if t.owner < 0:
            return
        for i in range(t.forwarder_count):
            restart_forwarder(home(self.state, t), t.forwarders[i])

    def set_keys(self, transport, profile, bytes send_key, bytes receive_key):
        cdef Transport *t = self._transport(transport)
        cdef int i
        if len(send_key) != srtp.key_size(profile) or len(receive_key) != len(send_key):
            raise ValueError(f"keys of {len(send_key)} and {len(receive_key)} bytes for SRTP profile {profile}")
        incoming = srtp.create_session(profile, receive_key, inbound=True)
        reports = srtp.create_session(profile, send_key, inbound=False)
        sessions = [srtp.create_session(profile, send_key, inbound=False) for _ in range(t.forwarder_count)]
        self._lock()
        old = [<uintptr_t>t.srtp_in, <uintptr_t>t.srtp_rtcp]
        t.srtp_in = <void *><uintptr_t>incoming
        t.srtp_rtcp = <void *><uintptr_t>reports
        for i in range(t.forwarder_count):
            old.append(<uintptr_t>t.forwarders[i].srtp)
            t.forwarders[i].srtp = <void *><uintptr_t>sessions[i]
        t.profile = profile
        t.send_key_size = <int>len(send_key)
        memcpy(t.send_key, PyBytes_AS_STRING(send_key), len(send_key))
        self._restart(t)
        self._unlock()
        for session in old:
            srtp.destroy_session(session)

    def set_sending(self, transport, bint sending):
        cdef Transport *t = self._transport(transport)
        if t.sending == sending:
            return
        self._lock()
        t.sending = sending
        if sending:
            self._restart(t)
        self._unlock()

    # -- tracks --------------------------------------------------------------------------------------------------------

    def add_track(self, transport, *, str mid, bint video, codecs, extensions, rids=(), ssrcs=()):
        cdef Transport *owner = self._transport(transport)
        cdef Track *track
        cdef Track **tracks
        cdef bytes name = mid.encode()
        cdef int i
        if len(name) > MID_LENGTH_MAX:
            raise ValueError(f"mid of {len(name)} bytes")
        track = <Track *>calloc(1, sizeof(Track))
        tracks = <Track **>calloc(owner.track_count + 1, sizeof(Track *))
        if track == NULL or tracks == NULL:
            free(track)
            free(tracks)
            raise MemoryError
        try:
            track.id = self._new_id()
            track.transport = owner
            track.video = video
            track.thread_count = self.state.thread_count
            track.mid_length = <uint8_t>len(name)
            memcpy(track.mid, PyBytes_AS_STRING(name), len(name))
            track.members = <ForwarderList *>calloc(track.thread_count, sizeof(ForwarderList))
            if track.members == NULL:
                raise MemoryError
            self._fill_track(track, codecs, extensions)
            self._add_layers(track, list(rids) or [""])
        except BaseException:
            track_free(self.state, track)
            free(tracks)
            raise
        self._lock()
        for i in range(track.layer_count):
            tables.table_put(&self.state.streams, track.layers[i].id, track.layers[i], 0)
        for i in range(owner.track_count):
            tracks[i] = owner.tracks[i]
        tracks[owner.track_count] = track
        free(owner.tracks)
        owner.tracks = tracks
        owner.track_count += 1
        self._refresh_extensions(owner)
        self._bind_signalled(track, ssrcs)
        self._unlock()
        self.tracks[track.id] = <uintptr_t>track
        return track.id

    cdef int _fill_track(self, Track *track, codecs, extensions) except -1:
        cdef graph.PayloadType *kind
        for payload_type, codec in codecs.items():
            if not 0 <= payload_type < 128 or not 0 <= codec["codec"] < keyframe.C_COUNT or not -1 <= codec["apt"] < 128:
                raise ValueError(f"payload type {payload_type}: {codec}")
            if codec["clock_rate"] <= 0:
                raise ValueError(f"clock rate {codec['clock_rate']}")
            kind = &track.payload_types[<int>payload_type]
            kind.known = 1
            kind.codec = codec["codec"]
            kind.clock_rate = codec["clock_rate"]
            kind.apt = codec["apt"]
            kind.nack = bool(codec["nack"])
            kind.pli = bool(codec["pli"])
            kind.fir = bool(codec["fir"])
        for wire_id, extension in extensions.items():
            if not 1 <= wire_id <= 255 or not 0 < extension < X_COUNT:
                raise ValueError(f"header extension {wire_id}: {extension}")
            track.ids[<int>wire_id] = extension
        return 0

    cdef int _add_layers(self, Track *track, rids) except -1:
        cdef Stream *s
        for rid in rids:
            if track.layer_count == LAYERS_MAX:
                raise ValueError(f"more than {LAYERS_MAX} layers")
            s = stream_new(track, self._new_id())
            if s == NULL:
                raise MemoryError
            s.layer = track.layer_count
            track.layers[track.layer_count] = s
            track.layer_count += 1
            fill_rid(s.rid, rid)
        return 0

    cdef void _refresh_extensions(self, Transport *owner) noexcept:
        """Under the lock: one id means one extension in all sections of a bundle (RFC 9143 9.1)."""
        cdef int i, k
        memset(owner.ids, 0, sizeof(owner.ids))
        for i in range(owner.track_count):
            for k in range(256):
                if owner.tracks[i].ids[k]:
                    owner.ids[k] = owner.tracks[i].ids[k]

    cdef int _bind_signalled(self, Track *track, ssrcs) except -1:
        """Under the lock: signalled pairs, in layer order."""
        cdef Stream *s
        cdef Transport *owner = track.transport
        cdef int layer = 0
        for media, rtx in ssrcs:
            if layer == track.layer_count:
                break
            s = track.layers[layer]
            layer += 1
            if media and media != s.ssrc:
                bind_media(home(self.state, owner), owner, s, media)
                tables.table_put(&owner.incoming, <uint64_t>media + 1, s, BOUND_MEDIA)
            if rtx and rtx != media:
                s.rtx_ssrc = rtx
                tables.table_put(&owner.incoming, <uint64_t>rtx + 1, s, BOUND_RTX)
        return 0

    def update_track(self, track, *, codecs, extensions, rids=(), ssrcs=()):
        cdef Track *t = self._track(track)
        cdef Track filled
        cdef int i
        wanted = list(rids) or [""]
        have = [t.layers[i].rid.decode() for i in range(t.layer_count)]
        added = [rid for rid in wanted if rid not in have]
        if len(added) + len(have) > LAYERS_MAX:
            raise ValueError(f"more than {LAYERS_MAX} layers")
        pairs = [(int(media), int(rtx)) for media, rtx in ssrcs]
        memset(&filled, 0, sizeof(filled))
        self._fill_track(&filled, codecs, extensions)
        self._lock()
        try:
            same = bytes(t.ids[:256]) == bytes(filled.ids[:256])
            memcpy(t.payload_types, filled.payload_types, sizeof(t.payload_types))
            memcpy(t.ids, filled.ids, sizeof(t.ids))
            if not same:
                # A resend must read its packet as the first send did (SRTP-4).
                for i in range(t.layer_count):
                    if t.layers[i].cache.pages != NULL:
                        cache_clear(&t.layers[i].cache)
            if added and have != [""]:
                i = t.layer_count
                self._add_layers(t, added)
                for i in range(i, t.layer_count):
                    tables.table_put(&self.state.streams, t.layers[i].id, t.layers[i], 0)
            elif added:
                fill_rid(t.layers[0].rid, added[0])
            self._refresh_extensions(t.transport)
            self._bind_signalled(t, pairs)
        finally:
            self._unlock()

    def remove_track(self, track):
        cdef Track *t = self._track(track)
        cdef Transport *owner = t.transport
        cdef int i
        del self.tracks[track]
        self._lock()
        remove_track_links(self.state, t)
        for i in range(owner.track_count):
            if owner.tracks[i] == t:
                owner.track_count -= 1
                owner.tracks[i] = owner.tracks[owner.track_count]
                break
        self._refresh_extensions(owner)
        self._unlock()
        track_free(self.state, t)

    def request_keyframe(self, track, str rid=""):
        cdef Track *t = self._track(track)
        cdef int i
        if t.transport.owner < 0:
            return
        self._lock()
        for i in range(t.layer_count):
            if not rid or t.layers[i].rid.decode() == rid:
                want_keyframe(&self.state.threads[t.transport.owner], t.layers[i])
        self._unlock()

    # -- forwarders ----------------------------------------------------------------------------------------------------

    def add_forwarder(self, transport, *, str mid, bint video, ssrc, rtx_ssrc, str cname, extensions):
        cdef Transport *owner = self._transport(transport)
        cdef Forwarder *f
        cdef Forwarder **forwarders
        cdef bytes name = mid.encode()
        cdef int i
        used = self.used_ssrcs[transport]
        for value in (ssrc, rtx_ssrc) if rtx_ssrc else (ssrc,):
            if not 0 < value <= 0xFFFFFFFF or value in used:
                raise ValueError(f"SSRC {value} is 0, too large, or was used before")
        if ssrc == rtx_ssrc or len(name) > MID_LENGTH_MAX:
            raise ValueError("one SSRC for media and RTX, or a mid that is too long")
        f = <Forwarder *>calloc(1, sizeof(Forwarder))
        forwarders = <Forwarder **>calloc(owner.forwarder_count + 1, sizeof(Forwarder *))
        try:
            if f == NULL or forwarders == NULL:
                raise MemoryError
            if not ledger_init(&f.ledger, LEDGER_SLOTS_VIDEO if video else LEDGER_SLOTS_AUDIO):
                raise MemoryError
            f.id = self._new_id()
            f.transport = owner
            f.video = video
            f.ssrc = ssrc
            f.rtx_ssrc = rtx_ssrc
            f.rtx_seq = secrets.randbelow(0x7FFF) + 1
            f.last_out = -1
            map_init(&f.map, secrets.randbelow(0x7FFF) + 1)
            self._fill_template(f, name, extensions)
            self._fill_cname(f, cname)
            if owner.profile:
                key = PyBytes_FromStringAndSize(<char *>owner.send_key, owner.send_key_size)
                f.srtp = <void *><uintptr_t>srtp.create_session(owner.profile, key, inbound=False)
        except BaseException:
            if f != NULL:
                forwarder_free(f)
            free(forwarders)
            raise
        self._lock()
        for i in range(owner.forwarder_count):
            forwarders[i] = owner.forwarders[i]
        forwarders[owner.forwarder_count] = f
        free(owner.forwarders)
        owner.forwarders = forwarders
        owner.forwarder_count += 1
        tables.table_put(&owner.outgoing, <uint64_t>f.ssrc + 1, f, 0)
        if f.rtx_ssrc:
            tables.table_put(&owner.outgoing, <uint64_t>f.rtx_ssrc + 1, f, 1)
        self._unlock()
        used.add(ssrc)
        if rtx_ssrc:
            used.add(rtx_ssrc)
        self.forwarders[f.id] = <uintptr_t>f
        return f.id

    cdef int _fill_template(self, Forwarder *f, bytes mid, extensions) except -1:
        for extension, wire_id in extensions.items():
            if not 1 <= wire_id <= 255 or not 0 < extension < X_COUNT:
                raise ValueError(f"header extension {extension}: {wire_id}")
            f.template.out_id[<int>extension] = wire_id
        memcpy(f.template.mid, PyBytes_AS_STRING(mid), len(mid))
        f.template.mid_length = <uint8_t>len(mid)
        finish_template(&f.template)
        return 0

    cdef int _fill_cname(self, Forwarder *f, str cname) except -1:
        cdef bytes text = cname.encode()
        if len(text) > CNAME_MAX:
            raise ValueError(f"cname of {len(text)} bytes, at most {CNAME_MAX}")
        memset(f.cname, 0, sizeof(f.cname))
        memcpy(f.cname, PyBytes_AS_STRING(text), len(text))
        return 0

    def set_source(self, forwarder, track, *, str rid="", payload_types, rtx_payload_types, str cname=""):
        cdef Forwarder *f = self._forwarder(forwarder)
        cdef Track *source_track = self._track(track) if track else NULL
        cdef Source source
        cdef Thread *t
        memset(&source, 0, sizeof(source))
        source.track = source_track
        fill_rid(source.rid, rid)
        fill_payload_types(source.payload_types, payload_types)
        fill_payload_types(source.rtx_payload_types, rtx_payload_types)
        if source_track != NULL and source_track.video != f.video:
            raise ValueError("a video track cannot feed an audio section, or the other way round")
        self._lock()
        try:
            t = home(self.state, f.transport)
            drop_source(t, f, &f.next)
            if source_track == NULL:
                drop_source(t, f, &f.current)
            else:
                if cname:
                    self._fill_cname(f, cname)
                f.next = source
                if not list_add(&source_track.members[t.index], f):
                    raise MemoryError
                choose_source(t, f)
        finally:
            self._unlock()

    def set_paused(self, forwarder, bint paused):
        cdef Forwarder *f = self._forwarder(forwarder)
        if f.paused == paused:
            return
        self._lock()
        f.paused = paused
        if not paused:
            restart_forwarder(home(self.state, f.transport), f)
        self._unlock()

    def remove_forwarder(self, forwarder):
        cdef Forwarder *f = self._forwarder(forwarder)
        cdef Transport *owner = f.transport
        cdef int i
        del self.forwarders[forwarder]
        self._lock()
        remove_forwarder_links(self.state, f)
        for i in range(owner.forwarder_count):
            if owner.forwarders[i] == f:
                owner.forwarder_count -= 1
                owner.forwarders[i] = owner.forwarders[owner.forwarder_count]
                break
        self._unlock()
        srtp.destroy_session(<uintptr_t>f.srtp)
        forwarder_free(f)

    # -- figures -------------------------------------------------------------------------------------------------------

    def stats(self):
        cdef int i, k
        cdef dict counters, sender
        out = {}
        self._lock()
        for i in range(self.state.thread_count):
            counters = self.state.threads[i].counters
            sender = self.state.threads[i].sender.counters
            for k in range(DROP_COUNT):
                name = "drop_" + DROP_NAMES[k]
                out[name] = out.get(name, 0) + self.state.threads[i].counters.drops[k]
            for name in ("datagrams_in", "bytes_in", "rtp_in", "rtcp_in", "stun_in", "dtls_in", "forwarded", "resent",
                         "rtcp_out", "nacks_out", "keyframe_requests_out", "crossed", "batches", "wakeups"):
                out[name] = out.get(name, 0) + counters[name]
            for name, value in (
                ("datagrams_out", sender["datagrams"]), ("bytes_out", sender["bytes"]), ("send_calls", sender["calls"]),
                ("gso_trains", sender["trains"]), ("gso_datagrams", sender["train_datagrams"]), ("send_held", sender["held"]),
                ("drop_send_blocked", sender["dropped_blocked"]), ("drop_send_error", sender["dropped_error"]),
            ):
                out[name] = out.get(name, 0) + value
            for k in range(self.state.address_count):
                out["gso_refused"] = out.get("gso_refused", 0) + self.state.threads[i].sockets[k].gso_refused
        out["cache_bytes"] = self.state.cache_bytes
        self._unlock()
        out["transports"] = len(self.transports)
        out["tracks"] = len(self.tracks)
        out["forwarders"] = len(self.forwarders)
        return out

    def latency_histogram(self):
        cdef int i, k
        return [sum(self.state.threads[i].counters.latency[k] for i in range(self.state.thread_count)) for k in range(32)]

    def batch_histogram(self):
        cdef int i, k
        return [sum(self.state.threads[i].counters.batch_fill[k] for i in range(self.state.thread_count)) for k in range(16)]

    def transport_stats(self, transport):
        cdef Transport *t = self._transport(transport)
        return {
            "packets_in": t.packets_in,
            "bytes_in": t.bytes_in,
            "packets_out": t.packets_out,
            "bytes_out": t.bytes_out,
            "authentication_failures": t.authentication_failures,
            "replays": t.replays,
            "tuples": t.tuple_count,
            "ssrcs": t.incoming.count,
            "thread": t.owner,
        }

    def track_stats(self, track):
        cdef Track *t = self._track(track)
        cdef Stream *s
        cdef int i
        out = []
        self._lock()
        for i in range(t.layer_count):
            s = t.layers[i]
            out.append({
                "rid": s.rid.decode(),
                "ssrc": s.ssrc,
                "rtx_ssrc": s.rtx_ssrc,
                "packets": s.packets,
                "bytes": s.bytes,
                "bitrate_bps": s.bitrate,
                "lost": s.lost,
                "nacks_sent": s.nacks_sent,
                "repaired": s.loss.repaired,
                "rtt": s.rtt / 1e6,
                "jitter_ticks": s.jitter,
                "keyframes": s.keyframes,
                "keyframe_requests": s.keyframe_requests,
                "alive": int(s.alive),
                "cache_bytes": s.cache_bytes,
                "last_packet_at": s.last_packet / 1e6,
            })
        self._unlock()
        return out

    def forwarder_stats(self, forwarder):
        cdef Forwarder *f = self._forwarder(forwarder)
        return {
            "packets": f.packets,
            "bytes": f.bytes,
            "nacks_in": f.nacks_in,
            "answered": f.answered,
            "suppressed": f.suppressed,
            "missed": f.missed,
            "rtx_bytes": f.rtx_bytes,
            "plis_in": f.plis_in,
            "fraction_lost": f.fraction_lost / 256.0,
            "rtt": f.rtt / 1e6,
            "track": f.current.track.id if f.current.track != NULL else 0,
            "layer": f.current.stream.layer if f.current.stream != NULL else -1,
            "ssrc": f.ssrc,
            "waiting": int(f.next.track != NULL),
        }
