"""What arrives: datagrams told apart, SRTP opened, media counted; STUN and DTLS handed up to Python."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from loadtest._media.arrivals cimport arrivals_record
from loadtest._media.feedback cimport ask_key, take_rtcp
from loadtest._media.frames cimport payload_flags
from loadtest._media.graph cimport CONTROL_MAX, DIRECT, MAGIC_BYTES, MEDIA, RELAYED, Incoming, Peer, State
from loadtest._media.heap cimport timer_arm
from loadtest._media.machine cimport c_write, now_us, read16, read32, write16, write32
from loadtest._media.reception cimport (
    EMPTY, END, FIRST_DELAY, NEW, Reception, reception_clock, reception_take, reception_wants_key,
)
from loadtest._media.sending cimport read_clock
from wire._batch.udp cimport Datagram, receive_batch, received


cdef inline void hand_up(State *s, Peer *p, int kind, const uint8_t *data, int size) noexcept nogil:
    """To Python: eight bytes of kind and peer before the datagram."""
    cdef uint8_t message[8 + CONTROL_MAX]
    if size > CONTROL_MAX:
        return
    write32(message, <uint32_t>kind)
    write32(message + 4, <uint32_t>p.id)
    memcpy(message + 8, data, size)
    if c_write(s.upcall_fd, message, 8 + size) < 0:
        s.upcalls_lost += 1


cdef inline void hand_up_media(State *s, Incoming *i, uint16_t seq, const uint8_t *data, int at, int end) noexcept nogil:
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
    hand_up(s, i.peer, MEDIA, message, 12 + end - at)


cdef inline void take_media(State *s, Incoming *i, uint16_t seq, uint8_t *data, int at, int end, bint repaired, int64_t now) noexcept nogil:
    cdef Reception *r = &i.reception
    cdef int flags = payload_flags(i.codec, data + at, end - at)
    cdef uint32_t tail = s.tail_bytes
    cdef const uint8_t *clock
    if data[1] & 0x80:
        flags |= END
    if reception_take(r, seq, read32(data + 4), flags, end - at, repaired, now) != NEW:
        return
    if not flags & EMPTY:
        clock = data + end - tail
        if <uint32_t>(end - at) >= tail and memcmp(clock, s.magic, MAGIC_BYTES) == 0:
            reception_clock(r, read_clock(clock + MAGIC_BYTES), now)
        if i.hand_up:
            hand_up_media(s, i, seq, data, at, end)
    if r.missing_count and i.timer.place < 0:
        timer_arm(&s.heap, &i.timer, now + FIRST_DELAY)
    if r.waiting and reception_wants_key(r, now):
        ask_key(s, i)


cdef inline void note_arrival(State *s, Peer *p, const uint8_t *block, int words, int64_t now) noexcept nogil:
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


cdef inline void take_rtp(State *s, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
    cdef int at = 12 + 4 * (data[0] & 15), end, i, words
    cdef uint32_t ssrc
    cdef bint rtx = False
    if s.unprotect(p.receiving, data, &size) != 0:
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
            note_arrival(s, p, data + at, words, now)
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
        take_media(s, p.incoming[i], read16(data + at), data, at + 2, end, True, now)
    else:
        take_media(s, p.incoming[i], read16(data + 2), data, at, end, False, now)


cdef inline void take(State *s, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
    """One datagram (RFC 7983)."""
    cdef int kind = DIRECT
    s.datagrams_received += 1
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
            take_rtcp(s, p, data, size, now)
        else:
            take_rtp(s, p, data, size, now)
    else:
        hand_up(s, p, kind, data, size)


cdef inline void receive(State *s, Peer *p) noexcept nogil:
    cdef Datagram d
    cdef int i, at, size
    cdef int count = receive_batch(s.receiver, p.socket.fd)
    cdef int64_t now = now_us()
    for i in range(count):
        received(s.receiver, i, &d)
        if d.truncated:
            continue
        at = 0
        while at < d.size:
            size = d.size - at if d.size - at < d.segment_size else d.segment_size
            take(s, p, d.data + at, size, now)
            at += size
