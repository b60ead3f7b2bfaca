"""WebSocket framing for the server side (RFC 6455 §5), on raw pointers.

Nothing here allocates, raises or touches a Python object. Callers own every byte; each function states how many it reads.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum Opcode:
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA

cdef enum:
    MAX_HEADER = 14  # bytes: 2 + 8 of extended length + 4 of mask
    MAX_SERVER_HEADER = 10  # bytes: what we send is never masked (§5.1)
    MAX_CONTROL = 125  # bytes of payload in a control frame (§5.5)

ctypedef struct Header:
    uint64_t length  # payload bytes
    uint8_t mask[4]
    uint8_t opcode
    uint8_t fin
    uint8_t rsv  # the three reserved bits, RSV1 highest: 0x40, 0x20, 0x10
    uint8_t masked


cdef inline uint32_t parse_header(const uint8_t *data, uint32_t available, Header *header) noexcept nogil:
    """Parse one frame header; returns its size in bytes, or 0 when `available` bytes do not hold all of it.

    Reads at most `available` bytes. Judges nothing: `Header` reports what the peer wrote.
    """
    cdef uint32_t size = 2
    cdef uint32_t i
    cdef uint64_t length
    if available < 2:
        return 0
    header.fin = data[0] >> 7
    header.rsv = data[0] & 0x70
    header.opcode = data[0] & 0x0F
    header.masked = data[1] >> 7
    length = data[1] & 0x7F
    if length == 126:
        size = 4
    elif length == 127:
        size = 10
    if header.masked:
        size += 4
    if available < size:
        return 0
    if length == 126:
        length = (<uint64_t>data[2] << 8) | data[3]
    elif length == 127:
        length = 0
        for i in range(2, 10):
            length = (length << 8) | data[i]
    header.length = length
    if header.masked:
        memcpy(header.mask, data + size - 4, 4)
    return size


cdef inline uint32_t write_header(uint8_t *out, uint8_t opcode, bint compressed, uint64_t length) noexcept nogil:
    """Write the header of an unmasked, final frame; returns its size. `out` has `MAX_SERVER_HEADER` bytes."""
    cdef uint32_t i
    out[0] = 0x80 | (0x40 if compressed else 0) | opcode
    if length < 126:
        out[1] = <uint8_t>length
        return 2
    if length < 65536:
        out[1] = 126
        out[2] = <uint8_t>(length >> 8)
        out[3] = <uint8_t>(length & 0xFF)
        return 4
    out[1] = 127
    for i in range(8):
        out[2 + i] = <uint8_t>((length >> (8 * (7 - i))) & 0xFF)
    return 10


cdef inline void unmask(uint8_t *data, uint64_t size, const uint8_t *mask, uint32_t phase) noexcept nogil:
    """XOR `size` bytes in place with the mask (§5.3); `phase` is how many bytes of the payload came before."""
    cdef uint8_t turned[8]
    cdef uint64_t key, word
    cdef uint64_t i = 0
    cdef uint32_t k
    for k in range(8):
        turned[k] = mask[(phase + k) & 3]
    memcpy(&key, turned, 8)
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        word ^= key
        memcpy(data + i, &word, 8)
        i += 8
    while i < size:
        data[i] ^= turned[i & 7]
        i += 1


cdef inline bint close_code_is_valid(uint32_t code) noexcept nogil:
    """May this status code stand in a close frame? (§7.4; 1012-1014 by the IANA registry.)"""
    return (1000 <= code <= 1003) or (1007 <= code <= 1014) or (3000 <= code <= 4999)
