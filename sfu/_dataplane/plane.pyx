"""Class Plane: Python's hands on the graph. The per-packet code is in the `.pxd` files; start with `worker.pxd`.

Each method that changes the graph does so between `lock_graph` and `unlock_graph`: every thread is then between two
datagrams. What may fail or take long (sessions, allocation, parsing of arguments) comes before the lock.
"""

import os
import secrets
import threading

from sfu._dataplane import srtp
from sfu._dataplane.endpoint import bind_sockets, open_poller, watch

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from sfu._dataplane cimport graph, keyframe, packet, tables, upcalls
from sfu._dataplane.arguments cimport fill_cname, fill_mid, fill_payload_types, fill_rid, fill_template, fill_track
from sfu._dataplane.cache cimport cache_clear
from sfu._dataplane.deliver cimport deliver_ring
from sfu._dataplane.figures cimport (
    batch_figures, forwarder_figures, latency_figures, plane_figures, stream_figures, transport_figures,
)
from sfu._dataplane.forward cimport choose_source, drop_source, restart_forwarder
from sfu._dataplane.graph cimport (
    ADDRESSES_MAX, LAYERS_MAX, THREADS_MAX, TUPLES_MAX, Forwarder, ForwarderList, PlaneState,
    Source, Stream, Thread, Track, Transport, c_read, pthread_mutex_init,
)
from sfu._dataplane.keyframes cimport want_keyframe
from sfu._dataplane.ledger cimport ledger_init
from sfu._dataplane.link cimport (
    bind_pair, forwarder_free, home, refresh_extensions, relocate, remove_forwarder_links, remove_track_links,
    remove_tuple, remove_tuples, stream_new, track_free,
)
from sfu._dataplane.machine cimport clock_us, exchange_int, fence, store_int
from sfu._dataplane.ops cimport list_add, signal_fd, unschedule, wake
from sfu._dataplane.sequence cimport map_init
from sfu._dataplane.setup cimport free_state, make_threads
from sfu._dataplane.sockets cimport socket_count, socket_of, thread_of
from sfu._dataplane.worker cimport lock_graph, run_thread, unlock_graph
from wire._batch.exchange cimport End
from wire._batch.inbox cimport INBOX_FULL, POSTED, SLOT_BYTES, Posting, inbox_post, inbox_wake
from wire._batch.udp cimport Address, Socket, enable_gro, parse_address, same_address

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

LEDGER_SLOTS_VIDEO = 256    # at first; timers grow it
LEDGER_SLOTS_AUDIO = 64


cdef class Plane:
    cdef PlaneState *state
    cdef list sockets
    cdef list workers
    cdef int bound_port
    cdef uint64_t last_id
    cdef int max_transports
    cdef int max_tuples
    cdef dict transports        # id to address of the C struct
    cdef dict tracks
    cdef dict forwarders
    cdef dict used_ssrcs        # transport id to SSRCs it ever sent (SRTP-4)
    cdef bint closed
    cdef End exchange           # with another plane, or None; outlives the threads
    cdef bint joined            # and it has our inboxes open
    cdef uint64_t answered_near # datagrams that Python sent to it

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
        End exchange=None,
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
        if exchange is not None and exchange.threads != threads:
            raise ValueError(f"an exchange for {exchange.threads} threads")
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
            make_threads(self.state, threads, len(addresses), max_transports, upcall_slots)
            self._open_descriptors(gso)
            self.exchange = exchange
        except BaseException:
            self.close()
            raise

    cdef int _open_descriptors(self, bint gso) except -1:
        cdef Thread *t
        cdef int i, k
        cdef int addresses = self.state.address_count
        for i in range(self.state.thread_count):
            t = &self.state.threads[i]
            t.random = secrets.randbits(64)
            t.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            for k in range(addresses):
                t.sockets[k].fd = self.sockets[i * addresses + k].fileno()
                t.sockets[k].gso = gso
                enable_gro(t.sockets[k].fd)
            t.epoll_fd = open_poller([t.wake_fd, *(t.sockets[k].fd for k in range(addresses))])
        return 0

    cdef int _join_exchange(self) except -1:
        """Make the sockets in memory, and let every thread watch its inbox."""
        cdef PlaneState *state = self.state
        cdef Socket *sock
        cdef int thread, address, far
        self.exchange.attach()
        self.joined = True
        state.near_sockets = <Socket *>calloc(
            max(1, state.thread_count * self.exchange.own.address_count * self.exchange.far.threads), sizeof(Socket)
        )
        if state.near_sockets == NULL:
            raise MemoryError
        state.near = self.exchange.own
        state.far = self.exchange.far
        sock = state.near_sockets
        for thread in range(state.thread_count):
            for address in range(state.near.address_count):
                for far in range(state.far.threads):
                    sock.fd = -1
                    sock.inbox = &state.far.inboxes[far]
                    sock.local = state.near.addresses[address]
                    sock.thread = thread
                    sock += 1
            state.threads[thread].inbox = &state.near.inboxes[thread]
            watch(state.threads[thread].epoll_fd, state.threads[thread].inbox.wake_fd)
        return 0

    @property
    def port(self):
        return self.bound_port

    def start(self):
        if self.workers or self.closed:
            raise RuntimeError("a plane starts once")
        if self.exchange is not None:
            self._join_exchange()
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
        if self.closed or self.state == NULL:
            return
        self.closed = True
        store_int(&self.state.stopping, 1)
        for i in range(self.state.thread_count):
            if self.state.threads[i].wake_fd >= 0:
                signal_fd(self.state.threads[i].wake_fd)
        for worker in self.workers:
            worker.join()
        if self.joined:
            self.exchange.detach()
        for transport in list(self.transports):
            self.remove_transport(transport)
        for sock in self.sockets:
            sock.close()
        self._free()

    cdef int _free(self) except -1:
        cdef int i
        for i in range(self.state.thread_count):
            for descriptor in (self.state.threads[i].wake_fd, self.state.threads[i].epoll_fd):
                if descriptor >= 0:
                    os.close(descriptor)
        if self.state.upcall_fd >= 0:
            os.close(self.state.upcall_fd)
        free_state(self.state)
        self.state = NULL
        return 0

    def __del__(self):
        self.close()

    # -- helpers -------------------------------------------------------------------------------------------------------

    cdef int _lock(self) except -1:
        cdef int i
        if self.state == NULL:
            raise ValueError("the plane is closed")
        with nogil:
            lock_graph(self.state)
            for i in range(self.state.thread_count):
                self.state.threads[i].now = clock_us()
        return 0

    cdef void _unlock(self) noexcept:
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
        if self.state == NULL:
            raise ValueError("the plane is closed")
        if not 0 <= index < socket_count(self.state):
            raise ValueError(f"socket {index}")
        parse_address(out, host, port)
        return index

    # -- upcalls -------------------------------------------------------------------------------------------------------

    def fileno(self):
        if self.closed:
            raise ValueError("the plane is closed")
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
            deliver_ring(&self.state.threads[i].owned, out, limit)
        for i in range(self.state.thread_count):
            deliver_ring(&self.state.threads[i].strangers, out, limit)
        if len(out) >= limit and exchange_int(&self.state.upcall_pending, 1) == 0:
            signal_fd(self.state.upcall_fd)
        return out

    def send_datagram(self, bytes data, path):
        cdef Address remote
        cdef int at
        index, host, port = path
        if index >= len(self.sockets):
            at = self._parse_path(path, &remote)
            return self._send_near(at, &remote, data)
        if index < 0:
            raise ValueError(f"socket {index}")
        try:
            self.sockets[index].sendto(data, (host, port))
        except OSError:
            return False    # full buffer, or no route: the peer retransmits
        return True

    cdef bint _send_near(self, int index, const Address *remote, bytes data) noexcept:
        cdef Socket *sock = socket_of(self.state, thread_of(self.state, index), index)
        cdef Posting posting = INBOX_FULL
        if len(data) <= SLOT_BYTES:
            posting = inbox_post(
                sock.inbox, sock.thread, &sock.local, remote, <const uint8_t *>PyBytes_AS_STRING(data), <uint32_t>len(data)
            )
        if posting == POSTED:
            self.answered_near += 1
            inbox_wake(sock.inbox)
        return posting == POSTED

    # -- transports ----------------------------------------------------------------------------------------------------

    def add_transport(self):
        cdef Transport *transport
        if self.closed:
            raise ValueError("the plane is closed")
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
            relocate(self.state, t, thread_of(self.state, index))
        t.socket = socket_of(self.state, t.owner, index)
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
        cdef int i
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
            fill_mid(track.mid, &track.mid_length, mid)
            track.members = <ForwarderList *>calloc(track.thread_count, sizeof(ForwarderList))
            if track.members == NULL:
                raise MemoryError
            fill_track(track, codecs, extensions)
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
        refresh_extensions(owner)
        self._bind_signalled(track, ssrcs)
        self._unlock()
        self.tracks[track.id] = <uintptr_t>track
        return track.id

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

    cdef int _bind_signalled(self, Track *track, ssrcs) except -1:
        """Under the lock: signalled pairs, in layer order."""
        for layer, (media, rtx) in enumerate(ssrcs):
            if layer < track.layer_count:
                bind_pair(self.state, track.layers[layer], media, rtx)
        return 0

    def update_track(self, track, *, codecs, extensions, rids=(), ssrcs=()):
        cdef Track *t = self._track(track)
        cdef Track filled
        cdef int i
        wanted = list(rids) or [""]
        have = [t.layers[i].rid.decode() for i in range(t.layer_count)]
        added = [rid for rid in wanted if rid not in have]
        if len(added) + len(have) - (have == [""]) > LAYERS_MAX:
            raise ValueError(f"more than {LAYERS_MAX} layers")
        pairs = [(int(media), int(rtx)) for media, rtx in ssrcs]
        memset(&filled, 0, sizeof(filled))
        fill_track(&filled, codecs, extensions)
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
            if added and have == [""]:
                fill_rid(t.layers[0].rid, added.pop(0))
            i = t.layer_count
            self._add_layers(t, added)
            for i in range(i, t.layer_count):
                tables.table_put(&self.state.streams, t.layers[i].id, t.layers[i], 0)
            refresh_extensions(t.transport)
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
        refresh_extensions(owner)
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
        cdef int i
        used = self.used_ssrcs[transport]
        for value in (ssrc, rtx_ssrc) if rtx_ssrc else (ssrc,):
            if not 0 < value <= 0xFFFFFFFF or value in used:
                raise ValueError(f"SSRC {value} is 0, too large, or was used before")
        if ssrc == rtx_ssrc:
            raise ValueError(f"SSRC {ssrc} for both media and RTX")
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
            fill_template(f, mid, extensions)
            fill_cname(f, cname)
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

    def set_source(
        self, forwarder, track, *, str rid="", bint fallback=True, payload_types, rtx_payload_types, str cname=""
    ):
        cdef Forwarder *f = self._forwarder(forwarder)
        cdef Track *source_track = self._track(track) if track else NULL
        cdef Source source
        cdef Thread *t
        memset(&source, 0, sizeof(source))
        source.track = source_track
        fill_rid(source.rid, rid)
        source.fallback = fallback
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
                    fill_cname(f, cname)
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
        self._lock()
        try:
            out = plane_figures(self.state)
        finally:
            self._unlock()
        out["in_memory_out"] += self.answered_near
        out["transports"] = len(self.transports)
        out["tracks"] = len(self.tracks)
        out["forwarders"] = len(self.forwarders)
        return out

    def latency_histogram(self):
        self._lock()
        try:
            return latency_figures(self.state)
        finally:
            self._unlock()

    def batch_histogram(self):
        self._lock()
        try:
            return batch_figures(self.state)
        finally:
            self._unlock()

    def transport_stats(self, transport):
        return transport_figures(self._transport(transport))

    def track_stats(self, track):
        cdef Track *t = self._track(track)
        cdef int i
        self._lock()
        try:
            return [stream_figures(t.layers[i]) for i in range(t.layer_count)]
        finally:
            self._unlock()

    def forwarder_stats(self, forwarder):
        cdef Forwarder *f = self._forwarder(forwarder)
        self._lock()
        try:
            return forwarder_figures(f)
        finally:
            self._unlock()
