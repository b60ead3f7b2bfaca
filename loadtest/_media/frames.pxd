"""What the first bytes of a payload tell: whether a key frame begins with it (VP8: RFC 7741 §4.2, §4.3; H.264: RFC 6184)."""

from libc.stdint cimport uint8_t

from loadtest._media.reception cimport EMPTY, KEY

cdef enum:
    OPUS = 0
    VP8 = 1
    H264 = 2


cdef inline int vp8_flags(const uint8_t *p, int size) noexcept nogil:
    cdef int at = 1
    if p[0] & 0x17 != 0x10:     # S set, partition 0
        return 0
    if p[0] & 0x80:
        if size < 2:
            return 0
        at = 2
        if p[1] & 0x80:
            if size < 3:
                return 0
            at += 2 if p[2] & 0x80 else 1
        at += (1 if p[1] & 0x40 else 0) + (1 if p[1] & 0x30 else 0)
    return KEY if at < size and not p[at] & 1 else 0


cdef inline int h264_flags(const uint8_t *p, int size) noexcept nogil:
    """A sequence parameter set: WebRTC senders put one before each IDR slice, and without it nothing can be decoded."""
    cdef int kind = p[0] & 31
    return KEY if kind == 7 or (kind == 24 and size > 3 and p[3] & 31 == 7) else 0


cdef inline int payload_flags(int codec, const uint8_t *p, int size) noexcept nogil:
    if size <= 0:
        return EMPTY
    if codec == VP8:
        return vp8_flags(p, size)
    if codec == H264:
        return h264_flags(p, size)
    return 0
