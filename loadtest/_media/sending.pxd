"""What a publisher sends: an encoded clip in a loop, on schedule, and the history from which NACKs are answered.

A `Clip` is made once and shared; a history entry names its packet and what was written around it, so that a resend
rebuilds the same bytes. The media clock never stops or jumps: only the place in the clip does, when a key frame is asked for.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from loadtest._media.heap cimport Timer
from loadtest._media.histogram cimport Buckets
from loadtest._media.machine cimport write16, write32

cdef enum:
    HISTORY = 1024              # packets
    BURST = 10                  # packets of a frame that leave together
    BURST_INTERVAL = 5000       # us until the next ones
    EXTENSIONS_MAX = 64         # bytes of the header extension block
    PACKET_MAX = 1400           # with RTX and SRTP
    CLOCK_BYTES = 10            # from the clock's first byte to the payload's end
    BEHIND_MAX = 500000         # us; a plane that late drops the schedule instead of sending a flood

cdef struct Clip:
    int frame_count
    uint32_t *first_packet      # of each frame; one more at the end
    uint8_t *is_key
    uint32_t *offset            # of each packet; one more at the end
    uint8_t *has_clock
    uint8_t *data
    int frames_per_second
    uint32_t clock_rate
    bint has_picture_id         # VP8: bytes 2 and 3 of each payload

cdef struct Sent:
    int64_t number              # -1: nothing yet
    int64_t clock
    uint32_t packet
    uint32_t timestamp
    uint16_t transport_seq
    uint16_t picture
    bint marker

cdef struct Extensions:
    uint8_t block[EXTENSIONS_MAX]   # with its four bytes of head
    int size
    int transport_cc_at         # where two bytes are filled in, -1: nowhere

cdef struct Outgoing:
    Timer timer                 # the next burst
    void *peer
    const Clip *clip
    uint32_t ssrc
    uint32_t rtx_ssrc           # 0: resend as it was
    uint8_t payload_type
    uint8_t rtx_payload_type
    Extensions extensions
    Extensions rtx_extensions
    int64_t number              # of the next packet
    uint16_t rtx_seq
    uint32_t timestamp          # of frame 0
    uint16_t picture
    int64_t started
    int64_t frames              # begun or sent
    int frame                   # in the clip
    int packet                  # within it, 0: not begun
    bint key_wanted
    Sent history[HISTORY]
    # Figures
    uint64_t packets
    uint64_t bytes
    uint64_t frames_sent
    uint64_t keyframes
    uint64_t nacks
    uint64_t resent
    uint64_t plis
    uint64_t reports
    int64_t reported_lost
    Buckets round_trip


cdef inline void outgoing_init(Outgoing *o) noexcept nogil:
    cdef int i
    memset(o, 0, sizeof(Outgoing))
    for i in range(HISTORY):
        o.history[i].number = -1


cdef inline int64_t frame_due(const Outgoing *o, int64_t frame) noexcept nogil:
    return o.started + frame * 1000000 // o.clip.frames_per_second


cdef inline uint32_t frame_timestamp(const Outgoing *o, int64_t frame) noexcept nogil:
    return o.timestamp + <uint32_t>(frame * (o.clip.clock_rate // <uint32_t>o.clip.frames_per_second))


cdef inline void outgoing_jump(Outgoing *o) noexcept nogil:
    """The next key frame of the clip, from the current one on, round the end."""
    cdef int i
    for i in range(o.clip.frame_count):
        if o.clip.is_key[o.frame]:
            return
        o.frame = (o.frame + 1) % o.clip.frame_count


cdef inline Sent *outgoing_next(Outgoing *o, int64_t now) noexcept nogil:
    """Enter the next packet of the current frame into the history; the frame goes on or ends with it."""
    cdef uint32_t packet
    cdef uint32_t end
    cdef Sent *e
    if o.packet == 0:
        if o.key_wanted:
            outgoing_jump(o)
            o.key_wanted = False
        o.picture = (o.picture + 1) & 0x7FFF
        if o.clip.is_key[o.frame]:
            o.keyframes += 1
    packet = o.clip.first_packet[o.frame] + <uint32_t>o.packet
    end = o.clip.first_packet[o.frame + 1]
    e = &o.history[o.number & (HISTORY - 1)]
    e.number = o.number
    e.clock = now
    e.packet = packet
    e.timestamp = frame_timestamp(o, o.frames)
    e.picture = o.picture
    e.marker = packet + 1 == end
    o.number += 1
    o.packet += 1
    o.packets += 1
    o.bytes += o.clip.offset[packet + 1] - o.clip.offset[packet]
    if e.marker:
        o.packet = 0
        o.frame = (o.frame + 1) % o.clip.frame_count
        o.frames += 1
        o.frames_sent += 1
    return e


cdef inline Sent *outgoing_find(Outgoing *o, int64_t number) noexcept nogil:
    cdef Sent *e
    if number < 0:
        return NULL
    e = &o.history[number & (HISTORY - 1)]
    return e if e.number == number else NULL


cdef inline void write_clock(uint8_t *at, int64_t time) noexcept nogil:
    """Nine bytes of seven bits, the top bit set."""
    cdef int i
    for i in range(9):
        at[i] = <uint8_t>(0x80 | ((time >> (7 * (8 - i))) & 0x7F))


cdef inline int64_t read_clock(const uint8_t *at) noexcept nogil:
    cdef int64_t value = 0
    cdef int i
    for i in range(9):
        value = (value << 7) | (at[i] & 0x7F)
    return value


cdef inline int outgoing_write(const Outgoing *o, const Sent *e, bint as_rtx, uint16_t transport_seq, uint8_t *out) noexcept nogil:
    """The RTP packet of a history entry, in the clear; PACKET_MAX bytes of room. Returns its size."""
    cdef const Clip *clip = o.clip
    cdef const Extensions *x = &o.rtx_extensions if as_rtx else &o.extensions
    cdef uint32_t size = clip.offset[e.packet + 1] - clip.offset[e.packet]
    cdef uint8_t *p = out + 12
    out[0] = 0x90 if x.size else 0x80
    out[1] = (0x80 if e.marker else 0) | (o.rtx_payload_type if as_rtx else o.payload_type)
    write16(out + 2, o.rtx_seq if as_rtx else <uint32_t>(e.number & 0xFFFF))
    write32(out + 4, e.timestamp)
    write32(out + 8, o.rtx_ssrc if as_rtx else o.ssrc)
    memcpy(p, x.block, x.size)
    if x.transport_cc_at >= 0:
        write16(p + x.transport_cc_at, transport_seq)
    p += x.size
    if as_rtx:
        write16(p, <uint32_t>(e.number & 0xFFFF))
        p += 2
    memcpy(p, clip.data + clip.offset[e.packet], size)
    if clip.has_picture_id:
        write16(p + 2, 0x8000 | e.picture)
    if clip.has_clock[e.packet]:
        write_clock(p + size - CLOCK_BYTES, e.clock)
    return <int>(p + size - out)
