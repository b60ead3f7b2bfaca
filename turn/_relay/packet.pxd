"""STUN as the relay needs it, on raw bytes: what `wire.stun.parse` accepts, this accepts (RFC 8489 §5, §14).

Everything is read byte by byte, never through a cast pointer, so that alignment does not matter (S12). Nothing here
allocates, raises or needs the GIL; pointers in a `Stun` are into the caller's buffer.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from wire._batch.udp cimport AF_INET, AF_INET6, Address

cdef enum:
    STUN_HEADER = 20
    ATTRIBUTES_MAX = 64
    COOKIE = 0x2112A442
    COOKIE_HIGH = 0x2112
    FINGERPRINT_XOR = 0x5354554E

    BINDING_REQUEST = 0x0001
    SEND_INDICATION = 0x0016
    DATA_INDICATION = 0x0017
    BINDING_SUCCESS = 0x0101

    ATTR_USERNAME = 0x0006
    ATTR_INTEGRITY = 0x0008
    ATTR_XOR_PEER_ADDRESS = 0x0012
    ATTR_DATA = 0x0013
    ATTR_REALM = 0x0014
    ATTR_NONCE = 0x0015
    ATTR_DONT_FRAGMENT = 0x001A
    ATTR_INTEGRITY_SHA256 = 0x001C
    ATTR_PASSWORD_ALGORITHM = 0x001D
    ATTR_USERHASH = 0x001E
    ATTR_XOR_MAPPED_ADDRESS = 0x0020
    ATTR_PRIORITY = 0x0024
    ATTR_USE_CANDIDATE = 0x0025
    ATTR_FINGERPRINT = 0x8028

    REPLY_MAX = 64              # a Binding success with an IPv6 address and FINGERPRINT has 52 bytes

cdef struct Stun:
    uint16_t type
    const uint8_t *transaction_id
    const uint8_t *peer         # value of XOR-PEER-ADDRESS, or NULL
    int peer_size
    const uint8_t *data         # value of DATA, or NULL
    int data_size
    bint dont_fragment
    bint unknown_required
    bint fingerprint


cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void put16(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value


cdef inline void put32(uint8_t *p, uint32_t value) noexcept nogil:
    put16(p, value >> 16)
    put16(p + 2, value)


cdef inline uint32_t crc32(const uint8_t *p, int size) noexcept nogil:
    """Bitwise: FINGERPRINT is rare where it matters, and 20 to 100 bytes long."""
    cdef uint32_t crc = 0xFFFFFFFF, polynomial = 0xEDB88320
    cdef int i, bit
    for i in range(size):
        crc ^= p[i]
        for bit in range(8):
            crc = (crc >> 1) ^ (polynomial * (crc & 1))
    return ~crc


cdef inline bint is_known(uint16_t attribute) noexcept nogil:
    """Comprehension-required attributes that do no harm in a Send indication or a Binding request."""
    return (
        attribute == ATTR_XOR_PEER_ADDRESS or attribute == ATTR_DATA or attribute == ATTR_DONT_FRAGMENT
        or attribute == ATTR_USERNAME or attribute == ATTR_REALM or attribute == ATTR_NONCE
        or attribute == ATTR_USERHASH or attribute == ATTR_PASSWORD_ALGORITHM
        or attribute == ATTR_PRIORITY or attribute == ATTR_USE_CANDIDATE
    )


cdef inline bint parse_stun(const uint8_t *p, int size, Stun *out) noexcept nogil:
    """False: not a well-formed message. Only what integrity covers is reported (S5)."""
    cdef int at = STUN_HEADER, end, length, count = 0
    cdef uint16_t attribute
    cdef bint integrity = False, sha256 = False, any_id = False
    memset(out, 0, sizeof(Stun))
    if size < STUN_HEADER or p[0] > 0x3F or be32(p + 4) != COOKIE:
        return False
    length = be16(p + 2)
    if length & 3 or length != size - STUN_HEADER:
        return False
    for count in range(8, STUN_HEADER):
        any_id = any_id or p[count] != 0
    if not any_id:
        return False
    count = 0
    out.type = be16(p)
    out.transaction_id = p + 8
    while at < size:
        attribute = be16(p + at)
        length = be16(p + at + 2)
        end = at + 4 + length
        count += 1
        if end > size or count > ATTRIBUTES_MAX:
            return False
        if attribute == ATTR_FINGERPRINT:
            if length != 4 or end != size or be32(p + end - 4) != (crc32(p, at) ^ FINGERPRINT_XOR):
                return False
            out.fingerprint = True
        elif sha256:
            pass
        elif attribute == ATTR_INTEGRITY_SHA256:
            sha256 = True
        elif integrity:
            pass
        elif attribute == ATTR_INTEGRITY:
            integrity = True
        elif attribute == ATTR_XOR_PEER_ADDRESS:
            if out.peer == NULL:
                out.peer = p + at + 4
                out.peer_size = length
        elif attribute == ATTR_DATA:
            if out.data == NULL:
                out.data = p + at + 4
                out.data_size = length
        elif attribute == ATTR_DONT_FRAGMENT:
            out.dont_fragment = True
        elif attribute < 0x8000 and not is_known(attribute):
            out.unknown_required = True
        at = (end + 3) & ~3
    return True


cdef inline bint read_xor_address(const uint8_t *value, int size, const uint8_t *transaction_id, Address *out) noexcept nogil:
    """XOR-PEER-ADDRESS to a socket address (S10). False: wrong size or unknown family."""
    cdef int i
    cdef uint8_t mask[16]
    put32(mask, COOKIE)
    memcpy(mask + 4, transaction_id, 12)
    if size < 4:
        return False
    memset(out, 0, sizeof(Address))
    put16(out.raw + 2, be16(value + 2) ^ COOKIE_HIGH)
    if value[1] == 1 and size == 8:
        (<uint16_t *>out.raw)[0] = AF_INET
        out.length = 16
        for i in range(4):
            out.raw[4 + i] = value[4 + i] ^ mask[i]
        return True
    if value[1] == 2 and size == 20:
        (<uint16_t *>out.raw)[0] = AF_INET6
        out.length = 28
        for i in range(16):
            out.raw[8 + i] = value[4 + i] ^ mask[i]
        return True
    return False


cdef inline int write_xor_address(uint8_t *at, uint16_t attribute, const Address *address, const uint8_t *transaction_id) noexcept nogil:
    """One attribute with header; returns its bytes, 12 or 24."""
    cdef int i
    cdef uint8_t mask[16]
    put32(mask, COOKIE)
    memcpy(mask + 4, transaction_id, 12)
    put16(at, attribute)
    at[4] = 0
    put16(at + 6, be16(address.raw + 2) ^ COOKIE_HIGH)
    if address.length == 16:
        put16(at + 2, 8)
        at[5] = 1
        for i in range(4):
            at[8 + i] = address.raw[4 + i] ^ mask[i]
        return 12
    put16(at + 2, 20)
    at[5] = 2
    for i in range(16):
        at[8 + i] = address.raw[8 + i] ^ mask[i]
    return 24


cdef inline int write_binding_success(uint8_t *out, const Stun *request, const Address *client) noexcept nogil:
    """The answer to a Binding request (S13), at most REPLY_MAX bytes; FINGERPRINT iff the request had one (I4)."""
    cdef int size
    put16(out, BINDING_SUCCESS)
    put32(out + 4, COOKIE)
    memcpy(out + 8, request.transaction_id, 12)
    size = STUN_HEADER + write_xor_address(out + STUN_HEADER, ATTR_XOR_MAPPED_ADDRESS, client, request.transaction_id)
    put16(out + 2, size - STUN_HEADER + (8 if request.fingerprint else 0))
    if request.fingerprint:
        put16(out + size, ATTR_FINGERPRINT)
        put16(out + size + 2, 4)
        put32(out + size + 4, crc32(out, size) ^ FINGERPRINT_XOR)
        size += 8
    return size


cdef inline int write_data_indication(uint8_t *out, const uint8_t *transaction_id, const Address *peer, int payload) noexcept nogil:
    """Everything of a Data indication before its payload (D4), 36 or 48 bytes. The caller adds payload and padding."""
    cdef int size
    put16(out, DATA_INDICATION)
    put32(out + 4, COOKIE)
    memcpy(out + 8, transaction_id, 12)
    size = STUN_HEADER + write_xor_address(out + STUN_HEADER, ATTR_XOR_PEER_ADDRESS, peer, transaction_id)
    put16(out + size, ATTR_DATA)
    put16(out + size + 2, payload)
    size += 4
    put16(out + 2, size - STUN_HEADER + ((payload + 3) & ~3))
    return size
