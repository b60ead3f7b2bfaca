"""RTP packets: validate and take apart (RX-1), write the forwarded form (EXT-1, RTX-2). RFC 3550 5.1, RFC 8285, RFC 4588.

Works on borrowed memory: a view and its elements are valid as long as the bytes they were parsed from. Allocates nothing.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from sfu._dataplane.machine cimport read16, read32, write16, write24, write32
from sfu._dataplane.vp8 cimport Vp8Numbers, vp8_write

cdef enum:
    RTP_SIZE_MAX = 2048     # bytes; what a peer may send us in one packet
    RTP_GROWTH_MAX = 128    # bytes a rewritten packet may be longer than its source
    ELEMENTS_MAX = 16       # header extension elements looked at in one packet
    MID_LENGTH_MAX = 32

# Header extensions by internal id; `plane.pyi` names them.
cdef enum:
    X_MID = 1
    X_RID = 2
    X_REPAIRED_RID = 3
    X_TRANSPORT_CC = 4
    X_ABS_SEND_TIME = 5
    X_AUDIO_LEVEL = 6
    X_CSRC_AUDIO_LEVEL = 7
    X_PLAYOUT_DELAY = 8
    X_VIDEO_ORIENTATION = 9
    X_ABS_CAPTURE_TIME = 10
    X_VIDEO_CONTENT_TYPE = 11
    X_COLOR_SPACE = 12
    X_DEPENDENCY_DESCRIPTOR = 13
    X_COUNT = 14
    X_FIRST_COPIED = 6      # from here on elements travel as they are

cdef struct Element:
    uint8_t kind            # X_*
    uint8_t length
    uint16_t offset         # from the start of the packet

cdef struct RtpView:
    const uint8_t *data
    int size
    int header_size         # fixed header, CSRCs and extension
    int payload_size        # without padding
    int padding_size
    uint8_t payload_type
    uint8_t marker
    uint8_t csrc_count
    uint8_t element_count
    uint16_t seq
    uint32_t timestamp
    uint32_t ssrc
    Element elements[ELEMENTS_MAX]

cdef struct HeaderTemplate:
    # What one subscriber negotiated; the same for each of its packets.
    uint8_t out_id[X_COUNT]     # X_* to the wire's id, 0: not negotiated
    uint8_t mid[MID_LENGTH_MAX]
    uint8_t mid_length
    uint8_t two_byte_always     # an id above 14 or a long MID among the elements of every packet

cdef struct OutFields:
    # What differs from packet to packet. -1 leaves the element (or the OSN) out.
    uint8_t payload_type
    uint8_t marker
    uint16_t seq
    uint32_t timestamp
    uint32_t ssrc
    int32_t transport_seq
    int32_t send_time
    int32_t osn
    Vp8Numbers vp8              # to write into the payload's descriptor; none: it stays as it is


cdef inline bint parse_elements(RtpView *view, const uint8_t *ids, uint16_t profile, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """RX-4: known elements of one block; the first of a kind counts; a broken element ends the block, not the packet."""
    cdef bint two_byte = (profile & 0xFFF0) == 0x1000
    cdef int length, wire_id
    cdef uint8_t kind
    cdef uint32_t seen = 0
    if not two_byte and profile != 0xBEDE:
        return True
    while p < end:
        if p[0] == 0:
            p += 1
            continue
        if two_byte:
            if end - p < 2:
                return False
            wire_id, length = p[0], p[1]
            p += 2
        else:
            wire_id, length = p[0] >> 4, (p[0] & 15) + 1
            p += 1
            if wire_id == 15 or wire_id == 0:   # RFC 8285 4.2: reserved; a lone zero byte was padding
                return True
        if length > end - p:
            return False
        kind = ids[wire_id]
        if kind and not seen & (1u << kind) and view.element_count < ELEMENTS_MAX:
            seen |= 1u << kind
            view.elements[view.element_count].kind = kind
            view.elements[view.element_count].length = <uint8_t>length
            view.elements[view.element_count].offset = <uint16_t>(p - view.data)
            view.element_count += 1
        p += length
    return True


cdef inline bint parse_rtp(RtpView *view, const uint8_t *data, int size, const uint8_t *ids) noexcept nogil:
    """RX-1. `ids` maps the wire's 256 extension ids to X_*. False: not a valid packet (payload type not judged here)."""
    cdef int header, extension, padding
    if size < 12 or data[0] >> 6 != 2:
        return False
    view.data = data
    view.size = size
    view.csrc_count = data[0] & 15
    view.element_count = 0
    header = 12 + 4 * view.csrc_count
    if header > size:
        return False
    if data[0] & 0x10:
        if header + 4 > size:
            return False
        extension = 4 * read16(data + header + 2)
        if header + 4 + extension > size:
            return False
        parse_elements(view, ids, read16(data + header), data + header + 4, data + header + 4 + extension)
        header += 4 + extension
    padding = 0
    if data[0] & 0x20:
        if header >= size:
            return False
        padding = data[size - 1]
        if padding == 0 or padding > size - header:
            return False
    view.header_size = header
    view.padding_size = padding
    view.payload_size = size - header - padding
    view.marker = data[1] >> 7
    view.payload_type = data[1] & 0x7F
    view.seq = read16(data + 2)
    view.timestamp = read32(data + 4)
    view.ssrc = read32(data + 8)
    return True


cdef inline const Element *find_element(const RtpView *view, uint8_t kind) noexcept nogil:
    cdef int i
    for i in range(view.element_count):
        if view.elements[i].kind == kind:
            return &view.elements[i]
    return NULL


cdef inline void finish_template(HeaderTemplate *t) noexcept nogil:
    """Call after `out_id` or `mid` changed."""
    t.two_byte_always = (
        (t.out_id[X_MID] != 0 and t.mid_length != 0 and (t.out_id[X_MID] > 14 or t.mid_length > 16))
        or t.out_id[X_TRANSPORT_CC] > 14
        or t.out_id[X_ABS_SEND_TIME] > 14
    )


cdef inline uint8_t *put_element(uint8_t *p, bint two_byte, uint8_t wire_id, const uint8_t *data, int length) noexcept nogil:
    if two_byte:
        p[0] = wire_id
        p[1] = <uint8_t>length
        p += 2
    else:
        p[0] = <uint8_t>((wire_id << 4) | (length - 1))
        p += 1
    memcpy(p, data, length)
    return p + length


cdef inline uint8_t *write_extension(uint8_t *block, const RtpView *source, const HeaderTemplate *t, const OutFields *f) noexcept nogil:
    """The extension block at `block`; returns its end, `block` itself when there is no element to write.

    MID, transport-cc and abs-send-time come first, so their offsets are the same in each packet of a subscriber.
    """
    cdef bint two_byte = t.two_byte_always
    cdef uint8_t *p = block + 4
    cdef uint8_t number[3]
    cdef const Element *e
    cdef uint8_t wire_id
    cdef int i
    if not two_byte:
        for i in range(source.element_count):
            e = &source.elements[i]
            if e.kind >= X_FIRST_COPIED:
                wire_id = t.out_id[e.kind]
                if wire_id and (wire_id > 14 or e.length == 0 or e.length > 16):
                    two_byte = True
    if t.mid_length and t.out_id[X_MID]:
        p = put_element(p, two_byte, t.out_id[X_MID], t.mid, t.mid_length)
    if f.transport_seq >= 0 and t.out_id[X_TRANSPORT_CC]:
        write16(number, <uint32_t>f.transport_seq)
        p = put_element(p, two_byte, t.out_id[X_TRANSPORT_CC], number, 2)
    if f.send_time >= 0 and t.out_id[X_ABS_SEND_TIME]:
        write24(number, <uint32_t>f.send_time)
        p = put_element(p, two_byte, t.out_id[X_ABS_SEND_TIME], number, 3)
    for i in range(source.element_count):
        e = &source.elements[i]
        if e.kind >= X_FIRST_COPIED and t.out_id[e.kind]:
            p = put_element(p, two_byte, t.out_id[e.kind], source.data + e.offset, e.length)
    if p == block + 4:
        return block
    while (p - block) & 3:
        p[0] = 0
        p += 1
    write16(block, 0x1000 if two_byte else 0xBEDE)
    write16(block + 2, <uint32_t>((p - block) >> 2) - 1)
    return p


cdef inline uint8_t *write_header(uint8_t *out, const RtpView *source, const HeaderTemplate *t, const OutFields *f) noexcept nogil:
    """Fixed header, CSRCs and extension; the padding bit is clear. Returns where the payload goes."""
    cdef uint8_t *p
    cdef uint8_t *end
    out[0] = 0x80 | source.csrc_count
    out[1] = <uint8_t>((f.marker << 7) | f.payload_type)
    write16(out + 2, f.seq)
    write32(out + 4, f.timestamp)
    write32(out + 8, f.ssrc)
    p = out + 12
    if source.csrc_count:
        memcpy(p, source.data + 12, 4 * source.csrc_count)
        p += 4 * source.csrc_count
    end = write_extension(p, source, t, f)
    if end != p:
        out[0] |= 0x10
    return end


cdef inline int write_packet(uint8_t *out, const RtpView *source, const HeaderTemplate *t, const OutFields *f) noexcept nogil:
    """One forwarded packet at `out` (source size + RTP_GROWTH_MAX bytes free). Returns its size.

    Without an OSN padding travels with the payload; with one it is removed (RTX-2).
    """
    cdef uint8_t *p = write_header(out, source, t, f)
    cdef int payload = source.payload_size
    if f.osn >= 0:
        write16(p, <uint32_t>f.osn)
        p += 2
    elif source.padding_size:
        out[0] |= 0x20
        payload += source.padding_size
    if f.vp8.fields:
        return <int>(p - out) + vp8_write(p, source.data + source.header_size, payload, &f.vp8)
    memcpy(p, source.data + source.header_size, payload)
    return <int>(p - out) + payload


cdef inline int write_padding_packet(uint8_t *out, const RtpView *source, const HeaderTemplate *t, const OutFields *f) noexcept nogil:
    """A padding-only packet that fills an out slot (FWD-2). Returns its size."""
    cdef RtpView empty
    cdef uint8_t *p
    memset(&empty, 0, sizeof(RtpView))
    p = write_header(out, &empty, t, f)
    out[0] |= 0x20
    p[0] = p[1] = p[2] = 0
    p[3] = 4
    return <int>(p - out) + 4
