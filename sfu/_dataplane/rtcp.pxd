"""RTCP packets as bytes: writers, and a walk over a compound that reads nothing past its end.

RFC 3550 6.4 to 6.6 (SR, RR, SDES, BYE), RFC 4585 6.2.1, 6.3.1 (NACK, PLI), RFC 5104 4.3.1 (FIR), RFC 3611 4.5 (DLRR).
Writers return the size written; the caller guarantees the room. Allocates nothing.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from sfu._dataplane.machine cimport read16, read32, write16, write24, write32, write64

cdef enum:
    RTCP_SR = 200
    RTCP_RR = 201
    RTCP_SDES = 202
    RTCP_BYE = 203
    RTCP_RTPFB = 205
    RTCP_PSFB = 206
    RTCP_XR = 207
    FMT_NACK = 1
    FMT_TRANSPORT_CC = 15
    FMT_PLI = 1
    FMT_FIR = 4
    XR_RRTR = 4
    XR_DLRR = 5
    COMPOUND_MAX = 1200         # bytes of one compound, before SRTCP
    NACK_ITEMS_MAX = 253        # of one NACK packet (NACK-4)

cdef struct ReportBlock:
    uint32_t ssrc
    uint8_t fraction_lost
    int cumulative              # 24 bit signed
    uint32_t highest
    uint32_t jitter
    uint32_t last_sr
    uint32_t delay              # 1/65536 s

cdef struct RtcpPacket:
    const uint8_t *data
    int size
    uint8_t count               # or FMT
    uint8_t kind


cdef inline void rtcp_head(uint8_t *out, int count, int kind, int size) noexcept nogil:
    out[0] = <uint8_t>(0x80 | count)
    out[1] = <uint8_t>kind
    write16(out + 2, <uint32_t>(size // 4 - 1))


cdef inline void write_block(uint8_t *out, const ReportBlock *b) noexcept nogil:
    write32(out, b.ssrc)
    out[4] = b.fraction_lost
    write24(out + 5, <uint32_t>b.cumulative & 0xFFFFFF)
    write32(out + 8, b.highest)
    write32(out + 12, b.jitter)
    write32(out + 16, b.last_sr)
    write32(out + 20, b.delay)


cdef inline void read_block(const uint8_t *data, ReportBlock *b) noexcept nogil:
    b.ssrc = read32(data)
    b.fraction_lost = data[4]
    b.cumulative = <int>((data[5] << 16) | (data[6] << 8) | data[7])
    if b.cumulative & 0x800000:
        b.cumulative -= 0x1000000
    b.highest = read32(data + 8)
    b.jitter = read32(data + 12)
    b.last_sr = read32(data + 16)
    b.delay = read32(data + 20)


cdef inline int write_receiver_report(uint8_t *out, uint32_t ssrc, const ReportBlock *blocks, int count) noexcept nogil:
    """At most 31 blocks; none is legal and begins a compound of feedback."""
    cdef int i
    rtcp_head(out, count, RTCP_RR, 8 + 24 * count)
    write32(out + 4, ssrc)
    for i in range(count):
        write_block(out + 8 + 24 * i, &blocks[i])
    return 8 + 24 * count


cdef inline int write_sender_report(uint8_t *out, uint32_t ssrc, uint64_t ntp, uint32_t timestamp, uint32_t packets, uint32_t octets) noexcept nogil:
    rtcp_head(out, 0, RTCP_SR, 28)
    write32(out + 4, ssrc)
    write64(out + 8, ntp)
    write32(out + 16, timestamp)
    write32(out + 20, packets)
    write32(out + 24, octets)
    return 28


cdef inline int write_cname(uint8_t *out, uint32_t ssrc, const char *cname) noexcept nogil:
    """SDES with one chunk."""
    cdef int length = <int>strlen(cname)
    cdef int size = (4 + 4 + 2 + length + 1 + 3) & ~3
    memset(out, 0, size)
    rtcp_head(out, 1, RTCP_SDES, size)
    write32(out + 4, ssrc)
    out[8] = 1
    out[9] = <uint8_t>length
    memcpy(out + 10, cname, length)
    return size


cdef inline int write_nack(uint8_t *out, uint32_t sender, uint32_t media, const int64_t *ext_seqs, int count, int *taken) noexcept nogil:
    """Pack ascending numbers as PID + BLP until they end or NACK_ITEMS_MAX items are full; `taken` says how many fit."""
    cdef int items = 0, i = 0
    cdef int64_t first
    cdef uint16_t mask
    while i < count and items < NACK_ITEMS_MAX:
        first = ext_seqs[i]
        i += 1
        mask = 0
        while i < count and ext_seqs[i] - first <= 16:
            mask |= <uint16_t>(1 << (ext_seqs[i] - first - 1))
            i += 1
        write16(out + 12 + 4 * items, <uint32_t>first & 0xFFFF)
        write16(out + 14 + 4 * items, mask)
        items += 1
    taken[0] = i
    rtcp_head(out, FMT_NACK, RTCP_RTPFB, 12 + 4 * items)
    write32(out + 4, sender)
    write32(out + 8, media)
    return 12 + 4 * items


cdef inline int write_pli(uint8_t *out, uint32_t sender, uint32_t media) noexcept nogil:
    rtcp_head(out, FMT_PLI, RTCP_PSFB, 12)
    write32(out + 4, sender)
    write32(out + 8, media)
    return 12


cdef inline int write_fir(uint8_t *out, uint32_t sender, uint32_t media, uint8_t number) noexcept nogil:
    rtcp_head(out, FMT_FIR, RTCP_PSFB, 20)
    write32(out + 4, sender)
    write32(out + 8, 0)
    write32(out + 12, media)
    write32(out + 16, <uint32_t>number << 24)
    return 20


cdef inline int write_dlrr(uint8_t *out, uint32_t sender, uint32_t receiver, uint32_t last_rr, uint32_t delay) noexcept nogil:
    """RTCP-5: answer to a receiver reference time."""
    rtcp_head(out, 0, RTCP_XR, 24)
    write32(out + 4, sender)
    out[8] = XR_DLRR
    out[9] = 0
    write16(out + 10, 3)
    write32(out + 12, receiver)
    write32(out + 16, last_rr)
    write32(out + 20, delay)
    return 24


cdef inline bint next_packet(const uint8_t **at, const uint8_t *end, RtcpPacket *p) noexcept nogil:
    """The next whole packet of a compound; padding is taken off. False: no more, or the rest is broken."""
    cdef const uint8_t *data = at[0]
    cdef int size
    if end - data < 4 or data[0] >> 6 != 2:
        return False
    size = 4 * (read16(data + 2) + 1)
    if size > end - data:
        return False
    at[0] = data + size
    p.data = data
    p.size = size
    p.count = data[0] & 31
    p.kind = data[1]
    if data[0] & 0x20:
        # Not always a multiple of four: libwebrtc pads transport-wide feedback by one to three bytes.
        if data[size - 1] == 0 or data[size - 1] > size - 4:
            return False
        p.size -= data[size - 1]
    return True
