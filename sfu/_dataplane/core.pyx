"""The socketless parts of the plane as Python classes, so that tests can drive the very code the threads run.

Thin: each class owns one C struct of the `.pxd` of its name and converts seconds to microseconds. Holds the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from sfu._dataplane cimport cache as c
from sfu._dataplane cimport keyframe, ledger, loss, packet as rtp, sequence, twcc, vp8


cdef int64_t microseconds(double seconds):
    return <int64_t>(seconds * 1e6 + 0.5)


cdef class SequenceUnwrapper:
    cdef sequence.Unwrapper state

    def __init__(self, int max_dropout=3000, int max_misorder=1500):
        sequence.unwrapper_init(&self.state, max_dropout, max_misorder)

    def receive(self, int seq):
        if not 0 <= seq <= 0xFFFF:
            raise ValueError(f"seq {seq} is not 16 bit")
        return sequence.unwrap(&self.state, <uint16_t>seq)

    def take_resync(self):
        cdef bint resynced = self.state.resynced
        self.state.resynced = False
        return resynced


cdef class SequenceMap:
    cdef sequence.OutMap state

    def __init__(self, int64_t out_start):
        sequence.map_init(&self.state, out_start)

    def map(self, int64_t ext_seq):
        return sequence.map_forward(&self.state, ext_seq)

    def drop(self, int64_t ext_seq):
        return sequence.map_drop(&self.state, ext_seq)

    def switch(self, int64_t ext_seq, bint skip):
        sequence.map_switch(&self.state, ext_seq, skip)


cdef class PacketCache:
    cdef c.Cache state

    def __cinit__(self, int slots, int64_t bytes_max, double age_max):
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"slots must be a power of two, not {slots}")
        if bytes_max < 1:
            raise ValueError(f"bytes_max must be positive, not {bytes_max}")
        if not c.cache_init(&self.state, slots, bytes_max, microseconds(age_max)):
            raise MemoryError

    def __dealloc__(self):
        c.cache_destroy(&self.state)

    def store(self, int64_t ext_seq, bytes packet, double now):
        return c.cache_store(
            &self.state, ext_seq, <const uint8_t *>PyBytes_AS_STRING(packet), <int>len(packet), microseconds(now)
        )

    def fetch(self, int64_t ext_seq, double now):
        cdef uint8_t buffer[c.CACHED_PACKET_MAX]
        cdef int size = c.cache_copy(&self.state, ext_seq, buffer, microseconds(now))
        return None if size < 0 else PyBytes_FromStringAndSize(<char *>buffer, size)

    @property
    def bytes_used(self):
        return c.cache_bytes_used(&self.state)


cdef class LossDetector:
    cdef loss.LossList state
    cdef list lost

    def __cinit__(self, *, bint video, double first_delay=0.005):
        loss.loss_init(&self.state, video, microseconds(first_delay))
        self.lost = []

    def __dealloc__(self):
        loss.loss_destroy(&self.state)

    def receive(self, int64_t ext_seq, double now, *, bint recovered=False):
        return loss.loss_receive(&self.state, ext_seq, microseconds(now), recovered)

    def due(self, double now, double rtt):
        cdef int64_t due[loss.MISSING_MAX]
        cdef int64_t lost[loss.MISSING_MAX]
        cdef int lost_count = 0
        cdef int64_t next_at = 0
        cdef int i
        cdef int n = loss.loss_due(&self.state, microseconds(now), microseconds(rtt), due, lost, &lost_count, &next_at)
        for i in range(lost_count):
            self.lost.append(lost[i])
        return [due[i] for i in range(n)]

    def take_lost(self):
        lost, self.lost = self.lost, []
        return lost

    def discard_before(self, int64_t ext_seq):
        loss.loss_discard_before(&self.state, ext_seq)

    def missing(self):
        cdef int i
        return [self.state.entries[i].ext_seq for i in range(self.state.count) if not self.state.entries[i].gone]


cdef class ResendLedger:
    cdef ledger.Ledger state

    def __cinit__(self, int slots=2048):
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"slots must be a power of two, not {slots}")
        if not ledger.ledger_init(&self.state, slots):
            raise MemoryError

    def __dealloc__(self):
        ledger.ledger_destroy(&self.state)

    def sent(self, int64_t out_seq, int64_t source_seq, double now, *, bint padding=False):
        ledger.ledger_sent(&self.state, out_seq, source_seq, microseconds(now), padding)

    def ask(self, int seq, double now, double rtt):
        cdef ledger.Sent *found = NULL
        cdef int answer
        if not 0 <= seq <= 0xFFFF:
            raise ValueError(f"seq {seq} is not 16 bit")
        answer = ledger.ledger_ask(&self.state, <uint16_t>seq, microseconds(now), microseconds(rtt), &found)
        return answer if found == NULL else found.source_seq


cdef class ArrivalLog:
    cdef twcc.TwccLog state

    def __cinit__(self):
        twcc.twcc_init(&self.state)

    def receive(self, int seq, double now):
        if not 0 <= seq <= 0xFFFF:
            raise ValueError(f"seq {seq} is not 16 bit")
        twcc.twcc_record(&self.state, <uint16_t>seq, microseconds(now))

    def feedback(self, int64_t sender_ssrc, int64_t media_ssrc):
        cdef uint8_t packet[1300]
        cdef int size
        packets = []
        while True:
            size = twcc.twcc_write(&self.state, packet, <uint32_t>sender_ssrc, <uint32_t>media_ssrc)
            if size == 0:
                return packets
            packets.append(PyBytes_FromStringAndSize(<char *>packet, size))


cdef class Vp8Rewriter:
    cdef vp8.Vp8Map state

    def switch(self):
        vp8.vp8_switch(&self.state)

    def number(self, bytes payload, *, bint late=False):
        cdef vp8.Vp8Numbers own
        cdef vp8.Vp8Numbers sent
        vp8.vp8_read(<const uint8_t *>PyBytes_AS_STRING(payload), <int>len(payload), &own)
        memset(&sent, 0, sizeof(sent))
        if own.fields:
            vp8.vp8_map(&self.state, &own, late, &sent)
        return (
            sent.picture if sent.fields & vp8.VP8_PICTURE else -1,
            sent.tl0 if sent.fields & vp8.VP8_TL0 else -1,
            sent.key if sent.fields & vp8.VP8_KEY else -1,
            sent.fields & vp8.VP8_WIDE != 0,
        )


def write_vp8(bytes payload, numbers):
    cdef vp8.Vp8Numbers sent
    cdef uint8_t *out
    picture, tl0, key, wide = numbers
    sent.picture = <uint16_t>(<int>picture & 0x7FFF)
    sent.tl0 = <uint8_t>(<int>tl0 & 0xFF)
    sent.key = <uint8_t>(<int>key & 0x1F)
    sent.fields = (
        (vp8.VP8_PICTURE if picture >= 0 else 0)
        | (vp8.VP8_WIDE if wide else 0)
        | (vp8.VP8_TL0 if tl0 >= 0 else 0)
        | (vp8.VP8_KEY if key >= 0 else 0)
    )
    out = <uint8_t *>malloc(len(payload) + 1)
    if out == NULL:
        raise MemoryError
    try:
        return PyBytes_FromStringAndSize(
            <char *>out,
            vp8.vp8_write(out, <const uint8_t *>PyBytes_AS_STRING(payload), <int>len(payload), &sent),
        )
    finally:
        free(out)


def rewrite(
    bytes packet,
    *,
    int payload_type,
    int seq,
    int64_t timestamp,
    int64_t ssrc,
    int marker=-1,
    extensions_in,
    extensions_out,
    bytes mid,
    int transport_seq=-1,
    int send_time=-1,
    int rtx_osn=-1,
):
    cdef rtp.RtpView view
    cdef rtp.HeaderTemplate template
    cdef rtp.OutFields fields
    cdef uint8_t ids[256]
    cdef uint8_t *out
    memset(ids, 0, sizeof(ids))
    memset(&template, 0, sizeof(template))
    for wire_id, kind in extensions_in.items():
        if 0 < wire_id < 256 and 0 < kind < rtp.X_COUNT:
            ids[<int>wire_id] = kind
    for kind, wire_id in extensions_out.items():
        if 0 < wire_id < 256 and 0 < kind < rtp.X_COUNT:
            template.out_id[<int>kind] = wire_id
    if len(mid) > rtp.MID_LENGTH_MAX:
        raise ValueError(f"MID of {len(mid)} bytes, at most {rtp.MID_LENGTH_MAX}")
    memcpy(template.mid, PyBytes_AS_STRING(mid), len(mid))
    template.mid_length = <uint8_t>len(mid)
    rtp.finish_template(&template)
    if not rtp.parse_rtp(&view, <const uint8_t *>PyBytes_AS_STRING(packet), <int>len(packet), ids):
        return None
    fields.payload_type = payload_type & 0x7F
    fields.marker = view.marker if marker < 0 else marker & 1
    fields.seq = <uint16_t>seq
    fields.timestamp = <uint32_t>timestamp
    fields.ssrc = <uint32_t>ssrc
    fields.transport_seq = transport_seq
    fields.send_time = send_time
    fields.osn = rtx_osn
    fields.vp8.fields = 0
    out = <uint8_t *>malloc(len(packet) + rtp.RTP_GROWTH_MAX)
    if out == NULL:
        raise MemoryError
    try:
        return PyBytes_FromStringAndSize(<char *>out, rtp.write_packet(out, &view, &template, &fields))
    finally:
        free(out)


def is_keyframe_start(int codec, bytes payload):
    return keyframe.keyframe_start(codec, <const uint8_t *>PyBytes_AS_STRING(payload), <int>len(payload))
