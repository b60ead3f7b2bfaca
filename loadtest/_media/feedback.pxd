"""RTCP both ways: NACK, PLI, reports and transport-wide feedback out; the server's reports and requests in."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from loadtest._media.arrivals cimport arrivals_write
from loadtest._media.egress cimport room, send_rtcp, send_rtp
from loadtest._media.graph cimport FEEDBACK_INTERVAL, REPORT_INTERVAL, RTCP_MAX, Incoming, Peer, State
from loadtest._media.heap cimport timer_arm, timer_cancel
from loadtest._media.histogram cimport buckets_record
from loadtest._media.machine cimport read16, read32, wall_ntp
from loadtest._media.reception cimport Reception, nearest, reception_due, reception_wants_key
from loadtest._media.rtcp cimport (
    BLOCKS_MAX, FMT_FIR, FMT_NACK, FMT_PLI, FMT_TRANSPORT_CC, RTCP_PSFB, RTCP_RR, RTCP_RTPFB, RTCP_SR, ReportBlock,
    RtcpPacket, next_packet, write_cname, write_nack, write_pli, write_receiver_report, write_sender_report,
)
from loadtest._media.sending cimport Outgoing, Sent, outgoing_find


cdef inline void repair(State *s, Incoming *i, int64_t now) noexcept nogil:
    cdef Reception *r = &i.reception
    cdef int64_t next_at = 0
    cdef int count = reception_due(r, now, s.numbers, &next_at)
    cdef int done = 0, taken = 0, size
    cdef uint8_t *at
    while done < count:
        at = room(s, i.peer)
        size = write_receiver_report(at, i.peer.ssrc, NULL, 0)
        size += write_nack(at + size, i.peer.ssrc, i.ssrc, s.numbers + done, count - done, &taken)
        done += taken
        send_rtcp(s, i.peer, at, size)
    if r.waiting and reception_wants_key(r, now):
        ask_key(s, i)
    if next_at:
        timer_arm(&s.heap, &i.timer, next_at if next_at > now else now + 1000)
    else:
        timer_cancel(&s.heap, &i.timer)


cdef inline void ask_key(State *s, Incoming *i) noexcept nogil:
    cdef uint8_t *at = room(s, i.peer)
    cdef int size = write_receiver_report(at, i.peer.ssrc, NULL, 0)
    size += write_pli(at + size, i.peer.ssrc, i.ssrc)
    send_rtcp(s, i.peer, at, size)


cdef inline void send_feedback(State *s, Peer *p, int64_t now) noexcept nogil:
    cdef uint8_t *at
    cdef int size
    timer_arm(&s.heap, &p.feedback, now + FEEDBACK_INTERVAL)
    while p.incoming_count:
        at = room(s, p)
        size = arrivals_write(&p.arrivals, at, p.ssrc, p.ssrcs[0])
        if size == 0:
            return
        send_rtcp(s, p, at, size)


cdef inline void report_block(Incoming *i, ReportBlock *b, int64_t now) noexcept nogil:
    """RFC 3550 A.3; loss is before repair (what came by itself), as SHLD-2 has it."""
    cdef Reception *r = &i.reception
    cdef int64_t expected = r.highest - r.first + 1
    cdef int64_t lost = expected - <int64_t>(r.packets + r.padding - r.recovered)
    cdef int64_t interval = expected - r.reported_expected
    cdef int64_t fraction = ((lost - r.reported_lost) * 256 // interval) if interval > 0 else 0
    r.reported_expected = expected
    r.reported_lost = lost
    b.ssrc = i.ssrc
    b.fraction_lost = <uint8_t>(0 if fraction < 0 else 255 if fraction > 255 else fraction)
    b.cumulative = <int>(-0x800000 if lost < -0x800000 else 0x7FFFFF if lost > 0x7FFFFF else lost)
    b.highest = <uint32_t>(r.highest - 65536)
    b.jitter = <uint32_t>r.jitter
    b.last_sr = r.last_sr
    b.delay = <uint32_t>((now - r.last_sr_at) * 65536 // 1000000) if r.last_sr else 0
    buckets_record(&r.jitters, <int64_t>(r.jitter * 1000000 / r.clock_rate))


cdef inline void report(State *s, Peer *p, int64_t now) noexcept nogil:
    """Once a second: sender reports, then receiver reports, and the CNAME."""
    cdef ReportBlock blocks[BLOCKS_MAX]
    cdef uint8_t *at
    cdef int i, count = 0, size = 0
    cdef Outgoing *o
    timer_arm(&s.heap, &p.report, now + REPORT_INTERVAL)
    at = room(s, p)
    for i in range(p.outgoing_count):
        o = p.outgoing[i]
        if o.packets == 0:
            continue
        if size > RTCP_MAX - 64:
            send_rtcp(s, p, at, size)
            at = room(s, p)
            size = 0
        size += write_sender_report(
            at + size, o.ssrc, wall_ntp(), o.timestamp + <uint32_t>((now - o.started) * o.clip.clock_rate // 1000000),
            <uint32_t>o.packets, <uint32_t>o.bytes,
        )
        size += write_cname(at + size, o.ssrc)
    for i in range(p.incoming_count):
        if p.incoming[i].reception.highest < 0:
            continue
        report_block(p.incoming[i], &blocks[count], now)
        count += 1
        if count == BLOCKS_MAX:
            if size:
                send_rtcp(s, p, at, size)
                at = room(s, p)
            size = write_receiver_report(at, p.ssrc, blocks, count)
            size += write_cname(at + size, p.ssrc)
            count = 0
        if p.incoming[i].reception.waiting and reception_wants_key(&p.incoming[i].reception, now):
            ask_key_later(s, p.incoming[i], &at, &size)
    if count:
        if size + 24 * count > RTCP_MAX - 64:
            send_rtcp(s, p, at, size)
            at = room(s, p)
            size = 0
        size += write_receiver_report(at + size, p.ssrc, blocks, count)
        size += write_cname(at + size, p.ssrc)
    if size:
        send_rtcp(s, p, at, size)


cdef inline void ask_key_later(State *s, Incoming *i, uint8_t **at, int *size) noexcept nogil:
    """A PLI within the compound that is being written; sent before it when nothing is written yet."""
    if size[0] == 0:
        ask_key(s, i)
        at[0] = room(s, i.peer)
    elif size[0] < RTCP_MAX - 64:
        size[0] += write_pli(at[0] + size[0], i.peer.ssrc, i.ssrc)


cdef inline Outgoing *find_outgoing(State *s, Peer *p, uint32_t ssrc) noexcept nogil:
    cdef int i
    for i in range(p.outgoing_count):
        if p.outgoing[i].ssrc == ssrc:
            return p.outgoing[i]
    return NULL


cdef inline void take_sender_report(State *s, Peer *p, const RtcpPacket *packet, int64_t now) noexcept nogil:
    cdef uint32_t ssrc = read32(packet.data + 4)
    cdef int i
    for i in range(p.incoming_count):
        if p.ssrcs[i] == ssrc:
            p.incoming[i].reception.last_sr = read32(packet.data + 10)  # the middle of the NTP time
            p.incoming[i].reception.last_sr_at = now


cdef inline void take_blocks(State *s, Peer *p, const uint8_t *block, int count) noexcept nogil:
    cdef uint32_t wall = <uint32_t>(wall_ntp() >> 16)
    cdef uint32_t round_trip
    cdef Outgoing *o
    cdef int i, lost
    for i in range(count):
        o = find_outgoing(s, p, read32(block))
        if o != NULL:
            o.reports += 1
            lost = <int>(read32(block + 4) & 0xFFFFFF)
            o.reported_lost = lost - 0x1000000 if lost & 0x800000 else lost
            if read32(block + 16):
                round_trip = wall - read32(block + 16) - read32(block + 20)
                if round_trip < 60 * 65536:
                    buckets_record(&o.round_trip, <int64_t>round_trip * 1000000 // 65536)
        block += 24


cdef inline void resend(State *s, Outgoing *o, int64_t number) noexcept nogil:
    cdef Sent *e = outgoing_find(o, number)
    if e != NULL:
        o.resent += 1
        send_rtp(s, o, e, o.rtx_ssrc != 0)


cdef inline void answer_nack(State *s, Peer *p, const RtcpPacket *packet) noexcept nogil:
    cdef Outgoing *o = find_outgoing(s, p, read32(packet.data + 8))
    cdef const uint8_t *item = packet.data + 12
    cdef const uint8_t *end = packet.data + packet.size
    cdef uint32_t mask
    cdef int64_t number
    cdef int bit
    if o == NULL:
        return
    while item + 4 <= end:
        number = nearest(o.number, <uint16_t>read16(item))
        mask = 1 | (<uint32_t>read16(item + 2) << 1)
        for bit in range(17):
            if mask & (<uint32_t>1 << bit):
                o.nacks += 1
                resend(s, o, number + bit)
        item += 4


cdef inline void answer_key(State *s, Peer *p, uint32_t ssrc) noexcept nogil:
    cdef Outgoing *o = find_outgoing(s, p, ssrc)
    if o != NULL:
        o.plis += 1
        o.key_wanted = True


cdef inline void take_rtcp(State *s, Peer *p, uint8_t *data, int size, int64_t now) noexcept nogil:
    cdef const uint8_t *at = data
    cdef RtcpPacket packet
    cdef int entry
    if s.unprotect_rtcp(p.receiving, data, &size) != 0:
        p.refused += 1
        return
    while next_packet(&at, data + size, &packet):
        if packet.kind == RTCP_SR and packet.size >= 28:
            take_sender_report(s, p, &packet, now)
            take_blocks(s, p, packet.data + 28, (packet.size - 28) // 24)
        elif packet.kind == RTCP_RR and packet.size >= 8:
            take_blocks(s, p, packet.data + 8, (packet.size - 8) // 24)
        elif packet.kind == RTCP_RTPFB and packet.count == FMT_NACK and packet.size >= 16:
            answer_nack(s, p, &packet)
        elif packet.kind == RTCP_RTPFB and packet.count == FMT_TRANSPORT_CC:
            p.feedback_received += 1
        elif packet.kind == RTCP_PSFB and packet.count == FMT_PLI and packet.size >= 12:
            answer_key(s, p, read32(packet.data + 8))
        elif packet.kind == RTCP_PSFB and packet.count == FMT_FIR:
            entry = 12
            while entry + 8 <= packet.size:
                answer_key(s, p, read32(packet.data + entry))
                entry += 8
