"""RTCP as bytes: RFC 3550 §6.4 to 6.5 (SR, RR, SDES), RFC 4585 §6.2.1, §6.3.1 (NACK, PLI). Writers return the size written."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from loadtest._media.machine cimport read16, write16, write32, write64

cdef enum:
    RTCP_SR = 200
    RTCP_RR = 201
    RTCP_SDES = 202
    RTCP_RTPFB = 205
    RTCP_PSFB = 206
    FMT_NACK = 1
    FMT_TRANSPORT_CC = 15
    FMT_PLI = 1
    FMT_FIR = 4
    BLOCKS_MAX = 31
    NACK_ITEMS_MAX = 253

cdef struct ReportBlock:
    uint32_t ssrc
    uint8_t fraction_lost
    int cumulative
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


cdef inline int write_receiver_report(uint8_t *out, uint32_t ssrc, const ReportBlock *blocks, int count) noexcept nogil:
    cdef int i
    cdef uint8_t *p = out + 8
    rtcp_head(out, count, RTCP_RR, 8 + 24 * count)
    write32(out + 4, ssrc)
    for i in range(count):
        write32(p, blocks[i].ssrc)
        write32(p + 4, (<uint32_t>blocks[i].fraction_lost << 24) | (<uint32_t>blocks[i].cumulative & 0xFFFFFF))
        write32(p + 8, blocks[i].highest)
        write32(p + 12, blocks[i].jitter)
        write32(p + 16, blocks[i].last_sr)
        write32(p + 20, blocks[i].delay)
        p += 24
    return 8 + 24 * count


cdef inline int write_sender_report(uint8_t *out, uint32_t ssrc, uint64_t ntp, uint32_t timestamp, uint32_t packets, uint32_t octets) noexcept nogil:
    rtcp_head(out, 0, RTCP_SR, 28)
    write32(out + 4, ssrc)
    write64(out + 8, ntp)
    write32(out + 16, timestamp)
    write32(out + 20, packets)
    write32(out + 24, octets)
    return 28


cdef inline int write_cname(uint8_t *out, uint32_t ssrc) noexcept nogil:
    """SDES with one chunk: the CNAME `load`."""
    memset(out, 0, 16)
    rtcp_head(out, 1, RTCP_SDES, 16)
    write32(out + 4, ssrc)
    out[8] = 1
    out[9] = 4
    out[10] = 108
    out[11] = 111
    out[12] = 97
    out[13] = 100
    return 16


cdef inline int write_nack(uint8_t *out, uint32_t sender, uint32_t media, const int64_t *numbers, int count, int *taken) noexcept nogil:
    """Ascending numbers as PID + BLP, until they end or NACK_ITEMS_MAX items are full; `taken` says how many fit."""
    cdef int items = 0, i = 0
    cdef int64_t first
    cdef uint16_t mask
    while i < count and items < NACK_ITEMS_MAX:
        first = numbers[i]
        i += 1
        mask = 0
        while i < count and numbers[i] - first <= 16:
            mask |= <uint16_t>(1 << (numbers[i] - first - 1))
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


cdef inline bint next_packet(const uint8_t **at, const uint8_t *end, RtcpPacket *p) noexcept nogil:
    """The next whole packet of a compound. False: no more, or the rest is broken."""
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
    return True
