"""RTCP that comes in: reports and requests of subscribers, reports of publishers.

The shield (SHLD-1): nothing a subscriber says reaches a publisher but key frame requests through their throttle. A
NACK is answered from the publisher's cache or not at all.
Runs in the thread that owns the transport the RTCP came from.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from sfu._dataplane.cache cimport CACHED_PACKET_MAX, cache_copy
from sfu._dataplane.egress cimport next_transport_seq, reachable, room, send_rtcp, send_rtp, send_time
from sfu._dataplane.forward cimport BUDGET_WINDOW, roll_budget
from sfu._dataplane.graph cimport (
    BOUND_MEDIA, DROP_NACK_BUDGET, DROP_RTCP_FOREIGN, DROP_RTCP_MALFORMED, NO_PAYLOAD_TYPE, RECENT_SOURCES,
    SRTCP_TRAILER_MAX, SRTP_TRAILER_MAX, Forwarder, Stream, Thread, Transport,
)
from sfu._dataplane.keyframes cimport begin_compound, want_keyframe
from sfu._dataplane.ledger cimport ASK_UNKNOWN, Sent, ledger_ask
from sfu._dataplane.machine cimport read16, read32, read64
from sfu._dataplane.ops cimport clock_write, count_drop
from sfu._dataplane.packet cimport RTP_GROWTH_MAX, OutFields, RtpView, parse_rtp, write_packet
from sfu._dataplane.rtcp cimport (
    COMPOUND_MAX, FMT_FIR, FMT_NACK, FMT_PLI, RTCP_BYE, RTCP_PSFB, RTCP_RR, RTCP_RTPFB, RTCP_SR, RTCP_XR, XR_RRTR,
    ReportBlock, RtcpPacket, next_packet, read_block, write_dlrr,
)
from sfu._dataplane.tables cimport IdEntry, table_find, table_get
from sfu._dataplane.upcalls cimport UP_BYE, upcall_stream

cdef enum:
    NACK_WINDOW = 100000            # us
    NACK_NUMBERS_MAX = 512          # per transport and window
    RTT_DEFAULT = 100000            # us
    RTT_MAX = 30000000
    BUDGET_FLOOR = 6250             # bytes in 1 s: 50 kbps
    BUDGET_ONE = 1500               # one packet can always be repaired
    REQUEST_SPACING = 200000        # us between honoured key frame requests of a subscriber (KF-4)
    REQUEST_WINDOW = 10000000       # us in which three are honoured


# -- answering NACKs -----------------------------------------------------------------------------------------------

cdef inline bint within_budget(Forwarder *f, int64_t now, uint64_t size) noexcept nogil:
    """rtx.budget over the last second: the larger of 15 % of media and 50 kbps, at most half of the media."""
    cdef uint64_t media, resent, allowed
    if now - f.budget_since >= BUDGET_WINDOW:
        roll_budget(f, now)
    media = f.media_now + f.media_before
    resent = f.resent_now + f.resent_before
    allowed = media * 15 // 100
    if allowed < BUDGET_FLOOR:
        allowed = BUDGET_FLOOR
    if allowed > media // 2:
        allowed = media // 2
    if allowed < BUDGET_ONE:
        allowed = BUDGET_ONE
    if resent + size > allowed:
        return False
    f.resent_now += size
    return True


cdef inline bint resend(Thread *t, Forwarder *f, Sent *entry) noexcept nogil:
    """Rebuild what was sent from the cache (CACHE-5): as RTX, or bit by bit the same (SRTP-4). False: gone."""
    cdef uint8_t cached[CACHED_PACKET_MAX]
    cdef RtpView view
    cdef OutFields fields
    cdef Stream *s = <Stream *>table_get(&t.plane.streams, f.recent[entry.stay & (RECENT_SOURCES - 1)])
    cdef uint8_t rtx_type = NO_PAYLOAD_TYPE
    cdef uint8_t *packet
    cdef int size
    if s == NULL or s.cache.pages == NULL or <uint8_t>(f.stay - entry.stay) >= RECENT_SOURCES:
        return False
    size = cache_copy(&s.cache, entry.source_seq, cached, t.now)
    if size < 0 or not parse_rtp(&view, cached, size, s.track.ids):
        return False
    if not within_budget(f, t.now, <uint64_t>size):
        count_drop(t, DROP_NACK_BUDGET)
        f.suppressed += 1
        return True
    if f.rtx_ssrc:
        rtx_type = f.current.rtx_payload_types[entry.payload_type & 0x7F]
    fields.marker = view.marker
    fields.timestamp = entry.timestamp
    fields.vp8 = entry.vp8
    if rtx_type != NO_PAYLOAD_TYPE:
        fields.payload_type = rtx_type
        fields.seq = f.rtx_seq
        fields.ssrc = f.rtx_ssrc
        fields.osn = <int32_t>(entry.out_seq & 0xFFFF)
        f.rtx_seq += 1
    else:
        fields.payload_type = entry.payload_type
        fields.seq = <uint16_t>entry.out_seq
        fields.ssrc = f.ssrc
        fields.osn = -1
    if rtx_type != NO_PAYLOAD_TYPE or entry.send_time == -2:
        fields.transport_seq = next_transport_seq(f.transport, f.template.out_id)
        fields.send_time = send_time(t, f.template.out_id)
        if rtx_type == NO_PAYLOAD_TYPE:
            entry.transport_seq = <uint16_t>fields.transport_seq
            entry.send_time = fields.send_time
    else:
        fields.transport_seq = entry.transport_seq
        fields.send_time = entry.send_time
    packet = room(t, <uint32_t>size + RTP_GROWTH_MAX + SRTP_TRAILER_MAX)
    size = write_packet(packet, &view, &f.template, &fields)
    if send_rtp(t, f, packet, size, 0):
        f.answered += 1
        f.rtx_bytes += <uint64_t>size
        t.counters.resent += 1
    return True


cdef inline void answer_one(Thread *t, Forwarder *f, uint16_t seq) noexcept nogil:
    cdef Sent *entry = NULL
    cdef int answer
    f.nacks_in += 1
    answer = ledger_ask(&f.ledger, seq, t.now, f.rtt if f.rtt else RTT_DEFAULT, &entry)
    if answer == ASK_UNKNOWN:
        f.missed += 1
    elif entry == NULL:
        f.suppressed += 1
    elif entry.out_seq < f.ignore_before:
        f.suppressed += 1       # CACHE-4: a key frame is on its way instead
    elif not resend(t, f, entry):
        f.missed += 1


cdef inline void receive_nack(Thread *t, Transport *from_, Forwarder *f, const uint8_t *items, int count) noexcept nogil:
    """CACHE-3. At most 512 numbers per 100 ms and transport are looked at."""
    cdef int i, bit
    cdef uint16_t first, mask
    if f.srtp == NULL or not reachable(from_):
        return
    if t.now - from_.nack_window >= NACK_WINDOW:
        from_.nack_window = t.now
        from_.nack_items = 0
    for i in range(count):
        first = read16(items + 4 * i)
        mask = read16(items + 4 * i + 2)
        for bit in range(17):
            if bit and not mask & (1 << (bit - 1)):
                continue
            if from_.nack_items >= NACK_NUMBERS_MAX:
                count_drop(t, DROP_NACK_BUDGET)
                return
            from_.nack_items += 1
            answer_one(t, f, <uint16_t>(first + bit))


# -- key frame requests of subscribers -----------------------------------------------------------------------------

cdef inline void receive_keyframe_request(Thread *t, Forwarder *f) noexcept nogil:
    """KF-4: one per 200 ms and three per 10 s are honoured; then KF-1 merges them with everyone else's."""
    cdef Stream *s = f.current.stream
    f.plis_in += 1
    if not f.video or f.paused or s == NULL:
        return
    if t.now - f.asked_at[0] < REQUEST_SPACING or (f.asked_at[2] and t.now - f.asked_at[2] < REQUEST_WINDOW):
        return
    f.asked_at[2] = f.asked_at[1]
    f.asked_at[1] = f.asked_at[0]
    f.asked_at[0] = t.now
    f.ignore_before = f.last_out + 1
    want_keyframe(t, s)


# -- reports -----------------------------------------------------------------------------------------------------------

cdef inline void receive_report_block(Thread *t, Forwarder *f, const ReportBlock *b) noexcept nogil:
    """RTCP-3: round trip by the sender report that the subscriber names."""
    cdef int i
    cdef int64_t rtt
    f.fraction_lost = b.fraction_lost
    if b.last_sr == 0:
        return
    for i in range(8):
        if f.reports[i].at and f.reports[i].middle_ntp == b.last_sr:
            rtt = t.now - f.reports[i].at - (<int64_t>b.delay * 1000000 >> 16)
            if 0 <= rtt <= RTT_MAX:
                f.rtt = (7 * f.rtt + rtt) // 8 if f.rtt else (rtt if rtt > 0 else 1)
            return


cdef inline void receive_blocks(Thread *t, Transport *from_, const uint8_t *blocks, int count) noexcept nogil:
    cdef ReportBlock b
    cdef IdEntry *entry
    cdef int i
    for i in range(count):
        read_block(blocks + 24 * i, &b)
        entry = table_find(&from_.outgoing, <uint64_t>b.ssrc + 1)
        if entry == NULL:
            count_drop(t, DROP_RTCP_FOREIGN)
        elif entry.extra == 0:
            receive_report_block(t, <Forwarder *>entry.value, &b)


cdef inline Stream *media_stream(Transport *from_, uint32_t ssrc) noexcept nogil:
    cdef IdEntry *entry = table_find(&from_.incoming, <uint64_t>ssrc + 1)
    if entry == NULL or entry.value == NULL or entry.extra & 0xFF != BOUND_MEDIA:
        return NULL
    return <Stream *>entry.value


cdef inline void receive_feedback(Thread *t, Transport *from_, const RtcpPacket *p) noexcept nogil:
    """NACK, PLI, FIR by the SSRC they name; all else (REMB, transport-cc, unknown FMT) is skipped by length."""
    cdef IdEntry *entry
    cdef int at
    if p.size < 12:
        count_drop(t, DROP_RTCP_MALFORMED)
        return
    if p.kind == RTCP_PSFB and p.count == FMT_FIR:
        at = 12
        while at + 8 <= p.size:
            entry = table_find(&from_.outgoing, <uint64_t>read32(p.data + at) + 1)
            if entry == NULL:
                count_drop(t, DROP_RTCP_FOREIGN)
            else:
                receive_keyframe_request(t, <Forwarder *>entry.value)
            at += 8
        return
    if not ((p.kind == RTCP_RTPFB and p.count == FMT_NACK) or (p.kind == RTCP_PSFB and p.count == FMT_PLI)):
        return
    entry = table_find(&from_.outgoing, <uint64_t>read32(p.data + 8) + 1)
    if entry == NULL:
        count_drop(t, DROP_RTCP_FOREIGN)
    elif p.kind == RTCP_PSFB:
        receive_keyframe_request(t, <Forwarder *>entry.value)
    elif entry.extra == 0:
        receive_nack(t, from_, <Forwarder *>entry.value, p.data + 12, (p.size - 12) // 4)


cdef inline void receive_extended(Thread *t, Transport *from_, const RtcpPacket *p) noexcept nogil:
    """RFC 3611: a receiver reference time is answered with DLRR at once (RTCP-5)."""
    cdef int at = 8, length
    cdef uint8_t *out
    cdef int size
    while at + 4 <= p.size:
        length = 4 * (read16(p.data + at + 2) + 1)
        if at + length > p.size:
            count_drop(t, DROP_RTCP_MALFORMED)
            return
        if p.data[at] == XR_RRTR and length == 12 and reachable(from_):
            out = room(t, COMPOUND_MAX + SRTCP_TRAILER_MAX)
            size = begin_compound(out, from_)
            size += write_dlrr(out + size, from_.rtcp_ssrc, read32(p.data + 4), read32(p.data + at + 6), 0)
            send_rtcp(t, from_, from_.srtp_rtcp, out, size)
            return
        at += length


cdef inline void receive_bye(Thread *t, Transport *from_, const RtcpPacket *p) noexcept nogil:
    """RTCP-5: ends those SSRCs of this peer, nothing else."""
    cdef Stream *s
    cdef int i
    for i in range(p.count):
        if 8 + 4 * i > p.size:
            return
        s = media_stream(from_, read32(p.data + 4 + 4 * i))
        if s == NULL:
            count_drop(t, DROP_RTCP_FOREIGN)
        else:
            upcall_stream(t, UP_BYE, s, s.ssrc)


cdef inline void receive_rtcp(Thread *t, Transport *from_, const uint8_t *data, int size) noexcept nogil:
    """A decrypted compound: what is whole is used, the rest is dropped and counted once."""
    cdef const uint8_t *at = data
    cdef const uint8_t *end = data + size
    cdef RtcpPacket p
    cdef Stream *s
    while at < end:
        if not next_packet(&at, end, &p):
            count_drop(t, DROP_RTCP_MALFORMED)
            return
        if p.kind == RTCP_SR:
            if p.size < 28:
                count_drop(t, DROP_RTCP_MALFORMED)
                continue
            s = media_stream(from_, read32(p.data + 4))
            if s != NULL:
                clock_write(&s.clock, read64(p.data + 8), read32(p.data + 16), t.now)
            if 28 + 24 * p.count <= p.size:
                receive_blocks(t, from_, p.data + 28, p.count)
        elif p.kind == RTCP_RR:
            if 8 + 24 * p.count > p.size:
                count_drop(t, DROP_RTCP_MALFORMED)
                continue
            receive_blocks(t, from_, p.data + 8, p.count)
        elif p.kind == RTCP_RTPFB or p.kind == RTCP_PSFB:
            receive_feedback(t, from_, &p)
        elif p.kind == RTCP_XR:
            receive_extended(t, from_, &p)
        elif p.kind == RTCP_BYE:
            receive_bye(t, from_, &p)
