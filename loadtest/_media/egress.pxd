"""What leaves: packets written in place, protected, queued for the next flush; clips on their schedule."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from loadtest._media.graph cimport CHANNEL_HEAD, TRAILER, Peer, State
from loadtest._media.heap cimport timer_arm
from loadtest._media.histogram cimport buckets_record
from loadtest._media.machine cimport write16
from loadtest._media.sending cimport (
    BEHIND_MAX, BURST, BURST_INTERVAL, PACKET_MAX, Outgoing, Sent, frame_due, outgoing_next, outgoing_write,
)
from wire._batch.udp cimport sender_commit, sender_flush, sender_room


cdef inline uint8_t *room(State *s, Peer *p) noexcept nogil:
    """Where a packet of at most PACKET_MAX bytes for this peer is to be written."""
    cdef uint8_t *at = sender_room(s.sender, CHANNEL_HEAD + PACKET_MAX + TRAILER)
    if at == NULL:
        sender_flush(s.sender)
        at = sender_room(s.sender, CHANNEL_HEAD + PACKET_MAX + TRAILER)
    return at + (CHANNEL_HEAD if p.channel else 0)


cdef inline void commit(State *s, Peer *p, uint8_t *at, int size) noexcept nogil:
    if p.channel:
        write16(at - CHANNEL_HEAD, p.channel)
        write16(at - 2, <uint32_t>size)
        size += CHANNEL_HEAD
    sender_commit(s.sender, &p.socket, &p.to, <uint32_t>size, False, 0, NULL)
    p.sent += 1


cdef inline void send_rtp(State *s, Outgoing *o, const Sent *e, bint as_rtx) noexcept nogil:
    cdef Peer *p = <Peer *>o.peer
    cdef uint8_t *at = room(s, p)
    cdef uint16_t transport_seq = e.transport_seq
    cdef int size
    if as_rtx:
        transport_seq = p.transport_seq
        p.transport_seq += 1
    size = outgoing_write(o, e, as_rtx, transport_seq, at)
    if as_rtx:
        o.rtx_seq += 1
    if s.protect(p.sending, at, &size) == 0:
        commit(s, p, at, size)


cdef inline void send_rtcp(State *s, Peer *p, uint8_t *at, int size) noexcept nogil:
    """A compound written at `room`."""
    if s.protect_rtcp(p.sending, at, &size) == 0:
        commit(s, p, at, size)


cdef inline void send_burst(State *s, Outgoing *o, int64_t now) noexcept nogil:
    cdef Peer *p = <Peer *>o.peer
    cdef int64_t due = o.timer.due
    cdef Sent *e = NULL
    cdef int i
    buckets_record(&s.lag, now - due)
    if now - due > BEHIND_MAX:
        o.started += now - due
        s.schedules_dropped += 1
    for i in range(BURST):
        e = outgoing_next(o, now)
        e.transport_seq = p.transport_seq
        p.transport_seq += 1
        send_rtp(s, o, e, False)
        if e.marker:
            break
    if e.marker:
        timer_arm(&s.heap, &o.timer, frame_due(o, o.frames))
    else:
        timer_arm(&s.heap, &o.timer, due + BURST_INTERVAL)
