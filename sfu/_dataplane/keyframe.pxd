"""Where key frames start, by codec (the table of section 13). Reads at most `size` bytes; says no when in doubt."""

from libc.stdint cimport uint8_t

from sfu._dataplane.machine cimport read16

# `plane.pyi` names them.
cdef enum:
    C_OPAQUE = 0
    C_OPUS = 1
    C_VP8 = 2
    C_VP9 = 3
    C_H264 = 4
    C_H265 = 5
    C_AV1 = 6
    C_COUNT = 7


cdef inline bint vp8_keyframe(const uint8_t *p, int size) noexcept nogil:
    """RFC 7741 4.2: first partition of a picture whose frame header has P = 0."""
    cdef int at = 1
    cdef uint8_t more
    if p[0] & 0x10 == 0 or p[0] & 0x07:
        return False
    if p[0] & 0x80:
        more = p[1]
        at = 2
        if more & 0x80:
            if at >= size:
                return False
            at += 2 if p[at] & 0x80 else 1
        if more & 0x40:
            at += 1
        if more & 0x30:
            at += 1
    return at < size and p[at] & 1 == 0


cdef inline bint vp9_keyframe(const uint8_t *p, int size) noexcept nogil:
    """RFC 9628 4.2: B set, P clear, lowest spatial layer."""
    cdef int at = 1
    if p[0] & 0x08 == 0 or p[0] & 0x40:
        return False
    if p[0] & 0x80:
        at += 2 if p[1] & 0x80 else 1
    if p[0] & 0x20:
        if at >= size or (p[at] >> 1) & 7:
            return False
        at += 1
    return at < size


cdef inline bint h264_nal_starts(uint8_t header) noexcept nogil:
    return header & 31 == 7 or header & 31 == 5


cdef inline bint h264_keyframe(const uint8_t *p, int size) noexcept nogil:
    """RFC 6184: SPS or IDR as a single NAL, inside a STAP-A (24), or at the start of an FU-A (28)."""
    cdef int at = 1, length
    cdef int kind = p[0] & 31
    if kind == 28:
        return p[1] & 0x80 != 0 and h264_nal_starts(p[1])
    if kind != 24:
        return h264_nal_starts(p[0])
    while at + 2 < size:
        length = read16(p + at)
        at += 2
        if length == 0 or length > size - at:
            return False
        if h264_nal_starts(p[at]):
            return True
        at += length
    return False


cdef inline bint h265_nal_starts(int kind) noexcept nogil:
    return 32 <= kind <= 34 or 16 <= kind <= 21


cdef inline bint h265_keyframe(const uint8_t *p, int size) noexcept nogil:
    """RFC 7798: parameter sets or an IRAP picture, alone, inside an AP (48), or at the start of an FU (49)."""
    cdef int at = 2, length
    cdef int kind = (p[0] >> 1) & 0x3F
    if kind == 49:
        return size > 2 and p[2] & 0x80 != 0 and h265_nal_starts(p[2] & 0x3F)
    if kind != 48:
        return h265_nal_starts(kind)
    while at + 2 < size:
        length = read16(p + at)
        at += 2
        if length == 0 or length > size - at:
            return False
        if h265_nal_starts((p[at] >> 1) & 0x3F):
            return True
        at += length
    return False


cdef inline bint keyframe_start(int codec, const uint8_t *p, int size) noexcept nogil:
    """Whether this payload begins a key frame. Opus and opaque codecs never say so."""
    if size < 2:
        return False
    if codec == C_VP8:
        return vp8_keyframe(p, size)
    if codec == C_VP9:
        return vp9_keyframe(p, size)
    if codec == C_H264:
        return h264_keyframe(p, size)
    if codec == C_H265:
        return h265_keyframe(p, size)
    if codec == C_AV1:
        return p[0] & 0x88 == 0x08  # Z clear, N set (AOM RTP 4.4)
    return False
