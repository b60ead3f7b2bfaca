"""Making, moving and unmaking objects of the graph. Only Python's thread calls this, holding every lock."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from sfu._dataplane.binding cimport bind_media
from sfu._dataplane.cache cimport cache_destroy
from sfu._dataplane.forward cimport drop_source
from sfu._dataplane.graph cimport (
    BOUND_MEDIA, BOUND_ORPHAN, BOUND_RTX, Fanout, Forwarder, ForwarderList, PlaneState, Source, Stream, Thread, Track,
    Transport,
)
from sfu._dataplane.ledger cimport ledger_destroy
from sfu._dataplane.loss cimport loss_destroy, loss_init
from sfu._dataplane.machine cimport add_i64
from sfu._dataplane.ops cimport list_add, list_remove
from sfu._dataplane.sequence cimport unwrapper_init
from sfu._dataplane.tables cimport table_delete, table_put, tuple_delete
from wire._batch.udp cimport Address, same_address

cdef enum:
    MAX_DROPOUT = 3000
    MAX_MISORDER = 1500
    NACK_FIRST_DELAY = 5000     # us


cdef inline Thread *home(PlaneState *plane, Transport *transport) noexcept nogil:
    """The thread whose lists hold the transport's forwarders: the owner, or the first one before there is an owner."""
    return &plane.threads[transport.owner if transport.owner >= 0 else 0]


cdef inline Stream *stream_new(Track *track, uint64_t stream_id) noexcept nogil:
    """NULL: memory is short."""
    cdef Stream *s = <Stream *>calloc(1, sizeof(Stream))
    cdef int i
    if s == NULL:
        return NULL
    s.fanout = <Fanout *>calloc(track.thread_count, sizeof(Fanout))
    if s.fanout == NULL:
        free(s)
        return NULL
    for i in range(track.thread_count):
        s.fanout[i].first_job = -1
    s.id = stream_id
    s.track = track
    s.first_seq = -1
    s.last_keyframe = -1
    s.cache.highest = -1
    unwrapper_init(&s.unwrapper, MAX_DROPOUT, MAX_MISORDER)
    loss_init(&s.loss, track.video, NACK_FIRST_DELAY)
    return s


cdef inline void track_free(PlaneState *plane, Track *track) noexcept nogil:
    """After `remove_track_links`, or before it was linked."""
    cdef Stream *s
    cdef int i, k
    for i in range(track.layer_count):
        s = track.layers[i]
        add_i64(&plane.cache_bytes, -<int64_t>s.cache_bytes)
        cache_destroy(&s.cache)
        loss_destroy(&s.loss)
        for k in range(track.thread_count):
            free(s.fanout[k].forwarders.items)
        free(s.fanout)
        free(s)
    if track.members != NULL:
        for k in range(track.thread_count):
            free(track.members[k].items)
    free(track.members)
    free(track)


cdef inline void remove_track_links(PlaneState *plane, Track *track) noexcept nogil:
    """Forwarders it fed fall silent; its SSRCs stay known, but to nothing."""
    cdef ForwarderList *members
    cdef Forwarder *f
    cdef Transport *owner = track.transport
    cdef int i, k
    cdef uint64_t n
    for i in range(plane.thread_count):
        members = &track.members[i]
        while members.count:
            f = members.items[members.count - 1]
            if f.current.track == track:
                drop_source(&plane.threads[i], f, &f.current)
            if f.next.track == track:
                drop_source(&plane.threads[i], f, &f.next)
            list_remove(members, f)
    for k in range(track.layer_count):
        table_delete(&plane.streams, track.layers[k].id)
        for n in range(owner.incoming.capacity):
            if owner.incoming.entries[n].key and owner.incoming.entries[n].value == track.layers[k]:
                owner.incoming.entries[n].value = NULL
                owner.incoming.entries[n].extra = BOUND_ORPHAN


cdef inline void refresh_extensions(Transport *owner) noexcept nogil:
    """One id means one extension in all sections of a bundle (RFC 9143 9.1): the transport keeps their union."""
    cdef int i, k
    memset(owner.ids, 0, sizeof(owner.ids))
    for i in range(owner.track_count):
        for k in range(256):
            if owner.tracks[i].ids[k]:
                owner.ids[k] = owner.tracks[i].ids[k]


cdef inline void bind_pair(PlaneState *plane, Stream *s, uint32_t media, uint32_t rtx) noexcept nogil:
    """Signalled SSRCs of a layer; 0: not signalled."""
    cdef Transport *owner = s.track.transport
    if media and media != s.ssrc:
        bind_media(home(plane, owner), owner, s, media)
        table_put(&owner.incoming, <uint64_t>media + 1, s, BOUND_MEDIA)
    if rtx and rtx != media:
        s.rtx_ssrc = rtx
        table_put(&owner.incoming, <uint64_t>rtx + 1, s, BOUND_RTX)


cdef inline void remove_forwarder_links(PlaneState *plane, Forwarder *f) noexcept nogil:
    cdef Thread *t = home(plane, f.transport)
    drop_source(t, f, &f.next)
    drop_source(t, f, &f.current)
    table_delete(&f.transport.outgoing, <uint64_t>f.ssrc + 1)
    if f.rtx_ssrc:
        table_delete(&f.transport.outgoing, <uint64_t>f.rtx_ssrc + 1)


cdef inline void forwarder_free(Forwarder *f) noexcept nogil:
    """After `remove_forwarder_links`; its SRTP session is the caller's."""
    ledger_destroy(&f.ledger)
    free(f)


cdef inline void move_source(Forwarder *f, Source *source, int from_, int to) noexcept nogil:
    if source.track != NULL:
        list_remove(&source.track.members[from_], f)
        list_add(&source.track.members[to], f)
    if source.stream != NULL:
        list_remove(&source.stream.fanout[from_].forwarders, f)
        list_add(&source.stream.fanout[to].forwarders, f)


cdef inline void relocate(PlaneState *plane, Transport *transport, int owner) noexcept nogil:
    """Fix the thread that owns a transport; its forwarders' list entries move there."""
    cdef int i, from_ = home(plane, transport).index
    transport.owner = owner
    if from_ == owner:
        return
    for i in range(transport.forwarder_count):
        move_source(transport.forwarders[i], &transport.forwarders[i].current, from_, owner)
        move_source(transport.forwarders[i], &transport.forwarders[i].next, from_, owner)


cdef inline void remove_tuple(PlaneState *plane, Transport *transport, int socket_index, const Address *remote) noexcept nogil:
    cdef int i, k
    for i in range(transport.tuple_count):
        if transport.tuples[i].socket_index == socket_index and same_address(&transport.tuples[i].remote, remote):
            tuple_delete(&plane.tuples, socket_index, &transport.tuples[i].remote)
            transport.tuple_count -= 1
            for k in range(i, transport.tuple_count):
                transport.tuples[k] = transport.tuples[k + 1]
            return


cdef inline void remove_tuples(PlaneState *plane, Transport *transport) noexcept nogil:
    while transport.tuple_count:
        remove_tuple(plane, transport, transport.tuples[0].socket_index, &transport.tuples[0].remote)
